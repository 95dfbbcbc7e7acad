"""Request streams: sessions against the plain model, remembered against live, and the evaluations end to end."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import LLAMA, language_config

from jepa import checkpoint
from jepa.cli import main
from jepa.data.pairs import Example, write_chat
from jepa.data.request_streams import TypingStyle, type_requests
from jepa.errors import InputError
from jepa.evaluation.recurring_requests import _Answered, _calibrated, _operating_points, _Reuse
from jepa.evaluation.request_sessions import EVERY_STEP, Known, RememberingSession, Steps
from jepa.evaluation.requests import evaluate_requests
from jepa.evaluation.run import data_of
from jepa.evaluation.typed_requests import _in_force, _StateProbe, _TextEndpoint
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import AnswerCache, RequestDecoder, RequestSession, follow, read_latent, read_state
from jepa.operations import OperationLedger, count_flops
from jepa.report.requests import markdown, summary, typing_table, validate_results
from jepa.selective import Debounce, Decoded, SelectiveDecoder, SendOnDelta, Uniform

GEMMA = {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6, "pad_token_id": None}
STYLE = TypingStyle(50, 0.3, 0.2, 5.0)
LONGEST = 7


@pytest.fixture(
    params=[({}, 1, "append"), ({}, 0, "append"), ({}, 2, "prepend"), (GEMMA, 1, "append")],
    ids=["llama", "no_pred", "prepend", "gemma3"],
)
def model(request, chat_tokenizer) -> LLMJEPA:
    architecture, tokens, placement = request.param
    torch.manual_seed(0)
    config = language_config({**LLAMA, "initializer_range": 0.3, **architecture}, tokens, placement)
    return checkpoint.build_model(config, chat_tokenizer).eval()


@pytest.fixture(scope="module")
def known(tiny_llm_jepa, pairs) -> Known:
    known = Known(tiny_llm_jepa, LONGEST, batch_size=16)
    texts = [step.request for step in type_requests(pairs[:6], STYLE, (1,)).steps]
    known.encode(texts, "test", predict=True)
    known.answer(texts, "test")
    return known


def counts(ledger: OperationLedger) -> dict[str, tuple[int, int, int, int]]:
    return {
        part: (count.calls, count.forward_passes, count.tokens, count.flops)
        for part, count in ((part, getattr(ledger, part)) for part in ("encoder", "predictor", "decoder"))
    }


def test_a_session_says_what_the_model_says(model, pairs):
    texts = [step.request.prompt for step in type_requests(pairs[:2], STYLE, (1,)).steps][::2]
    states = model.encode(texts).states[:, -1]
    latents, answers = model.predict(model.encode(texts)), model.answer(texts, LONGEST)
    session = RequestSession(model)
    for i, text in enumerate(texts):
        expected = torch.nn.functional.normalize(states[i], dim=-1).numpy()
        np.testing.assert_allclose(session.state(text), expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(session.predict(text), latents[i].numpy(), rtol=1e-3, atol=1e-5)
        [answer] = session.answer([text], LONGEST)
        assert (answer.text, answer.tokens) == (answers[i].text, answers[i].tokens)
        assert answer.flops <= answers[i].flops


def test_what_a_session_computes_is_what_it_counts(model, pairs):
    session = RequestSession(model)
    texts = [step.request.prompt for step in type_requests(pairs[:2], STYLE, (1,)).steps][:5]
    for text in texts:
        for call in (
            lambda: session.predict(text),  # noqa: B023
            lambda: session.agrees(text, "[0-9]"),  # noqa: B023
            lambda: session.answer([text], LONGEST),  # noqa: B023
        ):
            before = session.ledger.total_flops
            done = count_flops(call)
            answered = done.result[0].flops if isinstance(done.result, list) else 0
            assert done.total == session.ledger.total_flops - before + answered
    assert session.ledger.encoder.calls == session.ledger.predictor.calls == len(texts)


def test_flops_of_answers_and_streams_are_those_measured(model, pairs):
    texts = [pair.prompt for pair in pairs[:3]]
    for text in texts:
        ledger = OperationLedger()
        measured = count_flops(lambda: list(model.stream([[text]], ledger)))  # noqa: B023
        assert ledger.encoder.flops + ledger.predictor.flops == measured.total > 0
        answered = count_flops(lambda: model.answer([text], LONGEST))  # noqa: B023
        assert answered.result[0].flops == answered.total
    for lengths in ((5, 5, 1), (1, 9, 1), (4, 12, 4), (3, 3, 0)):
        assert model.pass_flops(*lengths) == model._measured_flops(*lengths)


def test_a_word_more_costs_a_session_only_that_word(tiny_llm_jepa):
    session = RequestSession(tiny_llm_jepa)
    session.state("lines with a number or a vowel")
    whole = session.ledger.encoder.flops
    session.state("lines with a number or a vowel or")
    assert session.ledger.encoder.flops - whole < 0.5 * whole
    before = session.ledger.encoder.flops
    session.state("lines with a number or a vowel or")  # the state of the last token is computed again
    assert session.ledger.encoder.flops - before == tiny_llm_jepa.pass_flops(1, len(session._held))


def test_verification_agrees_with_exactly_the_models_own_answer_and_is_not_lost(tiny_llm_jepa, pairs):
    request = pairs[0].prompt
    [own] = tiny_llm_jepa.answer([request], LONGEST)
    draft = tiny_llm_jepa.generate([request], LONGEST)[0]
    session = RequestSession(tiny_llm_jepa)
    assert session.worst_gap(request, draft) == 0
    wrong = [*draft[:4], (draft[4] + 1) % 300, *draft[5:]]
    assert session.worst_gap(request, wrong) > 0
    [answer] = session.answer([request], LONGEST)  # goes on after the four tokens that agree and the right fifth
    assert (answer.text, answer.tokens, answer.forward_passes) == (own.text, own.tokens - 5, own.tokens - 5)
    assert not session.agrees(request, "no such answer")
    assert session.agrees(request, "no such answer", tolerance=1e9)
    [other] = session.answer([pairs[1].prompt], LONGEST)  # what was verified for one request is no use to another
    assert other.text == tiny_llm_jepa.answer([pairs[1].prompt], LONGEST)[0].text


@pytest.mark.parametrize("read", [None, read_state, read_latent], ids=["none", "state", "latent"])
@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("policy", [Uniform(EVERY_STEP), SendOnDelta(0.05), Debounce(1.0)], ids=lambda p: p.name)
def test_a_remembered_run_is_the_live_one(known, pairs, read, verified, policy):
    if read is None and policy.reads_latents:
        pytest.skip("the policy reads latents")
    steps = [(step.request, step.time) for step in type_requests(pairs[:6], STYLE, (1,)).steps if step.time < 25]
    outcomes = []
    for make in (RequestSession, RememberingSession):
        ledger = OperationLedger()
        session = make(known.model if make is RequestSession else known, ledger)
        cache = AnswerCache(2.0, 1, session=session) if verified else None
        emissions = follow(steps, policy, session, LONGEST, read, cache=cache)
        outcomes.append((emissions, counts(ledger), ledger.cache.hits))
    assert outcomes[0] == outcomes[1]
    assert outcomes[0][1]["encoder"][0] == (0 if read is None else len(steps))
    assert outcomes[0][1]["decoder"][0] > 0


def test_verification_loses_no_answer(known, pairs):
    stream = type_requests(pairs[:6], STYLE, (1,))
    steps = [(step.request, step.time) for step in stream.steps]
    steps = [(request, 2.0 * i + shift) for i, (request, _) in enumerate(steps) for shift in (0.0, 1.0)]  # each twice
    texts = {}
    ledgers = {}
    for verified in (False, True):
        ledgers[verified] = OperationLedger()
        session = RememberingSession(known, ledgers[verified])
        cache = AnswerCache(2.0, 1, session=session) if verified else None
        emissions, _ = follow(steps, Uniform(EVERY_STEP), session, LONGEST, None, cache=cache)
        texts[verified] = [emission.text for emission in emissions]
    assert texts[True] == texts[False] == [known.text(request) for request, _ in steps]
    changes = 1 + sum(one != other for one, other in zip(texts[True], texts[True][1:], strict=False))
    # A text is a draft by its tokens: an answer cut at LONGEST tokens has none and is made anew.
    assert changes <= ledgers[True].decoder.calls <= ledgers[False].decoder.calls == len(steps)
    assert ledgers[True].decoder.tokens < ledgers[False].decoder.tokens


def test_steps_are_those_chosen():
    policy, latent = Steps([0, 2]), np.ones(1, dtype=np.float32)
    for _ in range(2):
        assert [len(policy.step(latent, float(i))) for i in range(4)] == [1, 0, 1, 0]
        assert policy.finish() == []


class _Table:
    """Answers by request; agrees with the text `yes` only."""

    def __init__(self, ledger: OperationLedger) -> None:
        self.ledger = ledger

    def answer(self, requests, max_new_tokens):
        return [Decoded(f"answer to {request.prompt}", 1, 1) for request in requests]

    def agrees(self, request, text, tolerance):
        return text == "answer to a" and request.prompt.startswith("a")


def run_cache(cache: AnswerCache, requests: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Requests with the angle of their latents -> text and source of each."""
    session = _Table(OperationLedger())
    read = {text: np.array([np.cos(angle), np.sin(angle)], dtype=np.float32) for text, angle in requests}
    steps = [(Example(text, "", None), float(i)) for i, (text, _) in enumerate(requests)]
    emissions, _ = follow(steps, Uniform(EVERY_STEP), session, 5, lambda _, pair: read[pair.prompt], cache=cache)
    return [(emission.text.removeprefix("answer to "), emission.source) for emission in emissions]


