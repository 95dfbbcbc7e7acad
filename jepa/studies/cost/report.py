# ruff: noqa: E501
"""The report of `jepa cost`: what a workload costs, what each optimisation and all together save, and over which workloads.

A document of the schema ``jepa.cost/1`` holds everything that is shown here. Costs are estimates; what an optimisation rests on
(`evidence`: measured, published, assumed, estimated) is written, and drawn, beside it.
"""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from jepa.report import plots
from jepa.report.page import ESTIMATED, document_html, section_html, table_html, text_html
from jepa.report.plots import FONT, INCH, LIGHT, TITLE, Colours, Fall, draw_waterfall, drawing, frame, png, short
from jepa.report.schema import (
    CODE,
    Results,
    check_document,
    choice,
    count,
    mapping,
    nullable,
    number,
    ordered,
    plain,
    record,
    sequence,
    text,
    write_whole,
)
from jepa.report.tables import (
    NONE,
    Row,
    Table,
    clean,
    columns,
    escape_markdown,
    factor,
    interval,
    markdown_table,
    percent,
    significant,
)

COST_SCHEMA = "jepa.cost/1"
ESTIMATE = (
    "An estimate by a roofline, not a measurement: communication between chips, scheduling and kernels are left out. "
    "Ranges in brackets come from the intervals of the efficiencies and of measured savings."
)

# --- The document.

_POSITIVE, _QUANTITY, _FRACTION = number(above=0), number(0), number(0, 1)
_RANGE = record({"value": _POSITIVE, "low": _POSITIVE, "high": _POSITIVE}, ordered("low", "value", "high"))
_SCENARIO = record(
    {
        "model": text,
        "parameters": count,
        "active_parameters": count,
        "experts_touched": _QUANTITY,
        "hardware": text,
        "weights": text,
        "cache": text,
        "chips": count,
        "memory": record({"weights": _QUANTITY, "cache": _QUANTITY}),
        "input_tokens": _QUANTITY,
        "output_tokens": _POSITIVE,
        "steps": _QUANTITY,
        "requests": _QUANTITY,
        "parts": mapping(record({"chip_seconds": _QUANTITY, "fraction": number(0, 1 + 1e-9), "region": text})),
        "chip_seconds": _POSITIVE,
        "request_seconds": _POSITIVE,
        "joules": nullable(_POSITIVE),
        "price": nullable(_POSITIVE),
    }
)
_OPTIMISATION = record(
    {
        "name": text,
        "label": text,
        "evidence": choice("measured", "published", "assumed", "estimated"),
        "claim": nullable(_POSITIVE),
        "change": text,
        "source": text,
        "measured_flops_saving": nullable(_POSITIVE),
        "factor": nullable(_RANGE),
        "touches": sequence(text),
        "fraction": number(0, 1 + 1e-9),
        "limit": nullable(number(1)),
        "alone": _RANGE,
        "in_order": _POSITIVE,
        "averaged": _POSITIVE,
        "least": _POSITIVE,
        "most": _POSITIVE,
    }
)
_CELL = record(
    {
        "batch": count,
        "input_tokens": _QUANTITY,
        "output_tokens": _POSITIVE,
        "joint": nullable(_RANGE),
        "product": nullable(_POSITIVE),
    }
)
DOCUMENT = record(
    {
        "name": text,
        "created": text,
        "code": CODE,
        "config": mapping(plain),
        "unit": text,
        "measure": choice("chip_seconds", "joules", "price"),
        "baseline": _SCENARIO,
        "optimised": _SCENARIO,
        "optimisations": sequence(_OPTIMISATION, shortest=1),
        "joint": _RANGE,
        "product": _POSITIVE,
        "claims": nullable(_POSITIVE),
        "published": nullable(record({"step_seconds": _POSITIVE, "decode_seconds": _POSITIVE, "saving": _POSITIVE})),
        "goal": sequence(_POSITIVE, shortest=2),
        "grid": sequence(_CELL, shortest=1),
        "sources": sequence(record({"name": text, "as_of": text, "source": text})),
    }
)


