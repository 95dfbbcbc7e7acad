"""The change detector and the selection of steps: what they see, what they skip, live as recorded."""

from __future__ import annotations

import colorsys
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refusals
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.selective import ColourChange, SelectiveEncoding, StepSelection, slots_needed

RED, BLUE = (220, 30, 30), (30, 40, 220)


def square(colour: tuple[int, int, int], count: int, size: int = 48, start: int = 0) -> np.ndarray:
    """Frames of a coloured square that moves on a grey ground."""
    frames = np.full((count, size, size, 3), 90, dtype=np.uint8)
    for number in range(count):
        left = 4 * (start + number) % (size - 16)
        frames[number, 12:28, left : left + 16] = colour
    return frames


def statistics(frames: np.ndarray, detector: ColourChange) -> np.ndarray:
    detector.start()
    return detector.run(frames[:, None])


def test_motion_is_no_change_and_another_colour_is_one():
    frames = np.concatenate([square(RED, 40), square(BLUE, 40, start=40)])
    found = statistics(frames, ColourChange())
    peak = int(found.argmax())
    assert 40 <= peak < 40 + 14  # while the boundary lies between the newest and the earlier frames
    assert found[peak] > 4 * found[:40].max()
    assert found[40 + 14 :].max() < found[peak] / 4


def test_what_flickers_all_the_time_is_no_change():
    red, blank = square(RED, 80), square((90, 90, 90), 80)
    flicker = np.where((np.arange(80) // 2 % 2 == 0)[:, None, None, None], red, blank)
    found = statistics(flicker, ColourChange())
    assert found.max() < statistics(np.concatenate([red[:40], blank[:40]]), ColourChange()).max() / 4


def test_histograms_hold_the_colourful_area_by_hue():
    detector = ColourChange()
    red, blue = (detector.histograms(square(colour, 1))[0] for colour in (RED, BLUE))
    assert red.argmax() == 0
    assert blue.argmax() in (7, 8)  # a hue of about 237 degrees
    assert detector.histograms(square((90, 90, 90), 1)).sum() == 0
    np.testing.assert_allclose(red.sum(), 10 * (190 / 255 - 0.15) * (16 / 48) ** 2, rtol=0.2)


@pytest.mark.parametrize("size", [16, 48, 50])
def test_histograms_are_those_of_averaged_cells(size):
    frames = np.random.default_rng(size).integers(0, 256, (2, size, size, 3), dtype=np.uint8)
    cells = F.adaptive_avg_pool2d(torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255, 12).flatten(2).mT
    wanted = np.zeros((2, 12))
    for frame, colours in zip(wanted, cells.tolist(), strict=True):
        for colour in colours:
            place, weight = 12 * colorsys.rgb_to_hsv(*colour)[0], max(0.0, max(colour) - min(colour) - 0.15)
            frame[int(place) % 12] += weight * (1 - place % 1) * 10 / 144
            frame[(int(place) + 1) % 12] += weight * (place % 1) * 10 / 144
    np.testing.assert_allclose(ColourChange().histograms(frames), wanted, atol=1e-6)


def test_the_statistic_does_not_depend_on_how_frames_are_grouped():
    frames = np.concatenate([square(RED, 24), square(BLUE, 24)])
    one = statistics(frames, ColourChange())[3::4]
    detector = ColourChange()
    four = np.concatenate([detector.run(frames[i : i + 8].reshape(2, 4, 48, 48, 3)) for i in range(0, 48, 8)])
    np.testing.assert_allclose(four, one, atol=1e-12)


@given(
    changes=st.lists(st.floats(0, 3), min_size=1, max_size=60),
    threshold=st.floats(0, 3),
    burst=st.integers(1, 4),
    hold=st.integers(1, 6),
    refractory=st.integers(1, 5),
)
def test_a_selection_holds_no_longer_than_it_says_and_answers_changes(changes, threshold, burst, hold, refractory):
    chosen = StepSelection(threshold, burst=burst, hold=hold, refractory=refractory).select(np.array(changes))
    assert chosen[0]
    computed = np.flatnonzero(chosen)
    assert (np.diff(np.append(computed, len(chosen))) <= hold).all()
    quiet = 0
    for step, change in enumerate(changes):
        quiet = max(0, quiet - 1)
        if change > threshold and quiet == 0:
            assert chosen[step : step + burst].all()
            quiet = refractory
    if hold == 1:
        assert chosen.all()
    if max(changes) <= threshold:
        assert computed.tolist() == list(range(0, len(changes), hold))


@settings(max_examples=30)
@given(
    seed=st.integers(0, 99),
    hop=st.integers(1, 3),
    length=st.integers(1, 4),
    cuts=st.lists(st.integers(0, 24), max_size=4),
)
def test_a_live_stream_selects_the_steps_of_the_recorded_one(seed, hop, length, cuts):
    rng = np.random.default_rng(seed)
    frames = np.concatenate([square(RED if rng.random() < 0.5 else BLUE, 8) for _ in range(12)])
    slots = frames.reshape(24, 4, 48, 48, 3)
    detector = ColourChange(before=6, after=4)
    selection = SelectiveEncoding(detector, StepSelection(1.0, burst=2, hold=5))
    edges = [0, *sorted(cuts), 24]
    live = [due for a, b in pairwise(edges) for due in selection.look(slots[a:b], hop, length)]
    detector.start()
    per_slot = detector.run(slots)
    ends = range(length - 1, 24, hop)
    changes = np.array([per_slot[max(0, end + 1 - hop) if end >= length else 0 : end + 1].max() for end in ends])
    assert live == StepSelection(1.0, burst=2, hold=5).select(changes).tolist()


@given(selected=st.lists(st.booleans(), max_size=20), hop=st.integers(1, 3), length=st.integers(1, 4))
def test_slots_of_overlapping_windows_are_needed_once(selected, hop, length):
    slots = {i * hop + k for i, wanted in enumerate(selected) if wanted for k in range(length)}
    assert slots_needed(np.array(selected, dtype=bool), hop, length) == len(slots)


test_bad_settings_are_named = refusals(
    (lambda: ColourChange(before=0), "before must be a whole number >= 1, got 0"),
    (lambda: StepSelection(float("nan")), "threshold must be finite and >= 0, got nan"),
    (lambda: StepSelection(1.0, hold=0), "hold must be a whole number >= 1, got 0"),
)
