"""What both request studies share: answers computed once, sessions that take them from there, and scheduled steps.

All methods go through `SelectiveDecoder`. Encoder and predictor run, and count, where a method reads them.

S: streams.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.data.chat import ChatIds
from jepa.data.pairs import Example
from jepa.models.llm_jepa import LLMJEPA, as_example
from jepa.models.session import RequestSession
from jepa.operations import OperationLedger
from jepa.selective import Policy, Segment
from jepa.selective.policies.base import step_segment

EVERY_STEP = 1000.0  # Hz, above the rate of any steps


def all_passes(*ledgers: OperationLedger) -> np.ndarray:
    """(S,) forward passes of all parts."""
    return np.array([sum(p.forward_passes for p in (x.encoder, x.predictor, x.decoder)) for x in ledgers], dtype=float)


class CachedModel:
    """States, predicted embeddings and answers of requests, each computed once and in batches.

    Args:
        model: an LLM-JEPA in evaluation mode.
        longest: most tokens of an answer.
        batch_size: requests at once.
    """

    def __init__(self, model: LLMJEPA, longest: int, batch_size: int) -> None:
        self.model, self.longest, self.batch_size = model, longest, batch_size
        self.states: dict[Example, np.ndarray] = {}
        self.latents: dict[Example, np.ndarray] = {}
        self.rows: dict[Example, list[int]] = {}  # tokens of the answers
        self.encoded: dict[Example, ChatIds] = {}
        self.gaps: dict[tuple[Example, tuple[int, ...]], float] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    @torch.no_grad()
    def encode(self, requests: Iterable[Example], what: str, *, predict: bool) -> None:
        """Add the states of requests, and their predicted embeddings if `predict`."""
        new = {as_example(request) for request in requests} - (self.latents if predict else self.states).keys()
        for part in self._batches(new, f"{what}: encoder"):
            encoded = self.model.encode(part)
            states = F.normalize(encoded.states[:, -1].float(), dim=-1).cpu().numpy()
            self.states.update(zip(part, states, strict=True))
            if predict:
                self.latents.update(zip(part, self.model.predict(encoded).cpu().numpy(), strict=True))

    def answer(self, requests: Iterable[Example], what: str) -> None:
        """Add the answers to requests."""
        for part in self._batches({as_example(request) for request in requests} - self.rows.keys(), f"{what}: answers"):
            prompts = [ids.given for ids in self.model.tokenizer.encode(part)]
            self.rows.update(zip(part, self.model.generate(prompts, self.longest), strict=True))

    def text(self, request: Example) -> str:
        """The answer to a request."""
        return self.decode(self.rows[as_example(request)])

    def decode(self, row: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        key = tuple(row)
        if key not in self._texts:
            self._texts[key] = self.model.tokenizer.decode([list(key)])[0]
        return self._texts[key]

    def _batches(self, new: Collection[Example], what: str) -> Iterator[list[Example]]:
        ordered = sorted(new, key=lambda pair: (len(pair.prompt), pair.prompt))
        for start in tqdm(range(0, len(ordered), self.batch_size), desc=what, unit="batch", leave=False):
            yield ordered[start : start + self.batch_size]


class CachedSession(RequestSession):
    """A session that takes from a `CachedModel` what it would compute, and counts the same operations.

    Args:
        cached: holds every request that will be read or answered.
        ledger: of encoder, predictor and verification.
        graded: say by how much a draft fails; otherwise a draft other than the model's own answer is infinitely wrong.
    """

    def __init__(self, cached: CachedModel, ledger: OperationLedger, *, graded: bool = False) -> None:
        super().__init__(cached.model, ledger)
        self._cached = cached
        self._live = RequestSession(cached.model) if graded else None

    def _ids(self, pair: Example) -> ChatIds:
        if pair not in self._cached.encoded:
            self._cached.encoded[pair] = self.model.tokenizer.encode([pair])[0]
        return self._cached.encoded[pair]

    def _compute(self, ids: list[int], kept: int) -> None:
        return None

    def _state(self, pair: Example, states: Tensor | None) -> np.ndarray:
        return self._cached.states[pair]

    def _latent(self, pair: Example, states: Tensor | None) -> np.ndarray:
        return self._cached.latents[pair]

    def _judge(self, pair: Example, draft: list[int], states: Tensor | None) -> tuple[float, list[int]]:
        row, key = self._cached.rows[pair], (pair, tuple(draft))
        if draft == row:
            return 0.0, row
        if self._live is None:
            return math.inf, row
        if key not in self._cached.gaps:
            self._cached.gaps[key] = self._live.worst_gap(pair, draft)
        return self._cached.gaps[key], row

    def _next(self, pair: Example, row: list[int], states: Tensor | None) -> int:
        return self._cached.rows[pair][len(row)]

    def _text(self, row: list[int]) -> str:
        return self._cached.decode(row)


class ScheduledSteps(Policy):
    """Decodes the steps of given numbers, which a rule worked out from the texts beforehand.

    >>> policy = ScheduledSteps([1])
    >>> [len(policy.step(np.ones(1, dtype=np.float32), time)) for time in (0.0, 1.0, 2.0)]
    [0, 1, 0]

    Args:
        chosen: numbers of steps, from 0.
    """

    name = "steps"
    causal = True
    latency = "none"
    state = "no latent"
    reads_latents = False

    def __init__(self, chosen: Collection[int]) -> None:
        self.chosen = frozenset(chosen)
        self.start()

    def start(self) -> None:
        self._index = -1

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        return [step_segment(latent, time, self._index)] if self._index in self.chosen else []

    def finish(self) -> list[Segment]:
        self.start()
        return []
