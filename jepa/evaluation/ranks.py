"""The processes that torchrun started: each does its part of an evaluation; what they find is joined in order."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `count`."""

    rank: int = 0
    count: int = 1

    def part(self, items: int) -> slice:
        """This process's part of `items`: equal parts, but for the remainder, in order."""
        first, last = (items * part // self.count for part in (self.rank, self.rank + 1))
        return slice(first, last)

    def gather(self, found: T) -> list[T]:
        """What each process found, in order; every process has to call this, and gets all of it."""
        if self.count == 1:
            return [found]
        parts: list[Any] = [None] * self.count
        dist.all_gather_object(parts, found)
        return parts


@contextmanager
def ranks() -> Iterator[Ranks]:
    """This process among those of torchrun, which it joins, each on a GPU of its own; alone without them."""
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo")  # what is gathered lies on the CPU
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else Ranks()
    finally:
        if joins:
            dist.destroy_process_group()
