"""One prediction a segment, of a step in it, wherever the policy inside cuts."""

from __future__ import annotations

import numpy as np
import torch
from conftest import refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_streams import LENGTHS, SEEDS, noisy_events, segments_of, times_of
from sklearn.linear_model import Ridge

from jepa.selective import Budget, Decoded, Gate, LatentCache, LongestGap, OnDemand, Readout, SelectiveDecoder


class Asked:
    """Gives the prediction of a step, and keeps which were asked for."""

    def __init__(self, latents: np.ndarray) -> None:
        self.latents, self.steps = latents, list[int]()

    def __call__(self, step: int) -> np.ndarray:
        self.steps.append(step)
        return self.latents[step]


@given(SEEDS, LENGTHS, st.integers(1, 4), st.integers(1, 60), st.floats(0, 1), st.just(0) | st.floats(0.05, 1))
@settings(max_examples=90)
def test_predictions_spread_over_a_segment_until_there_is_no_doubt(seed, steps, predictions, keep, correction, doubt):
    states, latents, times = noisy_events(seed, steps), noisy_events(seed + 1, steps), times_of(steps)
    asked, read = Asked(latents), segments_of(Gate(0.7), states, times)
    policy = OnDemand(Gate(0.7), asked, predictions=predictions, keep=keep, correction=correction, doubt=doubt)
    for segment, inner in zip(segments_of(policy, states, times), read, strict=True):
        assert [getattr(segment, each) - getattr(inner, each) for each in ("first", "last", "time", "start")] == [0] * 4
        own = [step for step in asked.steps if segment.first <= step <= segment.last]
        newest = range(segment.first, segment.last + 1)[-keep:]
        spread = [newest[int(part * (len(newest) - 1))] for part in (1 / 2, 3 / 4, 1 / 4, 7 / 8)[:predictions]]
        certain = [doubt > 0 and 1 - float(latents[step] @ states[step]) <= doubt for step in spread]
        assert own == list(dict.fromkeys(spread[: [*certain, True].index(True) + 1]))
        assert segment.predictions == len(own)
        total = latents[own].mean(0) + correction * (inner.latent - states[own].mean(0))
        np.testing.assert_allclose(segment.latent, total / np.linalg.norm(total), atol=1e-5)


def test_what_is_decoded_and_looked_up_is_what_was_predicted() -> None:
    """States and embeddings may differ in width, with a cache that streams share as well."""

    class Wordless:
        def decode(self, latents: torch.Tensor) -> list[Decoded]:
            widths.add(latents.shape[1])
            return [Decoded("", tokens=1, forward_passes=1) for _ in latents]

    widths: set[int] = set()
    policy = LongestGap(OnDemand(Gate(0.7), Asked(noisy_events(1, 40, 8))), 60.0)
    selective = SelectiveDecoder(policy, Wordless(), cache=LatentCache(0.01, 64, shared=True))
    for _ in range(2):
        assert selective.run(noisy_events(2, 40, 5), times_of(40))
    assert widths == {8}
    assert selective.ledger.cache.lookups > selective.ledger.decoder.calls


def test_the_threshold_is_that_of_the_policy_inside() -> None:
    assert [OnDemand(Gate(1.0), threshold=each).policy.threshold for each in (2.0, None)] == [2.0, 1.0]
    states, times = noisy_events(2, 60), times_of(60)
    steered = segments_of(Budget(OnDemand(Gate(1.0), Asked(noisy_events(1, 60))), 0.3), states, times)
    plainly = segments_of(Budget(Gate(1.0), 0.3), states, times)
    assert [s.first for s in steered] == [s.first for s in plainly]


def test_without_predictions_no_segment_is_closed() -> None:
    wide = OnDemand(Gate(1.0), Asked(noisy_events(0, 9, 5)), doubt=0.5)
    refuses("OnDemand needs predict", lambda: segments_of(OnDemand(Gate(1.0)), noisy_events(0, 9), times_of(9)))
    refuses("must be 5 wide, .* got 8", lambda: segments_of(wide, noisy_events(0, 9), times_of(9)))


def test_a_readout_is_ridge_regression_on_standardised_states() -> None:
    """scikit-learn's as an independent reference; a state that never changes says nothing."""
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(300, 8)) * 10.0 ** np.arange(-3, 5) + 7).astype(np.float32)
    states[:, 2] = 5.0
    latents = (states[:, 3:6] - 7) / states[:, 3:6].std(0) + 0.5 * rng.normal(size=(300, 3))
    latents = (latents / np.linalg.norm(latents, axis=1, keepdims=True)).astype(np.float32)
    scale = np.where(np.ptp(states, axis=0) > 0, states.std(0, dtype=np.float64), 1.0)
    standard = (states - states.mean(0, dtype=np.float64)) / scale
    reference = Ridge(alpha=0.1 * len(states)).fit(standard, latents).predict(standard)
    found = Readout.fit(states, latents)(states)
    np.testing.assert_allclose(found, reference / np.linalg.norm(reference, axis=1, keepdims=True), atol=1e-4)
    assert found.dtype == np.float32
    assert (found * latents).sum(1).mean() > 0.8


def test_a_readout_refuses_what_does_not_fit() -> None:
    states, latents = noisy_events(0, 9, 5), noisy_events(1, 9, 3)
    for wrong in ((states[:8], latents), (states[:0], latents[:0]), (states[0], latents)):
        refuses("states and latents must be", Readout.fit, *wrong)
    refuses(r"states must be \(T, 5\), got shape \(9, 3\)", Readout.fit(states, latents), latents)
