"""Dense scores against brute force, the worked example of SODA's paper, and what each must and must not see."""

from __future__ import annotations

import itertools
import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from conftest import refusals
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jepa.metrics.cider import document_frequency, tokenize
from jepa.metrics.dense import dense_scores, in_force, merge_repeats, soda_c, temporal_f1, tim_cover, tim_redun
from jepa.metrics.stream import CaptionPairs, match_nearest, stream_scores

# Quarters of a second: ties and IoUs of exactly one half are frequent.
quarters = st.integers(0, 40).map(lambda quarter: quarter / 4)
interval = st.tuples(quarters, quarters).map(lambda ends: tuple(sorted(ends)))
intervals = st.lists(interval, max_size=5)
events = st.lists(interval, min_size=1, max_size=4)


def overlap(a: tuple[float, float], b: tuple[float, float]) -> float:
    both = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    return both / (a[1] - a[0] + b[1] - b[0] - both) if both else 0.0


def equal_text(ours: list[str], theirs: list[str]) -> np.ndarray:
    return np.array([float(a == b) for a, b in zip(ours, theirs, strict=True)])


# in_force


@pytest.mark.parametrize(
    ("spans", "tiles"),
    [
        ([1.0, 3.0, 7.0], [[0, 2], [2, 5], [5, 10]]),  # midway between two moments
        ([7.0, 1.0, 3.0], [[5, 10], [0, 2], [2, 5]]),
        ([4.0], [[0, 10]]),
        ([], []),
        ([(0.5, 2.0), (2.5, 4.0), (4.5, 9.5)], [[0, 2.25], [2.25, 4.25], [4.25, 10]]),  # segments keep their boundaries
        ([3.0, 3.0, 3.0], [[0, 3], [3, 3], [3, 10]]),  # simultaneous moments share the ends of one cell
        ([2.0, 14.0, 20.0], [[0, 8], [8, 10], [10, 10]]),  # what lies outside the stream is cut off
    ],
)
def test_intervals_in_force(spans, tiles):
    assert in_force(spans, 10).tolist() == tiles


@settings(max_examples=80)
@given(st.lists(interval, min_size=1, max_size=8))
@example([(0.0, 10.0), (2.0, 3.0), (4.0, 5.0)])  # two within the first
def test_intervals_in_force_tile_the_stream_around_their_midpoints(spans):
    tiles = in_force(spans, 10)
    order = np.argsort(np.mean(spans, axis=1), kind="stable")
    assert tiles[order[0], 0] == 0
    assert tiles[order[-1], 1] == 10
    assert (tiles[order[1:], 0] == tiles[order[:-1], 1]).all()
    middle = np.mean(spans, axis=1)
    assert ((tiles[:, 0] <= middle) & (middle <= tiles[:, 1])).all()


@settings(max_examples=80)
@given(st.lists(quarters, min_size=1, max_size=8, unique=True), st.floats(0, 10))
def test_the_decode_in_force_is_the_nearest_one(times, moment):
    start, end = in_force(times, 10)[match_nearest([moment], times)[0]]
    assert start <= moment <= end


# merge_repeats


@settings(max_examples=80)
@given(st.lists(st.sampled_from("ab"), max_size=8))
def test_runs_of_one_text_become_one_interval(texts):
    tiles = np.stack([np.arange(len(texts)), np.arange(len(texts)) + 1.0], axis=1)
    backwards = np.arange(len(texts))[::-1]
    merged, kept = merge_repeats(tiles[backwards], [texts[i] for i in backwards])
    runs = [(key, [i for i, _ in group]) for key, group in itertools.groupby(enumerate(texts), key=lambda x: x[1])]
    assert kept == [key for key, _ in runs]
    assert merged.tolist() == [[run[0], run[-1] + 1] for _, run in runs]


# temporal_f1


def most_matches(events: list, emissions: list, iou: float) -> int:
    """Every one-to-one matching, tried."""
    if not events:
        return 0
    best = most_matches(events[1:], emissions, iou)
    for i, emission in enumerate(emissions):
        if overlap(events[0], emission) >= iou:
            best = max(best, 1 + most_matches(events[1:], emissions[:i] + emissions[i + 1 :], iou))
    return best


@settings(max_examples=100)
@given(events, intervals, st.sampled_from([0.25, 0.5, 1.0]))
@example([(0, 4), (0, 3)], [(0, 3), (0, 1.5)], 0.5)  # the greedy pair (0, 3), (0, 3) leaves the first without one
def test_f1_equals_brute_force(events, emissions, iou):
    matches = most_matches(events, emissions, iou)
    assert temporal_f1(events, emissions, iou) == 2 * matches / (len(events) + len(emissions))


