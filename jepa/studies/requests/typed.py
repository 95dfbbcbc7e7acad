"""Requests typed word by word: when to answer anew.

Uniform decoding answers at every word. A method answers where it expects another answer. It is scored by the answer in
force at the last word of each request. Thresholds are chosen on validation examples, figures come from test examples.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError, needs_extra
from jepa.evaluation.generation import longest_answer
from jepa.metrics import SweepPoint, bootstrap_mean, bootstrap_ratio, saving_at_equal_quality
from jepa.metrics.answers import exact_match
from jepa.models.drafts import Drafter
from jepa.models.llm_jepa import LLMJEPA, as_example
from jepa.models.session import AnswerCache, Read, follow, read_latent, read_state
from jepa.operations import OperationLedger
from jepa.results.base import Ratio
from jepa.selective import Debounce, Emission, Policy, SendOnDelta
from jepa.studies.configs import TypingConfig, TypingStyle
from jepa.studies.requests.results import PerRequest, Savings, TypedStreams, TypingPoint, TypingResults, TypingRow
from jepa.studies.requests.sessions import CachedModel, CachedSession, ScheduledSteps, all_passes

_SHORTEST = 0.01  # seconds between two steps
_NO_VALUE = (0.0,)

# --- Streams.


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
    if [] in words:
        pair = pairs[words.index([])]
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


def _typed_streams(
    pairs: Sequence[Example], limit: int, settings: TypingConfig, seed: Sequence[int]
) -> list[TypedStream]:
    """Streams of `settings.per_stream` requests each, in random order, of `limit` of the examples (0: of all)."""
    order = np.random.default_rng(tuple(seed)).permutation(len(pairs))[: limit or None]
    chosen, each = [pairs[i] for i in order], settings.per_stream
    starts = range(0, len(chosen), each)
    return [type_requests(chosen[start : start + each], settings.style, (*seed, start)) for start in starts]


def _counts(streams: Sequence[TypedStream]) -> TypedStreams:
    return TypedStreams(
        streams=len(streams),
        requests=sum(step.last for stream in streams for step in stream.steps),
        steps=sum(len(stream.steps) for stream in streams),
        corrections=sum(stream.corrections for stream in streams),
    )


# --- The study.

Choose = Callable[[TypedStream, float], Collection[int]]  # the steps of a stream that a rule decodes at a value
Count = Callable[[OperationLedger], int]
MakePolicy = Callable[[TypedStream, float], Policy]


class TypingMethod(NamedTuple):
    """A way to choose the words at which the answer is made anew."""

    name: str
    label: str
    parameter: str  # as the report calls it, "" for a method without one
    values: Sequence[float]
    policy: MakePolicy
    read: Read | None = None  # gives the latent that the policy reads
    reader: CachedModel | None = None  # the model that is read, where another one answers
    verified: bool = False  # before an answer is made anew, the model is asked whether the one in force still stands
    waits: bool = False  # its value is chosen by the answer in force when the next request begins
    flops: int = 0  # of the method itself, for each step


class _Typed(NamedTuple):
    """What a method did on one stream."""

    right: np.ndarray  # for each request, whether the answer in force at its last word is right
    settled: np.ndarray  # and when the next request begins
    ledger: OperationLedger


class _Splits(NamedTuple):
    calibration: list[TypedStream]
    test: list[TypedStream]


def evaluate_typing(
    model: LLMJEPA,
    control: LLMJEPA | None,
    splits: ExampleSplits,
    settings: TypingConfig,
    seed: int,
    drafter: Drafter | None = None,
) -> TypingResults:
    """All methods on typed requests. The states of `control`, a next-token model, are tried in place of the latents.

    Raises InputError if a split has fewer than two streams.
    """
    streams = _Splits(
        _typed_streams(splits.validation, 0, settings, (seed, 8_001)),
        _typed_streams(splits.test, settings.requests, settings, (seed, 8_002)),
    )
    for split, made in zip(_Splits._fields, streams, strict=True):
        if len(made) < 2:
            raise InputError(f"requests.per_stream must leave at least 2 {split} streams, got {len(made)}")
    longest = longest_answer(model.tokenizer.encode([*splits.validation, *splits.test]))
    cached = CachedModel(model, longest, settings.batch_size, drafter)
    texts = [step.request for made in streams for stream in made for step in stream.steps]
    cached.read(texts, "typing: answers", answer=True)
    other = None
    if control is not None:
        other = CachedModel(control, longest, settings.batch_size)
        other.read(texts, "typing: control", answer=False)
    order = np.random.default_rng((seed, 8_003)).permutation(len(splits.train))[: settings.probe_requests]
    methods = _methods(streams, cached, other, [splits.train[i] for i in order], settings)

    runs: dict[str, dict[float, list[list[_Typed]]]] = {}
    for method in tqdm(methods, desc="typing: methods", unit="method", leave=False):
        runs[method.name] = {
            value: [[_run(method, value, stream, cached) for stream in made] for made in streams]
            for value in method.values
        }
    [uniform] = runs["uniform"].values()
    rows = tuple(_row(each, runs[each.name], uniform, streams, settings.confidence, seed) for each in methods)
    return TypingResults(calibration=_counts(streams.calibration), test=_counts(streams.test), rows=rows)


# --- Methods.


def _methods(
    streams: _Splits, cached: CachedModel, control: CachedModel | None, sample: Sequence[Example], config: TypingConfig
) -> list[TypingMethod]:
    """The rows of the table, uniform decoding first."""

    def rule(choose: Choose) -> MakePolicy:
        return lambda stream, value: ScheduledSteps(choose(stream, value))

    def above(score: Callable[[Example], float]) -> tuple[Sequence[float], MakePolicy]:
        """Decode where a score reaches the threshold, one of the quantiles of the calibration streams."""
        seen = [score(step.request) for stream in streams.calibration for step in stream.steps]
        thresholds = np.unique(np.quantile(seen, config.values.endpoint_quantiles)).tolist()
        return thresholds, rule(
            lambda stream, value: [j for j, step in enumerate(stream.steps) if score(step.request) >= value]
        )

    def delta(stream: TypedStream, value: float) -> Policy:
        return SendOnDelta(value)

    every, odds, values = rule(lambda stream, _: range(len(stream.steps))), "log-odds ≥", config.values
    last = rule(lambda stream, _: [j for j, step in enumerate(stream.steps) if step.last])
    kth = rule(lambda stream, k: range(int(k) - 1, len(stream.steps), int(k)))
    probe, words = StateProbe(cached, sample), above(TextEndpoint(sample).score)
    ends = above(probe.score)
    moved = [TypingMethod("delta", "latent moved (send-on-delta)", "1 − cos >", values.delta, delta, read_latent)]
    complete = [TypingMethod("endpoint", "state says complete", odds, *ends, read_state, flops=probe.flops)]
    if control is not None:
        other = StateProbe(control, sample)
        moved.append(
            TypingMethod("delta_ntp", "NTP state moved", "1 − cos >", values.delta, delta, read_state, control)
        )
        label = "NTP state says complete"
        complete.append(
            TypingMethod("endpoint_ntp", label, odds, *above(other.score), read_state, control, flops=other.flops)
        )
    both = "state says complete, then verify"
    return [
        TypingMethod("uniform", "uniform: every word", "", _NO_VALUE, every),
        *moved,
        *complete,
        TypingMethod("words", "last two words say complete", odds, *words),
        TypingMethod("kth", "every k-th word", "k =", values.every, kth),
        TypingMethod("debounce", "debounce", "seconds", values.debounce, lambda _, value: Debounce(value), waits=True),
        TypingMethod("verify", "verify the answer in force", "", _NO_VALUE, every, verified=True),
        TypingMethod("endpoint_verify", both, odds, *ends, read_state, verified=True, flops=probe.flops),
        TypingMethod("words_verify", "last two words, then verify", odds, *words, verified=True),
        TypingMethod("oracle", "oracle: last word", "", _NO_VALUE, last),
    ]


class TextEndpoint:
    """How often the last two words of a text were the end of a training request: smoothed log-odds.

    >>> rule = TextEndpoint([Example("any digit", "[0-9]", None)])
    >>> rule.score(Example("any digit", "", None)) > 0 > rule.score(Example("any", "", None))
    True
    """

    def __init__(self, sample: Sequence[Example]) -> None:
        self.ends: Counter[tuple[str, ...]] = Counter()
        self.seen: Counter[tuple[str, ...]] = Counter()
        for pair in sample:
            words = pair.prompt.split()
            for end in range(1, len(words) + 1):
                for key in {tuple(words[max(0, end - 2) : end]), (words[end - 1],)}:
                    self.seen[key] += 1
                    self.ends[key] += end == len(words)

    def score(self, request: Example) -> float:
        """The log-odds that a request ends here."""
        words = request.prompt.split()
        before = (self.ends[words[-1],] + 0.1) / (self.seen[words[-1],] + 1)
        key = tuple(words[-2:])
        fraction = (self.ends[key] + before) / (self.seen[key] + 1) if len(words) > 1 else before
        return math.log(fraction / (1 - fraction))


class StateProbe:
    """Logistic regression from the encoder's state of a text to whether a training request ended there."""

    def __init__(self, cached: CachedModel, sample: Sequence[Example]) -> None:
        with needs_extra("studies"):
            from sklearn.linear_model import LogisticRegression  # takes a second to import

        prefixes = [
            (Example(" ".join(words[:end]), "", pair.system), end == len(words))
            for pair in sample
            for words in [pair.prompt.split()]
            for end in range(1, len(words) + 1)
        ]
        cached.read((prefix for prefix, _ in prefixes), "typing: probe", answer=False)
        states = np.stack([cached.states[prefix] for prefix, _ in prefixes])
        width = states.shape[1]
        probe = LogisticRegression(C=1000.0, max_iter=3000)
        probe.fit(states * math.sqrt(width), [ended for _, ended in prefixes])
        self.weights, self.bias = probe.coef_[0] * math.sqrt(width), float(probe.intercept_[0])
        self.states, self.flops = cached.states, 2 * width

    def score(self, request: Example) -> float:
        """The log-odds that a request ends here."""
        return float(self.weights @ self.states[as_example(request)] + self.bias)


