"""The answers of a language model under several arms and seeds: results document, table, picture and page.

A document of the schema ``jepa.answers-results/2`` holds everything that is shown here; its figures are computed
where it is made. Accuracies and cosines are fractions, FLOPs whole operations, times seconds.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from jepa.report import plots
from jepa.report.page import (
    ESTIMATED,
    MEASURED,
    document_html,
    notes_html,
    scroll_html,
    section_html,
    table_html,
    text_html,
)
from jepa.report.plots import FONT, INCH, LIGHT, Colours
from jepa.report.schema import (
    CODE,
    CURVE,
    DEVICE,
    PARAMETERS,
    PER_TOKEN,
    Results,
    check_document,
    choice,
    count,
    flag,
    integer,
    mapping,
    nullable,
    number,
    ordered,
    plain,
    record,
    refuse,
    sequence,
    text,
    write_whole,
)
from jepa.report.tables import (
    EST,
    NONE,
    PARAMETERS_NOTE,
    Row,
    Table,
    clean,
    columns,
    escape_markdown,
    factor,
    fixed,
    interval,
    markdown_table,
    parameters_table,
    seconds,
    significant,
)

SCHEMA = "jepa.answers-results/2"

INFORMATIVE_RETRIEVAL, INFORMATIVE_COSINE = (
    0.9,
    0.1,
)  # retrieval@1 from which, unpaired cosine below which latents inform
UNINFORMATIVE_RETRIEVAL = 0.1  # retrieval@1 below which they do not

# --- The document.

_FRACTION, _QUANTITY, _NUMBER = number(0, 1), number(0), number()
_COSTS = record(
    dict.fromkeys(("steps", "samples", "tokens", "seconds"), _QUANTITY)
    | dict.fromkeys(("flops", "steps_stretched"), number(above=0)),
    optional={"flops_measured": flag},  # missing: false, estimated from some batches
)
_GEOMETRY = mapping(_NUMBER, empty=True)
_ANSWER_COSTS = mapping(
    nullable(
        record(
            dict.fromkeys(("tokens_per_answer", "flops_per_answer"), _QUANTITY)
            | dict.fromkeys(("tokens_per_right_answer", "flops_per_right_answer"), nullable(_QUANTITY))
            | {key: nullable(check) for key, check in PER_TOKEN.items()}
        )
    )
)  # null: not counted; of a right answer, null: none is right


def _bounded(value: Any, path: str) -> None:
    """An interval and p where there are several seeds, none of them where there is one."""
    given = [value[key] is not None for key in ("low", "high", "p")]
    if any(given) != all(given):
        refuse(path, "have all of low, high and p, or none", {key: value[key] for key in ("low", "high", "p")})


_AGAINST = record(
    {
        "seeds": sequence(integer, shortest=1),
        "metrics": mapping(
            record(
                {"value": _NUMBER, "low": nullable(_NUMBER), "high": nullable(_NUMBER), "p": nullable(_FRACTION)}
                | {"examples": record({"count": count, "won": count, "lost": count, "p": _FRACTION})},
                _bounded,
            )
        ),
        "flops_ratio": number(above=0),
    }
)
_ARM = record(
    {
        "seeds": sequence(integer, shortest=1),
        "accuracy": mapping(
            record(
                {"value": _FRACTION, "low": _FRACTION, "high": _FRACTION, "over": choice("seeds", "examples")},
                ordered("low", "value", "high"),
            )
        ),
        "answer_costs": _ANSWER_COSTS,
        "against_baseline": nullable(_AGAINST),
        "costs": _COSTS,
        "geometry": _GEOMETRY,
        "collapsed": count,
    }
)
_RUN = record(
    {"arm": text, "seed": integer, "evaluation": text, "accuracy": mapping(_FRACTION), "costs": _COSTS}
    | {"answer_costs": _ANSWER_COSTS, "geometry": _GEOMETRY, "warning": nullable(text), "curve": CURVE}
)


def _agrees(results: Any, path: str) -> None:
    arms, metrics = results["arms"], results["metrics"]
    for key in ("baseline", "method"):
        if results[key] is not None and results[key] not in arms:
            refuse(f"{path}.{key}", f"be an arm ({', '.join(arms)})", results[key])
    scored = [(f"arms.{name}.accuracy", arm["accuracy"]) for name, arm in arms.items()]
    scored += [
        (f"arms.{name}.against_baseline.metrics", arm["against_baseline"]["metrics"])
        for name, arm in arms.items()
        if arm["against_baseline"] is not None
    ]
    scored += [(f"runs[{index}].accuracy", run["accuracy"]) for index, run in enumerate(results["runs"])]
    scored += [(f"arms.{name}.answer_costs", arm["answer_costs"]) for name, arm in arms.items()]
    scored += [(f"runs[{index}].answer_costs", run["answer_costs"]) for index, run in enumerate(results["runs"])]
    for place, scores in scored:
        if set(scores) != set(metrics):
            refuse(f"{path}.{place}", f"have the metrics {', '.join(metrics)}", sorted(scores))
    named = [(name, seed) for name, arm in arms.items() for seed in arm["seeds"]]
    found = [(run["arm"], run["seed"]) for run in results["runs"]]
    if sorted(named) != sorted(found):
        refuse(f"{path}.runs", "be one for each arm and seed", found)


DOCUMENT = record(
    {
        "created": text,
        "name": text,
        "split": text,
        "pairs": count,
        "training_pairs": count,
        "duplicates": mapping(count, empty=True),
        "metrics": sequence(text, shortest=1),
        "baseline": nullable(text),
        "method": nullable(text),
        "arms": mapping(_ARM),
        "settings": mapping(mapping(plain, empty=True), empty=True),
        "runs": sequence(_RUN, shortest=1),
        "parameters": PARAMETERS,
        "code": sequence(CODE, shortest=1),
        "libraries": sequence(mapping(text), shortest=1),
        "device": sequence(DEVICE, shortest=1),
        "config": mapping(plain, empty=True),
    },
    _agrees,
)


def validate_results(results: Results) -> None:
    """Check a document against ``jepa.answers-results/2``.

    Raises InputError on the first fault, naming its path in the document, the rule and the value got.
    """
    check_document(results, SCHEMA, DOCUMENT)


def write_report(results: Results, folder: str | Path) -> dict[str, Path]:
    """Write results.json, report.md, report.html and report.png into a folder, which is made if missing.

    Returns the paths by file name. Everything is rendered before anything is written, and each file is replaced as a
    whole: a failure leaves the old files as they were.

    Raises InputError for a bad document or a folder that cannot be written.
    """
    validate_results(results)
    contents = {
        "results.json": json.dumps(results, allow_nan=False, indent=1).encode(),
        "report.md": markdown(results).encode(),
        "report.html": html(results).encode(),
        "report.png": overview_png(results),
    }
    paths = {name: Path(folder) / name for name in contents}
    write_whole({paths[name]: content for name, content in contents.items()})
    return paths


# --- Sentences.


def verdict(results: Results, name: str) -> str:
    """One arm in a sentence: its difference to the baseline with interval and p, and what its latents are like."""
    return f"{_comparison(results, name)}; {latents(results['arms'][name])}"


def _comparison(results: Results, name: str) -> str:
    arm, metric = results["arms"][name], results["metrics"][0]
    against = arm["against_baseline"]
    if against is None:
        baseline = results["baseline"]
        why = "" if name == baseline else ", no difference: no arm ntp" if baseline is None else ", no seed in common"
        return f"{clean(name)}: {_title(metric)} {_accuracy(arm['accuracy'][metric])}{why}"
    found = against["metrics"][metric]
    if found["low"] is None:
        test = f"1 seed, so no interval; {_examples(found['examples'])}"
    else:
        test = f"{_points_interval(found)}; p {_p(found['p'])}, {len(against['seeds'])} seeds"
    names = f"{clean(name)} against {clean(results['baseline'])}"
    return f"{names}: {_points(found['value'])} points {_title(metric)} ({test})"


def latents(arm: dict[str, Any]) -> str:
    """Whether the latents of an arm inform, with the figures that say so."""
    geometry, seeds = arm["geometry"], len(arm["seeds"])
    retrieval, cosine = geometry.get("retrieval@1"), geometry.get("unpaired_cosine")
    if retrieval is None or cosine is None:
        return "latents not measured"
    if arm["collapsed"]:
        word = f"collapsed in {arm['collapsed']} of {seeds} seed{'s' * (seeds > 1)}"
    elif retrieval >= INFORMATIVE_RETRIEVAL and cosine < INFORMATIVE_COSINE:
        word = "informative"
    else:
        word = "uninformative" if retrieval < UNINFORMATIVE_RETRIEVAL else "partly informative"
    return f"latents {word} (retrieval@1 {fixed(retrieval, 2)}, unpaired cosine {fixed(cosine, 2)})"


def _title(metric: str) -> str:
    return clean(metric).replace("_", " ")


def _points(value: float) -> str:
    """A difference of fractions in percentage points, with its sign."""
    return fixed(100 * value, 1, "+")


def _points_interval(found: dict[str, Any]) -> str:
    return interval(100 * found["low"], 100 * found["high"], 1, "+")


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.2g}"


def _examples(test: dict[str, Any]) -> str:
    return f"over examples p {_p(test['p'])}"


def _accuracy(score: dict[str, Any]) -> str:
    return f"{fixed(score['value'], 3)} ({interval(score['low'], score['high'], 3)})"


def _per_right_answer(costs: dict[str, float | None] | None) -> tuple[str, str]:
    """Cells of tokens and FLOPs; a dash where they were not counted, infinite where no answer is right."""
    if costs is None:
        return NONE, NONE
    tokens, flops = costs["tokens_per_right_answer"], costs["flops_per_right_answer"]
    return "∞" if tokens is None else significant(tokens), "∞" if flops is None else f"{flops:.3g}"


def _per_token(costs: dict[str, Any] | None) -> tuple[str, str]:
    """Cells of OckScore and of the area under accuracy against tokens; dashes where the answers' tokens are unknown."""
    if costs is None or costs["ock_score"] is None:
        return NONE, NONE
    return fixed(costs["ock_score"], 2), fixed(costs["accuracy_area"], 3)


