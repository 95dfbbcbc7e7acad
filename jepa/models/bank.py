"""A caption bank in front of a decoder, or in place of one. S streams, N latents, E dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from jepa.decoders.bank import CaptionBank
from jepa.errors import InputError, check_int
from jepa.selective import CacheEntry, Calibration, Decoded, LatentCache, calibrate_cache
from jepa.selective.calibration import DecodedStream, checked_streams


class BankCache(LatentCache):
    """A caption bank as the cache of a `SelectiveDecoder`: full from the start, it takes up nothing more.

    A latent whose cosine to the nearest caption is at least the bank's margin gets that caption; the others go to the
    decoder. All streams share the bank. `threshold`, on 1 − cos, is 1 − margin.

    >>> cache = BankCache(CaptionBank(["a dog", "a cat"], torch.eye(2), margin=0.9))
    >>> entry, hit = cache.look_up(np.array([0.0, 1.0], dtype=np.float32))
    >>> hit, entry.decoded.text
    (True, 'a cat')
    """

    def __init__(self, bank: CaptionBank) -> None:
        self.bank = bank
        super().__init__(1 - bank.margin, len(bank.texts), shared=True)

    def fresh(self, threshold: float | None = None) -> BankCache:
        margin = self.bank.margin if threshold is None else 1 - threshold
        return BankCache(CaptionBank(self.bank.texts, self.bank.embeddings, margin=margin))

    def clear(self) -> None:
        """Back to the captions of the bank."""
        super().clear()
        for text, embedding in zip(self.bank.texts, self.bank.embeddings.cpu().numpy(), strict=True):
            entry = super()._add(embedding / np.linalg.norm(embedding))
            entry.decoded = Decoded(text, tokens=0, forward_passes=0, source="bank")

    def _add(self, key: np.ndarray) -> CacheEntry:
        return CacheEntry()


class BankDecoder:
    """Decodes by looking up: every latent gets its nearest caption, and each counts as a decoder call.

    An answer takes no token and no forward pass; it costs `bank.flops` and reads the whole bank. Raises `InputError`
    unless the bank's margin is −1: what leaves some latents to a decoder is a `BankCache`.

    >>> [found.text for found in BankDecoder(CaptionBank(["a dog", "a cat"], torch.eye(2))).decode(torch.eye(2)[1:])]
    ['a cat']
    """

    def __init__(self, bank: CaptionBank) -> None:
        if bank.margin > -1:
            raise InputError(f"a bank that is the decoder must have the margin -1, got {bank.margin}")
        self.bank = bank

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Decode latents (N, E), float32 of unit norm; N results in their order."""
        flops, read = self.bank.flops, self.bank.embeddings.nbytes
        indices, _ = self.bank.nearest(latents)
        return [Decoded(self.bank.texts[index], 0, 0, flops, read, source="bank") for index in indices.tolist()]


def caption_bank(streams: Sequence[DecodedStream], capacity: int) -> CaptionBank:
    """The `capacity` texts decoded most often, the earlier of equals, each at the renormalised mean of its latents.

    A stream has latents (N_s, E) and the decoder's texts of them: see `decode_segments`.
    """
    check_int("capacity", capacity, 1)
    checked = checked_streams(streams, shared=True)
    texts = np.array([text for stream in checked for text in stream.texts], dtype=object)
    rows = [stream.latents for stream in checked]
    latents = np.concatenate([each / np.linalg.norm(each, axis=1, keepdims=True) for each in rows])
    kept = [text for text, _ in Counter(texts.tolist()).most_common(capacity)]
    sums = torch.from_numpy(np.stack([latents[texts == text].sum(axis=0, dtype=np.float64) for text in kept]))
    return CaptionBank(kept, torch.nn.functional.normalize(sums, dim=1).float())


def calibrate_margin(
    bank: CaptionBank, streams: Sequence[DecodedStream], error_rate: float, *, seed: int = 0
) -> Calibration:
    """Find the lowest margin of a bank whose error on held-out streams is at most `error_rate` with confidence.

    Error and bound are those of `jepa.selective.calibrate_threshold`, with the distance to the nearest caption. The
    `threshold` found is 1 − margin, for `BankCache.fresh`; −1, where nothing hits, if no margin is good enough.
    """

    def distances(latents: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([1 - bank.nearest(torch.from_numpy(rows))[1].cpu().double().numpy() for rows in latents])

    return calibrate_cache(BankCache(bank), streams, error_rate, distances, seed=seed)


def fill_bank(
    streams: Sequence[DecodedStream], error_rate: float, *, capacity: int, seed: int = 0
) -> tuple[BankCache, Calibration]:
    """A bank filled from every second of at least 4 streams, the first included; the others calibrate its margin."""
    if len(streams) < 4:
        raise InputError(f"streams must be at least 4 to fill a bank and calibrate its margin, got {len(streams)}")
    checked = checked_streams(streams, shared=True)
    bank = caption_bank(checked[::2], capacity)
    calibration = calibrate_margin(bank, checked[1::2], error_rate, seed=seed)
    return BankCache(bank).fresh(calibration.threshold), calibration
