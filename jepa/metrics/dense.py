"""What nearest-in-time scores do not see: redundant, missing and misplaced emissions.

*The interval of an emission.* An emission is in force from midway after the one before it to midway before the next
(``in_force``), whatever the policy. One without extent (uniform decoding without pooling) so gets the times that it is
the nearest decode of, which is how annotations are matched in ``jepa.metrics.stream``; a policy whose segments tile the
stream keeps its own boundaries.

*Redundant decodes.* ``temporal_f1`` and ``soda_c`` take each emission as a claim of one event, so decoding the same
thing twice costs precision. Against uniform decoding at a high rate, that alone makes any sparser policy look better.
``merge_repeats`` makes one interval of consecutive emissions of the same text: what a reader sees who only sees the
text change. The F1 of those intervals does not reward sparse decoding for itself, and is what a claim of no lower
quality against a dense reference should be checked on.

Every score is of one stream; the score of several is the mean over streams, as SODA takes it.

A: events, at least one; D: emissions. Intervals (A, 2) or (D, 2) are start and end in seconds, in any order. Times that
are not finite, intervals that end before they start, and other shapes raise `InputError`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_bipartite_matching

from jepa.errors import InputError, check_positive
from jepa.metrics.checks import equally_many, finite_array
from jepa.metrics.stream import References

_SLACK = 1e-9  # an IoU short of the threshold by its rounding alone reaches it

# Of N generated captions and N references the (N,) similarity of each pair, in 0..1.
Similarity = Callable[[Sequence[str], Sequence[References]], np.ndarray]


@dataclass(frozen=True)
class DenseScores:
    """What ``dense_scores`` gives for a stream; `temporal_f1_merged` is after ``merge_repeats``."""

    temporal_f1: float
    temporal_f1_merged: float
    soda_c: float
    tim_redun: float
    tim_cover: float


def in_force(spans: ArrayLike, duration: float) -> np.ndarray:
    """The interval in which each emission is the current one; together they tile the stream.

    The boundary of two neighbours, in the order of their midpoints, is midway between the end of the one and the start
    of the other; of neighbours that overlap, or lie one within the other, it is kept between their midpoints. The first
    is in force from 0, the last until the end of the stream at `duration`; what lies outside is cut off.

    Of (D,) moments or (D, 2) intervals: (D, 2) float64, in their order. Of emissions at the same moment all but the
    first and the last have no extent.

    >>> in_force([1.0, 3.0, 7.0], duration=10.0).tolist()
    [[0.0, 2.0], [2.0, 5.0], [5.0, 10.0]]
    """
    values = np.asarray(spans, dtype=np.float64)
    intervals = _intervals("spans", np.stack([values, values], axis=1) if values.ndim == 1 else values)
    check_positive("duration", duration)
    if not len(intervals):
        return intervals
    middle = intervals.mean(axis=1)
    order = np.argsort(middle, kind="stable")
    starts, ends, middle = intervals[order, 0], intervals[order, 1], middle[order]
    between = np.clip((ends[:-1] + starts[1:]) / 2, middle[:-1], middle[1:])
    boundaries = np.concatenate([[0.0], between.clip(0, duration), [duration]])
    tiles = np.empty_like(intervals)
    tiles[order] = np.stack([boundaries[:-1], boundaries[1:]], axis=1)
    return tiles


def merge_repeats(intervals: ArrayLike, texts: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Consecutive emissions of the same text as one, so that events in a row described alike can be answered once only.

    Of intervals (D, 2) with D texts: the intervals, each from the first start to the last end of a run of equal texts,
    in the order of their start, and their texts.

    >>> merge_repeats([(0, 1), (1, 2), (2, 3)], ["a", "a", "b"])[1]
    ['a', 'b']
    """
    emissions = _intervals("intervals", intervals)
    equally_many(texts=texts, intervals=emissions)
    if not len(emissions):
        return emissions, []
    order = np.lexsort((emissions[:, 1], emissions[:, 0]))
    ordered = [texts[index] for index in order.tolist()]
    first = [i for i, text in enumerate(ordered) if not i or text != ordered[i - 1]]
    ends = np.maximum.reduceat(emissions[order, 1], first)
    return np.stack([emissions[order[first], 0], ends], axis=1), [ordered[i] for i in first]


