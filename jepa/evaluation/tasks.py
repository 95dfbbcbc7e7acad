"""Zero-shot tasks of a VL-JEPA on held-out compositions: everything but captioning is a nearest embedding.

N clips, M candidates, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.data.world import CAPTION_QUERIES, SOLO_ACTIONS, Question, Scene, World, captions, questions
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.metrics import cider_d, paired_cosine, rankme, retrieval_at_k, unpaired_cosine
from jepa.metrics.per_token import answer_costs, choice_costs
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import similarity_flops
from jepa.selective import Decoded


def score_tasks(model: VLJEPA, world: World, seed: int, candidates: int, batch_size: int) -> dict[str, Any]:
    """Scores on one clip of each of `candidates` distinct held-out compositions, each accuracy with its `cost`.

    - retrieval: the clip's predicted embedding under a caption query against the canonical captions of all
      `candidates` compositions; R@1, R@5.
    - classification: the action of solo clips, by the nearest of one caption an action with the clip's own object.
    - question answering: the nearest of the question's candidate answers.
    - captioning: greedy text against all paraphrases; CIDEr-D (x10, mean) and the fraction that is one of them.

    A cost is of an answer alone (`answer_flops`), and of a right one: tokens generated, and FLOPs.
    """
    scenes = held_out_scenes(world, candidates, seed)
    clips = torch.from_numpy(held_out_clips(world, scenes, model.frames, seed))
    states = [model.encode(clips[i : i + batch_size]) for i in _batches(len(scenes), batch_size, "task clips")]

    def predict(queries: Sequence[str], rows: Sequence[int]) -> Tensor:
        """Embeddings (len(rows), E) of the clips `rows` under one query each."""
        every = torch.cat(states)
        parts = [
            model.predict(every[list(rows[i : i + batch_size])], queries[i : i + batch_size])
            for i in range(0, len(rows), batch_size)
        ]
        return torch.cat(parts).cpu()

    everything = range(len(scenes))
    predictions = predict([CAPTION_QUERIES[0]] * len(scenes), everything)
    texts = [captions(scene)[0] for scene in scenes]
    targets = model.embed_all(texts)
    labels = torch.arange(len(scenes))
    at = {k: float(retrieval_at_k(predictions, targets, labels, k)) for k in (1, 5)}
    flops = answer_flops(model, CAPTION_QUERIES[0], *targets.shape) + embedding_flops(model, texts) / len(scenes)
    return {
        "retrieval": {
            "candidates": len(scenes),
            "queries": len(scenes),
            "r@1": at[1],
            "r@5": at[5],
            "chance": 1 / len(scenes),
            "cost": {f"r@{k}": choice_costs(fraction, flops) for k, fraction in at.items()},
        },
        "classification": _classification(model, scenes, predictions),
        "question_answering": _question_answering(model, scenes, predict),
        "captioning": _captioning(model, scenes, predictions),
        "geometry": {
            "retrieval@1": at[1],
            "rankme": float(rankme(predictions)),
            "paired_cosine": float(paired_cosine(predictions, targets)),
            "unpaired_cosine": float(unpaired_cosine(predictions, targets)),
        },
    }


def answer_flops(model: VLJEPA, query: str, candidates: int, width: int) -> int:
    """FLOPs of an answer alone, without padding: its clip encoded, its embedding (E,) predicted and compared with M.

    Where questions share a clip, each counts what it would take by itself. To embed the candidates is
    `embedding_flops`; of candidates that answers share, each answer bears an equal part.
    """
    return model.clip_flops() + model.query_flops(query) + similarity_flops(1, candidates, width)


def embedding_flops(model: VLJEPA, texts: Iterable[str]) -> int:
    """FLOPs of embedding candidate texts once each, without padding."""
    return sum(model.text_flops(text) for text in texts)


def cost_line(cost: Mapping[str, Any]) -> str:
    """Tokens and FLOPs of an answer, and of a right one."""
    line = f"{cost['tokens_per_answer']:.3g} tokens, {cost['flops_per_answer']:.3g} FLOPs an answer; a right one: "
    if cost["flops_per_right_answer"] is None:
        return line + "none"
    return line + f"{cost['tokens_per_right_answer']:.3g} tokens, {cost['flops_per_right_answer']:.3g} FLOPs"


def _batches(count: int, size: int, what: str) -> Any:
    return tqdm(range(0, count, size), desc=what, unit="batch", leave=False)


def _nearest(predictions: Tensor, candidates: Tensor) -> Tensor:
    """Index (N,) of the nearest of M candidates: `candidates` is (M, E), or (N, M, E) for a set of each row's own."""
    return torch.einsum("ne,nme->nm", predictions, candidates.expand(len(predictions), -1, -1)).argmax(-1)


