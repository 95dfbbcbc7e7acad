"""What the evaluations of request streams share: remembered answers, policies on words, and a cache of answers.

All methods go through `SelectiveDecoder`, with a `RequestSession` behind a `RequestDecoder`. Encoder and predictor run,
and count, where a method reads them.

E: embedding dimensions; D: width of the model; S: streams.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from jepa import checkpoint
from jepa.data.pairs import Pair
from jepa.errors import InputError
from jepa.models.llm_jepa import LLMJEPA, RequestDecoder, RequestSession
from jepa.operations import OperationLedger
from jepa.selective import Emission, LatentCache, Policy, Segment, SelectiveDecoder
from jepa.selective.cache import CacheEntry
from jepa.selective.policies.base import step_segment

EVERY_STEP = 1000.0  # Hz, above the rate of any steps
RESAMPLES = 2000
_CODES = 8  # width of latents that only name a step

Read = Callable[[RequestSession, Pair], np.ndarray]


def load_language_model(folder: Path, device: str) -> LLMJEPA:
    model = checkpoint.load(folder)
    if not isinstance(model, LLMJEPA):
        raise InputError(f"{folder} must be a checkpoint of an LLM-JEPA, got {type(model).__name__}")
    return model.to(device)


def longest_answer(model: LLMJEPA, pairs: Sequence[Pair]) -> int:
    return max(len(ids.answer) - ids.opening for ids in model.tokenizer.encode(pairs))


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


def resample(count: int, seed: int) -> np.ndarray:
    """(R, count) how often each of `count` clusters is drawn in each resample."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=RESAMPLES)


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
        self.states: dict[Pair, np.ndarray] = {}
        self.latents: dict[Pair, np.ndarray] = {}
        self.rows: dict[Pair, list[int]] = {}
        self.encoded: dict[Pair, Any] = {}  # token ids
        self.judged: dict[tuple[Pair, tuple[int, ...]], float] = {}
        self._texts: dict[tuple[int, ...], str] = {}

    @torch.no_grad()
    def encode(self, requests: Iterable[Pair], what: str, *, predict: bool) -> None:
        """Adds the states of requests, and their predicted embeddings if `predict`."""
        new = {bare(request) for request in requests} - (self.latents if predict else self.states).keys()
        for part in self._batches(new, f"{what}: encoder"):
            encoded = self.model.encode(part)
            states = F.normalize(encoded.states[:, -1].float(), dim=-1).cpu().numpy()
            self.states.update(zip(part, states, strict=True))
            if predict:
                self.latents.update(zip(part, self.model.predict(encoded).cpu().numpy(), strict=True))

    def answer(self, requests: Iterable[Pair], what: str) -> None:
        """Adds the answers to requests."""
        for part in self._batches({bare(request) for request in requests} - self.rows.keys(), f"{what}: answers"):
            self.rows.update(zip(part, self.model.generate(part, self.longest), strict=True))

    def text(self, request: Pair) -> str:
        """The answer to a request."""
        return self.decode(self.rows[bare(request)])

    def decode(self, row: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        key = tuple(row)
        if key not in self._texts:
            self._texts[key] = self.model.tokenizer.decode([key])[0]
        return self._texts[key]

    def _batches(self, new: Collection[Pair], what: str) -> Iterator[list[Pair]]:
        ordered = sorted(new, key=lambda pair: (len(pair.request), pair.request))
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

    def _state(self, pair: Pair, states: Any) -> np.ndarray:
        return self._known.states[pair]

    def _latent(self, pair: Pair, states: Any) -> np.ndarray:
        return self._known.latents[pair]

    def _judge(self, pair: Pair, draft: list[int], states: Any) -> tuple[float, list[int]]:
        row, key = self._known.rows[pair], (pair, tuple(draft))
        if draft == row:
            return 0.0, row
        if self._live is None:
            return math.inf, row
        if key not in self._known.judged:
            self._known.judged[key] = self._live.worst_gap(pair, draft)
        return self._known.judged[key], row

    def _next(self, pair: Pair, row: list[int], states: Any) -> int:
        return self._known.rows[pair][len(row)]

    def _text(self, row: list[int]) -> str:
        return self._known.decode(row)


def bare(pair: Pair) -> Pair:
    return Pair(pair.request, "", pair.system)


# --- Reading a stream.


class Steps(Policy):
    """Decodes the steps of the given numbers: a rule that was worked out from the texts beforehand.

    Args:
        chosen: numbers of steps, from 0.
    """

    name = "steps"
    causal = True
    latency = "none"
    state = "no latent"

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


class Debounce(Policy):
    """Decodes a step once nothing has followed it for some time, as input fields on web pages do.

    A step that is followed by another within `seconds` is never decoded. Steps come when words do, so that what a timer
    would set off after `seconds` comes out with the next step, and the last one with `finish`.

    Args:
        seconds: to wait, >= 0.
    """

    name = "debounce"
    causal = True
    state = "1 latent: the newest"

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.latency = f"{seconds:g} s"
        self.start()

    def start(self) -> None:
        self._index = -1
        self._newest: Segment | None = None

    def step(self, latent: np.ndarray, time: float) -> list[Segment]:
        self._index += 1
        newest, self._newest = self._newest, step_segment(latent, time, self._index)
        return [newest] if newest is not None and time - newest.time >= self.seconds else []

    def finish(self) -> list[Segment]:
        newest = self._newest
        self.start()
        return [newest] if newest is not None else []


class AnswerCache(LatentCache):
    """A latent cache of answers that may also know a request by its words, and ask the model about what it finds.

    A request whose `name` was answered before gets that answer at once. Otherwise the nearest latent within `threshold`
    offers its answer, which the model, if there is a `session`, may refuse (`RequestSession.agrees`).

    Args:
        threshold: as of `LatentCache`.
        capacity: as of `LatentCache`; as many names are held.
        name: what makes two requests one; None: nothing does.
        session: verifies an answer from a near latent; None: it is taken.
        tolerance: of the verification, in nats.
    """

    def __init__(
        self,
        threshold: float,
        capacity: int,
        *,
        name: Callable[[Pair], str] | None = None,
        session: RequestSession | None = None,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(threshold, capacity)
        self.name, self.session, self.tolerance = name, session, tolerance

    def clear(self) -> None:
        super().clear()
        self._named: OrderedDict[str, CacheEntry] = OrderedDict()
        self._request: Pair | None = None

    def hear(self, request: Pair) -> bool:
        """The request that will be looked up next; whether it is known by name."""
        self._request = request
        return self.name is not None and self.name(request) in self._named

    def look_up(self, latent: np.ndarray) -> tuple[CacheEntry, bool]:
        request = self._request
        if request is None:
            raise RuntimeError("an AnswerCache must hear a request before each look-up")
        if self.name is None:
            return self._near(latent, request)
        name, hit = self.name(request), self.hear(request)
        if hit:
            entry = self._named[name]
        else:
            entry, hit = self._near(latent, request)
        self._named[name] = entry
        self._named.move_to_end(name)
        if len(self._named) > self.capacity:
            self._named.popitem(last=False)
        return entry, hit

    def _near(self, latent: np.ndarray, request: Pair) -> tuple[CacheEntry, bool]:
        entry, near = super().look_up(latent)
        if not near or self.session is None or entry.decoded is None:
            return entry, near
        if self.session.agrees(request, entry.decoded.text, self.tolerance):
            return entry, True
        return self._add(latent), False


def follow(
    steps: Iterable[tuple[Pair, float]],
    policy: Policy,
    session: RequestSession,
    longest: int,
    read: Read | None,
    reader: RequestSession | None = None,
    cache: LatentCache | None = None,
) -> tuple[list[Emission], list[Emission]]:
    """One stream through a `SelectiveDecoder`: what is emitted while it runs, and at its end.

    Args:
        steps: requests and their times.
        policy: of this stream.
        session: answers, and counts.
        longest: most tokens of an answer.
        read: gives the latent of a request; None: latents that only name the step.
        reader: the session that `read` is called with, where it is another model's.
        cache: of this stream.
    """
    decoder = RequestDecoder(session, longest, memory=2)
    selective = SelectiveDecoder(policy, decoder, session.ledger, cache=cache)
    emissions: list[Emission] = []
    width = None
    for index, (request, time) in enumerate(steps):
        named = isinstance(cache, AnswerCache) and cache.hear(request)
        if read is None or (named and width is not None):  # known by its words: the latent is not needed
            latent = np.eye(width or _CODES, dtype=np.float32)[index % (width or _CODES)]
        else:
            latent = read(reader or session, request)
            width = len(latent)
        decoder.hear([request], latent[None])
        emissions += selective.step(latent, time)
    return emissions, selective.finish()


def read_latent(session: RequestSession, request: Pair) -> np.ndarray:
    return session.predict(request)


def read_state(session: RequestSession, request: Pair) -> np.ndarray:
    return session.state(request)
