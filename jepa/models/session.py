"""An LLM-JEPA on live requests: a session on one key/value cache, its answers as a decoder, and a cache of answers.

The payload of a step is its request, so decoder and cache know what each latent was predicted from.

E embedding dimensions, D width of the model.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import takewhile
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from jepa.data.chat import ChatIds
from jepa.data.pairs import Example
from jepa.errors import InputError
from jepa.models.costs import costed, pass_cost
from jepa.models.drafts import Drafter
from jepa.models.llm_jepa import LLMJEPA, Request, as_example
from jepa.operations import OperationLedger, PartCount
from jepa.selective import CacheEntry, Decoded, Emission, LatentCache, Policy, SelectiveDecoder


class RequestDecoder:
    """The greedy answers of a model or a session, of at most `max_new_tokens` tokens, as the decoder of a
    `SelectiveDecoder` whose payloads are the requests.

    >>> class Echo:
    ...     def answer(self, requests, max_new_tokens):
    ...         return [Decoded(f"{request}!", tokens=2, forward_passes=2) for request in requests]
    >>> from jepa.selective import Uniform
    >>> selective = SelectiveDecoder(Uniform(1.0), RequestDecoder(Echo(), max_new_tokens=8))
    >>> [emission.text for emission in selective.step(None, 0.0, payload="any digit")]
    ['any digit!']
    """

    def __init__(self, model: LLMJEPA | RequestSession, max_new_tokens: int) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Answers to the B requests that came as payloads. Raises `InputError` if one is no request."""
        requests = [request for request in payloads or () if isinstance(request, str | Example)]
        if len(requests) != len(latents):
            raise InputError("a RequestDecoder needs a request as the payload of each step, got a step without")
        return self.model.answer(requests, self.max_new_tokens)


