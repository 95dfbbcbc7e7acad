"""Streams of requests, typed or recurring: results document, table and picture.

A document of the schema ``jepa.requests/1`` holds everything that is shown here; its figures are computed where it is
made. Shares lie between 0 and 1, FLOPs are whole operations, times seconds; a record of value, low and high is a figure
with its 95 % interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jepa.report import plots
from jepa.report.plots import FONT, INCH, LIGHT
from jepa.report.schema import (
    CODE,
    DEVICE,
    Check,
    Results,
    check_document,
    count,
    flag,
    mapping,
    nullable,
    number,
    ordered,
    plain,
    ratio,
    record,
    refuse,
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
    escape_markdown,
    factor,
    factor_with_interval,
    fixed,
    interval,
    markdown_table,
)

SCHEMA = "jepa.requests/1"

# --- The document.

_NUMBER, _QUANTITY = number(), number(0)
_INTERVAL = record(dict.fromkeys(("value", "low", "high"), _NUMBER), ordered("low", "high"))
_PER_REQUEST = record(
    dict.fromkeys(
        ("decoder_calls", "decoder_passes", "tokens", "encoder_flops", "predictor_flops", "decoder_flops", "flops"),
        _QUANTITY,
    )
)
_TYPING_ROW = record(
    {
        **dict.fromkeys(("name", "label", "knob", "reason"), text),
        **dict.fromkeys(("chosen", "reached"), flag),
        **dict.fromkeys(("value", "wait_seconds"), _NUMBER),
        **dict.fromkeys(("exact_match", "settled", "agreement"), _INTERVAL),
        "difference": nullable(_INTERVAL),
        "saving": record(dict.fromkeys(("calls", "flops", "forward_passes"), nullable(ratio))),
        "per_request": _PER_REQUEST,
        "seconds_per_request": nullable(mapping(_QUANTITY)),
        "curve": sequence(
            record({"value": _NUMBER, "calls_per_request": _QUANTITY, "exact_match": number(0, 1)}), shortest=1
        ),
    }
)
_TYPING = record(
    {
        "streams": mapping(
            record(dict.fromkeys(("streams", "requests", "steps", "corrections"), count) | {"seconds": _QUANTITY})
        ),
        "live_requests": count,
        "rows": sequence(_TYPING_ROW, shortest=1),
    }
)
_REUSE = record(
    {
        "values": sequence(_NUMBER),
        **dict.fromkeys(
            (
                "hits",
                "differing_hits",
                "error",
                "repaired",
                "exact_match",
                "exact_match_difference",
                "equivalent",
                "equivalent_difference",
            ),
            _INTERVAL,
        ),
        **dict.fromkeys(("beyond_exact", "flops_ratio", "passes_ratio"), _NUMBER),
        "per_request": _PER_REQUEST,
    }
)
_RECURRING = record(
    {
        "expressions": count,
        "requests": count,
        "settings": mapping(
            record(
                {
                    "streams": count,
                    "requests": count,
                    "rows": sequence(
                        record(
                            {
                                "name": text,
                                "label": text,
                                "requested_error": nullable(number(0, 1)),
                                "found": nullable(_REUSE),
                            }
                        ),
                        shortest=1,
                    ),
                }
            )
        ),
    }
)
KINDS: dict[str, Check] = {"typing": _TYPING, "recurring": _RECURRING}
_SETTINGS = {"each_once": "each phrasing once", "zipf": "Zipf"}


def _of_kind(value: Any, path: str) -> None:
    if value["kind"] not in KINDS:
        refuse(f"{path}.kind", f"be one of {', '.join(KINDS)}", value["kind"])
    KINDS[value["kind"]](value, path)


DOCUMENT = record(
    {
        **dict.fromkeys(("created", "kind", "name"), text),
        "code": CODE,
        "libraries": mapping(text),
        "device": DEVICE,
        "config": mapping(plain),
    },
    _of_kind,
)


def validate_results(results: Results) -> None:
    """Check a document against ``jepa.requests/1``.

    Raises InputError on the first fault, naming its path in the document, the rule and the value got.
    """
    check_document(results, SCHEMA, DOCUMENT)


def write_report(results: Results, folder: str | Path) -> dict[str, Path]:
    """Write requests.json, requests.md and requests.png into a folder, which is made if missing.

    Returns the paths by file name. Everything is rendered before anything is written.

    Raises InputError for a bad document or a folder that cannot be written.
    """
    validate_results(results)
    contents = {
        "requests.json": json.dumps(results, allow_nan=False, indent=1).encode(),
        "requests.md": markdown(results).encode(),
        "requests.png": overview_png(results),
    }
    paths = {name: Path(folder) / name for name in contents}
    write_whole({paths[name]: content for name, content in contents.items()})
    return paths


# --- Tables.


def _with_interval(found: Mapping[str, float], digits: int, sign: str = "", scale: float = 1.0) -> str:
    value, low, high = (scale * found[key] for key in ("value", "low", "high"))
    return f"{fixed(value, digits, sign)} ({interval(low, high, digits, sign)})"


def _points(found: Mapping[str, float] | None) -> str:
    """A difference of fractions."""
    return NONE if found is None else _with_interval(found, 1, "+", 100)


def _requested(row: Mapping[str, Any]) -> str:
    return NONE if row["requested_error"] is None else f"{100 * row['requested_error']:g}"


def _at(row: Mapping[str, Any]) -> str:
    return f"{clean(row['knob'])} {row['value']:.3g}" if row["knob"] else NONE


def _exact_match(row: Mapping[str, Any]) -> str:
    """At the last word; of a method that waits, also what its difference and verdict are of."""
    found = _with_interval(row["exact_match"], 3)
    wait = row["wait_seconds"]
    return f"{found}; {wait:g} s later {_with_interval(row['settled'], 3)}" if wait else found


def _verdict(row: Mapping[str, Any], reference: Mapping[str, Any]) -> str:
    """Whether uniform decoding's exact match is kept; `reference` is its row."""
    if row["name"] == reference["name"]:
        return NONE
    if not reference["exact_match"]["value"]:
        return "nothing to keep"
    if not row["chosen"]:
        return "no, none on calibration"
    return ("yes" if row["reached"] else "no") + (f", {row['wait_seconds']:g} s later" if row["wait_seconds"] else "")


