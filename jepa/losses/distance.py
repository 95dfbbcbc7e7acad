"""Distances between predictions and their targets. Alone they do not keep latents apart: watch for collapse.

All are means over rows: over ranks with batches of equal size, averaged gradients are those of the global batch.

B: rows of the batch; E: embedding dimensions. Half-precision input is computed in float32.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.losses.inputs import matched


def cosine_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean of 1 − cos over rows (LLM-JEPA, arXiv 2509.14252, the distance d of its objective).

    A row of zeros has no direction: it counts as cos = 0, without gradient.

    Args:
        predictions: (B, E), of any norm.
        targets: (B, E), of any norm.

    Returns:
        Scalar in [0, 2].

    Raises:
        InputError: the inputs are not floating point (B, E) of the same shape.

    >>> cosine_distance(torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    tensor(0.5000)
    """
    predictions, targets = matched(predictions, targets)
    zero = (predictions == 0).all(dim=1) | (targets == 0).all(dim=1)
    return 1 - F.cosine_similarity(predictions, targets, dim=1).masked_fill(zero, 0.0).mean()


def l1_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean absolute difference over all B × E elements.

    Args:
        predictions: (B, E).
        targets: (B, E).

    Returns:
        Scalar >= 0.

    Raises:
        InputError: the inputs are not floating point (B, E) of the same shape.
    """
    return F.l1_loss(*matched(predictions, targets))


def l2_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean over rows of the Euclidean norm of the difference; a row without difference has no gradient.

    Args:
        predictions: (B, E).
        targets: (B, E).

    Returns:
        Scalar >= 0.

    Raises:
        InputError: the inputs are not floating point (B, E) of the same shape.
    """
    predictions, targets = matched(predictions, targets)
    return torch.linalg.vector_norm(predictions - targets, dim=1).mean()


def mse_distance(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean squared difference over all B × E elements.

    Args:
        predictions: (B, E).
        targets: (B, E).

    Returns:
        Scalar >= 0.

    Raises:
        InputError: the inputs are not floating point (B, E) of the same shape.
    """
    return F.mse_loss(*matched(predictions, targets))


def smooth_l1_distance(predictions: Tensor, targets: Tensor, beta: float = 1.0) -> Tensor:
    """Mean over all B × E elements of d² / (2 beta) where |d| < beta, else |d| − beta / 2 (Huber, divided by beta).

    Args:
        predictions: (B, E).
        targets: (B, E).
        beta: the difference at which the square turns into a line, > 0.

    Returns:
        Scalar >= 0.

    Raises:
        InputError: the inputs are not floating point (B, E) of the same shape, or beta <= 0.
    """
    _check_beta(beta)
    return F.smooth_l1_loss(*matched(predictions, targets), beta=beta)


class Cosine(nn.Module):
    """`cosine_distance`.

    >>> Cosine()(torch.eye(2), 3 * torch.eye(2))
    tensor(0.)
    """

    unit_norm = True

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return cosine_distance(predictions, targets)


class L1(nn.Module):
    """`l1_distance`.

    >>> L1()(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return l1_distance(predictions, targets)


class L2(nn.Module):
    """`l2_distance`.

    >>> L2()(torch.zeros(2, 4), torch.ones(2, 4))
    tensor(2.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return l2_distance(predictions, targets)


class MSE(nn.Module):
    """`mse_distance`.

    >>> MSE()(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    tensor(4.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return mse_distance(predictions, targets)


class SmoothL1(nn.Module):
    """`smooth_l1_distance`.

    Raises:
        InputError: beta <= 0.

    >>> SmoothL1(beta=1.0)(torch.zeros(1, 2), torch.tensor([[0.5, 2.0]]))
    tensor(0.8125)
    """

    unit_norm = False

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        _check_beta(beta)
        self.beta = beta

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return smooth_l1_distance(predictions, targets, self.beta)


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise InputError(f"beta must be > 0, got {beta}")
