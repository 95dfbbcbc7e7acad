"""Dimensions against published counts; costs against sums done by hand and invariants."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from conftest import refuses
from hypothesis import given
from hypothesis import strategies as st

from jepa.operations import Dimensions, from_hf_config, transformer_cache_bytes
from jepa.studies.configs import FigureConfig, HardwareConfig
from jepa.studies.cost import CountedPart, DeployedModel, PerceptionPart, Scenario, read_model, serving_cost

LLAMA_1B_CONFIG = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192,
    "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64,
    "tie_word_embeddings": True,
}  # fmt: skip
MISTRAL_4_CONFIG = {
    "model_type": "mistral4", "vocab_size": 131072, "hidden_size": 4096, "intermediate_size": 12288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "first_k_dense_replace": 0, "q_lora_rank": 1024,
    "kv_lora_rank": 256, "qk_rope_head_dim": 64, "qk_nope_head_dim": 64, "v_head_dim": 128, "n_routed_experts": 128,
    "num_experts_per_tok": 4, "n_shared_experts": 1, "moe_intermediate_size": 2048, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA_1B, MISTRAL_4 = from_hf_config(LLAMA_1B_CONFIG), from_hf_config(MISTRAL_4_CONFIG)


def figure(value: float) -> FigureConfig:
    return FigureConfig(value=value, source="made", as_of="now")


def chip(bandwidth: float = 4e12, **peaks: float) -> HardwareConfig:
    found = {name: figure(peak) for name, peak in peaks.items()}
    return HardwareConfig(name="chip", peaks=found, memory=figure(1e11), bandwidth=figure(bandwidth), watts=None)


def scenario(
    inputs: float, outputs: float, batch: int, model: Dimensions = LLAMA_1B, perception: Any = None, **changes: Any
) -> Scenario:
    deployed = DeployedModel("model", model, perception or {})
    return replace(Scenario(deployed, chip(bf16=1e15, fp8=2e15), "bf16", "bf16", inputs, outputs, batch), **changes)


def test_the_published_counts_of_llama_3_2_1b():
    assert LLAMA_1B.parameters == 1_235_814_400
    assert LLAMA_1B.active_parameters == 1_235_814_400 - (2 * 16 + 1) * 2048
    assert transformer_cache_bytes(LLAMA_1B_CONFIG, 1) == 2 * LLAMA_1B.cached(1) == 2 * 16 * 8 * 64 * 2


def test_the_published_counts_of_mistral_small_4():
    active = MISTRAL_4.active_parameters
    counts = [MISTRAL_4.parameters, active, active - MISTRAL_4.table, active + MISTRAL_4.table]
    assert [round(count / 1e9, 2) for count in counts] == [118.97, 6.10, 5.56, 6.63]
    assert transformer_cache_bytes(MISTRAL_4_CONFIG, 1) == 2 * MISTRAL_4.cached(1) == 23_040


@pytest.mark.parametrize(("name", "found"), [("llama_3_2_1b", LLAMA_1B), ("mistral_small_4", MISTRAL_4)])
def test_a_deployed_model_has_the_dimensions_of_its_config(name, found):
    def figures(model: Dimensions) -> list[float]:
        counts = [model.parameters, model.active_parameters]
        return [*counts, model.read_weights(9), model.cached(9), model.prefill_flops(9)]

    assert figures(read_model(name).model) == figures(found)


def test_windows_bound_the_cache_and_the_pairs():
    windowed = replace(LLAMA_1B, layers=3, window=7, window_layers=2)
    width = 2 * 8 * 64  # keys and values of eight heads
    assert windowed.cached(5) == 3 * 5 * width
    assert windowed.cached(50) == (50 + 2 * 6) * width
    pairs = sum(min(i + 0.5, 7) for i in range(50)) * 2 + 50 * 50 / 2  # half a token of itself, as I²/2 has it
    attention = windowed.prefill_flops(50) - 2 * windowed.active_parameters * 50
    assert attention == pytest.approx(2 * 32 * 128 * pairs, rel=0.01)


def test_experts_touched_agrees_with_a_draw():
    generator = np.random.default_rng(0)
    draws = [len(set(np.concatenate([generator.permutation(16)[:3] for _ in range(5)]))) for _ in range(4000)]
    model = replace(MISTRAL_4, experts=16, active=3)
    assert model.touched(1) == pytest.approx(3)
    assert model.touched(5) == pytest.approx(np.mean(draws), abs=0.1)


def test_a_request_by_hand():
    cost = serving_cost(scenario(100, 10, 4), compute=0.5, memory=0.8)
    prefill = (2 * 1235746816 * 100 + 16 * 32 * 128 * 100**2) / (1e15 * 0.5)
    weights = 2 * 1235746816 / 4 / (4e12 * 0.8)
    cache = 2 * 16 * 1024 * (100 + 5) / (4e12 * 0.8)
    assert cost.parts["prefill"] == pytest.approx(max(prefill, weights))
    assert cost.parts["decode"] == pytest.approx(10 * (weights + cache))
    assert cost.chip_seconds == pytest.approx(cost.parts["prefill"] + cost.parts["decode"])
    assert cost.regions == {"prefill": "compute", "decode": "memory: weights"}
    assert serving_cost(scenario(50_000, 10, 64), 0.5, 0.8).regions == {"prefill": "compute", "decode": "memory: cache"}
    assert serving_cost(scenario(1, 10, 4096), 0.5, 0.8).regions["decode"] == "compute"


def test_perception_runs_at_every_step_whatever_is_requested():
    part = PerceptionPart(replace(LLAMA_1B, vocabulary=0, causal=False), 2048)
    busy = scenario(100, 10, 8, perception={"encoder": part}, steps=2.0)
    idle = serving_cost(replace(busy, requests=0.0), 0.5, 0.8)
    flops = 2 * 973078528 * 2048 + 2 * 16 * 32 * 128 * 2048**2
    assert serving_cost(busy, 0.5, 0.8).parts["encoder"] == pytest.approx(2 * flops / 0.5e15)
    assert idle.chip_seconds == pytest.approx(2 * flops / 0.5e15)


@given(st.floats(10, 1e5), st.floats(1, 1e4), st.integers(1, 512), st.floats(1.1, 10))
def test_fewer_output_tokens_save_less_than_their_factor_of_what_is_not_cache(inputs, outputs, batch, fewer):
    made = (scenario(inputs, tokens, batch, chips=1024) for tokens in (outputs, outputs / fewer))
    before, after = (serving_cost(each, 0.5, 0.7) for each in made)
    assert after.parts["prefill"] == before.parts["prefill"]
    # Fewer tokens also attend to a shorter context, so that decoding saves at least the factor.
    assert before.parts["decode"] / after.parts["decode"] >= fewer * (1 - 1e-9)
    free = before.chip_seconds / before.parts["prefill"]  # Amdahl's limit
    assert 1 <= before.chip_seconds / after.chip_seconds <= free


def test_counts_of_a_part_cost_what_its_dimensions_do():
    sizes = {"layers": 2, "width": 64, "heads": 4, "kv_heads": 4, "key_width": 16, "value_width": 16}
    part = Dimensions(**sizes, feed_forward=256, causal=False)
    counted = CountedPart(part.parameters, 30, round(part.prefill_flops(30)))

    def cost(size: Dimensions | CountedPart, most: float | None = None) -> Any:
        made = scenario(10, 5, 4, perception={"encoder": PerceptionPart(size, 30, most)}, steps=2.0)
        return serving_cost(made, 0.5, 0.7).parts["encoder"]

    assert cost(counted) == pytest.approx(cost(part))
    assert cost(counted, most=60) == cost(counted)  # two steps of 30 tokens in a second
    assert counted.prefill_flops(15) == counted.flops / 2


def test_arrays_of_efficiencies_give_arrays_of_costs():
    compute, memory = np.array([0.4, 0.6])[:, None], np.array([0.5, 0.7, 0.9])
    whole = serving_cost(scenario(900, 30, 4), compute, memory).chip_seconds
    assert whole.shape == (2, 3)
    assert whole[1, 2] == pytest.approx(serving_cost(scenario(900, 30, 4), 0.6, 0.9).chip_seconds)


def test_a_model_takes_the_least_power_of_two_of_chips_that_it_fits_in():
    assert scenario(100, 10, 1).chip_count() == 1
    large = scenario(100, 10, 1, MISTRAL_4)
    assert large.memory()["weights"] == 2 * 118_972_826_624
    assert large.chip_count() == 4  # 238 GB in 90 GB each
    refuses(r"must fit in 2 × chip \(180\.0 GB .* got 237\.9 GB at batch 1", replace(large, chips=2).chip_count)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: scenario(10, 10, 1, weights="mx4"), "format"),
        (lambda: scenario(10, 10, 1, cache="fp3"), "number format"),
        (lambda: replace(MISTRAL_4, active=0), "active"),
        (lambda: replace(MISTRAL_4, window_layers=1), "window"),
    ],
)
def test_wrong_figures_are_refused(make, name):
    refuses(f"^{name} must be", make)
