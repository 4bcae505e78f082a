"""Training the language model on one process: amortised, accumulated, guided, resumed."""

import json
import shutil
import sys
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

import csm
from csm.cli import main
from csm.model import CSM
from csm.text import ByteTokenizer
from csm.training.codes import Batch, Conversations
from csm.training.corpus import Corpus
from csm.training.lm import LMSettings, Objective, choose_frames, misheard, train_lm
from csm.training.plots import read_metrics
from tests.letters import CONFIG, SETTINGS, curve, new_model, weights


@pytest.fixture(scope="module")
def run(talk, tmp_path_factory):
    """Twelve unbroken steps."""
    folder = tmp_path_factory.mktemp("lm")
    train_lm(new_model(), talk, talk, folder, SETTINGS)
    return folder


def test_a_run_writes_its_settings_its_metrics_and_a_plot(run):
    first, *records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert first["settings"]["depth_share"] == 1 / 16 and first["settings"]["seed"] == 1
    assert {"torch", "csm", "python"} <= set(first["versions"])
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[-1]["code0"] < records[0]["code0"]
    assert {"held_out_code0", "held_out_depth", "peak_bytes", "step_seconds"} <= set(records[-1])
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_a_run_says_so_in_one_line_and_goes_on(talk, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=2))
    assert capsys.readouterr().out.count("matplotlib") == 1
    assert not (tmp_path / "loss.png").exists() and (tmp_path / "state.pt").exists()


def test_a_resumed_run_has_bit_for_bit_the_curve_and_weights_of_an_unbroken_one(run, talk, tmp_path, monkeypatch):
    """Killed after 9 of 12 steps, with the last save at 6: the three lost steps come out the same again."""
    forward, calls = Objective.forward, 0

    def dies(*arguments):
        nonlocal calls
        calls += 1
        if calls > 9 + 4 + 4:  # those to validate: held-out losses, and slots swapped
            raise KeyboardInterrupt
        return forward(*arguments)

    monkeypatch.setattr(Objective, "forward", dies)
    with pytest.raises(KeyboardInterrupt):
        train_lm(new_model(), talk, talk, tmp_path, SETTINGS)
    assert [record["step"] for record in read_metrics(tmp_path)][-1] == 9
    monkeypatch.setattr(Objective, "forward", forward)
    train_lm(new_model(), talk, talk, tmp_path, SETTINGS)
    assert curve(tmp_path) == curve(run)
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(1, 13))
    unbroken, resumed = weights(run), weights(tmp_path)
    assert all(torch.equal(unbroken[name], resumed[name]) for name in unbroken)


def test_a_metrics_file_whose_last_line_was_cut_off_is_no_obstacle(run, talk, tmp_path):
    shutil.copytree(run, tmp_path / "lm")
    with (tmp_path / "lm" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "co')
    train_lm(new_model(), talk, None, tmp_path / "lm", replace(SETTINGS, steps=14))
    assert [record["step"] for record in read_metrics(tmp_path / "lm")] == list(range(1, 15))


def test_a_full_disk_stops_a_run_in_one_sentence(talk, tmp_path, monkeypatch):
    def full(value, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(csm.InputError, match="No space left on device"):
        train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=1))


def test_a_progress_bar_is_drawn_on_a_terminal_only(talk, tmp_path, monkeypatch, capsys):
    train_lm(new_model(), talk, None, tmp_path / "file", replace(SETTINGS, steps=2))
    captured = capsys.readouterr()
    assert captured.out.startswith("step 2/2 ") and not captured.err
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    train_lm(new_model(), talk, None, tmp_path / "terminal", replace(SETTINGS, steps=2))
    captured = capsys.readouterr()
    assert "2/2" in captured.err and "code0" in captured.err and not captured.out


def test_the_seed_decides_the_curve(run, talk, tmp_path):
    train_lm(new_model(), talk, None, tmp_path / "same", replace(SETTINGS, steps=12, every=12))
    train_lm(new_model(), talk, None, tmp_path / "other", replace(SETTINGS, steps=12, every=12, seed=2))
    assert curve(tmp_path / "same") == curve(run) != curve(tmp_path / "other")


def test_a_run_of_another_model_is_refused_in_one_sentence(run, talk, tmp_path):
    shutil.copytree(run, tmp_path / "lm")
    other = CSM(replace(CONFIG, audio_vocab_size=40)).init_weights()
    with pytest.raises(csm.InputError, match="begun with another shape"):
        train_lm(other, talk, None, tmp_path / "lm", SETTINGS)


