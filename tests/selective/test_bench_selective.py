"""The benchmark of the policies on tiny streams: what it times is what it says."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from jepa.selective import Gate


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("bench_selective")


def test_the_sweep_runs_every_value_of_each_policy_once(bench: ModuleType) -> None:
    families = bench.configured_families()
    assert {"uniform", "ward_mean", "gate", "oracle"} <= families.keys()
    assert not {"gate_cache", "on_demand_cache"} & families.keys()  # the same policy and values as gate
    gates = list(bench.policies(families["gate"]))
    assert [gate.threshold for gate in gates] == families["gate"]["values"]
    assert all(isinstance(gate, Gate) for gate in gates)
    seconds = bench.segment_seconds(families, [bench.synthetic(seed, 60, 16) for seed in range(2)])
    assert seconds.keys() == families.keys()


def test_a_step_is_timed_and_its_state_weighed(bench: ModuleType) -> None:
    gate = bench.gate_steps(200, 64)
    assert gate["microseconds"] > 0
    assert 3 * 64 * 8 < gate["state_bytes_last"] < 4 * 64 * 8 + 2_000
    times = bench.ward_times(100, 8, 2)
    assert times["ours_ms"] > 0
    assert times["ratio"] == pytest.approx(times["ours_ms"] / times["sklearn_ms"], rel=0.05)


def test_the_sweep_of_a_report_is_the_real_one(bench: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the streams calibrates; every family of the configuration, its caches and scores are there."""
    seen: list[tuple[int, int, int]] = []

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
