"""Request streams: what is typed adds up to the requests, and requests recur as asked."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.config import validate
from jepa.data.pairs import Example
from jepa.errors import InputError
from jepa.studies.configs import TypingStyle
from jepa.studies.requests.streams import each_once, expressions, type_requests, zipf

STYLE = TypingStyle(corrections=0.0)
WORDS = st.lists(st.sampled_from(["lines", "with", "a", "vowel", "or", "the", "number", "dog"]), min_size=1, max_size=6)


def pairs_of(requests: list[list[str]]) -> list[Example]:
    return [Example(" ".join(words), f"answer {i}", None) for i, words in enumerate(requests)]


@settings(max_examples=40)
@given(st.lists(WORDS, min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**16))
def test_typing_ends_in_the_requests_one_word_at_a_time(requests, corrections, seed):
    style = TypingStyle(corrections=corrections)
    stream = type_requests(pairs_of(requests), style, (seed,))
    assert [step.request.prompt for step in stream.steps if step.last] == [" ".join(words) for words in requests]
    times = np.array([step.time for step in stream.steps])
    assert (np.diff(times) > 0).all()
    assert times[0] > 0
    assert stream.seconds == times[-1]
    before: list[str] = []
    removed = typed = 0
    for step in stream.steps:
        words = step.request.prompt.split()
        assert step.request.completion.startswith("answer")
        if len(words) < len(before):
            assert words == before[:-1]  # the wrong word goes
            removed += 1
        elif before and words[: len(before)] == before:
            assert len(words) == len(before) + 1
            typed += 1
        else:
            assert len(words) == 1  # a new request, or the right first word in place of a wrong one
        before = [] if step.last else words
    assert removed <= stream.corrections
    if corrections == 0:
        assert stream.corrections == 0
        assert len(stream.steps) == sum(map(len, requests))


def test_the_fraction_of_corrections_and_the_speed_are_those_asked_for():
    pairs = pairs_of([["lines", "with", "number", "vowel", "or"]] * 400)
    stream = type_requests(pairs, TypingStyle(corrections=0.1), (3,))
    assert stream.corrections == pytest.approx(0.1 * 2000, abs=45)
    plain = type_requests(pairs, STYLE, (3,))
    characters = sum(len(pair.prompt) + 1 for pair in pairs)
    assert plain.seconds == pytest.approx(characters * 60 / 250 + 399 * 5.0, rel=0.05)
    still = type_requests(pairs[:2], TypingStyle(words_per_minute=60, jitter=0, corrections=0, pause=2), (0,))
    assert still.steps[0].time == pytest.approx(6 / 5)  # "lines" and a space, at 5 characters a second
    assert still.steps[5].time - still.steps[4].time == pytest.approx(2.0 + 6 / 5)


def test_a_wrong_word_is_typed_and_removed():
    stream = type_requests(pairs_of([["lines", "dog"]]), TypingStyle(corrections=1.0), (1,))
    assert [step.request.prompt for step in stream.steps] == ["dog", "lines", "lines lines", "lines", "lines dog"]
    assert stream.corrections == 2


def test_streams_are_functions_of_the_seed():
    pairs = pairs_of([["lines", "with", "dog"]] * 3)
    assert type_requests(pairs, STYLE, (1, 2)) == type_requests(pairs, STYLE, (1, 2))
    assert type_requests(pairs, STYLE, (1, 2)) != type_requests(pairs, STYLE, (1, 3))


def test_expressions_are_answers_with_phrasings_that_differ():
    pairs = [Example("a", "x", None), Example("b", "y", None), Example("c", "x", None), Example("b", "y", None)]
    assert expressions(pairs) == [(pairs[0], pairs[2])]
    assert expressions(pairs[:2]) == []


def test_each_phrasing_comes_once_in_random_order():
    groups = [(Example(f"a{i}", str(i), None), Example(f"b{i}", str(i), None)) for i in range(50)]
    requests = each_once(groups, (0,))
    assert Counter(requests) == Counter(pair for group in groups for pair in group)
    assert requests != each_once(groups, (1,))
    assert requests == each_once(groups, (0,))


def test_expressions_recur_by_zipfs_law():
    groups = [(Example(f"a{i}", str(i), None), Example(f"b{i}", str(i), None)) for i in range(100)]
    requests = zipf(groups, 20_000, 1.0, (5,))
    fractions = np.array(sorted(Counter(pair.completion for pair in requests).values(), reverse=True)) / 20_000
    expected = (1 / np.arange(1, 101)) / (1 / np.arange(1, 101)).sum()
    np.testing.assert_allclose(fractions[:10], expected[:10], rtol=0.12)
    first = sum(pair.prompt.startswith("a") for pair in requests)
    assert 9_500 < first < 10_500
    even = Counter(pair.completion for pair in zipf(groups, 20_000, 0.0, (5,)))
    assert min(even.values()) > 130


@pytest.mark.parametrize(
    "change", [{"words_per_minute": 0}, {"pause": -1.0}, {"jitter": float("nan")}, {"corrections": 1.1}]
)
def test_bad_styles_are_refused_by_name(change):
    with pytest.raises(InputError, match=next(iter(change))):
        validate(change, TypingStyle)


def test_a_request_without_words_is_refused():
    with pytest.raises(InputError, match="here:3"):
        type_requests([Example("  ", "x", None, source="here:3")], STYLE, (0,))
