"""Dubbing: the teacher says, in any of its voices, what a voice of the recipe says, at its times and with its melody.

The teacher (csm/training/kokoro.py) foretells how long each of its tokens lasts and a melody, and then makes sound of
them. Here its network is cut at both places, and what it goes on with is the recipe's: its phones' times, found by
matching its phones with the teacher's, and its melody in the register of the teacher's voice. So a clip of one speaker
becomes the same clip of another, and no sound is warped for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soxr

from csm.training.corpus import SAMPLE_RATE
from csm.training.flite import Phones
from csm.training.kokoro import DURATIONS, Kokoro, Style, spans

MELODY = "/encoder/Reshape_output_0"  # in Hz, two values a frame; near 0: unvoiced
FRAMES = 40  # of the teacher's, a second
# How the teacher says it when it is free: it waits before it begins, its sounds come somewhat before the times of their
# tokens, and the last token lasts far longer than its sound. What it is asked for is so, too, and then cut.
BEFORE, EARLY, LAST, AFTER = 0.25, 0.055, 0.35, 0.6  # seconds
UNVOICED = 30.0  # Hz
VOWELS = frozenset("aa ae ah ao aw ax ay eh er ey ih iy ow oy uh uw".split())
GAP, SHORT_GAP = 0.6, 0.3  # cost of a phone that only one of them says, and of a pause
LIKE_VOWELS, LIKE_CONSONANTS, UNLIKE = 0.4, 0.7, 2.0


class Dubber(Kokoro):
    """The teacher, with its times and its melody in other hands; on one thread. Raises `InputError` as it does."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._foretell = self._cut({}, [DURATIONS, MELODY])
        self._sound = self._cut({DURATIONS: "durations", MELODY: "melody"}, ["audio"])

    def _cut(self, inputs: Mapping[str, str], outputs: Sequence[str]) -> Any:
        """What of the network makes `outputs`, with the tensors in `inputs` given from outside under new names."""
        import onnx

        model = onnx.ModelProto()
        model.CopyFrom(self._model)
        graph = model.graph
        wanted, kept = set(outputs), []
        for node in reversed(graph.node):
            node.input[:] = [inputs.get(name, name) for name in node.input]
            if wanted & set(node.output):
                wanted |= set(node.input)
                kept.append(node)
        free = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs.values()]
        free += [one for one in graph.input if one.name in wanted]
        made = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(kept)]
        del graph.node[:], graph.output[:], graph.value_info[:]
        free = [onnx.ValueInfoProto.FromString(one.SerializeToString()) for one in free]
        del graph.input[:]
        graph.node.extend(kept)
        graph.input.extend(free)
        graph.output.extend(made)
        return self._session(model)

    def dub(
        self, text: str, style: Style, phones: Phones, hertz: np.ndarray, seconds: float, speed: float = 1.0
    ) -> np.ndarray:
        """`text` in `style` with the recipe's `phones` and their ends, and its pitch, `hertz` (n,), which goes evenly
        over all `seconds` -> float32 (num_samples,) at 24 kHz, as long. At another `speed` it is said that much more
        slowly and then played that much faster, by somebody else therefore, and in the same time.

        Raises `ValueError` for a text that is too long or has nothing to say.
        """
        ids = self._ids(self.phonemes(text, style.british), style)
        feed = {"tokens": np.array([[0, *ids, 0]]), "style": style.rows[len(ids)][None]}
        natural, melody = (
            made.reshape(-1) for made in self._foretell.run(None, feed | {"speed": np.ones(1, np.float32)})
        )
        usual = np.concatenate([[0], np.cumsum(natural)]) / FRAMES
        groups = spans([self._symbols[number] for number in ids])
        knots, times = boundaries([name for name, _ in groups], [usual[stop + 1] for _, stop in groups], phones)
        said = max(usual[stop + 1] for name, stop in groups if name != "pau")
        lasting = BEFORE + seconds * speed + AFTER
        shifts = np.where(np.array(knots) < said, EARLY, LAST)
        times = BEFORE + np.array(times) * speed + shifts
        places = np.interp(usual, [0, *knots, usual[-1]], [0, *times, lasting])
        count = round(lasting * FRAMES)
        edges = np.round(places * FRAMES)
        # the teacher's own melody tells what is voiced; where that is, when it is said in these times
        at = (np.arange(2 * count) + 0.5) / (2 * FRAMES)
        within = np.interp(at, places, usual)
        own = melody[np.clip((within * 2 * FRAMES).astype(int), 0, len(melody) - 1)]
        voiced = own > UNVOICED
        if not voiced.any():
            raise ValueError("There is no voice in it.")
        octaves = np.interp(at - BEFORE, (np.arange(len(hertz)) + 1) / len(hertz) * seconds * speed, np.log2(hertz))
        register = np.log2(own[voiced]).mean() - octaves[voiced].mean()
        sung = np.where(voiced, np.exp2(octaves + register), own).astype(np.float32)
        feed |= {"durations": np.diff(edges).astype(np.float32).reshape(1, -1), "melody": sung[None]}
        wave = np.asarray(self._sound.run(None, feed)[0], np.float32).reshape(-1)
        wave = wave[round(BEFORE * SAMPLE_RATE) :]
        if speed != 1:
            wave = soxr.resample(wave, SAMPLE_RATE * speed, SAMPLE_RATE)
        length = round(seconds * SAMPLE_RATE)
        return np.pad(wave[:length], (0, max(0, length - len(wave))))


def boundaries(names: Sequence[str], ends: Sequence[float], phones: Phones) -> tuple[list[float], list[float]]:
    """Where phones with `names` and `ends` end, when they are said at the times of `phones`: two lists for `np.interp`.

    A phone that only the first have shares the time of its neighbours, of one that only the second have each neighbour
    gets a half.
    """
    starts = [0.0, *(end for _, end in phones)]
    pairs = _matched(list(names), [name for name, _ in phones])
    knots, times = [], []
    for (one, other), (next_one, next_other) in zip(pairs, pairs[1:]):
        if next_one == one + 1:
            knots.append(float(ends[one]))
            times.append((starts[other + 1] + starts[next_other]) / 2)
    return knots, times


def _matched(ours: list[str], theirs: list[str]) -> list[tuple[int, int]]:
    """Pairs of places in two lists of phones that say the same, in order, by the least edits."""

    def gap(name: str) -> float:
        return SHORT_GAP if name == "pau" else GAP

    def unlike(one: str, other: str) -> float:
        if one == other:
            return 0
        if "pau" in (one, other) or (one in VOWELS) != (other in VOWELS):
            return UNLIKE
        return LIKE_VOWELS if one in VOWELS else LIKE_CONSONANTS

    costs = np.zeros((len(ours) + 1, len(theirs) + 1))
    costs[1:, 0] = np.cumsum([gap(name) for name in ours])
    costs[0, 1:] = np.cumsum([gap(name) for name in theirs])
    for i, one in enumerate(ours, 1):
        for j, other in enumerate(theirs, 1):
            costs[i, j] = min(
                costs[i - 1, j - 1] + unlike(one, other), costs[i - 1, j] + gap(one), costs[i, j - 1] + gap(other)
            )
    pairs, i, j = [], len(ours), len(theirs)
    while i and j:
        if costs[i, j] == costs[i - 1, j - 1] + unlike(ours[i - 1], theirs[j - 1]):
            i, j = i - 1, j - 1
            if unlike(ours[i], theirs[j]) < UNLIKE:
                pairs.append((i, j))
        elif costs[i, j] == costs[i - 1, j] + gap(ours[i - 1]):
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
