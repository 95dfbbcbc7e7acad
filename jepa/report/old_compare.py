"""Runs side by side: one table, one picture and one page from two or more results documents."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from jepa.report import page, plots
from jepa.report.schema import Results, write_whole
from jepa.report.tables import (
    NONE,
    VOID,
    Row,
    Table,
    best_causal,
    clean,
    code_text,
    columns,
    device_text,
    difference,
    escape_markdown,
    factor,
    factor_with_interval,
    headline_savings,
    label,
    leanest,
    markdown_table,
    operating_point,
    operations_ratio,
    parameters_total,
    point,
    qualified,
    quality,
    rate,
    scores_table,
    seconds,
    setting_facts,
    total_flops,
    wanted_name,
    without_contrast,
)

_HEADING = "Runs side by side"
_CONFIGURATION = "Configuration, where it differs"
_NOTE = (
    "Savings are those of the best causal policy of each run against that run's own reference, at the run's own "
    "headline quality, with 95 % intervals over its test streams; runs on other streams are other measurements, and "
    "their difference is not tested. A saving is void where half of the reference's decodes, or fewer, keep its "
    "quality without any choice. Compute: the operating point that saves most FLOPs end to end at equal quality, or, "
    "where none does, the one that saves most (in brackets)."
)

Runs = Mapping[str, Results]  # path, or any other distinct name, -> a valid document


def names(runs: Runs) -> list[str]:
    """What the runs are called: their names, or the paths where two share one."""
    plain = [clean(results["name"]) for results in runs.values()]
    return [
        clean(path).removesuffix("/results.json") if plain.count(name) > 1 else name
        for name, path in zip(plain, runs, strict=True)
    ]


def comparison_table(runs: Runs) -> Table:
    """One column a run; of code, libraries and streams only what differs."""
    groups = [(clean(name), _rows(runs, partial(_setting, name))) for name in settings_of(runs)]
    groups += [(title, _rows(runs, partial(_scores, title))) for title in _score_titles(runs)]
    groups += [
        ("Parameters", _rows(runs, _parameters)),
        ("Training", _rows(runs, _training)),
        ("Provenance, where it differs", _rows(runs, _provenance, different=True)),
    ]
    return _table(runs, groups)


def configuration_table(runs: Runs) -> Table:
    """The dotted keys of the configurations whose values differ; one column a run."""
    return _table(runs, [("", _rows(runs, _configuration, different=True))])


def _table(runs: Runs, groups: list[tuple[str, tuple[Row, ...]]]) -> Table:
    return Table(("", *names(runs)), tuple(group for group in groups if group[1]), text_columns=1 + len(runs))


def _rows(runs: Runs, cells: Callable[[Results], dict[str, str]], different: bool = False) -> tuple[Row, ...]:
    """A row for each key that `cells` gives for any run; if `different`, only where the runs do not agree."""
    found = [cells(results) for results in runs.values()]
    keys = dict.fromkeys(key for column in found for key in column)
    made = [(key, *(column.get(key, NONE) for column in found)) for key in keys]
    return tuple(row for row in made if not different or len(set(row[1:])) > 1)


def settings_of(runs: Runs) -> list[str]:
    """The settings of any of the runs."""
    return list(dict.fromkeys(name for results in runs.values() for name in results["settings"]))


def _setting(name: str, results: Results) -> dict[str, str]:
    setting = results["settings"].get(name)
    if setting is None:
        return {}
    first, best = headline_savings(setting)[0], best_causal(setting)
    lean = leanest(setting, kept=True) or leanest(setting)
    cells = {"reference": wanted_name(setting, first), "reference, CIDEr-D": quality(first["reference_quality"])}
    if best is None:
        cells["saving, decoder calls"] = "not reached"
    else:
        cells |= {
            "saving, decoder calls": _qualifying(setting, best),
            "by": _named(setting, best),
            "CIDEr-D": quality(best["quality"]),
            "difference": difference(best["quality_difference"]),
            "temporal F1, difference": difference(best["temporal_f1_difference"]),
            "decodes/s": rate(best["decodes_per_second"]),
        }
    if lean is not None:
        ratios, ledger = operations_ratio(setting, lean), lean["ledger"]
        each = (total_flops(ledger) or 0) / ledger["stream_seconds"] / 1e9 if ledger["stream_seconds"] else 0.0
        cells |= {
            "saving, FLOPs end to end": _marked(setting, factor(ratios.flops), qualified(setting, lean)),
            "GFLOP/s of stream": f"{each:.3g}",
            "compute, by": _named(setting, lean),
            "compute, CIDEr-D": quality(point(setting, lean)["cider_d"]["value"]),
        }
    return cells | {"events/s": f"{setting['events_per_second']:.3g}"}


def _qualifying(setting: dict[str, Any], best: dict[str, Any]) -> str:
    """The saving, in brackets after what is the matter with it: not reached, or no contrast in quality."""
    return _marked(setting, factor_with_interval(best["saving"]), best["reached"])


def _marked(setting: dict[str, Any], saving: str, reached: bool) -> str:
    if not reached:
        return f"not reached ({saving})"
    return f"{VOID} ({saving})" if without_contrast(setting) else saving


def _named(setting: dict[str, Any], row: dict[str, Any]) -> str:
    curve = setting["curves"][row["policy"]]
    return f"{label(curve)}, {operating_point(curve, row['knob'])}"


def _score_titles(runs: Runs) -> list[str]:
    return list(
        dict.fromkeys(title for results in runs.values() for title, _ in scores_table(results["scores"]).groups)
    )


def _scores(title: str, results: Results) -> dict[str, str]:
    table = scores_table(results["scores"])
    found = {}
    for row in dict(table.groups)[title]:
        found[row[0]] = row[1]
        if row[-1] != NONE:
            found[f"{row[0]}: tokens, FLOPs {table.header[-1]}"] = row[-1]
    return found


def _parameters(results: Results) -> dict[str, str]:
    cells = {clean(role["role"]): f"{role['total']:,}" for role in results["parameters"]}
    total, trainable = parameters_total(results)
    return cells | {"all roles": f"{total:,}", "trained": f"{trainable:,}"}


def _training(results: Results) -> dict[str, str]:
    training = results["training"]
    last = training["curve"][-1] if training["curve"] else {}
    ends = {f"{clean(key)}, last": f"{value:.4g}" for key, value in last.items() if key != "step" and value is not None}
    return {
        "steps": f"{training['steps']:,}",
        "samples": f"{training['samples']:,}",
        "seconds": seconds(training["seconds"]),
    } | ends


def _provenance(results: Results) -> dict[str, str]:
    cells = {
        "created": clean(results["created"]),
        "seed": str(results["seed"]),
        "code": code_text(results["code"]),
        "device": device_text(results["device"]),
    }
    if "report" in results:
        cells |= {"report, code": code_text(results["report"]["code"])}
        cells |= {"report, device": device_text(results["report"]["device"])}
    cells |= {clean(name): clean(version) for name, version in results["libraries"].items()}
    return cells | {f"streams, {clean(name)}": setting_facts(s) for name, s in results["settings"].items()}


def _configuration(results: Results) -> dict[str, str]:
    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict) and node:
            for key, value in node.items():
                yield from leaves(value, f"{prefix}.{key}" if prefix else key)
        else:
            yield clean(prefix), clean(json.dumps(node, ensure_ascii=False))

    return dict(leaves(results["config"], ""))


# --- The picture.


def comparison_figure(runs: Runs) -> Figure:
    """A row a setting: the curves at the left, the savings at the right, on light ground."""
    settings = settings_of(runs)
    width, height = 1060, _height(runs)
    figure = Figure(figsize=(width / plots.INCH, height * len(settings) / plots.INCH), layout="constrained")
    figure.set_facecolor(plots.LIGHT["surface"])
    panels = figure.subplots(len(settings), 2, squeeze=False)
    for (left, right), name in zip(panels, settings, strict=True):
        _draw_curves(left, runs, name, plots.LIGHT)
        _draw_savings(right, runs, name, plots.LIGHT)
    return figure


def _height(runs: Runs) -> float:
    """CSS pixels of a panel."""
    return max(120 + 30 * len(runs), 290)


_Draw = Callable[[Axes, Runs, str, plots.Colours], None]


def _panel(draw: _Draw, runs: Runs, name: str, colours: plots.Colours) -> Figure:
    figure = Figure(figsize=(470 / plots.INCH, _height(runs) / plots.INCH), layout="constrained")
    draw(figure.add_subplot(), runs, name, colours)
    return figure


def _title(axes: Axes, text: str, colours: plots.Colours) -> None:
    axes.set_title(plots.short(text, 400), loc="left", fontsize=plots.FONT, color=colours["muted"], parse_math=False)


_ORDER = (4, 3, 5, 6, 2, 7, 1, 0)  # of the palette: runs are told apart by colour and marker


def _number(index: int) -> int:
    return _ORDER[index % len(_ORDER)]


def _draw_curves(axes: Axes, runs: Runs, name: str, colours: plots.Colours) -> None:
    """Each run's best causal policy, and its reference, dashed."""
    _title(axes, f"{clean(name)}: CIDEr-D of the best causal policy; dashed: the reference", colours)
    plots.frame(axes, colours)
    axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel("decodes per second", color=colours["muted"])
    for index, results in enumerate(runs.values()):
        setting = results["settings"].get(name)
        if setting is None:
            continue
        best, reference = best_causal(setting), headline_savings(setting)[0]["reference"]["policy"]
        style = plots.style(_number(index), colours)
        for policy in dict.fromkeys([reference, *([best["policy"]] if best else [])]):
            curve = setting["curves"][policy]
            points = sorted(
                (p["decodes_per_second"], p["cider_d"]["value"]) for p in curve["test"] if p["decodes_per_second"] > 0
            )
            dashed = {"linestyle": (0, (4, 1.5)), "marker": "", "linewidth": 1.0}
            drawn = style | (dashed if policy == reference else {"linestyle": "-"})
            axes.plot(*zip(*points, strict=True), gid=plots.tooltip(label(curve)), **drawn)


