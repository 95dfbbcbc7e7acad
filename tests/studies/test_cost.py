"""`jepa cost`: joint savings against sums done apart, attribution against its axioms, and wrong input in one line."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refuses, tiny_config, vlm_config
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from transformers import AutoConfig

from jepa.checkpoint import build_model, save
from jepa.cli import compose, main
from jepa.config import validate
from jepa.data.world import CAPTION_QUERIES
from jepa.operations import OperationLedger
from jepa.report.render import html, markdown, terminal
from jepa.results import StreamResults, read_document
from jepa.results.analysis import best_causal, headline_savings
from jepa.studies.configs import CostConfig
from jepa.studies.cost import CostResults, analyse, checkpoint_parts, read_parts, shapley
from jepa.studies.cost.report import answer, report
from jepa.studies.cost.results import OptimisationSaving

SMALL_GRID = ["grid.input_tokens=[500,100000]", "grid.output_tokens=[50,2000]", "grid.batches=[1,128]"]


def settings(*overrides: str) -> CostConfig:
    return validate(compose("cost", [*SMALL_GRID, *overrides]), CostConfig)


@pytest.fixture(scope="module")
def results() -> CostResults:
    return analyse(settings())


@pytest.fixture(scope="module")
def results_file(stream_results: StreamResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of made streams; on the dense ones uniform decoding keeps its quality at its own rate alone."""
    dense = stream_results.settings["dense"]
    missed = [s.model_copy(update={"reached": s.reached and s.policy != "uniform"}) for s in dense.savings]
    settings = stream_results.settings | {"dense": dense.model_copy(update={"savings": tuple(missed)})}
    path = tmp_path_factory.mktemp("streams") / "results.json"
    path.write_bytes(stream_results.model_copy(update={"settings": settings}).to_json())
    return path


def optimisation(results: CostResults, name: str) -> OptimisationSaving:
    return next(row for row in results.optimisations if row.name == name)


@pytest.mark.parametrize(("inputs", "outputs", "saving"), [(500, 2000, "3.5"), (100_000, 1450, "1.1")])
def test_fewer_output_tokens_save_what_is_published(inputs, outputs, saving):
    request = ["perception=null", "stream_rates=null", "deployed=mistral_small_4", "cache=fp8", "order=[tokens]"]
    found = analyse(settings(*request, f"input_tokens={inputs}", f"output_tokens={outputs}"))
    assert f"{math.floor(found.joint.value * 10) / 10:.1f}" == saving
    assert found.unit == "request"


def test_the_chain_of_levers_multiplies_to_the_joint_saving(results):
    rows, joint = results.optimisations, results.joint.value
    assert math.prod(row.in_order for row in rows) == pytest.approx(joint)
    assert math.prod(row.averaged for row in rows) == pytest.approx(joint)
    costs = [getattr(results, key).chip_seconds for key in ("baseline", "optimised")]
    assert costs[0] / costs[1] == pytest.approx(joint)
    assert results.product == pytest.approx(math.prod(row.alone.value for row in rows))
    assert results.claims == pytest.approx(3.0 * 3.6 * 2.27 * 2.85)


def test_a_lever_that_divides_its_parts_obeys_amdahl(results):
    row = optimisation(results, "selective")
    assert row.touches == ("prefill", "decode")
    parts = results.baseline.parts
    fraction = parts["prefill"].fraction + parts["decode"].fraction
    assert row.fraction == pytest.approx(fraction)
    assert row.alone.value == pytest.approx(1 / (1 - fraction + fraction / 2.85))
    assert row.limit == pytest.approx(1 / (1 - fraction))


def test_shares_and_ranges(results):
    assert math.fsum(part.fraction for part in results.baseline.parts.values()) == pytest.approx(1)
    assert optimisation(results, "hardware").fraction == pytest.approx(1)
    assert optimisation(results, "hardware").limit is None
    assert optimisation(results, "tokens").touches == ("decode",)
    for ratio in [results.joint, *(row.alone for row in results.optimisations)]:
        assert ratio.low < ratio.value < ratio.high


def test_another_chip_saves_between_the_ratios_of_its_peaks_at_equal_efficiencies():
    found = analyse(settings("order=[hardware]")).joint.value
    ratios = (2250 / 989, 8.0 / 3.35)
    assert min(ratios) - 1e-9 <= found <= max(ratios) + 1e-9


def test_the_measure_of_a_ratio_is_a_matter_of_power_and_price():
    by_time, by_energy, by_price = (
        analyse(settings("order=[hardware]", *more)).joint.value
        for more in ([], ["measure=joules"], ["measure=price", "+prices={NVIDIA H100 SXM:2.0,NVIDIA B200:5.0}"])
    )
    assert by_energy == pytest.approx(by_time * 700 / 1000)
    assert by_price == pytest.approx(by_time * 2 / 5)


