"""Y-Decoders: teacher forcing, greedy texts, counts; a pretrained one's training and reloading."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from conftest import architecture, rebuilt, refuses

from jepa.decoders import LanguageDecoder, PrefixDecoder
from jepa.models.costs import text_cost
from jepa.operations import count_flops
from jepa.pretrained import extend

FAMILIES = ("llama", "qwen3", "gemma3_text", "gpt2", "smollm3")  # the last two have no closed form of their operations


def made(family: str) -> LanguageDecoder | PrefixDecoder:
    torch.manual_seed(0)
    if family == "prefix":
        return PrefixDecoder(400, 6, width=32, prefix=3, max_length=8).eval()
    return LanguageDecoder(6, prefix=3, max_length=8, architecture=architecture(family)).eval()


@pytest.fixture(params=FAMILIES)
def pretrained(request) -> LanguageDecoder:
    return made(request.param)


@pytest.fixture(params=["prefix", *FAMILIES])
def decoder(request) -> LanguageDecoder | PrefixDecoder:
    return made(request.param)


def latents(count: int = 4) -> torch.Tensor:
    return F.normalize(torch.randn(count, 6, generator=torch.Generator().manual_seed(1)), dim=-1)


@torch.no_grad()
def test_greedy_texts_are_those_of_the_whole_pass(decoder):
    """`forward` without a cache, token by token, gives what `generate` gives with one."""
    ids = torch.zeros(4, 1, dtype=torch.long)
    for _ in range(8):
        ids[:, -1] = decoder(latents(), ids)[:, -1].argmax(-1)
        ids = torch.cat([ids, ids[:, :1]], dim=1)
    expected = ids[:, :8].tolist()
    assert decoder.generate(latents(), eos_id=-1) == expected
    end = expected[0][4]  # ends some rows early
    cut = [row[: row.index(end)] if end in row else row for row in expected]
    assert decoder.generate(latents(), end) == cut
    assert min(map(len, cut)) < 8


@torch.no_grad()
def test_logits_do_not_see_later_tokens(decoder):
    ids = torch.tensor([[5, 6, 7, 8, 9]] * 4)
    changed = torch.tensor([[5, 6, 7, 1, 2]] * 4)
    torch.testing.assert_close(decoder(latents(), ids)[:, :4], decoder(latents(), changed)[:, :4])


@torch.no_grad()
def test_logits_are_the_models_own_after_the_prefix(pretrained):
    ids = torch.tensor([[5, 6, 7, 8]] * 4)
    prefix = pretrained.project(latents()).reshape(4, 3, 32)
    tokens = torch.cat([prefix, pretrained.lm.get_input_embeddings()(ids)], dim=1)
    theirs = pretrained.lm(inputs_embeds=tokens).logits[:, 2:-1]
    torch.testing.assert_close(pretrained(latents(), ids), theirs)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_flops_are_those_that_run(decoder, tokens):
    decoder.max_length = tokens
    counted = count_flops(lambda: decoder.generate(latents(1), eos_id=-1))
    assert text_cost(decoder, tokens).flops == counted.total > 0


@torch.no_grad()
@pytest.mark.parametrize("tokens", [1, 2, 8])
def test_the_bytes_of_the_cache_are_those_held_before_each_pass(pretrained, tokens):
    held, read = 0, 0
    states, cache = pretrained.project(latents(1)).reshape(1, 3, 32), None
    for _ in range(tokens):
        read += held
        out, cache = extend(pretrained.lm, cache, inputs_embeds=states, use_cache=True)
        states = pretrained.lm.get_input_embeddings()(out.logits[:, -1:].argmax(-1))
        held = sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))
    assert text_cost(pretrained, tokens).cache_bytes == read


def test_it_trains_saves_and_reloads(pretrained, tmp_path):
    pretrained.lm.save_pretrained(tmp_path)
    torch.manual_seed(0)
    trained = LanguageDecoder(6, prefix=3, max_length=8, pretrained=str(tmp_path), gradient_checkpointing=True)
    for name, tensor in pretrained.lm.state_dict().items():
        assert torch.equal(trained.lm.state_dict()[name], tensor), name
    optimizer = torch.optim.AdamW(trained.parameters(), lr=1e-2)
    ids = torch.tensor([[5, 6, 7, 1], [9, 8, 1, 0]])
    mask = torch.tensor([[True] * 4, [True] * 3 + [False]])
    for _ in range(25):
        optimizer.zero_grad()
        F.cross_entropy(trained(latents(2), ids)[mask], ids[mask]).backward()
        assert [name for name, p in trained.named_parameters() if p.grad is None or not p.grad.any()] == []
        optimizer.step()
    trained.eval()
    assert trained.generate(latents(2), 1) == [[5, 6, 7], [9, 8]]
    assert torch.equal(rebuilt(trained).eval()(latents(2), ids), trained(latents(2), ids))


def test_a_text_too_long_is_refused(decoder):
    refuses("a text must have at most 8 tokens, got 9", lambda: decoder(latents(), torch.zeros(4, 9, dtype=torch.long)))
