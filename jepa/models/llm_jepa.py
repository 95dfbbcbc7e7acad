"""LLM-JEPA (arXiv 2509.14252): a language model that also predicts the embedding of the answer from the request.

B requests, N tokens of the longest, D width of the model, E embedding dimensions, R rows of L tokens, M labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.chat import ChatIds, ChatTokenizer
from jepa.data.packing import IGNORE, Layout, PackedBatch
from jepa.data.pairs import Example
from jepa.decoders.prefix import PrefixDecoder
from jepa.encoders.language import LanguageModel
from jepa.errors import InputError
from jepa.models.roles import greedy_texts, role_parameters
from jepa.operations import (
    FAMILIES,
    OperationLedger,
    PartCount,
    count_flops,
    transformer_cache_bytes,
    transformer_flops,
    weight_bytes,
)
from jepa.predictors.tied import TiedPredictor
from jepa.selective import Decoded

Request = str | Example


class Pass(NamedTuple):
    """What one pass over packed rows gives; the last three are None where the rows do not hold them.

    Args:
        logits: (M, V) at the trained positions.
        labels: (M,) tokens that come next.
        predictions: (N, E) predicted embeddings, raw.
        targets: (N, E) target embeddings, raw.
        tube: (N, 3, E) states at three positions of each conversation.
    """

    logits: Tensor
    labels: Tensor
    predictions: Tensor | None
    targets: Tensor | None
    tube: Tensor | None


class RequestStates(NamedTuple):
    """S_X of B requests: `states` (B, N, D), left-padded, `mask` (B, N), and the model's key/value cache."""

    states: Tensor
    mask: Tensor
    cache: Any


