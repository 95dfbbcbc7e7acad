"""Whether generated answers are right, by the metric that the config names.

A scorer takes (prediction, gold, prompt) and says whether the prediction is right. Only Spider reads the prompt. A
prediction that cannot be read is wrong, an empty one always. Such a gold answer, or a blank one, is an InputError.

N: items; C: choices.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from torch import Tensor

from jepa.errors import InputError
from jepa.metrics.checks import equally_many, integers
from jepa.metrics.regex import UndecidedError, check_regex, equivalent
from jepa.metrics.savings import Interval
from jepa.metrics.sql import Spider

Scorer = Callable[[str, str, str], bool]

# The number after the mark: commas and a currency sign are part of how it is written, what follows is not.
_FINAL_ANSWER = re.compile(r"####\s*(-?)\$?\s*(-?)([0-9][0-9,]*(?:\.[0-9]+)?|\.[0-9]+)")
_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


def exact_match(prediction: str, gold: str, prompt: str = "") -> bool:
    """Equal but for whitespace at both ends.

    >>> exact_match(" 42\\n", "42")
    True
    """
    return prediction.strip() == _stripped(gold)


def prefix_match(prediction: str, gold: str, prompt: str = "") -> bool:
    """The prediction starts with the gold answer, whitespace at both ends apart.

    The protocol of LLM-JEPA (arXiv 2509.14252) for models trained from scratch, which may not have learned to stop.
    """
    return prediction.strip().startswith(_stripped(gold))


def regex_equivalence(prediction: str, gold: str, prompt: str = "") -> bool:
    """Both match the same strings: `jepa.metrics.regex`, the metric "DFA-equal" of Locascio et al. 2016.

    Whitespace at both ends does not count. A prediction whose automaton outgrows the limit before it is told from the
    gold one is wrong.
    """
    gold = _stripped(gold)
    try:
        return equivalent(prediction.strip(), gold)
    except UndecidedError:
        return False
    except InputError:
        check_regex(gold)
        return False


def gsm8k(prediction: str, gold: str, prompt: str = "") -> bool:
    """The number after the first ``####`` of each is the same (Cobbe et al. 2021, arXiv 2110.14168).

    A prediction without the mark is wrong, whatever numbers it holds. Numbers are compared as numbers: ``1,200`` is
    ``$1200.00``, and text after them does not count. The official code compares them as text without commas.

    >>> gsm8k("so 9 * 2 = 18 #### $18.00", "#### 18")
    True
    """
    expected = _final_answer(gold)
    if expected is None:
        raise InputError(f"gold must have a number after '####', got {gold!r}")
    return _final_answer(prediction) == expected


def nq_open(prediction: str, gold: str, prompt: str = "") -> bool:
    """Equal to one of the gold answers, which ``; `` separates, after the normalisation of SQuAD.

    Normalised (Rajpurkar et al. 2016, arXiv 1606.05250): lower case, without punctuation, articles and repeated
    whitespace. A prediction that is empty then is wrong, so that nothing matches a gold answer such as ``/``.
    """
    answer, right = _normalise(prediction), {_normalise(one) for one in _stripped(gold).split("; ")}
    return bool(answer) and answer in right


METRICS: dict[str, Scorer | type[Spider]] = {
    "exact_match": exact_match,
    "prefix_match": prefix_match,
    "regex_equivalence": regex_equivalence,
    "gsm8k": gsm8k,
    "nq_open": nq_open,
    "spider": Spider,
}


def scorer_for(metric: str, **options: Any) -> Scorer:
    """The scorer of a metric, by its name in `METRICS`. Only ``spider`` has options, those of `Spider`."""
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}")
    found = METRICS[metric]
    if isinstance(found, type):
        return found(**options)
    if options:
        raise InputError(f"metric {metric} must have no options, got {sorted(options)}")
    return found


def score(
    metric: str, predictions: Sequence[str], golds: Sequence[str], prompts: Sequence[str] | None = None, **options: Any
) -> list[bool]:
    """Whether each of N predictions is right, by `scorer_for` the metric; an error names the index of its item.

    >>> score("nq_open", ["The six geese!", "none"], ["six geese", "six geese"])
    [True, False]
    """
    is_right, prompts = scorer_for(metric, **options), [""] * len(predictions) if prompts is None else prompts
    equally_many(predictions=predictions, golds=golds, prompts=prompts)
    verdicts = []
    for index, item in enumerate(zip(predictions, golds, prompts, strict=True)):
        try:
            verdicts.append(is_right(*item))
        except InputError as error:
            raise InputError(f"item {index}: {error}") from error
    return verdicts


def multiple_choice(log_likelihoods: Tensor, answers: Tensor) -> Tensor:
    """Whether the right choice is the one the model finds most likely.

    (N,) booleans, of `log_likelihoods` (N, C) and right `answers` (N,) in 0..C−1; other integers and a NaN raise
    `InputError`. A tie for the highest is wrong: a model that finds all choices alike has not answered.

    >>> import torch
    >>> multiple_choice(torch.tensor([[-1.0, -3.0], [-2.0, -2.0]]), torch.tensor([0, 0])).tolist()
    [True, False]
    """
    answers = integers("answers", answers, len(log_likelihoods))
    if log_likelihoods.isnan().any():
        raise InputError(f"log_likelihoods must be numbers, got {int(log_likelihoods.isnan().sum())} NaN")
    if answers.min() < 0 or answers.max() >= log_likelihoods.shape[1]:
        got = f"{int(answers.min())}..{int(answers.max())}"
        raise InputError(f"answers must be in 0..{log_likelihoods.shape[1] - 1}, got {got}")
    right = log_likelihoods.gather(1, answers[:, None])
    return (log_likelihoods >= right).sum(1) == 1


def proportion_interval(right: float, total: int) -> Interval:
    """The fraction right and its 95 % Wilson interval (Wilson 1927; Brown, Cai & DasGupta 2001, eq. 4).

    An answer that is right in part counts as that fraction of one: the interval is then wider than need be. It covers
    the luck of which items were asked, not that of the training: for that see `paired_test`.

    >>> proportion_interval(0, 1).low
    0.0
    """
    if total < 1 or not 0 <= right <= total:
        raise InputError(f"right and total must satisfy 0 <= right <= total and total >= 1, got {right} and {total}")
    fraction = right / total
    middle = (fraction + _Z**2 / (2 * total)) / (1 + _Z**2 / total)
    half = _Z / (1 + _Z**2 / total) * math.sqrt(fraction * (1 - fraction) / total + _Z**2 / (4 * total**2))
    low = 0.0 if right == 0 else middle - half  # exact at the ends, but for rounding
    high = 1.0 if right == total else middle + half
    return Interval(fraction, low, high)


def _stripped(gold: str) -> str:
    if not gold.strip():
        raise InputError(f"gold must not be blank, got {gold!r}")
    return gold.strip()


def _final_answer(text: str) -> Decimal | None:
    match = _FINAL_ANSWER.search(text)
    if match is None:
        return None
    first, second, digits = match.groups()
    return Decimal((first or second) + digits.replace(",", ""))


def _normalise(text: str) -> str:
    text = text.lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", text).split())
