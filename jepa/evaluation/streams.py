"""Latents of a setting's streams: computed once, saved, and read back for any number of policy sweeps.

T steps, E embedding dimensions.
"""

from __future__ import annotations

import base64
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from jepa.data.records import StreamRecord, read_records, write_records
from jepa.data.world import CAPTION_QUERIES, Stream, StreamStyle, World
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import OperationLedger

SPLITS = ("calibration", "test")
_SPLIT_SEEDS = {"calibration": 7_001, "test": 7_002}  # apart from each other and from training's


@dataclass(frozen=True)
class StreamSet:
    """The streams of one split: `latents[i]` (T, E) float32 at `times[i]` (T,) seconds, annotated by `records[i]`.

    `ledgers[i]` holds what encoding stream i took.
    """

    records: list[StreamRecord]
    latents: list[np.ndarray]
    times: list[np.ndarray]
    ledgers: list[OperationLedger]


def make_streams(
    world: World, name: str, split: str, count: int, seconds: float, style: StreamStyle, seed: int
) -> list[Stream]:
    """`count` streams of a setting; calibration and test streams come from different seeds."""
    key = int.from_bytes(name.encode()[:6], "big")
    return [
        world.stream(f"{name}-{split}-{i:04d}", (seed, _SPLIT_SEEDS[split], key, i), seconds, style)
        for i in range(count)
    ]


def encode_streams(model: VLJEPA, streams: list[Stream], step_rate: float, what: str) -> StreamSet:
    """Runs X-Encoder and Predictor over whole streams, under a caption query."""
    result = StreamSet([], [], [], [])
    for stream in tqdm(streams, desc=f"latents, {what}", unit="stream"):
        ledger = OperationLedger()
        parts = list(model.stream(stream.frames(), step_rate, CAPTION_QUERIES[0], ledger))
        if not parts:
            raise InputError(
                f"stream {stream.record.video_id} must last at least {model.window} s, got {stream.record.duration} s"
            )
        ledger.stream(stream.record.duration)
        result.records.append(stream.record)
        result.latents.append(np.concatenate([part[0] for part in parts]).astype(np.float32))
        result.times.append(np.concatenate([part[1] for part in parts]))
        result.ledgers.append(ledger)
    return result


def thumbnails(stream: Stream, count: int = 36) -> list[dict[str, Any]]:
    """`count` frames at equal distances, as `{time, png}` with base64 PNG data."""
    from PIL import Image

    frames = np.concatenate(list(stream.frames()))
    chosen = ((np.arange(count) + 0.5) / count * len(frames)).astype(int)
    pictures = []
    for index in chosen:
        buffer = io.BytesIO()
        Image.fromarray(frames[index]).save(buffer, format="PNG")
        pictures.append(
            {
                "time": float(index / stream.world.fps),
                "png": base64.b64encode(buffer.getvalue()).decode("ascii"),
            }
        )
    return pictures


def save_streams(streams: StreamSet, folder: Path) -> None:
    """Writes `latents.safetensors`, `records.jsonl` and `ledgers.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for record, latents, times in zip(streams.records, streams.latents, streams.times, strict=True):
        tensors[f"{record.video_id}/latents"] = latents
        tensors[f"{record.video_id}/times"] = times
    save_file(tensors, folder / "latents.safetensors")
    write_records(streams.records, folder / "records.jsonl")
    (folder / "ledgers.json").write_text(json.dumps([x.to_dict() for x in streams.ledgers]), encoding="utf-8")


def load_streams(folder: Path) -> StreamSet:
    """Reads what `save_streams` wrote. Raises `InputError` naming the missing, truncated or incomplete file."""
    records = read_records(folder / "records.jsonl")
    path = folder / "latents.safetensors"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"latents not found: {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None
    for record in records:
        for part in ("latents", "times"):
            if f"{record.video_id}/{part}" not in tensors:
                raise InputError(f"{path}: no {part} of the stream {record.video_id!r} that records.jsonl lists")
    try:
        ledgers = [
            OperationLedger.from_dict(d) for d in json.loads((folder / "ledgers.json").read_text(encoding="utf-8"))
        ]
    except (OSError, json.JSONDecodeError) as error:
        raise InputError(f"{folder / 'ledgers.json'} cannot be read: {error}") from None
    return StreamSet(
        records,
        [tensors[f"{r.video_id}/latents"] for r in records],
        [tensors[f"{r.video_id}/times"] for r in records],
        ledgers,
    )
