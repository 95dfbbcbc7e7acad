"""The report of the request studies: quality against cost, and the operations of a request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from jepa.metrics import Interval
from jepa.report.blocks import Block, Colours, Definitions, Figure, Heading, Report, Text
from jepa.report.figures import FONT, MARKERS, Dots, Line, draw_dots, draw_line, frame, label_bars, sized, title
from jepa.report.format import code_text, device_text, factor, fixed, libraries_text, saving, with_interval
from jepa.report.notes import terms
from jepa.report.tables import NONE, Column, Table, table
from jepa.results.base import Ratio
from jepa.studies.requests import results as made

_SETTINGS = {"each_once": "each phrasing once", "zipf": "Zipf"}
_SERIES = {  # of the palette, by method
    **dict.fromkeys(("uniform", "oracle", "always"), 1),
    **dict.fromkeys(("words", "words_verify", "words_verified"), 2),
    **dict.fromkeys(("delta", "latent", "exact_latent"), 4),
    **dict.fromkeys(("endpoint", "endpoint_verify", "latent_verified", "exact_latent_verified"), 5),
    **dict.fromkeys(("verify", "lossless"), 6),
}


def report(document: made.RequestResults) -> Report:
    """The tables of the study, its picture, notes and provenance."""
    results = document.results
    if isinstance(results, made.TypingResults):
        summary, blocks = _typing_summary(results), _typing_blocks(results)
        draw: Callable[[Colours], Drawing] = partial(_draw_typing, results)
    else:
        summary, blocks = _recurring_summary(results), _recurring_blocks(results)
        draw = partial(_draw_recurring, results)
    provenance = [("created", document.created), ("code", code_text(document.code))]
    provenance += [("device", device_text(document.device)), ("libraries", libraries_text(document.libraries))]
    blocks = [
        *blocks[:1],
        Figure("quality", "Quality against cost", draw, wide=True),
        *blocks[1:],
        Heading("Measures and method"),
        terms(results.study),
        Heading("Provenance"),
        Definitions(provenance),
    ]
    return Report(f"{document.name}: requests, {results.study}", "Streams of requests", [summary], blocks, draw)


def _points(found: Interval | None) -> str:
    """A difference of fractions."""
    return NONE if found is None else with_interval(found, 1, "+", 100)


def _mega(flops: float) -> str:
    return fixed(flops / 1e6, 1)


# --- Typed requests.


def _exact_match(row: made.TypingRow) -> str:
    """At the last word; of a method that waits, also the figure behind its difference and verdict."""
    found = with_interval(row.exact_match, 3)
    return f"{found}; {row.wait_seconds:g} s later {with_interval(row.settled, 3)}" if row.wait_seconds else found


def _verdict(row: made.TypingRow, uniform: made.TypingRow) -> str:
    """Whether uniform decoding's exact match is kept."""
    if row.name == uniform.name:
        return NONE
    if not uniform.exact_match.value:
        return "nothing to keep"
    if not row.chosen:
        return "no, none on calibration"
    return ("yes" if row.reached else "no") + (f", {row.wait_seconds:g} s later" if row.wait_seconds else "")


def _typing_blocks(results: made.TypingResults) -> list[Block]:
    test, uniform, rows = results.test, results.rows[0], [("", results.rows)]
    lede = (
        f"{test.requests:,} test requests in {test.streams} streams: {test.steps:,} steps, {test.corrections:,} wrong "
        f"words among them; thresholds chosen on {results.calibration.requests:,} validation requests."
    )
    if not uniform.exact_match.value:
        lede += " Uniform decoding never answers right: there is no quality to keep."
    quality: list[Column[made.TypingRow]] = [
        Column("method", lambda row: row.label, words=True),
        Column("at", lambda row: f"{row.parameter} {row.value:.3g}" if row.parameter else NONE, words=True),
        Column("exact match at the last word", _exact_match),
        Column("difference, points", lambda row: _points(row.difference)),
        Column("kept", lambda row: _verdict(row, uniform)),
        Column("fewer decoder calls", lambda row: saving(row.saving.calls)),
        Column("fewer forward passes", lambda row: saving(row.saving.forward_passes)),
        Column("fewer FLOPs", lambda row: saving(row.saving.flops)),
    ]
    spent: list[Column[made.TypingRow]] = [
        Column("method", lambda row: row.label, words=True),
        Column("decoder calls", lambda row: fixed(row.per_request.decoder_calls, 2)),
        Column("decoder passes", lambda row: fixed(row.per_request.decoder_passes, 2)),
        Column("tokens", lambda row: fixed(row.per_request.tokens, 2)),
        Column("MFLOPs encoder", lambda row: _mega(row.per_request.encoder_flops)),
        Column("predictor", lambda row: _mega(row.per_request.predictor_flops)),
        Column("decoder", lambda row: _mega(row.per_request.decoder_flops)),
        Column("all", lambda row: _mega(row.per_request.flops)),
    ]
    operations = Heading("Operations of each request")
    return [Text(lede), table("Quality and savings", quality, rows), operations, table("", spent, rows)]


