"""Bidirectional InfoNCE (van den Oord et al. 2018, arXiv 1807.03748; symmetric form of CLIP, arXiv 2103.00020)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError


def info_nce(
    predictions: Tensor,
    targets: Tensor,
    temperature: Tensor | float,
    ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
) -> Tensor:
    """Symmetric cross-entropy of each prediction against its target, the batch's other targets as negatives.

    VL-JEPA section 3.2. Pairs whose targets are the same text are not each other's negatives: they are left out of the
    denominator in both directions.

    Args:
        predictions: (B, E), L2-normalised.
        targets: (B, E), L2-normalised.
        temperature: softmax temperature, > 0.
        ids: (B,) integers, equal for equal target texts; None when all differ.
        negatives: (M, E), L2-normalised: further texts that predictions are told from. They have no predictions of
            their own, so that they count in the direction from predictions to targets only.
        negative_ids: (M,) integers like `ids`; needed with `negatives` if `ids` are given.

    Returns:
        Scalar: the mean of both directions.

    Raises:
        InputError: `ids` and `negatives` are given without `negative_ids`.
    """
    logits = predictions @ targets.T / temperature
    if ids is not None:
        same = (ids[:, None] == ids[None, :]) & ~torch.eye(len(ids), dtype=torch.bool, device=ids.device)
        logits = logits.masked_fill(same, -torch.inf)
    forth = logits
    if negatives is not None:
        extra = predictions @ negatives.T / temperature
        if ids is not None:
            if negative_ids is None:
                raise InputError("negative_ids must be given with negatives when ids are, got None")
            extra = extra.masked_fill(ids[:, None] == negative_ids[None, :], -torch.inf)
        forth = torch.cat([logits, extra], dim=1)
    rows = torch.arange(len(logits), device=logits.device)
    return 0.5 * (F.cross_entropy(forth, rows) + F.cross_entropy(logits.T, rows))


class InfoNCE(nn.Module):
    """`info_nce` with a learnable temperature, stored as its negative logarithm and kept in [`lowest`, 1].

    Negatives come from the local batch.

    Raises:
        InputError: unless 0 < lowest <= temperature <= 1.
    """

    def __init__(self, temperature: float = 0.07, lowest: float = 0.01) -> None:
        super().__init__()
        if not 0 < lowest <= temperature <= 1:
            raise InputError(f"temperature must be in [lowest, 1] with lowest > 0, got {temperature} (lowest {lowest})")
        self.limit = -math.log(lowest)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(temperature)))

    @property
    def temperature(self) -> Tensor:
        """The current temperature, a scalar."""
        return torch.exp(-self.log_scale.clamp(0.0, self.limit))

    def forward(
        self,
        predictions: Tensor,
        targets: Tensor,
        ids: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> Tensor:
        return info_nce(predictions, targets, self.temperature, ids, negatives, negative_ids)
