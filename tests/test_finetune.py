"""Learning a voice from one's own recordings: adapters and whole models, from a manifest to what `csm.load` takes."""

import builtins
import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import csm
from csm import InputError
from csm.audio import load_audio
from csm.checkpoint import describe, load_model, save_folder
from csm.cli import main
from csm.engine.frames import RowFormat
from csm.model import CSM
from csm.text import ByteTokenizer
from csm.training.codes import Batch
from csm.training.export import run_weights
from csm.training.finetune import FinetuneOptions, finetune
from csm.training.lm import LMSettings
from csm.training.lora import LoraOptions, add_lora, merged, save_adapter
from csm.training.manifest import Recording, check_manifest
from csm.training.recordings import OwnConversations, encode, split
from tests.published import small_reference
from tests.small import small_config, small_generator

LORA = LoraOptions(rank=3, alpha=6)
needs_peft = pytest.mark.skipif(find_spec("peft") is None, reason="PEFT is not installed")


def taught(model: CSM) -> CSM:
    """The model with adapters that say something, as training leaves them."""
    add_lora(model.requires_grad_(False), LORA)
    for number, (name, parameter) in enumerate(model.named_parameters()):
        if "lora_B" in name:
            generator = torch.Generator().manual_seed(number)
            parameter.data.normal_(0, 0.2, generator=generator)
    return model


def rows(model: CSM) -> tuple[torch.Tensor, torch.Tensor]:
    """A conversation's ids and mask (1, 12, K+1)."""
    torch.manual_seed(0)
    k = model.config.num_codebooks
    ids = torch.randint(1, 30, (1, 12, k + 1))
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, :5, -1] = True
    mask[:, 5:, :-1] = True
    return ids, mask


@torch.no_grad()
def logits(model: CSM) -> torch.Tensor:
    """Code 0 of every position and all others of every frame, (n,)."""
    ids, mask = rows(model)
    hidden = model.backbone(model.embed_rows(ids, mask))
    depth = model.depth_logits(hidden[0, 4:-1], ids[0, 5:, :-1])
    return torch.cat([model.codebook0_head(hidden).flatten(), depth.flatten()])


@needs_peft
def test_fresh_adapters_change_nothing_and_alone_are_trainable():
    torch.manual_seed(0)
    model = CSM(small_config()).init_weights()
    before = logits(model)
    add_lora(model.requires_grad_(False), LORA)
    assert torch.equal(logits(model), before)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 2 * 7 * (2 + 2) and all(".lora_" in name for name in trainable)


@needs_peft
def test_merged_adapters_compute_what_the_adapted_model_does():
    torch.manual_seed(0)
    plain = CSM(small_config()).init_weights()
    before = logits(plain)
    adapted = taught(plain)
    torch.testing.assert_close(logits(merged(adapted)), logits(adapted), atol=1e-5, rtol=1e-5)
    assert (logits(adapted) - before).abs().max() > 0.01
    assert {name for name, _ in merged(adapted).named_parameters()} == {
        name for name, _ in CSM(small_config()).named_parameters()
    }


@needs_peft
@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_a_saved_adapter_loads_onto_either_layout_as_what_was_trained(folder, original, tmp_path, layout):
    base = str(folder if layout == "transformers" else original)
    adapted = taught(load_model(base).model)
    save_adapter(adapted, tmp_path / "adapter", LORA, "sesame/csm-1b")
    loaded = csm.load(base, "cpu", adapter=str(tmp_path / "adapter")).engine.model
    torch.testing.assert_close(logits(loaded), logits(adapted), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(loaded), logits(load_model(base).model), atol=1e-2)


@needs_peft
def test_a_saved_adapter_fits_transformers_own_model_through_peft(folder, tmp_path):
    """What PEFT merges from our folder into transformers' CSM is what we merge into ours; Mimi stays as it is."""
    save_adapter(taught(load_model(str(folder)).model), tmp_path / "adapter", LORA, "sesame/csm-1b")
    from peft import PeftModel

    theirs = PeftModel.from_pretrained(small_reference(), tmp_path / "adapter").merge_and_unload().state_dict()
    untouched = small_reference().state_dict()
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in theirs.items() if "codec_model" in name)
    ours = load_model(str(folder), adapter=str(tmp_path / "adapter")).model
    name = "backbone_model.layers.1.mlp.down_proj.weight"
    assert not torch.equal(theirs[name], untouched[name])
    torch.testing.assert_close(theirs[name], ours.backbone.layers[1].mlp.w2.weight)
    ids, mask = rows(ours)
    with torch.no_grad():
        reference = small_reference()
        reference.load_state_dict(theirs)
        embedded = ours.embed_rows(ids, mask)
        expected = reference.backbone_model(inputs_embeds=embedded).last_hidden_state
        torch.testing.assert_close(ours.backbone(embedded), expected, atol=1e-4, rtol=1e-4)