def validate_cost(results: Results) -> None:
    """Check a document against ``jepa.cost/1``. Raises InputError on the first fault, with its path."""
    check_document(results, COST_SCHEMA, DOCUMENT)


# --- Tables and sentences.


def _ranged(ratio: dict[str, float]) -> str:
    return f"{factor(ratio['value'])} ({interval(ratio['low'], ratio['high'])})"


def _billions(value: float, digits: int) -> str:
    """Of 10⁹: with fixed decimals, or three significant digits where these would leave nothing."""
    return f"{value / 1e9:,.{digits}f}" if value >= 1e9 * 10 ** (1 - digits) or not value else f"{value / 1e9:.3g}"


def _measure(results: Results) -> str:
    return {"chip_seconds": "chip-seconds", "joules": "joules", "price": "price"}[results["measure"]]


def optimisations_table(results: Results) -> Table:
    """What each optimisation saves alone, in its order and on average over all orders, and what it can save at most."""
    rows: list[Row] = []
    for optimisation in results["optimisations"]:
        rows.append(
            (
                clean(optimisation["label"]),
                clean(optimisation["change"]),
                optimisation["evidence"],
                factor(optimisation["claim"]),
                percent(optimisation["fraction"]),
                "none" if optimisation["limit"] is None else factor(optimisation["limit"]),
                _ranged(optimisation["alone"]),
                factor(optimisation["in_order"]),
                factor(optimisation["averaged"]),
                interval(optimisation["least"], optimisation["most"]),
            )
        )
    header = ("optimisation", "change", "size is", "claimed", "fraction touched", "limit", "alone", "in this order")
    return Table((*header, "averaged order", "over all orders"), (("", tuple(rows)),), text_columns=3)


def totals_table(results: Results) -> Table:
    """The joint saving beside the naive products."""
    rows: tuple[Row, ...] = (
        ("all optimisations together", _ranged(results["joint"])),
        ("product of the optimisations alone", factor(results["product"])),
        ("product of the claims", factor(results["claims"])),
    )
    return Table((f"saving in {_measure(results)}", ""), (("", rows),))


def scenarios_table(results: Results) -> Table:
    """The workings: the baseline beside the same with all optimisations."""
    both = (results["baseline"], results["optimised"])

    def row(name: str, *cells: str) -> Row:
        return (name, *cells)

    def each(name: str, show: Any) -> Row:
        return row(name, *(show(scenario) for scenario in both))

    def optional(value: float | None) -> str:
        return NONE if value is None else significant(value)

    facts = (
        each("model", lambda s: clean(s["model"])),
        each("parameters, 10⁹", lambda s: _billions(s["parameters"], 2)),
        each("parameters active for a token, 10⁹", lambda s: _billions(s["active_parameters"], 2)),
        each(
            "experts of a layer touched by a batch",
            lambda s: significant(s["experts_touched"]) if s["experts_touched"] else NONE,
        ),
        each("chips", lambda s: f"{s['chips']} × {clean(s['hardware'])}"),
        each("weights, cache", lambda s: f"{s['weights']}, {s['cache']}"),
        each(
            "memory of weights + cache, GB",
            lambda s: " + ".join(_billions(s["memory"][part], 1) for part in ("weights", "cache")),
        ),
        each("input, output tokens of a request", lambda s: f"{s['input_tokens']:,.0f}, {s['output_tokens']:,.0f}"),
        each("steps, requests in a unit", lambda s: f"{s['steps']:.3g}, {s['requests']:.3g}"),
    )
    names = list(dict.fromkeys(name for scenario in both for name in scenario["parts"]))

    def part(name: str, scenario: dict[str, Any]) -> str:
        found = scenario["parts"].get(name)
        if found is None:
            return NONE
        return f"{found['chip_seconds']:.3g} ({percent(found['fraction'])}, {found['region']})"

    parts = tuple(each(name, partial(part, name)) for name in names)
    totals = (
        each("chip-seconds", lambda s: f"{s['chip_seconds']:.3g}"),
        each("joules, at the chip's highest power", lambda s: optional(s["joules"])),
        each("price", lambda s: NONE if s["price"] is None else f"{s['price']:.3g}"),
        each("seconds of a request", lambda s: significant(s["request_seconds"])),
    )
    groups = (
        ("", facts),
        (f"chip-seconds of a {results['unit']}, fraction, and what bounds it", parts),
        ("in all", totals),
    )
    return Table(("", "baseline", "all optimisations"), groups, text_columns=3)


