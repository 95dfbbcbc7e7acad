"""Pairwise sigmoid loss (Zhai et al. 2023, "Sigmoid Loss for Language Image Pre-Training", arXiv 2303.15343)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.losses.gather import GlobalBatch
from jepa.losses.inputs import check_ids, matched


def siglip(
    predictions: Tensor,
    targets: Tensor,
    scale: Tensor | float,
    bias: Tensor | float,
    ids: Tensor | None = None,
    gather: bool = False,
) -> Tensor:
    """Each pair of a prediction and a target is told apart on its own: its own target, or another's.

    −1/B Σ_i Σ_j log σ(z_ij (scale · p_i·t_j + bias)), with z_ij = 1 for i = j, else −1 (section 3.2); a scalar. Where
    the paper has a −1 for every i ≠ j, pairs of different rows whose targets are the same text are left out here.

    `scale` > 0 is the inverse temperature; `bias` is negative, since most pairs are. Predictions and targets (B, E),
    `ids` (B,) and `gather` are as in `info_nce`, and anything else raises `InputError`. In float32 at least.

    >>> siglip(torch.eye(4), torch.eye(4), scale=10.0, bias=-10.0)
    tensor(0.6933)
    """
    predictions, targets = matched(predictions, targets)
    if ids is not None:
        check_ids(ids, len(targets))
    batch = GlobalBatch.around(predictions, gather)
    own = batch.own(targets.device)[:, None] == torch.arange(batch.total, device=targets.device)
    with torch.autocast(predictions.device.type, enabled=False):
        logits = predictions @ batch.gather(targets).T * scale + bias
    costs = -F.logsigmoid(torch.where(own, logits, -logits))
    if ids is not None:
        costs = costs.masked_fill((ids[:, None] == batch.gather(ids)[None, :]) & ~own, 0.0)
    return batch.weight * costs.sum(dim=1).mean()


class SigLIP(nn.Module):
    """`siglip` with a learnable scale > 0, stored as its logarithm, and a learnable bias; negatives from all ranks.

    The paper starts from scale 10 and bias −10.

    >>> round(SigLIP()(torch.eye(4), torch.eye(4)).item(), 4)
    0.6933
    """

    unit_norm = True

    def __init__(self, scale: float = 10.0, bias: float = -10.0, gather: bool = True) -> None:
        super().__init__()
        if not scale > 0:
            raise InputError(f"scale must be > 0, got {scale}")
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale)))
        self.bias = nn.Parameter(torch.tensor(float(bias)))
        self.gather = gather

    def forward(self, predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
        return siglip(predictions, targets, self.log_scale.exp(), self.bias, ids, self.gather)