def test_accumulated_batches_count_every_frame_alike(talk, tmp_path):
    """Two batches of one conversation teach what one batch of both does, whatever their numbers of frames."""

    class Both:
        def batch(self, step, rows, length):
            pair = [talk.batch(2 * step + i, 1, length) for i in range(2)]
            return Batch(*(torch.cat([getattr(part, field.name) for part in pair]) for field in fields(Batch)))

    exact = replace(SETTINGS, precision="float32", optimiser="adamw", code_noise=0.0)
    settings = replace(exact, steps=1, depth_share=1.0, warmup=1)
    train_lm(new_model(), Both(), None, tmp_path / "one", settings)
    train_lm(new_model(), talk, None, tmp_path / "two", replace(settings, accumulate=2, batch_positions=128))
    assert np.allclose(curve(tmp_path / "one"), curve(tmp_path / "two"), rtol=1e-5)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


def test_the_depth_decoder_learns_a_random_sixteenth_of_the_frames(talk):
    batch = talk.batch(0, 4, 128)
    audio = batch.mask[..., 0]
    chosen = [choose_frames(batch, 1 / 16, (1, step)) for step in range(200)]
    assert all(int(frames.sum()) == round(int(audio.sum()) / 16) for frames in chosen)
    assert not any((frames & ~audio).any() for frames in chosen)
    assert not torch.equal(chosen[0], chosen[1])
    assert torch.stack(chosen).any(0)[audio].float().mean() > 0.99
    assert torch.equal(choose_frames(batch, 1.0, (1, 0)), audio)
    assert choose_frames(batch, 1e-9, (1, 0)).sum() == 1


def test_any_frame_is_as_likely_as_another_without_openings(talk):
    batch = talk.batch(0, 4, 128)
    audio = batch.mask[..., 0]
    times = torch.stack([choose_frames(batch, 1 / 16, (1, step), 0.0) for step in range(800)]).sum(0)[audio].float()
    assert times.mean() > 40 and (times - times.mean()).abs().max() < 5 * times.mean() ** 0.5


def test_half_of_the_chosen_frames_begin_a_turn_where_the_voice_is_decided():
    mask = torch.zeros(3, 64, 5, dtype=torch.bool)
    mask[:, :4, -1] = mask[:, 30:40, -1] = True
    mask[:, 4:30, :-1] = mask[:, 40:60, :-1] = True
    batch = Batch.of(mask.long(), mask)
    chosen = choose_frames(batch, 0.25, (1, 0), 0.5)
    assert chosen.sum() == 34 and chosen[:, 4:10].sum() + chosen[:, 40:46].sum() == 17
    heard = batch.voice.clone()
    heard[:, 39:59] = torch.tensor([4, 29])
    chosen = choose_frames(replace(batch, voice=heard), 0.25, (1, 0), 0.5)
    assert chosen.sum() == 34 and chosen[:, 40:46].sum() == 17


def test_guidance_adds_a_loss_and_changes_nothing_in_what_is_computed(talk):
    model, batch = new_model(), talk.batch(0, 1, 128)
    frames = choose_frames(batch, 1.0, (0,))
    objective = Objective(model, SETTINGS)
    first, depth, guide, voice = objective(batch.ids, batch.mask, frames, objective.guides(batch))
    plain = model.losses(batch.ids, batch.mask, frames)
    assert torch.allclose(torch.stack([first, depth]), torch.stack(plain), atol=1e-5)
    assert guide > 0 and voice > 0


def test_a_trial_s_two_batches_differ_in_the_asked_turn_s_slot_alone(talk):
    right, swapped, asked = talk.trials(0, 6)
    assert torch.equal(right.mask, swapped.mask) and torch.equal(right.ids[..., :-1], swapped.ids[..., :-1])
    for row in range(6):
        changed = (right.ids[row, :, -1] != swapped.ids[row, :, -1]).nonzero()[:, 0].tolist()
        first = int(asked[row].nonzero()[0])
        assert len(changed) == 1 and changed[0] < first, (
            "the digit in the brackets, before the frames that are asked for"
        )
        slots = [_slot(right, row, int(at)) for at in right.mask[row, :, 0].nonzero()[:, 0]]
        assert len(set(slots)) == 2, "two speakers are heard before"
        assert right.mask[row, first:, 0].sum() == asked[row].sum(), "and the asked turn is the last"