@given(st.lists(st.floats(-3, 3), min_size=8, max_size=8))
def test_shapley_is_the_mean_over_all_orders(figures):
    names = ("a", "b", "c")
    subsets = [frozenset(s) for size in range(4) for s in itertools.combinations(names, size)]
    values = dict(zip(subsets, figures, strict=True))
    orders = list(itertools.permutations(names))
    fractions = shapley(values, names)
    for name in names:
        gains = []
        for order in orders:
            before = frozenset(order[: order.index(name)])
            gains.append(values[before | {name}] - values[before])
        assert fractions[name] == pytest.approx(sum(gains) / len(orders), abs=1e-9)


def test_a_baseline_that_generates_at_every_step_pays_for_it():
    text = ["output_tokens=30", "input_tokens=20", "order=[tokens]", "stream_rates.steps_per_second=2.0"]
    every = analyse(settings("deployed=vlm_baseline", *text)).baseline
    wanted = analyse(settings("deployed=vl_jepa", *text)).baseline
    assert (every.requests, wanted.requests) == (2.0, 1.0)
    assert (every.input_tokens, wanted.input_tokens) == (2068, 21)
    assert set(every.parts) == {"encoder", "prefill", "decode"}
    assert set(wanted.parts) == {"encoder", "predictor", "prefill", "decode"}
    assert every.parts["encoder"].chip_seconds == pytest.approx(wanted.parts["encoder"].chip_seconds)


@pytest.mark.parametrize(("steps", "saving"), [(1.0, 1.67), (2.0, 1.41)])
def test_decoder_calls_are_not_seconds_by_the_times_that_were_measured(steps, saving):
    found = analyse(settings(f"stream_rates.steps_per_second={steps}", "order=[selective]")).published.saving
    assert found == pytest.approx((steps * 126 + 203) / (steps * 126 + 203 / 2.85))
    assert round(found, 2) == saving


def test_a_grid_answers_over_which_workloads_the_goal_holds(results):
    cells = results.grid
    assert len(cells) == 8
    low, high = results.goal
    within = [cell for cell in cells if low <= cell.joint.value <= high]
    said = answer(results)
    assert said.startswith(f"10 to 20× holds on {len(within)} of 8 workloads")
    assert ", ".join(f"{sum(cell.batch == batch for cell in within)} of 4 at {batch}" for batch in (1, 128)) in said
    same = next(c for c in cells if (c.batch, c.input_tokens, c.output_tokens) == (128, 500, 2000))
    assert same.joint.model_dump() == pytest.approx(results.joint.model_dump())


def test_workloads_that_do_not_fit_are_left_out():
    found = analyse(settings("chips=2", "order=[tokens]"))
    assert {cell.batch for cell in found.grid if cell.joint is None} == {128}
    assert "too large" not in markdown(report(found))
    assert "does not fit" in markdown(report(found))


def test_a_transformers_configuration_is_a_served_model(tmp_path):
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = AutoConfig.for_model("llama", vocab_size=100, intermediate_size=96, **sizes)
    config.save_pretrained(tmp_path)
    by_hand = 2 * (64 * 16 * (4 + 2 + 2 + 4) + 3 * 64 * 96 + 2 * 64) + 64 + 2 * 100 * 64
    assert read_parts(str(tmp_path)).model.parameters == by_hand
    found = analyse(settings("deployed=config", f"deployed.model.path={tmp_path}/config.json", "order=[tokens]"))
    assert found.baseline.parameters == by_hand


def numel(*modules: Any) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def test_a_vl_jepa_checkpoint_is_a_served_model(tiny_model, tmp_path):
    """Parameters are those of the modules, FLOPs those that its stream's ledger counts, without the Y-Encoder's."""
    save(tiny_model, tiny_config(), tmp_path)
    rate = 2.0
    deployed = ["deployed=config", f"deployed.model.path={tmp_path}", "order=[tokens,hardware]"]
    load = ["input_tokens=0", "output_tokens=9", f"stream_rates.steps_per_second={rate}"]
    base = analyse(settings(*deployed, *load)).baseline
    parts = read_parts(str(tmp_path))
    encoder, predictor = (parts.perception[name].size for name in ("encoder", "predictor"))
    assert [encoder.parameters, predictor.parameters, parts.model.parameters, base.parameters] == [
        numel(tiny_model.x_encoder), numel(tiny_model.predictor), *[numel(tiny_model.y_decoder)] * 2,
    ]  # fmt: skip
    assert base.memory["weights"] == 2 * numel(tiny_model.x_encoder, tiny_model.predictor, tiny_model.y_decoder)
    assert base.input_tokens == tiny_model.y_decoder.prefix
    ledger, query = OperationLedger(), CAPTION_QUERIES[0]
    list(tiny_model.stream([np.zeros((240, 48, 48, 3), dtype=np.uint8)], rate, query, ledger))
    slot, steps = tiny_model.encoding_flops(), ledger.predictor.calls
    assert steps > 50
    first = {"encoder": tiny_model.slots(rate)[1] - tiny_model.slots(rate)[0], "predictor": 0}  # slots of its window
    for name, part in parts.perception.items():
        each = part.size.prefill_flops(part.tokens_at(rate))
        assert each * steps + first[name] * slot == getattr(ledger, name).flops
        assert base.parts[name].chip_seconds >= each * rate / (989e12 * 0.5) * (1 - 1e-9)
    alone = parts.perception["encoder"].tokens_at(0.5)
    assert encoder.prefill_flops(alone) == tiny_model.slots(rate)[1] * slot  # windows that share none


