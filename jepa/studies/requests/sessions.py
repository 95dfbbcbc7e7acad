"""What both request studies share: answers computed once, sessions that take them from there, and scheduled steps.

All methods go through `SelectiveDecoder`. Encoder and predictor run, and count, where a method reads them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.data.pairs import Example
from jepa.models.drafts import Drafter
from jepa.models.llm_jepa import LLMJEPA, as_example
from jepa.models.session import RequestSession
from jepa.operations import OperationLedger
from jepa.selective import Policy, Segment
from jepa.selective.policies.base import step_segment

EVERY_STEP = 1000.0  # Hz, above the rate of any steps


def all_passes(ledger: OperationLedger) -> int:
    """Forward passes of all parts."""
    return sum(part.forward_passes for part in (ledger.encoder, ledger.predictor, ledger.decoder))


class CachedModel:
    """An LLM-JEPA's states, predicted embeddings and answers of at most `longest` tokens, each computed once.

    With a `drafter` also the drafts after each token of an answer, and the states predicted for them.
    """

    def __init__(self, model: LLMJEPA, longest: int, batch_size: int, drafter: Drafter | None = None) -> None:
        self.model, self.longest, self.batch_size, self.drafter = model, longest, batch_size, drafter
        self.drafts: dict[Example, list[tuple[list[int], int]]] = {}
        self.states: dict[Example, np.ndarray] = {}
        self.latents: dict[Example, np.ndarray] = {}
        self.rows: dict[Example, list[int]] = {}  # tokens of the answers
        self.tokenized = cache(lambda pair: model.tokenizer.encode([pair])[0])
        self.gaps: dict[tuple[Example, tuple[int, ...]], float] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    @torch.no_grad()
    def read(self, requests: Iterable[Example], what: str, *, answer: bool) -> None:
        """Add the states of requests, and with `answer` their predicted embeddings and answers."""
        new = {as_example(request) for request in requests} - (self.rows if answer else self.states).keys()
        ordered = sorted(new, key=lambda pair: (len(pair.prompt), pair.prompt))
        for start in tqdm(range(0, len(ordered), self.batch_size), desc=what, unit="batch", leave=False):
            part = ordered[start : start + self.batch_size]
            encoded = self.model.encode(part)
            states = F.normalize(encoded.states[:, -1].float(), dim=-1).cpu().numpy()
            self.states.update(zip(part, states, strict=True))
            if answer:
                self.latents.update(zip(part, self.model.predict(encoded).cpu().numpy(), strict=True))
                prompts = [ids.given for ids in self.model.tokenizer.encode(part)]
                rows = self.model.continuations(prompts, self.longest)
                self.rows.update((request, row.tokens) for request, row in zip(part, rows, strict=True))
                if self.drafter is not None:
                    for request, prompt, row in zip(part, prompts, rows, strict=True):
                        self.drafts[request] = self._drafts(self.drafter, prompt, row.tokens)

    def _drafts(self, drafter: Drafter, prompt: list[int], row: list[int]) -> list[tuple[list[int], int]]:
        ids = torch.tensor([[*prompt, *row[:-1]]], device=self.model.device)
        states, _ = self.model.language.extend(ids, torch.ones_like(ids, dtype=torch.bool), None)
        texts = [[*prompt, *row[: place + 1]] for place in range(len(row))]
        tokens, counts, predicted, _ = drafter.draft(states[0, len(prompt) - 1 :], texts, self.longest)
        found = zip(tokens.tolist(), counts.tolist(), predicted.tolist(), strict=True)
        return [(drafted[:count], states) for drafted, count, states in found]

    def text(self, request: Example) -> str:
        """The answer to a request."""
        return self.decode(self.rows[as_example(request)])

    def decode(self, row: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        key = tuple(row)
        if key not in self._texts:
            self._texts[key] = self.model.tokenizer.decode([list(key)])[0]
        return self._texts[key]


class CachedSession(RequestSession):
    """A session that takes from a `CachedModel` what it would compute, and counts the same operations.

    A `graded` one says by how much a draft fails. Otherwise a draft other than the model's own is infinitely wrong.
    """

    def __init__(self, cached: CachedModel, ledger: OperationLedger, *, graded: bool = False) -> None:
        super().__init__(cached.model, ledger, cached.drafter)
        self._cached, self._tokenized = cached, cached.tokenized
        self._live = RequestSession(cached.model) if graded else None

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

    def _own(self, pair: Example, row: list[int], states: Tensor | None, count: int) -> list[int]:
        return self._cached.rows[pair][len(row) : len(row) + count]

    def _draft(self, pair: Example, row: list[int], state: Tensor | None, most: int) -> tuple[list[int], int]:
        drafted, predicted = self._cached.drafts[pair][len(row) - 1]
        return drafted[:most], min(predicted, most)

    def _text(self, row: list[int]) -> str:
        return self._cached.decode(row)


class ScheduledSteps(Policy):
    """Decodes the steps of given numbers, from 0, which a rule worked out from the texts beforehand.

    >>> policy = ScheduledSteps([1])
    >>> [len(policy.step(np.ones(1, dtype=np.float32), time)) for time in (0.0, 1.0, 2.0)]
    [0, 1, 0]
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
