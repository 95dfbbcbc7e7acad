"""The processes that train together: which one this is, and what all of them know."""

from __future__ import annotations

import os
from typing import Any, TypeVar

import torch.distributed as dist

T = TypeVar("T")


def is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


def of_all_processes(own: T) -> list[T]:
    """What each process passes; every process calls it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [own]
    each: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(each, own)
    return each
