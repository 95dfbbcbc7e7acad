"""The benchmarks, small: what they compare does the same, and they time what they say."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import validate
from jepa.evaluation import Generated
from jepa.operations import PartCount
from jepa.predictors.experts import active_parameters
from jepa.selective import Decoded, Gate
from jepa.training.configs import LanguageTrainConfig
from jepa.training.language import make_tokenizer

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


def test_the_quick_training_benchmark_runs(monkeypatch, capsys, script):
    """The plain loss holds three matrices of similarities at least, 64 MiB each; in chunks none is whole."""
    bench = script("bench_train")
    monkeypatch.setattr(sys, "argv", ["bench_train.py", "--quick"])
    bench.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    embedded = figures["models"]["embedded"]
    assert embedded["samples_per_second"] == pytest.approx(16 / embedded["seconds"], rel=1e-3)
    assert embedded["utilisation"] > 0
    assert figures["contrastive_rows"] == 4096
    memory = figures["contrastive_mebibytes"]
    inputs = 2 * 4096 * bench.WIDTH * 4 / 2**20
    assert memory["plain"] > inputs + 3 * 64
    assert inputs < memory["chunked"] < memory["plain"]


def test_the_experts_are_compared_at_equal_active_and_equal_total_parameters(script):
    bench = script("bench_experts")
    node = {"_target_": "jepa.predictors.transformer.QueryPredictor", "vocab_size": 50, "state_dim": 12}
    node |= {"embedding_dim": 8, "width": 16, "depth": 2, "heads": 2}
    mixture = {"_target_": "jepa.predictors.experts.Mixture", "experts": 6, "top_k": 2, "hidden": 16}
    made = bench.predictors({**node, "mixture": mixture})
    router = 2 * 6 * 16
    for name in ("experts, grouped", "experts, loop"):
        total = sum(p.numel() for p in made[name].parameters())
        assert total - router == active_parameters(made["dense, equal total"])
        assert active_parameters(made[name]) - router == active_parameters(made["dense, equal active"])
        assert [block.mlp.grouped for block in made[name].blocks] == [name == "experts, grouped"] * 2


def tiny(predictors: int):
    """A model 32 wide, 12 pairs and the configuration."""
    architecture = [f"model.language_model.architecture.{name}={value}" for name, value in SIZE.items()]
    architecture.append("model.language_model.architecture.num_key_value_heads=2")
    overrides = ["variant=llm_jepa", "objective=cosine", "name=bench", f"model.predictor.tokens={predictors}"]
    data = ["data.pairs=12", "data.test_pairs=0", "data.validation_fraction=0"]
    config = validate(compose("train", [*overrides, *data, *architecture]), LanguageTrainConfig)
    pairs = build(config.data).train
    torch.manual_seed(0)
    return build_model(config.model_dump(), make_tokenizer(config.tokenizer, pairs)), pairs, config


@pytest.mark.parametrize("predictors", [0, 1, 3])
def test_the_steps_compared_have_one_loss_and_one_gradient(predictors, script):
    bench = script("bench_llm_step")
    model, pairs, config = tiny(predictors)
    losses = bench.variants(model, config, length=96)
    encoded = model.tokenizer.encode(pairs)
    bench.check_agreement(model, losses, encoded)
    shifted = {**losses, "packed pass": lambda batch: losses["packed pass"](batch) * 1.01}
    with pytest.raises(AssertionError, match="packed pass"):
        bench.check_agreement(model, shifted, encoded)


def test_every_step_is_timed_and_counted(script):
    bench = script("bench_llm_step")
    model, pairs, config = tiny(1)
    losses = bench.variants(model, config, length=96)
    encoded = model.tokenizer.encode(pairs)
    seconds, kernels = bench.step_seconds(model, losses, [encoded[:4], encoded[4:8]], autocast=True)
    assert set(seconds) == set(kernels) == set(losses)
    assert min(seconds.values()) > 0
    assert set(kernels.values()) <= {"eager", "fused"}
    flops = {name: bench.step_flops(model, loss, [encoded]) for name, loss in losses.items()}
    assert flops["padded rows"] > flops["trimmed rows"] > flops["masked rows"] > flops["next tokens"]
    assert flops["packed pass"] > flops["next tokens"]
    assert all(parameter.grad is None for parameter in model.parameters())
    costs = {"packed pass": 3.0, "next tokens": 2.0}
    assert bench.with_dropout(costs, 0.0) == 1.5
    assert bench.with_dropout(costs, 0.75) == (3 * 2.0 + 3.0) / (4 * 2.0)  # 3 of 4 steps are next tokens alone


@pytest.mark.parametrize("limit", [None, 128])
def test_answers_are_those_of_one_request_at_a_time(limit, script):
    bench = script("bench_generate")
    model, pairs, _ = tiny(1)
    bench.train(model, pairs, steps=20, size=4, row_tokens=128)
    model.eval()
    rates, ended, tokens = bench.answers_per_second(model, pairs[:6], 2, 4, limit, repetitions=1)
    assert set(rates) == {"batched", "one at a time"}
    assert min(rates.values()) > 0
    assert 0 <= ended <= 1
    assert tokens >= 1


def test_answers_that_differ_are_refused(monkeypatch, script):
    bench = script("bench_generate")
    model, pairs, _ = tiny(1)
    others = Generated([Decoded("another", 2, 2)] * 6, [], PartCount())
    monkeypatch.setattr(bench, "generate", lambda *arguments: others)
    model.eval()
    with pytest.raises(AssertionError, match="answers must be equal"):
        bench.answers_per_second(model, pairs[:6], 6, 4, 8, repetitions=1)


def test_peers_are_compared_on_equal_results_or_skipped(monkeypatch, script):
    bench = script("bench_peers")
    clock = iter(range(100))
    monkeypatch.setattr(bench.time, "perf_counter", lambda: next(clock) ** 2)
    found = bench.ratios(lambda: [1.0, 2.0], {"same": lambda: [1.0, 2.1], "none": None}, 0.1, repetitions=1)
    assert found == {"same": 1.8, "none": None}  # 5² - 4² over 3² - 2²: the second turn
    with pytest.raises(AssertionError, match="results must be equal, other differs by 1"):
        bench.ratios(lambda: [1.0], {"other": lambda: [2.0]}, 0.1, repetitions=1)
    assert bench.peer("no_such_library") is None
    monkeypatch.setattr(bench, "peer", lambda name: None)
    assert bench.infonce(8, 4, repetitions=1) == {"ClipLoss": None}
    ratios = bench.cached(16, repetitions=1)
    assert len(ratios) == 5
    assert min(ratios.values()) > 0


def test_the_package_is_there_at_once(monkeypatch, capsys, script):
    """Importing torch alone would take fifty times as long as an empty process."""
    bench = script("bench_import")
    monkeypatch.setattr(sys, "argv", ["bench_import.py", "--quick"])
    bench.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["pass"]["ratio"] == 1
    assert figures["import jepa"]["ratio"] < 4
    assert figures["jepa --help"]["ratio"] < 12


def test_prediction_on_demand_is_timed_from_frames_to_texts(monkeypatch, capsys, script):
    """A small model with random weights: every FLOP of a stream, also of the watching."""
    bench = script("bench_on_demand")
    monkeypatch.setattr(sys, "argv", ["bench_on_demand.py", "--quick", "--threads", "1"])
    bench.main()
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["policies"]
    assert figures["uniform"] == {"flops_ratio": 1.0, "seconds_ratio": 1.0, "texts": 20}
    for name in ("on_demand_cache", "on_demand_once_cache"):
        assert figures[name]["flops_ratio"] > figures["gate_cache"]["flops_ratio"] > 0
        assert figures[name]["seconds_ratio"] > 0
        assert 1 <= figures[name]["texts"] < 20


def test_the_sweep_runs_every_value_of_each_policy_once(script):
    bench = script("bench_selective")
    families = bench.configured_families()
    assert {"uniform", "ward_mean", "gate", "oracle"} <= families.keys()
    assert not {"gate_cache", "on_demand_cache"} & families.keys()  # the same policy and values as gate
    gates = list(bench.policies(families["gate"]))
    assert [gate.threshold for gate in gates] == families["gate"]["values"]
    assert all(isinstance(gate, Gate) for gate in gates)
    seconds = bench.segment_seconds(families, [bench.synthetic(seed, 60, 16) for seed in range(2)])
    assert seconds.keys() == families.keys()


def test_a_step_is_timed_and_its_state_weighed(script):
    bench = script("bench_selective")
    gate = bench.gate_steps(200, 64)
    assert gate["microseconds"] > 0
    assert 3 * 64 * 8 < gate["state_bytes_last"] < 4 * 64 * 8 + 2_000
    times = bench.ward_times(100, 8, 2)
    assert times["ours_ms"] > 0
    assert times["ratio"] == pytest.approx(times["ours_ms"] / times["sklearn_ms"], rel=0.05)


def test_the_sweep_of_a_report_is_the_real_one(script, monkeypatch):
    """Half of the streams calibrates; every family of the configuration, its caches and scores are there."""
    bench, seen = script("bench_selective"), []

    def swept(streams, decoder, config, f=bench.sweep_setting, **options):
        found = f(streams, decoder, config, **options)
        seen.append((len(streams["calibration"]), len(streams["test"]), config.workers))
        curves = found.sweep.curves
        assert curves.keys() == config.policies.keys() == bench.report_configuration()["policies"].keys()
        assert all(point.cache is not None for point in curves["gate_cache"].test)
        assert curves["uniform"].test[0].cider_d.value > 5  # the stand-in says what is annotated
        return found

    monkeypatch.setattr(bench, "STEPS", 60)
    monkeypatch.setattr(bench, "sweep_setting", swept)
    seconds = bench.report_sweep(4, 16, 2)
    assert seen == [(2, 2, 2)]
    assert seconds["processor"] > 0
    assert seconds["wall"] > 0
