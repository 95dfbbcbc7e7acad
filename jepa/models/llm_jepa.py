"""LLM-JEPA (arXiv 2509.14252): a language model that also predicts the embedding of the answer from the request.

B requests, N tokens of the longest, D width of the model, E embedding dimensions, R rows of L tokens, M labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

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

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
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
            costed(text, len(row), self._answer_cost(len(prompt), len(row)))
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


def as_example(request: Request) -> Example:
    """A request without its answer and its source."""
    return Example(request, "", None) if isinstance(request, str) else Example(request.prompt, "", request.system)


def costed(text: str, tokens: int, cost: PartCount) -> Decoded:
    """An answer and what it took."""
    return Decoded(text, tokens, cost.forward_passes, cost.flops, cost.weight_bytes, cost.cache_bytes)
