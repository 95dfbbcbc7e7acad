"""The report of a replay: policies on a real timeline with simulated embeddings, as JSON, Markdown and a picture.

A replay document is plain data under the schema ``jepa.replay/1``. Its first entry, ``simulated``, says in one line
what is simulated, and is the first line of every output. ``levels`` holds for each level of noise the `curves`,
`savings` and `operations` of a setting of ``jepa.results/1``; the first level is the headline.
"""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jepa.report.plots import FONT, INCH, LIGHT, MARKERS, TITLE, drawing, frame, png, short
from jepa.report.schema import write_whole
from jepa.report.tables import (
    NONE,
    Row,
    Table,
    clean,
    columns,
    difference,
    escape_markdown,
    factor,
    factor_with_interval,
    fixed,
    headline_savings,
    markdown_table,
    operating_point,
    quality,
    rate,
    reference_name,
    share,
)
from jepa.report.tables import seconds as seconds_text

REPLAY_SCHEMA = "jepa.replay/1"

Replay = dict[str, Any]
Level = dict[str, Any]


def saves(saving: dict[str, Any]) -> bool:
    """Whether a saving holds: the reference's quality is reached, and the whole interval is above 1."""
    return bool(saving["reached"]) and saving["saving"]["low"] > 1


def savings_end(results: Replay, policy: str) -> float | None:
    """The level of noise at which a policy's savings end.

    That is the lowest of the levels such that neither it nor a higher one has a saving; None where the highest level
    still has one.
    """
    end = None
    for level in sorted(results["levels"], key=lambda level: level["noise"], reverse=True):
        if any(saves(saving) for saving in headline_savings(level) if saving["policy"] == policy):
            break
        end = level["noise"]
    return end


def noise_table(results: Replay) -> Table:
    """The headline saving of every policy at every level of noise, and where savings end."""
    levels = sorted(results["levels"], key=lambda level: level["noise"])
    right: Row = ("steps decoded right", *(share(level["steps_right"]) for level in levels), "")
    scores: Row = (
        f"CIDEr-D of {reference_name(levels[0], headline_savings(levels[0])[0])}",
        *(quality(headline_savings(level)[0]["reference_quality"]) for level in levels),
        "",
    )
    rows = []
    for policy, curve in levels[0]["curves"].items():
        cells = []
        for level in levels:
            saving = next(saving for saving in headline_savings(level) if saving["policy"] == policy)
            cells.append(factor(saving["saving"]["value"]) if saving["reached"] and saving["saving"] else NONE)
        end = savings_end(results, policy)
        lowest = levels[0]["noise"]
        ends = f"> {levels[-1]['noise']:g}" if end is None else "none" if end == lowest else f"{end:g}"
        rows.append((clean(curve["label"]), *cells, ends))
    header = ("noise", *(f"{level['noise']:g}" for level in levels), "savings end at")
    return Table(header, (("", (right, scores)), ("saving at equal quality", tuple(rows))))


def replay_savings_table(level: Level) -> Table:
    """Every policy against every reference of one level."""
    groups: dict[str, list[Row]] = {}
    for saving in level["savings"]:
        title = f"against {reference_name(level, saving)}: CIDEr-D {quality(saving['reference_quality'])}"
        groups.setdefault(title, []).append(_savings_row(level, saving))
    header = ("policy", "needs", "operating point", "CIDEr-D", "difference", "decodes/s", "saving")
    return Table(header, tuple((title, tuple(rows)) for title, rows in groups.items()), text_columns=3)


def _savings_row(level: Level, saving: dict[str, Any]) -> Row:
    curve = level["curves"][saving["policy"]]
    words = (clean(curve["label"]), "the past" if curve["causal"] else "the whole stream")
    if saving["knob"] is None:
        return (*words, NONE, NONE, NONE, NONE, "not reached")
    return (
        *words,
        operating_point(curve, saving["knob"]),
        quality(saving["quality"]),
        difference(saving["quality_difference"]),
        rate(saving["decodes_per_second"]),
        factor_with_interval(saving["saving"]) if saving["reached"] else "not reached",
    )


