"""Streams of a setting: encoded once, saved, and read back; and the segments that a policy finds in them.

T steps, E embedding dimensions, N latents.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file, save_file

from jepa.checkpoint import read_tensors
from jepa.data.json_lines import read_json
from jepa.data.media import png
from jepa.data.records import Event, StreamRecord, read_records, write_records
from jepa.data.video import VideoStream
from jepa.data.world import CAPTION_QUERIES, Stream
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA, summary, summary_flops
from jepa.operations import CacheCount, OperationLedger, PartCount
from jepa.results import EstimatedSeconds
from jepa.results.documents import Thumbnail
from jepa.selective import (
    ColourChange,
    Decoder,
    Emission,
    EveryStep,
    LatentCache,
    OnDemand,
    Oracle,
    Policy,
    Readout,
    Recorded,
    Segment,
    SelectiveDecoder,
    SelectiveEncoding,
    StepSelection,
    slots_needed,
)
from jepa.selective.calibration import texts_of

SPLITS = ("calibration", "test")
_TENSORS = ("latents", "times", "changes", "states")  # of a stream, as they are saved


@dataclass(frozen=True)
class EncodedStream:
    """The latents (T, E) float32 of a stream at `times` (T,) seconds, its annotations, and the ledger of its encoding.

    `changes` (T,) is the change detector's statistic, `states` (T, D) the X-Encoder's, summarised with `watching`
    operations (`jepa.models.vl_jepa.summary`); both are None where latents came from elsewhere. Step i needs `length`
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
    watching: PartCount = field(default_factory=PartCount)

    def mask(self, steps: StepSelection | None) -> np.ndarray:
        """Which steps (T,) are selected; None selects all."""
        if steps is None:
            return np.ones(len(self.times), dtype=bool)
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


KINDS = (EncodedStream, StreamRecord, Event, OperationLedger, PartCount, CacheCount)  # what it is made of


def check_length(model: VLJEPA, stream: Stream | VideoStream) -> None:
    """Raises `InputError` for a stream that is shorter than a window of the model."""
    if stream.frame_count < model.frames:
        name, duration = stream.record.video_id, stream.record.duration
        raise InputError(f"stream {name} must last at least {model.window} s, got {duration} s")


def encode_stream(model: VLJEPA, stream: Stream | VideoStream, step_rate: float) -> EncodedStream:
    """Runs X-Encoder and Predictor over a whole stream, under a caption query, and the change detector beside them.

    Raises `InputError` for a rate that does not fit the model, and a stream that is short or broken.
    """
    check_length(model, stream)
    ledger, watching, every = OperationLedger(), OperationLedger(), EveryStep()
    parts = []
    for window, at in model.windows(stream.frames(), step_rate, ledger, SelectiveEncoding(ColourChange(), every)):
        predicted = model.predict_steps(window, CAPTION_QUERIES[0], ledger)
        with watching.timed("detector"):
            parts.append((predicted, summary(window), at))
        watching.count("detector", calls=len(window), flops=summary_flops(window))
    ledger.stream(stream.record.duration)
    latents, states, times = (np.concatenate(part) for part in zip(*parts, strict=True))
    read = np.array(every.changes, dtype=np.float32), states, *model.encodings(step_rate), watching.detector
    return EncodedStream(stream.record, latents.astype(np.float32), times, ledger, *read)


def read_out(streams: Mapping[str, Sequence[EncodedStream]]) -> dict[str, list[EncodedStream]]:
    """The streams, by split, with what a `Readout` fitted on those of "calibration" makes of their states."""
    parts = ([getattr(each, part) for each in streams["calibration"]] for part in ("states", "latents"))
    readout = Readout.fit(*map(np.concatenate, parts))

    def read(stream: EncodedStream) -> EncodedStream:
        ledger = OperationLedger()
        with ledger.timed("detector"):
            states = None if stream.states is None else readout(stream.states)
        ledger.count("detector", flops=len(stream.times) * readout.flops)
        return replace(stream, states=states, watching=stream.watching + ledger.detector)

    return {split: [read(stream) for stream in each] for split, each in streams.items()}


