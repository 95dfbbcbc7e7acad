"""A bar that a report must reach, such as ``savings>=2.85``, for a build that fails when a run gets worse."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

from jepa.errors import InputError
from jepa.metrics import Interval
from jepa.results import analysis
from jepa.results.base import Document, Ratio
from jepa.results.documents import Accuracy, AnswerResults, Contrast, Setting, StreamResults


class Measured(NamedTuple):
    """A figure. `value`, and `low`, the lower end of its 95 % interval, are None where the figure was not reached."""

    value: float | None
    low: float | None
    words: str


class NotMetError(Exception):
    """A document does not reach its bar. The message is one line with the measured figure."""


def _ends(found: Interval | Ratio | Accuracy | Contrast, digits: int = 2, sign: str = "", unit: str = "") -> str:
    """A value with its interval."""
    shown = f"{found.value:{sign}.{digits}f}{unit}"
    if found.low is None:
        return f"{shown}, one seed"
    upper = "on" if found.high is None else f"to {found.high:{sign}.{digits}f}"
    return f"{shown}, 95 % interval from {found.low:{sign}.{digits}f} {upper}"


# --- Figures of streams.


def _missed(setting: Setting, policy: str) -> Measured:
    wanted = analysis.wanted_name(setting, analysis.headline_savings(setting)[0])
    return Measured(None, None, f"not reached: no {policy} keeps the quality of {wanted}")


def _saving(setting: Setting) -> Measured:
    """In decoder calls, of the best causal policy at the headline's quality."""
    best = analysis.best_causal(setting)
    if best is None or best.value is None or not best.reached or best.ratio is None:
        return _missed(setting, "causal policy")
    if warning := analysis.without_contrast(setting):
        return Measured(None, None, warning)
    words = f"{_ends(best.ratio, unit='×')}, by {analysis.point_name(setting, best.policy, best.value)}"
    return Measured(best.ratio.value, best.ratio.low, words)


def _compute_saving(setting: Setting) -> Measured:
    """In FLOPs end to end, the largest of a causal policy at the headline's quality."""
    row = analysis.leanest(setting, kept=True, causal=True)
    if row is None:
        return _missed(setting, "causal policy with counted FLOPs")
    if warning := analysis.without_contrast(setting):
        return Measured(None, None, warning)
    ratio = analysis.operations_ratio(setting, row).flops
    return Measured(ratio, None, f"{ratio:.2f}×, by {analysis.point_name(setting, row.policy, row.value)}")


def _difference(name: str, setting: Setting) -> Measured:
    """Of the best causal policy to the reference: CIDEr-D, or merged temporal F1."""
    best = analysis.best_causal(setting)
    found: Interval | None = None if best is None else getattr(best, name)
    if best is None or best.value is None or found is None:
        return Measured(None, None, "not reached: no causal policy has an operating point")
    words = f"{_ends(found, sign='+')}, by {analysis.point_name(setting, best.policy, best.value)}"
    return Measured(found.value, found.low, words)


# --- Figures of a language model's answers, by their first metric.


def _accuracy(results: AnswerResults, arm: str) -> Measured:
    metric = results.metrics[0]
    found = results.arms[arm].accuracy[metric]
    return Measured(found.value, found.low, f"{metric} {_ends(found, 3)}")


def _gain(results: AnswerResults, arm: str) -> Measured:
    """Accuracy less that of next-token training with the same seeds."""
    against = results.arms[arm].against_baseline
    if against is None:
        return Measured(None, None, f"not measured: no seed of {arm} has a run of next tokens alone")
    found = against.metrics[results.metrics[0]]
    return Measured(found.value, found.low, f"{_ends(found, 3, '+')}, over {results.baseline}")


def _retrieval(results: AnswerResults, arm: str) -> Measured:
    found = results.arms[arm].geometry.get("retrieval@1")
    return Measured(found, None, "not measured" if found is None else f"{found:.3f}")


STREAM_FIGURES: Mapping[str, Callable[[Setting], Measured]] = {
    "savings": _saving,
    "compute_savings": _compute_saving,
    "quality_difference": partial(_difference, "quality_difference"),
    "temporal_f1_difference": partial(_difference, "temporal_f1_difference"),
}
ANSWER_FIGURES: Mapping[str, Callable[[AnswerResults, str], Measured]] = {
    "accuracy": _accuracy,
    "accuracy_difference": _gain,
    "retrieval": _retrieval,
}
_WITHOUT_INTERVAL = ("compute_savings", "retrieval")


@dataclass(frozen=True)
class Requirement:
    """The `figure` of a `setting`, or the lower end of its interval, is at least `least`.

    The setting is one of a stream document, or an arm of an answer document. None: the first, or the method's.

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
        found = re.fullmatch(r"\s*(\w+)((?:\..+?)??)(\.low)?\s*>=\s*(-?\d+\.?\d*(?:e-?\d+)?)\s*", text)
        if found is None:
            raise InputError(f"fail_under must be <name>[.<setting>][.low]>=<number>, got {text!r}")
        figure, setting, low, number = found.groups()
        if figure not in {**STREAM_FIGURES, **ANSWER_FIGURES}:
            names = f"{', '.join(STREAM_FIGURES)} (of streams), {', '.join(ANSWER_FIGURES)} (of answers)"
            raise InputError(f"fail_under: the name must be one of {names}, got {figure!r}")
        if low and figure in _WITHOUT_INTERVAL:
            raise InputError(f"fail_under: {figure} has no interval, so no lower end, got {text!r}")
        return cls(text.strip(), figure, setting[1:] or None, low is not None, float(number))

    def check(self, of: Literal["streams", "answers"], names: Collection[str]) -> None:
        """Raises `InputError` unless this is a figure of streams or answers, and its setting or arm one of `names`."""
        figures = list(STREAM_FIGURES if of == "streams" else ANSWER_FIGURES)
        if self.figure not in figures:
            raise InputError(f"fail_under: of {of} it must be one of {', '.join(figures)}, got {self.figure!r}")
        if self.setting is not None and self.setting not in names:
            kind = "setting" if of == "streams" else "arm"
            raise InputError(f"fail_under: the {kind} must be one of {', '.join(names)}, got {self.setting!r}")

    def check_document(self, results: Document) -> None:
        """`check`, of a document."""
        if isinstance(results, AnswerResults):
            self.check("answers", results.arms)
        elif isinstance(results, StreamResults):
            self.check("streams", results.settings)
        else:
            raise InputError(f"fail_under needs results of streams or answers, got {results.kind}")

    def verdict(self, results: StreamResults | AnswerResults) -> str:
        """One line which says that the document meets the requirement, and by which figure.

        Raises `NotMetError` with such a line if it does not, `InputError` if it lacks the figure, setting or arm.
        """
        self.check_document(results)
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
