"""Bidirectional InfoNCE (van den Oord et al. 2018, arXiv 1807.03748; symmetric form of CLIP, arXiv 2103.00020).

Computed in float32 at least, also under autocast: similarities over a small temperature leave bfloat16 no digits.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from jepa.errors import InputError, check_int
from jepa.losses.gather import GlobalBatch
from jepa.losses.inputs import at_least_float32, check_ids, matched


def info_nce(
    predictions: Tensor,
    targets: Tensor,
    temperature: Tensor | float,
    ids: Tensor | None = None,
    negatives: Tensor | None = None,
    negative_ids: Tensor | None = None,
    gather: bool = False,
    chunk: int | None = None,
) -> Tensor:
    """Symmetric cross-entropy of each prediction against its target, the batch's other targets as negatives.

    VL-JEPA section 3.2. Pairs whose targets are the same text are not each other's negatives: they are left out of the
    denominator in both directions.

    Args:
        predictions: (B, E), L2-normalised.
        targets: (B, E), L2-normalised.
        temperature: softmax temperature, > 0.
        ids: (B,) integers, equal for equal target texts, and if `gather` over all ranks, not within a batch alone;
            None when all differ.
        negatives: (M, E), L2-normalised: further texts that predictions are told from. They have no predictions of
            their own, so that they count in the direction from predictions to targets only, and on this rank only.
        negative_ids: (M,) integers like `ids`; needed with `negatives` if `ids` are given.
        gather: take predictions and targets of all ranks as negatives. The mean over ranks of the losses, and of the
            gradients, is that of the global batch. Batches may differ in size; ids are given by all ranks or by none.
        chunk: rows of the similarity matrix in memory at once, forward and backward, where it is computed again; the
            same loss and gradients. None: all rows.

    Returns:
        Scalar: the mean of both directions.

    Raises:
        InputError: predictions and targets are not floating point (B, E) of the same shape, ids are not (B,) integers,
            `ids` and `negatives` are given without `negative_ids`, or chunk < 1.

    >>> info_nce(torch.eye(4), torch.eye(4), temperature=0.1)
    tensor(0.0001)
    """
    predictions, targets = matched(predictions, targets)
    if negatives is not None:
        negatives = at_least_float32("negatives", negatives)
        if ids is not None and negative_ids is None:
            raise InputError("negative_ids must be given with negatives when ids are, got None")
    arguments = predictions, targets, temperature, ids, negatives, negative_ids, gather
    with torch.autocast(predictions.device.type, enabled=False):
        return _at_once(*arguments) if chunk is None else _in_chunks(*arguments, chunk)


def _at_once(
    predictions: Tensor,
    targets: Tensor,
    temperature: Tensor | float,
    ids: Tensor | None,
    negatives: Tensor | None,
    negative_ids: Tensor | None,
    gather: bool,
) -> Tensor:
    """`info_nce` from all similarities."""
    batch, same = GlobalBatch.around(predictions, gather), None
    own = batch.own(predictions.device)
    if ids is not None:
        check_ids("ids", ids, batch.count)
        others = own[:, None] != torch.arange(batch.total, device=own.device)
        same = (ids[:, None] == batch.gather(ids)[None, :]) & others

    def similarity(rows: Tensor, columns: Tensor) -> Tensor:
        logits = rows @ columns.T / temperature
        return logits if same is None else logits.masked_fill(same, -torch.inf)

    all_predictions, all_targets = predictions, targets
    if batch.ranks > 1:
        all_predictions, all_targets = batch.gather(torch.cat([predictions, targets], dim=1)).chunk(2, dim=1)
    logits = similarity(predictions, all_targets)
    forth = logits
    if negatives is not None:
        extra = predictions @ negatives.T / temperature
        if ids is not None and negative_ids is not None:
            extra = extra.masked_fill(ids[:, None] == negative_ids[None, :], -torch.inf)
        forth = torch.cat([logits, extra], dim=1)
    cost = F.cross_entropy(forth, own)
    back = logits.T if batch.ranks == 1 else similarity(targets, all_predictions)
    return batch.weight * 0.5 * (cost + F.cross_entropy(back, own))


def _in_chunks(
    predictions: Tensor,
    targets: Tensor,
    temperature: Tensor | float,
    ids: Tensor | None,
    negatives: Tensor | None,
    negative_ids: Tensor | None,
    gather: bool,
    chunk: int,
) -> Tensor:
    """`info_nce` from the logarithms of its denominators, whose similarities are computed `chunk` rows at a time.

    A chunk gives the denominators of its rows, and its fraction of those of all columns.
    """
    check_int("chunk", chunk, 1)
    batch = GlobalBatch.around(predictions, gather)
    own, columns, column_ids = batch.own(predictions.device), batch.gather(targets), None
    if ids is not None:
        check_ids("ids", ids, batch.count)
        column_ids = batch.gather(ids)

    def log_denominators(first: int) -> tuple[Tensor, Tensor]:
        rows = slice(first, first + chunk)
        logits = predictions[rows] @ columns.T / temperature
        masked = torch.finfo(logits.dtype).min  # not -inf: all of a chunk's fraction of a column may be masked
        if ids is not None:
            others = own[rows, None] != torch.arange(batch.total, device=own.device)
            logits = logits.masked_fill((ids[rows, None] == column_ids) & others, masked)
        fractions = logits.logsumexp(dim=0)
        if negatives is not None:
            extra = predictions[rows] @ negatives.T / temperature
            if ids is not None and negative_ids is not None:
                extra = extra.masked_fill(ids[rows, None] == negative_ids, masked)
            logits = torch.cat([logits, extra], dim=1)
        return logits.logsumexp(dim=1), fractions

    parts = [
        checkpoint(log_denominators, first, use_reentrant=False, preserve_rng_state=False)
        for first in range(0, batch.count, chunk)
    ]
    of_rows = torch.cat([rows for rows, _ in parts])
    of_columns = torch.stack([fractions for _, fractions in parts]).logsumexp(dim=0, keepdim=True)
    of_columns = GlobalBatch.around(of_columns, gather).gather(of_columns).logsumexp(dim=0)[own]
    right = (predictions * targets).sum(dim=1) / temperature
    return batch.weight * (0.5 * (of_rows + of_columns) - right).mean()


class ProjectionHead(nn.Sequential):
    """Linear, ReLU, linear: (B, width) -> (B, output). SimCLR's head (Chen et al. 2020, arXiv 2002.05709, section 2.1).

    A contrastive loss on its output leaves the latents before it freer.

    >>> ProjectionHead(8, hidden=16, output=4)(torch.ones(2, 8)).shape
    torch.Size([2, 4])
    """

    def __init__(self, width: int, hidden: int, output: int) -> None:
        super().__init__(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, output))


class InfoNCE(nn.Module):
    """`info_nce` with a temperature stored as its negative logarithm and kept in [`lowest`, 1]; negatives of all ranks.

    Args:
        temperature: the first value, or if not `learnable` the only one.
        lowest: the lowest value.
        learnable: learn the temperature; if not, the module has no parameter for it.
        gather: take the batches of all ranks, not only the local one, as negatives.
        head: applied to predictions, targets and negatives alike, whose outputs are then L2-normalised; see
            `ProjectionHead`. None compares the latents themselves.
        chunk: as in `info_nce`.

    Raises:
        InputError: unless 0 < lowest <= temperature <= 1 and chunk >= 1.

    >>> loss = InfoNCE(temperature=0.1)
    >>> predictions = targets = torch.eye(4)
    >>> round(loss(predictions, targets).item(), 4)
    0.0001
    """

    unit_norm = True

    def __init__(
        self,
        temperature: float = 0.07,
        lowest: float = 0.01,
        learnable: bool = True,
        gather: bool = True,
        head: nn.Module | None = None,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        if not 0 < lowest <= temperature <= 1:
            raise InputError(f"temperature must be in [lowest, 1] with lowest > 0, got {temperature} (lowest {lowest})")
        self.limit = -math.log(lowest)
        log_scale = torch.tensor(-math.log(temperature))
        self.log_scale = nn.Parameter(log_scale) if learnable else log_scale
        self.gather, self.head = gather, head
        self.chunk = None if chunk is None else check_int("chunk", chunk, 1)

    @property
    def temperature(self) -> Tensor:
        """The current temperature, a scalar."""
        return torch.exp(-self.log_scale.clamp(0.0, self.limit))

    def forward(
        self,
        predictions: Tensor,
        targets: Tensor,
        ids: Tensor | None = None,
        negatives: Tensor | None = None,
        negative_ids: Tensor | None = None,
    ) -> Tensor:
        predictions, targets = self._project(predictions), self._project(targets)
        negatives = None if negatives is None else self._project(negatives)
        arguments = ids, negatives, negative_ids, self.gather, self.chunk
        return info_nce(predictions, targets, self.temperature, *arguments)

    def _project(self, latents: Tensor) -> Tensor:
        return latents if self.head is None else F.normalize(self.head(latents), dim=-1)
