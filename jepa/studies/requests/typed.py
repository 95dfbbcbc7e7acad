"""Requests typed word by word: when to answer anew.

Uniform decoding answers at every word. A method answers where it expects another answer. It is scored by the answer in
force at the last word of each request. Thresholds are chosen on streams of validation examples, figures come from
streams of test examples.

S: streams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jepa.build import build_as
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.evaluation.answers import longest_answer
from jepa.metrics import SweepPoint, bootstrap_mean, bootstrap_ratio, saving_at_equal_quality
from jepa.metrics.answers import exact_match
from jepa.models.llm_jepa import LLMJEPA, as_example
from jepa.models.session import AnswerCache, Read, RequestSession, follow, read_latent, read_state
from jepa.operations import OperationLedger
from jepa.results.base import Ratio
from jepa.selective import Debounce, Emission, Policy, SendOnDelta
from jepa.studies.configs import TypingConfig
from jepa.studies.requests.results import (
    PerRequest,
    Savings,
    TypedStreams,
    TypingPoint,
    TypingResults,
    TypingRow,
)
from jepa.studies.requests.sessions import CachedModel, CachedSession, ScheduledSteps, all_passes
from jepa.studies.requests.streams import TypedStream, TypingStyle, type_requests

Choose = Callable[[TypedStream, float], Collection[int]]  # the steps of a stream that a rule decodes at a value
MakePolicy = Callable[[TypedStream, float], Policy]
_NO_VALUE = (0.0,)


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
    """What a method did on the S streams of a split."""

    right: list[np.ndarray]  # for each request, whether the answer in force at its last word is right
    settled: list[np.ndarray]  # and when the next request begins
    agrees: list[np.ndarray]  # for each step, whether the answer in force is the one of uniform decoding
    ledgers: list[OperationLedger]

    def calls(self) -> np.ndarray:
        return np.array([ledger.decoder.calls for ledger in self.ledgers], dtype=np.float64)

    def flops(self) -> np.ndarray:
        return np.array([ledger.total_flops for ledger in self.ledgers], dtype=np.float64)


class _Splits(NamedTuple):
    calibration: list[TypedStream]
    test: list[TypedStream]


def evaluate_typing(
    model: LLMJEPA, control: LLMJEPA | None, splits: ExampleSplits, settings: TypingConfig, seed: int
) -> TypingResults:
    """All methods on typed requests. The states of `control`, a next-token model, are tried in place of the latents.

    Raises:
        InputError: fewer than two streams of a split.
    """
    style = build_as(TypingStyle, "requests.style", settings.style)
    streams = _Splits(
        _typed_streams(splits.validation, 0, settings.per_stream, style, (seed, 8_001)),
        _typed_streams(splits.test, settings.requests, settings.per_stream, style, (seed, 8_002)),
    )
    for split, made in zip(_Splits._fields, streams, strict=True):
        if len(made) < 2:
            raise InputError(f"requests.per_stream must leave at least 2 {split} streams, got {len(made)}")
    longest = longest_answer(model.tokenizer.encode([*splits.validation, *splits.test]))
    cached = CachedModel(model, longest, settings.batch_size)
    texts = [step.request for made in streams for stream in made for step in stream.steps]
    cached.encode(texts, "typing", predict=True)
    cached.answer(texts, "typing")
    other = None
    if control is not None:
        other = CachedModel(control, longest, settings.batch_size)
        other.encode(texts, "control", predict=False)
    order = np.random.default_rng((seed, 8_003)).permutation(len(splits.train))[: settings.probe_requests]
    methods = _methods(streams, cached, other, [splits.train[i] for i in order], settings)

    runs: dict[str, dict[float, list[_Typed]]] = {}
    for method in tqdm(methods, desc="typing: methods", unit="method", leave=False):
        runs[method.name] = {value: [_run(method, value, made, cached) for made in streams] for value in method.values}
    [uniform] = runs["uniform"].values()
    live = streams.test[: settings.live_streams]
    rows = []
    for method in tqdm(methods, desc="typing: wall time", unit="method", leave=False):
        row = _row(method, runs[method.name], uniform, streams, settings.confidence, seed)
        seconds = _live_seconds(method, row.value, live, cached) if live else None
        rows.append(row.model_copy(update={"seconds": seconds}))
    return TypingResults(
        calibration=_counts(streams.calibration),
        test=_counts(streams.test),
        live_requests=_requests(live),
        rows=tuple(rows),
    )


def _typed_streams(
    pairs: Sequence[Example], limit: int, per_stream: int, style: TypingStyle, seed: tuple[int, ...]
) -> list[TypedStream]:
    """Streams of `per_stream` requests each, in random order, of `limit` of the examples (0: of all)."""
    order = np.random.default_rng(seed).permutation(len(pairs))[: limit or None]
    chosen = [pairs[i] for i in order]
    return [
        type_requests(chosen[start : start + per_stream], style, (*seed, start), f"{start:05d}")
        for start in range(0, len(chosen), per_stream)
    ]


def _requests(streams: Sequence[TypedStream]) -> int:
    return sum(step.last for stream in streams for step in stream.steps)


def _counts(streams: Sequence[TypedStream]) -> TypedStreams:
    return TypedStreams(
        streams=len(streams),
        requests=_requests(streams),
        steps=sum(len(stream.steps) for stream in streams),
        corrections=sum(stream.corrections for stream in streams),
        seconds=sum(stream.seconds for stream in streams),
    )


def _methods(
    streams: _Splits, cached: CachedModel, control: CachedModel | None, sample: Sequence[Example], config: TypingConfig
) -> list[TypingMethod]:
    """The rows of the table, uniform decoding first."""

    def rule(choose: Choose) -> MakePolicy:
        return lambda stream, value: ScheduledSteps(choose(stream, value))

    def above(score: Callable[[Example], float]) -> tuple[Sequence[float], MakePolicy]:
        """Decode where a score reaches the threshold, one of the quantiles of the calibration streams."""
        scores = {id(s): np.array([score(step.request) for step in s.steps]) for made in streams for s in made}
        everything = np.concatenate([scores[id(stream)] for stream in streams.calibration])
        thresholds = np.unique(np.quantile(everything, config.values.endpoint_quantiles)).tolist()
        return thresholds, rule(lambda stream, value: np.flatnonzero(scores[id(stream)] >= value).tolist())

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
        from sklearn.linear_model import LogisticRegression  # takes a second to import

        prefixes = [
            (Example(" ".join(words[:end]), "", pair.system), end == len(words))
            for pair in sample
            for words in [pair.prompt.split()]
            for end in range(1, len(words) + 1)
        ]
        cached.encode((prefix for prefix, _ in prefixes), "probe", predict=False)
        states = np.stack([cached.states[prefix] for prefix, _ in prefixes])
        width = states.shape[1]
        probe = LogisticRegression(C=1000.0, max_iter=3000)
        probe.fit(states * math.sqrt(width), [ended for _, ended in prefixes])
        self.weights, self.bias = probe.coef_[0] * math.sqrt(width), float(probe.intercept_[0])
        self.states, self.flops = cached.states, 2 * width

    def score(self, request: Example) -> float:
        """The log-odds that a request ends here."""
        return float(self.weights @ self.states[as_example(request)] + self.bias)


def _type_stream(
    method: TypingMethod,
    value: float,
    stream: TypedStream,
    longest: int,
    session: RequestSession,
    reader: RequestSession | None,
) -> tuple[list[Emission], list[Emission]]:
    """What is emitted while the stream runs, and at its end."""
    # The answer in force is a cache of one entry that every latent is near enough to.
    cache = AnswerCache(2.0, 1, session=session) if method.verified else None
    steps = [(step.request, step.time) for step in stream.steps]
    emissions = follow(steps, method.policy(stream, value), session, longest, method.read, reader, cache)
    session.ledger.count("predictor", flops=method.flops * len(steps))
    return emissions


def _run(method: TypingMethod, value: float, streams: Sequence[TypedStream], cached: CachedModel) -> _Typed:
    done = _Typed([], [], [], [])
    for stream in streams:
        ledger = OperationLedger()
        reader = None if method.reader is None else CachedSession(method.reader, ledger)
        session = CachedSession(cached, ledger)
        during, final = _type_stream(method, value, stream, cached.longest, session, reader)
        ledger.stream(stream.seconds)
        times = np.array([step.time for step in stream.steps])
        now = in_force(during, [emission.emitted_at for emission in during], times)
        later = in_force([*during, *final], [emission.time for emission in (*during, *final)], times)
        last = [i for i, step in enumerate(stream.steps) if step.last]
        golds = [stream.steps[i].request.completion for i in last]
        done.right.append(_right([now[i] for i in last], golds))
        done.settled.append(_right([later[i] for i in last], golds))
        own = [cached.text(step.request) for step in stream.steps]
        done.agrees.append(np.array([one == other for one, other in zip(now, own, strict=True)], dtype=np.float64))
        done.ledgers.append(ledger)
    return done


def in_force(emissions: Sequence[Emission], since: Sequence[float], times: np.ndarray) -> list[str | None]:
    """The newest text at each of `times`, given the time `since` which each holds; None before the first."""
    newest = np.searchsorted(np.array(since), times, side="right") - 1
    return [emissions[i].text if i >= 0 else None for i in newest.tolist()]


def _right(texts: Sequence[str | None], golds: Sequence[str]) -> np.ndarray:
    return np.array([exact_match(text or "", gold) for text, gold in zip(texts, golds, strict=True)], dtype=np.float64)


def _row(
    method: TypingMethod,
    runs: Mapping[float, Sequence[_Typed]],
    uniform: Sequence[_Typed],
    streams: _Splits,
    confidence: float,
    seed: int,
) -> TypingRow:
    def point(value: float, made: Sequence[TypedStream], done: _Typed) -> SweepPoint:
        scores = done.settled if method.waits else done.right
        return SweepPoint(value, tuple(scores), done.calls(), np.array([stream.seconds for stream in made]))

    calibration, test = (
        [point(value, made, done[split]) for value, done in runs.items()] for split, made in enumerate(streams)
    )
    base_calibration, base_test = (point(0.0, made, done) for made, done in zip(streams, uniform, strict=True))
    saving = saving_at_equal_quality(base_calibration, calibration, base_test, test, confidence=confidence, seed=seed)
    value = saving.value
    if value is None:  # shown all the same: where it is best, of equals where it is cheapest
        value = max(calibration, key=lambda p: (p.quality, -p.decodes_per_second)).value
    chosen, reference = runs[value][1], uniform[1]
    requests = sum(map(len, chosen.right))
    ledger = sum(chosen.ledgers[1:], start=chosen.ledgers[0])

    def fewer(theirs: np.ndarray, ours: np.ndarray) -> Ratio | None:
        return Ratio.of(bootstrap_ratio(theirs, ours, seed=seed))

    return TypingRow(
        name=method.name,
        label=method.label,
        parameter=method.parameter,
        value=value,
        chosen=saving.value is not None,
        reached=saving.reached,
        reason=saving.reason,
        wait_seconds=value if method.waits else 0.0,
        exact_match=bootstrap_mean(chosen.right, seed=seed),
        settled=bootstrap_mean(chosen.settled, seed=seed),
        difference=saving.quality_difference,
        agreement=bootstrap_mean(chosen.agrees, seed=seed),
        saving=Savings(
            calls=fewer(reference.calls(), chosen.calls()),
            flops=fewer(reference.flops(), chosen.flops()),
            forward_passes=fewer(all_passes(*reference.ledgers), all_passes(*chosen.ledgers)),
        ),
        per_request=PerRequest.of(ledger, requests),
        seconds=None,
        curve=tuple(
            TypingPoint(
                value=each,
                calls_per_request=float(done.calls().sum() / requests),
                exact_match=float(np.concatenate(done.right).mean()),
            )
            for each, (_, done) in runs.items()
        ),
    )


def _live_seconds(method: TypingMethod, value: float, streams: Sequence[TypedStream], cached: CachedModel) -> float:
    """Wall seconds of a request, one step at a time and nothing cached."""
    ledger = OperationLedger()
    for stream in streams:
        reader = None if method.reader is None else RequestSession(method.reader.model, ledger)
        _type_stream(method, value, stream, cached.longest, RequestSession(cached.model, ledger), reader)
    return ledger.total_seconds / _requests(streams)
