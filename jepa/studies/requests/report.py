"""The report of the request studies: quality against cost, and the operations of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from jepa.metrics import Interval
from jepa.report.blocks import NONE, Block, Colours, Definitions, Figure, Heading, Report, Table, Text
from jepa.report.figures import FONT, INCH, MARKERS, frame
from jepa.report.format import code_text, device_text, factor, factor_with_interval, fixed, interval
from jepa.results.base import Ratio
from jepa.studies.requests.results import (
    PerRequest,
    RecurringResults,
    RequestResults,
    ReuseRow,
    ReuseSetting,
    TypingResults,
    TypingRow,
)

_SETTINGS = {"each_once": "each phrasing once", "zipf": "Zipf"}
_TYPING_NOTES = (
    ("Exact match", "Of the answer in force at the last word of a request. The next request follows, and nothing tells "
     "that a request is complete. A method that waits is late: its second figure is of the answer in force when the "
     "next request begins, and difference and kept are of that one."),
    ("Kept", "The threshold, chosen on validation streams, keeps uniform decoding's exact match on the test streams."),
    ("Operations", "Encoder, predictor and verification count where a method uses them. All parts share one key/value "
     "cache and compute only new tokens, uniform decoding's prompts included. ms: wall time of a request, one step at "
     "a time."),
    ("Intervals", "95 %, bootstraps over streams."),
)  # fmt: skip
_RECURRING_NOTES = (
    ("Error", "The fraction of all requests whose reused answer is not equivalent to the right one, where the model's "
     "own would have been. Repaired: the reverse."),
    ("Thresholds", "Those of each half of the held-out expressions are calibrated on the other half, each phrasing "
     "once: the largest whose error there, with one more counted than seen, is at most the one requested."),
    ("Intervals", "95 %, bootstraps over expressions."),
)  # fmt: skip
_COLOURS = {
    "uniform": 1,
    "delta": 4,
    "delta_ntp": 0,
    "endpoint": 5,
    "endpoint_ntp": 0,
    "words": 2,
    "kth": 0,
    "debounce": 0,
    "verify": 6,
    "endpoint_verify": 5,
    "words_verify": 2,
    "oracle": 1,
    "always": 1,
    "exact": 0,
    "latent": 4,
    "exact_latent": 4,
    "lossless": 6,
    "latent_verified": 5,
    "exact_latent_verified": 5,
    "words_verified": 2,
}


def report(document: RequestResults) -> Report:
    """The tables of the study, its picture, notes and provenance."""
    results = document.results
    if isinstance(results, TypingResults):
        summary, blocks, notes = _typing_summary(results), _typing_blocks(results), _TYPING_NOTES
        draw: Callable[[Colours], Drawing] = partial(_draw_typing, results)
    else:
        summary, blocks, notes = _recurring_summary(results), _recurring_blocks(results), _RECURRING_NOTES
        draw = partial(_draw_recurring, results)
    provenance = [
        ("created", document.created),
        ("code", code_text(document.code)),
        ("device", device_text(document.device)),
        ("libraries", ", ".join(f"{name} {version}" for name, version in document.libraries.items())),
    ]
    blocks = [
        Figure("quality", "Quality against cost", draw),
        *blocks,
        Heading("Measures and method"),
        Definitions(notes),
        Heading("Provenance"),
        Definitions(provenance),
    ]
    return Report(f"{document.name}: requests, {results.study}", "Request streams", [summary], blocks, draw)


# --- Cells.


def _with_interval(found: Interval, digits: int, sign: str = "", scale: float = 1.0) -> str:
    value, low, high = (scale * each for each in (found.value, found.low, found.high))
    return f"{fixed(value, digits, sign)} ({interval(low, high, digits, sign)})"


def _points(found: Interval | None) -> str:
    """A difference of fractions."""
    return NONE if found is None else _with_interval(found, 1, "+", 100)


def _percent(found: Interval, digits: int) -> str:
    return fixed(100 * found.value, digits)


def _requested(row: ReuseRow) -> str:
    return NONE if row.requested_error is None else f"{100 * row.requested_error:g}"


def _exact_match(row: TypingRow) -> str:
    """At the last word; of a method that waits, also the figure behind its difference and verdict."""
    found = _with_interval(row.exact_match, 3)
    if not row.wait_seconds:
        return found
    return f"{found}; {row.wait_seconds:g} s later {_with_interval(row.settled, 3)}"


def _verdict(row: TypingRow, uniform: TypingRow) -> str:
    """Whether uniform decoding's exact match is kept."""
    if row.name == uniform.name:
        return NONE
    if not uniform.exact_match.value:
        return "nothing to keep"
    if not row.chosen:
        return "no, none on calibration"
    return ("yes" if row.reached else "no") + (f", {row.wait_seconds:g} s later" if row.wait_seconds else "")


