"""Runs side by side: one report from two or more documents of streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial

from matplotlib.figure import Figure as Drawing

from jepa.report import checkpoint, figures
from jepa.report import format as fmt
from jepa.report.blocks import (
    MEASURED,
    NONE,
    Block,
    Cells,
    Colours,
    Columns,
    Details,
    Figure,
    Heading,
    Report,
    Table,
    Text,
    side_by_side,
)
from jepa.report.notes import note
from jepa.report.streams import VOID, setting_facts
from jepa.results import Setting, StreamResults, analysis

_ORDER = (4, 3, 5, 6, 2, 7, 1, 0)  # of the palette: colour and marker tell runs apart
_DIFFERING = "Provenance, where it differs"

Runs = Mapping[str, StreamResults]  # a path, or any other distinct name -> a document


def report(runs: Runs) -> Report:
    """The blocks of two or more documents."""
    drawn: list[list[Block]] = [
        [Figure(f"savings-{place}", f"Savings of the runs, {name}", partial(_savings_figure, runs, [name]))]
        for place, name in enumerate(_settings(runs))
    ]
    configuration = configuration_table(runs)
    different = sum(len(rows) for _, rows in configuration.groups)
    return Report(
        title=f"Runs side by side: {', '.join(names(runs))}",
        kicker=f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} · {len(runs)} runs",
        summary=[_summary_table(runs), Text(""), Text(f"Keys of the configuration that differ: {different}.")],
        blocks=[
            Heading("Quality and savings", evidence=(MEASURED,)),
            note("compare", "lede"),
            Columns(drawn),
            Heading("Figures"),
            runs_table(runs),
            Details("Configuration, where it differs", configuration),
        ],
        overview=partial(_savings_figure, runs, _settings(runs)),
        footer=f"The figures of this page are those of {', '.join(runs)}.",
    )


def names(runs: Runs) -> list[str]:
    """What the runs are called: their names, or the paths where two share one."""
    plain = [results.name for results in runs.values()]
    return [
        path.removesuffix("/results.json") if plain.count(name) > 1 else name
        for name, path in zip(plain, runs, strict=True)
    ]


def _settings(runs: Runs) -> list[str]:
    """The settings of any of the runs."""
    return list(dict.fromkeys(name for results in runs.values() for name in results.settings))


# --- Tables: a column for each run.


def _table(runs: Runs, title: str, cells: Callable[[StreamResults], Cells], differing: str | None = None) -> Table:
    columns = zip(names(runs), map(cells, runs.values()), strict=True)
    return side_by_side(title, list(columns), words=True, differing=(differing,))


def runs_table(runs: Runs) -> Table:
    """Savings, scores, parameters and training; of code, libraries and streams only what differs."""

    def cells(results: StreamResults) -> Cells:
        return {
            **{name: _setting(results.settings[name]) if name in results.settings else {} for name in _settings(runs)},
            **_scores(results),
            "Parameters": _parameters(results),
            "Training": _training(results),
            _DIFFERING: _provenance(results),
        }

    return _table(runs, "Runs side by side", cells, _DIFFERING)


def configuration_table(runs: Runs) -> Table:
    """The dotted keys of the configurations whose values differ."""
    return _table(runs, "Configuration, where it differs", lambda run: {"": dict(_leaves(run.config, ""))}, "")


def _summary_table(runs: Runs) -> Table:
    """The main rows, for a terminal."""
    kept = ("saving, decoder calls", "by", "difference", "saving, FLOPs end to end", "compute, by")

    def cells(results: StreamResults) -> Cells:
        found = {name: _setting(setting) for name, setting in results.settings.items()}
        main = {name: {row: rows[row] for row in kept if row in rows} for name, rows in found.items()}
        return {name: main.get(name, {}) for name in _settings(runs)} | {
            "Scores": _scores(results)["Retrieval of the caption"]
        }

    return _table(runs, "", cells)


def _setting(setting: Setting) -> Mapping[str, str]:
    first, best = analysis.headline_savings(setting)[0], analysis.best_causal(setting)
    cells = {
        "reference": analysis.wanted_name(setting, first),
        "reference, CIDEr-D": fmt.quality(first.reference_quality),
        "saving, decoder calls": "not reached",
    }
    if best is not None and best.value is not None:
        cells |= {
            "saving, decoder calls": _marked(setting, fmt.saving(best.ratio), best.reached),
            "by": analysis.point_name(setting, best.policy, best.value),
            "CIDEr-D": fmt.quality(best.quality),
            "difference": fmt.difference(best.quality_difference),
            "temporal F1, difference": fmt.difference(best.temporal_f1_difference),
            "decodes/s": fmt.rate(best.decodes_per_second),
        }
    lean = analysis.leanest(setting, kept=True) or analysis.leanest(setting)
    if lean is not None:
        saved = fmt.factor(analysis.operations_ratio(setting, lean).flops)
        flops, seconds = analysis.counted_flops(lean.ledger) or 0, lean.ledger.stream_seconds
        cells |= {
            "saving, FLOPs end to end": _marked(setting, saved, analysis.qualified(setting, lean)),
            "GFLOP/s of stream": f"{flops / seconds / 1e9 if seconds else 0.0:.3g}",
            "compute, by": analysis.point_name(setting, lean.policy, lean.value),
            "compute, CIDEr-D": fmt.quality(analysis.point(setting, lean).cider_d.value),
        }
    return cells | {"events/s": f"{setting.events_per_second:.3g}"}


def _marked(setting: Setting, saving: str, reached: bool) -> str:
    """The saving, in brackets after its flaw: not reached, or no contrast in quality."""
    if not reached:
        return f"not reached ({saving})"
    return f"{VOID} ({saving})" if analysis.without_contrast(setting) else saving


def _scores(results: StreamResults) -> Cells:
    """Each score, and what a right answer costs where it was counted."""
    scores = checkpoint.scores_table(results.scores)
    found: dict[str, dict[str, str]] = {}
    for title, rows in scores.groups:
        cells = found.setdefault(title, {})
        for name, value, *_, cost in rows:
            cells |= {name: value} | ({} if cost == NONE else {f"{name}: {scores.header[-1]}": cost})
    return found


def _parameters(results: StreamResults) -> Mapping[str, str]:
    roles = results.parameters
    total, trained = sum(role.total for role in roles), sum(role.trainable for role in roles)
    return {role.role: f"{role.total:,}" for role in roles} | {"all roles": f"{total:,}", "trained": f"{trained:,}"}


def _training(results: StreamResults) -> Mapping[str, str]:
    training = results.training
    last = training.curve[-1] if training.curve else {}
    cells = {"steps": f"{training.steps:,}", "samples": f"{training.samples:,}"}
    cells["seconds"] = fmt.seconds(training.seconds)
    ends = {f"{key}, last": f"{value:.4g}" for key, value in last.items() if key != "step" and value is not None}
    return cells | ends


def _provenance(results: StreamResults) -> Mapping[str, str]:
    facts = {f"streams, {name}": setting_facts(setting) for name, setting in results.settings.items()}
    return {**checkpoint.origin(results), **results.libraries, **facts}


def _leaves(node: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(node, ensure_ascii=False)


# --- The picture.


def _savings_figure(runs: Runs, settings: Sequence[str], colours: Colours) -> Drawing:
    """The saving of each run with its interval, or why there is none; a panel for each setting."""
    figure = figures.sized(470 * len(settings), 120 + 30 * len(runs), "constrained")
    for axes, name in zip(figure.subplots(1, len(settings), squeeze=False)[0], settings, strict=True):
        rows, labels = [], []
        for index, (called, results) in enumerate(zip(names(runs), runs.values(), strict=True)):
            setting = results.settings.get(name)
            best = analysis.best_causal(setting) if setting is not None else None
            ratio = best.ratio if best is not None else None
            ends = (None, None, None) if ratio is None else (ratio.value, ratio.low, ratio.high or ratio.value)
            rows.append(figures.Dots(_ORDER[index % len(_ORDER)], [], *ends))
            flaw = "not measured" if setting is None else "not reached" if best is None or not best.reached else ""
            if setting is not None and not flaw and analysis.without_contrast(setting):
                flaw = VOID
            labels.append("\n".join([figures.short(called, 130), *([flaw] if flaw else [])]))
        figures.draw_dots(axes, f"{name}: saving in decoder calls, 95 % interval", rows, colours, digits=2)
        figures.label_bars(axes, labels, colours)
        axes.axvline(1, color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    return figure
