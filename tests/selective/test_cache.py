"""The latent cache against a plain list of what it should hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import refuses
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from jepa.selective import CacheEntry, LatentCache

X, Y, Z = np.eye(3, dtype=np.float32)


def latents_near_few_centres(seed: int, steps: int, width: int = 5) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((6, width))[rng.integers(0, 6, steps)] + 0.3 * rng.standard_normal((steps, width))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def turned(degrees: float) -> np.ndarray:
    """X turned towards Y."""
    angle = np.deg2rad(degrees)
    return (np.cos(angle) * X + np.sin(angle) * Y).astype(np.float32)


@given(seed=st.integers(0, 10**6), steps=st.integers(1, 60), threshold=st.floats(-0.1, 1.5), capacity=st.integers(0, 8))
@settings(max_examples=100)
def test_look_ups_are_those_of_a_list_in_order_of_use(seed: int, steps: int, threshold: float, capacity: int) -> None:
    cache = LatentCache(threshold, capacity)
    held: list[tuple[np.ndarray, CacheEntry]] = []  # the least recently used first
    for latent in latents_near_few_centres(seed, steps).astype(np.float64):
        distances = [1 - key @ latent / np.linalg.norm(key) / np.linalg.norm(latent) for key, _ in held]
        assume(all(abs(distance - threshold) > 1e-6 for distance in distances))
        entry, hit = cache.look_up(latent.astype(np.float32))
        nearest = int(np.argmin(distances)) if held else 0
        assert hit == (bool(held) and distances[nearest] <= threshold)
        if hit:
            assert entry is held[nearest][1]
            held.append(held.pop(nearest))
        else:
            assert all(entry is not other for _, other in held)
            held = [*held, (latent, entry)][max(0, len(held) + 1 - capacity) :] if capacity else []
        assert len(cache) == len(held)


@pytest.mark.parametrize("degrees", [1.0, 10.0, 60.0])
@pytest.mark.parametrize(("factor", "hit"), [(1.001, True), (0.999, False)])
def test_the_threshold_is_on_one_minus_cosine(degrees: float, factor: float, hit: bool) -> None:
    cache = LatentCache(factor * (1 - np.cos(np.deg2rad(degrees))), 4)
    cache.look_up(X)
    assert cache.look_up(turned(degrees) * np.float32(1.0009))[1] == hit  # whatever the norm


def test_at_threshold_0_equal_latents_hit_and_others_do_not() -> None:
    rows = latents_near_few_centres(0, 50, width=128)
    cache = LatentCache(0.0, 64)
    entries = [cache.look_up(row) for row in rows]
    assert not any(hit for _, hit in entries)
    assert [cache.look_up(row) for row in rows] == [(entry, True) for entry, _ in entries]


@pytest.mark.parametrize(("threshold", "capacity"), [(-1e-9, 8), (2.0, 0)])
def test_nothing_hits_below_threshold_0_or_without_room(threshold: float, capacity: int) -> None:
    cache = LatentCache(threshold, capacity)
    assert not any(cache.look_up(X)[1] for _ in range(3))


def test_a_stream_begins_without_keys_unless_they_are_shared() -> None:
    for shared in (False, True):
        cache = LatentCache(0.1, 4, shared=shared)
        cache.look_up(X)
        cache.start()
        assert cache.look_up(X)[1] == shared


def test_discarded_entries_are_forgotten_and_the_others_kept() -> None:
    cache = LatentCache(0.1, 3)
    entries = [cache.look_up(latent)[0] for latent in (X, Y, Z)]
    cache.discard([entries[0], entries[2], CacheEntry()])
    assert len(cache) == 1
    assert cache.look_up(Y) == (entries[1], True)
    again = [cache.look_up(latent) for latent in (X, Z)]
    assert [hit for _, hit in again] == [False, False]
    cache.look_up(-X)  # full again: Y was used least recently
    assert cache.look_up(X) == (again[0][0], True)
    assert not cache.look_up(Y)[1]


def test_another_width_is_refused_and_changes_nothing() -> None:
    cache = LatentCache(0.1, 3)
    entry, _ = cache.look_up(X)
    refuses("latents must have the width of the cache's keys, 3, got 2", cache.look_up, np.ones(2, dtype=np.float32))
    assert cache.look_up(X) == (entry, True)


@pytest.mark.parametrize(("arguments", "name"), [((float("nan"), 4), "threshold"), ((0.1, -1), "capacity")])
def test_bad_arguments_are_named(arguments: Any, name: str) -> None:
    refuses(f"{name} must be a .* number", LatentCache, *arguments)
