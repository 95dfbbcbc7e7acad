"""Scores of a decoded stream: each annotation is answered by the decode nearest to it in time.

This is the protocol of VL-JEPA's selective decoding (arXiv 2512.10942, section 4.6). A decode that is nearest to no
annotation costs nothing here, and one decode may answer several annotations: ``jepa.metrics.dense`` scores that.

A: annotations; D: decodes. Times are seconds, in any order; what is not finite raises `InputError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from jepa.metrics.checks import equally_many, finite_array
from jepa.metrics.cider import DocumentFrequency, pair_scorer

References: TypeAlias = "str | tuple[str, ...]"  # one text, or several that say the same


class CaptionPairs:
    """CIDEr-D of captions and their references under one pool, each pair computed once: in a sweep they meet again.

    >>> from jepa.metrics import document_frequency
    >>> pairs = CaptionPairs(document_frequency([[["a", "red", "dog"]], [["a", "cat"]]]))
    >>> pairs.cider_d(["a red dog", "a cat"], ["a red dog", "a red dog"]).round(2).tolist()
    [7.5, 0.0]
    """

    def __init__(self, frequencies: DocumentFrequency) -> None:
        self._score = pair_scorer(frequencies)
        self._known: dict[tuple[str, References], float] = {}

    def cider_d(self, candidates: Sequence[str], references: Sequence[References]) -> np.ndarray:
        """``jepa.metrics.cider_d`` of N candidates, each against its reference or references: (N,) in 0..10."""
        equally_many(candidates=candidates, references=references)
        pairs = list(zip(candidates, references, strict=True))
        for pair in dict.fromkeys(pairs):
            if pair not in self._known:
                candidate, own = pair
                self._known[pair] = self._score(candidate, [own] if isinstance(own, str) else own)
        return np.array([self._known[pair] for pair in pairs], dtype=np.float64)

    def similarity(self, candidates: Sequence[str], references: Sequence[References]) -> np.ndarray:
        """A tenth of `cider_d`, in 0..1: a text similarity for ``soda_c``."""
        return self.cider_d(candidates, references) / 10


def match_nearest(event_times: ArrayLike, decode_times: ArrayLike) -> np.ndarray:
    """(A,) int64: for each event (A,) the index of the decode (D,) nearest in time.

    At equal distance the earlier decode wins, among simultaneous decodes the first. Without any decode all are −1.

    >>> match_nearest(event_times=[1.0, 9.0], decode_times=[0.0, 5.0, 10.0]).tolist()
    [0, 2]
    """
    events, decodes = finite_array("event_times", event_times), finite_array("decode_times", decode_times)
    if not len(decodes):
        return np.full(len(events), -1, dtype=np.int64)
    times, first = np.unique(decodes, return_index=True)  # sorted, and where each occurs first
    after = np.searchsorted(times, events).clip(max=len(times) - 1)
    before = (after - 1).clip(min=0)
    nearest = np.where(np.abs(events - times[before]) <= np.abs(times[after] - events), before, after)
    return first[nearest].astype(np.int64)


def stream_scores(
    events_text: Sequence[References],
    event_times: ArrayLike,
    decode_texts: Sequence[str],
    decode_times: ArrayLike,
    pairs: CaptionPairs,
) -> np.ndarray:
    """CIDEr-D of each annotation's nearest decode: (A,) float64, each in 0..10; all 0 without any decode.

    `event_times` (A,) and `decode_times` (D,) are the moments that annotations and decoded texts stand for.
    """
    nearest = match_nearest(event_times, decode_times)
    equally_many(events_text=events_text, event_times=nearest)
    equally_many(decode_texts=decode_texts, decode_times=np.asarray(decode_times))
    answers = [decode_texts[index] if index >= 0 else "" for index in nearest]
    return pairs.cider_d(answers, events_text)
