"""The error of a latent cache, and a threshold that keeps it low.

A look-up of the cache is wrong if it hits a latent whose text differs from the decoder's text of the latent looked up.
The error rate is the fraction of wrong look-ups among all look-ups: the emissions that the cache made wrong.

Dimension letters: S streams, N_s latents looked up in stream s, E width of the latent space, R resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import binomtest

from jepa.errors import InputError, check_finite, check_int
from jepa.metrics import resample
from jepa.selective.cache import LatentCache
from jepa.selective.policies.base import Policy
from jepa.selective.types import Array, Decoded, Decoder

_CANDIDATES = 127  # thresholds to choose from; a power of two less one, so that bisection comes out even
_BLOCK = 1024  # latents compared at once with all before them

DecodedStream = tuple[Array, Sequence[str]]


@dataclass(frozen=True)
class ErrorRate:
    """How often the texts of a cache differed from the decoder's.

    Args:
        value: wrong look-ups over look-ups.
        low: lower end of the 95 % interval of `value`. The interval is the wider, at either end, of Clopper and
            Pearson's (Biometrika 1934), which takes look-ups for independent, and a bootstrap over streams, which sees
            no error beyond those observed. Of a single stream it is the first alone.
        high: upper end.
        wrong: look-ups that hit a text other than the decoder's.
        hits: look-ups that hit.
        lookups: latents looked up.

    >>> measured_error(np.array([1, 0]), np.array([6, 5]), np.array([10, 10])).value
    0.05
    """

    value: float
    low: float
    high: float
    wrong: int
    hits: int
    lookups: int


@dataclass(frozen=True)
class Calibration:
    """The threshold that `calibrate_threshold` chose, and the error measured there.

    Args:
        threshold: for `LatentCache`; −1, at which nothing hits, if no candidate was good enough.
        error_rate: the error rate asked for.
        bound: upper confidence bound of the error at `threshold`, at most `error_rate`.
        measured: the error at `threshold` on the calibration streams.

    >>> stream = np.eye(2, dtype=np.float32)[[0, 1] * 50], ["a", "b"] * 50  # equal latents, equal texts
    >>> found = calibrate_threshold([stream, stream], error_rate=0.1, capacity=8)
    >>> found.bound <= 0.1, found.measured.hits, found.measured.wrong
    (True, 196, 0)
    """

    threshold: float
    error_rate: float
    bound: float
    measured: ErrorRate


def decode_segments(
    policy: Policy, decoder: Decoder, streams: Sequence[tuple[np.ndarray, np.ndarray]], *, batch_size: int = 256
) -> list[tuple[np.ndarray, list[str]]]:
    """Every segment of recorded streams with the decoder's text, to calibrate a cache on.

    Args:
        policy: segments the streams.
        decoder: decodes every segment.
        streams: latents (T, E), unit float32, and times (T,), float64 seconds, of each stream.
        batch_size: most latents in one call of the decoder.

    Returns:
        For each stream the latents (N_s, E) in the order they are decoded in, and their texts.
    """
    chosen = [np.stack([segment.latent for segment, _ in policy.run(*stream)]) for stream in streams]
    decoded = []
    for latents in chosen:
        for batch in torch.from_numpy(latents).split(batch_size):
            decoded += [result.text for result in decoder.decode(batch)]
    ends = np.cumsum([len(latents) for latents in chosen]).tolist()
    return [(latents, decoded[end - len(latents) : end]) for latents, end in zip(chosen, ends, strict=True)]


def measured_error(wrong: np.ndarray, hits: np.ndarray, lookups: np.ndarray) -> ErrorRate:
    """The error rate of a cache whose wrong look-ups, hits and look-ups were counted on each stream: (S,) each."""
    weights = resample(len(lookups), 2000, seed=0) if len(lookups) > 1 else np.ones((1, 1))
    return _error_rate(wrong, hits, lookups, (weights @ wrong) / (weights @ lookups))


def calibrate_threshold(
    streams: Sequence[DecodedStream],
    error_rate: float,
    *,
    capacity: int,
    shared: bool = False,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Calibration:
    """Find the largest threshold of a cache whose error on held-out streams is low enough with confidence.

    The upper confidence bound of the error must be at most `error_rate`. The bound is the larger of two: Clopper and
    Pearson's (Biometrika 1934), which alone is too low, since look-ups of one stream are not independent; and the
    percentile bootstrap over streams (Efron & Tibshirani 1993, chapter 13), which alone is 0 where no error was seen.
    The error at a threshold is measured by a replay of the streams through a `LatentCache`.

    Candidates are 0 and quantiles of the distance from each latent to the nearest one before it. They are bisected,
    which finds the largest good one if the bound grows with the threshold. Where it does not, the threshold found
    still has the bound, but a larger one may have it too.

    The bound holds for streams drawn as these were. One threshold for all latents gives no guarantee on other streams,
    nor for a single text: errors gather where different meanings are close together (vCache, arXiv 2502.03771).

    Args:
        streams: at least 2: for each its latents (N_s, E) in order and the decoder's texts of them, see
            `decode_segments`.
        error_rate: in (0, 1), wrong look-ups over look-ups.
        capacity: of the cache.
        shared: whether the cache is shared by the streams, in the order given. Streams then depend on those before,
            which the bootstrap does not see.
        confidence: of the bound, one-sided, in (0, 1).
        resamples: R of the bootstrap.
        seed: of the bootstrap.

    Raises:
        InputError: fewer than 2 streams, a stream without one text a latent or with latents that are not finite,
            streams of different widths for a shared cache, or an option out of range.
    """

    def distances(latents: Sequence[np.ndarray]) -> np.ndarray:
        return np.concatenate([_nearest_before(z) for z in ([np.concatenate(latents)] if shared else latents)])

    cache = LatentCache(-1.0, capacity, shared=shared)
    return calibrate_cache(cache, streams, error_rate, distances, confidence=confidence, resamples=resamples, seed=seed)


def calibrate_cache(
    cache: LatentCache,
    streams: Sequence[DecodedStream],
    error_rate: float,
    distances: Callable[[Sequence[np.ndarray]], np.ndarray],
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> Calibration:
    """`calibrate_threshold` for any cache; the other arguments and the errors are those of `calibrate_threshold`.

    Args:
        cache: its settings, but for the threshold, are used; it is left as it is.
        distances: gives for the unit latents (N_s, E) of each stream the distances 1 − cos whose quantiles are tried.
    """
    for name, fraction in (("error_rate", error_rate), ("confidence", confidence)):
        if not 0 < check_finite(name, fraction) < 1:
            raise InputError(f"{name} must be in (0, 1), got {fraction}")
    check_int("resamples", resamples, 1)
    checked = checked_streams(streams, cache.shared)
    if len(checked) < 2:
        raise InputError(f"streams must be at least 2 for a bootstrap over streams, got {len(checked)}")
    weights = resample(len(checked), resamples, seed)

    def measure(threshold: float) -> Calibration:
        wrong, hits, lookups = _replay(cache.fresh(threshold), checked)
        drawn = (weights @ wrong) / (weights @ lookups)
        exact = binomtest(int(wrong.sum()), int(lookups.sum()), alternative="less")
        bound = max(exact.proportion_ci(confidence, method="exact").high, np.quantile(drawn, confidence))
        return Calibration(threshold, error_rate, float(bound), _error_rate(wrong, hits, lookups, drawn))

    found = distances([latents / np.linalg.norm(latents, axis=1, keepdims=True) for latents, _ in checked])
    quantiles = np.quantile(found, np.linspace(0, 1, _CANDIDATES)) if len(found) else []
    candidates: list[float] = np.unique([0.0, *np.clip(quantiles, 0, None)]).tolist()
    best = measure(-1.0)
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        tried = measure(candidates[middle])
        if tried.bound <= error_rate:
            best, low = tried, middle + 1
        else:
            high = middle
    return best


def checked_streams(streams: Sequence[DecodedStream], shared: bool) -> list[tuple[np.ndarray, list[str]]]:
    """Decoded streams as latents (N_s, E) float32 and their texts; of one width where they share a cache.

    Raises:
        InputError: as `calibrate_threshold`, naming the stream by its number.
    """
    if not streams:
        raise InputError("streams must hold at least one stream, got none")
    checked: list[tuple[np.ndarray, list[str]]] = []
    for number, (latents, texts) in enumerate(streams):
        rows = latents.detach().cpu().numpy() if isinstance(latents, torch.Tensor) else np.asarray(latents)
        if rows.ndim != 2 or rows.shape[0] != len(texts) or not len(texts):
            raise InputError(
                f"stream {number}: latents must have the shape (N, E) with a text each and N >= 1, "
                f"got {rows.shape} and {len(texts)} texts"
            )
        if shared and checked and rows.shape[1] != (width := checked[0][0].shape[1]):
            raise InputError(
                f"stream {number}: latents must have the width of those before, {width}, got {rows.shape[1]}"
            )
        rows = rows.astype(np.float32)
        norms = np.linalg.norm(rows, axis=1)
        if not (np.isfinite(norms) & (norms > 0)).all():
            raise InputError(f"stream {number}: latents must be finite and not zero, got one of norm {norms.min()}")
        checked.append((rows, list(texts)))
    return checked


def _replay(
    cache: LatentCache, streams: Sequence[tuple[np.ndarray, list[str]]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wrong look-ups, hits and look-ups of each stream, through a fresh cache: (S,) each."""
    wrong, hits = np.zeros((2, len(streams)), dtype=np.int64)
    for number, (latents, texts) in enumerate(streams):
        cache.start()
        for latent, text in zip(latents, texts, strict=True):
            entry, hit = cache.look_up(latent)
            if entry.decoded is None:
                entry.decoded = Decoded(text, tokens=0, forward_passes=0)
            hits[number] += hit
            wrong[number] += hit and entry.decoded.text != text
    return wrong, hits, np.array([len(texts) for _, texts in streams])


def _nearest_before(latents: np.ndarray) -> np.ndarray:
    """(N − 1,) 1 − cos of each of the unit latents (N, E) but the first to the nearest before it."""
    distances = []
    for first in range(0, len(latents), _BLOCK):
        cosines = latents[first : first + _BLOCK] @ latents[: first + _BLOCK].T
        later = np.arange(cosines.shape[1]) >= np.arange(first, first + len(cosines))[:, None]
        cosines[later] = -math.inf
        distances.append(1 - cosines.max(axis=1))
    return np.concatenate(distances)[1:]


def _error_rate(wrong: np.ndarray, hits: np.ndarray, lookups: np.ndarray, drawn: np.ndarray) -> ErrorRate:
    """The error rate, given its value in each of R resamples (R,)."""
    errors, total = int(wrong.sum()), int(lookups.sum())
    exact = binomtest(errors, total).proportion_ci(0.95, method="exact")
    low, high = np.quantile(drawn, (0.025, 0.975))
    return ErrorRate(
        errors / total, float(min(exact.low, low)), float(max(exact.high, high)), errors, int(hits.sum()), total
    )