def grid_table(results: Results) -> Table:
    """The joint saving over the grid of workloads."""
    outputs = list(dict.fromkeys(cell["output_tokens"] for cell in results["grid"]))
    groups: dict[str, list[Row]] = {}
    rows: dict[tuple[int, float], dict[float, Any]] = {}
    for cell in results["grid"]:
        rows.setdefault((cell["batch"], cell["input_tokens"]), {})[cell["output_tokens"]] = cell["joint"]
    for (batch, inputs), found in rows.items():
        cells = ("does not fit" if found[o] is None else _ranged(found[o]) for o in outputs)
        groups.setdefault(f"batch {batch}", []).append((f"{inputs:,.0f} in", *cells))
    header = ("", *(f"{output:,.0f} out" for output in outputs))
    return Table(header, tuple((title, tuple(group)) for title, group in groups.items()))


def _sources_table(results: Results) -> Table:
    rows = tuple((clean(row["name"]), clean(row["as_of"]), clean(row["source"])) for row in results["sources"])
    settings = results["config"]
    efficiencies = tuple(
        (
            f"{name} efficiency",
            NONE,
            f"{settings[key]['value']:g} ({interval(settings[key]['low'], settings[key]['high'])}), "
            f"{clean(settings[key]['source'])}",
        )
        for name, key in (("compute", "compute_efficiency"), ("memory", "memory_efficiency"))
    )
    return Table(("figures of", "as of", "source"), (("", rows + efficiencies),), text_columns=3)


def answer(results: Results) -> str:
    """Over which workloads of the grid the joint saving lies within the goal."""
    low, high = results["goal"]
    cells = [cell for cell in results["grid"] if cell["joint"] is not None]
    goal = f"{low:g} to {high:g}×"
    within = [cell for cell in cells if low <= cell["joint"]["value"] <= high]
    sure = [cell for cell in cells if low <= cell["joint"]["low"] and cell["joint"]["high"] <= high]
    possible = [cell for cell in cells if cell["joint"]["low"] <= high and low <= cell["joint"]["high"]]
    product = sum(low <= cell["product"] <= high for cell in cells)
    if not cells:
        return f"No workload of the grid fits, so that none saves {goal}."
    values = [cell["joint"]["value"] for cell in cells]

    fitting, holding = (Counter(cell["batch"] for cell in some) for some in (cells, within))
    counts = ", ".join(f"{holding[batch]} of {number} at {batch:,}" for batch, number in fitting.items())
    where = f" By batch: {counts}." if within else ""
    return (
        f"{goal} holds on {len(within)} of {len(cells)} workloads of the grid by the central figures, on {len(sure)} "
        f"over the whole of its range, and on {len(possible)} it is possible.{where} The joint saving goes from "
        f"{factor(min(values))} to {factor(max(values))}; the product of the optimisations alone would be within on {product}."
    )


