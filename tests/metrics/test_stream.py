"""Matching in time against brute force, and the scores it leads to."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import refusals
from hypothesis import example, given, settings
from hypothesis import strategies as st

import jepa.metrics.stream
from jepa.metrics import CaptionPairs, cider_d, document_frequency, match_nearest, stream_scores, tokenize
from jepa.metrics.cider import pair_scorer

# Quarters of a second: sums and differences are exact, and ties are frequent.
times = st.lists(st.integers(0, 60).map(lambda quarter: quarter / 4), max_size=12)


@settings(max_examples=80)
@given(times, times)
@example([1.5], [1.0, 2.0])  # a tie: the earlier
@example([1.5], [2.0, 1.0])  # the same, decodes not in order
@example([0.0, 9.0], [3.0])
def test_matching_equals_brute_force(events, decodes):
    matched = match_nearest(events, decodes)
    assert matched.dtype == np.int64
    for event, found in zip(events, matched.tolist(), strict=True):
        assert found == min(range(len(decodes)), key=lambda i: (abs(decodes[i] - event), decodes[i], i), default=-1)


TEXTS = ["a red circle moves left", "the blue square stops", "a dog sleeps on the mat"]
POOL = document_frequency([[tokenize(text)] for text in TEXTS])
PAIRS = CaptionPairs(POOL)


def test_each_annotation_is_scored_against_its_nearest_decode():
    decodes = ["the blue square stops", "a red square moves left", "unmatched"]
    scores = stream_scores(TEXTS, [2.0, 5.0, 7.4], decodes, [5.5, 2.5, 100.0], PAIRS)
    expected = cider_d([decodes[1], decodes[0], decodes[0]], [[text] for text in TEXTS], POOL)
    assert scores.tolist() == expected.tolist()
    assert scores[1] == pytest.approx(10)


def test_an_annotation_may_have_several_wordings():
    wordings = (TEXTS[0], "the red disc goes left")
    scores = stream_scores([wordings, TEXTS[2]], [1.0, 2.0], [TEXTS[0]], [1.0], PAIRS)
    assert scores.tolist() == cider_d([TEXTS[0]] * 2, [wordings, [TEXTS[2]]], POOL).tolist()
    assert 0 < scores[0] < 10


def test_a_stream_without_decodes_scores_zero():
    assert stream_scores(TEXTS, [2.0, 5.0, 7.4], [], [], PAIRS).tolist() == [0, 0, 0]
    assert stream_scores([], [], ["a dog"], [1.0], PAIRS).shape == (0,)


def test_pairs_score_as_cider_d_and_compute_each_pair_once(monkeypatch):
    computed = []

    def counting(pool):
        score = pair_scorer(pool)
        return lambda text, references: computed.append((text, references[0])) or score(text, references)

    monkeypatch.setattr(jepa.metrics.stream, "pair_scorer", counting)
    pairs = CaptionPairs(POOL)
    candidates = [TEXTS[i] for i in (0, 1, 0, 2, 0)] + ["a red square stops"] * 2
    references = [TEXTS[i] for i in (0, 2, 0, 1, 1, 0, 0)]
    expected = cider_d(candidates, [[reference] for reference in references], POOL)
    assert (pairs.cider_d(candidates, references) == expected).all()
    assert computed == list(dict.fromkeys(zip(candidates, references, strict=True)))
    assert (pairs.similarity(candidates[::-1], references[::-1]) == expected[::-1] / 10).all()
    assert len(computed) == 5
    assert pairs.cider_d([], []).shape == (0,)


test_bad_input_is_refused = refusals(
    ((TEXTS, [1.0], [], []), "events_text and event_times must be equally many, got 3 and 1"),
    ((TEXTS[:1], [1.0], ["a"], [1.0, 2.0]), "decode_texts and decode_times must be equally many, got 1 and 2"),
    ((TEXTS[:1], [math.nan], ["a"], [1.0]), "event_times must be finite, got nan at index 0"),
    ((TEXTS[:1], [1.0], ["a"], [[1.0]]), r"decode_times must be one-dimensional, got shape \(1, 1\)"),
    of=lambda arguments: stream_scores(*arguments, PAIRS),
)
