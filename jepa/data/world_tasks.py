"""Zero-shot tasks of the procedural world: samples as of a manifest, with their media in memory.

N clips, F frames a clip, S pixels a side.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from jepa.data.manifests import CaptionSample, ClassSample, Kind, QuestionSample, Sample, WorldPredictionSample
from jepa.data.media import Media
from jepa.data.world import PHRASES, SOLO_ACTIONS, TRANSITIONS, Scene, Span, World, captions, questions

CANDIDATES = 4  # clips to choose from in world prediction


def world_samples(world: World, kind: Kind, count: int, frames: int, seed: int) -> list[Sample]:
    """Samples of one kind on `count` distinct held-out compositions; the same seed gives the same pixels.

    They have all captions of a composition, every question about it, or, with one object, its action as the class. In
    world prediction `count` objects are shown before and after half a second of an action, with one clip each of four
    actions of such an object. Backgrounds, places and speeds of the clips differ: only the action agrees.
    """
    if kind == "world_prediction":
        return _transitions(world, count, frames, seed)
    scenes = held_out_scenes(world, count, seed)
    media = [_media(f"clip{i:04d}", clip) for i, clip in enumerate(held_out_clips(world, scenes, frames, seed))]
    samples: list[Sample] = []
    for scene, clip in zip(scenes, media, strict=True):
        if kind == "caption":
            samples.append(CaptionSample(clip.name, clip, tuple(captions(scene))))
        elif kind == "class" and scene.action in SOLO_ACTIONS:
            samples.append(ClassSample(clip.name, clip, PHRASES[scene.action][0]))
        elif kind == "question":
            samples += [
                QuestionSample(f"{clip.name}/{number}", clip, asked.text, asked.answer, asked.candidates)
                for number, asked in enumerate(questions(scene))
            ]
    return samples


def held_out_scenes(world: World, count: int, seed: int) -> list[Scene]:
    """`count` distinct held-out compositions: half of them solo actions (or as many as there are), the rest pairs."""
    rng = np.random.default_rng([seed, 101])
    solo, pairs = world.splits["held_out"]
    chosen = [solo[i] for i in rng.permutation(len(solo))[: count // 2]]
    chosen += [pairs[i] for i in rng.permutation(len(pairs))[: count - len(chosen)]]
    return chosen


def held_out_clips(world: World, scenes: Sequence[Scene], frames: int, seed: int) -> np.ndarray:
    """One clip (N, F, S, S, 3) uint8 of each scene, from a random moment of it."""
    return _clips(world, scenes, frames, np.random.default_rng([seed, 102]))


def _clips(world: World, scenes: Sequence[Scene], frames: int, rng: np.random.Generator) -> np.ndarray:
    windows = rng.uniform(0.5, 8.0, (len(scenes), 1)) + np.arange(frames) / world.fps
    return world.clips([[Span(0.0, np.inf, scene, "")] for scene in scenes], windows, rng)


def _transitions(world: World, count: int, frames: int, seed: int) -> list[Sample]:
    rng = np.random.default_rng([seed, 103])
    held_out = [scene for scene in world.splits["held_out"][0] if scene.action in TRANSITIONS]
    scenes = [held_out[i] for i in rng.integers(len(held_out), size=count)]
    actions = [_choices(scene.action, rng) for scene in scenes]
    states = world.transitions(scenes, rng)
    shown = [Scene(action, scene.objects) for scene, each in zip(scenes, actions, strict=True) for action in each]
    clips = _clips(world, shown, frames, rng).reshape(count, CANDIDATES, frames, *states.shape[2:])
    samples: list[Sample] = []
    for i, (scene, each) in enumerate(zip(scenes, actions, strict=True)):
        name = f"states{i:04d}"
        before, after = (_media(f"{name}/{when}", states[i, k : k + 1]) for k, when in enumerate(("before", "after")))
        candidates = tuple(_media(f"{name}/candidate{k}", clip) for k, clip in enumerate(clips[i]))
        samples.append(WorldPredictionSample(name, before, after, candidates, each.index(scene.action)))
    return samples


def _choices(action: str, rng: np.random.Generator) -> list[str]:
    """The action and others of `TRANSITIONS`, in random order."""
    others = [other for other in TRANSITIONS if other != action]
    chosen = [action, *(str(other) for other in rng.permutation(others)[: CANDIDATES - 1])]
    return [chosen[i] for i in rng.permutation(CANDIDATES)]


def _media(name: str, clip: np.ndarray) -> Media:
    """Frames (F, S, S, 3) uint8 as PNG in memory."""
    pictures = []
    for frame in clip:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, format="PNG")
        pictures.append(buffer.getvalue())
    return Media(name, tuple(pictures))
