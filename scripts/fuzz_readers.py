"""What `scripts/fuzz.py` reads: each reader with whole files, made as the tests make them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

sys.path += [str(Path(__file__).resolve().parents[1] / "tests" / part) for part in ("", "data")]
import conftest as made
import made_streams
import test_timelines as timelines

from jepa import checkpoint, cli
from jepa.build import build
from jepa.config import EvaluateConfig, ReportConfig, validate
from jepa.data.chat import ChatTokenizer
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.json_lines import parse, write_lines
from jepa.data.manifests import read_manifest
from jepa.data.media import Media, read_clip
from jepa.data.pairs import column_files, read_chat
from jepa.data.records import StreamRecord, read_records
from jepa.data.regex_grammar import generate
from jepa.data.shards import read_shard, write_shards
from jepa.data.timelines import FORMATS, read_timeline
from jepa.data.tokenizer import Tokenizer
from jepa.data.video import VideoStream
from jepa.data.world import corpus
from jepa.encoders.vision_vjepa21 import VJEPA21
from jepa.evaluation.streams import load_streams, save_streams
from jepa.results import AnswerResults, StreamResults, read_document
from jepa.training.configs import LanguageTrainConfig, TrainConfig
from jepa.training.resume import read_state


class Reader(NamedTuple):
    """`make` writes whole files into a folder; the first is the one that is broken and `read`."""

    make: Callable[[Path], Sequence[Path]]
    read: Callable[[Path], object]
    form: str = "bytes"
    share: int = 40  # of the inputs
    real: tuple[str, ...] = ()  # more whole files


# --- Media and what names them. ---


def _pictures(folder: Path) -> list[Path]:
    ramp = np.linspace(0, 255, 24 * 16 * 3).reshape(16, 24, 3).astype(np.uint8)
    image, kinds = Image.fromarray(ramp), ("png", "jpg", "webp", "bmp", "gif", "tiff")
    for kind in kinds:
        image.save(folder / f"b.{kind}")
    return [folder / f"b.{kind}" for kind in kinds]


def _videos(folder: Path) -> list[Path]:
    paths = [folder / f"a.{kind}" for kind in ("mp4", "mkv", "avi", "mov")]
    for path in paths:
        made.write_video(path, seed=0, seconds=3)
    return paths


SAMPLES: list[dict[str, Any]] = [
    {"media": "a.mp4", "start": 0.5, "end": 2, "captions": ["A man cuts onions.", "Onions are cut."], "id": "é"},
    {
        "media": "b.jpg",
        "question": "Is it raining?",
        "answer": "no",
        "candidates": ["yes", "no"],
        "alternatives": ["n"],
    },
    {"media": "frames", "label": "chopping", "id": "c-17"},
    {"before": "b.jpg", "after": {"media": "a.mp4", "start": 1}, "candidates": ["a.mp4", "b.jpg"], "answer": 0},
]


def _manifest(folder: Path) -> list[Path]:
    (folder / "frames").mkdir()
    _videos(folder), _pictures(folder), _pictures(folder / "frames")
    write_lines(folder / "m.jsonl", SAMPLES)
    return [folder / "m.jsonl"]


def _shard(folder: Path) -> list[Path]:
    return write_shards(_manifest(folder)[0], folder / "shards", per_shard=4)


def _read_shard(path: Path) -> object:
    samples = list(read_shard(path, media=False))
    return samples, [read_clip(each.media, 2, 16) for each in read_shard(path, skipped=[]) if hasattr(each, "media")]


def _read_video(path: Path) -> object:
    record = StreamRecord("v", 2.0, ())
    return read_clip(Media("a.mp4", path.read_bytes()), 3, 32, fps=2.0), list(VideoStream(path, record, 32, 4).frames())


class _Encoder(torch.nn.Linear):
    """States (B, 1, 2) of clips."""

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return super().forward(frames.float().mean((1, 2, 3)))[:, None]


def _features(folder: Path, file: str) -> list[Path]:
    media = [Media(path.name, path) for path in _pictures(folder)[:3]]
    write_features(_Encoder(3, 2), ClipReader(2, 8), media, folder / "features", 3)
    return [folder / "features" / file]


def _read_features(path: Path) -> object:
    features = Features(path.parent)
    return [features(Media(f"b.{kind}", path.parent.parent / f"b.{kind}")) for kind in ("png", "jpg", "webp")]


# --- Texts. ---


def _timeline(folder: Path, format: str, durations: bool = False) -> list[Path]:
    timelines.read(folder, format)
    first = ("l", "video_info") if durations else (format,)
    return [next(path for path in folder.iterdir() if path.name.startswith(first))]


def _read_timeline(path: Path, format: str) -> object:
    files = {
        each.name.startswith(format): each
        for each in path.parent.iterdir()
        if each.suffix in (".json", ".jsonl", ".csv")
    }
    return read_timeline(files[True], format, durations=files.get(False))


def _lines(folder: Path, rows: Sequence[Any]) -> list[Path]:
    write_lines(folder / "lines.jsonl", rows)
    return [folder / "lines.jsonl"]


ROLES = ("system", "user", "assistant")
CHAT = [{"messages": [{"role": role, "content": f"{role} é"} for role in ROLES[n:]]} for n in (0, 1)]
VIEWS = {"text": [{"role": "user", "content": "x"}], "code": [{"role": "assistant", "content": "y"}]}
_read_columns = partial(column_files, test=None, prompt="a", completion="b", validation_fraction=0.0, seed=0)


# --- Checkpoints and what commands write. ---


@cache
def _model() -> Any:
    return checkpoint.build_model(made.tiny_config(), Tokenizer.train(corpus(), 512)).eval()


@cache
def _language_model() -> Any:
    pairs = generate(pairs=40, test_pairs=2, validation_fraction=0.0, seed=0, system=False).train
    tokenizer = ChatTokenizer.train([text for pair in pairs for text in (pair.prompt, pair.completion)], 400)
    return checkpoint.build_model(made.language_config(), tokenizer).eval()


def _checkpoint(folder: Path, file: str, language: bool = False) -> list[Path]:
    model, config = (_language_model(), made.language_config()) if language else (_model(), made.tiny_config())
    checkpoint.save(model, config, folder / "checkpoint")
    stage = {"name": "jepa", "steps": 2, "samples": 16, "seconds": 1.0, "curve": [{"step": 1.0, "loss": 2.0}]}
    (folder / "checkpoint" / "training.json").write_text(json.dumps({"stages": [stage]}), encoding="utf-8")
    return [folder / "checkpoint" / file]


def _vjepa(folder: Path) -> list[Path]:
    encoder = VJEPA21(architecture={"width": 24, "depth": 12, "heads": 2, "mlp": 8}, levels=range(4), size=32)
    torch.save({"ema_encoder": encoder.state_dict(), "epoch": 1}, folder / "v.pt")
    return [folder / "v.pt"]


def _state(folder: Path) -> list[Path]:
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "processes", "rows", "trackers")
    torch.save({"global_step": 3, **{part: {"a": torch.ones(3)} for part in parts}}, folder / "jepa-3.ckpt")
    return [folder / "jepa-3.ckpt"]


def _streams(folder: Path, file: str) -> list[Path]:
    save_streams(made_streams.stream_set("test", 0, streams=2), folder / "streams")
    return [folder / "streams" / file]


@cache
def _document() -> bytes:
    with TemporaryDirectory() as folder, torch.no_grad():
        return made_streams.made_results(_model(), Path(folder)).to_json()


def _results(folder: Path) -> list[Path]:
    (folder / "results.json").write_bytes(_document())
    return [folder / "results.json"]


def _config(folder: Path, command: str, overrides: Sequence[str]) -> list[Path]:
    from omegaconf import OmegaConf

    plain = OmegaConf.to_container(cli.compose(command, overrides), resolve=True)
    (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    return [folder / "config.json"]


def _read_config(path: Path, schema: Any) -> object:
    config = validate(parse(path.read_bytes()), schema)
    for each in getattr(config, "policies", {}).values():
        build(each.policy if each.parameter == "none" else {**each.policy, each.parameter: each.values[0]})
    return config


def _overrides(folder: Path) -> list[Path]:
    lines = ["experiment=demo", "jepa.steps=3", "name=a b", "+model.x=[1,{a: b}]", "~decoder", "jepa.loss._target_=x.Y"]
    (folder / "overrides.txt").write_text("\n".join(lines), encoding="utf-8")
    return [folder / "overrides.txt"]


def _read_overrides(path: Path) -> int:
    arguments = path.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    return cli.main(["train", "--cfg", "job", *arguments])


def _part(make: Callable[..., list[Path]], file: str, **how: Any) -> Callable[[Path], list[Path]]:
    return lambda folder: make(folder, file, **how)


def _load(path: Path) -> object:
    return checkpoint.load(path.parent)


def _read_picture(path: Path) -> object:
    return read_clip(Media(path.name, path), 2, 16)


READERS: dict[str, Reader] = {
    "manifest": Reader(_manifest, read_manifest, "lines", 120, ("cases/manifests/*.jsonl",)),
    **{
        f"timeline {name}": Reader(
            partial(_timeline, format=name),
            partial(_read_timeline, format=name),
            {"epic": "csv", "vitt": "lines"}.get(name, "json"),
            80,
            ("cases/timelines/*",),
        )
        for name in FORMATS
    },
    **{
        f"durations {name}": Reader(
            partial(_timeline, format=name, durations=True),
            partial(_read_timeline, format=name),
            "csv" if name in ("epic", "vitt") else "json",
        )
        for name, each in FORMATS.items()
        if each.durations
    },
    "pairs chat": Reader(
        partial(_lines, rows=[*CHAT, CHAT[0] | VIEWS]), read_chat, "lines", 100, ("cases/pairs/*", "chat/*.jsonl")
    ),
    "pairs columns": Reader(
        partial(_lines, rows=[{"a": "x", "b": "y"}]), lambda path: _read_columns(str(path)), "lines"
    ),
    "records": Reader(_part(_streams, "records.jsonl"), read_records, "lines"),
    "shard": Reader(_shard, _read_shard, "tar", 8, ("cases/shards/*.tar",)),
    "features": Reader(_part(_features, "features.json"), _read_features, "json"),
    "features states": Reader(_part(_features, "states-00000.safetensors"), _read_features, "tensors"),
    "checkpoint config": Reader(_part(_checkpoint, "config.yaml"), _load, "yaml", 4),
    "checkpoint tensors": Reader(_part(_checkpoint, "model.safetensors"), _load, "tensors", 2),
    "checkpoint tokenizer": Reader(_part(_checkpoint, "tokenizer.json"), _load, "json", 3),
    "checkpoint record": Reader(
        _part(_checkpoint, "training.json"), lambda path: checkpoint.read_stages(path.parent), "json"
    ),
    "language config": Reader(_part(_checkpoint, "config.yaml", language=True), _load, "yaml", 2),
    "language tokenizer": Reader(_part(_checkpoint, "tokenizer_config.json", language=True), _load, "json", 1),
    "vjepa": Reader(_vjepa, lambda path: VJEPA21(str(path), heads=2, size=32), "zip", 1),
    "state": Reader(_state, read_state, "zip", 20),
    "streams tensors": Reader(
        _part(_streams, "latents.safetensors"), lambda path: load_streams(path.parent), "tensors"
    ),
    "streams encoding": Reader(_part(_streams, "encoding.json"), lambda path: load_streams(path.parent), "json"),
    "results": Reader(_results, lambda path: read_document(path, StreamResults, AnswerResults), "json", 20),
    **{
        f"config {name}": Reader(
            partial(_config, command=command, overrides=overrides), partial(_read_config, schema=schema), "json", 20
        )
        for name, command, overrides, schema in (
            ("train", "train", ["experiment=demo"], TrainConfig),
            ("language", "train", ["experiment=llm_jepa_nlrx"], LanguageTrainConfig),
            ("evaluate", "evaluate", ["checkpoint=x"], EvaluateConfig),
            ("report", "report", ["evaluation=x"], ReportConfig),
        )
    },
    "overrides": Reader(_overrides, _read_overrides, "bytes", 1),
    "video": Reader(_videos, _read_video, "bytes", 12, ("cases/video/*", "video/*")),
    "picture": Reader(_pictures, _read_picture, "bytes", 80, ("cases/pictures/*.*",)),
    "picture png": Reader(_pictures, _read_picture, "png", 60, ("cases/pictures/*.png",)),
}
