"""The figures of a results document as tables and sentences: Markdown for files, plain text for terminals.

The tables are built once, as :class:`Table`, and rendered by whoever shows them, so that the Markdown file
and the HTML page cannot disagree.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from jepa.report.schema import Results, validate_results

PARTS = ("encoder", "predictor", "decoder")
NONE = "–"

Row = tuple[str, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text, in titled groups of rows (title "": no heading).

    The first `text_columns` columns hold words, the others numbers.
    """

    header: Row
    groups: tuple[tuple[str, tuple[Row, ...]], ...]
    text_columns: int = 1


# --- Numbers and names, written the same way everywhere.


def clean(text: str) -> str:
    """One line of printable characters: white space becomes single spaces, control characters go."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable())


def fixed(value: float, digits: int, sign: str = "") -> str:
    return f"{round(value, digits) + 0.0:{sign},.{digits}f}".replace("-", "−")  # + 0.0: no negative zero


def quality(value: float) -> str:
    """A CIDEr-D score, or RankMe: two decimals."""
    return fixed(value, 2)


def rate(value: float) -> str:
    """Decodes per second: three decimals."""
    return fixed(value, 3)


def factor(value: float | None) -> str:
    """A ratio: two decimals and a multiplication sign."""
    return NONE if value is None else f"{fixed(value, 2)}×"


def share(value: float) -> str:
    """A score between 0 and 1: three decimals, or two significant digits below 0.01."""
    return f"{value:.2g}" if 0 < value < 0.01 else fixed(value, 3)


def seconds(value: float | None) -> str:
    """A time in seconds: two decimals, one from 100 s on."""
    return NONE if value is None else fixed(value, 1 if value >= 100 else 2)


def interval(low: float, high: float, digits: int = 2, sign: str = "") -> str:
    """The two ends of an interval."""
    return f"{fixed(low, digits, sign)} to {fixed(high, digits, sign)}"


def factor_with_interval(saving: dict[str, float]) -> str:
    return f"{factor(saving['value'])} ({interval(saving['low'], saving['high'])})"


def difference(value: dict[str, float]) -> str:
    """A quality difference with its sign and interval."""
    return f"{fixed(value['value'], 2, '+')} ({interval(value['low'], value['high'], sign='+')})"


def operating_point(curve: dict[str, Any], knob: float) -> str:
    """Where a policy stands on its knob: "1 Hz" for a rate, "threshold 3.1" for anything else."""
    if curve["knob"] == "rate_hz":
        return f"{knob:.3g} Hz"
    return f"{clean(curve['knob'])} {knob:.3g}".replace("-", "−")


def reference_name(setting: dict[str, Any], saving: dict[str, Any]) -> str:
    """Such as "uniform at 1 Hz"."""
    reference = saving["reference"]
    return f"{clean(setting['curves'][reference['policy']]['label'])} at {reference['rate_hz']:.3g} Hz"


def headline_savings(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The savings against the headline reference, in the order of the document."""
    return [saving for saving in setting["savings"] if saving["headline"]]


def best_causal(setting: dict[str, Any]) -> dict[str, Any] | None:
    """The headline saving of a causal policy other than the reference itself.

    The largest saving among those that reach the reference's quality; if none does, the one that comes
    closest; None if no causal policy had an operating point.
    """
    measured = [
        saving
        for saving in headline_savings(setting)
        if saving["knob"] is not None
        and setting["curves"][saving["policy"]]["causal"]
        and saving["policy"] != saving["reference"]["policy"]
    ]
    reached = [saving for saving in measured if saving["reached"]]
    if reached:
        return max(reached, key=lambda saving: saving["saving"]["value"])
    return max(measured, key=lambda saving: saving["quality_difference"]["value"], default=None)


# --- Operations.


def _wall_seconds(ledger: dict[str, Any]) -> float:
    return sum(ledger[part]["seconds"] for part in PARTS)


