"""Generation with drafts: a drafter proposes tokens, one pass of the language model verifies them all.

Greedy text is that of the language model alone, token for token; sampled text has its distribution (Leviathan et al.
2023, arXiv 2211.17192, algorithm 1; Chen et al. 2023, arXiv 2302.01318). Without a drafter, drafts have length 0.

B rows, G drafted tokens, D width, V vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from jepa.encoders.language import LanguageModel
from jepa.errors import InputError
from jepa.operations import PartCount, weight_bytes
from jepa.predictors.transition import LatentTransition

T = TypeVar("T")

_SMALL = 2**19  # weights: from here on oneDNN's layout is faster for one row, too
_MOST_PACKED = 2**31  # bytes that are held twice


class Drafts(NamedTuple):
    """Tokens proposed for B rows.

    Attributes:
        tokens: (B, G), of which the first `counts` are meant.
        counts: (B,) between 0 and G.
        predicted: (B,) states predicted for them; 0 where no network ran.
        probabilities: (B, G, V) that each was drawn from; None where it was certain.
    """

    tokens: Tensor
    counts: Tensor
    predicted: Tensor
    probabilities: Tensor | None = None


class Drafter(Protocol):
    """What proposes tokens. `cost`: of a state that it predicts; `threshold`: 0 where it has none."""

    @property
    def cost(self) -> PartCount: ...
    @property
    def threshold(self) -> float: ...

    def draft(self, states: Tensor, texts: Sequence[Sequence[int]], most: int) -> Drafts:
        """At most `most` >= 1 tokens after those of `texts`, after [] none; `states` (B, D) of the last but one."""


class Verified(NamedTuple):
    """One pass of the language model for one row."""

    drafted: int = 0  # tokens that it verified
    accepted: int = 0  # of them, how many stand
    predicted: int = 0  # states that were predicted for them


class Continuation(NamedTuple):
    """What was generated for a row, with the stop token if it came to one; the first pass is that of the prompt."""

    tokens: list[int]
    passes: list[Verified]


@torch.no_grad()
def generate(
    language: LanguageModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
    drafter: Drafter | None = None,
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[Continuation]:
    """Continuations of B prompts, greedy unless there is a temperature.

    Rows that have ended leave the batch and its cache once they are a quarter of it. A token that was drafted and
    refused stays in the cache as a hole that nothing sees, until holes are a quarter of it.

    Raises:
        InputError: a prompt is empty, or a count or the temperature is out of range.
    """
    if not all(prompts) or max_new_tokens < 1 or not temperature >= 0:
        raise InputError(
            f"prompts must not be empty, max_new_tokens must be >= 1 and temperature >= 0, got {max_new_tokens} tokens "
            f"and temperature {temperature} for prompts of {min(map(len, prompts), default=0)} tokens or more"
        )
    rows = [Continuation([], []) for _ in prompts]
    alive, stops = list(range(len(rows))), set(stop_ids)
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts], device=language.device)
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=ids.device)
    mask = torch.arange(longest, device=ids.device) >= longest - lengths[:, None]
    cache, ended = None, [False] * len(rows)
    drafts = Drafts(ids[:, :0], *torch.zeros_like(lengths).expand(2, -1))
    while True:
        states, cache = language.extend(ids, mask, cache)
        states = states[:, -1 - drafts.tokens.shape[1] :]
        accepted, chosen = verify(language.logits(states), drafts, temperature, generator)
        mask[:, mask.shape[1] - drafts.tokens.shape[1] :] &= _first(accepted, drafts.tokens.shape[1])
        _append(rows, alive, ended, drafts, accepted, chosen, max_new_tokens, stops)
        if all(ended):
            return rows
        states, ids = states.gather(1, accepted[:, None, None].expand(-1, 1, states.shape[2]))[:, 0], chosen[:, None]
        if 4 * sum(ended) >= len(ended):
            kept = torch.tensor([i for i, done in enumerate(ended) if not done], device=ids.device)
            cache.batch_select_indices(kept)
            alive, ended = [alive[i] for i in kept.tolist()], [False] * len(kept)
            states, ids, mask = states[kept], ids[kept], mask[kept]
        mask = _without_holes(cache, mask)
        room = ids.new_tensor([max_new_tokens - len(rows[row].tokens) - 1 for row in alive])  # before the token after
        drafts = Drafts(ids[:, :0], torch.zeros_like(room), torch.zeros_like(room))
        if drafter is not None and bool((room > 0).any()):
            texts = [[] if done else [*prompts[i], *rows[i].tokens] for i, done in zip(alive, ended, strict=True)]
            drafts = drafter.draft(states, texts, int(room.max()))
            drafts = drafts._replace(counts=drafts.counts.minimum(room), predicted=drafts.predicted.minimum(room))
        ids = torch.cat([ids, drafts.tokens], dim=1)
        meant = _first(drafts.counts, drafts.tokens.shape[1])
        mask = torch.cat([mask, mask.new_ones(len(mask), 1), meant], dim=1)


def verify(
    logits: Tensor, drafts: Drafts, temperature: float = 0.0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """How many drafted tokens stand (B,), and the token that follows them (B,).

    Args:
        logits: (B, G + 1, V) of the language model before, between and after the drafted tokens.
        drafts: the tokens.
        temperature: 0 is greedy: a token stands if it is the likeliest. Above 0 it stands with probability
            min(1, p / q), and the one in its place is drawn from (p − q)₊.
        generator: of the random numbers.
    """
    tokens, meant = drafts.tokens, _first(drafts.counts, drafts.tokens.shape[1])
    if temperature == 0:
        best = logits.argmax(-1)
        accepted = ((best[:, :-1] == tokens) & meant).long().cumprod(1).sum(1)
        return accepted, best.gather(1, accepted[:, None])[:, 0]
    p = (logits / temperature).softmax(-1)
    q = drafts.probabilities
    if q is None:
        q = F.one_hot(tokens, p.shape[-1]).to(p.dtype)
    q = q * meant[:, :, None]
    ratio = (p[:, :-1].gather(2, tokens[:, :, None]) / q.gather(2, tokens[:, :, None]))[:, :, 0]
    drawn = torch.rand(ratio.shape, generator=generator, device=ratio.device, dtype=ratio.dtype)
    accepted = ((drawn < ratio) & meant).long().cumprod(1).sum(1)
    q = F.pad(q, (0, 0, 0, 1))  # nothing was drafted after the last
    place = accepted[:, None, None].expand(-1, 1, p.shape[-1])
    rest = (p - q).clamp_min(0).gather(1, place)[:, 0]
    return accepted, torch.multinomial(rest, 1, generator=generator)[:, 0]


@contextmanager
def packed(*modules: nn.Module) -> Iterator[None]:
    """For generation on a CPU: linear layers hold their weights in oneDNN's own layout, too, and read them from there.

    The few rows of a pass that verifies drafts take a third to a half of the time (`scripts/bench_drafts.py`). Layers
    that are not float32, and models of more than 2 GiB, run as they are. Weights must not change meanwhile.

    >>> layer, row = torch.nn.Linear(3, 2), torch.ones(1, 3)
    >>> with torch.no_grad(), packed(layer):
    ...     torch.allclose(layer(row), row @ layer.weight.T + layer.bias)
    True
    """
    linear = {layer for module in modules for layer in module.modules() if type(layer) is nn.Linear}
    layers = [layer for layer in linear if layer.weight.device.type == "cpu" and layer.weight.dtype == torch.float32]
    layers = [layer for layer in layers if "forward" not in vars(layer)]  # as another library's hook has put it there
    known = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    known = known and torch.backends.cpu.get_cpu_capability().startswith("AVX")
    if not known or 4 * sum(layer.weight.numel() for layer in layers) > _MOST_PACKED:
        layers = []
    for layer in layers:
        vars(layer)["forward"] = _packed_forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _packed_forward(layer: nn.Linear) -> Callable[[Tensor], Tensor]:
    weight, bias, width = layer.weight.detach(), layer.bias, layer.in_features
    own, plain = torch.ops.mkldnn._reorder_linear_weight(weight), layer.forward

    def forward(x: Tensor) -> Tensor:
        one_row = x.numel() == width and weight.numel() < _SMALL
        if one_row or x.dtype != weight.dtype or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
            return plain(x)
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, own, bias, "none", [], "")
        return result

    return forward


class LatentDrafter:
    """Drafts by next-latent prediction: a `LatentTransition` goes on from the last state, the model's head reads it.

    Args:
        language: whose head and token embeddings are used.
        transition: h_t, x_{t+1} -> h_{t+1}.
        most: γ, tokens in a draft.
        threshold: drafts end before the probability that all of a draft stands, by the head's own estimate and in the
            mean of the rows, falls below. A draft that has ended its text counts 0.
        only: the tokens that may be drafted; with a large vocabulary, few of them make the head cheap.
        stop_ids: tokens that end a text, and with it the draft.

    Raises:
        InputError: `most`, `threshold` or a token of `only` is out of range, or `only` is empty.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> language = LanguageModel(architecture=tiny).eval()
    >>> drafter = LatentDrafter(language, LatentTransition(width=32), most=3)
    >>> [found] = generate(language, [[3, 4, 5]], max_new_tokens=8, drafter=drafter)
    >>> len(found.tokens), found.tokens == generate(language, [[3, 4, 5]], max_new_tokens=8)[0].tokens
    (8, True)
    """

    def __init__(
        self,
        language: LanguageModel,
        transition: LatentTransition,
        most: int = 8,
        threshold: float = 0.0,
        only: Iterable[int] | None = None,
        stop_ids: Iterable[int] = (),
    ) -> None:
        if most < 1 or not 0 <= threshold <= 1:
            raise InputError(f"most must be >= 1 and threshold in [0, 1], got {most} and {threshold}")
        self.language, self.transition, self.most, self.threshold = language, transition, most, threshold
        self._stops = frozenset(stop_ids)
        own = language.lm.get_output_embeddings()
        self._only, self._head, weight = None, None, own.weight
        if only is not None:
            chosen = sorted(set(only))
            if not chosen or chosen[0] < 0 or chosen[-1] >= len(weight):
                raise InputError(f"only must hold tokens in [0, {len(weight)}), got {chosen[:1] + chosen[-1:]}")
            self._only = torch.tensor(chosen, device=language.device)
            weight, bias = weight[self._only], None if own.bias is None else own.bias[self._only]
            self._head = partial(F.linear, weight=weight, bias=bias)
        read = weight_bytes(transition) + weight.numel() * weight.element_size()
        self.cost = PartCount(flops=transition.flops() + 2 * weight.numel(), weight_bytes=read)

    def draft(self, states: Tensor, texts: Sequence[Sequence[int]], most: int) -> Drafts:
        embed, chosen = self.language.lm.get_input_embeddings(), [text[-1] if text else 0 for text in texts]
        sure = [float(len(text) > 0) for text in texts]  # lists: for few rows faster than tensors
        counts, predicted, tokens = [0] * len(texts), [0] * len(texts), list[list[int]]()
        while len(tokens) < min(most, self.most) and any(sure):
            states = self.transition(states, embed(torch.tensor(chosen, device=states.device)))
            best, places = self.language.logits(states, self._head).softmax(-1).max(-1)
            chosen = (places if self._only is None else self._only[places]).tolist()
            predicted = [count + (p > 0) for count, p in zip(predicted, sure, strict=True)]
            sure = [p * each for p, each in zip(sure, best.tolist(), strict=True)]
            if not sum(sure) >= self.threshold * len(sure):
                break
            counts = [count + (p > 0) for count, p in zip(counts, sure, strict=True)]
            tokens.append(chosen)
            sure = [0.0 if token in self._stops else p for p, token in zip(sure, chosen, strict=True)]
        columns = torch.tensor(tokens, dtype=torch.long, device=states.device).reshape(len(tokens), len(texts))
        return Drafts(columns.T, *torch.tensor([counts, predicted], device=states.device))


class PromptLookup:
    """Drafts what followed the last tokens where they stood first (prompt lookup, Saxena 2023).

    Args:
        most: γ, tokens in a draft.
        longest: of the last tokens, how many are looked for at first; then ever fewer.

    >>> lookup = PromptLookup(most=3)
    >>> lookup.draft(torch.zeros(1, 4), [[5, 6, 7, 8, 5, 6]], most=9).tokens
    tensor([[7, 8, 5]])
    """

    cost, threshold = PartCount(), 0.0

    def __init__(self, most: int = 8, longest: int = 3) -> None:
        if most < 1 or longest < 1:
            raise InputError(f"most and longest must be >= 1, got {most} and {longest}")
        self.most, self.longest = most, longest

    def draft(self, states: Tensor, texts: Sequence[Sequence[int]], most: int) -> Drafts:
        found = [self._after(text)[: min(most, self.most)] for text in texts]
        width = max(len(tokens) for tokens in found)
        padded = [[*tokens, *[0] * (width - len(tokens))] for tokens in found]
        counts = torch.tensor([len(tokens) for tokens in found], device=states.device)
        tokens = torch.tensor(padded, dtype=torch.long, device=states.device).reshape(len(found), width)
        return Drafts(tokens, counts, torch.zeros_like(counts))

    def _after(self, text: Sequence[int]) -> Sequence[int]:
        for size in range(min(self.longest, len(text) - 1), 0, -1):
            last = list(text[-size:])
            for start in range(len(text) - size):
                if list(text[start : start + size]) == last:
                    return text[start + size :]
        return []


class FirstOf:
    """For each row the draft of the first drafter that has one."""

    def __init__(self, *drafters: Drafter) -> None:
        self.drafters = drafters
        self.cost = sum((each.cost for each in drafters), PartCount())  # at most one of them predicts states
        self.threshold = max(each.threshold for each in drafters)

    def draft(self, states: Tensor, texts: Sequence[Sequence[int]], most: int) -> Drafts:
        found: Drafts | None = None
        for drafter in self.drafters:
            drafts = drafter.draft(states, texts, most)
            if found is None:
                found = drafts
            else:
                width = max(found.tokens.shape[1], drafts.tokens.shape[1])
                first, second = (F.pad(each.tokens, (0, width - each.tokens.shape[1])) for each in (found, drafts))
                has = found.counts > 0
                found = Drafts(
                    torch.where(has[:, None], first, second),
                    torch.where(has, found.counts, drafts.counts),
                    found.predicted + drafts.predicted * ~has,
                )
            if all(count > 0 or not text for count, text in zip(found.counts.tolist(), texts, strict=True)):
                break
        assert found is not None
        return found


def fastest(candidates: Sequence[Drafter], run: Callable[[Drafter, T], object], items: Sequence[T]) -> Drafter:
    """The candidate that takes `run` the fewest seconds: for each item the best of five rounds, or of those of 30 s."""

    def seconds(candidate: Drafter, item: T) -> float:
        started = time.perf_counter()
        run(candidate, item)
        return time.perf_counter() - started

    seconds(candidates[0], items[0])  # what runs for the first time is slow
    started, rounds = time.perf_counter(), list[list[list[float]]]()
    while not rounds or (len(rounds) < 5 and time.perf_counter() - started < 30):
        rounds.append([[seconds(d, item) for d in candidates] for item in tqdm(items, "timing drafts", leave=False)])
    return candidates[int(torch.tensor(rounds).amin(0).sum(0).argmin())]


def _first(counts: Tensor, width: int) -> Tensor:
    """(B, width), true at the first `counts` (B,)."""
    return torch.arange(width, device=counts.device) < counts[:, None]


def _append(
    rows: list[Continuation],
    alive: list[int],
    ended: list[bool],
    drafts: Drafts,
    accepted: Tensor,
    chosen: Tensor,
    max_new_tokens: int,
    stops: set[int],
) -> None:
    """Writes what a pass found to the rows that have not ended, and notes which end."""
    columns = (drafts.tokens, drafts.counts, drafts.predicted, accepted, chosen)
    for i, (tokens, drafted, predicted, count, after) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if ended[i]:
            continue
        row = rows[alive[i]]
        new = [*tokens[:count], after][: max_new_tokens - len(row.tokens)]
        last = next((j for j, token in enumerate(new) if token in stops), None)
        new = new if last is None else new[: last + 1]
        row.tokens.extend(new)
        row.passes.append(Verified(drafted, min(count, len(new)), predicted))
        ended[i] = last is not None or len(row.tokens) == max_new_tokens


def _without_holes(cache: Any, mask: Tensor) -> Tensor:
    """Moves what the rows hold in the cache to the right, once a quarter of it is held by none; the mask (B, N)."""
    longest = int(mask.sum(1).max())
    if 4 * longest > 3 * mask.shape[1]:
        return mask
    order = mask.long().argsort(dim=1, stable=True)[:, -longest:]
    for layer in cache.layers:
        held = layer.keys.shape[2]  # fewer than the columns where a window hides the older ones
        index = (order[:, -held:] - (mask.shape[1] - held)).clamp_min(0)[:, None, :, None]
        layer.keys, layer.values = (each.take_along_dim(index, dim=2) for each in (layer.keys, layer.values))
    return mask.gather(1, order)
