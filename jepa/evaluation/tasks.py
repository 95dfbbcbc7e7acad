"""Zero-shot tasks of a VL-JEPA on held-out compositions: everything but captioning is a nearest embedding.

N clips, M candidates, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.data.world import CAPTION_QUERIES, SOLO_ACTIONS, Question, Scene, World, captions, questions
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.metrics import cider_d, paired_cosine, rankme, retrieval_ranks, unpaired_cosine
from jepa.metrics.per_token import answer_costs, choice_costs
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import similarity_flops
from jepa.results.documents import (
    AnswerCost,
    CaptionScores,
    ChoiceScores,
    PerToken,
    QuestionScores,
    RetrievalScores,
    Scores,
)
from jepa.selective import Decoded

CAPTION_TOKENS = 32  # the largest budget of exact match against tokens


def score_tasks(model: VLJEPA, world: World, seed: int, candidates: int, batch_size: int) -> Scores:
    """Scores on one clip of each of `candidates` distinct held-out compositions, with the cost of an answer.

    - Retrieval: the clip's predicted embedding under a caption query, against the captions of all compositions.
    - Classification: the action of solo clips, by the nearest of one caption an action with the clip's own object.
    - Question answering: the nearest of the question's candidate answers.
    - Captioning: greedy text against all paraphrases.
    """
    scenes = held_out_scenes(world, candidates, seed)
    clips = torch.from_numpy(held_out_clips(world, scenes, model.frames, seed))
    starts = tqdm(range(0, len(scenes), batch_size), desc="task clips", unit="batch", leave=False)
    states = torch.cat([model.encode(clips[i : i + batch_size]) for i in starts])

    def predict(queries: Sequence[str], rows: Sequence[int]) -> Tensor:
        """Embeddings (len(rows), E) of the clips `rows` under one query each."""
        parts = [
            model.predict(states[list(rows[i : i + batch_size])], queries[i : i + batch_size])
            for i in range(0, len(rows), batch_size)
        ]
        return torch.cat(parts).cpu()

    predictions = predict([CAPTION_QUERIES[0]] * len(scenes), range(len(scenes)))
    texts = [captions(scene)[0] for scene in scenes]
    targets = model.embed_all(texts)
    labels = torch.arange(len(scenes))
    ranks = retrieval_ranks(predictions, targets, labels, labels)
    recall = {k: float(ranks.recall(k).float().mean()) for k in (1, 5)}
    flops = answer_flops(model, CAPTION_QUERIES[0], *targets.shape) + embedding_flops(model, texts) / len(scenes)
    before = model.clip_flops() + model.query_flops(CAPTION_QUERIES[0])
    return Scores(
        retrieval=RetrievalScores(
            candidates=len(scenes),
            queries=len(scenes),
            chance=1 / len(scenes),
            recall={str(k): value for k, value in recall.items()},
            cost={str(k): choice_cost(value, flops) for k, value in recall.items()},
        ),
        classification=_classification(model, scenes, predictions),
        question_answering=_question_answering(model, scenes, predict),
        captioning=caption_scores(model.decode(predictions), [captions(scene) for scene in scenes], before),
        geometry={
            "retrieval@1": recall[1],
            "rankme": float(rankme(predictions)),
            "paired_cosine": float(paired_cosine(predictions, targets)),
            "unpaired_cosine": float(unpaired_cosine(predictions, targets)),
        },
    )


def answer_flops(model: VLJEPA, query: str, candidates: int, width: int) -> int:
    """FLOPs of an answer alone, without padding: its clip encoded, its embedding (E,) predicted and compared with M.

    Where questions share a clip, each counts the whole clip. `embedding_flops` counts the candidates.
    """
    return model.clip_flops() + model.query_flops(query) + similarity_flops(1, candidates, width)


def embedding_flops(model: VLJEPA, texts: Iterable[str]) -> int:
    """FLOPs of embedding candidate texts once each, without padding."""
    return sum(model.text_flops(text) for text in texts)


def choice_cost(accuracy: float, flops: float) -> AnswerCost:
    """The cost of answers that are chosen among candidates: no token is generated."""
    return AnswerCost.model_validate(choice_costs(accuracy, flops), from_attributes=True)


def score_line(
    name: str,
    value: float,
    chance: float | None = None,
    interval: tuple[float, float] | None = None,
    cost: AnswerCost | None = None,
) -> str:
    """A score with its interval, chance level, and the tokens and FLOPs of an answer and of a right one."""
    line = f"{name:32} {value:7.3f}"
    if interval is not None:
        line += f"  ({interval[0]:.3f} to {interval[1]:.3f})"
    if chance is not None:
        line += f"  (chance {chance:.3f})"
    if cost is None:
        return line
    line += f"  {cost.tokens_per_answer:.3g} tokens, {cost.flops_per_answer:.3g} FLOPs an answer; a right one: "
    if cost.flops_per_right_answer is None:
        return line + "none"
    return line + f"{cost.tokens_per_right_answer:.3g} tokens, {cost.flops_per_right_answer:.3g} FLOPs"


def score_lines(scores: Scores) -> str:
    """Each score beside its chance level and its cost, a line each."""
    retrieval, captioning = scores.retrieval, scores.captioning
    parts = {"classification": scores.classification}
    parts |= {f"question: {kind}": part for kind, part in scores.question_answering.by_question.items()}
    name = f"retrieval R@1 of {retrieval.candidates}"
    lines = [
        "held-out compositions",
        score_line(name, retrieval.recall["1"], retrieval.chance, cost=retrieval.cost["1"]),
        *(score_line(name, part.accuracy, part.chance, cost=part.cost) for name, part in parts.items()),
        score_line("caption CIDEr-D (0-10)", captioning.cider_d),
        score_line("caption exact match", captioning.exact_match, cost=captioning.cost),
    ]
    return "\n".join(lines)


def caption_scores(decoded: Sequence[Decoded], references: Sequence[Sequence[str]], before: int) -> CaptionScores:
    """CIDEr-D (x10, mean) of N captions, the fraction that is one of their references, and the cost.

    Accuracy against tokens reaches to `CAPTION_TOKENS`. `before`: FLOPs of each caption until it is decoded.
    """
    texts, tokens = [d.text for d in decoded], torch.tensor([d.tokens for d in decoded])
    right = torch.tensor([text in refs for text, refs in zip(texts, references, strict=True)])
    flops = torch.tensor([before + d.flops for d in decoded], dtype=torch.float64)
    costs = answer_costs(right, tokens, flops, CAPTION_TOKENS)
    return CaptionScores(
        queries=len(decoded),
        cider_d=float(cider_d(texts, references).mean()),
        exact_match=float(right.double().mean()),
        cost=AnswerCost(**{name: value for name, value in costs.items() if name in AnswerCost.model_fields}),
        per_token=PerToken(**{name: value for name, value in costs.items() if name in PerToken.model_fields}),
    )


def _nearest(predictions: Tensor, candidates: Tensor) -> Tensor:
    """Index (N,) of the nearest of M candidates: `candidates` is (M, E), or (N, M, E) for a set of each row's own."""
    return torch.einsum("ne,nme->nm", predictions, candidates.expand(len(predictions), -1, -1)).argmax(-1)


