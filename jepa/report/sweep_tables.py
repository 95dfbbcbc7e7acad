"""Tables of swept policies. Each column is its title beside the function that writes a cell: a new one is one line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

from jepa.report import format as fmt
from jepa.report.sweep_figures import flops_unit, series_of
from jepa.report.tables import EST, NONE, Column, Table, table
from jepa.results import PARTS, CacheResult, Operations, Saving, Sweep, analysis

Row = TypeVar("Row", Saving, Operations)


def painted(made: Table, sweeps: Mapping[str, Sweep], name: str) -> Table:
    """A table on one of the sweeps, whose policies have the dots of their colours."""
    series, curves = series_of(sweeps), sweeps[name].curves
    colours = {analysis.label(curve): series[policy] for policy, curve in curves.items() if policy in series}
    return replace(made, colours=colours)


def of_policies(sweep: Sweep, columns: list[Column[Row]]) -> list[Column[Row]]:
    """The columns after those that name a policy and its operating point."""

    def at(row: Row) -> str:
        return NONE if row.value is None else analysis.operating_point(sweep.curves[row.policy], row.value)

    named: list[Column[Row]] = [
        Column("policy", lambda row: analysis.label(sweep.curves[row.policy]), words=True),
        Column("operating point", at, words=True),
    ]
    return named + columns


def savings_table(sweep: Sweep) -> Table:
    """Every policy against each reference, at each tolerance; the headline first."""
    groups: dict[str, list[Saving]] = {}
    for row in sorted(sweep.savings, key=lambda row: not row.headline):
        decodes, against = fmt.fixed(row.reference_decodes_per_second, 3), analysis.wanted_name(sweep, row)
        scores = f"CIDEr-D {fmt.quality(row.reference_quality)}, {decodes} decodes/s"
        groups.setdefault(f"against {against}: {scores}", []).append(row)

    def between(row: Saving) -> str:
        area = sweep.areas.get(row.policy)
        return NONE if area is None or not row.headline else fmt.difference(area.difference)

    columns: list[Column[Saving]] = [
        Column("saving", _outcome),
        Column("CIDEr-D", lambda row: fmt.quality(row.quality)),
        Column("difference", lambda row: fmt.difference(row.quality_difference)),
        Column("decodes/s", lambda row: fmt.fixed(row.decodes_per_second, 3)),
        Column("merged temporal F1, difference", lambda row: fmt.difference(row.temporal_f1_difference)),
        Column("curves, CIDEr-D", between),
    ]
    return table("Savings", of_policies(sweep, columns), groups.items())


def _outcome(row: Saving) -> str:
    """The saving, or why there is none."""
    if row.value is None:
        return f"not reached: {row.reason}" if row.reason else "not reached"
    return fmt.saving(row.ratio) if row.reached else f"not reached; {fmt.saving(row.ratio)} at lower quality"


# --- Operating points whose operations were recorded, a row each.


def compute_table(sweep: Sweep) -> Table:
    """FLOPs per second of stream of each part at each operating point, and the savings end to end."""
    scale, unit = flops_unit(sweep)

    def per_second(row: Operations, amount: float | None, scale: float = 1.0) -> str:
        if amount is None:
            return fmt.UNCOUNTED
        return fmt.significant(amount / row.ledger.stream_seconds / scale) if row.ledger.stream_seconds else NONE

    def part(name: str) -> Column[Operations]:
        return Column(name, lambda row: per_second(row, analysis.part_flops(row.ledger, name), scale))

    def wall_time(row: Operations) -> str:
        ratios = analysis.operations_ratio(sweep, row)
        return fmt.factor(ratios.seconds) + EST * (ratios.estimated and ratios.seconds is not None)

    columns: list[Column[Operations]] = [
        *map(part, (*PARTS, "cache")),
        Column("all", lambda row: per_second(row, analysis.counted_flops(row.ledger), scale)),
        Column("saving, decoder calls", lambda row: fmt.factor(analysis.operations_ratio(sweep, row).calls)),
        Column("saving, FLOPs", lambda row: fmt.factor(analysis.operations_ratio(sweep, row).flops)),
        Column("saving, wall time", wall_time),
        Column("CIDEr-D difference", lambda row: fmt.difference(analysis.quality_difference(sweep, row))),
        Column("steps/s", lambda row: per_second(row, row.ledger.step_count)),
    ]
    group = f"{unit}s per second of stream; savings against {analysis.reference_name(sweep)}"
    return table("Compute", of_policies(sweep, columns), [(group, sweep.operations)])


def operations_facts(sweep: Sweep) -> str:
    """What the operations were counted over; the sweep has some."""
    ledger = (analysis.reference_row(sweep) or sweep.operations[0]).ledger
    return f"Over {ledger.step_count:,} steps, {ledger.stream_seconds / 60:,.1f} minutes of test streams"


def operations_table(sweep: Sweep) -> Table:
    """Counts and wall seconds of each operating point."""

    def calls(part: str) -> Column[Operations]:
        return Column(f"{part} calls", lambda row: f"{getattr(row.ledger, part).calls:,}")

    def timed(part: str) -> Column[Operations]:
        def cell(row: Operations) -> str:
            return fmt.seconds(analysis.part_seconds(row, part)) + EST * (analysis.estimated_seconds(row, part) > 0)

        return Column(f"{part}, s", cell)

    columns: list[Column[Operations]] = [
        *map(calls, PARTS),
        Column("decoder forward passes", lambda row: f"{row.ledger.decoder.forward_passes:,}"),
        Column("tokens decoded", lambda row: f"{row.ledger.decoder.tokens:,}"),
        *map(timed, (*PARTS, "cache")),
        Column("all, s", lambda row: fmt.seconds(row.seconds) + EST * (row.estimated is not None)),
    ]
    return table("Operations", of_policies(sweep, columns), [("", sweep.operations)])


def quality_table(sweep: Sweep) -> Table:
    """What the emissions at each operating point are worth, what they need, and how late they are."""

    def dense(title: str, key: str) -> Column[Operations]:
        return Column(title, lambda row: fmt.fraction(getattr(analysis.point(sweep, row).dense, key)))

    def single(row: Operations) -> str:
        return fmt.quality(analysis.point(sweep, row).one_reference)

    def late(title: str, key: str) -> Column[Operations]:
        return Column(title, lambda row: fmt.seconds(row.ledger.to_dict()["latency_seconds"][key]))

    columns: list[Column[Operations]] = [
        Column("latency", lambda row: analysis.point(sweep, row).latency, words=True),
        Column("state", lambda row: analysis.point(sweep, row).state, words=True),
        Column("CIDEr-D", lambda row: fmt.quality(analysis.point(sweep, row).cider_d.value)),
        *([Column("CIDEr-D, one reference", single)] if any(single(row) != NONE for row in sweep.operations) else []),
        dense("temporal F1, merged", "temporal_f1_merged"),
        dense("temporal F1", "temporal_f1"),
        dense("SODA_c", "soda_c"),
        dense("TimRedun", "tim_redun"),
        dense("TimCover", "tim_cover"),
        late("latency, mean s", "mean"),
        late("latency, 95th percentile s", "p95"),
    ]
    return table("Stream quality", of_policies(sweep, columns), [("", sweep.operations)])


# --- The cache.


def cache_table(sweep: Sweep) -> Table:
    """What the cache of each policy that has one did at its operating point, and the error requested."""
    results = {(row.policy, row.value): analysis.point(sweep, row).cache for row in sweep.operations}

    def did(title: str, cell: Callable[[CacheResult], str]) -> Column[Operations]:
        return Column(title, lambda row: NONE if (found := results[row.policy, row.value]) is None else cell(found))

    def requested(row: Operations) -> str:
        cache = sweep.curves[row.policy].cache
        return NONE if cache is None else fmt.percent(cache.error_rate)

    def threshold(cache: CacheResult) -> str:
        return "no threshold kept the requested error" if cache.threshold < 0 else f"{cache.threshold:.4f}"

    def error(cache: CacheResult) -> str:
        found = cache.error
        return f"{fmt.percent(found.value)} ({100 * found.low:.3g} to {100 * found.high:.3g})"

    columns: list[Column[Operations]] = [
        Column("requested error", requested),
        did("threshold", threshold),
        did("look-ups", lambda cache: f"{cache.error.lookups:,}"),
        did("hits", lambda cache: f"{cache.error.hits:,}"),
        did("wrong hits", lambda cache: f"{cache.error.wrong:,}"),
        did("error (95 % interval)", error),
    ]
    cached = [row for row in sweep.operations if results[row.policy, row.value] is not None]
    return table("Cache", of_policies(sweep, columns), [("", cached)])
