"""Parameters of a decoder-only transformer from its configuration alone, and bytes of a module's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from jepa.operations.closed_form import (
    LATENT_FAMILIES,
    attention_weights,
    family_of,
    feed_forward_weights,
    field,
    integer,
    transformer_flops,
)

_HEAD_NORMS = {"gemma3_text", "qwen3", "qwen3_moe"}  # of queries and of keys, over the width of a head
_TIED = {"gemma2", "gemma3_text"}  # where a config does not say


@dataclass(frozen=True)
class TransformerParameters:
    """Parameters of a decoder-only transformer.

    Args:
        total: stored; a head that is the input table counts once.
        active: weights that a token is multiplied with: of the attention, of the router, of the experts chosen and
            shared, and of the head. Norms, biases and the input table, which is looked up, are not among them.
        input_table: token embeddings.
        head: the language-model head: as many as `input_table`, and the same ones where `tied`.
        tied: whether the head is the input table.
    """

    total: int
    active: int
    input_table: int
    head: int
    tied: bool


def transformer_parameters(config: Any) -> TransformerParameters:
    """Parameters of a causal language model of Hugging Face transformers 5.

    Args:
        config: as of `transformer_flops`.

    Raises:
        InputError: a `config` of another family, or with a field missing or of the wrong kind.
    """
    family, width = family_of(config), integer(config, "hidden_size")
    projection, expansion, heads, key_width, _ = attention_weights(config, family, width)
    layers = integer(config, "num_hidden_layers")
    rest = layers * _norms_and_biases(config, family, width, heads, key_width) + width  # and the last norm
    blocks = layers * (projection + expansion)
    for layer in range(layers):
        _, router, stored = feed_forward_weights(config, family, width, layer)
        blocks += router + stored
    table = width * integer(config, "vocab_size")
    tied = bool(field(config, "tie_word_embeddings", family in _TIED))
    once = transformer_flops(config, 1)
    return TransformerParameters(
        total=blocks + rest + table * (1 if tied else 2),
        active=(once.total - once.attention) // 2,
        input_table=table,
        head=table,
        tied=tied,
    )


def _norms_and_biases(config: Any, family: str, width: int, heads: int, key_width: int) -> int:
    """Parameters of a layer that are neither its projections nor its feed-forward matrices."""
    norms = width * (4 if family.startswith("gemma") else 2)
    biased = bool(field(config, "attention_bias", False)) and family not in ("mistral", "mixtral")
    if family in LATENT_FAMILIES:
        queries = field(config, "q_lora_rank") or 0
        latent, turned = integer(config, "kv_lora_rank"), integer(config, "qk_rope_head_dim")
        return norms + queries + latent + biased * (queries + latent + turned + width)
    pairs = field(config, "num_key_value_heads", None) or heads
    if family in _HEAD_NORMS:
        norms += 2 * key_width
    elif family == "olmo2":
        norms += (heads + pairs) * key_width
    if family == "llama" and field(config, "mlp_bias", False):
        norms += 2 * integer(config, "intermediate_size") + width
    return norms + biased * ((heads + 2 * pairs) * key_width + width)


def weight_bytes(module: nn.Module) -> int:
    """Bytes of a module's parameters, each shared one once: what a forward pass reads of weights at most."""
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())
