"""Scores beside the tokens and the operations that the answers took, each answer by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pytest
import torch

from jepa.data.world import CAPTION_QUERIES, SOLO_ACTIONS, Scene, World, captions, questions
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.evaluation.tasks import caption_scores, choice_cost, score_lines, score_tasks
from jepa.operations import count_flops
from jepa.results.documents import AnswerCost, CaptionScores
from jepa.selective import Decoded


def score(scenes: list[Scene], texts: list[str], tokens: list[int]) -> CaptionScores:
    decoded = [Decoded(text, n, n, flops=100 * n) for text, n in zip(texts, tokens, strict=True)]
    return caption_scores(decoded, [captions(scene) for scene in scenes], 5600)


def test_captions_have_what_they_cost():
    scenes = held_out_scenes(World(), 4, seed=0)
    texts = [captions(scenes[0])[0], captions(scenes[1])[-1], "nothing", ""]
    found = score(scenes, texts, [6, 8, 2, 1])
    assert found.exact_match == 0.5
    assert found.cost == AnswerCost(
        tokens_per_answer=17 / 4,
        tokens_per_right_answer=17 / 2,
        flops_per_answer=5600 + 1700 / 4,
        flops_per_right_answer=2 * 5600 + 1700 / 2,
    )
    assert found.per_token.accuracy_within[5:9] == (0, 0.25, 0.25, 0.5)
    found = score(scenes, ["nothing"] * 4, [6, 8, 2, 1])
    assert found.cost.tokens_per_right_answer is found.cost.flops_per_right_answer is None


@torch.no_grad()
def test_chosen_answers_cost_what_runs_for_each_alone(tiny_model):
    """Clip, prediction and products of each answer, and the candidates of all: everything counted anew."""
    world, model = World(), tiny_model
    scenes = held_out_scenes(world, 12, 0)
    clips = torch.from_numpy(held_out_clips(world, scenes, model.frames, 0))
    found = score_tasks(model, world, 0, 12, 5)

    def answer(row: int, query: str, texts: Sequence[str]) -> int:
        embedded = model.embed(texts)
        return count_flops(lambda: model.predict(model.encode(clips[row : row + 1]), [query]) @ embedded.T).total

    def candidates(texts: Iterable[str]) -> int:
        return sum(count_flops(lambda text=text: model.embed([text])).total for text in texts)

    texts = [captions(scene)[0] for scene in scenes]
    flops = answer(0, CAPTION_QUERIES[0], texts) + candidates(texts) / 12
    for k in ("1", "5"):
        assert found.retrieval.cost[k] == choice_cost(found.retrieval.recall[k], flops)
    assert found.geometry["retrieval@1"] == found.retrieval.recall["1"]

    spent, asked = 0, [(row, q) for row, scene in enumerate(scenes) for q in questions(scene)]
    overall = found.question_answering
    for kind, part in overall.by_question.items():
        chosen = [(row, q) for row, q in asked if q.kind == kind]
        flops = sum(answer(row, q.text, q.candidates) for row, q in chosen) + candidates(chosen[0][1].candidates)
        assert part.cost == choice_cost(part.accuracy, flops / len(chosen))
        spent += flops
    assert overall.cost == choice_cost(overall.accuracy, spent / len(asked))
    assert overall.cost.tokens_per_answer == 0

    row, solo = next((row, scene) for row, scene in enumerate(scenes) if scene.action in SOLO_ACTIONS)
    own = [captions(Scene(action, solo.objects))[0] for action in SOLO_ACTIONS]
    part = found.classification
    counts = [
        candidates(captions(Scene(action, scene.objects))[0] for action in SOLO_ACTIONS)
        for scene in scenes
        if scene.action in SOLO_ACTIONS
    ]
    flops = answer(row, CAPTION_QUERIES[0], own) + sum(counts) / len(counts)
    assert part.cost == choice_cost(part.accuracy, flops)
    lines = score_lines(found).splitlines()
    assert len(lines) == 1 + 2 + len(overall.by_question) + 2
    assert all("(chance " in line for line in lines[1:-2])


def test_an_accuracy_of_nothing_has_no_cost_of_a_right_answer():
    assert choice_cost(0.25, 100).flops_per_right_answer == pytest.approx(400)
    assert choice_cost(0.0, 100).flops_per_right_answer is None
