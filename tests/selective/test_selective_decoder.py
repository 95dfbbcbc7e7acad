"""The selective decoder: live and recorded streams agree, work is counted, bad input changes nothing."""

from __future__ import annotations

import hashlib
import pickle
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refusals, refuses, without_seconds
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.operations import OperationLedger
from jepa.selective import (
    Budget,
    Decoded,
    Emission,
    Gate,
    LatentCache,
    LocalVariance,
    LongestGap,
    Policy,
    PredictionError,
    SelectiveDecoder,
    SendOnDelta,
    StandingText,
    Uniform,
    Ward,
    decode_together,
)

POLICIES = [partial(Uniform, 0.7), partial(Ward, 0.4, "midpoint"), partial(Ward, 0.4, "mean"), partial(Gate, 1.0)]
EVERY_POLICY = pytest.mark.parametrize("build", [partial(Uniform, 0.7, pool=True), *POLICIES])


class Digest:
    """A decoder whose text, tokens, passes and FLOPs are a function of the bits of the latent."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        assert latents.dtype == torch.float32
        self.batches.append(len(latents))
        texts = [hashlib.sha256(row.tobytes()).hexdigest() for row in latents.numpy()]
        numbers = [int(text[0], 16) for text in texts]
        return [Decoded(t, tokens=n, forward_passes=n + 1, flops=10 * n) for t, n in zip(texts, numbers, strict=True)]


def stream(seed: int, steps: int, width: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((steps, width))[np.cumsum(rng.random(steps) < 0.2) % steps]
    latents = centres + 0.3 * rng.standard_normal((steps, width))
    latents /= np.linalg.norm(latents, axis=1, keepdims=True)
    return latents.astype(np.float32), rng.uniform(0.4, 0.6, steps).cumsum()


def live(decoder: SelectiveDecoder, latents: np.ndarray, times: np.ndarray) -> list[Emission]:
    emissions = [e for latent, t in zip(latents, times, strict=True) for e in decoder.step(latent, t)]
    return emissions + decoder.finish()


def counts(ledger: OperationLedger) -> dict[str, Any]:
    return without_seconds(ledger.to_dict())


CACHES = st.tuples(st.floats(-0.1, 0.6), st.integers(0, 5), st.booleans())
OPTIONS = st.fixed_dictionaries(
    {
        "latent_delay": st.floats(0, 2),
        "batch_size": st.integers(1, 5),
        "max_delay": st.sampled_from([0.0, 0.3, 2.0, 60.0]),
    }
)


def new_cache(cache: tuple[float, int, bool] | None) -> LatentCache | None:
    return None if cache is None else LatentCache(*cache[:2], shared=cache[2])


@EVERY_POLICY
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 60), cache=st.none() | CACHES, options=OPTIONS)
@settings(max_examples=25)
def test_step_equals_run(
    build: Callable[[], Policy], seed: int, steps: int, cache: tuple[float, int, bool] | None, options: dict[str, Any]
) -> None:
    streams = [stream(seed, steps), stream(seed + 1, 30)]
    one, other, third = (SelectiveDecoder(build(), Digest(), cache=new_cache(cache), **options) for _ in range(3))
    emissions = [live(one, *recorded) for recorded in streams]
    assert emissions == [other.run(*recorded) for recorded in streams]
    assert emissions == third.run_many(streams)
    assert counts(one.ledger) == counts(other.ledger) == counts(third.ledger)


class Likes:
    """Says that a text fits where both begin alike."""

    def likelihood(self, latent: np.ndarray, text: str) -> tuple[float, int]:
        return -float(latent[0] > 0 or text[0] > "7"), 10


@given(seed=st.integers(0, 10**6), kinds=st.lists(st.none() | st.just(StandingText) | CACHES, min_size=1, max_size=4))
@settings(max_examples=25)
def test_streams_that_are_decoded_together_are_decoded_as_each_alone(seed: int, kinds: list[Any]) -> None:
    def made(decoder: Digest) -> list[SelectiveDecoder]:
        caches = [StandingText(0.5, Likes()) if kind is StandingText else new_cache(kind) for kind in kinds]
        return [SelectiveDecoder(Gate(0.5), decoder, cache=cache) for cache in caches]

    recorded, digest = [stream(seed + number, 30) for number in range(len(kinds))], Digest()
    alone, together = made(Digest()), made(digest)
    expected = [live(decoder, *each) for decoder, each in zip(alone, recorded, strict=True)]
    emissions: list[list[Emission]] = [[] for _ in kinds]
    for step in range(30):
        pairs = zip(together, recorded, strict=True)
        works = [decoder.stepping(latents[step], times[step]) for decoder, (latents, times) in pairs]
        for own, new in zip(emissions, decode_together(works), strict=True):
            own += new
    assert [own + decoder.finish() for own, decoder in zip(emissions, together, strict=True)] == expected
    assert [counts(decoder.ledger) for decoder in together] == [counts(decoder.ledger) for decoder in alone]
    assert sum(digest.batches) == sum(decoder.ledger.decoder.calls for decoder in alone)


@EVERY_POLICY
@given(seed=st.integers(0, 10**6), cache=st.none() | CACHES, options=OPTIONS)
@settings(max_examples=25)
def test_micro_batches_change_nothing_but_the_moment(
    build: Callable[[], Policy], seed: int, cache: tuple[float, int, bool] | None, options: dict[str, Any]
) -> None:
    latents, times = stream(seed, 50)
    digest = Digest()
    at_once = SelectiveDecoder(build(), Digest(), cache=new_cache(cache)).run(latents, times)
    batched = SelectiveDecoder(build(), digest, cache=new_cache(cache), **options)
    emissions = live(batched, latents, times)
    delay, longest = options["latent_delay"], options["max_delay"]
    for now, then in zip(at_once, emissions, strict=True):
        assert replace(then, emitted_at=now.emitted_at) == now
        # The step that ends the wait is the first after it: 0.6 s at most between two.
        assert now.emitted_at + delay <= then.emitted_at <= now.emitted_at + delay + longest + (0.6 if longest else 0)
    assert [e.emitted_at for e in emissions] == sorted(e.emitted_at for e in emissions)
    assert max(digest.batches) <= options["batch_size"]
    assert sum(digest.batches) == batched.ledger.decoder.calls == sum(e.source == "decoder" for e in emissions)


@pytest.mark.parametrize(("capacity", "steps"), [(0, 5), (4, 3), (4, 9)])
def test_a_look_up_takes_two_flops_for_each_number_of_the_keys_held(capacity: int, steps: int) -> None:
    cache = LatentCache(-1.0, capacity)  # nothing hits: min(i, C) keys are held at look-up i
    decoder = SelectiveDecoder(Uniform(1.0), Digest(), cache=cache)
    latents, times = np.eye(9, dtype=np.float32)[:steps], np.arange(float(steps))
    for stream_number in (1, 2):
        decoder.run(latents, times)
        expected = stream_number * 2 * 9 * sum(min(i, capacity) for i in range(steps))
        assert decoder.ledger.cache.flops == expected
    assert decoder.ledger.total_flops == expected + decoder.ledger.decoder.flops
    cache.threshold = 2.0  # every look-up but the first hits its one key
    decoder.run(latents, times)
    assert decoder.ledger.cache.flops == expected + 2 * 9 * (steps - 1 if capacity else 0)


@EVERY_POLICY
@given(seed=st.integers(0, 10**6), cache=CACHES)
@settings(max_examples=25)
def test_a_hit_has_the_text_of_the_latent_it_hit(
    build: Callable[[], Policy], seed: int, cache: tuple[float, int, bool]
) -> None:
    streams = [stream(seed + i, 40) for i in range(3)]
    decoder = SelectiveDecoder(build(), Digest(), cache=new_cache(cache))
    expected, by_hand = [], LatentCache(*cache[:2], shared=cache[2])
    hits = 0
    for latents, times in streams:
        texts = {}
        by_hand.start()
        for segment, _ in build().run(latents, times):
            entry, hit = by_hand.look_up(segment.latent)
            if not hit:
                [entry.decoded] = Digest().decode(torch.from_numpy(segment.latent)[None])
            hits += hit
            texts[segment.start] = (entry.decoded.text, "cache" if hit else "decoder")
        expected.append(texts)
    emissions = decoder.run_many(streams)
    assert [{e.start: (e.text, e.source) for e in emitted} for emitted in emissions] == expected
    count = decoder.ledger.cache
    assert (count.lookups, count.hits) == (sum(map(len, expected)), hits)
    assert decoder.ledger.decoder.calls == count.lookups - count.hits
    assert len(decoder.ledger.latencies) == count.lookups


@EVERY_POLICY
def test_many_streams_in_batches_equal_one_by_one(build: Callable[[], Policy]) -> None:
    streams = [stream(seed, steps, width) for seed, (steps, width) in enumerate([(40, 6), (1, 6), (33, 4), (20, 4)])]
    single, batched = (SelectiveDecoder(build(), Digest()), SelectiveDecoder(build(), digest := Digest(), batch_size=5))
    expected = [single.run(latents, times) for latents, times in streams]
    assert batched.run_many(streams) == expected
    assert counts(batched.ledger) == counts(single.ledger)
    by_width = [len(expected[0]) + len(expected[1]), len(expected[2]) + len(expected[3])]
    assert digest.batches == [min(5, n - i) for n in by_width for i in range(0, n, 5)]


def test_tensors_and_arrays_are_alike() -> None:
    latents, times = stream(0, 30)
    decoder = SelectiveDecoder(Gate(1.0), Digest())
    expected = decoder.run(latents, times)
    tensor = torch.from_numpy(latents).requires_grad_()
    assert decoder.run(tensor, torch.from_numpy(times)) == expected
    assert decoder.run(latents, times.tolist()) == expected
    emissions = [e for latent, t in zip(tensor, times, strict=True) for e in decoder.step(latent, t)]
    assert emissions + decoder.finish() == expected


def test_emissions_and_counts_of_a_stream_worked_out_by_hand() -> None:
    one, other = np.eye(2, 3, dtype=np.float32)
    latents, times = np.stack([one] * 4 + [other] * 3), 10 + 0.5 * np.arange(7)
    ledger = OperationLedger()
    decoder = SelectiveDecoder(Gate(1.0), Digest(), ledger, latent_delay=0.25)
    emissions = live(decoder, latents, times)
    # The change at 12.0 s is seen when two steps of it are in, at 12.5 s; the last step is at 13.0 s.
    decoded = Digest().decode(torch.from_numpy(np.stack([one, other])))
    assert emissions == [
        Emission(decoded[0].text, time=10.75, start=10.0, end=11.5, emitted_at=12.75, source="decoder"),
        Emission(decoded[1].text, time=12.5, start=12.0, end=13.0, emitted_at=13.25, source="decoder"),
    ]
    assert ledger.latencies == [2.75, 1.25]
    assert ledger.step_count == 7
    assert ledger.decoder.calls == 2
    assert ledger.decoder.tokens == decoded[0].tokens + decoded[1].tokens
    assert ledger.decoder.forward_passes == ledger.decoder.tokens + 2
    assert ledger.decoder.flops == ledger.total_flops == 10 * ledger.decoder.tokens
    assert ledger.decoder.seconds > 0
    assert counts(ledger)["encoder"] == counts(OperationLedger())["encoder"]
    assert ledger.stream_seconds == 0  # the reader of the stream knows its duration


# --- Cache and micro-batches, by hand

BASIS = np.eye(6, dtype=np.float32)


def test_waiting_hits_and_batches_by_hand() -> None:
    """Steps 1 s apart, each a segment: letters are latents, the cache holds all, batches are of 2, waits 3 s."""
    letters = "aabacdee"
    #          0: a misses and waits, due at 3; 1: a hits behind it; 2: b misses, the batch of a and b is full: all go.
    #          3: a hits, nothing waits: it goes at once. 4, 5: c and d fill a batch. 6: e waits, 7: e hits behind it.
    latents, times = BASIS[["abcde".index(letter) for letter in letters]], np.arange(8.0)
    digest = Digest()
    options: dict[str, Any] = {"batch_size": 2, "max_delay": 3.0, "latent_delay": 0.5}
    decoder = SelectiveDecoder(Uniform(1.0), digest, cache=LatentCache(0.1, 8), **options)
    emitted = [decoder.step(latent, time) for latent, time in zip(latents, times, strict=True)] + [decoder.finish()]
    assert [[e.time for e in emissions] for emissions in emitted] == [
        [], [], [0, 1, 2], [3], [], [4, 5], [], [], [6, 7],
    ]  # fmt: skip
    flat = [e for emissions in emitted for e in emissions]
    assert [e.emitted_at for e in flat] == [2.5, 2.5, 2.5, 3.5, 5.5, 5.5, 7.5, 7.5]
    assert [e.source[0] for e in flat] == list("dcdcdddc")
    assert [e.text for e in flat] == [d.text for d in Digest().decode(torch.from_numpy(latents))]
    assert digest.batches == [2, 2, 1]
    assert decoder.ledger.latencies == [2.5, 1.5, 0.5, 0.5, 1.5, 0.5, 1.5, 0.5]
    # Without a second miss the wait of the first ends it, at the first step 3 s later.
    assert [e.emitted_at for e in decoder.run(BASIS[[0, 0, 0, 0, 0]], [0.0, 1.0, 2.0, 3.5, 4.5])] == [4.0] * 4 + [5.0]


def test_a_stream_that_is_dropped_leaves_no_latent_without_text() -> None:
    decoder = SelectiveDecoder(Uniform(1.0), Digest(), cache=LatentCache(0.1, 8, shared=True), max_delay=60.0)
    decoder.run(BASIS[:1], [0.0])
    assert decoder.step(BASIS[1], 0.0) == []  # waits
    decoder.start()
    emissions = decoder.run(BASIS[:2], [0.0, 1.0])
    assert [e.source for e in emissions] == ["cache", "decoder"]


def test_a_decoder_that_fails_leaves_no_latent_without_text() -> None:
    class Failing(Digest):
        fails = False

        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            if self.fails:
                raise MemoryError
            return super().decode(latents)

    failing = Failing()
    decoder = SelectiveDecoder(Uniform(1.0), failing, cache=LatentCache(0.1, 8, shared=True))
    decoder.step(BASIS[0], 0.0)
    failing.fails = True
    with pytest.raises(MemoryError):
        decoder.step(BASIS[1], 1.0)
    decoder.start()
    with pytest.raises(MemoryError):
        decoder.run(BASIS[[0, 1, 2]], np.arange(3.0))
    decoder.start()
    other = SelectiveDecoder(Uniform(1.0), failing, cache=LatentCache(0.1, 8, shared=True))
    with pytest.raises(MemoryError):
        decode_together([decoder.stepping(BASIS[1], 0.0), other.stepping(BASIS[2], 0.0)])
    decoder.start()
    other.start()
    failing.fails = False
    emissions = decoder.run(BASIS[[0, 1, 1, 2]], np.arange(4.0))
    assert [e.source for e in emissions] == ["cache", "decoder", "cache", "decoder"]
    assert [e.source for e in other.run(BASIS[[2, 2]], np.arange(2.0))] == ["decoder", "cache"]
    assert failing.batches[-3:] == [1, 2, 1]


def test_an_emission_says_who_found_its_text() -> None:
    class Bank:
        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            return [Decoded("found", tokens=0, forward_passes=0, flops=12, source="bank")] * len(latents)

    decoder = SelectiveDecoder(Uniform(1.0), Bank(), cache=LatentCache(0.1, 8))
    assert [e.source for e in decoder.run(BASIS[[0, 0, 1]], np.arange(3.0))] == ["bank", "cache", "bank"]
    assert (decoder.ledger.decoder.calls, decoder.ledger.decoder.flops) == (2, 24)


def test_streams_that_share_a_cache_must_have_its_width() -> None:
    decoder = SelectiveDecoder(Uniform(1.0), digest := Digest(), cache=LatentCache(0.1, 8, shared=True))
    other = np.eye(5, dtype=np.float32)
    streams = [(BASIS[:2], [0.0, 1.0]), (other, np.arange(5.0))]
    refuses(r"stream 1: latents must be as wide as .* a shared cache, 6, got 5", decoder.run_many, streams)
    assert (digest.batches, decoder.ledger) == ([], OperationLedger())
    decoder.run(BASIS, np.arange(6.0))
    for call in (lambda: decoder.run(other, np.arange(5.0)), lambda: decoder.step(other[0], 0.0)):
        refuses("latents must be as wide", call)
    SelectiveDecoder(Uniform(1.0), digest, cache=LatentCache(0.1, 8)).run_many(streams)


# --- What is refused

GOOD, TIMES = stream(1, 6)


def changed(values: np.ndarray, index: Any, value: Any) -> np.ndarray:
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("latent", "time", "message"),
    [
        (changed(GOOD[3], 2, np.nan), 9.0, "latents must be finite, got norm nan at step 3"),
        (changed(GOOD[3], 0, -np.inf), 9.0, "latents must be finite, got norm inf at step 3"),
        (GOOD[3] * 0.5, 9.0, "latents must have unit norm within 0.001, got norm 0.5 at step 3"),
        (GOOD[3] * 0, 9.0, "latents must have unit norm within 0.001, got norm 0 at step 3"),
        (GOOD[3:4], 9.0, "latents must have the shape (T, E), (E,) of each step, got (1, 1, 6)"),
        (np.ones(1, np.float32), 9.0, "latents must be as wide as those before or in a shared cache, 6, got 1"),
        (GOOD[3], 8.0, "times must strictly increase, got 8.0 after 8.0 at step 3"),
        (GOOD[3], float("nan"), "times must be finite, got nan after 8.0 at step 3"),
        (GOOD[3], float("inf"), "times must be finite, got inf after 8.0 at step 3"),
    ],
)
@EVERY_POLICY
def test_a_bad_step_is_refused_and_the_stream_goes_on(
    build: Callable[[], Policy], latent: np.ndarray, time: float, message: str
) -> None:
    times = 7.0 + 0.5 * np.arange(6)
    decoder = SelectiveDecoder(build(), Digest())
    emissions = [e for i in range(3) for e in decoder.step(GOOD[i], times[i])]
    before = pickle.dumps((decoder.policy, counts(decoder.ledger)))
    assert refuses("", decoder.step, latent, time) == message
    assert pickle.dumps((decoder.policy, counts(decoder.ledger))) == before
    emissions += [e for i in range(3, 6) for e in decoder.step(GOOD[i], times[i])] + decoder.finish()
    clean = SelectiveDecoder(build(), Digest())
    assert emissions == clean.run(GOOD, times)
    assert counts(decoder.ledger) == counts(clean.ledger)


@pytest.mark.parametrize(
    ("latents", "times", "message"),
    [
        ([], [], "stream is empty: latents and times must hold at least one step, got 0"),
        (np.zeros((0, 6)), [], "stream is empty: latents and times must hold at least one step, got 0"),
        (GOOD[0], TIMES, "latents must have the shape (T, E), (E,) of each step, got (6,)"),
        (np.zeros((6, 0)), TIMES, "latents must have the shape (T, E), (E,) of each step, got (6, 0)"),
        (GOOD, TIMES[:, None], "times must have the shape (T,), got (6, 1)"),
        (GOOD, TIMES[:4], "latents and times must have equal lengths, got 6 and 4"),
        (changed(GOOD, (4, 1), np.nan), TIMES, "latents must be finite, got norm nan at "),
        (changed(GOOD, 2, 1.0), TIMES, "latents must have unit norm within 0.001, got norm 2.44949 at "),
        (GOOD, [0.0, 0.5, 1.0, 0.5, 2.0, 1.0], "times must strictly increase, got 0.5 after 1.0 at step 3"),
        (GOOD, [0.0, 0.5, np.nan, 1.5, 2.0, 2.5], "times must be finite, got nan after 0.5 at step 2"),
    ],
)
@EVERY_POLICY
def test_a_bad_recording_is_refused_as_a_whole(
    build: Callable[[], Policy], latents: Any, times: Any, message: str
) -> None:
    digest = Digest()
    decoder = SelectiveDecoder(build(), digest)
    for call, prefix in [
        (lambda: decoder.run(latents, times), ""),
        (lambda: decoder.run_many([(GOOD, TIMES), (latents, times)]), "stream 1: "),
    ]:
        assert refuses("", call).startswith(prefix + message)
    assert decoder.ledger == OperationLedger()
    assert digest.batches == []
    assert decoder.run(GOOD, TIMES) == SelectiveDecoder(build(), Digest()).run(GOOD, TIMES)


def test_an_empty_live_stream_is_refused() -> None:
    decoder = SelectiveDecoder(Gate(1.0), Digest())
    for _ in range(2):
        refuses("stream is empty", decoder.finish)
        live(decoder, GOOD, TIMES)


def test_a_recording_does_not_swallow_an_open_stream() -> None:
    decoder = SelectiveDecoder(Gate(1.0), Digest())
    emissions = decoder.step(GOOD[0], TIMES[0])
    refuses("a live stream is open, at step 1", decoder.run, GOOD, TIMES)
    emissions += live(decoder, GOOD[1:], TIMES[1:])
    assert emissions == decoder.run(GOOD, TIMES)
    decoder.step(GOOD[0], TIMES[0])
    decoder.start()
    assert emissions == decoder.run(GOOD, TIMES)


def test_a_decoder_that_loses_a_latent_is_found_out() -> None:
    class Lossy(Digest):
        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            return super().decode(latents)[1:]

    with pytest.raises(RuntimeError, match="must return 6 results, one a latent, got 5"):
        SelectiveDecoder(Uniform(9.0), Lossy()).run(GOOD, TIMES)


test_bad_arguments_are_named = refusals(
    ({"latent_delay": float("nan")}, "latent_delay must be finite and >= 0, got nan"),
    ({"max_delay": float("inf")}, "max_delay must be finite and >= 0, got inf"),
    ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
    of=lambda arguments: SelectiveDecoder(Gate(1.0), Digest(), **arguments),
)


class Named:
    """A payload that can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


