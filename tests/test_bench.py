"""What `bench` measures, on a model so small that timing it takes no time."""

import argparse
import importlib.util
import json
from dataclasses import replace

import pytest
import torch

from csm import Segment, bench
from csm.bench import Workload, command, figures, measure, report
from csm.bench.accuracy import quantisation_loss, rounded
from csm.bench.costs import Widths, frame_bytes, memory_needed
from csm.bench.figures import spread
from csm.bench.machine import copy_bandwidth
from csm.checkpoint import Loaded
from csm.codec import build_codec
from csm.config import PRESETS, ModelConfig, SpectralConfig, TransformerConfig
from csm.errors import InputError
from csm.model import CSM
from csm.model.size import parameter_counts
from csm.speech.generator import Generator
from csm.text import ByteTokenizer

X86 = "fbgemm" in torch.backends.quantized.supported_engines


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    small = TransformerConfig(layers=1, dim=16, heads=2, kv_heads=1, mlp_dim=32)
    codec = SpectralConfig(
        num_codebooks=2, codebook_size=8, dim=16, mlp_dim=32, codebook_dim=8, encoder_blocks=1, decoder_blocks=1
    )
    config = ModelConfig(small, small, codec, 258, 11, tokenizer="bytes", max_positions=300)
    model = CSM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return Generator(Loaded("small", model, build_codec(codec), ByteTokenizer()), torch.device("cpu"))


@pytest.fixture(scope="module")
def workload() -> Workload:
    prompt = Segment(speaker=0, text="Hi.", audio=torch.randn(24_000))
    return Workload(
        [prompt], "Hello.", repeats=2, frames=3, max_turn_seconds=0.32, contexts=(20, 40), batches=(1, 2), turns=6
    )


def test_spread_gives_median_extremes_and_the_nearest_rank_p95():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "p95": 3.0, "count": 3}
    assert spread([float(n) for n in range(1, 101)])["p95"] == 95.0
    assert spread([]) is None


def test_a_turn_with_its_prompt_in_the_cache_prefills_only_its_own_text(generator, workload):
    samples = measure.time_turns(generator, workload)
    assert samples["positions_prefilled"] == [len(generator.turn_rows("Hello.", 0))] * 2


def test_a_new_conversation_prefills_its_prompt_too(generator, workload):
    samples = measure.time_new_conversations(generator, workload)
    whole = len(generator.prompt_rows(workload.prompts)) + len(generator.turn_rows("Hello.", 0))
    assert samples["new_voice_positions_prefilled"] == [whole] * 2


def test_every_repeat_times_the_same_number_of_frames(generator, workload):
    assert len(measure.time_frames(generator, workload)["frame_seconds"]) == 6


def test_a_context_of_any_length_is_there_without_a_prefill(generator):
    context = measure.context_at(generator, 40)
    assert (context.length, context.prefilled) == (40, 0)
    assert context.cache.keys[..., :40, :].isfinite().all()


def test_frames_are_timed_at_every_context_that_fits_and_for_every_number_of_streams(generator, workload):
    found = measure.time_contexts(generator, replace(workload, contexts=(20, 40, 5_000)))
    assert {at: len(seconds) for at, seconds in found.items()} == {20: 3, 40: 3}
    assert {streams: len(seconds) for streams, seconds in measure.time_batches(generator, workload).items()} == {
        1: 3,
        2: 3,
    }


def test_streams_that_would_not_fit_into_memory_are_left_out(generator, workload, monkeypatch):
    monkeypatch.setattr(measure, "free_memory", lambda device: 0.0)
    assert measure.time_batches(generator, workload) == {}


def test_a_long_conversation_is_timed_both_ways(generator, workload):
    found = measure.time_later_turns(generator, workload)
    assert list(found["growing"]) == [1, 2, 3, 4, 5, 6]
    assert list(found["reference"]) == [1, 5]


