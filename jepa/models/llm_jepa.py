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
from jepa.data.packing import IGNORE, Layout, PackedBatch, view
from jepa.data.pairs import Example
from jepa.decoders.prefix import PrefixDecoder
from jepa.encoders.language import LanguageModel
from jepa.errors import InputError
from jepa.models.costs import costed, greedy_texts, pass_cost
from jepa.models.drafts import Continuation, Drafter, FirstOf, LatentDrafter, PromptLookup, generate
from jepa.models.roles import role_parameters
from jepa.operations import OperationLedger, PartCount
from jepa.predictors.tied import TiedPredictor
from jepa.predictors.transition import LatentTransition
from jepa.selective import Decoded

Request = str | Example


class Pass(NamedTuple):
    """What one pass over packed rows gives; a field is None where the rows do not hold it."""

    logits: Tensor  # (M, V) at the trained positions
    labels: Tensor  # (M,) tokens that come next
    predictions: Tensor | None  # (N, E) predicted embeddings, raw
    targets: Tensor | None  # (N, E) target embeddings, raw
    tube: Tensor | None  # (N, 3, E) states at three positions of each conversation
    states: Tensor  # (R, L, D) of all positions


class RequestStates(NamedTuple):
    """S_X of B requests, left-padded."""

    states: Tensor  # (B, N, D)
    mask: Tensor  # (B, N)
    cache: Any  # keys and values


