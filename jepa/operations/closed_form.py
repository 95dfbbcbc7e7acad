"""Floating-point operations and key/value bytes from sizes alone: of decoder-only transformers and of our own models.

B: sequences; L: tokens of each that are processed; S: keys that they attend to, cached ones included; D: hidden width;
E: embedding dimensions; V: vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

from jepa.errors import InputError
from jepa.operations.dimensions import from_hf_config


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


def one_pass_flops(
    config: Any, rows: int, tokens: int, trained: int, *, training: bool = False, fused_attention: bool = False
) -> TransformerFlops:
    """An LLM-JEPA's pass over packed rows (`LLMJEPA.forward`): all views in one pass, logits where labels are trained.

    A row's mask of segments does not lower the count. The embeddings are states picked from the last layer, which
    costs nothing; what a loss makes of them is its own (`similarity_flops`).

    Args:
        config: as of `transformer_flops`.
        rows: R, packed rows.
        tokens: L of each row, padding included.
        trained: positions of all rows that get logits.
        training, fused_attention: as of `transformer_flops`.

    Raises:
        InputError: as `transformer_flops`.
    """
    layers = transformer_flops(config, tokens, batch=rows, logits=0, training=training, fused_attention=fused_attention)
    return replace(layers, logits=2 * (3 if training else 1) * trained * from_hf_config(config).table)


def similarity_flops(rows: int, columns: int, width: int, *, training: bool = False) -> int:
    """The matrix of products between embeddings (rows, width) and (columns, width) that a contrastive loss takes."""
    return 2 * (3 if training else 1) * rows * columns * width


def block_flops(
    batch: int,
    tokens: int,
    *,
    width: int,
    depth: int,
    inner: int,
    cached: int = 0,
    training: bool = False,
    fused_attention: bool = False,
) -> int:
    """`depth` transformer blocks with full heads and a two-layer MLP, over (B, L, D); training as `transformer_flops`.

    Args:
        batch: B.
        tokens: L, those that are computed.
        width: D.
        inner: width of the MLP's hidden layer.
        cached: keys before these tokens that are in a cache.
        training: a forward and a backward pass, every parameter and the input with a gradient.
        fused_attention: whether the backward pass of the attention is a fused kernel's.
    """
    weights = tokens * (4 * width**2 + 2 * width * inner)
    product = tokens * (cached + tokens) * width  # one of the two of attention: scores; their product with the values
    products = (7 if fused_attention else 6) if training else 2
    return 2 * batch * depth * ((3 if training else 1) * weights + products * product)


def frame_vit_flops(
    slots: int,
    *,
    size: int,
    patch: int,
    tubelet: int,
    width: int,
    depth: int,
    inner: int,
    training: bool = False,
    fused_attention: bool = False,
) -> int:
    """X-Encoder (`FrameViT` over a plain ViT) of so many time slots, all clips together.

    The pixels have no gradient, so that the first convolution's backward pass is that of its weights alone.

    Args:
        slots: groups of `tubelet` frames.
        size: pixels of a side.
        patch: pixels of a patch's side.
        width, depth, inner, training, fused_attention: as of `block_flops`.
    """
    patches = (size // patch) ** 2
    first = (size // 4) ** 2 * (width // 2) * 3 * tubelet * 4**2
    second = patches * width * (width // 2) * 3**2
    stem = slots * (first * (2 if training else 1) + second * (3 if training else 1))
    return 2 * stem + block_flops(
        slots, patches, width=width, depth=depth, inner=inner, training=training, fused_attention=fused_attention
    )


def text_transformer_flops(
    batch: int,
    tokens: int,
    *,
    width: int,
    depth: int,
    inner: int,
    embedding_dim: int,
    training: bool = False,
    fused_attention: bool = False,
) -> int:
    """Y-Encoder (`TextTransformer`): blocks over B texts padded to L tokens, and the head over their means.

    Args:
        embedding_dim: E.
        batch, tokens, width, depth, inner, training, fused_attention: as of `block_flops`.
    """
    head = batch * width * embedding_dim
    return 2 * (3 if training else 1) * head + block_flops(
        batch, tokens, width=width, depth=depth, inner=inner, training=training, fused_attention=fused_attention
    )


class Mixture(Protocol):
    """Sizes of sparse experts, as `jepa.predictors.experts.Mixture` has them."""

    @property
    def experts(self) -> int: ...
    @property
    def top_k(self) -> int: ...
    @property
    def hidden(self) -> int: ...
    @property
    def shared(self) -> int: ...


def query_predictor_flops(
    batch: int,
    states: int,
    tokens: int,
    *,
    state_dim: int,
    width: int,
    depth: int,
    embedding_dim: int,
    inner: int | None = None,
    mixture: Mixture | None = None,
    real: int | None = None,
    training: bool = False,
    fused_attention: bool = False,
) -> int:
    """Predictor (`QueryPredictor`): the states' projection, blocks over states and query together, the head.

    When training, the states have a gradient: the X-Encoder is trained as well. Sparse experts multiply a token by the
    router and by two matrices of each routed expert that is active and of each shared one; they skip padding.

    Args:
        states: N visual states of each of the B clips.
        tokens: L of the padded queries.
        state_dim: width of the states.
        embedding_dim: E.
        inner: width of a dense MLP's hidden layer; or
        mixture: sparse experts in the place of the MLPs.
        real: states and tokens of all B clips that are no padding, for a mixture; None: all B·(N + L).
        batch, width, depth, training, fused_attention: as of `block_flops`.

    Raises:
        InputError: not one of `inner` and `mixture`; `real` without a mixture, or not from B·N to B·(N + L).
    """
    if (inner is None) == (mixture is None):
        raise InputError(f"give one of inner and mixture, got {inner} and {mixture}")
    if real is not None and mixture is None:
        raise InputError(f"real must be None without a mixture, got {real}")
    places = batch * (states + tokens)
    real = places if real is None else real
    if not batch * states <= real <= places:
        raise InputError(f"real must be between {batch * states} and {places}, got {real}")
    linear = batch * (states * state_dim * width + width * embedding_dim)
    if mixture is not None:
        active = (mixture.top_k + mixture.shared) * 2 * width * mixture.hidden
        linear += depth * real * (width * mixture.experts + active)
    return 2 * (3 if training else 1) * linear + block_flops(
        batch,
        states + tokens,
        width=width,
        depth=depth,
        inner=inner or 0,
        training=training,
        fused_attention=fused_attention,
    )


def token_vlm_flops(
    config: Any,
    states: int,
    query: int,
    tokens: int,
    *,
    state_dim: int,
    batch: int = 1,
    cached: bool = False,
    training: bool = False,
    fused_attention: bool = False,
) -> int:
    """The token-space baseline (`TokenVLM`) after its X-Encoder: the states' projection, and the language model.

    When training, the states have a gradient: the X-Encoder is trained as well.

    Args:
        config: of the language model, as of `transformer_flops`.
        states: N visual states of each clip.
        query: tokens of the padded queries, >= 0.
        tokens: T of the padded answers, the end tokens included, >= 1.
        state_dim: width of the states.
        batch: B clips, each with a query and an answer.
        cached: answers generated one token after the other with a key/value cache (`answer`), in place of known ones
            at once (`forward`).
        training, fused_attention: as of `transformer_flops`.

    Raises:
        InputError: both `cached` and `training`; fewer than 1 state or token; or as `transformer_flops`.
    """
    if cached and training:
        raise InputError("cached must be false when training, got true")
    for name, value, lowest in (("states", states, 1), ("query", query, 0), ("tokens", tokens, 1)):
        if value < lowest:
            raise InputError(f"{name} must be >= {lowest}, got {value}")
    projection = 2 * (3 if training else 1) * batch * states * state_dim * from_hf_config(config).width
    prompt = states + query
    if not cached:
        known: dict[str, Any] = {"logits": tokens, "training": training, "fused_attention": fused_attention}
        return projection + transformer_flops(config, prompt + tokens - 1, batch=batch, **known).total
    first = transformer_flops(config, prompt, batch=batch, logits=1).total
    further = (transformer_flops(config, 1, batch=batch, context=prompt + step).total for step in range(1, tokens))
    return projection + first + sum(further)


def prefix_decoder_flops(
    batch: int,
    tokens: int,
    *,
    prefix: int,
    width: int,
    depth: int,
    vocab_size: int,
    embedding_dim: int,
    cached: bool = False,
    training: bool = False,
) -> int:
    """Y-Decoder (`PrefixDecoder`): B texts of L tokens each, the end token included.

    Args:
        prefix: positions made from the embedding.
        embedding_dim: E.
        cached: generated one by one with a key/value cache (`generate`), in place of all at once (`forward`).
        training: a forward and a backward pass over the texts at once; the embeddings have no gradient.
        batch, width, depth: as of `block_flops`.

    Raises:
        InputError: both `cached` and `training`.
    """
    if cached and training:
        raise InputError("cached must be false when training, got true")
    project, logits = embedding_dim * prefix * width, tokens * width * vocab_size
    total = 2 * batch * (project * (2 if training else 1) + logits * (3 if training else 1))

    def blocks(count: int, held: int = 0) -> int:
        return block_flops(batch, count, width=width, depth=depth, inner=4 * width, cached=held, training=training)

    if not cached:
        return total + blocks(prefix + tokens - 1)
    return total + blocks(prefix) + sum(blocks(1, prefix + step) for step in range(tokens - 1))


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
    """
    for name, value, lowest in (("held", held, 0), ("batch", batch, 1), ("element_size", element_size, 1)):
        if value < lowest:
            raise InputError(f"{name} must be >= {lowest}, got {value}")
    model = from_hf_config(config)
    return batch * element_size * model.cache_width * model.positions(held)
