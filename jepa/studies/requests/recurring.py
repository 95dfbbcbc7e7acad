"""Requests that recur in several phrasings: when an earlier answer serves.

Every request is answered, by the decoder or with the answer of an earlier request. The expressions, held out of
training, are halved. Thresholds for one half are calibrated on the other, on streams of each phrasing once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError, needs_extra
from jepa.evaluation.generation import longest_answer
from jepa.metrics import Interval, bootstrap_mean
from jepa.metrics.answers import exact_match, regex_equivalence
from jepa.models.drafts import Drafter
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import AnswerCache, Read, RequestSession, follow, read_latent
from jepa.operations import OperationLedger
from jepa.selective import Uniform
from jepa.studies.configs import RecurringConfig
from jepa.studies.requests.results import PerRequest, RecurringResults, Reuse, ReuseRow, ReuseSetting
from jepa.studies.requests.sessions import EVERY_STEP, CachedModel, CachedSession, all_passes

Streams = Sequence[Sequence[Example]]

_NO_THRESHOLD = 0.0  # given to a method without one


def expressions(pairs: Iterable[Example]) -> list[tuple[Example, ...]]:
    """The distinct phrasings of each answer that has two or more, in the order of the answers."""
    groups: dict[str, dict[str, Example]] = {}
    for pair in pairs:
        groups.setdefault(pair.completion, {}).setdefault(pair.prompt, pair)
    return [tuple(phrasings.values()) for phrasings in groups.values() if len(phrasings) > 1]


def each_once(groups: Sequence[Sequence[Example]], seed: Sequence[int]) -> list[Example]:
    """Every phrasing of every expression once, in random order."""
    requests = [pair for phrasings in groups for pair in phrasings]
    return [requests[i] for i in np.random.default_rng(tuple(seed)).permutation(len(requests)).tolist()]


def zipf(groups: Sequence[Sequence[Example]], length: int, exponent: float, seed: Sequence[int]) -> list[Example]:
    """`length` requests whose expressions recur by Zipf's law: rank r has a weight of r^(−exponent).

    The ranks are drawn at random, and a phrasing for each request.
    """
    ranked = (rng := np.random.default_rng(tuple(seed))).permutation(len(groups))
    weights = np.arange(1, len(groups) + 1, dtype=np.float64) ** -exponent
    chosen = ranked[rng.choice(len(groups), size=length, p=weights / weights.sum())]
    return [groups[i][int(rng.integers(len(groups[i])))] for i in chosen.tolist()]


class ReuseMethod(NamedTuple):
    """A way to reuse answers: what two requests have to share, and whether the model is asked."""

    name: str
    label: str
    values: Sequence[float]  # of the threshold that is calibrated; none: it has none
    cache: Callable[[float, RequestSession], AnswerCache | None]  # of a stream, at a value
    read: Read | None = None  # gives the latents that the cache compares


class Answered(NamedTuple):
    """N requests of the streams of one half, and how each was answered.

    >>> Answered(OperationLedger(), *[np.array([False, True, False])] * 5).error()
    0.5
    """

    ledger: OperationLedger
    expressions: np.ndarray  # (N,) number of the expression
    hit: np.ndarray  # (N,) reused
    differs: np.ndarray  # reused, and not the model's own answer
    spoiled: np.ndarray  # reused and wrong where the model's own answer is equivalent to the right one
    exact: np.ndarray

    def error(self) -> float:
        """Fraction of requests spoiled, with one more counted than seen (conformal risk control)."""
        return float((self.spoiled.sum() + 1) / (len(self.spoiled) + 1))


Run = Callable[[ReuseMethod, float, int], Answered]  # a method at a value on the streams of a half
OperatingPoint = tuple[ReuseMethod, float | None, list[float | None]]  # requested error, values of the two halves


def evaluate_recurring(
    model: LLMJEPA, splits: ExampleSplits, settings: RecurringConfig, seed: int, drafter: Drafter | None = None
) -> RecurringResults:
    """All methods on each phrasing once, and on requests that recur by Zipf's law.

    Raises InputError if there are fewer than 4 validation expressions in two phrasings.
    """
    groups = expressions(splits.validation)
    if len(groups) < 4:
        raise InputError(f"data must hold at least 4 validation expressions in two phrasings, got {len(groups)}")
    order = np.random.default_rng((seed, 9_001)).permutation(len(groups))
    halves = [[groups[i] for i in order[half::2]] for half in range(2)]
    pairs = [pair for phrasings in groups for pair in phrasings]
    cached = CachedModel(model, longest_answer(model.tokenizer.encode(pairs)), settings.batch_size, drafter)
    cached.read(pairs, "recurring: answers", answer=True)
    numbers = {pair.completion: number for number, phrasings in enumerate(groups) for pair in phrasings}
    methods = _methods(settings, _word_vectors(splits.train, pairs))
    once = [[each_once(half, (seed, 9_002, h, i)) for i in range(settings.orders)] for h, half in enumerate(halves)]
    law = (settings.zipf_length, settings.zipf_exponent)
    recurring = [
        [zipf(half, *law, (seed, 9_003, h, i)) for i in range(settings.zipf_streams)] for h, half in enumerate(halves)
    ]

    def runs_on(streams: Sequence[Streams]) -> Run:
        return cache(lambda method, value, half: _run(method, value, streams[half], cached, numbers))

    on_once = runs_on(once)
    points = operating_points(on_once, methods, settings.errors)
    kinds = {"each_once": (on_once, once), "zipf": (runs_on(recurring), recurring)}
    found = {name: _setting(run, streams, points, seed) for name, (run, streams) in kinds.items()}
    return RecurringResults(expressions=len(groups), requests=len(pairs), settings=found)


def _methods(settings: RecurringConfig, words: Read) -> list[ReuseMethod]:
    """The rows of the table: always decoding first, exact text second."""
    reach, distances, tolerances = settings.reach, tuple(settings.distances), tuple(settings.tolerances)

    def answers(
        name: Callable[[Example], str] | None, threshold: float | None = None, verify: bool = False
    ) -> Callable[[float, RequestSession], AnswerCache]:
        """A method's value is the tolerance of the verification, or the threshold where there is no other."""
        return lambda value, session: AnswerCache(
            value if threshold is None else threshold,
            settings.capacity,
            name=name,
            session=session if verify else None,
            tolerance=value,
        )

    def text(pair: Example) -> str:
        return pair.prompt

    own, both = "exact text, latent, verified: the model's own answer", "exact text, latent, verified"
    neighbour = "exact text, TF-IDF neighbour, verified"
    return [
        ReuseMethod("always", "always decode", (), lambda value, session: None),
        ReuseMethod("exact", "exact text", (), answers(text, -1.0)),
        ReuseMethod("latent", "latent", distances, answers(None), read_latent),
        ReuseMethod("exact_latent", "exact text, latent", distances, answers(text), read_latent),
        ReuseMethod("lossless", own, (), answers(text, reach, True), read_latent),
        ReuseMethod("latent_verified", "latent, verified", tolerances, answers(None, reach, True), read_latent),
        ReuseMethod("exact_latent_verified", both, tolerances, answers(text, reach, True), read_latent),
        ReuseMethod("words_verified", neighbour, tolerances, answers(text, 1.0, True), words),
        ReuseMethod("oracle", "oracle: same expression", (), answers(lambda pair: pair.completion, -1.0)),
    ]


