"""The network: sizes, rotary scaling, caches, sampling, losses."""

from dataclasses import replace

import pytest
import torch

from csm.config import PRESETS, ModelConfig, RopeConfig
from csm.errors import InputError
from csm.model import CSM, KVCache, RowSampling, sample
from csm.model.module import ROWS_AT_ONCE
from csm.model.size import parameter_counts
from csm.model.transformer import rope_frequencies
from csm.settings import Settings
from tests.small import small_config


@pytest.fixture
def model():
    torch.manual_seed(0)
    return CSM(small_config()).init_weights().eval()


def rows(config, length=12, seed=0):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 32, (1, length, config.num_codebooks + 1), generator=generator)
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, : length // 2, -1] = True
    mask[:, length // 2 :, :-1] = True
    return ids, mask


def test_tiny_has_the_parameters_of_the_published_file():
    # model.safetensors of sesame/csm-1b: 6 211 186 784 bytes of float32 and a header of some kilobytes.
    total = parameter_counts(PRESETS["tiny"])["total"]
    assert total == 1_552_791_552
    assert 0 < 6_211_186_784 - 4 * total < 100_000


def test_tiny_has_the_published_shapes():
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in CSM(PRESETS["tiny"]).named_parameters()}
    assert shapes["text_embeddings.weight"] == (128_256, 2048)
    assert shapes["audio_embeddings.weight"] == (65_632, 2048)
    assert shapes["projection.weight"] == (1024, 2048)
    assert shapes["codebook0_head.weight"] == (2051, 2048)
    assert shapes["audio_head"] == (31, 1024, 2051)
    assert shapes["backbone.layers.15.attn.k_proj.weight"] == (512, 2048)
    assert shapes["decoder.layers.3.mlp.w2.weight"] == (1024, 8192)


def test_medium_has_the_parameters_of_the_published_8b():
    """MisoTTS: 8.2 billion, and a file of 32.8 GB in float32."""
    total = parameter_counts(PRESETS["medium"])["total"]
    assert total == 8_188_122_112 and round(4 * total / 1e9, 1) == 32.8


@pytest.mark.parametrize("name,backbone,decoder", [("small", 2.82e9, 250e6), ("medium", 6.98e9, 300e6)])
def test_the_larger_presets_build_at_their_published_sizes(name, backbone, decoder):
    counts = parameter_counts(PRESETS[name])  # Llama 3.2 3B and 3.1 8B without their vocabularies
    assert counts["backbone"] == pytest.approx(backbone, rel=0.01)
    assert counts["depth decoder"] == pytest.approx(decoder, rel=0.01)


@pytest.mark.parametrize("name", PRESETS)
def test_a_config_survives_its_dictionary(name):
    assert ModelConfig.from_dict(PRESETS[name].to_dict()) == PRESETS[name]


def test_llama_scaling_slows_only_the_slow_pairs():
    plain = rope_frequencies(64, RopeConfig(factor=1.0))
    scaled = rope_frequencies(64, RopeConfig())
    assert torch.equal(plain[:10], scaled[:10])
    assert torch.allclose(scaled[-5:], plain[-5:] / 32)


def test_cached_equals_uncached(model):
    config = model.config
    ids, mask = rows(config)
    with torch.inference_mode():
        embedded = model.embed_rows(ids, mask)
        whole = model.backbone(embedded)
        cache = KVCache(config.backbone, 64, 1, embedded)
        parts = [model.backbone(part, cache) for part in embedded.split([5, 1, 1, 4, 1], dim=1)]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-5)


def test_the_cached_depth_decoder_equals_its_training_pass(model):
    torch.manual_seed(1)
    state = torch.randn(2, model.config.backbone.dim)
    with torch.inference_mode():
        codes = model.sample_frame(state, Settings(topk=1), None)
        logits = model.depth_logits(state, codes)
    assert torch.equal(codes[:, 0], model.codebook0_head(state).argmax(-1))
    assert torch.equal(codes[:, 1:], logits.argmax(-1))


def test_a_full_cache_says_so(model):
    embedded = torch.zeros(1, 9, 32)
    with pytest.raises(IndexError, match="8 positions"):
        model.backbone(embedded, KVCache(model.config.backbone, 8, 1, embedded))


