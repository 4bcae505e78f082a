"""Several runs' weights become one model's: their mean."""

import pytest
import torch

from csm import InputError
from csm.checkpoint import load_model, save_folder
from csm.training.average import average
from tests.small import small_generator


@pytest.fixture
def runs(tmp_path):
    """Two models of one shape and one of another, as folders."""
    made = []
    for name, positions in (("a", 256), ("b", 256), ("c", 512)):
        generator = small_generator(max_positions=positions)
        torch.manual_seed(len(made))
        with torch.no_grad():
            generator.codec.module.decoder.head.bias.normal_()
        save_folder(tmp_path / name, generator.engine.model.init_weights(), generator.codec.module)
        made.append(str(tmp_path / name))
    return made


def weights(folder):
    loaded = load_model(str(folder))
    named = {**loaded.model.state_dict(), "head": loaded.codec.module.decoder.head.bias}
    return {name: value.float() for name, value in named.items()}


def test_the_mean_is_of_the_weights_in_the_shares_that_were_asked_for(runs, tmp_path):
    average(runs[:2], [3, 1], tmp_path / "mean")
    a, b, mean = (weights(folder) for folder in (*runs[:2], tmp_path / "mean"))
    for name in (next(name for name in a if "q_proj" in name), "head"):
        assert not torch.equal(a[name], b[name])
        torch.testing.assert_close(mean[name], 0.75 * a[name] + 0.25 * b[name], atol=1e-3, rtol=1e-3)
    same = load_model(str(tmp_path / "mean")).codec.module.quantizer.state_dict()
    for name, value in load_model(runs[0]).codec.module.quantizer.state_dict().items():
        assert torch.equal(same[name], value), "what is alike stays as it is, to the bit"


@pytest.mark.parametrize("shares", [[1], [1, 2, 3], [0, 0], [-1, 2]])
def test_shares_that_make_no_mean_are_refused(runs, tmp_path, shares):
    with pytest.raises(InputError, match="shares"):
        average(runs[:2], shares, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()


def test_models_of_different_shapes_have_no_mean(runs, tmp_path):
    with pytest.raises(InputError, match="another shape"):
        average([runs[0], runs[2]], None, tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
