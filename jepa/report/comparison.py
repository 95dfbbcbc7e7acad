"""The controlled comparison of VL-JEPA and the token-space baseline: results document, table, picture.

A document of the schema ``jepa.comparison-results/1`` holds everything that is shown here; its figures are computed
where it is made. Intervals are 95 % t intervals over seeds, null for one seed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, NullLocator

from jepa.report import plots
from jepa.report.plots import FONT, INCH, LIGHT
from jepa.report.schema import (
    CODE,
    DEVICE,
    PARAMETERS,
    Results,
    alike,
    check_document,
    count,
    integer,
    mapping,
    nullable,
    number,
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
    code_text,
    columns,
    device_text,
    escape_markdown,
    factor,
    fixed,
    interval,
    markdown_table,
    seconds,
)

SCHEMA = "jepa.comparison-results/1"
FIGURES = {"cider_d": "CIDEr-D", "top5": "top-5", "top1": "top-1", "exact": "exact captions"}
ARMS = {"vl_jepa": "VL-JEPA", "token_vlm": "token VLM"}
STEP = {  # of a stream
    "answers_per_step": "answers",
    "tokens_per_step": "tokens",
    "flops_per_step": "FLOPs",
    "ms_per_step": "ms",
    "decoder_ms_per_step": "ms of the decoder",
    "cider_d": "CIDEr-D of the streams",
}

_FOUND = record(
    {"value": number(), "low": nullable(number()), "high": nullable(number()), "p": nullable(number(0, 1))}
    | {"seeds": sequence(number(), shortest=1)}
)
_CURVES = record(dict.fromkeys(FIGURES, sequence(_FOUND, shortest=1)))
_ARM = record(
    {
        "curves": _CURVES,
        "learning_rates": sequence(number(above=0), shortest=1),
        "tried": sequence(sequence(record(dict.fromkeys(("learning_rate", "validation_mrr"), number(0))))),
        "step_flops": record({"trained": count, "encoder": count}),
        "training_seconds": _FOUND,
        "decoder_training": nullable(record({"flops": number(0), "seconds": number(0)})),
        "parameters": PARAMETERS,
        "answers": record(
            dict.fromkeys(("count", "encode_ms", "answer_ms", "tokens", "decoder_flops"), _FOUND),
            optional={"predict_ms": _FOUND},
        ),
        "streams": mapping(record(dict.fromkeys(("steps", *STEP), _FOUND))),
    }
)
DOCUMENT = record(
    {
        "created": text,
        "name": text,
        "seeds": sequence(integer, shortest=1),
        "samples": sequence(count, shortest=1),
        "held_out": count,
        "chance5": number(0, 1),
        "arms": alike(ARMS, _ARM),
        "difference": _CURVES,
        "config": mapping(plain),
        "code": sequence(CODE, shortest=1),
        "libraries": sequence(mapping(text), shortest=1),
        "device": sequence(DEVICE, shortest=1),
    }
)


def validate_results(results: Results) -> None:
    """Raises InputError on the first fault, naming its path in the document, the rule and the value got."""
    check_document(results, SCHEMA, DOCUMENT)


def write_report(results: Results, folder: str | Path) -> dict[str, Path]:
    """Writes results.json, report.md and report.png into a folder, each as a whole; returns the paths by file name.

    Raises InputError for a bad document or a folder that cannot be written.
    """
    validate_results(results)
    contents = {
        "results.json": json.dumps(results, allow_nan=False, indent=1).encode(),
        "report.md": markdown(results).encode(),
        "report.png": overview_png(results),
    }
    paths = {name: Path(folder) / name for name in contents}
    write_whole({paths[name]: content for name, content in contents.items()})
    return paths


# --- Tables.


def _cell(found: Mapping[str, Any], digits: int, sign: str = "") -> str:
    value = fixed(found["value"], digits, sign)
    return value if found["low"] is None else f"{value} ({interval(found['low'], found['high'], digits, sign)})"


def quality_table(results: Results) -> Table:
    """CIDEr-D, top-5 and the rest against samples seen, and the difference of the arms by seed."""
    groups = []
    for key, title in FIGURES.items():
        digits = 2 if key == "cider_d" else 3
        rows: list[Row] = []
        for i, samples in enumerate(results["samples"]):
            jepa, vlm = (results["arms"][arm]["curves"][key][i] for arm in ARMS)
            found = results["difference"][key][i]
            p = NONE if found["p"] is None else "< 0.001" if found["p"] < 0.001 else f"{found['p']:.2g}"
            rows.append((f"{samples:,}", _cell(jepa, digits), _cell(vlm, digits), _cell(found, digits, "+"), p))
        groups.append((title, tuple(rows)))
    return Table(("samples seen", *ARMS.values(), "difference by seed", "p"), tuple(groups))


def trainable(results: Results) -> dict[str, int]:
    """Trained parameters by each way of counting."""
    jepa, vlm = (
        {role["role"]: role["total"] for role in results["arms"][arm]["parameters"] if role["role"] != "X-Encoder"}
        for arm in ARMS
    )
    return {
        "VL-JEPA: Predictor": jepa["Predictor"],
        "VL-JEPA: Predictor and Y-Encoder": jepa["Predictor"] + jepa["Y-Encoder"],
        "VL-JEPA: Predictor, Y-Encoder and Y-Decoder": sum(jepa.values()),
        "token VLM: projection and language model": sum(vlm.values()),
    }


def parameters_table(results: Results) -> Table:
    """Trained parameters counted each way, and their fraction of the baseline's; the frozen encoder apart."""
    counted = trainable(results)
    whole = counted["token VLM: projection and language model"]
    rows = [(name, f"{value:,}", factor(value / whole)) for name, value in counted.items()]
    encoder = next(r["total"] for r in results["arms"]["vl_jepa"]["parameters"] if r["role"] == "X-Encoder")
    rows.append(("X-Encoder of both, frozen", f"{encoder:,}", NONE))
    return Table(("what is counted", "parameters", "of the token VLM's"), (("", tuple(rows)),))


