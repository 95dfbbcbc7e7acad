"""The token VLM: likelihoods against teacher forcing, cached against uncached answers, counts, streams."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import new_model, refuses, vlm_config

from jepa import checkpoint
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.models.token_vlm import TokenVLM, WindowDecoder, candidate_scores, ranks_of_own
from jepa.operations import OperationLedger, count_flops, transformer_flops
from jepa.selective import SelectiveDecoder, Uniform

QUERIES = ["what happens?", "what colour is the bar?", "how many objects are there?"]
TEXTS = ["the red bar moves left", "a cyan ring spins", "red"]


@pytest.fixture(scope="module")
def vlm(tokenizer) -> TokenVLM:
    model = new_model(vlm_config(), tokenizer)
    with torch.no_grad():  # answers that end, and differ
        model.language_model.lm.get_input_embeddings().weight.mul_(20)
    return model


@pytest.fixture(scope="module")
def states(vlm) -> torch.Tensor:
    frames = torch.randint(0, 256, (3, 8, 48, 48, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return vlm.encode(frames)


@torch.no_grad()
def plain_log_probabilities(model: TokenVLM, state: torch.Tensor, query: str, ids: list[int]) -> torch.Tensor:
    """(L, V) of one clip, from one unpadded row without a cache."""
    asked = model.tokenizer.encode([query])[0]
    embed = model.language_model.lm.get_input_embeddings()
    given = embed(torch.tensor([ids[:-1]], dtype=torch.long))
    row = torch.cat([model.project(state[None]), embed(asked), given], dim=1)
    logits = model.language_model.lm(inputs_embeds=row, use_cache=False).logits[0]
    return logits[-len(ids) :].log_softmax(-1)


def test_likelihoods_are_those_of_teacher_forcing_and_of_single_rows(vlm, states):
    together = vlm.log_likelihoods(states, QUERIES, TEXTS)
    for row, query in enumerate(QUERIES):
        for column, text in enumerate(TEXTS):
            ids = vlm.tokenizer.encode_closed([text])[0][0].tolist()
            expected = plain_log_probabilities(vlm, states[row], query, ids)[range(len(ids)), ids].sum()
            torch.testing.assert_close(together[row, column], expected, rtol=1e-4, atol=1e-3)
    with torch.no_grad():
        forced, mask = vlm(states, QUERIES, TEXTS)
    torch.testing.assert_close((forced * mask).sum(1), together.diagonal(), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(vlm.loss(states, QUERIES, TEXTS).detach(), -forced[mask].mean())


def test_cached_answers_equal_answers_computed_again_and_again(vlm, states):
    end = vlm.tokenizer.eos_id
    for decoded, state, query in zip(vlm.answer(states, QUERIES), states, QUERIES, strict=True):
        text: list[int] = []
        while len(text) < vlm.max_length:
            chosen = int(plain_log_probabilities(vlm, state, query, [*text, 0])[-1].argmax())
            if chosen == end:
                break
            text.append(chosen)
        assert decoded.text == vlm.tokenizer.decode([text])[0]
        assert decoded.tokens == decoded.forward_passes == min(len(text) + 1, vlm.max_length)


def test_flops_of_an_answer_are_those_that_run_alone(vlm, states):
    together = vlm.answer(states, QUERIES)
    for row, query in enumerate(QUERIES):
        counted = count_flops(lambda row=row, query=query: vlm.answer(states[row : row + 1], [query]))
        assert counted.result[0].flops == counted.total == together[row].flops > 0


def test_flops_of_known_answers_are_those_of_the_closed_form(vlm, states):
    """Queries and answers are padded, and the states have a gradient."""
    given = states.clone().requires_grad_()
    query, answer = vlm.tokenizer.encode(QUERIES)[0].shape[1], vlm.tokenizer.encode_closed(TEXTS)[0].shape[1]
    config, tokens = vlm.language_model.lm.config, states.shape[1] + query + answer - 1
    projection = 2 * states.numel() * vlm.language_model.width
    with torch.no_grad():
        forward = count_flops(lambda: vlm(given, QUERIES, TEXTS))
    closed = transformer_flops(config, tokens, batch=3, logits=answer)
    assert forward.total == projection + closed.total
    step = count_flops(lambda: vlm.loss(given, QUERIES, TEXTS).backward())
    vlm.zero_grad(set_to_none=True)
    fused = any("_scaled_dot_product" in operator for operator in step.by_operator)
    closed = transformer_flops(config, tokens, batch=3, logits=answer, training=True, fused_attention=fused)
    assert step.total == 3 * projection + closed.total


def test_gradients_reach_every_parameter_but_those_of_a_frozen_encoder(vlm, states):
    model = copy.deepcopy(vlm)
    model.x_encoder.requires_grad_(False)
    frames = torch.randint(0, 256, (3, 8, 48, 48, 3), dtype=torch.uint8)
    model.loss(model.encode(frames), QUERIES, TEXTS).backward()
    for name, parameter in model.named_parameters():
        if name.startswith("x_encoder."):
            assert parameter.grad is None
        else:
            assert parameter.grad.abs().sum() > 0, name


def test_a_stream_gives_the_answers_of_its_windows(vlm):
    video = np.concatenate(list(World().stream("s", (3,), 6.0, StreamStyle(3.0, shortest=1.0)).frames()))
    ledger = OperationLedger()
    decoder = SelectiveDecoder(Uniform(2.0), WindowDecoder(vlm, QUERIES[0]), ledger)
    chunks = (video[i : i + 5] for i in range(0, len(video), 5))
    found = [
        emission
        for windows, times in vlm.windows(chunks, 2.0, ledger)
        for window, time in zip(windows, times, strict=True)
        for emission in decoder.step(None, time, payload=window)
    ]
    starts = range(0, len(video) - 7, 4)
    windows = torch.from_numpy(np.stack([video[s : s + 8] for s in starts]))
    with torch.no_grad():
        expected = vlm.answer(vlm.encode(windows), [QUERIES[0]] * len(windows))
    assert [one.text for one in found] == [one.text for one in expected]
    assert [one.time for one in found] == [(s + 4) / 8 for s in starts]
    assert ledger.encoder.calls == len(video) // 4
    assert ledger.encoder.flops == ledger.encoder.calls * vlm.encoding_flops()
    assert ledger.decoder.calls == len(windows)
    assert ledger.decoder.flops == sum(one.flops for one in expected)


def test_a_step_without_states_is_refused(vlm):
    decoder = SelectiveDecoder(Uniform(2.0), WindowDecoder(vlm, QUERIES[0]))
    refuses("needs the states of a window as the payload", decoder.step, None, 0.0)


def test_a_checkpoint_gives_the_same_answers(vlm, states, tmp_path):
    checkpoint.save(vlm, vlm_config(), tmp_path)
    again = checkpoint.load(tmp_path)
    assert again.answer(states, QUERIES) == vlm.answer(states, QUERIES)
    assert sum(role["total"] for role in again.parameters_by_role()) == sum(p.numel() for p in vlm.parameters())


def test_scores_of_both_arms_rank_candidates(vlm, tiny_model, states):
    queries = [CAPTION_QUERIES[0]] * 3
    scores = candidate_scores(vlm, states, queries, TEXTS)
    torch.testing.assert_close(scores, vlm.log_likelihoods(states, queries, TEXTS))
    with torch.no_grad():
        cosines = candidate_scores(tiny_model, states, queries, TEXTS)
        expected = torch.nn.functional.cosine_similarity(
            tiny_model.predict(states, queries)[:, None], tiny_model.embed(TEXTS)[None], dim=-1
        )
    torch.testing.assert_close(cosines, expected)
    assert ranks_of_own(torch.tensor([[3.0, 1, 2], [5, 5, 1], [9, 8, 7]])).tolist() == [1, 2, 3]


def test_wrong_sizes_are_named(tokenizer):
    config = vlm_config()
    config["model"]["frames"] = 6
    refuses("frames a multiple of tubelet 4, got frames 6", checkpoint.build_model, config, tokenizer)
