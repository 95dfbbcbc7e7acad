"""Triggers: live as recorded, a promise that holds, and what cannot be promised; the standing text, verified."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import refuses
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import poisson

from jepa.selective import (
    Decoded,
    OnTrigger,
    ScoredStream,
    SelectiveDecoder,
    SendOnDelta,
    StandingText,
    Trigger,
    Uniform,
    alarms,
    calibrate_trigger,
    zero_alarm_hours,
)

AXIS = np.array([1.0, 0.0], np.float32)


def latents_of(scores):
    """Unit latents (T, 2) with these cosines to the first axis."""
    cosines = np.asarray(scores, np.float32)
    return np.stack([cosines, np.sqrt(1 - cosines**2)], axis=1)


@given(st.lists(st.sampled_from([0.1, 0.5, 0.9]), min_size=1, max_size=40), st.sampled_from([0.0, 1.0, 2.0]))
def test_a_live_trigger_and_its_policy_raise_the_alarms_of_the_recorded_stream(scores, release):
    times = 0.5 * np.arange(len(scores))
    trigger, latents = Trigger(AXIS, 0.4, release), latents_of(scores)
    raised = [trigger.step(latent, time)[1] for latent, time in zip(latents, times, strict=True)]
    expected = [
        score > 0.4 and all(s < 0.4 for s, t in zip(scores[:i], times, strict=False) if times[i] - t <= release)
        for i, score in enumerate(scores)
    ]
    assert raised == expected
    assert np.flatnonzero(raised).tolist() == alarms(np.array(scores), times, 0.4, release).tolist()
    policy = OnTrigger(0.4, ["one"], release)
    policy.watch(AXIS[None])
    assert [segment.time for segment, _ in policy.run(latents, times)] == times[raised].tolist()


def test_a_policy_without_embeddings_says_so_and_takes_thresholds_of_each():
    policy = OnTrigger(0.9, ["a", "b"])
    refuses("embeddings of its sentences", policy.step, AXIS, 0.0)
    policy.watch(np.eye(2, dtype=np.float32), thresholds=[2.0, 0.5])
    policy.start()
    assert not policy.step(AXIS, 0.0)
    assert policy.step(AXIS[::-1], 1.0)
    policy.threshold = 2.0
    assert not policy.step(AXIS[::-1], 9.0)


def streams(rng, count, hours):
    """Scores without any event: each second one of an exponential tail, so that the rate above a threshold is known."""
    steps = int(3600 * hours)
    return [ScoredStream(-10 + rng.exponential(1.0, steps), np.arange(steps, dtype=float), steps) for _ in range(count)]


def test_what_is_promised_holds_on_new_streams_as_often_as_it_says():
    """The rate of alarms at a threshold is known: 3600 exp(−(θ + 10)) an hour, less what the release merges."""
    broken = 0
    for seed in range(40):
        found = calibrate_trigger(streams(np.random.default_rng(seed), 4, 1.0), per_hour=3.0, release=0.0, seed=seed)
        assert found.kept
        broken += 3600 * np.exp(-(found.threshold + 10)) > 3.0
    assert broken <= 5  # of 40, at 95 %: more than 5 come with a probability of 0.014


def test_the_bound_is_that_of_a_poisson_count_and_short_streams_promise_less():
    recorded = streams(np.random.default_rng(1), 1, 2.0)
    found = calibrate_trigger(recorded, per_hour=4.0, release=0.0)
    assert poisson.cdf(found.alarms, found.per_hour * 2.0) == pytest.approx(0.05)
    assert found.alarms == len(alarms(recorded[0].scores, recorded[0].times, found.threshold, 0.0)) > 0
    short = calibrate_trigger(recorded, per_hour=1.0, release=0.0)
    assert not short.kept
    assert short.alarms == 0
    assert short.per_hour == pytest.approx(zero_alarm_hours(1.0) / 2.0)
    assert "record 3.0 h or more" in short.note
    assert short.threshold > recorded[0].scores.max()


def test_an_alarm_in_its_event_is_not_false_and_its_delay_is_known():
    scores = np.array([0.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.8, 0.8, 0.0, 0.0, 0.0, 0.7])
    stream = ScoredStream(scores, np.arange(12.0), 12.0, [(5.0, 7.0), (9.0, 9.5)])
    assert stream.judged(0.5) == ([1.0], [1.0, 2.0])  # the last alarm comes 1.5 s after its event
    assert stream.judged(0.75) == ([1.0], [1.0])
    refuses("at least one recorded stream", calibrate_trigger, [], 1.0)


class Speaker:
    """Says the larger coordinate of a latent, and finds a text likely by its own coordinate; counts both."""

    def __init__(self):
        self.decoded = self.asked = 0

    def decode(self, latents, payloads=None):
        self.decoded += len(latents)
        return [Decoded(str(int(row.argmax())), 3, 3, flops=300) for row in latents]

    def likelihood(self, latent, text):
        self.asked += 1
        return float(np.log(max(latent[int(text)], 1e-6))), 100


@pytest.mark.parametrize("policy", [lambda: Uniform(1.0), lambda: SendOnDelta(0.05)])
def test_the_standing_text_is_verified_alike_live_and_recorded(policy):
    rng = np.random.default_rng(0)
    recorded = [latents_of(np.clip(np.sin(np.arange(40) / 5) ** 2 + rng.normal(0, 0.1, 40), 0, 1)) for _ in range(2)]
    times = np.arange(40.0)
    speakers = Speaker(), Speaker()
    live, whole = (SelectiveDecoder(policy(), each, cache=StandingText(0.4, each)) for each in speakers)
    stepped = []
    for latents in recorded:
        emitted = [each for row, time in zip(latents, times, strict=True) for each in live.step(row, time)]
        stepped.append(emitted + live.finish())
    assert stepped == whole.run_many([(latents, times) for latents in recorded])
    for ledger, speaker in zip((live.ledger, whole.ledger), speakers, strict=True):
        assert ledger.decoder.calls == speaker.decoded
        assert ledger.decoder.flops == 300 * speaker.decoded
        assert ledger.cache.flops == 100 * speaker.asked
        assert ledger.cache.lookups == ledger.decoder.calls + ledger.cache.hits
        assert 0 < ledger.cache.hits < ledger.cache.lookups
    for emitted, latents in zip(stepped, recorded, strict=True):
        for emission in emitted:
            fits = latents[int(emission.time)][int(emission.text)]
            assert emission.source == "decoder" or fits >= np.exp(-0.4) - 1e-6