def temporal_f1(events: ArrayLike, emissions: ArrayLike, iou: float = 0.5) -> float:
    """F1 of events and emissions that are matched one to one, as many as can be, where their IoU is enough.

    2 · matches / (A + D), with a maximum matching in the bipartite graph of pairs of intersection over union at
    least `iou`. Texts do not matter.

    Events (A, 2) without extent match nothing: annotations that are moments take ``in_force``, as emissions (D, 2) do.
    `iou` is in (0, 1]; less than 1e-9 short of it counts as equal. In 0..1; 0 without any emission.

    >>> temporal_f1(events=[(0, 4), (4, 8)], emissions=[(0, 3)])
    0.6666666666666666
    """
    claimed, emitted = _intervals("events", events, 1), _intervals("emissions", emissions)
    event, emission, overlaps = _overlaps(claimed, emitted)
    enough = overlaps >= iou - _SLACK
    event, emission = event[enough], emission[enough]
    matches = len(event)
    if max(np.bincount(event, minlength=1).max(), np.bincount(emission, minlength=1).max()) > 1:  # not yet one to one
        pairs = csr_matrix((np.ones(len(event)), (event, emission)), shape=(len(claimed), len(emitted)))
        matches = int((maximum_bipartite_matching(pairs, perm_type="column") >= 0).sum())
    return 2 * matches / (len(claimed) + len(emitted))


def soda_c(
    events_text: Sequence[References],
    events: ArrayLike,
    emission_texts: Sequence[str],
    emissions: ArrayLike,
    similarity: Similarity,
) -> float:
    """SODA (c): do the emissions tell the story of the stream, each event once and in order.

    Fujita et al., "SODA: Story Oriented Dense Video Captioning Evaluation Framework", ECCV 2020: the one-to-one
    matching that keeps the order of starts and has the largest sum of costs is found by dynamic programming
    (section 5.1), with the cost IoU · similarity of a pair (section 5.3, equation 11). That sum over D is the
    precision, over A the recall (section 5.2), and returned is their F1.

    The paper's similarity is METEOR, which needs WordNet. Figures under another one rank methods but do not compare
    with published ones. ``CaptionPairs.similarity`` is a tenth of CIDEr-D: it knows no synonyms and no stems, weighs
    words by how telling they are, and stays below 1 for equal captions of fewer than four words.

    Takes A annotations with events (A, 2), and D texts with emissions (D, 2) as ``in_force`` gives them. `similarity`
    is called once, with the emission texts and the annotations of the pairs that overlap. In 0..1; 0 without emissions.

    >>> same = lambda ours, theirs: np.array([float(a == b) for a, b in zip(ours, theirs)])
    >>> soda_c(["a", "b"], [(0, 4), (4, 8)], ["a"], [(0, 4)], same)
    0.6666666666666666
    """
    annotated, emitted = _intervals("events", events, 1), _intervals("emissions", emissions)
    equally_many(events_text=events_text, events=annotated)
    equally_many(emission_texts=emission_texts, emissions=emitted)
    event, emission, costs = _overlaps(annotated, emitted)
    if len(event):
        candidates = [emission_texts[i] for i in emission.tolist()]
        references = [events_text[i] for i in event.tolist()]
        values = finite_array("similarity", similarity(candidates, references))
        if values.shape != event.shape or values.min() < 0:
            got = f"{len(values)}, the least {values.min(initial=0):g}"
            raise InputError(f"similarity must give {len(event)} values >= 0, got {got}")
        costs = costs * values
    ranks = [np.argsort(np.lexsort((of[:, 1], of[:, 0]))) for of in (annotated, emitted)]
    total = _ordered_matching(ranks[0][event], ranks[1][emission], costs)
    return 2 * total / (len(emitted) + len(annotated))  # 2PR / (P + R), without its 0 / 0


def tim_redun(events: ArrayLike, times: ArrayLike) -> float:
    """TimRedun: how far the events are from one emission each, the mean of ||M_i| − 1| over events.

    From LiveStar (arXiv 2511.05299), where M_i are the responses made between start and end of clip i, and a response
    is at the moment it is made: `Emission.emitted_at`. With the moment that an emission stands for, `Emission.time`,
    the delay of a policy, which the ledger counts, stays out of this score. Emissions outside all events do not count.
    Of events (A, 2) and times (D,): at least 0, the best; 1 without any emission.

    >>> tim_redun([(0, 4), (4, 8)], times=[1.0, 2.0])
    1.0
    """
    return float(np.abs(_within(events, times) - 1).mean())


