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
from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from pydantic import Field, JsonValue
from scipy.signal import lfilter
from torch import Tensor

from jepa.data.records import StreamRecord
from jepa.data.timelines import Excerpt, Timeline, excerpt, name_fraction, read_timeline
from jepa.decoders.bank import CaptionBank
from jepa.encoders.sentence import SENTENCE_ENCODER, embed_sentences
from jepa.errors import InputError
from jepa.evaluation import provenance
from jepa.evaluation.streams import EncodedStream
from jepa.evaluation.sweep import builds, check_sweep, sweep_setting
from jepa.models.bank import BankDecoder
from jepa.operations import OperationLedger
from jepa.report import figures, sweep_figures, sweep_tables
from jepa.report import format as fmt
from jepa.report.blocks import Block, Colours, Figure, Heading, Report, Text
from jepa.report.notes import note
from jepa.report.render import terminal, write_report
from jepa.report.tables import NONE, Column, Table, table
from jepa.results import Code, Device, Document, Saving, Sweep
from jepa.results.analysis import has_cache, headline_savings, label, operating_point, reference_name
from jepa.results.base import Count, Fraction, Quantity, Record
from jepa.selective import OnDemand
from jepa.studies.configs import ReplayConfig

Embed = Callable[[Sequence[str]], Tensor]
KEPT = 0.75  # of the reference's quality at the lowest level of noise: with less, a level says nothing of savings
_GAPS = {"last": "the last text stays in force", "background": "the mean of all narrations' embeddings"}
_ABREAST = 5  # levels in a line of a terminal

# --- The document.


class Level(Sweep):
    """The sweep at one level of noise. `steps_right`: annotated steps that decode to the narration in force."""

    noise: Quantity
    steps_right: Fraction

    def saving(self, policy: str) -> Saving:
        """The headline saving of a policy."""
        return next(saving for saving in headline_savings(self) if saving.policy == policy)


class ReplayedPart(Record):
    """The streams of a split that were replayed."""

    videos: Count
    groups: Count
    hours: Quantity
    annotations: Count


class ReplayedTimeline(Record):
    """A timeline, and the part of it that was used. `cut` annotations end after the excerpt of their video."""

    format: str
    videos: Count
    annotations: Count
    distinct_texts: Count
    overlapping: Count
    cut: Count
    dropped: dict[str, Count]
    used: dict[str, ReplayedPart]


class ReplayResults(Document):
    """Policies on a real timeline with simulated embeddings; `simulated` says so. The first level is the headline.

    >>> ReplayResults.file_name
    'replay.json'
    """

    file_name: ClassVar[str] = "replay.json"

    kind: Literal["jepa.replay/3"] = "jepa.replay/3"
    simulated: str
    seed: int
    config: dict[str, JsonValue]
    code: Code
    libraries: dict[str, str]
    device: Device
    timeline: ReplayedTimeline
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]

    @property
    def by_noise(self) -> list[Level]:
        """The levels by rising noise."""
        return sorted(self.levels, key=lambda level: level.noise)


def counted_levels(results: ReplayResults) -> list[Level]:
    """The levels by rising noise at which the reference has at least `KEPT` of its quality at the lowest.

    Beyond them a policy may reach the reference again only because the reference has collapsed.
    """
    scores = [(level, headline_savings(level)[0].reference_quality) for level in results.by_noise]
    return [level for level, score in scores if score >= KEPT * scores[0][1]]


def savings_end(results: ReplayResults, policy: str) -> float | None:
    """The level of noise at which a policy's savings end.

    A saving holds if the reference's quality is reached, without any decode or with the interval above 1. The end is
    the first of `counted_levels` where none holds above the first where one does; the lowest level if none holds at
    all; None if each holds from the first on.
    """
    counted = counted_levels(results)
    savings = [level.saving(policy) for level in counted]
    held = [each.reached and (each.ratio is None or each.ratio.low > 1) for each in savings]
    if True not in held:
        return counted[0].noise
    first = held.index(True)
    return next((level.noise for level, yes in zip(counted[first:], held[first:], strict=True) if not yes), None)


