"""Captions are scored beside the tokens and the operations that they took."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from jepa.data.world import Scene, World, captions
from jepa.data.world_tasks import held_out_scenes
from jepa.evaluation.tasks import _captioning
from jepa.selective import Decoded


def score(scenes: list[Scene], texts: list[str], tokens: list[int]) -> dict[str, float | None]:
    rows = [Decoded(text, n, n, flops=100 * n) for text, n in zip(texts, tokens, strict=True)]
    return _captioning(SimpleNamespace(decode=lambda latents: rows), scenes, torch.zeros(len(scenes), 2))


def test_captions_have_what_they_cost():
    scenes = held_out_scenes(World(), 4, seed=0)
    texts = [captions(scenes[0])[0], captions(scenes[1])[-1], "nothing", ""]
    found = score(scenes, texts, [6, 8, 2, 1])
    assert found["exact_match"] == 0.5
    assert found["tokens_per_caption"] == pytest.approx(17 / 4)
    assert found["tokens_per_right_caption"] == pytest.approx(17 / 2)
    assert found["flops_per_caption"] == pytest.approx(1700 / 4)
    assert score(scenes, ["nothing"] * 4, [6, 8, 2, 1])["tokens_per_right_caption"] is None