# --- Tables.

_GEOMETRY_NAMES = {
    "retrieval@1": "retrieval@1",
    "retrieval@10": "retrieval@10",
    "paired_cosine": "cosine of pairs",
    "unpaired_cosine": "cosine of non-pairs",
    "rankme": "RankMe",
    "ridge_r2": "ridge-probe R²",
    "paraphrase.auc": "two phrasings: AUC",
    "paraphrase.recall@1%": "two phrasings: recall at 1 %",
}


def arms_table(results: Results) -> Table:
    """Everything measured, an arm a column."""
    cells = [_column(results, name) for name in results["arms"]]
    groups: dict[str, list[Row]] = {}
    for group, title in cells[0]:
        groups.setdefault(group, []).append((title, *(column[group, title] for column in cells)))
    header = ("", *(clean(name) for name in results["arms"]))
    return Table(header, tuple((group, tuple(rows)) for group, rows in groups.items()))


def _column(results: Results, name: str) -> dict[tuple[str, str], str]:
    """(group, title) -> cell of one arm; all arms of a document have the same keys."""
    arm, baseline = results["arms"][name], results["baseline"]
    against, several = arm["against_baseline"], any(len(a["seeds"]) > 1 for a in results["arms"].values())
    cells = {("", "seeds"): str(len(arm["seeds"]))}
    for metric in results["metrics"]:
        group = _title(metric)
        score = arm["accuracy"][metric]
        wilson = " °" if several and score["over"] == "examples" else ""
        over = "seeds" if several else "examples"
        cells[group, f"mean and 95 % interval over {over}"] = _accuracy(score) + wilson
        tokens, flops = _per_right_answer(arm["answer_costs"][metric])
        cells[group, "generated tokens per right answer"] = tokens
        cells[group, "FLOPs per right answer"] = flops
        score, area = _per_token(arm["answer_costs"][metric])
        cells[group, "OckScore"] = score
        cells[group, "area of accuracy against tokens"] = area
        if baseline is None:
            continue
        found = None if against is None else against["metrics"][metric]
        difference = p = odds = examples = NONE
        if found is not None:
            difference = _points(found["value"])
            if found["low"] is not None:
                difference += f" ({_points_interval(found)})"
                p = _p(found["p"])
            odds, examples = f"{found['examples']['won']} : {found['examples']['lost']}", _p(found["examples"]["p"])
        cells[group, f"points over {clean(baseline)}, 95 % interval over seeds"] = difference
        cells[group, "p, paired t test over seeds"] = p
        cells[group, "answers won : lost, seeds pooled"] = odds
        cells[group, "p, McNemar over examples, seeds pooled"] = examples
    group = "training, mean of the seeds"
    for key in ("steps", "samples", "tokens"):
        cells[group, key] = f"{arm['costs'][key]:,.0f}"
    if any(other["costs"]["steps_stretched"] != 1 for other in results["arms"].values()):
        cells[group, "steps stretched, for equal FLOPs"] = factor(arm["costs"]["steps_stretched"])
    estimated = _estimated(results)
    title = f"FLOPs, from some batches{EST}" if estimated else "FLOPs, counted at every step"
    cells[group, title] = f"{arm['costs']['flops']:.3g}"
    if baseline is not None:
        ratio = 1.0 if name == baseline else None if against is None else against["flops_ratio"]
        cells[group, f"FLOPs relative to {clean(baseline)}, same seed{EST * estimated}"] = factor(ratio)
    cells[group, "seconds"] = seconds(arm["costs"]["seconds"])
    group = "geometry of the latents, mean of the seeds"
    for key, title in _GEOMETRY_NAMES.items():
        if any(key in other["geometry"] for other in results["arms"].values()):
            value = arm["geometry"].get(key)
            cells[group, title] = NONE if value is None else fixed(value, 1 if key == "rankme" else 3)
    cells[group, "seeds that collapsed"] = f"{arm['collapsed']} of {len(arm['seeds'])}"
    return cells


