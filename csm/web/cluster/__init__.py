"""One address in front of many replicas of the app: `csm serve --cluster`, or `serve run csm.web.cluster:app`.

A replica is the whole app in a process of its own, started, watched and replaced by Ray Serve. The front passes
requests on to their HTTP servers and knows nothing of speech; the register knows who is there and keeps what all share.
"""

from __future__ import annotations

from typing import Any


def app(args: dict[str, Any]) -> Any:
    """What `serve run csm.web.cluster:app replicas=1-4 model=nano` and Serve's config files build."""
    from csm.web.cluster.serving import application  # imports Ray

    return application(args)