def cost_table(results: Results) -> Table:
    """Training, a single answer, and a step of a stream: an arm a column."""
    jepa, vlm = (results["arms"][arm] for arm in ARMS)
    batch = results["config"]["stage"]["batch_size"]

    def flops(value: float) -> str:
        return f"{value:.3g}"

    training = [
        (f"FLOPs per step of {batch}, trained parts", *(flops(a["step_flops"]["trained"]) for a in (jepa, vlm))),
        ("FLOPs per step of the frozen encoder (once)", *(flops(a["step_flops"]["encoder"]) for a in (jepa, vlm))),
        ("seconds, all learning rates", *(seconds(a["training_seconds"]["value"]) for a in (jepa, vlm))),
        ("learning rates chosen, by seed", *(", ".join(f"{x:g}" for x in a["learning_rates"]) for a in (jepa, vlm))),
    ]
    decoder = jepa["decoder_training"]
    if decoder is not None:
        training.append(("FLOPs of training a decoder at a point, beside", flops(decoder["flops"]), NONE))
        training.append(("seconds of it", seconds(decoder["seconds"]), NONE))
    groups = [("training", tuple(training))]
    names = {
        "encode_ms": ("encoding the clip, ms", 2),
        "predict_ms": ("predicting its embedding, ms, part of the answer", 2),
        "answer_ms": ("answer from its states, ms", 2),
        "tokens": ("tokens", 1),
    }
    groups.append(
        (
            "a single answer",
            tuple(
                (title, *(_cell(a["answers"][key], digits) if key in a["answers"] else NONE for a in (jepa, vlm)))
                for key, (title, digits) in names.items()
            ),
        )
    )
    for name in jepa["streams"]:
        rows = []
        for key, title in STEP.items():
            cells = [
                (flops(a["streams"][n][key]["value"]) if "flops" in key else _cell(a["streams"][n][key], 2))
                for a, n in ((jepa, name), (vlm, "every step"))
            ]
            rows.append((title, *cells))
        groups.append((f"a step of a stream; VL-JEPA decoding {name}, the VLM generating at every step", tuple(rows)))
    return Table(("", *ARMS.values()), tuple(groups))


# --- Sentences, Markdown and plain text.


def verdict(results: Results) -> list[str]:
    """What comes out, in one sentence each: quality at the most samples, and parameters."""
    lines = []
    for key in ("cider_d", "top5"):
        digits = 2 if key == "cider_d" else 3
        jepa, vlm = (results["arms"][arm]["curves"][key][-1] for arm in ARMS)
        found = results["difference"][key][-1]
        if found["low"] is None:
            word = "one seed, so no interval"
        elif found["low"] <= 0 <= found["high"]:
            word = "not told apart over these seeds"
        else:
            word = f"{'VL-JEPA' if found['value'] > 0 else 'the token VLM'} is higher"
        lines.append(
            f"{FIGURES[key]} after {results['samples'][-1]:,} samples: VL-JEPA {fixed(jepa['value'], digits)}, "
            f"token VLM {fixed(vlm['value'], digits)}, difference {_cell(found, digits, '+')}: {word}."
        )
    counted = list(trainable(results).values())
    fractions = ", ".join(factor(value / counted[-1]) for value in counted[:-1])
    lines.append(
        f"Trained parameters of VL-JEPA over the token VLM's: {fractions} (predictor; with Y-Encoder; with Y-Decoder)."
    )
    return lines


