"""Stages of a VL-JEPA: every option trains, checkpoints are handed on, devices make one large batch."""

from __future__ import annotations

import shutil
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import refuses
from processes import assert_same_weights, config, stages, train, train_in_two_processes
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from jepa import checkpoint
from jepa.build import build
from jepa.cli import compose
from jepa.config import validate
from jepa.data.tokenizer import Tokenizer
from jepa.training.configs import TrainConfig
from jepa.training.modules import DecoderModule, JEPAModule
from jepa.training.sharding import shard

pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
LOSSES = "jepa.losses."


JOINT = {"x_encoder", "predictor", "y_encoder"}


def parts_that_differ(one: Path, other: Path) -> set[str]:
    a, b = (load_file(folder / "model.safetensors") for folder in (one, other))
    return {name.partition(".")[0] for name in a if not torch.equal(a[name], b[name])}


def changed(**jepa: Any) -> dict[str, Any]:
    plain = config("decoder=null")
    return plain | {"jepa": plain["jepa"] | jepa}


OPTIONS: dict[str, dict[str, Any]] = {
    "constant": {"schedule": "constant"},
    "accumulate": {"accumulate": 2},
    "chunks": {"chunk": 4},
    "ema": {"target": "ema"},
    "stop-gradient": {"target": "stop_gradient"},
    "siglip": {"loss": {"_target_": LOSSES + "siglip.SigLIP"}},
    "l1, sigreg": {
        "loss": {"_target_": LOSSES + "distance.L1"},
        "regulariser": {"_target_": LOSSES + "regularisers.SIGReg", "projections": 8},
        "regulariser_weight": 0.1,
    },
    "cosine, vicreg": {
        "loss": {"_target_": LOSSES + "distance.Cosine"},
        "regulariser": {"_target_": LOSSES + "regularisers.VICReg"},
        "regulariser_weight": 0.1,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_trains_and_its_operations_are_counted(name, tmp_path):
    plain = changed(**OPTIONS[name])
    folder = train(plain, tmp_path)
    [stage] = stages(folder)
    passes = 2 * plain["jepa"]["accumulate"]
    assert (stage["steps"], stage["samples"]) == (2, 6 * passes)
    counted = stage["operations"]
    assert counted["steps"] == 2
    assert counted["parts"]["optimizer"]["calls"] == 2
    rows = (10 if name == "chunks" else 6) * passes  # all chunks but the last are encoded again for the backward pass
    assert counted["parts"]["encoder"]["calls"] == rows
    assert all(counted["parts"][part]["flops"] > 0 for part in ("encoder", "predictor", "y_encoder"))
    before = checkpoint.build_model(plain, Tokenizer.load(folder)).state_dict().keys()
    assert before == checkpoint.load(folder).state_dict().keys()


@pytest.mark.parametrize("chunk", [0, 4])
def test_sparse_experts_train_with_their_operations_counted(chunk, tmp_path):
    plain = changed(chunk=chunk)
    mixture = {"_target_": "jepa.predictors.experts.Mixture", "experts": 4, "top_k": 2, "hidden": 8, "shared": 1}
    plain["model"]["predictor"]["mixture"] = mixture
    folder = train(plain, tmp_path)
    [stage] = stages(folder)
    assert stage["operations"]["parts"]["predictor"]["flops"] > 0
    logged = [row for row in stage["curve"] if "balance" in row]
    assert len(logged) == 1
    assert 0.9 < logged[0]["balance"] <= 4  # 1: all experts alike; 4: one has all


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("default")  # torch's own, while it compiles, are no errors
def test_compiled_parts_train_as_plain_ones(tmp_path, monkeypatch):
    """Through every stage of the compiler but the last, which writes C++ and takes long."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    plain = config("decoder=null")
    counters.clear()
    folders = [train(plain | {"compile": compiled}, tmp_path / str(compiled)) for compiled in (False, True)]
    assert counters["frames"]["ok"] > 0
    assert_same_weights(*folders, rtol=0, atol=1e-4)  # a step moves most by 1e-3


def test_the_parameters_are_printed_by_role(tmp_path, capsys):
    plain = config("jepa=null")
    model = checkpoint.load(train(plain, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:10].strip(): line[10:].replace(",", "").split() for line in lines}
    for role, part in (("X-Encoder", model.x_encoder), ("Y-Decoder", model.y_decoder), ("all", model)):
        assert rows[role][:2] == [str(sum(p.numel() for p in part.parameters()))] * 2
    assert lines[0].split() == ["role", "parameters", "trainable"]


def test_stages_hand_a_checkpoint_on_and_leave_the_rest_as_it_is(tmp_path):
    first = train(config("decoder=null", "clips.query_free=true", "jepa.schedule=constant"), tmp_path / "first")
    second = train(config("decoder=null", "clips.class_fraction=0.3", f"checkpoint={first}"), tmp_path / "second")
    third = train(config("jepa=null", f"checkpoint={second}"), tmp_path / "third")
    assert [stage["name"] for stage in stages(third)] == ["jepa", "jepa", "decoder"]
    assert stages(third)[:2] == stages(second)
    assert parts_that_differ(first, second) == JOINT
    assert parts_that_differ(second, third) == {"y_decoder"}


def test_the_decoder_that_the_predictions_are_read_by_stays_as_it_is(tmp_path):
    first = train(config(), tmp_path / "first")
    start = ["decoder=null", f"checkpoint={first}", "jepa.chunk=4"]
    without = train(config(*start), tmp_path / "without")
    read = train(config(*start, "jepa.decoder_weight=0.5"), tmp_path / "read")
    *_, stage = stages(read)
    counted = stage["operations"]["parts"]["decoder"]
    assert counted["calls"] == 20  # 2 steps of 6, 4 of them encoded again for the backward pass
    assert counted["flops"] > 0
    [value] = [row["val/cross_entropy"] for row in stage["curve"] if "val/cross_entropy" in row]
    assert value == pytest.approx(np.log(512), rel=0.1)  # as good as untrained: any of 512 tokens
    assert parts_that_differ(first, read) == parts_that_differ(without, read) == JOINT
    plain = config("decoder=null", "jepa.decoder_weight=0.5")
    refuses("must come with a checkpoint whose decoder is trained", train, plain, tmp_path / "none")


def test_two_processes_train_as_one_does_on_both_batches(tmp_path):
    """A step's gradient is that of the samples of both, which one process accumulates."""
    cosine = {"_target_": LOSSES + "distance.Cosine"}
    folder = train_in_two_processes(changed(loss=cosine), "ddp", tmp_path / "two")
    [stage] = stages(folder)
    assert (stage["steps"], stage["samples"]) == (2, 24)
    assert_same_weights(folder, train(changed(loss=cosine, accumulate=2), tmp_path / "one"))


def test_sharded_parameters_are_trained_as_whole_ones(tmp_path):
    """With clipped gradients, a learned temperature that is not sharded, slow copies, and a checkpoint half-way."""
    plain = config("jepa.gradient_clip=0.05", "jepa.target=ema", "jepa.ema_decay=0.9", "jepa.learning_rate=0.01")
    plain |= {name: plain[name] | {"validate_every": 1} for name in ("jepa", "decoder")}
    sharded, whole = (train_in_two_processes(plain, strategy, tmp_path / strategy) for strategy in ("fsdp", "ddp"))
    assert_same_weights(sharded, whole)
    checkpoint.load(sharded)  # strictly
    curves = [[stage["curve"] for stage in stages(folder)] for folder in (sharded, whole)]
    for found, wanted in zip(*(chain(*curve) for curve in curves), strict=True):
        assert found == pytest.approx(wanted, abs=1e-4)
    assert stages(sharded)[0]["temperature"] == pytest.approx(stages(whole)[0]["temperature"], rel=1e-6)


def test_what_torch_cannot_shard_is_named():
    part = torch.nn.Linear(2, 2)
    part.scale = torch.nn.Parameter(torch.ones(()))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        refuses(r"Linear cannot be sharded: .*scalar", lambda: shard(part, init_device_mesh("cpu", (1,))))
    finally:
        dist.destroy_process_group()


EMA = {"ema": {"_target_": "lightning.pytorch.callbacks.EMAWeightAveraging"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jepa": None, "decoder": None}, "nothing to train"),
        ({"devices": 2, "strategy": "ddp"}, "must be launched by torchrun --nproc-per-node 2"),
        ({"strategy": "ddp"}, "devices > 1 must come with a strategy"),
        ({"compile": True, "devices": 2, "strategy": "fsdp"}, "compile must be false with strategy fsdp"),
        ({"strategy": "fsdp", "devices": 2, "callbacks": EMA}, "must have whole ones, got strategy fsdp"),
        ({"compile": True}, r"no C\+\+ compiler, g\+\+ or what CXX names, got true"),
        ({"checkpoint": "nowhere"}, "checkpoint not found: nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    refuses(message, lambda: train(config("decoder=null") | change, tmp_path))


def test_the_paper_model_has_the_published_parameters(tokenizer):
    manifests = ["data.train=a", "data.validation=b"]
    paper = validate(compose("train", ["experiment=vl_jepa_paper", *manifests]), TrainConfig)
    plain = validate(compose("train", ["name=paper", "model=vl_jepa_paper", "world.size=256"]), TrainConfig)
    assert (paper.jepa.schedule, paper.jepa.learning_rate, paper.decoder) == ("constant", 5e-5, None)
    with torch.device("meta"):
        roles = checkpoint.build_model(plain.model_dump(), tokenizer).parameters_by_role()
    x_encoder, predictor, y_encoder, _ = roles
    assert (x_encoder["total"], x_encoder["trainable"]) == (303_885_312, 0)  # 304M, frozen
    layer = 2048 * (2 * 2048 + 2 * 512) + 3 * 2048 * 8192 + 2 * 2048
    assert predictor["trainable"] == 8 * layer + 2048 + (1024 + 1) * 2048 + (2048 + 1) * 1536  # 490M
    assert predictor["total"] - predictor["trainable"] == 128256 * 2048  # frozen token embeddings
    assert y_encoder["total"] == y_encoder["trainable"] == 304_044_288  # 300M


class CutOffError(Exception):
    pass


@pytest.mark.parametrize("stage", ["jepa", "decoder"])
def test_what_was_trained_until_a_stage_was_cut_off_is_kept(stage, tmp_path, monkeypatch):
    other = "decoder" if stage == "jepa" else "jepa"
    plain = config(f"{stage}.steps=6", f"{other}=null")
    module = {"jepa": JEPAModule, "decoder": DecoderModule}[stage]
    step, seen = module.training_step, {}

    def until_the_fifth(self, batch, index):
        if index == 4:
            seen.update({name: tensor.clone() for name, tensor in self.state_dict().items()})
            raise CutOffError
        return step(self, batch, index)

    monkeypatch.setattr(module, "training_step", until_the_fifth)
    with pytest.raises(CutOffError):
        train(plain, tmp_path / "cut")
    monkeypatch.undo()
    folder = tmp_path / "cut" / "checkpoint"
    [record] = stages(folder)
    assert (record["name"], record["steps"], record["unfinished"]) == (stage, 4, True)
    kept = load_file(folder / "model.safetensors")
    prefix = {"jepa": ("model.", ""), "decoder": ("decoder.", "y_decoder.")}[stage]
    same = {prefix[1] + name.removeprefix(prefix[0]): t for name, t in seen.items() if name.startswith(prefix[0])}
    assert same
    for name, tensor in same.items():
        if name in kept:
            assert torch.equal(kept[name], tensor), name
    on = train(config(f"{other}=null", f"checkpoint={folder}"), tmp_path / "on")
    assert [(each["steps"], "unfinished" in each) for each in stages(on)] == [(4, True), (2, False)]


def test_a_pretrained_y_encoder_learns_at_a_twentieth_unless_told(tmp_path):
    encoder = {"_target_": "jepa.encoders.sentence.SentenceEncoder", "embedding_dim": 16, "architecture": None}
    architecture = {"model_type": "bert", "vocab_size": 512, "hidden_size": 32, "intermediate_size": 32}
    architecture |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    build({**encoder, "architecture": architecture}).lm.save_pretrained(tmp_path / "bert")
    plain = config("decoder=null")
    plain["model"]["y_encoder"] = {**encoder, "pretrained": str(tmp_path / "bert")}
    first = train(plain, tmp_path / "first")
    again = train(config("decoder=null", f"checkpoint={first}"), tmp_path / "again")
    scratch = train(config("decoder=null"), tmp_path / "scratch")
    told = train(plain | {"jepa": plain["jepa"] | {"y_encoder_lr_multiplier": 0.5}}, tmp_path / "told")
    chosen = [checkpoint.read_config(f)["jepa"]["y_encoder_lr_multiplier"] for f in (first, again, scratch, told)]
    assert chosen == [0.05, 0.05, 1.0, 0.5]
