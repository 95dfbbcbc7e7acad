"""The error of a latent cache, and a threshold that keeps it low.

A look-up of the cache is wrong if it hits a latent whose text differs from the decoder's text of the latent looked up.
The error rate is the fraction of wrong look-ups among all look-ups: the emissions that the cache made wrong.

S streams, N_s latents looked up in stream s, E width of the latent space, R resamples.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from operator import ne
from typing import TypeAlias

import numpy as np
from scipy.special import betaincinv

from jepa.errors import InputError, check_finite
from jepa.metrics import resample
from jepa.selective.cache import LatentCache, half_square, unit
from jepa.selective.policies.base import Policy
from jepa.selective.types import Array, Decoded, Decoder, given_to

_CANDIDATES = 127  # thresholds to choose from; a power of two less one, so that bisection comes out even
_CONFIDENCE, _RESAMPLES = 0.95, 2000  # of the bound, one-sided; of the bootstrap
_ROUNDING = 1e-5  # of a product of unit latents in float32
_BLOCK = 1024  # latents compared at once with all before them

DecodedStream: TypeAlias = "tuple[Array, Sequence[str]] | CheckedStream"
Replayed = tuple[list[str], list[bool]]  # the text of each look-up, and whether it was a hit


@dataclass(frozen=True)
class ErrorRate:
    """How often the texts of a cache differed from the decoder's, with its 95 % interval.

    The interval is the wider, at either end, of Clopper and Pearson's and, of several streams, a bootstrap over them.

    >>> measured_error(np.array([1, 0]), np.array([6, 5]), np.array([10, 10])).value
    0.05
    """

    value: float  # wrong look-ups over look-ups
    low: float
    high: float
    wrong: int  # look-ups that hit a text other than the decoder's
    hits: int
    lookups: int


@dataclass(frozen=True)
class Calibration:
    """The threshold that `calibrate_threshold` chose, and the error measured there.

    >>> stream = np.eye(2, dtype=np.float32)[[0, 1] * 50], ["a", "b"] * 50  # equal latents, equal texts
    >>> found = calibrate_threshold([stream, stream], error_rate=0.1, capacity=8)
    >>> found.bound <= 0.1, found.measured.hits, found.measured.wrong
    (True, 196, 0)
    """

    threshold: float  # −1, at which nothing hits, if no candidate was good enough
    bound: float  # upper confidence bound of the error at `threshold`
    measured: ErrorRate  # at `threshold`, on the calibration streams


def decode_segments(
    policy: Policy, decoder: Decoder, streams: Sequence[tuple[np.ndarray, np.ndarray]], *, batch_size: int = 512
) -> list[tuple[np.ndarray, list[str]]]:
    """Every segment of recorded streams with the decoder's text, to calibrate a cache on.

    Streams are unit latents (T, E) float32 and times (T,) float64. Each gives the latents (N_s, E) of its segments, in
    the order they are decoded in, and their texts. The decoder gets at most `batch_size` latents in one call.
    """
    chosen = [[segment.latent for segment, _ in policy.run(*stream)] for stream in streams]
    texts = iter(texts_of([latent for latents in chosen for latent in latents], decoder, batch_size))
    return [(np.stack(latents), list(islice(texts, len(latents)))) for latents in chosen]


def texts_of(latents: Sequence[np.ndarray], decoder: Decoder, batch_size: int = 512) -> list[str]:
    """The decoder's texts of latents (E,), at most `batch_size` in one call."""
    texts = list[str]()
    for first in range(0, len(latents), batch_size):
        batch = given_to(decoder, np.stack(latents[first : first + batch_size]))
        texts += [result.text for result in decoder.decode(batch)]
    return texts


