"""What is wrong with what was spoken: judged when it ends, by its length, by its sound and, where a recogniser listens,
by its words.

Of 60 turns of the embedded model in six voices, none was more than 1.4 or less than 0.7 times as long as expected, and
none had more than 0.2 s of silence in it; the bounds here leave room beyond that.
"""

from __future__ import annotations

import torch
from torch import Tensor

from csm.config import SAMPLE_RATE
from csm.conversation.takes import LEVEL_WINDOW, Scores, level_of

MOST_AGAIN = 2  # how often a turn that went wrong is tried again
TOO_SHORT, TOO_LONG = 0.5, 2.0  # times the frames that a text should take
FAINT = 0.002  # the level of what is all but silent; speech has 0.03 and more
QUIET_DB = -40.0  # below the turn's own level
LONGEST_SILENCE = 1.5  # seconds within a turn that has no pause there
MOST_WRONG, LEAST_WRONG = 0.5, 3  # the share of words heard wrong, and how many
ROOM = 0.8  # of the longest length: a text that takes more may be cut there for nobody's fault

NOTHING = "it gave no sound"
SILENT = "it is all but silent"
CUT = "it was cut off before it had ended"


def doubt(scores: Scores, state: str, text: str, audio: Tensor) -> str:
    """What is wrong with a take of `text` that ended in `state`, its `audio` float32 (num_samples,), as the end of a
    sentence; empty for what sounds as it should, and for what somebody stopped."""
    if state == "stopped":
        return ""
    if not len(audio):
        return NOTHING
    level = level_of(audio)
    if level < FAINT:
        return SILENT
    if state == "capped":
        return CUT
    if not TOO_SHORT <= scores.length <= TOO_LONG:
        return f"it is {scores.length:.1f} times as long as its text should take"
    if (silence := longest_silence(audio, level)) > LONGEST_SILENCE:
        return f"it is silent for {silence:.1f} s within"
    wrong = scores.word_errors or 0.0
    if wrong >= MOST_WRONG and wrong * len(text.split()) >= LEAST_WRONG:
        return f"{100 * wrong:.0f} % of its words were heard otherwise"
    return ""


def unheard(doubt: str) -> bool:
    """Whether nobody can have heard anything of it: then another take may follow, though somebody listens."""
    return doubt in (NOTHING, SILENT)


def helps(doubt: str, expected_frames: float, longest: int) -> bool:
    """Whether another seed may do better: not where the text has no room in the `longest` frames."""
    return bool(doubt) and (doubt != CUT or expected_frames < ROOM * longest)


def longest_silence(audio: Tensor, level: float) -> float:
    """Seconds of the longest stretch of float32 (num_samples,) that is 40 dB below `level`."""
    windows = audio[: len(audio) // LEVEL_WINDOW * LEVEL_WINDOW].view(-1, LEVEL_WINDOW)
    loud = (windows.square().mean(dim=1).sqrt() > level * 10 ** (QUIET_DB / 20)).nonzero().flatten()
    edges = torch.cat([torch.tensor([-1]), loud, torch.tensor([len(windows)])])
    return float((edges.diff() - 1).max()) * LEVEL_WINDOW / SAMPLE_RATE