def _word_vectors(train: Sequence[Example], pairs: Sequence[Example]) -> Read:
    """TF-IDF of words and word pairs (E,), of unit norm, fitted on the training requests: no forward pass."""
    with needs_extra("studies"):
        from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"[^\s,]+", max_features=512)
    vectoriser.fit([pair.prompt for pair in train])
    rows = vectoriser.transform([pair.prompt for pair in pairs]).toarray().astype(np.float32)
    rows[~rows.any(axis=1), 0] = 1.0
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    by_text = {pair.prompt: row for pair, row in zip(pairs, rows, strict=True)}
    return lambda session, pair: by_text[pair.prompt]


def operating_points(run: Run, methods: Sequence[ReuseMethod], errors: Sequence[float]) -> list[OperatingPoint]:
    """Each method at each requested error (None: it has no threshold), with its values for the two halves.

    The value for a half is calibrated on the other half, None where no value holds the error there.
    """
    points: list[OperatingPoint] = []
    for method in tqdm(methods, desc="recurring: calibration", unit="method", leave=False):
        if not method.values:
            points.append((method, None, [_NO_THRESHOLD] * 2))
            continue
        measured = [{value: run(method, value, half).error() for value in method.values} for half in range(2)]
        for requested in errors:
            points.append((method, requested, [calibrated(measured[1 - half], requested) for half in range(2)]))
    return points


