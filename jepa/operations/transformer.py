"""A transformer by its dimensions: parameters, weights in a token's matrix products and numbers in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jepa.errors import InputError, check_int

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Dimensions:
    """A transformer by its dimensions, from which parameters, FLOPs and bytes follow.

    Raises:
        InputError: a dimension breaks its rule.

    >>> layers = Dimensions(2, width=64, heads=4, key_width=16, value_width=16, kv_heads=4, feed_forward=256)
    >>> layers.parameters == 2 * (4 * 64**2 + 3 * 64 * 256)
    True
    """

    layers: int  # L
    width: int  # d, of the hidden states
    heads: int  # H, of the queries
    key_width: int  # d_qk, of a query and a key of one head
    value_width: int  # d_v, of a value of one head
    kv_heads: int  # K, of keys and values; without a meaning in latent attention
    feed_forward: int = 0  # inner width of a dense block
    dense_layers: int | None = None  # with a dense block; the others have experts
    gated: bool = True  # whether a block has three matrices (SwiGLU) or two
    query_rank: int | None = None  # of the queries' low-rank projection in latent attention; None: there is none
    kv_rank: int | None = None  # d_c, the cached latent of latent attention (MLA, arXiv 2405.04434, section 2.1)
    rope_width: int = 0  # d_r, the part of a latent attention's key that carries the position
    experts: int = 0  # E, routed experts of a layer
    active: int = 0  # k, experts that each token is routed to
    shared: int = 0  # S, experts that every token passes
    expert_width: int = 0  # d_e, inner width of an expert
    vocabulary: int = 0  # V; 0 has neither table nor head
    tied: bool = False  # whether the head is the input table
    causal: bool = True  # whether a token attends to earlier ones only
    window: int | None = None  # W, tokens that a layer with a sliding window attends to, itself included
    window_layers: int = 0  # with such a window
    other_parameters: int = 0  # norms, biases and the like, in no matrix product that counts

    def __post_init__(self) -> None:
        for name in ("layers", "width", "heads", "key_width", "value_width", "kv_heads"):
            check_int(name, getattr(self, name), 1)
        whole = "feed_forward rope_width experts active shared expert_width vocabulary window_layers other_parameters"
        for name in whole.split():
            check_int(name, getattr(self, name), 0)
        if self.window_layers:
            check_int("window", self.window or 0, 1)
        for name, layers in (("dense_layers", self.dense), ("window_layers", self.window_layers)):
            if not 0 <= layers <= self.layers:
                raise InputError(f"{name} must be between 0 and the {self.layers} layers, got {layers}")
        if self.active > self.experts or (self.dense < self.layers and not self.active):
            raise InputError(f"active must be between 1 and the {self.experts} experts, got {self.active}")

    @property
    def dense(self) -> int:
        """Layers with a dense feed-forward block."""
        without_experts = 0 if self.experts else self.layers
        return without_experts if self.dense_layers is None else self.dense_layers

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's projections, `expansion_weights` among them."""
        d, h, qk, v = self.width, self.heads, self.key_width, self.value_width
        if self.kv_rank is None:
            return d * (h * qk + self.kv_heads * (qk + v)) + h * v * d
        query = d * h * qk if self.query_rank is None else self.query_rank * (d + h * qk)
        return query + d * (self.kv_rank + self.rope_width) + self.expansion_weights + h * v * d

    @property
    def expansion_weights(self) -> int:
        """Weights of one layer that make keys and values of latents: applied to each key, cached ones included."""
        return (self.kv_rank or 0) * self.heads * (self.key_width - self.rope_width + self.value_width)

    @property
    def router_weights(self) -> int:
        """Weights of all layers that choose experts."""
        return (self.layers - self.dense) * self.width * self.experts

    def feed_forward_weights(self, experts: Number) -> Number:
        """Weights of all layers' feed-forward blocks, with so many routed experts in those that have experts."""
        dense = self.dense * self.feed_forward
        routed = (self.layers - self.dense) * (experts + self.shared) * self.expert_width
        return (3 if self.gated else 2) * self.width * (dense + routed)

    def _weights(self, experts: Number) -> Number:
        return self.layers * self.attention_weights + self.router_weights + self.feed_forward_weights(experts)

    @property
    def table(self) -> int:
        """Parameters of the input table; the head has as many, the same ones where `tied`."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """All of them: embeddings once where tied, norms and biases too."""
        return self._weights(self.experts) + self.table * (1 if self.tied else 2) + self.other_parameters

    @property
    def active_parameters(self) -> int:
        """N_act: parameters that a token is multiplied with, the head included, the input table not."""
        return self._weights(self.active) + self.table

    def touched(self, tokens: float) -> float:
        """U: distinct experts of a layer that `tokens` tokens reach, E·(1 − (1 − k/E)^tokens), routing being even."""
        return self.experts * (1 - (1 - self.active / self.experts) ** tokens) if self.experts else 0.0

    def read_weights(self, tokens: float) -> float:
        """Weights read for one forward pass over `tokens` tokens, head included."""
        return self._weights(self.touched(tokens)) + self.table

    @property
    def cache_width(self) -> int:
        """Numbers that one layer keeps of one token: 2·K·h, or d_c + d_r with latent attention."""
        if self.kv_rank is not None:
            return self.kv_rank + self.rope_width
        return self.kv_heads * (self.key_width + self.value_width)

    def positions(self, tokens: Number) -> Number:
        """Positions that the caches of all layers keep of one sequence: W − 1 at most with a window."""
        kept = tokens if self.window is None else min(tokens, self.window - 1)
        return (self.layers - self.window_layers) * tokens + self.window_layers * kept

    def cached(self, tokens: Number) -> Number:
        """Numbers in the KV cache of one sequence of `tokens` tokens."""
        return self.cache_width * self.positions(tokens)

    def prefill_flops(self, tokens: float) -> float:
        """FLOPs of reading I tokens, 2·N_act·I + L·H·(d_qk + d_v)·I²; of attention only pairs that the mask leaves."""
        seen = tokens if self.window is None else min(tokens, self.window)
        whole = tokens * tokens / 2 if self.causal else tokens * tokens
        windowed = seen * tokens - seen * seen / 2 if self.causal else whole
        pairs = (self.layers - self.window_layers) * whole + self.window_layers * windowed
        return 2 * self.active_parameters * tokens + 2 * self.heads * (self.key_width + self.value_width) * pairs


FAMILIES = (
    "deepseek_v3", "gemma2", "gemma3_text", "llama", "ministral3", "mistral", "mistral4", "mixtral", "olmo2", "qwen2",
    "qwen3", "qwen3_moe",
)  # fmt: skip
_LATENT = {"deepseek_v3", "mistral4"}  # multi-head latent attention (MLA, arXiv 2405.04434)
_WINDOWS_BY_LAYER = {"gemma2", "gemma3_text", "qwen2", "qwen3"}
_ONE_WINDOW = {"ministral3", "mistral", "mixtral", "qwen3_moe"}
_TIED = {"gemma2", "gemma3_text"}  # where a config does not say
_HEAD_NORMS = {"gemma3_text", "qwen3", "qwen3_moe"}  # of queries and of keys, over the width of a head
_NO_ATTENTION_BIAS = {"ministral3", "mistral", "mixtral", "qwen2"}  # whatever a config says


def from_hf_config(config: Any) -> Dimensions:
    """The dimensions of a causal language model of Hugging Face transformers 5, of one of `FAMILIES`.

    `config` is a mapping, such as the model's `config.json`, or a `PreTrainedConfig`, of whose parts the text counts.
    Raises `InputError` for another family, or a field that is missing or of the wrong kind.
    """
    if not isinstance(config, Mapping):
        config = config.get_text_config()
    family = _field(config, "model_type")
    if family not in FAMILIES:
        raise InputError(f"config.model_type must be one of {', '.join(FAMILIES)}, got {family!r}")
    layers, width = _integer(config, "num_hidden_layers"), _integer(config, "hidden_size")
    sizes = _attention(config, family, width)
    return Dimensions(
        layers=layers,
        width=width,
        feed_forward=_integer(config, "intermediate_size"),
        vocabulary=_integer(config, "vocab_size"),
        tied=bool(_field(config, "tie_word_embeddings", family in _TIED)),
        other_parameters=layers * _norms_and_biases(config, family, width, sizes) + width,  # and the last norm
        **sizes,
        **_experts(config, family, layers),
        **_windows(config, family, layers),
    )


@dataclass(frozen=True)
class TransformerFlops:
    """FLOPs of the parts of a transformer.

    >>> TransformerFlops(projections=4, attention=2, feed_forward=8, router=0, logits=1).total
    15
    """

    projections: int  # into queries, keys and values and out of the heads
    attention: int  # scores, and their product with the values
    feed_forward: int  # dense layers, routed experts and shared experts
    router: int  # the choice of experts
    logits: int  # the language-model head

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

    Training trains every parameter. A product of activations and weights then costs three times its forward: itself and
    two gradients, also in the first layer, since the embedding table wants a gradient. The two products of attention
    are followed by four, or five in a fused kernel, which computes the scores again.

    Args:
        config: as of `from_hf_config`.
        tokens: L, of each of `batch` sequences.
        context: S >= L, tokens in the cache included; L by default. A layer with a sliding window of W keeps W - 1 keys
            in the cache. Latent attention expands all S keys and values anew, as transformers 5.23 does.
        logits: last tokens of each sequence that the head is applied to; by default all.
        training: a forward and a backward pass, without cached keys.
        fused_attention: whether the backward pass is a fused kernel's; no matter unless training.

    Raises:
        InputError: an argument breaks its rule, or as `from_hf_config`.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> transformer_flops(tiny, tokens=5).logits == 2 * 5 * 32 * 64
    True
    """
    check_int("tokens", tokens, 1)
    check_int("batch", batch, 1)
    context = tokens if context is None else check_int("context", context, tokens)
    logits = tokens if logits is None else logits
    if not 0 <= logits <= tokens:
        raise InputError(f"logits must be between 0 and the {tokens} tokens, got {logits}")
    if training and context != tokens:
        raise InputError(f"context must be the {tokens} tokens when training, got {context}")
    model = from_hf_config(config)
    # Multiply-adds of a forward pass over all layers, and pairs of query and key.
    keys = model.layers * tokens + model.positions(context - tokens)
    expansion = model.expansion_weights
    projections = model.layers * tokens * (model.attention_weights - expansion) + keys * expansion
    pairs = model.heads * tokens * keys
    passes = 3 if training else 1  # forward; gradient of the activations; gradient of the weights
    attention = passes * pairs * (model.key_width + model.value_width)
    if training and fused_attention:
        attention += pairs * model.key_width  # the scores once more
    return TransformerFlops(
        projections=2 * batch * passes * projections,
        attention=2 * batch * attention,
        feed_forward=2 * batch * passes * tokens * model.feed_forward_weights(model.active),
        router=2 * batch * passes * tokens * model.router_weights,
        logits=2 * batch * passes * logits * model.table,
    )


