"""Request studies: streams, cached sessions against live ones, the rules, and both studies on random weights."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import language_config, refuses, write_chat
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa import checkpoint
from jepa.cli import main
from jepa.data.pairs import Example
from jepa.metrics import Interval
from jepa.models.session import AnswerCache, RequestSession, follow, read_latent, read_state
from jepa.operations import OperationLedger
from jepa.predictors.transition import LatentTransition
from jepa.report.render import markdown, terminal
from jepa.results import read_document
from jepa.selective import Debounce, Decoded, SelectiveDecoder, SendOnDelta, Uniform
from jepa.studies.configs import TypingStyle
from jepa.studies.requests import RequestResults, recurring
from jepa.studies.requests.report import report
from jepa.studies.requests.sessions import EVERY_STEP, CachedModel, CachedSession, ScheduledSteps
from jepa.studies.requests.typed import StateProbe, TextEndpoint, in_force, type_requests

EVEN = TypingStyle(corrections=0.0)
WORDS = st.lists(st.sampled_from(["lines", "with", "a", "vowel", "or", "the", "number", "dog"]), min_size=1, max_size=6)


def pairs_of(requests: list[list[str]]) -> list[Example]:
    return [Example(" ".join(words), f"answer {i}", None) for i, words in enumerate(requests)]


@settings(max_examples=40)
@given(st.lists(WORDS, min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 2**16))
def test_typing_ends_in_the_requests_one_word_at_a_time(requests, corrections, seed):
    style = TypingStyle(corrections=corrections)
    stream = type_requests(pairs_of(requests), style, (seed,))
    assert [step.request.prompt for step in stream.steps if step.last] == [" ".join(words) for words in requests]
    times = np.array([step.time for step in stream.steps])
    assert (np.diff(times) > 0).all()
    assert times[0] > 0
    assert stream.seconds == times[-1]
    before: list[str] = []
    removed = typed = 0
    for step in stream.steps:
        words = step.request.prompt.split()
        assert step.request.completion.startswith("answer")
        if len(words) < len(before):
            assert words == before[:-1]  # the wrong word goes
            removed += 1
        elif before and words[: len(before)] == before:
            assert len(words) == len(before) + 1
            typed += 1
        else:
            assert len(words) == 1  # a new request, or the right first word in place of a wrong one
        before = [] if step.last else words
    assert removed <= stream.corrections
    if corrections == 0:
        assert stream.corrections == 0
        assert len(stream.steps) == sum(map(len, requests))


def test_the_fraction_of_corrections_and_the_speed_are_those_asked_for():
    pairs = pairs_of([["lines", "with", "number", "vowel", "or"]] * 400)
    stream = type_requests(pairs, TypingStyle(corrections=0.1), (3,))
    assert stream.corrections == pytest.approx(0.1 * 2000, abs=45)
    plain = type_requests(pairs, EVEN, (3,))
    characters = sum(len(pair.prompt) + 1 for pair in pairs)
    assert plain.seconds == pytest.approx(characters * 60 / 250 + 399 * 5.0, rel=0.05)
    still = type_requests(pairs[:2], TypingStyle(words_per_minute=60, jitter=0, corrections=0, pause=2), (0,))
    assert still.steps[0].time == pytest.approx(6 / 5)  # "lines" and a space, at 5 characters a second
    assert still.steps[5].time - still.steps[4].time == pytest.approx(2.0 + 6 / 5)


def test_a_wrong_word_is_typed_and_removed():
    stream = type_requests(pairs_of([["lines", "dog"]]), TypingStyle(corrections=1.0), (1,))
    assert [step.request.prompt for step in stream.steps] == ["dog", "lines", "lines lines", "lines", "lines dog"]
    assert stream.corrections == 2


def test_streams_are_functions_of_the_seed():
    pairs = pairs_of([["lines", "with", "dog"]] * 3)
    assert type_requests(pairs, EVEN, (1, 2)) == type_requests(pairs, EVEN, (1, 2))
    assert type_requests(pairs, EVEN, (1, 2)) != type_requests(pairs, EVEN, (1, 3))


def test_expressions_are_answers_with_phrasings_that_differ():
    pairs = [Example("a", "x", None), Example("b", "y", None), Example("c", "x", None), Example("b", "y", None)]
    assert recurring.expressions(pairs) == [(pairs[0], pairs[2])]
    assert recurring.expressions(pairs[:2]) == []


def test_each_phrasing_comes_once_in_random_order():
    groups = [(Example(f"a{i}", str(i), None), Example(f"b{i}", str(i), None)) for i in range(50)]
    requests = recurring.each_once(groups, (0,))
    assert Counter(requests) == Counter(pair for group in groups for pair in group)
    assert requests != recurring.each_once(groups, (1,))
    assert requests == recurring.each_once(groups, (0,))


def test_expressions_recur_by_zipfs_law():
    groups = [(Example(f"a{i}", str(i), None), Example(f"b{i}", str(i), None)) for i in range(100)]
    requests = recurring.zipf(groups, 20_000, 1.0, (5,))
    fractions = np.array(sorted(Counter(pair.completion for pair in requests).values(), reverse=True)) / 20_000
    expected = (1 / np.arange(1, 101)) / (1 / np.arange(1, 101)).sum()
    np.testing.assert_allclose(fractions[:10], expected[:10], rtol=0.12)
    first = sum(pair.prompt.startswith("a") for pair in requests)
    assert 9_500 < first < 10_500
    even = Counter(pair.completion for pair in recurring.zipf(groups, 20_000, 0.0, (5,)))
    assert min(even.values()) > 130


def test_a_request_without_words_is_refused():
    refuses("here:3", lambda: type_requests([Example("  ", "x", None, source="here:3")], EVEN, (0,)))


# --- Sessions and rules.

STYLE = TypingStyle(corrections=0.2)
LONGEST = 7


@pytest.fixture(scope="module")
def cached(tiny_llm_jepa, pairs) -> CachedModel:
    cached = CachedModel(tiny_llm_jepa, LONGEST, batch_size=16)
    texts = [step.request for step in type_requests(pairs[:6], STYLE, (1,)).steps]
    cached.read(texts, "test", answer=True)
    return cached


def counts(ledger: OperationLedger) -> dict[str, tuple[int, int, int, int]]:
    return {
        part: (count.calls, count.forward_passes, count.tokens, count.flops)
        for part, count in ((part, getattr(ledger, part)) for part in ("encoder", "predictor", "decoder"))
    }


@pytest.mark.parametrize("kind", ["lookup", "both"])
def test_a_session_drafts_its_answers_live_as_cached(cached, pairs, kind):
    """With drafts: the same texts in fewer passes; refused drafts are taken out of the session's cache again."""
    cached.model.transition = LatentTransition(cached.model.language.width)
    drafter = cached.model.drafter(kind, most=3)
    drafting = CachedModel(cached.model, LONGEST, 16, drafter)
    stream = [step.request for step in type_requests(pairs[:6], STYLE, (1,)).steps]
    drafting.read(stream, "test", answer=True)
    steps, outcomes = [(request, float(i)) for i, request in enumerate(stream)], []
    for make in (
        lambda ledger: RequestSession(cached.model, ledger, drafter),
        lambda ledger: CachedSession(drafting, ledger),
        lambda ledger: CachedSession(cached, ledger),
    ):
        ledger = OperationLedger()
        session = make(ledger)
        cache = AnswerCache(2.0, 1, session=session)
        emissions, _ = follow(steps, Uniform(EVERY_STEP), session, LONGEST, read_latent, cache=cache)
        outcomes.append(([emission.text for emission in emissions], counts(ledger)))
    live, known, alone = outcomes
    cached.model.transition = None
    assert live == known
    assert live[0] == alone[0]
    assert live[1]["decoder"][2] == alone[1]["decoder"][2]  # tokens
    assert live[1]["decoder"][1] < alone[1]["decoder"][1]  # passes


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize(
    ("policy", "read"),
    [
        *((policy, read) for policy in (Uniform(EVERY_STEP), Debounce(1.0)) for read in (None, read_latent)),
        *((SendOnDelta(0.05), read) for read in (read_state, read_latent)),
    ],
    ids=lambda each: getattr(each, "name", getattr(each, "__name__", "none")),
)
def test_a_cached_run_is_the_live_one(cached, pairs, read, verified, policy):
    steps = [(step.request, step.time) for step in type_requests(pairs[:6], STYLE, (1,)).steps if step.time < 25]
    outcomes = []
    for live in (True, False):
        ledger = OperationLedger()
        session = RequestSession(cached.model, ledger) if live else CachedSession(cached, ledger)
        cache = AnswerCache(2.0, 1, session=session) if verified else None
        emissions = follow(steps, policy, session, LONGEST, read, cache=cache)
        outcomes.append((emissions, counts(ledger), ledger.cache.hits))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1]["encoder"][0] == (0 if read is None else len(steps))
    assert outcomes[0][1]["decoder"][0] > 0