class LLMJEPA(nn.Module):
    """One language model in the roles of X-Encoder, Predictor and Y-Encoder, and of the Y-Decoder by its own answers.

    An embedding is a state of the last layer: E = D. `y_decoder` is a second Y-Decoder, from the embedding alone; it is
    trained afterwards, on a frozen model.

    Raises:
        InputError: as `LanguageModel` does.
    """

    tokenizer_type = ChatTokenizer

    def __init__(
        self,
        language_model: LanguageModel,
        predictor: TiedPredictor,
        tokenizer: ChatTokenizer,
        y_decoder: PrefixDecoder | None = None,
    ) -> None:
        super().__init__()
        self.language, self.predictor, self.tokenizer = language_model, predictor, tokenizer
        self.y_decoder = y_decoder
        self._flops: dict[tuple[int, int, int], int] = {}
        self._cache_bytes: dict[tuple[int, torch.dtype], int] = {}
        self.predictor_ids = tokenizer.add_predictors(predictor.tokens)
        language_model.fit_vocabulary(len(tokenizer), self.predictor_ids)

    @property
    def device(self) -> torch.device:
        return self.language.device

    def node(self) -> dict[str, Any]:
        """The configuration that builds this model anew, without the hub and but for `y_decoder`."""
        language, predictor = self.language, self.predictor
        return {
            "_target_": "jepa.models.llm_jepa.LLMJEPA",
            "language_model": {
                "_target_": "jepa.encoders.language.LanguageModel",
                "pretrained": None,
                "architecture": language.architecture(),
                "lora": language.lora,
                "gradient_checkpointing": language.gradient_checkpointing,
            },
            "predictor": {
                "_target_": "jepa.predictors.tied.TiedPredictor",
                "tokens": predictor.tokens,
                "placement": predictor.placement,
            },
        }

    def layout(self, **arguments: Any) -> Layout:
        """A packing layout with this model's [PRED] tokens."""
        return Layout(predictors=tuple(self.predictor_ids), placement=self.predictor.placement, **arguments)

    def forward(self, rows: PackedBatch) -> Pass:
        """Logits and embeddings of packed rows, in one pass."""
        states = self.language.states(rows.ids, rows.segments, rows.parents, rows.positions)
        trained = rows.labels != IGNORE
        logits, flat = self.language.logits(states[trained]), states.flatten(0, 1)

        def embeddings(index: Tensor) -> Tensor | None:
            return flat[index] if len(index) else None

        tube = flat[rows.tube] if len(rows.tube) else None
        return Pass(logits, rows.labels[trained], embeddings(rows.predicted), embeddings(rows.target), tube)

    # --- The four roles, as VL-JEPA has them. ---

    @torch.no_grad()
    def encode(self, requests: Sequence[Request]) -> RequestStates:
        """X-Encoder: requests -> their states and the cache that predictor and decoder go on from."""
        before = self.predictor_ids if self.predictor.placement == "prepend" else []
        ids, mask = self.tokenizer.pad([[*before, *pair.prompt] for pair in self._ids(requests)])
        ids, mask = ids.to(self.device), mask.to(self.device)
        states, cache = self.language.extend(ids, mask, None)
        return RequestStates(states, mask, cache)

    @torch.no_grad()
    def predict(self, encoded: RequestStates) -> Tensor:
        """Predictor: states of B requests -> predicted embeddings (B, E), L2-normalised; the cache stays as it is."""
        states = encoded.states
        if self.predictor_ids and self.predictor.placement == "append":
            ids = torch.tensor([self.predictor_ids], device=self.device).expand(len(states), -1)
            mask = torch.cat([encoded.mask, torch.ones_like(ids, dtype=torch.bool)], dim=1)
            states, _ = self.language.extend(ids, mask, deepcopy(encoded.cache))
        return F.normalize(states[:, -1].float(), dim=-1)

    @torch.no_grad()
    def embed(self, answers: Sequence[str]) -> Tensor:
        """Y-Encoder: B answers, each alone -> embeddings (B, E), L2-normalised."""
        pairs = self.tokenizer.encode([Example("", answer, None) for answer in answers])
        ids, mask = self.tokenizer.pad([pair.code for pair in pairs])
        states, _ = self.language.extend(ids.to(self.device), mask.to(self.device), None)
        return F.normalize(states[:, -1].float(), dim=-1)

    def decode(self, latents: Tensor) -> list[Decoded]:
        """Y-Decoder: embeddings (B, E) -> greedy texts, by the lightweight decoder; a token is a forward pass.

        Raises:
            InputError: the model has none. `RequestDecoder` answers by the language model itself.
        """
        if self.y_decoder is None:
            raise InputError("this checkpoint has no decoder from embeddings: train it with a decoder stage")
        return greedy_texts(self.y_decoder, latents.to(self.device), self.tokenizer, self.tokenizer.end_id)

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Decoded]:
        """The language model's own greedy answers; a token is a forward pass, the first with the whole prompt.

        FLOPs and bytes are those of each request answered alone.
        """
        return self.continuations([ids.given for ids in self._ids(requests)], max_new_tokens)

    def continuations(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Decoded]:
        """`answer` to prompts that are encoded already."""
        rows = self._generate(prompts, max_new_tokens)
        return [
            _decoded(text, len(row), self._answer_cost(len(prompt), len(row)))
            for text, prompt, row in zip(self.tokenizer.decode(rows), prompts, rows, strict=True)
        ]

    def generate(self, requests: Sequence[Request], max_new_tokens: int) -> list[list[int]]:
        """The tokens of `answer`, with the stop token where one was reached."""
        return self._generate([ids.given for ids in self._ids(requests)], max_new_tokens)

    @torch.no_grad()
    def _generate(self, prompts: Sequence[list[int]], max_new_tokens: int) -> list[list[int]]:
        ids, mask = self.tokenizer.pad(prompts)
        return self.language.generate(
            ids.to(self.device), mask.to(self.device), max_new_tokens, self.tokenizer.stop_ids
        )

    @torch.no_grad()
    def pass_flops(self, tokens: int, context: int, logits: int = 0) -> int:
        """FLOPs of one pass of the language model over `tokens` tokens, by the conventions of `count_flops`.

        By the closed form for the families that have one; otherwise counted once on a pass of these lengths.

        Args:
            tokens: that are processed, >= 1.
            context: tokens that they attend to, themselves and those of the key/value cache.
            logits: of the last tokens, how many get logits.
        """
        key = (tokens, context, logits)
        if key not in self._flops:
            config = self.language.lm.config
            if self.language.lora is None and config.model_type in FAMILIES:
                self._flops[key] = transformer_flops(config, tokens, context=context, logits=logits).total
            else:
                self._flops[key] = self._measured_flops(*key)
        return self._flops[key]

    def pass_cost(self, tokens: int, context: int, logits: int = 0) -> PartCount:
        """What the ledger counts of one pass of the language model: arguments as of `pass_flops`."""
        return PartCount(
            forward_passes=1,
            flops=self.pass_flops(tokens, context, logits),
            weight_bytes=weight_bytes(self.language),
            cache_bytes=self.cache_bytes(context - tokens),
        )

    def cache_bytes(self, held: int) -> int:
        """Bytes of the keys and values of one sequence of `held` tokens in the cache.

        By the closed form for the families that have one; otherwise read once off a cache of that length.
        """
        kind = self.language.lm.dtype
        if (held, kind) not in self._cache_bytes:
            config = self.language.lm.config
            if config.model_type in FAMILIES:
                found = transformer_cache_bytes(config, held, element_size=kind.itemsize)
            else:
                found = self._measured_cache_bytes(held)
            self._cache_bytes[held, kind] = found
        return self._cache_bytes[held, kind]

    @torch.no_grad()
    def _measured_cache_bytes(self, held: int) -> int:
        if held == 0:
            return 0
        ids = torch.zeros((1, held), dtype=torch.long, device=self.device)
        _, cache = self.language.extend(ids, torch.ones_like(ids, dtype=torch.bool), None)
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)

    def _measured_flops(self, tokens: int, context: int, logits: int) -> int:
        ids = torch.zeros((1, context), dtype=torch.long, device=self.device)
        mask, held = torch.ones_like(ids, dtype=torch.bool), context - tokens
        cache = self.language.extend(ids[:, :held], mask[:, :held], None)[1] if held else None

        def run() -> None:
            states, _ = self.language.extend(ids[:, held:], mask, cache)
            if logits:
                self.language.logits(states[:, -logits:])

        return count_flops(run).total

    def _answer_cost(self, prompt: int, tokens: int) -> PartCount:
        """What generating `tokens` tokens, >= 1, after a prompt of `prompt` tokens takes."""
        later = (self.pass_cost(1, prompt + i, 1) for i in range(1, tokens))
        return sum(later, start=self.pass_cost(prompt, prompt, 1))

    def stream(
        self, requests: Iterable[Sequence[Request]], ledger: OperationLedger | None = None
    ) -> Iterator[np.ndarray]:
        """Predicted embeddings (T, E) float32, L2-normalised, of a stream of requests that comes in chunks of T.

        The ledger counts an encoder and a predictor call for each request, with the cost of each encoded alone; where
        the [PRED] tokens come first, or there are none, predicting takes no forward pass of its own.
        """
        ledger = ledger if ledger is not None else OperationLedger()
        for chunk in requests:
            with ledger.timed("encoder"):
                encoded = self.encode(chunk)
            with ledger.timed("predictor"):
                latents = self.predict(encoded)
            lengths, k = encoded.mask.sum(1).tolist(), len(self.predictor_ids)
            alone = (self.pass_cost(n, n) for n in lengths)
            ledger.add("encoder", sum(alone, start=PartCount(calls=len(chunk))))
            own_pass = bool(self.predictor_ids) and self.predictor.placement == "append"
            passes = (self.pass_cost(k, n + k) for n in lengths) if own_pass else ()
            ledger.add("predictor", sum(passes, start=PartCount(calls=len(chunk))))
            yield latents.cpu().numpy()

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Total and trainable parameters of each role: `{role, total, trainable, modules}`."""
        roles: dict[str, nn.Module] = {"X-Encoder, Predictor, Y-Encoder, Y-Decoder": self.language}
        if self.y_decoder is not None:
            roles["Y-Decoder from embeddings"] = self.y_decoder
        return [
            role_parameters(role, module, type(module.lm if isinstance(module, LanguageModel) else module).__name__)
            for role, module in roles.items()
        ]

    def _ids(self, requests: Sequence[Request]) -> list[ChatIds]:
        return self.tokenizer.encode([r if isinstance(r, Example) else Example(r, "", None) for r in requests])


class Answerer(Protocol):
    """What answers requests: an `LLMJEPA`, or a `RequestSession` of one."""

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Decoded]:
        """A greedy answer of at most `max_new_tokens` tokens to each request."""
        ...


class RequestDecoder:
    """The language model's own answers behind the protocol of `SelectiveDecoder`, which knows latents only.

    It hears the requests of a stream with their predicted embeddings, and answers the request whose embedding is
    nearest to the latent it is given: that request itself, where a policy passes on the latent of a step.

    Args:
        model: gives the answers.
        max_new_tokens: most tokens of an answer.
        memory: how many of the newest requests it can still answer; None: all.
    """

    def __init__(self, model: Answerer, max_new_tokens: int, memory: int | None = None) -> None:
        self.model, self.max_new_tokens = model, max_new_tokens
        self.heard: deque[tuple[Request, Tensor]] = deque(maxlen=memory)

    def hear(self, requests: Sequence[Request], latents: Tensor | np.ndarray) -> None:
        """Adds requests and their predicted embeddings (T, E), L2-normalised."""
        if len(requests) != len(latents):
            raise InputError(f"requests and latents must be as many, got {len(requests)} and {len(latents)}")
        self.heard.extend(zip(requests, torch.as_tensor(latents).cpu(), strict=True))

    def decode(self, latents: Tensor) -> list[Decoded]:
        """Answers to the requests nearest to latents (B, E).

        Raises:
            InputError: no request was heard.
        """
        if not self.heard:
            raise InputError("a RequestDecoder must hear requests before it answers, got none")
        known = torch.stack([latent for _, latent in self.heard])
        nearest = (latents.cpu() @ known.T).argmax(1).tolist()
        return self.model.answer([self.heard[i][0] for i in nearest], self.max_new_tokens)


class _Newest(dict[Example, ChatIds]):
    """The 16 newest entries: a session may live for ever."""

    def __setitem__(self, pair: Example, ids: ChatIds) -> None:
        super().__setitem__(pair, ids)
        if len(self) > 16:
            del self[next(iter(self))]


class RequestSession:
    """An LLM-JEPA on requests that come one after another: typed word by word, or each a new one.

    Encoder, predictor and answers work on one key/value cache: of each token sequence only what follows the longest
    common beginning with the sequence before is computed, by whichever part that was. (The cache of a sliding window
    cannot go back: such models begin anew unless a sequence goes on from the one before.) What is computed is what the
    ledger counts.

    Args:
        model: an LLM-JEPA in evaluation mode.
        ledger: where encoder, predictor and the verification of answers are counted; answers are returned with their
            counts, for `SelectiveDecoder` to add.
    """

    def __init__(self, model: LLMJEPA, ledger: OperationLedger | None = None) -> None:
        self.model = model
        self.ledger = OperationLedger() if ledger is None else ledger
        self._stop = set(model.tokenizer.stop_ids)
        self._crops = not (model.language.mixed_layers or model.language.windowed)
        self._encoded: dict[Example, ChatIds] = _Newest()
        self._held: list[int] = []  # the tokens whose keys and values are in the cache
        self._cache: Any = None
        self._begun: tuple[Example, list[int]] | None = None  # the last request verified, and how its answer begins

    def state(self, request: Request) -> np.ndarray:
        """X-Encoder: the state of a request's last token (D,) float32, L2-normalised."""
        pair = _pair(request)
        return self._state(pair, self._encode(pair))

    def predict(self, request: Request) -> np.ndarray:
        """X-Encoder and Predictor: the predicted embedding (E,) float32, L2-normalised."""
        pair, own = _pair(request), self.model.predictor_ids
        states = self._encode(pair)
        if own and self.model.predictor.placement == "append":
            states = self._run("predictor", [*self._ids(pair).prompt, *own], calls=1)
        else:
            self.ledger.count("predictor", calls=1)
        return self._latent(pair, states)

    def agrees(self, request: Request, text: str, tolerance: float = 0.0) -> bool:
        """Whether `text` may stand as the answer to a request: one forward pass over it, counted as the decoder's.

        It may if none of its tokens, its end included, has a log-probability more than `tolerance` (nats) below that of
        the likeliest token in its place: with 0 exactly if the model would answer so itself. If not, `answer` goes on
        from the first token that differs from the model's own, so that the pass is not lost.
        """
        pair = _pair(request)
        return self.worst_gap(pair, self._draft(pair, text)) <= tolerance

    def worst_gap(self, request: Request, draft: list[int]) -> float:
        """How far the worst token of a draft (its end included) lies below the likeliest in its place, in nats."""
        pair = _pair(request)
        states = self._run("decoder", [*self._prompt(pair), *draft[:-1]], last=len(draft), logits=len(draft))
        gap, own = self._judge(pair, draft, states)
        self._begun = (pair, own[: common_length(draft, own) + 1])
        return gap

    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Decoded]:
        """The model's own greedy answers, one after the other; tokens known from `agrees` are not generated again."""
        return [self._answer(_pair(request), max_new_tokens) for request in requests]

    def _answer(self, pair: Example, max_new_tokens: int) -> Decoded:
        known, begun = self._begun or (None, [])
        row = begun[:max_new_tokens] if known == pair else []
        prompt, start, cost = self._prompt(pair), len(row), PartCount()
        while len(row) < max_new_tokens and not (row and row[-1] in self._stop):
            states, more = self._extend([*prompt, *row], last=1, logits=1)
            row = [*row, self._next(pair, row, states)]
            cost += more
        return _decoded(self._text(row), len(row) - start, cost)

    def _encode(self, pair: Example) -> Tensor | None:
        before = self.model.predictor_ids if self.model.predictor.placement == "prepend" else []
        return self._run("encoder", [*before, *self._ids(pair).prompt], calls=1)

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
        return states, self.model.pass_cost(len(ids) - kept, len(ids), logits)

    def _ids(self, pair: Example) -> ChatIds:
        if pair not in self._encoded:
            self._encoded[pair] = self.model.tokenizer.encode([pair])[0]
        return self._encoded[pair]

    def _prompt(self, pair: Example) -> list[int]:
        """What the answer follows."""
        return self._ids(pair).given

    def _draft(self, pair: Example, text: str) -> list[int]:
        """A text as the answer to a request, with its end of turn."""
        ids = self._ids(replace(pair, completion=text))
        return list(ids.completion[ids.opening :])

    # What is computed, and what is read from it: a session that remembers answers for an evaluation replaces these.

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
        return _unit(states[-1])

    def _latent(self, pair: Example, states: Any) -> np.ndarray:
        return _unit(states[-1])

    @torch.no_grad()
    def _judge(self, pair: Example, draft: list[int], states: Any) -> tuple[float, list[int]]:
        """How far the worst token of a draft lies below the likeliest in its place (nats), and the likeliest ones."""
        scores = self.model.language.logits(states[-len(draft) :]).log_softmax(-1)
        best, own = scores.max(-1)
        given = scores.gather(1, torch.tensor(draft, device=scores.device)[:, None])[:, 0]
        return float((best - given).max()), own.tolist()

    @torch.no_grad()
    def _next(self, pair: Example, row: list[int], states: Any) -> int:
        """The token that follows `row` in the answer."""
        return int(self.model.language.logits(states[-1]).argmax())

    def _text(self, row: list[int]) -> str:
        return self.model.tokenizer.decode([row])[0]


def _decoded(text: str, tokens: int, cost: PartCount) -> Decoded:
    return Decoded(text, tokens, cost.forward_passes, cost.flops, cost.weight_bytes, cost.cache_bytes)


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two sequences have in common from their beginning."""
    for index, (first, second) in enumerate(zip(one, other, strict=False)):
        if first != second:
            return index
    return min(len(one), len(other))


def _unit(state: Tensor) -> np.ndarray:
    return np.asarray(F.normalize(state.float(), dim=-1).cpu())


def _pair(request: Request) -> Example:
    """What a request is, whatever its answer and its source."""
    return Example(request, "", None) if isinstance(request, str) else Example(request.prompt, "", request.system)
