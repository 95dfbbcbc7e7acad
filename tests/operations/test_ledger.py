"""The operation ledger against counts made by hand."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
from conftest import refuses
from hypothesis import given
from hypothesis import strategies as st

from jepa.operations import PARTS, TRAINING_PARTS, CacheCount, OperationLedger, PartCount, timed_together

WHOLE = st.integers(min_value=0, max_value=10**12)
SECONDS = st.floats(min_value=0, max_value=1e9)


def ledgers() -> st.SearchStrategy[OperationLedger]:
    part = st.builds(PartCount, WHOLE, WHOLE, WHOLE, WHOLE, SECONDS, WHOLE, WHOLE)
    falling = st.lists(WHOLE, min_size=4, max_size=4).map(lambda counts: sorted(counts, reverse=True))
    parts, cache = st.tuples(*[part] * len(PARTS)), st.tuples(falling, SECONDS)
    return st.builds(_ledger, parts, cache, SECONDS, WHOLE, st.lists(SECONDS, max_size=6))


def _ledger(parts: Any, cache: Any, stream: float, steps: int, latencies: list[float]) -> OperationLedger:
    ledger = OperationLedger()
    for name, count in zip(PARTS, parts, strict=True):
        ledger.add(name, count)
    (lookups, hits, audited, wrong), seconds = cache
    ledger.count_cache(lookups=lookups, hits=hits, seconds=seconds, flops=5 * lookups)
    ledger.count_cache(audited=audited, wrong_hits=wrong)
    ledger.stream(stream)
    ledger.steps(steps)
    for latency in latencies:
        ledger.emission(latency)
    return ledger


def test_counts_add_up_as_by_hand() -> None:
    ledger = OperationLedger()
    ledger.count("detector", calls=4, flops=40, seconds=0.125)
    ledger.count("encoder", calls=3, forward_passes=3, flops=3 * 2**70, seconds=0.5, weight_bytes=3 * 2**40)
    ledger.count("predictor", calls=3, forward_passes=3, seconds=0.25)
    ledger.count("decoder", calls=1, forward_passes=8, tokens=7, flops=700, weight_bytes=80, cache_bytes=56)
    more = {"calls": 1, "forward_passes": 6, "tokens": 5, "flops": 500, "weight_bytes": 60, "cache_bytes": 30}
    ledger.count("decoder", seconds=2.0, **more)
    ledger.count_cache(lookups=3, hits=1, seconds=0.0625, flops=6)
    ledger.count_cache(lookups=2, hits=2, flops=4)
    ledger.count_cache(audited=2, wrong_hits=1)
    ledger.stream(1.5)
    ledger.stream(2.5)
    ledger.steps(3)
    ledger.steps(5)
    for latency in (1.0, 4.0, 2.0, 3.0):
        ledger.emission(latency)

    assert ledger.detector == PartCount(calls=4, flops=40, seconds=0.125)
    decoder = {"calls": 2, "forward_passes": 14, "tokens": 12, "flops": 1200, "seconds": 2.0}
    decoder |= {"weight_bytes": 140, "cache_bytes": 86}
    assert ledger.decoder == PartCount(**decoder)
    assert ledger.cache == CacheCount(lookups=5, hits=3, audited=2, wrong_hits=1, seconds=0.0625, flops=10)
    assert ledger.total_flops == 40 + 3 * 2**70 + 1200 + 10
    assert ledger.total_seconds == 0.125 + 0.5 + 0.25 + 2.0 + 0.0625
    assert ledger.to_dict() == {
        "detector": asdict(PartCount(calls=4, flops=40, seconds=0.125)),
        "encoder": asdict(PartCount(3, 3, flops=3 * 2**70, seconds=0.5, weight_bytes=3 * 2**40)),
        "predictor": asdict(PartCount(calls=3, forward_passes=3, seconds=0.25)),
        "decoder": decoder,
        "cache": {"lookups": 5, "hits": 3, "audited": 2, "wrong_hits": 1, "seconds": 0.0625, "flops": 10},
        "stream_seconds": 4.0,
        "steps": 8,
        # Sorted 1 2 3 4: the median is halfway from 2 to 3, the 95th percentile 0.95 * 3 = 2.85 steps up.
        "latency_seconds": {"count": 4, "mean": 2.5, "p50": 2.5, "p95": pytest.approx(3.85), "max": 4.0},
        "latencies": [1.0, 4.0, 2.0, 3.0],
    }


def test_nothing_emitted_has_no_latency() -> None:
    summary = OperationLedger().to_dict()["latency_seconds"]
    assert summary == {"count": 0, "mean": None, "p50": None, "p95": None, "max": None}


@given(ledgers())
def test_round_trip_through_json_is_exact(ledger: OperationLedger) -> None:
    record = json.loads(json.dumps(ledger.to_dict(), allow_nan=False))
    again = OperationLedger.from_dict(record)
    assert again == ledger
    assert again.to_dict() == ledger.to_dict()


@given(st.tuples(*[st.builds(PartCount, WHOLE, WHOLE, flops=WHOLE, seconds=SECONDS)] * len(TRAINING_PARTS)), WHOLE)
def test_round_trip_of_training_steps_is_exact(counts: Any, steps: int) -> None:
    ledger = OperationLedger(TRAINING_PARTS)
    for part, count in zip(TRAINING_PARTS, counts, strict=True):
        ledger.add(part, count)
    ledger.steps(steps)
    again = OperationLedger.from_dict(json.loads(json.dumps(ledger.to_dict())))
    assert again == ledger
    assert again != OperationLedger()
    assert (again + ledger).to_dict()["optimizer"]["flops"] == 2 * ledger.to_dict()["optimizer"]["flops"]


def test_ledgers_of_other_parts_are_told_apart() -> None:
    ledger, trained = _some_ledger(), OperationLedger(TRAINING_PARTS)
    trained.count("encoder", calls=1)
    for one, other in ((ledger, trained), (trained, ledger)):
        refuses("ledgers must have the same parts, got", one.merge, other)
    assert ledger == _some_ledger()
    assert trained.encoder == PartCount(calls=1)
    refuses(r"part must be one of encoder, .*, optimizer, got 'detector'", lambda: trained.detector)
    refuses(r"parts must be \('detector', .* got \('encoder', 'other'\)", OperationLedger, ["encoder", "other"])


@given(ledgers(), ledgers())
def test_sum_counts_both_and_leaves_them_alone(one: OperationLedger, other: OperationLedger) -> None:
    before = one.to_dict(), other.to_dict()
    total = one + other
    for part in PARTS:
        for name in ("calls", "forward_passes", "tokens", "flops", "seconds", "weight_bytes", "cache_bytes"):
            parts = [getattr(getattr(ledger, part), name) for ledger in (one, other)]
            assert getattr(getattr(total, part), name) == sum(parts)
    for name in ("lookups", "hits", "audited", "wrong_hits", "seconds", "flops"):
        assert getattr(total.cache, name) == getattr(one.cache, name) + getattr(other.cache, name)
    assert total.total_flops == one.total_flops + other.total_flops
    assert total.stream_seconds == one.stream_seconds + other.stream_seconds
    assert total.step_count == one.step_count + other.step_count
    assert total.latencies == one.latencies + other.latencies
    assert (one.to_dict(), other.to_dict()) == before
    one.merge(other)
    assert one == total


def test_timed_adds_the_wall_time_of_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = OperationLedger()
    with monkeypatch.context() as patched:
        patched.setattr(time, "perf_counter", iter([1.0, 3.5, 10.0, 10.25]).__next__)
        for _ in range(2):
            with ledger.timed("decoder"):
                pass
    assert ledger.decoder.seconds == 2.5 + 0.25
    assert ledger.encoder.seconds == 0


def test_timed_adds_nothing_for_a_block_that_raises() -> None:
    ledger = OperationLedger()
    with pytest.raises(KeyError), ledger.timed("decoder"):
        raise KeyError
    assert ledger == OperationLedger()


def _some_ledger() -> OperationLedger:
    return _ledger([PartCount(1, 2, 3, 4, 4.0, 5, 6)] * 4, ((8, 6, 4, 2), 0.5), 5.0, 6, [7.0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: x.timed("vit").__enter__(), "part must be one of detector, encoder, predictor, decoder, got 'vit'"),
        (lambda x: x.count("decoder", calls=2, tokens=-1), "tokens must be a whole number >= 0, got -1"),
        (lambda x: x.count("encoder", flops=1e12), "flops must be a whole number >= 0, got 1000000000000.0"),
        (lambda x: x.count("decoder", calls=1, seconds=-0.1), "seconds must be finite and >= 0, got -0.1"),
        (lambda x: x.count_cache(lookups=1, hits=-1), "hits must be a whole number >= 0, got -1"),
        (lambda x: x.count_cache(lookups=1, hits=5), "lookups >= hits >= .*lookups=9, hits=11"),
        (lambda x: x.count_cache(audited=1, wrong_hits=4), "audited >= wrong_hits must hold, .*wrong_hits=6"),
        (lambda x: x.emission(float("nan")), "latency_seconds must be finite and >= 0, got nan"),
        (lambda x: x.stream(-1.0), "seconds must be finite and >= 0, got -1.0"),
        (lambda x: x.steps(-2), "n must be a whole number >= 0, got -2"),
    ],
)
def test_refusals_leave_the_ledger_as_it_was(call: Any, message: str) -> None:
    ledger = _some_ledger()
    refuses(message, call, ledger)
    assert ledger == _some_ledger()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.pop("steps"), "a ledger must have the keys detector, .*, steps, .* got"),
        (lambda r: r.pop("cache"), "a ledger must have the keys .*, cache, .* got"),
        (lambda r: r.update(decoder=3), "a ledger's decoder must be a mapping, got 3"),
        (lambda r: r["decoder"].pop("weight_bytes"), "a ledger's decoder must have the keys .*, weight_bytes, .* got"),
        (lambda r: r["cache"].pop("flops"), "a ledger's cache must have the keys .*, flops, got"),
        (lambda r: r["cache"].update(hits=9), "lookups >= hits >= audited >= wrong_hits must hold"),
        (lambda r: r["encoder"].update(calls=-1), "calls must be a whole number >= 0, got -1"),
        (lambda r: r.update(latencies=0.5), "a ledger's latencies must be a list of seconds, got 0.5"),
    ],
)
def test_a_damaged_record_is_refused(change: Any, message: str) -> None:
    record = _some_ledger().to_dict()
    change(record)
    refuses(message, OperationLedger.from_dict, record)


def test_what_several_compute_together_counts_in_full_for_each_and_once():
    one, other, alone = OperationLedger(), OperationLedger(), OperationLedger()
    with alone.timed("encoder"), timed_together("encoder", [one, other, one]):
        sum(range(10_000))
    assert one.encoder == other.encoder
    assert 0 < one.encoder.seconds <= alone.encoder.seconds
