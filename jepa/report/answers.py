"""The report of a language model's answers under several arms and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial

from matplotlib.figure import Figure as Drawing

from jepa.report import checkpoint, figures
from jepa.report import format as fmt
from jepa.report.blocks import ESTIMATED, MEASURED, Block, Claim, Colours, Columns, Figure, Heading, Report, Text
from jepa.report.notes import note, terms
from jepa.report.tables import EST, NONE, Cells, Column, Table, side_by_side, table
from jepa.results import Accuracy, AnswerResults, Arm, Contrast, Interval, arms

_SERIES = {"ntp": 1, "ntp_equal_flops": 0, "llm_jepa": 4, "cosine": 3, "shuffled": 2}


def report(results: AnswerResults) -> Report:
    """The blocks of a document."""
    seeds = sorted({seed for arm in results.arms.values() for seed in arm.seeds})
    told = results.method or next(iter(results.arms))
    claim, evidence, known = _claim(results, told), _evidence(results), remarks(results)
    others = [f"{verdict(results, name)}." for name in results.arms if name not in (told, results.baseline)]
    return Report(
        title=f"{results.name}: accuracy, cost and latents by training objective",
        kicker=f"{results.created} · seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}",
        summary=[claim, Text(""), _summary_table(results), *map(Text, known)],
        blocks=[
            Columns([[claim], [*map(Text, others + known)]]),
            Heading("Arms", evidence=evidence),
            Text(f"On {results.pairs:,} pairs of the {results.split} split. {note('arms').text}", "lede"),
            Figure("arms", "Accuracy, retrieval and cosine of each arm", partial(_arms_figure, results), wide=True),
            arms_table(results),
            *_drafts(results),
            *_training(results),
            *_settings(results),
            *checkpoint.parameters(results.parameters),
            *_provenance(results),
            Heading("What is measured and how"),
            terms("answers"),
        ],
        overview=partial(_arms_figure, results),
        footer=f"Measured on {'; '.join(map(fmt.device_text, results.device))}. Its document holds all figures.",
    )


# --- Sentences.


def verdict(results: AnswerResults, name: str) -> str:
    """One arm in a sentence: its difference to the baseline with interval and p, and what its latents are like."""
    arm, metric = results.arms[name], results.metrics[0]
    against = arm.against_baseline
    if against is None:
        missing = "no run of arm ntp beside it, so no difference" if results.baseline is None else "no seed in common"
        why = "" if name == results.baseline else f", {missing}"
        return f"{name}: {_title(metric)} {_accuracy(arm.accuracy[metric])}{why}; {latents(arm)}"
    found, test = against.metrics[metric], f"p {_p(against.metrics[metric].p)}, {len(against.seeds)} seeds"
    if found.p is None:
        test = f"1 seed, so no interval; over examples p {_p(found.examples.p)}"
    return f"{name} against {against.arm}: {_difference(found)} points {_title(metric)}, {test}; {latents(arm)}"


def latents(arm: Arm) -> str:
    """Whether the latents of an arm inform, with the figures that say so."""
    word, retrieval, cosine = arms.latents(arm), arm.geometry.get("retrieval@1"), arm.geometry.get("unpaired_cosine")
    shown = f"(retrieval@1 {fmt.fixed(retrieval, 2)}, unpaired cosine {fmt.fixed(cosine, 2)})"
    return "latents not measured" if word is None else f"latents {word} {shown}"


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


def _claim(results: AnswerResults, name: str) -> Claim:
    metric, against = results.metrics[0], results.arms[name].against_baseline
    alone = fmt.fixed(results.arms[name].accuracy[metric].value, 3)
    figure = alone if against is None else f"{_points(against.metrics[metric].value)} points"
    return Claim(name, figure, f"{verdict(results, name)}.")


def _title(metric: str) -> str:
    return metric.replace("_", " ")


def _points(value: float) -> str:
    return fmt.fixed(100 * value, 1, "+")


def _p(*values: float | None) -> str:
    return "; ".join(NONE if p is None else "< 0.001" if p < 0.001 else f"{p:.2g}" for p in values)


def _or_infinite(value: float | None, shown: Callable[[float], str] = "{:.3g}".format) -> str:
    return "∞" if value is None else shown(value)


def _accuracy(score: Accuracy) -> str:
    return fmt.with_interval(Interval(score.value, score.low, score.high), 3)


# --- Tables.

_GEOMETRY = {
    "retrieval@1": "retrieval@1",
    "retrieval@10": "retrieval@10",
    "paired_cosine": "cosine of pairs",
    "unpaired_cosine": "cosine of non-pairs",
    "rankme": "RankMe",
    "ridge_r2": "ridge-probe R²",
    "paraphrase.auc": "two phrasings: AUC",
    "paraphrase.recall@1%": "two phrasings: recall at 1 %",
}


def arms_table(results: AnswerResults) -> Table:
    """Everything measured, an arm a column."""

    def cells(name: str, arm: Arm) -> Cells:
        geometry = {
            title: fmt.fixed(arm.geometry.get(key), 1 if key == "rankme" else 3)
            for key, title in _GEOMETRY.items()
            if any(key in each.geometry for each in results.arms.values())
        }
        return {
            "": {"seeds": str(len(arm.seeds))},
            **{_title(metric): _metric_cells(results, metric, name) for metric in results.metrics},
            "generation, all seeds": _generation_cells(results, name),
            "training, mean of the seeds": _cost_cells(results, name, arm),
            "geometry of the latents, mean of the seeds": geometry
            | {"seeds that collapsed": f"{arm.collapsed} of {len(arm.seeds)}"},
        }

    return side_by_side("Arms", [(name, cells(name, arm)) for name, arm in results.arms.items()])


def _metric_cells(results: AnswerResults, metric: str, name: str) -> Mapping[str, str]:
    several = any(len(each.seeds) > 1 for each in results.arms.values())
    arm, runs = results.arms[name], [run for run in results.runs if run.arm == name]
    score, costs, against = arm.accuracy[metric], arm.answer_costs[metric], arm.against_baseline
    over = "seeds" if several else "examples"
    cells = {f"mean and 95 % interval over {over}": _accuracy(score) + " °" * (several and score.over == "examples")}
    if several:
        cells["each seed"] = ", ".join(fmt.fixed(run.accuracy[metric], 3) for run in runs)
    if costs is not None:
        cells |= {
            "generated tokens per right answer": _or_infinite(costs.tokens_per_right_answer, fmt.significant),
            "FLOPs per right answer": _or_infinite(costs.flops_per_right_answer),
            "OckScore": fmt.fixed(costs.ock_score, 2),
            "area of accuracy against tokens": fmt.fixed(costs.accuracy_area, 3),
        }
    if against is not None:
        found, corrected = against.metrics[metric], arms.corrected_p(results, metric, "against_baseline")
        cells |= {
            f"points over {against.arm}, 95 % interval over seeds": _difference(found),
            f"p, paired t test over seeds; corrected for {len(corrected)} arms": _p(found.p, corrected.get(name)),
            "answers won : lost, seeds pooled": f"{found.examples.won} : {found.examples.lost}",
            "p, McNemar over examples, seeds pooled": _p(found.examples.p),
        }
    if arm.at_equal_flops is not None:
        found, corrected = arm.at_equal_flops.metrics[metric], arms.corrected_p(results, metric, "at_equal_flops")
        cells["points over next tokens of equal FLOPs"] = _difference(found)
        cells[f"p at equal FLOPs; corrected for {len(corrected)} arms"] = _p(found.p, corrected.get(name))
    return cells


def _difference(found: Contrast) -> str:
    if found.low is None or found.high is None:
        return _points(found.value)
    return fmt.with_interval(Interval(found.value, found.low, found.high), 1, "+", 100)


def _per(amount: float, count: float, shown: Callable[[float], str] = fmt.significant) -> str:
    return shown(amount / count) if count else NONE


def _generation_cells(results: AnswerResults, name: str) -> Mapping[str, str]:
    spent, drafts = arms.spent(results, name), arms.drafting(results).get(name)
    cells = {
        "passes of the model a token": _per(spent.forward_passes, spent.tokens),
        "seconds an answer": _per(spent.seconds, spent.calls),
        "bytes of weights and cache read an answer": _per(spent.weight_bytes + spent.cache_bytes, spent.calls),
    }
    if drafts is not None:
        cells |= {
            "drafts": f"{drafts.drafts}, at most {drafts.most} tokens",
            "drafted tokens that stand": fmt.fraction(drafts.accepted_fraction),
            "passes saved": _per(drafts.uniform.forward_passes, spent.forward_passes, fmt.factor),
            "FLOPs saved": _per(drafts.uniform.flops, spent.flops, fmt.factor),
            "seconds saved": _per(drafts.uniform.seconds, spent.seconds, fmt.factor),
            "texts identical to token by token": f"{drafts.identical:,} of {drafts.uniform.calls:,}",
        }
    return cells


def _cost_cells(results: AnswerResults, name: str, arm: Arm) -> Mapping[str, str]:
    estimated = EST * (ESTIMATED in _evidence(results))
    cells = {key: f"{getattr(arm.costs, key):,.0f}" for key in ("steps", "samples", "tokens")}
    if any(each.costs.steps_stretched != 1 for each in results.arms.values()):
        cells["steps stretched, for equal FLOPs"] = fmt.factor(arm.costs.steps_stretched)
    cells[f"FLOPs, from some batches{EST}" if estimated else "FLOPs, counted at every step"] = f"{arm.costs.flops:.3g}"
    if results.baseline is not None:
        ratio = fmt.factor(arms.flops_ratio(results, name))
        cells[f"FLOPs relative to {results.baseline}, same seed{estimated}"] = ratio
    return cells | {"seconds": fmt.seconds(arm.costs.seconds)}


def _summary_table(results: AnswerResults) -> Table:
    """What each arm costs and buys, by the first metric."""
    metric, known, spent = results.metrics[0], results.arms, {arm: arms.spent(results, arm) for arm in results.arms}

    def points(name: str) -> str:
        against = known[name].against_baseline
        return NONE if against is None else _points(against.metrics[metric].value)

    def tokens(name: str) -> str:
        costs = known[name].answer_costs[metric]
        return fmt.UNCOUNTED if costs is None else _or_infinite(costs.tokens_per_right_answer, fmt.significant)

    columns: list[Column[str]] = [
        Column("arm", str, words=True),
        Column(_title(metric), lambda name: fmt.fixed(known[name].accuracy[metric].value, 3)),
        Column(f"points over {results.baseline or 'next tokens'}", points),
        Column("training FLOPs", lambda name: fmt.factor(arms.flops_ratio(results, name))),
        Column("R@1", lambda name: fmt.fixed(known[name].geometry.get("retrieval@1"), 3)),
        Column("unpaired cosine", lambda name: fmt.fixed(known[name].geometry.get("unpaired_cosine"), 3)),
        Column("passes a token", lambda name: _per(spent[name].forward_passes, spent[name].tokens)),
        Column("seconds an answer", lambda name: _per(spent[name].seconds, spent[name].calls)),
        Column("tokens a right answer", tokens),
    ]
    return table("", columns, [("", known)])


# --- Sections.


def _evidence(results: AnswerResults) -> tuple[str, ...]:
    """Whether the training FLOPs of any run are estimated."""
    return (MEASURED,) if all(run.costs.flops_measured for run in results.runs) else (MEASURED, ESTIMATED)


def _drafts(results: AnswerResults) -> list[Block]:
    """Tokens that a pass gives by the position it begins at, and drafted tokens that stand by their place."""
    series, drafted = series_of(results), arms.drafting(results)
    if not drafted:
        return []
    shown = {
        "tokens a pass gives, by the position it begins at": ("given", "passes"),
        "drafted tokens that stand, by place": ("accepted", "drafted"),
    }
    lines = {
        title: [(series[arm], arms.by_place(*(getattr(each, key) for key in keys))) for arm, each in drafted.items()]
        for title, keys in shown.items()
    }
    draw = partial(figures.panels, lines, "tokens before", names={arm: series[arm] for arm in drafted})
    return [
        Heading("Drafts", evidence=(MEASURED,)),
        note("drafts", "lede"),
        Figure("drafts", "Drafts", draw, wide=True),
    ]


def _training(results: AnswerResults) -> list[Block]:
    """What validation measured against the operations spent: a line a seed, the baseline and the method on top."""
    series = series_of(results)
    lines = {
        title: [
            (series[run.arm], found) for run in reversed(results.runs) if (found := arms.validation_curve(run, key))
        ]
        for title, key in (("next-token loss", "val/next_token"), ("retrieval@1", "val/retrieval@1"))
    }
    draw = partial(figures.panels, lines, "training FLOPs", names={arm: series[arm] for arm in results.arms})
    drawn = Figure("curves", f"Validation of {len(results.runs)} runs", draw, wide=True)
    return [Heading("Training", evidence=(MEASURED, ESTIMATED)), note("validation", "lede"), drawn]


def _settings(results: AnswerResults) -> list[Block]:
    if not results.settings:
        return []
    rows = results.settings.items()
    told = {arm: {key: json.dumps(row[arm]).strip('"') for key, row in rows if arm in row} for arm in results.arms}
    columns = [(arm, {"": cells}) for arm, cells in told.items()]
    return [Heading("What tells the arms apart"), note("settings", "lede"), side_by_side("Settings", columns)]


def _provenance(results: AnswerResults) -> list[Block]:
    duplicates = ", ".join(f"{key.replace('_', ' ')} {value:,}" for key, value in results.duplicates.items())
    pairs = f"{results.training_pairs:,} to train on, {results.pairs:,} of the {results.split} split"
    rows = [("run", results.name), ("created", results.created), ("pairs", pairs), ("duplicates", duplicates or NONE)]
    rows += [("code", fmt.code_text(code)) for code in results.code]
    rows += [("device", fmt.device_text(device)) for device in results.device]
    rows += [("libraries", fmt.libraries_text(libraries)) for libraries in results.libraries]
    return checkpoint.provenance(rows)


# --- Figures.


def series_of(results: AnswerResults) -> dict[str, int]:
    """Arm -> number of its colour, the same in all figures of a document."""
    return _SERIES | {arm: 5 + i % 3 for i, arm in enumerate(arm for arm in results.arms if arm not in _SERIES)}


def _arms_figure(results: AnswerResults, colours: Colours) -> Drawing:
    """Accuracy, retrieval@1 and unpaired cosine of each arm: a dot a seed, and the mean with its interval."""
    metrics, series = results.metrics[:2], series_of(results)
    figure = figures.sized(1060, 96.0 + 36 * len(results.arms), "constrained")
    panels = figure.subplots(1, len(metrics) + 2, sharey=True, squeeze=False)[0]
    for axes, key in zip(panels, [*metrics, "retrieval@1", "unpaired_cosine"], strict=True):
        rows = []
        for name, arm in results.arms.items():
            runs = [(run.seed, {**run.geometry, **run.accuracy}.get(key)) for run in results.runs if run.arm == name]
            dots = [(f"{name}, seed {seed}", value) for seed, value in runs if value is not None]
            mean = arm.accuracy.get(key)
            found = (arm.geometry.get(key), None, None) if mean is None else (mean.value, mean.low, mean.high)
            rows.append(figures.Dots(series[name], dots, *found))
        figures.draw_dots(axes, _GEOMETRY.get(key) or _title(key), rows, colours)
        if key in _GEOMETRY:
            axes.set_xlim(min(-0.1, axes.get_xlim()[0]), 1.1)
    names = [figures.short(name, 130) for name in results.arms]
    panels[0].set_yticks(range(len(names)), names, color=colours["ink"], parse_math=False)
    return figure
