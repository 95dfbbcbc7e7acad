"""Requests typed word by word: when to answer anew.

Uniform decoding answers at every word; a method answers where it expects another answer, and is judged by the answer in
force at the last word of each request. Thresholds are chosen on streams of validation pairs, figures come from streams
of test pairs.

S: streams.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from jepa.config import build_as
from jepa.data.pairs import Example, ExampleSplits
from jepa.data.request_streams import TypedStream, TypingStyle, type_requests
from jepa.errors import InputError
from jepa.evaluation.language import load_language_model
from jepa.evaluation.record import plain_ratio
from jepa.evaluation.request_sessions import (
    Known,
    RememberingSession,
    Steps,
    all_passes,
    bare,
    longest_answer,
    per_request,
)
from jepa.metrics import SweepPoint, bootstrap_mean, bootstrap_ratio, saving_at_equal_quality
from jepa.metrics.answers import exact_match
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import AnswerCache, Read, RequestSession, follow, read_latent, read_state
from jepa.operations import OperationLedger
from jepa.selective import Debounce, Emission, Policy, SendOnDelta


@dataclass(frozen=True)
class Method:
    """A way to choose the words at which the answer is made anew.

    Args:
        name: in the results.
        label: in the report.
        knob: what its values are, "" for a method without a choice.
        values: to choose from.
        policy: the policy of stream i of a split at a value.
        read: the latent it reads; None: none.
        control: it reads the control model's.
        verified: before an answer is made anew, the model is asked whether the one in force still stands.
        waits: the answer comes later: the knob is chosen by the answer that is in force when the next request begins.
        flops: of its own, for each step.
    """

    name: str
    label: str
    knob: str
    values: tuple[float, ...]
    policy: Callable[[str, int, float], Policy]
    read: Read | None = None
    control: bool = False
    verified: bool = False
    waits: bool = False
    flops: int = 0


@dataclass(frozen=True)
class _Typed:
    """What a method did on the streams of a split: per stream and request, and per stream and step."""

    right: list[np.ndarray]  # whether the answer in force at the last word is right
    settled: list[np.ndarray]  # and when the next request begins
    agrees: list[np.ndarray]  # at each step, whether the answer in force is that of uniform decoding
    ledgers: list[OperationLedger]

    def calls(self) -> np.ndarray:
        return np.array([ledger.decoder.calls for ledger in self.ledgers], dtype=np.float64)

    def flops(self) -> np.ndarray:
        return np.array([ledger.total_flops for ledger in self.ledgers], dtype=np.float64)


def evaluate_typing(
    model: LLMJEPA, splits: ExampleSplits, settings: Mapping[str, Any], seed: int, device: str
) -> dict[str, Any]:
    style = build_as(TypingStyle, "requests.style", settings["style"])
    streams = {
        "calibration": _typed_streams(splits.validation, 0, settings["per_stream"], style, (seed, 8_001)),
        "test": _typed_streams(splits.test, settings["requests"], settings["per_stream"], style, (seed, 8_002)),
    }
    for split, made in streams.items():
        if len(made) < 2:
            raise InputError(f"requests.per_stream must leave at least 2 {split} streams, got {len(made)}")
    known = Known(model, longest_answer(model, [*splits.validation, *splits.test]), settings["batch_size"])
    texts = [step.request for made in streams.values() for stream in made for step in stream.steps]
    known.encode(texts, "typing", predict=True)
    known.answer(texts, "typing")
    control = None
    if settings["control"] is not None:
        control = Known(load_language_model(Path(settings["control"]), device), known.longest, settings["batch_size"])
        control.encode(texts, "control", predict=False)
    sample = _sample(splits.train, settings["probe_requests"], seed)
    methods = _methods(streams, known, control, sample, settings["values"])

    total = sum(len(method.values) for method in methods) * len(streams)
    runs: dict[str, dict[float, dict[str, _Typed]]] = {}
    with tqdm(total=total, desc="typing: methods", unit="run", leave=False) as bar:
        for method in methods:
            for value in method.values:
                for split, made in streams.items():
                    done = _run_typed(method, value, split, made, known, control)
                    runs.setdefault(method.name, {}).setdefault(value, {})[split] = done
                    bar.update()
    uniform = runs["uniform"][methods[0].values[0]]
    rows = [
        _typing_row(method, runs[method.name], uniform, streams, settings["confidence"], seed) for method in methods
    ]
    live = streams["test"][: settings["live_streams"]]
    for method, row in zip(tqdm(methods, desc="typing: wall time", unit="method", leave=False), rows, strict=True):
        row["seconds_per_request"] = _live_seconds(method, row["value"], live, known, control) if live else None
    return {
        "streams": {
            split: {
                "streams": len(made),
                "requests": sum(step.last for stream in made for step in stream.steps),
                "steps": sum(len(stream.steps) for stream in made),
                "corrections": sum(stream.corrections for stream in made),
                "seconds": sum(stream.seconds for stream in made),
            }
            for split, made in streams.items()
        },
        "live_requests": sum(step.last for stream in live for step in stream.steps),
        "rows": rows,
    }


def _typed_streams(
    pairs: Sequence[Example], limit: int, per_stream: int, style: TypingStyle, seed: tuple[int, ...]
) -> list[TypedStream]:
    """Streams of `per_stream` requests each, in random order, of `limit` of the pairs (0: of all)."""
    order = np.random.default_rng(seed).permutation(len(pairs))[: limit or None]
    chosen = [pairs[i] for i in order]
    return [
        type_requests(chosen[start : start + per_stream], style, (*seed, start), f"{start:05d}")
        for start in range(0, len(chosen), per_stream)
    ]


def _methods(
    streams: Mapping[str, Sequence[TypedStream]],
    known: Known,
    control: Known | None,
    sample: Sequence[Example],
    values: Mapping[str, Sequence[float]],
) -> list[Method]:
    """The rows of the table, uniform decoding first."""
    none = (0.0,)

    def rule(choose: Callable[[int, TypedStream, float], Collection[int]]) -> Callable[[str, int, float], Policy]:
        return lambda split, i, value: Steps(choose(i, streams[split][i], value))

    def above(score: Callable[[Example], float]) -> tuple[Callable[[str, int, float], Policy], tuple[float, ...]]:
        """Decode where a score is at least the threshold, one of the quantiles of the calibration streams."""
        scores = {
            split: [np.array([score(step.request) for step in stream.steps]) for stream in made]
            for split, made in streams.items()
        }
        everything = np.concatenate(scores["calibration"])
        thresholds = tuple(np.unique(np.quantile(everything, values["endpoint_quantiles"])).tolist())
        return lambda split, i, value: Steps(np.flatnonzero(scores[split][i] >= value).tolist()), thresholds

    every = rule(lambda i, stream, _: range(len(stream.steps)))
    delta = lambda split, i, value: SendOnDelta(value)  # noqa: E731
    deltas = tuple(values["delta"])
    words, word_values = above(_TextEndpoint(sample).score)
    probe = _StateProbe(known, sample)
    ends, end_values = above(probe.score)
    found = [
        Method("uniform", "uniform: every word", "", none, every),
        Method("delta", "latent moved (send-on-delta)", "1 − cos >", deltas, delta, read_latent),
    ]
    if control is not None:
        found.append(Method("delta_ntp", "NTP state moved", "1 − cos >", deltas, delta, read_state, control=True))
    found.append(
        Method("endpoint", "state says complete", "log-odds ≥", end_values, ends, read_state, flops=probe.flops)
    )
    if control is not None:
        other = _StateProbe(control, sample)
        policy, thresholds = above(other.score)
        label = "NTP state says complete"
        found.append(
            Method("endpoint_ntp", label, "log-odds ≥", thresholds, policy, read_state, control=True, flops=other.flops)
        )
    kth = rule(lambda i, stream, k: range(int(k) - 1, len(stream.steps), int(k)))
    debounce = lambda split, i, value: Debounce(value)  # noqa: E731
    last = rule(lambda i, stream, _: [j for j, step in enumerate(stream.steps) if step.last])
    return [
        *found,
        Method("words", "last two words say complete", "log-odds ≥", word_values, words),
        Method("kth", "every k-th word", "k =", tuple(values["every"]), kth),
        Method("debounce", "debounce", "seconds", tuple(values["debounce"]), debounce, waits=True),
        Method("verify", "verify the answer in force", "", none, every, verified=True),
        Method(
            "endpoint_verify",
            "state says complete, then verify",
            "log-odds ≥",
            end_values,
            ends,
            read_state,
            verified=True,
            flops=probe.flops,
        ),
        Method("words_verify", "last two words, then verify", "log-odds ≥", word_values, words, verified=True),
        Method("oracle", "oracle: last word", "", none, last),
    ]


class _TextEndpoint:
    """How often the last two words of a text were the end of a training request: smoothed log-odds."""

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
        words = request.prompt.split()
        before = (self.ends[words[-1],] + 0.1) / (self.seen[words[-1],] + 1)
        key = tuple(words[-2:])
        fraction = (self.ends[key] + before) / (self.seen[key] + 1) if len(words) > 1 else before
        return math.log(fraction / (1 - fraction))


class _StateProbe:
    """Logistic regression from the encoder's state of a text to whether a training request ended there."""

    def __init__(self, known: Known, sample: Sequence[Example]) -> None:
        from sklearn.linear_model import LogisticRegression  # takes a second to import

        prefixes = [
            (Example(" ".join(words[:end]), "", pair.system), end == len(words))
            for pair in sample
            for words in [pair.prompt.split()]
            for end in range(1, len(words) + 1)
        ]
        known.encode((prefix for prefix, _ in prefixes), "probe", predict=False)
        states = np.stack([known.states[prefix] for prefix, _ in prefixes])
        width = states.shape[1]
        probe = LogisticRegression(C=1000.0, max_iter=3000)
        probe.fit(states * math.sqrt(width), [ended for _, ended in prefixes])
        self.weights, self.bias = probe.coef_[0] * math.sqrt(width), float(probe.intercept_[0])
        self.states, self.flops = known.states, 2 * width

    def score(self, request: Example) -> float:
        return float(self.weights @ self.states[bare(request)] + self.bias)