def operations_ratio(setting: dict[str, Any], row: dict[str, Any]) -> tuple[float | None, float | None]:
    """Reference over policy, per second of stream: (decoder calls, wall time of all three parts).

    The reference is the row of the headline reference; without it, or where the divisor is 0, None.
    """
    reference = headline_savings(setting)[0]["reference"]
    for other in setting["operations"]:
        if other["policy"] == reference["policy"] and other["knob"] == reference["rate_hz"]:
            break
    else:
        return None, None

    def ratio(of_reference: float, of_policy: float) -> float | None:
        divisor = of_policy * other["ledger"]["stream_seconds"]
        return of_reference * row["ledger"]["stream_seconds"] / divisor if divisor else None

    calls = [ledger["decoder"]["calls"] for ledger in (other["ledger"], row["ledger"])]
    wall = [_wall_seconds(ledger) for ledger in (other["ledger"], row["ledger"])]
    return ratio(calls[0], calls[1]), ratio(wall[0], wall[1])


def end_to_end(setting: dict[str, Any], saving: dict[str, Any]) -> float | None:
    """The wall-time saving of the operations row that belongs to a saving, if there is one."""
    for row in setting["operations"]:
        if row["policy"] == saving["policy"] and row["knob"] == saving["knob"]:
            return operations_ratio(setting, row)[1]
    return None


def operations_table(setting: dict[str, Any]) -> Table:
    """Counts and wall time: one row a quantity, one column an operating point."""
    rows = setting["operations"]
    ledgers = [row["ledger"] for row in rows]
    ratios = [operations_ratio(setting, row) for row in rows]

    def counts(part: str, key: str) -> Row:
        return tuple(f"{ledger[part][key]:,}" for ledger in ledgers)

    def factors(index: int) -> Row:
        return tuple(factor(pair[index]) for pair in ratios)

    def latency(key: str) -> Row:
        return tuple(seconds(ledger["latency_seconds"][key]) for ledger in ledgers)

    groups = (
        (
            "Counted",
            (
                ("encoder calls", *counts("encoder", "calls")),
                ("predictor calls", *counts("predictor", "calls")),
                ("decoder calls", *counts("decoder", "calls")),
                ("decoder forward passes", *counts("decoder", "forward_passes")),
                ("tokens decoded", *counts("decoder", "tokens")),
            ),
        ),
        (
            "Wall time, seconds",
            (
                *((part, *(seconds(ledger[part]["seconds"]) for ledger in ledgers)) for part in PARTS),
                ("all three", *(seconds(_wall_seconds(ledger)) for ledger in ledgers)),
            ),
        ),
        (
            "Saving against the reference",
            (("decoder calls", *factors(0)), ("wall time, end to end", *factors(1))),
        ),
        ("Emission latency, seconds", (("mean", *latency("mean")), ("95th percentile", *latency("p95")))),
    )
    return Table(("", *(_operations_name(setting, row) for row in rows)), groups)


def _operations_name(setting: dict[str, Any], row: dict[str, Any]) -> str:
    curve = setting["curves"][row["policy"]]
    return f"{clean(curve['label'])}, {operating_point(curve, row['knob'])}"


# --- The other tables.


def savings_table(setting: dict[str, Any]) -> Table:
    """Every policy against every reference, the headline reference first."""
    header = ("policy", "needs", "operating point", "CIDEr-D", "difference", "decodes/s", "saving")
    groups: dict[str, list[Row]] = {}
    for saving in sorted(setting["savings"], key=lambda saving: not saving["headline"]):
        title = (
            f"against {reference_name(setting, saving)}: CIDEr-D {quality(saving['reference_quality'])}, "
            f"{rate(saving['reference_decodes_per_second'])} decodes/s"
        )
        groups.setdefault(title, []).append(_savings_row(setting, saving))
    return Table(header, tuple((title, tuple(rows)) for title, rows in groups.items()), text_columns=3)