def explanation(results: Results) -> str:
    """Why the joint saving is not the product."""
    joint, product = results["joint"]["value"], results["product"]
    most = max(
        results["optimisations"],
        key=lambda optimisation: abs(np.log(optimisation["alone"]["value"] / optimisation["averaged"])),
    )
    verb = "less" if joint < product else "more"
    sentences = (
        f"Together the optimisations save {factor(joint)}, the product of the single ones is {factor(product)}: {verb} by a "
        f"factor of {max(joint / product, product / joint):.2f}. The largest difference is that of "
        f"{clean(most['label'])}: {factor(most['alone']['value'])} alone, {factor(most['in_order'])} after those "
        f"before it, {factor(most['averaged'])} averaged over all orders."
    )
    if results["published"] is not None:
        sentences += (
            f" By the times that were measured for this perception ({results['published']['step_seconds']:g} s a step, "
            f"{results['published']['decode_seconds']:g} s a decode) selective decoding saves "
            f"{factor(results['published']['saving'])} end to end."
        )
    for optimisation in results["optimisations"]:
        if optimisation["measured_flops_saving"] is not None:
            saved = factor(optimisation["measured_flops_saving"])
            sentences += f" Measured with {clean(optimisation['label'])}: {saved} of the FLOPs end to end."
    return sentences


def cost_markdown(results: Results) -> str:
    """The whole report as Markdown. Raises InputError for a bad document."""
    validate_cost(results)
    blocks = [
        "# What it costs to serve",
        escape_markdown(ESTIMATE),
        markdown_table(totals_table(results)),
        escape_markdown(explanation(results)),
        "## Optimisations",
        _OPTIMISATIONS_NOTE,
        markdown_table(optimisations_table(results)),
        "## Workings",
        markdown_table(scenarios_table(results)),
        f"## Over which workloads: {results['goal'][0]:g} to {results['goal'][1]:g}×",
        escape_markdown(answer(results)),
        markdown_table(grid_table(results)),
        "## Sources",
        markdown_table(_sources_table(results)),
        f"Version {results['code']['version']}, commit {results['code']['commit']}, {results['created']}.",
    ]
    return "\n\n".join(blocks) + "\n"


_OPTIMISATIONS_NOTE = (
    "Fraction touched: the part of the baseline's cost that the optimisation changes; limit: the saving if that part cost "
    "nothing (Amdahl). Averaged order: the geometric mean of the optimisation's saving over all orders of the optimisations "
    "(Shapley); the averaged savings multiply to the joint one, and so do those in this order."
)


def cost_summary(results: Results) -> str:
    """For a terminal of 100 columns."""
    widths = (22, 10, 8, 8, 22, 9, 9)
    rows: list[Row] = [("optimisation", "size is", "claimed", "fraction", "alone", "in order", "averaged")]
    rows.append(tuple("─" * width for width in widths))
    for row in optimisations_table(results).groups[0][1]:
        rows.append((row[0], row[2], row[3], row[4], row[6], row[7], row[8]))
    base = results["baseline"]
    start = (
        f"{clean(base['model'])} on {base['chips']} × {clean(base['hardware'])}, {base['input_tokens']:,.0f} tokens "
        f"in, {base['output_tokens']:,.0f} out, a {results['unit']}: {base['chip_seconds']:.3g} chip-seconds"
    )
    lines = [*textwrap.wrap(start, 100, break_on_hyphens=False), "", *columns(rows, widths, text_columns=2), ""]
    lines += columns([*totals_table(results).groups[0][1]], (40, 30), text_columns=1)
    for sentences in (explanation(results), answer(results), ESTIMATE):
        lines += ["", *textwrap.wrap(sentences, 100)]
    return "\n".join(lines)


# --- Pictures.


def waterfall(results: Results, colours: Colours = LIGHT) -> Figure:
    """The baseline's cost, what each optimisation takes off in its order, and what is left; what is measured is solid."""
    figure = Figure(figsize=(480 / INCH, (60 + 40 * (len(results["optimisations"]) + 3)) / INCH))
    _draw_waterfall(figure.add_axes((0.27, 0.13, 0.7, 0.85)), results, 0.42, colours)
    return figure


