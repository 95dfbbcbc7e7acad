"""Scores of a decoded stream: each annotation is answered by the decode nearest to it in time.

This is the protocol of VL-JEPA's selective decoding (arXiv 2512.10942, section 4.6). What it does not see:
a decode that is nearest to no annotation costs nothing here, and one decode may answer several annotations.
``jepa.metrics.dense`` scores that.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from jepa.errors import InputError
from jepa.metrics.cider import DocumentFrequency, cider_d


class CaptionPairs:
    """CIDEr-D of pairs of captions under one pool, each computed once.

    For sweeps, where the same texts meet again and again. Every distinct pair is kept.

    Args:
        frequencies: the pool shared by all policies under comparison.

    >>> from jepa.metrics import document_frequency
    >>> pairs = CaptionPairs(document_frequency([[["a", "red", "dog"]], [["a", "cat"]]]))
    >>> pairs.cider_d(["a red dog", "a cat"], ["a red dog", "a red dog"]).round(2).tolist()
    [7.5, 0.0]
    """

    def __init__(self, frequencies: DocumentFrequency) -> None:
        self.frequencies = frequencies
        self._known: dict[tuple[str, str], float] = {}

    def cider_d(self, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """CIDEr-D of each candidate against its one reference: the values of ``jepa.metrics.cider_d``.

        Args:
            candidates: N captions.
            references: N captions.

        Returns:
            (N,) float64, each in 0..10.

        Raises:
            InputError: candidates and references differ in number.
        """
        if len(candidates) != len(references):
            raise InputError(
                f"candidates and references must be equally many, got {len(candidates)} and {len(references)}"
            )
        pairs = list(zip(candidates, references, strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if pair not in self._known]
        if new:
            scores = cider_d([pair[0] for pair in new], [[pair[1]] for pair in new], self.frequencies)
            self._known.update(zip(new, scores.tolist(), strict=True))
        return np.array([self._known[pair] for pair in pairs], dtype=np.float64)

    def similarity(self, candidates: Sequence[str], references: Sequence[str]) -> np.ndarray:
        """A tenth of `cider_d`, in 0..1: a text similarity for ``soda_c``."""
        return self.cider_d(candidates, references) / 10


def match_nearest(event_times: ArrayLike, decode_times: ArrayLike) -> np.ndarray:
    """For each event the index of the decode nearest in time.

    Args:
        event_times: (A,) seconds, in any order.
        decode_times: (D,) seconds, in any order.

    Returns:
        (A,) int64 indices into ``decode_times``. At equal distance the earlier decode wins, among
        simultaneous decodes the first. Without any decode (D = 0) all are −1.

    Raises:
        InputError: an array is not one-dimensional, or a time is not finite.

    >>> match_nearest(event_times=[1.0, 9.0], decode_times=[0.0, 5.0, 10.0]).tolist()
    [0, 2]
    """
    events, decodes = times_array("event_times", event_times), times_array("decode_times", decode_times)
    if not len(decodes):
        return np.full(len(events), -1, dtype=np.int64)
    times, first = np.unique(decodes, return_index=True)  # sorted, and where each occurs first
    after = np.searchsorted(times, events).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(events - times[before]) <= np.abs(times[after] - events), before, after)
    return first[nearest].astype(np.int64)


def stream_scores(
    events_text: Sequence[str],
    event_times: ArrayLike,
    decode_texts: Sequence[str],
    decode_times: ArrayLike,
    frequencies: DocumentFrequency | CaptionPairs,
) -> np.ndarray:
    """CIDEr-D of each annotation's nearest decode.

    Args:
        events_text: A annotations of one stream.
        event_times: (A,) seconds, the moment that stands for each annotation.
        decode_texts: D decoded texts.
        decode_times: (D,) seconds, the moment that each decode stands for.
        frequencies: the pool shared by all policies under comparison, or pairs under it, which gives the same
            scores and computes none twice.

    Returns:
        (A,) float64, each in 0..10; all 0 without any decode.

    Raises:
        InputError: texts and times differ in number, or as ``match_nearest``.
    """
    nearest = match_nearest(event_times, decode_times)
    if len(events_text) != len(nearest):
        raise InputError(f"events_text and event_times must be equally many, got {len(events_text)} and {len(nearest)}")
    if len(decode_texts) != np.size(decode_times):
        raise InputError(
            f"decode_texts and decode_times must be equally many, got {len(decode_texts)} and {np.size(decode_times)}"
        )
    answers = [decode_texts[index] if index >= 0 else "" for index in nearest]
    pairs = frequencies if isinstance(frequencies, CaptionPairs) else CaptionPairs(frequencies)
    return pairs.cider_d(answers, events_text)


def times_array(name: str, values: ArrayLike) -> np.ndarray:
    """Finite (N,) float64 seconds; raises `InputError` with `name` for anything else."""
    times = np.asarray(values, dtype=np.float64)
    if times.ndim != 1:
        raise InputError(f"{name} must be one-dimensional, got shape {times.shape}")
    if not np.isfinite(times).all():
        index = int(np.flatnonzero(~np.isfinite(times))[0])
        raise InputError(f"{name} must be finite, got {times[index]} at index {index}")
    return times