class CachedDecoder:
    """Decodes equal latents once, for sweeps: a ledger should count the decoder's own calls.

    >>> class Word:
    ...     takes_arrays = True
    ...     def decode(self, latents):
    ...         return [Decoded("red", 1, 1)] * len(latents)
    >>> CachedDecoder(Word()).decode(np.ones((2, 4)))[1].text
    'red'
    """

    takes_arrays = True

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self._cached = decoder, dict[int, Decoded]()  # by 64 bits of hash of a latent's bytes

    def decode(self, latents: np.ndarray, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Results for latents (N, E), in their order."""
        keys = [hash(row.tobytes()) for row in latents]
        new = {key: row for row, key in enumerate(keys) if key not in self._cached}
        if new:
            rows = given_to(self.decoder, latents[list(new.values())])
            self._cached.update(zip(new, self.decoder.decode(rows), strict=True))
        return [self._cached[key] for key in keys]


def measured_error(
    wrong: np.ndarray, hits: np.ndarray, lookups: np.ndarray, weights: np.ndarray | None = None
) -> ErrorRate:
    """The error rate of a cache whose wrong look-ups, hits and look-ups were counted on each stream: (S,) each.

    `weights` (R, S) say how often each resample draws each stream; by default there are 2000 resamples.
    """
    if weights is None:
        weights = resample(len(lookups), _RESAMPLES, seed=0) if len(lookups) > 1 else np.ones((1, 1))
    count, total = int(wrong.sum()), int(lookups.sum())
    exact = 1 - _at_most(total - count, total, 0.975), _at_most(count, total, 0.975)
    low, high = np.quantile((weights @ wrong) / (weights @ lookups), (0.025, 0.975))
    interval = float(min(exact[0], low)), float(max(exact[1], high))
    return ErrorRate(count / total, *interval, count, int(hits.sum()), total)


def calibrate_threshold(
    streams: Sequence[DecodedStream], error_rate: float, *, capacity: int, shared: bool = False, seed: int = 0
) -> Calibration:
    """Find the largest threshold of a cache whose error on held-out streams is low enough with 95 % confidence.

    The streams are replayed through a `LatentCache`. The upper confidence bound of its error must be at most
    `error_rate`: the larger of Clopper and Pearson's (Biometrika 1934), which alone is too low, since look-ups of one
    stream are not independent, and the percentile bootstrap over streams (Efron & Tibshirani 1993, chapter 13), which
    alone is 0 where no error was seen. It holds for streams drawn as these were, and not for a single text: errors
    gather where different meanings are close together (vCache, arXiv 2502.03771).

    Candidates are 0 and quantiles of the distance from each latent to the nearest one before it. Bisection finds the
    largest good one if the bound grows with the threshold; else the one found is good, but a larger one may be, too.

    Args:
        streams: at least 2, each its latents (N_s, E) in order and the decoder's texts of them: see `decode_segments`.
        error_rate: in (0, 1), wrong look-ups over look-ups.
        capacity: of the cache.
        shared: whether the streams share the cache, in their order: a dependence that the bootstrap does not see.
        seed: of the bootstrap.

    Raises:
        InputError: streams that are too few, of different widths for a shared cache, without a text for each latent or
            with latents that are not finite, or an option out of range.
    """

    def distances(latents: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([_nearest_before(z) for z in ([np.concatenate(latents)] if shared else latents)])

    return calibrate_cache(LatentCache(-1.0, capacity, shared=shared), streams, error_rate, distances, seed=seed)


def calibrate_cache(
    cache: LatentCache,
    streams: Sequence[DecodedStream],
    error_rate: float,
    distances: Callable[[Sequence[np.ndarray]], np.ndarray],
    *,
    seed: int,
) -> Calibration:
    """`calibrate_threshold` for any cache, whose settings but for the threshold are used; it is left as it is.

    `distances` gives for the unit latents (N_s, E) of each stream the distances 1 − cos whose quantiles are tried.
    """
    if not 0 < check_finite("error_rate", error_rate) < 1:
        raise InputError(f"error_rate must be in (0, 1), got {error_rate}")
    checked = checked_streams(streams, cache.shared)
    if len(checked) < 2:
        raise InputError(f"streams must be at least 2 for a bootstrap over streams, got {len(checked)}")
    weights = resample(len(checked), _RESAMPLES, seed)
    own = [stream.texts for stream in checked]
    lookups = np.array([*map(len, own)])

    @functools.cache
    def measure(threshold: float) -> Calibration:
        wrong, hits = errors(own, replay(cache.fresh(threshold), checked))
        drawn = (weights @ wrong) / (weights @ lookups)
        exact = _at_most(int(wrong.sum()), int(lookups.sum()), _CONFIDENCE)
        bound = max(exact, np.quantile(drawn, _CONFIDENCE))
        return Calibration(threshold, float(bound), measured_error(wrong, hits, lookups, weights))

    units = [stream.latents / np.linalg.norm(stream.latents, axis=1, keepdims=True) for stream in checked]
    found = distances(units)
    quantiles = np.quantile(found, np.linspace(0, 1, _CANDIDATES)) if len(found) else []
    candidates: list[float] = np.unique([0.0, *np.clip(quantiles, 0, None)]).tolist()
    good = bisect_right(candidates, error_rate, key=lambda threshold: measure(threshold).bound)
    return measure(candidates[good - 1] if good else -1.0)


@dataclass(frozen=True, eq=False)
class CheckedStream:
    """A decoded stream whose latents (N, E) are float32, finite and not zero.

    >>> (stream,) = checked_streams([(np.eye(2), ["a", "b"])], shared=False)
    >>> replay(LatentCache(0.1, capacity=8), [stream])
    [(['a', 'b'], [False, False])]
    """

    latents: np.ndarray
    texts: list[str]

    @functools.cached_property
    def pairs(self) -> _Pairs:
        """The latents compared, once for all who have the stream."""
        return _Pairs(self.latents)


def checked_streams(streams: Sequence[DecodedStream], shared: bool) -> list[CheckedStream]:
    """Decoded streams, checked unless they are; `InputError` names the stream that is none."""
    if not streams:
        raise InputError("streams must hold at least one stream, got none")
    checked: list[CheckedStream] = []
    for number, stream in enumerate(streams):
        latents, texts = (stream.latents, stream.texts) if isinstance(stream, CheckedStream) else stream
        rows = np.asarray(latents)
        if rows.ndim != 2 or rows.shape[0] != len(texts) or not len(texts):
            rule = "latents must have the shape (N, E) with a text each and N >= 1"
            raise InputError(f"stream {number}: {rule}, got {rows.shape} and {len(texts)} texts")
        if shared and checked and rows.shape[1] != (width := checked[0].latents.shape[1]):
            raise InputError(f"stream {number}: latents must have the width {width} of others, got {rows.shape[1]}")
        if isinstance(stream, CheckedStream):
            checked.append(stream)
            continue
        rows = rows.astype(np.float32)
        norms = np.sqrt(np.vecdot(rows, rows))
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise InputError(f"stream {number}: latents must be finite and not zero, got one of norm {norms.min()}")
        checked.append(CheckedStream(rows, list(texts)))
    return checked


def _at_most(count: int, total: int, confidence: float) -> float:
    """Clopper and Pearson's upper bound of a fraction of which `count` in `total` were seen."""
    return float(betaincinv(count + 1, total - count, confidence)) if count < total else 1.0


def errors(texts: Sequence[Sequence[str]], replayed: Sequence[Replayed]) -> tuple[np.ndarray, np.ndarray]:
    """The look-ups whose text is not the decoder's own, and the hits, of each stream: (S,) each."""
    wrong = [sum(map(ne, own, found)) for own, (found, _) in zip(texts, replayed, strict=True)]
    return np.array(wrong), np.array([sum(hits) for _, hits in replayed])


def replay(cache: LatentCache, streams: Sequence[DecodedStream]) -> list[Replayed]:
    """What an empty copy of a cache answers where decoded streams look their latents up, one stream after the other.

    >>> stream = np.eye(2, dtype=np.float32)[[0, 1, 1]], ["a", "b", "c"]
    >>> replay(LatentCache(0.1, capacity=8), [stream])
    [(['a', 'b', 'b'], [False, False, True])]
    """
    cache, answer = cache.fresh(), _looked_up if cache.shared or type(cache) is not LatentCache else _numbered
    return [answer(cache, stream) for stream in checked_streams(streams, cache.shared)]


def _numbered(cache: LatentCache, stream: CheckedStream) -> Replayed:
    """Of a plain cache that keeps no key between streams: the numbers of `pairs` will do."""
    keys = stream.pairs.answers(cache.threshold, cache.capacity)
    return [stream.texts[key] for key in keys], [key != number for number, key in enumerate(keys)]


def _looked_up(cache: LatentCache, stream: CheckedStream) -> Replayed:
    texts, hits = list[str](), list[bool]()
    cache.start()
    for latent, text in zip(stream.latents, stream.texts, strict=True):
        entry, hit = cache.look_up(latent)
        if entry.decoded is None:
            entry.decoded = Decoded(text, tokens=0, forward_passes=0)
        texts.append(entry.decoded.text)
        hits.append(hit)
    return texts, hits


class _Pairs:
    """The latents (N, E) of a stream, each two compared once, to the digits of a `LatentCache`."""

    def __init__(self, latents: np.ndarray) -> None:
        self._keys = np.array([unit(latent) for latent in latents])
        self._products = [np.vecdot(self._keys[:i], self._keys[i]) for i in range(len(latents))]
        self._nearest = [-1, *(int(products.argmax()) for products in self._products[1:])]  # before each
        self._distances: dict[tuple[int, int], float] = {}

    def _distance(self, one: int, other: int) -> float:
        if (one, other) not in self._distances:
            self._distances[one, other] = half_square(self._keys[one] - self._keys[other])
        return self._distances[one, other]

    def answers(self, threshold: float, capacity: int) -> list[int]:
        """(N,) the latent whose text each gets that is looked up in turn, itself where it is a miss: by number."""
        if threshold < 0 or capacity == 0:
            return list(range(len(self._keys)))
        slots = np.zeros(capacity, dtype=np.int64)  # the keys held, where a `LatentCache` holds them
        used: dict[int, None] = {}  # the same, the one used longest ago first
        found: list[int] = []
        for number, key in enumerate(self._nearest):
            hit = bool(used) and self._distance(key, number) <= threshold + _ROUNDING
            if hit:
                if key not in used:
                    held = slots[: len(used)]
                    key = int(held[self._products[number][held].argmax()])
                hit = self._distance(key, number) <= threshold
            if hit:
                used.pop(key)
            else:
                slot, key = len(used), number
                if slot == capacity:
                    oldest = next(iter(used))
                    slot = int(np.argmax(slots == oldest))
                    used.pop(oldest)
                slots[slot] = key
            used[key] = None
            found.append(key)
        return found


def _nearest_before(latents: np.ndarray) -> np.ndarray:
    """(N − 1,) 1 − cos of each of the unit latents (N, E) but the first to the nearest before it."""
    distances = []
    for first in range(0, len(latents), _BLOCK):
        cosines = latents[first : first + _BLOCK] @ latents[: first + _BLOCK].T
        later = np.arange(cosines.shape[1]) >= np.arange(first, first + len(cosines))[:, None]
        cosines[later] = -math.inf
        distances.append(1 - cosines.max(axis=1))
    return np.concatenate(distances)[1:]
