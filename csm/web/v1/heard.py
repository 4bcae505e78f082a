"""What has left of a job while it is spoken: where its turns and words lie in the sound that was sent, and its cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.conversation.events import Event, TurnChunk, TurnFinished
from csm.conversation.exports import subtitles
from csm.conversation.script import Span

WordTimes = Callable[[str, Tensor], list[tuple[str, float, float]]]  # a text, and its sound -> words, and their seconds


class Heard:
    """A live sound is not trimmed at its turns' ends as a finished one is, so it has times of its own."""

    def __init__(self, word_times: WordTimes | None = None) -> None:
        self.spans: list[Span] = []
        self.words: list[dict[str, Any]] = []
        self.text = self.frames = 0
        self.doubts: list[str] = []  # what may have gone wrong
        self._word_times = word_times
        self._samples = 0

    def take(self, event: Event) -> None:
        """One event of the job, in order."""
        if isinstance(event, TurnChunk):
            self._samples += len(event.audio)
        elif isinstance(event, TurnFinished):
            start = self.spans[-1].end if self.spans else 0
            self.spans.append(Span(event.index, event.turn.speaker, event.turn.text, start, self._samples))
            self.doubts += [event.turn.doubt] if event.turn.doubt else []
            self.text, self.frames = self.text + event.text_positions, self.frames + event.turn.frames
            if self._word_times is not None:
                self.words += timed(self._word_times, event.turn.text, event.audio, event.index, start / SAMPLE_RATE)

    @property
    def seconds(self) -> float:
        """How much sound has left."""
        return self._samples / SAMPLE_RATE

    @property
    def usage(self) -> dict[str, int]:
        """As OpenAI counts: here positions of text, and frames of sound."""
        return {"input_tokens": self.text, "output_tokens": self.frames, "total_tokens": self.text + self.frames}

    def turns(self) -> list[dict[str, Any]]:
        """The turns and their seconds."""
        return [
            {
                "speaker": span.speaker,
                "text": span.text,
                "start": round(span.start / SAMPLE_RATE, 3),
                "end": round(span.end / SAMPLE_RATE, 3),
            }
            for span in self.spans
        ]

    def report(self, finished: dict[str, Any]) -> dict[str, Any]:
        """The report of the finished conversation, with the times of the sound that was sent."""
        turns = [told | times for told, times in zip(finished["turns"], self.turns())]
        return finished | {"turns": turns, "audio_seconds": round(self._samples / SAMPLE_RATE, 6)}

    def subtitles(self, sound: Tensor | None = None) -> dict[str, str]:
        """The turns as subtitles in both formats."""
        return both_formats(self.spans, sound)


def both_formats(spans: list[Span], sound: Tensor | None = None) -> dict[str, str]:
    """Subtitles of these spans, by format."""
    return {kind: subtitles(spans, f".{kind}", sound) for kind in ("srt", "vtt")}


def timed(word_times: WordTimes, text: str, sound: Tensor, turn: int, start: float) -> list[dict[str, Any]]:
    """The words of a turn that begins at second `start`, as JSON data."""
    return [
        {"word": word, "start": round(start + begin, 3), "end": round(start + end, 3), "turn": turn}
        for word, begin, end in word_times(text, sound)
    ]