def test_a_frame_s_time_is_that_from_one_to_the_next_and_patience_ends_it_after_three():
    assert len(measure.intervals(iter(range(100)), 50, patience=-1.0)) == 3
    assert len(measure.intervals(iter(range(100)), 50)) == 50 and len(measure.intervals(iter(range(7)), 50)) == 5


def test_one_stream_is_timed_as_a_turn_is_spoken_and_several_in_a_lineup(generator, workload, monkeypatch):
    """On a GPU that is the graph, on a CPU the plain step: `speak` decides, and never the bench."""
    spoken, lent = [], []
    speak, new = generator.engine.speak, generator.engine.lineups.new
    monkeypatch.setattr(generator.engine, "speak", lambda *args, **kw: spoken.append(1) or speak(*args, **kw))
    monkeypatch.setattr(generator.engine.lineups, "new", lambda slots: lent.append(slots) or new(slots))
    measure.time_frames(generator, workload)
    measure.time_contexts(generator, workload)
    assert len(spoken) == 4 and not lent
    measure.time_later_turns(generator, workload)
    measure.time_batches(generator, workload)
    assert len(spoken) > 4 and lent == [1, 2]


def test_frames_are_timed_past_the_end_of_a_turn(generator, workload, monkeypatch):
    sample = generator.engine.model.sample_frame
    monkeypatch.setattr(generator.engine.model, "sample_frame", lambda *args: sample(*args).zero_())
    assert len(measure.time_frames(generator, workload)["frame_seconds"]) == 6
    assert len(measure.time_batches(generator, workload)[2]) == 3


def test_plain_torch_is_timed_for_the_ratio_and_a_stream_can_speak_to_the_last_position(generator, workload):
    assert [len(seconds) for seconds in measure.time_plain_torch(generator, workload).values()] == [3]
    assert measure.speak_to_the_last_position(generator).length == generator.config.max_positions


def test_targets_stand_beside_the_figures_of_their_model_and_device():
    size = parameter_counts(PRESETS["tiny"])["total"]
    run = {"contexts": {"600": {"median": 0.003, "p95": 0.004}}, "batches": {"64": {"times_real_time": 400.0}}}
    found = {"device": "cuda", "parameters": size, "runs": {"bfloat16": run, "float8": run}}
    lines = "\n".join(report._targets(found))
    assert "frame at 600 positions: 3 ms, at most 3.2 ms wanted: met" in lines
    assert "the same in float8: 3 ms, at most 2.2 ms wanted: missed" in lines
    assert "the same in int8: not measured, at most 2.2 ms wanted" in lines
    assert "64 streams in all: 400 x real time, at least 500 x real time wanted: missed" in lines
    assert report._targets(found | {"device": "mps"}) == report._targets(found | {"parameters": 1}) == []


def test_what_kernels_round_is_compared_by_the_numbers_that_eight_bits_stand_for(generator, workload):
    model = generator.engine.model
    off = {}
    for weights in ("int8", "float8"):
        loaded = Loaded("small", rounded(model, weights), generator.codec, generator.tokenizer)
        other = Generator(loaded, generator.device)
        off[weights] = quantisation_loss(generator, other, workload.prompts)["kl_code_0"]
    assert 0 < off["int8"] < off["float8"] < 0.01
    assert model.codebook0_head.weight.equal(rounded(model, "int8").codebook0_head.weight)


def test_eight_bits_in_kernels_read_less_and_are_held_beside_the_others():
    config, plain, int8 = PRESETS["tiny"], Widths(2, 2, 2), Widths(2, 2, 2, rounded=1)
    assert frame_bytes(config, int8, 0) == pytest.approx(frame_bytes(config, plain, 0) / 2, rel=0.04)
    extra = memory_needed(config, int8)["weights"] - memory_needed(config, plain)["weights"]
    counts = parameter_counts(config)
    assert extra == pytest.approx(counts["backbone"] + counts["depth decoder"], rel=0.001)


