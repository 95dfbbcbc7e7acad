"""The closed forms against what transformers' models and our own execute, hold and keep in their caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import tiny_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from jepa.data.packing import IGNORE, pack
from jepa.decoders.prefix import PrefixDecoder
from jepa.encoders.text import TextTransformer
from jepa.encoders.vision import FrameViT
from jepa.errors import InputError
from jepa.losses.infonce import InfoNCE
from jepa.models.vl_jepa import set_fused_attention
from jepa.operations import (
    FAMILIES,
    count_flops,
    frame_vit_flops,
    from_hf_config,
    one_pass_flops,
    prefix_decoder_flops,
    query_predictor_flops,
    similarity_flops,
    text_transformer_flops,
    token_vlm_flops,
    transformer_cache_bytes,
    transformer_flops,
    weight_bytes,
)
from jepa.predictors.experts import Mixture
from jepa.predictors.transformer import QueryPredictor
from jepa.pretrained import extend

BATCH, TOKENS = 2, 7


# Decoder-only transformers

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOWS = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
LATENT = EXPERTS | {
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 4,
    "v_head_dim": 20,
}
CASES = {
    "llama": ("Llama", "LlamaConfig", {}),
    "olmo2": ("Olmo2", "Olmo2Config", {}),
    "mistral": ("Mistral", "MistralConfig", {"sliding_window": 4}),
    "ministral3": ("Ministral3", "Ministral3Config", {"sliding_window": 4, "head_dim": 16}),
    "qwen2": ("Qwen2", "Qwen2Config", {}),
    "qwen2, windows": (
        "Qwen2",
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3", "Qwen3Config", {"head_dim": 16}),
    "qwen3, windows": ("Qwen3", "Qwen3Config", WINDOWS | {"use_sliding_window": True}),
    "gemma2": ("Gemma2", "Gemma2Config", WINDOWS),
    "gemma3_text": ("Gemma3", "Gemma3TextConfig", WINDOWS),
    "mixtral": ("Mixtral", "MixtralConfig", {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        "Qwen3MoeConfig",
        EXPERTS | {"num_experts": 4, "head_dim": 16, "decoder_sparse_step": 2, "mlp_only_layers": [3]},
    ),
    "qwen3_moe, windows": (
        "Qwen3Moe",
        "Qwen3MoeConfig",
        EXPERTS | {"num_experts": 4, "mlp_only_layers": [1], "use_sliding_window": True, "sliding_window": 4},
    ),
    "mixtral, windows": (
        "Mixtral",
        "MixtralConfig",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    ),
    "deepseek_v3": ("DeepseekV3", "DeepseekV3Config", LATENT | {"n_shared_experts": 2}),
    "deepseek_v3, full queries": ("DeepseekV3", "DeepseekV3Config", LATENT | {"q_lora_rank": None}),
    "mistral4": ("Mistral4", "Mistral4Config", LATENT | {"v_head_dim": 12}),
}
MIXTURES = [name for name in CASES if name.startswith(("mixtral", "qwen3_moe", "deepseek", "mistral4"))]
RUNS = [
    *((name, "eager", "eager") for name in CASES),
    *((name, "sdpa", "eager") for name in CASES if name != "gemma2"),  # its capped scores have no fused kernel
    *((name, "sdpa", "grouped_mm") for name in MIXTURES),
]


def configuration(name: str, attention: str = "eager") -> Any:
    _, config, options = CASES[name]
    return getattr(transformers, config)(**SMALL | options, attn_implementation=attention)


def build(name: str, attention: str, experts: str) -> Any:
    torch.manual_seed(0)
    model = getattr(transformers, f"{CASES[name][0]}ForCausalLM")(configuration(name, attention))
    if name in MIXTURES:
        model.set_experts_implementation(experts)
    return model


IDS = torch.randint(3, 64, (BATCH, TOKENS), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "attention", "experts"), RUNS)
def test_closed_form_is_what_runs(name, attention, experts):
    model = build(name, attention, experts)
    with torch.no_grad():
        forward = count_flops(lambda: extend(model, None, input_ids=IDS, use_cache=True))
        _, cache = forward.result
        cached = count_flops(lambda: extend(model, cache, input_ids=IDS[:, :2], logits_to_keep=1))
    assert transformer_flops(model.config, TOKENS, batch=BATCH).total == forward.total
    assert transformer_flops(model.config, 2, batch=BATCH, context=TOKENS + 2, logits=1).total == cached.total

    step = count_flops(lambda: model(input_ids=IDS, labels=IDS).loss.backward())
    fused = any("_scaled_dot_product" in operator for operator in step.by_operator)
    assert fused == (attention == "sdpa" and "deepseek" not in name)  # keys wider than values have no fused CPU kernel
    closed = transformer_flops(model.config, TOKENS, batch=BATCH, training=True, fused_attention=fused)
    assert closed.total == step.total


def test_every_family_is_run():
    assert {configuration(name).model_type for name in CASES} == set(FAMILIES)


@pytest.mark.parametrize("name", CASES)
def test_a_mapping_gives_what_the_object_gives(name):
    config = configuration(name)
    assert transformer_flops(config.to_dict(), 5, context=9) == transformer_flops(config, 5, context=9)


def test_of_several_parts_the_text_counts():
    text = configuration("ministral3")
    assert from_hf_config(transformers.Mistral3Config(text_config=text)) == from_hf_config(text)


def test_torch_alone_misses_grouped_experts():
    model = build("mixtral", "eager", "grouped_mm")
    with torch.no_grad(), FlopCounterMode(display=False) as untouched:
        model(input_ids=IDS)
    closed = transformer_flops(model.config, TOKENS, batch=BATCH)
    assert untouched.get_total_flops() == closed.total - closed.feed_forward


def test_parts_by_hand():
    """Llama: 32 wide, 4 heads of 8, 2 of keys, 4 layers, 5 tokens."""
    flops = transformer_flops({"model_type": "llama"} | SMALL, 5)
    assert flops.projections == 4 * 2 * 5 * (32 * 32 + 2 * 32 * 16 + 32 * 32)
    assert flops.attention == 4 * 2 * 2 * 4 * 5 * 5 * 8
    assert flops.feed_forward == 4 * 2 * 5 * 3 * 32 * 48
    assert flops.logits == 2 * 5 * 32 * 64
    assert flops.router == 0


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"tokens": 0}, "tokens must be >= 1, got 0"),
        ({}, {"batch": 0}, "batch must be >= 1, got 0"),
        ({}, {"context": 4}, "context must be >= 5, got 4"),
        ({}, {"logits": 6}, "logits must be between 0 and the 5 tokens, got 6"),
        ({}, {"context": 6, "training": True}, "context must be the 5 tokens when training, got 6"),
        ({"model_type": "gpt2"}, {}, "config.model_type must be one of .*, got 'gpt2'"),
        ({"hidden_size": 2.5}, {}, "config.hidden_size must be a whole number >= 0, got 2.5"),
        (
            {"model_type": "gemma2", "sliding_window": 4, "layer_types": ["sliding_attention"]},
            {},
            r"config.layer_types must be a list of 4 names, got \['sliding_attention'\]",
        ),
        ({"model_type": "mixtral", "sliding_window": None}, {}, "the config must have a field num_local_experts"),
    ],
)
def test_bad_input_is_refused(changes, arguments, message):
    with pytest.raises(InputError, match=message):
        transformer_flops({"model_type": "llama"} | SMALL | changes, **{"tokens": 5} | arguments)


# Parameters, and bytes of the cache


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_parameters_are_those_of_the_model(name, tied, biased):
    config = configuration(name)
    config.tie_word_embeddings = tied
    config.attention_bias = config.mlp_bias = biased
    with torch.device("meta"):
        model = getattr(transformers, f"{CASES[name][0]}ForCausalLM")(config)
    found = from_hf_config(config)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.table == model.get_input_embeddings().weight.numel() == model.get_output_embeddings().weight.numel()
    assert found.tied == tied
    once = transformer_flops(config, 1)
    assert once.total - once.attention == 2 * found.active_parameters
    if name not in MIXTURES:  # all but norms and biases, and the table unless it is the head
        vectors = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim == 1)
        assert found.active_parameters == found.parameters - vectors - (0 if tied else found.table)


@pytest.mark.parametrize("held", [0, 2, 3, TOKENS])
@pytest.mark.parametrize("name", CASES)
def test_bytes_of_a_cache_are_those_that_it_holds(name, held):
    model = build(name, "eager", "eager")
    bytes_held = 0
    if held:
        with torch.no_grad():
            _, cache = extend(model, None, input_ids=IDS[:, :held], use_cache=True)
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        bytes_held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert transformer_cache_bytes(model.config, held, batch=BATCH, element_size=4) == bytes_held


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, {"held": -1}, "held must be >= 0, got -1"),
        ({}, {"batch": 0}, "batch must be >= 1, got 0"),
        ({}, {"element_size": 0}, "element_size must be >= 1, got 0"),
        ({"model_type": "gpt2"}, {}, "config.model_type must be one of .*, got 'gpt2'"),
        ({"hidden_size": None}, {}, "config.hidden_size must be a whole number >= 0, got None"),
    ],
)
def test_bad_sizes_of_a_cache_are_refused(changes, arguments, message):
    with pytest.raises(InputError, match=message):
        transformer_cache_bytes({"model_type": "llama"} | SMALL | changes, **{"held": 5} | arguments)


def test_weights_that_are_shared_count_once():
    model = build("llama", "eager", "eager")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert weight_bytes(model) == 4 * from_hf_config(model.config).parameters
    assert weight_bytes(model.half()) == 2 * from_hf_config(model.config).parameters


# Our own models. Attention is a fused kernel or not.

SIZES = {"width": 32, "depth": 2}
VISION = {"size": 24, "tubelet": 3} | SIZES


def counts(run: Any, fused: bool) -> tuple[int, int]:
    """FLOPs of a forward pass, and of a training step, whose backward pass begins at the sum of the outputs."""
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        with torch.no_grad():
            forward = count_flops(run).total
        step = count_flops(lambda: run().sum().backward())
    assert fused == any("_scaled_dot_product" in operator for operator in step.by_operator)
    return forward, step.total


def closed(formula: Any, *arguments: int, fused: bool = False, **sizes: Any) -> tuple[int, int]:
    training = {"training": True} | ({"fused_attention": True} if fused else {})
    return formula(*arguments, **sizes), formula(*arguments, **sizes, **training)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("patch", [4, 8])
def test_x_encoder(fused, patch):
    vit = {"patch_size": patch, "embed_dim": 32, "depth": 2, "num_heads": 2, "mlp_ratio": 3}
    encoder = FrameViT("vit_tiny_patch16_224", 24, 3, **vit)
    set_fused_attention(encoder, fused)
    frames = torch.randint(0, 256, (2, 6, 24, 24, 3), dtype=torch.uint8)
    expected = closed(frame_vit_flops, 4, fused=fused, **VISION, patch=patch, inner=96)
    assert counts(lambda: encoder(frames), fused) == expected


@pytest.mark.parametrize("fused", [False, True])
def test_y_encoder(fused):
    encoder = TextTransformer(64, 16, **SIZES, heads=4)
    set_fused_attention(encoder, fused)
    ids = torch.randint(0, 64, (3, 5))
    mask = torch.arange(5) < torch.tensor([[5], [3], [1]])
    expected = closed(text_transformer_flops, 3, 5, fused=fused, **SIZES, inner=128, embedding_dim=16)
    assert counts(lambda: encoder(ids, mask), fused) == expected


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("padded", [False, True])
def test_predictor(fused, padded):
    predictor = QueryPredictor(64, 24, 16, **SIZES, heads=4)
    set_fused_attention(predictor, fused)
    states = torch.randn(3, 9, 24, requires_grad=True)
    ids = torch.randint(0, 64, (3, 5))
    mask = torch.arange(5) < torch.tensor([[5], [3 if padded else 5], [5]])
    sizes = SIZES | {"state_dim": 24, "inner": 128, "embedding_dim": 16}
    expected = closed(query_predictor_flops, 3, 9, 5, fused=fused, **sizes)
    assert counts(lambda: predictor(states, ids, mask), fused) == expected


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("queries", [[5, 5, 5], [5, 1, 3]])
@pytest.mark.parametrize(("top_k", "shared"), [(1, 0), (3, 2)])
def test_predictor_with_experts(fused, queries, top_k, shared):
    mixture = Mixture(experts=6, top_k=top_k, hidden=24, shared=shared)
    predictor = QueryPredictor(64, 24, 16, **SIZES, heads=4, mixture=mixture)
    set_fused_attention(predictor, fused)
    states = torch.randn(3, 9, 24, requires_grad=True)
    ids, mask = torch.randint(0, 64, (3, 5)), torch.arange(5) < torch.tensor(queries)[:, None]
    sizes = SIZES | {"state_dim": 24, "embedding_dim": 16, "mixture": mixture}
    expected = closed(query_predictor_flops, 3, 9, 5, fused=fused, **sizes, real=3 * 9 + sum(queries))
    assert counts(lambda: predictor(states, ids, mask), fused) == expected
    if min(queries) == 5:
        assert closed(query_predictor_flops, 3, 9, 5, fused=fused, **sizes) == expected


@pytest.mark.parametrize(
    ("feed_forward", "message"),
    [
        ({}, "give one of inner and mixture, got None and None"),
        ({"inner": 8, "mixture": Mixture(2, 1, 8)}, "give one of inner and mixture, got 8 and Mixture"),
        ({"inner": 8, "real": 7}, "real must be None without a mixture, got 7"),
        ({"mixture": Mixture(2, 1, 8), "real": 5}, "real must be between 6 and 14, got 5"),
        ({"mixture": Mixture(2, 1, 8), "real": 15}, "real must be between 6 and 14, got 15"),
    ],
)
def test_bad_feed_forward_layers_are_refused(feed_forward, message):
    with pytest.raises(InputError, match=message):
        query_predictor_flops(2, 3, 4, **SIZES, state_dim=24, embedding_dim=16, **feed_forward)


@pytest.mark.parametrize("change", [{"cached": True, "training": True}, {"states": 0}, {"query": -1}, {"tokens": 0}])
def test_bad_sizes_of_a_token_vlm_are_refused(change):
    sizes = {"states": 4, "query": 2, "tokens": 3, "state_dim": 8} | change
    with pytest.raises(InputError, match=f"{next(iter(change))} must be"):
        token_vlm_flops({"model_type": "llama"} | SMALL, **sizes)


DECODER = SIZES | {"prefix": 3, "vocab_size": 64, "embedding_dim": 16}


@pytest.mark.parametrize("tokens", [1, 6])
def test_y_decoder(tokens):
    decoder = PrefixDecoder(64, 16, **SIZES, heads=4, prefix=3, max_length=8)
    latents, ids = torch.randn(4, 16), torch.randint(0, 64, (4, tokens))
    assert counts(lambda: decoder(latents, ids), False) == closed(prefix_decoder_flops, 4, tokens, **DECODER)


@pytest.mark.parametrize("tokens", [1, 6])
def test_y_decoder_with_a_cache(tokens):
    decoder = PrefixDecoder(64, 16, **SIZES, heads=4, prefix=3, max_length=tokens)
    generated = count_flops(lambda: decoder.generate(torch.randn(4, 16), eos_id=-1))
    assert [len(row) for row in generated.result] == [tokens] * 4
    assert prefix_decoder_flops(4, tokens, **DECODER, cached=True) == generated.total == 4 * decoder.flops(tokens)


def test_training_with_a_cache_is_refused():
    with pytest.raises(InputError, match="cached must be false when training, got true"):
        prefix_decoder_flops(1, 2, **DECODER, cached=True, training=True)


@pytest.mark.parametrize("training", [False, True])
def test_a_step_of_vl_jepa(tiny_model, training):
    """Encoder, predictor, text encoder and InfoNCE with further negatives, in one backward pass."""
    frames = torch.randint(0, 256, (3, 8, 48, 48, 3), dtype=torch.uint8)
    texts = ["a red ball", "a cube", "a blue cone rolls", "a ball"]
    queries = ["what is it?", "which colour?", "what?"]
    loss = InfoNCE()

    def run() -> torch.Tensor:
        targets = tiny_model.embed(texts)
        cost = loss(tiny_model.predict(tiny_model.encode(frames), queries), targets[:3], negatives=targets[3:])
        if training:
            cost.backward()
        return cost

    with torch.set_grad_enabled(training):
        step = count_flops(run)
    tiny_model.zero_grad(set_to_none=True)
    kind = {"training": training}
    fused = kind | {"fused_attention": any("_scaled_dot_product" in name for name in step.by_operator)}
    size = {"width": 32, "depth": 1, "inner": 128}
    query, text = (tiny_model.tokenizer.encode(x)[0].shape[1] for x in (queries, texts))
    world = tiny_config()["model"]["x_encoder"]
    closed = (
        frame_vit_flops(3 * 2, size=48, patch=world["patch_size"], tubelet=world["tubelet"], **size, **fused)
        + query_predictor_flops(3, 2 * 16, query, state_dim=32, embedding_dim=16, **size, **fused)
        + text_transformer_flops(4, text, embedding_dim=16, **size, **fused)
        + similarity_flops(3, 3, 16, **kind)
        + similarity_flops(3, 1, 16, **kind)
    )
    assert step.total == closed


@pytest.mark.parametrize("kind", ["sdpa", "eager"])
def test_one_pass_of_llm_jepa(tiny_llm_jepa, pairs, kind):
    """Next tokens and InfoNCE of packed rows: the views of a pair attend to one another as their segments say."""
    model = tiny_llm_jepa
    encoded = model.tokenizer.encode(pairs[:6])
    rows = pack(encoded, model.layout(row_tokens=160), encoded, list(range(6)))
    trained = int((rows.labels != IGNORE).sum())
    loss = InfoNCE()

    def run() -> torch.Tensor:
        out = model(rows)
        unit = [torch.nn.functional.normalize(x, dim=-1) for x in (out.predictions, out.targets)]
        return torch.nn.functional.cross_entropy(out.logits, out.labels) + loss(*unit)

    model.language.set_attention(kind)
    with torch.no_grad():
        forward = count_flops(run).total
    step = count_flops(lambda: run().backward())
    model.zero_grad(set_to_none=True)
    model.language.set_attention("sdpa")
    count, length = rows.ids.shape
    fused = any("_scaled_dot_product" in operator for operator in step.by_operator)
    assert count > 1
    assert fused == (kind == "sdpa")
    config, width = model.language.lm.config, model.language.width
    closed = one_pass_flops(config, count, length, trained)
    assert forward == closed.total + similarity_flops(6, 6, width)
    closed = one_pass_flops(config, count, length, trained, training=True, fused_attention=fused)
    assert step.total == closed.total + similarity_flops(6, 6, width, training=True)
