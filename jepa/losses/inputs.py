"""What every loss asks of its inputs (B rows of E dimensions): shapes that fit, and float32 at least."""

from __future__ import annotations

import torch
from torch import Tensor

from jepa.errors import InputError


def at_least_float32(name: str, values: Tensor) -> Tensor:
    """Floating-point `values` of any shape, half precision as float32; anything else raises `InputError`."""
    if not values.is_floating_point():
        raise InputError(f"{name} must be floating point, got {values.dtype}")
    return values.to(torch.promote_types(values.dtype, torch.float32))


def matrix(name: str, latents: Tensor) -> Tensor:
    """`latents` (B, E) with B, E >= 1, as `at_least_float32`."""
    if latents.ndim != 2 or 0 in latents.shape:
        raise InputError(f"{name} must be (B, E) with B, E >= 1, got {tuple(latents.shape)}")
    return at_least_float32(name, latents)


def matched(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `matrix`, of one shape, in the wider of their dtypes."""
    predictions, targets = matrix("predictions", predictions), matrix("targets", targets)
    if predictions.shape != targets.shape:
        shapes = f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
        raise InputError(f"predictions and targets must have the same shape, got {shapes}")
    dtype = torch.promote_types(predictions.dtype, targets.dtype)
    return predictions.to(dtype), targets.to(dtype)


def check_ids(ids: Tensor, count: int) -> None:
    """Raises `InputError` unless `ids` are `count` integers."""
    if ids.shape != (count,) or ids.is_floating_point():
        raise InputError(f"ids must be ({count},) integers, got {tuple(ids.shape)} {ids.dtype}")
