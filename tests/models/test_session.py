"""Sessions of an LLM-JEPA on live requests: against the plain model, counted against measured, and their cache."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from conftest import LLAMA, language_config, new_model, refuses

from jepa.data.pairs import Example
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import AnswerCache, RequestDecoder, RequestSession, follow
from jepa.operations import OperationLedger, count_flops
from jepa.selective import Decoded, SelectiveDecoder, Uniform

GEMMA = {"model_type": "gemma3_text", "head_dim": 8, "sliding_window": 6, "pad_token_id": None}
LONGEST = 7
EVERY_STEP = Uniform(1000.0)


@pytest.fixture(
    params=[({}, 1, "append"), ({}, 0, "append"), ({}, 2, "prepend"), ({}, 2, "turn"), (GEMMA, 1, "append")],
    ids=["llama", "no_pred", "prepend", "turn", "gemma3"],
)
def model(request, chat_tokenizer) -> LLMJEPA:
    architecture, tokens, placement = request.param
    config = language_config({**LLAMA, "initializer_range": 0.3, **architecture}, tokens, placement)
    return new_model(config, chat_tokenizer)


@pytest.fixture(scope="module")
def typed(pairs) -> list[str]:
    """Two requests as they grow by two words, the second after the first."""
    words = [pair.prompt.split() for pair in pairs[:2]]
    return [" ".join(each[:end]) for each in words for end in range(2, len(each) + 1, 2)]


def test_a_session_says_what_the_model_says(model, typed):
    states = model.encode(typed).states[:, -1]
    latents, answers = model.predict(model.encode(typed)), model.answer(typed, LONGEST)
    session = RequestSession(model)
    for i, text in enumerate(typed):
        expected = torch.nn.functional.normalize(states[i], dim=-1).numpy()
        np.testing.assert_allclose(session.state(text), expected, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(session.predict(text), latents[i].numpy(), rtol=1e-3, atol=1e-5)
        [answer] = session.answer([text], LONGEST)
        assert (answer.text, answer.tokens) == (answers[i].text, answers[i].tokens)
        assert answer.flops <= answers[i].flops


def test_what_a_session_computes_is_what_it_counts(model, typed):
    session = RequestSession(model)
    for text in typed[:5]:
        for call in (
            lambda: session.predict(text),  # noqa: B023
            lambda: session.agrees(text, "[0-9]"),  # noqa: B023
            lambda: session.answer([text], LONGEST),  # noqa: B023
        ):
            before = session.ledger.total_flops
            done = count_flops(call)
            answered = done.result[0].flops if isinstance(done.result, list) else 0
            assert done.total == session.ledger.total_flops - before + answered
    assert session.ledger.encoder.calls == session.ledger.predictor.calls == len(typed[:5])


def test_flops_of_answers_and_streams_are_those_measured(model, typed):
    for text in typed[:3]:
        ledger = OperationLedger()
        measured = count_flops(lambda: list(model.stream([[text]], ledger)))  # noqa: B023
        assert ledger.encoder.flops + ledger.predictor.flops == measured.total > 0
        answered = count_flops(lambda: model.answer([text], LONGEST))  # noqa: B023
        assert answered.result[0].flops == answered.total


def test_a_word_more_costs_a_session_only_that_word(tiny_llm_jepa):
    session = RequestSession(tiny_llm_jepa)
    session.state("lines with a number or a vowel")
    whole = session.ledger.encoder.flops
    session.state("lines with a number or a vowel or")
    more = session.ledger.encoder.flops - whole
    assert more < 0.5 * whole
    session.state("lines with a number or a vowel or")  # only the state of the last token is computed again
    assert 0 < session.ledger.encoder.flops - whole - more <= more


def test_verification_agrees_with_exactly_the_models_own_answer_and_is_not_lost(tiny_llm_jepa, pairs):
    request = pairs[0].prompt
    [own] = tiny_llm_jepa.answer([request], LONGEST)
    [ids] = tiny_llm_jepa.tokenizer.encode([pairs[0]])
    [draft] = (row.tokens for row in tiny_llm_jepa.continuations([ids.given], LONGEST))
    session = RequestSession(tiny_llm_jepa)
    assert session.worst_gap(request, draft) == 0
    wrong = [*draft[:4], (draft[4] + 1) % 300, *draft[5:]]
    assert session.worst_gap(request, wrong) > 0
    [answer] = session.answer([request], LONGEST)  # goes on after the four tokens that agree and the right fifth
    assert (answer.text, answer.tokens, answer.forward_passes) == (own.text, own.tokens - 5, own.tokens - 5)
    assert not session.agrees(request, "no such answer")
    assert session.agrees(request, "no such answer", tolerance=1e9)
    [other] = session.answer([pairs[1].prompt], LONGEST)  # a verification is of no use to another request
    assert other.text == tiny_llm_jepa.answer([pairs[1].prompt], LONGEST)[0].text


# --- The cache of answers.


class Table:
    """Answers by request; agrees with the answer to `a` for requests that begin with it. It fails on demand."""

    fails = False

    def __init__(self) -> None:
        self.ledger = OperationLedger()

    def answer(self, requests: Sequence[Example], max_new_tokens: int) -> list[Decoded]:
        if self.fails:
            raise RuntimeError("out of memory")
        return [Decoded(f"answer to {request.prompt}", 1, 1) for request in requests]

    def agrees(self, request: Example, text: str, tolerance: float) -> bool:
        return text == "answer to a" and request.prompt.startswith("a")


def latent(angle: float) -> np.ndarray:
    return np.array([np.cos(angle), np.sin(angle)], dtype=np.float32)


def run_cache(cache: AnswerCache, requests: list[tuple[str, float]]) -> list[tuple[str, str]]:
    """Requests with the angles of their latents -> text and source of each."""
    angles = dict(requests)
    steps = [(Example(text, "", None), float(i)) for i, (text, _) in enumerate(requests)]
    read = lambda _, request: latent(angles[request.prompt])  # noqa: E731
    emissions, _ = follow(steps, EVERY_STEP, Table(), 5, read, cache=cache)
    return [(emission.text.removeprefix("answer to "), emission.source) for emission in emissions]


def test_a_cache_of_answers_asks_words_then_latents_then_the_model():
    requests = [("a", 0.0), ("b", 0.01), ("a", 0.0), ("ab", 0.02), ("c", 1.5)]
    by_words = AnswerCache(-1.0, 9, name=lambda request: request.prompt)
    assert run_cache(by_words, requests) == [
        ("a", "decoder"), ("b", "decoder"), ("a", "cache"), ("ab", "decoder"), ("c", "decoder"),
    ]  # fmt: skip
    assert run_cache(AnswerCache(0.01, 9), requests) == [
        ("a", "decoder"), ("a", "cache"), ("a", "cache"), ("a", "cache"), ("c", "decoder"),
    ]  # fmt: skip
    asked = AnswerCache(0.01, 9, session=Table())
    assert run_cache(asked, [("a", 0.0), ("b", 0.01), ("ab", 0.001), ("bb", 0.01)]) == [
        ("a", "decoder"), ("b", "decoder"), ("a", "cache"), ("bb", "decoder"),
    ]  # fmt: skip


def test_a_cache_of_answers_is_bounded():
    requests = [("a", 0.0), ("b", 1.0), ("c", 2.0), ("a", 0.0), ("c", 2.0)]
    cache = AnswerCache(-1.0, 2, name=lambda request: request.prompt)
    assert [source for _, source in run_cache(cache, requests)] == ["decoder"] * 4 + ["cache"]
    refuses("payload", lambda: AnswerCache(0.1, 2).look_up(np.ones(2, dtype=np.float32)))


@pytest.mark.parametrize("named", [True, False])
def test_what_a_decoder_failed_to_answer_is_not_known(named):
    session = Table()
    cache = AnswerCache(-1.0 if named else 0.1, 9, name=(lambda request: request.prompt) if named else None)
    selective = SelectiveDecoder(Uniform(1000.0), RequestDecoder(session, 5), cache=cache)

    def ask(text: str, angle: float, time: float) -> str:
        [emission] = selective.step(latent(angle), time, payload=Example(text, "", None))
        return f"{emission.text}, {emission.source}"

    assert ask("b", 1.5, 0.0) == "answer to b, decoder"
    session.fails = True
    with pytest.raises(RuntimeError, match="out of memory"):
        ask("a", 0.0, 1.0)
    session.fails = False
    assert not cache.knows(Example("a", "", None))
    assert ask("a", 0.0, 2.0) == "answer to a, decoder"
    assert [ask("a", 0.0, 3.0), ask("b", 1.5, 4.0)] == ["answer to a, cache", "answer to b, cache"]