_NOTES = (
    "The X-Encoder is trained beforehand to name the words of a clip's text, in any order, and frozen; it is the same "
    "for both arms and all seeds, so intervals cover the luck of an arm's initialisation and of the samples' order, "
    "not of the encoder. Both arms see the same samples in the same order, batch and schedule.",
    "Each arm and seed tries the same learning rates over the whole schedule and keeps the one with the best mean "
    "reciprocal rank of the right caption on validation clips, whose compositions are not in the test.",
    "Top-5: the canonical captions of all test clips are ranked, by cosine for VL-JEPA and by log-likelihood of the "
    "caption with its end for the token VLM. Points along the way are of one run: its learning rate is still high "
    "there.",
    "VL-JEPA's captions need a decoder: one is trained on its embeddings at each point, on samples seen until then; "
    "that cost stands apart. p: paired t test over seeds, not corrected for the number of comparisons.",
    "Milliseconds are of this implementation on this device: a model this small mostly waits for Python. FLOPs are "
    "counted.",
)


def markdown(results: Results) -> str:
    """The report as Markdown: verdict, picture, quality, parameters, costs, provenance."""
    seeds = ", ".join(map(str, results["seeds"]))
    provenance: list[Row] = [("created", clean(results["created"])), ("seeds", seeds)]
    provenance += [("code", code_text(code)) for code in results["code"]]
    provenance += [("device", device_text(device)) for device in results["device"]]
    provenance += [
        ("libraries", ", ".join(f"{clean(k)} {clean(v)}" for k, v in libraries.items()))
        for libraries in results["libraries"]
    ]
    blocks = [
        f"# {escape_markdown(clean(results['name']))}: VL-JEPA against a token-space VLM on one frozen encoder",
        "\n".join(f"- {escape_markdown(line)}" for line in verdict(results)),
        "![CIDEr-D and top-5 against samples seen](report.png)",
        f"Held-out compositions: {results['held_out']} clips; top-5 by chance {fixed(results['chance5'], 3)}. "
        f"Means over {len(results['seeds'])} seeds with 95 % t intervals.",
        markdown_table(quality_table(results)),
        "## Trained parameters",
        markdown_table(parameters_table(results)),
        "## Costs",
        markdown_table(cost_table(results)),
        "## What is measured and how",
        *map(escape_markdown, _NOTES),
        "## Provenance",
        markdown_table(Table(("", ""), (("", tuple(provenance)),), text_columns=2)),
    ]
    return "\n\n".join(blocks) + "\n"


def summary(results: Results) -> str:
    """The main figures for a terminal of 100 columns."""
    widths = (14, 24, 24, 28)
    table = quality_table(results)
    lines: list[str] = []
    for title, rows in table.groups[:2]:
        shown: list[Row] = [(title, *ARMS.values(), "difference"), *((*row[:4],) for row in rows)]
        lines += [*columns(shown, widths, text_columns=1), ""]
    return "\n".join([*lines, *verdict(results)])


# --- The picture.


def overview_png(results: Results) -> bytes:
    """CIDEr-D and top-5 against samples seen: a line an arm, its interval over seeds, a dot a seed."""
    with plots.drawing():
        figure = Figure(figsize=(1060 / INCH, 380 / INCH), facecolor=LIGHT["surface"], layout="constrained")
        panels = figure.subplots(1, 2, squeeze=False)[0]
        for axes, key in zip(panels, ("cider_d", "top5"), strict=True):
            _draw(axes, results, key)
        panels[1].axhline(results["chance5"], color=LIGHT["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
        panels[0].legend(frameon=False, labelcolor=LIGHT["ink"])
        return plots.png(figure)


def _draw(axes: Axes, results: Results, key: str) -> None:
    samples = results["samples"]
    for arm, series in (("vl_jepa", 4), ("token_vlm", 1)):
        colour, curve = LIGHT[f"series-{series}"], results["arms"][arm]["curves"][key]
        axes.plot(samples, [found["value"] for found in curve], label=ARMS[arm], **plots.style(series, LIGHT))
        for x, found in zip(samples, curve, strict=True):
            axes.plot([x] * len(found["seeds"]), found["seeds"], "o", markersize=3, color=colour, alpha=0.45)
        if curve[0]["low"] is not None:
            low, high = ([found[end] for found in curve] for end in ("low", "high"))
            axes.fill_between(samples, low, high, color=colour, alpha=0.15, linewidth=0)
    plots.frame(axes, LIGHT)
    axes.set_xscale("log")
    axes.set_xticks(samples)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", color=LIGHT["grid"], linewidth=0.8)
    axes.set_xlabel("samples seen", color=LIGHT["muted"])
    axes.set_title(FIGURES[key], loc="left", fontsize=FONT + 1, color=LIGHT["ink"])