def _estimated(results: Results) -> bool:
    """Whether the training FLOPs of any run are estimated."""
    return not all(run["costs"].get("flops_measured") for run in results["runs"])


def settings_table(results: Results) -> Table:
    """The settings that tell the arms apart."""

    def cell(key: str, values: dict[str, Any], arm: str) -> str:
        if arm not in values:
            return NONE
        value = values[arm]
        if not isinstance(value, str):
            return json.dumps(value)
        return clean(value.rpartition(".")[2] if key.endswith("_target_") else value)

    arms = list(results["arms"])
    rows = tuple((clean(key), *(cell(key, values, arm) for arm in arms)) for key, values in results["settings"].items())
    return Table(("", *map(clean, arms)), (("", rows),))


def runs_table(results: Results) -> Table:
    """Each arm and seed."""
    metrics = results["metrics"]
    header = (
        "arm",
        "evaluation",
        "seed",
        *(
            title
            for metric in metrics
            for title in (_title(metric), "tokens per right", "FLOPs per right", "OckScore", "area")
        ),
    )
    header += ("steps", "training FLOPs", "seconds")
    rows = tuple(
        (
            clean(run["arm"]),
            clean(run["evaluation"]),
            str(run["seed"]),
            *(
                cell
                for metric in metrics
                for cell in (
                    fixed(run["accuracy"][metric], 3),
                    *_per_right_answer(run["answer_costs"][metric]),
                    *_per_token(run["answer_costs"][metric]),
                )
            ),
            f"{run['costs']['steps']:,}",
            f"{run['costs']['flops']:.3g}{EST * (not run['costs'].get('flops_measured'))}",
            seconds(run["costs"]["seconds"]),
        )
        for run in results["runs"]
    )
    return Table(header, (("", rows),), text_columns=2)


