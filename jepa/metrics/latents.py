"""What latents look like beside the loss: alignment, spread, rank and retrieval.

Alignment alone misleads: a collapsed model has a paired cosine of 1. Read it with the unpaired cosine, RankMe
and retrieval next to it.

N, M: rows; E: embedding dimensions. Half-precision input is computed in float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from jepa.errors import InputError

COLLAPSED_COSINE = 0.9  # mean cosine of unpaired predictions and targets above which latents say nothing

_QUERIES_AT_ONCE = 1024  # bounds the similarity matrix held in memory
_FALSE_NEIGHBOURS = 0.01  # fraction of different meanings that recall may cost


def paired_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine of each prediction with its own target.

    Takes finite predictions and targets (N, E) of any norm, else raises `InputError`. Returns a scalar in [−1, 1].

    >>> paired_cosine(torch.eye(2), torch.eye(2))
    tensor(1.)
    """
    predictions, targets = _matched(predictions, targets)
    return F.cosine_similarity(predictions, targets, dim=1).mean()


def unpaired_cosine(predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
    """Mean cosine of predictions with the targets of others: near 0 when spread out, near 1 at collapse.

    Args:
        predictions: (N, E), of any norm.
        targets: (N, E), of any norm; row i belongs to prediction i.
        ids: (N,) integers; rows with equal ids have the same target and do not count as unpaired. None takes
            all rows as different: the mean over i ≠ j.

    Returns:
        Scalar in [−1, 1].

    Raises:
        InputError: the shapes differ or are not (N, E), a value is not finite, or no two rows are unpaired.
    """
    predictions, targets = _matched(predictions, targets)
    count = len(predictions)
    if ids is None:
        group = torch.arange(count, device=predictions.device)
    else:
        group = _indices("ids", ids, count).unique(return_inverse=True)[1]
    sizes = torch.bincount(group)
    pairs = count**2 - int((sizes**2).sum())
    if pairs == 0:
        raise InputError(f"predictions must have at least 2 different targets, got 1 in N = {count} rows")
    # Sum of all cosines less those within a group, from sums of rows: O(N E) instead of O(N² E).
    predictions, targets = F.normalize(predictions, dim=1), F.normalize(targets, dim=1)
    zeros = predictions.new_zeros(len(sizes), predictions.shape[1])
    within = (zeros.index_add(0, group, predictions) * zeros.index_add(0, group, targets)).sum()
    return (predictions.sum(0) @ targets.sum(0) - within) / pairs


def rankme(latents: Tensor) -> Tensor:
    """RankMe: the effective rank of a batch of latents (Garrido et al. 2023, arXiv 2210.02885, eq. 1–2).

    exp(−Σ_k p_k ln p_k) with p_k = σ_k / Σ σ + 1e-7, over the singular values σ of the matrix as it is, not
    centred.

    Args:
        latents: (N, E). The value cannot exceed min(N, E) (but for the 1e-7): compare at equal N.

    Returns:
        Scalar: E when all directions are used equally, 1 when all rows lie on one line (or are 0).

    Raises:
        InputError: the shape is not (N, E), or a value is not finite.

    >>> round(rankme(torch.eye(8)).item(), 3)
    8.0
    """
    singular = torch.linalg.svdvals(_matrix("latents", latents))
    total = singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    fractions = singular / total + 1e-7
    return torch.exp(-(fractions * fractions.log()).sum())


def retrieval_at_k(queries: Tensor, gallery: Tensor, labels: Tensor, k: int) -> Tensor:
    """Fraction of queries whose own row of the gallery is among the k nearest by cosine.

    Ties count as broken at random: where g rows are nearer than the right one and t others are level with it,
    the query scores the chance of a hit, (k − g) / (t + 1) within [0, 1]. So a collapsed model scores k / M,
    not 1. Cosines within 16 times the machine epsilon of the dtype are level.

    Args:
        queries: (N, E), of any norm.
        gallery: (M, E), of any norm.
        labels: (N,) integers: the row of the gallery that is right for each query.
        k: 1..M.

    Returns:
        Scalar in [0, 1]; chance is k / M.

    Raises:
        InputError: shapes that do not match, a value that is not finite, a label outside 0..M−1, or k outside
            1..M.
    """
    queries, gallery = _matrix("queries", queries), _matrix("gallery", gallery)
    if queries.shape[1] != gallery.shape[1]:
        raise InputError(f"queries and gallery must have the same E, got {queries.shape[1]} and {gallery.shape[1]}")
    labels, rows = _indices("labels", labels, len(queries)), len(gallery)
    if labels.min() < 0 or labels.max() >= rows:
        raise InputError(f"labels must be in 0..{rows - 1} (rows of the gallery), got {labels.min()}..{labels.max()}")
    if not 1 <= k <= rows:
        raise InputError(f"k must be in 1..{rows} (rows of the gallery), got {k}")

    queries, gallery = F.normalize(queries, dim=1), F.normalize(gallery, dim=1)
    level = 16 * torch.finfo(queries.dtype).eps
    hits = []
    for part, right in zip(queries.split(_QUERIES_AT_ONCE), labels.split(_QUERIES_AT_ONCE), strict=True):
        cosines = part @ gallery.T
        lead = cosines - cosines.gather(1, right[:, None])
        nearer = (lead > level).sum(1)
        tied = (lead.abs() <= level).sum(1)  # the right row itself is one of them
        hits.append(((k - nearer) / tied).clamp(0, 1))
    return torch.cat(hits).mean()


def ridge_r2(predictions: Tensor, targets: Tensor, *, ridge: float = 1e-3, seed: int = 0) -> Tensor:
    """How much of the targets' variance an affine map of the predictions explains, on rows that it was not fitted to.

    1 − ‖T − T̂‖² / ‖T − T̄‖² over a held-out half of the rows, with T̄ their mean and T̂ = t̄ + (P − p̄) W, fitted to
    the other half: W = (X'X + r (tr X'X / E) I)⁻¹ X'Y with X = P − p̄ and Y = T − t̄. The ridge r is thus relative to
    the predictions' variance, and the value does not change with their scale; what differs only by rounding (16 times
    the machine epsilon of float32) counts as equal. The halves are drawn by `seed`. Computed in float64.

    Args:
        predictions: (N, E), of any norm. N well above 2 E: otherwise even informative latents fit badly.
        targets: (N, E), of any norm; row i belongs to prediction i.
        ridge: r, > 0.
        seed: of the split.

    Returns:
        Scalar: 1 where the targets are an affine map of the predictions, 0 or below where these say nothing (or
        are collapsed), 0 where the held-out targets are all equal.

    Raises:
        InputError: the shapes differ or are not (N, E), a value is not finite, N is below 4, or the ridge is not
            above 0.
    """
    predictions, targets = (latents.double() for latents in _matched(predictions, targets))
    count, dims = predictions.shape
    if count < 4:
        raise InputError(f"predictions must have at least 4 rows to fit and to hold out, got {count}")
    if not ridge > 0:
        raise InputError(f"ridge must be > 0, got {ridge}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed)).to(predictions.device)
    fit, held_out = order[: count // 2], order[count // 2 :]
    p_mean, t_mean = predictions[fit].mean(0), targets[fit].mean(0)
    x, y = predictions[fit] - p_mean, targets[fit] - t_mean
    moments = x.T @ x
    level = (16 * torch.finfo(torch.float32).eps) ** 2
    rounding = level * predictions[fit].square().sum()
    least = torch.finfo(x.dtype).tiny ** 0.5  # far from what a processor may take for 0
    penalty = ((ridge * moments.trace() + rounding) / dims).clamp_min(least)
    weights = torch.linalg.solve(moments + penalty * torch.eye(dims, dtype=x.dtype, device=x.device), x.T @ y)
    truth = targets[held_out]
    total = (truth - truth.mean(0)).square().sum()
    if total <= level * truth.square().sum():
        return total.new_zeros(())
    return 1 - (truth - t_mean - (predictions[held_out] - p_mean) @ weights).square().sum() / total


def paraphrase(first: Tensor, second: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """How well the cosine tells two phrasings of one meaning from phrasings of different meanings.

    The N rows are the pairs of one meaning; every first phrasing with every second one of another id is a pair of
    different meanings, up to N² − N of them. Both values are exact, by counting, in chunks of rows. Cosines within 16
    times the machine epsilon of the dtype are level, so that collapsed latents score 0.5 and 0.

    Args:
        first: (N, E), of any norm: latents of one phrasing.
        second: (N, E), of any norm: latents of another phrasing; row i means the same as row i of `first`.
        ids: (N,) integers, equal for equal meanings.

    Returns:
        Scalars in [0, 1]: ``auc``, the area under the ROC curve: the chance that a pair of one meaning has a higher
        cosine than a pair of different meanings, ties as half; and ``recall@1%``, the fraction of same-meaning pairs
        that are found when at most 1 % of the pairs of different meanings reach the threshold.

    Raises:
        InputError: the shapes differ or are not (N, E), a value is not finite, or all ids are equal.
    """
    first, second = _matched(first, second)
    count = len(first)
    ids = _indices("ids", ids, count)
    if (ids == ids[0]).all():
        raise InputError(f"ids must be of at least 2 different meanings, got only {int(ids[0])}")
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    same = (first * second).sum(1).sort().values
    level = 16 * torch.finfo(same.dtype).eps
    # For each same-meaning cosine: how many of the different-meaning ones are lower, and how many not higher.
    lower, not_higher = (torch.zeros(count + 1, dtype=torch.long, device=same.device) for _ in range(2))
    for part, part_ids in zip(first.split(_QUERIES_AT_ONCE), ids.split(_QUERIES_AT_ONCE), strict=True):
        different = (part @ second.T)[part_ids[:, None] != ids]
        lower += torch.bincount(torch.searchsorted(same - level, different, right=True), minlength=count + 1)
        not_higher += torch.bincount(torch.searchsorted(same + level, different), minlength=count + 1)
    pairs = lower.sum()
    lower, not_higher = lower.cumsum(0)[:count], not_higher.cumsum(0)[:count]
    reaching = (pairs - lower) / pairs
    return {
        "auc": ((lower + not_higher).double() / 2 / pairs).mean(),
        "recall@1%": (reaching <= _FALSE_NEIGHBOURS).double().mean(),
    }


def recall_at_false_fraction(cosines: Tensor, right: Tensor, fraction: float = 0.01) -> Tensor:
    """What nearest neighbours find, if at most a fraction of what they find may be false.

    The N neighbours are accepted from the nearest on, down to the lowest cosine at which at most `fraction` of the
    accepted are false. Stricter than recall at a false positive rate: the wrong neighbours of N rows are few against
    their N² pairs, but not against their N nearest.

    Args:
        cosines: (N,) cosine of each row with its nearest neighbour.
        right: (N,) whether that neighbour is a right one.
        fraction: of false ones among the accepted, in [0, 1].

    Returns:
        Scalar in [0, 1]: accepted right neighbours over N.

    Raises:
        InputError: the shapes are not (N,), or `fraction` is outside [0, 1].
    """
    if cosines.ndim != 1 or right.shape != cosines.shape or not len(cosines):
        raise InputError(
            f"cosines and right must be (N,) with N >= 1, got {tuple(cosines.shape)}, {tuple(right.shape)}"
        )
    if not 0 <= fraction <= 1:
        raise InputError(f"fraction must be in [0, 1], got {fraction}")
    ordered, order = cosines.sort(descending=True)
    found = right[order].double().cumsum(0)
    accepted = torch.arange(1, len(found) + 1, device=found.device)
    last_of_level = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    allowed = ((accepted - found) <= fraction * accepted) & last_of_level  # equal cosines are accepted together
    return found[allowed].max() / len(found) if allowed.any() else found.new_zeros(())


def collapse_message(geometry: Mapping[str, Tensor | float]) -> str | None:
    """One line that says so if latents have collapsed, None otherwise.

    They have where the mean cosine of unpaired predictions and targets is above 0.9 (`COLLAPSED_COSINE`): near 0 is
    what latents that tell texts apart have, and a collapsed run is beyond 0.99.

    Args:
        geometry: what `LatentGeometry` computes, with 1 among its ks.
    """
    unpaired = float(geometry["unpaired_cosine"])
    if unpaired <= COLLAPSED_COSINE:
        return None
    return (
        f"latents have collapsed: unpaired cosine {unpaired:.3f} > {COLLAPSED_COSINE}, "
        f"RankMe {float(geometry['rankme']):.1f}, retrieval@1 {float(geometry['retrieval@1']):.3f}"
    )


class LatentGeometry(Metric):
    """The measures of this module over predictions and targets that arrive in batches.

    Repeated texts are one candidate in retrieval, and not unpaired with each other.

    Args:
        ks: the k of each ``retrieval@k``, at least 1.

    Raises:
        InputError: no k, or one below 1.

    >>> geometry = LatentGeometry()
    >>> geometry.update(torch.eye(4), torch.eye(4), ids=torch.arange(4))
    >>> {name: round(value.item(), 2) for name, value in geometry.compute().items()}
    {'retrieval@1': 1.0, 'rankme': 4.0, 'paired_cosine': 1.0, 'unpaired_cosine': 0.0}
    """

    is_differentiable = False
    full_state_update = False

    predictions: list[Tensor]
    targets: list[Tensor]
    ids: list[Tensor]

    def __init__(self, ks: Sequence[int] = (1,), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not ks or min(ks) < 1:
            raise InputError(f"ks must hold at least one k, each >= 1, got {tuple(ks)}")
        self.ks = tuple(ks)
        for name in ("predictions", "targets", "ids"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, predictions: Tensor, targets: Tensor, ids: Tensor) -> None:
        """Add a batch.

        Args:
            predictions: (B, E).
            targets: (B, E).
            ids: (B,) integers; equal ids mean equal target text.

        Raises:
            InputError: the shapes do not match.
        """
        if predictions.ndim != 2 or predictions.shape != targets.shape:
            raise InputError(
                "predictions and targets must both be (B, E), "
                f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
            )
        self.ids.append(_indices("ids", ids, len(predictions)).detach())
        self.predictions.append(predictions.detach())
        self.targets.append(targets.detach())

    def compute(self) -> dict[str, Tensor]:
        """Scalars: ``retrieval@k`` of a prediction's own text among the distinct targets, for each k that they are
        enough for; ``rankme`` of the predictions, ``paired_cosine`` and ``unpaired_cosine``.

        Raises:
            InputError: there are fewer than 2 distinct targets, or a value is not finite.
        """
        if not len(self.ids):
            raise InputError("LatentGeometry must have at least 2 distinct targets, got no batch")
        predictions, targets = dim_zero_cat(self.predictions), dim_zero_cat(self.targets)
        ids = dim_zero_cat(self.ids)
        distinct, labels = ids.unique(return_inverse=True)
        if len(distinct) < 2:
            raise InputError(f"LatentGeometry must have at least 2 distinct targets, got {len(distinct)}")
        rows = torch.arange(len(ids), device=ids.device)
        first = rows.new_full((len(distinct),), len(ids)).scatter_reduce(0, labels, rows, "amin")
        return {
            **{
                f"retrieval@{k}": retrieval_at_k(predictions, targets[first], labels, k)
                for k in self.ks
                if k <= len(distinct)
            },
            "rankme": rankme(predictions),
            "paired_cosine": paired_cosine(predictions, targets),
            "unpaired_cosine": unpaired_cosine(predictions, targets, ids),
        }


def _matrix(name: str, latents: Tensor) -> Tensor:
    if latents.ndim != 2 or 0 in latents.shape:
        raise InputError(f"{name} must be (N, E) with N, E >= 1, got {tuple(latents.shape)}")
    if not latents.is_floating_point():
        raise InputError(f"{name} must be floating point, got {latents.dtype}")
    finite = latents.isfinite().all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"{name} must be finite, got a NaN or an infinity in row {row}")
    return latents.to(torch.promote_types(latents.dtype, torch.float32))


def _matched(predictions: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    predictions, targets = _matrix("predictions", predictions), _matrix("targets", targets)
    if predictions.shape != targets.shape:
        raise InputError(
            "predictions and targets must have the same shape, "
            f"got {tuple(predictions.shape)} and {tuple(targets.shape)}"
        )
    return predictions, targets


def _indices(name: str, values: Tensor, count: int) -> Tensor:
    if values.shape != (count,) or values.is_floating_point():
        raise InputError(f"{name} must be ({count},) integers, got {tuple(values.shape)} {values.dtype}")
    return values.long()