@needs_peft
def test_saving_an_adapter_again_replaces_it_whole(folder, tmp_path):
    model = taught(load_model(str(folder)).model)
    for _ in range(2):
        save_adapter(model, tmp_path / "adapter", LORA, "base")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["adapter"]
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6, "base")


def test_lora_without_peft_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without_peft(name, *rest):
        if name == "peft":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_peft)
    with pytest.raises(InputError, match="pip install peft"):
        add_lora(CSM(small_config()), LORA)


@pytest.mark.parametrize("options", [{"rank": 0}, {"alpha": 0}, {"dropout": 1.0}])
def test_an_impossible_adapter_is_refused(options):
    with pytest.raises(InputError, match="needs a rank"):
        LoraOptions(**options)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """A small random model in a folder of our own."""
    generator = small_generator()
    folder = tmp_path_factory.mktemp("small") / "base"
    save_folder(folder, generator.engine.model, generator.codec.module)
    return str(folder)


def record(folder: Path, number: int = 12, conversation: bool = False) -> Path:
    """Tones of two speakers with a manifest; with `conversation` the second half of them are one talk, backwards."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for i in range(number):
        wave = 0.3 * np.sin(np.arange(12_000 + 3_000 * (i % 3)) * 0.05 * (1 + i % 2))
        soundfile.write(folder / f"{i}.wav", wave, 24_000)
        row = {"file": f"{i}.wav", "text": f"Tone {'abcdefghijkl'[i]}.", "speaker": ["ann", "ben"][i % 2]}
        if conversation and i >= number // 2:
            row |= {"conversation": "talk", "order": number - i}
        lines.append(json.dumps(row))
    (folder / "manifest.jsonl").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def speech(tmp_path_factory) -> Path:
    return record(tmp_path_factory.mktemp("speech"))


SETTINGS = LMSettings(
    steps=6, rate=0.02, positions=200, batch_positions=200, depth_share=1.0, optimiser="adamw", every=3, log_every=3
)


def learn(init: str, speech: Path, out: Path, settings: LMSettings = SETTINGS, **options) -> Path:
    return finetune(load_model(init), init, speech, out, settings, FinetuneOptions(**options), report=lambda line: None)


def learned(folder: Path) -> list[dict]:
    return [
        record for record in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if "step" in record
    ]


def test_a_fine_tuned_model_loads_with_the_codec_it_came_with(small, speech, tmp_path):
    made = learn(small, speech, tmp_path / "run")
    assert learned(tmp_path / "run")[-1]["code0"] < learned(tmp_path / "run")[0]["code0"]
    assert "held_out_code0" in learned(tmp_path / "run")[-1]
    base, tuned = load_model(small), load_model(str(made))
    changed = tuned.model.state_dict()
    assert all(not torch.equal(changed[name], tensor) for name, tensor in base.model.state_dict().items())
    codec = tuned.codec.module.state_dict()
    assert all(torch.equal(codec[name], tensor) for name, tensor in base.codec.module.state_dict().items())
    trained = run_weights(tmp_path / "run")
    spoken_with = csm.load(str(made), "cpu").engine.model.state_dict()
    assert all(torch.equal(tensor.half(), trained[name].half()) for name, tensor in spoken_with.items())


@needs_peft
@pytest.mark.parametrize("base", ["published", "ours"])
def test_an_adapter_learned_from_recordings_is_what_was_trained(folder, small, speech, tmp_path, base):
    """What `csm.load` merges says what the training run's own state says."""
    folder = folder if base == "published" else small
    made = learn(str(folder), speech, tmp_path / "run", lora=LORA)
    assert learned(tmp_path / "run")[-1]["code0"] < learned(tmp_path / "run")[0]["code0"]
    trained = add_lora(load_model(str(folder)).model, LORA)
    trained.load_state_dict(run_weights(tmp_path / "run"))
    loaded = csm.load(str(folder), "cpu", adapter=str(made)).engine.model
    torch.testing.assert_close(logits(loaded), logits(trained.eval()), atol=1e-4, rtol=1e-4)
    assert not torch.allclose(logits(loaded), logits(load_model(str(folder)).model), atol=1e-3)


@pytest.mark.parametrize("layout", ["transformers", "original"])
def test_a_published_model_comes_back_in_its_own_layout(folder, original, speech, tmp_path, layout):
    base = folder if layout == "transformers" else original
    made = learn(str(base), speech, tmp_path / "run", replace(SETTINGS, steps=2))
    assert describe(str(made)).layout == describe(str(base)).layout
    assert {file.name for file in base.iterdir()} - {"generation_config.json"} <= {file.name for file in made.iterdir()}
    before, after = load_model(str(base)), load_model(str(made))
    codec = after.codec.module.state_dict()
    assert all(torch.equal(codec[name], tensor) for name, tensor in before.codec.module.state_dict().items())
    assert after.tokenizer.encode("[0]Hi.") == before.tokenizer.encode("[0]Hi.")
    trained = run_weights(tmp_path / "run")
    assert all(torch.equal(tensor, trained[name]) for name, tensor in after.model.state_dict().items())


