"""A bar that a report must reach, such as ``savings>=2.85``: for a build that must fail when a run gets worse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jepa.errors import InputError
from jepa.report.schema import Results
from jepa.report.tables import (
    best_causal,
    bounds,
    clean,
    difference,
    factor,
    headline_savings,
    label,
    operating_point,
    operations_ratio,
    qualified,
    reference_row,
    wanted_name,
    without_contrast,
)


class Measured(NamedTuple):
    """A figure of a setting: `value` and `low`, the lower end of its 95 % interval, are None where not reached."""

    value: float | None
    low: float | None
    words: str


class NotMetError(Exception):
    """The report is written, and its bar is not reached. The message is one line with the figure measured."""


def _saving(setting: dict[str, Any]) -> Measured:
    best = best_causal(setting)
    if best is None or not best["reached"] or best["saving"] is None:
        wanted = wanted_name(setting, headline_savings(setting)[0])
        return Measured(None, None, f"not reached: no causal policy keeps the quality of {wanted}")
    if warning := without_contrast(setting):
        return Measured(None, None, warning)
    saving = best["saving"]
    words = f"{factor(saving['value'])}, 95 % interval {bounds(saving)}, by {_name(setting, best)}"
    return Measured(saving["value"], saving["low"], words)


def _compute_saving(setting: dict[str, Any]) -> Measured:
    reference = reference_row(setting)
    found = [
        (ratio, row)
        for row in setting["operations"]
        if row is not reference
        and setting["curves"][row["policy"]]["causal"]
        and (ratio := operations_ratio(setting, row).flops) is not None
        and qualified(setting, row)
    ]
    if not found:
        wanted = wanted_name(setting, headline_savings(setting)[0])
        reason = f"no causal policy with counted FLOPs keeps the quality of {wanted}"
        return Measured(None, None, f"not reached: {reason}")
    if warning := without_contrast(setting):
        return Measured(None, None, warning)
    ratio, row = max(found, key=lambda pair: pair[0])
    return Measured(ratio, None, f"{factor(ratio)} by {_name(setting, row)}")


def _difference(key: str) -> Callable[[dict[str, Any]], Measured]:
    def measure(setting: dict[str, Any]) -> Measured:
        best = best_causal(setting)
        if best is None:
            return Measured(None, None, "not reached: no causal policy has an operating point")
        found = best[key]
        return Measured(found["value"], found["low"], f"{difference(found)} by {_name(setting, best)}")

    return measure


def _name(setting: dict[str, Any], row: dict[str, Any]) -> str:
    curve = setting["curves"][row["policy"]]
    return f"{label(curve)} ({operating_point(curve, row['knob'])})"


def _accuracy(results: Results, arm: str) -> Measured:
    metric = results["metrics"][0]
    found = results["arms"][arm]["accuracy"][metric]
    return Measured(found["value"], found["low"], f"{metric} {found['value']:.3f}, {_interval(found)}")


def _gain(results: Results, arm: str) -> Measured:
    against = results["arms"][arm]["against_baseline"]
    if against is None:
        return Measured(None, None, f"not measured: no seed of {clean(arm)} has a run of next tokens alone")
    found = against["metrics"][results["metrics"][0]]
    return Measured(
        found["value"], found["low"], f"{found['value']:+.3f} over {results['baseline']}, {_interval(found)}"
    )


def _interval(found: dict[str, Any]) -> str:
    return "one seed" if found["low"] is None else f"95 % interval {found['low']:.3f} to {found['high']:.3f}"


def _retrieval(results: Results, arm: str) -> Measured:
    found = results["arms"][arm]["geometry"].get("retrieval@1")
    return Measured(found, None, "not measured" if found is None else f"{found:.3f}")


# What can be required of a VL-JEPA's streams: of the first setting of a document or of the one that is named.
FIGURES: Mapping[str, Callable[[dict[str, Any]], Measured]] = {
    "savings": _saving,  # in decoder calls, of the best causal policy at the headline's quality
    "compute_savings": _compute_saving,  # in FLOPs end to end, the largest of a causal policy at the headline's quality
    "quality_difference": _difference("quality_difference"),  # CIDEr-D of the best causal policy less the reference's
    "temporal_f1_difference": _difference("temporal_f1_difference"),  # merged temporal F1, likewise
}
# And of a language model's answers, by their first metric: of the method's arm, or of the one that is named.
ANSWER_FIGURES: Mapping[str, Callable[[Results, str], Measured]] = {
    "accuracy": _accuracy,
    "accuracy_difference": _gain,  # less next-token training's of the same seeds
    "retrieval": _retrieval,  # retrieval@1 of the latents
}
_WITHOUT_INTERVAL = ("compute_savings", "retrieval")
_FORM = "<name>[.<setting>][.low]>=<number>"


@dataclass(frozen=True)
class Requirement:
    """``figure`` of ``setting``, or the lower end of its interval, is at least ``least``.

    The setting is one of streams, or an arm of answers; None is the first one, or the method's arm.
    """

    text: str
    figure: str
    setting: str | None
    low: bool
    least: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """From such as ``savings>=2.85``, ``savings.dense.low>=2``. Raises `InputError` for anything else."""
        found = re.fullmatch(r"\s*(\w+)((?:\..+?)??)(\.low)?\s*>=\s*(\S+)\s*", text)
        if found is None:
            raise InputError(f"fail_under must be {_FORM}, got {text!r}")
        figure, setting, low, number = found.groups()
        if figure not in {**FIGURES, **ANSWER_FIGURES}:
            names = f"{', '.join(FIGURES)} (of streams), {', '.join(ANSWER_FIGURES)} (of answers)"
            raise InputError(f"fail_under: the name must be one of {names}, got {figure!r}")
        if low and figure in _WITHOUT_INTERVAL:
            raise InputError(f"fail_under: {figure} has no interval, so no lower end, got {text!r}")
        try:
            least = float(number)
        except ValueError:
            least = math.nan
        if not math.isfinite(least):
            raise InputError(f"fail_under: what follows >= must be a finite number, got {number!r}")
        return cls(text.strip(), figure, setting[1:] or None, low is not None, least)

    def check_setting(self, names: Iterable[str]) -> None:
        """Raises `InputError` if the figure is none of streams, or the setting none of a document's `names`."""
        self._check(FIGURES, "streams", "setting", names)

    def check_arm(self, names: Iterable[str]) -> None:
        """Raises `InputError` if the figure is none of answers, or the setting none of a document's arms, `names`."""
        self._check(ANSWER_FIGURES, "answers", "arm", names)

    def _check(self, figures: Iterable[str], what: str, kind: str, names: Iterable[str]) -> None:
        figures, names = list(figures), list(names)
        if self.figure not in figures:
            raise InputError(f"fail_under: of {what} it must be one of {', '.join(figures)}, got {self.figure!r}")
        if self.setting is not None and self.setting not in names:
            raise InputError(f"fail_under: the {kind} must be one of {', '.join(names)}, got {self.setting!r}")

    def verdict(self, results: Results) -> str:
        """One line that says that a valid document, of streams or answers, meets the requirement, and by what figure.

        Raises NotMetError with such a line if it does not, and InputError if it lacks the figure, setting or arm.
        """
        if "arms" in results:
            self.check_arm(results["arms"])
            name = self.setting or results["method"] or next(iter(results["arms"]))
            measured = ANSWER_FIGURES[self.figure](results, name)
        else:
            self.check_setting(results["settings"])
            name = self.setting or next(iter(results["settings"]))
            measured = FIGURES[self.figure](results["settings"][name])
        value = measured.low if self.low else measured.value
        line = f"{self.figure} of {clean(name)}: {measured.words}"
        if value is None or value < self.least:
            raise NotMetError(f"{self.text} does not hold; {line}")
        return f"{self.text} holds; {line}"