# --- Runs.


def _run(method: TypingMethod, value: float, stream: TypedStream, cached: CachedModel) -> _Typed:
    ledger = OperationLedger()
    session = CachedSession(cached, ledger)
    reader = None if method.reader is None else CachedSession(method.reader, ledger)
    # The answer in force is a cache of one entry that every latent is near enough to.
    cache = AnswerCache(2.0, 1, session=session) if method.verified else None
    steps = [(step.request, step.time) for step in stream.steps]
    during, final = follow(steps, method.policy(stream, value), session, cached.longest, method.read, reader, cache)
    ledger.count("predictor", flops=method.flops * len(steps))
    ledger.stream(stream.seconds)
    times = np.array([step.time for step in stream.steps])
    now = in_force(during, [emission.emitted_at for emission in during], times)
    later = in_force([*during, *final], [emission.time for emission in (*during, *final)], times)

    def right(texts: Sequence[str | None]) -> np.ndarray:
        last = [(text, step) for text, step in zip(texts, stream.steps, strict=True) if step.last]
        return np.array([exact_match(text or "", step.request.completion) for text, step in last], dtype=np.float64)

    return _Typed(right(now), right(later), ledger)


def in_force(emissions: Sequence[Emission], since: Sequence[float], times: np.ndarray) -> list[str | None]:
    """The newest text at each of `times`, given the time `since` which each holds; None before the first."""
    newest = np.searchsorted(np.array(since), times, side="right") - 1
    return [emissions[i].text if i >= 0 else None for i in newest.tolist()]


