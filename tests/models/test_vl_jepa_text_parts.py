"""A VL-JEPA whose text parts are Hugging Face models, each with its own tokenizer."""

from __future__ import annotations

import torch
from conftest import BERT, LLAMA, refuses, tiny_config
from transformers import AutoModelForCausalLM

from jepa import checkpoint
from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.pretrained import make_config


@torch.no_grad()
def test_pretrained_text_parts_go_through_a_checkpoint(tokenizer, trained_tokenizer, tmp_path):
    torch.manual_seed(0)
    trained_tokenizer.save(tmp_path / "hub")
    tokenizers = {
        role: PretrainedTokenizer(str(tmp_path / "hub"), length)
        for role, length in (("predictor", 12), ("y_encoder", 20), ("y_decoder", 20))
    }
    config = tiny_config()
    sources = {"pretrained": str(tmp_path / "model")}
    config["model"]["predictor"] = {
        "_target_": "jepa.predictors.language.LanguagePredictor",
        "state_dim": 32, "embedding_dim": 16, "layers": 1, **sources,
    }  # fmt: skip
    config["model"]["y_encoder"] = {
        "_target_": "jepa.encoders.sentence.SentenceEncoder",
        "embedding_dim": 16,
        "architecture": BERT,
        "prompt": "task: ",
    }
    config["model"]["y_decoder"] = {
        "_target_": "jepa.decoders.language.LanguageDecoder", "embedding_dim": 16, "max_length": 6, **sources,
    }  # fmt: skip
    AutoModelForCausalLM.from_config(make_config({**LLAMA, "pad_token_id": None})).save_pretrained(tmp_path / "model")
    model = checkpoint.build_model(config, tokenizer, tokenizers).eval()
    states = torch.randn(2, 5, 32)
    queries, texts = ["what moves?", "a"], ["the red bar moves", "a ring"]
    predictions = model.predict(states, queries)
    assert predictions.shape == model.embed(texts).shape == (2, 16)
    assert torch.equal(model.text_ids(texts)[0], tokenizers["y_encoder"].encode([f"task: {text}" for text in texts])[0])
    by_role = {row["role"]: row for row in model.parameters_by_role()}
    frozen = 400 * 32
    assert by_role["Predictor"]["total"] - by_role["Predictor"]["trainable"] == frozen
    assert [by_role[role]["modules"] for role in ("Predictor", "Y-Encoder", "Y-Decoder")] == [
        "LanguagePredictor: 1 layers of llama, token embeddings frozen",
        "SentenceEncoder: bert",
        "LanguageDecoder: llama",
    ]

    checkpoint.save(model, config, tmp_path / "checkpoint")
    for part in ("hub", "model"):  # the checkpoint does without them
        (tmp_path / part).rename(tmp_path / f"{part}_gone")
    again = checkpoint.load(tmp_path / "checkpoint")
    assert {role: each.max_length for role, each in again.tokenizers.items()} == {
        "predictor": 12, "y_encoder": 20, "y_decoder": 20,
    }  # fmt: skip
    assert torch.equal(again.predict(states, queries), predictions)
    assert torch.equal(again.embed(texts), model.embed(texts))
    ours, theirs = again.decode(predictions), model.decode(predictions)
    assert [row.text for row in ours] == [row.text for row in theirs]


def test_a_decoder_that_cannot_be_counted_is_refused_before_it_is_trained(tokenizer):
    small = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8, "num_hidden_layers": 4}
    small |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "head_dim": 8, "model_type": "qwen3_next"}
    config = tiny_config()
    config["model"]["y_decoder"] = {"_target_": "jepa.decoders.language.LanguageDecoder", "embedding_dim": 16}
    config["model"]["y_decoder"]["architecture"] = LLAMA | small
    refuses(r"must have a FLOP formula, got aten\.linalg_solve_triangular", checkpoint.build_model, config, tokenizer)
