"""Muon in the precision that the device is quick in takes the steps that torch's takes in bfloat16."""

import torch

from csm.training.muon import Muon, orthogonal


def test_its_steps_are_torch_s_up_to_bfloat16_s_rounding():
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.randn(24, 60, generator=torch.Generator().manual_seed(1))) for _ in "ab")
    start = ours.detach().clone()
    own = Muon([ours], lr=0.02, weight_decay=0.05)
    reference = torch.optim.Muon([theirs], lr=0.02, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    for _ in range(3):
        ours.grad = torch.randn(24, 60)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    assert (ours - theirs).norm() < 0.02 * (ours - start).norm()


def test_an_update_is_nearly_orthogonal_in_either_orientation():
    torch.manual_seed(0)
    for shape in ((16, 40), (40, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape)))
        assert 0.5 < values.min() and values.max() < 1.3