def similarity_flops(rows: int, columns: int, width: int) -> int:
    """The matrix of products between embeddings (rows, width) and (columns, width).

    >>> similarity_flops(3, 5, 8)
    240
    """
    return 2 * rows * columns * width


def transformer_cache_bytes(config: Any, held: int, *, batch: int = 1, element_size: int = 2) -> int:
    """Bytes of keys and values that the cache of a causal language model keeps of `batch` times `held` tokens.

    `config` is as of `from_hf_config`; `element_size` is the bytes of a number, 2 in bfloat16. The cache is that of
    transformers 5.23. Raises `InputError` where an argument breaks its rule, or as `from_hf_config`.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> transformer_cache_bytes(tiny, held=10)  # keys and values of 2 layers, 32 wide, of 2 bytes
    2560
    """
    for name, value, least in (("held", held, 0), ("batch", batch, 1), ("element_size", element_size, 1)):
        check_int(name, value, least)
    model = from_hf_config(config)
    return batch * element_size * model.cache_width * model.positions(held)


def _attention(config: Any, family: str, width: int) -> dict[str, Any]:
    heads = _integer(config, "num_attention_heads")
    if family in _LATENT:
        turned = _integer(config, "qk_rope_head_dim")
        return {
            "heads": heads,
            "kv_heads": heads,
            "key_width": _integer(config, "qk_nope_head_dim") + turned,
            "value_width": _integer(config, "v_head_dim"),
            "query_rank": None if _field(config, "q_lora_rank") is None else _integer(config, "q_lora_rank"),
            "kv_rank": _integer(config, "kv_lora_rank"),
            "rope_width": turned,
        }
    size, pairs = _integer(config, "head_dim", width // heads), _integer(config, "num_key_value_heads", heads)
    return {"heads": heads, "kv_heads": pairs, "key_width": size, "value_width": size}


def _norms_and_biases(config: Any, family: str, width: int, sizes: dict[str, Any]) -> int:
    """Parameters of a layer that are in none of its matrices."""
    norms = width * (4 if family.startswith("gemma") else 2)
    biased = family not in _NO_ATTENTION_BIAS and bool(_field(config, "attention_bias", False))
    if family in _LATENT:
        latents = sizes["kv_rank"] + (sizes["query_rank"] or 0)
        return norms + latents + biased * (latents + sizes["rope_width"] + width)
    queries, keys = sizes["heads"] * sizes["key_width"], sizes["kv_heads"] * sizes["key_width"]
    if family in _HEAD_NORMS:
        norms += 2 * sizes["key_width"]
    elif family == "olmo2":
        norms += queries + keys
    elif family == "qwen2":
        norms += queries + 2 * keys  # biases, but none of the output
    elif family == "llama" and _field(config, "mlp_bias", False):
        norms += 2 * _integer(config, "intermediate_size") + width
    return norms + biased * (queries + 2 * keys + width)


def _experts(config: Any, family: str, layers: int) -> dict[str, Any]:
    shared, inner = 0, "moe_intermediate_size"
    if family == "mixtral":
        dense, experts, inner = 0, "num_local_experts", "intermediate_size"
    elif family == "qwen3_moe":
        step, never = _integer(config, "decoder_sparse_step"), _field(config, "mlp_only_layers") or ()
        dense = sum((layer + 1) % step != 0 or layer in never for layer in range(layers))
        # config.json says num_experts, what transformers writes may say num_local_experts.
        experts = "num_experts" if _field(config, "num_experts", None) is not None else "num_local_experts"
    elif family in _LATENT:
        dense, experts = min(_integer(config, "first_k_dense_replace"), layers), "n_routed_experts"
        shared = _integer(config, "n_shared_experts")
    else:
        return {}
    return {
        "dense_layers": dense,
        "experts": _integer(config, experts),
        "active": _integer(config, "num_experts_per_tok"),
        "shared": shared,
        "expert_width": _integer(config, inner),
    }


def _windows(config: Any, family: str, layers: int) -> dict[str, Any]:
    if family not in _WINDOWS_BY_LAYER | _ONE_WINDOW or not _field(config, "use_sliding_window", True):
        return {}
    if _field(config, "sliding_window") is None:
        return {}
    if family in _WINDOWS_BY_LAYER:
        kinds = _field(config, "layer_types")
        if not isinstance(kinds, list) or len(kinds) != layers:
            raise InputError(f"config.layer_types must be a list of {layers} names, got {kinds!r}")
        layers = kinds.count("sliding_attention")
    return {"window": _integer(config, "sliding_window"), "window_layers": layers}


_REQUIRED: Any = object()


def _field(config: Any, name: str, absent: Any = _REQUIRED) -> Any:
    value = config.get(name, absent) if isinstance(config, Mapping) else getattr(config, name, absent)
    if value is _REQUIRED:
        raise InputError(f"the config must have a field {name}, got none")
    return value


def _integer(config: Any, name: str, absent: int = _REQUIRED) -> int:
    """A whole number; `absent`, if given, where there is none or it is None."""
    value = _field(config, name, absent)
    return absent if value is None and absent is not _REQUIRED else check_int(f"config.{name}", value, 0)