def test_the_perception_of_a_checkpoint_stays_with_another_language_model(tiny_model, tmp_path):
    save(tiny_model, tiny_config(), tmp_path)
    found = analyse(settings("deployed=config", f"deployed.model.path={tmp_path}", "order=[experts]"))
    before, after = (getattr(found, key).parts for key in ("baseline", "optimised"))
    for name in ("encoder", "predictor"):
        assert after[name] == before[name].model_copy(update={"fraction": after[name].fraction})
    assert found.optimised.model == "Mistral Small 4"


def test_a_token_space_baseline_s_checkpoint_is_a_served_model(tokenizer, tmp_path):
    model = build_model(vlm_config(), tokenizer).eval()
    save(model, vlm_config(), tmp_path)
    given = "deployed=config", f"deployed.model.path={tmp_path}"
    found = analyse(settings(*given, "order=[tokens]", "input_tokens=5"))
    parts = checkpoint_parts(model)
    assert parts.every_step
    assert parts.model.parameters == found.baseline.parameters == numel(model.language_model)
    assert parts.perception["encoder"].size.parameters == numel(model.x_encoder, model.project)
    assert parts.input_per_step == model.encode(torch.zeros(1, 8, 48, 48, 3, dtype=torch.uint8)).shape[1]
    assert set(found.baseline.parts) == {"encoder", "prefill", "decode"}
    refuses(r"selective: must be .* a model that may stay silent", analyse, settings(*given, "order=[selective]"))


def test_a_language_model_s_checkpoint_is_a_served_model(tiny_llm_jepa):
    parts = checkpoint_parts(tiny_llm_jepa)
    assert parts.model.parameters == numel(tiny_llm_jepa.language.lm)
    assert parts.perception == {}


@pytest.mark.parametrize("absent", [["vocab_size"], ["num_hidden_layers", "vocab_size"]])
def test_a_configuration_has_to_state_its_dimensions(tmp_path, absent):
    full = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    full |= {"num_attention_heads": 4, "vocab_size": 100}
    (tmp_path / "config.json").write_text(json.dumps(full))
    assert read_parts(str(tmp_path)).model.layers == 2
    (tmp_path / "config.json").write_text(json.dumps({key: full[key] for key in full if key not in absent}))
    refuses(r"config\.json must state .*, got none for " + ", ".join(absent), lambda: read_parts(str(tmp_path)))


@pytest.mark.parametrize(
    ("chips", "what"), [(2, r"Mistral Small 4 with optimisations\.experts"), (1, "Mistral Small 3")]
)
def test_what_does_not_fit_is_named(chips, what):
    refuses(f"^{what}: the model and its caches must fit in {chips}", lambda: analyse(settings(f"chips={chips}")))


def selective(file: Path, setting: str = "everyday", policy: str = "null") -> list[str]:
    name = "optimisations.selective"
    return ["order=[selective]", f"{name}.results={file}", f"{name}.setting={setting}", f"{name}.policy={policy}"]


def test_selective_decoding_takes_its_saving_from_results(results_file, stream_results):
    setting = stream_results.settings["dense"]
    saving = next(row for row in headline_savings(setting) if row.policy == "gate")
    row = optimisation(analyse(settings(*selective(results_file, "dense", "gate"))), "selective")
    assert row.evidence == "measured"
    assert (row.factor.value, row.factor.low) == (saving.ratio.value, saving.ratio.low)
    assert "on dense streams" in row.change
    assert row.measured_flops_saving is not None
    best = best_causal(setting)
    chosen = optimisation(analyse(settings(*selective(results_file, "dense"))), "selective")
    assert chosen.factor.value == best.ratio.value
    refuses("got 'everyday': Quality does not depend on decoding here", analyse, settings(*selective(results_file)))
    refuses(r"policy must be one of .*, got 'none'", analyse, settings(*selective(results_file, "dense", "none")))
    refuses(r"setting must be one of .*, got 'other'", lambda: analyse(settings(*selective(results_file, "other"))))