def _typing_summary(results: made.TypingResults) -> Table:
    def match(row: made.TypingRow) -> str:
        later = f", later {fixed(row.settled.value, 3)}" if row.wait_seconds else ""
        return fixed(row.exact_match.value, 3) + later

    columns: list[Column[made.TypingRow]] = [
        Column("method", lambda row: row.label, words=True),
        Column("exact match", match),
        Column("fewer decoder calls", lambda row: saving(row.saving.calls)),
        Column("kept", lambda row: _verdict(row, results.rows[0])),
    ]
    return table("", columns, [("", results.rows)])


# --- Recurring requests.


def _found(cell: Callable[[made.Reuse], str], without: str = NONE) -> Callable[[made.ReuseRow], str]:
    return lambda row: without if row.found is None else cell(row.found)


_REUSED: list[Column[made.ReuseRow]] = [
    Column("method", lambda row: row.label, words=True),
    Column("asked, %", lambda row: NONE if row.requested_error is None else f"{100 * row.requested_error:g}"),
]


def _recurring_blocks(results: made.RecurringResults) -> list[Block]:
    quality = [
        *_REUSED,
        Column("error, %", _found(lambda found: with_interval(found.error, 2, scale=100), "no threshold")),
        Column("hits, %", _found(lambda found: with_interval(found.hits, 1, scale=100))),
        Column("decodes saved beyond exact text, %", _found(lambda found: fixed(100 * found.beyond_exact, 1, "+"))),
        Column("exact match", _found(lambda found: fixed(found.exact_match.value, 3))),
        Column("difference, points", _found(lambda found: _points(found.exact_match_difference))),
    ]
    spent = [
        *_REUSED,
        Column("thresholds of the halves", _found(lambda found: ", ".join(f"{v:g}" for v in found.values) or NONE)),
        Column(
            "hits unlike the model's own answer, %", _found(lambda found: fixed(100 * found.differing_hits.value, 2))
        ),
        Column("decoder calls", _found(lambda found: fixed(found.per_request.decoder_calls, 2))),
        Column("decoder passes", _found(lambda found: fixed(found.per_request.decoder_passes, 2))),
        Column("tokens", _found(lambda found: fixed(found.per_request.tokens, 2))),
        Column("MFLOPs", _found(lambda found: _mega(found.per_request.flops))),
        Column("passes, all parts", _found(lambda found: factor(found.passes_ratio))),
        Column("FLOPs, all parts", _found(lambda found: factor(found.flops_ratio))),
    ]
    blocks: list[Block] = [Text(f"{results.expressions:,} held-out expressions in {results.requests:,} phrasings.")]
    for name, setting in results.settings.items():
        counts = f"{setting.requests:,} requests in {setting.streams} streams."
        blocks += [Heading(_SETTINGS.get(name, name)), Text(counts), table("Reuse", quality, [("", setting.rows)])]
        rows = [row for row in setting.rows if row.found is not None]
        blocks.append(table("Operations of each request", spent, [("", rows)]))
    return blocks


def _recurring_summary(results: made.RecurringResults) -> Table:
    columns = [
        *_REUSED,
        Column("error, %", _found(lambda found: fixed(100 * found.error.value, 2))),
        Column("hits, %", _found(lambda found: fixed(100 * found.hits.value, 1))),
        Column("EM, points", _found(lambda found: fixed(100 * found.exact_match_difference.value, 1, "+"))),
    ]
    return table("", columns, [(_SETTINGS.get(name, name), each.rows) for name, each in results.settings.items()])


