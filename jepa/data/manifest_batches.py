"""Training batches of captions, questions and classes from a manifest, over clips or cached features."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa.data.batches import shuffled_rows
from jepa.data.clips import ClipBatch
from jepa.data.manifests import CaptionSample, ClassSample, Kind, QuestionSample, Sample, WorldPredictionSample
from jepa.data.media import Media
from jepa.errors import InputError, check_int, check_nonnegative

Read: TypeAlias = Callable[[Media], Tensor]
Row: TypeAlias = tuple[Tensor, str, str]  # clip or states, query and text
Trainable: TypeAlias = CaptionSample | QuestionSample | ClassSample


@dataclass(frozen=True)
class Prompts:
    """How a sample becomes a query and the text that answers it: queries for captions and for classes, one drawn each.

    `[""]` is query-free captioning (VL-JEPA section 3.2). `label` is the text of a class, with `{label}` in it.
    """

    captions: Sequence[str]
    classes: Sequence[str]
    label: str

    def __post_init__(self) -> None:
        for name in ("captions", "classes"):
            if not getattr(self, name):
                raise InputError(f"{name} must have at least 1 query, got none")
        if "{label}" not in self.label:
            raise InputError(f"label must hold {{label}}, got {self.label!r}")

    def choices(self, sample: Trainable) -> tuple[Sequence[str], Sequence[str]]:
        """All queries about a sample, and all texts that answer each of them."""
        if isinstance(sample, CaptionSample):
            return self.captions, sample.captions
        if isinstance(sample, ClassSample):
            return self.classes, (self.label.replace("{label}", sample.label),)
        return (sample.question,), (sample.answer,)

    def ask(self, sample: Trainable, rng: np.random.Generator) -> tuple[str, str]:
        """A query about a sample, and its answer."""
        queries, texts = self.choices(sample)
        return str(rng.choice(queries)), str(rng.choice(texts))


@dataclass(eq=False)
class ManifestBatches(Dataset[ClipBatch]):
    """Item i is the i-th batch, a function of (seed, i) alone; each epoch of a kind has every sample once.

    `read` gives a medium's clip (F, S, S, 3) uint8 (`ClipReader`) or its states (N, D) (`Features`). `fractions` of
    each kind in every batch are relative to their sum, and rounded to whole samples. `skip_broken` replaces a sample
    whose medium cannot be read by another of its kind, and puts the error into the batch's `skipped`.
    """

    samples: Sequence[Sample]
    read: Read
    seed: int
    batch_size: int
    batches: int
    fractions: Mapping[Kind, float]
    prompts: Prompts
    skip_broken: bool = False

    def __post_init__(self) -> None:
        check_int("batches", self.batches, 1)
        self.counts = _whole_counts(self.fractions, check_int("batch_size", self.batch_size, 1))
        self.by_kind = {kind: _trainable(self.samples, kind) for kind in self.counts}

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> ClipBatch:
        if not 0 <= index < self.batches:
            raise IndexError(index)
        rng = np.random.default_rng([self.seed, 0, index])
        rows, skipped = list[Row](), list[str]()
        for number, (kind, count) in enumerate(self.counts.items()):
            samples = self.by_kind[kind]
            for row in shuffled_rows([self.seed, 1, number], len(samples), index * count, count):
                sample, states = self._read(samples, row, rng, skipped)
                rows.append((states, *self.prompts.ask(sample, rng)))
        return collate(rows, skipped)

    def _read(
        self, samples: Sequence[Trainable], row: int, rng: np.random.Generator, skipped: list[str]
    ) -> tuple[Trainable, Tensor]:
        for _ in range(16):
            try:
                return samples[row], self.read(samples[row].media)
            except InputError as error:
                if not self.skip_broken:
                    raise
                skipped.append(str(error))
                row = int(rng.integers(len(samples)))
        raise InputError(f"16 media in a row cannot be read; the last: {skipped[-1]}")


def collate(rows: Sequence[Row], skipped: Sequence[str]) -> ClipBatch:
    media, queries, texts = zip(*rows, strict=True)
    return ClipBatch(torch.stack(media), list(queries), list(texts), [], skipped)


def _trainable(samples: Sequence[Sample], kind: Kind) -> list[Trainable]:
    found = [each for each in samples if each.kind == kind and not isinstance(each, WorldPredictionSample)]
    if not found:
        raise InputError(f"fractions: a kind with a fraction must have a sample to train on, got none of {kind}")
    return found


def _whole_counts(fractions: Mapping[Kind, float], batch_size: int) -> dict[Kind, int]:
    """Samples of each kind in a batch, by largest remainders."""
    total = sum(check_nonnegative(f"fractions.{kind}", fraction) for kind, fraction in fractions.items())
    if not total:
        raise InputError(f"fractions must have one above 0, got {dict(fractions)}")
    exact = {kind: batch_size * fraction / total for kind, fraction in fractions.items() if fraction}
    counts = {kind: int(value) for kind, value in exact.items()}
    for kind in sorted(exact, key=lambda kind: counts[kind] - exact[kind])[: batch_size - sum(counts.values())]:
        counts[kind] += 1
    for kind, count in counts.items():
        if not count:
            raise InputError(f"fractions.{kind} must make at least 1 of {batch_size} samples, got {fractions[kind]}")
    return counts
