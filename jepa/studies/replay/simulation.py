"""`jepa replay`: decoding policies on the timeline of a real data set, with simulated embeddings.

Real are the narrations, their times, and the sentence encoder that embeds them. Simulated is the predictor: at each
step its embedding is that of the narration in force, plus noise,

    z_t = unit(e_t + σ/√E · n_t),   n_t = ρ n_{t−1} + √(1 − ρ²) w_t,   n_0 and w_t standard normal in E dimensions,

so that σ is the root mean square length of the noise, where e_t has length 1. A window that straddles a boundary is
not modelled: e_t changes from one step to the next. The decoder is simulated as well: the bank of all narrations of
the timeline, of which it says the nearest.

T steps, E embedding dimensions, N distinct narrations.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

from jepa.data.records import StreamRecord
from jepa.data.timelines import Excerpt, Timeline, excerpt, name_fraction, read_timeline
from jepa.decoders.bank import CaptionBank
from jepa.encoders.sentence import SENTENCE_ENCODER, embed_sentences
from jepa.errors import InputError
from jepa.evaluation.provenance import announce, code_version, describe_device, library_versions, now
from jepa.evaluation.streams import EncodedStream
from jepa.evaluation.sweep import check_sweep, selects_steps, sweep_setting
from jepa.models.bank import BankDecoder
from jepa.operations import OperationLedger
from jepa.report.render import terminal, write_report
from jepa.studies.configs import ReplayConfig
from jepa.studies.replay.report import report
from jepa.studies.replay.results import Level, ReplayedPart, ReplayedTimeline, ReplayResults

Embed = Callable[[Sequence[str]], Tensor]
_GAPS = {"last": "the last text stays in force", "background": "the mean of all narrations' embeddings"}


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


def run(config: ReplayConfig, embed: Embed = embed_sentences) -> ReplayResults:
    """Replay a timeline, print a summary, and write replay.json, replay.md, replay.html and replay.png.

    Policies that select the steps to encode, or that predict on demand, are left out, and the outputs say so: there
    are no frames here.

    Args:
        config: the configuration.
        embed: N texts -> embeddings (N, E) of unit norm.

    Raises:
        InputError: before anything is embedded, for a timeline, excerpt, policies, references or a confidence that no
            replay can have.
    """
    policies = {name: policy for name, policy in config.policies.items() if not selects_steps(policy)}
    swept = config.model_copy(update={"policies": policies})
    check_sweep(swept)
    source = config.timeline
    timeline = read_timeline(source.path, source.format, durations=source.durations, point_seconds=source.point_seconds)
    if len(set(config.noise)) < len(config.noise):
        raise InputError(f"noise must be a list of distinct levels, got {config.noise}")
    taken = excerpt(timeline, config.limit, config.minutes, config.calibration_fraction, source.split_by)
    texts = list(dict.fromkeys(event.text for record in timeline.records for event in record.events))
    bank = CaptionBank(texts, embed(texts))
    levels = []
    for noise in config.noise:
        streams = {split: simulate_streams(records, bank, noise, config) for split, records in taken.splits.items()}
        sweep, _ = sweep_setting(
            streams,
            BankDecoder(bank),
            swept,
            latent_delay=0.0,
            name=f"noise {noise:g}",
        )
        levels.append(Level(**dict(sweep), noise=noise, steps_right=_steps_right(streams["test"], bank)))
    results = ReplayResults(
        name=source.format,
        created=now(),
        simulated=(
            "SIMULATED EMBEDDINGS: narrations and times are real, predictor and decoder are not. Latents are "
            f"{SENTENCE_ENCODER} embeddings of the narration in force plus noise of autocorrelation "
            f"{config.autocorrelation:g} at {config.step_rate_hz:g} Hz; between narrations: {_GAPS[config.gap]}; "
            "the decoder says the nearest narration of the timeline."
        ),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        code=code_version(),
        libraries=library_versions(),
        device=describe_device("cpu"),
        timeline=_description(timeline, taken, len(texts), source.format),
        levels=tuple(levels),
    )
    shown = report(results)
    announce(terminal(shown), write_report(results, shown, config.output, "replay"))
    return results


def simulate_streams(
    records: Sequence[StreamRecord], bank: CaptionBank, noise: float, config: ReplayConfig
) -> list[EncodedStream]:
    """The latents of the streams at a level of noise; `config` has the step rate, the gap and the noise's correlation.

    Raises:
        InputError: a stream lasts less than a step.
    """
    rows = {text: row for row, text in enumerate(bank.texts)}
    embeddings = bank.embeddings.numpy()
    background = embeddings.mean(axis=0)
    background /= np.linalg.norm(background)
    force_at = text_in_force if config.gap == "background" else last_in_force
    streams = []
    for record in records:
        steps = int(record.duration * config.step_rate_hz)
        if steps < 1:
            raise InputError(f"{record.video_id}: a stream must last at least one step, got {record.duration} s")
        times = (np.arange(steps) + 0.5) / config.step_rate_hz
        force = force_at(record, times)
        said = np.array([rows[event.text] for event in record.events])
        targets = np.where(force[:, None] >= 0, embeddings[said[force]], background)
        seed = (config.seed, int(name_fraction(record.video_id) * 2**32))
        ledger = OperationLedger()
        ledger.stream(record.duration)
        latents = simulate_latents(targets, noise, config.autocorrelation, seed)
        streams.append(EncodedStream(record, latents, times, ledger))
    return streams


def _steps_right(streams: Sequence[EncodedStream], bank: CaptionBank) -> float:
    """The fraction of steps inside an annotation whose nearest narration is the one in force."""
    right = total = 0
    for stream in streams:
        force = text_in_force(stream.record, stream.times)
        inside = np.flatnonzero(force >= 0)
        said = bank.lookup(torch.from_numpy(stream.latents[inside]))
        right += sum(text == stream.record.events[index].text for text, index in zip(said, force[inside], strict=True))
        total += len(inside)
    return right / total if total else 0.0


def _description(timeline: Timeline, taken: Excerpt, texts: int, form: str) -> ReplayedTimeline:
    """What was read, and what of it was used."""
    used = {
        split: ReplayedPart(
            videos=len(records),
            groups=len({timeline.groups[record.video_id] for record in records}),
            hours=sum(record.duration for record in records) / 3600,
            annotations=sum(len(record.events) for record in records),
        )
        for split, records in taken.splits.items()
    }
    return ReplayedTimeline(
        format=form,
        encoder=SENTENCE_ENCODER,
        videos=len(timeline.records),
        annotations=sum(len(record.events) for record in timeline.records),
        distinct_texts=texts,
        overlapping=timeline.overlapping,
        cut=taken.cut,
        dropped=dict(timeline.dropped),
        used=used,
    )