def _table(rows: Iterable[Any], *columns: tuple[str, Callable[[Any], str]], words: int = 1) -> Table:
    """A row for each of `rows`, a column for each title and what its cells are; the first `words` hold words."""
    cells = tuple(tuple(cell(row) for _, cell in columns) for row in rows)
    return Table(tuple(title for title, _ in columns), (("", cells),), text_columns=words)


def _name(row: Mapping[str, Any]) -> str:
    return clean(row["label"])


def _each(key: str) -> Callable[[Mapping[str, Any]], str]:
    """A count of each request."""
    return lambda row: fixed(row["per_request"][key], 2)


def _mega(key: str) -> Callable[[Mapping[str, Any]], str]:
    """Millions of FLOPs of each request."""
    return lambda row: fixed(row["per_request"][key] / 1e6, 1)


def typing_table(results: Results) -> Table:
    """What each method does to exact match, and what it saves."""

    def saved(key: str) -> Callable[[Mapping[str, Any]], str]:
        return lambda row: factor_with_interval(row["saving"][key])

    return _table(
        results["rows"],
        ("method", _name),
        ("at", _at),
        ("exact match at the last word", _exact_match),
        ("difference, points", lambda row: _points(row["difference"])),
        ("kept", lambda row: _verdict(row, results["rows"][0])),
        ("agreement at every word", lambda row: fixed(row["agreement"]["value"], 3)),
        ("fewer decoder calls", saved("calls")),
        ("fewer forward passes", saved("forward_passes")),
        ("fewer FLOPs", saved("flops")),
        words=2,
    )