@pytest.mark.parametrize("policy", ["selective_encoding", "gate", "on_demand"])
def test_a_policy_takes_perception_with_it(policy, results_file, stream_results):
    """Perception's steps are divided by the ratio of the steps that were computed; a few of them may be predicted."""
    setting = stream_results.settings["dense"]
    saving = next(row for row in headline_savings(setting) if row.policy == policy)
    rows = {(row.policy, row.value): row.ledger for row in setting.operations}
    before, after = rows["uniform", 1.0], rows[policy, saving.value]
    ratio = before.predictor.calls * after.stream_seconds / before.stream_seconds / after.step_count
    assert ratio != 1
    found = analyse(settings(*selective(results_file, "dense", policy)))
    assert found.baseline.steps / found.optimised.steps == pytest.approx(ratio)
    change, fraction = optimisation(found, "selective").change, after.predictor.calls / after.step_count
    assert f"steps of perception / {ratio:.2f}" in change
    assert (fraction < 1) == (policy == "on_demand") == (f"the Predictor at {fraction:.0%} of them" in change)
    for part, each in (("encoder", 1.0), ("predictor", fraction)):
        spent = (getattr(found, key).parts[part].chip_seconds for key in ("optimised", "baseline"))
        assert next(spent) / next(spent) == pytest.approx(each / ratio)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["hardware=h1000"], "there is no hardware 'h1000'; nearest valid: h100"),
        (["optimisations.hardware.hardware=b2000"], "there is no hardware 'b2000'; nearest valid: b200"),
        (["optimisations.experts.deployed=gpt"], "there is no deployed 'gpt'; nearest valid: llama_3_2_1b, mistral_s"),
        (["weights=mx4"], "format must be one that NVIDIA H100 SXM computes in (bf16, fp8), got 'mx4'"),
        (["order=[tokens,tokens]"], "order must name at most 8 of the optimisations"),
        (["perception=llama_3_2_1b"], "perception must be null or a model with an encoder of its own (vl_jepa, vlm"),
        (["stream_rates=null"], "optimisations.selective: must be applied to a stream, got stream_rates=null"),
        (["deployed=vlm_baseline", "order=[selective]"], "must be applied to a model that may stay silent"),
        (["measure=price"], "measure=price needs prices of NVIDIA H100 SXM, got none"),
        (["optimisations.tokens.factor=-2"], "optimisations.tokens: jepa.studies.cost.fewer_tokens: factor must be fi"),
        (["deployed=config", "deployed.model.path=nothing"], "deployed.model.path must be a checkpoint, a config.json"),
        (["optimisations.selective.results=broken.json"], "results file broken.json: kind must be one of jepa.stream"),
        (["optimisations.selective.results=missing.json"], "results file missing.json cannot be read"),
        (["goal=[20,10]"], "goal must be a lower and an upper factor, got [20.0, 10.0]"),
    ],
)
def test_wrong_input_is_one_line(fails, tmp_path, monkeypatch, overrides, message):
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text(json.dumps({"kind": "jepa.results/1"}))
    fails(["cost", *overrides], message)


def test_the_command_writes_a_document_a_page_and_a_picture(tmp_path, capsys):
    assert main(["cost", f"output={tmp_path}", *SMALL_GRID]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"cost.json", "cost.md", "cost.png", "cost.html"}
    written = read_document(tmp_path / "cost.json", CostResults)
    printed, shown = capsys.readouterr().out, terminal(report(written), colour=False)
    assert shown in printed
    assert max(map(len, shown.splitlines())) <= 100
    with Image.open(tmp_path / "cost.png") as picture:
        assert picture.width > 700
    page = (tmp_path / "cost.html").read_text()
    assert page.count("<svg") == 1
    assert "<script" not in page


def test_the_page_opens_with_the_joint_saving_and_its_range(results):
    opening = html(report(results)).partition("</section>")[0]
    claim = opening[opening.index('<div class="claim">') :].replace("\u00a0", " ")
    assert f"{results.joint.value:.2f}×" in claim
    assert f"{results.joint.low:.2f} to {results.joint.high:.2f} over" in claim
    assert "69.87×" in claim


def test_workloads_within_the_goal_are_marked(results):
    low, high = results.goal
    within = sum(low <= cell.joint.value <= high for cell in results.grid)
    [grid] = [block for block in report(results).blocks if getattr(block, "title", "") == "Joint saving"]
    cells = [cell for _, rows in grid.groups for _, *row in rows for cell in row]
    assert sum(cell.endswith("●") for cell in cells) == within > 0


def test_a_range_must_be_in_order(results):
    with pytest.raises(ValidationError, match="low must be <= high"):
        CostResults.model_validate({**results.model_dump(), "joint": {"value": 2.0, "low": 99.0, "high": 3.0}})
