"""Distances between predictions and their targets. Alone they do not keep latents apart: watch for collapse.

Each takes floating-point predictions and targets (B, E) of the same shape, else it raises `InputError`, and returns a
scalar: a mean over the B rows. Half precision is computed in float32. Over ranks with batches of equal size, averaged
gradients are those of the global batch. `unit_norm` says whether a distance asks for L2-normalised latents.
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


class Cosine(nn.Module):
    """`cosine_distance`.

    >>> Cosine()(torch.eye(2), 3 * torch.eye(2))
    tensor(0.)
    """

    unit_norm = True

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return cosine_distance(predictions, targets)


class L1(nn.Module):
    """Mean absolute difference over all B × E elements.

    >>> L1()(torch.zeros(2, 3), torch.ones(2, 3))
    tensor(1.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return F.l1_loss(*matched(predictions, targets))


class L2(nn.Module):
    """Mean over rows of the Euclidean norm of the difference; a row without difference has no gradient.

    >>> L2()(torch.zeros(2, 4), torch.ones(2, 4))
    tensor(2.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        predictions, targets = matched(predictions, targets)
        return torch.linalg.vector_norm(predictions - targets, dim=1).mean()


class MSE(nn.Module):
    """Mean squared difference over all B × E elements.

    >>> MSE()(torch.zeros(2, 3), torch.full((2, 3), 2.0))
    tensor(4.)
    """

    unit_norm = False

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return F.mse_loss(*matched(predictions, targets))


class SmoothL1(nn.Module):
    """Mean over all B × E elements of d² / (2 beta) where |d| < beta > 0, else |d| − beta / 2 (Huber, over beta).

    >>> SmoothL1(beta=1.0)(torch.zeros(1, 2), torch.tensor([[0.5, 2.0]]))
    tensor(0.8125)
    """

    unit_norm = False

    def __init__(self, beta: float = 1.0) -> None:
        super().__init__()
        if not beta > 0:
            raise InputError(f"beta must be > 0, got {beta}")
        self.beta = beta

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return F.smooth_l1_loss(*matched(predictions, targets), beta=self.beta)