def test_verification_loses_no_answer(cached, pairs):
    stream = type_requests(pairs[:6], STYLE, (1,))
    each_twice = [step.request for step in stream.steps for _ in range(2)]
    steps = [(request, float(i)) for i, request in enumerate(each_twice)]
    texts, ledgers = {}, {}
    for verified in (False, True):
        ledgers[verified] = OperationLedger()
        session = CachedSession(cached, ledgers[verified])
        cache = AnswerCache(2.0, 1, session=session) if verified else None
        emissions, _ = follow(steps, Uniform(EVERY_STEP), session, LONGEST, None, cache=cache)
        texts[verified] = [emission.text for emission in emissions]
    assert texts[True] == texts[False] == [cached.text(request) for request in each_twice]
    changes = 1 + sum(one != other for one, other in zip(texts[True], texts[True][1:], strict=False))
    # A text is a draft by its tokens: an answer cut at LONGEST tokens has none and is made anew.
    assert changes <= ledgers[True].decoder.calls <= ledgers[False].decoder.calls == len(steps)
    assert ledgers[True].decoder.tokens < ledgers[False].decoder.tokens


def test_scheduled_steps_begin_anew_with_each_stream():
    policy, latent = ScheduledSteps([0, 2]), np.ones(1, dtype=np.float32)
    for _ in range(2):
        assert [len(policy.step(latent, float(i))) for i in range(4)] == [1, 0, 1, 0]
        assert policy.finish() == []


