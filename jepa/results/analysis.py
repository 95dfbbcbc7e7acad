"""The analysis of documents: which policy is best, what may be called a saving, and what operating points cost.

An operating point is a policy at one value of its parameter. "Reference" means the headline reference of a sweep.
Ratios are the reference's figure over the policy's, so a ratio above 1 is a saving.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import NamedTuple

from jepa.metrics import Interval
from jepa.operations import PARTS, OperationLedger
from jepa.results.documents import Curve, Decode, Operations, Saving, Setting, Sweep, TestPoint

HIGHLIGHTED, TIMELINE_ROWS = 8, 5  # policies with a colour of their own; of these, policies beside one stream


# --- Names.


def label(curve: Curve) -> str:
    """The name of a policy, which says if it is an upper bound, being told the answer, or needs the whole stream."""
    kind = "upper bound" if curve.oracle else "" if curve.causal else "offline"
    return f"{curve.label} ({kind})" if kind not in curve.label else curve.label


def needs(curve: Curve) -> str:
    """The input that a policy waits for before it decodes."""
    if curve.oracle:
        return "the annotations"
    return "the past" if curve.causal else "the whole stream"


def operating_point(curve: Curve, value: float) -> str:
    """The value of a policy's parameter: "1 Hz" for a rate, else such as "threshold 3.1", or "no parameter"."""
    if curve.parameter == "none":
        return "no parameter"
    shown = f"{value:.3g} Hz" if curve.parameter == "rate_hz" else f"{curve.parameter} {value:.3g}"
    return shown.replace("-", "−")


def point_name(sweep: Sweep, policy: str, value: float) -> str:
    """A policy and its operating point, such as "Gate, threshold 3.1"."""
    curve = sweep.curves[policy]
    return f"{label(curve)}, {operating_point(curve, value)}"


def reference_name(sweep: Sweep) -> str:
    """The headline reference, such as "uniform at 1 Hz"."""
    reference = headline_savings(sweep)[0].reference
    return f"{sweep.curves[reference.policy].label} at {reference.rate_hz:.3g} Hz"


def wanted_name(sweep: Sweep, saving: Saving) -> str:
    """The quality to keep: such as "uniform at 1 Hz", or "uniform at 1 Hz, −2 %" with a tolerance."""
    tolerance = f", −{100 * saving.tolerance:.3g} %" if saving.tolerance else ""
    return f"{sweep.curves[saving.reference.policy].label} at {saving.reference.rate_hz:.3g} Hz{tolerance}"


# --- Savings in decoder calls.


def headline_savings(sweep: Sweep) -> list[Saving]:
    """The savings against the headline reference, in the order of the document."""
    return [saving for saving in sweep.savings if saving.headline]


def best_causal(sweep: Sweep) -> Saving | None:
    """The headline saving of the best causal policy; None if no such policy has an operating point.

    The best is the largest saving that keeps the reference's quality. If none does, it is the policy whose quality
    comes closest. The reference itself does not count, nor does a policy whose cache streams share: its saving grows
    with the number of streams.
    """

    def counts(saving: Saving) -> bool:
        curve = sweep.curves[saving.policy]
        shared = curve.cache is not None and curve.cache.shared
        return curve.causal and not shared and saving.policy != saving.reference.policy

    measured = [row for row in headline_savings(sweep) if row.value is not None and counts(row)]
    reached = [(row.ratio.value, row) for row in measured if row.reached and row.ratio is not None]
    differences = [(found.value, row) for row in measured if (found := row.quality_difference) is not None]
    return max(reached or differences, key=lambda pair: pair[0], default=(0.0, None))[1]


def without_contrast(sweep: Sweep) -> str | None:
    """Why savings mean nothing here, or None where they do.

    They mean nothing if the reference's own policy keeps its quality with half of its decodes, or fewer.
    """
    own = next((saving for saving in headline_savings(sweep) if saving.policy == saving.reference.policy), None)
    if own is None or own.ratio is None or own.ratio.value < 2 or not own.reached:
        return None
    if own.value is None or own.quality is None:
        return None
    at = operating_point(sweep.curves[own.policy], own.value)
    return (
        f"Quality does not depend on decoding here: {reference_name(sweep)} has CIDEr-D "
        f"{own.reference_quality:.2f}, and the same policy at {at} has {own.quality:.2f}."
    )


# --- Operating points and their operations.


def point(sweep: Sweep, row: Operations) -> TestPoint:
    """The point of the test curve that operations belong to."""
    return next(found for found in sweep.curves[row.policy].test if found.value == row.value)


def qualified(sweep: Sweep, row: Operations) -> bool:
    """Whether an operating point was chosen on calibration streams and kept the reference's quality on test streams."""
    return any(
        saving.reached and (saving.policy, saving.value) == (row.policy, row.value)
        for saving in headline_savings(sweep)
    )


def reference_row(sweep: Sweep) -> Operations | None:
    """The operations of the reference, if they were recorded."""
    reference = headline_savings(sweep)[0].reference
    chosen = (reference.policy, reference.rate_hz)
    return next((row for row in sweep.operations if (row.policy, row.value) == chosen), None)


