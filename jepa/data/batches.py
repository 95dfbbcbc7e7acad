"""Training batches of examples: item i is a function of the seed and i alone."""

from __future__ import annotations

from collections.abc import Sequence
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


class PairBatches(Dataset[PairBatch]):
    """`batches` batches of `batch_size` examples. Each epoch has every example once, in a new order.

    With several `ranks`, batch i belongs to rank i % ranks. The batches of one step all have the latent term, or none.

    Args:
        latent: add the sequences of the latent term; False is next-token training.
        loss_dropout: fraction of the batches without the latent term (LLM-JEPA section 3.3).
        shuffled: a control: each example has the target of another, by one fixed permutation.
        tube: add positions for the semantic tube, and no other extra tokens.
        apart: targets go into rows of their own.

    Raises:
        InputError: there are fewer pairs than `batch_size`, or `loss_dropout` is outside [0, 1).
    """

    def __init__(
        self,
        pairs: Sequence[ChatIds],
        layout: Layout,
        seed: int,
        batch_size: int,
        batches: int,
        *,
        latent: bool = True,
        loss_dropout: float = 0.0,
        shuffled: bool = False,
        tube: bool = False,
        apart: bool = False,
        ranks: int = 1,
    ) -> None:
        if len(pairs) < batch_size:
            raise InputError(f"batch_size must be at most the number of pairs, {len(pairs)}, got {batch_size}")
        if not 0 <= loss_dropout < 1:
            raise InputError(f"loss_dropout must be in [0, 1), got {loss_dropout}")
        self.pairs, self.layout, self.seed = pairs, layout, seed
        self.batch_size, self.batches, self.ranks = batch_size, batches, ranks
        self.latent, self.loss_dropout, self.tube, self.apart = latent, loss_dropout, tube, apart
        self.ids = target_numbers(pairs, layout)
        self.partner = _strangers(self.ids, seed) if shuffled else np.arange(len(pairs))

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
    """`size` of the numbers below `count`, from place `start` on of epochs that follow each other.

    Each epoch has all numbers, in an order of its own. The same for the same `seed`.
    """
    chosen: list[int] = []
    while len(chosen) < size:
        epoch, first = divmod(start + len(chosen), count)
        order = np.random.default_rng([*seed, epoch]).permutation(count)
        chosen += order[first : first + size - len(chosen)].tolist()
    return chosen


def _strangers(ids: Sequence[int], seed: int) -> np.ndarray:
    """A permutation that gives every pair the target of another, and a different one.

    Raises:
        InputError: more than half of the pairs have the same target.
    """
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
