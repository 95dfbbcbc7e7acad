"""The report of the controlled comparison: quality against samples, parameters, costs, with 95 % t intervals."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import EngFormatter, NullLocator

from jepa.report.blocks import Block, Colours, Definitions, Figure, Heading, Report, Text
from jepa.report.figures import FONT, Line, draw_line, frame, sized, title
from jepa.report.format import code_text, device_text, factor, fixed, interval, libraries_text
from jepa.report.notes import terms
from jepa.report.tables import NONE, Table
from jepa.studies.comparison.results import ARMS, EVERY_STEP, FIGURES, SELECTIVELY, ArmRun, ComparisonResults, SeedMean

_Value = Callable[[ArmRun], float | None]
_STEP = {
    "answers_per_step": "answers",
    "flops_per_step": "FLOPs",
    "ms_per_step": "ms",
    "cider_d": "CIDEr-D of the streams",
}


def report(results: ComparisonResults) -> Report:
    """Verdict, picture, quality, parameters, costs, notes, provenance."""
    quality, sentences = _quality_table(results), [Text(sentence) for sentence in _verdict(results)]
    draw = partial(_draw, results)
    provenance = [("created", results.created), ("seeds", ", ".join(map(str, results.seeds)))]
    provenance += [("code", code_text(code)) for code in results.code]
    provenance += [("device", device_text(device)) for device in results.device]
    provenance += [("libraries", libraries_text(libraries)) for libraries in results.libraries]
    chance = fixed(results.arms["vl_jepa"][0].points[0].chance5, 3)
    note = (
        f"Held-out compositions: {results.held_out} clips; top-5 by chance {chance}. Means over {len(results.seeds)} "
        "seeds with 95 % t intervals."
    )
    blocks: list[Block] = [
        *sentences,
        Figure("quality", "CIDEr-D and top-5 against samples seen", draw),
        Text(note, "note"),
        quality,
        Heading("Trained parameters"),
        _parameters_table(results),
        Heading("Costs"),
        _cost_table(results),
        Heading("Measures and method"),
        terms("comparison"),
        Heading("Provenance"),
        Definitions(provenance),
    ]
    first = Table("", quality.header[:-1], [(name, [row[:-1] for row in rows]) for name, rows in quality.groups[:2]])
    name = f"{results.name}: VL-JEPA against a token-space VLM on one frozen encoder"
    return Report(name, "Controlled comparison", [first, *sentences], blocks, draw)


def counted(results: ComparisonResults) -> dict[str, int]:
    """Trained parameters by each way of counting."""
    jepa = results.trained("vl_jepa")
    return {
        "VL-JEPA: Predictor": jepa["Predictor"],
        "VL-JEPA: Predictor and Y-Encoder": jepa["Predictor"] + jepa["Y-Encoder"],
        "VL-JEPA: Predictor, Y-Encoder and Y-Decoder": sum(jepa.values()),
        "token VLM: projection and language model": sum(results.trained("token_vlm").values()),
    }


def _cell(found: SeedMean, digits: int, sign: str = "") -> str:
    value = fixed(found.value, digits, sign)
    if found.low is None or found.high is None:
        return value
    return f"{value} ({interval(found.low, found.high, digits, sign)})"


def _digits(key: str) -> int:
    return 2 if key == "cider_d" else 3


def _quality_table(results: ComparisonResults) -> Table:
    def p(key: str, i: int) -> str:
        found = results.difference[key][i].p
        return NONE if found is None else "< 0.001" if found < 0.001 else f"{found:.2g}"

    groups = []
    for key, name in FIGURES.items():
        rows = [
            (
                f"{samples:,}",
                *(_cell(results.curves[arm][key][i], _digits(key)) for arm in ARMS),
                _cell(results.difference[key][i], _digits(key), "+"),
                p(key, i),
            )
            for i, samples in enumerate(results.samples)
        ]
        groups.append((name, rows))
    return Table("Quality", ("samples seen", *ARMS.values(), "difference by seed", "p"), groups)


def _parameters_table(results: ComparisonResults) -> Table:
    found = counted(results)
    whole = list(found.values())[-1]
    rows = [(name, f"{value:,}", factor(value / whole)) for name, value in found.items()]
    encoder = next(role.total for role in results.arms["vl_jepa"][0].parameters if role.role == "X-Encoder")
    rows.append(("X-Encoder of both, frozen", f"{encoder:,}", NONE))
    return Table("", ("counted", "parameters", "of the token VLM's"), [("", rows)])


def _cost_table(results: ComparisonResults) -> Table:
    """Training, a single answer, and a step of a stream."""

    def row(name: str, value: _Value, digits: int | None = None) -> tuple[str, ...]:
        """Means over seeds with their interval; without `digits` three significant digits of the mean."""
        cells = []
        for runs in results.arms.values():
            values = [found for run in runs if (found := value(run)) is not None]
            mean = SeedMean.of(values) if values else None
            cells.append(NONE if mean is None else f"{mean.value:.3g}" if digits is None else _cell(mean, digits))
        return (name, *cells)

    def step(name: str, key: str) -> _Value:
        return lambda run: getattr(run.streams.get(name, run.streams[EVERY_STEP]), key)

    first = results.arms["vl_jepa"][0].points[0]
    batch = first.samples // first.steps
    rates = [", ".join(f"{run.learning_rate:g}" for run in runs) for runs in results.arms.values()]
    training = [
        row(f"FLOPs per step of {batch}, trained parts", lambda run: run.step_flops.trained),
        row("FLOPs per step of the frozen encoder (once)", lambda run: run.step_flops.encoder),
        row("seconds, all learning rates", lambda run: sum(trial.seconds for trial in run.tried), 1),
        ("learning rates chosen, by seed", *rates),
        row("FLOPs of training a decoder at a point, beside", lambda run: run.per_decoder("flops")),
        row("seconds of training a decoder", lambda run: run.per_decoder("seconds"), 1),
    ]
    answer = [
        row("encoding the clip, ms", lambda run: run.answers.encode_ms, 2),
        row("predicting its embedding, ms, part of the answer", lambda run: run.answers.predict_ms, 2),
        row("answer from its states, ms", lambda run: run.answers.answer_ms, 2),
        row("tokens", lambda run: run.answers.tokens, 1),
    ]
    groups = [("training", training), ("a single answer", answer)]
    for name in (EVERY_STEP, SELECTIVELY):
        rows = [row(words, step(name, key), None if "flops" in key else 2) for key, words in _STEP.items()]
        groups.append((f"a step of a stream; VL-JEPA decoding {name}, the VLM generating at every step", rows))
    return Table("", ("", *ARMS.values()), groups)


def _verdict(results: ComparisonResults) -> list[str]:
    """Quality at the most samples, and parameters, in a sentence each."""
    lines = []
    for key in ("cider_d", "top5"):
        jepa, vlm = (fixed(results.curves[arm][key][-1].value, _digits(key)) for arm in ARMS)
        found = results.difference[key][-1]
        if found.low is None or found.high is None:
            word = "one seed, so no interval"
        elif found.low <= 0 <= found.high:
            word = "not told apart over these seeds"
        else:
            word = f"{'VL-JEPA' if found.value > 0 else 'the token VLM'} is higher"
        lines.append(
            f"{FIGURES[key]} after {results.samples[-1]:,} samples: VL-JEPA {jepa}, token VLM {vlm}, "
            f"difference {_cell(found, _digits(key), '+')}: {word}."
        )
    *parts, whole = counted(results).values()
    ratios = ", ".join(factor(value / whole) for value in parts)
    lines.append(
        f"Trained parameters of VL-JEPA over the token VLM's: {ratios} (predictor; with Y-Encoder; with Y-Decoder)."
    )
    return lines


def _draw(results: ComparisonResults, colours: Colours) -> Drawing:
    """CIDEr-D and top-5 against samples seen: a line an arm, its interval over seeds, a dot a seed."""
    figure, samples = sized(1060, 380, "constrained"), results.samples
    panels: list[Axes] = list(figure.subplots(1, 2))
    for axes, key in zip(panels, ("cider_d", "top5"), strict=True):
        for arm, series in (("vl_jepa", 4), ("token_vlm", 1)):
            curve = results.curves[arm][key]
            low, high = (
                [end for found in curve if (end := getattr(found, side)) is not None] for side in ("low", "high")
            )
            line = Line(ARMS[arm], samples, [found.value for found in curve], series, low or None, high or None)
            draw_line(axes, line, colours, label=ARMS[arm])
            for x, found in zip(samples, curve, strict=True):
                seeds: dict[str, Any] = {"markersize": 3, "color": colours[f"series-{series}"], "alpha": 0.45}
                axes.plot([x] * len(found.seeds), found.seeds, "o", **seeds)
        frame(axes, colours, "y")
        title(axes, FIGURES[key], colours, fontsize=FONT + 1, color=colours["ink"])
        axes.set_xscale("log")
        axes.set_xticks(samples)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(EngFormatter())
        axes.set_ylim(bottom=0)
        axes.set_xlabel("samples seen", color=colours["muted"])
    chance = results.arms["vl_jepa"][0].points[0].chance5
    panels[1].axhline(chance, color=colours["muted"], linewidth=0.9, linestyle=(0, (1, 2)))
    panels[0].legend(frameon=False, labelcolor=colours["ink"])
    return figure
