"""Y-Encoder: a bidirectional text transformer.

B texts, L tokens, D width, E embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa.errors import InputError


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` (B, L, D) over the positions where `mask` (B, L) is true: (B, D)."""
    weight = mask.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TextTransformer(nn.Module):
    """Token and position embeddings, `depth` bidirectional blocks, mean over real tokens, linear head, unit norm.

    `forward`: ids (B, L), L <= `max_length`, and their mask, true at real tokens -> (B, E), L2-normalised.

    >>> encoder = TextTransformer(vocab_size=64, embedding_dim=16)
    >>> ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    >>> encoder(ids, mask=ids > 0).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        vocab_size: int,
        embedding_dim: int,
        width: int = 128,
        depth: int = 2,
        heads: int = 4,
        max_length: int = 32,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, embedding_dim)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        if length > self.max_length:
            raise InputError(f"a text must have at most {self.max_length} tokens, got {length}")
        states = self.tokens(ids) + self.positions[:length]
        visible = mask[:, None, None, :]
        for block in self.blocks:
            states = block(states, attn_mask=visible)
        return F.normalize(self.head(masked_mean(self.norm(states), mask)).float(), dim=-1)