def test_the_threshold_itself_is_enough_whatever_the_rounding():
    events = [(0.1 * i, 0.1 * i + 0.6) for i in range(200)]
    halves = [(0.1 * i, 0.1 * i + 0.3) for i in range(200)]
    assert any(overlap(a, b) < 0.5 for a, b in zip(events, halves, strict=True))  # by rounding alone
    assert all(temporal_f1([a], [b]) == 1 for a, b in zip(events, halves, strict=True))
    assert temporal_f1([(0, 6)], [(0, 2.999)]) == 0


def test_uniform_decoding_finds_events_of_its_own_length_only():
    events = np.stack([np.arange(10) * 3.0, np.arange(10) * 3.0 + 3], axis=1)
    f1 = {rate: temporal_f1(events, in_force((np.arange(30 * rate) + 0.5) / rate, 30)) for rate in (1 / 3, 2 / 3, 2)}
    assert f1 == {1 / 3: 1.0, 2 / 3: pytest.approx(2 / 3), 2: 0.0}  # at 2/3 Hz each half reaches IoU 0.5


# soda_c

FIGURE_1 = np.array([[7, 1, 4, 9, 1], [2, 3, 5, 4, 5], [4, 10, 3, 7, 8], [8, 7, 6, 10, 1]]) / 10


def test_soda_on_the_worked_example_of_its_paper():
    """Figure 1 and section 5.1: the best matching of these costs in order has the sum 2.7."""

    def lookup(ours: list[str], theirs: list[str]) -> np.ndarray:
        return np.array([FIGURE_1[int(g), int(p)] for p, g in zip(ours, theirs, strict=True)])

    # Intervals that are all equal: the cost is the similarity, and the order is the one given.
    score = soda_c(list("0123"), [(0, 1)] * 4, list("01234"), [(0, 1)] * 5, lookup)
    assert score == pytest.approx(2 * 2.7 / 9)  # of the precision 2.7 / 5 and the recall 2.7 / 4


def best_in_order(costs: np.ndarray) -> float:
    """Every matching that crosses nowhere, tried."""
    rows, columns = costs.shape
    return max(
        sum(costs[i, j] for i, j in zip(chosen, partners, strict=True))
        for size in range(min(rows, columns) + 1)
        for chosen in itertools.combinations(range(rows), size)
        for partners in itertools.combinations(range(columns), size)
    )


@settings(max_examples=80)
@given(events, intervals, st.randoms(use_true_random=False))
def test_soda_equals_brute_force(events, emissions, random):
    values = {(a, b): random.random() for a in range(5) for b in range(4)}

    def similarity(ours: list[str], theirs: list[str]) -> np.ndarray:
        return np.array([values[int(a), int(b)] for a, b in zip(ours, theirs, strict=True)])

    names = list("01234")
    score = soda_c(names[: len(events)], events, names[: len(emissions)], emissions, similarity)
    rows = sorted(range(len(events)), key=lambda i: events[i])
    columns = sorted(range(len(emissions)), key=lambda i: emissions[i])
    costs = np.array([[overlap(events[i], emissions[j]) * values[j, i] for j in columns] for i in rows])
    total = best_in_order(costs.reshape(len(rows), len(columns)))
    precision, recall = total / max(len(emissions), 1), total / len(events)
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0
    assert score == pytest.approx(f1)


def test_soda_of_the_smallest_similarity_is_finite():
    times = [(0.0, 0.0), (0.0, 0.25)]
    score = soda_c(["a", "b"], times, ["a", "b"], times, lambda ours, theirs: np.full(len(ours), 5e-324))
    assert score == pytest.approx(0)


def test_soda_keeps_the_order():
    times = [(0, 4), (3, 8)]
    assert soda_c(["a", "b"], times, ["a", "b"], times, equal_text) == 1
    assert soda_c(["a", "b"], times, ["b", "a"], times[::-1], equal_text) == 1
    # The texts exchanged: each has IoU 1/8 with the event of its text, but the two pairs cross, and one counts.
    assert soda_c(["a", "b"], times, ["b", "a"], times, equal_text) == pytest.approx(1 / 8 / 2)


# TimRedun, TimCover


@settings(max_examples=80)
@given(events, st.lists(quarters, max_size=10))
def test_responses_equal_brute_force(events, times):
    counts = [sum(start <= time <= end for time in times) for start, end in events]
    assert tim_redun(events, times) == pytest.approx(np.mean([abs(count - 1) for count in counts]))
    assert tim_cover(events, times) == np.mean([count > 0 for count in counts])