def test_a_slow_model_is_given_less_to_do():
    slow = Workload(frames=50, repeats=5, max_turn_seconds=8.0, patience=3.0).fitted(0.5)
    assert (slow.frames, slow.repeats, round(slow.max_turn_seconds, 2)) == (6, 2, 0.48)
    assert Workload().fitted(0.001) == Workload()


def test_a_frame_of_the_published_model_reads_nine_gigabytes():
    """2 bytes for each weight of the backbone once and the depth decoder 31 times: the floor under a frame's time."""
    config = PRESETS["tiny"]
    weights = frame_bytes(config, Widths(2, 2, 2), 0)
    counts = parameter_counts(config)
    assert weights == pytest.approx(2 * (counts["backbone"] + 31 * counts["depth decoder"]), rel=0.04)
    assert weights == pytest.approx(9.1e9, rel=0.02)
    position = frame_bytes(config, Widths(2, 2, 2), 1) - weights
    assert position == 16 * 2 * 8 * 64 * 2
    assert frame_bytes(config, Widths(2, 2, 2), 1, streams=4) == weights + 4 * position


def test_memory_is_counted_as_what_the_model_holds(generator):
    model = generator.engine.model
    held = sum(weight.numel() for weight in model.parameters() if weight.dim() > 1)
    found = memory_needed(generator.config, Widths.of(generator.engine), 100)
    assert found["weights"] == 4 * held
    assert found["kv_cache"] == 4 * 2 * generator.engine.new_context().cache.keys[..., :100, :].numel()
    assert found["total"] == sum(size for part, size in found.items() if part != "total")


def test_the_report_names_the_machine_and_every_figure_has_a_spread(generator, workload):
    found = bench.bench(generator, workload, copy_gb_per_second=10.0)
    assert json.loads(json.dumps(found)) == found
    assert found["torch"] == torch.__version__ and found["cpu"] and found["cores"] >= 1
    assert found["weights"] == "float32"
    assert found["peak_memory_mb"] is None or found["peak_memory_mb"] > 10
    shown = report.table(found)
    for name in ("first_audio_seconds", "real_time_factor", "frame_seconds", "new_voice_first_audio_seconds"):
        assert 0 < found[name]["min"] <= found[name]["median"] <= found[name]["max"]
        assert name.replace("_", " ") in shown
    for words in ("frame at 40 positions", "frame of 2 streams", "GB/s", "memory computed for one stream"):
        assert words in shown


def test_memory_bandwidth_is_measured():
    assert 0.05 < copy_bandwidth(torch.device("cpu"), size=1 << 20, repeats=2) < 10_000


def test_ratios_are_of_medians_and_their_spread_is_over_the_rounds():
    found = figures.compared({"transformers": [[4.0, 4.0, 9.0], [6.0, 6.0]], "int8": [[2.0, 2.0], [2.0, 1.0, 2.0]]})
    assert found["transformers"]["frame_seconds"]["median"] == 6.0
    assert found["int8"]["times_as_fast"] == {"median": 3.0, "min": 2.0, "max": 3.0}


