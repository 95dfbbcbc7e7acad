"""What passes between policy, decoder and cache.

Dimension letters: E width of the latent space, N latents to decode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

Array = np.ndarray | torch.Tensor


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of the stream that is decoded once.

    Args:
        latent: (E,) float32 of unit norm, to be decoded; (0,) where the stream has no latents.
        time: the moment it stands for, in seconds.
        start: time of the first step covered, in seconds.
        end: time of the last step covered, in seconds.
        first: index of the first step covered.
        last: index of the last step covered (inclusive).
        payload: given with the last step covered, for decoder and cache; policies never see it.

    >>> Segment(np.array([1.0, 0.0], dtype=np.float32), time=0.5, start=0.0, end=1.0, first=0, last=2).end
    1.0
    """

    latent: np.ndarray
    time: float
    start: float
    end: float
    first: int
    last: int
    payload: object | None = None


@dataclass(frozen=True, slots=True)
class Decoded:
    """One decoded latent.

    Args:
        text: the text.
        tokens: tokens generated for it, the end token included.
        forward_passes: passes through the decoder's network, counted as if it were decoded alone; 0 where the text was
            found in a bank of captions.
        flops: floating-point operations, 0 where they are not counted.
        weight_bytes: bytes of weights read, as `PartCount` says, 0 where they are not counted.
        cache_bytes: bytes of cached keys and values read, 0 where they are not counted.
        source: who found it: "decoder", or "bank" for a bank of captions.

    >>> Decoded("a red circle", tokens=4, forward_passes=4).source
    'decoder'
    """

    text: str
    tokens: int
    forward_passes: int
    flops: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    source: str = "decoder"


@dataclass(frozen=True, slots=True)
class Emission:
    """A text that was emitted for a segment of the stream; all times in seconds.

    Args:
        text: the text.
        time: the moment it stands for.
        start: time of the first step it covers.
        end: time of the last step it covers.
        emitted_at: when the text can be known. This is the time of the step that closed the segment, or of the step
            that ended its wait for a batch, plus the latent delay.
        source: "cache" if the cache had the text, else as `Decoded.source`.

    >>> Emission("a red circle", time=0.5, start=0.0, end=1.0, emitted_at=2.0, source="decoder").text
    'a red circle'
    """

    text: str
    time: float
    start: float
    end: float
    emitted_at: float
    source: str


class Decoder(Protocol):
    """Turns latents into text. The text of a latent must not depend on the others in the call.

    >>> class Constant:
    ...     def decode(self, latents, payloads=None):
    ...         return [Decoded("something", tokens=2, forward_passes=2)] * len(latents)
    >>> decoder: Decoder = Constant()
    """

    def decode(self, latents: torch.Tensor, payloads: Sequence[object] | None = None) -> Sequence[Decoded]:
        """Decode N >= 1 segments.

        Args:
            latents: (N, E) float32 of unit norm on the CPU; (N, 0) where the stream has no latents.
            payloads: the segments' payloads; None if no step of theirs had one.

        Returns:
            N results in their order.
        """
        ...