def typing_operations_table(results: Results) -> Table:
    """The operations of each request."""

    def milliseconds(row: Mapping[str, Any]) -> str:
        live = row["seconds_per_request"]
        return NONE if live is None else fixed(1000 * live["all"], 0)

    return _table(
        results["rows"],
        ("method", _name),
        ("decoder calls", _each("decoder_calls")),
        ("decoder passes", _each("decoder_passes")),
        ("tokens", _each("tokens")),
        ("MFLOPs encoder", _mega("encoder_flops")),
        ("predictor", _mega("predictor_flops")),
        ("decoder", _mega("decoder_flops")),
        ("all", _mega("flops")),
        ("ms", milliseconds),
    )


def recurring_table(setting: Mapping[str, Any]) -> Table:
    """What each way to reuse answers saves, and what it spoils, by the error requested."""
    header = (
        "method",
        "requested error, %",
        "achieved, %",
        "repaired, %",
        "hits, %",
        "decodes saved beyond exact text, %",
        "exact match",
        "difference, points",
        "equivalent",
        "difference, points",
    )
    rows = []
    for row in setting["rows"]:
        found = row["found"]
        if found is None:
            rows.append((_name(row), _requested(row), "no threshold", *[NONE] * 7))
            continue
        rows.append(
            (
                _name(row),
                _requested(row),
                _with_interval(found["error"], 2, scale=100),
                fixed(100 * found["repaired"]["value"], 2),
                _with_interval(found["hits"], 1, scale=100),
                fixed(100 * found["beyond_exact"], 1, "+"),
                fixed(found["exact_match"]["value"], 3),
                _points(found["exact_match_difference"]),
                fixed(found["equivalent"]["value"], 3),
                _points(found["equivalent_difference"]),
            )
        )
    return Table(header, (("", tuple(rows)),))


def recurring_operations_table(setting: Mapping[str, Any]) -> Table:
    """The operations of each request, and all of them relative to always decoding."""
    found = [{**row, **row["found"]} for row in setting["rows"] if row["found"] is not None]
    return _table(
        found,
        ("method", _name),
        ("requested error, %", _requested),
        ("thresholds of the halves", lambda row: ", ".join(f"{value:g}" for value in row["values"]) or NONE),
        (
            "hits that are not the model's own answer, %",
            lambda row: fixed(100 * row["differing_hits"]["value"], 2),
        ),
        ("decoder calls", _each("decoder_calls")),
        ("decoder passes", _each("decoder_passes")),
        ("tokens", _each("tokens")),
        ("MFLOPs", _mega("flops")),
        ("passes, all parts", lambda row: factor(row["passes_ratio"])),
        ("FLOPs, all parts", lambda row: factor(row["flops_ratio"])),
    )


# --- Text.

_TYPING_NOTES = (
    "Exact match is that of the answer in force at the last word of a request, at once; a request is followed by the "
    "next, and nothing tells that it is complete. A method that waits is late for that: its second figure is of the "
    "answer in force when the next request begins, and `difference` and `kept` are of this one. `kept`: the threshold, "
    "chosen on validation streams, keeps uniform decoding's exact match on the test streams. Encoder, predictor and "
    "verification count where a method uses them; all parts share one key/value cache and compute only tokens that are "
    "new, uniform decoding's prompts included. "
    "Intervals are bootstraps over streams. `ms`: wall time a request, one step at a time."
)
_RECURRING_NOTES = (
    "Error: the fraction of all requests that were given a reused answer which is not equivalent to the "
    "right one, where "
    "the model's own would have been; `repaired`: the other way round. Thresholds for each half of the held-out "
    "expressions are calibrated on the other half, each phrasing once: the largest whose error there, with one more "
    "counted than seen, is at most the one requested. Intervals are bootstraps over expressions."
)


