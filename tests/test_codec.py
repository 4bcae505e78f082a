"""Both codecs keep one protocol: whole frames, streams that equal the whole, states of their own."""

import pytest
import torch

from csm.codec import build_codec
from csm.codec.mimi import FewSteps
from csm.codec.spectral import HOP, SPECTRUM, TAIL, overlap_add
from csm.config import FRAME_SIZE, MimiConfig
from tests.small import SMALL_LIGHT, SMALL_MIMI, fill_codebooks


@pytest.fixture(params=[SMALL_LIGHT, SMALL_MIMI], ids=["light", "mimi"])
def codec(request):
    torch.manual_seed(0)
    made = build_codec(request.param)
    fill_codebooks(made.module)
    return made


def codes(frames=20, k=4):
    return torch.randint(0, 32, (frames, k), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("samples,frames", [(1, 1), (1920, 1), (1921, 2), (24_000, 13)])
def test_a_clip_becomes_whole_frames(codec, samples, frames):
    made = codec.encode(0.1 * torch.randn(samples))
    assert made.shape == (frames, 4) and made.dtype == torch.int64
    assert 0 <= made.min() and made.max() < 32


def test_decoding_gives_1920_samples_a_frame(codec):
    assert codec.decode(codes(7)).shape == (7 * FRAME_SIZE,)
    assert codec.decode(codes(0)).shape == (0,)


@pytest.mark.parametrize("sizes", [[20], [1] * 20, [1, 2, 4, 8, 5]])
def test_a_stream_equals_the_whole_however_it_is_cut(codec, sizes):
    stream = codec.stream()
    pieces = [stream.push(part) for part in codes().split(sizes)] + [stream.flush()]
    whole = codec.decode(codes())
    # 60 dB below the peak is a ten-thousandth of a period at the highest harmonics: rounding, not a lost state
    assert torch.allclose(torch.cat(pieces), whole, atol=1e-2 * float(whole.abs().max()))


def test_the_future_does_not_change_the_past(codec):
    changed = codes()
    changed[12:] = (changed[12:] + 5) % 32
    safe = 12 * FRAME_SIZE - TAIL
    whole = codec.decode(codes())[:safe]
    assert torch.allclose(codec.decode(changed)[:safe], whole, atol=1e-4 * float(whole.abs().max()))


def test_overlapping_windows_add_up_to_what_was_cut():
    """Squared Hann windows, a quarter apart, sum to 1.5: analysis and synthesis give the signal back."""
    wave = torch.randn(1, 4800)
    window = torch.hann_window(SPECTRUM)
    pieces = torch.nn.functional.pad(wave, (TAIL, 0)).unfold(1, SPECTRUM, HOP) * window * window
    made = overlap_add(pieces, torch.zeros(1, TAIL))[:, TAIL:]
    assert torch.allclose(made[:, :-TAIL], wave[:, :-TAIL], atol=1e-5)


def test_mimi_has_the_published_shape():
    with torch.device("meta"):
        module = build_codec(MimiConfig()).module
    state = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    assert state["encoder.model.0.conv.conv.weight"] == (64, 1, 7)
    assert state["quantizer.rvq_rest.vq.layers.30._codebook.embedding_sum"] == (2048, 256)
    assert state["decoder_transformer.transformer.layers.7.linear1.weight"] == (2048, 512)
    assert module.frame_size == FRAME_SIZE and module.num_codebooks == 32
    parameters = sum(p.numel() for p in module.parameters())
    assert 70e6 < parameters < 80e6


def test_mimi_is_the_package_s_own_model_key_by_key():
    from moshi.models import loaders

    with torch.device("meta"):
        ours = build_codec(MimiConfig()).module.state_dict()
        theirs = loaders.get_mimi(None, device="meta", num_codebooks=32).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}


@pytest.mark.parametrize("steps", [1, 2, 9])
def test_a_convolution_of_few_steps_is_the_convolution(steps):
    torch.manual_seed(0)
    plain, x = torch.nn.ConvTranspose1d(6, 4, 10, 5), torch.randn(3, 6, steps)
    torch.testing.assert_close(FewSteps.of(plain)(x), plain(x))
    published = build_codec(SMALL_MIMI).module.decoder.modules()
    assert sum(isinstance(module, FewSteps) for module in published) == 1


def test_moshi_records_no_graphs_of_its_own(monkeypatch):
    """On a GPU it would for every stream, at its second frame, with the whole device waiting."""
    from moshi.utils import compile as moshi_graphs

    codec = build_codec(SMALL_MIMI)
    decode, allowed = codec.module.decode, []
    monkeypatch.setattr(
        codec.module, "decode", lambda codes: allowed.append(moshi_graphs._is_cuda_graph_enabled()) or decode(codes)
    )
    codec.stream().push(codes(2))
    assert allowed == [False, False]
