"""Work that many machines share: parts of the shards, made anywhere in any order, are what one machine makes."""

import json
import queue
import shutil
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import csm
from csm.cli import main
from csm.codec import build_codec
from csm.training import commands, corpus, kokoro
from csm.training.codes import encode_corpus
from csm.training.corpus import Corpus, Utterance
from csm.training.parts import Part
from tests.small import SMALL_LIGHT, fill_codebooks
from tests.test_corpus import HUMMERS
from tests.test_kokoro import Hum

TEXTS = [f"This is the {word} sentence." for word in "first second third fourth fifth sixth seventh".split()]


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def copied_together(folders, into):
    for folder in folders:
        shutil.copytree(folder, into, dirs_exist_ok=True)
    return into


@pytest.fixture
def synthesisers(monkeypatch):
    """Hummers, few lines in a shard, and no other processes; the texts are what the fixture gives."""
    texts = list(TEXTS)
    context = SimpleNamespace(
        Pool=lambda workers: Here(), Queue=queue.Queue, Process=lambda **job: threading.Thread(**job)
    )
    monkeypatch.setattr(corpus.multiprocessing, "get_context", lambda kind: context)
    monkeypatch.setattr(corpus, "LINES_A_SHARD", 3)
    monkeypatch.setattr(corpus, "load_engines", lambda rhvoice: HUMMERS)
    monkeypatch.setattr(corpus, "training_sentences", lambda *_: iter(texts))
    monkeypatch.setattr("csm.training.sentences.training_sentences", lambda *_: iter(texts))
    return texts


class Here:
    """A pool of no processes."""

    def __enter__(self):
        return self

    def __exit__(self, *_): ...

    imap_unordered = staticmethod(map)


def test_parts_of_the_speech_are_together_the_whole(synthesisers, tmp_path, capsys):
    def make(folder, *options) -> int:
        return main(["train", "data", "--out", str(tmp_path / folder), *options])

    assert make("whole") == 0
    assert all(make(name, "--part", f"{name}/3") == 0 for name in "312")
    whole = contents(tmp_path / "whole")
    parts = [contents(tmp_path / name) for name in "123"]
    shards = [{name for name in part if name.startswith("audio")} for part in parts]
    assert all(shards) and sum(map(len, shards)) == len(set.union(*shards)) == 5
    together = copied_together([tmp_path / name for name in "123"], tmp_path / "together")
    assert contents(together) == whole
    (together / "utterances-003.jsonl").unlink()  # as if the machine had died on it
    capsys.readouterr()
    assert make("together") == 0 and contents(together) == whole
    assert len(Corpus(together).utterances) == 2 * len(TEXTS)
    synthesisers.append("One more on this machine.")
    assert make("together", "--part", "1/3") == 2
    told = capsys.readouterr().err
    assert "made from something else" in told and told.count("\n") == 1 and contents(together) == whole


def test_parts_of_natural_speech_are_together_the_whole(synthesisers, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(kokoro, "Kokoro", lambda folder: Hum())
    (tmp_path / "voices").mkdir()
    for number, name in enumerate(("af_alloy", "af_bella", "bm_george")):
        np.full((510, 256), number, np.float32).tofile(tmp_path / "voices" / f"{name}.bin")
    monkeypatch.setattr(kokoro, "SPEAKERS_A_SHARD", 2)
    monkeypatch.setattr(kokoro, "CLIPS_A_SPEAKER", 2)
    command = ["train", "data", "--natural", str(tmp_path), "--workers", "2", "--shards", "3", "--out"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    assert all(main([*command, str(tmp_path / part), "--part", f"{part}/2"]) == 0 for part in "21")
    shards = [{clip.shard for clip in Corpus(tmp_path / part).utterances} for part in "12"]
    assert shards == [{1000, 1002, 2000, 2002}, {1001, 2001}]
    together = copied_together([tmp_path / part for part in "12"], tmp_path / "together")
    assert contents(together) == contents(tmp_path / "whole")


def test_parts_of_the_codes_are_together_the_whole(tmp_path, monkeypatch, capsys):
    rng, codec = np.random.default_rng(0), build_codec(SMALL_LIGHT)
    fill_codebooks(codec.module)
    for shard in range(5):
        lengths = rng.integers(4_000, 20_000, 3).tolist()
        clips = [Utterance(shard, sum(lengths[:i]), length, "A hum.", "slt") for i, length in enumerate(lengths)]
        (tmp_path / f"utterances-{shard:03d}.jsonl").write_text("\n".join(json.dumps(vars(clip)) for clip in clips))
        np.save(tmp_path / f"audio-{shard:03d}.npy", rng.integers(-9000, 9000, sum(lengths)).astype(np.int16))
    monkeypatch.setattr(commands, "_codec", lambda arguments: codec)

    def make(folder, *options) -> int:
        return main(["train", "codes", "--data", str(tmp_path), "--out", str(tmp_path / folder), *options])

    assert make("whole") == 0
    assert make("together", "--part", "2/2") == 0
    with torch.no_grad():
        next(codec.module.decoder.parameters()).add_(1)  # refined: the codes stay
    assert make("together", "--part", "1/2") == 0
    assert contents(tmp_path / "together") == contents(tmp_path / "whole")
    assert sum(name.startswith("codes-") for name in contents(tmp_path / "whole")) == 5
    with torch.no_grad():
        next(codec.module.encoder.parameters()).add_(1)
    with pytest.raises(csm.InputError, match="made from something else"):
        encode_corpus(Corpus(tmp_path), codec, tmp_path / "together", part=Part(1, 2))


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "1/0", "a/b", "-1/2"])
def test_a_part_that_is_none_is_refused_in_one_sentence(text, capsys):
    with pytest.raises(SystemExit):
        main(["train", "codes", f"--part={text}"])
    assert "is no part: write 2/8" in capsys.readouterr().err
