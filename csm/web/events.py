"""What Gradio keeps of calls that are over, and should not: called by the clock, beside `Pages.tidy`.

Gradio's queue remembers every event with its request for ever, works out figures of all of them after each, and keeps a
description of the whole page for each of ten thousand sessions; a call by a program is a session of its own.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import gradio as gr

from csm.limits import KEPT_SECONDS

MOST_SESSIONS = 1_024  # of pages in browsers; 200 kB each
YOUNG_SECONDS = 10.0  # in which an event may not have reached its queue


def count_nothing(blocks: gr.Blocks) -> None:
    """Have no figures worked out of all events so far whenever one ends: nobody looks at them here."""
    blocks._queue.ANAYLTICS_CACHE_FREQUENCY = sys.maxsize


def forget(blocks: gr.Blocks, now: float | None = None) -> None:
    """Drop the events that are over and whose end was told, or has waited for an hour to be. On the server's loop."""
    queue, now = blocks._queue, time.monotonic() if now is None else now
    busy = {event._id for events in queue.active_jobs for event in events or ()}
    busy |= {event._id for each in queue.event_queue_per_concurrency_id.values() for event in each.queue}
    awaited = set().union(*queue.pending_event_ids_session.values())
    for name, event in list(queue.event_ids_to_events.items()):
        age = now - event.enqueue_time
        if name in busy or age < YOUNG_SECONDS or (name in awaited and age < KEPT_SECONDS):
            continue
        del queue.event_ids_to_events[name]
        queue.event_analytics.pop(name, None)
        if name in awaited:
            awaiting = queue.pending_event_ids_session[event.session_hash]
            awaiting.discard(name)
            if not awaiting:
                del queue.pending_event_ids_session[event.session_hash]
        if event.session_hash == name:  # a program's
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
