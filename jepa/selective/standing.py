"""The standing text, verified: the decoder says whether it still holds, in one pass, instead of writing anew."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from jepa.errors import InputError
from jepa.selective.cache import CacheEntry, LatentCache
from jepa.selective.calibration import DecodedStream, calibrate_cache, checked_streams


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
    one pass over the whole text, of about the FLOPs of writing it: these count as those of the look-up.

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


def calibrate_standing(
    standing: StandingText, streams: Sequence[DecodedStream], error_rate: float, *, seed: int = 0
) -> StandingText:
    """At the largest threshold whose error on held-out streams is low enough with confidence.

    As `calibrate_threshold`. Thresholds to choose from: how unlikely each text is under the latent after its own.
    """

    def doubts(latents: Sequence[np.ndarray]) -> np.ndarray:
        told = [(z[1:], stream.texts[:-1]) for z, stream in zip(latents, checked_streams(streams, False), strict=True)]
        pairs = [pair for z, texts in told for pair in zip(z, texts, strict=True)]
        return np.array([-standing.verifier.likelihood(latent, text)[0] for latent, text in pairs])

    return standing.fresh(calibrate_cache(standing, streams, error_rate, doubts, seed=seed).threshold)