def _draw_savings(axes: Axes, runs: Runs, name: str, colours: plots.Colours) -> None:
    """The saving of each run with its interval; hollow where the quality is not reached, or any decodes reach it."""
    _title(axes, f"{clean(name)}: saving in decoder calls, 95 % interval", colours)
    plots.frame(axes, colours)
    axes.axvline(1, color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    longest = 1.0
    for y, results in enumerate(runs.values()):
        setting = results["settings"].get(name)
        best = best_causal(setting) if setting is not None else None
        saving, style = best["saving"] if best else None, plots.style(_number(y), colours)
        colour, text, x = style["color"], "not measured" if setting is None else "not reached", 1.0
        if setting and best and saving:
            x, high = saving["value"], saving["high"] or saving["value"]
            void = f", {VOID}" if without_contrast(setting) else ""
            flaw = void if best["reached"] else ", not reached: lower quality"
            axes.plot([saving["low"], high], [y, y], color=colour, linewidth=1.6)
            face = colours["surface"] if flaw else colour
            axes.plot([x], [y], marker=style["marker"], markersize=7, color=colour, markerfacecolor=face)
            text, longest = f"{factor_with_interval(saving)}{flaw}", max(longest, high)
        axes.annotate(
            text,
            (x, y),
            (0, 8) if saving else (4, 0),
            textcoords="offset points",
            ha="center" if saving else "left",
            va="baseline" if saving else "center_baseline",
            color=colours["ink"],
        )
    labels = [plots.short(called, 130) for called in names(runs)]
    axes.set_yticks(range(len(labels)), labels, color=colours["ink"], parse_math=False)
    axes.set(ylim=(len(labels) - 0.5, -0.7), xlim=(0, longest * 1.25))


# --- What is written and printed.


def comparison_summary(runs: Runs) -> str:
    """The table for a terminal of 100 columns; of the configuration, how many keys differ."""
    table = comparison_table(runs)
    each = min(max((100 - 28) // len(runs) - 2, 12), 34)
    widths = (28, *(each for _ in runs))
    lines = columns([table.header, tuple("─" * width for width in widths)], widths, table.text_columns)
    for title, rows in table.groups:
        lines += [title, *columns(list(rows), widths, table.text_columns)]
    different = sum(len(rows) for _, rows in configuration_table(runs).groups)
    return "\n".join([*lines, "", f"keys of the configuration that differ: {different}"])


def comparison_markdown(runs: Runs) -> str:
    """The tables and what is meant by them."""
    return (
        f"# {_HEADING}: {escape_markdown(', '.join(names(runs)))}\n\n{escape_markdown(_NOTE)}\n\n"
        f"{markdown_table(comparison_table(runs))}\n\n## {_CONFIGURATION}\n\n"
        f"{markdown_table(configuration_table(runs))}\n"
    )


def comparison_html(runs: Runs) -> str:
    """The picture and the tables as one page, like that of a report."""
    called = names(runs)
    dots = "<br>".join(
        f'<span class="dot" style="background: var(--series-{_number(index)})"></span>{page.text_html(name)}'
        for index, name in enumerate(called)
    )
    drawn = "".join(
        f"<figure>{plots.inline_svg(partial(_panel, draw, runs, name), f'{kind}-{place}', f'{kind}, {name}')}</figure>"
        for place, name in enumerate(settings_of(runs))
        for kind, draw in (("curves", _draw_curves), ("savings", _draw_savings))
    )
    lede = page.text_html(_NOTE)
    body = page.section_html(
        "Quality and savings", lede, f'<p class="runs">{dots}</p><div class="pair">{drawn}</div>', (page.MEASURED,)
    )
    configuration = page.table_html(configuration_table(runs), _CONFIGURATION)
    body += page.section_html(
        "Figures",
        "",
        f"{page.table_html(comparison_table(runs), _HEADING)}"
        f"<details><summary>{_CONFIGURATION}</summary>{configuration}</details>",
    )
    return page.document_html(
        {"name": ", ".join(called), "created": datetime.now(timezone.utc).isoformat(timespec="seconds")},
        f"{len(runs)} runs",
        _HEADING,
        body,
        "",
        source=f"The figures of this page are those of {', '.join(map(clean, runs))}.",
    )


def write_comparison(runs: Runs, folder: str | Path) -> dict[str, Path]:
    """Write comparison.md, comparison.html and comparison.png into a folder; returns the paths by name.

    Raises InputError if the folder cannot be written.
    """
    with plots.drawing():
        picture = plots.png(comparison_figure(runs))
    contents = {
        "comparison.md": comparison_markdown(runs).encode(),
        "comparison.html": comparison_html(runs).encode(),
        "comparison.png": picture,
    }
    paths = {name: Path(folder) / name for name in contents}
    write_whole({paths[name]: content for name, content in contents.items()})
    return paths
