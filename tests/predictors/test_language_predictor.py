"""The last layers of a causal language model as predictor: its weights, its attention, training and reloading."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from conftest import LLAMA, architecture, rebuilt, refusals, refuses
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from transformers.masking_utils import create_causal_mask
from transformers.models.llama import modeling_llama

from jepa.predictors.language import LanguagePredictor
from jepa.pretrained import make_config

WINDOW = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 2}
IDS = torch.tensor([[7, 8, 9, 10], [11, 12, 0, 0]])
MASK = torch.tensor([[True] * 4, [True, True, False, False]])


def three_layers(name: str) -> dict:
    return {**architecture(name), "num_hidden_layers": 3, **(WINDOW if name == "gemma3_text" else {})}


@pytest.fixture(scope="module", params=["llama", "qwen3", "gemma3_text"])
def saved(request, tmp_path_factory):
    """A whole language model, and the folder that it was saved to."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(three_layers(request.param))).eval()
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, str(folder)


def states() -> torch.Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


def last_states(predictor: LanguagePredictor, tokens: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    return predictor.lm(inputs_embeds=tokens, attention_mask=real.long(), use_cache=False).last_hidden_state


def test_its_layers_are_the_models_last_ones(saved):
    model, predictor = saved[0], LanguagePredictor(6, 5, 2, pretrained=saved[1]).eval()
    assert not any("lm_head" in name for name, _ in predictor.named_parameters())
    assert torch.equal(predictor.lm.get_input_embeddings().weight, model.get_input_embeddings().weight)
    seen = {}
    model.get_decoder().layers[1].register_forward_pre_hook(lambda _, given: seen.update(input=given[0]))
    model.get_decoder().norm.register_forward_hook(lambda *given: seen.update(output=given[2]))
    predictor.lm.config.is_causal = True  # as it was trained
    predictor.lm.config.sliding_window = getattr(model.config, "sliding_window", None)
    with torch.no_grad():
        model(input_ids=torch.arange(20, 28)[None])
        ours = last_states(predictor, seen["input"], torch.ones(1, 8))
    torch.testing.assert_close(ours, seen["output"], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_every_token_sees_every_real_one_and_no_padding(saved):
    predictor = LanguagePredictor(6, 5, 3, pretrained=saved[1]).eval()
    tokens = torch.randn(1, 9, 32, generator=torch.Generator().manual_seed(1))
    real = torch.arange(9)[None] < 7
    before = last_states(predictor, tokens, real)[0]
    for changed in (6, 0, 8):
        other = tokens.clone()
        other[0, changed] = torch.randn(32, generator=torch.Generator().manual_seed(2))
        moved = (last_states(predictor, other, real)[0] - before).abs().amax(-1)[:7]
        assert (moved > 1e-4).all() if changed < 7 else (moved < 1e-5).all()


@torch.no_grad()
def test_layers_with_a_window_see_all():
    """One layer, so that nothing reaches a token by way of another."""
    torch.manual_seed(0)
    predictor = LanguagePredictor(6, 5, 1, architecture=three_layers("gemma3_text")).eval()
    assert predictor.lm.config.layer_types == ["sliding_attention"]
    tokens = torch.randn(1, 9, 32)
    other = tokens.clone()
    other[0, 8] = torch.randn(32)
    first, second = (last_states(predictor, each, torch.ones(1, 9)) for each in (tokens, other))
    assert ((second - first).abs().amax(-1) > 1e-5).all()


@torch.no_grad()
def test_it_is_the_head_of_the_mean_over_real_tokens(saved):
    predictor = LanguagePredictor(6, 5, 2, pretrained=saved[1]).eval()
    predictions = predictor(states(), IDS, MASK)
    for row, length in enumerate((4, 2)):  # each alone, without padding
        query = predictor.lm.get_input_embeddings()(IDS[row : row + 1, :length])
        tokens = torch.cat([predictor.project(states()[row : row + 1]), query], 1)
        last = predictor.lm(inputs_embeds=tokens).last_hidden_state[0]
        torch.testing.assert_close(predictions[row], F.normalize(predictor.head(last.mean(0)), dim=0))
    empty = torch.zeros(2, 0, dtype=torch.long)  # stage 1 has no query
    assert predictor(states(), empty, empty.bool()).shape == (2, 5)


@pytest.mark.parametrize("frozen", [True, False])
def test_it_trains_saves_and_reloads(saved, frozen):
    torch.manual_seed(0)
    predictor = LanguagePredictor(
        6, 5, 2, pretrained=saved[1], frozen_embeddings=frozen, gradient_checkpointing=not frozen
    )
    table = predictor.lm.get_input_embeddings().weight
    assert table.requires_grad is not frozen
    before = table.detach().clone()
    optimizer = torch.optim.SGD([p for p in predictor.parameters() if p.requires_grad], lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        predictor(states(), IDS, MASK)[:, 0].sum().backward()
        trained = {name: parameter for name, parameter in predictor.named_parameters() if parameter.requires_grad}
        assert [name for name, parameter in trained.items() if parameter.grad is None or not parameter.grad.any()] == []
        optimizer.step()
    assert torch.equal(table, before) is frozen
    again = rebuilt(predictor).eval()
    predictor.eval()
    assert torch.equal(again(states(), IDS, MASK), predictor(states(), IDS, MASK))
    assert [p.requires_grad for p in again.parameters()] == [p.requires_grad for p in predictor.parameters()]


def test_missing_and_mismatched_tensors_are_listed(saved, tmp_path):
    saved[0].save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"], tensors["model.layers.2.self_attn.q_proj.weight"]
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.zeros(3, 3)
    del tensors["model.layers.0.mlp.up_proj.weight"]  # not needed
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    lacking = "missing layers.1.self_attn.q_proj.weight; missing norm.weight"
    message = refuses(lacking, LanguagePredictor, 6, 5, 2, pretrained=str(tmp_path))
    assert "layers.0.mlp.up_proj.weight has shape (3, 3) instead of (64, 32)" in message
    assert message.count(";") == 2


test_models_that_cannot_be_a_predictor_are_refused = refusals(
    ({"model_type": "mamba", "state_size": 4}, "layer types must be of full_attention, sliding_attention, got"),
    ({"model_type": "gpt2"}, "GPT2Model cannot be a predictor: it must have its blocks in `layers`"),
    ({"model_type": "no_such_model"}, "architecture 'no_such_model' cannot be built"),
    ({"num_hidden_layers": 1}, "layers must be between 1 and the model's 1, got 2"),
    of=lambda changes: LanguagePredictor(6, 5, 2, architecture={**LLAMA, **changes}),
)


def test_a_model_that_stays_causal_is_refused(monkeypatch):
    def causal(config, **given):
        config = copy.copy(config)
        config.is_causal = True
        return create_causal_mask(config=config, **given)

    monkeypatch.setattr(modeling_llama, "create_causal_mask", causal)
    refuses("its tokens do not see later ones with the causal mask off", LanguagePredictor, 6, 5, 2, architecture=LLAMA)


def test_one_source_of_weights_is_needed(tmp_path):
    refuses("give either pretrained or architecture", LanguagePredictor, 6, 5, 2)
    refuses(r"model .* cannot be loaded", lambda: LanguagePredictor(6, 5, 2, pretrained=str(tmp_path)))