class RequestSession:
    """An LLM-JEPA, in evaluation mode, on requests that come one after another: typed word by word, or each a new one.

    Encoder, predictor and answers work on one key/value cache: of each token sequence only what follows the longest
    common beginning with the sequence before is computed, by whichever part that was. (The cache of a sliding window
    cannot go back: such models begin anew unless a sequence goes on from the one before.) The ledger counts what is
    computed for encoder, predictor and the verification of answers; answers are returned with their counts, for
    `SelectiveDecoder` to add. A `drafter` saves passes: the answers stay the same.

    >>> from jepa.data.chat import ChatTokenizer
    >>> from jepa.encoders import LanguageModel
    >>> from jepa.predictors import TiedPredictor
    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300}
    >>> tokenizer = ChatTokenizer.train(["lines with a vowel", "[aeiou]"], 300)
    >>> session = RequestSession(LLMJEPA(LanguageModel(architecture=tiny), TiedPredictor(), tokenizer).eval())
    >>> [session.predict(request).shape for request in ("lines with", "lines with a vowel")]
    [(32,), (32,)]
    >>> session.ledger.predictor.calls
    2
    """

    def __init__(self, model: LLMJEPA, ledger: OperationLedger | None = None, drafter: Drafter | None = None) -> None:
        self.model, self.drafter = model, drafter
        self.ledger = OperationLedger() if ledger is None else ledger
        self._stop = set(model.tokenizer.stop_ids)
        self._crops = model.language.window is None
        self._tokenized = lru_cache(16)(lambda pair: model.tokenizer.encode([pair])[0])  # a session may live for ever
        self._held: list[int] = []  # the tokens whose keys and values are in the cache
        self._cache: Any = None
        self._begun: tuple[Example, list[int]] | None = None  # the last request verified, and how its answer begins

    def state(self, request: Request) -> np.ndarray:
        """X-Encoder: the state of a request's last token (D,) float32, L2-normalised."""
        pair = as_example(request)
        return self._state(pair, self._encode(pair))

    def predict(self, request: Request) -> np.ndarray:
        """X-Encoder and Predictor: the predicted embedding (E,) float32, L2-normalised."""
        pair, own = as_example(request), self.model.predictor_ids
        states = self._encode(pair)
        if own and self.model.predictor.placement == "append":
            states = self._run("predictor", [*self._ids(pair).prompt, *own], calls=1)
        else:
            self.ledger.count("predictor", calls=1)
        return self._latent(pair, states)

    def agrees(self, request: Request, text: str, tolerance: float = 0.0) -> bool:
        """Whether `text` may stand as the answer to a request: one forward pass over it, counted as the decoder's.

        It may if its `worst_gap` is at most `tolerance`: at 0 exactly if the model would answer so itself. If not,
        `answer` goes on from the first token that differs from the model's own, so that the pass is not lost.
        """
        pair = as_example(request)
        ids = self._ids(replace(pair, completion=text))
        return self.worst_gap(pair, ids.completion[ids.opening :]) <= tolerance

    def worst_gap(self, request: Request, draft: list[int]) -> float:
        """How far, in nats, a draft's worst token, its end included, lies below the likeliest in its place."""
        pair = as_example(request)
        states = self._run("decoder", [*self._ids(pair).given, *draft[:-1]], last=len(draft), logits=len(draft))
        gap, own = self._judge(pair, draft, states)
        self._begun = (pair, own[: common_length(draft, own) + 1])
        return gap

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Decoded]:
        """The model's own greedy answers, one after the other; tokens known from `agrees` are not generated again."""
        return [self._answer(as_example(request), max_new_tokens) for request in requests]

    def _answer(self, pair: Example, max_new_tokens: int) -> Decoded:
        known, begun = self._begun or (None, [])
        row = begun[:max_new_tokens] if known == pair else []
        prompt, start, cost, draft = self._ids(pair).given, len(row), PartCount(), list[int]()
        while len(row) < max_new_tokens and not (row and row[-1] in self._stop):
            read = 1 + len(draft)
            states, more = self._extend([*prompt, *row, *draft], last=read, logits=read)
            own = self._own(pair, row, states, read)
            accepted = common_length(draft, own)
            end = next((i for i in range(accepted) if own[i] in self._stop), accepted)
            row, cost = [*row, *own[: end + 1]], cost + more
            draft = []
            if self.drafter is not None and len(row) + 1 < max_new_tokens and row[-1] not in self._stop:
                state = None if states is None else states[accepted - read]
                draft, predicted = self._draft(pair, row, state, max_new_tokens - len(row) - 1)
                cost += self.drafter.cost.times(predicted)
        return costed(self._text(row), len(row) - start, cost)

    def _encode(self, pair: Example) -> Tensor | None:
        return self._run("encoder", self.model.read_of(self._ids(pair)), calls=1)

    def _run(self, part: str, ids: list[int], *, calls: int = 0, last: int = 1, logits: int = 0) -> Tensor | None:
        """One pass, counted: the states (n, D) of at least the `last` tokens."""
        with self.ledger.timed(part):
            states, cost = self._extend(ids, last, logits)
        self.ledger.add(part, PartCount(calls=calls) + cost)
        return states

    def _extend(self, ids: list[int], last: int, logits: int) -> tuple[Tensor | None, PartCount]:
        """States (n, D) of the tokens that are not held, at least the `last`, and what the pass takes."""
        kept = min(common_length(ids, self._held), len(ids) - last)
        if kept < len(self._held) and not self._crops:
            kept = 0
        states = self._compute(ids, kept)
        self._held = ids
        return states, pass_cost(self.model.language.lm, len(ids) - kept, len(ids), logits)

    # What is computed, and what is read from it: a session that remembers answers for an evaluation replaces these.

    def _ids(self, pair: Example) -> ChatIds:
        return self._tokenized(pair)

    @torch.no_grad()
    def _compute(self, ids: list[int], kept: int) -> Tensor | None:
        if kept == 0:
            self._cache = None
        elif kept < len(self._held):
            self._cache.crop(kept - len(self._held))  # negative: how many to remove
        tokens = torch.tensor([ids], device=self.model.device)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        states, self._cache = self.model.language.extend(tokens[:, kept:], mask, self._cache)
        return states[0]

    def _state(self, pair: Example, states: Any) -> np.ndarray:
        return np.asarray(F.normalize(states[-1].float(), dim=-1).cpu())

    _latent = _state

    @torch.no_grad()
    def _judge(self, pair: Example, draft: list[int], states: Any) -> tuple[float, list[int]]:
        """The gap of a draft's worst token, and the likeliest tokens in the places of all."""
        scores = self.model.language.logits(states[-len(draft) :]).log_softmax(-1)
        best, own = scores.max(-1)
        given = scores.gather(1, torch.tensor(draft, device=scores.device)[:, None])[:, 0]
        return float((best - given).max()), own.tolist()

    @torch.no_grad()
    def _own(self, pair: Example, row: list[int], states: Any, count: int) -> list[int]:
        """The likeliest tokens after `row` and after each token of the draft that was read behind it."""
        return self.model.language.logits(states[-count:]).argmax(-1).tolist()

    @torch.no_grad()
    def _draft(self, pair: Example, row: list[int], state: Any, most: int) -> tuple[list[int], int]:
        """At most `most` >= 1 tokens after `row`, whose last token came from `state`; and states predicted for them."""
        assert self.drafter is not None
        drafts = self.drafter.draft(state[None], [[*self._ids(pair).given, *row]], most)
        return drafts.tokens[0, : int(drafts.counts)].tolist()[:most], min(int(drafts.predicted), most)

    def _text(self, row: list[int]) -> str:
        return self.model.tokenizer.decode([row])[0]


