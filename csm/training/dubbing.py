"""Dubbing: the teacher says, in any of its voices, what a voice of the recipe says, at its times and with its melody.

The teacher (csm/training/kokoro.py) foretells how long each of its tokens lasts and a melody, and then makes sound of
them. Here its network is cut at both places, and what it goes on with is the recipe's: its phones' times, found by
matching its phones with the teacher's, and its melody in the register of the teacher's voice. So a clip of one speaker
becomes the same clip of another, and no sound is warped for it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from csm.training.corpus import SAMPLE_RATE, played
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
LIKE_VOWELS, LIKE_CONSONANTS = 0.4, 0.7
LEAST = 0.5  # share of boundaries that both have, for the two to say the same


class Dubber(Kokoro):
    """The teacher, with its times and its melody in other hands; on one thread. Raises `InputError` as it does."""

    def _open(self, model: Any) -> None:
        self._foretell = self._session(cut(model, {}, [DURATIONS, MELODY]))
        self._sound = self._session(cut(model, {DURATIONS: "durations", MELODY: "melody"}, ["audio"]))

    def dub(
        self, text: str, style: Style, phones: Phones, hertz: np.ndarray, seconds: float, speed: float = 1.0
    ) -> np.ndarray:
        """`text` in `style` with the recipe's `phones` and their ends, and its pitch, `hertz` (n,), which goes evenly
        over all `seconds` -> float32 (num_samples,) at 24 kHz, as long. At another `speed` it is said that much more
        slowly and then played that much faster, by somebody else therefore, and in the same time.

        Raises `ValueError` for a text that is too long or has nothing to say.
        """
        symbols, feed = self._asked(self.phonemes(text, style.british), style)
        natural, melody = (
            made.reshape(-1) for made in self._foretell.run(None, feed | {"speed": np.ones(1, np.float32)})
        )
        usual = np.concatenate([[0], np.cumsum(natural)]) / FRAMES
        own = merged([(name, float(usual[stop + 1])) for name, stop in spans(symbols)])
        knots, times = boundaries(own, merged(phones))
        said = max((end for name, end in own if name != "pau"), default=0.0)
        if len(knots) < LEAST * len(own):
            raise ValueError("The two say other phones.")
        lasting = BEFORE + seconds * speed + AFTER
        shifts = np.where(np.array(knots) < said, EARLY, LAST)
        times = BEFORE + np.array(times) * speed + shifts
        places = np.interp(usual, [0, *knots, usual[-1]], [0, *times, lasting])
        count = round(lasting * FRAMES)
        edges = np.round(places * FRAMES)
        # the teacher's own melody tells what is voiced; where that is, when it is said in these times
        at = (np.arange(2 * count) + 0.5) / (2 * FRAMES)
        within = np.interp(at, places, usual)
        foretold = melody[np.clip((within * 2 * FRAMES).astype(int), 0, len(melody) - 1)]
        voiced = foretold > UNVOICED
        if not voiced.any():
            raise ValueError("There is no voice in it.")
        octaves = np.interp(at - BEFORE, (np.arange(len(hertz)) + 1) / len(hertz) * seconds * speed, np.log2(hertz))
        register = np.log2(foretold[voiced]).mean() - octaves[voiced].mean()
        sung = np.where(voiced, np.exp2(octaves + register), foretold).astype(np.float32)
        feed |= {"durations": np.diff(edges).astype(np.float32).reshape(1, -1), "melody": sung[None]}
        made = np.asarray(self._sound.run(None, feed)[0], np.float32).reshape(-1)
        wave = played(made[round(BEFORE * SAMPLE_RATE) :], speed)
        length = round(seconds * SAMPLE_RATE)
        return np.pad(wave[:length], (0, max(0, length - len(wave))))


def cut(model: Any, inputs: Mapping[str, str], outputs: Sequence[str]) -> Any:
    """What of an ONNX model makes `outputs`, with the tensors in `inputs` given from outside under new names."""
    import onnx

    graph, needed, nodes = model.graph, set(outputs), []
    for node in reversed(graph.node):
        if needed & set(node.output):
            kept = onnx.NodeProto.FromString(node.SerializeToString())
            kept.input[:] = [inputs.get(name, name) for name in node.input]
            needed |= set(kept.input)
            nodes.append(kept)

    def tensor(name: str) -> Any:
        return onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    given = [one for one in graph.input if one.name in needed] + [tensor(name) for name in inputs.values()]
    weights = [one for one in graph.initializer if one.name in needed]
    part = onnx.helper.make_graph(nodes[::-1], graph.name, given, [tensor(name) for name in outputs], weights)
    return onnx.helper.make_model(part, opset_imports=model.opset_import, ir_version=model.ir_version)


def merged(phones: Phones) -> Phones:
    """Phones with their ends, pauses that follow one another as one."""
    following = [*(name for name, _ in phones[1:]), ""]
    return [phone for phone, after in zip(phones, following) if not phone[0] == "pau" == after]


def boundaries(ours: Phones, theirs: Phones) -> tuple[list[float], list[float]]:
    """Where `ours` end, and when that is if they are said at the times of `theirs`: two lists for `np.interp`.

    A phone that only the first have shares the time of its neighbours, of one that only the second have each neighbour
    gets a half.
    """
    starts = [0.0, *(end for _, end in theirs)]
    knots, times = [], []
    for (one, other), (next_one, next_other) in pairwise(_matched([n for n, _ in ours], [n for n, _ in theirs])):
        if next_one == one + 1:
            knots.append(float(ours[one][1]))
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
            return math.inf
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
            pairs.append((i, j))
        elif costs[i, j] == costs[i - 1, j] + gap(ours[i - 1]):
            i -= 1
        else:
            j -= 1
    return pairs[::-1]
