"""Checkpoints: the same model back, strict about every tensor, one clear line for every way to break one."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import changed_file, refuses, tiny_config
from safetensors.torch import load_file, save_file

import jepa
from jepa import checkpoint


@pytest.fixture
def folder(tiny_model, tmp_path):
    checkpoint.save(tiny_model, tiny_config(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def test_load_gives_the_model_back(tiny_model, folder):
    model = jepa.load(folder)
    assert not model.training
    theirs, ours = tiny_model.state_dict(), model.state_dict()
    assert theirs.keys() == ours.keys()
    assert all((theirs[name] == ours[name]).all() for name in theirs)
    latents = tiny_model.embed(["a red star blinks", "nothing happens"])
    assert torch.equal(model.embed(["a red star blinks", "nothing happens"]), latents)
    assert model.decode(latents) == tiny_model.decode(latents)
    assert sorted(path.name for path in folder.iterdir()) == ["config.yaml", "model.safetensors", "tokenizer.json"]


def test_missing_things_are_named(folder, tmp_path):
    refuses(r"checkpoint not found: .*nowhere", checkpoint.load, tmp_path / "nowhere")
    for name, message in [
        ("model.safetensors", "tensors not found: .*model.safetensors"),
        ("tokenizer.json", "tokenizer not found: .*tokenizer.json"),
        ("config.yaml", "checkpoint configuration not found: .*config.yaml"),
    ]:
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        refuses(message, checkpoint.load, folder)
        (folder / name).write_bytes(content)


def test_truncated_weights_are_named(folder):
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 5, 1000, len(whole) - 1):
        path.write_bytes(whole[:size])
        refuses(r"model.safetensors: not a whole safetensors file", checkpoint.load, folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tiny_model, tmp_path, value):
    model = copy.deepcopy(tiny_model)
    with torch.no_grad():
        next(model.predictor.parameters()).view(-1)[-1] = value
    checkpoint.save(model, tiny_config(), tmp_path)
    refuses(r"model\.safetensors: weights must be finite numbers, got others in predictor\.", checkpoint.load, tmp_path)


def test_another_version_is_named(folder):
    path = folder / "config.yaml"
    changed_file(path, "format", "jepa.checkpoint/9")
    refuses(r"format must be 'jepa.checkpoint/1', got 'jepa.checkpoint/9'", checkpoint.load, folder)
    path.write_text("a: [", encoding="utf-8")
    refuses(r"config.yaml: not YAML", checkpoint.load, folder)
    path.write_text("- 1", encoding="utf-8")
    refuses("must hold a mapping, got list", checkpoint.load, folder)


def test_every_wrong_tensor_is_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    tensors["extra"] = torch.zeros(1)
    tensors["y_encoder.head.weight"] = torch.zeros(3, 3)
    del tensors["predictor.head.bias"]
    save_file(tensors, path)
    said = refuses("missing predictor.head.bias", checkpoint.load, folder)
    assert "unexpected extra" in said
    assert "y_encoder.head.weight has shape (3, 3) instead of (16, 32)" in said


def test_saving_leaves_the_old_checkpoint_whole_when_it_fails(tiny_model, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(tiny_model, {**tiny_config(), "name": "other"}, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
