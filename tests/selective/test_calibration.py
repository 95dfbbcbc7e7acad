"""Errors of a cache against runs of the selective decoder with and without it, and against scipy's intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conftest import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from jepa.selective import (
    Decoded,
    ErrorRate,
    Gate,
    LatentCache,
    SelectiveDecoder,
    Uniform,
    calibrate_threshold,
    decode_segments,
    measured_error,
)
from jepa.selective.calibration import replay

MEANINGS = np.random.default_rng(0).standard_normal((12, 32))
MEANINGS[6:] = MEANINGS[:6] + 0.5 * MEANINGS[6:]  # six pairs, near each other
MEANINGS /= np.linalg.norm(MEANINGS, axis=1, keepdims=True)


class Nearest:
    """Says the number of the nearest meaning."""

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        numbers = (latents.double().numpy() @ MEANINGS.T).argmax(axis=1)
        return [Decoded(str(number), tokens=1, forward_passes=1) for number in numbers]


def recorded(seed: int, streams: int, steps: int, noise: float = 0.6) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(streams):
        rows = np.repeat(MEANINGS[rng.integers(0, len(MEANINGS), steps)], rng.integers(1, 6, steps), axis=0)[:steps]
        rows = rows + noise / np.sqrt(rows.shape[1]) * rng.standard_normal(rows.shape)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        made.append((rows.astype(np.float32), 0.5 * np.arange(steps)))
    return made


def replayed(cache: LatentCache, streams: Any) -> ErrorRate:
    """The error of a cache over decoded streams, by its look-ups."""
    counts = []
    for latents, texts in streams:
        cache.start()
        found = []
        for latent, text in zip(latents.astype(np.float32), texts, strict=True):
            entry, hit = cache.look_up(latent)
            entry.decoded = entry.decoded or Decoded(text, 1, 1)
            found.append((entry.decoded.text != text, hit, 1))
        counts.append(np.sum(found, axis=0))
    return measured_error(*np.transpose(counts))


@given(
    seed=st.integers(0, 10**6),
    threshold=st.floats(0, 0.5),
    capacity=st.integers(0, 10),
    shared=st.booleans(),
    pooled=st.booleans(),
)
@settings(max_examples=40)
def test_a_replay_finds_the_texts_that_the_cache_changed(
    seed: int, threshold: float, capacity: int, shared: bool, pooled: bool
) -> None:
    streams = recorded(seed, 3, 60)
    policy = Gate(1.0) if pooled else Uniform(1.0)
    cache = LatentCache(threshold, capacity, shared=shared)
    plain = SelectiveDecoder(policy, Nearest()).run_many(streams)
    cached = SelectiveDecoder(policy, Nearest(), cache=cache)
    emissions = cached.run_many(streams)
    pairs = [pair for both in zip(emissions, plain, strict=True) for pair in zip(*both, strict=True)]
    decoded = decode_segments(policy, Nearest(), streams, batch_size=7)
    expected = [([e.text for e in emitted], [e.source == "cache" for e in emitted]) for emitted in emissions]
    assert replay(cache, decoded) == expected
    found = replayed(cache.fresh(), decoded)
    assert found.wrong == sum(one.text != other.text for one, other in pairs)
    assert found.hits == sum(one.source == "cache" for one, _ in pairs) == cached.ledger.cache.hits
    assert found.lookups == len(pairs) == cached.ledger.cache.lookups
    assert found.value == found.wrong / len(pairs)
    assert cached.ledger.decoder.calls == found.lookups - found.hits


def test_interval_of_one_stream_is_clopper_and_pearsons() -> None:
    for steps in (100, 300):
        found = replayed(LatentCache(0.3, 64), decode_segments(Uniform(2.0), Nearest(), recorded(3, 1, steps)))
        exact = binomtest(found.wrong, found.lookups).proportion_ci(method="exact")
        assert (found.low, found.high) == pytest.approx((exact.low, exact.high))
        assert found.wrong > 0
    none = replayed(LatentCache(-1, 4), [(MEANINGS, ["a"] * 12)])
    assert (none.wrong, none.low, none.high) == (0, 0, pytest.approx(binomtest(0, 12).proportion_ci().high))


def test_interval_of_streams_that_differ_is_wider() -> None:
    rows = np.tile(MEANINGS[:1], (100, 1))
    good, bad = (rows, ["same"] * 100), (rows, [str(i) for i in range(100)])
    found = replayed(LatentCache(0.1, 4), [good] * 5 + [bad] * 5)
    assert found.wrong == 5 * 99
    exact = binomtest(found.wrong, found.lookups).proportion_ci(method="exact")
    # Of 10 streams the bad ones drawn are binomial (10, 1/2), between 2 and 8 with 97.9 %.
    assert (found.low, found.high) == pytest.approx((0.2 * 0.99, 0.8 * 0.99), abs=0.1)
    assert found.low < exact.low
    assert found.high > exact.high


def test_threshold_lies_between_what_is_right_and_what_is_wrong() -> None:
    """Each stream repeats a latent at growing distances; from 0.2 on the text is another one."""
    distances = np.concatenate([np.linspace(0.001, 0.19, 60), np.linspace(0.21, 0.6, 60)])
    streams = []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        axes = np.linalg.qr(rng.standard_normal((256, 256)))[0]
        rows, texts = [], []
        for i, d in enumerate(rng.permutation(distances)):
            one, other = axes[2 * i], axes[2 * i + 1]
            rows += [one, (1 - d) * one + np.sqrt(1 - (1 - d) ** 2) * other]
            texts += [f"{i}", f"{i}" if d < 0.2 else f"not {i}"]
        streams.append((np.array(rows), texts))
    found = calibrate_threshold(streams, 0.01, capacity=8)
    assert 0.19 <= found.threshold <= 0.225  # 0.01 of 240 look-ups: two wrong ones at most
    assert found.measured.hits >= 6 * 60
    assert found.bound <= 0.01
    found = calibrate_threshold(streams, 0.1, capacity=8)
    # Wrong look-ups grow by one of 240 every 0.39 / 59 from 0.21 on; candidates are 1 % of the distances apart.
    assert -0.06 <= found.threshold - (0.21 + 24 * 0.39 / 59) <= 0


@pytest.mark.parametrize("shared", [False, True])
def test_the_error_measured_at_the_threshold_is_that_of_a_replay(shared: bool) -> None:
    streams = decode_segments(Uniform(2.0), Nearest(), recorded(5, 8, 80))
    found = calibrate_threshold(streams, 0.2, capacity=16, shared=shared)
    again = replayed(LatentCache(found.threshold, 16, shared=shared), streams)
    assert (found.measured.wrong, found.measured.hits, found.measured.lookups) == (again.wrong, again.hits, 640)
    assert again.hits > 0


def test_error_on_other_streams_is_as_low_as_asked_for() -> None:
    kept = []
    for seed in range(20):
        held_out, fresh = (decode_segments(Uniform(2.0), Nearest(), recorded(seed + k, 8, 80)) for k in (100, 200))
        found = calibrate_threshold(held_out, 0.05, capacity=16, seed=seed)
        assert found.bound <= 0.05
        assert found.measured.hits > 0
        kept.append(replayed(LatentCache(found.threshold, 16), fresh).value <= 0.05)
    assert sum(kept) >= 17  # 95 % of 20 are 19


def test_too_few_lookups_give_a_cache_that_never_hits() -> None:
    found = calibrate_threshold([(MEANINGS, list("abcdefghijkl"))] * 2, 0.01, capacity=8)
    assert found.threshold == -1
    assert found.measured.hits == found.measured.wrong == 0
    assert calibrate_threshold([(MEANINGS[:1], ["a"])] * 200, 0.02, capacity=8).threshold == 0


GOOD = (MEANINGS, ["x"] * 12)


@pytest.mark.parametrize(
    ("streams", "options", "message"),
    [
        ([], {}, "streams must hold at least one stream, got none"),
        ([GOOD], {}, "streams must be at least 2 for a bootstrap over streams, got 1"),
        ([GOOD, GOOD], {"error_rate": 0.0}, "error_rate must be in (0, 1), got 0.0"),
        ([GOOD, (MEANINGS[:, :9], ["x"] * 12)], {"shared": True}, "stream 1: latents must have the width 32"),
        ([GOOD, GOOD], {"capacity": -1}, "capacity must be a whole number >= 0, got -1"),
        ([GOOD, (MEANINGS, ["x"] * 11)], {}, "stream 1: latents .* got (12, 32) and 11 texts"),
        ([GOOD, (MEANINGS * np.nan, ["x"] * 12)], {}, "stream 1: latents must be finite and not zero"),
    ],
)
def test_bad_input_is_named(streams: Any, options: dict[str, Any], message: str) -> None:
    pattern = message.replace("(", r"\(").replace(")", r"\)")
    refuses(pattern, calibrate_threshold, streams, **{"error_rate": 0.1, "capacity": 4} | options)
