"""One self-contained HTML page from a results document: no network, no scripts, light, dark and print."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from types import MappingProxyType
from typing import Any

from jepa.report import plots
from jepa.report.schema import Results, to_json, validate_results, write_whole
from jepa.report.tables import (
    CACHE_NOTE,
    COMPUTE_NOTE,
    EST,
    LEVERS_NOTE,
    MATRIX_NOTE,
    NONE,
    PARAMETERS_NOTE,
    QUALITY_NOTE,
    SCORES_NOTE,
    TRAINING_NOTE,
    Table,
    cache_table,
    clean,
    compute_table,
    has_cache,
    has_training_operations,
    headline,
    headline_savings,
    label,
    lever_chain,
    markdown,
    matrix_table,
    operations_facts,
    operations_table,
    parameters_table,
    provenance_table,
    quality_table,
    reference_name,
    savings_table,
    scores_table,
    setting_facts,
    strip_decodes,
    strip_table,
    training_table,
)

_STYLE = """
:root { color-scheme: light dark; @LIGHT@ --raised: #f4f2ed; --focus: #0068a9;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial,
    sans-serif;
  --serif: "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", "TeX Gyre Pagella",
    "Liberation Serif", Georgia, serif;
  --mono: ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
@media screen and (prefers-color-scheme: dark) { :root { @DARK@ --raised: #1c1f24; --focus: #5bb5f2; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0; background: var(--surface); color: var(--ink); font: 1rem/1.55 var(--sans); }
main, header, footer { max-width: 1280px; margin: 0 auto; padding: 0 clamp(1rem, 4vw, 2.5rem); }
header { padding-top: clamp(2rem, 6vw, 4.5rem); }
h1, h2 { font-family: var(--serif); font-weight: 500; letter-spacing: -0.01em; line-height: 1.15;
  text-wrap: balance; }
h1 { font-size: clamp(2rem, 5.2vw, 3.1rem); margin: 0.3rem 0 0; max-width: 20em; }
h2 { font-size: clamp(1.45rem, 3vw, 1.8rem); margin: 0 0 0.4rem; }
h4 { font-size: 0.9375rem; font-weight: 650; margin: 1.8rem 0 0; }
h3 { font-size: 1rem; font-weight: 650; margin: 0 0 0.2rem; }
p { margin: 0.4rem 0; max-width: 46rem; }
section { margin-top: clamp(2.6rem, 6vw, 4.2rem); padding-top: 1.3rem; border-top: 1px solid var(--grid); }
figure { margin: 0; min-width: 0; }
figcaption, .muted, .lede { color: var(--muted); }
figcaption, .small { font-size: 0.875rem; line-height: 1.5; }
.kicker, h2.kicker { font-family: var(--sans); color: var(--muted); font-size: 0.875rem;
  letter-spacing: 0.02em; margin: 0; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr));
  gap: clamp(1.6rem, 4vw, 3rem); margin-top: 1.4rem; align-items: start; }
.half { max-width: 40rem; }
.budget { margin-top: 1.6rem; }
.whole { white-space: nowrap; }
.claim { border-top: 2px solid var(--ink); padding-top: 0.9rem; }
.stack > * + * { margin-top: 2.4rem; }
.stack, main > .pair, main > .claim { margin-top: 1.8rem; }
.claim .number { font: 500 clamp(2.9rem, 8vw, 4.2rem)/1 var(--serif); letter-spacing: -0.025em;
  font-variant-numeric: lining-nums; margin: 0.2rem 0 0.5rem; color: var(--series-4); }
.claim .second { font-size: 0.9375rem; margin-top: 0.9rem; }
.claim .second strong { font: 500 1.6rem/1 var(--serif); font-variant-numeric: lining-nums; }
.claim .number.words { font-size: clamp(2.1rem, 6vw, 3rem); color: var(--ink); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
svg text { font-family: var(--sans) !important; font-variant-numeric: tabular-nums; }
svg image { image-rendering: pixelated; }
.scroll { overflow-x: auto; margin: 1rem 0 0; }
.scroll:focus-visible { outline: 2px solid var(--focus); outline-offset: 4px; }
.strip svg { min-width: 1000px; }
.full table { width: 100%; font-size: 0.8125rem; }
.full td.n, .full th.n { padding-left: 0.8rem; }
.wide svg { min-width: 620px; }
table { border-collapse: collapse; font-size: 0.875rem; line-height: 1.4;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.42rem 1.1rem 0.42rem 0; text-align: left; vertical-align: baseline; font-weight: 400; }
th[scope=row], td { white-space: nowrap; }
td.n, th.n { text-align: right; padding: 0.42rem 0 0.42rem 1.2rem; }
td.words { white-space: normal; min-width: 13rem; }
.stacked td.n { white-space: normal; }
td.n.words { color: var(--muted); }
thead th { color: var(--muted); border-bottom: 1px solid var(--muted); vertical-align: bottom; }
thead th.n { white-space: normal; }
th[scope=row] { position: sticky; left: 0; background: var(--surface); }
@media (max-width: 40rem) {
  th[scope=row] { white-space: normal; min-width: 8.5rem; max-width: 11rem; padding-right: 0.3rem; }
}
th[scope=rowgroup] span { position: sticky; left: 0; }
tbody tr + tr > * { border-top: 1px solid var(--grid); }
tbody th[scope=rowgroup] { padding-top: 1.3rem; font-weight: 650; border-bottom: 1px solid var(--grid); }
th .dot, .runs .dot { display: inline-block; width: 0.6em; height: 0.6em; border-radius: 50%; margin-right: 0.55em; }
.badge { font: 400 0.75rem/1.3 var(--sans); letter-spacing: 0; color: var(--muted); white-space: nowrap; }
h2 .badge { margin-left: 0.9em; }
.badge::before { content: ""; display: inline-block; width: 0.8em; height: 0.8em; margin-right: 0.4em;
  border: 1px solid var(--muted); vertical-align: -0.06em; print-color-adjust: exact; }
.badge.measured::before { background: var(--muted); }
.badge.estimated::before { background: repeating-linear-gradient(-45deg, var(--muted) 0 1px, transparent 1px 3px); }
.legend { margin-top: 1rem; max-width: none; }
.legend .badge { margin-right: 0.3em; }
details { margin-top: 1rem; font-size: 0.875rem; }
summary { cursor: pointer; color: var(--muted); }
summary:focus-visible { outline: 2px solid var(--focus); outline-offset: 3px; }
pre { font: 0.8125rem/1.5 var(--mono); background: var(--raised); padding: 1rem; overflow-x: auto;
  border-radius: 4px; }
dl { max-width: 46rem; margin: 1rem 0 0; }
dt { font-weight: 650; margin-top: 0.9rem; }
dd { margin: 0.1rem 0 0; }
footer { margin-top: 4rem; padding-bottom: 3rem; color: var(--muted); font-size: 0.875rem; }
@media print {
  body { font-size: 10pt; } section { margin-top: 2rem; }
  .scroll { overflow: visible; } .strip svg, .wide svg { min-width: 0; }
  table { font-size: 0.75rem; } td.n, th.n { padding-left: 0.8rem; }
  figure, tbody, .claim { break-inside: avoid; } h2, h3, h4 { break-after: avoid; }
}
"""

_NOTES = (
    (
        "Saving at equal quality",
        "Each policy has one knob. On the calibration streams, its cheapest setting is taken that keeps the "
        "quality of the reference; on the test streams, which had no part in that choice, quality and "
        "decodes are measured. The saving is the reference's decodes per second over the policy's. It counts "
        "as reached only if the policy's quality on the test streams is at least the reference's, with no "
        "tolerance. Intervals are 95 % bootstrap intervals over streams, policy and reference paired.",
    ),
    (
        "Quality",
        "CIDEr-D of the decode nearest in time to each annotated event, averaged over all events; the n-gram "
        "frequencies come from one pool shared by all policies. Nearest-in-time matching does not punish a "
        "redundant decode: that is why quality is always shown against the number of decodes.",
    ),
    (
        "Decoder calls are not compute",
        "Unless a policy selects steps, the encoder and the predictor run at every step whatever it decodes. A "
        "saving in decoder calls therefore saves less end to end; the compute table shows both. Decodes per second "
        "are decoder calls: what a cache answers is none.",
    ),
    (
        "Causal, offline, upper bound",
        "A causal policy needs only the past and decides within its stated latency. An offline policy needs "
        "the whole stream before it decodes anything: it is a yardstick, not a competitor, for live streams. An "
        "oracle is told the annotated boundaries: no method, but an upper bound of what better cuts could give.",
    ),
    (
        "Chance",
        "What guessing among the candidates would score; for a mixture of questions, averaged over the "
        "questions asked.",
    ),
)


def html(results: Results) -> str:
    """The report as one HTML file: no network, no scripts; it follows the reader's light or dark theme.

    Raises InputError if the document is not a valid ``jepa.results/2``.
    """
    validate_results(results)
    sections = (
        _curves(results),
        _strips(results),
        _savings(results),
        _compute(results),
        _quality(results),
        _operations(results),
        _cache(results),
        _scores(results),
        _parameters(results),
        _training(results),
        _provenance(results),
        notes_html(_NOTES),
    )
    device = results["device"]
    return document_html(
        results,
        f"seed {results['seed']}",
        "Selective decoding against uniform decoding",
        _claims(results) + "\n" + "".join(sections),
        f"Measured on {clean(device['name'])} ({clean(device['type'])}).",
    )


def write_report(results: Results, folder: str | Path) -> dict[str, Path]:
    """Write results.json, report.md, report.html and report.png into a folder, which is made if missing.

    Returns the paths by file name. Everything is rendered before anything is written, and each file is
    replaced as a whole: a failure leaves the old files as they were.

    Raises InputError for a bad document or a folder that cannot be written.
    """
    contents = {
        "results.json": to_json(results),
        "report.md": markdown(results).encode(),
        "report.html": html(results).encode(),
        "report.png": plots.overview_png(results),
    }
    paths = {name: Path(folder) / name for name in contents}
    write_whole({paths[name]: content for name, content in contents.items()})
    return paths


# --- The parts of the page.

_Render = Callable[[str, dict[str, Any]], str]


def _claims(results: Results) -> str:
    claims = []
    for name, setting in results["settings"].items():
        words = headline(setting)
        size = "number" if words.figure[0].isdigit() else "number words"
        claims.append(
            f'<div class="claim"><h2 class="kicker">{text_html(name)} streams</h2>'
            f'<p class="{size}">{escape(words.figure)}</p><p>{text_html(words.claim)}</p>'
            f'<p class="muted small">{text_html(words.detail)}</p>'
            f'<p class="second"><strong>{escape(words.compute_figure)}</strong> {text_html(words.compute)}</p></div>'
        )
    return f'<div class="pair">{"".join(claims)}</div>'


def _curves(results: Results) -> str:
    def figure(name: str, setting: dict[str, Any]) -> str:
        title = f"CIDEr-D against decodes per second of {len(setting['curves'])} policies on {name} streams"
        drawing = _figure(partial(plots.curves, results, name), f"curves-{_place(results, name)}", title)
        caption = f"{text_html(setting['description'].rstrip('.'))}: {escape(setting_facts(setting))}"
        return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"

    return section_html(
        "Quality against operations",
        "Each point is one setting of a policy, measured on the test streams; the bands of the reference and of the "
        "best causal policy are 95&nbsp;% bootstrap intervals over streams. The dashed line is the quality to keep. A "
        "ring marks the operating point chosen on the calibration streams, a cross one that falls short on the test "
        "streams. Grey lines are the other policies: point at one for its name; the tables have them all.",
        _each_setting(results, figure, "pair"),
        (MEASURED,),
    )


def _strips(results: Results) -> str:
    def figure(name: str, setting: dict[str, Any]) -> str:
        stream, shown = setting["strip"], strip_decodes(setting)
        title = (
            f"{len(stream['events'])} events of stream {clean(stream['video_id'])} over "
            f"{stream['duration']:.0f} seconds and the decodes of {len(shown)} policies"
        )
        drawing = _figure(partial(plots.strip, results, name), f"strip-{_place(results, name)}", title)
        counts = ", ".join(
            f"{sum(decode['source'] == 'decoder' for decode in decodes)} of {len(decodes)} by "
            f"{text_html(label(setting['curves'][policy]))}"
            for policy, decodes in shown.items()
        )
        caption = (
            f"{text_html(stream['video_id'])}: {len(stream['events'])} events; texts from the decoder: "
            f"{counts or NONE}."
        )
        return (
            f"<figure>{scroll_html('strip', title, drawing)}<figcaption>{caption}</figcaption></figure>"
            f"<details><summary>Every event with the nearest decode of each policy</summary>"
            f"{table_html(strip_table(setting), 'Events and decodes')}</details>"
        )

    return section_html(
        "One stream",
        "Grey bars are the annotated events. A coloured bar is what one decode stands for, the tick below it "
        "the moment it is dated to; an outlined one took no decoder call, its text came from a cache or a bank. Text "
        "is cut to its bar; point at it to read it in full.",
        _each_setting(results, figure, "stack"),
        (MEASURED,),
    )


def _savings(results: Results) -> str:
    def tables(name: str, setting: dict[str, Any]) -> str:
        return (
            f"{_table(results, name, 'Savings', savings_table(setting))}"
            f"<h4>All references and tolerances</h4>{_note(MATRIX_NOTE)}"
            f"{_stacked(_table(results, name, 'All references and tolerances', matrix_table(setting)))}"
        )

    return section_html(
        "Savings at equal quality",
        "Reference over policy, in decoder calls per second, where the policy is at least as good on the test "
        "streams; 95&nbsp;% intervals in brackets.",
        _each_setting(results, tables, "stack"),
        (MEASURED,),
    )


def _compute(results: Results) -> str:
    def figures(name: str, setting: dict[str, Any]) -> str:
        reference = reference_name(setting, headline_savings(setting)[0])
        place, steps = _place(results, name), setting["operations"]
        measures = {"flops": "FLOPs", "seconds": "Wall time"}
        drawn = ""
        for measure, words in measures.items():
            title = f"{words} of the parts at {len(steps)} operating points on {name} streams"
            drawing = _figure(partial(plots.operations, results, name, measure), f"{measure}-{place}", title)
            caption = f"{words} of each part. {operations_facts(setting)}; × is the saving against {reference}."
            drawn += f"<figure>{drawing}<figcaption>{text_html(caption)}</figcaption></figure>"
        for measure, words in measures.items():
            if not lever_chain(setting, measure):
                continue
            title = f"{words} that each lever takes off uniform decoding on {name} streams"
            drawing = _figure(partial(plots.levers, results, name, measure), f"levers-{measure}-{place}", title)
            caption = f"{words}, one lever after the other. {LEVERS_NOTE}"
            drawn += f"<figure>{drawing}<figcaption>{text_html(caption)}</figcaption></figure>"
        return f'<div class="pair">{drawn}</div>{_table(results, name, "Compute", compute_table(setting))}'

    lede = "What detector, encoder, predictor, decoder and cache take at each operating point, and what is saved."
    body = _note(COMPUTE_NOTE) + _each_setting(results, _where_recorded(figures), "stack")
    return section_html("Compute", lede, body, _timed(results))


def _timed(results: Results) -> tuple[str, ...]:
    """Whether wall times are all measured, or some of them estimated."""
    rows = [row for setting in results["settings"].values() for row in setting["operations"]]
    return (MEASURED, ESTIMATED) if any(row["seconds_estimated"] for row in rows) else (MEASURED,)


def _quality(results: Results) -> str:
    def table(name: str, setting: dict[str, Any]) -> str:
        return _table(results, name, "Stream quality", quality_table(setting))

    lede = "What the texts of each operating point are worth as a description of the stream, and how late they are."
    body = _note(QUALITY_NOTE) + _each_setting(results, _where_recorded(table), "stack")
    return section_html("Stream quality", lede, body, (MEASURED,))


def _operations(results: Results) -> str:
    def table(name: str, setting: dict[str, Any]) -> str:
        return _table(results, name, "Operations", operations_table(setting))

    return section_html(
        "Operations",
        "What was counted and timed while the test streams ran.",
        _each_setting(results, _where_recorded(table), "stack"),
        _timed(results),
    )


def _cache(results: Results) -> str:
    def table(name: str, setting: dict[str, Any]) -> str:
        return _table(results, name, "Cache", cache_table(setting)) if has_cache(setting) else "<p>None was used.</p>"

    if not any(map(has_cache, results["settings"].values())):
        return ""
    return section_html("Cache", text_html(CACHE_NOTE), _each_setting(results, table, "stack"), (MEASURED,))


def _table(results: Results, name: str, title: str, table: Table) -> str:
    """A table of a setting's policies, each with the dot of its series."""
    series, curves = plots.series_of(results), results["settings"][name]["curves"]
    colours = {label(curve): series[policy] for policy, curve in curves.items() if policy in series}
    return table_html(table, f"{title}, {clean(name)}", colours)


def _stacked(table: str) -> str:
    """A table of many intervals: where it is narrow, each stands below its value, in one piece."""
    whole = _INTERVAL.sub(r"(\1&nbsp;to&nbsp;\2)", table)
    return f'<div class="stacked">{whole}</div>'


_INTERVAL = re.compile(r"\(([+−]?[\d.,]+) to ([+−]?[\d.,]+)\)")


def _note(text: str) -> str:
    return f'<p class="muted small">{text_html(text)}</p>'


def _where_recorded(render: _Render) -> _Render:
    """`render`, or words where no operations were recorded."""
    return lambda name, setting: render(name, setting) if setting["operations"] else "<p>None were recorded.</p>"


def _scores(results: Results) -> str:
    lede = (
        "Of the checkpoint, on compositions held out from training, each beside what guessing would give and its cost."
    )
    body, captions = (
        _note(SCORES_NOTE) + table_html(scores_table(results["scores"]), "Scores"),
        results["scores"]["captioning"],
    )
    if "accuracy_within" in captions:
        title = "Fraction of captions that are right within a budget of tokens"
        drawing = _figure(partial(_caption_budget, captions["accuracy_within"]), "captions", title)
        body += f'<figure class="half budget">{drawing}<figcaption>{text_html(_BUDGET_NOTE)}</figcaption></figure>'
    return section_html("Scores", lede, body, (MEASURED,))


_BUDGET_NOTE = (
    "The fraction of all captions that are one of the clip's own and at most so many tokens long. Its area is AUC_OAA "
    "(arXiv 2508.13141); OckScore (arXiv 2511.05722) is 100 · that share − 10 · ln(mean tokens / 10,000 + 1)."
)


def _caption_budget(fractions: list[float], colours: plots.Colours) -> Any:
    return plots.within_tokens({"captions": (fractions, colours["series-4"])}, "exact match", colours)


def _parameters(results: Results) -> str:
    table = table_html(parameters_table(results), "Parameters by role")
    return section_html("Parameters by role", text_html(PARAMETERS_NOTE), table)


def _training(results: Results) -> str:
    record = results["training"]
    if any(len(row) > 1 for row in record["curve"]):
        drawing = _figure(partial(plots.training, results), "training", "Training record against the step")
        body = f"<figure>{scroll_html('wide', 'Training record', drawing)}</figure>"
    else:
        body = "<p>No curve was recorded.</p>"
    if has_training_operations(results):
        table = table_html(training_table(results), "Operations of training")
        body += f"<h4>Operations of training {badge_html(MEASURED)}</h4>{_note(TRAINING_NOTE)}{table}"
    minutes = f"{record['seconds'] / 60:,.1f} minutes"
    lede = f"{record['steps']:,} steps on {record['samples']:,} samples in {minutes}."
    return section_html("Training", lede, body, (MEASURED,))


def _provenance(results: Results) -> str:
    config = escape(json.dumps(results["config"], indent=2))
    return section_html(
        "Provenance",
        "Where these figures come from.",
        f"{table_html(provenance_table(results), 'Provenance')}"
        f"<details><summary>Configuration</summary><pre>{config}</pre></details>",
    )


# --- Building blocks.


MEASURED, ESTIMATED = "measured", "estimated"


def badge_html(evidence: str, words: str = "") -> str:
    """What a figure is, `MEASURED` or `ESTIMATED`, as a solid or a hatched mark before `words`."""
    return f'<span class="badge {evidence}">{words or evidence}</span>'


_LEGEND = (
    f"{badge_html(MEASURED)} counted or timed while it ran; solid in the figures. "
    f"{badge_html(ESTIMATED)} follows from a model or from a part of the run; hatched."
)
_SOURCE = "The figures of this page are those of the results document beside it."


def document_html(
    results: Mapping[str, Any], detail: str, heading: str, body: str, measured: str, source: str = _SOURCE
) -> str:
    """A whole page around `body`, which is HTML; the other words are plain text."""
    name = escape(clean(results["name"]))
    style = _STYLE.replace("@LIGHT@", plots.css_variables(plots.LIGHT))
    style = style.replace("@DARK@", plots.css_variables(plots.DARK))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}: {escape(heading[:1].lower() + heading[1:])}</title>
<style>{style}</style>
</head>
<body>
<header>
<p class="kicker">{name} · {escape(clean(results["created"]))} · {escape(detail)}</p>
<h1>{escape(heading)}</h1>
<p class="legend small muted">{_LEGEND}</p>
</header>
<main>
{body}
</main>
<footer><p>{escape(measured)} {escape(source)}</p></footer>
</body>
</html>
"""


def notes_html(notes: Iterable[tuple[str, str]]) -> str:
    """Terms and what is meant by them, as the section that ends a page."""
    entries = "".join(f"<dt>{escape(term)}</dt><dd>{text_html(text)}</dd>" for term, text in notes)
    return section_html("What is measured and how", "", f"<dl>{entries}</dl>")


def text_html(data: str) -> str:
    """Text for the page, not to be broken at the hyphen of CIDEr-D or before a per cent sign."""
    whole = '<span class="whole">CIDEr-D</span>'
    return escape(clean(data)).replace("CIDEr-D", whole).replace(" %", "&nbsp;%")


def _place(results: Results, name: str) -> int:
    """The number of a setting: its name may hold what an id may not."""
    return list(results["settings"]).index(name)


def section_html(title: str, lede: str, body: str, evidence: Sequence[str] = ()) -> str:
    """A part of a page; `evidence` says what its figures are: `MEASURED`, `ESTIMATED`, or both."""
    uid = title.lower().replace(" ", "-")
    lede = f'<p class="lede">{lede}</p>' if lede else ""
    heading = " ".join([title, *map(badge_html, evidence)])
    return f'<section aria-labelledby="{uid}"><h2 id="{uid}">{heading}</h2>{lede}{body}</section>\n'


def _each_setting(results: Results, render: _Render, layout: str) -> str:
    blocks = (
        f"<div><h3>{text_html(name)}</h3>{render(name, setting)}</div>" for name, setting in results["settings"].items()
    )
    return f'<div class="{layout}">{"".join(blocks)}</div>'


def _figure(draw: Callable[[plots.Colours], Any], uid: str, label: str) -> str:
    return plots.inline_svg(draw, uid, label)


def scroll_html(kind: str, label: str, body: str) -> str:
    """A box that scrolls sideways where the screen is narrow, also by keyboard."""
    return f'<div class="scroll {kind}" tabindex="0" role="region" aria-label="{escape(clean(label))}">{body}</div>'


def _cell_html(text: str) -> str:
    """The text of a cell, with a badge for what says that it was measured or estimated."""
    if text in (MEASURED, ESTIMATED):
        return badge_html(text)
    if text.endswith(EST):
        return f"{text_html(text.removesuffix(EST))} {badge_html(ESTIMATED, EST.strip())}"
    return text_html(text)


def table_html(table: Table, label: str, colours: Mapping[str, int] = MappingProxyType({})) -> str:
    """A table that scrolls; `colours` gives row headings the dot of a policy's series, grey if it has none."""

    def cell(index: int, text: str) -> str:
        if index == 0:
            dot = ""
            if colours:
                colour = f"series-{colours[text]}" if text in colours else "grid"
                dot = f'<span class="dot" style="background: var(--{colour})"></span>'
            return f'<th scope="row">{dot}{_cell_html(text)}</th>'
        if index < table.text_columns:
            return f'<td class="words">{text_html(text)}</td>' if len(text) > 40 else f"<td>{_cell_html(text)}</td>"
        words = " words" if text.startswith("not reached") else ""
        return f'<td class="n{words}">{_cell_html(text)}</td>'

    def numeric(index: int) -> str:
        return "" if index < table.text_columns else ' class="n"'

    head = "".join(f'<th scope="col"{numeric(index)}>{text_html(text)}</th>' for index, text in enumerate(table.header))
    bodies = ""
    for title, rows in table.groups:
        bodies += "<tbody>"
        if title:
            heading = f"<span>{text_html(title)}</span>"
            bodies += f'<tr><th scope="rowgroup" colspan="{len(table.header)}">{heading}</th></tr>'
        for row in rows:
            bodies += f"<tr>{''.join(cell(index, text) for index, text in enumerate(row))}</tr>"
        bodies += "</tbody>"
    head = f"<thead><tr>{head}</tr></thead>" if any(table.header) else ""
    return scroll_html("full" if colours else "table", label, f"<table>{head}{bodies}</table>")
