"""What the decoder is trained on: embeddings of three kinds with the texts they should become."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from jepa.data.clips import StoredClips
from jepa.data.world import CAPTION_QUERIES, Scene, StreamStyle, World, captions, questions
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA


@dataclass(frozen=True)
class StreamLatents:
    """Predicted latents (T, E) of training streams end to end, or of clips; event i covers steps first[i] to last[i].

    >>> StreamLatents(torch.eye(4), first=torch.tensor([0, 2]), last=torch.tensor([1, 3]), texts=["a", "b"]).texts
    ['a', 'b']
    """

    latents: Tensor
    first: Tensor
    last: Tensor
    texts: list[str]


def predicted_latents(
    model: VLJEPA, world: World, style: StreamStyle, seed: int, streams: int, seconds: float, step_rate: float
) -> StreamLatents:
    """Runs the model over `streams` training streams. A step belongs to the span at the centre of its window.

    Only compositions of the training split occur.
    """
    pieces, events, offset = [], [], 0
    for index in tqdm(range(streams), desc="latents for the decoder", unit="stream"):
        stream = world.stream(f"train-{index}", (seed, index), seconds, style, split="train")
        parts = zip(*model.stream(stream.frames(), step_rate, CAPTION_QUERIES[0]), strict=True)
        latents, times = map(np.concatenate, parts)
        for span in stream.spans:
            inside = np.flatnonzero((times >= span.start) & (times < span.end))
            if len(inside):
                events.append((offset + inside[0], offset + inside[-1], span.text))
        pieces.append(torch.from_numpy(latents))
        offset += len(latents)
    if not events:
        raise InputError(f"training streams must be longer than {model.window} s to hold a whole step, got {seconds} s")
    first, last, texts = zip(*events, strict=True)
    return StreamLatents(torch.cat(pieces), torch.tensor(first), torch.tensor(last), list(texts))


@torch.no_grad()
def clip_latents(model: VLJEPA, clips: StoredClips, seed: int) -> StreamLatents:
    """What the model predicts of stored clips, each an event of one step with one of its texts.

    There are many more of them than events in a few streams, but the model was trained on them, and errs less there.
    """
    rng, query, latents = np.random.default_rng(seed), CAPTION_QUERIES[0], list[Tensor]()
    for part in tqdm(clips.states.split(256), desc="latents for the decoder", unit="batch"):
        latents.append(model.predict(part.to(model.device).float(), [query] * len(part)).cpu())
    rows, texts = torch.arange(len(clips.scenes)), [str(rng.choice(clips.wordings[each])) for each in clips.scenes]
    return StreamLatents(torch.cat(latents), rows, rows, texts)


def prediction_error(model: VLJEPA, streams: StreamLatents) -> float:
    """Root mean square, per dimension, of predicted minus text embedding: the noise to train the decoder with."""
    steps = torch.cat([torch.arange(a, b + 1) for a, b in zip(streams.first, streams.last, strict=True)])
    owner = torch.repeat_interleave(torch.arange(len(streams.texts)), streams.last - streams.first + 1)
    targets = model.embed_all(streams.texts)[owner]
    return float((streams.latents[steps] - targets).square().mean().sqrt())


def training_texts(world: World) -> list[str]:
    """Distinct captions and answers of the training compositions: all solo scenes, a fixed sample of the pairs."""
    solo, pairs = world.splits["train"]
    scenes: list[Scene] = [*solo, *pairs[:: max(1, len(pairs) // 1500)]]
    texts = {text for scene in scenes for text in captions(scene)}
    texts |= {question.answer for scene in solo for question in questions(scene)}
    return sorted(texts)


class _LatentBatches(Dataset[tuple[Tensor, list[str]]]):
    """Item i is a batch of (latents (B, E), texts), of unit norm: a function of (seed, i) alone."""

    def __init__(self, seed: int, batch_size: int, batches: int) -> None:
        self.seed, self.batch_size, self.batches = seed, batch_size, batches

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, index: int) -> tuple[Tensor, list[str]]:
        latents, texts = self.draw(torch.Generator().manual_seed(hash((self.seed, index)) % 2**63))
        return torch.nn.functional.normalize(latents, dim=-1), texts

    def draw(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        raise NotImplementedError


class DecoderBatches(_LatentBatches):
    """Item i is a batch of (latents (B, E), texts), of unit norm: a function of (seed, i) alone.

    A third each: text embeddings with Gaussian noise of deviation `noise` per dimension (CapDec, arXiv 2211.00575, with
    the noise measured instead of chosen); predicted embeddings of single steps; and means of consecutive predicted
    embeddings of one event (what a segment's latent is), which of clips are single, too. Without one of these, text
    embeddings take its place.

    >>> streams = StreamLatents(torch.eye(4), torch.tensor([0]), torch.tensor([3]), ["an event"])
    >>> latents, texts = DecoderBatches(torch.eye(4), list("abcd"), streams, 0.0, seed=0, batch_size=6, batches=1)[0]
    >>> latents.shape, texts[2:]
    (torch.Size([6, 4]), ['an event', 'an event', 'an event', 'an event'])
    """

    def __init__(
        self,
        text_latents: Tensor,
        texts: list[str],
        streams: StreamLatents,
        noise: float,
        seed: int,
        batch_size: int,
        batches: int,
        predictions: bool = True,
        segment_means: bool = True,
    ) -> None:
        super().__init__(seed, batch_size, batches)
        self.text_latents, self.texts, self.streams, self.noise = text_latents, texts, streams, noise
        self.single, self.segment = batch_size // 3 * predictions, batch_size // 3 * segment_means
        total = torch.zeros(1, streams.latents.shape[1], dtype=torch.float64)
        self.cumulative = torch.cat([total, streams.latents.double().cumsum(0)])

    def draw(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        single, segment, streams = self.single, self.segment, self.streams
        rows = torch.randint(len(self.texts), (self.batch_size - single - segment,), generator=generator)
        noisy = _noisy(self.text_latents[rows], self.noise, generator)
        events = torch.randint(len(streams.texts), (single + segment,), generator=generator)
        steps = streams.last[events] - streams.first[events] + 1
        ends = (torch.rand(2, len(events), generator=generator) * steps).long()
        ends[1, :single] = ends[0, :single]
        start = streams.first[events] + ends.amin(0)
        stop = streams.first[events] + ends.amax(0) + 1
        means = (self.cumulative[stop] - self.cumulative[start]) / (stop - start)[:, None]
        texts = [self.texts[row] for row in rows.tolist()] + [streams.texts[event] for event in events.tolist()]
        return torch.cat([noisy, means.float()]), texts


class PairDecoderBatches(_LatentBatches):
    """Item i is a batch of (latents (B, E), answers), of unit norm: a function of (seed, i) alone.

    Half are predicted embeddings, half those of the answers themselves with Gaussian noise (CapDec, arXiv 2211.00575):
    of the deviation per dimension that the predictions were measured to have.

    >>> latents, answers = PairDecoderBatches(torch.eye(4), torch.eye(4), list("abcd"), 0, batch_size=2, batches=1)[0]
    >>> [answers[row] == "abcd"[latents[row].argmax()] for row in range(2)]
    [True, True]
    """

    def __init__(
        self, predictions: Tensor, targets: Tensor, texts: list[str], seed: int, batch_size: int, batches: int
    ) -> None:
        super().__init__(seed, batch_size, batches)
        self.predictions, self.targets, self.texts = predictions, targets, texts
        self.noise = float((predictions - targets).square().mean().sqrt())

    def draw(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        rows = torch.randint(len(self.texts), (self.batch_size,), generator=generator)
        latents, half = _noisy(self.targets[rows], self.noise, generator), self.batch_size // 2
        latents[:half] = self.predictions[rows[:half]]
        return latents, [self.texts[row] for row in rows.tolist()]


def _noisy(latents: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    return latents + noise * torch.randn(latents.shape, generator=generator)
