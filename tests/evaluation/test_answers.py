"""Answers of a checkpoint, judged: multiple choice by likelihood, and metrics that need more than two strings."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import language_config
from jepa.evaluation.language import evaluate_answers
from test_judging import answers

from jepa import checkpoint
from jepa.data.pairs import Example, ExampleSplits
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import count_flops
from jepa.selective import Decoded

CHOICES = ["yes", "no", "I cannot tell"]
ASKED = ["is it red?", "how long is it, and how wide?", "is it?", "lines with 'dog'", "is a line a word?"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm_jepa) -> Path:
    """A checkpoint with the record of a training that is none."""
    root = tmp_path_factory.mktemp("checkpoint")
    config = language_config() | {"arm": "none", "objective": {"direction": "forward", "view": "shared", "weight": 0.0}}
    checkpoint.save(tiny_llm_jepa, config, root)
    training = {"name": "llm_jepa", "steps": 0, "samples": 0, "tokens": 0, "flops": 0.0, "seconds": 0.0}
    (root / "training.json").write_text(json.dumps({"stages": [training]}), encoding="utf-8")
    return root


def evaluated(
    folder: Path, output: Path, judged: Any, pairs: list[Example]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    evaluate_answers(folder, output, judged, "cpu", ExampleSplits([], [], pairs, {}))
    lines = (output / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads((output / "evaluation.json").read_text(encoding="utf-8")), [json.loads(line) for line in lines]


@torch.no_grad()
def likelihood(model: LLMJEPA, request: str, choice: str) -> tuple[float, int]:
    """Log-likelihood of an answer to a request by the library's own forward pass, and the FLOPs of that."""
    [ids] = model.tokenizer.encode([Example(request, choice, None)])
    said, whole = ids.completion[ids.opening :], torch.tensor([[*ids.prompt, *ids.completion]])
    log_probabilities = model.language.lm(whole).logits[0, -len(said) - 1 : -1].log_softmax(-1)
    flops = count_flops(lambda: model.language.lm(whole, logits_to_keep=len(said))).total
    return float(log_probabilities[torch.arange(len(said)), torch.tensor(said)].sum()), flops


def test_multiple_choice_takes_the_likeliest_answer_by_the_librarys_own_likelihoods(folder, tmp_path, tiny_llm_jepa):
    pairs = [Example(request, CHOICES[i % 3], None) for i, request in enumerate(ASKED)]
    judged = answers("multiple_choice", choices=CHOICES, batch_size=2)
    record, lines = evaluated(folder, tmp_path, judged, pairs)
    scores = [[likelihood(tiny_llm_jepa, request, choice) for choice in CHOICES] for request in ASKED]
    chosen = [CHOICES[max(range(3), key=lambda c: row[c][0])] for row in scores]
    assert [line["prediction"] for line in lines] == chosen
    right = [text == pair.completion for text, pair in zip(chosen, pairs, strict=True)]
    assert [line["multiple_choice"] for line in lines] == right
    score = record["scores"]["multiple_choice"]
    assert score["accuracy"] == sum(right) / len(right)
    assert score["cost"]["flops_per_answer"] == sum(flops for row in scores for _, flops in row) / len(ASKED)
    assert score["cost"]["tokens_per_answer"] == record["generation"]["tokens"] == 0


def say(monkeypatch: pytest.MonkeyPatch, texts: dict[str, str]) -> None:
    """Puts answers into the model's mouth, by request."""

    def generate(model: LLMJEPA, pairs: list[Example], batch_size: int) -> list[Decoded]:
        return [Decoded(texts[pair.prompt], tokens=3, forward_passes=3, flops=10) for pair in pairs]

    monkeypatch.setattr("jepa.evaluation.language.generate", generate)


def test_spiders_answers_are_judged_by_running_them(folder, tmp_path, monkeypatch):
    (tmp_path / "shop").mkdir()
    with closing(sqlite3.connect(tmp_path / "shop" / "shop.sqlite")) as connection:
        connection.executescript(
            "CREATE TABLE item (name TEXT, price INT); INSERT INTO item VALUES ('pear', 1), ('fig', 2);"
        )
    answered = {  # the right answer, and what is said
        "Names": ("SELECT name FROM item", "select name from item order by name"),
        "Dearest": ("SELECT name FROM item ORDER BY price DESC", "select name from item order by price"),
        "Prices": ("SELECT price FROM item", "select"),
        "Sum": ("SELECT 3", "SELECT sum(price) FROM item"),
    }
    asked = {what: f"For db_id:[shop]\n\n{what}?" for what in answered}
    say(monkeypatch, {asked[what]: said for what, (_, said) in answered.items()})
    pairs = [Example(asked[what], gold, None) for what, (gold, _) in answered.items()]
    record, lines = evaluated(folder, tmp_path / "out", answers("spider", databases=str(tmp_path)), pairs)
    assert [line["spider"] for line in lines] == [True, False, False, True]
    assert record["scores"]["spider"]["cost"]["tokens_per_right_answer"] == 6


def test_gsm8ks_answers_are_judged_by_their_final_number(folder, tmp_path, monkeypatch):
    golds = {"sum?": "1,000 and 200.\n#### 1,200", "half?": "#### 4", "all?": "#### -7"}
    say(monkeypatch, {"sum?": "that is #### $1200.00, so", "half?": "4", "all?": "#### -7"})
    pairs = [Example(request, gold, None) for request, gold in golds.items()]
    record, lines = evaluated(folder, tmp_path, answers("gsm8k"), pairs)
    assert [line["gsm8k"] for line in lines] == [True, False, True]
    assert record["scores"]["gsm8k"]["accuracy"] == pytest.approx(2 / 3)