def calibrated(errors: Mapping[float, float], requested: float) -> float | None:
    """The largest value up to which all errors are at most the requested one; None where the first is above.

    >>> calibrated({0.1: 0.01, 0.2: 0.05, 0.3: 0.0}, requested=0.02)
    0.1
    """
    held = list(takewhile(lambda value: errors[value] <= requested, sorted(errors)))
    return held[-1] if held else None


def _setting(run: Run, halves: Sequence[Streams], points: Sequence[OperatingPoint], seed: int) -> ReuseSetting:
    """All methods at their operating points on the streams of both halves."""
    always, exact = ([run(method, _NO_THRESHOLD, half) for half in range(2)] for method, *_ in points[:2])
    exact_calls = sum(done.ledger.decoder.calls for done in exact)
    rows = []
    for method, requested, values in tqdm(points, desc="recurring: methods", unit="row", leave=False):
        given, found = [value for value in values if value is not None], None
        if len(given) == len(halves):
            done = [run(method, value, half) for half, value in enumerate(given)]
            found = _reuse(done, always, exact_calls, [] if requested is None else given, seed)
        rows.append(ReuseRow(name=method.name, label=method.label, requested_error=requested, found=found))
    requests = sum(len(stream) for half in halves for stream in half)
    return ReuseSetting(streams=sum(map(len, halves)), requests=requests, rows=tuple(rows))


def _run(
    method: ReuseMethod, value: float, streams: Streams, cached: CachedModel, numbers: Mapping[str, int]
) -> Answered:
    ledger = OperationLedger()
    columns: list[tuple[int, ...]] = []
    for stream in streams:
        session = CachedSession(cached, ledger, graded=value > 0)
        steps = [(pair, float(i)) for i, pair in enumerate(stream)]
        reused = method.cache(value, session)
        emissions, _ = follow(steps, Uniform(EVERY_STEP), session, cached.longest, method.read, cache=reused)
        for pair, emission in zip(stream, emissions, strict=True):
            own, gold = cached.text(pair), pair.completion
            spoiled = _serves(own, gold) and not _serves(emission.text, gold)
            hit, differs = emission.source == "cache", emission.text != own
            columns.append((numbers[gold], hit, differs, spoiled, exact_match(emission.text, gold)))
    table = np.array(columns, dtype=np.int64)
    return Answered(ledger, *(table[:, i] for i in range(table.shape[1])))


@cache
def _serves(text: str, gold: str) -> bool:
    return exact_match(text, gold) or regex_equivalence(text, gold)


def _reuse(
    done: Sequence[Answered], always: Sequence[Answered], exact_calls: int, values: Sequence[float], seed: int
) -> Reuse:
    """The figures of both halves together; intervals are over expressions."""
    ledger, reference = done[0].ledger + done[1].ledger, always[0].ledger + always[1].ledger
    joined = Answered(ledger, *(np.concatenate(column) for column in zip(*(part[1:] for part in done), strict=True)))
    requests = len(joined.hit)
    _, cluster = np.unique(joined.expressions, return_inverse=True)
    order, ends = np.argsort(cluster, kind="stable"), np.cumsum(np.bincount(cluster))

    def fraction(values: np.ndarray) -> Interval:
        return bootstrap_mean(np.split(values[order], ends[:-1]), seed=seed)

    return Reuse(
        values=tuple(values),
        hits=fraction(joined.hit),
        differing_hits=fraction(joined.differs),
        error=fraction(joined.spoiled),
        exact_match=fraction(joined.exact),
        exact_match_difference=fraction(joined.exact - np.concatenate([part.exact for part in always])),
        beyond_exact=(exact_calls - ledger.decoder.calls) / requests,
        flops_ratio=ledger.total_flops / reference.total_flops,
        passes_ratio=all_passes(ledger) / all_passes(reference),
        per_request=PerRequest.of(ledger, requests),
    )
