"""Floating-point operations of a decoder-only transformer from its configuration alone.

B: sequences; L: tokens of each that are processed; S: keys that they attend to, cached ones included; D: hidden width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jepa.errors import InputError

FAMILIES = (
    "deepseek_v3",
    "gemma2",
    "gemma3_text",
    "llama",
    "mistral",
    "mistral4",
    "mixtral",
    "olmo2",
    "qwen3",
    "qwen3_moe",
)
_LATENT = {"deepseek_v3", "mistral4"}  # multi-head latent attention (MLA, arXiv 2405.04434)
_WINDOWS_BY_LAYER = {"gemma2", "gemma3_text", "qwen3"}
_ONE_WINDOW = {"mistral", "mixtral", "qwen3_moe"}


@dataclass(frozen=True)
class TransformerFlops:
    """FLOPs of the parts of a transformer.

    Args:
        projections: into queries, keys and values and out of the heads.
        attention: scores, and their product with the values.
        feed_forward: dense layers, routed experts and shared experts.
        router: the choice of experts.
        logits: the language-model head.
    """

    projections: int
    attention: int
    feed_forward: int
    router: int
    logits: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.projections + self.attention + self.feed_forward + self.router + self.logits


def transformer_flops(
    config: Any,
    tokens: int,
    *,
    batch: int = 1,
    context: int | None = None,
    logits: int | None = None,
    training: bool = False,
    fused_attention: bool = False,
) -> TransformerFlops:
    """What `count_flops` measures on a causal language model of Hugging Face transformers 5, by its conventions.

    2 FLOPs a multiply-add; matrix products alone; every one of the L·S pairs of query and key, masked or not.

    Training adds the backward pass with every parameter trained. A product of activations and weights then costs three
    times its forward: itself, the gradient of the activations and that of the weights. This holds from the first layer
    on, whose input has a gradient because the embedding table wants one; looking up that table costs nothing. The two
    products of attention are followed by four, or five in a fused kernel, which computes the scores again.

    Args:
        config: a mapping (`config.json`) or an object with its keys as attributes; `model_type` one of `FAMILIES`.
        tokens: L, >= 1.
        batch: B, >= 1.
        context: S, >= L; L without a cache, which is the default. A layer with a sliding window of W keeps W - 1 keys
            in the cache, so that it has at most W - 1 + L. Latent attention expands all S keys and values anew,
            as transformers 5.23 does.
        logits: last tokens of each sequence that the head is applied to, from 0 to L; by default all.
        training: a forward and a backward pass in place of a forward pass.
        fused_attention: whether the backward pass is a fused kernel's; no matter unless training.

    Raises:
        InputError: an argument breaks its rule; `training` with cached keys; a `config` of another family, or with a
            field missing or of the wrong kind.
    """
    context = tokens if context is None else context
    logits = tokens if logits is None else logits
    for name, value, lowest in (("tokens", tokens, 1), ("batch", batch, 1), ("context", context, tokens)):
        if value < lowest:
            raise InputError(f"{name} must be >= {lowest}, got {value}")
    if not 0 <= logits <= tokens:
        raise InputError(f"logits must be between 0 and the {tokens} tokens, got {logits}")
    if training and context != tokens:
        raise InputError(f"context must be the {tokens} tokens when training, got {context}")
    family = _field(config, "model_type")
    if family not in FAMILIES:
        raise InputError(f"config.model_type must be one of {', '.join(FAMILIES)}, got {family!r}")

    width = _integer(config, "hidden_size")
    projection, expansion, heads, key_width, value_width = _attention(config, family, width)
    # Multiply-adds of a forward pass over all layers, and pairs of query and key.
    projections = pairs = feed_forward = router = 0
    for layer in range(_integer(config, "num_hidden_layers")):
        window = _window(config, family, layer)
        keys = context if window is None else tokens + min(context - tokens, window - 1)
        projections += tokens * projection + keys * expansion
        pairs += heads * tokens * keys
        forward, choice = _feed_forward(config, family, width, layer)
        feed_forward += tokens * forward
        router += tokens * choice
    passes = 3 if training else 1  # forward; gradient of the activations; gradient of the weights
    attention = passes * pairs * (key_width + value_width)
    if training and fused_attention:
        attention += pairs * key_width  # the scores once more
    return TransformerFlops(
        projections=2 * batch * passes * projections,
        attention=2 * batch * attention,
        feed_forward=2 * batch * passes * feed_forward,
        router=2 * batch * passes * router,
        logits=2 * batch * passes * logits * width * _integer(config, "vocab_size"),
    )


def _attention(config: Any, family: str, width: int) -> tuple[int, int, int, int, int]:
    """Weights applied to each token, weights applied to each key, heads, width of a key and width of a value."""
    heads = _integer(config, "num_attention_heads")
    if family in _LATENT:
        turned, straight = _integer(config, "qk_rope_head_dim"), _integer(config, "qk_nope_head_dim")
        value, rank = _integer(config, "v_head_dim"), _integer(config, "kv_lora_rank")
        queries = heads * (straight + turned)
        if _field(config, "q_lora_rank") is None:
            query = width * queries
        else:
            query = _integer(config, "q_lora_rank") * (width + queries)
        latent, out = width * (rank + turned), heads * value * width
        return query + latent + out, rank * heads * (straight + value), heads, straight + turned, value
    size = width // heads if _field(config, "head_dim", None) is None else _integer(config, "head_dim")
    pairs = heads if _field(config, "num_key_value_heads", None) is None else _integer(config, "num_key_value_heads")
    return width * size * (2 * heads + 2 * pairs), 0, heads, size, size


def _window(config: Any, family: str, layer: int) -> int | None:
    """The sliding window of a layer, None where it sees everything before it."""
    if family in _WINDOWS_BY_LAYER:
        slides = _field(config, "layer_types")[layer] == "sliding_attention"
    else:
        slides = family in _ONE_WINDOW and _field(config, "use_sliding_window", True)
    return _integer(config, "sliding_window") if slides and _field(config, "sliding_window") is not None else None


def _feed_forward(config: Any, family: str, width: int, layer: int) -> tuple[int, int]:
    """Weights applied to each token by the gated layers of the feed-forward block, and by its router."""
    if family == "mixtral":
        routed, experts, inner, shared = True, "num_local_experts", "intermediate_size", 0
    elif family == "qwen3_moe":
        routed = (layer + 1) % _integer(config, "decoder_sparse_step") == 0
        routed = routed and layer not in (_field(config, "mlp_only_layers") or ())
        # config.json says num_experts, what transformers writes may say num_local_experts.
        experts = "num_experts" if _field(config, "num_experts", None) is not None else "num_local_experts"
        inner, shared = "moe_intermediate_size", 0
    elif family in _LATENT:
        routed = layer >= _integer(config, "first_k_dense_replace")
        experts, inner, shared = "n_routed_experts", "moe_intermediate_size", _integer(config, "n_shared_experts")
    else:
        routed = False
    if not routed:
        return 3 * width * _integer(config, "intermediate_size"), 0
    active = _integer(config, "num_experts_per_tok") + shared
    return 3 * width * _integer(config, inner) * active, width * _integer(config, experts)


_REQUIRED = object()


def _field(config: Any, name: str, absent: Any = _REQUIRED) -> Any:
    value = config.get(name, absent) if isinstance(config, Mapping) else getattr(config, name, absent)
    if value is _REQUIRED:
        raise InputError(f"the config must have a field {name}, got none")
    return value


def _integer(config: Any, name: str) -> int:
    value = _field(config, name)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise InputError(f"config.{name} must be a whole number >= 0, got {value!r}")
    return value
