"""Training batches of examples: item i is a function of the seed and i alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from typing import NamedTuple

import numpy as np
from torch.utils.data import Dataset

from jepa.data.chat import ChatIds
from jepa.data.packing import Layout, PackedBatch, pack, pack_targets, target_numbers
from jepa.errors import InputError


class PairBatch(NamedTuple):
    """`targets` holds the target views alone if another model embeds them, else None."""

    rows: PackedBatch
    targets: PackedBatch | None


@dataclass(eq=False)
class PairBatches(Dataset[PairBatch]):
    """Batches of examples; each epoch has every example once, in a new order. Batch i belongs to rank i % `ranks`."""

    pairs: Sequence[ChatIds]
    layout: Layout
    seed: int
    batch_size: int
    batches: int
    _: KW_ONLY
    latent: bool = True  # add the sequences of the latent term; False is next-token training
    loss_dropout: float = 0.0  # fraction of steps whose batches lack them (LLM-JEPA section 3.3)
    shuffled: bool = False  # a control: each example has the target of another, by one fixed permutation
    tube: bool = False  # add positions for the semantic tube, and no other extra tokens
    apart: bool = False  # targets go into rows of their own
    ranks: int = 1

    def __post_init__(self) -> None:
        count = len(self.pairs)
        if count < self.batch_size:
            raise InputError(f"batch_size must be at most the number of pairs, {count}, got {self.batch_size}")
        if not 0 <= self.loss_dropout < 1:
            raise InputError(f"loss_dropout must be in [0, 1), got {self.loss_dropout}")
        self.ids = target_numbers(self.pairs, self.layout)
        self.partner = _strangers(self.ids, self.seed) if self.shuffled else np.arange(count)

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> PairBatch:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        chosen = self.chosen(index)
        pairs = [self.pairs[i] for i in chosen]
        if not self.latent or np.random.default_rng([self.seed, 1, index // self.ranks]).random() < self.loss_dropout:
            return PairBatch(pack(pairs, self.layout), None)
        if self.tube:
            return PairBatch(pack(pairs, self.layout, tube=np.random.default_rng([self.seed, 3, index])), None)
        partners = self.partner[chosen]
        targets = [self.pairs[i] for i in partners]
        rows = pack(pairs, self.layout, targets, [self.ids[i] for i in partners], apart=self.apart)
        return PairBatch(rows, pack_targets(targets, self.layout) if self.apart else None)

    def chosen(self, index: int) -> list[int]:
        """Numbers of the examples in batch `index`."""
        return shuffled_rows([self.seed, 0], len(self.pairs), index * self.batch_size, self.batch_size)


def shuffled_rows(seed: Sequence[int], count: int, start: int, size: int) -> list[int]:
    """`size` of the numbers below `count`, from place `start` on of epochs, each with all numbers in a new order."""
    chosen: list[int] = []
    while len(chosen) < size:
        epoch, first = divmod(start + len(chosen), count)
        order = np.random.default_rng([*seed, epoch]).permutation(count)
        chosen += order[first : first + size - len(chosen)].tolist()
    return chosen


def _strangers(ids: Sequence[int], seed: int) -> np.ndarray:
    """A permutation that gives every pair the target of another, and a different one."""
    numbers = np.asarray(ids)
    most = int(np.bincount(numbers).max())
    if 2 * most > len(numbers):
        raise InputError(f"to be shuffled, at most half of the pairs may have one target, got {most} of {len(numbers)}")
    rng = np.random.default_rng([seed, 2])
    shuffled = rng.permutation(len(numbers))
    order = shuffled[np.argsort(rng.permutation(numbers.max() + 1)[numbers[shuffled]], kind="stable")]
    partner = np.empty_like(order)
    partner[order] = np.roll(order, most)  # equal targets lie side by side: `most` further on there is another
    return partner
