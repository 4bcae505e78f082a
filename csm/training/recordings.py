"""Recordings of one's own on their way into training: sound to codes, once, and codes to conversations.

What `csm/training/codes.py` does for the synthetic speech, for whatever a manifest lists: any codec, any tokenizer,
and real conversations in their order.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from csm.audio import load_audio
from csm.codec import Codec
from csm.engine.frames import RowFormat, Rows
from csm.files import whole
from csm.training.codes import SENTENCES_IN_A_TURN, SLOTS, Batch
from csm.training.distributed import Processes
from csm.training.manifest import Recording
from csm.training.run import say
from csm.training.shapes import make_folder

PROGRESS = 200  # recordings between two lines about encoding
MISSES = 4  # turns that don't fit any more before a conversation is called full


@dataclass(frozen=True)
class Spoken:
    """A recording ready for packing: what is said, by whom, and its codes int64 (frames, K)."""

    speaker: str
    text: str
    codes: Tensor


def fingerprint(codec: Codec) -> bytes:
    """A hash of all that a codec's codes depend on besides the sound."""
    made = hashlib.sha256(str(codec.num_codebooks).encode())
    for name, tensor in sorted(codec.module.state_dict().items()):
        made.update(name.encode() + tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return made.digest()


@torch.inference_mode()
def encode(
    recordings: Sequence[Recording],
    codec: Codec,
    folder: Path,
    together: Processes = Processes(),  # noqa: B008 - frozen
    report: Callable[[str], None] = say,
) -> list[Tensor]:
    """Codes int64 (frames, K) of every recording, from `folder` or else through the codec and into it.

    A file of codes is named after what it was made from, the recording and the codec: what is there is right, so an
    interrupted encoding goes on where it was, and a recording that changed is encoded anew. Several processes share
    the work.
    """
    make_folder(folder)
    codec.module.to(together.device)
    model = fingerprint(codec)
    files = [folder / f"{hashlib.sha256(model + r.path.read_bytes()).hexdigest()[:40]}.npy" for r in recordings]
    waiting = list({file: recording for recording, file in zip(recordings, files) if not file.exists()}.items())
    together.wait()  # nobody writes before everybody has the same list
    for done, (file, recording) in enumerate(waiting[together.rank :: together.count]):
        if together.first and done % PROGRESS == 0:
            report(f"encoding {len(waiting)} of {len(recordings)} recordings, {done * together.count} done")
        codes = codec.encode(load_audio(recording.path).to(together.device))
        _write(file, codes.cpu().numpy().astype(np.int16))
    together.wait()
    return [torch.from_numpy(np.load(file).astype(np.int64)) for file in files]


def _write(file: Path, codes: np.ndarray) -> None:
    with whole(file) as part, part.open("wb") as made:
        np.save(made, codes)


def split(recordings: Sequence[Recording], share: float, seed: int) -> list[bool]:
    """Which recordings are held out: a `share` of the sentences, in every voice, and of the conversations as wholes.

    At least one is, if there are two and a share is asked for; which ones depends on `seed` and the words alone.
    """
    keys = [f"c {r.conversation}" if r.conversation else f"s {' '.join(r.text.casefold().split())}" for r in recordings]
    units = sorted(set(keys), key=lambda key: (zlib.crc32(f"{seed} {key}".encode()), key))
    count = min(len(units) - 1, max(1, round(share * len(units)))) if share else 0
    chosen = set(units[:count])
    return [key in chosen for key in keys]


class OwnConversations:
    """Training conversations from recordings: real ones in their order, and the rest of the turns in random orders.

    `batch` is a function of the seed and the step. No recording comes twice in a row of a batch, or the model would
    learn to repeat instead of to read.
    """

    def __init__(self, encoded: Sequence[tuple[Recording, Tensor]], written: RowFormat, seed: int = 1) -> None:
        self.format, self.seed = written, seed
        self.single: dict[str, list[Spoken]] = {}
        talks: dict[str, list[tuple[float, Spoken]]] = {}
        for recording, made in encoded:
            spoken = Spoken(recording.speaker, recording.text, made)
            if recording.conversation:
                talks.setdefault(recording.conversation, []).append((recording.order, spoken))
            else:
                self.single.setdefault(recording.speaker, []).append(spoken)
        self.talks = [[turn for _, turn in sorted(talk, key=lambda item: item[0])] for talk in talks.values()]
        turns = [turn for talk in [*self.talks, *self.single.values()] for turn in talk]
        lengths = [len(self._rows(turn, SLOTS - 1)) for turn in turns]
        self.longest, self.positions = max(lengths), sum(lengths)
        self.share_of_talks = sum(map(len, self.talks)) / len(turns)

    def batch(self, step: int, rows: int, length: int) -> Batch:
        """Conversations of up to `length` positions, filled up to the longest of them: (rows, its length, K+1).

        Fewer and longer ones where not every recording fits into `length`.
        """
        if length < self.longest:
            rows, length = max(1, rows * length // self.longest), self.longest
        rng = np.random.default_rng((self.seed, step))
        made = [self._conversation(rng, length) for _ in range(rows)]
        length = max(len(ids) for ids, _ in made)
        ids, mask = (torch.stack([_padded(part, length) for part in parts]) for parts in zip(*made))
        return Batch.of(ids, mask)

    def _conversation(self, rng: np.random.Generator, length: int) -> tuple[Tensor, Tensor]:
        """ids and mask (positions, K+1), at most `length` positions, at least one turn."""
        real = rng.random() < self.share_of_talks
        speakers, turns = self._talk(rng) if real else self._turns(rng)
        slots = dict(zip(speakers, rng.permutation(SLOTS if rng.random() < 0.3 else len(speakers)).tolist()))
        parts: list[Rows] = []
        used, misses = 0, 0
        for turn in turns:
            rows = self._rows(turn, slots[turn.speaker])
            if used + len(rows) <= length:
                parts.append(rows)
                used += len(rows)
            elif real or (misses := misses + 1) == MISSES:
                break
        joined = Rows.join(parts)
        return joined.ids, joined.mask

    def _rows(self, turn: Spoken, slot: int) -> Rows:
        return self.format.turn(turn.text, slot, turn.codes)

    def _talk(self, rng: np.random.Generator) -> tuple[list[str], Iterable[Spoken]]:
        """A real conversation, from its beginning or from a later turn on; the more turns it has, the more often."""
        weights = np.array([len(talk) for talk in self.talks], float)
        talk = self.talks[rng.choice(len(self.talks), p=weights / weights.sum())]
        talk = talk[int(rng.integers(len(talk))) if rng.random() < 0.5 else 0 :]
        return list(dict.fromkeys(turn.speaker for turn in talk)), talk

    def _turns(self, rng: np.random.Generator) -> tuple[list[str], Iterable[Spoken]]:
        """The turns of one to three speakers in a random order; after the first, some are of several sentences."""
        count = min(len(self.single), int(rng.integers(1, 4)))
        names = rng.choice(list(self.single), size=count, replace=False).tolist()
        return names, self._shuffled(names, rng)

    def _shuffled(self, names: list[str], rng: np.random.Generator) -> Iterator[Spoken]:
        decks = {name: rng.permutation(len(self.single[name])) for name in names}
        number = 1
        while decks:
            name = str(rng.choice(list(decks)))
            taken, decks[name] = np.split(decks[name], [number])
            yield _in_one_breath([self.single[name][card] for card in taken])
            number = 1 + int(rng.choice(len(SENTENCES_IN_A_TURN), p=SENTENCES_IN_A_TURN))
            if not len(decks[name]):
                del decks[name]


def _in_one_breath(sentences: list[Spoken]) -> Spoken:
    text = " ".join(sentence.text for sentence in sentences)
    return Spoken(sentences[0].speaker, text, torch.cat([sentence.codes for sentence in sentences]))


def _padded(part: Tensor, length: int) -> Tensor:
    return nn.functional.pad(part, (0, 0, 0, length - len(part)))
