"""InfoNCE against a plain loop over pairs, values and gradients in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from conftest import randn, refusals
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from jepa.losses.infonce import InfoNCE, ProjectionHead, info_nce


def latents(count: int, seed: int) -> torch.Tensor:
    return F.normalize(randn(count, 7, seed=seed), dim=-1)


def by_loop(predictions, targets, temperature, ids, symmetric=True, extra=(), extra_ids=()):
    """-log of the softmax fraction of the right pair, both ways or forth, over the negatives of other texts.

    Further ones stand in the denominator of a prediction whose text they are not, and of no target.
    """
    total = 0.0
    count = len(predictions)
    for i in range(count):
        others = [j for j in range(count) if ids[j] != ids[i]]
        right = (predictions[i] @ targets[i] / temperature).exp()
        negatives = [targets[j] for j in others] + [z for z, n in zip(extra, extra_ids, strict=True) if n != ids[i]]
        forth = sum((predictions[i] @ z / temperature).exp() for z in negatives)
        back = sum((predictions[j] @ targets[i] / temperature).exp() for j in others)
        total = total - (right / (right + forth)).log() - symmetric * (right / (right + back)).log()
    return total / ((1 + symmetric) * count)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("ids", [None, [0, 1, 2, 3, 4, 5], [0, 1, 0, 2, 0, 1]])
def test_value_and_gradient_equal_the_loop(ids, symmetric):
    inputs = [latents(6, seed).requires_grad_() for seed in (1, 2)]
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ours = info_nce(*inputs, temperature, None if ids is None else torch.tensor(ids), symmetric=symmetric)
    theirs = by_loop(*inputs, temperature, ids or range(6), symmetric)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    gradients, expected = (torch.autograd.grad(value, [*inputs, temperature]) for value in (ours, theirs))
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("chunk", [1, 2, 4, 6, 9])
@pytest.mark.parametrize("ids", [None, [0, 1, 0, 2, 0, 1], [3, 3, 3, 3, 3, 3]])
@pytest.mark.parametrize(("further", "symmetric"), [(False, True), (True, True), (True, False)])
def test_chunks_change_neither_value_nor_gradients(chunk, ids, further, symmetric):
    inputs = [latents(count, seed).requires_grad_() for count, seed in ((6, 1), (6, 2), (3, 3))]
    temperature = torch.tensor(0.2, dtype=torch.float64, requires_grad=True)
    ids = None if ids is None else torch.tensor(ids)
    extra = (inputs[2], torch.tensor([0, 3, 9])) if further else (None, None)
    leaves = [*inputs[: 3 if further else 2], temperature]
    found = []
    for size in (None, chunk):
        value = info_nce(*inputs[:2], temperature, ids, *extra, chunk=size, symmetric=symmetric)
        found.append((value, torch.autograd.grad(value, leaves)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)


def test_similarities_of_all_rows_never_stand_in_memory_at_once():
    """What forward and backward allocate, counted tensor by tensor: no more than `chunk` rows of the 256 at a time."""
    inputs = [latents(256, seed).requires_grad_() for seed in (1, 2)]
    sizes = []

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            made = function(*args, **(kwargs or {}))
            sizes.extend(tensor.numel() for tensor in tree_leaves(made) if isinstance(tensor, torch.Tensor))
            return made

    for chunk, most in ((32, 32 * 256), (None, 256 * 256)):
        sizes.clear()
        with Largest():
            info_nce(*inputs, 0.2, torch.arange(256) // 2, chunk=chunk).backward()
        assert max(sizes) == most


def test_further_negatives_count_for_predictions_alone():
    given, ids, extra_ids = (latents(4, 1), latents(4, 2), 0.3), torch.arange(4), torch.tensor([7, 1, 8])
    ours = info_nce(*given, ids, latents(3, 5), extra_ids)
    theirs = by_loop(*given, ids, extra=latents(3, 5), extra_ids=extra_ids)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_collapsed_latents_cost_the_logarithm_of_the_batch():
    same = torch.ones(8, 4, dtype=torch.float64) / 2
    assert float(info_nce(same, same, 0.07)) == pytest.approx(math.log(8))


def test_the_temperature_is_learnt_and_kept_in_bounds():
    loss = InfoNCE(0.07, lowest=0.01)
    assert float(loss.temperature.detach()) == pytest.approx(0.07)
    loss(latents(4, 0).float(), latents(4, 1).float()).backward()
    assert loss.log_scale.grad is not None
    assert loss.log_scale.grad != 0
    with torch.no_grad():
        loss.log_scale.fill_(100.0)
    assert float(loss.temperature.detach()) == pytest.approx(0.01)


def test_a_fixed_temperature_is_no_parameter():
    fixed, learnt = InfoNCE(0.2, learnable=False), InfoNCE(0.2)
    assert not list(fixed.parameters())
    assert not fixed.state_dict()
    assert set(learnt.state_dict()) == {"log_scale"}
    assert fixed.temperature == learnt.temperature
    predictions, targets = latents(4, 0).requires_grad_(), latents(4, 1)
    assert fixed(predictions, targets) == learnt(predictions, targets)
    fixed(predictions, targets).backward()
    assert predictions.grad is not None


def test_a_projection_head_comes_before_the_comparison():
    torch.manual_seed(0)
    loss = InfoNCE(0.2, head=ProjectionHead(7, 5, 3)).double()
    predictions, targets, extra = latents(4, 0), latents(4, 1), latents(2, 2)
    first, last = loss.head[0], loss.head[2]
    hidden = [(z @ first.weight.T + first.bias).clamp(min=0) for z in (predictions, targets, extra)]
    projected = [h @ last.weight.T + last.bias for h in hidden]
    unit = [z / z.square().sum(dim=1, keepdim=True).sqrt() for z in projected]
    expected = info_nce(unit[0], unit[1], loss.temperature, negatives=unit[2])
    value = loss(predictions, targets, negatives=extra)
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)
    value.backward()
    assert all(parameter.grad.any() for parameter in loss.parameters())


def test_half_precision_is_computed_in_float32():
    half = [latents(count, seed).bfloat16() for count, seed in ((6, 0), (6, 1), (3, 2))]
    predictions, targets, extra = (z.float() for z in half)
    expected = info_nce(predictions, targets, 0.1, negatives=extra)
    assert info_nce(half[0], half[1], 0.1, negatives=half[2]) == expected


@pytest.mark.parametrize("chunk", [None, 2])
def test_autocast_changes_neither_value_nor_gradients(chunk):
    """Also where chunks are computed again in the backward pass, outside autocast."""
    inputs = [latents(count, seed).float().requires_grad_() for count, seed in ((6, 0), (6, 1), (3, 2))]
    temperature = torch.tensor(0.07, requires_grad=True)
    found = []
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            ids, more = torch.tensor([0, 1, 0, 2, 0, 1]), torch.tensor([0, 3, 9])
            value = info_nce(*inputs[:2], temperature, ids, inputs[2], more, chunk=chunk)
        found.append((value, *torch.autograd.grad(value, [*inputs, temperature])))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


test_bad_input_is_refused = refusals(
    (lambda: info_nce(latents(3, 0), latents(2, 0), 0.1), "same shape"),
    (lambda: info_nce(latents(2, 0), latents(2, 0), 0.1, torch.tensor([0.0, 1.0])), "ids must be"),
    (lambda: info_nce(latents(4, 1), latents(4, 2), 0.3, torch.arange(4), latents(2, 3)), "negative_ids must be"),
    (lambda: InfoNCE(0.0), "temperature must be in"),
    (lambda: InfoNCE(1.5), "temperature must be in"),
)
