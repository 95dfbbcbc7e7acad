"""What passes between policy, decoder and cache. Times are seconds.

Dimension letters: E width of the latent space, N latents to decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from jepa.errors import InputError

if TYPE_CHECKING:
    import torch

Array: TypeAlias = "np.ndarray | torch.Tensor"


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the stream that is decoded once.

    >>> Segment(np.array([1.0, 0.0], dtype=np.float32), time=0.5, start=0.0, end=1.0, first=0, last=2).end
    1.0
    """

    latent: np.ndarray  # (E,) float32 of unit norm, to be decoded; (0,) where the stream has no latents
    time: float  # the moment it stands for
    start: float  # time of the first step covered
    end: float  # time of the last step covered
    first: int  # index of the first step covered
    last: int  # index of the last step covered, inclusive
    predictions: int = 0  # calls of the Predictor for it alone: see `OnDemand`
    payload: object | None = None  # given with the last step covered, for decoder and cache; policies never see it


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded latent, and what it cost; FLOPs and bytes are 0 where nobody counts them (see `PartCount`).

    >>> Decoded("a red circle", tokens=4, forward_passes=4).source
    'decoder'
    """

    text: str
    tokens: int  # generated, the end token included
    forward_passes: int  # as if it were decoded alone; 0 where the text was found in a bank of captions
    flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    source: str = "decoder"  # or "bank"


@dataclass(frozen=True, slots=True)
class Emission:
    """A text that was emitted for a segment of the stream.

    >>> Emission("a red circle", time=0.5, start=0.0, end=1.0, emitted_at=2.0, source="decoder").text
    'a red circle'
    """

    text: str
    time: float  # the moment it stands for
    start: float  # time of the first step it covers
    end: float  # time of the last step it covers
    emitted_at: float  # when it can be known: the step that closed the segment or its batch, plus the latent delay
    source: str  # "cache", else as `Decoded.source`


class Decoder(Protocol):
    """Turns latents into text. The text of a latent must not depend on the others in the call.

    It gets tensors, or arrays if it has `takes_arrays = True`: then nothing here imports torch.

    >>> class Constant:
    ...     def decode(self, latents, payloads=None):
    ...         return [Decoded("something", tokens=2, forward_passes=2)] * len(latents)
    >>> decoder: Decoder = Constant()
    """

    def decode(self, latents: Any, payloads: Sequence[object] | None = None) -> Sequence[Decoded]:
        """N results, in order, of N >= 1 segments: latents (N, E) of unit norm on the CPU, E = 0 where there are none.

        `payloads` are the segments'; None if no step of theirs had one.
        """
        ...


def given_to(decoder: Decoder, latents: np.ndarray) -> Array:
    """Latents (N, E) as the decoder takes them: see `Decoder`.

    Raises:
        InputError: it takes tensors, and torch is not installed.
    """
    if getattr(decoder, "takes_arrays", False):
        return latents
    try:
        import torch
    except ModuleNotFoundError:
        name = type(decoder).__name__
        raise InputError(f"without torch a decoder must take arrays (takes_arrays = True), got a {name}") from None
    return torch.from_numpy(latents)