def test_sampling_draws_in_proportion_and_only_from_the_top_k():
    logits = torch.tensor([[3.0, 2.0, 1.0, 0.0]]).log_softmax(-1).repeat(20_000, 1)
    noise = torch.empty_like(logits).exponential_(1, generator=torch.Generator().manual_seed(0))
    drawn = sample(logits, Settings(temperature=1.0, topk=3), noise)
    share = torch.bincount(drawn, minlength=4) / len(drawn)
    expected = torch.tensor([3.0, 2.0, 1.0]).softmax(-1)
    assert share[3] == 0
    assert torch.allclose(share[:3], expected, atol=0.02)


def test_top_k_of_one_is_greedy():
    logits = torch.randn(5, 35, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample(logits, Settings(topk=1), None), logits.argmax(-1))


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": -1.0}, {"topk": 0}, {"min_p": 1.1}])
def test_impossible_sampling_is_refused_in_one_sentence(options):
    with pytest.raises(InputError, match="choose"):
        Settings(**options)


def test_the_losses_see_only_what_they_should(model):
    """Changing a frame that no loss covers, or a masked column, changes nothing."""
    ids, mask = rows(model.config)
    chosen = torch.zeros(ids.shape[:2], dtype=torch.bool)
    chosen[:, 8] = True
    first, depth = model.losses(ids, mask, chosen)
    changed = ids.clone()
    changed[:, -1, 1:] = 3  # the last frame: only its code 0 is a target, and nothing reads it
    assert torch.equal(model.losses(changed, mask, chosen)[0], first)
    assert torch.equal(model.losses(changed, mask, chosen)[1], depth)
    changed[:, 8, 2] = (ids[:, 8, 2] + 1) % 32
    assert not torch.equal(model.losses(changed, mask, chosen)[1], depth)


def test_many_rows_are_embedded_in_parts_without_a_bit_of_difference():
    torch.manual_seed(0)
    model = CSM(small_config()).init_weights()
    rows, mask = torch.randint(0, 30, (2, 2 * ROWS_AT_ONCE + 5, 5)), torch.rand(2, 2 * ROWS_AT_ONCE + 5, 5) > 0.5
    columns = torch.cat([model.embed_codes(rows[..., :-1]), model.text_embeddings(rows[..., -1:])], dim=-2)
    assert torch.equal(model.embed_rows(rows, mask), (columns * mask.unsqueeze(-1)).sum(-2))


def test_min_p_leaves_out_what_is_much_less_likely_than_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().repeat(20_000, 1)
    noise = torch.empty(20_000, 4).exponential_(1, generator=torch.Generator().manual_seed(1))
    open_to_all = Settings(temperature=1.0, topk=4)
    kept = sample(logits, replace(open_to_all, min_p=0.5), noise).bincount(minlength=4) / 20_000
    assert kept[2:].sum() == 0 and kept[0] == pytest.approx(0.5 / 0.8, abs=0.02)
    assert sample(logits, replace(open_to_all, min_p=1.0), noise).bincount().tolist() == [20_000]
    hotter = sample(logits, replace(open_to_all, temperature=3.0, min_p=0.5), noise).bincount(minlength=4)
    assert (hotter > 0).tolist() == [True, True, True, False], "it looks at the probabilities that are drawn from"


def test_without_min_p_nothing_is_drawn_differently_even_beside_a_row_that_has_it():
    logits, noise = torch.randn(64, 35), torch.empty(64, 35).exponential_(1)
    temperature, topk = torch.full((64, 1), 0.9), torch.full((64, 1), 20)
    floor = torch.tensor([[Settings(min_p=0.5 * (row % 2)).floor] for row in range(64)])
    without = sample(logits, RowSampling(temperature, topk, 35), noise)
    beside = sample(logits, RowSampling(temperature, topk, 35, floor), noise)
    assert torch.equal(without[::2], beside[::2]) and not torch.equal(without, beside)
    assert torch.equal(without, sample(logits, Settings(temperature=0.9, topk=20), noise))
