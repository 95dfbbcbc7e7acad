"""Runs side by side: one report from two or more documents of streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from jepa.report import checkpoint, figures
from jepa.report import format as fmt
from jepa.report.blocks import (
    MEASURED,
    NONE,
    Block,
    Colours,
    Columns,
    Details,
    Figure,
    Heading,
    Report,
    Table,
    Text,
)
from jepa.report.notes import note
from jepa.report.streams import VOID, setting_facts
from jepa.results import Setting, StreamResults, analysis

_ORDER = (4, 3, 5, 6, 2, 7, 1, 0)  # of the palette: colour and marker tell runs apart

Runs = Mapping[str, StreamResults]  # a path, or any other distinct name -> a document


def report(runs: Runs) -> Report:
    """The blocks of two or more documents."""
    drawn: list[list[Block]] = []
    for place, name in enumerate(_settings(runs)):
        for kind, draw in (("curves", _draw_curves), ("savings", _draw_savings)):
            drawn.append([Figure(f"{kind}-{place}", f"{kind}, {name}", partial(_panel, draw, runs, name))])
    configuration = configuration_table(runs)
    different = sum(len(rows) for _, rows in configuration.groups)
    made = runs_table(runs)
    called = names(runs)
    return Report(
        title=f"Runs side by side: {', '.join(called)}",
        kicker=f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} · {len(runs)} runs",
        summary=[_summary_table(runs), Text(""), Text(f"{different} keys of the configuration differ.")],
        blocks=[
            Heading("Quality and savings", evidence=(MEASURED,)),
            note("compare", "lede"),
            Columns(drawn),
            Heading("Figures"),
            made,
            Details("Configuration, where it differs", [configuration]),
        ],
        overview=partial(_overview, runs),
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

_Cells = Callable[[StreamResults], dict[str, str]]


def _rows(runs: Runs, cells: _Cells, different: bool = False) -> list[list[str]]:
    """A row for each key that `cells` gives for any run; if `different`, only where the runs do not agree."""
    found = [cells(results) for results in runs.values()]
    keys = dict.fromkeys(key for column in found for key in column)
    made = [[key, *(column.get(key, NONE) for column in found)] for key in keys]
    return [row for row in made if not different or len(set(row[1:])) > 1]


def _table(runs: Runs, title: str, groups: Mapping[str, list[list[str]]]) -> Table:
    filled = [(name, rows) for name, rows in groups.items() if rows]
    return Table(title, ["", *names(runs)], filled, text_columns=1 + len(runs))


def runs_table(runs: Runs) -> Table:
    """Savings, scores, parameters and training; of code, libraries and streams only what differs."""
    groups = {name: _rows(runs, partial(_setting, name)) for name in _settings(runs)}
    titles = dict.fromkeys(title for each in runs.values() for title, _ in checkpoint.scores_table(each.scores).groups)
    groups |= {title: _rows(runs, partial(_scores, title)) for title in titles}
    groups |= {
        "Parameters": _rows(runs, _parameters),
        "Training": _rows(runs, _training),
        "Provenance, where it differs": _rows(runs, _provenance, different=True),
    }
    return _table(runs, "Runs side by side", groups)


def configuration_table(runs: Runs) -> Table:
    """The dotted keys of the configurations whose values differ."""
    rows = _rows(runs, lambda results: dict(_leaves(results.config, "")), different=True)
    return _table(runs, "Configuration, where it differs", {"": rows})


def _summary_table(runs: Runs) -> Table:
    """The main rows, for a terminal."""
    kept = ("saving, decoder calls", "by", "difference", "saving, FLOPs end to end", "compute, by")
    groups = {name: _rows(runs, partial(_setting, name)) for name in _settings(runs)}
    chosen = {name: [row for row in rows if row[0] in kept] for name, rows in groups.items()}
    return _table(runs, "", chosen | {"Scores": _rows(runs, partial(_scores, "Retrieval of the caption"))})


def _setting(name: str, results: StreamResults) -> dict[str, str]:
    setting = results.settings.get(name)
    if setting is None:
        return {}
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


def _scores(title: str, results: StreamResults) -> dict[str, str]:
    table = checkpoint.scores_table(results.scores)
    found: dict[str, str] = {}
    for row in dict(table.groups).get(title, []):
        found[row[0]] = row[1]
        if row[-1] != NONE:
            found[f"{row[0]}: {table.header[-1]}"] = row[-1]
    return found


def _parameters(results: StreamResults) -> dict[str, str]:
    roles = results.parameters
    cells = {role.role: f"{role.total:,}" for role in roles}
    total, trained = sum(role.total for role in roles), sum(role.trainable for role in roles)
    return cells | {"all roles": f"{total:,}", "trained": f"{trained:,}"}


def _training(results: StreamResults) -> dict[str, str]:
    training = results.training
    last = training.curve[-1] if training.curve else {}
    cells = {"steps": f"{training.steps:,}", "samples": f"{training.samples:,}"}
    cells["seconds"] = fmt.seconds(training.seconds)
    ends = {f"{key}, last": f"{value:.4g}" for key, value in last.items() if key != "step" and value is not None}
    return cells | ends


def _provenance(results: StreamResults) -> dict[str, str]:
    cells = {
        "created": results.created,
        "seed": str(results.seed),
        "code": fmt.code_text(results.code),
        "device": fmt.device_text(results.device),
    }
    if results.sweep is not None:
        cells |= {"report, code": fmt.code_text(results.sweep.code)}
        cells |= {"report, device": fmt.device_text(results.sweep.device)}
    cells |= results.libraries
    return cells | {f"streams, {name}": setting_facts(setting) for name, setting in results.settings.items()}


def _leaves(node: object, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _leaves(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, json.dumps(node, ensure_ascii=False)


# --- The picture.

_Draw = Callable[[Axes, Runs, str, Colours], None]


def _height(runs: Runs) -> float:
    """CSS pixels of a panel."""
    return max(120 + 30 * len(runs), 290)


def _panel(draw: _Draw, runs: Runs, name: str, colours: Colours) -> Drawing:
    figure = figures.sized(470, _height(runs), "constrained")
    draw(figure.add_subplot(), runs, name, colours)
    return figure


def _overview(runs: Runs, colours: Colours) -> Drawing:
    """A row for each setting: the curves at the left, the savings at the right."""
    settings = _settings(runs)
    figure = figures.sized(1060, _height(runs) * len(settings), "constrained")
    figure.set_facecolor(colours["surface"])
    for (left, right), name in zip(figure.subplots(len(settings), 2, squeeze=False), settings, strict=True):
        _draw_curves(left, runs, name, colours)
        _draw_savings(right, runs, name, colours)
    return figure


def _draw_curves(axes: Axes, runs: Runs, name: str, colours: Colours) -> None:
    """Each run's best causal policy, and its reference, dashed."""
    figures.title(axes, f"{name}: CIDEr-D of the best causal policy; dashed: the reference", colours)
    figures.frame(axes, colours, "y")
    axes.set_xscale("log")
    figures.log_axis(axes.xaxis)
    axes.set_xlabel("decodes per second", color=colours["muted"])
    for index, results in enumerate(runs.values()):
        setting = results.settings.get(name)
        if setting is None:
            continue
        best, reference = analysis.best_causal(setting), analysis.headline_savings(setting)[0].reference.policy
        for policy in dict.fromkeys([reference, *([best.policy] if best else [])]):
            curve = setting.curves[policy]
            points = sorted((p.decodes_per_second, p.cider_d.value) for p in curve.test if p.decodes_per_second > 0)
            x, y = zip(*points, strict=True)
            dashed = {"linestyle": (0, (4, 1.5)), "marker": "", "linewidth": 1.0}
            line = figures.Line(analysis.label(curve), x, y, _ORDER[index % len(_ORDER)])
            figures.draw_line(axes, line, colours, **(dashed if policy == reference else {"linestyle": "-"}))


def _draw_savings(axes: Axes, runs: Runs, name: str, colours: Colours) -> None:
    """The saving of each run with its interval, or why there is none."""
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
