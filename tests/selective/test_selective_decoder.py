"""The selective decoder: live and recorded streams agree, work is counted, bad input changes nothing."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.errors import InputError
from jepa.operations import OperationLedger
from jepa.selective import Decoded, Emission, Gate, Policy, SelectiveDecoder, Uniform, Ward

POLICIES: dict[str, Callable[[], Policy]] = {
    "uniform": lambda: Uniform(0.7),
    "uniform_pool": lambda: Uniform(0.7, pool=True),
    "ward_midpoint": lambda: Ward(0.4, "midpoint"),
    "ward_mean": lambda: Ward(0.4, "mean"),
    "gate": lambda: Gate(1.0),
}
EVERY_POLICY = pytest.mark.parametrize("build", POLICIES.values(), ids=POLICIES)


class Digest:
    """A decoder whose text, tokens and passes are a function of the bits of the latent."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        assert latents.dtype == torch.float32
        self.batches.append(len(latents))
        texts = [hashlib.sha256(row.tobytes()).hexdigest() for row in latents.numpy()]
        return [Decoded(text, tokens=int(text[0], 16), forward_passes=int(text[0], 16) + 1) for text in texts]


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
    record = ledger.to_dict()
    del record["decoder"]["seconds"]
    return record


@EVERY_POLICY
@given(seed=st.integers(0, 10**6), steps=st.integers(1, 60), delay=st.floats(0, 2))
@settings(max_examples=25, deadline=None)
def test_step_equals_run(build: Callable[[], Policy], seed: int, steps: int, delay: float) -> None:
    latents, times = stream(seed, steps)
    one, other = (SelectiveDecoder(build(), Digest(), latent_delay=delay) for _ in range(2))
    emissions = live(one, latents, times)
    assert emissions == other.run(latents, times)
    assert counts(one.ledger) == counts(other.ledger)
    assert emissions == one.run(latents, times)  # the next stream starts afresh


@EVERY_POLICY
def test_many_streams_in_batches_equal_one_by_one(build: Callable[[], Policy]) -> None:
    streams = [stream(seed, steps, width) for seed, (steps, width) in enumerate([(40, 6), (1, 6), (33, 4), (20, 4)])]
    single, batched = (
        SelectiveDecoder(build(), Digest()),
        SelectiveDecoder(build(), digest := Digest(), batch_size=5),
    )
    expected = [single.run(latents, times) for latents, times in streams]
    assert batched.run_many(streams) == expected
    assert counts(batched.ledger) == counts(single.ledger)
    by_width = [len(expected[0]) + len(expected[1]), len(expected[2]) + len(expected[3])]
    assert digest.batches == [min(5, n - i) for n in by_width for i in range(0, n, 5)]


def test_no_streams_no_emissions() -> None:
    assert SelectiveDecoder(Gate(1.0), Digest()).run_many([]) == []


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
    assert ledger.latencies == (2.75, 1.25)
    assert ledger.step_count == 7
    assert ledger.decoder.calls == 2
    assert ledger.decoder.tokens == decoded[0].tokens + decoded[1].tokens
    assert ledger.decoder.forward_passes == ledger.decoder.tokens + 2
    assert ledger.decoder.seconds > 0
    assert counts(ledger)["encoder"] == counts(OperationLedger())["encoder"]
    assert ledger.stream_seconds == 0  # the reader of the stream knows its duration


def test_uniform_decoding_goes_through_the_same_counts() -> None:
    latents, times = stream(0, 120)[0], 0.5 * np.arange(120)
    decoder = SelectiveDecoder(Uniform(1.0), Digest())
    emissions = decoder.run(latents, times)
    assert len(emissions) == decoder.ledger.decoder.calls == 60
    assert decoder.ledger.latencies == (0.0,) * 60


# --- What is refused

GOOD, TIMES = stream(1, 6)


def changed(values: np.ndarray, index: Any, value: Any) -> np.ndarray:
    values = values.copy()
    values[index] = value
    return values