def provenance_table(results: Results) -> Table:
    """Where the figures come from; where runs differ, each of what they had."""
    state = {True: ", with uncommitted changes", False: "", None: ", state of the tree unknown"}
    duplicates = ", ".join(f"{clean(k).replace('_', ' ')} {v:,}" for k, v in results["duplicates"].items())
    rows = [
        ("run", clean(results["name"])),
        ("created", clean(results["created"])),
        (
            "pairs",
            f"{results['training_pairs']:,} to train on, {results['pairs']:,} of the {clean(results['split'])} split",
        ),
        ("duplicates", duplicates or NONE),
    ]
    for code in results["code"]:
        commit = clean(code["commit"]) if code["commit"] else "unknown"
        rows.append(("code", f"version {clean(code['version'])}, commit {commit}{state[code['dirty']]}"))
    for device in results["device"]:
        rows.append(("device", f"{clean(device['type'])}, {clean(device['name'])}, {device['threads']} threads"))
    for libraries in results["libraries"]:
        rows.append(("libraries", ", ".join(f"{clean(k)} {clean(v)}" for k, v in libraries.items())))
    return Table(("", ""), (("", tuple(rows)),), text_columns=2)


# --- Markdown and plain text.

_NOTES = (
    (
        "Intervals",
        "An accuracy is the mean over seeds with its 95 % t interval, cut off at 0 and 1: it covers the luck of the "
        "training. One seed has no such interval; its Wilson interval, marked °, covers the luck of the test "
        "examples only.",
    ),
    (
        "Tests",
        "Differences are those between runs of the same seed. The paired t test over seeds asks whether other seeds "
        "would show them, and has little power with few seeds. McNemar's exact test counts the answers that one of "
        "the two alone gets right, all seeds pooled as if their answers were independent: it asks about other "
        "examples, not about other trainings. The p values are not corrected for the number of comparisons.",
    ),
    (
        "Per right answer",
        "Cost-of-pass (arXiv 2504.13359): what all answers of all seeds cost, the wrong ones too, over the number of "
        "right ones; infinite where none is right. Tokens are those generated, the end included, by the checkpoint's "
        "tokenizer. FLOPs are those of each request answered alone, its prompt included.",
    ),
    (
        "OckScore, accuracy against tokens",
        "OckScore (arXiv 2511.05722): 100 · accuracy − 10 · ln(mean tokens / 10,000 + 1); of short answers it is all "
        "but the accuracy. Accuracy against tokens: the fraction of all answers that are right and at most "
        "so many tokens "
        "long; its area up to the longest gold answer (AUC_OAA, arXiv 2508.13141) is the accuracy only for right "
        "answers of no tokens. Tokens are the generated ones, by the checkpoint's tokenizer.",
    ),
    (
        "Training FLOPs",
        "The operations of forward and backward passes: counted at every step of the run or, where marked est., on "
        "some of its batches and multiplied by its steps. Generation and evaluation are not in them.",
    ),
    (
        "Latents",
        f"Informative: retrieval@1 over distinct targets of at least {INFORMATIVE_RETRIEVAL} and a mean cosine of "
        f"non-pairs below {INFORMATIVE_COSINE}; uninformative: retrieval@1 below {UNINFORMATIVE_RETRIEVAL}; partly "
        "informative: anything between. Collapsed: as the evaluation warned. A high cosine of pairs means nothing "
        "where that of non-pairs is as high.",
    ),
)


