"""Latent predictor: a bidirectional transformer over visual states and query tokens (VL-JEPA section 3).

B clips, N visual states, L query tokens, D_x and D widths, E embedding dimensions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa.errors import InputError
from jepa.predictors.experts import ExpertBlock, Mixture


class QueryPredictor(nn.Module):
    """(S_X, query) -> predicted embedding of the answer.

    The query comes after the visual states, attention is bidirectional, the output is the average over all real tokens,
    a linear head, and unit norm. VL-JEPA takes the last layers of a language model here; this one starts from scratch.
    With a `mixture`, sparse experts take the place of the feed-forward layers (`jepa.predictors.experts`).

    `forward` takes states (B, N, D_x), query tokens (B, L), at most `max_length`, and their mask, true at real ones;
    it returns (B, E), L2-normalised.

    >>> predictor = QueryPredictor(vocab_size=64, state_dim=24, embedding_dim=16)
    >>> ids = torch.tensor([[5, 6, 7], [8, 0, 0]])
    >>> predictor(torch.zeros(2, 9, 24), ids, mask=ids > 0).shape
    torch.Size([2, 16])
    """

    def __init__(
        self,
        vocab_size: int,
        state_dim: int,
        embedding_dim: int,
        width: int = 128,
        depth: int = 3,
        heads: int = 4,
        max_length: int = 32,
        mixture: Mixture | None = None,
    ) -> None:
        super().__init__()
        self.max_length = max_length
        self.project = nn.Linear(state_dim, width)
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Parameter(torch.randn(max_length, width) * 0.02)
        self.blocks = nn.ModuleList(
            Block(width, heads, qkv_bias=True) if mixture is None else ExpertBlock(width, heads, mixture)
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, embedding_dim)
        nn.init.normal_(self.tokens.weight, std=0.02)

    def forward(self, states: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
        length = ids.shape[1]
        if length > self.max_length:
            raise InputError(f"a query must have at most {self.max_length} tokens, got {length}")
        query = self.tokens(ids) + self.positions[:length]
        tokens = torch.cat([self.project(states), query], dim=1)
        real = torch.cat([mask.new_ones(states.shape[:2]), mask], dim=1)
        # Without padding no mask is needed, and attention runs on the unmasked kernel.
        padded = torch.compiler.is_exporting() or not bool(mask.all())
        visible = real[:, None, None, :] if padded else None
        for block in self.blocks:
            tokens = block(tokens, attn_mask=visible)
        weight = real.to(tokens.dtype)[..., None]
        pooled = (self.norm(tokens) * weight).sum(1) / weight.sum(1)
        return F.normalize(self.head(pooled).float(), dim=-1)