class Positions:
    """Decodes a one-hot latent into the number of its step."""

    def decode(self, latents, payloads=None):
        return [Decoded(str(int(row.argmax())), 1, 1) for row in latents]


def test_the_text_in_force_is_the_newest_that_is_there():
    emissions = SelectiveDecoder(Uniform(0.5), Positions()).run(np.eye(4, dtype=np.float32), np.arange(4.0))
    times = np.array([-1.0, 0.0, 1.5, 2.0, 9.0])
    assert in_force(emissions, [e.emitted_at for e in emissions], times) == [None, "0", "0", "2", "2"]


def test_endpoint_rules_learn_where_requests_end(cached):
    sample = [Example("lines with a number", "", None)] * 5 + [Example("lines with a vowel", "", None)] * 5
    rule = TextEndpoint(sample)
    assert rule.score(sample[0]) > 0 > rule.score(Example("lines with a", "", None))
    assert rule.score(Example("words with a vowel", "", None)) > rule.score(Example("words with", "", None))
    probe = StateProbe(cached, sample[4:6])
    assert probe.score(sample[0]) > 0 > probe.score(Example("lines with a", "", None))
    assert probe.flops == 2 * 32


def answered(spoiled: int, of: int = 99) -> recurring.Answered:
    return recurring.Answered(OperationLedger(), *[np.arange(of) < spoiled] * 5)


def test_the_threshold_is_the_largest_before_the_error_is_passed():
    assert answered(3).error() == 0.04  # one more than seen, of one more
    errors = {0.3: 0.10, 0.1: 0.01, 0.2: 0.04, 0.4: 0.03}
    assert recurring.calibrated(errors, 0.04) == 0.2  # a value after a failure does not count
    assert recurring.calibrated(errors, 0.005) is None
    assert recurring.calibrated(errors, 0.1) == 0.4


def test_a_half_is_calibrated_on_the_other():
    always = recurring.ReuseMethod("always", "", (), lambda value, session: None)
    near = recurring.ReuseMethod("near", "", (0.1, 0.2), lambda value, session: None)

    def run(method: recurring.ReuseMethod, value: float, half: int) -> recurring.Answered:
        return answered(9 if half or value > 0.1 else 0)  # the second half always fails, the first one above 0.1

    points = recurring.operating_points(run, [always, near], [0.05])
    assert points == [(always, None, [0.0, 0.0]), (near, 0.05, [None, 0.1])]


# --- End to end, on a checkpoint with random weights.