def _operations(spent: PerRequest) -> tuple[str, str, str]:
    return fixed(spent.decoder_calls, 2), fixed(spent.decoder_passes, 2), fixed(spent.tokens, 2)


def _mega(flops: float) -> str:
    return fixed(flops / 1e6, 1)


def _table(title: str, header: str, rows: Iterable[tuple[str, ...]], words: int = 1) -> Table:
    """`header` holds the names of the columns between bars."""
    return Table(title, header.split("|"), [("", list(rows))], text_columns=words)


# --- Typed requests.


def _typing_blocks(results: TypingResults) -> list[Block]:
    test, uniform = results.test, results.rows[0]
    lede = (
        f"{test.requests:,} test requests in {test.streams} streams: {test.steps:,} steps, {test.corrections:,} wrong "
        f"words among them; thresholds chosen on {results.calibration.requests:,} validation requests."
    )
    if not uniform.exact_match.value:
        lede += " Uniform decoding never answers right: there is no quality to keep."
    quality = (
        (
            row.label,
            f"{row.parameter} {row.value:.3g}" if row.parameter else NONE,
            _exact_match(row),
            _points(row.difference),
            _verdict(row, uniform),
            fixed(row.agreement.value, 3),
            *map(factor_with_interval, (row.saving.calls, row.saving.forward_passes, row.saving.flops)),
        )
        for row in results.rows
    )
    spent = (
        (
            row.label,
            *_operations(row.per_request),
            _mega(row.per_request.encoder_flops),
            _mega(row.per_request.predictor_flops),
            _mega(row.per_request.decoder_flops),
            _mega(row.per_request.flops),
            NONE if row.seconds_per_request is None else fixed(1000 * row.seconds_per_request.all, 0),
        )
        for row in results.rows
    )
    return [
        Text(lede),
        _table(
            "Quality and savings",
            "method|at|exact match at the last word|difference, points|kept|agreement at every word|"
            "fewer decoder calls|fewer forward passes|fewer FLOPs",
            quality,
            words=2,
        ),
        Heading("Operations of each request"),
        _table("", "method|decoder calls|decoder passes|tokens|MFLOPs encoder|predictor|decoder|all|ms", spent),
    ]


def _typing_summary(results: TypingResults) -> Table:
    def rows() -> Iterable[tuple[str, ...]]:
        for row in results.rows:
            later = f", later {fixed(row.settled.value, 3)}" if row.wait_seconds else ""
            match, saved = fixed(row.exact_match.value, 3) + later, factor_with_interval(row.saving.calls)
            yield row.label, match, saved, _verdict(row, results.rows[0])

    return _table("", "method|exact match|fewer decoder calls|kept", rows())


# --- Recurring requests.


def _recurring_blocks(results: RecurringResults) -> list[Block]:
    blocks: list[Block] = []
    for name, setting in results.settings.items():
        blocks += [
            Heading(_SETTINGS.get(name, name)),
            Text(
                f"{setting.requests:,} requests in {setting.streams} streams, of {results.expressions:,} held-out "
                f"expressions in {results.requests:,} phrasings."
            ),
            _table(
                "Reuse",
                "method|requested error, %|achieved, %|repaired, %|hits, %|decodes saved beyond exact text, %|"
                "exact match|difference, points|equivalent|difference, points",
                map(_reuse_cells, setting.rows),
            ),
            _table(
                "Operations of each request",
                "method|requested error, %|thresholds of the halves|hits that are not the model's own answer, %|"
                "decoder calls|decoder passes|tokens|MFLOPs|passes, all parts|FLOPs, all parts",
                _recurring_operations(setting),
            ),
        ]
    return blocks


def _reuse_cells(row: ReuseRow) -> tuple[str, ...]:
    found = row.found
    if found is None:
        return (row.label, _requested(row), "no threshold", *[NONE] * 7)
    return (
        row.label,
        _requested(row),
        _with_interval(found.error, 2, scale=100),
        _percent(found.repaired, 2),
        _with_interval(found.hits, 1, scale=100),
        fixed(100 * found.beyond_exact, 1, "+"),
        fixed(found.exact_match.value, 3),
        _points(found.exact_match_difference),
        fixed(found.equivalent.value, 3),
        _points(found.equivalent_difference),
    )


def _recurring_operations(setting: ReuseSetting) -> Iterable[tuple[str, ...]]:
    for row in setting.rows:
        if row.found is not None:
            yield (
                row.label,
                _requested(row),
                ", ".join(f"{value:g}" for value in row.found.values) or NONE,
                _percent(row.found.differing_hits, 2),
                *_operations(row.found.per_request),
                _mega(row.found.per_request.flops),
                factor(row.found.passes_ratio),
                factor(row.found.flops_ratio),
            )