def replay_operations_table(level: Level) -> Table:
    """What each operating point did on the test streams."""
    rows = []
    for row in level["operations"]:
        curve, ledger = level["curves"][row["policy"]], row["ledger"]
        cache, latency = ledger["cache"], ledger["latency_seconds"]
        rows.append(
            (
                clean(curve["label"]),
                operating_point(curve, row["knob"]),
                f"{ledger['decoder']['calls']:,}",
                f"{cache['hits']:,}" if cache["lookups"] else NONE,
                share(cache["wrong_hits"] / cache["lookups"]) if cache["lookups"] else NONE,
                seconds_text(latency["mean"]),
                seconds_text(latency["p95"]),
            )
        )
    header = ("policy", "at", "decodes", "cache hits", "wrong of look-ups", "latency, s", "95th percentile")
    return Table(header, (("", tuple(rows)),), text_columns=2)


def replay_markdown(results: Replay) -> str:
    """The whole report as Markdown."""
    first = results["levels"][0]
    blocks = [
        f"**{escape_markdown(clean(results['simulated']))}**",
        f"# Replay of a real timeline: {escape_markdown(results['timeline']['format'])}",
        escape_markdown(_timeline_facts(results)),
        f"## Savings at equal quality, noise {first['noise']:g}",
        escape_markdown(_level_facts(first)),
        markdown_table(replay_savings_table(first)),
    ]
    if len(results["levels"]) > 1:
        blocks += [
            "## Levels of noise",
            "A policy's savings end at the lowest level from which on it has none: the reference's quality is missed, "
            "or the interval of the saving reaches down to 1. – is a policy that misses the reference's quality.",
            markdown_table(noise_table(results)),
        ]
    blocks += [
        f"## Operations, noise {first['noise']:g}",
        "Encoder and predictor did not run. A decode is a look-up in the bank of narrations. A hit is wrong where its "
        "text is not what the decoder says for that latent. The latency is from a segment's start to its text.",
        markdown_table(replay_operations_table(first)),
        f"Seed {results['seed']}, version {results['code']['version']}, commit {results['code']['commit']}"
        + (" with changes" if results["code"]["dirty"] else "")
        + f", {results['created']}.",
    ]
    return "\n\n".join(blocks) + "\n"


def replay_summary(results: Replay) -> str:
    """For a terminal of 100 columns: what is simulated, what was used, savings against the headline reference."""
    first = results["levels"][0]
    widths = (34, 17, 9, 10, 22)
    rows: list[Row] = [("policy", "at", "CIDEr-D", "decodes/s", "saving (95 % interval)")]
    rows.append(tuple("─" * width for width in widths))
    for saving in headline_savings(first):
        label, _, point, score, _, decodes, verdict = _savings_row(first, saving)
        mark = "" if first["curves"][saving["policy"]]["causal"] else "*"
        rows.append((label + mark, point, score, decodes, verdict))
    lines = [clean(results["simulated"]), "", *textwrap.wrap(_timeline_facts(results), 100), ""]
    lines += [_level_facts(first), *columns(rows, widths, text_columns=2), "* offline: needs the whole stream"]
    if len(results["levels"]) > 1:
        table = noise_table(results)
        lines.append("")
        cells = [table.header, *(row for _, group in table.groups for row in group)]
        lines += columns(cells, (34, *[7] * len(results["levels"]), 15), text_columns=1)
    return "\n".join(lines)


def _timeline_facts(results: Replay) -> str:
    timeline = results["timeline"]
    used = ", ".join(
        f"{split} {part['videos']} videos of {part['groups']} groups ({fixed(part['hours'], 1)} h, "
        f"{part['annotations']:,} annotations)"
        for split, part in timeline["used"].items()
    )
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in timeline["dropped"].items()) or "none"
    return (
        f"Timeline: {timeline['videos']:,} annotated videos, {timeline['annotations']:,} annotations, "
        f"{timeline['distinct_texts']:,} distinct texts, {timeline['overlapping']:,} annotations begin before an "
        f"earlier one ends; dropped: {dropped}. Used: {used}; {timeline['cut']:,} annotations end after the excerpt."
    )


def _level_facts(level: Level) -> str:
    return (
        f"Noise {level['noise']:g} for each unit of norm: {share(level['steps_right'])} of the annotated steps decode "
        f"right. Test streams: {level['events_per_second']:.3f} annotations a second, "
        f"{level['mean_event_seconds']:.1f} s each, {level['repeated_events']:.0%} repeat an earlier one."
    )


# --- The picture.

_COLOURS = (0, 1, 3, 2, 4, 5, 6, 7)  # of the palette's series, in the order of the policies