# --- Pictures.


def _panel(axes: Axes, colours: Colours, name: str, x: str, y: str) -> None:
    frame(axes, colours, "both")
    title(axes, name, colours, color=colours["ink"], fontsize=FONT + 1)
    axes.set_xlabel(x, color=colours["muted"])
    axes.set_ylabel(y, color=colours["muted"])


def _legend(figure: Drawing, axes: Axes, colours: Colours) -> None:
    style: dict[str, Any] = {"frameon": False, "fontsize": FONT - 1, "labelcolor": colours["ink"]}
    figure.legend(*axes.get_legend_handles_labels(), ncols=4, loc="outside lower center", **style)


def _draw_typing(results: made.TypingResults, colours: Colours) -> Drawing:
    """Exact match against decoder calls, and times fewer decoder calls and FLOPs by method."""
    figure, rows = sized(1200, 560, "constrained"), results.rows
    curves, calls, flops = figure.subplots(1, 3, width_ratios=(1.6, 1, 1))
    for index, row in enumerate(rows):
        points = sorted(row.curve, key=lambda point: point.calls_per_request)
        x, y = [point.calls_per_request for point in points], [point.exact_match for point in points]
        series, marker = _SERIES.get(row.name, 0), MARKERS[index % len(MARKERS)]
        dash = "--" if row.name.endswith("verify") else "-"
        draw_line(curves, Line(row.label, x, y, series), colours, marker=marker, linestyle=dash, label=row.label)
        at, colour = (row.per_request.decoder_calls, row.exact_match.value), colours[f"series-{series}"]
        curves.plot(*at, marker, markersize=9, color=colour, markeredgecolor=colours["ink"])
    curves.set_xscale("log")
    curves.set_xticks(ticks := [1, 2, 3, 5, 10, 15], [str(tick) for tick in ticks])
    curves.minorticks_off()
    _panel(curves, colours, "Answers at the last word, test streams", "decoder calls per request", "exact match")
    _legend(figure, curves, colours)

    def dots(name: str, found: Ratio | None) -> Dots:
        series = _SERIES.get(name, 0)
        return Dots(series, (), None) if found is None else Dots(series, (), found.value, found.low, found.high)

    draw_dots(calls, "times fewer decoder calls", [dots(row.name, row.saving.calls) for row in rows], colours)
    draw_dots(flops, "times fewer FLOPs", [dots(row.name, row.saving.flops) for row in rows], colours)
    label_bars(calls, [row.label for row in rows], colours)
    flops.set_yticks([])
    return figure


def _draw_recurring(results: made.RecurringResults, colours: Colours) -> Drawing:
    """The change of exact match against the decodes saved: a panel a setting."""
    figure = sized(1200, 560, "constrained")
    panels = figure.subplots(1, len(results.settings), squeeze=False)[0]
    for axes, (name, setting) in zip(panels, results.settings.items(), strict=True):
        for index, (line, low, high) in enumerate(_lines(setting)):
            draw_line(axes, line, colours, marker=MARKERS[index % len(MARKERS)], linestyle="-", label=line.name)
            axes.vlines(line.x, low, high, colors=colours[f"series-{line.series}"], linewidth=1, alpha=0.5)
        axes.axhline(0, color=colours["muted"], linewidth=0.8)
        words = f"{_SETTINGS.get(name, name)}: {setting.requests:,} requests"
        _panel(axes, colours, words, "decodes saved, %", "exact match over always decoding, points")
    _legend(figure, panels[0], colours)
    return figure


def _lines(setting: made.ReuseSetting) -> Iterable[tuple[Line, list[float], list[float]]]:
    """The change of exact match of each method against the decodes it saves, and the ends of its intervals."""
    methods: dict[tuple[str, str], list[made.Reuse]] = {}
    for row in setting.rows:
        if row.found is not None:
            methods.setdefault((row.name, row.label), []).append(row.found)
    for (name, label), found in methods.items():
        found.sort(key=lambda each: each.per_request.decoder_calls, reverse=True)
        saved = [100 * (1 - each.per_request.decoder_calls) for each in found]
        changes = [each.exact_match_difference for each in found]
        value, low, high = ([100 * getattr(one, end) for one in changes] for end in ("value", "low", "high"))
        yield Line(label, saved, value, _SERIES.get(name, 0)), low, high
