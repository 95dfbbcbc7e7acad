"""What it costs to serve a model: an estimate from its dimensions and a chip's datasheet, by a roofline.

The formulas are those of Pope et al. (arXiv 2211.05102), with mixture-of-experts layers and latent attention added.
Nothing here is measured. A roofline leaves out communication between chips, scheduling and kernels, and is 30 to 50 %
off: use ratios of costs, with the ranges that the efficiencies' intervals give.

B sequences served together; I input and O output tokens of each; n chips; b bytes of a weight; F peak FLOP/s and W
bytes/s of a chip; η_c and η_m the shares of F and W that are reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepa.errors import InputError
from jepa.operations.hardware import Hardware, number_format

Values = NDArray[np.float64]  # a figure, or an array of it over the intervals of what is uncertain


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
        window: tokens that a layer with a sliding window attends to.
        window_layers: how many layers have it.
        other_parameters: norms, biases and the like, in no matrix product that counts.

    Raises:
        InputError: a dimension breaks its rule.
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
        if self.window_layers and self.window is None:
            raise InputError("window must be given where window_layers is, got none")

    @property
    def dense(self) -> int:
        """Layers with a dense feed-forward block."""
        if self.dense_layers is not None:
            return self.dense_layers
        return 0 if self.experts else self.layers

    @property
    def attention_weights(self) -> int:
        """A: weights of one layer's projections."""
        d, h, qk, v = self.width, self.heads, self.key_width, self.value_width
        if self.kv_rank is None:
            return d * (h * qk + self.kv_heads * (qk + v)) + h * v * d
        query = d * h * qk if self.query_rank is None else self.query_rank * (d + h * qk)
        latent = d * (self.kv_rank + self.rope_width) + self.kv_rank * h * (qk - self.rope_width + v)
        return query + latent + h * v * d

    def _weights(self, experts: Any) -> Any:
        """Weights of all layers of which a layer with experts has this many routed ones."""
        matrices = 3 if self.gated else 2
        dense = self.dense * matrices * self.width * self.feed_forward
        block = (experts + self.shared) * matrices * self.width * self.expert_width + self.width * self.experts
        return self.layers * self.attention_weights + dense + (self.layers - self.dense) * block

    @property
    def parameters(self) -> int:
        """All of them: embeddings once where tied, norms and biases too."""
        tables = self.vocabulary * self.width * (1 if self.tied else 2)
        return int(self._weights(self.experts)) + tables + self.other_parameters

    @property
    def layer_parameters(self) -> int:
        """Parameters that a token is multiplied with, without the head."""
        return int(self._weights(self.active))

    @property
    def active_parameters(self) -> int:
        """N_act: parameters that a token is multiplied with, the head included, the input table not."""
        return self.layer_parameters + self.vocabulary * self.width

    def touched(self, tokens: float) -> float:
        """U: distinct experts of a layer that `tokens` tokens reach, E·(1 − (1 − k/E)^tokens), routing being even."""
        return self.experts * (1 - (1 - self.active / self.experts) ** tokens) if self.experts else 0.0

    def read_weights(self, tokens: float) -> float:
        """Weights read for one forward pass over `tokens` tokens, head included."""
        return float(self._weights(self.touched(tokens))) + self.vocabulary * self.width

    @property
    def cache_width(self) -> int:
        """Numbers that one layer keeps of one token: 2·K·h, or d_c + d_r with latent attention."""
        if self.kv_rank is not None:
            return self.kv_rank + self.rope_width
        return self.kv_heads * (self.key_width + self.value_width)

    def cached(self, tokens: float) -> float:
        """Numbers in the KV cache of one sequence of `tokens` tokens."""
        seen = tokens if self.window is None else min(tokens, self.window)
        return self.cache_width * ((self.layers - self.window_layers) * tokens + self.window_layers * seen)

    def prefill_flops(self, tokens: float) -> float:
        """FLOPs of reading `tokens` tokens of one sequence: 2·N_act·I + L·H·(d_qk + d_v)·I².

        Attention is counted over the pairs that its mask leaves: half of all if causal.
        """
        seen = tokens if self.window is None else min(tokens, self.window)
        whole = tokens * tokens / 2 if self.causal else tokens * tokens
        windowed = seen * tokens - seen * seen / 2 if self.causal else whole
        pairs = (self.layers - self.window_layers) * whole + self.window_layers * windowed
        return 2 * self.active_parameters * tokens + 2 * self.heads * (self.key_width + self.value_width) * pairs


_FAMILIES = (
    "deepseek_v3", "gemma2", "gemma3_text", "llama", "ministral3", "mistral", "mistral4", "mixtral", "olmo2", "qwen2",
    "qwen3", "qwen3_moe",
)  # fmt: skip


