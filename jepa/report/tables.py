"""The figures of a results document as tables and sentences: Markdown for files, plain text for terminals.

The tables are built once, as :class:`Table`, and rendered by whoever shows them, so that the Markdown file
and the HTML page cannot disagree.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jepa.report.schema import TRAINING_PARTS, Results, validate_results

PARTS = ("detector", "encoder", "predictor", "decoder")
ESTIMATED_PARTS = ("encoder", "predictor")  # whose wall time is estimated where a policy selects steps
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


def fraction(value: float) -> str:
    """A score between 0 and 1: three decimals, or two significant digits below 0.01."""
    return f"{value:.2g}" if 0 < value < 0.01 else fixed(value, 3)


def seconds(value: float | None) -> str:
    """A time in seconds: two decimals, one from 100 s on."""
    return NONE if value is None else fixed(value, 1 if value >= 100 else 2)


def interval(low: float, high: float, digits: int = 2, sign: str = "") -> str:
    """The two ends of an interval."""
    return f"{fixed(low, digits, sign)} to {fixed(high, digits, sign)}"


def significant(value: float) -> str:
    """Three significant digits, whole numbers from 100 on."""
    return fixed(value, 0) if abs(value) >= 100 else f"{value:.3g}".replace("-", "−")


def percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def factor_with_interval(saving: dict[str, Any] | None) -> str:
    """A saving; without an upper bound where the policy may decode nothing, in words where it does decode nothing."""
    if saving is None:
        return "decodes nothing"
    return f"{factor(saving['value'])} ({bounds(saving)})"


def bounds(saving: dict[str, Any]) -> str:
    """The interval of a saving."""
    if saving["high"] is None:
        return f"from {fixed(saving['low'], 2)}"
    return interval(saving["low"], saving["high"])


def difference(value: dict[str, float]) -> str:
    """A quality difference with its sign and interval."""
    return f"{fixed(value['value'], 2, '+')} ({interval(value['low'], value['high'], sign='+')})"


def operating_point(curve: dict[str, Any], knob: float) -> str:
    """Where a policy stands on its knob: "1 Hz" for a rate, "threshold 3.1" for anything else, "no knob"."""
    if curve["knob"] == "none":
        return "no knob"
    if curve["knob"] == "rate_hz":
        return f"{knob:.3g} Hz"
    return f"{clean(curve['knob'])} {knob:.3g}".replace("-", "−")


def code_text(code: dict[str, Any]) -> str:
    """The version and the commit that figures come from."""
    commit = clean(code["commit"]) if code["commit"] else "unknown"
    state = {True: ", with uncommitted changes", False: "", None: ", state of the tree unknown"}
    return f"version {clean(code['version'])}, commit {commit}{state[code['dirty']]}"


def device_text(device: dict[str, Any]) -> str:
    """What figures were measured on."""
    return f"{clean(device['type'])}, {clean(device['name'])}, {device['threads']} threads"


def label(curve: dict[str, Any]) -> str:
    """The name of a policy; of an oracle, which is told the answer, that it is an upper bound."""
    name = clean(curve["label"])
    return f"{name} (upper bound)" if curve["oracle"] and "upper bound" not in name else name


def needs(curve: dict[str, Any]) -> str:
    """What a policy must have seen before it decodes."""
    if curve["oracle"]:
        return "the annotations"
    return "the past" if curve["causal"] else "the whole stream"


def reference_name(setting: dict[str, Any], saving: dict[str, Any]) -> str:
    """Such as "uniform at 1 Hz"."""
    reference = saving["reference"]
    return f"{clean(setting['curves'][reference['policy']]['label'])} at {reference['rate_hz']:.3g} Hz"


def wanted_name(setting: dict[str, Any], saving: dict[str, Any]) -> str:
    """What is to be kept: such as "uniform at 1 Hz", or "uniform at 1 Hz, −2 %" of its quality."""
    tolerance = f", −{percent(saving['tolerance'])}" if saving["tolerance"] else ""
    return reference_name(setting, saving) + tolerance


# --- Which policies and which operating points.


def headline_savings(setting: dict[str, Any]) -> list[dict[str, Any]]:
    """The savings against the headline reference, in the order of the document."""
    return [saving for saving in setting["savings"] if saving["headline"]]


def best_causal(setting: dict[str, Any]) -> dict[str, Any] | None:
    """The headline saving of a causal policy other than the reference itself, and that no other stream helps.

    The largest saving among those that reach the reference's quality; if none does, the one that comes closest; None if
    no such policy had an operating point. What streams share, a cache or a bank, saves more the more streams there are:
    a row of its own, and no headline.
    """
    measured = [
        saving
        for saving in headline_savings(setting)
        if saving["knob"] is not None
        and (curve := setting["curves"][saving["policy"]])["causal"]
        and not (curve["cache"] is not None and curve["cache"]["shared"])
        and saving["policy"] != saving["reference"]["policy"]
    ]
    reached = [saving for saving in measured if saving["reached"] and saving["saving"] is not None]
    if reached:
        return max(reached, key=lambda saving: saving["saving"]["value"])
    return max(measured, key=lambda saving: saving["quality_difference"]["value"], default=None)


def without_contrast(setting: dict[str, Any]) -> str | None:
    """Why savings mean nothing here: half of the reference's decodes, or fewer, keep its quality without any choice."""
    savings = headline_savings(setting)
    own = next((saving for saving in savings if saving["policy"] == saving["reference"]["policy"]), None)
    if own is None or own["saving"] is None or own["saving"]["value"] < 2 or not own["reached"]:
        return None
    at = operating_point(setting["curves"][own["policy"]], own["knob"])
    return (
        f"Quality does not depend on decoding here: {reference_name(setting, own)} has CIDEr-D "
        f"{quality(own['reference_quality'])}, and the same policy at {at} has {quality(own['quality'])}."
    )


