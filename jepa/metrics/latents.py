"""What latents look like beside the loss: alignment, spread, rank and retrieval.

Alignment alone misleads: a collapsed model has a paired cosine of 1. Read the other measures next to it.

N: rows; E: embedding dimensions. Latents (N, E) have any norm; half precision is computed in float32. Other shapes, and
values that are not finite, raise `InputError`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.errors import InputError
from jepa.metrics.checks import integers, matched, matrix

# Unpaired cosine above which latents say nothing: near 0 where they tell texts apart, beyond 0.99 in a collapsed run.
COLLAPSED_COSINE = 0.9

_ROWS_AT_ONCE = 1024  # bounds the similarity matrix held in memory
_FALSE_NEIGHBOURS = 0.01  # fraction of false ones that recall may cost


def paired_cosine(predictions: Tensor, targets: Tensor) -> Tensor:
    """Mean cosine of each prediction (N, E) with its own target: a scalar in [−1, 1].

    >>> paired_cosine(torch.eye(2), torch.eye(2))
    tensor(1.)
    """
    predictions, targets = matched(predictions, targets)
    return F.cosine_similarity(predictions, targets, dim=1).mean()


def unpaired_cosine(predictions: Tensor, targets: Tensor, ids: Tensor | None = None) -> Tensor:
    """Mean cosine of predictions (N, E) with the targets of others: near 0 when spread out, near 1 at collapse.

    Rows with equal `ids` (N,) have the same target and do not count as unpaired. None takes all rows as different: the
    mean over i ≠ j. Raises `InputError` if no two rows are unpaired.

    >>> unpaired_cosine(torch.eye(2), torch.eye(2))
    tensor(0.)
    """
    predictions, targets = matched(predictions, targets)
    count = len(predictions)
    ids = torch.arange(count, device=predictions.device) if ids is None else integers("ids", ids, count)
    group = ids.unique(return_inverse=True)[1]
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

    exp(−Σ_k p_k ln p_k) with p_k = σ_k / Σ σ + 1e-7, over the singular values σ of the matrix (N, E) as it is, not
    centred: a scalar, E when all directions are used equally, 1 when all rows lie on one line (or are 0). It cannot
    exceed min(N, E) (but for the 1e-7): compare at equal N.

    >>> round(rankme(torch.eye(8)).item(), 3)
    8.0
    """
    singular = torch.linalg.svdvals(matrix("latents", latents))
    total = singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    fractions = singular / total + 1e-7
    return torch.exp(-(fractions * fractions.log()).sum())


def ridge_r2(predictions: Tensor, targets: Tensor, *, ridge: float = 1e-3, seed: int = 0) -> Tensor:
    """How much of the targets' variance an affine map of the predictions explains, on rows that it was not fitted to.

    1 − ‖T − T̂‖² / ‖T − T̄‖² over a held-out half of the rows, with T̄ their mean and T̂ = t̄ + (P − p̄) W, fitted to
    the other half: W = (X'X + r (tr X'X / E) I)⁻¹ X'Y with X = P − p̄ and Y = T − t̄. The ridge r > 0 is thus relative
    to the predictions' variance; what differs only by rounding (16 times the machine epsilon of float32) counts as
    equal. The halves are drawn by `seed`. Computed in float64.

    A scalar: 1 where the targets are an affine map of the predictions, 0 or below where these say nothing (or are
    collapsed), 0 where the held-out targets are all equal. N has to be 4 at least, and should be well above 2 E:
    otherwise even informative latents fit badly.
    """
    predictions, targets = (latents.double() for latents in matched(predictions, targets))
    count, dims = predictions.shape
    if count < 4 or not ridge > 0:
        raise InputError(f"predictions must have >= 4 rows to fit and to hold out, and ridge > 0, got {count}, {ridge}")
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

    Rows i of `first` and `second` (N, E) are a pair of one meaning, equal `ids` (N,) mean equal meanings; every first
    phrasing with every second one of another id is a pair of different meanings. Exact scalars in [0, 1]: ``auc``, the
    area under the ROC curve: the chance that a pair of one meaning has a higher cosine than a pair of different
    meanings, ties as half; and ``recall@1%``, the fraction of same-meaning pairs that are found when at most 1 % of the
    others reach the threshold. Cosines within 16 times the machine epsilon are level: collapsed latents score 0.5, 0.
    """
    first, second = matched(first, second)
    count = len(first)
    ids = integers("ids", ids, count)
    if (ids == ids[0]).all():
        raise InputError(f"ids must be of at least 2 different meanings, got only {int(ids[0])}")
    first, second = F.normalize(first, dim=1), F.normalize(second, dim=1)
    same = (first * second).sum(1).sort().values
    level = 16 * torch.finfo(same.dtype).eps
    # For each same-meaning cosine: how many of the different-meaning ones are lower, and how many not higher.
    lower, not_higher = (torch.zeros(count + 1, dtype=torch.long, device=same.device) for _ in range(2))
    for part, part_ids in zip(first.split(_ROWS_AT_ONCE), ids.split(_ROWS_AT_ONCE), strict=True):
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


def recall_at_false_fraction(cosines: Tensor, right: Tensor, fraction: float = _FALSE_NEIGHBOURS) -> Tensor:
    """What nearest neighbours find, if at most a fraction in [0, 1] of what they find may be false.

    `cosines` (N,) are those of N rows with their nearest neighbour, and `right` (N,) says whether that is a right one.
    Neighbours are accepted from the nearest on, down to the lowest cosine at which at most `fraction` of the accepted
    are false; the scalar is accepted right neighbours over N. Stricter than recall at a false positive rate: the wrong
    neighbours of N rows are few against their N² pairs, but not against their N nearest.

    >>> recall_at_false_fraction(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
    tensor(0.3333, dtype=torch.float64)
    """
    ordered, order = cosines.sort(descending=True)
    found = right[order].double().cumsum(0)
    accepted = torch.arange(1, len(found) + 1, device=found.device)
    last_of_level = torch.cat([ordered[1:] != ordered[:-1], ordered.new_ones(1, dtype=torch.bool)])
    allowed = ((accepted - found) <= fraction * accepted) & last_of_level  # equal cosines are accepted together
    return found[allowed].max() / len(found) if allowed.any() else found.new_zeros(())


def collapse_message(geometry: Mapping[str, Tensor | float]) -> str | None:
    """One line if latents have collapsed, None otherwise; `geometry` is what `LatentGeometry` computes."""
    unpaired = float(geometry["unpaired_cosine"])
    if unpaired <= COLLAPSED_COSINE:
        return None
    return (
        f"latents have collapsed: unpaired cosine {unpaired:.3f} > {COLLAPSED_COSINE}, "
        f"RankMe {float(geometry['rankme']):.1f}, retrieval@1 {float(geometry['retrieval@1']):.3f}"
    )