def quality_difference(sweep: Sweep, row: Operations) -> Interval | float | None:
    """CIDEr-D less the reference's, with its interval where one was measured; None for the reference itself."""
    if row is reference_row(sweep):
        return None
    first = headline_savings(sweep)[0]
    for saving in sweep.savings:
        if (saving.policy, saving.value, saving.reference) == (row.policy, row.value, first.reference):
            return saving.quality_difference
    return point(sweep, row).cider_d.value - first.reference_quality


def part_flops(ledger: OperationLedger, part: str) -> int | None:
    """FLOPs of a part or of the "cache"; None where the part was called and its FLOPs were not counted."""
    if part == "cache":
        return ledger.cache.flops
    count = getattr(ledger, part)
    return None if count.calls and not count.flops else count.flops


def counted_flops(ledger: OperationLedger) -> int | None:
    """FLOPs of all parts and of the cache; None unless those of every part were counted."""
    return None if None in [part_flops(ledger, part) for part in PARTS] else ledger.total_flops


def part_seconds(row: Operations, part: str) -> float:
    """Wall seconds of a part or of the "cache", measured and estimated."""
    return float(getattr(row.ledger, part).seconds + estimated_seconds(row, part))


def estimated_seconds(row: Operations, part: str) -> float:
    """Wall seconds of a part that were not measured: of encoder and Predictor, where not every step is computed."""
    return float(getattr(row.estimated, part, 0.0))


def part_amount(row: Operations, part: str, measure: str) -> float:
    """FLOPs ("flops") or wall seconds ("seconds") of a part or of the "cache"; 0 where FLOPs were not counted."""
    return part_seconds(row, part) if measure == "seconds" else part_flops(row.ledger, part) or 0.0


class Ratios(NamedTuple):
    """Reference over policy, per second of stream; None without a reference, a count or a divisor."""

    calls: float | None = None
    flops: float | None = None
    seconds: float | None = None
    estimated: bool = False  # some of the seconds of either were not measured


def operations_ratio(sweep: Sweep, row: Operations) -> Ratios:
    """The savings of an operating point against the reference: in decoder calls, and end to end over all parts."""
    reference = reference_row(sweep)
    if reference is None:
        return Ratios()
    theirs, ours = reference.ledger, row.ledger

    def ratio(of_reference: float | None, of_policy: float | None) -> float | None:
        if of_reference is None or of_policy is None:
            return None
        divisor = of_policy * theirs.stream_seconds
        return of_reference * ours.stream_seconds / divisor if divisor else None

    comparable = not isinstance(sweep, Setting) or sweep.one_device
    return Ratios(
        ratio(theirs.decoder.calls, ours.decoder.calls),
        ratio(counted_flops(theirs), counted_flops(ours)),
        ratio(reference.seconds, row.seconds) if comparable else None,
        reference.estimated is not None or row.estimated is not None,
    )


def leanest(sweep: Sweep, kept: bool = False, causal: bool = False) -> Operations | None:
    """The operating point that saves most FLOPs end to end, oracles left out; None if unknown.

    `kept`: only operating points that `qualified` count; `causal`: only those of causal policies.
    """

    def counts(row: Operations) -> bool:
        curve = sweep.curves[row.policy]
        return not curve.oracle and (qualified(sweep, row) or not kept) and (curve.causal or not causal)

    ratios = [(operations_ratio(sweep, row).flops, row) for row in sweep.operations if counts(row)]
    found = [(ratio, row) for ratio, row in ratios if ratio is not None and row is not reference_row(sweep)]
    return max(found, key=lambda pair: pair[0])[1] if found else None


# --- What to show first.


def has_cache(sweep: Sweep) -> bool:
    """Whether any policy has a cache."""
    return any(curve.cache is not None for curve in sweep.curves.values())


def prominent(sweep: Sweep) -> list[str]:
    """All policies of a sweep, the most telling ones first.

    The order: the headline reference, the best causal policy, the leanest one, the best of those that need the whole
    stream, the best oracle, the other references, then the rest by saving.
    """
    curves, savings = sweep.curves, headline_savings(sweep)
    measured = [(saving.reached, saving.ratio.value, saving) for saving in savings if saving.ratio is not None]
    order = [row[2].policy for row in sorted(measured, key=lambda row: row[:2], reverse=True)]
    front = [savings[0].reference.policy]
    front += [found.policy for found in (best_causal(sweep), leanest(sweep)) if found is not None]
    for kind in ("the whole stream", "the annotations"):
        front += [policy for policy in order if needs(curves[policy]) == kind][:1]
    front += [saving.reference.policy for saving in sweep.savings]
    return list(dict.fromkeys([*front, *order, *curves]))


def highlighted(sweeps: Mapping[str, Sweep]) -> list[str]:
    """At most `HIGHLIGHTED` policies, taken in turn from the front of `prominent` of each sweep."""
    ranks = itertools.zip_longest(*map(prominent, sweeps.values()))
    return list(dict.fromkeys(policy for rank in ranks for policy in rank if policy is not None))[:HIGHLIGHTED]


def timeline_decodes(setting: Setting) -> dict[str, tuple[Decode, ...]]:
    """The decodes of the timeline's stream by the first `TIMELINE_ROWS` of its policies."""
    decodes = setting.timeline.decodes
    shown = [policy for policy in prominent(setting) if policy in decodes][:TIMELINE_ROWS]
    return {policy: decodes[policy] for policy in shown}
