"""Exported models beside the models: graphs of other sizes than they were traced on, streams, ledgers, and refusals."""

from __future__ import annotations

import copy
import json
import sys

import numpy as np
import pytest
import torch
from conftest import BERT, language_config, new_model, refuses, tiny_config, without_seconds

from jepa import checkpoint
from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.decoders import LanguageDecoder, PrefixDecoder
from jepa.encoders import FeatureEncoder
from jepa.export import TorchExportModel, export_graphs, graphs_of
from jepa.models.roles import SlotEncoder
from jepa.operations import OperationLedger
from jepa.runtime import OnnxModel
from jepa.selective import ColourChange, LatentCache, SelectiveDecoder, SelectiveEncoding, StepSelection, Uniform

LLAMA = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 512}


@pytest.fixture
def packaged_model(tokenizer, trained_tokenizer, tmp_path_factory):
    """In the demo's architecture: a convolutional X-Encoder with optical flow, a BERT with a tokenizer of its own."""
    folder = tmp_path_factory.mktemp("words")
    trained_tokenizer.save(folder)
    config = tiny_config()
    config["model"]["x_encoder"] = {
        "_target_": "jepa.encoders.vision_timm.TimmEncoder", "name": "test_efficientnet", "size": 64, "tubelet": 4,
        "stride": 2, "flow": True, "level": 3, "frozen": True,
    }  # fmt: skip
    config["model"]["predictor"]["state_dim"] = 2 * 48 + 75
    config["model"]["y_encoder"] = {
        "_target_": "jepa.encoders.sentence.SentenceEncoder", "embedding_dim": 16, "architecture": BERT,
        "prompt": "Of: ",
    }  # fmt: skip
    own = {"y_encoder": PretrainedTokenizer(str(folder), 32)}
    return new_model(config, tokenizer, own)


@pytest.fixture
def whole_model(tokenizer):
    """With a V-JEPA 2, whose attention spans the whole window."""
    config = tiny_config()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 16, "crop_size": 48}
    config["model"]["x_encoder"] = {
        "_target_": "jepa.encoders.vision_vjepa2.VJEPA2",
        "architecture": {"model_type": "vjepa2", **sizes, "frames_per_clip": 8},
    }
    return new_model(config, tokenizer)


