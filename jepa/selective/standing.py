"""The standing text, verified: the decoder says whether it still holds, in one pass, instead of writing anew."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from jepa.errors import InputError
from jepa.selective.cache import CacheEntry, LatentCache


class Verifier(Protocol):
    """Says how well a text fits a latent.

    >>> class Never:
    ...     def likelihood(self, latent, text):
    ...         return -9.0, 0
    >>> verifier: Verifier = Never()
    """

    def likelihood(self, latent: np.ndarray, text: str) -> tuple[float, int]:
        """Mean log-probability of the tokens of a text under a latent (E,), in nats, and the FLOPs of the pass."""
        ...


class StandingText(LatentCache):
    """A cache of one text, the last one decoded, which a `Verifier` asks the decoder for.

    A latent hits if the mean log-probability of the standing text's tokens under it is at least −`threshold`. It costs
    one pass over the whole text, where writing takes one a token; its FLOPs count as those of the look-up.

    Args:
        threshold: nats a token, on the negative log-probability; below 0 nothing hits.
        verifier: such as a `VLJEPA`.

    >>> class Echo:
    ...     def likelihood(self, latent, text):
    ...         return (0.0 if text == str(latent.argmax()) else -9.0), 10
    >>> from jepa.selective import Decoded
    >>> standing, latents = StandingText(0.5, Echo()), np.eye(2, dtype=np.float32)
    >>> entry, _ = standing.look_up(latents[0])
    >>> entry.decoded = Decoded("0", 1, 1)
    >>> [standing.look_up(latent)[1] for latent in latents], standing.flops
    ([True, False], 20)
    """

    reads_texts = True

    def __init__(self, threshold: float, verifier: Verifier) -> None:
        self.verifier = verifier
        super().__init__(threshold, capacity=1)

    def fresh(self, threshold: float | None = None) -> StandingText:
        return StandingText(self.threshold if threshold is None else threshold, self.verifier)

    def look_up(self, latent: np.ndarray, payload: object | None = None) -> tuple[CacheEntry, bool]:
        if len(latent) != (self.width or len(latent)):
            raise InputError(f"latents must have the width of the standing one, {self.width}, got {len(latent)}")
        standing = self._entries[0] if self._entries else None
        if standing is not None and standing.decoded is not None:
            score, flops = self.verifier.likelihood(latent, standing.decoded.text)
            self.flops += flops
            if score >= -self.threshold:
                return standing, True
        return self._add(latent / np.linalg.norm(latent)), False