def qualified(setting: dict[str, Any], row: dict[str, Any]) -> bool:
    """Whether operations are those of a headline saving that is reached: chosen on calibration streams, and it held."""
    return any(
        saving["reached"] and (saving["policy"], saving["knob"]) == (row["policy"], row["knob"])
        for saving in headline_savings(setting)
    )


def reference_row(setting: dict[str, Any]) -> dict[str, Any] | None:
    """The operations of the headline reference, if they were recorded."""
    reference = headline_savings(setting)[0]["reference"]
    chosen = (reference["policy"], reference["rate_hz"])
    return next((row for row in setting["operations"] if (row["policy"], row["knob"]) == chosen), None)


def leanest(setting: dict[str, Any], kept: bool = False) -> dict[str, Any] | None:
    """The operating point that saves most FLOPs end to end, but no oracle's; None if unknown.

    Whatever its quality, or, where quality has to be `kept`, of those that `qualified`.
    """
    reference = reference_row(setting)
    rows = [
        row
        for row in setting["operations"]
        if row is not reference
        and not setting["curves"][row["policy"]]["oracle"]
        and operations_ratio(setting, row).flops is not None
        and (qualified(setting, row) or not kept)
    ]
    return max(rows, key=lambda row: operations_ratio(setting, row).flops or 0.0, default=None)


def prominent(setting: dict[str, Any]) -> list[str]:
    """All policies of a setting, those that a figure should show first at the front.

    They are the headline reference, the best causal policy, the leanest, the best of those that need the whole stream,
    the best oracle, the other references; then by saving.
    """
    curves, savings = setting["curves"], headline_savings(setting)
    measured = [saving for saving in savings if saving["saving"] is not None]
    ranked = sorted(measured, key=lambda saving: (saving["reached"], saving["saving"]["value"]), reverse=True)
    order = [saving["policy"] for saving in ranked]
    front = [savings[0]["reference"]["policy"]]
    front += [found["policy"] for found in (best_causal(setting), leanest(setting)) if found is not None]
    for kind in ("the whole stream", "the annotations"):
        front += [policy for policy in order if needs(curves[policy]) == kind][:1]
    front += [saving["reference"]["policy"] for saving in setting["savings"]]
    return list(dict.fromkeys([*front, *order, *curves]))


SHOWN, LANES = 8, 5  # policies with a colour of their own; of these, policies beside one stream


def highlighted(results: Mapping[str, Any]) -> list[str]:
    """At most `SHOWN` policies, taken in turn from the front of each setting's `prominent`."""
    ranks = itertools.zip_longest(*map(prominent, results["settings"].values()))
    return list(dict.fromkeys(policy for rank in ranks for policy in rank if policy is not None))[:SHOWN]


