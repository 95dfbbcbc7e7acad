"""The report of `jepa cost`: the cost of a workload, the saving of each optimisation and of all, over which workloads.

Costs are estimates. The basis of an optimisation's size (measured, published, assumed, estimated) stands beside it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure as Drawing
from matplotlib.patches import Rectangle

from jepa.report.blocks import ESTIMATED, Claim, Colours, Columns, Figure, Heading, Report, Text
from jepa.report.figures import FONT, frame, heading, short, sized
from jepa.report.format import code_text, factor, interval, percent, significant
from jepa.report.tables import NONE, Column, Table, table
from jepa.studies.cost.results import CostResults, OptimisationSaving, PartCost, Range, ScenarioCost
from jepa.studies.cost.waterfall import Fall, draw_waterfall

MEASURES = {"chip_seconds": "chip-seconds", "joules": "joules", "price": "price"}
ESTIMATE = (
    "An estimate by a roofline, not a measurement: communication between chips, scheduling and kernels are left out. "
    "Ranges in brackets come from the intervals of the efficiencies and of measured savings."
)
NOTE = (
    "Touches: the fraction of the baseline's cost that the optimisation changes. Limit: the saving if that part "
    "cost nothing (Amdahl). Averaged: the geometric mean of the optimisation's saving over all orders (Shapley). "
    "The averaged savings multiply to the joint one, and so do the savings in this order."
)


def report(results: CostResults) -> Report:
    """The report of a document: summary, tables, a waterfall, and a map of the joint saving for each batch."""
    base, joint, (low, high) = results.baseline, results.joint, results.goal
    start = (
        f"{base.model} on {base.chips} × {base.hardware}, {base.input_tokens:,.0f} tokens in, "
        f"{base.output_tokens:,.0f} out, a {results.unit}: {base.chip_seconds:.3g} chip-seconds"
    )
    totals, said = totals_table(results), answer(results)
    spread = f"{interval(joint.low, joint.high)} over the intervals of efficiencies and of measured savings."
    fall = Figure(
        "waterfall", "The part of the baseline's cost that each optimisation saves", partial(waterfall, results)
    )
    maps = [
        [Figure(f"grid-{batch}", f"Joint saving over workloads at batch {batch}", partial(heat_map, results, batch))]
        for batch in batches(results)
    ]
    return Report(
        title="The cost of serving",
        kicker=start,
        summary=[
            optimisations_table(results, _SUMMARY),
            totals,
            Text(explanation(results)),
            Text(said),
            Text(ESTIMATE),
        ],
        blocks=[
            Claim("All optimisations together", factor(joint.value), spread, f"{explanation(results)} {ESTIMATE}"),
            totals,
            Heading("Optimisations", evidence=(ESTIMATED,)),
            Text(NOTE, "note"),
            fall,
            optimisations_table(results),
            Heading("Workings", evidence=(ESTIMATED,)),
            scenarios_table(results),
            Heading("Workloads", evidence=(ESTIMATED,)),
            Text(f"{said} Framed: within {low:g} to {high:g}×.", "lede"),
            Columns(maps),
            grid_table(results),
            Heading("Sources"),
            sources_table(results),
        ],
        overview=partial(overview, results),
        footer=f"{code_text(results.code)}, {results.created}. Estimated, not measured.",
    )


# --- Tables.


def _ranged(ratio: Range | None) -> str:
    return "does not fit" if ratio is None else f"{factor(ratio.value)} ({interval(ratio.low, ratio.high)})"


def _billions(value: float, digits: int) -> str:
    """Of 10⁹: with fixed decimals, or three significant digits where these would leave nothing."""
    return f"{value / 1e9:,.{digits}f}" if value >= 1e9 * 10 ** (1 - digits) or not value else f"{value / 1e9:.3g}"


_COLUMNS: tuple[Column[OptimisationSaving], ...] = (
    Column("optimisation", lambda row: row.label, words=True),
    Column("change", lambda row: row.change, words=True),
    Column("size is", lambda row: row.evidence, words=True),
    Column("claimed", lambda row: factor(row.claim)),
    Column("touches", lambda row: percent(row.fraction)),
    Column("limit", lambda row: "none" if row.limit is None else factor(row.limit)),
    Column("alone", lambda row: _ranged(row.alone)),
    Column("in order", lambda row: factor(row.in_order)),
    Column("averaged", lambda row: factor(row.averaged)),
    Column("over all orders", lambda row: interval(row.least, row.most)),
)
_SUMMARY = ("optimisation", "size is", "claimed", "touches", "alone", "in order", "averaged")


def optimisations_table(results: CostResults, columns: Sequence[str] | None = None) -> Table:
    """The savings of each optimisation: alone, in its order, averaged over all orders, and at most."""
    chosen = [column for column in _COLUMNS if columns is None or column.title in columns]
    return table("Optimisations", chosen, [("", results.optimisations)])


def totals_table(results: CostResults) -> Table:
    """The joint saving beside the naive products."""
    rows = [
        ("all optimisations together", _ranged(results.joint)),
        ("product of the optimisations alone", factor(results.product)),
        ("product of the claims", factor(results.claims)),
    ]
    return Table("Together", (f"saving in {MEASURES[results.measure]}", ""), [("", rows)])


def scenarios_table(results: CostResults) -> Table:
    """The workings: the baseline beside the same with all optimisations."""
    both = (results.baseline, results.optimised)

    def row(name: str, show: Callable[[ScenarioCost], str]) -> list[str]:
        return [name, *map(show, both)]

    def part(found: PartCost | None) -> str:
        return NONE if found is None else f"{found.chip_seconds:.3g} ({percent(found.fraction)}, {found.region})"

    facts = [
        row("model", lambda s: s.model),
        row("parameters, 10⁹", lambda s: _billions(s.parameters, 2)),
        row("parameters active for a token, 10⁹", lambda s: _billions(s.active_parameters, 2)),
        row("experts of a layer touched by a batch", lambda s: significant(s.experts_touched or None)),
        row("chips", lambda s: f"{s.chips} × {s.hardware}"),
        row("weights, cache", lambda s: f"{s.weights}, {s.cache}"),
        row("memory of weights + cache, GB", lambda s: " + ".join(_billions(m, 1) for m in s.memory.values())),
        row("input, output tokens of a request", lambda s: f"{s.input_tokens:,.0f}, {s.output_tokens:,.0f}"),
        row("steps, requests in a unit", lambda s: f"{s.steps:.3g}, {s.requests:.3g}"),
    ]
    names = dict.fromkeys(name for scenario in both for name in scenario.parts)
    parts = [[name, *(part(scenario.parts.get(name)) for scenario in both)] for name in names]
    totals = [
        row("chip-seconds", lambda s: f"{s.chip_seconds:.3g}"),
        row("joules, at the chip's highest power", lambda s: significant(s.joules)),
        row("price", lambda s: NONE if s.price is None else f"{s.price:.3g}"),
        row("seconds of a request", lambda s: significant(s.request_seconds)),
    ]
    bounded = f"chip-seconds of a {results.unit}, fraction, and what bounds it"
    groups = [("", facts), (bounded, parts), ("in all", totals)]
    return Table("Workings", ("", "baseline", "all optimisations"), groups, text_columns=3)


def grid_table(results: CostResults) -> Table:
    """The joint saving over the grid of workloads."""
    outputs = list(dict.fromkeys(cell.output_tokens for cell in results.grid))
    groups: dict[int, dict[float, list[str]]] = {}
    for cell in results.grid:
        rows = groups.setdefault(cell.batch, {})
        rows.setdefault(cell.input_tokens, [f"{cell.input_tokens:,.0f} in"]).append(_ranged(cell.joint))
    cells = [(f"batch {batch}", list(rows.values())) for batch, rows in groups.items()]
    return Table("Joint saving", ("", *(f"{output:,.0f} out" for output in outputs)), cells)


def sources_table(results: CostResults) -> Table:
    """The sources of the figures of chips and models, and the assumed efficiencies."""
    rows = [(row.name, row.as_of, row.source) for row in results.sources]
    rows += [(f"{name} efficiency", NONE, found) for name, found in results.efficiencies.items()]
    return Table("Sources", ("figures of", "as of", "source"), [("", rows)], text_columns=3)


# --- Sentences.


def answer(results: CostResults) -> str:
    """Over which workloads of the grid the joint saving lies within the goal."""
    low, high = results.goal
    goal = f"{low:g} to {high:g}×"
    cells = [(cell, cell.joint) for cell in results.grid if cell.joint is not None]
    if not cells:
        return f"No workload of the grid fits, so none saves {goal}."
    within = [cell.batch for cell, joint in cells if low <= joint.value <= high]
    sure = sum(low <= joint.low and joint.high <= high for _, joint in cells)
    possible = sum(joint.low <= high and low <= joint.high for _, joint in cells)
    product = sum(low <= (cell.product or 0) <= high for cell, _ in cells)
    fitting, holding = Counter(cell.batch for cell, _ in cells), Counter(within)
    counts = ", ".join(f"{holding[batch]} of {number} at {batch:,}" for batch, number in fitting.items())
    where = f" By batch: {counts}." if within else ""
    values = [joint.value for _, joint in cells]
    return (
        f"{goal} holds on {len(within)} of {len(cells)} workloads of the grid by the central figures, on {sure} "
        f"over the whole of its range, and on {possible} it is possible.{where} The joint saving goes from "
        f"{factor(min(values))} to {factor(max(values))}. The product of the optimisations alone would be within on "
        f"{product}."
    )


def explanation(results: CostResults) -> str:
    """Why the joint saving is not the product."""
    joint, product = results.joint.value, results.product
    most = max(results.optimisations, key=lambda row: abs(np.log(row.alone.value / row.averaged)))
    sentences = [
        f"Together the optimisations save {factor(joint)}. The product of the single ones is {factor(product)}: "
        f"{'less' if joint < product else 'more'} by a factor of {max(joint / product, product / joint):.2f}.",
        f"The difference is largest for {most.label}: {factor(most.alone.value)} alone, {factor(most.in_order)} after "
        f"those before it, {factor(most.averaged)} averaged over all orders.",
    ]
    if (times := results.published) is not None:
        sentences.append(
            f"By the times that were measured for this perception ({times.step_seconds:g} s a step, "
            f"{times.decode_seconds:g} s a decode) selective decoding saves {factor(times.saving)} end to end."
        )
    sentences += [
        f"Measured with {row.label}: {factor(row.measured_flops_saving)} of the FLOPs end to end."
        for row in results.optimisations
        if row.measured_flops_saving is not None
    ]
    return " ".join(sentences)


# --- Figures.


def batches(results: CostResults) -> list[int]:
    """The batches of the grid, in their order."""
    return list(dict.fromkeys(cell.batch for cell in results.grid))


def waterfall(results: CostResults, colours: Colours) -> Drawing:
    """The baseline's cost, what each optimisation takes off in its order, and the rest; measured sizes are solid."""
    figure = sized(480, 60 + 40 * (len(results.optimisations) + 3))
    _draw_waterfall(figure.add_axes((0.27, 0.13, 0.7, 0.85)), results, 0.42, colours)
    return figure