# --- The simulation.


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

    `noise` is σ, `autocorrelation` ρ in [0, 1). The draws depend on seed and shape alone; levels of noise scale them.
    """
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal(targets.shape)
    draws[1:] *= np.sqrt(1 - autocorrelation**2)
    noisy = targets + noise / np.sqrt(targets.shape[1]) * lfilter([1.0], [1.0, -autocorrelation], draws, axis=0)
    return (noisy / np.linalg.norm(noisy, axis=1, keepdims=True)).astype(np.float32)


def run(config: ReplayConfig, embed: Embed = embed_sentences) -> ReplayResults:
    """Replay a timeline, print a summary, and write replay.json, replay.md, replay.html and replay.png.

    Policies that select the steps to encode, or that predict on demand, are left out, and the outputs say so: there
    are no frames here. `embed` gives N texts embeddings (N, E) of unit norm. Raises InputError before that for a
    timeline, excerpt, policies, references or a confidence that no replay can have.
    """
    policies = {name: each for name, each in config.policies.items() if not (each.steps or builds(each, OnDemand))}
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
        sweep, _ = sweep_setting(streams, BankDecoder(bank), swept, latent_delay=0.0, name=f"noise {noise:g}")
        levels.append(Level(**dict(sweep), noise=noise, steps_right=_steps_right(streams["test"], bank)))
    results = ReplayResults(
        name=source.format,
        created=provenance.now(),
        simulated=(
            "SIMULATED EMBEDDINGS: narrations and times are real, predictor and decoder are not. Latents are "
            f"{SENTENCE_ENCODER} embeddings of the narration in force plus noise of autocorrelation "
            f"{config.autocorrelation:g} at {config.step_rate_hz:g} Hz; between narrations: {_GAPS[config.gap]}; "
            "the decoder says the nearest narration of the timeline."
        ),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        code=provenance.code_version(),
        libraries=provenance.library_versions(),
        device=provenance.describe_device("cpu"),
        timeline=_description(timeline, taken, len(texts), source.format),
        levels=tuple(levels),
    )
    shown = report(results)
    provenance.announce(terminal(shown), write_report(results, shown, config.output, "replay"))
    return results


def simulate_streams(
    records: Sequence[StreamRecord], bank: CaptionBank, noise: float, config: ReplayConfig
) -> list[EncodedStream]:
    """The latents of the streams at a level of noise. Raises InputError if a stream lasts less than a step."""
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
    def annotations(records: Sequence[StreamRecord]) -> int:
        return sum(len(record.events) for record in records)

    used = {
        split: ReplayedPart(
            videos=len(records),
            groups=len({timeline.groups[record.video_id] for record in records}),
            hours=sum(record.duration for record in records) / 3600,
            annotations=annotations(records),
        )
        for split, records in taken.splits.items()
    }
    return ReplayedTimeline(
        format=form,
        videos=len(timeline.records),
        annotations=annotations(timeline.records),
        distinct_texts=texts,
        overlapping=timeline.overlapping,
        cut=taken.cut,
        dropped=dict(timeline.dropped),
        used=used,
    )


# --- The report. Its title and its first line say that embeddings are simulated.


def report(results: ReplayResults) -> Report:
    """The report of a document: the headline level in full, then savings at all levels of noise."""
    first, name = results.levels[0], f"noise {results.levels[0].noise:g}"
    painted = partial(sweep_tables.painted, sweeps={name: first}, name=name)
    asked, several = results.config["policies"], len(results.levels) > 1
    missing = ", ".join(each for each in asked if each not in first.curves) if isinstance(asked, dict) else ""
    facts = [Text(_timeline_facts(results.timeline))]
    facts += [Text(f"Left out, for they need frames and there are none: {missing}.")] if missing else []
    test = Text(
        f"Noise {first.noise:g} for each unit of norm: {fmt.fraction(first.steps_right)} of the annotated steps decode "
        f"right. Test streams: {first.events_per_second:.3f} annotations a second, {first.mean_event_seconds:.1f} s "
        f"each, {first.repeated_events:.0%} repeat an earlier one."
    )
    noise: list[Block] = [
        Heading("Levels of noise"),
        Text(
            "A policy's savings end at the first level without one above the first level with one: the reference's "
            "quality is missed (–), or the interval of the saving reaches down to 1. Levels at which the reference has "
            f"less than {KEPT:.0%} of its quality at the lowest level do not count."
        ),
        Figure("levels", "Savings over the levels of noise", partial(_levels_figure, results)),
        _noise_table(results),
    ]
    cache: list[Block] = [Heading(f"Cache, {name}"), note("cache"), painted(sweep_tables.cache_table(first))]
    blocks: list[Block] = [
        *facts,
        Heading(f"Savings at equal quality, {name}"),
        test,
        Figure("curves", "Quality against decodes per second", partial(sweep_figures.curves, {name: first}, name)),
        note("savings"),
        painted(sweep_tables.savings_table(first)),
        *(noise if several else []),
        Heading(f"Stream quality, {name}"),
        note("quality"),
        painted(sweep_tables.quality_table(first)),
        Heading(f"Operations, {name}"),
        Text(f"{sweep_tables.operations_facts(first)}. A decode is a look-up in the bank; nothing else ran."),
        painted(sweep_tables.operations_table(first)),
        *(cache if has_cache(first) else []),
    ]
    starts = range(0, len(results.levels), _ABREAST) if several else ()
    tables = [_noise_table(results, start, start + _ABREAST) for start in starts]
    return Report(
        title=f"SIMULATED EMBEDDINGS: replay of a real timeline, {results.timeline.format}",
        kicker=results.simulated,
        summary=[*facts, test, _summary_table(first), *tables],
        blocks=blocks,
        overview=partial(_overview, results),
        footer=f"Seed {results.seed}; {fmt.code_text(results.code)}; {results.created}.",
    )


def _summary_table(level: Level) -> Table:
    """Every policy against the headline reference, for a terminal."""

    def at(row: Saving) -> str:
        return NONE if row.value is None else operating_point(level.curves[row.policy], row.value)

    columns: list[Column[Saving]] = [
        Column("policy", lambda row: label(level.curves[row.policy]), words=True),
        Column("at", at, words=True),
        Column("CIDEr-D", lambda row: fmt.quality(row.quality)),
        Column("decodes/s", lambda row: fmt.fixed(row.decodes_per_second, 3)),
        Column("saving", lambda row: fmt.saving(row.ratio) if row.reached else "not reached"),
    ]
    return table("Savings", columns, [("", headline_savings(level))])


def _noise_table(results: ReplayResults, start: int = 0, stop: int | None = None) -> Table:
    """The headline saving of every policy at the levels from `start` to `stop`, and where savings end at all levels."""
    levels = results.by_noise[start:stop]
    highest, lowest = counted_levels(results)[-1].noise, results.by_noise[0].noise

    def cell(saving: Saving) -> str:
        if not saving.reached:
            return NONE
        return "decodes nothing" if saving.ratio is None else fmt.factor(saving.ratio.value)

    def end(policy: str) -> str:
        found = savings_end(results, policy)
        return f"> {highest:g}" if found is None else "none" if found == lowest else f"{found:g}"

    scores = [fmt.quality(headline_savings(level)[0].reference_quality) for level in levels]
    reference = [
        ["steps decoded right", *(fmt.fraction(level.steps_right) for level in levels), ""],
        [f"CIDEr-D of {reference_name(levels[0])}", *scores, ""],
    ]
    rows = [
        [label(curve), *(cell(level.saving(policy)) for level in levels), end(policy)]
        for policy, curve in levels[0].curves.items()
    ]
    header = ("noise", *(f"{level.noise:g}" for level in levels), "savings end at")
    return Table("Levels of noise", header, [("", reference), ("saving at equal quality", rows)])


def _timeline_facts(found: ReplayedTimeline) -> str:
    """What the timeline holds, and what of it was used."""
    used = ", ".join(
        f"{split} {part.videos} videos of {part.groups} groups ({fmt.fixed(part.hours, 1)} h, "
        f"{part.annotations:,} annotations)"
        for split, part in found.used.items()
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in found.dropped.items()) or "none"
    return (
        f"Timeline: {found.videos:,} annotated videos, {found.annotations:,} annotations, "
        f"{found.distinct_texts:,} distinct texts, {found.overlapping:,} annotations begin before an earlier one ends; "
        f"dropped: {dropped}. Used: {used}; {found.cut:,} annotations end after the excerpt."
    )


def _overview(results: ReplayResults, colours: Colours) -> Drawing:
    """Quality against decodes per second at the headline level; with several levels also saving against noise."""
    first = results.levels[0]
    name, several = f"noise {first.noise:g}", len(results.levels) > 1
    width, height = (1200 if several else 720), 480
    figure = figures.sized(width, height)
    figure.set_facecolor(colours["surface"])
    left, bottom, top, inner = 40, 50, 100, 660 - figures.NAMES
    across = (height - bottom - top) / height
    axes = figure.add_axes((left / width, bottom / height, inner / width, across))
    sweep_figures.draw_curves(axes, {name: first}, name, colours)
    style = figures.heading(colours)
    axes.annotate(name, (0, 1), (0, 34), xycoords="axes fraction", textcoords="offset points", **style)
    if several:
        start = left + inner + figures.NAMES + 50
        axes = figure.add_axes((start / width, bottom / height, (width - start - 20) / width, across))
        _draw_levels(axes, results, colours)
    claim = figures.short(results.simulated.partition(". ")[0], width - 60)
    figure.text(left / width, 1 - 28 / height, claim, color=colours["ink"], weight="bold", parse_math=False)
    return figure


def _levels_figure(results: ReplayResults, colours: Colours) -> Drawing:
    figure = figures.sized(560, 330)
    _draw_levels(figure.add_axes((0.06, 0.14, 0.92, 0.76)), results, colours)
    return figure


def _draw_levels(axes: Axes, results: ReplayResults, colours: Colours) -> None:
    """The saving of the highlighted policies against noise."""
    series = sweep_figures.series_of({"": results.levels[0]})
    found = {
        policy: [
            (level.noise, saving.ratio)
            for level in results.by_noise
            if (saving := level.saving(policy)).reached and saving.ratio is not None
        ]
        for policy in series
    }
    ends = [end for points in found.values() for _, ratio in points for end in (ratio.value, ratio.high)]
    highest = max((end for end in ends if end is not None), default=1.0)
    for policy, points in found.items():
        high = [highest if ratio.high is None else ratio.high for _, ratio in points]  # None: without bound
        line = figures.Line(
            label(results.levels[0].curves[policy]),
            [noise for noise, _ in points],
            [ratio.value for _, ratio in points],
            series[policy],
            [ratio.low for _, ratio in points],
            high,
        )
        figures.draw_line(axes, line, colours)
    figures.frame(axes, colours, "y")
    axes.axhline(1, color=colours["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.set_xticks([level.noise for level in results.by_noise])
    axes.set_xlabel("noise for each unit of norm", color=colours["muted"])
    axes.set_title("saving at equal quality, where it is reached", loc="left", **figures.heading(colours))