def test_a_cache_of_answers_asks_words_then_latents_then_the_model():
    requests = [("a", 0.0), ("b", 0.01), ("a", 0.0), ("ab", 0.02), ("c", 1.5)]
    known_by_words = AnswerCache(-1.0, 9, name=lambda pair: pair.prompt)
    assert run_cache(known_by_words, requests) == [
        ("a", "decoder"), ("b", "decoder"), ("a", "cache"), ("ab", "decoder"), ("c", "decoder"),
    ]  # fmt: skip
    near = AnswerCache(0.01, 9)
    assert run_cache(near, requests) == [
        ("a", "decoder"), ("a", "cache"), ("a", "cache"), ("a", "cache"), ("c", "decoder"),
    ]  # fmt: skip
    asked = AnswerCache(0.01, 9, session=_Table(OperationLedger()))
    assert run_cache(asked, [("a", 0.0), ("b", 0.01), ("ab", 0.001), ("bb", 0.01)]) == [
        ("a", "decoder"), ("b", "decoder"), ("a", "cache"), ("bb", "decoder"),
    ]  # fmt: skip


def test_a_cache_of_answers_is_bounded():
    requests = [("a", 0.0), ("b", 1.0), ("c", 2.0), ("a", 0.0), ("c", 2.0)]
    cache = AnswerCache(-1.0, 2, name=lambda pair: pair.prompt)
    assert [source for _, source in run_cache(cache, requests)] == ["decoder"] * 4 + ["cache"]
    with pytest.raises(InputError, match="needs the request as the payload"):
        AnswerCache(0.1, 2).look_up(np.ones(2, dtype=np.float32))


