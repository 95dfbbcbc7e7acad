"""The batch of all ranks, with gradients.

The objective is the mean over ranks of the losses that they return, and DistributedDataParallel averages the gradients
of parameters over ranks. So whatever is summed or gathered here passes back the sum of the gradients of all ranks'
losses, and a loss built on it has, after that averaging, the gradient of the global batch.

Every rank has to make the same calls. Nothing here is done when modules are built: the process group may come later.
Without a process group, or in a group of one, everything is the identity.

B: rows of this rank; G: rows of all ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def _ranks() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def broadcast(values: Tensor) -> Tensor:
    """Rank 0's `values`, of any shape, on every rank. Without gradient."""
    if _ranks() > 1:
        values = values.detach().clone(memory_format=torch.contiguous_format)
        dist.broadcast(values, src=0)
    return values


@dataclass(frozen=True)
class GlobalBatch:
    """The rows of this rank among those of all ranks, in order of rank: `count` from `first` on, of `total` on `ranks`.

    Ranks may have batches of different sizes.

    >>> batch = GlobalBatch.around(torch.ones(4, 8), gather=True)  # in one process
    >>> batch.total, batch.weight
    (4, 1.0)
    """

    count: int
    first: int
    total: int
    ranks: int

    @classmethod
    def around(cls, rows: Tensor, gather: bool) -> GlobalBatch:
        """The global batch in which this rank has `rows` (B, ...); this rank's batch alone unless `gather`."""
        ranks, count = _ranks() if gather else 1, len(rows)
        if ranks == 1:
            return cls(count, 0, count, 1)
        sizes = torch.zeros(ranks, dtype=torch.long, device=rows.device)
        sizes[dist.get_rank()] = count
        dist.all_reduce(sizes)
        return cls(count, int(sizes[: dist.get_rank()].sum()), int(sizes.sum()), ranks)

    @property
    def weight(self) -> float:
        """What the mean over this rank's rows has to be multiplied by, for the mean over ranks to be that over G."""
        return self.count * self.ranks / self.total

    def gather(self, rows: Tensor) -> Tensor:
        """(B, ...) -> (G, ...): the rows of all ranks. Gradients are summed over ranks."""
        if self.ranks == 1:
            return rows
        # Each rank adds its rows to zeros: exact, with one collective each way, whatever the sizes of the batches.
        before_after = (self.first, self.total - self.first - self.count)
        return self.sum(F.pad(rows, (0, 0) * (rows.ndim - 1) + before_after))

    def sum(self, values: Tensor) -> Tensor:
        """The sum of `values`, of any shape, over the ranks of this batch. Gradients are summed over ranks, too."""
        return _Sum.apply(values) if self.ranks > 1 else values

    def own(self, device: torch.device) -> Tensor:
        """(B,) integers: the positions of this rank's rows among the G."""
        return torch.arange(self.first, self.first + self.count, device=device)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradient)
