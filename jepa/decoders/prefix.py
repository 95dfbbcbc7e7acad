"""Y-Decoder: a lightweight autoregressive decoder from one embedding to text.

B embeddings, E embedding dimensions, K prefix positions, L tokens, D width, H heads, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.errors import InputError

_DENSE = 0.75  # of a batch: with fewer rows that go on, those that have ended are taken out of it


class PrefixDecoder(nn.Module):
    """A causal transformer that continues `prefix` vectors made from the embedding (ClipCap, arXiv 2111.09734).

    Raises:
        InputError: if `width` is not a multiple of `heads`, or a text is longer than `max_length`.

    >>> decoder = PrefixDecoder(vocab_size=64, embedding_dim=16, width=32, depth=1)
    >>> decoder(torch.zeros(2, 16), torch.tensor([[5, 6, 1], [7, 1, 1]])).shape  # logits
    torch.Size([2, 3, 64])
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        prefix: int = 2,
        max_length: int = 32,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width must be a multiple of heads, got width {width}, heads {heads}")
        self.width, self.heads, self.prefix, self.max_length = width, heads, prefix, max_length
        self.project = nn.Linear(embedding_dim, prefix * width)
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(prefix + max_length, width) * 0.02)
        self.blocks = nn.ModuleList([_CausalBlock(width, heads) for _ in range(depth)])
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, latents: Tensor, ids: Tensor) -> Tensor:
        """Logits (B, L, V) of each token of `ids` (B, L), given the embedding (B, E) and the tokens before it."""
        if ids.shape[1] > self.max_length:
            raise InputError(f"a text must have at most {self.max_length} tokens, got {ids.shape[1]}")
        states = torch.cat([self._prefix(latents), self.tokens(ids[:, :-1])], dim=1)
        states = states + self.positions[: states.shape[1]]
        for block in self.blocks:
            states, _ = block(states, None)
        return self._logits(states[:, self.prefix - 1 :])

    @torch.no_grad()
    def generate(self, latents: Tensor, eos_id: int) -> list[list[int]]:
        """Greedy tokens of each embedding (B, E), the end token left out; a text stops at `max_length` tokens."""
        caches: list[_Cache] = [None] * len(self.blocks)
        states = self._prefix(latents) + self.positions[: self.prefix]
        rows = torch.arange(len(latents), device=latents.device)  # those that have not all ended
        found = rows.new_full((len(latents), self.max_length), eos_id)
        for place in range(self.max_length):
            for i, block in enumerate(self.blocks):
                states, caches[i] = block(states, caches[i])
            found[rows, place] = chosen = self._logits(states[:, -1]).argmax(-1)
            going = (found[rows, : place + 1] != eos_id).all(1)
            count = int(going.sum())
            if count <= _DENSE * len(rows):
                rows, chosen = rows[going], chosen[going]
                caches = [None if cache is None else (cache[0][going], cache[1][going]) for cache in caches]
            if not count:
                break
            states = (self.tokens(chosen) + self.positions[self.prefix + place])[:, None]
        return [row[: row.index(eos_id)] if eos_id in row else row for row in found.tolist()]

    def extend(self, latents: Tensor, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A pass of generation with nothing but tensors: what is exported.

        The first pass has latents (B, 1, E) and no tokens (B, 0), a later one no latents (B, 0, E) and the newest
        tokens (B, 1). Keys and values (depth, B, H, P, D / H) are those of the P positions so far, 0 before the first
        pass. Returns the logits (B, V) of the next token, and keys and values with the new positions.
        """
        count, past = ids.shape[0], keys.shape[3]
        prefix = self.project(latents).reshape(count, latents.shape[1] * self.prefix, self.width)
        states = torch.cat([prefix, self.tokens(ids)], dim=1)
        states = states + self.positions[past + torch.arange(states.shape[1], device=ids.device)]
        caches: list[tuple[Tensor, Tensor]] = []
        for block, key, value in zip(self.blocks, keys, values, strict=True):
            states, cache = block(states, (key, value))
            caches.append(cache)
        new_keys, new_values = (torch.stack(parts) for parts in zip(*caches, strict=True))
        return self._logits(states[:, -1]), new_keys, new_values

    def flops(self, tokens: int) -> int:
        """FLOPs of generating a text of `tokens` tokens alone, by the conventions of `jepa.operations.count_flops`."""
        width, vocabulary, dim = self.width, self.tokens.num_embeddings, self.project.in_features
        total = 2 * dim * self.prefix * width + tokens * 2 * width * vocabulary
        for step in range(tokens):
            new, seen = (self.prefix if step == 0 else 1), self.prefix + step
            total += len(self.blocks) * (2 * new * 12 * width**2 + 4 * new * seen * width)
        return total

    def cache_bytes(self, tokens: int) -> int:
        """Bytes of cached keys and values read while a text of `tokens` tokens is generated alone."""
        positions = sum(self.prefix + step for step in range(tokens - 1))  # the first token finds nothing cached
        return 2 * len(self.blocks) * self.width * self.project.weight.element_size() * positions

    def _prefix(self, latents: Tensor) -> Tensor:
        return self.project(latents).reshape(len(latents), self.prefix, self.width)

    def _logits(self, states: Tensor) -> Tensor:
        return F.linear(self.norm(states), self.tokens.weight).float()


def until_end(passes: Iterator[Tensor], limit: int, end: int) -> list[list[int]]:
    """B rows of tokens from passes that give a token (B,) each: at most `limit`, up to the end token, without it.

    >>> until_end(iter([torch.tensor([5, 6]), torch.tensor([1, 7]), torch.tensor([8, 1])]), limit=9, end=1)
    [[5], [6, 7]]
    """
    columns: list[Tensor] = []
    ended: Tensor | bool = False
    for chosen in itertools.islice(passes, limit):
        columns.append(chosen)
        ended = ended | (chosen == end)
        if bool(ended.all()):
            break
    rows = torch.stack(columns, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in rows]


_Cache = tuple[Tensor, Tensor] | None  # keys and values, each (B, H, positions so far, D / H)


class _CausalBlock(nn.Module):
    """Pre-norm attention and MLP over (B, L, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, states: Tensor, cache: _Cache) -> tuple[Tensor, _Cache]:
        """New positions (B, L, D) after those in the cache: their states, and the cache with them added."""
        count, length, width = states.shape
        qkv = self.qkv(self.norm_attention(states)).reshape(count, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if cache is not None:
            key, value = torch.cat([cache[0], key], dim=2), torch.cat([cache[1], value], dim=2)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        if torch.compiler.is_exporting() or length > 1:  # no position sees a later one; the newest sees all
            place = torch.arange(length, device=states.device) + (key.shape[2] - length)
            later = torch.arange(key.shape[2], device=states.device) > place[:, None]
            scores = scores.masked_fill(later, -torch.inf)
        mixed = scores.softmax(-1) @ value  # texts are short: no gain from a fused kernel
        states = states + self.out(mixed.transpose(1, 2).reshape(count, length, width))
        return states + self.mlp(self.norm_mlp(states)), (key, value)
