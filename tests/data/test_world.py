"""The procedural world: determinism, what pixels show, timelines, texts, the held-out split."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from conftest import refusals

from jepa.data.clips import ClipBatches
from jepa.data.world import (
    BINDING,
    COLOURS,
    IDLE,
    PAIR_ACTIONS,
    SHAPES,
    SOLO_ACTIONS,
    Scene,
    Span,
    StreamStyle,
    World,
    all_scenes,
    captions,
    is_held_out,
    questions,
)

EVERYDAY = StreamStyle(6.0, 0.5, 2.0, 0.15, 3.0, 0.35)
DENSE = StreamStyle(2.45, 0.45, 1.0, 0.04, 1.5, 0.35)


def clip(scene: Scene, seconds: float = 1.0, seed: int = 0, **world: float) -> np.ndarray:
    """(T, S, S, 3) of one scene from its start."""
    made = World(**world)  # type: ignore[arg-type]
    window = np.arange(int(seconds * made.fps))[None] / made.fps
    return made.clips([[Span(0.0, np.inf, scene, "")]], window, np.random.default_rng(seed))[0]


def centre(frame: np.ndarray, colour: str) -> np.ndarray:
    """Circular mean (x, y) of the pixels near `colour`, as fractions of the frame: the frame is a torus."""
    near = np.abs(frame.astype(float) - COLOURS[colour]).max(-1) < 45
    assert near.sum() > 20
    rows, columns = np.nonzero(near)
    turn = np.exp(2j * np.pi * (np.stack([columns, rows]) + 0.5) / len(frame)).mean(1)
    return np.angle(turn) / (2 * np.pi) % 1


@pytest.mark.parametrize(
    ("action", "direction"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_a_moving_object_moves_where_its_caption_says(action, direction):
    frames = clip(Scene(action, (("red", "circle"),)), noise=0, background=0)
    for before, after in itertools.pairwise(frames):
        shift = (centre(after, "red") - centre(before, "red") + 0.5) % 1 - 0.5
        along = float(shift @ direction)
        assert 0.4 / 8 - 0.02 < along < 0.75 / 8 + 0.02
        assert abs(shift @ np.array(direction)[::-1]) < 0.02


def test_objects_have_the_colour_and_area_of_their_shape():
    """A ring lies between 0.56 and 1 radii, a circle within 0.9: their areas compare as 0.6864 to 0.81."""
    areas = {}
    for shape in ("circle", "ring"):
        frame = clip(Scene(IDLE, (("cyan", shape),)), seed=3, noise=0, background=0, size=96)[0]
        areas[shape] = (np.abs(frame.astype(float) - COLOURS["cyan"]).max(-1) < 45).sum()
    assert areas["ring"] / areas["circle"] == pytest.approx(0.6864 / 0.81, rel=0.06)


def test_pixels_change_while_nothing_happens():
    frames = clip(Scene(IDLE, ()), seconds=2.0).astype(int)
    for before, after in itertools.pairwise(frames):
        assert np.abs(after - before).mean() > 3


def test_the_same_seed_gives_the_same_batch_and_another_index_another():
    batches, again = (ClipBatches(World(), seed=5, batch_size=6, batches=3) for _ in range(2))
    assert batches[1][1:] == again[1][1:]
    assert (batches[1].frames == again[1].frames).all()
    assert (batches[1].frames != batches[2].frames).any()


def test_stream_frames_do_not_depend_on_the_chunk_in_what_they_show():
    """Only the noise, drawn in order, may differ with the chunk; without it the frames are equal."""
    stream = World(noise=0).stream("s", (1,), 20.0, EVERYDAY)
    whole = np.concatenate(list(stream.frames(chunk=1000)))
    parts = np.concatenate(list(stream.frames(chunk=7)))
    assert whole.shape == (160, 48, 48, 3)
    assert (whole == parts).all()


@pytest.mark.parametrize(("style", "rate", "mean"), [(EVERYDAY, 1 / 6.45, 6.0), (DENSE, 0.40, 2.45)])
def test_streams_have_the_published_density_durations_and_recurrence(style, rate, mean):
    records = [World().stream(f"s{i}", (9, i), 180.0, style).record for i in range(120)]
    events = [event for record in records for event in record.events]
    assert len(events) / (120 * 180) == pytest.approx(rate, rel=0.05)
    assert np.mean([e.end - e.start for e in events]) == pytest.approx(mean, rel=0.05)
    repeated = sum(len(r.events) - len({e.text for e in r.events}) for r in records)
    assert repeated / len(events) == pytest.approx(0.35, abs=0.05)


def test_timelines_have_no_gap_and_no_event_repeats_the_one_before():
    for seed in range(30):
        stream = World().stream("s", (seed,), 120.0, DENSE)
        spans = stream.spans
        assert spans[0].start == 0
        assert spans[-1].end == 120.0
        assert all(a.end == b.start for a, b in itertools.pairwise(spans))
        scenes = [s.scene for s in spans if s.scene.action != IDLE]
        assert all(a != b for a, b in itertools.pairwise(scenes))
        assert all(span.text in captions(span.scene) for span in spans)


def test_held_out_compositions_never_occur_in_training():
    world = World()
    train = {s for part in world.splits["train"] for s in part}
    held_out = {s for part in world.splits["held_out"] for s in part}
    assert not train & held_out
    assert train | held_out == set(all_scenes())
    assert len(held_out) >= 200
    rng = np.random.default_rng(0)
    assert all(world.sample_scene(rng, "train") in train for _ in range(500))
    trained_on = World().stream("s", (1,), 600.0, DENSE, split="train")
    assert not any(is_held_out(span.scene, 25) for span in trained_on.spans if span.scene.action != IDLE)
    # Every word of a held-out caption is known: only the composition is new.
    words = {word for scene in train for text in captions(scene) for word in text.split()}
    assert all(word in words for scene in held_out for text in captions(scene) for word in text.split())


def test_captions_of_different_scenes_differ():
    seen: dict[str, Scene] = {}
    for scene in all_scenes():
        for text in captions(scene):
            assert seen.setdefault(text, scene) == scene


def test_questions_have_one_right_answer_among_their_candidates():
    for scene in all_scenes()[::37]:
        for question in questions(scene):
            assert question.candidates.count(question.answer) == 1
        colours = [q.answer for q in questions(scene) if q.kind == "what colour"]
        assert colours == [colour for colour, _ in scene.objects]
    assert set(SOLO_ACTIONS).isdisjoint(PAIR_ACTIONS)
    assert len(SHAPES) == len(set(SHAPES))


test_bad_values_are_named = refusals(
    (lambda: World(size=8), "size .* 8"),
    (lambda: World(held_out_percent=100), "held_out_percent .* 100"),
    (lambda: StreamStyle(mean_event=0), "mean_event .* 0"),
    (lambda: StreamStyle(6.0, recurrence=1.0), "recurrence .* 1.0"),
    (lambda: World().stream("s", (0,), -1.0, EVERYDAY), "duration of 's' .* -1.0"),
)


@pytest.mark.parametrize("what", ["action", "shape", "colour"])
def test_a_hard_negative_differs_in_one_thing_and_is_of_the_split(what):
    world = World()
    rng = np.random.default_rng(0)
    train = {s for part in world.splits["train"] for s in part}
    scenes = [world.sample_scene(rng, "train") for _ in range(100)]
    found = [(scene, other) for scene in scenes if (other := world.vary(scene, what, rng, "train"))]
    assert len(found) > 85
    for scene, other in found:
        assert other in train
        things = zip(sum(scene.objects, ()), sum(other.objects, ()), strict=True)
        changed = sum(a != b for a, b in things)
        assert (other.action != scene.action, changed) == ((True, 0) if what == "action" else (False, 1))


def test_a_pair_is_told_from_its_parts_bound_otherwise():
    world, rng = World(), np.random.default_rng(0)
    solo, pairs = world.splits["train"]
    assert all(world.vary(scene, BINDING, rng, "train") is None for scene in solo)
    found = {(scene, other) for scene in pairs for _ in range(4) if (other := world.vary(scene, BINDING, rng, "train"))}
    changes = set()
    for scene, other in found:
        (colours, shapes), (now, those) = zip(*scene.objects, strict=True), zip(*other.objects, strict=True)
        assert (scene.action, set(colours), set(shapes)) == (other.action, set(now), set(those))
        changes.add((colours == now, shapes == those))
    assert changes == {(False, False), (False, True), (True, False)}
    batches = [ClipBatches(world, 0, 64, 1, hard_negatives=count)[0] for count in (3, 4)]
    assert len(batches[1].negatives) > len(batches[0].negatives)


def test_negatives_are_captions_of_training_compositions():
    world = World()
    batch = ClipBatches(world, 0, 64, 1, hard_negatives=2)[0]
    held_out = {text for part in world.splits["held_out"] for scene in part for text in captions(scene)}
    assert 64 * 0.5 < len(batch.negatives) <= 2 * 64
    assert held_out.isdisjoint(batch.negatives)
    assert held_out.isdisjoint(batch.texts)
    assert ClipBatches(world, 0, 64, 1, hard_negatives=0)[0].negatives == []