def test_an_interrupted_encoding_goes_on_where_it_was(small, speech, tmp_path, monkeypatch):
    loaded = load_model(small)
    recordings = check_manifest(speech, loaded.tokenizer, 200).recordings
    encoded, real = [], loaded.codec.encode

    def encode_until(stop):
        def encoding(wave):
            encoded.append(len(wave))
            if len(encoded) == stop:
                raise KeyboardInterrupt
            return real(wave)

        return encoding

    monkeypatch.setattr(loaded.codec, "encode", encode_until(5))
    with pytest.raises(KeyboardInterrupt):
        encode(recordings, loaded.codec, tmp_path / "codes", report=lambda line: None)
    assert len(list((tmp_path / "codes").iterdir())) == 4
    monkeypatch.setattr(loaded.codec, "encode", encode_until(0))
    codes = encode(recordings, loaded.codec, tmp_path / "codes", report=lambda line: None)
    contents = {recording.path.read_bytes() for recording in recordings}
    assert len(encoded) == 1 + len(contents)
    assert all(torch.equal(made, real(load_audio(r.path))) for made, r in zip(codes, recordings))


def test_codes_are_encoded_anew_for_another_codec_or_recording(small, tmp_path):
    speech = record(tmp_path / "speech", 2)
    loaded = load_model(small)

    def codes():
        recordings = check_manifest(speech, loaded.tokenizer, 200).recordings
        return encode(recordings, loaded.codec, tmp_path / "codes", report=lambda line: None)

    first = codes()
    soundfile.write(speech / "0.wav", 0.3 * np.random.default_rng(0).normal(size=12_000), 24_000)
    second = codes()
    assert not torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    with torch.no_grad():
        for parameter in loaded.codec.module.parameters():
            parameter.normal_()
    third = codes()
    assert not torch.equal(second[1], third[1])
    assert len(list((tmp_path / "codes").iterdir())) == 5


def own_conversations(speech: Path, small: str, tmp_path: Path, seed: int = 1) -> OwnConversations:
    loaded = load_model(small)
    recordings = check_manifest(speech, loaded.tokenizer, 200).recordings
    codes = encode(recordings, loaded.codec, tmp_path / "codes", report=lambda line: None)
    return OwnConversations(list(zip(recordings, codes)), RowFormat.of(loaded.model.config, loaded.tokenizer), seed)


def turns_of(batch: Batch, row: int) -> list[str]:
    """The texts of a packed row, slots in front."""
    ids, texts = batch.ids[row, :, -1].tolist(), []
    for number in ids:
        if number == ByteTokenizer.BOS:
            texts.append(b"")
        elif 0 < number < 256:
            texts[-1] += bytes([number])
    return [text.decode() for text in texts]


def test_turns_of_a_conversation_stay_together_in_their_order(tmp_path, small):
    conversations = own_conversations(record(tmp_path / "speech", 12, conversation=True), small, tmp_path)
    order = [f"tone {letter}." for letter in "lkjihg"]
    seen = []
    for step in range(40):
        batch = conversations.batch(step, 2, 200)
        for row in range(len(batch.ids)):
            turns = turns_of(batch, row)
            said = [turn[3:] for turn in turns]
            if said[0] in order:
                start = order.index(said[0])
                assert said == order[start : start + len(said)]
                speakers = [order.index(turn) % 2 for turn in said]
                assert len({(turn[:3], who) for turn, who in zip(turns, speakers)}) == len(set(speakers))
                seen.append(start)
            else:
                assert not set(said) & set(order)
    assert len(seen) > 20 and len(set(seen)) > 3


def test_no_recording_is_heard_twice_in_a_row_of_a_batch(speech, small, tmp_path):
    conversations = own_conversations(speech, small, tmp_path)
    lengths = set()
    for step in range(20):
        batch = conversations.batch(step, 3, 200)
        assert batch.ids.shape[1] <= 200 and bool(batch.mask[:, -1].any())
        for row in range(3):
            said = " ".join(turn[3:] for turn in turns_of(batch, row)).split(".")[:-1]
            assert len(said) == len(set(said)) >= 1
            lengths.add(len(said))
            ends = batch.mask[row, :, 0] & ~batch.ids[row, :, :-1].any(-1)
            assert int(ends.sum()) == len(turns_of(batch, row))
    assert max(lengths) > 4
    assert torch.equal(
        conversations.batch(3, 2, 200).ids, own_conversations(speech, small, tmp_path).batch(3, 2, 200).ids
    )
    assert not torch.equal(conversations.batch(3, 2, 200).ids[:, :50], conversations.batch(4, 2, 200).ids[:, :50])


