"""The sigmoid loss against a plain loop over pairs, values and gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import randn, refusals

from jepa.losses.siglip import SigLIP, siglip


def latents(count: int, seed: int) -> torch.Tensor:
    return F.normalize(randn(count, 7, seed=seed), dim=-1)


def by_loop(predictions, targets, scale, bias, ids):
    total = 0.0
    for i in range(len(predictions)):
        for j in range(len(targets)):
            logit = scale * (predictions[i] @ targets[j]) + bias
            if i == j:
                total = total + (1 + (-logit).exp()).log()
            elif ids[i] != ids[j]:
                total = total + (1 + logit.exp()).log()
    return total / len(predictions)


@pytest.mark.parametrize("ids", [None, [3], [0, 1, 2, 3, 4], [0, 1, 0, 0, 1], [2, 2, 2]])
def test_value_and_gradient_equal_the_loop(ids):
    count = 5 if ids is None else len(ids)
    inputs = [latents(count, seed).requires_grad_() for seed in (1, 2)]
    inputs += [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (4.0, -1.5)]
    ours = siglip(*inputs, None if ids is None else torch.tensor(ids))
    theirs = by_loop(*inputs, ids or range(count))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients, expected = torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)


def test_collapsed_latents():
    same = torch.ones(8, 4, dtype=torch.float64) / 2
    expected = math.log1p(math.exp(-1)) + 7 * math.log1p(math.exp(1))
    assert siglip(same, same, 10.0, -9.0).item() == pytest.approx(expected)


def test_the_module_learns_scale_and_bias():
    loss, predictions, targets = SigLIP(), latents(4, 0).float(), latents(4, 1).float()
    value = loss(predictions, targets, torch.tensor([0, 1, 0, 2]))
    expected = by_loop(predictions.double(), targets.double(), 10, -10, [0, 1, 0, 2])
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    value.backward()
    assert {name for name, parameter in loss.named_parameters() if parameter.grad} == {"log_scale", "bias"}
    assert loss.unit_norm


test_bad_input_is_refused = refusals(
    (lambda: SigLIP(scale=0.0), "scale must be > 0, got 0.0"),
    (lambda: siglip(latents(3, 0), latents(2, 0), 1.0, 0.0), r"same shape, got \(3, 7\) and \(2, 7\)"),
    (lambda: siglip(latents(3, 0), latents(3, 0), 1.0, 0.0, torch.arange(2)), r"ids must be \(3,\) .*, got \(2,\)"),
)
