"""`evaluate`: a checkpoint's scores, and the latents of its streams for the report."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from jepa import __version__, checkpoint
from jepa.config import build
from jepa.errors import InputError
from jepa.evaluation.streams import SPLITS, encode_streams, make_streams, save_streams, thumbnails
from jepa.evaluation.tasks import score_tasks

FORMAT = "jepa.evaluation/1"
_LIBRARIES = (
    "torch",
    "lightning",
    "timm",
    "torchmetrics",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
)


@torch.no_grad()
def evaluate(config: dict[str, Any]) -> Path:
    """Runs a validated `EvaluateConfig` and returns the folder written, by default `evaluation` beside the checkpoint.

    The folder holds `evaluation.json` and, for each setting and split, latents, times, annotations and ledgers.
    """
    folder = Path(config["checkpoint"])
    model = checkpoint.load(folder)
    trained = checkpoint.read_config(folder)
    world = build(trained["world"])
    output = Path(config["output"] or folder.parent / "evaluation")
    output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if config["accelerator"] != "cpu" and torch.cuda.is_available() else "cpu"
    if config["accelerator"] == "gpu" and device == "cpu":
        raise InputError("accelerator is gpu, but no GPU is available")
    model.to(device)

    scores = score_tasks(model, world, config["seed"], config["candidates"], config["batch_size"])
    print(_score_lines(scores), flush=True)
    settings = {}
    for name, setting in config["streams"].items():
        style = build(setting["style"])
        for split in SPLITS:
            streams = make_streams(world, name, split, setting[split], setting["seconds"], style, config["seed"])
            encoded = encode_streams(model, streams, setting["step_rate_hz"], f"{name} {split}")
            save_streams(encoded, output / name / split)
        pictures = thumbnails(streams[0])
        (output / name / "thumbnails.json").write_text(json.dumps(pictures), encoding="utf-8")
        settings[name] = {
            "description": setting["description"],
            "step_rate_hz": setting["step_rate_hz"],
            "seconds_each": setting["seconds"],
        }
    record = {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": os.path.relpath(folder.resolve(), output.resolve()),
        "name": trained["name"],
        "seed": trained["seed"],
        "config": {"train": trained, "evaluate": config},
        "latent_delay": model.window / 2,
        "code": code_version(),
        "libraries": {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}},
        "device": _device(device),
        "parameters": model.parameters_by_role(),
        "training": _training(folder),
        "scores": scores,
        "settings": settings,
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    print(f"evaluation: {output}", flush=True)
    return output


def _score_lines(scores: dict[str, Any]) -> str:
    retrieval, captioning = scores["retrieval"], scores["captioning"]
    rows = [
        (f"retrieval R@1 of {retrieval['candidates']}", retrieval["r@1"], retrieval["chance"]),
        ("classification", scores["classification"]["accuracy"], scores["classification"]["chance"]),
        *(
            (f"question: {kind}", result["accuracy"], result["chance"])
            for kind, result in scores["question_answering"]["by_question"].items()
        ),
    ]
    lines = [f"{name:28} {value:6.3f}   (chance {chance:.3f})" for name, value, chance in rows]
    lines.append(f"{'caption CIDEr-D (0-10)':28} {captioning['cider_d']:6.3f}")
    return "\n".join(["held-out compositions", *lines])


def _training(folder: Path) -> dict[str, Any]:
    """What training left beside the weights: steps and seconds of the stages, and the first stage's curve."""
    path = folder / "training.json"
    if not path.is_file():
        raise InputError(f"training record not found: {path}")
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    keys = ("name", "steps", "seconds")
    return {
        "steps": sum(stage["steps"] for stage in stages),
        "samples": sum(stage["samples"] for stage in stages),
        "seconds": sum(stage["seconds"] for stage in stages),
        "stages": [{key: stage[key] for key in keys} for stage in stages],
        "curve": stages[0]["curve"],
    }


def code_version() -> dict[str, Any]:
    """The package's version, and the commit it runs from if it is a git checkout: `{version, commit, dirty}`."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    dirty = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"version": __version__, "commit": commit, "dirty": None if dirty is None else bool(dirty)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _device(kind: str) -> dict[str, Any]:
    if kind == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(), "threads": torch.get_num_threads()}
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return {"type": "cpu", "name": name, "threads": torch.get_num_threads()}