def test_the_peer_has_the_same_weights_and_says_the_same_codes():
    from csm.bench.peer import Peer, alternate, speak, text_ids

    torch.manual_seed(0)
    small = TransformerConfig(layers=2, dim=32, heads=4, kv_heads=2, mlp_dim=48)
    codec = SpectralConfig(num_codebooks=3, codebook_size=32, dim=16, mlp_dim=32, codebook_dim=8)
    config = ModelConfig(small, replace(small, dim=16), codec, 258, 35, tokenizer="bytes", max_positions=128)
    model = CSM(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    ours = Generator(Loaded("small", model, build_codec(codec), ByteTokenizer()), torch.device("cpu"))
    peer = Peer(model, torch.float32)
    ids = text_ids(config, 12)
    codes, seconds = peer.speak(ids, 5)
    own, own_seconds = speak(ours, ids, 5)
    assert codes.tolist() == own.tolist() and len(set(codes.flatten().tolist())) > 3
    assert len(seconds) == len(own_seconds) == 4
    found = alternate(Peer(model), {"float32": ours}, positions=8, frames=3, rounds=2)
    assert {name: [len(one) for one in rounds] for name, rounds in found.items()} == {
        "transformers": [3, 3],
        "float32": [3, 3],
    }


@pytest.mark.skipif(not X86, reason="packed weights are for x86 CPUs")
def test_what_fewer_bits_cost_is_nothing_for_the_same_bits(generator, workload):
    same = quantisation_loss(generator, generator, workload.prompts)
    assert same["kl_code_0"] == same["kl_other_codes"] == 0 and same["same_code_0"] == 1
    packed = quantisation_loss(generator, command.variant(generator, "int8"), workload.prompts)
    assert 0 < packed["kl_code_0"] < 0.01 and packed["frames"] == same["frames"] > 0


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


@pytest.fixture
def small_command(generator, monkeypatch):
    monkeypatch.setattr(command, "load", lambda model, device, dtype=None: generator)
    monkeypatch.setattr(command, "shipped_voices", lambda: {"x": argparse.Namespace(transcript="Hi.")})
    monkeypatch.setattr(command, "load_prompt", lambda voice: torch.randn(24_000))
    monkeypatch.setattr(command, "copy_bandwidth", lambda device: 10.0)
    return ("--repeats", "1", "--frames", "3", "--contexts", "20,40", "--batches", "2", "--turns", "5")


def test_the_command_prints_a_table_and_the_figures_as_its_last_line(small_command, capsys):
    assert bench.run(_arguments(*small_command)) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["repeats"] == 1 and list(found["runs"]) == ["float32"]


@pytest.mark.skipif(not X86, reason="packed weights are for x86 CPUs")
def test_saved_figures_make_a_table_and_a_plot(small_command, tmp_path, capsys, monkeypatch):
    paper = tmp_path / "speed.md"
    paper.write_text(f"# Before\n\n{report.BEGIN}\nold\n{report.END}\n\nAfter.\n")
    monkeypatch.setattr(report, "PAPER", paper)
    monkeypatch.setattr(report, "FOLDER", tmp_path / "bench")
    options = ("--weights", "float32,int8", "--peer", "transformers", "--save", str(tmp_path / "bench"))
    assert bench.run(_arguments(*small_command, *options)) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["peer"]["int8"]["times_as_fast"]["median"] > 0
    assert found["runs"]["int8"]["loss"]["against"] == "float32"
    assert json.loads((tmp_path / "bench" / "small-cpu.json").read_text()) == found
    text = paper.read_text()
    assert "# Before" in text and "After." in text and "old" not in text
    assert (tmp_path / "bench" / "table.md").read_text().strip() in text
    assert "| small-cpu | int8 |" in text and text.count("not measured") == 3
    drawn = (tmp_path / "bench" / report.PLOT).is_file()
    assert drawn == (importlib.util.find_spec("matplotlib") is not None) == ("speed.png" in text)


def test_the_paper_shows_the_table_that_is_kept():
    assert (report.FOLDER / report.TABLE).read_text().strip() in report.PAPER.read_text()


def test_without_matplotlib_there_is_a_table_and_a_sentence(small_command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "draw", lambda saved, target: False)
    assert bench.run(_arguments(*small_command, "--save", str(tmp_path / "kept"))) == 0
    assert "needs matplotlib" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "kept").iterdir()) == ["small-cpu.json", "table.md"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--repeats", "0"), "at least one repeat"),
        (("--threads", "0"), "At least one thread"),
        (("--frames", "1"), "at least three frames"),
        (("--contexts", "64,many"), "whole numbers"),
        (("--weights", "int3"), "choose among"),
        (("--random", "--model", "huge"), "choose one of nano, tiny, small, medium"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_sentence(words, sentence):
    with pytest.raises(InputError, match=sentence):
        bench.run(_arguments(*words))
