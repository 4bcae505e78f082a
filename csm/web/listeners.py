"""Whether anybody still waits for a call of one of Gradio's functions: what clients, MCP's and the page leave behind
when they go. Every function of the app passes here, so what it fails with is told in one sentence, too."""

from __future__ import annotations

import asyncio
import errno
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import gradio as gr

from csm.errors import InputError
from csm.web.asked import FAILED, whole
from csm.web.following import LOOK_SECONDS

CALL = "x-csm-call"  # a header of ours: the MCP request for which Gradio calls its own server
REFUSED = "csm_refused"  # in a request's state: the function was refused, which Gradio answers like a failure
OF_ANOTHER_KIND = "A value is not of the kind that this function takes: files have to be uploaded, and choices offered."
logger = logging.getLogger(__name__)


class Listener:
    """Who waits for one call. For any thread."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._gone = False
        self._then: list[Callable[[], None]] = []

    def gone(self) -> bool:
        """Whether nobody waits any more."""
        return self._gone

    def leave(self) -> None:
        """Nobody waits any more."""
        with self._guard:
            self._gone, then = True, self._then
            self._then = []
        for work in then:
            work()

    @contextmanager
    def when_gone(self, work: Callable[[], None]) -> Iterator[None]:
        """Do `work` once when the listener leaves while the block lasts."""
        with self._guard:
            if not self._gone:
                self._then.append(work)
        if self._gone:
            work()
        try:
            yield
        finally:
            with self._guard, suppress(ValueError):
                self._then.remove(work)


_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


def listener() -> Listener:
    """Who waits for the call at hand; one who never goes where none is known."""
    return _LISTENER.get() or Listener()


class Calls:
    """The requests to MCP that somebody still waits for, by a name of ours."""

    def __init__(self) -> None:
        self._open: dict[str, bool] = {}

    def begin(self, name: str) -> None:
        self._open[name] = True

    def end(self, name: str) -> None:
        self._open.pop(name, None)

    def left(self, name: str) -> bool:
        """Whether the request `name` has ended or its client has gone."""
        return name not in self._open


class Attended(gr.Blocks):
    """Gradio's app, in which a call knows whether somebody waits for it, and fails in one sentence. `calls` and
    `refusal`, which says why a call for a public function may not be made, are set by whoever serves it."""

    calls: Calls | None = None
    refusal: Callable[[Any], str] | None = None

    async def process_api(self, block_fn: Any, inputs: list[Any], *more: Any, **named: Any) -> dict[str, Any]:
        function = self.fns[block_fn] if isinstance(block_fn, int) else block_fn
        request, event_id = named.get("request"), named.get("event_id")
        waits = Listener()
        watch = asyncio.ensure_future(self._watch(waits, request, event_id))
        known = _LISTENER.set(waits)
        try:
            if self.refusal is not None and function.api_visibility == "public" and (no := self.refusal(request)):
                raise InputError(no)
            if function.fn is None:
                raise InputError("This function is for the page alone.")
            # Programs from before a field was added send one value less: it is at its default.
            missing = [getattr(field, "value", None) for field in function.inputs[len(inputs) :]]
            if None in missing:
                raise InputError(f"This function takes {len(function.inputs)} values and {len(inputs)} came.")
            return await super().process_api(block_fn, whole([*inputs, *missing]), *more, **named)
        except asyncio.CancelledError:
            waits.leave()
            raise
        except gr.Error as error:
            _refused(request)
            error.print_exception = False
            raise
        except InputError as error:
            _refused(request)
            raise gr.Error(str(error), print_exception=False) from error
        except Exception as error:
            logger.exception("A function of the app failed.")
            raise gr.Error(FAILED, print_exception=False) from error
        finally:
            watch.cancel()
            _LISTENER.reset(known)

    async def preprocess_data(self, *given: Any, **named: Any) -> list[Any]:
        """What a function is given, read by its components: whatever they can't make anything of is refused."""
        try:
            return await super().preprocess_data(*given, **named)
        except (gr.Error, InputError):
            raise
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            raise InputError(OF_ANOTHER_KIND) from error
        except Exception as error:
            raise InputError(OF_ANOTHER_KIND) from error

    async def _watch(self, waits: Listener, request: Any, event_id: str | None) -> None:
        while not await self._left(request, event_id):
            await asyncio.sleep(LOOK_SECONDS)
        waits.leave()

    async def _left(self, request: Any, event_id: str | None) -> bool:
        headers = getattr(request, "headers", None) or {}
        if self.calls is not None and (name := headers.get(CALL)):
            return self.calls.left(name)
        if event_id is not None:
            event = self._queue.event_ids_to_events.get(event_id)
            return event is not None and not event.alive
        asked = getattr(request, "request", request)
        return bool(await asked.is_disconnected()) if hasattr(asked, "is_disconnected") else False


def _refused(request: Any) -> None:
    scope = getattr(getattr(request, "request", request), "scope", None)
    if isinstance(scope, dict):
        scope.setdefault("state", {})[REFUSED] = True
