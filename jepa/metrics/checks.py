"""What metrics ask of their input: each check raises `InputError` with the name of the argument."""

from __future__ import annotations

from collections.abc import Sized

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from jepa.errors import InputError


def equally_many(**named: Sized) -> None:
    """Refuses sequences of different lengths, and a string where a sequence of strings belongs."""
    for name, values in named.items():
        if isinstance(values, str):
            raise InputError(f"{name} must be a sequence of strings, got the string {values[:80]!r}")
    lengths = [len(values) for values in named.values()]
    if len(set(lengths)) > 1:
        raise InputError(f"{' and '.join(named)} must be equally many, got {' and '.join(map(str, lengths))}")


def finite_array(name: str, values: ArrayLike) -> np.ndarray:
    """Finite (N,) float64."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise InputError(f"{name} must be one-dimensional, got shape {array.shape}")
    if not np.isfinite(array).all():
        index = int(np.flatnonzero(~np.isfinite(array))[0])
        raise InputError(f"{name} must be finite, got {array[index]} at index {index}")
    return array


def matrix(name: str, latents: Tensor) -> Tensor:
    """Finite floating-point `latents` (N, E) with N, E >= 1, half precision as float32."""
    if latents.ndim != 2 or 0 in latents.shape or not latents.is_floating_point():
        raise InputError(f"{name} must be floating-point (N, E), N, E >= 1, got {latents.dtype} {tuple(latents.shape)}")
    if not latents.isfinite().all():
        raise InputError(f"{name} must be finite, got a NaN or an infinity")
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def matched(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Both as `matrix`, of one shape."""
    predictions, targets = matrix("predictions", predictions), matrix("targets", targets)
    if predictions.shape != targets.shape:
        shapes = f"{tuple(predictions.shape)} and {tuple(targets.shape)}"
        raise InputError(f"predictions and targets must have the same shape, got {shapes}")
    return predictions, targets


def integers(name: str, values: Tensor, count: int) -> Tensor:
    """(count,) integers, as int64."""
    if values.shape != (count,) or values.is_floating_point():
        raise InputError(f"{name} must be ({count},) integers, got {tuple(values.shape)} {values.dtype}")
    return values.long()
