"""The closed forms against what the models of transformers execute, hold and keep in their caches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from conftest import LATENT, refusals
from torch.utils.flop_counter import FlopCounterMode

from jepa.operations import (
    FAMILIES,
    count_flops,
    from_hf_config,
    similarity_flops,
    transformer_cache_bytes,
    transformer_flops,
    weight_bytes,
)
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
WINDOW = {"sliding_window": 4}
WINDOWS = WINDOW | {"layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 16}
MIXTRAL = {"num_local_experts": 4, "num_experts_per_tok": 2}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
QWEN_MOE = EXPERTS | {"num_experts": 4, "head_dim": 16, "mlp_only_layers": [1]}
CASES = {
    "llama": ("Llama", "LlamaConfig", {}),
    "olmo2": ("Olmo2", "Olmo2Config", {}),
    "mistral": ("Mistral", "MistralConfig", WINDOW),
    "ministral3": ("Ministral3", "Ministral3Config", WINDOW | {"head_dim": 16}),
    "qwen2": ("Qwen2", "Qwen2Config", {}),
    "qwen2, windows": ("Qwen2", "Qwen2Config", WINDOW | {"use_sliding_window": True, "max_window_layers": 1}),
    "qwen3": ("Qwen3", "Qwen3Config", {"head_dim": 16}),
    "qwen3, windows": ("Qwen3", "Qwen3Config", WINDOWS | {"use_sliding_window": True}),
    "gemma2": ("Gemma2", "Gemma2Config", WINDOWS),
    "gemma3_text": ("Gemma3", "Gemma3TextConfig", WINDOWS),
    "mixtral": ("Mixtral", "MixtralConfig", MIXTRAL),
    "qwen3_moe": ("Qwen3Moe", "Qwen3MoeConfig", QWEN_MOE | {"decoder_sparse_step": 2, "mlp_only_layers": [3]}),
    "qwen3_moe, windows": ("Qwen3Moe", "Qwen3MoeConfig", QWEN_MOE | WINDOW | {"use_sliding_window": True}),
    "mixtral, windows": ("Mixtral", "MixtralConfig", MIXTRAL | WINDOW),
    "deepseek_v3": ("DeepseekV3", "DeepseekV3Config", LATENT | {"n_shared_experts": 2, "v_head_dim": 20}),
    "deepseek_v3, full queries": ("DeepseekV3", "DeepseekV3Config", LATENT | {"q_lora_rank": None, "v_head_dim": 20}),
    "mistral4": ("Mistral4", "Mistral4Config", LATENT),
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


def test_the_text_counts_of_several_parts():
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


test_bad_input_is_refused = refusals(
    ({}, {"tokens": 0}, "tokens must be a whole number >= 1, got 0"),
    ({}, {"context": 4}, "context must be a whole number >= 5, got 4"),
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
    of=lambda changes, arguments: transformer_flops(
        {"model_type": "llama"} | SMALL | changes, **{"tokens": 5} | arguments
    ),
)


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


@pytest.mark.parametrize("name", CASES)
def test_bytes_of_a_cache_are_those_that_it_holds(name):
    model = build(name, "eager", "eager")
    assert transformer_cache_bytes(model.config, 0, batch=BATCH, element_size=4) == 0
    for held in (2, 3, TOKENS):
        with torch.no_grad():
            _, cache = extend(model, None, input_ids=IDS[:, :held], use_cache=True)
        tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
        bytes_held = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        assert transformer_cache_bytes(model.config, held, batch=BATCH, element_size=4) == bytes_held, held


test_bad_sizes_of_a_cache_are_refused = refusals(
    ({"held": -1}, "held must be a whole number >= ., got"),
    ({"batch": 0}, "batch must be a whole number >= ., got"),
    ({"element_size": 0}, "element_size must be a whole number >= ., got"),
    of=lambda sizes: transformer_cache_bytes({"model_type": "llama"} | SMALL, **{"held": 5} | sizes),
)


def test_weights_that_are_shared_count_once():
    model = build("llama", "eager", "eager")
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert weight_bytes(model) == 4 * from_hf_config(model.config).parameters
    assert weight_bytes(model.half()) == 2 * from_hf_config(model.config).parameters


def test_similarities_are_one_matrix_product():
    assert similarity_flops(3, 5, 8) == count_flops(lambda: torch.randn(3, 8) @ torch.randn(5, 8).T).total
