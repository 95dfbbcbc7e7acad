"""Stages of a VL-JEPA: every option trains, checkpoints are handed on, batches and devices make one large batch."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
import torch.distributed as dist
from conftest import tiny_config
from PIL import Image
from processes import assert_same_weights, train, train_in_two_processes
from safetensors.torch import load_file
from torch._dynamo.utils import counters
from torch.distributed.device_mesh import init_device_mesh

from jepa import checkpoint
from jepa.build import build
from jepa.cli import compose
from jepa.config import JEPAStageConfig, ManifestsConfig, TrainConfig, validate
from jepa.data.clips import CLASS_QUERY, ClipBatch, ClipBatches
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifests import read_manifest
from jepa.data.shards import write_shards
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import SOLO_ACTIONS, World
from jepa.errors import InputError
from jepa.training import own_data as own
from jepa.training.modules import DecoderModule, JEPAModule, text_ids
from jepa.training.sharding import shard

pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
LOSSES = "jepa.losses."


def config(*overrides: str) -> dict[str, Any]:
    """Two steps of each stage of a tiny model, on a CPU."""
    short = [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("steps=2", "batch_size=6", "warmup_steps=0")]
    short += [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("validate_every=2", "validation_batches=1")]
    short += ["decoder.streams=1", "decoder.stream_seconds=6", "workers=0", "accelerator=cpu", "precision=32-true"]
    plain = validate(compose("train", ["name=tiny", *short, *overrides]), TrainConfig)
    return plain.model_dump() | {"model": tiny_config()["model"]}


def changed(**jepa: Any) -> dict[str, Any]:
    plain = config("decoder=null")
    return plain | {"jepa": plain["jepa"] | jepa}


def decoder_source(data: dict[str, Any], *arguments: Any, **more: Any) -> Any:
    return own.decoder_source(ManifestsConfig(**data), *arguments, **more)


def stages(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
    return found


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
    rows = 6 * passes * (2 if name == "chunks" else 1)  # encoded again for the backward pass
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
def test_compiled_parts_train_as_plain_ones(tmp_path):
    plain = config("decoder=null")
    counters.clear()
    folders = [train(plain | {"compile": compiled}, tmp_path / str(compiled)) for compiled in (False, True)]
    assert counters["frames"]["ok"] > 0
    one, other = (load_file(folder / "model.safetensors") for folder in folders)
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, rtol=0, atol=1e-4)  # a step moves most by 1e-3


def test_the_parameters_are_printed_by_role(tmp_path, capsys):
    plain = config("jepa=null")
    model = checkpoint.load(train(plain, tmp_path))
    lines = capsys.readouterr().out.splitlines()
    rows = {line[:10].strip(): line[10:].replace(",", "").split() for line in lines}
    for role, part in (("X-Encoder", model.x_encoder), ("Y-Decoder", model.y_decoder), ("all", model)):
        assert rows[role][:2] == [str(sum(p.numel() for p in part.parameters()))] * 2
    assert lines[0].split() == ["role", "parameters", "trainable"]


def test_compiling_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(InputError, match="no C\\+\\+ compiler, g\\+\\+ or what CXX names, got true"):
        train(config("compile=true"), tmp_path)


def test_stages_hand_a_checkpoint_on_and_leave_the_rest_as_it_is(tmp_path):
    first = train(config("decoder=null", "clips.query_free=true", "jepa.schedule=constant"), tmp_path / "first")
    second = train(config("decoder=null", "clips.class_fraction=0.3", f"checkpoint={first}"), tmp_path / "second")
    third = train(config("jepa=null", f"checkpoint={second}"), tmp_path / "third")
    assert [stage["name"] for stage in stages(third)] == ["jepa", "jepa", "decoder"]
    assert stages(third)[:2] == stages(second)
    a, b, c = (load_file(folder / "model.safetensors") for folder in (first, second, third))
    differ = [{name.partition(".")[0] for name in x if not torch.equal(x[name], y[name])} for x, y in ((a, b), (b, c))]
    assert differ == [{"x_encoder", "predictor", "y_encoder"}, {"y_decoder"}]


def test_the_decoder_that_the_predictions_are_read_by_stays_as_it_is(tmp_path):
    first = train(config(), tmp_path / "first")
    start = ["decoder=null", f"checkpoint={first}", "jepa.chunk=4"]
    without = train(config(*start), tmp_path / "without")
    read = train(config(*start, "jepa.decoder_weight=0.5"), tmp_path / "read")
    *_, stage = stages(read)
    assert stage["operations"]["parts"]["decoder"]["calls"] == 24  # 2 steps of 6, encoded again for the backward pass
    assert stage["operations"]["parts"]["decoder"]["flops"] > 0
    [value] = [row["val/cross_entropy"] for row in stage["curve"] if "val/cross_entropy" in row]
    assert value == pytest.approx(np.log(512), rel=0.1)  # as good as untrained: any of 512 tokens
    a, b, c = (load_file(folder / "model.safetensors") for folder in (first, without, read))
    differ = [{name.partition(".")[0] for name in x if not torch.equal(x[name], y[name])} for x, y in ((a, c), (b, c))]
    assert differ == [{"x_encoder", "predictor", "y_encoder"}] * 2
    with pytest.raises(InputError, match=r"decoder_weight > 0 must come with a checkpoint whose decoder is trained"):
        train(config("decoder=null", "jepa.decoder_weight=0.5"), tmp_path / "none")


def test_frozen_parts_stay_as_they_are_and_out_of_the_optimizer(tiny_model):
    stage = JEPAStageConfig(**changed(target="stop_gradient")["jepa"])
    model = copy.deepcopy(tiny_model)
    model.x_encoder.requires_grad_(False)
    module = JEPAModule(model, stage)
    grouped = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for part in (model.predictor, module.loss) for p in part.parameters()}


def gradients(module: JEPAModule, batches: list[ClipBatch]) -> dict[str, torch.Tensor]:
    module.log = lambda *_, **__: None
    module.zero_grad()
    for batch in batches:
        (module.training_step(batch, 0) / len(batches)).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def halves(batch: ClipBatch) -> list[ClipBatch]:
    return [ClipBatch(*(field[rows] for field in batch[:3]), []) for rows in (slice(0, 4), slice(4, 8))]


@pytest.mark.parametrize(
    ("loss", "equal"), [("distance.Cosine", True), ("distance.L2", True), ("infonce.InfoNCE", False)]
)
def test_accumulated_batches_are_the_large_one_unless_rows_are_compared(loss, equal, tiny_model):
    module = JEPAModule(copy.deepcopy(tiny_model), JEPAStageConfig(**changed(loss={"_target_": LOSSES + loss})["jepa"]))
    batch = ClipBatches(World(), 0, 8, 1, hard_negatives=0)[0]
    whole, parts = gradients(module, [batch]), gradients(module, halves(batch))
    close = [torch.allclose(whole[name], parts[name], atol=1e-5) for name in whole]
    assert all(close) == equal


@pytest.mark.parametrize(("target", "decoder_weight"), [("gradient", 0.0), ("ema", 0.0), ("ema", 0.5)])
def test_chunks_give_the_gradients_of_the_whole_batch(target, decoder_weight, tiny_model):
    batch = ClipBatches(World(), 0, 8, 1)[0]
    found = []
    for chunk in (0, 3):
        stage = JEPAStageConfig(**changed(chunk=chunk, target=target, decoder_weight=decoder_weight)["jepa"])
        found.append(gradients(JEPAModule(copy.deepcopy(tiny_model), stage), [batch]))
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        torch.testing.assert_close(found[0][name], found[1][name], atol=1e-5, rtol=1e-3)


def test_a_constant_rate_stays_after_the_warm_up(tiny_model):
    stage = changed(schedule="constant", warmup_steps=2, steps=6, learning_rate=1e-2)["jepa"]
    [optimizer], [schedule] = JEPAModule(copy.deepcopy(tiny_model), JEPAStageConfig(**stage)).configure_optimizers()
    rates = []
    for _ in range(6):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates == pytest.approx([0.005, *[0.01] * 5])


def test_classes_and_captions_without_a_query():
    batch = ClipBatches(World(), 0, 64, 1, class_fraction=0.5, query_free=True)[0]
    assert {"", CLASS_QUERY} < set(batch.queries)
    names = {text for query, text in zip(batch.queries, batch.texts, strict=True) if query == CLASS_QUERY}
    assert {phrases[0] for phrases in SOLO_ACTIONS.values()} & names
    assert not {"the", "a", "red", "circle", "{o}"} & {word for name in names for word in name.split()}
    assert text_ids(["a"]).equal(text_ids(["b", "a"])[1:])


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
        with pytest.raises(InputError, match=r"Linear cannot be sharded: .*scalar"):
            shard(part, init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"jepa": None, "decoder": None}, "nothing to train"),
        ({"devices": 2, "strategy": "ddp"}, "must be launched by torchrun --nproc-per-node 2"),
        ({"strategy": "ddp"}, "devices > 1 must come with a strategy"),
        ({"compile": True, "devices": 2, "strategy": "fsdp"}, "compile must be false with strategy fsdp"),
        ({"checkpoint": "nowhere"}, "checkpoint not found: nowhere"),
    ],
)
def test_what_cannot_be_trained_is_refused(change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        train(config("decoder=null") | change, tmp_path)


def test_a_regulariser_comes_with_its_weight(tiny_model):
    with pytest.raises(InputError, match=r"regulariser and jepa\.regulariser_weight must be given together"):
        JEPAModule(tiny_model, JEPAStageConfig(**changed(regulariser_weight=0.1)["jepa"]))


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


def data_of(path: Path, **changes: Any) -> dict[str, Any]:
    """`data` of a manifest or of shards."""
    data = {"train": str(path), "validation": str(path), "features": None, "fps": None, "skip_broken": False}
    prompts = {"captions": [""], "classes": ["what is it?"], "label": "{label}"}
    return data | {"fractions": None, "buffer": 2, "prompts": prompts} | changes


def frozen(plain: dict[str, Any]) -> dict[str, Any]:
    """The same with an X-Encoder that is frozen."""
    size = {"img_size": 48, "patch_size": 12, "embed_dim": 32, "depth": 1, "num_heads": 2}
    target = {"_target_": "jepa.encoders.vision_timm.TimmEncoder", "name": "vit_tiny_patch16_224", "size": 48}
    return plain | {"model": plain["model"] | {"x_encoder": {**target, **size, "frozen": True}}}


def pictures(folder: Path, count: int) -> Path:
    """A manifest of captioned pictures."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    lines = [{"media": f"{number}.png", "captions": [f"picture {number}"]} for number in range(count)]
    (folder / "m.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return folder / "m.jsonl"


@pytest.mark.parametrize("workers", [0, 1])
def test_media_that_are_left_out_are_counted_and_named(workers, tmp_path, capsys):
    manifest = pictures(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no picture")
    plain = config("decoder=null") | {"workers": workers, "data": data_of(manifest)}
    with pytest.raises(InputError, match=r"2\.png: cannot be read as a picture"):
        train(plain, tmp_path / "refused")
    plain["data"]["skip_broken"] = True
    folder = train(plain, tmp_path / "run")
    [stage] = stages(folder)
    [(message, times)] = stage["skipped"].items()
    assert message == f"{tmp_path}/pictures/2.png: cannot be read as a picture: its format is not known"
    assert times >= 3 + 1  # three of the four media's epochs, of 12 samples; and one of validation, of 6
    assert f"skipped 1 media that cannot be read, {times} times:\n{message}" in capsys.readouterr().out
    logged = [row["skipped"] for row in stage["curve"] if "skipped" in row]
    assert logged
    assert 3 <= logged[-1] < times  # before the validation at the end


def test_shards_are_trained_on_as_clips_and_as_features(tmp_path, capsys):
    """Nothing learns at this rate: the loss of the first batch tells whether the same was read."""
    paths = write_shards(pictures(tmp_path / "pictures", 12), tmp_path / "shards", 6)
    plain = frozen(config("decoder=null", "jepa.batch_size=6", "jepa.learning_rate=1e-9"))
    data = data_of(Path(f"{tmp_path}/shards/shard-*.tar"))
    losses = []
    for features in (None, f"{tmp_path}/states", f"{tmp_path}/states"):
        chosen = plain | {"data": data | {"features": features}}
        [stage] = stages(train(chosen, tmp_path / f"run {len(losses)}"))
        assert (stage["steps"], stage["samples"]) == (2, 12)
        losses.append([row[key] for row in stage["curve"] for key in ("loss", "val/retrieval@1") if key in row])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[1] == losses[2]
    assert capsys.readouterr().out.count(f"features: {tmp_path}/states") == 1  # written once, then read
    assert len(Features(tmp_path / "states")) == 12
    mixed = plain | {"data": data | {"validation": str(tmp_path / "pictures" / "m.jsonl")}}
    [stage] = stages(train(mixed, tmp_path / "mixed"))
    assert stage["steps"] == 2
    for change, message in (
        ({"fractions": {"caption": 1.0}}, "data.fractions must be null with shards"),
        ({"train": str(paths[0])}, "data.train must name a shard for each of 2 readers .*, got 1: "),
        ({"validation": f"{tmp_path}/shards/none.tar"}, "shard not found: .*none.tar"),
    ):
        with pytest.raises(InputError, match=message):
            train(plain | {"workers": 2, "data": data | change}, tmp_path / "refused")


def test_two_processes_share_shards_and_features(tmp_path):
    """Both read a shard of their own; the first writes the states, and the other waits for them."""
    write_shards(pictures(tmp_path / "pictures", 12), tmp_path / "shards", 6)
    data = data_of(Path(f"{tmp_path}/shards/shard-{{00000..00001}}.tar"), features=f"{tmp_path}/states")
    folder = train_in_two_processes(frozen(config("decoder=null")) | {"data": data}, "ddp", tmp_path / "two")
    [stage] = stages(folder)
    assert (stage["steps"], stage["samples"], stage["skipped"]) == (2, 24, {})
    assert len(Features(tmp_path / "states")) == 12


def test_a_stopped_run_goes_on_with_its_features(tmp_path, monkeypatch):
    manifest = pictures(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / "3.png").rename(tmp_path / "3.png")
    (tmp_path / "pictures" / "3.png").write_bytes(b"no picture")
    plain = frozen(config("decoder=null")) | {"data": data_of(manifest, features=f"{tmp_path}/states")}
    monkeypatch.setattr(own, "write_features", partial(write_features, per_file=1))
    with pytest.raises(InputError, match=r"3\.png: cannot be read"):
        train(plain, tmp_path / "stopped")
    assert not (tmp_path / "states").exists()
    assert len(Features(tmp_path / "states.partial")) == 3
    (tmp_path / "3.png").rename(tmp_path / "pictures" / "3.png")
    train(plain, tmp_path / "run")
    assert len(Features(tmp_path / "states")) == 4
    assert not (tmp_path / "states.partial").exists()


def own_data(folder: Path, **changes: Any) -> dict[str, Any]:
    """`data` of a manifest in the folder: a picture with captions, one with a question, one with a class."""
    rng = np.random.default_rng(0)
    lines = [{"captions": ["a red square", "a square"]}, {"question": "what?", "answer": "this"}, {"label": "square"}]
    for number, line in enumerate(lines):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        line["media"] = f"{number}.png"
    manifest = folder / "manifest.jsonl"
    manifest.write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return data_of(manifest, fractions={"caption": 2.0, "question": 1.0, "class": 1.0}) | changes


def test_manifests_are_trained_on_as_clips_and_as_features(tmp_path, tokenizer):
    """The same loss from pictures and from their states on disk."""
    data = own_data(tmp_path)
    plain = frozen(config("decoder=null", "jepa.batch_size=4", "jepa.learning_rate=1e-9"))
    torch.manual_seed(0)
    model = checkpoint.build_model(plain, tokenizer)
    start = tmp_path / "start"
    checkpoint.save(model, plain, start)
    (start / "training.json").write_text('{"stages": []}', encoding="utf-8")
    reader = ClipReader(model.frames, model.x_encoder.size)
    media = [sample.media for sample in read_manifest(Path(data["train"]))]
    write_features(model.x_encoder, reader, media, tmp_path / "features", batch_size=2)
    losses = []
    for features in (None, str(tmp_path / "features")):
        chosen = data | {"features": features}
        folder = train(plain | {"checkpoint": str(start), "data": chosen}, tmp_path / f"run {features is None}")
        losses.append(next(row["loss"] for row in stages(folder)[0]["curve"] if "loss" in row))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_states_on_disk_are_refused_if_the_encoder_is_trained(tmp_path, tiny_model):
    data = own_data(tmp_path, features=str(tmp_path / "features"))
    encoder, reader = copy.deepcopy(tiny_model.x_encoder), ClipReader(tiny_model.frames, tiny_model.x_encoder.size)
    write_features(encoder, reader, [s.media for s in read_manifest(Path(data["train"]))], tmp_path / "features", 2)
    with pytest.raises(InputError, match=r"an X-Encoder that is frozen .*, got a FrameViT that is trained"):
        train(config("decoder=null") | {"data": data}, tmp_path)
    states = torch.zeros(2, 32, 32)
    with pytest.raises(InputError, match="need a frozen X-Encoder"):
        JEPAModule(tiny_model, JEPAStageConfig(**changed()["jepa"])).embeddings(
            ClipBatch(states, [""] * 2, ["a"] * 2, [])
        )


def test_slow_copies_follow_once_a_step(tiny_model):
    module = JEPAModule(copy.deepcopy(tiny_model), JEPAStageConfig(**changed(target="ema", accumulate=2)["jepa"]))
    callback, trainer = module.average(), L.Trainer(accumulate_grad_batches=2, accelerator="cpu", logger=False)
    with torch.no_grad():
        for parameter in module.pair().parameters():
            parameter.add_(1.0)
    moved = []
    for index in range(4):
        before = next(module.teacher.parameters()).clone()
        callback.on_train_batch_end(trainer, module, None, None, index)
        moved.append(not torch.equal(next(module.teacher.parameters()), before))
    assert moved == [False, True, False, True]


def test_the_decoder_learns_from_a_manifest(tmp_path):
    """Texts of all kinds that have a fraction, predictions of their clips, and no world."""
    data = own_data(tmp_path)
    first = train(config("decoder=null", "world.size=64") | {"data": data}, tmp_path / "first")
    longer = ["decoder.steps=300", "decoder.validate_every=300", "decoder.noise=0.0"]
    folder = train(config("jepa=null", f"checkpoint={first}", *longer) | {"data": data}, tmp_path / "second")
    assert [stage["name"] for stage in stages(folder)] == ["jepa", "decoder"]
    assert checkpoint.read_config(folder)["world"]["size"] == 64  # that of the first stage
    model = checkpoint.load(folder)
    texts = ["a red square", "a square", "square", "this"]
    found, said, streams = decoder_source(data, model, "train", seed=0, clips=0, workers=0)
    assert said == texts
    torch.testing.assert_close(found, model.embed_all(texts))
    assert set(streams.texts) < set(texts)
    assert len(streams.latents) == 3
    assert [decoded.text for decoded in model.decode(found)] == texts
    one = decoder_source(data | {"fractions": {"class": 1.0}}, model, "train", seed=0, clips=0, workers=0)
    assert one[1] == one[2].texts == ["square"]
    clip = ClipReader(model.frames, 48)(read_manifest(Path(data["train"]))[2].media)
    expected = model.predict(model.encode(clip[None]), ["what is it?"]).detach()
    torch.testing.assert_close(one[2].latents, expected)


@pytest.mark.parametrize("workers", [0, 2])
def test_the_decoder_learns_the_same_from_shards(workers, tmp_path, tiny_model):
    """As clips and as states, which are written where they are missing; a shard that breaks off is refused or cut."""
    model = copy.deepcopy(tiny_model).eval()
    listed = data_of(pictures(tmp_path / "pictures", 8))
    paths = write_shards(Path(listed["train"]), tmp_path / "shards", 3)
    packed = data_of(Path(f"{tmp_path}/shards/shard-*.tar"))
    states = packed | {"features": f"{tmp_path}/states"}
    own.write_missing_features(validate(config() | {"data": states}, TrainConfig), model)
    for clips in (0, 5):
        first = decoder_source(listed, model, "train", 0, clips, workers)
        for data in (packed, states):
            second = decoder_source(data, model, "train", 0, clips, workers)
            assert (second[1], second[2].texts) == (first[1], first[2].texts)
            torch.testing.assert_close(second[0], first[0])
            torch.testing.assert_close(second[2].latents, first[2].latents)
    paths[2].write_bytes(paths[2].read_bytes()[:-4096])
    with pytest.raises(InputError, match=r"shard-00002\.tar: "):
        decoder_source(packed, model, "train", 0, 0, workers)
    assert len(decoder_source(packed | {"skip_broken": True}, model, "train", 0, 0, workers)[2].latents) >= 6


def test_both_stages_learn_from_shards(tmp_path):
    write_shards(pictures(tmp_path / "pictures", 12), tmp_path / "shards", 6)
    data = data_of(Path(f"{tmp_path}/shards/shard-*.tar"), features=f"{tmp_path}/states")
    folder = train(frozen(config()) | {"data": data}, tmp_path / "run")
    assert [(stage["name"], stage["skipped"]) for stage in stages(folder)] == [("jepa", {}), ("decoder", {})]


def test_clips_with_the_same_text_stand_together(tmp_path, tiny_model):
    data = own_data(tmp_path)
    lines = [{"media": f"{number % 3}.png", "label": label} for number, label in enumerate("abaaba")]
    Path(data["train"]).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    fractions = {"fractions": {"class": 1.0}}
    _, texts, streams = decoder_source(data | fractions, tiny_model, "train", seed=0, clips=0, workers=0)
    assert (texts, streams.texts) == (["a", "b"], ["a", "b"])
    assert (streams.first.tolist(), streams.last.tolist()) == ([0, 4], [3, 5])
    torch.testing.assert_close(streams.latents[1], streams.latents[3])  # of lines 3 and 6: both show 2.png
    assert len(decoder_source(data | fractions, tiny_model, "train", seed=0, clips=2, workers=0)[2].latents) == 2
    with Path(data["train"]).open("a", encoding="utf-8") as file:
        file.write('\n{"media": "broken.png", "label": "c"}')
    with pytest.raises(InputError, match=r"broken\.png"):
        decoder_source(data | fractions, tiny_model, "train", seed=0, clips=0, workers=0)
    skipped, left_out = data | fractions | {"skip_broken": True}, Counter[str]()
    found = decoder_source(skipped, tiny_model, "train", seed=0, clips=0, workers=0, skipped=left_out)
    assert len(found[2].latents) == 6
    [(message, times)] = left_out.items()
    assert (message.split(": ")[0], times) == (str(broken), 1)


@pytest.mark.parametrize("part", ["predictor", "y_encoder", "y_decoder"])
def test_texts_too_long_are_named_before_training(part, tmp_path):
    data, plain = own_data(tmp_path), config()
    long = {"media": "0.png", "question": "which of the two is it now?", "answer": "the one that is left of the other"}
    with Path(data["validation"]).open("a", encoding="utf-8") as file:
        file.write("\n\n" + json.dumps(long))
    plain["model"][part]["max_length"] = 8
    with pytest.raises(InputError, match=rf"manifest\.jsonl:5: {part}: a text must have at most 8 tokens, got \d+: '"):
        train(plain | {"data": data}, tmp_path)
    packed = write_shards(Path(data["validation"]), tmp_path / "shards", 9)
    shards = data | {"validation": str(packed[0]), "train": str(packed[0]), "fractions": None}
    with pytest.raises(InputError, match=rf"shard-00000\.tar: .*: {part}: a text must have at most 8 tokens"):
        train(plain | {"data": shards}, tmp_path)
    if part == "y_decoder":  # which does not read it unless it is trained
        train(plain | {"data": data, "decoder": None}, tmp_path)


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


@pytest.mark.parametrize("multiplier", [None, 0.05])
def test_the_multiplier_is_that_of_the_y_encoder_alone(multiplier, tiny_model):
    stage = JEPAStageConfig(**changed(y_encoder_lr_multiplier=multiplier, learning_rate=0.1, warmup_steps=0)["jepa"])
    module = JEPAModule(copy.deepcopy(tiny_model), stage)
    rates = {id(p): group.get("lr", 0.1) for group in module.parameter_groups() for p in group["params"]}
    assert {rates[id(p)] for p in module.model.y_encoder.parameters()} == {0.1 * (multiplier or 1)}
    assert {rates[id(p)] for p in module.model.predictor.parameters()} == {0.1}