def replay_png(results: Replay) -> bytes:
    """Quality against decodes per second at the headline level; with several levels also saving against noise."""
    panels = 2 if len(results["levels"]) > 1 else 1
    first = results["levels"][0]
    series = {policy: _COLOURS[number % len(_COLOURS)] for number, policy in enumerate(first["curves"])}
    with drawing():
        figure = Figure(figsize=((80 + 560 * panels) / INCH, 520 / INCH), facecolor=LIGHT["surface"])
        axes = figure.subplots(1, panels, squeeze=False)[0]
        figure.subplots_adjust(0.06 if panels > 1 else 0.1, 0.1, 0.98, 0.77 if panels > 1 else 0.7, wspace=0.14)
        handles = _draw_curves(axes[0], first, series)
        if panels > 1:
            _draw_levels(axes[1], results, series)
        left = axes[0].get_position().x0
        claim = clean(results["simulated"]).partition(". ")[0]
        figure.text(left, 0.955, short(claim, 500 * panels), color=LIGHT["ink"], weight="bold", parse_math=False)
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(left - 0.008, 0.94),
            ncols=2 * panels,
            frameon=False,
            labelcolor=LIGHT["ink"],
            fontsize=FONT,
            handlelength=2.6,
        )
        return png(figure)


def _draw_curves(axes: Axes, level: Level, series: dict[str, int]) -> list[Any]:
    handles = []
    for policy, curve in level["curves"].items():
        index = series[policy]
        points = sorted(curve["test"], key=lambda point: point["decodes_per_second"])
        x = [point["decodes_per_second"] for point in points]
        value, low, high = ([point["cider_d"][key] for point in points] for key in ("value", "low", "high"))
        axes.fill_between(x, low, high, color=LIGHT[f"series-{index}"], alpha=0.08, linewidth=0)
        handles += axes.plot(x, value, markersize=3.5, label=clean(curve["label"]), **_style(index))
    for saving in headline_savings(level):
        if saving["knob"] is not None:
            axes.plot(
                [saving["decodes_per_second"]],
                [saving["quality"]],
                linestyle="none",
                marker="o" if saving["reached"] else "X",
                markersize=10 if saving["reached"] else 8,
                markerfacecolor="none" if saving["reached"] else LIGHT["surface"],
                markeredgecolor=LIGHT[f"series-{series[saving['policy']]}"],
                markeredgewidth=1.8,
                zorder=5,
            )
    reference = headline_savings(level)[0]
    axes.axhline(reference["reference_quality"], color=LIGHT["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.annotate(
        reference_name(level, reference),
        (0, reference["reference_quality"]),
        (4, 4),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        color=LIGHT["ink"],
        parse_math=False,
    )
    axes.axvline(level["events_per_second"], color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("decodes per second (dotted: annotations per second)", color=LIGHT["muted"])
    _finish(axes, f"CIDEr-D, noise {level['noise']:g}")
    return handles


def _draw_levels(axes: Axes, results: Replay, series: dict[str, int]) -> None:
    levels = sorted(results["levels"], key=lambda level: level["noise"])
    for policy in levels[0]["curves"]:
        found = [
            (level["noise"], saving["saving"])
            for level in levels
            for saving in headline_savings(level)
            if saving["policy"] == policy and saving["reached"] and saving["saving"]
        ]
        if found:
            x = [noise for noise, _ in found]
            value, low, high = ([saving[key] for _, saving in found] for key in ("value", "low", "high"))
            axes.fill_between(x, low, high, color=LIGHT[f"series-{series[policy]}"], alpha=0.08, linewidth=0)
            axes.plot(x, value, markersize=5, **_style(series[policy]))
    axes.axhline(1, color=LIGHT["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.set_xticks([level["noise"] for level in levels])
    axes.set_xlabel("noise for each unit of norm", color=LIGHT["muted"])
    _finish(axes, "saving at equal quality, where it is reached")


def _style(index: int) -> dict[str, Any]:
    return {
        "color": LIGHT[f"series-{index}"],
        "linewidth": 1.6,
        "marker": MARKERS[index],
    }


def _finish(axes: Axes, title: str) -> None:
    frame(axes, LIGHT)
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_title(title, loc="left", **TITLE)


def write_replay(results: Replay, folder: Path) -> dict[str, Path]:
    """Write ``replay.json``, ``replay.md`` and ``replay.png``, each whole or not at all; returns their paths.

    Raises InputError if the folder cannot be written.
    """
    files = {
        "results": (folder / "replay.json", (json.dumps(results, allow_nan=False, indent=1) + "\n").encode()),
        "table": (folder / "replay.md", replay_markdown(results).encode()),
        "picture": (folder / "replay.png", replay_png(results)),
    }
    write_whole(dict(files.values()))
    return {kind: path for kind, (path, _) in files.items()}
