"""VICReg's terms and SIGReg against numpy, and latents whose cost is known in closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randn, refusals

from jepa.losses.regularisers import SIGReg, VICReg, sigreg, vicreg


def directions(count: int, width: int, seed: int = 9) -> torch.Tensor:
    return F.normalize(randn(count, width, seed=seed), dim=1)


def difference(function, at: torch.Tensor, step: float = 1e-6) -> np.ndarray:
    """The gradient of a function of a numpy array, by central differences."""
    gradient = np.zeros(at.shape)
    for index in np.ndindex(*at.shape):
        above, below = at.numpy().copy(), at.numpy().copy()
        above[index] += step
        below[index] -= step
        gradient[index] = (function(above) - function(below)) / (2 * step)
    return gradient


def vicreg_by_numpy(z: np.ndarray) -> tuple[float, float]:
    covariance = np.cov(z, rowvar=False)
    hinge = np.maximum(0, 1 - np.sqrt(np.var(z, axis=0, ddof=1) + 1e-4)).mean()
    width = z.shape[1]
    return hinge, sum(covariance[i, j] ** 2 for i in range(width) for j in range(width) if i != j) / width


def sigreg_by_numpy(z: np.ndarray, a: np.ndarray) -> float:
    """With the paper's 17 knots on both sides of zero, and complex numbers."""
    t = np.linspace(-5, 5, 17)
    values = []
    for direction in a:
        phi = np.exp(1j * np.outer(z @ direction, t)).mean(axis=0)
        integrand = np.abs(phi - np.exp(-(t**2) / 2)) ** 2 * np.exp(-(t**2) / 2)
        values.append(len(z) * sum((integrand[:-1] + integrand[1:]) / 2 * np.diff(t)))
    return float(np.mean(values))


def test_vicreg_equals_numpy():
    latents = (randn(7, 4) * torch.tensor([0.2, 0.9, 1.5, 0.5]) + 3).requires_grad_()
    for ours, term in zip(vicreg(latents), (0, 1), strict=True):
        assert ours.item() == pytest.approx(vicreg_by_numpy(latents.detach().numpy())[term], rel=1e-12)
        expected = difference(lambda z, term=term: vicreg_by_numpy(z)[term], latents.detach())
        (gradient,) = torch.autograd.grad(ours, latents, retain_graph=True)
        np.testing.assert_allclose(gradient.numpy(), expected, rtol=1e-5, atol=1e-8)


def test_vicreg_of_known_latents():
    variance, covariance = vicreg(torch.ones(5, 3))
    assert variance.item() == pytest.approx(0.99)  # collapsed: 1 − √1e-4
    assert covariance.item() == 0
    corners = 2 * torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    assert [term.item() for term in vicreg(corners)] == [0, 0]  # wide and uncorrelated
    _, covariance = vicreg(corners[[0, 3]])
    assert covariance.item() == pytest.approx(64)  # one line: both covariances are 8, and E = 2


@pytest.mark.parametrize("count", [1, 6])
def test_sigreg_equals_numpy(count):
    latents, a = (randn(count, 4) * 0.7 + 0.3).requires_grad_(), directions(5, 4)
    ours = sigreg(latents, a)
    assert ours.item() == pytest.approx(sigreg_by_numpy(latents.detach().numpy(), a.numpy()), rel=1e-12)
    expected = difference(lambda z: sigreg_by_numpy(z, a.numpy()), latents.detach())
    np.testing.assert_allclose(torch.autograd.grad(ours, latents)[0].numpy(), expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rows", [16, 256])
def test_sigreg_of_normal_latents_is_the_same_at_every_batch_size(rows):
    """E|φ − e^(−t²/2)|² = (1 − e^(−t²)) / G, whose weighted integral is √(2π) (1 − 1/√3) / G."""
    costs = [sigreg(randn(rows, 6, seed=seed), directions(100, 6, seed)).item() for seed in range(100)]
    expected = math.sqrt(2 * math.pi) * (1 - 1 / math.sqrt(3))
    assert np.mean(costs) == pytest.approx(expected, abs=4 * np.std(costs) / 10 + 0.01)


def test_sigreg_of_collapsed_latents():
    """All rows in 0: φ = 1, and ∫ (1 − e^(−t²/2))² e^(−t²/2) = √(2π) (1 − 2/√2 + 1/√3) for each row."""
    expected = 8 * math.sqrt(2 * math.pi) * (1 - math.sqrt(2) + 1 / math.sqrt(3))
    ours = sigreg(torch.zeros(8, 3).double(), directions(4, 3), limit=8.0, knots=400)
    assert ours.item() == pytest.approx(expected, rel=1e-6)


def test_modules_weigh_and_average_both_sides():
    predictions, targets = randn(6, 4) * 0.5, randn(6, 4, seed=1) + 1
    (v1, c1), (v2, c2) = vicreg(predictions), vicreg(targets)
    assert VICReg(3.0, 2.0)(predictions, targets).item() == pytest.approx((3 * (v1 + v2) + 2 * (c1 + c2)).item() / 2)

    loss = SIGReg(projections=7)
    torch.manual_seed(3)
    first, second = loss(predictions, targets), loss(predictions, targets)
    assert first != second  # fresh directions
    torch.manual_seed(3)
    drawn = torch.randn(7, 4, dtype=torch.float64)
    drawn = drawn / drawn.square().sum(dim=1, keepdim=True).sqrt()
    expected = np.mean([sigreg_by_numpy(z.numpy(), drawn.numpy()) for z in (predictions, targets)])
    assert first.item() == pytest.approx(expected, rel=1e-12)
    assert not VICReg.unit_norm
    assert not SIGReg.unit_norm


test_bad_input_is_refused = refusals(
    (lambda: vicreg(randn(1, 3)), "at least 2 rows for a variance, got 1"),
    (lambda: vicreg(randn(3)), r"latents must be \(B, E\) .* got \(3,\)"),
    (lambda: VICReg(variance=-1.0), "variance and covariance must be >= 0, got -1.0 and 1.0"),
    (lambda: sigreg(randn(3, 2), randn(4, 3)), "latents and directions must have the same E, got 2 and 3"),
    (lambda: sigreg(randn(3, 2), randn(4, 2), knots=1), "limit must be > 0 and knots >= 2, got 5.0 and 1"),
    (lambda: SIGReg(limit=0.0)(randn(3, 2), randn(3, 2)), "limit must be > 0 and knots >= 2, got 0.0 and 9"),
    (lambda: SIGReg(projections=0), "projections must be a whole number >= 1, got 0"),
)