def test_where_frames_carry_slots_a_trial_changes_those_of_the_asked_turn(speech):
    config = replace(CONFIG, slots_in_frames=True)
    right, swapped, asked = Conversations(Corpus(speech), speech, ByteTokenizer(), config).trials(0, 2)
    changed = right.ids[..., -1] != swapped.ids[..., -1]
    assert (changed & right.mask[..., 0]).equal(asked) and changed.sum() == asked.sum() + 2 * len(asked)


def test_training_says_what_is_lost_under_the_other_speaker_s_slot(talk, tmp_path):
    train_lm(new_model(), talk, talk, tmp_path, replace(SETTINGS, steps=2, every=2))
    last = read_metrics(tmp_path)[-1]
    assert {f"held_out_swap_{part}" for part in ("first", "turn")} <= set(last)
    assert abs(last["held_out_swap_turn"]) < 0.05, "after two steps nothing is bound to a slot"


def test_a_confused_turn_is_heard_in_a_foreign_voice_and_learned_in_its_own(talk):
    batch = next(batch for step in range(20) if (batch := talk.batch(step, 4, 512)).confused.any())
    heard, confused = misheard(batch, 0.0, (1, 2)), batch.confused
    assert torch.equal(heard[..., 0], batch.ids[..., 0]) and torch.equal(heard[..., -1], batch.ids[..., -1])
    assert (heard[confused][:, 1:-1] != batch.ids[confused][:, 1:-1]).any(-1).float().mean() > 0.5
    assert torch.equal(heard[~confused], batch.ids[~confused])
    for row, at in confused.nonzero().tolist():
        assert batch.voice[row, at - 1, 0] >= 0, "only who was heard before can be mistaken"
    chosen = choose_frames(batch, 0.05, (1, 0), 1.0)
    assert chosen.sum() > 0 and (chosen & confused).any()


def test_no_guide_is_computed_where_it_counts_for_nothing(talk):
    batch = talk.batch(0, 1, 128)
    assert set(Objective(new_model(), SETTINGS).guides(batch)) == {"guide", "voice"}
    assert set(Objective(new_model(), replace(SETTINGS, guide_weight=0.0)).guides(batch)) == {"voice"}
    assert set(Objective(new_model(), replace(SETTINGS, voice_layer=7)).guides(batch)) == {"guide"}
    nowhere = torch.full_like(batch.guide, -1)
    assert set(Objective(new_model(), SETTINGS).guides(replace(batch, guide=nowhere))) == {"voice"}
    assert not Objective(new_model(), SETTINGS).guides(replace(batch, guide=nowhere, voice=nowhere))


def test_the_voice_is_looked_for_in_the_speaker_s_own_last_turn(talk):
    """Where a frame's voice is shown there is sound, of the clip that was said before in the same slot, and no end."""
    batch = talk.batch(3, 4, 512)
    known = (batch.voice[..., 0] >= 0).nonzero().tolist()
    assert len(known) > 100
    for row, at in known:
        first, last = batch.voice[row, at].tolist()
        assert first <= last < at
        assert batch.mask[row, first : last + 1, 0].all() and (batch.ids[row, first : last + 1, :-1] != 0).any(-1).all()
        assert batch.mask[row, first - 1, -1] and not (batch.ids[row, last + 1, :-1]).any()
        assert _slot(batch, row, first) == _slot(batch, row, at + 1)


def _slot(batch: Batch, row: int, at: int) -> int:
    """The slot's digit, as a byte, in the text before the frame in that row."""
    text = batch.mask[row, :at, -1].nonzero()[:, 0].tolist()
    start = next(place for place in reversed(text) if place == 0 or not batch.mask[row, place - 1, -1])
    return int(batch.ids[row, start + 2, -1])  # behind BOS and "["


def test_what_does_not_require_a_gradient_stays_as_it_is(talk, tmp_path):
    model = new_model()
    model.backbone.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    train_lm(model, talk, None, tmp_path, replace(SETTINGS, steps=2))
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if not name.startswith("backbone.")}


def test_activation_checkpointing_computes_the_same(run, talk, tmp_path):
    model = train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, checkpointing=True))
    assert np.allclose(curve(tmp_path), curve(run), rtol=1e-6)
    assert all("forward" not in vars(layer) for layer in model.backbone.layers)