def _sample(pairs: Sequence[Example], count: int, seed: int) -> list[Example]:
    order = np.random.default_rng((seed, 8_003)).permutation(len(pairs))[:count]
    return [pairs[i] for i in order]


def _sessions(
    method: Method, known: Known, control: Known | None, ledger: OperationLedger, *, live: bool
) -> tuple[RequestSession, RequestSession | None]:
    """Who answers, and who is read where that is another model; both count in one ledger."""

    def session(of: Known) -> RequestSession:
        return RequestSession(of.model, ledger) if live else RememberingSession(of, ledger)

    return session(known), session(control) if method.control and control is not None else None


def _type_stream(
    method: Method,
    value: float,
    split: str,
    index: int,
    stream: TypedStream,
    known: Known,
    sessions: tuple[RequestSession, RequestSession | None],
) -> tuple[list[Emission], list[Emission]]:
    session, reader = sessions
    # The answer in force is a cache of one entry that every latent is near enough to.
    cache = AnswerCache(2.0, 1, session=session) if method.verified else None
    steps = [(step.request, step.time) for step in stream.steps]
    emissions = follow(steps, method.policy(split, index, value), session, known.longest, method.read, reader, cache)
    session.ledger.count("predictor", flops=method.flops * len(steps))
    return emissions


