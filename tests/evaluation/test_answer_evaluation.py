"""Evaluation of a language model's answers: checks beforehand, choices by likelihood, generated answers scored."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import language_config, refuses

from jepa import checkpoint
from jepa.config import AnswersConfig
from jepa.data.pairs import Example, ExampleSplits
from jepa.evaluation.answers import check_answers, evaluate_answers
from jepa.evaluation.generation import Generated
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import TRAINING_PARTS, PartCount, count_flops
from jepa.results import AnswerEvaluation, read_document
from jepa.selective import Decoded

CHOICES = ["yes", "no", "I cannot tell"]
ASKED = ["is it red?", "how long is it, and how wide?", "is it?", "lines with 'dog'", "is a line a word?"]
OBJECTIVE = {
    "weight": 0.0, "next_token_weight": 1.0, "latent": "prediction", "loss": {}, "regulariser": None,
    "regulariser_weight": 0.0, "target": "gradient", "ema_decay": 0.99, "loss_dropout": 0.0, "direction": "forward",
    "view": "shared", "rows": "packed", "train_on": "answer", "pairs": "paired",
}  # fmt: skip


def answers(metric: str, limit: int = 0, **changes: Any) -> AnswersConfig:
    plain = {"split": "test", "metrics": [metric], "choices": [], "databases": None, "timeout_seconds": 1.0}
    return AnswersConfig(**{**plain, "limit": limit, "batch_size": 8, **changes})


def splits(*golds: str) -> ExampleSplits:
    pairs = [Example("how many?", gold, None, source=f"test.jsonl, line {i}") for i, gold in enumerate(golds, start=1)]
    return ExampleSplits(train=pairs, validation=pairs, test=pairs, duplicates={})


# --- Checks beforehand.


def test_a_right_answer_that_no_metric_can_read_is_named_by_its_line():
    good = "It is 4.\n#### 4"
    check_answers(answers("gsm8k"), splits(good))
    refuses(r"^test\.jsonl, line 2: .*'lines'", lambda: check_answers(answers("gsm8k"), splits(good, "lines")))
    check_answers(answers("gsm8k", limit=1), splits(good, "lines"))  # an answer that is not scored may be unreadable


def test_a_missing_database_is_found_before_anything_is_generated(tmp_path):
    refuses(r"^test\.jsonl, line 1: ", check_answers, answers("spider", databases=str(tmp_path)), splits("select 1"))


# --- A checkpoint with random weights.

PART = {"calls": 2, "flops": 3, "weight_bytes": 4, "seconds": 0.5, "forward_passes": 1, "tokens": 0, "cache_bytes": 0}
STAGE = {
    "name": "llm_jepa", "steps": 5, "samples": 40, "tokens": 90, "flops": 1e6, "seconds": 0.5, "pairs": 8,
    "duplicates": {}, "steps_stretched": 1.0, "curve": [{"step": 4, "loss": float("nan")}, {"step": 5, "loss": 2.0}],
    "operations": {"steps": 5, "parts": dict.fromkeys(TRAINING_PARTS, PART)},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, tiny_llm_jepa: LLMJEPA) -> Path:
    """A checkpoint beside the record of a training."""
    root = tmp_path / "checkpoint"
    checkpoint.save(tiny_llm_jepa, language_config() | {"arm": "none", "objective": OBJECTIVE}, root)
    (root / "training.json").write_text(json.dumps({"stages": [STAGE]}), encoding="utf-8")
    return root


def evaluated(folder: Path, config: AnswersConfig, pairs: list[Example]) -> tuple[AnswerEvaluation, list[dict]]:
    output = folder.parent / "evaluation"
    evaluate_answers(folder, output, config, "cpu", ExampleSplits([], [], pairs, {}))
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return read_document(output, AnswerEvaluation), [json.loads(line) for line in lines]


@torch.no_grad()
def likelihood(model: LLMJEPA, prompt: str, choice: str) -> tuple[float, int]:
    """Log-likelihood of an answer by the library's own forward pass, and the FLOPs of that pass."""
    [ids] = model.tokenizer.encode([Example(prompt, choice, None)])
    said, whole = ids.completion[ids.opening :], torch.tensor([[*ids.prompt, *ids.completion]])
    log_probabilities = model.language.lm(whole).logits[0, -len(said) - 1 : -1].log_softmax(-1)
    flops = count_flops(lambda: model.language.lm(whole, logits_to_keep=len(said))).total
    return float(log_probabilities[torch.arange(len(said)), torch.tensor(said)].sum()), flops