def test_what_a_decoder_failed_to_answer_is_not_known() -> None:
    class Failing(_Table):
        fails = True

        def answer(self, requests, max_new_tokens):
            if self.fails:
                raise RuntimeError("out of memory")
            return super().answer(requests, max_new_tokens)

    session = Failing(OperationLedger())
    for cache in (AnswerCache(-1.0, 9, name=lambda pair: pair.prompt), AnswerCache(0.1, 9)):
        selective = SelectiveDecoder(Uniform(EVERY_STEP), RequestDecoder(session, 5), cache=cache)

        def ask(text: str, angle: float, time: float, selective=selective) -> str:
            request, latent = Example(text, "", None), np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)
            [emission] = selective.step(latent, time, payload=request)
            return f"{emission.text}, {emission.source}"

        session.fails = False
        assert ask("b", 1.5, 0.0) == "answer to b, decoder"
        session.fails = True
        with pytest.raises(RuntimeError, match="out of memory"):
            ask("a", 0.0, 1.0)
        session.fails = False
        assert not cache.knows(Example("a", "", None))
        assert ask("a", 0.0, 2.0) == "answer to a, decoder"
        assert [ask(text, angle, time) for text, angle, time in (("a", 0.0, 3.0), ("b", 1.5, 4.0))] == [
            "answer to a, cache", "answer to b, cache",
        ]  # fmt: skip