TYPING = [
    "requests=typing", "requests.requests=6", "requests.per_stream=2", "requests.probe_requests=8",
    "requests.values.delta=[0.001,0.1]", "requests.values.endpoint_quantiles=[0.3,0.7]", "requests.values.every=[2]",
    "requests.values.debounce=[1.0]", "requests.batch_size=32", "accelerator=cpu",
]  # fmt: skip
RECURRING = [
    "requests=recurring", "requests.orders=2", "requests.zipf_streams=1", "requests.zipf_length=20",
    "requests.capacity=16", "requests.reach=0.5", "requests.errors=[0.2]", "requests.distances=[0.001,0.5]",
    "requests.tolerances=[0.5,50.0]", "requests.batch_size=32", "accelerator=cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm_jepa, pairs) -> Path:
    """A checkpoint whose data are files of two phrasings of each answer."""
    root = tmp_path_factory.mktemp("requests")
    again = [replace(pair, prompt=f"please, {pair.prompt}") for pair in pairs]
    write_chat(root / "train.jsonl", [*pairs, *again])
    write_chat(root / "test.jsonl", pairs[:8])
    files = {"train": "train.jsonl", "test": "test.jsonl", "folder": str(root)}
    data = {"_target_": "jepa.data.pairs.chat_files", **files, "validation_fraction": 0.4, "seed": 0}
    config = {**language_config(), "data": data, "arm": "llm_jepa", "model": tiny_llm_jepa.node()}
    checkpoint.save(tiny_llm_jepa, config, root / "checkpoint")
    return root


@pytest.fixture(scope="module")
def typed(folder) -> RequestResults:
    own = f"checkpoint={folder}/checkpoint"
    assert main(["evaluate", own, *TYPING, f"requests.control={folder}/checkpoint"]) == 0
    return read_document(folder / "requests_typing", RequestResults)


def test_typing_is_evaluated(typed, folder):
    results = typed.results
    rows = {row.name: row for row in results.rows}
    uniform, steps = rows["uniform"], results.test.steps
    assert uniform.saving.calls.value == 1
    assert uniform.per_request.decoder_calls == steps / 6
    assert uniform.per_request.encoder_flops == 0 < rows["delta"].per_request.encoder_flops
    assert rows["oracle"].per_request.decoder_calls == 1
    assert rows["oracle"].exact_match == uniform.exact_match
    assert rows["verify"].exact_match == uniform.exact_match
    assert rows["verify"].reached
    assert rows["kth"].per_request.decoder_calls == pytest.approx(steps / 12, abs=0.5)
    assert rows["debounce"].wait_seconds == 1.0
    assert rows["delta_ntp"].curve[0].calls_per_request <= steps / 6
    written = {path.name for path in (folder / "requests_typing").iterdir()}
    assert written == {"results.json", "report.md", "report.html", "report.png"}
    page = report(typed)
    assert (folder / "requests_typing" / "report.md").read_text() == markdown(page)
    assert all(row.label in terminal(page) for row in rows.values())


def test_recurring_requests_are_evaluated(folder, tmp_path):
    assert main(["evaluate", f"checkpoint={folder}/checkpoint", *RECURRING, f"output={tmp_path}"]) == 0
    results = read_document(tmp_path, RequestResults).results
    once = results.settings["each_once"]
    assert once.requests == 2 * results.requests == 4 * results.expressions
    found = {row.name: row.found for row in once.rows if row.found is not None}
    assert found["always"].per_request.decoder_calls == 1
    assert found["always"].hits.value == 0
    assert found["oracle"].hits.value == 0.5  # the second phrasing of each
    assert found["exact"].hits.value == 0
    assert found["lossless"].exact_match_difference.value == found["lossless"].error.value == 0
    assert found["lossless"].differing_hits.value == 0
    natural = {row.name: row.found for row in results.settings["zipf"].rows}
    assert natural["exact"].hits.value > 0
    assert natural["exact"].exact_match_difference.value == natural["exact"].differing_hits.value == 0
    for row in (row for rows in (found, natural) for row in rows.values() if row is not None):
        assert row.per_request.decoder_calls == pytest.approx(1 - row.hits.value)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["requests=typing", "requests.per_stream=99"], "at least 2 calibration streams"),
        (["requests=typing", "requests.kind=other"], "requests.kind must be one of typing, recurring, got 'other'"),
        (["requests=typing", "requests.per_streem=3"], "per_stream"),
        (["requests=typing", "requests.style.corrections=2.0"], "corrections"),
    ],
)
def test_the_command_says_what_is_wrong(folder, overrides, named, fails):
    fails(["evaluate", f"checkpoint={folder}/checkpoint", *overrides, "accelerator=cpu"], named)


def test_a_method_that_waits_is_judged_by_the_figure_beside_its_verdict(typed):
    good, late = Interval(0.8, 0.7, 0.9), Interval(0.1, 0.0, 0.2)

    def shown(**debounce: object) -> dict[str, tuple[str, ...]]:
        rows = []
        for row in typed.results.rows:
            change = {"exact_match": good, "settled": good, "difference": Interval(0.0, 0.0, 0.0), "chosen": True}
            change |= {"reached": True} | (debounce if row.name == "debounce" else {})
            rows.append(row.model_copy(update=change))
        document = typed.model_copy(update={"results": typed.results.model_copy(update={"rows": tuple(rows)})})
        table = next(block for block in report(document).blocks if getattr(block, "title", "") == "Quality and savings")
        return {cells[0]: tuple(cells) for _, group in table.groups for cells in group}

    table = shown(exact_match=late)
    later = "0.100 (0.000 to 0.200); 1 s later 0.800 (0.700 to 0.900)"
    assert table["debounce"][2:5] == (later, "+0.0 (+0.0 to +0.0)", "yes, 1 s later")
    assert ";" not in table["verify the answer in force"][2]
    assert shown(reached=False)["debounce"][4] == "no, 1 s later"
