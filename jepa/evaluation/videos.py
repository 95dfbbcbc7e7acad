"""`evaluate` of a VL-JEPA: its scores, and the latents of its streams for the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build
from jepa.config import EvaluateConfig, StreamConfig, VideosConfig
from jepa.data.json_lines import located
from jepa.data.records import StreamRecord
from jepa.data.timelines import excerpt, read_timeline, video_of
from jepa.data.video import VideoFile, VideoStream, find_videos
from jepa.data.world import Stream, World
from jepa.errors import InputError
from jepa.evaluation.provenance import device_of, evaluated, kept_in
from jepa.evaluation.streams import KINDS, SPLITS, EncodedStream, check_length, encode_stream, save_streams, thumbnails
from jepa.evaluation.tasks import score_lines, score_tasks
from jepa.kept import Kept
from jepa.models.vl_jepa import VLJEPA
from jepa.processes import Ranks, ranks
from jepa.results import StreamEvaluation
from jepa.results.documents import EncodedStreams, Stage, Training


@torch.no_grad()
def evaluate_videos(folder: Path, output: Path, config: EvaluateConfig) -> Path:
    """Scores the checkpoint `folder`; writes `output`, a `StreamEvaluation` beside the encoded streams of each setting.

    Input is checked before anything is computed. A video that turns out to be broken on the way is left out.

    Raises:
        InputError: no training record, or a bad timeline, excerpt, folder, video or step rate; once all is written, for
            videos that were left out.
    """
    with ranks() as all_ranks:
        return _evaluate_videos(folder, output, config, all_ranks)


def _evaluate_videos(folder: Path, output: Path, config: EvaluateConfig, all_ranks: Ranks) -> Path:
    if config.candidates < 5:
        raise InputError(f"candidates must be >= 5, for R@5 among them, got {config.candidates}")
    trained, device = checkpoint.read_config(folder), device_of(config.accelerator)
    training = training_record(folder)
    model: VLJEPA = checkpoint.load(folder).to(device)
    world = build(trained["world"])
    if config.videos is not None:
        plans = {"videos": _videos(model, config.videos, all_ranks)}
    else:
        made = {name: made_streams(world, name, each, config.seed) for name, each in config.streams.items()}
        plans = {name: _Plan(config.streams[name], made[name]) for name in made}
    for name, plan in plans.items():
        _check(model, plan, "videos" if config.videos is not None else f"streams.{name}")
    output.mkdir(parents=True, exist_ok=True)

    with kept_in(output, folder, KINDS, device=device, config=config.model_dump()) as kept:
        if not all_ranks.rank:
            scores = score_tasks(model, world, config.seed, config.candidates, config.batch_size)
            print(score_lines(scores), flush=True)
        settings = {}
        for name, plan in plans.items():
            if encoded := _save_streams(model, plan, name, output / name, all_ranks, kept):
                settings[name] = encoded
        if all_ranks.rank:
            return output
        document = evaluated(
            StreamEvaluation,
            *(folder, output, trained, device, model),
            config={"train": trained, "evaluate": config.model_dump()},
            latent_delay=model.window / 2,
            processes=all_ranks.count,
            training=training,
            scores=scores,
            settings=settings,
        )
        document.save(output)
        print(f"evaluation: {output}", flush=True)
    broken = [message for setting in settings.values() for message in setting.broken.values()]
    if broken:
        raise InputError(f"videos must be whole, got {len(broken)} that are not, left out of {output}: {broken[0]}")
    return output


@dataclass(frozen=True)
class _Plan:
    """A setting and the streams of its splits, none of them read yet."""

    setting: StreamConfig | VideosConfig
    streams: Mapping[str, Sequence[Stream | VideoStream]]


def made_streams(world: World, name: str, setting: StreamConfig, seed: int) -> dict[str, list[Stream]]:
    """The embedded streams of a setting, by split, whose seeds are apart from each other and from training's."""
    style, key = build(setting.style), int.from_bytes(name.encode()[:6], "big")
    made = {}
    for split, count, own in (("calibration", setting.calibration, 7_001), ("test", setting.test, 7_002)):
        seeds = {f"{name}-{split}-{i:04d}": (seed, own, key, i) for i in range(count)}
        made[split] = [world.stream(video, each, setting.seconds, style) for video, each in seeds.items()]
    return made