def headline(results: Results) -> str:
    """The document in one sentence: the method, or the only arm there is, in the words of :func:`verdict`."""
    return verdict(results, results["method"] or next(iter(results["arms"])))


def remarks(results: Results) -> list[str]:
    """What a reader must know before the table: a missing baseline, latents that collapsed."""
    found = []
    if results["baseline"] is None:
        found.append("There is no arm ntp, so differences to next-token training are left out.")
    seeds = {name: set(arm["seeds"]) for name, arm in results["arms"].items()}
    if results["baseline"] is not None and len({frozenset(s) for s in seeds.values()}) > 1:
        found.append(
            f"The arms do not have the same seeds: differences to {clean(results['baseline'])} are of shared ones."
        )
    if len({(code["version"], code["commit"]) for code in results["code"]}) > 1:
        found.append("The runs were made by different versions of the code.")
    if len(results["device"]) > 1:
        found.append("The runs were made on different devices: their seconds do not compare.")
    return found


def _others(results: Results) -> list[str]:
    """The verdicts on the arms that the headline is not about."""
    told = results["method"] or next(iter(results["arms"]))
    return [verdict(results, name) for name in results["arms"] if name not in (told, results["baseline"])]


def markdown(results: Results) -> str:
    """The report as Markdown: verdicts, the arms' table, their settings, every run, provenance.

    Raises InputError if the document is not a valid ``jepa.answers-results/2``.
    """
    validate_results(results)
    blocks = [
        f"# {escape_markdown(clean(results['name']))}: {_HEADING[:1].lower()}{_HEADING[1:]}",
        f"**{escape_markdown(headline(results))}**",
        *(
            "\n".join(f"- {escape_markdown(text)}" for text in texts)
            for texts in (_others(results), remarks(results))
            if texts
        ),
        markdown_table(arms_table(results)),
    ]
    if results["settings"]:
        blocks += ["## What tells the arms apart", markdown_table(settings_table(results))]
    blocks += [
        "## Runs",
        markdown_table(runs_table(results)),
        "## Parameters by role",
        markdown_table(parameters_table(results)),
        "## Provenance",
        markdown_table(provenance_table(results)),
        "## What is measured and how",
        *(f"**{term}.** {escape_markdown(text)}" for term, text in _NOTES),
    ]
    return "\n\n".join(blocks) + "\n"