@pytest.mark.parametrize(
    ("latent", "time", "message"),
    [
        (changed(GOOD[3], 2, np.nan), 9.0, "latents must be finite, got nan at step 3 (dimension 2)"),
        (changed(GOOD[3], 0, -np.inf), 9.0, "latents must be finite, got -inf at step 3 (dimension 0)"),
        (GOOD[3] * 0.5, 9.0, "latents must have unit norm within 0.001, got norm 0.5 at step 3"),
        (GOOD[3] * 0, 9.0, "latents must have unit norm within 0.001, got norm 0 at step 3"),
        (GOOD[3:4], 9.0, "a latent must have the shape (E,), got (1, 6) at step 3"),
        (
            np.ones(1, np.float32),
            9.0,
            "latents of one stream must have the same width, 6 so far, got 1 at step 3",
        ),
        (GOOD[3], 8.0, "times must strictly increase, got 8.0 after 8.0 at step 3"),
        (GOOD[3], 7.5, "times must strictly increase, got 7.5 after 8.0 at step 3"),
        (GOOD[3], float("nan"), "times must be finite, got nan at step 3"),
        (GOOD[3], float("inf"), "times must be finite, got inf at step 3"),
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
    with pytest.raises(InputError) as error:
        decoder.step(latent, time)
    assert str(error.value) == message
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
        (GOOD[0], TIMES, "latents must have the shape (T, E), got (6,)"),
        (np.zeros((6, 0)), TIMES, "latents must have the shape (T, E), got (6, 0)"),
        (GOOD, TIMES[:, None], "times must have the shape (T,), got (6, 1)"),
        (GOOD, TIMES[:4], "latents and times must have equal lengths, got 6 and 4"),
        (GOOD[:0], TIMES, "latents and times must have equal lengths, got 0 and 6"),
        (changed(GOOD, (4, 1), np.nan), TIMES, "latents must be finite, got nan at step 4 (dimension 1)"),
        (
            changed(GOOD, 2, 1.0),
            TIMES,
            "latents must have unit norm within 0.001, got norm 2.44949 at step 2",
        ),
        (GOOD, [0.0, 0.5, 1.0, 0.5, 2.0, 1.0], "times must strictly increase, got 0.5 after 1.0 at step 3"),
        (GOOD, [0.0, 0.5, np.nan, 1.5, 2.0, 2.5], "times must be finite, got nan at step 2"),
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
        with pytest.raises(InputError) as error:
            call()
        assert str(error.value) == prefix + message
    assert decoder.ledger == OperationLedger()
    assert digest.batches == []
    assert decoder.run(GOOD, TIMES) == SelectiveDecoder(build(), Digest()).run(GOOD, TIMES)


def test_an_empty_live_stream_is_refused() -> None:
    decoder = SelectiveDecoder(Gate(1.0), Digest())
    for _ in range(2):
        with pytest.raises(InputError) as error:
            decoder.finish()
        assert str(error.value) == "stream is empty: finish() needs at least one step before it"
        live(decoder, GOOD, TIMES)


def test_a_recording_does_not_swallow_an_open_stream() -> None:
    decoder = SelectiveDecoder(Gate(1.0), Digest())
    emissions = decoder.step(GOOD[0], TIMES[0])
    with pytest.raises(InputError) as error:
        decoder.run(GOOD, TIMES)
    assert str(error.value) == (
        "a recorded stream must not begin inside a live one, open for 1 steps: call finish() or start() first"
    )
    emissions += live(decoder, GOOD[1:], TIMES[1:])
    assert emissions == decoder.run(GOOD, TIMES)
    decoder.step(GOOD[0], TIMES[0])
    decoder.start()
    assert emissions == decoder.run(GOOD, TIMES)


def test_a_decoder_that_loses_a_latent_is_found_out() -> None:
    class Lossy(Digest):
        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            return super().decode(latents)[1:]

    with pytest.raises(RuntimeError, match="one result per latent, 6, got 5"):
        SelectiveDecoder(Uniform(9.0), Lossy()).run(GOOD, TIMES)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"latent_delay": -0.5}, "latent_delay must be finite and >= 0, got -0.5"),
        ({"latent_delay": float("nan")}, "latent_delay must be finite and >= 0, got nan"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        SelectiveDecoder(Gate(1.0), Digest(), **arguments)
    assert str(error.value) == message
