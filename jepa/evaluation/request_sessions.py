"""What the evaluations of request streams share: remembered answers, and steps chosen beforehand.

All methods go through `SelectiveDecoder`, with a `RequestSession` behind a `RequestDecoder`. Encoder and predictor run,
and count, where a method reads them.

S: streams.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from jepa.data.pairs import Example
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import RequestSession
from jepa.operations import OperationLedger
from jepa.selective import Policy, Segment
from jepa.selective.policies.base import step_segment

EVERY_STEP = 1000.0  # Hz, above the rate of any steps


def longest_answer(model: LLMJEPA, pairs: Sequence[Example]) -> int:
    return max(len(ids.completion) - ids.opening for ids in model.tokenizer.encode(pairs))


def all_passes(ledgers: Sequence[OperationLedger]) -> np.ndarray:
    """(S,) forward passes of all parts."""
    parts = ("encoder", "predictor", "decoder")
    return np.array([sum(getattr(ledger, part).forward_passes for part in parts) for ledger in ledgers], dtype=float)


def per_request(ledger: OperationLedger, requests: int) -> dict[str, float]:
    parts = ("encoder", "predictor", "decoder")
    counts: dict[str, float] = {
        "decoder_calls": ledger.decoder.calls,
        "decoder_passes": ledger.decoder.forward_passes,
        "tokens": ledger.decoder.tokens,
        **{f"{part}_flops": getattr(ledger, part).flops for part in parts},
        "flops": ledger.total_flops,
    }
    return {name: count / requests for name, count in counts.items()}


# --- What the model says, computed once and in batches.


class Known:
    """States, predicted embeddings and answers of requests, each computed once.

    Args:
        model: an LLM-JEPA in evaluation mode.
        longest: most tokens of an answer.
        batch_size: requests at once.
    """

    def __init__(self, model: LLMJEPA, longest: int, batch_size: int) -> None:
        self.model, self.longest, self.batch_size = model, longest, batch_size
        self.states: dict[Example, np.ndarray] = {}
        self.latents: dict[Example, np.ndarray] = {}
        self.rows: dict[Example, list[int]] = {}
        self.encoded: dict[Example, Any] = {}  # token ids
        self.judged: dict[tuple[Example, tuple[int, ...]], float] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    @torch.no_grad()
    def encode(self, requests: Iterable[Example], what: str, *, predict: bool) -> None:
        """Adds the states of requests, and their predicted embeddings if `predict`."""
        new = {bare(request) for request in requests} - (self.latents if predict else self.states).keys()
        for part in self._batches(new, f"{what}: encoder"):
            encoded = self.model.encode(part)
            states = F.normalize(encoded.states[:, -1].float(), dim=-1).cpu().numpy()
            self.states.update(zip(part, states, strict=True))
            if predict:
                self.latents.update(zip(part, self.model.predict(encoded).cpu().numpy(), strict=True))

    def answer(self, requests: Iterable[Example], what: str) -> None:
        """Adds the answers to requests."""
        for part in self._batches({bare(request) for request in requests} - self.rows.keys(), f"{what}: answers"):
            self.rows.update(zip(part, self.model.generate(part, self.longest), strict=True))

    def text(self, request: Example) -> str:
        """The answer to a request."""
        return self.decode(self.rows[bare(request)])

    def decode(self, row: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        key = tuple(row)
        if key not in self._texts:
            self._texts[key] = self.model.tokenizer.decode([key])[0]
        return self._texts[key]

    def _batches(self, new: Collection[Example], what: str) -> Iterator[list[Example]]:
        ordered = sorted(new, key=lambda pair: (len(pair.prompt), pair.prompt))
        for start in tqdm(range(0, len(ordered), self.batch_size), desc=what, unit="batch", leave=False):
            yield ordered[start : start + self.batch_size]


class RememberingSession(RequestSession):
    """A session that takes from `Known` what it would compute, and counts the same operations.

    Args:
        known: holds every request that will be read or answered.
        ledger: as of `RequestSession`.
        graded: tell by how much a draft fails; otherwise one that is not the model's own answer is infinitely wrong.
    """

    def __init__(self, known: Known, ledger: OperationLedger, *, graded: bool = False) -> None:
        super().__init__(known.model, ledger)
        self._known = known
        self._encoded = known.encoded
        self._live = RequestSession(known.model) if graded else None

    def _compute(self, ids: list[int], kept: int) -> None:
        return None

    def _state(self, pair: Example, states: Any) -> np.ndarray:
        return self._known.states[pair]

    def _latent(self, pair: Example, states: Any) -> np.ndarray:
        return self._known.latents[pair]

    def _judge(self, pair: Example, draft: list[int], states: Any) -> tuple[float, list[int]]:
        row, key = self._known.rows[pair], (pair, tuple(draft))
        if draft == row:
            return 0.0, row
        if self._live is None:
            return math.inf, row
        if key not in self._known.judged:
            self._known.judged[key] = self._live.worst_gap(pair, draft)
        return self._known.judged[key], row

    def _next(self, pair: Example, row: list[int], states: Any) -> int:
        return self._known.rows[pair][len(row)]

    def _text(self, row: list[int]) -> str:
        return self._known.decode(row)


def bare(pair: Example) -> Example:
    return Example(pair.prompt, "", pair.system)


class Steps(Policy):
    """Decodes the steps of the given numbers: a rule that was worked out from the texts beforehand.

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