def test_the_text_in_force_is_the_newest_that_is_there():
    selective = SelectiveDecoder(Uniform(0.5), _Latents())
    emissions = selective.run(np.eye(4, dtype=np.float32), np.arange(4.0))
    times = np.array([-1.0, 0.0, 1.5, 2.0, 9.0])
    assert _in_force(emissions, [e.emitted_at for e in emissions], times) == [None, "0", "0", "2", "2"]


class _Latents:
    def decode(self, latents):
        return [Decoded(str(int(row.argmax())), 1, 1) for row in latents]


def test_endpoint_rules_learn_where_requests_end(known, pairs):
    sample = [Example("lines with a number", "", None)] * 5 + [Example("lines with a vowel", "", None)] * 5
    rule = _TextEndpoint(sample)
    assert rule.score(sample[0]) > 0 > rule.score(Example("lines with a", "", None))
    assert rule.score(Example("words with a vowel", "", None)) > rule.score(Example("words with", "", None))
    probe = _StateProbe(known, sample[4:6])
    assert probe.score(sample[0]) > 0 > probe.score(Example("lines with a", "", None))
    assert probe.flops == 2 * 32


def test_the_threshold_is_the_largest_before_the_error_is_passed():
    flags = np.arange(99) < 3
    assert _Answered(OperationLedger(), *[flags] * 7).error() == 0.04  # one more than seen, of one more
    errors = {0.3: 0.10, 0.1: 0.01, 0.2: 0.04, 0.4: 0.03}
    assert _calibrated(errors, 0.04) == 0.2  # what comes after a failure does not count
    assert _calibrated(errors, 0.039) == 0.1
    assert _calibrated(errors, 0.005) is None
    assert _calibrated(errors, 0.1) == 0.4


def test_one_configured_threshold_is_calibrated_as_several_are():
    methods = [_Reuse("always", "", (), lambda value, session: None), _Reuse("near", "", (0.1,), lambda *_: None)]

    class Runs:
        def __init__(self, error: float) -> None:
            self.methods, self._error = methods, error

        def __call__(self, method, value, half):
            return SimpleNamespace(error=lambda: self._error)

    always, near = _operating_points(Runs(0.5), [[], []], [0.2])
    assert always == (methods[0], None, [0.0, 0.0])
    assert near == (methods[1], 0.2, [None, None])
    assert _operating_points(Runs(0.1), [[], []], [0.2])[1] == (methods[1], 0.2, [0.1, 0.1])


# --- End to end, on a checkpoint with random weights.

TYPING = {
    "kind": "typing",
    "requests": 6,
    "per_stream": 2,
    "style": {
        "_target_": "jepa.data.request_streams.TypingStyle",
        "words_per_minute": 50.0,
        "jitter": 0.3,
        "corrections": 0.1,
        "pause": 5.0,
    },
    "control": None,
    "probe_requests": 8,
    "confidence": 0.5,
    "values": {"delta": [0.01, 0.5], "endpoint_quantiles": [0.2, 0.8], "every": [2], "debounce": [1.0]},
    "live_streams": 1,
    "batch_size": 32,
}
RECURRING = {
    "kind": "recurring",
    "orders": 2,
    "zipf_streams": 1,
    "zipf_length": 20,
    "zipf_exponent": 1.0,
    "capacity": 16,
    "reach": 0.5,
    "errors": [0.2],
    "distances": [0.001, 0.5],
    "tolerances": [0.5, 50.0],
    "batch_size": 32,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_llm_jepa, pairs) -> Path:
    """A checkpoint whose data are files of two phrasings of each answer."""
    root = tmp_path_factory.mktemp("requests")
    again = [replace(pair, prompt=f"please, {pair.prompt}") for pair in pairs]
    write_chat(root / "train.jsonl", [*pairs, *again])
    write_chat(root / "test.jsonl", pairs[:8])
    data = {
        "_target_": "jepa.data.pairs.chat_files",
        "train": "train.jsonl",
        "test": "test.jsonl",
        "validation_fraction": 0.4,
        "seed": 0,
        "folder": str(root),
    }
    answers = {"split": "test", "metrics": ["exact_match"], "choices": [], "databases": None}
    answers |= {"timeout_seconds": 10.0, "limit": 0, "batch_size": 8}
    config = {**language_config(), "data": data, "arm": "llm_jepa", "answers": answers}
    config["model"] = copy.deepcopy(tiny_llm_jepa.node())
    config["model"].pop("_target_")
    config["model"]["_target_"] = "jepa.models.llm_jepa.LLMJEPA"
    checkpoint.save(tiny_llm_jepa, config, root / "checkpoint")
    return root


