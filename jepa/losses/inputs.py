"""What every loss asks of its inputs: shapes that fit, and float32 at least.

B: rows of the batch; E: embedding dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.errors import InputError


def matrix(name: str, latents: Tensor) -> Tensor:
    """`latents` (B, E), half precision as float32.

    Raises:
        InputError: not floating point, or not (B, E) with B, E >= 1.
    """
    if latents.ndim != 2 or 0 in latents.shape:
        raise InputError(f"{name} must be (B, E) with B, E >= 1, got {tuple(latents.shape)}")
    return at_least_float32(name, latents)


def matched(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both (B, E) in the wider of their dtypes, half precision as float32.

    Raises:
        InputError: not floating point, not (B, E) with B, E >= 1, or of different shapes.
    """
    predictions, targets = matrix("predictions", predictions), matrix("targets", targets)
    if predictions.shape != targets.shape:
        raise InputError(
            "predictions and targets must have the same shape, "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    dtype = torch.promote_types(predictions.dtype, targets.dtype)
    return predictions.to(dtype), targets.to(dtype)


def at_least_float32(name: str, values: Tensor) -> Tensor:
    """`values` of any shape, half precision as float32.

    Raises:
        InputError: not floating point.
    """
    if not values.is_floating_point():
        raise InputError(f"{name} must be floating point, got {values.dtype}")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def check_ids(name: str, ids: Tensor, count: int) -> None:
    """Raises:
    InputError: `ids` are not `count` integers.
    """
    if ids.shape != (count,) or ids.is_floating_point():
        raise InputError(f"{name} must be ({count},) integers, got {tuple(ids.shape)} {ids.dtype}")
