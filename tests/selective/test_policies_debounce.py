"""Debounce: which steps it decodes, and when they come out."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from jepa.selective import Debounce

LATENT = np.ones(1, dtype=np.float32)


def test_what_a_timer_closed_is_not_decoded_again() -> None:
    policy = Debounce(1.0)
    assert policy.step(LATENT, 0.0) == []
    assert [segment.time for segment in policy.close()] == [0.0]
    assert policy.close() == []
    assert policy.step(LATENT, 5.0) == []
    assert [segment.last for segment in policy.finish()] == [1]


@given(st.lists(st.integers(1, 30), max_size=20), st.integers(0, 30))
def test_decoded_are_the_steps_before_gaps(gaps: list[int], wait: int) -> None:
    times = 0.25 * np.cumsum([0, *gaps])
    latents = np.ones((len(times), 1), dtype=np.float32)
    segments = Debounce(0.25 * wait).run(latents, times)
    expected = [i for i, gap in enumerate(gaps) if gap >= wait]
    assert [segment.last for segment, _ in segments] == [*expected, len(gaps)]
    assert [step for _, step in segments] == [*(i + 1 for i in expected), len(gaps)]
