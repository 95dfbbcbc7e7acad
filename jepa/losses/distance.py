"""Distances between predictions and their targets. Alone they do not keep latents apart: watch for collapse.

Each takes floating-point predictions and targets (B, E) of the same shape, else it raises `InputError`, and returns a
scalar: a mean over rows. Over ranks with batches of equal size, averaged gradients are those of the global batch.

B: rows of the batch; E: embedding dimensions. Half-precision input is computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.losses.inputs import matched


def cosine_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 − cos over rows, in [0, 2]: the distance d of LLM-JEPA's objective (arXiv 2509.14252).

    Rows may have any norm. A row of zeros has no direction: it counts as cos = 0, without gradient.

    >>> cosine_distance(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    predictions, targets = matched(predictions, targets)
    zero = (predictions == 0).all(dim=1) | (targets == 0).all(dim=1)
    return 1 - F.cosine_similarity(predictions, targets, dim=1).masked_fill(zero, 0.0).mean()


def l1_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference over all B × E elements."""
    return F.l1_loss(*matched(predictions, targets))


def l2_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the Euclidean norm of the difference; a row without difference has no gradient."""
    predictions, targets = matched(predictions, targets)
    return torch.linalg.vector_norm(predictions - targets, dim=1).mean()


def mse_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference over all B × E elements."""
    return F.mse_loss(*matched(predictions, targets))


def smooth_l1_distance(predictions: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Mean over all B × E elements of d² / (2 beta) where |d| < beta, else |d| − beta / 2 (Huber, divided by beta).

    `beta`, > 0 (else `InputError`), is the difference at which the square turns into a line.
    """
    _check_beta(beta)
    return F.smooth_l1_loss(*matched(predictions, targets), beta=beta)


class _Distance(nn.Module):
    """A distance as a module; `unit_norm` says whether it asks for L2-normalised latents."""

    unit_norm = False

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.distance(predictions, targets)


class Cosine(_Distance):
    """`cosine_distance`.

    >>> Cosine()(torch.eye(2), 3 * torch.eye(2))
    tensor(0.)
    """

    unit_norm = True

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return cosine_distance(predictions, targets)


class L1(_Distance):
    """`l1_distance`.

    >>> L1()(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return l1_distance(predictions, targets)


class L2(_Distance):
    """`l2_distance`.

    >>> L2()(torch.zeros(2, 4), torch.ones(2, 4))
    tensor(2.)
    """

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return l2_distance(predictions, targets)


class MSE(_Distance):
    """`mse_distance`.

    >>> MSE()(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    tensor(4.)
    """

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return mse_distance(predictions, targets)


class SmoothL1(_Distance):
    """`smooth_l1_distance`. Raises `InputError` unless beta > 0.

    >>> SmoothL1(beta=1.0)(torch.zeros(1, 2), torch.tensor([[0.5, 2.0]]))
    tensor(0.8125)
    """

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        _check_beta(beta)
        self.beta = beta

    def distance(self, predictions: Tensor, targets: Tensor) -> Tensor:
        return smooth_l1_distance(predictions, targets, self.beta)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise InputError(f"beta must be > 0, got {beta}")
