"""The document of `jepa replay`, and its analysis: at which level of noise savings end."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from jepa.results import Code, Device, Document, Fraction, Quantity, Record, Saving, Sweep
from jepa.results.analysis import headline_savings

KEPT = 0.75  # of the reference's quality at the lowest level of noise: with less, a level says nothing of savings
Count = Annotated[int, Field(ge=0)]


class Level(Sweep):
    """The sweep at one level of noise. `steps_right`: annotated steps that decode to the narration in force."""

    noise: Quantity
    steps_right: Fraction

    def saving(self, policy: str) -> Saving:
        """The headline saving of a policy."""
        return next(saving for saving in headline_savings(self) if saving.policy == policy)


class ReplayedPart(Record):
    """The streams of a split that were replayed."""

    videos: Count
    groups: Count
    hours: Quantity
    annotations: Count


class ReplayedTimeline(Record):
    """A timeline, and the part of it that was used. `cut` annotations end after the excerpt of their video."""

    format: str
    encoder: str
    videos: Count
    annotations: Count
    distinct_texts: Count
    overlapping: Count
    cut: Count
    dropped: dict[str, Count]
    used: dict[str, ReplayedPart]


class ReplayResults(Document):
    """Policies on a real timeline with simulated embeddings; `simulated` says so. The first level is the headline.

    >>> ReplayResults.file_name
    'replay.json'
    """

    file_name: ClassVar[str] = "replay.json"

    kind: Literal["jepa.replay/2"] = "jepa.replay/2"
    simulated: str
    seed: int
    config: dict[str, JsonValue]
    code: Code
    libraries: dict[str, str]
    device: Device
    timeline: ReplayedTimeline
    levels: Annotated[tuple[Level, ...], Field(min_length=1)]

    @property
    def by_noise(self) -> list[Level]:
        """The levels by rising noise."""
        return sorted(self.levels, key=lambda level: level.noise)


def saves(saving: Saving) -> bool:
    """Whether a saving holds: the reference's quality is reached, without any decode or with the interval above 1."""
    return saving.reached and (saving.ratio is None or saving.ratio.low > 1)


def counted_levels(results: ReplayResults) -> list[Level]:
    """The levels by rising noise at which the reference has at least `KEPT` of its quality at the lowest.

    Beyond them a policy may reach the reference again only because the reference has collapsed.
    """
    scores = [(level, headline_savings(level)[0].reference_quality) for level in results.by_noise]
    return [level for level, score in scores if score >= KEPT * scores[0][1]]


def savings_end(results: ReplayResults, policy: str) -> float | None:
    """The level of noise at which a policy's savings end.

    The end is the first of `counted_levels` without a saving above the first with one; the lowest level if none has
    one; None if each from the first with one on has one.
    """
    counted = counted_levels(results)
    held = [saves(level.saving(policy)) for level in counted]
    if True not in held:
        return counted[0].noise
    first = held.index(True)
    return next((level.noise for level, yes in zip(counted[first:], held[first:], strict=True) if not yes), None)
