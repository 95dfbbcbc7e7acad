"""Requests that recur in several phrasings: when an earlier answer serves.

Expressions held out of training come in several phrasings. Every request is answered, by the decoder or with the answer
of an earlier request. The expressions are halved, and thresholds for one half are calibrated on the other, on streams
of each phrasing once.

N: requests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

import numpy as np
from tqdm import tqdm

from jepa.data.pairs import Example, ExampleSplits
from jepa.data.request_streams import each_once, expressions, zipf
from jepa.errors import InputError
from jepa.evaluation.request_sessions import (
    EVERY_STEP,
    Known,
    RememberingSession,
    all_passes,
    longest_answer,
    per_request,
)
from jepa.metrics import bootstrap_mean
from jepa.metrics.answers import exact_match, regex_equivalence
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import AnswerCache, Read, RequestSession, follow, read_latent
from jepa.operations import OperationLedger
from jepa.selective import Uniform

Streams = Sequence[Sequence[Example]]

_NO_THRESHOLD = 0.0  # given to a method without one


@dataclass(frozen=True)
class _Reuse:
    """A way to reuse answers: what two requests have to share, and what the model is asked."""

    name: str
    label: str
    values: tuple[float, ...]  # of the threshold that is calibrated; none: it has none
    cache: Callable[[float, RequestSession], AnswerCache | None]
    read: Read | None = None


@dataclass(frozen=True)
class _Answered:
    """N requests of the streams of one half, and how each was answered."""

    ledger: OperationLedger
    expressions: np.ndarray  # (N,) number of the expression
    hit: np.ndarray  # (N,) reused
    differs: np.ndarray  # reused, and not what the model would have answered
    spoiled: np.ndarray  # reused and wrong where the model's own answer is equivalent to the right one
    repaired: np.ndarray  # the other way round
    exact: np.ndarray
    equivalent: np.ndarray

    def error(self) -> float:
        """Fraction of requests spoiled, with one more counted than seen (conformal risk control)."""
        return float((self.spoiled.sum() + 1) / (len(self.spoiled) + 1))


def evaluate_recurring(
    model: LLMJEPA, splits: ExampleSplits, settings: Mapping[str, Any], seed: int, device: str
) -> dict[str, Any]:
    groups = expressions(splits.validation)
    if len(groups) < 4:
        raise InputError(f"data must hold at least 4 validation expressions in two phrasings, got {len(groups)}")
    order = np.random.default_rng((seed, 9_001)).permutation(len(groups))
    halves = [[groups[i] for i in order[half::2]] for half in range(2)]
    pairs = [pair for phrasings in groups for pair in phrasings]
    known = Known(model, longest_answer(model, pairs), settings["batch_size"])
    known.encode(pairs, "recurring", predict=True)
    known.answer(pairs, "recurring")
    numbers = {pair.completion: number for number, phrasings in enumerate(groups) for pair in phrasings}
    words = _word_vectors(splits.train, pairs)
    methods = _reuses(settings, words)
    length, exponent = settings["zipf_length"], settings["zipf_exponent"]
    once = [[each_once(halves[half], (seed, 9_002, half, i)) for i in range(settings["orders"])] for half in range(2)]
    recurring = [
        [zipf(halves[half], length, exponent, (seed, 9_003, half, i)) for i in range(settings["zipf_streams"])]
        for half in range(2)
    ]
    runs = _Runs(methods, known, numbers)
    points = _operating_points(runs, once, settings["errors"])
    found = {
        name: _setting(runs, streams, points, seed, f"recurring: {name}")
        for name, streams in (("each_once", once), ("zipf", recurring))
    }
    return {"expressions": len(groups), "requests": len(pairs), "settings": found}


def _reuses(settings: Mapping[str, Any], words: Read) -> list[_Reuse]:
    """The rows of the table: always decoding first, exact text second."""
    capacity, reach = settings["capacity"], settings["reach"]
    distances, tolerances = tuple(settings["distances"]), tuple(settings["tolerances"])

    def text(pair: Example) -> str:
        return pair.prompt

    def answer(pair: Example) -> str:
        return pair.completion

    def verified(name: Callable[[Example], str] | None, reach: float) -> Callable[[float, RequestSession], AnswerCache]:
        return lambda value, session: AnswerCache(reach, capacity, name=name, session=session, tolerance=value)

    return [
        _Reuse("always", "always decode", (), lambda value, session: None),
        _Reuse("exact", "exact text", (), lambda value, session: AnswerCache(-1.0, capacity, name=text)),
        _Reuse("latent", "latent", distances, lambda value, session: AnswerCache(value, capacity), read_latent),
        _Reuse(
            "exact_latent",
            "exact text, latent",
            distances,
            lambda value, session: AnswerCache(value, capacity, name=text),
            read_latent,
        ),
        _Reuse(
            "lossless", "exact text, latent, verified: the model's own answer", (), verified(text, reach), read_latent
        ),
        _Reuse("latent_verified", "latent, verified", tolerances, verified(None, reach), read_latent),
        _Reuse("exact_latent_verified", "exact text, latent, verified", tolerances, verified(text, reach), read_latent),
        _Reuse("words_verified", "exact text, TF-IDF neighbour, verified", tolerances, verified(text, 1.0), words),
        _Reuse("oracle", "oracle: same expression", (), lambda _, session: AnswerCache(-1.0, capacity, name=answer)),
    ]


def _word_vectors(train: Sequence[Example], pairs: Sequence[Example]) -> Read:
    """TF-IDF of words and word pairs (E,), of unit norm, fitted on the training requests: it costs no forward pass."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s,]+", max_features=512)
    vectoriser.fit([pair.prompt for pair in train])
    rows = vectoriser.transform([pair.prompt for pair in pairs]).toarray().astype(np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows[norms[:, 0] == 0, 0] = 1.0
    rows /= np.where(norms == 0, 1.0, norms)
    by_text = {pair.prompt: row for pair, row in zip(pairs, rows, strict=True)}
    return lambda session, pair: by_text[pair.prompt]


class _Runs:
    """What each method did at a value on the streams of one half: run once, and kept."""

    def __init__(self, methods: Sequence[_Reuse], known: Known, numbers: Mapping[str, int]) -> None:
        self.methods, self._known, self._numbers = methods, known, numbers
        self._done: dict[tuple[str, float, int], _Answered] = {}

    def __call__(self, method: _Reuse, value: float, streams: Streams) -> _Answered:
        key = (method.name, value, id(streams))
        if key not in self._done:
            self._done[key] = _run_reuse(method, value, streams, self._known, self._numbers)
        return self._done[key]


def _operating_points(
    runs: _Runs, halves: Sequence[Streams], errors: Sequence[float]
) -> list[tuple[_Reuse, float | None, list[float | None]]]:
    """For each method and requested error (None: it has no threshold) its values for the two halves.

    That of a half is calibrated on the other; None where no value holds the error there.
    """
    points: list[tuple[_Reuse, float | None, list[float | None]]] = []
    for method in tqdm(runs.methods, desc="recurring: calibration", unit="method", leave=False):
        if not method.values:
            points.append((method, None, [_NO_THRESHOLD] * 2))
            continue
        measured = [{value: runs(method, value, half).error() for value in method.values} for half in halves]
        for requested in errors:
            points.append((method, requested, [_calibrated(measured[1 - half], requested) for half in range(2)]))
    return points


def _setting(
    runs: _Runs,
    halves: Sequence[Streams],
    points: Sequence[tuple[_Reuse, float | None, Sequence[float | None]]],
    seed: int,
    what: str,
) -> dict[str, Any]:
    """All methods at their operating points on the streams of both halves."""
    always, exact = ([runs(method, _NO_THRESHOLD, half) for half in halves] for method in runs.methods[:2])
    exact_calls = sum(done.ledger.decoder.calls for done in exact)
    rows: list[dict[str, Any]] = []
    for method, requested, values in tqdm(points, desc=what, unit="row", leave=False):
        row: dict[str, Any] = {"name": method.name, "label": method.label, "requested_error": requested, "found": None}
        given = [value for value in values if value is not None]
        if len(given) == len(halves):
            done = [runs(method, value, half) for value, half in zip(given, halves, strict=True)]
            row["found"] = _reuse_row(done, always, exact_calls, seed) | {"values": [] if requested is None else given}
        rows.append(row)
    return {
        "streams": sum(map(len, halves)),
        "requests": sum(len(stream) for half in halves for stream in half),
        "rows": rows,
    }


def _run_reuse(method: _Reuse, value: float, streams: Streams, known: Known, numbers: Mapping[str, int]) -> _Answered:
    ledger = OperationLedger()
    columns: list[tuple[Any, ...]] = []
    for stream in streams:
        session = RememberingSession(known, ledger, graded=value > 0)
        steps = [(pair, float(i)) for i, pair in enumerate(stream)]
        cache = method.cache(value, session)
        emissions, _ = follow(steps, Uniform(EVERY_STEP), session, known.longest, method.read, cache=cache)
        for pair, emission in zip(stream, emissions, strict=True):
            own, hit = known.text(pair), emission.source == "cache"
            right, own_right = _serves(emission.text, pair.completion), _serves(own, pair.completion)
            columns.append(
                (
                    numbers[pair.completion],
                    hit,
                    emission.text != own,
                    own_right and not right,
                    right and not own_right,
                    exact_match(emission.text, pair.completion),
                    right,
                )
            )
    table = np.array(columns, dtype=np.int64)
    hits, wrong = int(table[:, 1].sum()), int(table[:, 2].sum())
    if ledger.cache.lookups:
        ledger.count_cache(audited=hits, wrong_hits=wrong)
    return _Answered(ledger, *(table[:, i] for i in range(table.shape[1])))


@cache
def _serves(text: str, gold: str) -> bool:
    return exact_match(text, gold) or regex_equivalence(text, gold)


def _calibrated(errors: Mapping[float, float], requested: float) -> float | None:
    """The largest value up to which all errors are at most the one requested; None where the first is above."""
    best = None
    for value in sorted(errors):
        if errors[value] > requested:
            break
        best = value
    return best


def _reuse_row(done: Sequence[_Answered], always: Sequence[_Answered], exact_calls: int, seed: int) -> dict[str, Any]:
    """The figures of both halves together; intervals are over expressions."""
    joined = {
        name: np.concatenate([getattr(part, name) for part in done])
        for name in ("expressions", "hit", "differs", "spoiled", "repaired", "exact", "equivalent")
    }
    base = {name: np.concatenate([getattr(part, name) for part in always]) for name in ("exact", "equivalent")}
    ledger, reference = done[0].ledger + done[1].ledger, always[0].ledger + always[1].ledger
    requests = len(joined["hit"])
    _, cluster = np.unique(joined["expressions"], return_inverse=True)
    order, ends = np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))

    def fraction(values: np.ndarray) -> dict[str, float]:
        return asdict(bootstrap_mean(np.split(values[order], ends[:-1]), seed=seed))

    return {
        "hits": fraction(joined["hit"]),
        "beyond_exact": (exact_calls - ledger.decoder.calls) / requests,
        "differing_hits": fraction(joined["differs"]),
        "error": fraction(joined["spoiled"]),
        "repaired": fraction(joined["repaired"]),
        "exact_match": fraction(joined["exact"]),
        "exact_match_difference": fraction(joined["exact"] - base["exact"]),
        "equivalent": fraction(joined["equivalent"]),
        "equivalent_difference": fraction(joined["equivalent"] - base["equivalent"]),
        "flops_ratio": ledger.total_flops / reference.total_flops,
        "passes_ratio": float(all_passes([ledger])[0] / all_passes([reference])[0]),
        "per_request": per_request(ledger, requests),
        "ledger": ledger.to_dict() | {"latencies": [], "latency_seconds": None},
    }
