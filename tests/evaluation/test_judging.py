"""What cannot be judged is refused before anything is trained or generated."""

from __future__ import annotations

import pytest

from jepa.config import AnswersConfig
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.evaluation.judging import check_answers


def answers(metric: str, limit: int = 0, **changes: object) -> AnswersConfig:
    plain = {"split": "test", "metrics": [metric], "choices": [], "databases": None, "timeout_seconds": 1.0}
    return AnswersConfig(**{**plain, "limit": limit, "batch_size": 8, **changes})


def splits(*golds: str) -> ExampleSplits:
    pairs = [Example("how many?", gold, None, source=f"test.jsonl, line {i}") for i, gold in enumerate(golds, start=1)]
    return ExampleSplits(train=pairs, validation=pairs, test=pairs, duplicates={})


def test_a_right_answer_that_no_metric_can_read_is_named_by_its_line():
    good = "It is 4.\n#### 4"
    check_answers(answers("gsm8k"), splits(good))
    with pytest.raises(InputError, match=r"^test\.jsonl, line 2: gold must have a number after '####', got 'lines'"):
        check_answers(answers("gsm8k"), splits(good, "lines"))
    check_answers(answers("gsm8k", limit=1), splits(good, "lines"))  # what is not judged need not be readable


def test_a_missing_database_is_found_before_anything_is_generated(tmp_path):
    gold = "select 1"
    with pytest.raises(InputError, match=r"^test\.jsonl, line 1: "):
        check_answers(answers("spider", databases=str(tmp_path)), splits(gold))
