"""The discriminators of codec training: they learn, they teach, and their losses are the ones that are documented."""

import pytest
import torch
from torch import nn

from csm.training.adversary import Adversary, discriminator_loss, fooled, generator_losses


def hums_and_noise(seed: int, batch: int = 4, samples: int = 4800) -> tuple[torch.Tensor, torch.Tensor]:
    """Sines of random pitch and phase, and noise just as loud."""
    generator = torch.Generator().manual_seed(seed)
    pitch = torch.rand(batch, 1, generator=generator) * 300 + 100
    phase = torch.rand(batch, 1, generator=generator) * 2 * torch.pi
    hums = 0.3 * torch.sin(2 * torch.pi * pitch * torch.arange(samples) / 24_000 + phase)
    return hums, 0.3 * 0.5**0.5 * torch.randn(batch, samples, generator=generator)


@pytest.fixture
def adversary() -> Adversary:
    torch.manual_seed(0)
    return Adversary(windows=(512, 256), channels=4)


def silence_scores(adversary: Adversary, score: float) -> None:
    """Make every score of every clip `score`."""
    for discriminator in adversary.discriminators:
        nn.init.constant_(discriminator.score.bias, score)
        discriminator.score.parametrizations.weight.original0.data.zero_()


def test_discriminators_learn_to_tell_a_hum_from_noise(adversary):
    optimiser = torch.optim.AdamW(adversary.parameters(), lr=2e-3, betas=(0.8, 0.99))
    for step in range(30):
        loss = discriminator_loss(adversary, *hums_and_noise(step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    hums, noise = hums_and_noise(1_000, batch=16)
    with torch.no_grad():
        for (on_hums, _), (on_noise, _) in zip(adversary(hums), adversary(noise)):
            assert (on_hums.float().mean((1, 2, 3)) > 0).all() and (on_noise.float().mean((1, 2, 3)) < 0).all()
        assert discriminator_loss(adversary, hums, noise) < 1


def test_what_a_discriminator_sees_is_of_order_one_for_quiet_speech_too(adversary):
    for gain in (1.0, 0.1):
        for discriminator in adversary.discriminators:
            seen = discriminator.spectrum(gain * hums_and_noise(0)[1])
            assert 0.3 < seen.std() < 3 and seen.abs().max() < 10


def test_the_generator_learns_from_the_discriminators_and_they_do_not_from_its_losses(adversary):
    hums, noise = hums_and_noise(0)
    made = noise.requires_grad_()
    losses = (*generator_losses(adversary, hums, made), fooled(adversary, made))
    for loss in losses:
        (gradient,) = torch.autograd.grad(loss, made, retain_graph=True)
        assert gradient.isfinite().all() and (gradient.abs().sum(1) > 0).all()
    sum(losses).backward()
    assert all(parameter.grad is None and parameter.requires_grad for parameter in adversary.parameters())


def test_the_codec_gets_no_gradient_from_the_discriminators_loss(adversary):
    hums, noise = hums_and_noise(0)
    made = noise.requires_grad_()
    discriminator_loss(adversary, hums, made).backward()
    assert made.grad is None
    assert all(parameter.grad is not None for parameter in adversary.parameters())


def test_silence_has_finite_gradients(adversary):
    made = torch.zeros(2, 4800, requires_grad=True)
    adversarial, feature = generator_losses(adversary, hums_and_noise(0, batch=2)[0], made)
    (adversarial + feature).backward()
    assert made.grad.isfinite().all()


@pytest.mark.parametrize(("score", "hinge"), [(0.0, 2.0), (0.5, 2.0), (3.0, 4.0), (-3.0, 4.0)])
def test_the_hinge_is_right_where_it_is_known(adversary, score, hinge):
    """A score that is the same for both sides: 2 within the margin, and growing with the wrong side outside of it."""
    silence_scores(adversary, score)
    hums, noise = hums_and_noise(0)
    assert discriminator_loss(adversary, hums, noise).item() == pytest.approx(hinge)
    assert generator_losses(adversary, hums, noise)[0].item() == pytest.approx(-score)
    assert fooled(adversary, noise).item() == pytest.approx(-score)


def test_a_perfect_copy_has_no_feature_distance(adversary):
    hums, noise = hums_and_noise(0)
    assert generator_losses(adversary, hums, hums.clone())[1] == 0
    assert generator_losses(adversary, hums, noise)[1] > 0.1


def test_losses_do_not_grow_with_the_batch(adversary):
    hums, noise = hums_and_noise(0)
    once = [discriminator_loss(adversary, hums, noise), *generator_losses(adversary, hums, noise)]
    hums, noise = hums.repeat(3, 1), noise.repeat(3, 1)
    thrice = [discriminator_loss(adversary, hums, noise), *generator_losses(adversary, hums, noise)]
    for a, b in zip(once, thrice):
        assert a.item() == pytest.approx(b.item(), rel=1e-3, abs=1e-4)