def _classification(model: VLJEPA, scenes: Sequence[Scene], predictions: Tensor) -> ChoiceScores:
    """Which solo action a solo clip shows: the candidates are one caption an action, with the clip's own object."""
    rows = [row for row, scene in enumerate(scenes) if scene.action in SOLO_ACTIONS]
    actions = list(SOLO_ACTIONS)
    texts = [captions(Scene(action, scenes[row].objects))[0] for row in rows for action in actions]
    candidates = model.embed_all(texts).reshape(len(rows), len(actions), -1)
    chosen = _nearest(predictions[rows], candidates).tolist()
    accuracy = float(np.mean([actions[c] == scenes[row].action for c, row in zip(chosen, rows, strict=True)]))
    flops = answer_flops(model, CAPTION_QUERIES[0], *candidates.shape[1:]) + embedding_flops(model, texts) / len(rows)
    return _choice(accuracy, len(rows), len(actions), flops)


def _question_answering(
    model: VLJEPA, scenes: Sequence[Scene], predict: Callable[[Sequence[str], Sequence[int]], Tensor]
) -> QuestionScores:
    asked: list[tuple[int, Question]] = [(row, q) for row, scene in enumerate(scenes) for q in questions(scene)]
    predictions = predict([q.text for _, q in asked], [row for row, _ in asked])
    by_kind: dict[str, list[int]] = {}
    for index, (_, question) in enumerate(asked):
        by_kind.setdefault(question.kind, []).append(index)
    results, total, spent = {}, 0, 0
    for kind, rows in by_kind.items():
        candidates = asked[rows[0]][1].candidates
        embedded = model.embed_all(candidates)
        chosen = _nearest(predictions[rows], embedded)
        hits = sum(candidates[c] == asked[row][1].answer for c, row in zip(chosen.tolist(), rows, strict=True))
        flops = sum(answer_flops(model, asked[row][1].text, *embedded.shape) for row in rows)
        flops += embedding_flops(model, candidates)
        total, spent = total + hits, spent + flops
        results[kind] = _choice(hits / len(rows), len(rows), len(candidates), flops / len(rows))
    accuracy = total / len(asked)
    cost = choice_cost(accuracy, spent / len(asked))
    return QuestionScores(queries=len(asked), accuracy=accuracy, cost=cost, by_question=results)


def _choice(accuracy: float, queries: int, candidates: int, flops: float) -> ChoiceScores:
    chance, cost = 1 / candidates, choice_cost(accuracy, flops)
    return ChoiceScores(queries=queries, accuracy=accuracy, candidates=candidates, chance=chance, cost=cost)
