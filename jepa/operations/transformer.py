"""A transformer by its dimensions: parameters, weights in a token's matrix products and numbers in the cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from jepa.errors import InputError

Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Dimensions:
    """A transformer by its dimensions, from which parameters, FLOPs and bytes follow.

    Args:
        layers: L.
        width: d, of the hidden states.
        heads: H, of the queries.
        key_width: d_qk, of a query and a key of one head.
        value_width: d_v, of a value of one head.
        kv_heads: K, of the keys and values; with latent attention (`kv_rank`) it has no meaning and is `heads`.
        query_rank: of the queries' low-rank projection (latent attention alone); None has them from the full width.
        kv_rank: d_c, the cached latent of latent attention (MLA, arXiv 2405.04434, section 2.1), or None.
        rope_width: d_r, the cached key of latent attention that carries the position, a part of `key_width`.
        dense_layers: how many layers have a dense feed-forward block; the others have experts.
        feed_forward: inner width of a dense block.
        gated: whether a block has three matrices (SwiGLU) or two.
        experts: E, routed experts of a layer.
        active: k, experts that each token is routed to.
        shared: S, experts that every token passes.
        expert_width: d_e, inner width of an expert.
        vocabulary: V; 0 has neither table nor head.
        tied: whether the head is the input table.
        causal: whether a token attends to earlier ones only, or to all.
        window: W, tokens that a layer with a sliding window attends to, itself included.
        window_layers: how many layers have it.
        other_parameters: norms, biases and the like, in no matrix product that counts.

    Raises:
        InputError: a dimension breaks its rule.

    >>> layers = Dimensions(2, width=64, heads=4, key_width=16, value_width=16, kv_heads=4, feed_forward=256)
    >>> layers.parameters == 2 * (4 * 64**2 + 3 * 64 * 256)
    True
    """

    layers: int
    width: int
    heads: int
    key_width: int
    value_width: int
    kv_heads: int
    feed_forward: int = 0
    dense_layers: int | None = None
    gated: bool = True
    query_rank: int | None = None
    kv_rank: int | None = None
    rope_width: int = 0
    experts: int = 0
    active: int = 0
    shared: int = 0
    expert_width: int = 0
    vocabulary: int = 0
    tied: bool = False
    causal: bool = True
    window: int | None = None
    window_layers: int = 0
    other_parameters: int = 0

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(("layers", "width", "heads", "key_width", "value_width", "kv_heads"), 1)
        names = ("feed_forward", "rope_width", "experts", "active", "shared", "expert_width", "vocabulary")
        lowest |= dict.fromkeys((*names, "window_layers", "other_parameters"), 0)
        lowest |= {"window": 1} if self.window_layers else {}
        for name, low in lowest.items():
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise InputError(f"{name} must be a whole number >= {low}, got {value!r}")
        if not 0 <= self.dense <= self.layers:
            raise InputError(f"dense_layers must be between 0 and the {self.layers} layers, got {self.dense_layers}")
        if not 0 <= self.window_layers <= self.layers:
            raise InputError(f"window_layers must be between 0 and the {self.layers} layers, got {self.window_layers}")
        if self.active > self.experts or (self.dense < self.layers and not self.active):
            raise InputError(f"active must be between 1 and the {self.experts} experts, got {self.active}")

    @property
    def dense(self) -> int:
        """Layers with a dense feed-forward block."""
        if self.dense_layers is not None:
            return self.dense_layers
        return 0 if self.experts else self.layers

    @property
    def attention_weights(self) -> int:
        """A: weights of one layer's projections, `expansion_weights` among them."""
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
        """Weights of all layers' feed-forward blocks, of which a layer with experts has this many routed ones."""
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
    def layer_parameters(self) -> int:
        """Parameters that a token is multiplied with, without the head."""
        return self._weights(self.active)

    @property
    def active_parameters(self) -> int:
        """N_act: parameters that a token is multiplied with, the head included, the input table not."""
        return self.layer_parameters + self.table

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
        """Positions that all layers' caches keep of one sequence of `tokens` tokens: W − 1 at most with a window."""
        kept = tokens if self.window is None else min(tokens, self.window - 1)
        return (self.layers - self.window_layers) * tokens + self.window_layers * kept

    def cached(self, tokens: Number) -> Number:
        """Numbers in the KV cache of one sequence of `tokens` tokens."""
        return self.cache_width * self.positions(tokens)

    def prefill_flops(self, tokens: float) -> float:
        """FLOPs of reading `tokens` tokens of one sequence: 2·N_act·I + L·H·(d_qk + d_v)·I².

        Attention is counted over the pairs that its mask leaves: half of all if causal.
        """
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
    """The dimensions of a causal language model of Hugging Face transformers 5.

    Args:
        config: a mapping, such as a language model's `config.json`, or a `PreTrainedConfig`; of a `PreTrainedConfig`
            of several parts, the text's. Its `model_type` is one of `FAMILIES`.

    Raises:
        InputError: a config of another family, or with a field missing or of the wrong kind.
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
        config: as of `from_hf_config`.
        tokens: L, >= 1.
        batch: B, >= 1.
        context: S, >= L; L without a cache, which is the default. A layer with a sliding window of W keeps W - 1 keys
            in the cache, so that it has at most W - 1 + L. Latent attention expands all S keys and values anew,
            as transformers 5.23 does.
        logits: last tokens of each sequence that the head is applied to, from 0 to L; by default all.
        training: a forward and a backward pass in place of a forward pass.
        fused_attention: whether the backward pass is a fused kernel's; no matter unless training.

    Raises:
        InputError: an argument breaks its rule; `training` with cached keys; or as `from_hf_config`.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> transformer_flops(tiny, tokens=5).logits == 2 * 5 * 32 * 64
    True
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


def similarity_flops(rows: int, columns: int, width: int, *, training: bool = False) -> int:
    """The matrix of products between embeddings (rows, width) and (columns, width) that a contrastive loss takes.

    >>> similarity_flops(3, 5, 8)
    240
    """
    return 2 * (3 if training else 1) * rows * columns * width


def transformer_cache_bytes(config: Any, held: int, *, batch: int = 1, element_size: int = 2) -> int:
    """Bytes of keys and values in the cache of a causal language model, which the pass after them reads.

    Two vectors for each key head and layer, 2·K·h; with latent attention the latent and the turned key, d_c + d_r,
    as transformers 5.23 keeps them. A layer with a sliding window of W keeps W - 1 positions at most.

    Args:
        config: as of `transformer_flops`.
        held: tokens in the cache, >= 0.
        batch: B, >= 1.
        element_size: bytes of a number: 2 in bfloat16.

    Raises:
        InputError: an argument breaks its rule, or as `transformer_flops`.

    >>> tiny = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    >>> tiny |= {"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 64}
    >>> transformer_cache_bytes(tiny, held=10)  # keys and values of 2 layers, 32 wide, of 2 bytes
    2560
    """
    for name, value, lowest in (("held", held, 0), ("batch", batch, 1), ("element_size", element_size, 1)):
        if value < lowest:
            raise InputError(f"{name} must be >= {lowest}, got {value}")
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
    size = width // heads if _field(config, "head_dim", None) is None else _integer(config, "head_dim")
    pairs = heads if _field(config, "num_key_value_heads", None) is None else _integer(config, "num_key_value_heads")
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


_REQUIRED = object()


def _field(config: Any, name: str, absent: Any = _REQUIRED) -> Any:
    value = config.get(name, absent) if isinstance(config, Mapping) else getattr(config, name, absent)
    if value is _REQUIRED:
        raise InputError(f"the config must have a field {name}, got none")
    return value


def _integer(config: Any, name: str) -> int:
    value = _field(config, name)
    if type(value) is not int or value < 0:
        raise InputError(f"config.{name} must be a whole number >= 0, got {value!r}")
    return value
