"""LLM-JEPA (arXiv 2509.14252): a language model that also predicts the embedding of the answer from the request.

B requests, N tokens of the longest, D width of the model, E embedding dimensions, R rows of L tokens, M labels.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.chat import ChatTokenizer
from jepa.data.packing import IGNORE, Layout, Rows
from jepa.data.pairs import Pair
from jepa.decoders.prefix import PrefixDecoder
from jepa.encoders.language import LanguageModel
from jepa.errors import InputError
from jepa.operations import OperationLedger
from jepa.predictors.tied import TiedPredictor
from jepa.selective import Decoded

Request = str | Pair


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

    def forward(self, rows: Rows) -> Pass:
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
        pairs = self.tokenizer.encode([Pair("", answer, None) for answer in answers])
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
        rows = self.y_decoder.generate(latents.to(self.device), self.tokenizer.end_id)
        counts = [min(len(row) + 1, self.y_decoder.max_length) for row in rows]
        texts = self.tokenizer.decode(rows)
        return [Decoded(text, count, count) for text, count in zip(texts, counts, strict=True)]

    @torch.no_grad()
    def answer(self, requests: Sequence[Request], max_new_tokens: int) -> list[Decoded]:
        """The language model's own greedy answers; a token is a forward pass, the first with the whole prompt."""
        prompts = [[*pair.prompt, *pair.answer[: pair.opening]] for pair in self._ids(requests)]
        ids, mask = self.tokenizer.pad(prompts)
        rows = self.language.generate(
            ids.to(self.device), mask.to(self.device), max_new_tokens, self.tokenizer.stop_ids
        )
        texts = self.tokenizer.decode(rows)
        return [Decoded(text, len(row), len(row)) for text, row in zip(texts, rows, strict=True)]

    def stream(
        self, requests: Iterable[Sequence[Request]], ledger: OperationLedger | None = None
    ) -> Iterator[np.ndarray]:
        """Predicted embeddings (T, E) float32, L2-normalised, of a stream of requests that comes in chunks of T.

        The ledger counts an encoder and a predictor call for each request; where the [PRED] tokens come first, or there
        are none, predicting takes no forward pass of its own.
        """
        ledger = ledger if ledger is not None else OperationLedger()
        for chunk in requests:
            with ledger.timed("encoder"):
                encoded = self.encode(chunk)
            ledger.count("encoder", calls=len(chunk), forward_passes=len(chunk))
            with ledger.timed("predictor"):
                latents = self.predict(encoded)
            own_pass = bool(self.predictor_ids) and self.predictor.placement == "append"
            ledger.count("predictor", calls=len(chunk), forward_passes=len(chunk) if own_pass else 0)
            yield latents.cpu().numpy()

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Total and trainable parameters of each role: `{role, total, trainable, modules}`."""
        roles: dict[str, nn.Module] = {"X-Encoder, Predictor, Y-Encoder, Y-Decoder": self.language}
        if self.y_decoder is not None:
            roles["Y-Decoder from embeddings"] = self.y_decoder
        return [
            {
                "role": role,
                "total": sum(p.numel() for p in module.parameters()),
                "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
                "modules": type(module.lm if isinstance(module, LanguageModel) else module).__name__,
            }
            for role, module in roles.items()
        ]

    def _ids(self, requests: Sequence[Request]) -> list[Any]:
        return self.tokenizer.encode([r if isinstance(r, Pair) else Pair(r, "", None) for r in requests])


class RequestDecoder:
    """The language model's own answers behind the protocol of `SelectiveDecoder`, which knows latents only.

    It hears the requests of a stream with their predicted embeddings, and answers the request whose embedding is
    nearest to the latent it is given: that request itself, where a policy passes on the latent of a step.

    Args:
        model: gives the answers.
        max_new_tokens: most tokens of an answer.
        memory: how many of the newest requests it can still answer; None: all.
    """

    def __init__(self, model: LLMJEPA, max_new_tokens: int, memory: int | None = None) -> None:
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
