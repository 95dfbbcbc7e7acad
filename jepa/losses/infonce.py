"""Bidirectional InfoNCE (van den Oord et al. 2018, arXiv 1807.03748; symmetric form of CLIP, arXiv 2103.00020).

Computed in float32 at least, also under autocast: similarities over a small temperature leave bfloat16 no digits.
B: rows of this rank; G: rows of all ranks; M: further negatives; E: embedding dimensions.
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
    symmetric: bool = True,
) -> Tensor:
    """Symmetric cross-entropy of each prediction against its target, the batch's other targets as negatives.

    VL-JEPA section 3.2; a scalar, the mean of both directions. Pairs whose targets are the same text are not each
    other's negatives: they are left out of the denominator in both directions. Predictions and targets are (B, E),
    L2-normalised; the temperature is > 0. Other shapes and types raise `InputError`.

    Args:
        ids: (B,) integers, equal for equal target texts (of all ranks, if `gather`); None when all differ.
        negatives: (M, E), L2-normalised: further texts that predictions are told from. They have no predictions of
            their own, so that they count in the direction from predictions to targets only, and on this rank only.
        negative_ids: (M,) integers like `ids`; needed with `negatives` if `ids` are given, else `InputError`.
        gather: take predictions and targets of all ranks as negatives. The mean over ranks of the losses, and of the
            gradients, is that of the global batch. Batches may differ in size; ids are given by all ranks or by none.
        chunk: rows of the similarity matrix in memory at once, >= 1, forward and backward, where it is computed again;
            the same loss and gradients. None: all rows.
        symmetric: the mean of both directions; if not, that from predictions to targets alone.

    >>> info_nce(torch.eye(4), torch.eye(4), temperature=0.1)
    tensor(0.0001)
    """
    predictions, targets = matched(predictions, targets)
    if negatives is not None:
        negatives = at_least_float32("negatives", negatives)
        if ids is not None and negative_ids is None:
            raise InputError("negative_ids must be given with negatives when ids are, got None")
    batch, all_ids = GlobalBatch.around(predictions, gather), None
    own, every = batch.own(predictions.device), torch.arange(batch.total, device=predictions.device)
    if ids is not None:
        check_ids(ids, batch.count)
        all_ids = batch.gather(ids)
    # In chunks not -inf: all of a chunk's fraction of a column may be masked.
    masked = -torch.inf if chunk is None else torch.finfo(predictions.dtype).min

    def similarities(queries: Tensor, candidates: Tensor, rows: slice) -> Tensor:
        """(rows, G) of this rank's rows of `queries`, those of equal texts masked."""
        found = (queries[rows] / temperature) @ candidates.T  # B x E divided, not B x G
        if ids is None:
            return found
        return found.masked_fill((ids[rows, None] == all_ids) & (own[rows, None] != every), masked)

    def with_negatives(similar: Tensor, rows: slice) -> Tensor:
        """(rows, G + M) of the predictions."""
        if negatives is None:
            return similar
        further = (predictions[rows] / temperature) @ negatives.T
        if ids is not None and negative_ids is not None:
            further = further.masked_fill(ids[rows, None] == negative_ids, masked)
        return torch.cat([similar, further], dim=1)

    def at_once() -> Tensor:
        all_predictions, all_targets, rows = predictions, targets, slice(None)
        if batch.ranks > 1:
            all_predictions, all_targets = batch.gather(torch.cat([predictions, targets], dim=1)).chunk(2, dim=1)
        forth = similarities(predictions, all_targets, rows)
        right = forth.gather(1, own[:, None])[:, 0]
        of_rows = with_negatives(forth, rows).logsumexp(dim=1)
        if not symmetric:
            return (of_rows - right).mean()
        back = forth if batch.ranks == 1 else similarities(targets, all_predictions, rows).T
        return (0.5 * (of_rows + back.logsumexp(dim=0)) - right).mean()

    def in_chunks(size: int) -> Tensor:
        """A chunk gives the log denominators of its rows, and its fraction of those of all columns."""
        all_targets = batch.gather(targets)

        def log_denominators(first: int) -> tuple[Tensor, Tensor]:
            rows = slice(first, first + size)
            similar = similarities(predictions, all_targets, rows)
            return with_negatives(similar, rows).logsumexp(dim=1), similar.logsumexp(dim=0)

        parts = [
            checkpoint(log_denominators, first, use_reentrant=False, preserve_rng_state=False)
            for first in range(0, batch.count, size)
        ]
        of_rows = torch.cat([denominators for denominators, _ in parts])
        right = (predictions * targets).sum(dim=1) / temperature
        if not symmetric:
            return (of_rows - right).mean()
        of_columns = torch.stack([fractions for _, fractions in parts]).logsumexp(dim=0, keepdim=True)
        of_columns = GlobalBatch.around(of_columns, gather).gather(of_columns).logsumexp(dim=0)[own]
        return (0.5 * (of_rows + of_columns) - right).mean()

    with torch.autocast(predictions.device.type, enabled=False):
        return batch.weight * (at_once() if chunk is None else in_chunks(check_int("chunk", chunk, 1)))


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
        temperature: the first value, or if not `learnable` the only one; 0 < lowest <= temperature <= 1.
        learnable: learn the temperature; if not, the module has no parameter for it.
        head: applied to predictions, targets and negatives alike, whose outputs are then L2-normalised; see
            `ProjectionHead`. None compares the latents themselves.
        symmetric: see `info_nce`.

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
        symmetric: bool = True,
    ) -> None:
        super().__init__()
        if not 0 < lowest <= temperature <= 1:
            raise InputError(f"temperature must be in [lowest, 1] with lowest > 0, got {temperature} (lowest {lowest})")
        self.limit = -math.log(lowest)
        log_scale = torch.tensor(-math.log(temperature))
        self.log_scale = nn.Parameter(log_scale) if learnable else log_scale
        self.gather, self.head, self.symmetric = gather, head, symmetric
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
        texts, how = (ids, negatives, negative_ids), (self.gather, self.chunk, self.symmetric)
        return info_nce(predictions, targets, self.temperature, *texts, *how)

    def _project(self, latents: Tensor) -> Tensor:
        return latents if self.head is None else F.normalize(self.head(latents), dim=-1)
