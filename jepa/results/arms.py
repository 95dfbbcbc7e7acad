"""The analysis of language models' answers: what an arm's latents are like, and what training and answers took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest

from jepa.metrics import corrected
from jepa.operations import PartCount
from jepa.results.documents import AnswerResults, Arm, Drafting, Run

# From this retrieval@1 on, and below this cosine of non-pairs, latents inform; below the last one they do not.
INFORMATIVE_RETRIEVAL, INFORMATIVE_COSINE, UNINFORMATIVE_RETRIEVAL = 0.9, 0.1, 0.1


def latents(arm: Arm) -> str | None:
    """Whether the latents of an arm inform, in words; None where they were not measured."""
    retrieval, cosine = arm.geometry.get("retrieval@1"), arm.geometry.get("unpaired_cosine")
    if retrieval is None or cosine is None:
        return None
    if arm.collapsed:
        return f"collapsed in {arm.collapsed} of {len(arm.seeds)} seed{'s' * (len(arm.seeds) > 1)}"
    if retrieval >= INFORMATIVE_RETRIEVAL and cosine < INFORMATIVE_COSINE:
        return "informative"
    return "uninformative" if retrieval < UNINFORMATIVE_RETRIEVAL else "partly informative"


def corrected_p(results: AnswerResults, metric: str, difference: str) -> dict[str, float]:
    """p of each arm's `against_baseline` or `at_equal_flops`, corrected for the number of arms that have one."""
    against = {name: getattr(arm, difference) for name, arm in results.arms.items()}
    known = {name: p for name, each in against.items() if each and (p := each.metrics[metric].p) is not None}
    return dict(zip(known, corrected([*known.values()]), strict=True))


def flops_ratio(results: AnswerResults, arm: str) -> float | None:
    """Training FLOPs relative to the baseline's."""
    against = results.arms[arm].against_baseline
    return 1.0 if arm == results.baseline else None if against is None else against.flops_ratio


def validation_curve(run: Run, key: str) -> list[tuple[float, float]]:
    """(training FLOPs, what validation measured) along a run."""
    each = run.costs.flops / run.costs.steps if run.costs.steps else 0.0
    return [(((row["step"] or 0) + 1) * each, y) for row in run.curve if (y := row.get(key)) is not None]


def spent(results: AnswerResults, arm: str) -> PartCount:
    """What the answers of all seeds took."""
    return sum((run.generation for run in results.runs if run.arm == arm), PartCount())


def drafting(results: AnswerResults) -> dict[str, Drafting]:
    """How the answers of each arm with drafts were drafted, all seeds together."""
    made: dict[str, list[Drafting]] = {}
    for run in results.runs:
        if run.drafting is not None:
            made.setdefault(run.arm, []).append(run.drafting)
    return {arm: _joined(each) for arm, each in made.items()}


def _joined(made: Sequence[Drafting]) -> Drafting:
    def summed(key: str) -> tuple[int, ...]:
        return tuple(map(sum, zip_longest(*(getattr(each, key) for each in made), fillvalue=0)))

    places = {key: summed(key) for key in ("drafted", "accepted", "passes", "given")}
    uniform = sum((each.uniform for each in made), PartCount())
    identical = sum(each.identical for each in made)
    return made[0].model_copy(update={**places, "uniform": uniform, "identical": identical})


def by_place(most: Iterable[int], least: Iterable[int]) -> list[tuple[float, float]]:
    """(place, count over count), as far as there is a hundredth of the largest count to divide by.

    >>> by_place([300, 100, 1], [100, 50, 0])
    [(0.0, 3.0), (1.0, 2.0)]
    """
    pairs = list(zip(most, least, strict=True))
    enough = max((below for _, below in pairs), default=0) / 100
    return [(float(place), above / below) for place, (above, below) in enumerate(pairs) if below > enough]
