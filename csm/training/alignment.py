"""Where one synthesiser says what another one says: the two clips of a text are matched frame by frame.

Between the engines and the training speech: RHVoice tells its word times to a tenth of a second and no phones at
all; Flite knows both to the millisecond. Dynamic time warping of their spectra carries Flite's times over.
"""

from __future__ import annotations

import numpy as np

from csm.training.flite import Words

STEP = 0.010  # seconds from frame to frame
WINDOW = 0.025  # seconds of sound a frame sees
MOST = 4  # frames of the one clip that may pass in one of the other
DRIFT = 0.1  # cost of each frame more or less than one


def spectrum(samples: np.ndarray, sample_rate: int, bands: int = 26, kept: int = 13) -> np.ndarray:
    """Cepstra of a waveform (num_samples,), normalised over the clip: float32 (frames, 1 + kept).

    The loudness is there twice, so that pauses meet pauses.
    """
    size, step = int(WINDOW * sample_rate), STEP * sample_rate
    padded = np.pad(samples.astype(np.float32) / 32768, size // 2)
    starts = (np.arange(int(len(samples) / step) + 1) * step).astype(int)
    frames = padded[np.minimum(starts[:, None] + np.arange(size), len(padded) - 1)] * np.hanning(size)
    power = np.abs(np.fft.rfft(frames, 512 if size <= 512 else 1024).astype(np.complex64)) ** 2
    hertz = np.linspace(0, sample_rate / 2, power.shape[1])
    edges = 700 * (np.exp(np.linspace(np.log1p(100 / 700), np.log1p(7000 / 700), bands + 2)) - 1)
    rising = (hertz - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - hertz) / np.diff(edges)[1:, None]
    mel = np.log(power @ np.clip(np.minimum(rising, falling), 0, None).T.astype(np.float32) + 1e-5)
    cosines = np.cos(np.pi / bands * np.outer(np.arange(kept), np.arange(bands) + 0.5))
    cepstra = mel @ cosines.T
    cepstra = (cepstra - cepstra.mean(0)) / (cepstra.std(0) + 1e-3)
    return np.concatenate([cepstra[:, :1], cepstra], axis=1).astype(np.float32)


def match(source: np.ndarray, target: np.ndarray, centre: np.ndarray, width: np.ndarray) -> np.ndarray:
    """For each frame of `source` (n, features) its frame of `target` (m, features), never going back: int (n,).

    Frame i is looked for within `width[i]` frames of `centre[i]`. The first and the last frames meet.
    """
    n, m = len(source), len(target)
    cost = np.sqrt(np.maximum(0, (source**2).sum(1)[:, None] + (target**2).sum(1) - 2 * source @ target.T))
    cost /= cost.mean() + 1e-6
    cost[np.abs(np.arange(m)[None] - centre[:, None]) > width[:, None]] += 10
    total = np.full(m, np.inf)
    total[0] = cost[0, 0]
    steps = np.zeros((n, m), np.int8)
    drift = DRIFT * np.abs(np.arange(MOST + 1) - 1)
    for i in range(1, n):
        ways = np.full((MOST + 1, m), np.inf)
        for step in range(min(MOST, m - 1) + 1):
            ways[step, step:] = total[: m - step] + drift[step]
        steps[i] = ways.argmin(0)
        total = ways.min(0) + cost[i]
    path = np.zeros(n, int)
    reachable = np.flatnonzero(np.isfinite(total))
    path[-1] = reachable[-1]
    for i in range(n - 1, 0, -1):
        path[i - 1] = path[i] - steps[i, path[i]]
    return path


def time_map(
    text: str,
    source: tuple[np.ndarray, int],
    target: tuple[np.ndarray, int],
    words: Words,
    onto: Words,
    coarse: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds in `source` and the same moments in `target`, two float arrays for `np.interp`.

    `source` and `target` are (samples, sample rate) of two clips of `text` with their `words`; the times of
    `onto`, the target's, may be up to `coarse` seconds early. Where the two clips do not have the same words,
    only their first and last moments of speech are taken from them.
    """
    a, b = spectrum(*source), spectrum(*target)
    ends = len(source[0]) / source[1], len(target[0]) / target[1]
    own, other = by_token(text, words), by_token(text, onto)
    same = own.keys() == other.keys() and bool(own)
    slack = coarse + 0.03 if same else 0.5
    knots = [(0.0, 0.0)]
    if not same and own and other:
        own, other = ({0: (min(s for s, _ in x.values()), max(e for _, e in x.values()))} for x in (own, other))
    for token, (start, end) in sorted(own.items()):
        begin, finish = other.get(token, (start, end))
        knots += [(start, begin + coarse / 2), (end, finish + coarse / 2)]
    knots.append(ends)
    times = np.maximum.accumulate(np.array(knots), axis=0)
    at = np.arange(len(a)) * STEP
    centre = np.interp(at, times[:, 0], times[:, 1]) / STEP
    voiced = (at >= times[1, 0]) & (at <= times[-2, 0])
    path = match(a, b, centre, np.where(voiced, slack, 0.5) / STEP)
    return at, np.minimum(path * STEP, ends[1])


def by_token(text: str, words: Words) -> dict[int, tuple[float, float]]:
    """Start and end in seconds of each stretch of `text` without spaces, numbered, that words were found in."""
    times: dict[int, tuple[float, float]] = {}
    for first, _, start, end in words:
        token = len(text[: first + 1].split())
        before = times.get(token, (start, end))
        times[token] = (min(before[0], start), max(before[1], end))
    return times