def test_multiple_choice_takes_the_likeliest_answer_by_the_librarys_own_likelihoods(folder, tiny_llm_jepa):
    pairs = [Example(prompt, CHOICES[i % 3], None) for i, prompt in enumerate(ASKED)]
    document, lines = evaluated(folder, answers("multiple_choice", choices=CHOICES, batch_size=2), pairs)
    scores = [[likelihood(tiny_llm_jepa, prompt, choice) for choice in CHOICES] for prompt in ASKED]
    chosen = [CHOICES[max(range(3), key=lambda c: row[c][0])] for row in scores]
    assert [line["prediction"] for line in lines] == chosen
    assert [(line["prompt"], line["completion"]) for line in lines] == [(p.prompt, p.completion) for p in pairs]
    right = [text == pair.completion for text, pair in zip(chosen, pairs, strict=True)]
    assert [line["multiple_choice"] for line in lines] == right
    score = document.scores["multiple_choice"]
    assert score.accuracy == sum(right) / len(right)
    assert score.cost.flops_per_answer == sum(flops for row in scores for _, flops in row) / len(ASKED)
    assert score.cost.tokens_per_answer == document.generation.tokens == 0


def say(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """Puts answers into the model's mouth, by prompt."""

    def generate(model: LLMJEPA, pairs: list[Example], batch_size: int, **options: Any) -> Generated:
        answers = [Decoded(texts[pair.prompt], tokens=3, forward_passes=3, flops=10) for pair in pairs]
        return Generated(answers, [], PartCount(calls=len(pairs)))

    monkeypatch.setattr("jepa.evaluation.generation.generate", generate)


def test_spiders_answers_are_scored_by_running_them(folder, tmp_path, monkeypatch):
    (tmp_path / "shop").mkdir()
    with closing(sqlite3.connect(tmp_path / "shop" / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price INT); INSERT INTO item VALUES ('pear', 1), ('fig', 2);"
        )
    answered = {  # the right answer, and the model's
        "Names": ("SELECT name FROM item", "select name from item order by name"),
        "Dearest": ("SELECT name FROM item ORDER BY price DESC", "select name from item order by price"),
        "Prices": ("SELECT price FROM item", "select"),
        "Sum": ("SELECT 3", "SELECT sum(price) FROM item"),
    }
    asked = {what: f"For db_id:[shop]\n\n{what}?" for what in answered}
    say(monkeypatch, {asked[what]: said for what, (_, said) in answered.items()})
    pairs = [Example(asked[what], gold, None) for what, (gold, _) in answered.items()]
    document, lines = evaluated(folder, answers("spider", databases=str(tmp_path)), pairs)
    assert [line["spider"] for line in lines] == [True, False, False, True]
    assert document.scores["spider"].accuracy == 0.5
    assert document.scores["spider"].cost.tokens_per_right_answer == 6


def test_the_training_of_all_stages_is_added_up(folder, monkeypatch):
    say(monkeypatch, {"sum?": "#### 4"})
    uncounted = STAGE | {"operations": None}
    for stages, counted in (([STAGE, STAGE], True), ([STAGE, uncounted], False)):
        (folder / "training.json").write_text(json.dumps({"stages": stages}), encoding="utf-8")
        training = evaluated(folder, answers("gsm8k"), [Example("sum?", "#### 4", None)])[0].training
        assert (training.steps, training.tokens, training.flops, training.pairs) == (10, 180, 2e6, 8)
        assert training.curve == ({"step": 4, "loss": None}, {"step": 5, "loss": 2.0})  # a NaN is no number
        assert (training.operations is not None) == counted
        if training.operations is not None:
            assert training.operations.steps == 10
            part = training.operations.parts["encoder"]
            assert (part.calls, part.flops, part.weight_bytes, part.seconds) == (4, 6, 8, 1.0)
