"""The token-space baseline of VL-JEPA: a vision-language model that generates the answer (LLaVA, arXiv 2304.08485).

The same X-Encoder's states are projected into the width of a causal language model, followed by the query's tokens and
the answer's. VL-JEPA's controlled comparison (arXiv 2512.10942, section 4.2) is against such a model.

B clips, F frames a clip, S pixels a side, N states, D width, L tokens, M candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.tokenizer import Tokenizer
from jepa.encoders.language import LanguageModel
from jepa.encoders.vision import FrameViT
from jepa.errors import InputError, check_int
from jepa.models.roles import Part, role_parameters
from jepa.models.vl_jepa import VLJEPA
from jepa.models.windows import WindowedModel
from jepa.operations import count_flops, weight_bytes
from jepa.pretrained import extend
from jepa.selective import Decoded


class TokenVLM(WindowedModel):
    """X-Encoder, a linear projection of its states, and a causal language model over states, query and answer.

    A window has `frames` frames at `fps` frames a second; an answer has at most `max_length` tokens, its end included.
    Streams are decoded by a `SelectiveDecoder` with a `WindowDecoder`.

    Raises:
        InputError: unless `frames` is a multiple of the X-Encoder's tubelet, and all numbers are >= 1.
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
        self._costs: dict[tuple[int, int, int], tuple[int, int, int]] = {}  # of an answer: see `_cost`

    def forward(self, states: Tensor, queries: Sequence[str], texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Teacher forcing: states (B, N, D), B queries and B answers -> log-probabilities and mask, both (B, L).

        Each is that of a token of the answer, its end included, given everything before it; `mask` is true at real
        tokens.
        """
        prompt, real = self._prompt(states, queries)
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode_closed(texts))
        hidden, _ = self._extend(
            torch.cat([prompt, self._embed(ids[:, :-1])], dim=1), torch.cat([real, mask[:, :-1]], dim=1), None
        )
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

        Each counts what it takes alone: the pass over states and query gives its first token, every further token,
        the end included, another pass.
        """
        prompt, real = self._prompt(states, queries)
        rows = self._generate(prompt, real, self.max_length, self.tokenizer.eos_id)
        results = []
        for text, row, length in zip(self.tokenizer.decode(rows), rows, real.sum(1).tolist(), strict=True):
            count = min(len(row) + 1, self.max_length)
            results.append(Decoded(text, count, count, *self._cost(states.shape[1], length, count)))
        return results

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Parameters of each role: `{role, total, trainable, modules}`."""
        roles: dict[str, Part] = {
            "X-Encoder": self.x_encoder,
            "Projection": self.project,
            "Language model": self.language_model,
        }
        names = {"Language model": type(self.language_model.lm).__name__}
        return [role_parameters(role, part, names.get(role, type(part).__name__)) for role, part in roles.items()]

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
        out, cache = extend(
            self.language_model.lm.get_decoder(),
            cache,
            inputs_embeds=inputs,
            attention_mask=mask,
            position_ids=positions,
            use_cache=not torch.is_grad_enabled(),
        )
        return out.last_hidden_state, cache

    def _log_probabilities(self, hidden: Tensor, ids: Tensor) -> Tensor:
        """Of each token (B, L), given the state (B, L, D) before it."""
        logits = self.language_model.logits(hidden)
        return -F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").reshape(ids.shape)

    def _generate(self, prompt: Tensor, real: Tensor, tokens: int, end: int | None) -> list[list[int]]:
        """Greedy tokens after prompts (B, L, D), the end left out; exactly `tokens` of them without an `end`."""
        chosen, ended, cache = [], torch.zeros(len(prompt), dtype=torch.bool, device=prompt.device), None
        for _ in range(tokens):
            hidden, cache = self._extend(prompt, real, cache)
            chosen.append(self.language_model.logits(hidden[:, -1]).argmax(-1))
            ended |= chosen[-1] == end
            if bool(ended.all()):
                break
            prompt, real = self._embed(chosen[-1])[:, None], F.pad(real, (0, 1), value=True)
        rows = torch.stack(chosen, dim=1).tolist()
        return [row[: row.index(end)] if end in row else row for row in rows]

    def _cost(self, states: int, length: int, tokens: int) -> tuple[int, int, int]:
        """What an answer of `tokens` tokens takes after a prompt of `length`: FLOPs, bytes of weights and of cache."""
        key = states, length, tokens
        if key not in self._costs:
            prompt = torch.zeros(1, length, self.language_model.width, device=self.device)
            real = torch.ones(1, length, dtype=torch.bool, device=self.device)
            count = count_flops(lambda: self._generate(prompt, real, tokens, None)).total
            _, cache = self._extend(prompt, real, None)
            held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) // length  # of a position
            read = weight_bytes(self.language_model)
            self._costs[key] = (
                count + 2 * states * self.project.weight.numel(),
                tokens * read + weight_bytes(self.project),
                held * sum(length + step for step in range(tokens - 1)),
            )
        return self._costs[key]


class WindowDecoder:
    """A token VLM as the decoder of a `SelectiveDecoder`: the payload of a step is the states of its window.

        decoder = SelectiveDecoder(Uniform(rate), WindowDecoder(model, "what happens?"), ledger)
        for states, times in model.windows(frames, rate, ledger):
            for window, time in zip(states, times):
                show(decoder.step(None, time, payload=window))

    Args:
        model: in evaluation mode.
        query: what is asked of each window.

    >>> class Constant:
    ...     def answer(self, states, queries):
    ...         return [Decoded(f"{query} red", tokens=2, forward_passes=2) for query in queries]
    >>> [found.text for found in WindowDecoder(Constant(), "colour?").decode(torch.zeros(1, 0), [torch.zeros(4, 8)])]
    ['colour? red']
    """

    def __init__(self, model: TokenVLM, query: str) -> None:
        self.model, self.query = model, query

    def decode(self, latents: Tensor, payloads: Sequence[object] | None = None) -> list[Decoded]:
        """Answers to the states (N, D) that came as payloads.

        Raises:
            InputError: a payload is no tensor.
        """
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
    """Rank (N,) of candidate i for clip i, from scores (N, N): 1 is best, and equals count against it.

    >>> ranks_of_own(torch.tensor([[3.0, 1.0], [5.0, 4.0]])).tolist()
    [1, 2]
    """
    return (scores >= scores.diagonal()[:, None]).sum(1)
