"""Training and evaluation samples drawn from the procedural world, one ready batch an item."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from jepa.data.world import CAPTION_QUERIES, IDLE, PHRASES, VARIATIONS, Scene, Span, World, captions, questions

CLASS_QUERY = "which action is it?"
QUERY_FREE = ""


class ClipBatch(NamedTuple):
    """B clips with a query and the text that answers it.

    `negatives` are further texts, wrong for every clip with another text. `skipped` holds the error of each medium that
    could not be read and was replaced.
    """

    frames: Tensor  # (B, F, S, S, 3) uint8
    queries: list[str]
    texts: list[str]
    negatives: list[str]
    skipped: Sequence[str] = ()


@dataclass(eq=False)
class ClipBatches(Dataset[ClipBatch]):
    """Item i is the i-th training batch, a function of (seed, i) alone.

    Another event may begin or end within a clip. The text is of the event at the centre, as in a sliding window over a
    stream. Hard negatives differ from a caption in the action, one shape or one colour (NegCLIP, arXiv 2210.01936).

    >>> batch = ClipBatches(World(), seed=0, batch_size=2, batches=1, frames=4)[0]
    >>> batch.frames.shape, len(batch.texts)
    (torch.Size([2, 4, 48, 48, 3]), 2)
    """

    world: World
    seed: int
    batch_size: int
    batches: int
    frames: int = 8
    split: str = "train"  # of the compositions
    question_fraction: float = 0.25  # of samples that ask a short question instead of a caption
    idle_fraction: float = 0.04  # of samples that show a pause
    cut_fraction: float = 0.15  # of samples with a second event
    hard_negatives: int = 2  # 0 to 3 for each caption of an event
    class_fraction: float = 0.0  # of samples that ask for the action (its first paraphrase, without objects)
    query_free: bool = False  # captions have no query

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> ClipBatch:
        rng = np.random.default_rng([self.seed, index])
        window = np.arange(self.frames) / self.world.fps
        centre = 0.5 * self.frames / self.world.fps
        timelines, queries, texts, starts, negatives = [], [], [], [], []
        for _ in range(self.batch_size):
            scene = self.world.sample_scene(rng, self.split)
            if rng.random() < self.idle_fraction:
                scene = Scene(IDLE, scene.objects if rng.random() < 0.5 else ())
            query, text = self._ask(scene, rng)
            start = float(rng.uniform(0.5, 8.0))
            timelines.append(self._surround(scene, start, start + centre, rng))
            starts.append(start)
            queries.append(query)
            texts.append(text)
            if query in (*CAPTION_QUERIES, QUERY_FREE) and scene.action != IDLE:
                negatives += self._hard_negatives(scene, rng)
        clips = self.world.clips(timelines, np.array(starts)[:, None] + window, rng)
        return ClipBatch(torch.from_numpy(clips), queries, texts, negatives)

    def _hard_negatives(self, scene: Scene, rng: np.random.Generator) -> list[str]:
        """Captions of other compositions of the split that differ from the scene in one thing."""
        kinds = rng.permutation(VARIATIONS)[: self.hard_negatives]
        others = (self.world.vary(scene, str(kind), rng, self.split) for kind in kinds)
        return [str(rng.choice(captions(other))) for other in others if other]

    def _ask(self, scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
        if scene.action != IDLE and rng.random() < self.question_fraction:
            question = (asked := questions(scene))[rng.integers(len(asked))]
            return question.text, question.answer
        among_others = self.class_fraction / (1 - self.question_fraction)
        if scene.action != IDLE and self.class_fraction and rng.random() < among_others:
            return CLASS_QUERY, PHRASES[scene.action][0].removesuffix(" {o}")
        query = QUERY_FREE if self.query_free else str(rng.choice(CAPTION_QUERIES))
        return query, str(rng.choice(captions(scene)))

    def _surround(self, scene: Scene, start: float, centre: float, rng: np.random.Generator) -> list[Span]:
        """A timeline around the window that starts at `start`: `scene` alone, or cut by another before or after."""
        if rng.random() >= self.cut_fraction:
            return [Span(0.0, np.inf, scene, "")]
        other = self.world.sample_scene(rng, self.split)
        distance = float(rng.uniform(0.05, centre - start))
        if rng.random() < 0.5:
            return [Span(0.0, centre - distance, other, ""), Span(centre - distance, np.inf, scene, "")]
        return [Span(0.0, centre + distance, scene, ""), Span(centre + distance, np.inf, other, "")]
