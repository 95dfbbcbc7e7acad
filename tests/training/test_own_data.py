"""One's own data: manifests and shards, as clips and as states on disk; what the decoder learns from them."""

from __future__ import annotations

import copy
import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import refuses
from PIL import Image
from processes import config, data_of, frozen, pictures, stages, train, train_in_two_processes

from jepa import checkpoint
from jepa.config import validate
from jepa.data.clips import ClipBatch
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifests import read_manifest
from jepa.data.shards import write_shards
from jepa.training.configs import JEPAStageConfig, TrainConfig
from jepa.training.modules import JEPAModule
from jepa.training.own_data import OwnData

pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")


def own_data(data: dict[str, Any], model: Any, workers: int = 0) -> OwnData:
    return OwnData(validate(config() | {"data": data, "workers": workers}, TrainConfig), model)


def decoder_source(data: dict[str, Any], model: Any, clips: int = 0, workers: int = 0) -> Any:
    """Of seed 0, with the media that were left out."""
    skipped = Counter[str]()
    return *own_data(data, model, workers).decoder_source("train", 0, clips, skipped), skipped


@pytest.mark.parametrize("workers", [0, 1])
def test_media_that_are_left_out_are_counted_and_named(workers, tmp_path, capsys):
    manifest = pictures(tmp_path / "pictures", 4)
    (tmp_path / "pictures" / "2.png").write_bytes(b"no picture")
    plain = config("decoder=null") | {"workers": workers, "data": data_of(manifest)}
    refuses(r"2\.png: cannot be read as a picture", train, plain, tmp_path / "refused")
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
        refuses(message, train, plain | {"workers": 2, "data": data | change}, tmp_path / "refused")


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
    monkeypatch.setattr("jepa.training.own_data.write_features", partial(write_features, per_file=1))
    refuses(r"3\.png: cannot be read", train, plain, tmp_path / "stopped")
    assert not (tmp_path / "states").exists()
    assert len(Features(tmp_path / "states.partial")) == 3
    (tmp_path / "3.png").rename(tmp_path / "pictures" / "3.png")
    train(plain, tmp_path / "run")
    assert len(Features(tmp_path / "states")) == 4
    assert not (tmp_path / "states.partial").exists()


def manifest_data(folder: Path, **changes: Any) -> dict[str, Any]:
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
    data = manifest_data(tmp_path)
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
    data = manifest_data(tmp_path, features=str(tmp_path / "features"))
    encoder, reader = copy.deepcopy(tiny_model.x_encoder), ClipReader(tiny_model.frames, tiny_model.x_encoder.size)
    write_features(encoder, reader, [s.media for s in read_manifest(Path(data["train"]))], tmp_path / "features", 2)
    refuses(r"frozen .*, got a trained FrameViT", train, config("decoder=null") | {"data": data}, tmp_path)
    batch = ClipBatch(torch.zeros(2, 32, 32), [""] * 2, ["a"] * 2, [])
    refuses("need a frozen X-Encoder", JEPAModule(tiny_model, JEPAStageConfig()).encode, batch)


def test_the_decoder_learns_from_a_manifest(tmp_path):
    """Texts of all kinds that have a fraction, predictions of their clips, and no world."""
    data = manifest_data(tmp_path)
    first = train(config("decoder=null", "world.size=64") | {"data": data}, tmp_path / "first")
    longer = ["decoder.steps=300", "decoder.validate_every=300", "decoder.noise=0.0"]
    folder = train(config("jepa=null", f"checkpoint={first}", *longer) | {"data": data}, tmp_path / "second")
    assert [stage["name"] for stage in stages(folder)] == ["jepa", "decoder"]
    assert checkpoint.read_config(folder)["world"]["size"] == 64  # that of the first stage
    model = checkpoint.load(folder)
    texts = ["a red square", "a square", "square", "this"]
    found, said, streams, _ = decoder_source(data, model)
    assert said == texts
    torch.testing.assert_close(found, model.embed_all(texts))
    assert set(streams.texts) < set(texts)
    assert len(streams.latents) == 3
    assert [decoded.text for decoded in model.decode(found)] == texts
    one = decoder_source(data | {"fractions": {"class": 1.0}}, model)
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
    own_data(states, model).write_missing_features()
    for clips in (0, 5):
        first = decoder_source(listed, model, clips, workers)
        for data in (packed, states):
            second = decoder_source(data, model, clips, workers)
            assert (second[1], second[2].texts) == (first[1], first[2].texts)
            torch.testing.assert_close(second[0], first[0])
            torch.testing.assert_close(second[2].latents, first[2].latents)
    paths[2].write_bytes(paths[2].read_bytes()[:-4096])
    refuses(r"shard-00002\.tar: ", decoder_source, packed, model, 0, workers)
    assert len(decoder_source(packed | {"skip_broken": True}, model, 0, workers)[2].latents) >= 6


def test_both_stages_learn_from_shards(tmp_path):
    write_shards(pictures(tmp_path / "pictures", 12), tmp_path / "shards", 6)
    data = data_of(Path(f"{tmp_path}/shards/shard-*.tar"), features=f"{tmp_path}/states")
    folder = train(frozen(config()) | {"data": data}, tmp_path / "run")
    assert [(stage["name"], stage["skipped"]) for stage in stages(folder)] == [("jepa", {}), ("decoder", {})]


def test_clips_with_the_same_text_stand_together(tmp_path, tiny_model):
    data = manifest_data(tmp_path)
    lines = [{"media": f"{number % 3}.png", "label": label} for number, label in enumerate("abaaba")]
    Path(data["train"]).write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    fractions = {"fractions": {"class": 1.0}}
    _, texts, streams, _ = decoder_source(data | fractions, tiny_model)
    assert (texts, streams.texts) == (["a", "b"], ["a", "b"])
    assert (streams.first.tolist(), streams.last.tolist()) == ([0, 4], [3, 5])
    torch.testing.assert_close(streams.latents[1], streams.latents[3])  # of lines 3 and 6: both show 2.png
    assert len(decoder_source(data | fractions, tiny_model, clips=2)[2].latents) == 2
    with Path(data["train"]).open("a", encoding="utf-8") as file:
        file.write('\n{"media": "broken.png", "label": "c"}')
    refuses(r"broken\.png", decoder_source, data | fractions, tiny_model)
    *_, streams, skipped = decoder_source(data | fractions | {"skip_broken": True}, tiny_model)
    assert len(streams.latents) == 6
    [(message, times)] = skipped.items()
    assert (message.split(": ")[0], times) == (str(broken), 1)


@pytest.mark.parametrize("part", ["predictor", "y_encoder", "y_decoder"])
def test_texts_too_long_are_named_before_training(part, tmp_path):
    data, plain = manifest_data(tmp_path), config()
    long = {"media": "0.png", "question": "which of the two is it now?", "answer": "the one that is left of the other"}
    with Path(data["validation"]).open("a", encoding="utf-8") as file:
        file.write("\n\n" + json.dumps(long))
    plain["model"][part]["max_length"] = 8
    refuses(rf"manifest\.jsonl:5: {part}: .* at most 8 tokens, got \d+: '", train, plain | {"data": data}, tmp_path)
    packed = write_shards(Path(data["validation"]), tmp_path / "shards", 9)
    shards = data | {"validation": str(packed[0]), "train": str(packed[0]), "fractions": None}
    refuses(rf"shard-00000\.tar: .*: {part}: .* at most 8 tokens", train, plain | {"data": shards}, tmp_path)
    if part == "y_decoder":  # which does not read it unless it is trained
        train(plain | {"data": data, "decoder": None}, tmp_path)
