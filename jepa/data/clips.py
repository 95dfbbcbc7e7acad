"""Training and evaluation samples drawn from the procedural world, one ready batch an item."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from jepa.data.world import (
    BINDING,
    CAPTION_QUERIES,
    COLOURS,
    IDLE,
    NUMBERS,
    PHRASES,
    SHAPES,
    VARIATIONS,
    Scene,
    Span,
    World,
    captions,
    questions,
)

CLASS_QUERY = "which action is it?"
QUERY_FREE = ""
_STORED = 104  # in seeds
_AT_ONCE = 64  # clips to encode
_PAIR_WORDINGS = 2  # of six, for two objects: each text is encoded once, too


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


class _Shown(NamedTuple):
    """A window of a timeline, from `start` seconds on."""

    start: float
    timeline: list[Span]


class _Asked(NamedTuple):
    query: str
    text: str
    negatives: Sequence[str] = ()


def _batch(frames: Tensor, asked: Sequence[_Asked]) -> ClipBatch:
    queries, texts, negatives = zip(*asked, strict=True)
    return ClipBatch(frames, list(queries), list(texts), [*chain.from_iterable(negatives)])


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
    hard_negatives: int = 2  # 0 to 4 for each caption of an event; the fourth is of pairs alone
    class_fraction: float = 0.0  # of samples that ask for the action (its first paraphrase, without objects)
    query_free: bool = False  # captions have no query

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> ClipBatch:
        rng = np.random.default_rng([self.seed, index])
        shown, asked = list[_Shown](), list[_Asked]()
        for _ in range(self.batch_size):
            scene = self._scene(rng)
            asked.append(self._ask(scene, rng))
            shown.append(self._show(scene, rng))
            asked[-1] = asked[-1]._replace(negatives=self._hard_negatives(scene, asked[-1].query, rng))
        return _batch(self._clips(shown, rng), asked)

    def wordings(self, scene: Scene) -> Sequence[str]:
        """The captions that a scene may get."""
        return captions(scene)

    def _scene(self, rng: np.random.Generator) -> Scene:
        scene = self.world.sample_scene(rng, self.split)
        if rng.random() < self.idle_fraction:
            return Scene(IDLE, scene.objects if rng.random() < 0.5 else ())
        return scene

    def _show(self, scene: Scene, rng: np.random.Generator) -> _Shown:
        start = float(rng.uniform(0.5, 8.0))
        return _Shown(start, self._surround(scene, start, start + 0.5 * self.frames / self.world.fps, rng))

    def _clips(self, shown: Sequence[_Shown], rng: np.random.Generator) -> Tensor:
        """(B, F, S, S, 3) uint8."""
        windows = np.array([each.start for each in shown])[:, None] + np.arange(self.frames) / self.world.fps
        return torch.from_numpy(self.world.clips([each.timeline for each in shown], windows, rng))

    def _hard_negatives(self, scene: Scene, query: str, rng: np.random.Generator) -> list[str]:
        """Of a caption: captions of other compositions of the split that differ from the scene in one thing."""
        if query not in (*CAPTION_QUERIES, QUERY_FREE) or scene.action == IDLE:
            return []
        found = []
        for kind in [*rng.permutation(VARIATIONS), BINDING][: self.hard_negatives]:
            other = self.world.vary(scene, str(kind), rng, self.split)
            if other and (texts := self.wordings(other)):
                found.append(str(rng.choice(texts)))
        return found

    def _ask(self, scene: Scene, rng: np.random.Generator) -> _Asked:
        if scene.action != IDLE and rng.random() < self.question_fraction:
            question = (asked := questions(scene))[rng.integers(len(asked))]
            return _Asked(question.text, question.answer)
        among_others = self.class_fraction / (1 - self.question_fraction)
        if scene.action != IDLE and self.class_fraction and rng.random() < among_others:
            return _Asked(CLASS_QUERY, PHRASES[scene.action][0].removesuffix(" {o}"))
        query = QUERY_FREE if self.query_free else str(rng.choice(CAPTION_QUERIES))
        return _Asked(query, str(rng.choice(self.wordings(scene))))

    def _surround(self, scene: Scene, start: float, centre: float, rng: np.random.Generator) -> list[Span]:
        """A timeline around the window that starts at `start`: `scene` alone, or cut by another before or after."""
        if rng.random() >= self.cut_fraction:
            return [Span(0.0, np.inf, scene, "")]
        other = self.world.sample_scene(rng, self.split)
        distance = float(rng.uniform(0.05, centre - start))
        if rng.random() < 0.5:
            return [Span(0.0, centre - distance, other, ""), Span(centre - distance, np.inf, scene, "")]
        return [Span(0.0, centre + distance, scene, ""), Span(centre + distance, np.inf, other, "")]


@dataclass(frozen=True)
class StoredClips:
    """C clips as a frozen X-Encoder saw them: `states` (C, N, D) float16, their scenes, and the captions of each scene.

    `wordings` have all compositions that occur, and every one of a single object.
    """

    states: Tensor
    scenes: Sequence[Scene]
    wordings: Mapping[Scene, Sequence[str]]

    @classmethod
    def draw(
        cls,
        batches: ClipBatches,
        clips: int,
        encode: Callable[[Tensor], Tensor],
        keep: Callable[[str, Callable[[], Tensor]], Tensor] = lambda name, compute: compute(),
        over: Callable[..., Iterable[tuple[int, np.ndarray]]] = map,
    ) -> StoredClips:
        """Draws clips as those of `batches`, and encodes some at a time: (B, F, S, S, 3) uint8 -> (B, N, D).

        `keep` gives the states that were kept under a name, or computes them. `over`, as `map`, goes through the
        parts: `jepa.processes.in_processes` shares them out.
        """

        def sample(first: int) -> tuple[list[Scene], np.random.Generator]:
            rng = np.random.default_rng([batches.seed, _STORED, first])
            return [batches._scene(rng) for _ in range(min(_AT_ONCE, clips - first))], rng

        def compute(first: int) -> Tensor:
            shown, rng = sample(first)
            frames = batches._clips([batches._show(scene, rng) for scene in shown], rng)
            return torch.cat([encode(some) for some in frames.split(_AT_ONCE // 2)]).detach().half().cpu()

        def states(first: int) -> tuple[int, np.ndarray]:
            return first, keep(f"clips of {batches.seed} from {first}", partial(compute, first)).numpy()

        starts = range(0, clips, _AT_ONCE)
        found = dict(tqdm(over(states, starts), desc="states of clips", unit="batch", total=len(starts)))
        scenes = [scene for first in starts for scene in sample(first)[0]]
        rng, wordings = np.random.default_rng([batches.seed, _STORED]), dict[Scene, Sequence[str]]()
        for scene in dict.fromkeys([*batches.world.splits[batches.split][0], *scenes]):
            texts = captions(scene)
            few = len(scene.objects) > 1 and scene.action != IDLE
            wordings[scene] = [texts[i] for i in rng.permutation(len(texts))[:_PAIR_WORDINGS]] if few else texts
        return cls(torch.from_numpy(np.concatenate([found[first] for first in starts])), scenes, wordings)

    @property
    def texts(self) -> list[str]:
        """All captions and answers that may be asked for."""
        found = {text for texts in self.wordings.values() for text in texts} | set(NUMBERS)
        found |= {PHRASES[action][0].removesuffix(" {o}") for action in PHRASES}
        return sorted(found | set(COLOURS) | set(SHAPES))


@dataclass(eq=False)
class StateBatches(ClipBatches):
    """Batches of clips whose states were stored: each clip comes once before any comes again, in a new order.

    `frames` of a batch are their states (B, N, D) float32. Queries, texts and negatives are drawn anew.
    """

    stored: StoredClips | None = None

    def __getitem__(self, index: int) -> ClipBatch:
        assert self.stored is not None
        rng, count = np.random.default_rng([self.seed, index]), len(self.stored.scenes)
        places = range(index * self.batch_size, (index + 1) * self.batch_size)
        rows = [int(_order(self.seed, place // count, count)[place % count]) for place in places]
        asked = [self._ask(self.stored.scenes[row], rng) for row in rows]
        asked = [
            each._replace(negatives=self._hard_negatives(self.stored.scenes[row], each.query, rng))
            for row, each in zip(rows, asked, strict=True)
        ]
        return _batch(self.stored.states[rows].float(), asked)

    def wordings(self, scene: Scene) -> Sequence[str]:
        assert self.stored is not None
        return self.stored.wordings.get(scene, ())


@lru_cache(maxsize=4)
def _order(seed: int, epoch: int, count: int) -> np.ndarray:
    """The rows of an epoch."""
    return np.random.default_rng([seed, _STORED, count, epoch]).permutation(count)