def _run_typed(
    method: Method, value: float, split: str, streams: Sequence[TypedStream], known: Known, control: Known | None
) -> _Typed:
    done = _Typed([], [], [], [])
    for index, stream in enumerate(streams):
        ledger = OperationLedger()
        sessions = _sessions(method, known, control, ledger, live=False)
        during, final = _type_stream(method, value, split, index, stream, known, sessions)
        ledger.stream(stream.seconds)
        times = np.array([step.time for step in stream.steps])
        now = _in_force(during, [emission.emitted_at for emission in during], times)
        later = _in_force([*during, *final], [emission.time for emission in (*during, *final)], times)
        last = [i for i, step in enumerate(stream.steps) if step.last]
        golds = [stream.steps[i].request.completion for i in last]
        done.right.append(_right([now[i] for i in last], golds))
        done.settled.append(_right([later[i] for i in last], golds))
        own = [known.text(step.request) for step in stream.steps]
        done.agrees.append(np.array([one == other for one, other in zip(now, own, strict=True)], dtype=np.float64))
        done.ledgers.append(ledger)
    return done


def _in_force(emissions: Sequence[Emission], since: Sequence[float], times: np.ndarray) -> list[str | None]:
    """The newest text at each of `times`, None before the first."""
    newest = np.searchsorted(np.array(since), times, side="right") - 1
    return [emissions[i].text if i >= 0 else None for i in newest.tolist()]