def _draw_waterfall(axes: Axes, results: CostResults, room: float, colours: Colours) -> None:
    left, falls = 1.0, [Fall("baseline", "1", 1.0, measured=False)]
    for row in results.optimisations:
        words = f"{factor(row.in_order)} · alone {factor(row.alone.value)}"
        named = f"{short(row.label, 150)}\n{row.evidence}"
        right, left = left, left / row.in_order
        falls.append(Fall(named, words, left, right, measured=row.evidence == "measured"))
    joint, product, low, high = results.joint, results.product, 1 / results.joint.high, 1 / results.joint.low
    falls.append(Fall("all together", _ranged(joint), 1 / joint.value, low=low, high=high, measured=False))
    naive = "product of the single\nsavings (naive)"
    falls.append(Fall(naive, factor(product), 1 / product, measured=False, faint=True))
    xlabel = f"{MEASURES[results.measure]} of a {results.unit}, fraction of the baseline"
    draw_waterfall(axes, falls, xlabel, room, colours)


def heat_map(results: CostResults, batch: int, colours: Colours) -> Drawing:
    """The joint saving over input and output tokens at one batch; framed where it is within the goal."""
    figure = sized(380, 260)
    _draw_map(figure.add_axes((0.17, 0.16, 0.82, 0.75)), results, batch, colours)
    return figure