def _classification(model: VLJEPA, scenes: Sequence[Scene], predictions: Tensor) -> dict[str, Any]:
    """Which solo action a solo clip shows: the candidates are one caption an action, with the clip's own object."""
    rows = [row for row, scene in enumerate(scenes) if scene.action in SOLO_ACTIONS]
    actions = list(SOLO_ACTIONS)
    texts = [captions(Scene(action, scenes[row].objects))[0] for row in rows for action in actions]
    candidates = model.embed_all(texts).reshape(len(rows), len(actions), -1)
    chosen = _nearest(predictions[rows], candidates).tolist()
    accuracy = float(np.mean([actions[c] == scenes[row].action for c, row in zip(chosen, rows, strict=True)]))
    flops = answer_flops(model, CAPTION_QUERIES[0], *candidates.shape[1:]) + embedding_flops(model, texts) / len(rows)
    return {
        "candidates": len(actions),
        "queries": len(rows),
        "accuracy": accuracy,
        "chance": 1 / len(actions),
        "cost": choice_costs(accuracy, flops),
    }


def _question_answering(model: VLJEPA, scenes: Sequence[Scene], predict: Any) -> dict[str, Any]:
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
        results[kind] = {
            "accuracy": hits / len(rows),
            "candidates": len(candidates),
            "chance": 1 / len(candidates),
            "queries": len(rows),
            "cost": choice_costs(hits / len(rows), flops / len(rows)),
        }
    accuracy = total / len(asked)
    cost = choice_costs(accuracy, spent / len(asked))
    return {"queries": len(asked), "accuracy": accuracy, "cost": cost, "by_question": results}


def _captioning(model: VLJEPA, scenes: Sequence[Scene], predictions: Tensor) -> dict[str, Any]:
    before = model.clip_flops() + model.query_flops(CAPTION_QUERIES[0])
    return caption_scores(model.decode(predictions), [captions(scene) for scene in scenes], before)


CAPTION_TOKENS = 32  # the largest budget of exact match against tokens


def caption_scores(decoded: Sequence[Decoded], references: Sequence[Sequence[str]], before: int) -> dict[str, Any]:
    """CIDEr-D (x10, mean) of N captions, the fraction that is one of their references, and what they cost.

    OckScore and the curve of accuracy within 0, 1, ..., `CAPTION_TOKENS` tokens, with its area, are of that share, and
    so is the cost of a right caption. `before`: FLOPs of each until it is decoded.
    """
    texts, tokens = [d.text for d in decoded], torch.tensor([d.tokens for d in decoded])
    right = torch.tensor([text in refs for text, refs in zip(texts, references, strict=True)])
    flops = torch.tensor([before + d.flops for d in decoded], dtype=torch.float64)
    costs = answer_costs(right, tokens, flops, CAPTION_TOKENS)
    return {
        "queries": len(decoded),
        "cider_d": float(cider_d(texts, references).mean()),
        "exact_match": float(right.double().mean()),
        "cost": {name: costs.pop(name) for name in [*costs] if name.endswith("_answer")},
        **costs,
    }