class LLMJEPA(nn.Module):
    """One language model in the roles of X-Encoder, Predictor and Y-Encoder, and of the Y-Decoder by its own answers.

    An embedding is a state of the last layer: E = D. Two parts may be there besides: `y_decoder`, a second Y-Decoder
    from the embedding alone, trained on a frozen model, and `transition`, which drafts answers.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 300}
    >>> tokenizer = ChatTokenizer.train(["lines with a vowel", "[aeiou]"], 300)
    >>> model = LLMJEPA(LanguageModel(architecture=tiny), TiedPredictor(tokens=1), tokenizer)
    >>> predicted, embedded = model.predict(model.encode(["lines with a vowel"])), model.embed(["[aeiou]"])
    >>> predicted.shape == embedded.shape == (1, 32)
    True
    """

    tokenizer_type = ChatTokenizer

    def __init__(
        self,
        language_model: LanguageModel,
        predictor: TiedPredictor,
        tokenizer: ChatTokenizer,
        y_decoder: PrefixDecoder | None = None,
        transition: LatentTransition | None = None,
    ) -> None:
        super().__init__()
        self.language, self.predictor, self.tokenizer = language_model, predictor, tokenizer
        self.y_decoder, self.transition = y_decoder, transition
        self.predictor_ids = tokenizer.add_predictors(predictor.tokens)
        language_model.fit_vocabulary(len(tokenizer), self.predictor_ids)

    @property
    def device(self) -> torch.device:
        return self.language.device

    def node(self) -> dict[str, Any]:
        """The configuration that builds this model anew, without the hub and but for `y_decoder`."""
        language = self.language
        return {
            "_target_": "jepa.models.llm_jepa.LLMJEPA",
            "language_model": {
                "_target_": "jepa.encoders.language.LanguageModel",
                "pretrained": None,
                "architecture": language.architecture(),
                "lora": language.lora,
                "gradient_checkpointing": language.gradient_checkpointing,
            },
            "predictor": {"_target_": "jepa.predictors.tied.TiedPredictor", **vars(self.predictor)},
            "transition": None if self.transition is None else self.transition.node(),
        }

    def layout(self, **arguments: Any) -> Layout:
        """A packing layout with this model's [PRED] tokens."""
        predictors, placement = tuple(self.predictor_ids), self.predictor.placement
        return Layout(predictors=predictors, placement=placement, pad_id=self.tokenizer.pad_id, **arguments)

    def forward(self, rows: PackedBatch) -> Pass:
        """Logits and embeddings of packed rows, in one pass."""
        states = self.language.states(rows.ids, rows.segments, rows.parents, rows.positions)
        trained = rows.labels != IGNORE
        logits, flat = self.language.logits(states[trained]), states.flatten(0, 1)

        def at(index: Tensor) -> Tensor | None:
            return flat[index] if len(index) else None

        return Pass(logits, rows.labels[trained], at(rows.predicted), at(rows.target), at(rows.tube), states)

    # --- The four roles, as VL-JEPA has them. ---

    @torch.no_grad()
    def encode(self, requests: Sequence[Request]) -> RequestStates:
        """X-Encoder: requests -> their states and the cache that predictor and decoder go on from."""
        return self._read([self.read_of(pair) for pair in self._ids(requests)])

    def read_of(self, pair: ChatIds) -> list[int]:
        """What the X-Encoder reads of a request: view 1, with [PRED] tokens unless they are appended."""
        own = () if self.predictor.placement == "append" else self.predictor_ids
        return view(pair, self.layout(row_tokens=1), 1, own)[0]

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
        views = [view(pair, self.layout(row_tokens=1), 2)[0] for pair in pairs]
        return F.normalize(self._read(views).states[:, -1].float(), dim=-1)

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Y-Decoder: embeddings (B, E) -> greedy texts, by `y_decoder`: `InputError` if there is none.

        `RequestDecoder` answers by the language model itself.
        """
        if self.y_decoder is None:
            raise InputError("this checkpoint has no decoder from embeddings: train it with a decoder stage")
        tokenizer = self.tokenizer
        return greedy_texts(self.y_decoder, latents.to(self.device), tokenizer.decode, tokenizer.end_id)

    def answer(self, requests: Sequence[Request], max_new_tokens: int, drafter: Drafter | None = None) -> list[Decoded]:
        """The language model's own greedy answers, each with what it takes alone: a pass for a token, or for several
        where a drafter proposes them, the first over the whole prompt.
        """
        prompts = [ids.given for ids in self._ids(requests)]
        return self.texts(prompts, self.continuations(prompts, max_new_tokens, drafter), drafter)

    def continuations(
        self, prompts: Sequence[list[int]], max_new_tokens: int, drafter: Drafter | None = None
    ) -> list[Continuation]:
        """`generate` after prompts, until the tokenizer's stop tokens."""
        return generate(self.language, prompts, max_new_tokens, self.tokenizer.stop_ids, drafter)

    def drafter(
        self, kind: str | None, most: int = 8, threshold: float = 0.0, only: Iterable[int] | None = None
    ) -> Drafter:
        """What drafts at most `most` tokens: "latent" by the transition, "lookup" from the prompt, "both" in turn.

        `only` names the tokens that the transition may draft. Raises `InputError` for another kind, or no transition.
        """
        lookup = PromptLookup(most)
        if kind == "lookup":
            return lookup
        if kind not in ("latent", "both"):
            raise InputError(f"drafts must be latent, lookup or both, got {kind}")
        if self.transition is None:
            raise InputError(f"drafts={kind} needs a checkpoint with a draft stage: train llm_jepa_draft")
        latent = LatentDrafter(self.language, self.transition, most, threshold, only, self.tokenizer.stop_ids)
        return latent if kind == "latent" else FirstOf(lookup, latent)

    def texts(
        self, prompts: Sequence[list[int]], rows: Sequence[Continuation], drafter: Drafter | None = None
    ) -> list[Decoded]:
        """The text of each continuation, with what it takes alone; `drafter`: what drafted it."""
        cost = PartCount() if drafter is None else drafter.cost
        texts = self.tokenizer.decode([row.tokens for row in rows])
        return [
            costed(text, len(row.tokens), self._cost(len(prompt), row, cost))
            for text, prompt, row in zip(texts, prompts, rows, strict=True)
        ]

    def _cost(self, held: int, row: Continuation, predicted: PartCount) -> PartCount:
        """Of generating a row after `held` tokens; `predicted`: of a state that its drafts are made from."""
        lm = self.language.lm
        total = pass_cost(lm, held, held, 1)
        for each in row.passes[1:]:
            read = 1 + each.drafted
            total += pass_cost(lm, read, held + read, read)
            held += 1 + each.accepted
        return total + predicted.times(sum(each.predicted for each in row.passes))

    def stream(
        self, requests: Iterable[Sequence[Request]], ledger: OperationLedger | None = None
    ) -> Iterator[np.ndarray]:
        """Predicted embeddings (T, E) float32, L2-normalised, of a stream of requests that comes in chunks of T.

        The ledger counts an encoder and a predictor call for each request, with what it takes alone. Predicting takes a
        pass of its own only where [PRED] tokens are appended.
        """
        ledger = OperationLedger() if ledger is None else ledger
        for chunk in requests:
            with ledger.timed("encoder"):
                encoded = self.encode(chunk)
            with ledger.timed("predictor"):
                latents = self.predict(encoded)
            lm, lengths, k = self.language.lm, encoded.mask.sum(1).tolist(), len(self.predictor_ids)
            alone = (pass_cost(lm, n, n) for n in lengths)
            ledger.add("encoder", sum(alone, start=PartCount(calls=len(chunk))))
            own_pass = bool(self.predictor_ids) and self.predictor.placement == "append"
            passes = (pass_cost(lm, k, n + k) for n in lengths) if own_pass else ()
            ledger.add("predictor", sum(passes, start=PartCount(calls=len(chunk))))
            yield latents.cpu().numpy()

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Total and trainable parameters of each role: `{role, total, trainable, modules}`."""
        roles = {"X-Encoder, Predictor, Y-Encoder, Y-Decoder": self.language.lm}
        if self.y_decoder is not None:
            roles["Y-Decoder from embeddings"] = self.y_decoder
        if self.transition is not None:
            roles["latent drafts"] = self.transition
        return role_parameters(roles)

    def _read(self, rows: Sequence[list[int]]) -> RequestStates:
        ids, mask = (each.to(self.device) for each in self.tokenizer.pad(rows))
        states, cache = self.language.extend(ids, mask, None)
        return RequestStates(states, mask, cache)

    def _ids(self, requests: Sequence[Request]) -> list[ChatIds]:
        return self.tokenizer.encode([r if isinstance(r, Example) else Example(r, "", None) for r in requests])


def as_example(request: Request) -> Example:
    """A request without its answer and its source."""
    return Example(request, "", None) if isinstance(request, str) else Example(request.prompt, "", request.system)
