"""The report of a replay. Its title and its first line say that embeddings are simulated."""

from __future__ import annotations

from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from jepa.report import figures, sweep_figures, sweep_tables
from jepa.report import format as fmt
from jepa.report.blocks import Block, Colours, Figure, Heading, Report, Text
from jepa.report.notes import note
from jepa.report.tables import NONE, Column, Table, table
from jepa.results import Saving
from jepa.results.analysis import headline_savings, label, operating_point, reference_name
from jepa.studies.replay.results import KEPT, Level, ReplayResults, counted_levels, savings_end

_ABREAST = 5  # levels in a line of a terminal


def report(results: ReplayResults) -> Report:
    """The report of a document: the headline level in full, then savings at all levels of noise."""
    first, name = results.levels[0], f"noise {results.levels[0].noise:g}"
    painted = partial(sweep_tables.painted, sweeps={name: first}, name=name)
    facts = [Text(timeline_facts(results)), *map(Text, left_out(results))]
    several = len(results.levels) > 1
    noise: list[Block] = [
        Heading("Levels of noise"),
        Text(
            "A policy's savings end at the first level without one above the first level with one: the reference's "
            "quality is missed (–), or the interval of the saving reaches down to 1. Levels at which the reference has "
            f"less than {KEPT:.0%} of its quality at the lowest level do not count."
        ),
        Figure("levels", "Savings over the levels of noise", partial(levels_figure, results)),
        noise_table(results),
    ]
    cache: list[Block] = [
        Heading(f"Cache, {name}"),
        note("cache"),
        painted(sweep_tables.cache_table(first)),
    ]
    blocks: list[Block] = [
        *facts,
        Heading(f"Savings at equal quality, {name}"),
        Text(level_facts(first)),
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
        *(cache if sweep_tables.has_cache(first) else []),
    ]
    summary: list[Block] = [*facts, Text(level_facts(first)), summary_table(first)]
    starts = range(0, len(results.levels), _ABREAST) if several else ()
    summary += [noise_table(results, start, start + _ABREAST) for start in starts]
    return Report(
        title=f"SIMULATED EMBEDDINGS: replay of a real timeline, {results.timeline.format}",
        kicker=results.simulated,
        summary=summary,
        blocks=blocks,
        overview=partial(overview, results),
        footer=f"Seed {results.seed}; {fmt.code_text(results.code)}; {results.created}.",
    )


# --- Tables and sentences.


def summary_table(level: Level) -> Table:
    """Every policy against the headline reference, for a terminal."""
    columns: list[Column[Saving]] = [
        Column("policy", lambda row: label(level.curves[row.policy]), words=True),
        Column("at", lambda row: _at(level, row), words=True),
        Column("CIDEr-D", lambda row: fmt.quality(row.quality)),
        Column("decodes/s", lambda row: fmt.rate(row.decodes_per_second)),
        Column("saving", lambda row: fmt.saving(row.ratio) if row.reached else "not reached"),
    ]
    return table("Savings", columns, [("", headline_savings(level))])


def _at(level: Level, row: Saving) -> str:
    return NONE if row.value is None else operating_point(level.curves[row.policy], row.value)


def noise_table(results: ReplayResults, start: int = 0, stop: int | None = None) -> Table:
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


def timeline_facts(results: ReplayResults) -> str:
    """What the timeline holds, and what of it was used."""
    found = results.timeline
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


def left_out(results: ReplayResults) -> list[str]:
    """A sentence on the policies that were asked for and not swept; none if all were."""
    asked = results.config["policies"]
    assert isinstance(asked, dict)
    missing = [name for name in asked if name not in results.levels[0].curves]
    return [f"Left out, for they need frames and there are none: {', '.join(missing)}."] if missing else []


def level_facts(level: Level) -> str:
    """A level of noise and its test streams."""
    return (
        f"Noise {level.noise:g} for each unit of norm: {fmt.fraction(level.steps_right)} of the annotated steps decode "
        f"right. Test streams: {level.events_per_second:.3f} annotations a second, {level.mean_event_seconds:.1f} s "
        f"each, {level.repeated_events:.0%} repeat an earlier one."
    )


# --- Figures.


def overview(results: ReplayResults, colours: Colours) -> Drawing:
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


def levels_figure(results: ReplayResults, colours: Colours) -> Drawing:
    """The saving of the highlighted policies against noise."""
    figure = figures.sized(560, 330)
    _draw_levels(figure.add_axes((0.06, 0.14, 0.92, 0.76)), results, colours)
    return figure


def _draw_levels(axes: Axes, results: ReplayResults, colours: Colours) -> None:
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
        x, style = [noise for noise, _ in points], figures.style(series[policy], colours)
        low = [ratio.low for _, ratio in points]
        high = [highest if ratio.high is None else ratio.high for _, ratio in points]  # None: without bound
        axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)
        tip = figures.tooltip(label(results.levels[0].curves[policy]))
        axes.plot(x, [ratio.value for _, ratio in points], gid=tip, **style)
    figures.frame(axes, colours, "y")
    axes.axhline(1, color=colours["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.set_xticks([level.noise for level in results.by_noise])
    axes.set_xlabel("noise for each unit of norm", color=colours["muted"])
    axes.set_title("saving at equal quality, where it is reached", loc="left", **figures.heading(colours))