@pytest.fixture(scope="module")
def typed(folder) -> dict[str, Path]:
    settings = {**TYPING, "control": str(folder / "checkpoint")}
    return evaluate_requests(folder / "checkpoint", folder / "typed", settings, 0, "cpu")


def test_typing_is_evaluated_and_reported(typed):
    results = json.loads(typed["requests.json"].read_text())
    rows = {row["name"]: row for row in results["rows"]}
    uniform, steps = rows["uniform"], results["streams"]["test"]["steps"]
    assert uniform["saving"]["calls"]["value"] == 1
    assert uniform["agreement"]["value"] == 1
    assert uniform["per_request"]["decoder_calls"] == steps / 6
    assert uniform["per_request"]["encoder_flops"] == 0 < rows["delta"]["per_request"]["encoder_flops"]
    assert rows["oracle"]["per_request"]["decoder_calls"] == 1
    assert rows["oracle"]["exact_match"] == uniform["exact_match"]
    assert rows["verify"]["agreement"]["value"] == 1
    assert rows["verify"]["reached"]
    assert rows["kth"]["per_request"]["decoder_calls"] == pytest.approx(steps / 12, abs=0.5)
    assert rows["debounce"]["wait_seconds"] == 1.0
    assert rows["delta_ntp"]["curve"][0]["calls_per_request"] <= steps / 6
    assert uniform["seconds_per_request"]["all"] > 0
    assert results["live_requests"] == 2
    assert typed["requests.png"].read_bytes().startswith(b"\x89PNG")
    text = typed["requests.md"].read_text()
    assert "uniform: every word" in text
    assert text == markdown(results)
    assert len(summary(results).splitlines()) == 2 + len(rows)


def test_recurring_requests_are_evaluated_and_reported(folder, tmp_path):
    paths = evaluate_requests(folder / "checkpoint", tmp_path, RECURRING, 0, "cpu")
    results = json.loads(paths["requests.json"].read_text())
    once = results["settings"]["each_once"]
    rows = {row["name"]: row for row in once["rows"]}
    assert once["requests"] == 2 * results["requests"] == 4 * results["expressions"]
    found = {name: row["found"] for name, row in rows.items() if row["found"] is not None}
    assert found["always"]["per_request"]["decoder_calls"] == 1
    assert found["always"]["hits"]["value"] == 0
    assert found["oracle"]["hits"]["value"] == 0.5  # the second phrasing of each
    assert found["exact"]["hits"]["value"] == 0
    assert found["lossless"]["exact_match_difference"]["value"] == found["lossless"]["error"]["value"] == 0
    assert found["lossless"]["differing_hits"]["value"] == 0
    zipf = {row["name"]: row["found"] for row in results["settings"]["zipf"]["rows"]}
    assert zipf["exact"]["hits"]["value"] > 0
    assert zipf["exact"]["exact_match_difference"]["value"] == 0
    assert zipf["exact"]["ledger"]["cache"]["wrong_hits"] == 0
    for row in (row for rows in (found, zipf) for row in rows.values() if row is not None):
        assert row["per_request"]["decoder_calls"] == pytest.approx(1 - row["hits"]["value"])
    assert paths["requests.md"].read_text().count("held-out expressions") == 2 + 1


