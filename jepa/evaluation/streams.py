"""Latents of a setting's streams: computed once, saved, and read back for any number of policy sweeps.

T steps, E embedding dimensions.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from jepa.checkpoint import read_tensors
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
class EncodedStream:
    """The latents (T, E) float32 of a stream at `times` (T,) seconds, its annotations, and the ledger of its encoding.

    `changes` (T,) is the statistic of the change detector, `states` (T, D) the X-Encoder's mean state
    (`jepa.models.vl_jepa.mean_states`); both are None where latents came from elsewhere. Step i needs `length`
    encodings from number `i * hop` on: of time slots, or of the whole window.

    >>> record = StreamRecord("a", 1.0, ())
    >>> EncodedStream(record, np.eye(2), np.array([0.0, 0.5]), OperationLedger()).selected(None).latents.shape
    (2, 2)
    """

    record: StreamRecord
    latents: np.ndarray
    times: np.ndarray
    ledger: OperationLedger
    changes: np.ndarray | None = None
    states: np.ndarray | None = None
    hop: int = 1
    length: int = 1

    def mask(self, steps: StepSelection) -> np.ndarray:
        """Which steps (T,) are selected."""
        if self.changes is None:
            raise InputError(f"stream {self.record.video_id}: no change detector looked at it")
        return steps.select(self.changes)

    def selected(self, steps: StepSelection | None) -> EncodedStream:
        """The stream with the latents, times and states of the selected steps alone; None selects all."""
        if steps is None:
            return self
        mask = self.mask(steps)
        states = None if self.states is None else self.states[mask]
        return replace(self, latents=self.latents[mask], times=self.times[mask], states=states)


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


def encode_stream(model: VLJEPA, stream: Stream | VideoStream, step_rate: float) -> EncodedStream:
    """Runs X-Encoder and Predictor over a whole stream, under a caption query, and the change detector beside them.

    Raises:
        InputError: the steps a second do not fit the model, the stream is shorter than a window, or its file is broken.
    """
    check_length(model, stream)
    hop, length = model.encodings(step_rate)
    ledger, every = OperationLedger(), _EveryStep()
    parts = [
        (model.predict_steps(states, CAPTION_QUERIES[0], ledger), mean_states(states), times)
        for states, times in model.windows(stream.frames(), step_rate, ledger, SelectiveEncoding(ColourChange(), every))
    ]
    ledger.stream(stream.record.duration)
    latents, states, times = (np.concatenate(part) for part in zip(*parts, strict=True))
    changes = np.array(every.changes, dtype=np.float32)
    return EncodedStream(stream.record, latents.astype(np.float32), times, ledger, changes, states, hop, length)


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


def save_streams(streams: Sequence[EncodedStream], folder: Path) -> None:
    """Writes the streams of a split as `latents.safetensors`, `records.jsonl` and `encoding.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {f"{each.record.video_id}/{part}": getattr(each, part) for each in streams for part in _TENSORS}
    save_file(tensors, folder / "latents.safetensors")
    write_records([each.record for each in streams], folder / "records.jsonl")
    hop, length = next(((each.hop, each.length) for each in streams), (1, 1))
    encoding = {"hop": hop, "length": length, "ledgers": [each.ledger.to_dict() for each in streams]}
    (folder / "encoding.json").write_text(json.dumps(encoding), encoding="utf-8")


def load_streams(folder: Path) -> list[EncodedStream]:
    """Reads what `save_streams` wrote.

    Raises:
        InputError: a file is missing, truncated or incomplete, or disagrees with the others on streams or steps.
    """
    records = read_records(folder / "records.jsonl")
    path, encoded = folder / "latents.safetensors", folder / "encoding.json"
    tensors = read_tensors(path, load_file)
    try:
        encoding = json.loads(encoded.read_text(encoding="utf-8"))
        ledgers = [OperationLedger.from_dict(ledger) for ledger in encoding["ledgers"]]
        hop, length = int(encoding["hop"]), int(encoding["length"])
    except (OSError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{encoded} cannot be read: {error!r}") from None
    if len(ledgers) != len(records):
        raise InputError(f"{encoded}: ledgers must be one for each of {len(records)} streams, got {len(ledgers)}")
    streams = []
    for record, ledger in zip(records, ledgers, strict=True):
        found = {part: tensors.get(f"{record.video_id}/{part}") for part in _TENSORS}
        steps = 0 if found["latents"] is None else len(found["latents"])
        for part, rows in found.items():
            name = f"{part} of the stream {record.video_id!r}"
            if rows is None:
                raise InputError(f"{path}: no {name} that records.jsonl lists")
            if rows.shape[:1] != (steps,) or rows.ndim != (2 if part in ("latents", "states") else 1):
                raise InputError(f"{path}: {name} must be of {steps} steps, got shape {rows.shape}")
        parts = {part: rows for part, rows in found.items() if rows is not None}
        streams.append(EncodedStream(record, **parts, ledger=ledger, hop=hop, length=length))
    return streams