def thumbnails(stream: Stream | VideoStream, count: int = 36) -> tuple[Thumbnail, ...]:
    """`count` frames at equal distances."""
    chosen = ((np.arange(count) + 0.5) / count * stream.frame_count).astype(int).tolist()
    pictures, first = list[Thumbnail](), 0
    for chunk in stream.frames():
        for index in [each for each in chosen[len(pictures) :] if each < first + len(chunk)]:
            pictures.append(Thumbnail(time=float(index / stream.fps), png=png(chunk[index - first])))
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
    encoding["watching"] = [asdict(each.watching) for each in streams]
    (folder / "encoding.json").write_text(json.dumps(encoding), encoding="utf-8")


def load_streams(folder: Path) -> list[EncodedStream]:
    """What `save_streams` wrote. Raises `InputError` for files that are missing, broken, or disagree."""
    records = read_records(folder / "records.jsonl")
    path, encoded = folder / "latents.safetensors", folder / "encoding.json"
    tensors = read_tensors(path, load_file)
    encoding = read_json(encoded, "encoding of streams")
    try:
        ledgers = [OperationLedger.from_dict(ledger) for ledger in encoding["ledgers"]]
        watching = [PartCount(**count) for count in encoding["watching"]]
        hop, length = int(encoding["hop"]), int(encoding["length"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{encoded} cannot be read: {error!r}") from None
    if not len(ledgers) == len(watching) == len(records):
        raise InputError(f"{encoded}: ledgers must be one for each of {len(records)} streams, got {len(ledgers)}")
    streams = []
    for record, ledger, watched in zip(records, ledgers, watching, strict=True):
        found: dict[str, np.ndarray] = {}
        for part in _TENSORS:
            name, rows = f"{part} of the stream {record.video_id!r}", tensors.get(f"{record.video_id}/{part}")
            if rows is None:
                raise InputError(f"{path}: no {name} that records.jsonl lists")
            found[part], steps = rows, len(found.get("latents", rows))
            if rows.shape[:1] != (steps,) or rows.ndim != (2 if part in ("latents", "states") else 1):
                raise InputError(f"{path}: {name} must be of {steps} steps, got shape {rows.shape}")
        streams.append(EncodedStream(record, **found, ledger=ledger, hop=hop, length=length, watching=watched))
    return streams


# --- Segments, as plain data.


class Said(NamedTuple):
    """What a reader of a stream gets: D texts, the moments that they stand for (D,), their spans (D, 2) and latents."""

    texts: list[str]
    times: np.ndarray
    spans: np.ndarray
    latents: Sequence[np.ndarray]  # (E,) each; none once they are of no use
    decodes: int  # of the texts those that the decoder wrote, and no cache

    def answered(self, texts: list[str], hits: Sequence[bool]) -> Said:
        """The same where a cache gave the texts, some of them (D,) its own."""
        return self._replace(texts=texts, decodes=len(hits) - sum(hits))


Cut = list[tuple[Segment, int]]  # the segments of a stream, each with the step at which it came out


@dataclass(frozen=True)
class Segments:
    """The segments of each stream, with the step at which each came out.

    `times` (T,) are those of the selected steps of each stream.

    >>> Segments([], []).said(None, {})
    []
    """

    times: list[np.ndarray]
    found: list[Cut]

    def extend(self, others: Segments) -> None:
        """Append those of further streams."""
        for mine, theirs in zip(vars(self).values(), vars(others).values(), strict=True):
            mine.extend(theirs)

    def said(self, decoder: Decoder, known: dict[int, tuple[np.ndarray, str]]) -> list[Said]:
        """What the decoder says of each stream; `known` holds its texts of latents met before, by identity."""
        latents = [[segment.latent for segment, _ in found] for found in self.found]
        new = list({id(row): row for rows in latents for row in rows if id(row) not in known}.values())
        known.update((id(row), (row, text)) for row, text in zip(new, texts_of(new, decoder), strict=True))
        said: list[Said] = []
        for rows, found in zip(latents, self.found, strict=True):
            times = np.array([(each.time, each.start, each.end) for each, _ in found]).reshape(-1, 3)
            said.append(Said([known[id(row)][1] for row in rows], times[:, 0], times[:, 1:], rows, len(rows)))
        return said

    def emissions(
        self, decoder: Decoder, cache: LatentCache | None, latent_delay: float
    ) -> tuple[list[list[Emission]], OperationLedger]:
        """The emissions of each stream through an empty copy of the cache, and what they took."""
        cache = None if cache is None else cache.fresh()
        selective = SelectiveDecoder(Recorded(self.found), decoder, cache=cache, latent_delay=latent_delay)
        return selective.run_many([(None, times) for times in self.times]), selective.ledger


def segment_streams(
    streams: Sequence[EncodedStream],
    policy: Policy,
    selection: StepSelection | None = None,
    shared: Sequence[dict[object, object]] | None = None,
) -> Segments:
    """What a policy makes of the selected steps of recorded streams.

    An oracle is told where the events of a stream begin and end. A policy on demand sees states in place of latents.
    `shared`, a dictionary a stream, holds what policies of one selection that differ in a parameter have in common.
    """
    segments = Segments([], [])
    for number, whole in enumerate(streams):
        policy.shared = None if shared is None else shared[number]
        stream = policy.remembered("selected", partial(whole.selected, selection))
        if isinstance(policy, Oracle):
            policy.boundaries = [second for event in stream.record.events for second in (event.start, event.end)]
        rows = stream.latents
        if isinstance(policy, OnDemand) and stream.states is not None:
            policy.predict, rows = stream.latents.__getitem__, stream.states
        segments.extend(Segments([stream.times], [policy.run(rows, stream.times)]))
    return segments


def encoding_operations(
    stream: EncodedStream, selection: StepSelection | None, policy: Policy | None, found: Cut
) -> tuple[OperationLedger, EstimatedSeconds]:
    """What encoding and predicting take, at every selected step, or as a policy that `found` these segments needs it.

    A policy that reads no latents needs the steps that it decodes, and a policy on demand the predictions that it asks
    for. The whole stream was encoded once. The calls and FLOPs of a part of it are exact, since all calls cost the
    same. Their wall time was not measured: the estimate is a call's mean time, times the calls.
    """
    whole, ledger, mask = stream.ledger, OperationLedger(), stream.mask(selection)
    ledger.stream(whole.stream_seconds)
    if selection is not None and selection.threshold is not None:
        ledger.add("detector", whole.detector)
    if policy is not None and not policy.reads_latents:
        decoded = [step for segment, _ in found for step in range(segment.first, segment.last + 1)]
        mask[mask] = np.isin(np.arange(mask.sum()), decoded)
    slots = whole.encoder.calls if mask.all() else slots_needed(mask, stream.hop, stream.length)
    calls, estimated = {"encoder": slots, "predictor": int(mask.sum())}, {}
    if isinstance(policy, OnDemand):
        rate, own = mask.mean(), stream.watching
        counts = {name: round(rate * getattr(own, name)) for name in ("calls", "flops")}
        ledger.count("detector", seconds=rate * own.seconds, **counts)
        calls["predictor"] = sum(segment.predictions for segment, _ in found)
    for part, once in (("encoder", whole.encoder), ("predictor", whole.predictor)):
        count = min(calls[part], once.calls)  # 0 where latents came from elsewhere
        fraction, measured = count / once.calls if once.calls else 0.0, count == once.calls
        estimated[part] = 0.0 if measured else once.seconds * fraction
        exact = {name: round(getattr(once, name) * fraction) for name in ("forward_passes", "flops", "weight_bytes")}
        ledger.count(part, calls=count, seconds=once.seconds if measured else 0.0, **exact)
    return ledger, EstimatedSeconds(**estimated)
