"""What others wrote is read as data: nothing in it runs, reaches out of its folder, or takes more than it is worth."""

from __future__ import annotations

import builtins
import gzip
import io
import json
import pickle
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from conftest import LLAMA, Program, changed_file, refuses, write_video
from PIL import Image

from jepa import checkpoint
from jepa.data.features import Features
from jepa.data.json_lines import write_lines
from jepa.data.manifests import read_manifest
from jepa.data.media import Media, read_clip
from jepa.data.pretrained_tokenizer import load_tokenizer
from jepa.data.shards import read_shard
from jepa.encoders.language import LanguageModel
from jepa.encoders.vision_vjepa21 import VJEPA21
from jepa.results import StreamResults, read_document

TOUCH = "touch was_run"


@pytest.fixture(autouse=True)
def watched(tmp_path, monkeypatch, script) -> Iterator[None]:
    """No program is started, no socket opened, and nothing written but in the test's folder."""
    monkeypatch.chdir(tmp_path)
    with script("fuzz").guarded(tmp_path):
        yield
    assert not (tmp_path / "was_run").exists()


@pytest.fixture
def folder(tiny_checkpoint, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path / "checkpoint"))


def tar(path: Path, *members: tuple[str, bytes], **changed: Any) -> Path:
    """A shard; `changed` are attributes of its last member."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as file:
        for number, (name, content) in enumerate(members, start=1):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in changed.items() if number == len(members) else ():
                setattr(info, key, value)
            file.addfile(info, io.BytesIO(content))
    return path


def png(width: int, height: int) -> bytes:
    """A picture whose head promises more than there is."""
    image = io.BytesIO()
    Image.new("L", (1, 1)).save(image, "PNG")
    head = b"IHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + image.getvalue()[24:29]
    return image.getvalue()[:12] + head + zlib.crc32(head).to_bytes(4, "big") + image.getvalue()[33:]


LINE = json.dumps({"media": "0.png", "captions": ["a ramp"]}).encode()
READERS: dict[str, Callable[[Path], object]] = {
    "model.safetensors": lambda path: checkpoint.load(path.parent),
    "tokenizer.json": lambda path: checkpoint.load(path.parent),
    "config.yaml": lambda path: checkpoint.load(path.parent),
    "training.json": lambda path: checkpoint.read_stages(path.parent),
    "v.pt": lambda path: VJEPA21(str(path), size=32),
    "features.json": lambda path: Features(path.parent),
    "results.json": lambda path: read_document(path, StreamResults),
    "m.jsonl": read_manifest,
    "0.tar": lambda path: list(read_shard(path)),
    "a.mp4": lambda path: read_clip(Media(path.name, path), 2, 8),
    "a.png": lambda path: read_clip(Media(path.name, path), 2, 8),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_is_not_run(folder, name):
    torch.save({"ema_encoder": Program()}, folder / "by_torch")
    for content in (pickle.dumps(Program()), (folder / "by_torch").read_bytes()):
        (folder / name).write_bytes(content)
        refuses(name.replace(".", r"\."), READERS[name], folder / name)


def test_pickles_beside_a_checkpoint_or_within_a_shard_are_passed_over(folder):
    torch.save(Program(), folder / "pytorch_model.bin")
    checkpoint.load(folder)
    program = pickle.dumps(Program())
    path = tar(folder / "0.tar", ("0.json", LINE), ("0.png", program), ("0.pkl", program))
    [sample] = read_shard(path)
    refuses(r"0\.png: cannot be read as a picture", read_clip, sample.media, 2, 8)


@pytest.mark.parametrize("key", ["model", "model.x_encoder", "model.predictor.mixture", "world"])
@pytest.mark.parametrize(
    "node",
    [
        {"_target_": "os.system", "command": TOUCH},
        {"_target_": "jepa.cli.main", "argv": ["train", "experiment=demo"]},
        {"_target_": "torch.nn.Linear", "in_features": 1, "out_features": 1},
        {"_target_": "timm.create_model", "model_name": "resnet18", "checkpoint_path": "pytorch_model.bin"},
    ],
)
def test_a_checkpoint_calls_its_parts_alone(folder, key, node):
    changed_file(folder / "config.yaml", key, node)
    refuses(rf"config.yaml: {key}._target_ must lie within jepa\.\w+.*{node['_target_']}", checkpoint.load, folder)


# 4 ** 10 values
LAUGHS = "a: &a [1, 1, 1, 1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}, *{a}]\n" for a, b in pairwise("abcdefghij"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f'!!python/object/apply:os.system ["{TOUCH}"]', "not YAML: could not determine a constructor"),
        (f"name: !!python/object/new:os.system [{TOUCH}]", "not YAML: could not determine a constructor"),
        (LAUGHS, "must have at most 100000 values"),
        ("a: &a [*a]", "must have at most 100000 values"),
        ("[" * 600, "not YAML: maximum recursion"),
        ("created: !!timestamp soon", "not YAML"),
    ],
)  # fmt: skip
def test_a_configuration_is_plain_and_small(folder, text, message):
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    refuses(rf"config\.yaml: {message}", checkpoint.load, folder)


@pytest.mark.parametrize(("key", "value"), [("vocab_size", 10**7), ("depth", 10**400)])
def test_a_model_is_no_larger_than_its_weights(folder, key, value):
    """It is refused before values are drawn: here they would take 1.3 GB, and for ever."""
    changed_file(folder / "config.yaml", f"model.y_encoder.{key}", value)
    refuses(r"must fit its weights, \d+ tensors, got one that is larger", checkpoint.load, folder)


def test_no_code_comes_with_a_model_of_transformers(tmp_path, monkeypatch):
    """Asked whether to run it, we would say yes."""
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    (tmp_path / "own.py").write_text(f"import os\nos.system({TOUCH!r})\nclass Own: ...\n", encoding="utf-8")
    code = {f"Auto{kind}": "own.Own" for kind in ("Config", "Model", "ModelForCausalLM")}
    config = {"model_type": "own", "auto_map": code | {"AutoTokenizer": ["own.Own", None]}, "tokenizer_class": "Own"}
    for name in ("config.json", "tokenizer_config.json"):
        (tmp_path / name).write_text(json.dumps(config), encoding="utf-8")
    for load in (LanguageModel, load_tokenizer):
        refuses("cannot be loaded", load, str(tmp_path))
    refuses("cannot be built", LanguageModel, architecture={**LLAMA, "auto_map": code, "model_type": "albert"})


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 1)])
def test_a_picture_that_grows_is_refused(size):
    refuses(r"a\.png: cannot be read as a picture", lambda: read_clip(Media("a.png", png(*size)), 2, 8))


def test_a_video_as_wide_as_a_line_is_refused(tmp_path):
    """Its frames, 8000 x 2, would be scaled to 1024000 x 256."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 8000, 2, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((3, 8000), np.uint8), format="yuv420p")))
        container.mux(stream.encode(None))
    refuses(r"a\.mkv: .* got 8000 x 2", lambda: read_clip(Media("a.mkv", tmp_path / "a.mkv"), 2, 256))