def close(ours, theirs):
    torch.testing.assert_close(torch.from_numpy(ours), theirs, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def check_roles(model, exported):
    """Batches and lengths that no graph was traced on."""
    size, in_slots = model.x_encoder.size, isinstance(model.x_encoder, SlotEncoder)
    for count, frames in ((1, 8), (3, 12 if in_slots else 8)):
        clips = torch.randint(0, 255, (count, frames, size, size, 3), dtype=torch.uint8)
        states = model.encode(clips)
        close(exported.encode(clips.numpy()), states)
        queries = ["What?", "what colour is the ring on the left side of it?", CAPTION_QUERIES[0]][:count]
        latents = model.predict(states, queries)
        close(exported.predict(states.numpy(), queries), latents)
        texts = ["a red bar moves left", "<eos> is a text", "ring"][:count]
        close(exported.embed(texts), model.embed(texts))
        assert exported.decode(latents.numpy()) == model.decode(latents)  # texts, tokens, FLOPs, bytes
    if in_slots:
        picture = torch.randint(0, 255, (1, 1, size, size, 3), dtype=torch.uint8)
        close(exported.encode(picture.numpy()), model.encode(picture))


def test_a_model_trained_from_scratch_runs_on_onnxruntime(tiny_model, exported):
    check_roles(tiny_model, OnnxModel(exported, threads=1))
    parity = json.loads((exported / "parity.json").read_text())
    assert parity["roles"].keys() == {"x_encoder", "predictor", "y_encoder", "y_decoder"}
    assert all(0 < role["difference"] < 1e-4 < role["largest"] for role in parity["roles"].values())
    assert parity["equal_texts"] == parity["texts"] == parity["clips"] == 16
    coarse = parity["int8"]["roles"]
    assert coarse["predictor"]["difference"] > 10 * parity["roles"]["predictor"]["difference"]


@pytest.mark.parametrize(("made", "kind"), [("packaged_model", OnnxModel), ("whole_model", TorchExportModel)])
def test_a_model_of_pretrained_kinds_runs_without_its_classes(made, kind, tmp_path, request):
    model = request.getfixturevalue(made)
    parity, _ = export_graphs(model, tmp_path, kind.suffix, bound=1e-4)
    assert parity.worst[1] <= 1e-4
    exported = kind(tmp_path)
    check_roles(model, exported)
    world, style = World(size=model.x_encoder.size, fps=8), StreamStyle(mean_event=3.0)
    video = world.stream("short", seed=(3,), duration=5.0, style=style)
    ledgers = OperationLedger(), OperationLedger()
    streams = [
        np.concatenate([latents for latents, _ in each.stream(video.frames(), 2.0, "what happens?", ledger)])
        for each, ledger in zip((model, exported), ledgers, strict=True)
    ]
    assert len(streams[0]) > 4
    close(streams[1], torch.from_numpy(streams[0]))
    assert without_seconds(ledgers[0].to_dict()) == without_seconds(ledgers[1].to_dict())


def test_quantised_graphs_are_smaller_and_nearly_the_same(tiny_model, exported):
    quantised = OnnxModel(exported, int8=True)
    clips = torch.randint(0, 255, (4, 8, 48, 48, 3), dtype=torch.uint8)
    queries = list(CAPTION_QUERIES[:1]) * 4
    with torch.no_grad():
        own = tiny_model.predict(tiny_model.encode(clips), queries).numpy()
    found = quantised.predict(quantised.encode(clips.numpy()), queries)
    assert 0.9 < (found * own).sum(1).min() < 1 - 1e-6  # cosines
    for role in ("predictor", "y_encoder"):
        sizes = [(exported / f"{role}{end}.onnx").stat().st_size for end in ("", ".int8")]
        assert sizes[1] < 0.75 * sizes[0]


@pytest.mark.parametrize("selective", [False, True])
def test_a_stream_has_the_emissions_and_the_ledger_of_the_model(tiny_model, exported, selective):
    video = World(size=48, fps=8).stream("live", seed=(3,), duration=20.0, style=StreamStyle(mean_event=3.0))
    found = []
    for model in (tiny_model, OnnxModel(exported)):
        ledger = OperationLedger()
        cache = LatentCache(1e-3, capacity=8)
        decoder = SelectiveDecoder(Uniform(0.5), model, ledger, cache=cache, latent_delay=model.window / 2)
        selection = SelectiveEncoding(ColourChange(), StepSelection(1.0, hold=3)) if selective else None
        emissions = []
        for latents, times in model.stream(video.frames(chunk=5), 1.0, "what happens?", ledger, selection):
            for latent, time in zip(latents, times, strict=True):
                emissions += decoder.step(latent, float(time))
        found.append((emissions + decoder.finish(), without_seconds(ledger.to_dict())))
    assert found[0] == found[1]
    assert len(found[0][0]) > 1
    assert found[0][1]["decoder"]["flops"] > 0


def test_a_graph_that_says_something_else_is_refused(tiny_checkpoint, tmp_path, monkeypatch, fails):
    right = PrefixDecoder.extend

    def wrong(self, latents, ids, keys, values):
        logits, keys, values = right(self, latents, ids, keys, values)
        return logits + 0.01, keys, values

    monkeypatch.setattr(PrefixDecoder, "extend", wrong)
    message = fails(["export", f"checkpoint={tiny_checkpoint}", "format=torch_export", f"output={tmp_path}"])
    assert message.startswith("error: y_decoder must differ from the model by at most bound=0.001, got 0.01")
    assert json.loads((tmp_path / "parity.json").read_text())["roles"]["y_decoder"]["difference"] > 0.009
    refuses("export not found", TorchExportModel, tmp_path)


def test_what_cannot_be_exported_is_one_line(tiny_model, tiny_checkpoint, tiny_llm_jepa, tmp_path, fails, monkeypatch):
    checkpoint.save(tiny_llm_jepa, language_config(), tmp_path / "llm")
    for given, message in (
        ([f"checkpoint={tmp_path}/llm", "format=onnx"], "got one of llm_jepa: use format=transformers"),
        ([f"checkpoint={tiny_checkpoint}"], "got one of vl_jepa: use format=onnx or format=torch_export"),
        ([f"checkpoint={tiny_checkpoint}", "format=onnx", "adapter=a/b"], "adapter needs format=transformers, got"),
        ([f"checkpoint={tiny_checkpoint}", "format=torch_export", "int8=true"], "int8 needs format=onnx, got"),
    ):
        fails(["export", *given, f"output={tmp_path}/out"], message)
    clips, queries = torch.zeros(2, 8, 48, 48, 3, dtype=torch.uint8), ["a", "b"]
    for part, module, message in (
        ("y_decoder", LanguageDecoder(16, architecture=LLAMA), "must be a PrefixDecoder to be exported, got a Lang"),
        ("x_encoder", FeatureEncoder(32), "must take frames to be exported, got a FeatureEncoder"),
    ):
        model = copy.deepcopy(tiny_model)
        setattr(model, part, module)
        refuses(message, next, graphs_of(model, clips, queries, queries))
    monkeypatch.setitem(sys.modules, "onnxscript", None)  # not to be found
    refuses(r"^onnxscript is not installed: .*jepa\[export\]'$", export_graphs, tiny_model, tmp_path / "out", "onnx")


def test_what_cannot_be_run_is_one_line(exported, tmp_path, monkeypatch):
    model, frames = OnnxModel(exported), np.zeros((1, 8, 48, 48, 3), np.uint8)
    for call, message in (
        (lambda: OnnxModel(tmp_path), "export not found"),
        (lambda: TorchExportModel(exported), "must hold graphs of pt2, got onnx"),
        (lambda: OnnxModel(exported, threads=0), "threads must be a whole number >= 1, got 0"),
        (lambda: model.encode(frames[..., :2]), r"frames must be \(B, F, 48, 48, 3\) uint8, got \(1, 8, 48, 48, 2\)"),
        (lambda: model.encode(frames[:, :6]), "number of frames must be a multiple of tubelet 4, got 6"),
        (lambda: model.embed(["bar " * 40]), "a text must have at most 32 tokens, got"),
        (lambda: model.decode(np.zeros((1, 9))), r"latents must be \(B, 16\), got \(1, 9\)"),
        (lambda: model.slots(3.0), "step_rate must divide the slot rate of 2 Hz"),
    ):
        refuses(message, call)
    about = json.loads((exported / "export.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((exported / "tokenizer.json").read_bytes())
    (tmp_path / "export.json").write_text(json.dumps(about | {"int8": False}))
    refuses(r"has no int8 graphs: export it with int8=true", OnnxModel, tmp_path, int8=True)
    refuses(r"y_encoder\.onnx cannot be opened", lambda: OnnxModel(tmp_path).embed(["a"]))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # not to be found
    refuses(r"^onnxruntime is not installed: .*jepa\[runtime\]'$", lambda: OnnxModel(exported).embed(["a"]))
    (tmp_path / "export.json").write_text("[]")
    refuses(r"format must be 'jepa.export/1', got None", OnnxModel, tmp_path)