def summary(results: Results) -> str:
    """The main figures for a terminal of 100 columns: an arm a line, then the verdict.

    Raises InputError if the document is not a valid ``jepa.answers-results/2``.
    """
    validate_results(results)
    metric = results["metrics"][0]
    widths = (18, 5, 23, 26, 6, 7, 7)
    header = ("arm", "seeds", f"{_title(metric)}", "points over the baseline", "FLOPs", "R@1", "cosine")
    rows: list[Row] = []
    for name, arm in results["arms"].items():
        cells, geometry = _column(results, name), arm["geometry"]
        points = next(
            (cell for (group, title), cell in cells.items() if group == _title(metric) and "points" in title), NONE
        )
        ratio = next((cell for (_, title), cell in cells.items() if title.startswith("FLOPs relative")), NONE)
        measured = (geometry.get("retrieval@1"), geometry.get("unpaired_cosine"))
        rows.append(
            (
                clean(name),
                cells["", "seeds"],
                _accuracy(arm["accuracy"][metric]),
                points,
                ratio,
                *(NONE if value is None else fixed(value, 3) for value in measured),
            )
        )
    rule = tuple("─" * width for width in widths)
    lines = columns([header, rule, *rows], widths, text_columns=1)
    spent = {name: _per_right_answer(arm["answer_costs"][metric]) for name, arm in results["arms"].items()}
    costs = "; ".join(
        f"{clean(name)} " + ("not counted" if tokens == NONE else f"{tokens} tokens, {flops} FLOPs")
        for name, (tokens, flops) in spent.items()
    )
    scores = {name: _per_token(arm["answer_costs"][metric]) for name, arm in results["arms"].items()}
    scored = "; ".join(f"{clean(name)} {ock}, {area}" for name, (ock, area) in scores.items() if ock != NONE)
    scored = f"OckScore, area of accuracy against tokens: {scored or 'not counted'}"
    return "\n".join([*lines, "", headline(results), f"per right answer: {costs}", scored, *remarks(results)])


# --- Figures.

_SERIES = {"ntp": 1, "ntp_equal_flops": 0, "llm_jepa": 4, "cosine": 3, "shuffled": 2}  # of plots' palette


def series_of(results: Results) -> dict[str, int]:
    """Arm -> number of its colour, the same in all figures of a document."""
    others = [arm for arm in results["arms"] if arm not in _SERIES]
    return _SERIES | {arm: 5 + index % 3 for index, arm in enumerate(others)}


def arms_figure(results: Results, colours: Colours = LIGHT) -> Figure:
    """Accuracy, retrieval@1 and unpaired cosine of each arm: a dot a seed, and the mean with its interval."""
    figure = Figure(figsize=(1060 / INCH, _arms_height(results) / INCH), layout="constrained")
    _draw_arms(figure, results, colours)
    return figure


def curves_figure(results: Results, colours: Colours = LIGHT) -> Figure:
    """What validation measured against the operations spent: a line a seed."""
    figure = Figure(figsize=(1060 / INCH, 300 / INCH), layout="constrained")
    _draw_curves(figure, results, colours)
    return figure


def budget_figure(results: Results, colours: Colours = LIGHT) -> Figure:
    """The accuracy that answers of at most so many tokens reach, a line an arm, of the first metric."""
    metric = results["metrics"][0]
    series = series_of(results)
    curves = {
        name: (costs["accuracy_within"], colours[f"series-{series[name]}"])
        for name, arm in results["arms"].items()
        if (costs := arm["answer_costs"][metric]) is not None and costs["accuracy_within"] is not None
    }
    return plots.within_tokens(curves, _title(metric), colours)


def overview_png(results: Results) -> bytes:
    """The first two figures, one above the other, on light ground, as the content of a PNG file."""
    heights = (_arms_height(results) + 30, 330.0)
    with plots.drawing():
        figure = Figure(figsize=(1200 / INCH, sum(heights) / INCH), facecolor=LIGHT["surface"])
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
        upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights, hspace=0.06).flat
        for part, draw in ((upper, _draw_arms), (lower, _draw_curves)):
            part.set_facecolor(LIGHT["surface"])
            draw(part, results, LIGHT)
        return plots.png(figure)


