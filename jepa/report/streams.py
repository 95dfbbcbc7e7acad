"""The report of policies swept over a VL-JEPA's streams."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from matplotlib.figure import Figure as Drawing

from jepa.report import checkpoint, figures, sweep_figures, sweep_tables
from jepa.report import format as fmt
from jepa.report.blocks import ESTIMATED, MEASURED, Block, Claim, Colours, Columns, Figure, Heading, Report, Text
from jepa.report.notes import note, terms
from jepa.report.tables import Column, Table, table
from jepa.report.timeline import draw_timeline, timeline, timeline_height
from jepa.results import PARTS, LiveSession, Saving, Setting, StreamResults, analysis

Settings = Mapping[str, Setting]

VOID = "void"  # a saving where quality does not depend on decoding
_SUMMARY_ROWS = 14  # of policies, over all settings of the summary


def report(results: StreamResults) -> Report:
    """The blocks of a document."""
    settings = results.settings
    return Report(
        title=f"{results.name}: selective decoding against uniform decoding",
        kicker=f"{results.created} · seed {results.seed}",
        summary=_summary(results),
        blocks=[
            Columns([[claim(name, setting)] for name, setting in settings.items()]),
            *(_session(results.session) if results.session is not None else ()),
            *_curves(settings),
            *_timelines(settings),
            *_tables(settings),
            *checkpoint.blocks(results),
            Heading("What is measured and how"),
            terms("streams"),
        ],
        overview=partial(_overview, settings),
        footer=f"Measured on {fmt.device_text(results.device)}. All figures are in the results document beside it.",
    )


# --- Claims.


def claim(name: str, setting: Setting) -> Claim:
    """What the best causal policy saves at equal quality, or that it does not; and compute."""
    return Claim(f"{name} streams", *_decodes_claim(setting), *_compute_claim(setting))


def _decodes_claim(setting: Setting) -> tuple[str, str, str]:
    first, best = analysis.headline_savings(setting)[0], analysis.best_causal(setting)
    reference = f"{analysis.wanted_name(setting, first)} (CIDEr-D {fmt.quality(first.reference_quality)})"
    missed = f"No causal policy reaches the quality of {reference}."
    if best is None or best.value is None:
        return "not reached", missed, "No operating point qualified on the calibration streams."
    name = analysis.point_name(setting, best.policy, best.value)
    at = (
        f"CIDEr-D {fmt.quality(best.quality)}, difference {fmt.difference(best.quality_difference)}; merged temporal "
        f"F1 {fmt.difference(best.temporal_f1_difference)}; {fmt.fixed(best.decodes_per_second, 3)} against "
        f"{fmt.fixed(best.reference_decodes_per_second, 3)} decodes per second"
    )
    ratio = best.ratio
    if not best.reached or ratio is None:
        return "not reached", missed, f"{name} comes closest: {at}."
    words = "fewer decoder calls" if ratio.value >= 1 else "the saving in decoder calls, so more of them,"
    figure = fmt.factor(ratio.value)
    text = f"{words} at the quality of {reference}, 95 % interval {fmt.bounds(ratio)}."
    if warning := analysis.without_contrast(setting):
        return VOID, warning, f"{figure} {text} {name}: {at}."
    return figure, text, f"{name}: {at}."


def _compute_claim(setting: Setting) -> tuple[str, str]:
    row = analysis.leanest(setting, kept=True) or analysis.leanest(setting)
    if row is None:
        return fmt.UNCOUNTED, "FLOPs end to end were not counted for the reference and another operating point."
    ratios = analysis.operations_ratio(setting, row)
    ratio, level = ratios.flops or 0.0, analysis.point(setting, row).cider_d.value
    words = "fewer FLOPs end to end" if ratio >= 1 else "the FLOPs end to end saved, so more of them,"
    kept = "quality is kept" if analysis.qualified(setting, row) else "not a saving at equal quality"
    text = (
        f"{words}, encoder and predictor included, at most: {analysis.point_name(setting, row.policy, row.value)}, "
        f"which needs {analysis.needs(setting.curves[row.policy])}; {kept}: CIDEr-D {fmt.quality(level)}, difference "
        f"{fmt.difference(analysis.quality_difference(setting, row))}"
    )
    if ratios.seconds:
        text += f"; saving in wall time: {fmt.factor(ratios.seconds)}{' (estimated)' * ratios.estimated}"
    if analysis.without_contrast(setting):
        return VOID, f"{fmt.factor(ratio)} {text}."
    return fmt.factor(ratio), f"{text}."


# --- The summary of a terminal.


def _summary(results: StreamResults) -> list[Block]:
    """For each setting the claim and its main policies; then the scores of the checkpoint."""
    blocks: list[Block] = []
    for name, setting in results.settings.items():
        shown = _summary_table(setting, max(_SUMMARY_ROWS // len(results.settings), 2))
        blocks += [Claim(f"{name} streams", *_decodes_claim(setting)[:2]), Text(""), shown, Text("")]
    return [*blocks, Text(checkpoint.in_words(results.scores))]


def _summary_table(setting: Setting, count: int) -> Table:
    """The most telling policies against the headline reference."""
    savings = {row.policy: row for row in analysis.headline_savings(setting)}
    shown = [savings[policy] for policy in analysis.prominent(setting) if policy in savings][:count]
    flops = {(row.policy, row.value): analysis.operations_ratio(setting, row).flops for row in setting.operations}
    columns: list[Column[Saving]] = [
        Column("CIDEr-D", lambda row: fmt.quality(row.quality)),
        Column("decoder calls saved", lambda row: fmt.saving(row.ratio) if row.reached else "not reached"),
        Column("FLOPs saved", lambda row: fmt.factor(flops.get((row.policy, row.value or 0.0)))),
    ]
    title = f"{len(shown)} of {len(savings)}; report.md has all"
    return table("", sweep_tables.of_policies(setting, columns), [(title, shown)])


# --- Sections, each with a part for every setting.


def setting_facts(setting: Setting) -> str:
    """The streams of a setting in one sentence."""
    streams = setting.streams
    return (
        f"{setting.step_rate_hz:.3g} latents and {setting.events_per_second:.3g} events per second, mean event "
        f"{setting.mean_event_seconds:.3g} s, {setting.repeated_events:.0%} of the events repeat an earlier one; "
        f"measured on {streams.test} streams of {streams.seconds_each:.4g} s, operating points chosen on "
        f"{streams.calibration} others."
    )


def _session(session: LiveSession) -> list[Block]:
    """What a live session counted, to the digit."""
    counts = [(part, getattr(session.ledger, part)) for part in PARTS]
    header = ("part", "calls", "forward passes", "FLOPs", "seconds")
    rows = [[p, f"{c.calls:,}", f"{c.forward_passes:,}", f"{c.flops:,}", fmt.fixed(c.seconds, 3)] for p, c in counts]
    hits = f"{session.ledger.cache.hits:,} of {session.ledger.cache.lookups:,} look-ups from the cache"
    text = f"{session.source}, asked “{session.query}”: {len(session.emissions):,} texts, {hits}; decoded by "
    frames = f"{session.frames_taken:,} frames taken, {session.frames_dropped:,} dropped"
    text += f"{session.policy} at {session.value:g} when it was saved; {frames}."
    return [Heading("The live session", evidence=(MEASURED,)), Text(text), Table("", header, [("", rows)])]


def _curves(settings: Settings) -> list[Block]:
    columns: list[list[Block]] = []
    for place, (name, setting) in enumerate(settings.items()):
        title = f"CIDEr-D against decodes per second of {len(setting.curves)} policies on {name} streams"
        caption = f"{setting.description.rstrip('.')}: {setting_facts(setting)}"
        draw = partial(sweep_figures.curves, settings, name)
        columns.append([Heading(name, 3), Figure(f"curves-{place}", title, draw, caption)])
    return [Heading("Quality against operations", evidence=(MEASURED,)), note("curves", "lede"), Columns(columns)]


def _timelines(settings: Settings) -> list[Block]:
    blocks: list[Block] = [Heading("One stream", evidence=(MEASURED,)), note("timeline", "lede")]
    for place, (name, setting) in enumerate(settings.items()):
        stream, shown = setting.timeline, analysis.timeline_decodes(setting)
        events = f"{len(stream.events)} events of stream {stream.video_id}, {stream.duration:.0f} seconds long"
        title, draw = f"{events}, and the decodes of {len(shown)} policies", partial(timeline, settings, name)
        blocks += [Heading(name, 3), Figure(f"timeline-{place}", title, draw, f"{title}.", wide=True)]
    return blocks


def _tables(settings: Settings) -> list[Block]:
    """Savings, compute, quality of the texts, operations and caches."""

    def section(title: str, show: Callable[[str], Sequence[Block]], *notes: Block, counted: bool = True) -> list[Block]:
        """A part for each setting; `counted`: of operations, so that wall times may be estimated, or all be missing."""
        rows = [row for setting in settings.values() for row in setting.operations] if counted else []
        evidence = (MEASURED, ESTIMATED) if any(row.estimated is not None for row in rows) else (MEASURED,)
        blocks: list[Block] = [Heading(title, evidence=evidence), *notes]
        for name, setting in settings.items():
            shown = [Text("None were recorded.")] if counted and not setting.operations else show(name)
            made = [sweep_tables.painted(b, settings, name) if isinstance(b, Table) else b for b in shown]
            blocks += [Heading(name, 3), *made]
        return blocks

    def compute(name: str) -> list[Block]:
        setting, place = settings[name], list(settings).index(name)
        facts, reference = sweep_tables.operations_facts(setting), analysis.reference_name(setting)
        parts: list[list[Block]] = []
        for measure, words in sweep_figures.UNITS.items():
            title = f"{words} of the parts at {len(setting.operations)} operating points on {name} streams"
            draw = partial(sweep_figures.operations, settings, name, measure)
            caption = f"{words} of each part. {facts}; × is the saving against {reference}."
            parts.append([Figure(f"{measure}-{place}", title, draw, caption)])
        return [Columns(parts), sweep_tables.compute_table(setting)]

    def each(make: Callable[[Setting], Table]) -> Callable[[str], Sequence[Block]]:
        return lambda name: [make(settings[name])]

    lede = partial(note, style="lede")
    cached = any(map(analysis.has_cache, settings.values()))
    return [
        *section("Savings at equal quality", each(sweep_tables.savings_table), lede("savings"), counted=False),
        *section("Compute", compute, lede("computed"), note("compute")),
        *section("Stream quality", each(sweep_tables.quality_table), lede("texts"), note("quality")),
        *section("Operations", each(sweep_tables.operations_table), lede("operations")),
        *(section("Cache", each(sweep_tables.cache_table), note("cache"), counted=False) if cached else []),
    ]


# --- The picture.


def _overview(settings: Settings, colours: Colours) -> Drawing:
    """The curves of all settings above the timeline of the first one."""
    names, width = list(settings), 1200.0
    heights = (500.0, timeline_height(settings[names[0]]))
    figure = figures.sized(width, sum(heights))
    upper, lower = figure.subfigures(2, 1, squeeze=False, height_ratios=heights).flat
    panels = upper.subplots(1, len(names), squeeze=False)[0]
    upper.subplots_adjust(0.045, 0.18, 1 - figures.NAMES / width, 0.84, wspace=0.52)
    style = figures.heading(colours)
    for axes, name in zip(panels, names, strict=True):
        sweep_figures.draw_curves(axes, settings, name, colours)
        above = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(figures.short(f"{name} streams", 350), (0, 1), (0, 34), **above, **style)
    upper.text(0.045, 0.03, figures.short(f"One of the {names[0]} streams", 700), **style)
    _, right = lower.subfigures(1, 2, squeeze=False, width_ratios=(0.045, 0.955)).flat
    draw_timeline(right, settings, names[0], colours, 0.955 * width)
    return figure
