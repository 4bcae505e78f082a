"""What Gradio keeps of calls that are over, and should not: called by the clock, beside `Pages.tidy`.

Gradio's queue remembers every event with its request for ever, works out figures of all of them after each, and keeps a
description of the whole page, with what was last in its fields, for each of ten thousand sessions; a call by a program
is a session of its own.
"""

from __future__ import annotations

import sys
import time
from collections import OrderedDict
from typing import Any

import gradio as gr

from csm.limits import KEPT_SECONDS

MOST_SESSIONS = 1_024  # of pages in browsers
MOST_CALLS = 256  # that wait for a function, each with up to a megabyte; who waits for the model has a queue of its own
MOST_UNTOLD = 1_024  # whose end nobody has asked for so far
YOUNG_SECONDS = 10.0  # in which an event may not have reached its queue


def keep_little(blocks: gr.Blocks) -> None:
    """Have no figures worked out of all events so far whenever one ends, and no description of the page kept for each
    session: nobody looks at them here."""
    blocks._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize
    holder: Any = getattr(blocks, "state_holder", None)
    if holder is not None:
        holder.session_data = _Sessions(holder.session_data)


class _Sessions(OrderedDict[str, Any]):
    def __setitem__(self, name: str, session: Any) -> None:
        session.config_values = _NothingKept()
        super().__setitem__(name, session)


class _NothingKept(dict[int, Any]):
    """For the 200 kB, and up to a megabyte of what was asked, from which Gradio makes links into a session."""

    def __contains__(self, name: object) -> bool:
        return True

    def __getitem__(self, name: int) -> dict[str, Any]:
        return {}

    def __setitem__(self, name: int, value: Any) -> None:
        pass


def forget(blocks: gr.Blocks, now: float | None = None) -> None:
    """Drop the events that are over and whose end was told, or has waited for an hour to be, and of those that still
    wait all but the newest, and what was asked. On the server's loop."""
    queue, now = blocks._queue, time.monotonic() if now is None else now
    busy = {event._id for events in queue.active_jobs for event in events or ()}
    busy |= {event._id for each in queue.event_queue_per_concurrency_id.values() for event in each.queue}
    awaited = set().union(*queue.pending_event_ids_session.values())
    over: dict[str, Any] = {
        name: event
        for name, event in queue.event_ids_to_events.items()
        if name not in busy and now - event.enqueue_time >= YOUNG_SECONDS
    }
    waits = [name for name, event in over.items() if name in awaited and now - event.enqueue_time < KEPT_SECONDS]
    kept = set(waits[max(0, len(waits) - MOST_UNTOLD) :])
    for name, event in over.items():
        event.data = event.request = None
        if name in kept:
            continue
        del queue.event_ids_to_events[name]
        queue.event_analytics.pop(name, None)
        if name in awaited:
            awaiting = queue.pending_event_ids_session[event.session_hash]
            awaiting.discard(name)
            if not awaiting:
                del queue.pending_event_ids_session[event.session_hash]
        if event.session_hash == name:  # a program's
            queue.pending_messages_per_session.pop(name, None)
            _end_session(blocks, name)
    known = {event.session_hash for event in queue.event_ids_to_events.values()}
    for session in [one for one, ids in queue.pending_event_ids_session.items() if not ids and one not in known]:
        del queue.pending_event_ids_session[session]
    for name in list(queue.event_analytics.keys() - queue.event_ids_to_events.keys()):
        del queue.event_analytics[name]
    holder: Any = getattr(blocks, "state_holder", None)
    if holder is not None:
        for name in holder.time_last_used.keys() - holder.session_data.keys():
            del holder.time_last_used[name]


def _end_session(blocks: gr.Blocks, name: str) -> None:
    holder: Any = getattr(blocks, "state_holder", None)
    if holder is not None:
        with holder.lock:
            holder.session_data.pop(name, None)
