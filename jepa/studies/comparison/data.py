"""Data of the controlled comparison: clips of the procedural world as states of a frozen X-Encoder, computed once.

B clips, F frames a clip, S pixels a side, N states, D width.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Dataset

from jepa.data.world import Scene, Span, World, captions
from jepa.errors import InputError

STATES, SAMPLES = "states.safetensors", "samples.jsonl"


class StateBatch(NamedTuple):
    """B clips as `states` (B, N, D) float32, each with a query and the text that answers it."""

    states: Tensor
    queries: list[str]
    texts: list[str]


class StateBatches(Dataset[StateBatch]):
    """Item i is the i-th batch of the samples of a folder, in an order that is a function of the seed alone.

    The order is a permutation of all samples, then another. The states stay on disk, memory-mapped.

    Raises:
        InputError: there are fewer samples than a batch takes.
    """

    def __init__(self, folder: Path, seed: int, batch_size: int, batches: int) -> None:
        self.states = load_file(folder / STATES)["states"]
        lines = (folder / SAMPLES).read_text(encoding="utf-8").splitlines()
        self.samples: list[tuple[str, str]] = [tuple(json.loads(line)) for line in lines]
        if len(self.samples) < batch_size:
            raise InputError(f"{folder} must hold at least a batch of {batch_size} samples, got {len(self.samples)}")
        rng, wanted = np.random.default_rng(seed), batch_size * batches
        epochs = -(-wanted // len(self.samples))
        self.order = np.concatenate([rng.permutation(len(self.samples)) for _ in range(epochs)])[:wanted]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __getitem__(self, index: int) -> StateBatch:
        if index >= len(self):
            raise IndexError(index)
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        queries, texts = zip(*(self.samples[row] for row in rows), strict=True)
        return StateBatch(self.states[torch.from_numpy(rows)].float(), list(queries), list(texts))


@dataclass(frozen=True)
class HeldOutClips:
    """A clip of each of B compositions that no training clip shows: `frames` (B, F, S, S, 3) uint8."""

    frames: Tensor
    scenes: list[Scene]

    @property
    def names(self) -> list[str]:
        """The canonical caption of each."""
        return [captions(scene)[0] for scene in self.scenes]

    @torch.no_grad()
    def states(self, encode: Callable[[Tensor], Tensor], batch_size: int = 64) -> Tensor:
        """The states (B, N, D) that an X-Encoder gives."""
        return torch.cat([encode(part) for part in self.frames.split(batch_size)])

    @property
    def references(self) -> list[list[str]]:
        """All paraphrases of each."""
        return [captions(scene) for scene in self.scenes]


def held_out_clips(world: World, count: int, frames: int, seed: int) -> tuple[HeldOutClips, HeldOutClips]:
    """`count` clips to choose settings on and as many to test on: no composition is in both.

    Half of the compositions, or as many as there are, are solo actions; the others are pair actions.

    Raises:
        InputError: the world does not have as many held-out compositions.
    """
    rng = np.random.default_rng([seed, 6])
    solo, pairs = ([each[i] for i in rng.permutation(len(each))] for each in world.splits["held_out"])
    solo = solo[: min(count, len(solo) // 2 * 2)]
    chosen = solo + pairs[: 2 * count - len(solo)]
    if len(chosen) < 2 * count:
        raise InputError(f"held-out clips must be at most {len(chosen) // 2}, half of the compositions, got {count}")
    windows = rng.uniform(0.5, 8.0, (len(chosen), 1)) + np.arange(frames) / world.fps
    clips = torch.from_numpy(world.clips([[Span(0.0, np.inf, scene, "")] for scene in chosen], windows, rng))
    validation, test = (HeldOutClips(clips[part::2], chosen[part::2]) for part in (0, 1))
    return validation, test