def _draw_waterfall(axes: Axes, results: Results, room: float, colours: Colours) -> None:
    left, falls = 1.0, [Fall("baseline", "1", 1.0, measured=False)]
    for optimisation in results["optimisations"]:
        words = f"{factor(optimisation['in_order'])} · alone {factor(optimisation['alone']['value'])}"
        named = f"{short(clean(optimisation['label']), 150)}\n{optimisation['evidence']}"
        right, left = left, left / optimisation["in_order"]
        falls.append(Fall(named, words, left, right, measured=optimisation["evidence"] == "measured"))
    joint, product = results["joint"], results["product"]
    low, high = 1 / joint["high"], 1 / joint["low"]
    falls.append(
        Fall("all optimisations together", _ranged(joint), 1 / joint["value"], low=low, high=high, measured=False)
    )
    falls.append(
        Fall("product of the single\nsavings (naive)", factor(product), 1 / product, measured=False, faint=True)
    )
    draw_waterfall(axes, falls, f"{_measure(results)} of a {results['unit']}, fraction of the baseline", room, colours)


def _distinct(results: Results, key: str) -> list[Any]:
    """The values of an axis of the grid, in their order."""
    return list(dict.fromkeys(cell[key] for cell in results["grid"]))


def heat_map(results: Results, batch: int, colours: Colours = LIGHT) -> Figure:
    """The joint saving over input and output tokens at one batch; framed where it is within the goal."""
    figure = Figure(figsize=(380 / INCH, 260 / INCH))
    _draw_map(figure.add_axes((0.17, 0.16, 0.82, 0.75)), results, batch, colours)
    return figure


_FAINTEST, _STRONGEST = 0.06, 0.5  # opacity of a cell: ink keeps a contrast of 4.5 on it, on light and on dark ground


def _draw_map(axes: Axes, results: Results, batch: int, colours: Colours) -> None:
    """One colour whose opacity is the saving, so that it holds on any ground; the scale is that of all batches."""
    inputs, outputs = (_distinct(results, key) for key in ("input_tokens", "output_tokens"))
    low, high = results["goal"]
    scale = LogNorm(1, max([2.0, *(cell["joint"]["value"] for cell in results["grid"] if cell["joint"] is not None)]))
    for cell in results["grid"]:
        if cell["batch"] != batch:
            continue
        x, y = outputs.index(cell["output_tokens"]), inputs.index(cell["input_tokens"])
        joint = cell["joint"]
        shade, opacity = colours["grid"], 1.0
        if joint is not None:
            shade = colours["series-5"]
            opacity = _FAINTEST + (_STRONGEST - _FAINTEST) * float(scale(max(joint["value"], 1.0)))
        axes.add_patch(Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=shade, alpha=opacity, linewidth=0))
        if joint is not None and low <= joint["value"] <= high:
            box = Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, fill=False, edgecolor=colours["ink"], linewidth=1.5)
            axes.add_patch(box)
        words = "too large" if joint is None else significant(joint["value"])
        axes.text(x, y, words, ha="center", va="center_baseline", fontsize=FONT - 1, color=colours["ink"])
    axes.set(xlim=(-0.5, len(outputs) - 0.5), ylim=(-0.5, len(inputs) - 0.5))
    axes.set_xticks(range(len(outputs)), [f"{value:,.0f}" for value in outputs])
    axes.set_yticks(range(len(inputs)), [f"{value:,.0f}" for value in inputs])
    frame(axes, colours)
    axes.set_title(f"batch {batch}", loc="left", fontsize=FONT, color=colours["ink"])
    axes.set_xlabel("output tokens", color=colours["muted"])
    axes.set_ylabel("input tokens", color=colours["muted"])


