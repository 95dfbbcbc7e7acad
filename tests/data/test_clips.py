"""Clips that were encoded once: what their batches show, and that they depend on the seed and their number alone."""

from __future__ import annotations

from collections import Counter
from functools import partial

import pytest
import torch
from conftest import never

from jepa.data.clips import ClipBatches, StateBatches, StoredClips
from jepa.data.world import World, captions
from jepa.processes import in_processes

WORLD = World(size=16, fps=4)
CLIPS, SIZE = 20, 8
DRAWN = ClipBatches(WORLD, 3, SIZE, 100, frames=2)


def encode(frames: torch.Tensor) -> torch.Tensor:
    """A state a frame: its first pixel, and the mean colour of all."""
    return torch.cat([frames[:, :, 0, 0], frames.float().mean((2, 3))], dim=-1)


@pytest.fixture(scope="module")
def stored() -> StoredClips:
    return StoredClips.draw(DRAWN, CLIPS, encode)


def batches(stored: StoredClips, seed: int = 3) -> StateBatches:
    return StateBatches(**{**vars(DRAWN), "seed": seed}, stored=stored)


def rows(stored: StoredClips, batch) -> list[int]:
    """Which clips a batch shows."""
    return [int((stored.states == state).flatten(1).all(1).nonzero()) for state in batch.frames]


def test_every_clip_comes_once_an_epoch(stored):
    made = batches(stored)
    shown = [row for number in range(5) for row in rows(stored, made[number])]  # two epochs
    assert Counter(shown) == Counter(list(range(CLIPS)) * 2)
    assert shown[:CLIPS] != shown[CLIPS:]


def test_a_text_is_of_the_clip_it_stands_beside(stored):
    for number in range(3):
        batch = batches(stored)[number]
        for row, query, text in zip(rows(stored, batch), batch.queries, batch.texts, strict=True):
            if query.startswith(("what happens", "describe", "what is going")):
                assert text in captions(stored.scenes[row])


def test_all_texts_are_known_beforehand(stored):
    known = set(stored.texts)
    for number in range(30):
        batch = batches(stored)[number]
        assert {*batch.texts, *batch.negatives} <= known


def test_a_batch_depends_on_seed_and_number_alone(stored):
    one, again, other = batches(stored), batches(StoredClips.draw(DRAWN, CLIPS, encode)), batches(stored, seed=4)
    for number in (7, 2):
        assert torch.equal(one[number].frames, again[number].frames)
        assert one[number][1:] == again[number][1:] != other[number][1:]


def test_processes_that_share_the_work_draw_the_same_clips():
    one, shared = (StoredClips.draw(DRAWN, 150, encode, over=over) for over in (map, partial(in_processes, workers=2)))
    assert torch.equal(one.states, shared.states)
    assert (one.scenes, one.wordings, len(one.states)) == (shared.scenes, shared.wordings, 150)


def test_what_was_kept_is_not_encoded_again(stored):
    def kept(name: str, compute):
        return {"clips of 3 from 0": stored.states}[name]

    assert StoredClips.draw(DRAWN, CLIPS, never, kept).scenes == stored.scenes
