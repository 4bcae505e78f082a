"""The small pieces of HTML that the tabs share: a status line."""

from __future__ import annotations

from html import escape


def status(sentence: str, kind: str = "quiet") -> str:
    """The status line; `kind` is `quiet`, `busy`, `done`, `warning` or `error`."""
    role = "alert" if kind == "error" else "status"
    return f'<p class="csm-status" data-kind="{kind}" role="{role}">{escape(sentence)}</p>'