def strip_decodes(setting: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The decodes of the strip's stream by the first `LANES` of its policies."""
    decodes = setting["strip"]["decodes"]
    return {policy: decodes[policy] for policy in [p for p in prominent(setting) if p in decodes][:LANES]}


def point(setting: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """The point of the test curve at an operating point."""
    found: dict[str, Any] = next(
        point for point in setting["curves"][row["policy"]]["test"] if point["knob"] == row["knob"]
    )
    return found


def _quality_difference(setting: dict[str, Any], row: dict[str, Any]) -> str:
    """CIDEr-D less the headline reference's, with its interval where that was measured at this operating point."""
    if row is reference_row(setting):
        return NONE
    first = headline_savings(setting)[0]
    for saving in setting["savings"]:
        same = (saving["policy"], saving["knob"]) == (row["policy"], row["knob"])
        if same and saving["reference"] == first["reference"]:
            return difference(saving["quality_difference"])
    return fixed(point(setting, row)["cider_d"]["value"] - first["reference_quality"], 2, "+")


# --- Operations and compute.


def total_seconds(ledger: dict[str, Any]) -> float:
    """Wall seconds of all parts and of the cache."""
    return float(sum(ledger[part]["seconds"] for part in (*PARTS, "cache")))


def part_flops(ledger: dict[str, Any], part: str) -> int | None:
    """None where the part was called but its FLOPs were not counted."""
    flops: int = ledger[part]["flops"]
    return None if ledger[part]["calls"] and not flops else flops


def cache_flops(ledger: dict[str, Any]) -> int:
    """FLOPs of the cache's look-ups; 0 in documents from before they were counted."""
    flops: int = ledger["cache"].get("flops", 0)
    return flops


def total_flops(ledger: dict[str, Any]) -> int | None:
    """Of all parts and of the cache; None unless the FLOPs of all parts were counted."""
    parts = [part_flops(ledger, part) for part in PARTS]
    return sum(flops or 0 for flops in parts) + cache_flops(ledger) if None not in parts else None


class Ratios(NamedTuple):
    """Reference over policy, per second of stream; None without a reference, a count or a divisor."""

    calls: float | None
    flops: float | None
    seconds: float | None


def operations_ratio(setting: dict[str, Any], row: dict[str, Any]) -> Ratios:
    """What an operating point saves against the headline reference: decoder calls, and all parts end to end."""
    reference = reference_row(setting)
    if reference is None:
        return Ratios(None, None, None)
    theirs, ours = reference["ledger"], row["ledger"]

    def ratio(of_reference: float | None, of_policy: float | None) -> float | None:
        if of_reference is None or of_policy is None:
            return None
        divisor = of_policy * theirs["stream_seconds"]
        return of_reference * ours["stream_seconds"] / divisor if divisor else None

    return Ratios(
        ratio(theirs["decoder"]["calls"], ours["decoder"]["calls"]),
        ratio(total_flops(theirs), total_flops(ours)),
        ratio(total_seconds(theirs), total_seconds(ours)) if setting.get("one_device", True) else None,
    )


def lever_chain(setting: dict[str, Any], measure: str) -> list[tuple[str, dict[str, Any]]]:
    """(lever, operations) of the reference, then of causal operating points that each have one lever more.

    The levers: deciding when to decode, a cache besides, encoding or predicting at some steps only besides. Of several
    operating points, one that keeps the reference's quality is taken, of these the one of the fewest FLOPs. A lever
    that no policy has is left out; where FLOPs, or the `measure` ("flops" or "seconds"), do not compare there is no
    chain: [].
    """
    reference, curves = reference_row(setting), setting["curves"]
    wanted = headline_savings(setting)[0]["reference_quality"]

    def rank(row: dict[str, Any]) -> tuple[bool, float]:
        return point(setting, row)["cider_d"]["value"] >= wanted, operations_ratio(setting, row).flops or 0.0

    def has(row: dict[str, Any], cached: bool, selects: bool) -> bool:
        curve = curves[row["policy"]]
        decides = curve["causal"] and not curve["oracle"] and curve["knob"] != "rate_hz"
        return decides and (curve["cache"] is not None) == cached and curve["selects_steps"] == selects

    counted = [row for row in setting["operations"] if operations_ratio(setting, row).flops]
    chain = [] if reference is None else [("uniform", reference)]
    cached = False
    for title, cache, selects in (
        ("selective decoding", False, False),
        ("+ cache", True, False),
        ("+ fewer steps computed", None, True),
    ):
        rows = [row for row in counted if has(row, cached if cache is None else cache, selects)]
        if rows:
            chain.append((title, max(rows, key=rank)))
            cached = cached or bool(cache)
    compared = all(getattr(operations_ratio(setting, row), measure) for _, row in chain)
    return chain if len(chain) > 1 and compared else []


def break_even(setting: dict[str, Any], row: dict[str, Any]) -> float | None:
    """Steps per second up to which encoding costs no more FLOPs than the decodes saved; <= 0 where none are.

    (decoder and cache FLOPs per second of the headline reference − of the policy) / (encoder and predictor FLOPs per
    step). None where one of them was not counted.
    """
    reference = reference_row(setting)
    if reference is None:
        return None
    ledgers = (reference["ledger"], row["ledger"])
    decoding = [part_flops(ledger, "decoder") for ledger in ledgers]
    encoder, predictor = (part_flops(row["ledger"], part) for part in ("encoder", "predictor"))
    if None in (*decoding, encoder, predictor) or not all(ledger["stream_seconds"] for ledger in ledgers):
        return None
    theirs, ours = (
        ((flops or 0) + cache_flops(ledger)) / ledger["stream_seconds"]
        for flops, ledger in zip(decoding, ledgers, strict=True)
    )
    encoding = (encoder or 0) + (predictor or 0)
    return (theirs - ours) * row["ledger"]["steps"] / encoding if encoding else None


_PREFIXES = ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
UNCOUNTED = "not counted"


def prefix(largest: float) -> tuple[float, str]:
    """The factor and the SI prefix of a unit in which `largest` is a handy number."""
    return next((pair for pair in _PREFIXES if largest >= pair[0]), _PREFIXES[-1])


def flops_unit(rows: Iterable[dict[str, Any]]) -> tuple[float, str]:
    """The unit in which the largest part, per second of stream, is a handy number."""
    ledgers = [row["ledger"] for row in rows if row["ledger"]["stream_seconds"]]
    largest = max((x[part]["flops"] / x["stream_seconds"] for x in ledgers for part in PARTS), default=0.0)
    scale, letter = prefix(largest)
    return scale, f"{letter}FLOP"


COMPUTE_NOTE = (
    "Savings are the reference's figure over the policy's, per second of stream; of FLOPs and wall time, all parts "
    "and the cache are counted, end to end. A policy that does not select steps is charged with encoding every step, "
    "and so is the reference. Break-even: the steps per second up to which encoding costs no more FLOPs than the "
    "decodes that the policy saves, (decoder and cache FLOPs per second of the reference − of the policy) / (encoder "
    "and predictor FLOPs per step). Wall time is compared only where one device encoded and decoded. est.: of the "
    "steps that were selected, wall time is the mean of a call times the calls."
)


LEVERS_NOTE = (
    "Each bar is the ledger of an operating point of its own, so that what the levers do together is measured, not "
    "multiplied; beside it the CIDEr-D there. Equal lengths are equal factors."
)


def compute_table(setting: dict[str, Any]) -> Table:
    """FLOPs per second of stream of each part at each operating point, and what is saved end to end."""
    rows = setting["operations"]
    scale, unit = flops_unit(rows)

    def flops(value: int | None, ledger: dict[str, Any]) -> str:
        if value is None:
            return UNCOUNTED
        return significant(value / ledger["stream_seconds"] / scale) if ledger["stream_seconds"] else NONE

    def cells(row: dict[str, Any]) -> Row:
        curve, ledger, ratios = setting["curves"][row["policy"]], row["ledger"], operations_ratio(setting, row)
        even, steps = break_even(setting, row), ledger["steps"]
        limit = UNCOUNTED if even is None else "none" if even <= 0 else significant(even)
        return (
            label(curve),
            operating_point(curve, row["knob"]),
            *(flops(part_flops(ledger, part), ledger) for part in PARTS),
            flops(cache_flops(ledger), ledger),
            flops(total_flops(ledger), ledger),
            factor(ratios.calls),
            factor(ratios.flops),
            factor(ratios.seconds) + _estimated(row, ratios.seconds),
            _quality_difference(setting, row),
            significant(steps / ledger["stream_seconds"]) if ledger["stream_seconds"] else NONE,
            NONE if row is reference_row(setting) else limit,
        )

    header: Row = ("policy", "operating point", *PARTS, "cache", "all", "saving, decoder calls", "saving, FLOPs")
    header += ("saving, wall time", "CIDEr-D difference", "steps/s", "break-even steps/s")
    title = f"{unit}s per second of stream; savings against {reference_name(setting, headline_savings(setting)[0])}"
    return Table(header, ((title, tuple(map(cells, rows))),), text_columns=2)


EST = " est."  # after what was estimated, not measured


def _estimated(row: dict[str, Any], value: float | None) -> str:
    return EST if row["seconds_estimated"] and value else ""


def operations_table(setting: dict[str, Any]) -> Table:
    """Counts and wall seconds, one row an operating point."""

    def cells(row: dict[str, Any]) -> Row:
        curve, ledger = setting["curves"][row["policy"]], row["ledger"]
        whole = total_seconds(ledger)
        timed = {part: ledger[part]["seconds"] for part in (*PARTS, "cache")}
        return (
            label(curve),
            operating_point(curve, row["knob"]),
            *(f"{ledger[part]['calls']:,}" for part in PARTS),
            *(f"{ledger['decoder'][key]:,}" for key in ("forward_passes", "tokens")),
            *(seconds(value) + _estimated(row, value) * (part in ESTIMATED_PARTS) for part, value in timed.items()),
            seconds(whole) + _estimated(row, whole),
        )

    header: Row = ("policy", "operating point", *(f"{part} calls" for part in PARTS), "decoder forward passes")
    header += ("tokens decoded", *(f"{part}, s" for part in (*PARTS, "cache")), "all, s")
    return Table(header, (("", tuple(map(cells, setting["operations"]))),), text_columns=2)


# --- The quality of what comes out.


QUALITY_NOTE = (
    "Temporal F1: emissions matched one to one with events at an overlap (IoU) of at least 0.5; merged: after "
    "repeats that follow each other became one. SODA_c: the best matching in order of time, by overlap and text; the "
    "similarity of texts is a tenth of CIDEr-D, not METEOR, so it does not compare with published figures. "
    "TimRedun: how far the number of emissions an event is from 1. TimCover: fraction of the events with an emission. "
    "Means over the test streams; latency from the start of a segment until its text is known."
)


def quality_table(setting: dict[str, Any]) -> Table:
    """What the emissions at each operating point are worth, what they need, and how late they are."""

    def cells(row: dict[str, Any]) -> Row:
        curve, measured, late = setting["curves"][row["policy"]], point(setting, row), row["ledger"]["latency_seconds"]
        names = ("temporal_f1_merged", "temporal_f1", "soda_c", "tim_redun", "tim_cover")
        return (
            label(curve),
            operating_point(curve, row["knob"]),
            needs(curve),
            *(clean({**curve, **measured}[name]) for name in ("latency", "state")),  # documents before: of the curve
            quality(measured["cider_d"]["value"]),
            *(fraction(measured["dense"][name]) for name in names),
            seconds(late["mean"]),
            seconds(late["p95"]),
        )

    header: Row = ("policy", "operating point", "needs", "latency", "state", "CIDEr-D", "temporal F1, merged")
    header += ("temporal F1", "SODA_c", "TimRedun", "TimCover", "latency, mean s", "latency, 95th percentile s")
    return Table(header, (("", tuple(map(cells, setting["operations"]))),), text_columns=5)


CACHE_NOTE = (
    "A look-up is wrong if it hits and the text differs from the decoder's for the same latent, which was decoded to "
    "check; the error is the fraction of wrong look-ups on the test streams. The threshold was "
    "calibrated on the others. "
    "A caption bank holds texts decoded on half of those, which are not counted, and was calibrated on the other half."
)


def cache_table(setting: dict[str, Any]) -> Table:
    """What the cache of each policy that has one did at its operating point, and the error requested."""

    def cells(policy: str, knob: float | None) -> Row:
        curve = setting["curves"][policy]
        asked = percent(curve["cache"]["error_rate"])
        if knob is None:
            return (label(curve), "no operating point", asked, *(NONE,) * 6)
        cache = point(setting, {"policy": policy, "knob": knob})["cache"]
        error, none = cache["error"], cache["threshold"] < 0
        return (
            label(curve),
            operating_point(curve, knob),
            asked,
            "no threshold kept the requested error" if none else f"{cache['threshold']:.4f}",
            *(f"{error[key]:,}" for key in ("lookups", "hits", "wrong")),
            f"{percent(error['value'])} ({100 * error['low']:.3g} to {100 * error['high']:.3g})",
            "yes" if error["value"] <= curve["cache"]["error_rate"] else "no",
        )

    knobs: dict[str, list[float | None]] = {p: [] for p, c in setting["curves"].items() if c["cache"] is not None}
    for row in setting["operations"]:
        if row["policy"] in knobs:
            knobs[row["policy"]].append(row["knob"])
    rows = tuple(cells(policy, knob) for policy, found in knobs.items() for knob in found or [None])
    header: Row = ("policy", "operating point", "requested error", "threshold", "look-ups", "hits", "wrong hits")
    return Table((*header, "error (95 % interval)", "kept"), (("", rows),), text_columns=2)


# --- The other tables.


def savings_table(setting: dict[str, Any]) -> Table:
    """Every policy against the headline reference."""
    header: Row = ("policy", "needs", "operating point", "saving", "CIDEr-D", "difference", "decodes/s")
    header += ("merged temporal F1, difference",)
    savings = headline_savings(setting)
    first = savings[0]
    title = (
        f"against {wanted_name(setting, first)}: CIDEr-D {quality(first['reference_quality'])}, "
        f"{rate(first['reference_decodes_per_second'])} decodes/s"
    )
    rows = tuple(_savings_row(setting, saving) for saving in savings)
    return Table(header, ((title, rows),), text_columns=3)


def _savings_row(setting: dict[str, Any], saving: dict[str, Any]) -> Row:
    curve = setting["curves"][saving["policy"]]
    if saving["knob"] is None:
        verdict = f"not reached: {clean(saving['reason'])}" if saving["reason"] else "not reached"
        return (label(curve), needs(curve), NONE, verdict, *(NONE,) * 4)
    verdict = factor_with_interval(saving["saving"])
    if not saving["reached"]:
        verdict = f"not reached; {verdict} at lower quality"
    return (
        label(curve),
        needs(curve),
        operating_point(curve, saving["knob"]),
        verdict,
        quality(saving["quality"]),
        difference(saving["quality_difference"]),
        rate(saving["decodes_per_second"]),
        difference(saving["temporal_f1_difference"]),
    )


MATRIX_NOTE = (
    "Saving in decoder calls against each reference, with its 95 % interval over streams; −2 %, say, where that share "
    "of its quality may be lost. In square brackets: missed on the test streams. –: no operating point. *: merged "
    "temporal F1 is lower than the reference's. Curves: CIDEr-D above or below the first reference's curve, the mean "
    "over the logarithm of decodes per second, where both curves are."
)


def matrix_table(setting: dict[str, Any]) -> Table:
    """One row a policy, one column a reference and tolerance; then the area between the curves."""
    wanted: dict[str, dict[str, str]] = {}
    for saving in setting["savings"]:
        wanted.setdefault(wanted_name(setting, saving), {})[saving["policy"]] = _verdict(saving)

    def area(policy: str) -> Row:
        found = setting["areas"].get(policy)
        if found is None or found["difference"] is None:
            return (NONE, NONE)
        return (difference(found["difference"]), f"{found['low_rate']:.3g}–{found['high_rate']:.3g}")

    rows = tuple(
        (label(curve), *(column.get(policy, NONE) for column in wanted.values()), *area(policy))
        for policy, curve in setting["curves"].items()
    )
    return Table(("policy", *wanted, "curves, CIDEr-D", "at decodes/s"), (("", rows),))


def _verdict(saving: dict[str, Any]) -> str:
    if saving["knob"] is None:
        return NONE
    ratio, opening, ends = factor_with_interval(saving["saving"]).partition(" (")
    verdict = ratio + "*" * (saving["temporal_f1_difference"]["value"] < 0) + opening + ends
    return verdict if saving["reached"] else f"[{verdict}]"


def strip_table(setting: dict[str, Any]) -> Table:
    """Each event of the strip beside the decode of each policy that is nearest in time to its middle."""
    decodes = strip_decodes(setting)

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
    labels = (label(setting["curves"][policy]) for policy in decodes)
    return Table(("time", "event", *labels), (("", rows),), text_columns=2 + len(decodes))


SCORES_NOTE = (
    "Cost: tokens generated, and FLOPs, of an answer by itself: its clip encoded, the embedding predicted, compared "
    "with those of the candidates or decoded; candidates are embedded once, and the answers that share them bear equal "
    "parts. Of a right one: that over the score (cost-of-pass, arXiv 2504.13359)."
)


def scores_table(scores: dict[str, Any]) -> Table:
    """Scores of the checkpoint, each beside what guessing gives and what it cost (older documents: not counted)."""
    retrieval, classes = scores["retrieval"], scores["classification"]
    answers, captions, geometry = scores["question_answering"], scores["captioning"], scores["geometry"]
    questions = answers["by_question"]
    asked = sum(question["queries"] for question in questions.values())
    guessed = sum(q["chance"] * q["queries"] for q in questions.values()) / asked if asked else None

    def row(
        name: str,
        value: str,
        chance: float | None,
        candidates: int | None,
        queries: int,
        cost: dict[str, Any] | None = None,
    ) -> Row:
        return (
            clean(name),
            value,
            NONE if chance is None else fraction(chance),
            NONE if candidates is None else f"{candidates:,}",
            f"{queries:,}",
            _spent(cost, "answer"),
            _spent(cost, "right_answer"),
        )

    def found(k: int) -> Row:
        candidates, chance = retrieval["candidates"], min(1.0, k * retrieval["chance"])
        cost = retrieval.get("cost", {}).get(f"r@{k}")
        return row(f"R@{k}", fraction(retrieval[f"r@{k}"]), chance, candidates, retrieval["queries"], cost)

    def chosen(name: str, part: dict[str, Any]) -> Row:
        value = fraction(part["accuracy"])
        return row(name, value, part["chance"], part["candidates"], part["queries"], part.get("cost"))

    def measured(name: str, value: str) -> Row:
        return (name, value, *[NONE] * 5)

    def captioned(name: str, value: str, cost: dict[str, Any] | None = None) -> Row:
        return row(name, value, None, None, captions["queries"], cost)

    groups = (
        ("Retrieval of the caption", (found(1), found(5))),
        ("Zero-shot classification", (chosen("accuracy", classes),)),
        (
            "Question answering",
            (
                row(
                    "accuracy, all questions",
                    fraction(answers["accuracy"]),
                    guessed,
                    None,
                    answers["queries"],
                    answers.get("cost"),
                ),
                *(chosen(name, question) for name, question in questions.items()),
            ),
        ),
        (
            "Captioning",
            (
                captioned("CIDEr-D", quality(captions["cider_d"])),
                captioned("exact match", fraction(captions["exact_match"]), captions.get("cost")),
                *(
                    captioned(name, NONE if captions[key] is None else f"{captions[key]:,.3g}")
                    for name, key in _CAPTION_COSTS
                    if key in captions
                ),
            ),
        ),
        (
            "Geometry of the latents",
            (
                measured("retrieval@1", fraction(geometry["retrieval@1"])),
                measured("RankMe", quality(geometry["rankme"])),
                measured("cosine of pairs", fixed(geometry["paired_cosine"], 3)),
                measured("cosine of non-pairs", fixed(geometry["unpaired_cosine"], 3)),
            ),
        ),
    )
    header = ("score", "value", "chance", "candidates", "queries", "tokens, FLOPs of an answer", "of a right one")
    return Table(header, groups)


def _spent(cost: dict[str, Any] | None, of: str) -> str:
    """Tokens and FLOPs of an answer, or of a right one."""
    if cost is None or cost[f"flops_per_{of}"] is None:
        return NONE
    return f"{cost[f'tokens_per_{of}']:,.3g}, {cost[f'flops_per_{of}']:.3g}"


_CAPTION_COSTS = (
    ("OckScore of exact match", "ock_score"),
    ("area of exact match against tokens", "accuracy_area"),
    ("tokens of a caption", "tokens_per_caption"),  # from here on in older documents
    ("tokens for each right caption", "tokens_per_right_caption"),
    ("FLOPs of decoding a caption", "flops_per_caption"),
)


def parameters_total(results: Results) -> tuple[int, int]:
    """Parameters of all roles, and those trained."""
    total, trainable = (sum(role[key] for role in results["parameters"]) for key in ("total", "trainable"))
    return total, trainable


PARAMETERS_NOTE = (
    "Parameters: all that are stored, token embeddings and frozen ones included; what roles fraction counts "
    "with the first. Trained: those that received gradients in any stage. Used by a token: all, but of routed experts "
    "those that one token is sent to."
)


def parameters_table(results: Results) -> Table:
    """Parameters by role, and their sum: stored, trained, and those that a token uses (all, but of routed experts)."""

    def row(name: str, modules: str, roles: list[dict[str, Any]]) -> Row:
        active = sum(role.get("active", role["total"]) for role in roles)
        total, trainable = (sum(role[key] for role in roles) for key in ("total", "trainable"))
        return (name, modules, f"{total:,}", f"{trainable:,}", f"{active:,}")

    roles = results["parameters"]
    rows = [row(clean(role["role"]), clean(role["modules"]), [role]) for role in roles]
    rows.append(row("all roles", "", roles))
    header = ("role", "modules", "parameters", "trained", "used by a token")
    return Table(header, (("", tuple(rows)),), text_columns=2)


TRAINING_NOTE = (
    "Forward and backward passes of all steps on the first device, by part; seconds are wall time. Bytes: all weights "
    "of a part, read once a pass, and those that the optimizer updates. Loss: what lies between the parts. The "
    "optimizer's elementwise operations count as no FLOPs. What is left of a stage's time is data, validation and "
    "start-up."
)


def has_training_operations(results: Results) -> bool:
    """Whether the operations of any stage of training were counted."""
    return any(stage.get("operations") for stage in results["training"]["stages"])


def training_table(results: Results) -> Table:
    """FLOPs, bytes of weights and wall time of the parts that a stage of training used, and their fractions of it."""
    stages = results["training"]["stages"]
    counted = [part for s in stages if s.get("operations") for part in s["operations"]["parts"].values()]
    (flops_scale, flops), (bytes_scale, read) = (
        prefix(max(part[key] for part in counted)) for key in ("flops", "weight_bytes")
    )

    def amount(value: float) -> str:
        return "< 0.001" if 0 < value < 0.001 else significant(value)

    def cells(name: str, part: Mapping[str, float], whole: Mapping[str, float]) -> Row:
        fractions = (part[key] / whole[key] if whole[key] else None for key in ("flops", "seconds"))
        of_flops, of_time = (NONE if value is None else f"{100 * value:.1f} %" for value in fractions)
        amounts = (amount(part["flops"] / flops_scale), of_flops, amount(part["weight_bytes"] / bytes_scale))
        return (name, *amounts, seconds(part["seconds"]), of_time)

    def rows(stage: Mapping[str, Any]) -> tuple[Row, ...]:
        if not stage.get("operations"):
            return (("all parts", *[UNCOUNTED] * 5),)
        parts = {TRAINING_PARTS[key]: part for key, part in stage["operations"]["parts"].items() if any(part.values())}
        whole = {key: sum(part[key] for part in parts.values()) for key in ("flops", "weight_bytes", "seconds")}
        return (*(cells(name, part, whole) for name, part in parts.items()), cells("all parts", whole, whole))

    groups = tuple(
        (f"{clean(stage['name'])}: {stage['steps']:,} steps in {seconds(stage['seconds'])} s", rows(stage))
        for stage in stages
    )
    header: Row = ("part", f"{flops}FLOPs", "fraction of FLOPs", f"{read}B of weights read")
    return Table((*header, "wall time, s", "fraction of wall time"), groups)


def provenance_table(results: Results) -> Table:
    """Where the figures come from."""
    training = results["training"]
    stages = "; ".join(
        f"{clean(stage['name'])}: {stage['steps']:,} steps, {seconds(stage['seconds'])} s"
        for stage in training["stages"]
    )
    report: tuple[Row, ...] = ()
    if "report" in results:
        made = results["report"]
        report = (("report", f"{clean(made['created'])}; {code_text(made['code'])}; {device_text(made['device'])}"),)
    rows = (
        ("run", clean(results["name"])),
        ("created", clean(results["created"])),
        ("seed", str(results["seed"])),
        ("code", code_text(results["code"])),
        ("device", device_text(results["device"])),
        *report,
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


def operations_facts(setting: dict[str, Any]) -> str:
    """What the operations were counted over; `setting` has some."""
    row = reference_row(setting) or setting["operations"][0]
    minutes = row["ledger"]["stream_seconds"] / 60
    return f"Over {row['ledger']['steps']:,} steps, {minutes:,.1f} minutes of test streams"


def has_cache(setting: dict[str, Any]) -> bool:
    return any(curve["cache"] is not None for curve in setting["curves"].values())


@dataclass(frozen=True)
class Headline:
    """One setting in a few words: the figures are a ratio, or `VOID`, "not reached", "not counted"; else sentences."""

    figure: str
    claim: str
    detail: str
    compute_figure: str
    compute: str


VOID = "void"  # a saving where quality does not depend on decoding


def headline(setting: dict[str, Any]) -> Headline:
    """What the best causal policy saves at equal quality, or, in plain words, that it does not; and compute."""
    return Headline(*_decodes_headline(setting), *_compute_headline(setting))


def _decodes_headline(setting: dict[str, Any]) -> tuple[str, str, str]:
    first = headline_savings(setting)[0]
    reference = f"{wanted_name(setting, first)} (CIDEr-D {quality(first['reference_quality'])})"
    best = best_causal(setting)
    missed = f"No causal policy reaches the quality of {reference}."
    if best is None:
        reasons = {clean(saving["reason"]) for saving in headline_savings(setting) if saving["knob"] is None}
        return "not reached", missed, f"No operating point qualified on the calibration streams{_listed(reasons)}."
    curve, saving = setting["curves"][best["policy"]], best["saving"]
    name = f"{label(curve)} ({operating_point(curve, best['knob'])})"
    at = (
        f"CIDEr-D {quality(best['quality'])}, difference {difference(best['quality_difference'])}; "
        f"merged temporal F1 {difference(best['temporal_f1_difference'])}; "
        f"{rate(best['decodes_per_second'])} against {rate(best['reference_decodes_per_second'])} "
        "decodes per second"
    )
    if not best["reached"] or saving is None:
        return "not reached", missed, f"{name} comes closest: {at}."
    claim = "fewer decoder calls" if saving["value"] >= 1 else "the saving in decoder calls, so more of them,"
    figure, claim = factor(saving["value"]), f"{claim} at the quality of {reference}, 95 % interval {bounds(saving)}."
    if warning := without_contrast(setting):
        return VOID, warning, f"{figure} {claim} {name}: {at}."
    return figure, claim, f"{name}: {at}."


def _compute_headline(setting: dict[str, Any]) -> tuple[str, str]:
    row, lean = leanest(setting, kept=True) or leanest(setting), leanest(setting)
    if row is None or lean is None:
        return UNCOUNTED, "FLOPs end to end were not counted for the reference and another operating point."
    curve, ratios = setting["curves"][row["policy"]], operations_ratio(setting, row)
    ratio, wall = ratios.flops or 0.0, ratios.seconds
    claim = "fewer FLOPs end to end" if ratio >= 1 else "the saving in FLOPs end to end, so more of them,"
    level = point(setting, row)["cider_d"]["value"]
    lost = headline_savings(setting)[0]["reference_quality"] - level
    kept = "quality is kept"
    if lost > 0:
        kept = f"{percent(lost / (level + lost))} of the quality is lost"
    elif not qualified(setting, row):
        kept = "no saving at equal quality, since only the test streams, not the calibration streams, chose this point"
    warning = without_contrast(setting)
    figure = factor(ratio)
    return VOID if warning else figure, (
        f"{f'{warning} {figure} ' if warning else ''}{claim}, encoder and predictor included, at most: {label(curve)} "
        f"({operating_point(curve, row['knob'])}), which needs {needs(curve)}; {kept}: CIDEr-D {quality(level)}, "
        f"difference {_quality_difference(setting, row)}"
        + (f"; saving in wall time: {factor(wall)}{' (estimated)' * row['seconds_estimated']}" if wall else "")
        + "."
        + (f" {_leaner(setting, lean)}" if lean is not row else "")
    )


def _leaner(setting: dict[str, Any], row: dict[str, Any]) -> str:
    """What saves more FLOPs at another quality than the reference's."""
    curve = setting["curves"][row["policy"]]
    name = f"{label(curve)} ({operating_point(curve, row['knob'])})"
    return (
        f"Leaner still, without a saving at equal quality: {factor(operations_ratio(setting, row).flops)} by {name}, "
        f"CIDEr-D difference {_quality_difference(setting, row)}."
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
    """The report as Markdown: headline, savings, compute, quality, operations, cache, scores, provenance.

    Raises InputError if the document is not a valid ``jepa.results/2``.
    """
    validate_results(results)
    settings = {escape_markdown(clean(name)): setting for name, setting in results["settings"].items()}
    blocks = [f"# {escape_markdown(clean(results['name']))}: selective decoding against uniform decoding"]
    for name, setting in settings.items():
        words = headline(setting)
        sentences = " ".join(escape_markdown(text) for text in (words.claim, words.detail))
        blocks.append(
            f"- **{name}: {words.figure}** {sentences}\n"
            f"- **{name}, compute: {words.compute_figure}** {escape_markdown(words.compute)}"
        )
    for name, setting in settings.items():
        blocks += [
            f"## Savings at equal quality: {name}",
            ": ".join(escape_markdown(t) for t in (clean(setting["description"]).rstrip("."), setting_facts(setting))),
            markdown_table(savings_table(setting)),
            f"### All references and tolerances: {name}",
            escape_markdown(MATRIX_NOTE),
            markdown_table(matrix_table(setting)),
        ]
        if not setting["operations"]:
            blocks += [f"## Operations: {name}", "None were recorded."]
            continue
        blocks += [
            f"## Compute: {name}",
            escape_markdown(COMPUTE_NOTE),
            markdown_table(compute_table(setting)),
            f"## Stream quality: {name}",
            escape_markdown(QUALITY_NOTE),
            markdown_table(quality_table(setting)),
            f"## Operations: {name}",
            f"{operations_facts(setting)}.",
            markdown_table(operations_table(setting)),
        ]
        if has_cache(setting):
            blocks += [f"## Cache: {name}", escape_markdown(CACHE_NOTE), markdown_table(cache_table(setting))]
    blocks += [
        "## Scores",
        escape_markdown(SCORES_NOTE),
        markdown_table(scores_table(results["scores"])),
        "## Parameters by role",
        PARAMETERS_NOTE,
        markdown_table(parameters_table(results)),
    ]
    if has_training_operations(results):
        blocks += ["## Operations of training (measured)", TRAINING_NOTE, markdown_table(training_table(results))]
    blocks += [
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


MARKS = "* offline: needs the whole stream   † upper bound: needs the annotations"


def summary_row(setting: dict[str, Any], saving: dict[str, Any]) -> Row:
    """A saving on a terminal: the policy with its mark, its operating point, CIDEr-D, decodes per second, the ratio."""
    curve = setting["curves"][saving["policy"]]
    name = ("†" if curve["oracle"] else "" if curve["causal"] else "*") + clean(curve["label"])
    if saving["knob"] is None:
        return (name, NONE, NONE, NONE, "not reached")
    return (
        name,
        operating_point(curve, saving["knob"]),
        quality(saving["quality"]),
        rate(saving["decodes_per_second"]),
        factor_with_interval(saving["saving"]) if saving["reached"] else "not reached",
    )


def summary(results: Results) -> str:
    """The main figures for a terminal of 100 columns: savings against the headline reference, then scores.

    Raises InputError if the document is not a valid ``jepa.results/2``.
    """
    validate_results(results)
    widths = (30, 14, 7, 9, 23, 7)
    header = ("policy", "at", "CIDEr-D", "decodes/s", "saving (95 % interval)", "FLOPs")
    lines = columns([header, tuple("─" * width for width in widths)], widths, text_columns=2)
    for name, setting in results["settings"].items():
        first = headline_savings(setting)[0]
        lines.append(f"{clean(name)}, against {wanted_name(setting, first)}"[:WIDTH])
        saved = {(row["policy"], row["knob"]): operations_ratio(setting, row).flops for row in setting["operations"]}
        rows: list[Row] = []
        for saving in headline_savings(setting):
            rows.append((*summary_row(setting, saving), factor(saved.get((saving["policy"], saving["knob"])))))
        lines += columns(rows, widths, text_columns=2)
        if warning := without_contrast(setting):
            lines.append(textwrap.fill(f"warning: {warning}", WIDTH))
    scores = results["scores"]
    ends = [
        f"retrieval R@1 {fraction(scores['retrieval']['r@1'])} (chance {fraction(scores['retrieval']['chance'])})",
        f"classification {fraction(scores['classification']['accuracy'])} "
        f"(chance {fraction(scores['classification']['chance'])})",
        f"questions {fraction(scores['question_answering']['accuracy'])}",
    ]
    ends = [" · ".join(ends), *_costs_of_scores(scores)]
    return "\n".join([*lines, f"{MARKS}   FLOPs: saving end to end", "", *ends])


def _costs_of_scores(scores: dict[str, Any]) -> list[str]:
    """What right answers cost, for a terminal; nothing where it was not counted."""
    costs = {
        "R@1": scores["retrieval"].get("cost", {}).get("r@1"),
        "classification": scores["classification"].get("cost"),
        "questions": scores["question_answering"].get("cost"),
        "captions": scores["captioning"].get("cost"),
    }
    found = [f"{name} {_spent(cost, 'right_answer')}" for name, cost in costs.items() if cost is not None]
    return ["tokens, FLOPs of a right answer:", " · ".join(found)] if found else []