def _arms_height(results: Results) -> float:
    return 96.0 + 36 * len(results["arms"])


def _draw_arms(figure: Figure | SubFigure, results: Results, colours: Colours) -> None:
    metrics = results["metrics"][:2]
    panels = figure.subplots(1, len(metrics) + 2, sharey=True, squeeze=False)[0]
    for axes, metric in zip(panels, metrics, strict=False):
        means = {name: arm["accuracy"][metric] for name, arm in results["arms"].items()}
        _draw_dots(axes, results, colours, _title(metric), [run["accuracy"][metric] for run in results["runs"]], means)
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, -0.02), min(high, 1.02))
    for axes, key in zip(panels[-2:], ("retrieval@1", "unpaired_cosine"), strict=True):
        dots = [run["geometry"].get(key) for run in results["runs"]]
        means = {name: {"value": arm["geometry"].get(key)} for name, arm in results["arms"].items()}
        _draw_dots(axes, results, colours, _GEOMETRY_NAMES[key], dots, means)
        axes.set_xlim(min(-0.1, axes.get_xlim()[0]), 1.1)
    names = [plots.short(clean(name), 130) for name in results["arms"]]
    panels[0].set(ylim=(len(names) - 0.45, -0.55))
    panels[0].set_yticks(range(len(names)), names, color=colours["ink"], parse_math=False)


def _draw_dots(
    axes: Axes,
    results: Results,
    colours: Colours,
    title: str,
    dots: Sequence[float | None],
    means: dict[str, dict[str, Any]],
) -> None:
    """One panel: a faint dot a run, a bar at the mean, and a line over the interval where there is one."""
    series, rows = series_of(results), {name: row for row, name in enumerate(results["arms"])}
    for run, value in zip(results["runs"], dots, strict=True):
        if value is not None:
            tip = plots.tooltip(f"{clean(run['arm'])}, seed {run['seed']}: {fixed(value, 3)}")
            colour = colours[f"series-{series[run['arm']]}"]
            axes.plot(value, rows[run["arm"]], "o", markersize=5, color=colour, alpha=0.5, markeredgewidth=0, gid=tip)
    for name, mean in means.items():
        if mean["value"] is None:
            continue
        y, colour = rows[name], colours[f"series-{series[name]}"]
        if "low" in mean:
            axes.plot([mean["low"], mean["high"]], [y, y], color=colour, linewidth=1.6)
        axes.plot([mean["value"]] * 2, [y - 0.24, y + 0.24], color=colour, linewidth=2.2)
        axes.annotate(
            fixed(mean["value"], 3),
            (mean["value"], y - 0.24),
            (0, 2),
            textcoords="offset points",
            ha="center",
            fontsize=FONT - 1,
            color=colours["ink"],
        )
    plots.frame(axes, colours)
    axes.grid(axis="x", color=colours["grid"], linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 5, 10]))
    axes.margins(x=0.12)
    axes.set_title(title, loc="left", fontsize=FONT + 1, color=colours["ink"], parse_math=False)


_CURVES = {"val/next_token": "next-token loss, validation", "val/retrieval@1": "retrieval@1, validation"}


def _draw_curves(figure: Figure | SubFigure, results: Results, colours: Colours) -> None:
    series = series_of(results)
    panels = figure.subplots(1, len(_CURVES), squeeze=False)[0]
    for axes, (key, title) in zip(panels, _CURVES.items(), strict=True):
        values: list[float] = []
        for run in reversed(results["runs"]):  # the baseline and the method on top
            each = run["costs"]["flops"] / run["costs"]["steps"] if run["costs"]["steps"] else 0.0
            points = [((row["step"] + 1) * each, row[key]) for row in run["curve"] if row.get(key) is not None]
            if points:
                values += [value for _, value in points]
                colour = colours[f"series-{series[run['arm']]}"]
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, alpha=0.85)
                axes.plot(*points[-1], "o", markersize=3.5, color=colour)
        plots.frame(axes, colours)
        axes.grid(axis="y", color=colours["grid"], linewidth=0.8)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6))
        axes.xaxis.set_major_formatter(EngFormatter())
        if key == "val/next_token" and values and min(values) > 0:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_minor_locator(NullLocator())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        else:
            axes.set_ylim(-0.02, 1.02)
        axes.set_xlabel("training FLOPs", color=colours["muted"])
        axes.set_title(title, loc="left", fontsize=FONT + 1, color=colours["ink"])
    figure.legend(
        handles=[
            Line2D([], [], color=colours[f"series-{series[name]}"], linewidth=2, label=plots.short(clean(name), 130))
            for name in results["arms"]
        ],
        loc="outside upper left",
        ncols=6,
        frameon=False,
        labelcolor=colours["ink"],
        handlelength=1.4,
    )


