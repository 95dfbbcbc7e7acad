"""The report of a replay: policies on a real timeline with simulated embeddings, as JSON, Markdown and a picture.

A replay document is plain data under the schema ``jepa.replay/1``. Its first entry, ``simulated``, says in one line
what is simulated, and is the first line of every output. ``levels`` holds for each level of noise the `curves`,
`savings`, `areas` and `operations` of a setting of ``jepa.results/2``; the first level is the headline.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.report import plots
from jepa.report.plots import INCH, LIGHT, TITLE
from jepa.report.schema import (
    CODE,
    DEVICE,
    SWEPT,
    check_document,
    count,
    integer,
    mapping,
    number,
    plain,
    record,
    sequence,
    swept_agrees,
    text,
    write_whole,
)
from jepa.report.tables import (
    CACHE_NOTE,
    MARKS,
    MATRIX_NOTE,
    NONE,
    QUALITY_NOTE,
    Row,
    Table,
    cache_table,
    clean,
    code_text,
    columns,
    escape_markdown,
    factor,
    fixed,
    fraction,
    has_cache,
    headline_savings,
    label,
    markdown_table,
    matrix_table,
    operations_facts,
    operations_table,
    quality,
    quality_table,
    reference_name,
    savings_table,
    summary_row,
)

REPLAY_SCHEMA = "jepa.replay/1"
KEPT = 0.75  # of the reference's quality at the lowest level of noise: with less, a level says nothing of savings
_ABREAST = 5  # levels in a line of a terminal

Replay = dict[str, Any]
Level = dict[str, Any]

_QUANTITY, _FRACTION = number(0), number(0, 1)
_USED = record(dict.fromkeys(("videos", "groups", "annotations"), count) | {"hours": _QUANTITY})
DOCUMENT = record(
    {
        "simulated": text,
        "created": text,
        "seed": integer,
        "config": mapping(plain),
        "code": CODE,
        "libraries": mapping(text),
        "device": DEVICE,
        "timeline": record(
            dict.fromkeys(("format", "encoder"), text)
            | dict.fromkeys(("videos", "annotations", "distinct_texts", "overlapping", "cut"), count)
            | {"dropped": mapping(count, empty=True), "used": mapping(_USED)}
        ),
        "levels": sequence(record({**SWEPT, "noise": _QUANTITY, "steps_right": _FRACTION}, swept_agrees), shortest=1),
    }
)


def validate_replay(results: Replay) -> None:
    """Check a document against ``jepa.replay/1``.

    Raises InputError on the first fault, naming its path in the document, the rule and the value got.
    """
    check_document(results, REPLAY_SCHEMA, DOCUMENT)


def saves(saving: dict[str, Any]) -> bool:
    """Whether a saving holds: the reference's quality is reached, without any decode or with the interval above 1."""
    return bool(saving["reached"]) and (saving["saving"] is None or saving["saving"]["low"] > 1)


def counted_levels(results: Replay) -> list[Level]:
    """The levels by rising noise at which the reference has at least `KEPT` of its quality at the lowest.

    Beyond them a policy may reach the reference again, for the reference has collapsed: no saving worth the name.
    """
    levels = sorted(results["levels"], key=lambda level: level["noise"])
    scores = [headline_savings(level)[0]["reference_quality"] for level in levels]
    return [level for level, score in zip(levels, scores, strict=True) if score >= KEPT * scores[0]]


def savings_end(results: Replay, policy: str) -> float | None:
    """The level of noise at which a policy's savings end.

    That is the first of `counted_levels` without a saving above the first with one; the lowest level if none has one;
    None if each from the first with one on has one.
    """
    counted = counted_levels(results)
    held = [any(saves(saving) for saving in headline_savings(level) if saving["policy"] == policy) for level in counted]
    if True not in held:
        return counted[0]["noise"]
    first = held.index(True)
    return next((level["noise"] for level, yes in zip(counted[first:], held[first:], strict=True) if not yes), None)


