"""The report of `jepa cost`: the cost of a workload, the saving of each optimisation and of all, over which workloads.

Costs are estimates. The basis of an optimisation's size (measured, published, assumed, estimated) stands beside it.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from matplotlib.figure import Figure as Drawing

from jepa.report.blocks import ESTIMATED, Claim, Colours, Figure, Heading, Report, Text
from jepa.report.figures import heading, short, sized
from jepa.report.format import code_text, factor, interval, percent, significant
from jepa.report.notes import note
from jepa.report.tables import NONE, Column, Table, table
from jepa.studies.cost.results import CostResults, OptimisationSaving, PartCost, Range, ScenarioCost
from jepa.studies.cost.waterfall import Fall, draw_waterfall

WITHIN = "●"  # a workload within the goal


def report(results: CostResults) -> Report:
    """The report of a document: summary, tables, and a waterfall."""
    base, joint, (low, high) = results.baseline, results.joint, results.goal
    start = (
        f"{base.model} on {base.chips} × {base.hardware}, {base.input_tokens:,.0f} tokens in, "
        f"{base.output_tokens:,.0f} out, a {results.unit}: {base.chip_seconds:.3g} chip-seconds"
    )
    totals, said, why = _totals_table(results), answer(results), _explanation(results)
    spread = f"{interval(joint.low, joint.high)} over the intervals of efficiencies and of measured savings."
    draw, estimate = partial(_waterfall, results), note("cost_estimate", "plain")
    return Report(
        title="The cost of serving",
        kicker=start,
        summary=[_optimisations_table(results, _SUMMARY), totals, Text(why), Text(said), estimate],
        blocks=[
            Claim("All optimisations together", factor(joint.value), spread, f"{why} {estimate.text}"),
            totals,
            Heading("Optimisations", evidence=(ESTIMATED,)),
            note("cost_averaged"),
            Figure("waterfall", "The part of the baseline's cost that each optimisation saves", draw),
            _optimisations_table(results),
            Heading("Workings", evidence=(ESTIMATED,)),
            _scenarios_table(results),
            Heading("Workloads", evidence=(ESTIMATED,)),
            Text(f"{said} Marked {WITHIN}: within {low:g} to {high:g}×.", "lede"),
            _grid_table(results),
            Heading("Sources"),
            _sources_table(results),
        ],
        overview=draw,
        footer=f"{code_text(results.code)}, {results.created}. Estimated, not measured.",
    )


# --- Tables.


def _measure(results: CostResults) -> str:
    return results.measure.replace("_", "-")


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
)
_SUMMARY = ("optimisation", "size is", "claimed", "touches", "alone", "in order", "averaged")


def _optimisations_table(results: CostResults, columns: Sequence[str] | None = None) -> Table:
    """The savings of each optimisation: alone, in its order, averaged over all orders, and at most."""
    chosen = [column for column in _COLUMNS if columns is None or column.title in columns]
    return table("Optimisations", chosen, [("", results.optimisations)])


def _totals_table(results: CostResults) -> Table:
    """The joint saving beside the naive products."""
    rows = [
        ("all optimisations together", _ranged(results.joint)),
        ("product of the optimisations alone", factor(results.product)),
        ("product of the claims", factor(results.claims)),
    ]
    return Table("Together", (f"saving in {_measure(results)}", ""), [("", rows)])


def _scenarios_table(results: CostResults) -> Table:
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
    ]
    bounded = f"chip-seconds of a {results.unit}, fraction, and what bounds it"
    groups = [("", facts), (bounded, parts), ("in all", totals)]
    return Table("Workings", ("", "baseline", "all optimisations"), groups, text_columns=3)


def _grid_table(results: CostResults) -> Table:
    """The joint saving over the grid of workloads, marked where it is within the goal."""
    outputs, (low, high) = dict.fromkeys(cell.output_tokens for cell in results.grid), results.goal
    groups: dict[int, dict[float, list[str]]] = {}
    for cell in results.grid:
        row = groups.setdefault(cell.batch, {}).setdefault(cell.input_tokens, [f"{cell.input_tokens:,.0f} in"])
        within = cell.joint is not None and low <= cell.joint.value <= high
        row.append(_ranged(cell.joint) + (f" {WITHIN}" if within else ""))
    cells = [(f"batch {batch}", list(rows.values())) for batch, rows in groups.items()]
    return Table("Joint saving", ("", *(f"{output:,.0f} out" for output in outputs)), cells)


def _sources_table(results: CostResults) -> Table:
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
    fitting, holding = Counter(cell.batch for cell, _ in cells), Counter(within)
    counts = ", ".join(f"{holding[batch]} of {number} at {batch:,}" for batch, number in fitting.items())
    where = f" By batch: {counts}." if within else ""
    values = [joint.value for _, joint in cells]
    return (
        f"{goal} holds on {len(within)} of {len(cells)} workloads of the grid by the central figures, on {sure} "
        f"over the whole of its range, and on {possible} it is possible.{where} The joint saving goes from "
        f"{factor(min(values))} to {factor(max(values))}."
    )


def _explanation(results: CostResults) -> str:
    """Why the joint saving is not the product."""
    joint, product = results.joint.value, results.product
    most = max(results.optimisations, key=lambda row: abs(math.log(row.alone.value / row.averaged)))
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


# --- The picture.


def _waterfall(results: CostResults, colours: Colours) -> Drawing:
    """The baseline's cost, what each optimisation takes off in its order, and the rest; measured sizes are solid."""
    figure = sized(480, 90 + 40 * (len(results.optimisations) + 3))
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
    xlabel = f"{_measure(results)} of a {results.unit}, fraction of the baseline"
    axes = figure.add_axes((0.27, 0.13, 0.7, 0.78))
    draw_waterfall(axes, falls, xlabel, 0.42, colours)
    words = f"{results.baseline.model} on {results.baseline.hardware}: estimated savings"
    axes.text(-0.35, 1.03, short(words, 450), transform=axes.transAxes, **heading(colours))
    return figure
