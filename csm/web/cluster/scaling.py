"""How many replicas there should be. Serve asks in a process of its own, which should not have to import the app."""

from __future__ import annotations

import math
import time
from typing import Any

FEWER_SECONDS = 60.0  # for which fewer must do before one is let go


def wanted_replicas(busy: float, replicas: int, slots: int, fewest: int, most: int, full: float = 0.7) -> int:
    """How many replicas there should be for so many jobs spoken and waiting, with so many `slots` in each: as many as
    fill their slots to the part `full`. One fewer than are there only where those left would still be below it."""
    if slots < 1:
        return max(fewest, min(most, replicas))
    return max(fewest, min(most, max(1, math.ceil(busy / (full * slots)))))


def scaled(context: Any) -> tuple[int, dict[str, Any]]:
    """Serve's question how many replicas there should be: enough for the jobs spoken and waiting. Fewer only when fewer
    have done for a while, because pages stay on the replica that has them."""
    busy = sum(context.aggregated_metrics.get("busy", {}).values())
    slots = max([0.0, *context.aggregated_metrics.get("slots", {}).values()])
    fewest, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    now, state = context.target_num_replicas, dict(context.policy_state or {})
    wanted = wanted_replicas(busy, now, int(slots), fewest, most)
    if wanted >= now:
        return wanted, {"since": None}
    since = state.get("since") or time.time()
    if time.time() - since < FEWER_SECONDS:
        return now, {"since": since}
    return wanted, {"since": None}
