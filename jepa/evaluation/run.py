"""`evaluate`: a checkpoint's scores, and the latents of its streams for the report."""

from __future__ import annotations

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint
from jepa.config import AnswersConfig, build, validate
from jepa.errors import InputError
from jepa.evaluation.language import evaluate_answers
from jepa.evaluation.record import code_version, describe_device, library_versions
from jepa.evaluation.streams import SPLITS, encode_streams, make_streams, save_streams, thumbnails
from jepa.evaluation.tasks import score_tasks
from jepa.models.vl_jepa import VLJEPA

FORMAT = "jepa.evaluation/1"


@torch.no_grad()
def evaluate(config: dict[str, Any]) -> Path:
    """Runs a validated `EvaluateConfig` and returns the folder written, by default `evaluation` beside the checkpoint.

    What follows is of a VL-JEPA; see `evaluate_answers` for a language model's.
    The folder holds `evaluation.json` and, for each setting and split, latents, times, annotations and ledgers.
    """
    folder = Path(config["checkpoint"])
    trained = checkpoint.read_config(folder)
    output = Path(config["output"] or folder.parent / "evaluation")
    if trained["variant"] == "llm_jepa":
        answers = AnswersConfig(**validate({**trained["answers"], **config["answers"]}, AnswersConfig))
        return evaluate_answers(folder, output, answers, config["accelerator"], config["data"])
    model: VLJEPA = checkpoint.load(folder)
    world = build(trained["world"])
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
        "libraries": library_versions(),
        "device": describe_device(device),
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