def _right(texts: Sequence[str | None], golds: Sequence[str]) -> np.ndarray:
    return np.array([exact_match(text or "", gold) for text, gold in zip(texts, golds, strict=True)], dtype=np.float64)


def _typing_row(
    method: Method,
    runs: Mapping[float, Mapping[str, _Typed]],
    uniform: Mapping[str, _Typed],
    streams: Mapping[str, Sequence[TypedStream]],
    confidence: float,
    seed: int,
) -> dict[str, Any]:
    def point(value: float, split: str, done: _Typed) -> SweepPoint:
        scores = done.settled if method.waits else done.right
        return SweepPoint(value, tuple(scores), done.calls(), np.array([s.seconds for s in streams[split]]))

    points = {split: [point(value, split, run[split]) for value, run in runs.items()] for split in streams}
    base = {split: point(0.0, split, uniform[split]) for split in streams}
    saving = saving_at_equal_quality(
        base["calibration"],
        points["calibration"],
        base["test"],
        points["test"],
        confidence=confidence,
        seed=seed,
    )
    value = saving.value
    if value is None:  # shown all the same: where it is best, of equals where it is cheapest
        value = max(points["calibration"], key=lambda p: (p.quality, -p.decodes_per_second)).value
    chosen, reference = runs[value]["test"], uniform["test"]
    requests = sum(map(len, chosen.right))
    ledger = sum(chosen.ledgers[1:], start=chosen.ledgers[0])

    def mean(scores: Sequence[np.ndarray]) -> dict[str, float]:
        return asdict(bootstrap_mean(scores, seed=seed))

    def fewer(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float | None] | None:
        return plain_ratio(bootstrap_ratio(theirs, ours, seed=seed))

    return {
        "name": method.name,
        "label": method.label,
        "knob": method.knob,
        "value": value,
        "chosen": saving.value is not None,
        "reached": saving.reached,
        "reason": saving.reason,
        "wait_seconds": value if method.waits else 0.0,
        "exact_match": mean(chosen.right),
        "settled": mean(chosen.settled),
        "difference": None if saving.quality_difference is None else asdict(saving.quality_difference),
        "agreement": mean(chosen.agrees),
        "saving": {
            "calls": fewer(reference.calls(), chosen.calls()),
            "flops": fewer(reference.flops(), chosen.flops()),
            "forward_passes": fewer(all_passes(reference.ledgers), all_passes(chosen.ledgers)),
        },
        "per_request": per_request(ledger, requests),
        "curve": [
            {
                "value": float(knob),
                "calls_per_request": float(run["test"].calls().sum() / requests),
                "exact_match": float(np.concatenate(run["test"].right).mean()),
            }
            for knob, run in runs.items()
        ],
    }


def _live_seconds(
    method: Method, value: float, streams: Sequence[TypedStream], known: Known, control: Known | None
) -> dict[str, float]:
    """Wall seconds of each part for each request, one step at a time and nothing remembered."""
    ledger = OperationLedger()
    for index, stream in enumerate(streams):
        _type_stream(method, value, "test", index, stream, known, _sessions(method, known, control, ledger, live=True))
    requests = sum(step.last for stream in streams for step in stream.steps)
    parts = {part: getattr(ledger, part).seconds / requests for part in ("encoder", "predictor", "decoder")}
    return {**parts, "all": ledger.total_seconds / requests}