def _videos(model: VLJEPA, setting: VideosConfig, all_ranks: Ranks) -> _Plan:
    """The annotated videos of a folder."""
    timeline = read_timeline(**setting.timeline.model_dump(exclude={"split_by"}))
    found = find_videos(Path(setting.folder))
    files = {r.video_id: found.get(video_of(r.video_id)) for r in timeline.records}
    there = [record for record in timeline.records if files[record.video_id] is not None]
    if not all_ranks.rank:
        print(f"{len(there)} of {len(files)} annotated videos are in {setting.folder}", flush=True)
    if not there:
        raise InputError(f"videos.folder must hold annotated videos, got none of {len(files)} in {setting.folder}")
    taken = excerpt(
        replace(timeline, records=tuple(there)),
        0,
        setting.minutes,
        setting.calibration_fraction,
        setting.timeline.split_by,
    )

    def stream(record: StreamRecord) -> VideoStream:
        return VideoStream(files[record.video_id] or Path(), record, model.x_encoder.size, model.fps)

    return _Plan(setting, {split: [stream(record) for record in taken.splits[split]] for split in SPLITS})


def _check(model: VLJEPA, plan: _Plan, key: str) -> None:
    """Raises `InputError` for what encoding would stumble over after minutes; of a video file, its head is read."""
    with located(f"{key}.step_rate_hz"):
        model.slots(plan.setting.step_rate_hz)
    for stream in (stream for streams in plan.streams.values() for stream in streams):
        check_length(model, stream)
        if isinstance(stream, VideoStream):
            with VideoFile(str(stream.path), stream.path):
                pass


def _save_streams(
    model: VLJEPA, plan: _Plan, name: str, folder: Path, all_ranks: Ranks, kept: Kept
) -> EncodedStreams | None:
    """Encodes a setting's streams and saves each split once it is done; None but in the first process.

    Every process encodes its part of the streams, the first one saves all.
    """
    broken: dict[str, str] = {}
    for split, streams in plan.streams.items():
        own, encoded, left_out = streams[all_ranks.part(len(streams))], list[EncodedStream](), dict[str, str]()
        for stream in tqdm(own, desc=f"latents, {name} {split}", unit="stream", disable=all_ranks.rank > 0):
            try:
                encode = partial(encode_stream, model, stream, plan.setting.step_rate_hz)
                written = stream.path.stat().st_mtime_ns if isinstance(stream, VideoStream) else 0
                encoded.append(kept.get(f"{name} {split} {stream.record.video_id} {written}", encode))
            except InputError as error:
                left_out[stream.record.video_id] = str(error)
        parts = all_ranks.gather((encoded, left_out))
        broken |= {video: message for _, messages in parts for video, message in messages.items()}
        if not all_ranks.rank:
            save_streams([each for found, _ in parts for each in found], folder / split)
    if all_ranks.rank:
        return None
    whole = [stream for stream in plan.streams["test"] if stream.record.video_id not in broken]
    remark = f"; broken and left out: {len(broken)}" if broken else ""
    seconds = [stream.record.duration for stream in whole]
    return EncodedStreams(
        description=plan.setting.description + remark,
        step_rate_hz=plan.setting.step_rate_hz,
        seconds_each=sum(seconds) / len(seconds) if seconds else 0.0,
        broken=broken,
        thumbnails=thumbnails(whole[0]) if whole else (),
    )


def training_record(folder: Path) -> Training:
    """What training left beside the weights: steps, seconds and operations of the stages, the first stage's curve."""
    stages = checkpoint.read_stages(folder)
    return Training(
        **{key: sum(stage[key] for stage in stages) for key in ("steps", "samples", "seconds")},
        stages=tuple(Stage.model_validate({key: stage.get(key) for key in Stage.model_fields}) for stage in stages),
        curve=tuple(stages[0]["curve"]),
    )