def from_hf_config(config: Any) -> Dimensions:
    """The dimensions of a causal language model of Hugging Face transformers 5.

    Args:
        config: a `PreTrainedConfig`, as `AutoConfig` makes it of a `config.json`; of several parts, the text's.

    Raises:
        InputError: `model_type` is a family that is not known here.
    """
    config = config.get_text_config()
    family, layers, width, heads = (
        config.model_type,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
    )
    if family not in _FAMILIES:
        raise InputError(f"config.model_type must be one of {', '.join(_FAMILIES)}, got {family!r}")
    latent = family in ("deepseek_v3", "mistral4")
    sizes: dict[str, Any] = {}
    if latent:
        size = config.qk_nope_head_dim + config.qk_rope_head_dim
        sizes |= {
            "query_rank": config.q_lora_rank,
            "kv_rank": config.kv_lora_rank,
            "rope_width": config.qk_rope_head_dim,
        }
        pairs, value = heads, config.v_head_dim
        norms = layers * (2 * width + config.kv_lora_rank + (config.q_lora_rank or 0)) + width
    else:
        size = value = getattr(config, "head_dim", None) or width // heads
        pairs = config.num_key_value_heads or heads
        norms = layers * (4 if family in ("gemma2", "gemma3_text") else 2) * width + width
        if family in ("qwen3", "qwen3_moe", "gemma3_text"):
            norms += layers * 2 * size  # of queries and keys, head by head
        elif family == "olmo2":
            norms += layers * (heads + pairs) * size
        elif family == "qwen2":
            norms += layers * (heads + 2 * pairs) * size  # biases
    if family == "mixtral":
        sizes |= {"experts": config.num_local_experts, "expert_width": config.intermediate_size, "dense_layers": 0}
    elif family == "qwen3_moe":
        routed = [
            (layer + 1) % config.decoder_sparse_step == 0 and layer not in config.mlp_only_layers
            for layer in range(layers)
        ]
        sizes |= {"experts": config.num_experts, "expert_width": config.moe_intermediate_size}
        sizes["dense_layers"] = layers - sum(routed)
    elif latent:
        sizes |= {"experts": config.n_routed_experts, "shared": config.n_shared_experts}
        sizes |= {
            "expert_width": config.moe_intermediate_size,
            "dense_layers": min(config.first_k_dense_replace, layers),
        }
    if "experts" in sizes:
        sizes["active"] = config.num_experts_per_tok
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if window is not None:
        slides = kinds.count("sliding_attention") if kinds else layers
        sizes |= {"window": window, "window_layers": slides} if slides else {}
    return Dimensions(
        layers=layers,
        width=width,
        heads=heads,
        kv_heads=pairs,
        key_width=size,
        value_width=value,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        other_parameters=norms,
        **sizes,
    )


@dataclass(frozen=True)
class Perception:
    """What runs at every step of a stream.

    Args:
        parts: name → dimensions.
        tokens: name → tokens that the part reads at a step.
    """

    parts: Mapping[str, Dimensions]
    tokens: Mapping[str, int]

    def __post_init__(self) -> None:
        if set(self.parts) != set(self.tokens):
            raise InputError(f"tokens must name the parts {', '.join(self.parts)}, got {', '.join(self.tokens)}")
        for name, value in self.tokens.items():
            if type(value) is not int or value < 1:
                raise InputError(f"tokens.{name} must be a whole number >= 1, got {value!r}")


@dataclass(frozen=True)
class Workload:
    """What is asked of the service.

    Args:
        input_tokens: I, of a request, >= 0.
        output_tokens: O, of a request, > 0. It may be a fraction, such as a mean.
        batch: B, requests (or streams) served together, >= 1.
        steps: perception's steps in a unit of work, such as a second of stream; 0 without a stream.
        requests: requests in that unit; 1 without a stream, so that the unit is a request.

    Raises:
        InputError: a figure breaks its rule.
    """

    input_tokens: float
    output_tokens: float
    batch: int
    steps: float = 0.0
    requests: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("input_tokens", 0), ("batch", 1), ("steps", 0), ("requests", 0)):
            if not getattr(self, name) >= low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.output_tokens > 0:
            raise InputError(f"output_tokens must be > 0, got {self.output_tokens}")


