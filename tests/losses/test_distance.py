"""Distances against numpy's closed forms, values and gradients in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randn, refusals
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.losses import L1, L2, MSE, Cosine, SigLIP, SIGReg, SmoothL1, VICReg

MODULES = [Cosine(), L1(), L2(), MSE(), SmoothL1(0.3)]
by_module = pytest.mark.parametrize("module", MODULES, ids=lambda module: type(module).__name__)


def by_hand(name: str, p: np.ndarray, t: np.ndarray, beta: float) -> tuple[float, np.ndarray]:
    """The distance, and its gradient by the predictions, row by row."""
    values, gradient = [], np.zeros_like(p)
    for i, (a, b) in enumerate(zip(p, t, strict=True)):
        d, size = a - b, np.sqrt(a @ a) * np.sqrt(b @ b)
        if name == "cosine":
            values.append(1 - a @ b / size)
            gradient[i] = -(b / size - (a @ b) / size * a / (a @ a))
        elif name == "l1":
            values.append(np.abs(d).mean())
            gradient[i] = np.sign(d) / len(d)
        elif name == "l2":
            values.append(np.sqrt(d @ d))
            gradient[i] = d / np.sqrt(d @ d)
        elif name == "mse":
            values.append(d @ d / len(d))
            gradient[i] = 2 * d / len(d)
        else:
            near = np.abs(d) < beta
            values.append(np.where(near, d**2 / (2 * beta), np.abs(d) - beta / 2).mean())
            gradient[i] = np.where(near, d / beta, np.sign(d)) / len(d)
    return float(np.mean(values)), gradient / len(p)


@given(st.integers(1, 6), st.integers(1, 5), st.floats(0.1, 2), st.integers(0, 99))
@settings(max_examples=25)
def test_values_and_gradients_equal_numpy(rows, width, beta, seed):
    predictions, targets = randn(rows, width, seed=seed), randn(rows, width, seed=seed + 100)
    modules = {"cosine": Cosine(), "l1": L1(), "l2": L2(), "mse": MSE(), "smooth_l1": SmoothL1(beta)}
    for name, module in modules.items():
        leaf = predictions.clone().requires_grad_()
        value = module(leaf, targets)
        (gradient,) = torch.autograd.grad(value, leaf)
        expected, expected_gradient = by_hand(name, predictions.numpy(), targets.numpy(), beta)
        assert value.shape == ()
        assert value.item() == pytest.approx(expected, rel=1e-10, abs=1e-12)
        np.testing.assert_allclose(gradient.numpy(), expected_gradient, rtol=1e-8, atol=1e-10)


@by_module
def test_gradients_by_both_arguments_and_none_from_equal_latents(module):
    latents, others = randn(4, 3), randn(4, 3, seed=1)
    assert torch.autograd.gradcheck(module, (latents.clone().requires_grad_(), others.requires_grad_()))
    predictions = latents.clone().requires_grad_()
    value = module(predictions, latents)
    (gradient,) = torch.autograd.grad(value, predictions)
    assert value.item() == pytest.approx(0, abs=1e-12)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-12, rtol=0)


def test_cosine_of_a_zero_row_has_no_gradient():
    predictions, targets = randn(3, 4), randn(3, 4, seed=1)
    predictions[1] = 0
    predictions.requires_grad_()
    value = Cosine()(predictions, targets)
    (gradient,) = torch.autograd.grad(value, predictions)
    others = F.cosine_similarity(predictions[[0, 2]], targets[[0, 2]]).sum()
    assert value.item() == pytest.approx(1 - others.item() / 3)
    assert not gradient[1].any()
    assert gradient[0].any()


@pytest.mark.parametrize("module", [*MODULES, SigLIP(), VICReg(), SIGReg(4)], ids=lambda module: type(module).__name__)
def test_half_precision_and_autocast_are_computed_in_float32(module):
    """Of the other losses, too."""
    predictions, targets = randn(8, 16).bfloat16(), randn(8, 16, seed=1).bfloat16()
    found = []
    for autocast, first in ((False, predictions.float()), (False, predictions), (True, predictions)):
        torch.manual_seed(0)  # SIGReg's directions
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            found.append(module(first, targets.to(first.dtype)))
    assert found[0] == found[1] == found[2]
    assert module(predictions, targets.float()).dtype == torch.float32


def test_which_distances_ask_for_unit_norm():
    assert [module.unit_norm for module in MODULES] == [True, False, False, False, False]


test_bad_input_is_refused = refusals(
    (lambda: L1()(randn(3, 2), randn(2, 2)), r"same shape, got \(3, 2\) and \(2, 2\)"),
    (lambda: MSE()(randn(3), randn(3)), r"predictions must be \(B, E\) .* got \(3,\)"),
    (lambda: L2()(randn(0, 2), randn(0, 2)), r"with B, E >= 1, got \(0, 2\)"),
    (lambda: Cosine()(randn(2, 2), torch.ones(2, 2).long()), "targets must be floating point, got torch.int64"),
    (lambda: SmoothL1(0.0), "beta must be > 0, got 0.0"),
)