def tim_cover(events: ArrayLike, times: ArrayLike) -> float:
    """TimCover: the fraction of events with at least one emission within; source and arguments as ``tim_redun``.

    >>> tim_cover([(0, 4), (4, 8)], times=[1.0, 2.0])
    0.5
    """
    return float((_within(events, times) > 0).mean())


def dense_scores(
    events_text: Sequence[References],
    events: ArrayLike,
    emission_texts: Sequence[str],
    times: ArrayLike,
    spans: ArrayLike,
    duration: float,
    similarity: Similarity,
) -> DenseScores:
    """All scores of this module for one stream of A annotations, under the convention of ``in_force``, at IoU 0.5.

    Emissions count in ``tim_redun`` and ``tim_cover`` at `times` (D,) and cover `spans` (D, 2) or (D,).
    """
    equally_many(times=np.asarray(times), emission_texts=emission_texts)
    tiles = in_force(spans, duration)
    return DenseScores(
        temporal_f1=temporal_f1(events, tiles),
        temporal_f1_merged=temporal_f1(events, merge_repeats(tiles, emission_texts)[0]),
        soda_c=soda_c(events_text, events, emission_texts, tiles, similarity),
        tim_redun=tim_redun(events, times),
        tim_cover=tim_cover(events, times),
    )


def _ordered_matching(rows: np.ndarray, columns: np.ndarray, costs: np.ndarray) -> float:
    """Largest sum of costs of P pairs, all >= 0, of a one-to-one matching of rows and columns that crosses nowhere.

    `until` and `best` are a staircase: the largest sum of the rows so far up to each column, where it rises.
    """
    until, best = [-1], [0.0]
    order = np.lexsort((-columns, rows))  # in a row the last column first: it must not see the others of its row
    for column, cost in zip(columns[order].tolist(), costs[order].tolist(), strict=True):
        at = bisect_left(until, column)
        total = best[at - 1] + cost
        if (at < len(until) and until[at] == column and best[at] >= total) or total <= best[at - 1]:
            continue
        end = at
        while end < len(until) and best[end] <= total:
            end += 1
        until[at:end], best[at:end] = [column], [total]
    return best[-1]


def _overlaps(events: np.ndarray, emissions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of an event (A, 2) and an emission (D, 2) that overlap: numbers of both, and intersection over union.

    Of emissions in the order of their starts, those that may overlap an event lie side by side.
    """
    order = np.argsort(emissions[:, 0], kind="stable")
    starts, ends = emissions[order].T
    first = np.searchsorted(np.maximum.accumulate(ends), events[:, 0], side="right")
    counts = np.maximum(np.searchsorted(starts, events[:, 1]) - first, 0)
    event = np.repeat(np.arange(len(events)), counts)
    emission = np.arange(len(event)) - np.repeat(np.cumsum(counts) - counts - first, counts)
    begins, finishes, starts, ends = events[event, 0], events[event, 1], starts[emission], ends[emission]
    overlap = np.minimum(finishes, ends) - np.maximum(begins, starts)
    found = overlap > 0
    span = (np.maximum(finishes, ends) - np.minimum(begins, starts))[found]
    return event[found], order[emission[found]], overlap[found] / span


def _within(events: ArrayLike, times: ArrayLike) -> np.ndarray:
    """(A,) how many emissions fall within each event, both of its ends included."""
    (starts, ends), moments = _intervals("events", events, 1).T, np.sort(finite_array("times", times))
    return np.asarray(np.searchsorted(moments, ends, side="right") - np.searchsorted(moments, starts))


def _intervals(name: str, values: ArrayLike, least: int = 0) -> np.ndarray:
    """(N, 2) float64 with N >= `least`."""
    intervals = np.asarray(values, dtype=np.float64)
    if not intervals.size and not least:
        return np.zeros((0, 2))
    if intervals.ndim != 2 or intervals.shape[1] != 2 or len(intervals) < least:
        raise InputError(f"{name} must be (N, 2) with N >= {least}, start and end of each, got shape {intervals.shape}")
    good = np.isfinite(intervals).all(axis=1) & (intervals[:, 0] <= intervals[:, 1])
    if not good.all():
        index = int(np.argmin(good))
        got = f"{intervals[index].tolist()} at index {index}"
        raise InputError(f"{name} must be finite with start <= end, got {got}")
    return intervals