def _counted(done: Sequence[_Typed], count: Count) -> np.ndarray:
    return np.array([count(each.ledger) for each in done], dtype=np.float64)


def _calls(ledger: OperationLedger) -> int:
    return ledger.decoder.calls


def _row(
    method: TypingMethod,
    runs: Mapping[float, Sequence[Sequence[_Typed]]],
    uniform: Sequence[Sequence[_Typed]],
    streams: _Splits,
    confidence: float,
    seed: int,
) -> TypingRow:
    def point(value: float, made: Sequence[TypedStream], done: Sequence[_Typed]) -> SweepPoint:
        scores = tuple(each.settled if method.waits else each.right for each in done)
        return SweepPoint(value, scores, _counted(done, _calls), np.array([stream.seconds for stream in made]))

    calibration, test = (
        [point(value, made, done[split]) for value, done in runs.items()] for split, made in enumerate(streams)
    )
    base_calibration, base_test = (point(0.0, made, done) for made, done in zip(streams, uniform, strict=True))
    saving = saving_at_equal_quality(base_calibration, calibration, base_test, test, confidence=confidence, seed=seed)
    value = saving.value
    if value is None:  # shown all the same: where it is best, of equals where it is cheapest
        value = max(calibration, key=lambda p: (p.quality, -p.decodes_per_second)).value
    chosen = runs[value][1]
    requests = sum(len(each.right) for each in chosen)
    ledgers = [each.ledger for each in chosen]

    def fewer(count: Count) -> Ratio | None:
        return Ratio.of(bootstrap_ratio(_counted(uniform[1], count), _counted(chosen, count), seed=seed))

    return TypingRow(
        name=method.name,
        label=method.label,
        parameter=method.parameter,
        value=value,
        chosen=saving.value is not None,
        reached=saving.reached,
        wait_seconds=value if method.waits else 0.0,
        exact_match=bootstrap_mean([each.right for each in chosen], seed=seed),
        settled=bootstrap_mean([each.settled for each in chosen], seed=seed),
        difference=saving.quality_difference,
        saving=Savings(
            calls=fewer(_calls), flops=fewer(lambda ledger: ledger.total_flops), forward_passes=fewer(all_passes)
        ),
        per_request=PerRequest.of(sum(ledgers[1:], start=ledgers[0]), requests),
        curve=tuple(
            TypingPoint(
                value=each,
                calls_per_request=float(_counted(done, _calls).sum() / requests),
                exact_match=float(np.concatenate([one.right for one in done]).mean()),
            )
            for each, (_, done) in runs.items()
        ),
    )
