"""A bar that a report must reach, such as ``savings>=2.85``, for a build that fails when a run gets worse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from jepa.errors import InputError
from jepa.metrics import Interval
from jepa.results.analysis import (
    best_causal,
    headline_savings,
    operations_ratio,
    point_name,
    qualified,
    reference_row,
    wanted_name,
    without_contrast,
)
from jepa.results.documents import AnswerResults, Setting, StreamResults


class Measured(NamedTuple):
    """A figure. `value`, and `low`, the lower end of its 95 % interval, are None where the figure was not reached."""

    value: float | None
    low: float | None
    words: str


class NotMetError(Exception):
    """A document does not reach its bar. The message is one line with the measured figure."""


def _ends(value: float, low: float | None, high: float | None, digits: int = 2, sign: str = "", unit: str = "") -> str:
    """A value with its interval."""
    shown = f"{value:{sign}.{digits}f}{unit}"
    if low is None:
        return f"{shown}, one seed"
    upper = "on" if high is None else f"to {high:{sign}.{digits}f}"
    return f"{shown}, 95 % interval from {low:{sign}.{digits}f} {upper}"


def _saving(setting: Setting) -> Measured:
    best = best_causal(setting)
    if best is None or best.value is None or not best.reached or best.ratio is None:
        wanted = wanted_name(setting, headline_savings(setting)[0])
        return Measured(None, None, f"not reached: no causal policy keeps the quality of {wanted}")
    if warning := without_contrast(setting):
        return Measured(None, None, warning)
    ratio = best.ratio
    words = f"{_ends(ratio.value, ratio.low, ratio.high, unit='×')}, by {point_name(setting, best.policy, best.value)}"
    return Measured(ratio.value, ratio.low, words)


def _compute_saving(setting: Setting) -> Measured:
    reference = reference_row(setting)
    found = [
        (ratio, row)
        for row in setting.operations
        if row is not reference
        and setting.curves[row.policy].causal
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
    return Measured(ratio, None, f"{ratio:.2f}×, by {point_name(setting, row.policy, row.value)}")


def _difference(name: Literal["quality_difference", "temporal_f1_difference"]) -> Callable[[Setting], Measured]:
    def measure(setting: Setting) -> Measured:
        best = best_causal(setting)
        found: Interval | None = None if best is None else getattr(best, name)
        if best is None or best.value is None or found is None:
            return Measured(None, None, "not reached: no causal policy has an operating point")
        words = f"{_ends(found.value, found.low, found.high, sign='+')}, by "
        return Measured(found.value, found.low, words + point_name(setting, best.policy, best.value))

    return measure


def _accuracy(results: AnswerResults, arm: str) -> Measured:
    metric = results.metrics[0]
    found = results.arms[arm].accuracy[metric]
    return Measured(found.value, found.low, f"{metric} {_ends(found.value, found.low, found.high, 3)}")


def _gain(results: AnswerResults, arm: str) -> Measured:
    against = results.arms[arm].against_baseline
    if against is None:
        return Measured(None, None, f"not measured: no seed of {arm} has a run of next tokens alone")
    found = against.metrics[results.metrics[0]]
    words = f"{_ends(found.value, found.low, found.high, 3, '+')}, over {results.baseline}"
    return Measured(found.value, found.low, words)


def _retrieval(results: AnswerResults, arm: str) -> Measured:
    found = results.arms[arm].geometry.get("retrieval@1")
    return Measured(found, None, "not measured" if found is None else f"{found:.3f}")


STREAM_FIGURES: Mapping[str, Callable[[Setting], Measured]] = {
    "savings": _saving,  # in decoder calls, of the best causal policy at the headline's quality
    "compute_savings": _compute_saving,  # in FLOPs end to end, the largest of a causal policy at the headline's quality
    "quality_difference": _difference("quality_difference"),  # CIDEr-D of the best causal policy less the reference's
    "temporal_f1_difference": _difference("temporal_f1_difference"),  # merged temporal F1, likewise
}
# Of a language model's answers, by their first metric.
ANSWER_FIGURES: Mapping[str, Callable[[AnswerResults, str], Measured]] = {
    "accuracy": _accuracy,
    "accuracy_difference": _gain,  # less the accuracy of next-token training with the same seeds
    "retrieval": _retrieval,  # retrieval@1 of the latents
}
_WITHOUT_INTERVAL = ("compute_savings", "retrieval")
_FORM = "<name>[.<setting>][.low]>=<number>"


@dataclass(frozen=True)
class Requirement:
    """The `figure` of a `setting`, or the lower end of its interval, is at least `least`.

    The setting is one of a stream document, or an arm of an answer document. None means the first setting, or the
    arm of the method.

    >>> Requirement.parse("savings.dense.low>=2")
    Requirement(text='savings.dense.low>=2', figure='savings', setting='dense', low=True, least=2.0)
    """

    text: str
    figure: str
    setting: str | None
    low: bool
    least: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """From such as ``savings>=2.85`` or ``savings.dense.low>=2``. Raises `InputError` for anything else."""
        found = re.fullmatch(r"\s*(\w+)((?:\..+?)??)(\.low)?\s*>=\s*(\S+)\s*", text)
        if found is None:
            raise InputError(f"fail_under must be {_FORM}, got {text!r}")
        figure, setting, low, number = found.groups()
        if figure not in {**STREAM_FIGURES, **ANSWER_FIGURES}:
            names = f"{', '.join(STREAM_FIGURES)} (of streams), {', '.join(ANSWER_FIGURES)} (of answers)"
            raise InputError(f"fail_under: the name must be one of {names}, got {figure!r}")
        if low and figure in _WITHOUT_INTERVAL:
            raise InputError(f"fail_under: {figure} has no interval, so no lower end, got {text!r}")
        try:
            least = float(number)
        except ValueError:
            least = math.nan
        if not math.isfinite(least):
            raise InputError(f"fail_under: the text after >= must be a finite number, got {number!r}")
        return cls(text.strip(), figure, setting[1:] or None, low is not None, least)

    def check_settings(self, names: Iterable[str]) -> None:
        """Raises `InputError` unless this is a figure of streams, and its setting one of `names`."""
        self._check(STREAM_FIGURES, "streams", "setting", list(names))

    def check_arms(self, names: Iterable[str]) -> None:
        """Raises `InputError` unless this is a figure of answers, and its arm one of `names`."""
        self._check(ANSWER_FIGURES, "answers", "arm", list(names))

    def _check(self, figures: Iterable[str], what: str, kind: str, names: list[str]) -> None:
        if self.figure not in list(figures):
            raise InputError(f"fail_under: of {what} it must be one of {', '.join(figures)}, got {self.figure!r}")
        if self.setting is not None and self.setting not in names:
            raise InputError(f"fail_under: the {kind} must be one of {', '.join(names)}, got {self.setting!r}")

    def check(self, results: StreamResults | AnswerResults) -> None:
        """Raises `InputError` unless the document has the figure, and the setting or arm."""
        if isinstance(results, AnswerResults):
            self.check_arms(results.arms)
        else:
            self.check_settings(results.settings)

    def verdict(self, results: StreamResults | AnswerResults) -> str:
        """One line which says that the document meets the requirement, and by which figure.

        Raises:
            NotMetError: it does not, with such a line.
            InputError: the document lacks the figure, the setting or the arm.
        """
        self.check(results)
        if isinstance(results, AnswerResults):
            name = self.setting or results.method or next(iter(results.arms))
            measured = ANSWER_FIGURES[self.figure](results, name)
        else:
            name = self.setting or next(iter(results.settings))
            measured = STREAM_FIGURES[self.figure](results.settings[name])
        value = measured.low if self.low else measured.value
        line = f"{self.figure} of {name}: {measured.words}"
        if value is None or value < self.least:
            raise NotMetError(f"{self.text} does not hold; {line}")
        return f"{self.text} holds; {line}"