def noise_table(results: Replay) -> Table:
    """The headline saving of every policy at every level of noise, and where savings end."""
    levels = sorted(results["levels"], key=lambda level: level["noise"])
    right: Row = ("steps decoded right", *(fraction(level["steps_right"]) for level in levels), "")
    scores: Row = (
        f"CIDEr-D of {reference_name(levels[0], headline_savings(levels[0])[0])}",
        *(quality(headline_savings(level)[0]["reference_quality"]) for level in levels),
        "",
    )
    rows = []
    highest, lowest = counted_levels(results)[-1]["noise"], levels[0]["noise"]
    for policy, curve in levels[0]["curves"].items():
        cells = []
        for level in levels:
            saving = next(saving for saving in headline_savings(level) if saving["policy"] == policy)
            ratio = factor(saving["saving"]["value"]) if saving["saving"] else "decodes nothing"
            cells.append(ratio if saving["reached"] else NONE)
        end = savings_end(results, policy)
        ends = f"> {highest:g}" if end is None else "none" if end == lowest else f"{end:g}"
        rows.append((label(curve), *cells, ends))
    header = ("noise", *(f"{level['noise']:g}" for level in levels), "savings end at")
    return Table(header, (("", (right, scores)), ("saving at equal quality", tuple(rows))))


def replay_markdown(results: Replay) -> str:
    """The whole report as Markdown.

    Raises InputError if the document is not a valid ``jepa.replay/1``.
    """
    validate_replay(results)
    first = results["levels"][0]
    blocks = [
        f"**{escape_markdown(clean(results['simulated']))}**",
        f"# Replay of a real timeline: {escape_markdown(results['timeline']['format'])}",
        escape_markdown(_timeline_facts(results)),
        *map(escape_markdown, _left_out(results)),
        f"## Savings at equal quality, noise {first['noise']:g}",
        escape_markdown(_level_facts(first)),
        markdown_table(savings_table(first)),
        "### All references",
        escape_markdown(MATRIX_NOTE),
        markdown_table(matrix_table(first)),
    ]
    if len(results["levels"]) > 1:
        blocks += [
            "## Levels of noise",
            "A policy's savings end at the first level without one above the first level with one: the reference's "
            "quality is missed (–), or the interval of the saving reaches down to 1. Levels at which the reference "
            f"has less than {KEPT:.0%} of its quality at the lowest level do not count.",
            markdown_table(noise_table(results)),
        ]
    blocks += [
        f"## Stream quality, noise {first['noise']:g}",
        escape_markdown(QUALITY_NOTE),
        markdown_table(quality_table(first)),
        f"## Operations, noise {first['noise']:g}",
        f"{operations_facts(first)}. A decode is a look-up in the bank of narrations; nothing else ran.",
        markdown_table(operations_table(first)),
    ]
    if has_cache(first):
        blocks += [
            f"## Cache, noise {first['noise']:g}",
            escape_markdown(CACHE_NOTE),
            markdown_table(cache_table(first)),
        ]
    made = f"Seed {results['seed']}; {code_text(results['code'])}; {clean(results['created'])}."
    blocks.append(escape_markdown(made))
    return "\n\n".join(blocks) + "\n"


def replay_summary(results: Replay) -> str:
    """For a terminal of 100 columns: what is simulated, what was used, savings against the headline reference.

    Raises InputError if the document is not a valid ``jepa.replay/1``.
    """
    validate_replay(results)
    first = results["levels"][0]
    widths = (34, 17, 9, 10, 22)
    rows: list[Row] = [("policy", "at", "CIDEr-D", "decodes/s", "saving (95 % interval)")]
    rows.append(tuple("─" * width for width in widths))
    rows += [summary_row(first, saving) for saving in headline_savings(first)]
    lines = [clean(results["simulated"]), ""]
    for paragraph in (_timeline_facts(results), *_left_out(results)):
        lines += [*textwrap.wrap(paragraph, 100), ""]
    lines += [_level_facts(first), *columns(rows, widths, text_columns=2), MARKS]
    if len(results["levels"]) > 1:
        table = noise_table(results)
        cells = [table.header, *(row for _, group in table.groups for row in group)]
        for start in range(1, len(results["levels"]) + 1, _ABREAST):
            some = [(row[0], *row[start : min(start + _ABREAST, len(row) - 1)], row[-1]) for row in cells]
            lines += ["", *columns(some, (34, *[7] * (len(some[0]) - 2), 15), text_columns=1)]
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


