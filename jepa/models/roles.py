"""What both models say of their roles: greedy texts of the lightweight decoder, and parameters by role."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from jepa.decoders.prefix import PrefixDecoder
from jepa.operations import weight_bytes
from jepa.selective import Decoded


class _Detokenizer(Protocol):
    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]: ...


@torch.no_grad()
def greedy_texts(decoder: PrefixDecoder, latents: Tensor, tokenizer: _Detokenizer, end_id: int) -> list[Decoded]:
    """Greedy texts of embeddings (B, E) on the decoder's device; each token, the end included, is a forward pass."""
    rows = decoder.generate(latents, end_id)
    counts = [min(len(row) + 1, decoder.max_length) for row in rows]
    read = weight_bytes(decoder)
    return [
        Decoded(text, count, count, decoder.flops(count), count * read, decoder.cache_bytes(count))
        for text, count in zip(tokenizer.decode(rows), counts, strict=True)
    ]


def role_parameters(role: str, module: nn.Module, name: str) -> dict[str, Any]:
    """Total and trainable parameters of the module that fills a role: `{role, total, trainable, modules}`."""
    return {
        "role": role,
        "total": sum(p.numel() for p in module.parameters()),
        "trainable": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "modules": name,
    }
