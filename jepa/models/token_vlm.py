"""The token-space baseline of VL-JEPA: a vision-language model that generates the answer (LLaVA, arXiv 2304.08485).

VL-JEPA's controlled comparison (arXiv 2512.10942, section 4.2) is against such a model.

B clips, F frames a clip, S pixels a side, N states, D width, L tokens, M candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.tokenizer import Tokenizer
from jepa.decoders.prefix import until_end
from jepa.encoders.language import LanguageModel
from jepa.encoders.vision import FrameViT
from jepa.errors import InputError, check_int
from jepa.models.costs import answer_cost, costed
from jepa.models.roles import Part, role_parameters
from jepa.models.vl_jepa import VLJEPA
from jepa.models.windows import WindowedModel
from jepa.operations import PartCount, weight_bytes
from jepa.pretrained import extend
from jepa.selective import Decoded


class TokenVLM(WindowedModel):
    """X-Encoder, a linear projection of its states, and a causal language model over states, query and answer.

    An answer has at most `max_length` tokens with its end. Streams take a `SelectiveDecoder` with a `WindowDecoder`.
    """

    tokenizer_type = Tokenizer

    def __init__(
        self,
        x_encoder: FrameViT,
        language_model: LanguageModel,
        tokenizer: Tokenizer,
        frames: int,
        fps: int,
        max_length: int = 32,
    ) -> None:
        super().__init__(x_encoder, frames, fps)
        self.language_model, self.tokenizer = language_model, tokenizer
        self.project = nn.Linear(x_encoder.width, language_model.width)
        self.max_length = check_int("max_length", max_length, 1)
        language_model.fit_vocabulary(len(tokenizer), ())

    def forward(self, states: Tensor, queries: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Teacher forcing: states (B, N, D), B queries and B answers -> log-probabilities (B, L) of the answers'
        tokens, their ends included, and a mask (B, L) true at real ones.
        """
        prompt, real = self._prompt(states, queries)
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode_closed(texts))
        inputs = torch.cat([prompt, self._embed(ids[:, :-1])], dim=1)
        hidden, _ = self._extend(inputs, torch.cat([real, mask[:, :-1]], dim=1), None)
        return self._log_probabilities(hidden[:, -ids.shape[1] :], ids), mask

    def loss(self, states: Tensor, queries: Sequence[str], texts: Sequence[str]) -> Tensor:
        """Mean next-token cross-entropy over the answers' tokens, their ends included, in nats a token."""
        found, mask = self(states, queries, texts)
        return -found[mask].mean()

    @torch.no_grad()
    def log_likelihoods(self, states: Tensor, queries: Sequence[str], candidates: Sequence[str]) -> Tensor:
        """Log-likelihood (B, M), in nats, of M candidate answers, their ends included, for each clip and its query.

        A clip and its query are computed once for all candidates.
        """
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode_closed(candidates))
        count, inputs = len(candidates), self._embed(ids[:, :-1])
        rows = []
        for row, query in enumerate(queries):
            prompt, real = self._prompt(states[row : row + 1], [query])
            last, cache = self._extend(prompt, real, None)
            cache.batch_repeat_interleave(count)
            hidden, _ = self._extend(inputs, torch.cat([real.expand(count, -1), mask[:, :-1]], dim=1), cache)
            hidden = torch.cat([last[:, -1:].expand(count, -1, -1), hidden], dim=1)
            rows.append((self._log_probabilities(hidden, ids) * mask).sum(1))
        return torch.stack(rows)

    @torch.no_grad()
    def answer(self, states: Tensor, queries: Sequence[str]) -> list[Decoded]:
        """Greedy answers to B queries about states (B, N, D), with a key/value cache.

        Each counts what it takes alone; a token, the end included, is a pass, the first over states and query.
        """
        prompt, real = self._prompt(states, queries)
        rows = until_end(self._passes(prompt, real), self.max_length, self.tokenizer.eos_id)
        flops = 2 * states.shape[1] * self.project.weight.numel()
        projection = PartCount(flops=flops, weight_bytes=weight_bytes(self.project))
        results = []
        for text, row, length in zip(self.tokenizer.decode(rows), rows, real.sum(1).tolist(), strict=True):
            count = min(len(row) + 1, self.max_length)
            results.append(costed(text, count, answer_cost(self.language_model.lm, length, count) + projection))
        return results

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Parameters of each role: `{role, total, trainable, modules}`."""
        lm: Part = self.language_model.lm
        return role_parameters({"X-Encoder": self.x_encoder, "Projection": self.project, "Language model": lm})

    def _embed(self, ids: Tensor) -> Tensor:
        embedded: Tensor = self.language_model.lm.get_input_embeddings()(ids)
        return embedded

    def _prompt(self, states: Tensor, queries: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Embeddings (B, N + L, D) of states and left-padded queries, and their mask: what follows is adjacent."""
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode(queries))
        order = mask.int().argsort(dim=1, stable=True)  # padding first
        ids, mask = ids.gather(1, order), mask.gather(1, order)
        real = torch.cat([mask.new_ones(states.shape[:2]), mask], dim=1)
        return torch.cat([self.project(states), self._embed(ids)], dim=1), real

    def _extend(self, inputs: Tensor, mask: Tensor, cache: Any) -> tuple[Tensor, Any]:
        """Last hidden states (B, L, D) of embeddings (B, L, D) after those of a cache; `mask` is that of all so far."""
        mask = mask.long()
        positions = (mask.cumsum(1) - 1).clamp_min(0)[:, -inputs.shape[1] :]
        given = {"inputs_embeds": inputs, "attention_mask": mask, "position_ids": positions}
        lm = self.language_model.lm.get_decoder()
        out, cache = extend(lm, cache, use_cache=not torch.is_grad_enabled(), **given)
        return out.last_hidden_state, cache

    def _log_probabilities(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Of each token (B, L), given the state (B, L, D) before it."""
        logits = self.language_model.logits(hidden)
        return -F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").reshape(ids.shape)

    def _passes(self, inputs: Tensor, real: Tensor) -> Iterator[Tensor]:
        """The likeliest tokens (B,) after prompts (B, L, D), pass by pass."""
        cache = None
        while True:
            hidden, cache = self._extend(inputs, real, cache)
            chosen = self.language_model.logits(hidden[:, -1]).argmax(-1)
            yield chosen
            inputs, real = self._embed(chosen)[:, None], F.pad(real, (0, 1), value=True)


class WindowDecoder:
    """A token VLM, in evaluation mode, as the decoder of a `SelectiveDecoder`: the payload of a step is its window's
    states, of which `query` is asked.

    >>> class Constant:
    ...     def answer(self, states, queries):
    ...         return [Decoded(f"{query} red", tokens=2, forward_passes=2) for query in queries]
    >>> [found.text for found in WindowDecoder(Constant(), "colour?").decode(torch.zeros(1, 0), [torch.zeros(4, 8)])]
    ['colour? red']
    """

    def __init__(self, model: TokenVLM, query: str) -> None:
        self.model, self.query = model, query

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Answers to the states (N, D) that came as payloads. Raises `InputError` if one is no tensor."""
        windows = [states for states in payloads or () if isinstance(states, Tensor)]
        if len(windows) != len(latents):
            raise InputError("a WindowDecoder needs the states of a window as the payload of each step")
        return self.model.answer(torch.stack(windows), [self.query] * len(windows))


def candidate_scores(
    model: VLJEPA | TokenVLM, states: Tensor, queries: Sequence[str], candidates: Sequence[str]
) -> Tensor:
    """Scores (B, M) of M texts as answers, on the CPU: cosine to the predicted embedding, or log-likelihood."""
    if isinstance(model, TokenVLM):
        return model.log_likelihoods(states, queries, candidates).cpu()
    return model.predict(states, queries).cpu() @ model.embed_all(candidates).T


def ranks_of_own(scores: Tensor) -> Tensor:
    """Rank (N,) of candidate i for clip i, from scores (N, N): 1 is best, and equals count against it."""
    return (scores >= scores.diagonal()[:, None]).sum(1)