def _left_out(results: Replay) -> list[str]:
    """A sentence on the policies that were asked for and not swept; none if all were."""
    missing = [name for name in results["config"]["policies"] if name not in results["levels"][0]["curves"]]
    return [f"Left out, for they need frames and there are none: {', '.join(missing)}."] if missing else []


def _level_facts(level: Level) -> str:
    return (
        f"Noise {level['noise']:g} for each unit of norm: {fraction(level['steps_right'])} of the annotated "
        f"steps decode "
        f"right. Test streams: {level['events_per_second']:.3f} annotations a second, "
        f"{level['mean_event_seconds']:.1f} s each, {level['repeated_events']:.0%} repeat an earlier one."
    )


# --- The picture.


def replay_png(results: Replay) -> bytes:
    """Quality against decodes per second at the headline level; with several levels also saving against noise."""
    first = results["levels"][0]
    name = f"noise {first['noise']:g}"
    swept = {"settings": {name: first}}
    several = len(results["levels"]) > 1
    width, height = (1200 if several else 720), 480
    with plots.drawing():
        figure = Figure(figsize=(width / INCH, height / INCH), facecolor=LIGHT["surface"])
        left, bottom, top, inner = 40, 50, 100, 660 - plots.NAMES
        across = (height - bottom - top) / height
        axes = figure.add_axes((left / width, bottom / height, inner / width, across))
        plots.draw_curves(axes, swept, name, LIGHT)
        axes.annotate(name, (0, 1), (0, 34), xycoords="axes fraction", textcoords="offset points", **TITLE)
        if several:
            start = left + inner + plots.NAMES + 50
            axes = figure.add_axes((start / width, bottom / height, (width - start - 20) / width, across))
            _draw_levels(axes, results, plots.series_of(swept))
        claim = clean(results["simulated"]).partition(". ")[0]
        figure.text(
            left / width,
            1 - 28 / height,
            plots.short(claim, width - 60),
            color=LIGHT["ink"],
            weight="bold",
            parse_math=False,
        )
        return plots.png(figure)


def _draw_levels(axes: Axes, results: Replay, series: Mapping[str, int]) -> None:
    levels = sorted(results["levels"], key=lambda level: level["noise"])
    found = {
        policy: [
            (level["noise"], saving["saving"])
            for level in levels
            for saving in headline_savings(level)
            if saving["policy"] == policy and saving["reached"] and saving["saving"]
        ]
        for policy in series
    }
    ends = [end for points in found.values() for _, saving in points for end in (saving["value"], saving["high"])]
    highest = max((end for end in ends if end is not None), default=1.0)
    for policy, points in found.items():
        x, style = [noise for noise, _ in points], plots.style(series[policy], LIGHT)
        low = [saving["low"] for _, saving in points]
        high = [highest if saving["high"] is None else saving["high"] for _, saving in points]  # None: without bound
        axes.fill_between(x, low, high, color=style["color"], alpha=0.08, linewidth=0)
        axes.plot(x, [saving["value"] for _, saving in points], **style)
    plots.frame(axes, LIGHT)
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.axhline(1, color=LIGHT["ink"], linewidth=1, linestyle=(0, (5, 3)))
    axes.set_xticks([level["noise"] for level in levels])
    axes.set_xlabel("noise for each unit of norm", color=LIGHT["muted"])
    axes.set_title("saving at equal quality, where it is reached", loc="left", **TITLE)


def write_replay(results: Replay, folder: Path) -> dict[str, Path]:
    """Write ``replay.json``, ``replay.md`` and ``replay.png``, each whole or not at all; returns their paths.

    Raises InputError for a bad document or a folder that cannot be written.
    """
    files = {
        "results": (folder / "replay.json", (json.dumps(results, allow_nan=False, indent=1) + "\n").encode()),
        "table": (folder / "replay.md", replay_markdown(results).encode()),
        "picture": (folder / "replay.png", replay_png(results)),
    }
    write_whole(dict(files.values()))
    return {kind: path for kind, (path, _) in files.items()}