def markdown(results: Results) -> str:
    """The report as Markdown.

    Raises InputError if the document is not a valid ``jepa.requests/1``.
    """
    validate_results(results)
    blocks = [f"# {escape_markdown(clean(results['name']))}: requests, {results['kind']}"]
    if results["kind"] == "typing":
        blocks += [escape_markdown(_typed(results)), markdown_table(typing_table(results))]
        blocks += ["## Operations of each request", markdown_table(typing_operations_table(results)), _TYPING_NOTES]
    else:
        for name, setting in results["settings"].items():
            blocks += [
                f"## {escape_markdown(_SETTINGS.get(name, clean(name)))}",
                f"{setting['requests']:,} requests in {setting['streams']} streams, of {results['expressions']:,} "
                f"held-out expressions in {results['requests']:,} phrasings.",
                markdown_table(recurring_table(setting)),
                markdown_table(recurring_operations_table(setting)),
            ]
        blocks.append(_RECURRING_NOTES)
    device = results["device"]
    found = f"{code_text(results['code'])}; {clean(device['name'])}, {device['threads']} threads; "
    blocks.append(escape_markdown(f"Made by {found}{clean(results['created'])}."))
    return "\n\n".join(blocks) + "\n"


def _typed(results: Results) -> str:
    test, calibration = results["streams"]["test"], results["streams"]["calibration"]
    right = results["rows"][0]["exact_match"]["value"]
    return (
        f"{test['requests']:,} test requests in {test['streams']} streams: {test['steps']:,} steps, "
        f"{test['corrections']:,} wrong words among them; thresholds chosen on {calibration['requests']:,} "
        "validation requests."
    ) + (" Uniform decoding never answers right: there is no quality to keep." if not right else "")


def summary(results: Results) -> str:
    """The main figures for a terminal of 100 columns.

    Raises InputError if the document is not a valid ``jepa.requests/1``.
    """
    validate_results(results)
    widths: tuple[int, ...]
    if results["kind"] == "typing":
        widths = (33, 18, 22, 23)
        header: Row = ("method", "exact match", "fewer decoder calls", "kept")
        rows: list[Row] = [
            (
                clean(row["label"]),
                fixed(row["exact_match"]["value"], 3)
                + (f", later {fixed(row['settled']['value'], 3)}" if row["wait_seconds"] else ""),
                factor_with_interval(row["saving"]["calls"]),
                _verdict(row, results["rows"][0]),
            )
            for row in results["rows"]
        ]
    else:
        widths = (51, 10, 10, 10, 12)
        header = ("method", "asked, %", "error, %", "hits, %", "EM, points")
        rows = []
        for name, setting in results["settings"].items():
            rows.append((_SETTINGS.get(name, clean(name)), "", "", "", ""))
            for row in setting["rows"]:
                found = row["found"]
                cells = [NONE] * 3
                if found is not None:
                    fractions = (found["error"], found["hits"], found["exact_match_difference"])
                    cells = [
                        fixed(100 * part["value"], digits, sign)
                        for part, digits, sign in zip(fractions, (2, 1, 1), ("", "", "+"), strict=True)
                    ]
                rows.append((f"  {_name(row)}", _requested(row), *cells))
    rule = tuple("─" * width for width in widths)
    return "\n".join(columns([header, rule, *rows], widths, text_columns=1))


# --- Picture.

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


def overview_png(results: Results) -> bytes:
    """Quality against cost, and what each method saves, as the content of a PNG file."""
    draw = _draw_typing if results["kind"] == "typing" else _draw_recurring
    with plots.drawing():
        figure = Figure(figsize=(1200 / INCH, 560 / INCH), facecolor=LIGHT["surface"])
        figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.1)
        draw(figure, results)
        return plots.png(figure)


def _colour(name: str) -> str:
    return LIGHT[f"series-{_COLOURS.get(name, 7)}"]


def _panel(axes: Axes, title: str, x: str, y: str = "") -> None:
    plots.frame(axes, LIGHT)
    axes.grid(color=LIGHT["grid"], linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_title(title, loc="left", fontsize=FONT + 1, color=LIGHT["ink"])
    axes.set_xlabel(x, color=LIGHT["muted"])
    axes.set_ylabel(y, color=LIGHT["muted"])


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, ncols=4, frameon=False, fontsize=FONT - 1, labelcolor=LIGHT["ink"], loc="outside lower center"
    )


