"""Each rule for scoring an answer, by cases, by scipy, and on real gold answers."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing

import pytest
import torch
from conftest import real_data, refusals, refuses
from scipy import stats

from jepa.errors import InputError
from jepa.metrics.answers import METRICS, multiple_choice, proportion_interval, score, scorer_for


@pytest.mark.parametrize(
    ("metric", "prediction", "gold", "expected"),
    [
        ("exact_match", " a.*b\n", "a.*b", True),
        ("exact_match", "a.*b c", "a.*b", False),
        ("exact_match", "A.*B", "a.*b", False),
        ("exact_match", "", "a", False),
        ("prefix_match", "a.*b and so on", "a.*b", True),
        ("prefix_match", "a.*", "a.*b", False),
        ("prefix_match", "", "a", False),
        ("regex_equivalence", "(.)*dog.*", ".*dog.*", True),
        ("regex_equivalence", " .*dog.*\n", ".*dog.*", True),
        ("regex_equivalence", ".*dog", ".*dog.*", False),
        ("regex_equivalence", "(.*dog", ".*dog", False),  # cannot be read
        ("regex_equivalence", "", "()", False),
        ("regex_equivalence", "(.*a.{30})|(.*a.{30}b.*a.{30})", ".*a.{30}", False),  # too large to tell
        ("regex_equivalence", ".*a.{30}", ".*a.{30}", True),
        ("gsm8k", "so 9 * 2 = 18\n#### 18", "#### 18", True),
        ("gsm8k", "#### 18.0", "#### 18", True),
        ("gsm8k", "#### $1,200.", "#### 1200", True),
        ("gsm8k", "####1,200.50 dollars", "#### 1200.5", True),
        ("gsm8k", "#### -$5", "#### -5", True),
        ("gsm8k", "#### 5", "#### -5", False),
        ("gsm8k", "#### 18.5", "#### 18", False),
        ("gsm8k", "the answer is 18", "#### 18", False),  # no mark
        ("gsm8k", "#### eighteen", "#### 18", False),
        ("gsm8k", "#### 18\n\nNext question ... #### 7", "#### 18", True),  # the first mark counts
        ("gsm8k", "", "#### 18", False),
        ("nq_open", "The six geese, a-laying!", "6 geese a-laying; six geese alaying", True),
        ("nq_open", "maids a-milking", "6 geese a-laying; maids a-milking", True),
        ("nq_open", "6 geese a-laying; maids a-milking", "6 geese a-laying; maids a-milking", False),
        ("nq_open", "nine  ", "Nine", True),
        ("nq_open", "nine or ten", "Nine", False),
        ("nq_open", "", "Nine", False),
        ("nq_open", "the", "Nine; A", False),  # empty when normalised, as one gold answer is
        ("nq_open", "...", "!", False),
    ],
)
def test_rules(metric, prediction, gold, expected):
    assert score(metric, [prediction], [gold]) == [expected]


@pytest.mark.parametrize(
    ("metric", "gold", "message"),
    [
        ("exact_match", " ", "item 1: gold must not be blank"),
        ("prefix_match", "", "item 1: gold must not be blank"),
        ("regex_equivalence", "(a", "item 1: regex '.a' must close a group"),
        ("regex_equivalence", "", "item 1: gold must not be blank"),
        ("gsm8k", "18", "item 1: gold must have a number after '####', got '18'"),
        ("nq_open", "", "item 1: gold must not be blank"),
    ],
)
def test_a_gold_answer_that_cannot_be_read_is_an_error(metric, gold, message):
    good = {"gsm8k": "#### 1"}.get(metric, "a")
    for prediction in ("", "x", gold):
        refuses(message, score, metric, [good, prediction], [good, gold])


@pytest.mark.parametrize("metric", [name for name in METRICS if name != "spider"])
def test_an_empty_prediction_is_wrong_and_the_gold_answer_right(metric):
    gold = {"gsm8k": "so\n#### 1,000"}.get(metric, "dog")
    assert score(metric, ["", " \n", gold], [gold] * 3) == [False, False, True]


def test_spider_by_name(tmp_path):
    (tmp_path / "shop").mkdir()
    with closing(sqlite3.connect(tmp_path / "shop" / "shop.sqlite")) as connection:
        connection.execute("CREATE TABLE item (name TEXT)")
    predictions, golds = ["select name from item", "junk", ""], ["SELECT name FROM item"] * 3
    requests = ["For db_id:[shop]\n\nWhat?"] * 3
    assert score("spider", predictions, golds, requests, databases=tmp_path) == [True, False, False]
    with pytest.raises(InputError, match=r"item 0: .* gone/gone\.sqlite"):
        score("spider", ["junk"], ["junk"], ["For db_id:[gone]"], databases=tmp_path)
    refuses("item 0: prompt must name its database", score, "spider", ["junk"], ["junk"], databases=tmp_path)


test_bad_input_is_refused = refusals(
    (lambda: scorer_for("exact"), "metric must be one of exact_match, .*, got 'exact'"),
    (lambda: scorer_for("gsm8k", databases="."), r"metric gsm8k must have no options, got \['databases'\]"),
    (lambda: score("exact_match", ["a"], ["a", "b"]), "equally many, got 1 and 2 and 1"),
    (lambda: score("exact_match", "a", ["a"]), "predictions must be a sequence of strings, got the string 'a'"),
    (lambda: proportion_interval(3, 2), "got 3 and 2"),
    (lambda: proportion_interval(0, 0), "got 0 and 0"),
    (lambda: multiple_choice(torch.zeros(2, 3), torch.tensor([0, 3])), r"answers must be in 0\.\.2, got 0\.\.3"),
    (lambda: multiple_choice(torch.zeros(2, 3), torch.ones(2)), r"\(2,\) integers, got \(2,\) torch.float32"),
    (lambda: multiple_choice(torch.tensor([[0.0, torch.nan]]), torch.tensor([0])), "must be numbers, got 1 NaN"),
)


def test_multiple_choice_is_by_likelihood_and_a_tie_is_wrong():
    scores = torch.tensor([[-3.0, -1.0, -2.0], [-3.0, -1.0, -2.0], [-1.0, -1.0, -2.0], [-1.0, -1.0, -1.0]])
    assert multiple_choice(scores, torch.tensor([1, 0, 0, 0])).tolist() == [True, False, False, False]


@pytest.mark.parametrize(("right", "total"), [(0, 1), (0, 40), (7, 10), (300, 1000), (10, 10)])
def test_the_interval_is_wilsons(right, total):
    expected = stats.binomtest(right, total).proportion_ci(0.95, method="wilson")
    interval = proportion_interval(right, total)
    assert interval.value == right / total
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize(("metric", "name"), [("gsm8k", "gsm8k"), ("nq_open", "nq_open"), ("exact_match", "hellaswag")])
def test_every_real_gold_answer_is_right_and_an_empty_one_wrong(metric, name):
    lines = real_data(f"chat/{name}_sample.jsonl").read_text(encoding="utf-8").splitlines()
    golds = [json.loads(line)["messages"][2]["content"] for line in lines]
    answers = [gold.split("; ")[-1] for gold in golds] if metric == "nq_open" else golds
    wrong = [gold for gold, right in zip(golds, score(metric, answers, golds), strict=True) if not right]
    assert wrong == (["/"] if metric == "nq_open" else [])  # empty when normalised
    assert not any(score(metric, [""] * len(golds), golds))
