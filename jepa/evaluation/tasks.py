"""Zero-shot tasks of a VL-JEPA on held-out compositions: everything but captioning is a nearest embedding.

N clips, M candidates, E embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from jepa.data.world import CAPTION_QUERIES, SOLO_ACTIONS, Question, Scene, World, captions, questions
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.metrics import (
    accuracy_area,
    accuracy_within,
    cider_d,
    cost_of_pass,
    ock_score,
    paired_cosine,
    rankme,
    retrieval_at_k,
    unpaired_cosine,
)
from jepa.models.vl_jepa import VLJEPA
from jepa.selective import Decoded


def score_tasks(model: VLJEPA, world: World, seed: int, candidates: int, batch_size: int) -> dict[str, Any]:
    """Scores on one clip of each of `candidates` distinct held-out compositions.

    - retrieval: the clip's predicted embedding under a caption query against the canonical captions of all
      `candidates` compositions; R@1, R@5.
    - classification: the action of solo clips, by the nearest of one caption an action with the clip's own object.
    - question answering: the nearest of the question's candidate answers.
    - captioning: greedy text against all paraphrases; CIDEr-D (x10, mean) and the share that is one of them;
      generated tokens of a caption, those of one right by that share (`cost_of_pass`, None: none is), and the FLOPs of
      decoding a caption.
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
    targets = model.embed_all([captions(scene)[0] for scene in scenes])
    labels = torch.arange(len(scenes))
    at = {k: float(retrieval_at_k(predictions, targets, labels, k)) for k in (1, 5)}
    return {
        "retrieval": {
            "candidates": len(scenes),
            "queries": len(scenes),
            "r@1": at[1],
            "r@5": at[5],
            "chance": 1 / len(scenes),
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
    right = [actions[c] == scenes[row].action for c, row in zip(chosen, rows, strict=True)]
    return {
        "candidates": len(actions),
        "queries": len(rows),
        "accuracy": float(np.mean(right)),
        "chance": 1 / len(actions),
    }


def _question_answering(model: VLJEPA, scenes: Sequence[Scene], predict: Any) -> dict[str, Any]:
    asked: list[tuple[int, Question]] = [(row, q) for row, scene in enumerate(scenes) for q in questions(scene)]
    predictions = predict([q.text for _, q in asked], [row for row, _ in asked])
    by_kind: dict[str, list[int]] = {}
    for index, (_, question) in enumerate(asked):
        by_kind.setdefault(question.kind, []).append(index)
    results, total = {}, 0
    for kind, rows in by_kind.items():
        candidates = asked[rows[0]][1].candidates
        chosen = _nearest(predictions[rows], model.embed_all(candidates))
        hits = sum(candidates[c] == asked[row][1].answer for c, row in zip(chosen.tolist(), rows, strict=True))
        total += hits
        results[kind] = {
            "accuracy": hits / len(rows),
            "candidates": len(candidates),
            "chance": 1 / len(candidates),
            "queries": len(rows),
        }
    return {"queries": len(asked), "accuracy": total / len(asked), "by_question": results}


def _captioning(model: VLJEPA, scenes: Sequence[Scene], predictions: Tensor) -> dict[str, Any]:
    return caption_scores(model.decode(predictions), [captions(scene) for scene in scenes])


CAPTION_TOKENS = 32  # the largest budget of exact match against tokens


def caption_scores(decoded: Sequence[Decoded], references: Sequence[Sequence[str]]) -> dict[str, Any]:
    """CIDEr-D (x10, mean) of N captions, the share that is one of their references, and what they cost to decode.

    OckScore and the curve of accuracy within 0, 1, ..., `CAPTION_TOKENS` tokens, with its area, are of that share.
    """
    texts, tokens = [d.text for d in decoded], torch.tensor([d.tokens for d in decoded])
    right = torch.tensor([text in refs for text, refs in zip(texts, references, strict=True)])
    return {
        "queries": len(decoded),
        "cider_d": float(cider_d(texts, references).mean()),
        "exact_match": float(right.double().mean()),
        "tokens_per_caption": float(tokens.double().mean()),
        "tokens_per_right_caption": float(cost_of_pass(right, tokens)) if right.any() else None,
        "flops_per_caption": float(np.mean([d.flops for d in decoded])),
        "ock_score": float(ock_score(right, tokens)),
        "accuracy_within": accuracy_within(right, tokens, CAPTION_TOKENS).tolist(),
        "accuracy_area": float(accuracy_area(right, tokens, CAPTION_TOKENS)),
    }
