"""Bytes of weights and caches in the ledgers of both models, against counts by hand and the tensors that are read."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from conftest import FAMILIES, LLAMA, family, language_config, new_model
from torch import nn

from jepa.decoders.bank import CaptionBank
from jepa.models.bank import BankDecoder
from jepa.models.costs import pass_cost
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.session import RequestSession
from jepa.operations import OperationLedger, PartCount, count_flops
from jepa.pretrained import extend
from jepa.selective import SelectiveDecoder
from jepa.selective.policies.uniform import Uniform

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 400}
GPT2 |= {"bos_token_id": None, "eos_token_id": None}


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def block(width: int) -> int:
    """Two layer norms, queries, keys and values, the heads' output, and the MLP."""
    attention = linear(width, 3 * width) + linear(width, width)
    return 4 * width + attention + linear(width, 4 * width) + linear(4 * width, width)


DECODER = linear(16, 2 * 32) + 512 * 32 + (2 + 32) * 32 + block(32) + 2 * 32
PREDICTOR = linear(32, 32) + 512 * 32 + 32 * 32 + block(32) + 2 * 32 + linear(32, 16)
ENCODER = linear(12 * 4 * 4, 16) + 2 * 16 + linear(16 * 3 * 3, 32) + 16 * 32 + block(32) + 2 * 32


class Reads:
    """Adds up the bytes of the keys and values that each call of a method finds in its cache."""

    def __init__(self, monkeypatch: Any, owner: Any, method: str) -> None:
        self.bytes = 0
        whole = getattr(owner, method)

        def watched(*arguments: Any, **options: Any) -> Any:
            cache = arguments[-1]
            held = [] if cache is None else cache if isinstance(cache, tuple) else _tensors(cache)
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in held)
            return whole(*arguments, **options)

        monkeypatch.setattr(owner, method, watched)


def _tensors(cache: Any) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]


def latents(count: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(count, 16, generator=torch.Generator().manual_seed(0)), dim=-1)


def test_a_decoder_of_embeddings(tiny_model, monkeypatch):
    reads = Reads(monkeypatch, type(tiny_model.y_decoder.blocks[0]), "forward")
    [decoded] = tiny_model.decode(latents(1))
    tokens = decoded.tokens
    assert tokens > 2
    assert decoded.weight_bytes == tokens * 4 * DECODER
    # The second token finds the two prefix positions, each further one a position more.
    assert decoded.cache_bytes == 2 * 4 * 32 * sum(2 + i for i in range(tokens - 1)) == reads.bytes


def test_a_stream_of_frames_and_what_is_decoded_of_it(tiny_model):
    generator = torch.Generator().manual_seed(0)
    frames = torch.randint(0, 256, (24, 48, 48, 3), dtype=torch.uint8, generator=generator).numpy()
    ledger = OperationLedger()
    [(rows, times)] = tiny_model.stream([frames], 2.0, "what is it?", ledger)
    assert ledger.encoder.weight_bytes == 6 * 4 * ENCODER
    assert ledger.predictor.weight_bytes == 5 * 4 * PREDICTOR
    assert ledger.encoder.cache_bytes == ledger.predictor.cache_bytes == 0
    SelectiveDecoder(Uniform(1.0), tiny_model, ledger).run(rows, times)
    alone = [tiny_model.decode(torch.from_numpy(rows[i : i + 1]))[0] for i in range(0, 5, 2)]
    assert ledger.decoder.calls == len(alone)
    assert ledger.decoder.weight_bytes == ledger.decoder.forward_passes * 4 * DECODER
    assert ledger.decoder.cache_bytes == sum(decoded.cache_bytes for decoded in alone)


def test_a_bank_that_decodes_is_read_whole():
    [known] = BankDecoder(CaptionBank(["one", "two", "three"], latents(3))).decode(latents(1))
    assert (known.weight_bytes, known.cache_bytes) == (3 * 16 * 4, 0)


@pytest.fixture(params=[LLAMA, GPT2], ids=["closed form", "measured"])
def language(request, chat_tokenizer) -> LLMJEPA:
    return new_model(language_config(request.param, tokens=2), chat_tokenizer)


def test_a_session_of_requests(language, pairs, monkeypatch):
    read = 4 * sum(parameter.numel() for parameter in language.parameters())
    session = RequestSession(language)
    requests = [" ".join(pairs[0].prompt.split()[:count]) for count in (2, 4, 6)]
    reads = Reads(monkeypatch, language.language, "extend")
    for request in requests:
        session.predict(request)
    session.agrees(requests[-1], pairs[0].completion)
    [answer] = session.answer(requests[-1:], 5)
    parts = [session.ledger.encoder, session.ledger.predictor, session.ledger.decoder]
    total = sum(parts, start=PartCount())
    assert total.forward_passes == 7
    assert total.weight_bytes == 7 * read
    assert answer.weight_bytes == answer.forward_passes * read
    assert total.cache_bytes + answer.cache_bytes == reads.bytes > 0


def test_an_answer_and_a_stream_of_requests(language, pairs):
    """By hand: 2 layers, keys and values of 2 heads of 8 (Llama) or of 4 (GPT-2), 4 bytes each."""
    position = 2 * 2 * (2 if language.language.lm.config.model_type == "llama" else 4) * 8 * 4
    read = 4 * sum(parameter.numel() for parameter in language.parameters())
    [answer] = language.answer([pairs[0].prompt], 6)
    [ids] = language.tokenizer.encode([pairs[0]])
    prompt = len(ids.prompt) + ids.opening
    assert answer.tokens > 1
    assert answer.weight_bytes == answer.tokens * read
    assert answer.cache_bytes == position * sum(prompt + i for i in range(answer.tokens - 1))

    ledger, chosen = OperationLedger(), [pair.prompt for pair in pairs[:3]]
    list(language.stream([chosen], ledger))
    lengths = [len(ids.prompt) for ids in language.tokenizer.encode(pairs[:3])]
    assert (ledger.encoder.weight_bytes, ledger.encoder.cache_bytes) == (3 * read, 0)
    assert (ledger.predictor.weight_bytes, ledger.predictor.cache_bytes) == (3 * read, position * sum(lengths))


def test_weights_of_half_the_size_are_half_the_bytes(language):
    whole = pass_cost(language.language.lm, 2, 5)
    half = pass_cost(language.half().language.lm, 2, 5)
    assert (2 * half.weight_bytes, half.flops) == (whole.weight_bytes, whole.flops)


@torch.no_grad()
@pytest.mark.parametrize("name", FAMILIES)
def test_a_pass_of_every_family_is_counted(name):
    """With a closed form or without, and with a window of 6 tokens."""
    lm = family(name).lm
    ids, found = torch.arange(9)[None], pass_cost(lm, 2, 9, 1)
    _, cache = extend(lm, None, input_ids=ids[:, :7], use_cache=True)
    held = 4 * sum(tensor.numel() for tensor in _tensors(cache))
    run = count_flops(lambda: extend(lm, cache, input_ids=ids[:, 7:], use_cache=True, logits_to_keep=1))
    weights = 4 * sum(parameter.numel() for parameter in lm.parameters())
    assert (found.flops, found.cache_bytes, found.weight_bytes) == (run.total, held, weights)