def _savings_row(setting: dict[str, Any], saving: dict[str, Any]) -> Row:
    curve = setting["curves"][saving["policy"]]
    needs = "the past" if curve["causal"] else "the whole stream"
    if saving["knob"] is None:
        verdict = f"not reached: {clean(saving['reason'])}" if saving["reason"] else "not reached"
        return (clean(curve["label"]), needs, NONE, NONE, NONE, NONE, verdict)
    verdict = factor_with_interval(saving["saving"])
    if not saving["reached"]:
        verdict = f"not reached; {verdict} at lower quality"
    return (
        clean(curve["label"]),
        needs,
        operating_point(curve, saving["knob"]),
        quality(saving["quality"]),
        difference(saving["quality_difference"]),
        rate(saving["decodes_per_second"]),
        verdict,
    )


def strip_table(setting: dict[str, Any]) -> Table:
    """Each event of the strip beside the decode of each policy that is nearest in time to its middle."""
    decodes = setting["strip"]["decodes"]

    def nearest(policy: str, event: dict[str, Any]) -> str:
        middle = (event["start"] + event["end"]) / 2
        best = min(decodes[policy], key=lambda decode: abs(decode["time"] - middle), default=None)
        return NONE if best is None else clean(best["text"])

    rows = tuple(
        (
            f"{event['start']:.1f}–{event['end']:.1f} s",
            clean(event["text"]),
            *(nearest(p, event) for p in decodes),
        )
        for event in setting["strip"]["events"]
    )
    labels = (clean(setting["curves"][policy]["label"]) for policy in decodes)
    return Table(("time", "event", *labels), (("", rows),), text_columns=2 + len(decodes))


def scores_table(scores: dict[str, Any]) -> Table:
    """Scores of the checkpoint, each beside what guessing gives."""
    retrieval, classes = scores["retrieval"], scores["classification"]
    answers, captions, geometry = scores["question_answering"], scores["captioning"], scores["geometry"]
    questions = answers["by_question"]
    asked = sum(question["queries"] for question in questions.values())
    guessed = sum(q["chance"] * q["queries"] for q in questions.values()) / asked if asked else None

    def row(name: str, value: str, chance: float | None, candidates: int | None, queries: int) -> Row:
        return (
            clean(name),
            value,
            NONE if chance is None else share(chance),
            NONE if candidates is None else f"{candidates:,}",
            f"{queries:,}",
        )

    def found(k: int) -> Row:
        candidates, chance = retrieval["candidates"], retrieval["chance"]
        return row(f"R@{k}", share(retrieval[f"r@{k}"]), min(1.0, k * chance), candidates, retrieval["queries"])

    def chosen(name: str, part: dict[str, Any]) -> Row:
        return row(name, share(part["accuracy"]), part["chance"], part["candidates"], part["queries"])

    def measured(name: str, value: str) -> Row:
        return (name, value, NONE, NONE, NONE)

    groups = (
        ("Retrieval of the caption", (found(1), found(5))),
        ("Zero-shot classification", (chosen("accuracy", classes),)),
        (
            "Question answering",
            (
                row("accuracy, all questions", share(answers["accuracy"]), guessed, None, answers["queries"]),
                *(chosen(name, question) for name, question in questions.items()),
            ),
        ),
        (
            "Captioning",
            (
                row("CIDEr-D", quality(captions["cider_d"]), None, None, captions["queries"]),
                row("exact match", share(captions["exact_match"]), None, None, captions["queries"]),
            ),
        ),
        (
            "Geometry of the latents",
            (
                measured("retrieval@1", share(geometry["retrieval@1"])),
                measured("RankMe", quality(geometry["rankme"])),
                measured("cosine of pairs", fixed(geometry["paired_cosine"], 3)),
                measured("cosine of non-pairs", fixed(geometry["unpaired_cosine"], 3)),
            ),
        ),
    )
    return Table(("score", "value", "chance", "candidates", "queries"), groups)


