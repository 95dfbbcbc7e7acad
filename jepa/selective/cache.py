"""A cache of decoded latents: a latent near one that was decoded before gets its text without the decoder.

Dimension letters: E width of the latent space, C capacity, N entries held.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from jepa.errors import InputError, check_finite, check_int
from jepa.selective.types import Decoded


@dataclass(slots=True, eq=False)
class CacheEntry:
    """What a latent was decoded to: None until it is there.

    >>> CacheEntry().decoded is None
    True
    """

    decoded: Decoded | None = None


class LatentCache:
    """Reuses the text of the nearest latent decoded so far where it is near enough.

    A latent hits if 1 − cos to the nearest key is at most `threshold`; else it becomes a key itself. Keys alone decide,
    never texts. Of more than `capacity` keys the least recently used makes room. A cache serves one `SelectiveDecoder`.

    Args:
        threshold: on 1 − cos, which is 0 for equal and 2 for opposite latents; below 0 nothing hits. See
            `calibrate_threshold`.
        capacity: C, most keys held; with 0 nothing hits.
        shared: keep the keys from one stream to the next. Otherwise `start` forgets them.

    Attributes:
        flops: of the look-ups so far: 2·N·E each, the product of N keys with the latent.

    >>> cache = LatentCache(0.1, capacity=8)
    >>> [cache.look_up(latent)[1] for latent in np.eye(2, dtype=np.float32)[[0, 1, 0]]]
    [False, False, True]
    """

    reads_texts = False  # True if a look-up needs the texts of all entries: each latent is then decoded before the next

    def __init__(self, threshold: float, capacity: int, *, shared: bool = False) -> None:
        self.threshold = check_finite("threshold", threshold)
        self.capacity = check_int("capacity", capacity, 0)
        self.shared = shared
        self.flops = 0
        self.clear()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def width(self) -> int | None:
        """E of the keys held, None while there is none."""
        return self._keys.shape[1] if self._entries else None

    def fresh(self, threshold: float | None = None) -> LatentCache:
        """A cache of the same settings, as it was before any look-up; at another threshold if one is given."""
        return LatentCache(self.threshold if threshold is None else threshold, self.capacity, shared=self.shared)

    def clear(self) -> None:
        """Forget every key."""
        self._entries: list[CacheEntry] = []
        self._keys = np.zeros((0, 0), dtype=np.float32)
        self._used = np.zeros(self.capacity, dtype=np.int64)  # the look-up that used each key last
        self._clock = 0

    def start(self) -> None:
        """Begin a new stream: forget every key, unless the cache is shared between streams."""
        if not self.shared:
            self.clear()

    def look_up(self, latent: np.ndarray, payload: object | None = None) -> tuple[CacheEntry, bool]:
        """The entry that answers for a latent (E,), float32 and not zero, and whether that is a hit.

        A miss gives a new entry, which the caller fills in; a later look-up may hit it before that. The segment's
        payload is for subclasses. Raises `InputError` for another width than that of the keys.
        """
        key = unit(latent)
        held = len(self._entries)
        if held:
            if len(key) != self._keys.shape[1]:
                raise InputError(f"latents must have the width of the cache's keys, {self.width}, got {len(key)}")
            nearest = int(np.vecdot(self._keys[:held], key).argmax())
            self.flops += 2 * held * len(key)
            if half_square(self._keys[nearest] - key) <= self.threshold:
                self._used[nearest] = self._clock = self._clock + 1
                return self._entries[nearest], True
        return self._add(key), False

    def discard(self, entries: Iterable[CacheEntry]) -> None:
        """Forget those of these entries that are still held: their text will not come."""
        for entry in entries:
            if entry in self._entries:
                slot, last = self._entries.index(entry), len(self._entries) - 1
                self._entries[slot] = self._entries[last]
                self._keys[slot], self._used[slot] = self._keys[last], self._used[last]
                del self._entries[last]

    def _add(self, key: np.ndarray) -> CacheEntry:
        entry, slot = CacheEntry(), len(self._entries)
        if self.capacity == 0:
            return entry
        if slot == 0:
            self._keys = np.empty((self.capacity, *key.shape), dtype=key.dtype)
        if slot < self.capacity:
            self._entries.append(entry)
        else:
            slot = int(self._used.argmin())
            self._entries[slot] = entry
        self._keys[slot] = key
        self._used[slot] = self._clock = self._clock + 1
        return entry


def unit(latent: np.ndarray) -> np.ndarray:
    """(E,) float32 over its norm."""
    found: np.ndarray = latent / np.float32(math.sqrt(float(latent @ latent)))
    return found


def half_square(gap: np.ndarray) -> float:
    """1 − cos of two unit vectors this far apart (E,), and exactly 0 for equal ones."""
    return float(gap @ gap) / 2
