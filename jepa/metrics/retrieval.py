"""Retrieval by cosine: recall at k and the median rank.

Rows that are level with the right one, within 16 times the machine epsilon, count as if they stood in random order: a
collapsed model scores chance.

N: queries; M: rows of the gallery; E: embedding dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError
from jepa.metrics.checks import integers, matrix

_QUERIES_AT_ONCE, _CELLS_AT_ONCE = 1024, 2**24  # bound the similarity matrix held in memory


class Ranks(NamedTuple):
    """What stands before and beside the first right row of each of N queries: each (N,) integers.

    `nearer` wrong rows are nearer than it; `wrong` and `right` rows are level with it, itself among the `right`.

    >>> Ranks(nearer=torch.tensor([0, 1]), wrong=torch.tensor([1, 0]), right=torch.tensor([1, 1])).expected().tolist()
    [1.5, 2.0]
    """

    nearer: Tensor
    wrong: Tensor
    right: Tensor

    def recall(self, k: int) -> Tensor:
        """The chance (N,) float64 that a right row is among the first k.

        1 − C(w, m) / C(w + r, m): that none of the r right rows is among m = k − nearer drawn from all that are level.
        """
        level = (self.wrong + self.right).double()
        drawn = (k - self.nearer).double().clamp(min=0)
        drawn = torch.minimum(drawn, level)
        wrong, missed = self.wrong.double(), (self.wrong - drawn).clamp(min=0)
        log_miss = torch.lgamma(wrong + 1) - torch.lgamma(missed + 1)
        log_miss += torch.lgamma(level - drawn + 1) - torch.lgamma(level + 1)
        return torch.where(drawn > wrong, 1.0, -torch.expm1(log_miss))

    def expected(self) -> Tensor:
        """The expected rank (N,) float64 of the first right row; the nearest row has rank 1."""
        return 1 + self.nearer + self.wrong / (self.right + 1.0).double()


def retrieval_ranks(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Ranks:
    """Where the first right row of a gallery (M, E) stands for each query (N, E), of any norm.

    A row is right where its id (M,) equals the query's (N,); several may be (the captions of a clip), and the nearest
    of them counts. Other shapes, values that are not finite, and queries without a right row raise `InputError`.

    >>> ranks = retrieval_ranks(torch.eye(3), torch.eye(3), torch.arange(3), torch.arange(3))
    >>> ranks.recall(1).tolist()
    [1.0, 1.0, 1.0]
    """
    queries, gallery = matrix("queries", queries), matrix("gallery", gallery)
    query_ids = integers("query_ids", query_ids, len(queries))
    gallery_ids = integers("gallery_ids", gallery_ids, len(gallery))
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(f"queries and gallery must have the same E, got {queries.shape[1]} and {gallery.shape[1]}")
    alone = query_ids[~torch.isin(query_ids, gallery_ids)]
    if len(alone):
        raise InputError(f"every query must have a row of its id in the gallery, got none for the id {int(alone[0])}")

    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    level = 16 * torch.finfo(queries.dtype).eps
    rows = max(1, min(_QUERIES_AT_ONCE, _CELLS_AT_ONCE // len(gallery)))
    parts = []
    for part, ids in zip(queries.split(rows), query_ids.split(rows), strict=True):
        cosines, own = part @ gallery.T, ids[:, None] == gallery_ids
        lead = cosines - cosines.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        beside = lead.abs() <= level
        parts.append(Ranks((lead > level).sum(1), (beside & ~own).sum(1), (beside & own).sum(1)))
    return Ranks(*(torch.cat(each) for each in zip(*parts, strict=True)))


def chance_ranks(query_ids: Tensor, gallery_ids: Tensor) -> Ranks:
    """The ranks of a model that tells nothing apart: every row is level."""
    distinct, counts = gallery_ids.unique(return_counts=True)
    right = counts[torch.searchsorted(distinct, query_ids)]
    return Ranks(torch.zeros_like(right), len(gallery_ids) - right, right)


def retrieval_scores(
    clips: Tensor, clip_ids: Tensor, texts: Tensor, text_ids: Tensor, ks: Sequence[int]
) -> dict[str, dict[str, Any]]:
    """Scores of ``video_to_text`` and of ``text_to_video``, of clips (N, E) and the clips' captions (M, E).

    `clip_ids` (N,) are each clip's own, `text_ids` (M,) the clip of each caption. Each direction has the numbers of
    ``queries`` and ``candidates``, ``r@k`` for each of `ks` that there are candidates for, the ``median_rank``, and
    under ``chance`` both as a model that tells nothing apart would have them.

    >>> found = retrieval_scores(torch.eye(3), torch.arange(3), torch.eye(3), torch.arange(3), ks=[1])
    >>> found["video_to_text"]["r@1"], found["video_to_text"]["median_rank"]
    (1.0, 1.0)
    """
    return {
        "video_to_text": _scores(clips, texts, clip_ids, text_ids, ks),
        "text_to_video": _scores(texts, clips, text_ids, clip_ids, ks),
    }


def _scores(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, ks: Sequence[int]
) -> dict[str, Any]:
    def summary(ranks: Ranks) -> dict[str, float]:
        recalls = {f"r@{k}": float(ranks.recall(k).mean()) for k in ks if k <= len(gallery)}
        return {**recalls, "median_rank": float(ranks.expected().quantile(0.5))}

    return {
        "queries": len(queries),
        "candidates": len(gallery),
        **summary(retrieval_ranks(queries, gallery, query_ids, gallery_ids)),
        "chance": summary(chance_ranks(query_ids, gallery_ids)),
    }