class Reads:
    """Says the number of each payload."""

    def decode(self, latents, payloads=None):
        return [Decoded(str(payload.number), 1, 1) for payload in payloads]


@pytest.mark.parametrize(
    "policy",
    [
        Uniform(0.01),
        Uniform(0.3, pool=True),
        SendOnDelta(0.4),
        Gate(1.0, pending=3),
        LocalVariance(0.1),
        PredictionError(0.5),
        LongestGap(Gate(1.0), 7.0),
        Budget(SendOnDelta(0.2), 0.2),
    ],
    ids=lambda policy: policy.name,
)
def test_a_segment_has_the_payload_of_its_last_step_and_few_others_are_held(policy):
    rng = np.random.default_rng(0)
    steps = np.repeat(rng.normal(size=(40, 8)), 10, axis=0) + 0.2 * rng.normal(size=(400, 8))
    latents = (steps / np.linalg.norm(steps, axis=1, keepdims=True)).astype(np.float32)
    lasts = [segment.last for segment, _ in policy.run(latents, np.arange(400.0))]
    selective = SelectiveDecoder(policy, Reads())
    texts, alive, most = [], weakref.WeakSet(), 0
    for number, latent in enumerate(latents):
        payload = Named(number)
        alive.add(payload)
        texts += [emission.text for emission in selective.step(latent, float(number), payload)]
        del payload
        most = max(most, len(alive))
    texts += [emission.text for emission in selective.finish()]
    assert texts == [str(last) for last in lasts]
    assert most <= policy.lag + 2