def test_the_command_runs_it_and_says_what_is_wrong(folder, typed, tmp_path, capsys):
    found = json.loads(typed["requests.json"].read_text())
    asked: list[dict] = []

    def known(model, splits, settings, seed, device):
        asked.append({"settings": settings, "seed": seed, "device": device, "test": len(splits.test)})
        return {key: found[key] for key in ("streams", "live_requests", "rows")}

    command = ["evaluate", f"checkpoint={folder}/checkpoint"]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("jepa.evaluation.requests.evaluate_typing", known)
        assert main([*command, "requests=typing", f"output={tmp_path}/typed", "requests.requests=4", "seed=3",
                     "accelerator=cpu", "requests.values.debounce=[1.0]"]) == 0  # fmt: skip
    results = json.loads((tmp_path / "typed" / "requests.json").read_text())
    assert results["kind"] == "typing"
    [given] = asked
    assert (given["seed"], given["device"], given["test"]) == (3, "cpu", 8)
    assert (given["settings"]["requests"], given["settings"]["values"]["debounce"]) == (4, [1.0])
    assert "uniform: every word" in capsys.readouterr().out
    for overrides, message in (
        (["requests=typing", "requests.per_stream=0"], "per_stream must be >= 1, got 0"),
        (
            ["requests=typing", "requests.per_stream=99"],
            "requests.per_stream must leave at least 2 calibration streams",
        ),
        (["requests=typing", "requests.kind=other"], "requests.kind must be one of typing, recurring, got 'other'"),
        (["requests=typing", "requests.per_streem=3"], "per_stream"),
        (["requests=typing", "requests.style.corrections=2.0"], "corrections must be in 0..1, got 2.0"),
    ):
        assert main(["evaluate", f"checkpoint={folder}/checkpoint", *overrides, "accelerator=cpu"]) == 2
        assert message in capsys.readouterr().err


def test_changed_data_are_the_same_for_answers_and_for_requests(folder, pairs, monkeypatch, tmp_path):
    seen: list[int] = []
    monkeypatch.setattr("jepa.evaluation.language.evaluate_answers", lambda *given: seen.append(len(given[4].test)))
    monkeypatch.setattr("jepa.evaluation.requests.evaluate_requests", lambda *given: seen.append(len(given[5].test)))
    command = ["evaluate", f"checkpoint={folder}/checkpoint", f"output={tmp_path}"]
    for more in ([], ["+data.test=train.jsonl"]):
        for requests in ([], ["requests=recurring"]):
            assert main([*command, *more, *requests]) == 0
    assert seen == [8, 8, 2 * len(pairs), 2 * len(pairs)]
    node = {"_target_": "jepa.data.pairs.chat_files", "folder": "elsewhere"}
    assert data_of({"_target_": "a", "test": "b"}, node) == node
    assert data_of({"_target_": "a", "test": "b"}, None) == {"_target_": "a", "test": "b"}


def test_bad_documents_are_refused(typed):
    results = json.loads(typed["requests.json"].read_text())
    validate_results(results)
    for change, message in (
        ({"kind": "other"}, r"results\.kind must be one of typing, recurring, got 'other'"),
        ({"rows": []}, "rows must be a list of at least 1"),
        ({"schema": "jepa.results/1"}, "schema"),
    ):
        with pytest.raises(InputError, match=message):
            validate_results({**results, **change})


def test_a_method_that_waits_is_judged_by_what_is_shown_beside_its_verdict(typed):
    results = json.loads(typed["requests.json"].read_text())
    rows = {row["name"]: row for row in results["rows"]}
    for row in results["rows"]:
        row["exact_match"] = row["settled"] = {"value": 0.8, "low": 0.7, "high": 0.9}
    late = rows["debounce"]
    late |= {"exact_match": {"value": 0.1, "low": 0.0, "high": 0.2}, "chosen": True, "reached": True}
    late["difference"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    table = {cells[0]: cells for _, group in typing_table(results).groups for cells in group}
    assert table["debounce"][2:5] == (
        "0.100 (0.000 to 0.200); 1 s later 0.800 (0.700 to 0.900)",
        "+0.0 (+0.0 to +0.0)",
        "yes, 1 s later",
    )
    assert re.search(r"debounce +0\.100, later 0\.800 .*yes, 1 s later", summary(results))
    late["reached"] = False
    assert ";" not in table["verify the answer in force"][2]
    assert re.search(r"no, 1 s later", summary(results))
    rows["uniform"]["exact_match"] = {"value": 0.0, "low": 0.0, "high": 0.0}
    table = {cells[0]: cells for _, group in typing_table(results).groups for cells in group}
    assert {cells[4] for name, cells in table.items() if name != "uniform: every word"} == {"nothing to keep"}
    assert "there is no quality to keep" in markdown(results)
