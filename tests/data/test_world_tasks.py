"""The world's task samples: one right answer each, seen in the pixels, the same as a manifest on disk."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import write_samples

from jepa.data.manifests import KINDS, media_of, read_manifest
from jepa.data.media import read_clip
from jepa.data.world import COLOURS, PHRASES, SOLO_ACTIONS, TRANSITIONS, Scene, World, captions, is_held_out, questions
from jepa.data.world_tasks import held_out_scenes, world_samples

PLAIN = World(noise=0, background=0)


def clips_of(sample) -> list[np.ndarray]:
    return [read_clip(media, 4, 48) for media in media_of(sample)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_written_manifest_is_the_samples_in_memory(tmp_path, kind):
    world = World()
    made = world_samples(world, kind, 6, 4, seed=1)
    read = read_manifest(write_samples(made, tmp_path), [kind])
    assert len(read) == len(made) >= 3
    media = {"media", "before", "after"} | ({"candidates"} if kind == "world_prediction" else set())
    for a, b in zip(made, read, strict=True):
        ours, theirs = ({k: v for k, v in vars(each).items() if k not in media} for each in (a, b))
        assert ours == theirs
        for x, y in zip(clips_of(a), clips_of(b), strict=True):
            assert (x == y).all()


def test_samples_are_of_held_out_scenes_and_say_what_these_are():
    world = World()
    scenes = held_out_scenes(world, 20, seed=0)
    assert len(set(scenes)) == 20
    assert all(is_held_out(scene, world.held_out_percent) for scene in scenes)
    texts = [sample.captions for sample in world_samples(world, "caption", 20, 2, seed=0)]
    assert texts == [tuple(captions(scene)) for scene in scenes]
    labels = [sample.label for sample in world_samples(world, "class", 20, 2, seed=0)]
    assert labels == [PHRASES[scene.action][0] for scene in scenes if scene.action in SOLO_ACTIONS]
    asked = [(s.question, s.answer, s.candidates) for s in world_samples(world, "question", 20, 2, seed=0)]
    assert asked == [(q.text, q.answer, q.candidates) for scene in scenes for q in questions(scene)]


@pytest.mark.parametrize("action", TRANSITIONS)
def test_two_states_tell_the_action_between_them(action):
    world = World(noise=0, background=0, size=64)
    scenes = [Scene(action, ((colour, "cross"),)) for colour in COLOURS] * 3
    states = world.transitions(scenes, np.random.default_rng(0)).astype(float)
    # A backdrop without waves has one colour: what differs from its most frequent colour is the object.
    flat = states.reshape(len(scenes) * 2, -1, 3)
    shown = np.abs(flat - np.median(flat, axis=1, keepdims=True)).max(-1) > 25
    area = shown.sum(1).reshape(-1, 2)
    place = np.exp(2j * np.pi * (np.arange(64) + 0.5) / 64)  # the frame is a torus
    shown = shown.reshape(len(scenes), 2, 64, 64)
    step = {}
    for axis, ways in ((2, ("left", "right")), (3, ("up", "down"))):  # sums over rows leave x, over columns y
        angle = np.angle((shown.sum(axis) * place).sum(-1))
        turned = np.angle(np.exp(1j * (angle[:, 1] - angle[:, 0]))) / (2 * np.pi)
        step |= {ways[0]: -turned, ways[1]: turned}
    growth = area[:, 1] / area[:, 0]
    if action in step:
        assert (step[action] > 0.15).all()
        assert np.allclose(growth, 1, atol=0.1)
    else:
        assert (growth > 1.1 if action == "grow" else growth < 0.95).all()
        assert all((np.abs(each) < 0.02).all() for each in step.values())


def test_candidates_are_four_actions_of_one_object_with_the_answer_at_any_place():
    samples = world_samples(PLAIN, "world_prediction", 40, 2, seed=0)
    assert {sample.answer for sample in samples} == {0, 1, 2, 3}
    assert {len(sample.candidates) for sample in samples} == {4}
    assert len({sample.id for sample in samples}) == 40
    assert [clips_of(sample)[2].shape for sample in samples[:2]] == [(4, 48, 48, 3)] * 2