# What each score sees

TEXTS = ["a red circle moves left", "the blue square stops at once", "a dog sleeps on the mat", "one bird sings aloud"]
EVENTS = np.array([[0.0, 3.0], [3.0, 8.0], [8.0, 9.5], [9.5, 14.0]])
POOL = document_frequency([[tokenize(text)] for text in TEXTS])
PAIRS = CaptionPairs(POOL)


def scored(texts: list[str], spans: np.ndarray) -> tuple[Any, np.ndarray]:
    times = spans.mean(axis=1)
    dense = dense_scores(TEXTS, EVENTS, texts, times, spans, 14.0, PAIRS.similarity)
    return dense, stream_scores(TEXTS, EVENTS.mean(axis=1), texts, times, PAIRS)


def test_a_perfect_decode_has_perfect_scores():
    dense, cider = scored(TEXTS, EVENTS)
    assert astuple(dense) == pytest.approx((1, 1, 1, 0, 1))
    assert cider == pytest.approx(np.full(4, 10.0))


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_decodes_repeated_within_events_cost_what_nearest_in_time_does_not_see(parts):
    edges = np.concatenate([np.linspace(start, end, parts + 1)[:-1] for start, end in EVENTS] + [[14.0]])
    spans, texts = np.stack([edges[:-1], edges[1:]], axis=1), [text for text in TEXTS for _ in range(parts)]
    perfect, cider = scored(TEXTS, EVENTS)
    repeated, repeated_cider = scored(texts, spans)
    assert (repeated_cider == cider).all()
    assert repeated.temporal_f1_merged == 1
    assert repeated.tim_redun == parts - 1
    assert repeated.tim_cover == 1
    assert repeated.temporal_f1 == pytest.approx(2 / 3 if parts == 2 else 0)
    assert repeated.soda_c == pytest.approx(2 / (parts + 1) / parts)  # precision 1 / parts², recall 1 / parts
    assert repeated.soda_c < perfect.soda_c


def test_decodes_that_miss_events_cost_recall():
    dense, _ = scored(TEXTS[:1], EVENTS[:1])
    assert dense.temporal_f1 == 0  # in force for all 14 s
    assert dense.tim_cover == 0.25
    assert dense.tim_redun == 0.75
    assert dense.soda_c == pytest.approx(2 * 3 / 14 / 5)


def test_a_stream_without_emissions():
    silent = dense_scores(TEXTS, EVENTS, [], [], [], 14.0, PAIRS.similarity)
    assert astuple(silent) == (0, 0, 0, 1, 0)


ONE = [(0.0, 1.0)]


test_bad_input_is_refused = refusals(
    (lambda: in_force([1.0], 0.0), "duration must be finite and > 0, got 0.0"),
    (lambda: in_force([1.0, math.nan], 9.0), r"spans must be finite .* got \[nan, nan\] at index 1"),
    (lambda: in_force([(2.0, 1.0)], 9.0), r"spans must be finite with start <= end, got \[2.0, 1.0\] at index 0"),
    (lambda: in_force([[[1.0]]], 9.0), r"spans must be \(N, 2\) .* got shape \(1, 1, 1\)"),
    (lambda: temporal_f1([], ONE), r"events must be \(N, 2\) with N >= 1, .* got shape \(0,\)"),
    (lambda: temporal_f1([(1.0, 0.0)], ONE), r"events must be finite .* got \[1.0, 0.0\]"),
    (lambda: temporal_f1(ONE, [1.0, 2.0]), r"emissions must be \(N, 2\) .* got shape \(2,\)"),
    (lambda: merge_repeats(ONE, []), "texts and intervals must be equally many, got 0 and 1"),
    (lambda: soda_c([], ONE, ["a"], ONE, equal_text), "events_text and events must be equally many, got 0 and 1"),
    (lambda: soda_c("a", ONE, ["a"], ONE, equal_text), "events_text must be a sequence of strings, got the string"),
    (lambda: soda_c(["a"], ONE, ["a"], ONE, lambda a, b: np.ones(2)), "must give 1 values >= 0, got 2, the least"),
    (lambda: soda_c(["a"], ONE, ["a"], ONE, lambda a, b: [-1.0]), "similarity must .* got 1, the least -1"),
    (lambda: tim_redun(ONE, [math.inf]), "times must be finite, got inf at index 0"),
    (lambda: dense_scores(["a"], ONE, ["a"], [], ONE, 9.0, equal_text), "times and emission_texts .* got 0 and 1"),
)
