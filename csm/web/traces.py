"""A span for every job, as part of the trace of the request that asked for it.

FastAPI brings OpenTelemetry's API. Without an SDK that somebody has set up, spans are nothing and cost nothing.
"""

from __future__ import annotations

from typing import Any

try:
    from opentelemetry import trace
except ImportError:  # an older FastAPI
    trace = None  # type: ignore[assignment]


class JobSpan:
    """`csm.job`, from the moment when it is asked for; `turns` is how many it has."""

    def __init__(self, turns: int) -> None:
        self._span: Any = (
            trace.get_tracer("csm").start_span("csm.job", attributes={"csm.turns": turns}) if trace else None
        )

    def note(self, **attributes: Any) -> None:
        """What is known of it by now, such as `queue_seconds`."""
        if self._span is not None:
            self._span.set_attributes({f"csm.{name}": value for name, value in attributes.items()})

    def end(self) -> None:
        """It is over."""
        if self._span is not None:
            self._span.end()