def _draw_typing(figure: Figure, results: Results) -> None:
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    for index, row in enumerate(results["rows"]):
        points = sorted(row["curve"], key=lambda point: point["calls_per_request"])
        x, y = ([point[key] for point in points] for key in ("calls_per_request", "exact_match"))
        marker, dash = plots.MARKERS[index % len(plots.MARKERS)], "--" if row["name"].endswith("verify") else "-"
        colour = _colour(row["name"])
        left.plot(x, y, color=colour, linewidth=1.2, linestyle=dash, marker=marker, markersize=4, label=row["label"])
        at = row["per_request"]["decoder_calls"]
        left.plot(at, row["exact_match"]["value"], marker, markersize=9, color=colour, markeredgecolor=LIGHT["ink"])
    left.set_xscale("log")
    ticks = [1, 2, 3, 5, 10, 15]
    left.set_xticks(ticks, [str(tick) for tick in ticks])
    left.minorticks_off()
    _panel(left, "Answers at the last word, test streams", "decoder calls per request", "exact match")
    _legend(figure, left)

    for place, row in enumerate(results["rows"]):
        for shift, key, alpha in ((-0.2, "calls", 1.0), (0.2, "flops", 0.45)):
            if found := row["saving"][key]:
                right.barh(place + shift, found["value"], height=0.36, color=_colour(row["name"]), alpha=alpha)
                right.plot([found["low"], _end(found)], [place + shift] * 2, color=LIGHT["ink"], linewidth=1)
        verdict, calls = _verdict(row, results["rows"][0]), row["saving"]["calls"]
        text = (factor(calls["value"]) if calls else "decodes nothing") + (
            f"  kept: {verdict}" if verdict != NONE else ""
        )
        right.annotate(
            text,
            (max(_end(row["saving"][key]) for key in ("calls", "flops")), place),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=FONT - 1,
            color=LIGHT["ink"],
        )
    right.set_yticks(range(len(results["rows"])), [row["label"] for row in results["rows"]], color=LIGHT["ink"])
    right.invert_yaxis()
    right.set_xlim(0, 1.5 * max(_end(row["saving"]["calls"]) for row in results["rows"]))
    _panel(right, "Times fewer decoder calls (full) and FLOPs of all parts (pale)", "uniform decoding over the method")


def _end(found: Mapping[str, float] | None) -> float:
    """Where the bar of a ratio and its interval end."""
    return 0.0 if found is None else found["value"] if found["high"] is None else found["high"]


def _draw_recurring(figure: Figure, results: Results) -> None:
    panels = figure.subplots(1, len(results["settings"]), squeeze=False, sharey=False)[0]
    for axes, (name, setting) in zip(panels, results["settings"].items(), strict=True):
        drawn: dict[str, list[tuple[float, float]]] = {}
        labels = {}
        for row in setting["rows"]:
            found = row["found"]
            if found is None:
                continue
            saved = 100 * (1 - found["per_request"]["decoder_calls"])
            change = found["exact_match_difference"]
            drawn.setdefault(row["name"], []).append((saved, 100 * change["value"]))
            labels[row["name"]] = clean(row["label"])
            axes.plot(
                [saved] * 2,
                [100 * change["low"], 100 * change["high"]],
                color=_colour(row["name"]),
                linewidth=1,
                alpha=0.5,
            )
        for index, (method, points) in enumerate(drawn.items()):
            axes.plot(
                *zip(*points, strict=True),
                color=_colour(method),
                marker=plots.MARKERS[index % len(plots.MARKERS)],
                linewidth=1.2,
                markersize=6,
                label=labels[method],
            )
        axes.axhline(0, color=LIGHT["muted"], linewidth=0.8)
        title = f"{_SETTINGS.get(name, clean(name))}: {setting['requests']:,} requests"
        _panel(axes, title, "decodes saved, %", "exact match over always decoding, points")
    _legend(figure, panels[0])