def cost_png(results: Results) -> bytes:
    """The waterfall above the heat map."""
    validate_cost(results)
    batches = _distinct(results, "batch")
    upper_height, lower_height = 130 + 44.0 * (len(results["optimisations"]) + 3), 360.0
    width = 1100.0
    with drawing():
        figure = Figure(figsize=(width / INCH, (upper_height + lower_height) / INCH), facecolor=LIGHT["surface"])
        parts = figure.subfigures(2, 1, squeeze=False, height_ratios=(upper_height, lower_height))
        upper, lower = parts.flat
        for part in parts.flat:
            part.set_facecolor(LIGHT["surface"])
        _draw_waterfall(upper.add_axes((0.17, 0.13, 0.8, 0.72)), results, 0.3, LIGHT)
        title = f"{clean(results['baseline']['model'])} on {clean(results['baseline']['hardware'])}: estimated savings"
        upper.text(0.03, 0.93, short(title, 700), **TITLE)
        panels = lower.subplots(1, len(batches), squeeze=False)[0]
        for axes, batch in zip(panels, batches, strict=True):
            _draw_map(axes, results, batch, LIGHT)
            axes.label_outer()
        lower.subplots_adjust(0.08, 0.15, 0.98, 0.76, wspace=0.08)
        goal = f"Joint saving over workloads; framed: {results['goal'][0]:g} to {results['goal'][1]:g}×"
        lower.text(0.03, 0.91, goal, **TITLE)
        return png(figure)


def cost_html(results: Results) -> str:
    """The report as one HTML file. Raises InputError for a bad document."""
    validate_cost(results)
    joint = results["joint"]
    claim = (
        f'<div class="claim"><p class="number">{factor(joint["value"])}</p>'
        f"<p>{interval(joint['low'], joint['high'])} over the intervals of efficiencies and of measured savings.</p>"
        f'<p>{text_html(explanation(results))}</p><p class="muted small">{text_html(ESTIMATE)}</p>'
        f"{table_html(totals_table(results), 'Together')}</div>"
    )
    fall = plots.inline_svg(
        partial(waterfall, results), "waterfall", "What each optimisation takes off the baseline's cost"
    )
    maps = "".join(
        f"<figure>{plots.inline_svg(partial(heat_map, results, batch), f'grid-{batch}', title)}</figure>"
        for batch in _distinct(results, "batch")
        for title in [f"The joint saving over workloads at batch {batch}"]
    )
    body = claim + "".join(
        (
            section_html(
                "Optimisations",
                text_html(_OPTIMISATIONS_NOTE),
                f'<figure class="half">{fall}</figure>{table_html(optimisations_table(results), "Optimisations")}',
                (ESTIMATED,),
            ),
            section_html("Workings", "", table_html(scenarios_table(results), "Workings"), (ESTIMATED,)),
            section_html(
                "Workloads",
                f"{text_html(answer(results))} Framed: within {results['goal'][0]:g} to {results['goal'][1]:g}×.",
                f'<div class="pair">{maps}</div>{table_html(grid_table(results), "Joint saving")}',
                (ESTIMATED,),
            ),
            section_html("Sources", "", table_html(_sources_table(results), "Sources")),
        )
    )
    return document_html(results, "estimated", "What it costs to serve", body, "Estimated, not measured.")


def write_cost(results: Results, folder: Path) -> dict[str, Path]:
    """Write ``cost.json``, ``cost.md``, ``cost.png`` and ``cost.html``, each whole or not at all; returns their paths.

    Raises InputError for a bad document, or if the folder cannot be written.
    """
    validate_cost(results)
    contents = {
        "results": ("cost.json", (json.dumps(results, allow_nan=False, indent=1) + "\n").encode()),
        "table": ("cost.md", cost_markdown(results).encode()),
        "picture": ("cost.png", cost_png(results)),
        "page": ("cost.html", cost_html(results).encode()),
    }
    write_whole({folder / name: content for name, content in contents.values()})
    return {kind: folder / name for kind, (name, _) in contents.items()}