def _recurring_summary(results: RecurringResults) -> Table:
    groups = []
    for name, setting in results.settings.items():
        rows = []
        for row in setting.rows:
            cells = [NONE] * 3
            if row.found is not None:
                change = fixed(100 * row.found.exact_match_difference.value, 1, "+")
                cells = [_percent(row.found.error, 2), _percent(row.found.hits, 1), change]
            rows.append((row.label, _requested(row), *cells))
        groups.append((_SETTINGS.get(name, name), rows))
    return Table("", ("method", "asked, %", "error, %", "hits, %", "EM, points"), groups)


# --- Pictures.


def _panel(axes: Axes, colours: Colours, title: str, x: str, y: str = "") -> None:
    frame(axes, colours)
    axes.grid(color=colours["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=FONT + 1, color=colours["ink"])
    axes.set_xlabel(x, color=colours["muted"])
    axes.set_ylabel(y, color=colours["muted"])


def _canvas() -> Drawing:
    figure = Drawing(figsize=(1200 / INCH, 560 / INCH))
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
    return figure


def _legend(figure: Drawing, axes: Axes, colours: Colours) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        ncols=4,
        frameon=False,
        fontsize=FONT - 1,
        labelcolor=colours["ink"],
        loc="outside lower center",
    )


def _colour(colours: Colours, name: str) -> str:
    return colours[f"series-{_COLOURS.get(name, 7)}"]


def _draw_typing(results: TypingResults, colours: Colours) -> Drawing:
    """Exact match against decoder calls, and the savings of each method."""
    figure, rows = _canvas(), results.rows
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for index, row in enumerate(rows):
        points = sorted(row.curve, key=lambda point: point.calls_per_request)
        marker, dash = MARKERS[index % len(MARKERS)], "--" if row.name.endswith("verify") else "-"
        colour = _colour(colours, row.name)
        left.plot(
            [point.calls_per_request for point in points],
            [point.exact_match for point in points],
            color=colour,
            linewidth=1.2,
            linestyle=dash,
            marker=marker,
            markersize=4,
            label=row.label,
        )
        at = (row.per_request.decoder_calls, row.exact_match.value)
        left.plot(*at, marker, markersize=9, color=colour, markeredgecolor=colours["ink"])
    left.set_xscale("log")
    ticks = [1, 2, 3, 5, 10, 15]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    _panel(left, colours, "Answers at the last word, test streams", "decoder calls per request", "exact match")
    _legend(figure, left, colours)

    for place, row in enumerate(rows):
        saved = (row.saving.calls, row.saving.flops)
        for shift, found, alpha in zip((-0.2, 0.2), saved, (1.0, 0.45), strict=True):
            if found is not None:
                right.barh(place + shift, found.value, height=0.36, color=_colour(colours, row.name), alpha=alpha)
                right.plot([found.low, _end(found)], [place + shift] * 2, color=colours["ink"], linewidth=1)
        verdict = _verdict(row, rows[0])
        text = "decodes nothing" if row.saving.calls is None else factor(row.saving.calls.value)
        right.annotate(
            text + (f"  kept: {verdict}" if verdict != NONE else ""),
            (max(map(_end, saved)), place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 1,
            color=colours["ink"],
        )
    right.set_yticks(range(len(rows)), [row.label for row in rows], color=colours["ink"])
    right.invert_yaxis()
    right.set_xlim(0, 1.5 * max(_end(row.saving.calls) for row in rows))
    title = "Times fewer decoder calls (full) and FLOPs of all parts (pale)"
    _panel(right, colours, title, "uniform decoding over the method")
    return figure


def _end(found: Ratio | None) -> float:
    """Where the bar of a ratio and its interval end."""
    return 0.0 if found is None else found.value if found.high is None else found.high


def _draw_recurring(results: RecurringResults, colours: Colours) -> Drawing:
    """The change of exact match against the decodes saved: a panel a setting."""
    figure = _canvas()
    panels = figure.subplots(1, len(results.settings), squeeze=False, sharey=False)[0]
    for axes, (name, setting) in zip(panels, results.settings.items(), strict=True):
        drawn: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in setting.rows:
            if row.found is not None:
                saved = 100 * (1 - row.found.per_request.decoder_calls)
                change = row.found.exact_match_difference
                drawn.setdefault((row.name, row.label), []).append((saved, 100 * change.value))
                ends = [100 * change.low, 100 * change.high]
                axes.plot([saved] * 2, ends, color=_colour(colours, row.name), linewidth=1, alpha=0.5)
        for index, ((method, label), points) in enumerate(drawn.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=_colour(colours, method),
                marker=MARKERS[index % len(MARKERS)],
                linewidth=1.2,
                markersize=6,
                label=label,
            )
        axes.axhline(0, color=colours["muted"], linewidth=0.8)
        title = f"{_SETTINGS.get(name, name)}: {setting.requests:,} requests"
        _panel(axes, colours, title, "decodes saved, %", "exact match over always decoding, points")
    _legend(figure, panels[0], colours)
    return figure
