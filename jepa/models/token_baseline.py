"""The token-space baseline of VL-JEPA: a vision-language model that generates the answer (LLaVA, arXiv 2304.08485).

The same X-Encoder's states are projected into the width of a causal language model, followed by the query's tokens and
the answer's. VL-JEPA's controlled comparison (arXiv 2512.10942, section 4.2) is against such a model.

B clips, F frames a clip, S pixels a side, N states, D width, L tokens, M candidates, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.tokenizer import Tokenizer
from jepa.encoders.language import LanguageModel
from jepa.encoders.vision import FrameViT
from jepa.errors import InputError
from jepa.models.roles import role_parameters
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger, count_flops, weight_bytes
from jepa.pretrained import extend
from jepa.selective import Decoded


class TokenVLM(nn.Module):
    """X-Encoder, a linear projection of its states, and a causal language model over states, query and answer.

    A window has `frames` frames at `fps` frames a second; an answer has at most `max_length` tokens, its end included.

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
        super().__init__()
        if min(frames, fps, max_length) < 1 or frames % x_encoder.tubelet:
            raise InputError(
                f"frames, fps and max_length must be >= 1 and frames a multiple of tubelet {x_encoder.tubelet}, "
                f"got frames {frames}, fps {fps}, max_length {max_length}"
            )
        self.x_encoder, self.language_model = x_encoder, language_model
        self.project = nn.Linear(x_encoder.width, language_model.width)
        self.tokenizer, self.frames, self.fps, self.max_length = tokenizer, frames, fps, max_length
        language_model.fit_vocabulary(len(tokenizer), ())
        self._costs: dict[tuple[int, int, int], tuple[int, int, int]] = {}  # of an answer: see `_cost`
        self._slot_flops = 0

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def window(self) -> float:
        """Length of a window in seconds."""
        return self.frames / self.fps

    def encode(self, frames: Tensor) -> Tensor:
        """X-Encoder: (B, F, S, S, 3) uint8 -> states S_X (B, N, D)."""
        return self.x_encoder(frames.to(self.device))

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

    @torch.no_grad()
    def stream(
        self, frames: Iterable[np.ndarray], step_rate: float, query: str, ledger: OperationLedger | None = None
    ) -> Iterator[tuple[Decoded, float]]:
        """Uniform generation: the answer at every step of a sliding window over a stream, as frames arrive.

        Each time slot is encoded once, whatever the overlap of the windows. The ledger counts an encoder call a slot
        and a decoder call a step; there is no predictor.

        Args:
            frames: chunks (M, S, S, 3) uint8 of consecutive frames.
            step_rate: answers a second; fps / step_rate must be a multiple of the tubelet, and at most a window.

        Yields:
            The answer, and the centre of its window in seconds.

        Raises:
            InputError: the step rate does not fit.
        """
        tubelet, ledger = self.x_encoder.tubelet, OperationLedger() if ledger is None else ledger
        length = self.frames // tubelet
        hop = self.fps / step_rate / tubelet if step_rate > 0 else 0
        if hop != int(hop) or not 1 <= hop <= length:
            raise InputError(
                f"step_rate must divide the slot rate of {self.fps / tubelet:g} Hz into whole hops of at most "
                f"{length} slots, got {step_rate} Hz"
            )
        waiting = np.empty((0, *2 * (self.x_encoder.size,), 3), dtype=np.uint8)
        slots: list[Tensor] = []
        step = 0
        for chunk in frames:
            waiting = np.concatenate([waiting, chunk])
            for _ in range(len(waiting) // tubelet):
                with ledger.timed("encoder"):
                    slots.append(self.x_encoder.encode_slots(self._clip(waiting[:tubelet]))[0, 0])
                waiting = waiting[tubelet:]
                ledger.count(
                    "encoder",
                    calls=1,
                    forward_passes=1,
                    flops=self.slot_flops(),
                    weight_bytes=weight_bytes(self.x_encoder),
                )
                if len(slots) < length:
                    continue
                with ledger.timed("decoder"):
                    [found] = self.answer(self.x_encoder.add_time(torch.stack(slots)[None]), [query])
                ledger.count(
                    "decoder",
                    calls=1,
                    forward_passes=found.forward_passes,
                    tokens=found.tokens,
                    flops=found.flops,
                    weight_bytes=found.weight_bytes,
                    cache_bytes=found.cache_bytes,
                )
                yield found, step * hop * tubelet / self.fps + 0.5 * self.window
                step += 1
                slots = slots[int(hop) :]

    def slot_flops(self) -> int:
        """FLOPs of encoding a time slot."""
        if not self._slot_flops:
            blank = np.zeros((self.x_encoder.tubelet, *2 * (self.x_encoder.size,), 3), dtype=np.uint8)
            self._slot_flops = count_flops(lambda: self.x_encoder.encode_slots(self._clip(blank))).total
        return self._slot_flops

    def parameters_by_role(self) -> list[dict[str, Any]]:
        """Parameters of each role: `{role, total, trainable, modules}`."""
        roles = {"X-Encoder": self.x_encoder, "Projection": self.project, "Language model": self.language_model}
        names = {"Language model": type(self.language_model.lm).__name__}
        return [role_parameters(role, part, names.get(role, type(part).__name__)) for role, part in roles.items()]

    def _clip(self, frames: np.ndarray) -> Tensor:
        return torch.from_numpy(frames).to(self.device)[None]

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


def candidate_scores(
    model: VLJEPA | TokenVLM, states: Tensor, queries: Sequence[str], candidates: Sequence[str]
) -> Tensor:
    """How well each of M texts answers: cosine to the predicted embedding, or log-likelihood. (B, M) on the CPU."""
    if isinstance(model, TokenVLM):
        return model.log_likelihoods(states, queries, candidates).cpu()
    return model.predict(states, queries).cpu() @ model.embed_all(candidates).T


def ranks_of_own(scores: Tensor) -> Tensor:
    """Rank (N,) of candidate i for clip i, from scores (N, N): 1 is best, and equals count against it."""
    return (scores >= scores.diagonal()[:, None]).sum(1)