def test_a_shard_that_grows_is_refused(tmp_path):
    whole = tar(tmp_path / "0.tar", ("0.json", LINE), ("0.png", png(1, 1)))
    (tmp_path / "1.tar").write_bytes(gzip.compress(whole.read_bytes()))
    terabyte = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(1 << 40)}
    tar(tmp_path / "2.tar", ("0.json", LINE), ("0.png", b"x"), pax_headers=terabyte)
    for name, message in (("1.tar", "cannot be read as a shard"), ("2.tar", "must hold whole files, got a sparse one")):
        refuses(f"{name}: .*{message}", list, read_shard(tmp_path / name))


@pytest.mark.parametrize("name", ["../0.png", "/etc/0.png", "0.png"])
def test_members_of_shards_are_names_alone(tmp_path, name):
    """Nothing is written where they point to; links lead nowhere."""
    image = png(1, 1)
    line = json.dumps({"media": name, "captions": ["a point"]}).encode()
    [sample] = read_shard(tar(tmp_path / "0.tar", ("0.json", line), (name, image))) if name == "0.png" else [None]
    assert sample is None or sample.media.source == image
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        path = tar(tmp_path / "1.tar", ("0.json", line), (name, b""), type=kind, linkname="/etc/passwd")
        refuses(f"media not found: {name}", list, read_shard(path))
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tar") == []


@pytest.mark.parametrize("scheme", ["http://127.0.0.1", "rtsp://127.0.0.1", "concat:a", "pipe:0", "file:///etc"])
@pytest.mark.parametrize("ending", ["png", "mp4"])
def test_a_name_in_a_manifest_is_no_address(tmp_path, scheme, ending):
    """It is the name of a file, which is there or is not."""
    name = f"{scheme}/a.{ending}"
    write_lines(tmp_path / "m.jsonl", [{"media": name, "label": "a"}])
    refuses("media not found", read_manifest, tmp_path / "m.jsonl")
    (tmp_path / name).parent.mkdir(parents=True)
    if ending == "png":
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name)
    else:
        write_video(tmp_path / name, seed=0, seconds=3)
    [sample] = read_manifest(tmp_path / "m.jsonl")
    assert read_clip(sample.media, 2, 8).shape == (2, 8, 8, 3)