def test_weights_stay_float32_under_bfloat16(run):
    state = torch.load(run / "state.pt", weights_only=True)
    assert {tensor.dtype for tensor in state["module"].values()} == {torch.float32}
    moments = [value for part in state["optimisers"] for values in part["state"].values() for value in values.values()]
    assert {value.dtype for value in moments} == {torch.float32}


def test_every_batch_has_the_same_number_of_rows_whatever_the_length_of_its_conversations():
    shapes, shares = LMSettings().shapes()
    assert shapes == [(8, 256), (4, 512), (2, 1024), (1, 2048)] and sum(shares) == pytest.approx(1)
    assert shares[-1] == pytest.approx(0.03)
    assert LMSettings(positions=64).shapes() == ([(32, 64)], [1])


def test_diverged_training_stops_in_one_sentence_with_the_last_good_weights(talk, tmp_path, monkeypatch):
    losses = CSM.losses

    def broken(self, *arguments):
        return tuple(loss * torch.nan for loss in losses(self, *arguments))

    train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=6))
    monkeypatch.setattr(CSM, "losses", broken)
    with pytest.raises(csm.InputError, match="diverged"):
        train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, steps=60, every=50))
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize("change", [{"steps": 0}, {"depth_share": 0.0}, {"rate": 2.0}, {"accumulate": 0}])
def test_settings_that_mean_nothing_are_refused(change):
    with pytest.raises(csm.InputError):
        LMSettings(**change)


def test_more_positions_than_the_model_has_are_refused(talk, tmp_path):
    with pytest.raises(csm.InputError, match="512 positions"):
        train_lm(new_model(), talk, None, tmp_path, replace(SETTINGS, positions=1024))


def test_codes_that_can_t_be_read_are_refused_in_one_sentence(speech, tmp_path):
    (tmp_path / "codes-000.npy").write_bytes(b"half")
    with pytest.raises(csm.InputError, match="codes-000.npy can't be read"):
        Conversations(Corpus(speech), tmp_path, ByteTokenizer(), CONFIG)


def test_codes_of_another_codec_are_refused(speech):
    config = replace(CONFIG, codec=replace(CONFIG.codec, num_codebooks=3))
    with pytest.raises(csm.InputError, match="another codec"):
        Conversations(Corpus(speech), speech, ByteTokenizer(), config)


def test_a_spliced_turn_is_whole_words_of_the_speakers_clips_with_their_sound(speech):
    told = {
        clip.text: clip
        for clips in Conversations(Corpus(speech), speech, ByteTokenizer(), CONFIG).clips.values()
        for clip in clips
    }
    spliced = Conversations(Corpus(speech), speech, ByteTokenizer(), CONFIG, spliced=1.0)
    clips = next(iter(spliced.clips.values()))
    made = [spliced._turn(np.random.default_rng(number), clips) for number in range(40)]
    words = {word for clip in told.values() for word in clip.text.split()}
    assert all(set(turn.text.split()) <= words and turn.text == turn.text.strip() for turn in made)
    assert len({turn.text for turn in made} - set(told)) > 20
    frames = {tuple(frame) for clip in clips for frame in clip.codes[:-1].tolist()}
    for turn in made:
        assert len(turn.codes) == len(turn.guide) and not turn.codes[-1].any()
        assert {tuple(frame) for frame in turn.codes[:-1].tolist()} <= frames
        first, last = turn.guide[:-1].T - len("[0] ")
        assert first.min() >= -1 and last.max() <= len(turn.text) + 1


def test_runs_are_shown_beside_each_other(run, tmp_path, capsys):
    shutil.copytree(run, tmp_path / "other")
    assert main(["train", "curves", str(run), str(tmp_path / "other"), "--out", str(tmp_path / "both.png")]) == 0
    titles, _, *rows = capsys.readouterr().out.splitlines()
    assert titles.count(" M |") == 2 and "| other, " in titles
    last = [record for record in read_metrics(run) if "held_out_code0" in record][-1]
    loss = f"{last['held_out_code0']:.2f}, {last['held_out_depth']:.2f}"
    assert rows[-1] == f"| {last['step']} | {loss} | {loss} |"
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    assert main(["train", "curves", str(tmp_path)]) == 2
    assert "has no held-out losses yet" in capsys.readouterr().err
