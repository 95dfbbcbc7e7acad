"""The report of a language model's answers under several arms and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure as Drawing
from matplotlib.figure import SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from jepa.report import checkpoint, figures
from jepa.report import format as fmt
from jepa.report.blocks import (
    EST,
    ESTIMATED,
    MEASURED,
    NONE,
    Block,
    Claim,
    Colours,
    Column,
    Columns,
    Figure,
    Heading,
    Report,
    Table,
    Text,
    table,
)
from jepa.report.notes import terms
from jepa.results import Accuracy, AnswerCosts, AnswerResults, Arm, Contrast, Interval, Run

# From this retrieval@1 on, and below this cosine of non-pairs, latents inform; below the last one they do not.
INFORMATIVE_RETRIEVAL, INFORMATIVE_COSINE, UNINFORMATIVE_RETRIEVAL = 0.9, 0.1, 0.1
_SERIES = {"ntp": 1, "ntp_equal_flops": 0, "llm_jepa": 4, "cosine": 3, "shuffled": 2}


def report(results: AnswerResults) -> Report:
    """The blocks of a document."""
    seeds = sorted({seed for arm in results.arms.values() for seed in arm.seeds})
    devices = ", ".join(f"{device.name} ({device.type})" for device in results.device)
    return Report(
        title=f"{results.name}: accuracy, cost and latents by training objective",
        kicker=f"{results.created} · seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        summary=[*_claims(results), Text(""), _summary_table(results), *map(Text, remarks(results))],
        blocks=[
            Columns([_claims(results), [Text(f"{words}.") for words in (*_others(results), *remarks(results))]]),
            *_arms(results),
            *_budget(results),
            *_training(results),
            *_settings(results),
            Heading("Runs", evidence=_evidence(results)),
            runs_table(results),
            *checkpoint.parameters(results.parameters),
            *_provenance(results),
            Heading("What is measured and how"),
            terms("answers"),
        ],
        overview=partial(_overview, results),
        footer=f"Measured on {devices}. The figures of this page are those of the results document beside it.",
    )


# --- Sentences.


def verdict(results: AnswerResults, name: str) -> str:
    """One arm in a sentence: its difference to the baseline with interval and p, and what its latents are like."""
    arm, metric = results.arms[name], results.metrics[0]
    against = arm.against_baseline
    if against is None:
        why = ", no difference: no arm ntp" if results.baseline is None else ", no seed in common"
        why = "" if name == results.baseline else why
        return f"{name}: {_title(metric)} {_accuracy(arm.accuracy[metric])}{why}; {latents(arm)}"
    found = against.metrics[metric]
    test = f"1 seed, so no interval; over examples p {_p(found.examples.p)}"
    if found.low is not None and found.high is not None:
        test = f"{_points_interval(found.low, found.high)}; p {_p(found.p)}, {len(against.seeds)} seeds"
    names = f"{name} against {results.baseline}"
    return f"{names}: {_points(found.value)} points {_title(metric)} ({test}); {latents(arm)}"


def latents(arm: Arm) -> str:
    """Whether the latents of an arm inform, with the figures that say so."""
    retrieval, cosine = arm.geometry.get("retrieval@1"), arm.geometry.get("unpaired_cosine")
    if retrieval is None or cosine is None:
        return "latents not measured"
    if arm.collapsed:
        word = f"collapsed in {arm.collapsed} of {len(arm.seeds)} seed{'s' * (len(arm.seeds) > 1)}"
    elif retrieval >= INFORMATIVE_RETRIEVAL and cosine < INFORMATIVE_COSINE:
        word = "informative"
    else:
        word = "uninformative" if retrieval < UNINFORMATIVE_RETRIEVAL else "partly informative"
    return f"latents {word} (retrieval@1 {fmt.fixed(retrieval, 2)}, unpaired cosine {fmt.fixed(cosine, 2)})"


def remarks(results: AnswerResults) -> list[str]:
    """What a reader must know before the table: a missing baseline, other seeds, code or devices."""
    found = []
    if results.baseline is None:
        found.append("There is no arm ntp, so differences to next-token training are left out.")
    elif len({frozenset(arm.seeds) for arm in results.arms.values()}) > 1:
        found.append(f"The arms do not have the same seeds: differences to {results.baseline} are of shared ones.")
    if len({(code.version, code.commit) for code in results.code}) > 1:
        found.append("The runs were made by different versions of the code.")
    if len(results.device) > 1:
        found.append("The runs were made on different devices: their seconds do not compare.")
    return found


def _told(results: AnswerResults) -> str:
    """The arm that the claim is about: the method, or the only one there is."""
    return results.method or next(iter(results.arms))


def _claims(results: AnswerResults) -> list[Block]:
    name, metric = _told(results), results.metrics[0]
    against = results.arms[name].against_baseline
    figure = fmt.fixed(results.arms[name].accuracy[metric].value, 3)
    if against is not None:
        figure = f"{_points(against.metrics[metric].value)} points"
    return [Claim(name, figure, f"{verdict(results, name)}.")]


def _others(results: AnswerResults) -> list[str]:
    """The verdicts on the other arms."""
    return [verdict(results, name) for name in results.arms if name not in (_told(results), results.baseline)]


def _title(metric: str) -> str:
    return metric.replace("_", " ")


def _points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return fmt.fixed(100 * value, 1, "+")


def _points_interval(low: float, high: float) -> str:
    return fmt.interval(100 * low, 100 * high, 1, "+")


def _p(value: float | None) -> str:
    return NONE if value is None else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _accuracy(score: Accuracy) -> str:
    return fmt.with_interval(Interval(score.value, score.low, score.high), 3)


# --- Tables.

_GEOMETRY = {
    "paired_cosine": "cosine of pairs",
    "unpaired_cosine": "cosine of non-pairs",
    "rankme": "RankMe",
    "ridge_r2": "ridge-probe R²",
    "paraphrase.auc": "two phrasings: AUC",
    "paraphrase.recall@1%": "two phrasings: recall at 1 %",
}
_KEYS = ("retrieval@1", "retrieval@10", *_GEOMETRY)


class _Row(NamedTuple):
    """A row of the arms' table: its title, and the function that writes an arm's cell."""

    title: str
    cell: Callable[[str, Arm], str]


def arms_table(results: AnswerResults) -> Table:
    """Everything measured, an arm a column."""
    groups = [("", [_Row("seeds", lambda _, arm: str(len(arm.seeds)))])]
    groups += [(_title(metric), _metric_rows(results, metric)) for metric in results.metrics]
    groups += [("training, mean of the seeds", _cost_rows(results))]
    groups += [("geometry of the latents, mean of the seeds", _geometry_rows(results))]
    cells = [
        (title, [[row.title, *(row.cell(name, arm) for name, arm in results.arms.items())] for row in rows])
        for title, rows in groups
    ]
    return Table("Arms", ["", *results.arms], cells)


def _metric_rows(results: AnswerResults, metric: str) -> list[_Row]:
    several = any(len(arm.seeds) > 1 for arm in results.arms.values())

    def accuracy(_: str, arm: Arm) -> str:
        score = arm.accuracy[metric]
        return _accuracy(score) + " °" * (several and score.over == "examples")

    def cost(title: str, cell: Callable[[AnswerCosts], str]) -> _Row:
        return _Row(title, lambda _, arm: NONE if (found := arm.answer_costs[metric]) is None else cell(found))

    def against(title: str, cell: Callable[[Contrast], str]) -> _Row:
        return _Row(title, lambda _, arm: NONE if (a := arm.against_baseline) is None else cell(a.metrics[metric]))

    def difference(found: Contrast) -> str:
        if found.low is None or found.high is None:
            return _points(found.value)
        return f"{_points(found.value)} ({_points_interval(found.low, found.high)})"

    rows = [
        _Row(f"mean and 95 % interval over {'seeds' if several else 'examples'}", accuracy),
        cost("generated tokens per right answer", _right_tokens),
        cost("FLOPs per right answer", _right_flops),
        cost("OckScore", lambda found: fmt.fixed(found.ock_score, 2)),
        cost("area of accuracy against tokens", lambda found: fmt.fixed(found.accuracy_area, 3)),
    ]
    if results.baseline is not None:
        rows += [
            against(f"points over {results.baseline}, 95 % interval over seeds", difference),
            against("p, paired t test over seeds", lambda found: _p(found.p)),
            against("answers won : lost, seeds pooled", lambda found: f"{found.examples.won} : {found.examples.lost}"),
            against("p, McNemar over examples, seeds pooled", lambda found: _p(found.examples.p)),
        ]
    return rows


def _right_tokens(costs: AnswerCosts) -> str:
    """Tokens of a right answer; infinite where no answer is right."""
    return "∞" if costs.tokens_per_right_answer is None else fmt.significant(costs.tokens_per_right_answer)


def _right_flops(costs: AnswerCosts) -> str:
    return "∞" if costs.flops_per_right_answer is None else f"{costs.flops_per_right_answer:.3g}"


def _flops_ratio(results: AnswerResults, name: str, arm: Arm) -> float | None:
    if name == results.baseline:
        return 1.0
    return None if arm.against_baseline is None else arm.against_baseline.flops_ratio


def _cost_rows(results: AnswerResults) -> list[_Row]:
    estimated = EST * (ESTIMATED in _evidence(results))
    flops = f"FLOPs, from some batches{EST}" if estimated else "FLOPs, counted at every step"
    rows = [
        _Row("steps", lambda _, arm: f"{arm.costs.steps:,.0f}"),
        _Row("samples", lambda _, arm: f"{arm.costs.samples:,.0f}"),
        _Row("tokens", lambda _, arm: f"{arm.costs.tokens:,.0f}"),
    ]
    if any(arm.costs.steps_stretched != 1 for arm in results.arms.values()):
        rows.append(_Row("steps stretched, for equal FLOPs", lambda _, arm: fmt.factor(arm.costs.steps_stretched)))
    rows.append(_Row(flops, lambda _, arm: f"{arm.costs.flops:.3g}"))
    if results.baseline is not None:
        title = f"FLOPs relative to {results.baseline}, same seed{estimated}"
        rows.append(_Row(title, lambda name, arm: fmt.factor(_flops_ratio(results, name, arm))))
    return [*rows, _Row("seconds", lambda _, arm: fmt.seconds(arm.costs.seconds))]


def _geometry_rows(results: AnswerResults) -> list[_Row]:
    def measured(key: str) -> _Row:
        digits = 1 if key == "rankme" else 3
        return _Row(_GEOMETRY.get(key, key), lambda _, arm: fmt.fixed(arm.geometry.get(key), digits))

    known = [key for key in _KEYS if any(key in arm.geometry for arm in results.arms.values())]
    collapsed = _Row("seeds that collapsed", lambda _, arm: f"{arm.collapsed} of {len(arm.seeds)}")
    return [*map(measured, known), collapsed]


def _summary_table(results: AnswerResults) -> Table:
    """An arm a line, by the first metric."""
    metric = results.metrics[0]

    def points(arm: Arm) -> str:
        return NONE if (a := arm.against_baseline) is None else _points(a.metrics[metric].value)

    def cost(arm: Arm) -> str:
        costs = arm.answer_costs[metric]
        if costs is None:
            return fmt.UNCOUNTED
        flops = costs.flops_per_right_answer
        return "none is right" if flops is None else fmt.in_unit(flops, "FLOPs")

    Named = tuple[str, Arm]
    columns: list[Column[Named]] = [
        Column("arm", lambda row: row[0], words=True),
        Column("seeds", lambda row: str(len(row[1].seeds))),
        Column(_title(metric), lambda row: _accuracy(row[1].accuracy[metric])),
        Column(f"points over {results.baseline or 'next tokens'}", lambda row: points(row[1])),
        Column("training FLOPs", lambda row: fmt.factor(_flops_ratio(results, *row))),
        Column("cost of a right answer", lambda row: cost(row[1])),
        Column("latents: retrieval@1", lambda row: fmt.fixed(row[1].geometry.get("retrieval@1"), 3)),
    ]
    return table("", columns, [("", list(results.arms.items()))])


def runs_table(results: AnswerResults) -> Table:
    """Each arm and seed."""

    def of_metric(metric: str) -> list[Column[Run]]:
        def cost(title: str, cell: Callable[[AnswerCosts], str]) -> Column[Run]:
            return Column(title, lambda run: NONE if (found := run.answer_costs[metric]) is None else cell(found))

        return [
            Column(_title(metric), lambda run: fmt.fixed(run.accuracy[metric], 3)),
            cost("tokens per right", _right_tokens),
            cost("FLOPs per right", _right_flops),
            cost("OckScore", lambda found: fmt.fixed(found.ock_score, 2)),
            cost("area", lambda found: fmt.fixed(found.accuracy_area, 3)),
        ]

    columns: list[Column[Run]] = [
        Column("arm", lambda run: run.arm, words=True),
        Column("evaluation", lambda run: run.evaluation, words=True),
        Column("seed", lambda run: str(run.seed)),
        *(column for metric in results.metrics for column in of_metric(metric)),
        Column("steps", lambda run: f"{run.costs.steps:,}"),
        Column("training FLOPs", lambda run: f"{run.costs.flops:.3g}{EST * (not run.costs.flops_measured)}"),
        Column("seconds", lambda run: fmt.seconds(run.costs.seconds)),
    ]
    return table("Runs", columns, [("", results.runs)])


# --- Sections.


def _evidence(results: AnswerResults) -> tuple[str, ...]:
    """Whether the training FLOPs of any run are estimated."""
    return (MEASURED,) if all(run.costs.flops_measured for run in results.runs) else (MEASURED, ESTIMATED)


def _arms(results: AnswerResults) -> list[Block]:
    note = (
        f"On {results.pairs:,} pairs of the {results.split} split. A dot is a seed, a bar the mean, the line across it "
        "its 95 % interval over seeds, or over examples where there is one seed."
    )
    title = f"Accuracy, retrieval and cosine of {len(results.arms)} arms"
    drawn = Figure("arms", title, partial(_arms_figure, results), wide=True)
    return [Heading("Arms", evidence=_evidence(results)), Text(note, "lede"), drawn, arms_table(results)]


def _budget(results: AnswerResults) -> list[Block]:
    metric, series = results.metrics[0], series_of(results)
    curves = {
        name: (costs.accuracy_within, series[name])
        for name, arm in results.arms.items()
        if (costs := arm.answer_costs[metric]) is not None and costs.accuracy_within is not None
    }
    note = (
        f"The fraction of the answers that are right, by {_title(metric)}, and at most so many tokens long: the mean "
        "of the seeds."
    )
    title = f"Accuracy of {len(results.arms)} arms against the tokens of an answer"
    drawn: Block = Text("The tokens of the answers were not kept.")
    if curves:
        drawn = Figure("budget", title, partial(figures.within_tokens, curves, _title(metric)))
    return [Heading("Accuracy against tokens", evidence=(MEASURED,)), Text(note, "lede"), drawn]


def _training(results: AnswerResults) -> list[Block]:
    drawn = Figure("curves", f"Validation of {len(results.runs)} runs", partial(_curves_figure, results), wide=True)
    heading = Heading("Training", evidence=(MEASURED, ESTIMATED))
    return [heading, Text("What validation measured along the way, a line a run.", "lede"), drawn]


def _settings(results: AnswerResults) -> list[Block]:
    if not results.settings:
        return []

    def cell(key: str, arm: str) -> str:
        if arm not in results.settings[key]:
            return NONE
        value = results.settings[key][arm]
        if not isinstance(value, str):
            return json.dumps(value)
        return value.rpartition(".")[2] if key.endswith("_target_") else value

    rows = [[key, *(cell(key, arm) for arm in results.arms)] for key in results.settings]
    note = "Of the objective, the stage and the precision; data, tokenizer and model are the same for all arms."
    made = Table("Settings", ["", *results.arms], [("", rows)])
    return [Heading("What tells the arms apart"), Text(note, "lede"), made]


def _provenance(results: AnswerResults) -> list[Block]:
    duplicates = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in results.duplicates.items())
    pairs = f"{results.training_pairs:,} to train on, {results.pairs:,} of the {results.split} split"
    rows = [("run", results.name), ("created", results.created), ("pairs", pairs), ("duplicates", duplicates or NONE)]
    rows += [("code", fmt.code_text(code)) for code in results.code]
    rows += [("device", fmt.device_text(device)) for device in results.device]
    rows += [("libraries", fmt.libraries_text(libraries)) for libraries in results.libraries]
    return checkpoint.provenance(rows, "Configuration of the first run", results.config)


# --- Figures.


def series_of(results: AnswerResults) -> dict[str, int]:
    """Arm -> number of its colour, the same in all figures of a document."""
    others = [arm for arm in results.arms if arm not in _SERIES]
    return _SERIES | {arm: 5 + index % 3 for index, arm in enumerate(others)}


def _arms_height(results: AnswerResults) -> float:
    return 96.0 + 36 * len(results.arms)


def _arms_figure(results: AnswerResults, colours: Colours) -> Drawing:
    """Accuracy, retrieval@1 and unpaired cosine of each arm: a dot a seed, and the mean with its interval."""
    figure = figures.sized(1060, _arms_height(results), "constrained")
    _draw_arms(figure, results, colours)
    return figure


def _draw_arms(figure: Drawing | SubFigure, results: AnswerResults, colours: Colours) -> None:
    metrics, series = results.metrics[:2], series_of(results)
    panels = figure.subplots(1, len(metrics) + 2, sharey=True, squeeze=False)[0]

    for axes, metric in zip(panels, metrics, strict=False):
        rows = []
        for name, arm in results.arms.items():
            dots = [(f"{name}, seed {run.seed}", run.accuracy[metric]) for run in results.runs if run.arm == name]
            mean = arm.accuracy[metric]
            rows.append(figures.Dots(series[name], dots, mean.value, mean.low, mean.high))
        figures.draw_dots(axes, _title(metric), rows, colours)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))
    for axes, key in zip(panels[-2:], ("retrieval@1", "unpaired_cosine"), strict=True):
        rows = []
        for name, arm in results.arms.items():
            runs = [run for run in results.runs if run.arm == name and key in run.geometry]
            dots = [(f"{name}, seed {run.seed}", run.geometry[key]) for run in runs]
            rows.append(figures.Dots(series[name], dots, arm.geometry.get(key)))
        figures.draw_dots(axes, _GEOMETRY.get(key, key), rows, colours)
        axes.set_xlim(min(-0.1, axes.get_xlim()[0]), 1.1)
    names = [figures.short(name, 130) for name in results.arms]
    panels[0].set_yticks(range(len(names)), names, color=colours["ink"], parse_math=False)


def _curves_figure(results: AnswerResults, colours: Colours) -> Drawing:
    """What validation measured against the operations spent: a line a seed."""
    figure = figures.sized(1060, 300, "constrained")
    _draw_curves(figure, results, colours)
    return figure


_CURVES = {"val/next_token": "next-token loss, validation", "val/retrieval@1": "retrieval@1, validation"}


def _draw_curves(figure: Drawing | SubFigure, results: AnswerResults, colours: Colours) -> None:
    series = series_of(results)
    panels = figure.subplots(1, len(_CURVES), squeeze=False)[0]
    for axes, (key, title) in zip(panels, _CURVES.items(), strict=True):
        lowest = 1.0
        for run in reversed(results.runs):  # the baseline and the method on top
            each = run.costs.flops / run.costs.steps if run.costs.steps else 0.0
            points = [(((row["step"] or 0) + 1) * each, y) for row in run.curve if (y := row.get(key)) is not None]
            if points:
                lowest = min([lowest, *(y for _, y in points)])
                colour = colours[f"series-{series[run.arm]}"]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, alpha=0.85)
                axes.plot(*points[-1], "o", markersize=3.5, color=colour)
        figures.frame(axes, colours, "y")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(EngFormatter())
        if key == "val/next_token" and axes.lines and lowest > 0:
            axes.set_yscale("log")
            figures.log_axis(axes.yaxis)
        else:
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("training FLOPs", color=colours["muted"])
        figures.title(axes, title, colours, fontsize=figures.FONT + 1, color=colours["ink"])
    keys = [
        Line2D([], [], color=colours[f"series-{series[name]}"], linewidth=2, label=figures.short(name, 130))
        for name in results.arms
    ]
    style = {"ncols": 6, "frameon": False, "labelcolor": colours["ink"], "handlelength": 1.4}
    figure.legend(handles=keys, loc="outside upper left", **style)


def _overview(results: AnswerResults, colours: Colours) -> Drawing:
    """Arms above training curves."""
    heights = (_arms_height(results) + 30, 330.0)
    figure = figures.sized(1200, sum(heights))
    figure.set_facecolor(colours["surface"])
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.06).flat
    for part, draw in ((upper, _draw_arms), (lower, _draw_curves)):
        part.set_facecolor(colours["surface"])
        draw(part, results, colours)
    return figure