def parameters_table(results: Results) -> Table:
    """Parameters by role, and their sum."""
    roles = results["parameters"]
    rows = [
        (clean(role["role"]), clean(role["modules"]), f"{role['total']:,}", f"{role['trainable']:,}") for role in roles
    ]
    total, trainable = (sum(role[key] for role in roles) for key in ("total", "trainable"))
    rows.append(("all roles", "", f"{total:,}", f"{trainable:,}"))
    return Table(("role", "modules", "parameters", "trained"), (("", tuple(rows)),), text_columns=2)


def provenance_table(results: Results) -> Table:
    """Where the figures come from."""
    code, device, training = results["code"], results["device"], results["training"]
    commit = clean(code["commit"]) if code["commit"] else "unknown"
    state = {True: ", with uncommitted changes", False: "", None: ", state of the tree unknown"}
    stages = "; ".join(
        f"{clean(stage['name'])}: {stage['steps']:,} steps, {seconds(stage['seconds'])} s"
        for stage in training["stages"]
    )
    rows = (
        ("run", clean(results["name"])),
        ("created", clean(results["created"])),
        ("seed", str(results["seed"])),
        ("code", f"version {clean(code['version'])}, commit {commit}{state[code['dirty']]}"),
        ("device", f"{clean(device['type'])}, {clean(device['name'])}, {device['threads']} threads"),
        ("libraries", ", ".join(f"{clean(k)} {clean(v)}" for k, v in results["libraries"].items())),
        (
            "training",
            f"{training['steps']:,} steps, {training['samples']:,} samples, {seconds(training['seconds'])} s",
        ),
        ("stages", stages or NONE),
    )
    return Table(("", ""), (("", rows),), text_columns=2)


# --- Sentences.


def setting_facts(setting: dict[str, Any]) -> str:
    """The streams of a setting in one sentence."""
    streams = setting["streams"]
    return (
        f"{setting['step_rate_hz']:.3g} latents and {setting['events_per_second']:.3g} events per second, "
        f"mean event {setting['mean_event_seconds']:.3g} s, {setting['repeated_events']:.0%} of the events "
        f"repeat an earlier one; measured on {streams['test']} streams of {streams['seconds_each']:.4g} s, "
        f"operating points chosen on {streams['calibration']} others."
    )


@dataclass(frozen=True)
class Headline:
    """One setting in a few words: `figure` is the ratio or "not reached", the others are sentences."""

    figure: str
    claim: str
    detail: str


def headline(setting: dict[str, Any]) -> Headline:
    """What the best causal policy saves at equal quality, or, in plain words, that it does not."""
    first = headline_savings(setting)[0]
    reference = f"{reference_name(setting, first)} (CIDEr-D {quality(first['reference_quality'])})"
    best = best_causal(setting)
    if best is None:
        reasons = {clean(saving["reason"]) for saving in headline_savings(setting) if saving["knob"] is None}
        return Headline(
            "not reached",
            f"No causal policy reaches the quality of {reference}.",
            f"No operating point qualified on the calibration streams{_listed(reasons)}.",
        )
    curve, saving = setting["curves"][best["policy"]], best["saving"]
    name = f"{clean(curve['label'])} ({operating_point(curve, best['knob'])})"
    at = (
        f"CIDEr-D {quality(best['quality'])}, difference {difference(best['quality_difference'])}; "
        f"{rate(best['decodes_per_second'])} against {rate(best['reference_decodes_per_second'])} "
        "decodes per second"
    )
    if not best["reached"]:
        return Headline(
            "not reached",
            f"No causal policy reaches the quality of {reference}.",
            f"{name} comes closest: {at}.",
        )
    claim = "fewer decoder calls" if saving["value"] >= 1 else "the saving in decoder calls, so more of them,"
    wall = end_to_end(setting, best)
    return Headline(
        factor(saving["value"]),
        f"{claim} at the quality of {reference}, 95 % interval {interval(saving['low'], saving['high'])}.",
        f"{name}: {at}."
        + (f" End to end, encoder and predictor included: {factor(wall)} less wall time." if wall else ""),
    )