def test_batches_grow_to_the_longest_recording(speech, small, tmp_path):
    conversations = own_conversations(speech, small, tmp_path)
    assert 20 < conversations.longest < 40
    batch = conversations.batch(0, 8, 10)
    assert batch.ids.shape[0] == 8 * 10 // conversations.longest
    assert all(bool(row[:, 0].any()) for row in batch.mask)


def recordings(texts, **fields):
    return [Recording(Path(f"{i}.wav"), f"{i}.wav", i, text, "ann", **fields) for i, text in enumerate(texts)]


def test_the_held_out_share_is_of_sentences_and_follows_the_seed():
    texts = [f"Sentence {i // 2}." for i in range(200)]
    held = split(recordings(texts), 0.1, seed=1)
    assert held.count(True) == 20 and held[::2] == held[1::2]
    assert held == split(recordings(texts), 0.1, seed=1) != split(recordings(texts), 0.1, seed=2)
    assert split(recordings(texts), 0.0, seed=1) == [False] * 200
    assert split(recordings(["Hi.", "Ho."]), 0.01, seed=1).count(True) == 1
    assert split(recordings(["Hi.", "Hi."]), 0.5, seed=1) == [False, False]
    talks = recordings(texts, conversation="one talk")
    assert len(set(split(talks, 0.2, seed=1))) == 1


def test_a_mimi_is_not_refined_and_the_answer_says_why(folder, speech, tmp_path, capsys):
    command = ["train", "codec", "--init", str(folder), "--data", str(speech), "--out", str(tmp_path / "run")]
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "has a Mimi" in said and said.count("\n") == 1 and not (tmp_path / "run").exists()


def test_the_command_learns_from_a_folder_and_says_what_to_do_next(small, speech, tmp_path, capsys):
    options = ["train", "lm", "--init", small, "--data", str(speech), "--out", str(tmp_path / "run"), "--device", "cpu"]
    options += ["--steps", "2", "--positions", "200", "--batch-positions", "200", "--speakers", "ben"]
    assert main(options) == 0
    said = capsys.readouterr().out
    assert "manifest.jsonl: 6 recordings, 0.1 minutes, 1 speaker" in said
    assert f"to use with --model {tmp_path / 'run' / 'model'}" in said
    assert load_model(str(tmp_path / "run" / "model")).model.config == load_model(small).model.config


def test_without_steps_the_recordings_decide_how_many(small, speech, tmp_path):
    """So many passes over the positions of all recordings, and at least fifty steps."""
    loaded, said = load_model(small), []
    settings = replace(SETTINGS, batch_positions=30, accumulate=2)
    with pytest.raises(KeyboardInterrupt):
        finetune(loaded, small, speech, tmp_path / "run", settings, FinetuneOptions(held_out=0.0, passes=20.0),
                 report=lambda line: said.append(line) or _stop_at("steps", line))  # fmt: skip
    positions = own_conversations(speech, small, tmp_path).positions
    assert said[-1] == f"12 recordings to learn from, 0 held out, {round(20 * positions / 60)} steps"
    with pytest.raises(KeyboardInterrupt):
        finetune(loaded, small, speech, tmp_path / "run", settings, FinetuneOptions(held_out=0.0, passes=1.0),
                 report=lambda line: said.append(line) or _stop_at("steps", line))  # fmt: skip
    assert said[-1].endswith(", 50 steps")


def _stop_at(word: str, line: str) -> None:
    if line.endswith(word):
        raise KeyboardInterrupt


def test_a_bad_manifest_stops_the_command_before_anything_is_made(small, tmp_path, capsys):
    speech = record(tmp_path / "speech", 3)
    (speech / "1.wav").unlink()
    options = ["train", "lm", "--init", small, "--data", str(speech), "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main(options) == 2
    assert "1.wav (line 2), which can't be used: no such file" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main([*options, "--held-out", "0.9"]) == 2
    assert "held-out share" in capsys.readouterr().err
    assert main([*options, "--passes", "0"]) == 2
    assert "0.0 passes over the recordings make no training" in capsys.readouterr().err
    assert main(["train", "lm", "--data", str(speech), "--out", str(tmp_path / "run"), "--device", "cpu"]) == 2
    assert "--init" in capsys.readouterr().err
    (speech / "manifest.jsonl").unlink()
    assert main([*options, "--lora", "4"]) == 2
    assert "no manifest.csv" in capsys.readouterr().err
