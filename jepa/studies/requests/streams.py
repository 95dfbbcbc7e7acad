"""Streams of requests: typed word by word, or complete ones that recur. All are functions of examples and a seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from jepa.data.pairs import Example
from jepa.errors import InputError
from jepa.studies.configs import TypingStyle

_SHORTEST = 0.01  # seconds between two steps


class TypedStep(NamedTuple):
    """The text after a word was typed, or removed."""

    time: float  # seconds
    request: Example  # the text so far, with the completion of the whole request
    last: bool  # the request's last word; no method knows it while the stream runs


class TypedStream(NamedTuple):
    """Requests typed one after another: see `type_requests`."""

    steps: tuple[TypedStep, ...]  # at strictly increasing times
    corrections: int  # wrong words among them
    seconds: float  # from the first key to the last step


def type_requests(pairs: Sequence[Example], style: TypingStyle, seed: Sequence[int]) -> TypedStream:
    """Requests typed one after another: a step for each word typed, and for each wrong word removed.

    A word takes the time of its characters and of the space before it; removing it takes as long. A wrong word comes
    from the stream's requests and differs from the right one. A removal that leaves nothing is no step. Raises
    InputError for a request without words.

    >>> style = TypingStyle(words_per_minute=60, jitter=0, corrections=0, pause=2)
    >>> stream = type_requests([Example("any digit", "[0-9]", None)], style, seed=(0,))
    >>> [(step.request.prompt, step.time, step.last) for step in stream.steps]
    [('any', 0.8, False), ('any digit', 2.0, True)]
    """
    words = [pair.prompt.split() for pair in pairs]
    for pair, parts in zip(pairs, words, strict=True):
        if not parts:
            raise InputError(f"{pair.source or 'request'}: a request must have at least 1 word, got {pair.prompt!r}")
    rng = np.random.default_rng(tuple(seed))
    pool = sorted({word for parts in words for word in parts})
    per_character = 60 / (5 * style.words_per_minute)
    time, corrections, steps = 0.0, 0, list[TypedStep]()

    def after(seconds: float) -> float:
        return time + max(_SHORTEST, seconds * math.exp(style.jitter * rng.standard_normal() - style.jitter**2 / 2))

    for number, (pair, parts) in enumerate(zip(pairs, words, strict=True)):
        if number:
            time = after(style.pause)
        for index, word in enumerate(parts):
            others = [other for other in pool if other != word]
            if others and rng.random() < style.corrections:
                corrections += 1
                wrong = others[int(rng.integers(len(others)))]
                time = after(per_character * (len(wrong) + 1))
                steps.append(TypedStep(time, replace(pair, prompt=" ".join([*parts[:index], wrong])), False))
                time = after(per_character * (len(wrong) + 1))
                if index:
                    steps.append(TypedStep(time, replace(pair, prompt=" ".join(parts[:index])), False))
            time = after(per_character * (len(word) + 1))
            text = " ".join(parts[: index + 1])
            steps.append(TypedStep(time, replace(pair, prompt=text), index + 1 == len(parts)))
    return TypedStream(tuple(steps), corrections, time)


def expressions(pairs: Iterable[Example]) -> list[tuple[Example, ...]]:
    """The distinct phrasings of each answer that has two or more, in the order of the answers."""
    groups: dict[str, dict[str, Example]] = {}
    for pair in pairs:
        groups.setdefault(pair.completion, {}).setdefault(pair.prompt, pair)
    return [tuple(phrasings.values()) for phrasings in groups.values() if len(phrasings) > 1]


def each_once(groups: Sequence[Sequence[Example]], seed: Sequence[int]) -> list[Example]:
    """Every phrasing of every expression once, in random order."""
    requests = [pair for phrasings in groups for pair in phrasings]
    order = np.random.default_rng(tuple(seed)).permutation(len(requests))
    return [requests[i] for i in order.tolist()]


def zipf(groups: Sequence[Sequence[Example]], length: int, exponent: float, seed: Sequence[int]) -> list[Example]:
    """`length` requests whose expressions recur by Zipf's law: rank r has a weight of r^(−exponent).

    The ranks are drawn at random, and a phrasing for each request.
    """
    rng = np.random.default_rng(tuple(seed))
    ranked = rng.permutation(len(groups))
    weights = np.arange(1, len(groups) + 1, dtype=np.float64) ** -exponent
    chosen = ranked[rng.choice(len(groups), size=length, p=weights / weights.sum())]
    return [groups[i][int(rng.integers(len(groups[i])))] for i in chosen.tolist()]