def _listed(reasons: Iterable[str]) -> str:
    texts = sorted(filter(None, reasons))
    return f" ({'; '.join(texts)})" if texts else ""


# --- Markdown and plain text.


def escape_markdown(text: str) -> str:
    """Data in Markdown: no markup, no cell borders, no HTML."""
    return re.sub(r"([\\`*_|<>&\[\]])", r"\\\1", text)


def markdown_table(table: Table) -> str:
    rule = ["---" if i < table.text_columns else "---:" for i in range(len(table.header))]
    lines = [[escape_markdown(cell) for cell in table.header], rule]
    for title, rows in table.groups:
        if title:
            lines.append([f"**{escape_markdown(title)}**"] + [""] * (len(table.header) - 1))
        lines += [[escape_markdown(cell) for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def markdown(results: Results) -> str:
    """The report as Markdown: headline, savings, operations, scores, parameters, provenance.

    Raises InputError if the document is not a valid ``jepa.results/1``.
    """
    validate_results(results)
    settings = {escape_markdown(clean(name)): setting for name, setting in results["settings"].items()}
    blocks = [f"# {escape_markdown(clean(results['name']))}: selective decoding against uniform decoding"]
    for name, setting in settings.items():
        words = headline(setting)
        sentences = " ".join(escape_markdown(text) for text in (words.claim, words.detail))
        blocks.append(f"- **{name}: {words.figure}** {sentences}")
    for name, setting in settings.items():
        blocks += [
            f"## Savings at equal quality: {name}",
            ": ".join(escape_markdown(t) for t in (clean(setting["description"]).rstrip("."), setting_facts(setting))),
            markdown_table(savings_table(setting)),
            f"## Operations: {name}",
            f"Over {setting['operations'][0]['ledger']['steps']:,} steps of the test streams."
            if setting["operations"]
            else "None were recorded.",
            markdown_table(operations_table(setting)),
        ]
    blocks += [
        "## Scores",
        markdown_table(scores_table(results["scores"])),
        "## Parameters by role",
        markdown_table(parameters_table(results)),
        "## Provenance",
        markdown_table(provenance_table(results)),
    ]
    return "\n\n".join(blocks) + "\n"


WIDTH = 100


def columns(rows: list[Row], widths: tuple[int, ...], text_columns: int) -> list[str]:
    lines = []
    for row in rows:
        cells = [cell if len(cell) <= w else cell[: w - 1] + "…" for cell, w in zip(row, widths, strict=True)]
        padded = [
            cell.ljust(w) if i < text_columns else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(cells, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def summary(results: Results) -> str:
    """The main figures for a terminal of 100 columns: savings against the headline reference, then scores.

    Raises InputError if the document is not a valid ``jepa.results/1``.
    """
    validate_results(results)
    widths = (16, 18, 15, 8, 9, 24)
    header = ("setting", "policy", "at", "CIDEr-D", "decodes/s", "saving (95 % interval)")
    rows: list[Row] = []
    for name, setting in results["settings"].items():
        for saving in headline_savings(setting):
            label, _, point, score, _, decodes, _ = _savings_row(setting, saving)
            label += "" if setting["curves"][saving["policy"]]["causal"] else "*"
            verdict = factor_with_interval(saving["saving"]) if saving["reached"] else "not reached"
            rows.append((clean(name), label, point, score, decodes, verdict))
    rule = tuple("─" * width for width in widths)
    lines = columns([header, rule, *rows], widths, text_columns=3)
    scores = results["scores"]
    ends = [
        f"retrieval R@1 {share(scores['retrieval']['r@1'])} (chance {share(scores['retrieval']['chance'])})",
        f"classification {share(scores['classification']['accuracy'])} "
        f"(chance {share(scores['classification']['chance'])})",
        f"questions {share(scores['question_answering']['accuracy'])}",
    ]
    return "\n".join([*lines, "* offline: needs the whole stream", "", " · ".join(ends)])