_FAINTEST, _STRONGEST = 0.06, 0.5  # opacity of a cell: ink keeps a contrast of 4.5 on it, on light and on dark ground


def _draw_map(axes: Axes, results: CostResults, batch: int, colours: Colours) -> None:
    """One colour whose opacity is the saving, so that it holds on any ground; all batches have one scale."""
    inputs = list(dict.fromkeys(cell.input_tokens for cell in results.grid))
    outputs = list(dict.fromkeys(cell.output_tokens for cell in results.grid))
    low, high = results.goal
    scale = LogNorm(1, max([2.0, *(cell.joint.value for cell in results.grid if cell.joint is not None)]))
    for cell in results.grid:
        if cell.batch != batch:
            continue
        x, y, shade, opacity = outputs.index(cell.output_tokens), inputs.index(cell.input_tokens), "grid", 1.0
        if cell.joint is not None:
            shade = "series-5"
            opacity = _FAINTEST + (_STRONGEST - _FAINTEST) * float(scale(max(cell.joint.value, 1.0)))
        axes.add_patch(
            Rectangle((x - 0.48, y - 0.48), 0.96, 0.96, facecolor=colours[shade], alpha=opacity, linewidth=0)
        )
        if cell.joint is not None and low <= cell.joint.value <= high:
            box: dict[str, Any] = {"fill": False, "edgecolor": colours["ink"], "linewidth": 1.5}
            axes.add_patch(Rectangle((x - 0.42, y - 0.42), 0.84, 0.84, **box))
        words = "too large" if cell.joint is None else significant(cell.joint.value)
        axes.text(x, y, words, ha="center", va="center_baseline", fontsize=FONT - 1, color=colours["ink"])
    axes.set(xlim=(-0.5, len(outputs) - 0.5), ylim=(-0.5, len(inputs) - 0.5))
    axes.set_xticks(range(len(outputs)), [f"{value:,.0f}" for value in outputs])
    axes.set_yticks(range(len(inputs)), [f"{value:,.0f}" for value in inputs])
    frame(axes, colours)
    axes.set_title(f"batch {batch}", loc="left", fontsize=FONT, color=colours["ink"])
    axes.set_xlabel("output tokens", color=colours["muted"])
    axes.set_ylabel("input tokens", color=colours["muted"])


def overview(results: CostResults, colours: Colours) -> Drawing:
    """The waterfall above the heat maps."""
    heights = (130 + 44.0 * (len(results.optimisations) + 3), 360.0)
    figure = sized(1100, sum(heights))
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=heights)
    upper, lower = parts.flat
    for part in (figure, upper, lower):
        part.set_facecolor(colours["surface"])
    _draw_waterfall(upper.add_axes((0.17, 0.13, 0.8, 0.72)), results, 0.3, colours)
    title = f"{results.baseline.model} on {results.baseline.hardware}: estimated savings"
    upper.text(0.03, 0.93, short(title, 700), **heading(colours))
    panels = lower.subplots(1, len(batches(results)), squeeze=False)[0]
    for axes, batch in zip(panels, batches(results), strict=True):
        _draw_map(axes, results, batch, colours)
        axes.label_outer()
    lower.subplots_adjust(0.08, 0.15, 0.98, 0.76, wspace=0.08)
    goal = f"Joint saving over workloads; framed: {results.goal[0]:g} to {results.goal[1]:g}×"
    lower.text(0.03, 0.91, goal, **heading(colours))
    return figure
