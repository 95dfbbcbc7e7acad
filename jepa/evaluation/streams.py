"""Latents of a setting's streams: computed once, saved, and read back for any number of policy sweeps.

T steps, E embedding dimensions.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, product
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from tqdm import tqdm

from jepa.data.records import StreamRecord, read_records, write_records
from jepa.data.video import VideoStream
from jepa.data.world import CAPTION_QUERIES, Stream, StreamStyle, World
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA, mean_states
from jepa.operations import OperationLedger
from jepa.results.documents import Thumbnail
from jepa.selective import ColourChange, SelectiveEncoding, StepSelection

SPLITS = ("calibration", "test")
_TENSORS = ("latents", "times", "changes", "states")  # of a stream, as they are saved
_SPLIT_SEEDS = {"calibration": 7_001, "test": 7_002}  # apart from each other and from training's


@dataclass(frozen=True)
class StreamSet:
    """The streams of one split: `latents[i]` (T, E) float32 at `times[i]` (T,) seconds, annotated by `records[i]`.

    `ledgers[i]` counts the encoding of stream i. `changes[i]` (T,) is the statistic of the change detector, `states[i]`
    (T, D) the X-Encoder's mean state (`jepa.models.vl_jepa.mean_states`); both are empty where latents came from
    elsewhere. Step i needs `length` encodings from number `i * hop` on: of time slots, or of the whole window.
    """

    records: list[StreamRecord]
    latents: list[np.ndarray]
    times: list[np.ndarray]
    ledgers: list[OperationLedger]
    changes: list[np.ndarray] = field(default_factory=list)
    states: list[np.ndarray] = field(default_factory=list)
    hop: int = 1
    length: int = 1

    def selected(self, steps: StepSelection | None) -> StreamSet:
        """The streams with the latents, times and states of the selected steps alone; None selects all."""
        if steps is None:
            return self
        masks = [steps.select(changes) for changes in self.changes]
        latents, times, states = (
            [rows[mask] for rows, mask in zip(part, masks, strict=True)] if part else []
            for part in (self.latents, self.times, self.states)
        )
        return replace(self, latents=latents, times=times, states=states)


def make_streams(
    world: World, name: str, split: str, count: int, seconds: float, style: StreamStyle, seed: int
) -> list[Stream]:
    """`count` streams of a setting; calibration and test streams come from different seeds."""
    key = int.from_bytes(name.encode()[:6], "big")
    return [
        world.stream(f"{name}-{split}-{i:04d}", (seed, _SPLIT_SEEDS[split], key, i), seconds, style)
        for i in range(count)
    ]


def check_length(model: VLJEPA, stream: Stream | VideoStream) -> None:
    """Raises `InputError` for a stream that is shorter than a window of the model."""
    if stream.frame_count < model.frames:
        raise InputError(
            f"stream {stream.record.video_id} must last at least {model.window} s, got {stream.record.duration} s"
        )


def encode_streams(
    model: VLJEPA,
    streams: Sequence[Stream | VideoStream],
    step_rate: float,
    what: str | None,
    broken: dict[str, str] | None = None,
) -> StreamSet:
    """Runs X-Encoder and Predictor over whole streams, under a caption query, and the change detector beside them.

    Args:
        step_rate: steps a second.
        what: the name in the progress bar; None: there is none.
        broken: gets the streams whose files are broken, with the errors; without it they are an error.

    Raises:
        InputError: the step rate does not fit the model, a stream is shorter than a window, or a file is broken.
    """
    hop, length = model.encodings(step_rate)
    result = StreamSet([], [], [], [], hop=hop, length=length)
    for stream in streams:
        check_length(model, stream)
    for stream in tqdm(streams, desc=f"latents, {what}", unit="stream", disable=what is None):
        ledger = OperationLedger()
        every = _EveryStep()
        selection = SelectiveEncoding(ColourChange(), every)
        try:
            parts = [
                (model.predict_steps(states, CAPTION_QUERIES[0], ledger), mean_states(states), times)
                for states, times in model.windows(stream.frames(), step_rate, ledger, selection)
            ]
        except InputError as error:
            if broken is None:
                raise
            broken[stream.record.video_id] = str(error)
            continue
        ledger.stream(stream.record.duration)
        result.records.append(stream.record)
        result.latents.append(np.concatenate([part[0] for part in parts]).astype(np.float32))
        result.states.append(np.concatenate([part[1] for part in parts]))
        result.times.append(np.concatenate([part[2] for part in parts]))
        result.ledgers.append(ledger)
        result.changes.append(np.array(every.changes, dtype=np.float32))
    return result


def joined(parts: Sequence[StreamSet]) -> StreamSet:
    """Streams of one split that were encoded in parts, in the order of these."""
    names = ("records", "latents", "times", "ledgers", "changes", "states")
    lists: dict[str, Any] = {name: list(chain.from_iterable(getattr(part, name) for part in parts)) for name in names}
    return replace(parts[0], **lists)


class _EveryStep(StepSelection):
    """Takes every step, and keeps what the change detector said of it."""

    def __init__(self) -> None:
        super().__init__(None, hold=1)

    def start(self) -> None:
        super().start()
        self.changes: list[float] = []

    def step(self, change: float) -> bool:
        self.changes.append(change)
        return super().step(change)


def density(records: Sequence[StreamRecord]) -> dict[str, float]:
    """How many events streams have, how long these are, and the fraction that repeats an earlier one of its stream."""
    events = [event for record in records for event in record.events]
    repeated = sum(len(r.events) - len({event.text for event in r.events}) for r in records)
    return {
        "events_per_second": len(events) / sum(record.duration for record in records),
        "mean_event_seconds": sum(event.end - event.start for event in events) / len(events),
        "repeated_events": repeated / len(events),
    }


def thumbnails(stream: Stream | VideoStream, count: int = 36) -> tuple[Thumbnail, ...]:
    """`count` frames at equal distances."""
    from PIL import Image

    chosen = ((np.arange(count) + 0.5) / count * stream.frame_count).astype(int).tolist()
    pictures: list[Thumbnail] = []
    first = 0
    for chunk in stream.frames():
        for index in chosen[len(pictures) :]:
            if index >= first + len(chunk):
                break
            buffer = io.BytesIO()
            Image.fromarray(chunk[index - first]).save(buffer, format="PNG")
            png = base64.b64encode(buffer.getvalue()).decode("ascii")
            pictures.append(Thumbnail(time=float(index / stream.fps), png=png))
        first += len(chunk)
    return tuple(pictures)


def save_streams(streams: StreamSet, folder: Path) -> None:
    """Writes `latents.safetensors`, `records.jsonl` and `encoding.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for index, record in enumerate(streams.records):
        for part in _TENSORS:
            tensors[f"{record.video_id}/{part}"] = getattr(streams, part)[index]
    save_file(tensors, folder / "latents.safetensors")
    write_records(streams.records, folder / "records.jsonl")
    encoding = {"hop": streams.hop, "length": streams.length, "ledgers": [x.to_dict() for x in streams.ledgers]}
    (folder / "encoding.json").write_text(json.dumps(encoding), encoding="utf-8")


def load_streams(folder: Path) -> StreamSet:
    """Reads what `save_streams` wrote.

    Raises:
        InputError: a file is missing, truncated or incomplete, or disagrees with the others on streams or steps.
    """
    records = read_records(folder / "records.jsonl")
    path, encoded = folder / "latents.safetensors", folder / "encoding.json"
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise InputError(f"latents not found: {path}") from None
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from None
    found: dict[str, list[np.ndarray]] = {part: [] for part in _TENSORS}
    for name, part in product((record.video_id for record in records), _TENSORS):
        if (rows := tensors.get(f"{name}/{part}")) is None:
            raise InputError(f"{path}: no {part} of the stream {name!r} that records.jsonl lists")
        steps = len(tensors[f"{name}/latents"])
        if rows.shape[:1] != (steps,) or rows.ndim != (2 if part in ("latents", "states") else 1):
            raise InputError(f"{path}: {part} of the stream {name!r} must be of {steps} steps, got shape {rows.shape}")
        found[part].append(rows)
    try:
        encoding = json.loads(encoded.read_text(encoding="utf-8"))
        ledgers = [OperationLedger.from_dict(ledger) for ledger in encoding["ledgers"]]
        hop, length = int(encoding["hop"]), int(encoding["length"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{encoded} cannot be read: {error!r}") from None
    if len(ledgers) != len(records):
        raise InputError(f"{encoded}: ledgers must be one for each of {len(records)} streams, got {len(ledgers)}")
    return StreamSet(records, ledgers=ledgers, hop=hop, length=length, **found)
