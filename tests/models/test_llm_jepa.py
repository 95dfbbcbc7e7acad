"""LLM-JEPA in its four roles: streams against packed rows, batched answers against one at a time."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LLAMA, language_config, new_model, refuses
from transformers import GenerationConfig

from jepa.data.packing import pack
from jepa.data.pairs import Example
from jepa.decoders.prefix import PrefixDecoder
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import RequestDecoder, RequestSession
from jepa.operations import OperationLedger, count_flops
from jepa.predictors.tied import TiedPredictor
from jepa.selective import SelectiveDecoder, Uniform

SHARP = {**LLAMA, "initializer_range": 0.3}
GEMMA = {**SHARP, "model_type": "gemma3_text", "head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 6}
FAMILIES = {"llama": SHARP, "gemma3": {**GEMMA, "pad_token_id": None}}


@pytest.fixture(params=FAMILIES.values(), ids=FAMILIES)
def any_model(request, chat_tokenizer) -> LLMJEPA:
    return new_model(language_config(request.param, tokens=2), chat_tokenizer)


def requests(pairs: list[Example]) -> list[str]:
    """Of different lengths, so that a batch is padded."""
    return [pair.prompt for pair in sorted(pairs, key=lambda pair: len(pair.prompt))[::8]]


@pytest.mark.parametrize(
    ("tokens", "placement"), [(0, "append"), (1, "append"), (3, "append"), (2, "prepend"), (0, "turn"), (2, "turn")]
)
@pytest.mark.parametrize("architecture", FAMILIES.values(), ids=FAMILIES)
def test_streams_give_the_embeddings_of_packed_rows(architecture, tokens, placement, pairs, chat_tokenizer):
    model = new_model(language_config(architecture, tokens, placement), chat_tokenizer)
    chosen = sorted(pairs, key=lambda pair: len(pair.prompt))[::8]
    encoded = chat_tokenizer.encode(chosen)
    rows = pack(encoded, model.layout(row_tokens=200), encoded, list(range(len(chosen))))
    with torch.no_grad():
        out = model(rows)
    predicted = model.predict(model.encode([pair.prompt for pair in chosen]))
    torch.testing.assert_close(predicted, F.normalize(out.predictions, dim=-1), rtol=1e-4, atol=1e-5)
    embedded = model.embed([pair.completion for pair in chosen])
    torch.testing.assert_close(embedded, F.normalize(out.targets, dim=-1), rtol=1e-4, atol=1e-5)
    assert predicted.shape == (len(chosen), 32)
    assert (predicted @ predicted.T - torch.eye(len(chosen))).abs().max() < 0.999  # requests are told apart


def test_embeddings_do_not_depend_on_the_batch(any_model, pairs):
    texts = requests(pairs)
    together, embedded = any_model.predict(any_model.encode(texts)), any_model.embed(texts)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(len(texts)))
    for row, text in enumerate(texts):
        torch.testing.assert_close(any_model.predict(any_model.encode([text]))[0], together[row], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(any_model.embed([text])[0], embedded[row], rtol=1e-4, atol=1e-5)


def test_predicting_leaves_the_cache_as_it_is(any_model, pairs):
    encoded = any_model.encode(requests(pairs))
    length = encoded.cache.get_seq_length()
    first, again = any_model.predict(encoded), any_model.predict(encoded)
    assert torch.equal(first, again)
    assert encoded.cache.get_seq_length() == length == encoded.states.shape[1]


def test_a_pair_brings_its_system_prompt_along(any_model):
    plain, with_system = any_model.encode([Example("a", "", None), Example("a", "", "b c d")]).mask.sum(1).tolist()
    assert with_system > plain
    words, pair = (any_model.predict(any_model.encode([each])) for each in ("a", Example("a", "x", None)))
    assert torch.equal(words, pair)


def test_answers_are_greedy_and_the_same_in_batches(any_model, pairs):
    model, texts = any_model, requests(pairs)
    batched = model.answer(texts, 9)
    for text, decoded in zip(texts, batched, strict=True):
        assert model.answer([text], 9) == [decoded]
        prompt = model.tokenizer.encode([Example(text, "", None)])[0].given
        stop = model.tokenizer.stop_ids
        settings = GenerationConfig(do_sample=False, max_new_tokens=9, eos_token_id=stop, pad_token_id=0)
        out = model.language.lm.generate(torch.tensor([prompt]), generation_config=settings, use_cache=True)
        said = out[0, len(prompt) :].tolist()
        counted = count_flops(lambda text=text: model.answer([text], 9))
        assert (decoded.text, decoded.flops) == (model.tokenizer.decode([said])[0], counted.total)
        assert decoded.tokens == decoded.forward_passes == len(said)


def test_a_stream_counts_every_request(tiny_llm_jepa, pairs):
    texts, ledger = [pair.prompt for pair in pairs[:7]], OperationLedger()
    chunks = list(tiny_llm_jepa.stream([texts[:3], texts[3:]], ledger))
    assert [chunk.shape for chunk in chunks] == [(3, 32), (4, 32)]
    expected = tiny_llm_jepa.predict(tiny_llm_jepa.encode(texts)).numpy()
    np.testing.assert_allclose(np.concatenate(chunks), expected, rtol=1e-4, atol=1e-5)
    assert chunks[0].dtype == np.float32
    for part in (ledger.encoder, ledger.predictor):
        assert part.calls == part.forward_passes == 7
        assert part.seconds > 0
    assert ledger.decoder.calls == 0


def test_selective_decoding_answers_a_stream_of_requests(tiny_llm_jepa, pairs):
    """A uniform policy at the rate of the stream answers each request, and the ledger counts its tokens."""
    texts = [pair.prompt for pair in pairs[:6]]
    [latents] = tiny_llm_jepa.stream([texts])
    decoder = SelectiveDecoder(Uniform(1.0), RequestDecoder(tiny_llm_jepa, 5))
    emissions = decoder.run(latents, np.arange(6.0), texts)
    answers = tiny_llm_jepa.answer(texts, 5)
    assert [emission.text for emission in emissions] == [answer.text for answer in answers]
    assert decoder.ledger.decoder.calls == 6
    assert decoder.ledger.decoder.tokens == sum(answer.tokens for answer in answers)
    assert decoder.ledger.decoder.forward_passes == sum(answer.forward_passes for answer in answers)

    for given in (latents, [None] * 6):
        live = SelectiveDecoder(Uniform(1.0), RequestDecoder(tiny_llm_jepa, 5))
        stepped = [
            emission
            for time, (text, latent) in enumerate(zip(texts, given, strict=True))
            for emission in live.step(latent, float(time), text)
        ]
        assert [e.text for e in stepped + live.finish()] == [e.text for e in emissions]

    refuses("a request as the payload of each step", lambda: decoder.run(latents, np.arange(6.0)))


def test_embeddings_are_decoded_by_a_lightweight_decoder_if_there_is_one(tiny_llm_jepa):
    latents = tiny_llm_jepa.embed(["a", "b|c"])
    refuses("this checkpoint has no decoder from embeddings", tiny_llm_jepa.decode, latents)
    model = copy.deepcopy(tiny_llm_jepa)
    model.y_decoder = PrefixDecoder(vocab_size=400, embedding_dim=32, width=16, depth=1, heads=2, max_length=5)
    for decoded, latent in zip(model.decode(latents), latents, strict=True):
        assert model.decode(latent[None]) == [decoded]
        assert 1 <= decoded.tokens == decoded.forward_passes <= 5


def test_next_token_rows_give_no_embeddings(tiny_llm_jepa, pairs):
    encoded = tiny_llm_jepa.tokenizer.encode(pairs[:3])
    out = tiny_llm_jepa(pack(encoded, tiny_llm_jepa.layout(row_tokens=100)))
    assert out.predictions is out.targets is out.tube is None
    rows = pack(encoded, tiny_llm_jepa.layout(row_tokens=100), tube=np.random.default_rng(0))
    assert tiny_llm_jepa(rows).tube.shape == (3, 3, 32)


def test_parameters_by_role_add_up(tiny_llm_jepa):
    [role] = tiny_llm_jepa.parameters_by_role()
    assert role["role"] == "X-Encoder, Predictor, Y-Encoder, Y-Decoder"
    assert role["total"] == role["trainable"] == sum(p.numel() for p in tiny_llm_jepa.parameters())
    assert role["modules"] == "LlamaForCausalLM"


def test_an_answer_reads_each_request_once_and_a_session_forgets_old_ones(tiny_llm_jepa, pairs, monkeypatch):
    model, read = copy.deepcopy(tiny_llm_jepa), []
    encode = model.tokenizer.encode
    monkeypatch.setattr(model.tokenizer, "encode", lambda given: read.extend(given) or encode(given))
    model.answer(pairs[:3], 2)
    assert read == pairs[:3]
    read.clear()
    session = RequestSession(model)
    first = session.predict(pairs[0])
    for pair in pairs[1:17]:
        session.predict(pair)
        session.predict(pair)
    np.testing.assert_allclose(session.predict(pairs[0]), first, rtol=1e-4, atol=1e-5)
    assert [pair.prompt for pair in read] == [pair.prompt for pair in [*pairs[:17], pairs[0]]]


def test_bad_predictors_are_named():
    refuses("tokens must be >= 0, got -1", TiedPredictor, -1)
    refuses("placement must be append, prepend or turn, got 'before'", TiedPredictor, 1, "before")