# --- The page.

_HEADING = "Accuracy, cost and latents by training objective"


def html(results: Results) -> str:
    """The report as one HTML file: no network, no scripts; it follows the reader's light or dark theme.

    Raises InputError if the document is not a valid ``jepa.answers-results/2``.
    """
    validate_results(results)
    arms = results["arms"]
    seeds = sorted({seed for arm in arms.values() for seed in arm["seeds"]})
    devices = ", ".join(f"{clean(device['name'])} ({clean(device['type'])})" for device in results["device"])
    metric = results["metrics"][0]
    spent = [arm["answer_costs"][metric] for arm in arms.values()]
    evidence = (MEASURED, ESTIMATED) if _estimated(results) else (MEASURED,)
    tokens = f"Accuracy of {len(arms)} arms against the tokens of an answer"
    body = [
        _claim(results),
        section_html(
            "Arms",
            f"On {results['pairs']:,} pairs of the {escape(clean(results['split']))} split: a dot is a seed, a bar the "
            "mean, the line across it its 95&nbsp;% interval over seeds (over examples where there is one seed).",
            _wide("arms", f"Accuracy, retrieval and cosine of {len(arms)} arms", partial(arms_figure, results))
            + table_html(arms_table(results), "Arms"),
            evidence,
        ),
        section_html(
            "Accuracy against tokens",
            f"The fraction of the answers that are right, by {_title(metric)}, and at most so many tokens long: "
            f"the mean "
            "of the seeds.",
            f'<figure class="half">{plots.inline_svg(partial(budget_figure, results), "budget", tokens)}</figure>'
            if any(costs and costs["accuracy_within"] for costs in spent)
            else "<p>The tokens of the answers were not kept.</p>",
            (MEASURED,),
        ),
        section_html(
            "Training",
            "What validation measured along the way, a line a run.",
            _wide("curves", f"Validation of {len(results['runs'])} runs", partial(curves_figure, results)),
            (MEASURED, ESTIMATED),
        ),
    ]
    if results["settings"]:
        lede = "Of the objective, the stage and the precision; data, tokenizer and model are the same for all arms."
        table = table_html(settings_table(results), "Settings")
        body.append(section_html("What tells the arms apart", lede, table))
    config = escape(json.dumps(results["config"], indent=2))
    body += [
        section_html("Runs", "", table_html(runs_table(results), "Runs"), evidence),
        section_html(
            "Parameters by role",
            text_html(PARAMETERS_NOTE),
            table_html(parameters_table(results), "Parameters by role"),
        ),
        section_html(
            "Provenance",
            "Where these figures come from.",
            table_html(provenance_table(results), "Provenance")
            + f"<details><summary>Configuration of the first run</summary><pre>{config}</pre></details>",
        ),
        notes_html(_NOTES),
    ]
    detail = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    return document_html(results, detail, _HEADING, "\n".join(body), f"Measured on {devices}.")


def _claim(results: Results) -> str:
    name = results["method"] or next(iter(results["arms"]))
    found = results["arms"][name]["against_baseline"]
    metric = results["metrics"][0]
    if found is None:
        figure = fixed(results["arms"][name]["accuracy"][metric]["value"], 3)
    else:
        figure = f"{_points(found['metrics'][metric]['value'])} points"
    others = "".join(f'<p class="muted small">{text_html(words)}.</p>' for words in _others(results))
    warnings = "".join(f"<p>{text_html(words)}</p>" for words in remarks(results))
    return (
        f'<div class="pair"><div class="claim"><h2 class="kicker">{text_html(name)}</h2>'
        f'<p class="number">{escape(figure)}</p><p>{text_html(headline(results))}.</p>{warnings}{others}</div></div>'
    )


def _wide(uid: str, label: str, draw: Any) -> str:
    return f"<figure>{scroll_html('wide', label, plots.inline_svg(draw, uid, label))}</figure>"