Read = Callable[[RequestSession, Example], np.ndarray]
read_latent: Read = RequestSession.predict
read_state: Read = RequestSession.state


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class AnswerCache(LatentCache):
    """A latent cache of answers that may also know a request by its words, and ask the model about what it finds.

    A request whose `name` was answered before gets that answer at once. Otherwise the nearest latent within `threshold`
    offers its answer, which a `session`, if there is one, may refuse (`RequestSession.agrees`). The request is the
    payload of the segment. `capacity` bounds latents and names.

    >>> cache = AnswerCache(-1.0, capacity=8, name=lambda request: request.prompt)
    >>> request = Example("any digit", "", None)
    >>> entry, hit = cache.look_up(np.ones(1, dtype=np.float32), request)
    >>> hit, cache.knows(request)
    (False, True)
    """

    def __init__(
        self,
        threshold: float,
        capacity: int,
        *,
        name: Callable[[Example], str] | None = None,
        session: RequestSession | None = None,
        tolerance: float = 0.0,
    ) -> None:
        super().__init__(threshold, capacity)
        self.name, self.session, self.tolerance = name, session, tolerance

    def clear(self) -> None:
        super().clear()
        self._named: OrderedDict[str, CacheEntry] = OrderedDict()

    def knows(self, request: Example) -> bool:
        """Whether the request is known by name, so that its latent is not needed."""
        return self.name is not None and self.name(request) in self._named

    def look_up(self, latent: np.ndarray, payload: object | None = None) -> tuple[CacheEntry, bool]:
        if not isinstance(payload, Example):
            raise InputError(f"an AnswerCache needs the request as the payload of each step, got {payload!r}")
        if self.name is None:
            return self._near(latent, payload)
        name = self.name(payload)
        entry, hit = (self._named[name], True) if name in self._named else self._near(latent, payload)
        self._named[name] = entry
        self._named.move_to_end(name)
        if len(self._named) > self.capacity:
            self._named.popitem(last=False)
        return entry, hit

    def discard(self, entries: Iterable[CacheEntry]) -> None:
        lost = set(entries)
        super().discard(lost)
        for name in [name for name, entry in self._named.items() if entry in lost]:
            del self._named[name]

    def _near(self, latent: np.ndarray, request: Example) -> tuple[CacheEntry, bool]:
        entry, near = super().look_up(latent)
        if not near or self.session is None or entry.decoded is None:
            return entry, near
        if self.session.agrees(request, entry.decoded.text, self.tolerance):
            return entry, True
        return self._add(latent), False


def follow(
    steps: Iterable[tuple[Example, float]],
    policy: Policy,
    session: RequestSession,
    longest: int,
    read: Read | None,
    reader: RequestSession | None = None,
    cache: LatentCache | None = None,
) -> tuple[list[Emission], list[Emission]]:
    """One stream of requests and their times through a `SelectiveDecoder`: what is emitted as it runs, and at its end.

    `session` answers, in at most `longest` tokens, and counts. `read` gives the latent of a request, None where the
    policy reads none; it is called with the `reader`, where that is another model's session. A request that an
    `AnswerCache` knows by its words is not read, if the policy can do without.
    """
    selective = SelectiveDecoder(policy, RequestDecoder(session, longest), session.ledger, cache=cache)
    emissions: list[Emission] = []
    for request, time in steps:
        known = not policy.reads_latents and isinstance(cache, AnswerCache) and cache.knows(request)
        latent = None if read is None or known else read(reader or session, request)
        emissions += selective.step(latent, time, payload=request)
    return emissions, selective.finish()