@dataclass(frozen=True)
class Service:
    """A model on a chip.

    Args:
        model: answers the requests.
        hardware: of each of its chips.
        weights: number format of the weights and of the computation.
        cache: number format of the KV cache.
        perception: runs at every step of the stream, on the same chips; None without a stream.
        input_per_step: tokens that the model reads with every request beside the workload's, such as those of an image.
        chips: n; None takes the least power of two that the model fits in.
        memory_share: how much of the memory weights and cache may take.

    Raises:
        InputError: the chip does not compute in that format, or a figure breaks its rule.
    """

    model: Dimensions
    hardware: Hardware
    weights: str
    cache: str
    perception: Perception | None = None
    input_per_step: int = 0
    chips: int | None = None
    memory_share: float = 0.9

    def __post_init__(self) -> None:
        self.hardware.peak(self.weights)
        number_format(self.cache)
        if self.chips is not None and self.chips < 1:
            raise InputError(f"chips must be >= 1, got {self.chips}")
        if not 0 < self.memory_share <= 1:
            raise InputError(f"memory_share must be > 0 and <= 1, got {self.memory_share}")

    def memory(self, workload: Workload) -> dict[str, float]:
        """Bytes of the weights, and of the KV caches of a full batch at its longest."""
        size = number_format(self.weights)
        weights = self.model.parameters + sum(part.parameters for part in self._parts().values())
        tokens = workload.input_tokens + self.input_per_step + workload.output_tokens
        cache = workload.batch * self.model.cached(tokens) * number_format(self.cache)
        return {"weights": weights * size, "cache": cache}

    def _parts(self) -> Mapping[str, Dimensions]:
        return self.perception.parts if self.perception is not None else {}

    def chips_for(self, workload: Workload) -> int:
        """n, such that the memory is enough.

        Raises:
            InputError: `chips` are too few, or none are given and 1,024 are too few.
        """
        need = sum(self.memory(workload).values())
        room = self.hardware.memory * self.memory_share
        if self.chips is None:
            chips = next((2**power for power in range(11) if need <= room * 2**power), None)
            limit = 1024
        else:
            chips, limit = (self.chips if need <= room * self.chips else None), self.chips
        if chips is None:
            raise InputError(
                f"the model and its caches must fit in {limit} × {self.hardware.name} ({limit * room / 1e9:,.1f} GB of "
                f"their memory may be used), got {need / 1e9:,.1f} GB at batch {workload.batch}"
            )
        return chips


@dataclass(frozen=True)
class Cost:
    """An estimate of one unit of work.

    Args:
        chips: n.
        parts: name → chip-seconds of perception's parts, `prefill` and `decode`.
        regions: name → what bounds the part: "compute", "memory: weights" or "memory: cache".
        seconds: of a request, from its start to its last token: prefill alone and all decode steps.
        joules: at the module's highest power; None if that is unknown.
    """

    chips: int
    parts: Mapping[str, Values]
    regions: Mapping[str, str]
    seconds: Values
    joules: Values | None

    @property
    def chip_seconds(self) -> Values:
        """All parts together."""
        return np.sum(np.broadcast_arrays(*self.parts.values()), axis=0)


def serving_cost(
    service: Service,
    workload: Workload,
    compute: float | Values,
    memory: float | Values,
    requests: float | Values = 1.0,
) -> Cost:
    """Chip-seconds, seconds and joules of a unit of work.

        prefill = max(FLOPs of I tokens/(F·η_c), b·weights read for B·I tokens/(B·W·η_m))
        decode step = max(2·B·N_act/(F·η_c), b·weights read for B tokens/(W·η_m)) + B·s·κ/(W·η_m)

    where s is the mean context I + O/2 and κ a token's bytes in the cache; a request costs prefill + O/B decode steps.
    Both are in chip-seconds, so that n drops out; it decides what fits, and how long a request takes. In the prefill,
    the requests of a batch share the reading of the weights.

    Args:
        service: the model and its chips.
        workload: what is asked.
        compute: η_c; an array gives an array of costs, broadcast with the others.
        memory: η_m.
        requests: factor on the workload's requests, for an uncertain one.

    Raises:
        InputError: the model does not fit.
    """
    chips = service.chips_for(workload)
    flops = service.hardware.peak(service.weights) * np.asarray(compute, dtype=np.float64)
    bandwidth = service.hardware.bandwidth * np.asarray(memory, dtype=np.float64)
    size, batch, model = number_format(service.weights), workload.batch, service.model
    parts: dict[str, Values] = {}
    regions: dict[str, str] = {}

    def add(name: str, computing: Values, weights: Values, cache: Values, times: float | Values) -> Values:
        bound = np.maximum(computing, weights)
        parts[name] = (bound + cache) * times
        middle = [float(np.median(figure)) for figure in (computing, weights, cache)]
        largest = max(middle[0], middle[1])
        kind = "compute" if middle[0] >= middle[1] else "memory: weights"
        regions[name] = "memory: cache" if middle[2] > largest else kind
        return bound + cache

    nothing = np.float64(0.0) * bandwidth
    for name, part in service._parts().items():
        assert service.perception is not None
        tokens = service.perception.tokens[name]
        computing, reading = part.prefill_flops(tokens) / flops, size * part.read_weights(batch * tokens) / bandwidth
        add(name, computing, reading / batch, nothing, workload.steps)

    number = workload.requests * np.asarray(requests, dtype=np.float64)
    context = workload.input_tokens + service.input_per_step
    prefill = np.asarray(nothing)
    if context:
        computing, reading = (
            model.prefill_flops(context) / flops,
            size * model.read_weights(batch * context) / bandwidth,
        )
        prefill = add("prefill", computing, reading / batch, nothing, number)
    held = model.cached(context + workload.output_tokens / 2) * number_format(service.cache) / bandwidth
    computing, reading = 2 * model.active_parameters / flops, size * model.read_weights(batch) / bandwidth
    token = add("decode", computing, reading / batch, held, number * workload.output_tokens)
    seconds = (prefill + workload.output_tokens * batch * token) / chips
    total = np.sum(np.broadcast_arrays(*parts.values()), axis=0)
    watts = service.hardware.watts
    return Cost(chips, parts, regions, seconds, None if watts is None else total * watts)
