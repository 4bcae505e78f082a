"""What `bench` measures, on a model so small that timing it takes no time."""

import argparse
import json

import pytest
import torch

from csm import Segment, bench
from csm.bench import Workload, spread
from csm.checkpoint import Loaded
from csm.codec import build_codec
from csm.config import ModelConfig, SpectralConfig, TransformerConfig
from csm.errors import InputError
from csm.generator import Generator
from csm.model import CSM
from csm.text import ByteTokenizer


@pytest.fixture(scope="module")
def generator() -> Generator:
    torch.manual_seed(0)
    small = TransformerConfig(layers=1, dim=16, heads=2, kv_heads=1, mlp_dim=32)
    codec = SpectralConfig(
        num_codebooks=2, codebook_size=8, dim=16, mlp_dim=32, codebook_dim=8, encoder_blocks=1, decoder_blocks=1
    )
    config = ModelConfig(small, small, codec, 258, 11, tokenizer="bytes", max_positions=300)
    return Generator(Loaded("small", CSM(config), build_codec(codec), ByteTokenizer()), torch.device("cpu"))


@pytest.fixture(scope="module")
def workload() -> Workload:
    prompt = Segment(speaker=0, text="Hi.", audio=torch.zeros(24_000))
    return Workload([prompt], "Hello.", repeats=2, frames=3, max_turn_seconds=0.24)


def test_spread_gives_median_extremes_and_the_nearest_rank_p95():
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0, "p95": 3.0, "count": 3}
    assert spread([float(n) for n in range(1, 101)])["p95"] == 95.0
    assert spread([]) is None


def test_a_turn_with_its_prompt_in_the_cache_prefills_only_its_own_text(generator, workload):
    samples = bench.time_turns(generator, workload)
    assert samples["positions_prefilled"] == [len(generator.turn_rows("Hello.", 0))] * 2


def test_a_new_conversation_prefills_its_prompt_too(generator, workload):
    samples = bench.time_new_conversations(generator, workload)
    whole = len(generator.prompt_rows(workload.prompts)) + len(generator.turn_rows("Hello.", 0))
    assert samples["new_voice_positions_prefilled"] == [whole] * 2


def test_every_repeat_times_the_same_number_of_frames(generator, workload):
    assert len(bench.time_frames(generator, workload)["frame_seconds"]) == 6


def test_the_report_names_the_machine_and_every_figure_has_a_spread(generator, workload):
    figures = bench.bench(generator, workload)
    assert json.loads(json.dumps(figures)) == figures
    assert figures["torch"] == torch.__version__ and figures["cpu"] and figures["cores"] >= 1
    assert figures["peak_memory_mb"] is None or figures["peak_memory_mb"] > 10
    for name in ("first_audio_seconds", "real_time_factor", "frame_seconds", "new_voice_first_audio_seconds"):
        assert 0 < figures[name]["min"] <= figures[name]["median"] <= figures[name]["max"]
        assert name.replace("_", " ") in bench.table(figures)


def _arguments(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    return parser.parse_args(words)


def test_the_command_prints_a_table_and_the_figures_as_its_last_line(generator, monkeypatch, capsys):
    monkeypatch.setattr(bench, "load", lambda model, device: generator)
    monkeypatch.setattr(bench, "shipped_voices", lambda: {"x": argparse.Namespace(transcript="Hi.")})
    monkeypatch.setattr(bench, "load_prompt", lambda voice: torch.zeros(24_000))
    assert bench.run(_arguments("--repeats", "1")) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["repeats"] == 1


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--repeats", "0"), "at least one repeat"),
        (("--threads", "0"), "At least one thread"),
        (("--random", "--model", "huge"), "choose one of nano, tiny, small, medium"),
    ],
)
def test_what_can_not_be_measured_is_refused_in_one_sentence(words, sentence):
    with pytest.raises(InputError, match=sentence):
        bench.run(_arguments(*words))
