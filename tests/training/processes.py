"""Trainings of tiny models: plain configurations, data, records; in this process or in two, as torchrun does it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.multiprocessing as mp
from conftest import LLAMA, language_config, tiny_config
from PIL import Image
from safetensors.torch import load_file

from jepa.cli import compose
from jepa.config import ObjectiveConfig, validate
from jepa.training import run
from jepa.training.configs import LanguageTrainConfig, TrainConfig


def config(*overrides: str) -> dict[str, Any]:
    """Two steps of each stage of a tiny model, on a CPU."""
    short = [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("steps=2", "batch_size=6", "warmup_steps=0")]
    short += [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("validate_every=2", "validation_batches=1")]
    short += ["decoder.streams=1", "decoder.stream_seconds=6", "workers=0", "accelerator=cpu", "precision=32-true"]
    plain = validate(compose("train", ["name=tiny", *short, *overrides]), TrainConfig)
    return plain.model_dump() | {"model": tiny_config()["model"]}


INFONCE = {"_target_": "jepa.losses.infonce.InfoNCE", "temperature": 0.07, "learnable": False}
STAGE = {
    "epochs": 0.2,
    "batch_size": 8,
    "row_tokens": 100,
    "learning_rate": 1e-2,
    "weight_decay": 0.1,
    "warmup_fraction": 0.3,
    "gradient_clip": 1.0,
    "validate_every": 2,
    "validation_pairs": 8,
}


def objective_config(**changed: Any) -> dict[str, Any]:
    return ObjectiveConfig(**{"loss": INFONCE, "ema_decay": 0.9, **changed}).model_dump()


def train_config(
    changed: dict[str, Any] | None = None,
    stage: dict[str, Any] | None = None,
    seed: int = 0,
    equal_flops: Any = None,
    **model: Any,
) -> dict[str, Any]:
    tiny = language_config(LLAMA, **model)["model"]
    tiny["y_decoder"] = None
    if (changed or {}).get("transition_weight"):
        tiny["transition"] = {"_target_": "jepa.predictors.transition.LatentTransition", "horizon": 2}
    tiny["language_model"] = {"pretrained": None, "lora": None, **tiny["language_model"]}
    data = {"pairs": 100, "test_pairs": 2, "validation_fraction": 0.1, "seed": 0, "system": False}
    run = {"name": "tiny", "arm": "llm_jepa", "seed": seed, "precision": "32-true", "accelerator": "cpu", "workers": 0}
    terms = {"method": objective_config(), "objective": objective_config(**(changed or {})), "equal_flops": equal_flops}
    given = {"data": {"_target_": "jepa.data.regex_grammar.generate", **data}, "tokenizer": {"vocab_size": 400}}
    config = {**run, **given, **terms, "model": tiny, "stage": {**STAGE, **(stage or {})}}
    return validate(config, LanguageTrainConfig).model_dump()


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


def stages(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"]
    return found


def train(plain: dict[str, Any], output: Path) -> Path:
    """The folder of the checkpoint that a plain configuration gives."""
    return run.train(validate(plain, LanguageTrainConfig if plain["variant"] == "llm_jepa" else TrainConfig), output)


def _process(rank: int, port: int, work: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "LOCAL_WORLD_SIZE": 2}
    launched = {"MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0}
    os.environ.update({name: str(value) for name, value in (ranks | launched).items()})
    torch.set_num_threads(1)
    work(*arguments)


def in_two_processes(work: Callable[..., object], *arguments: Any) -> None:
    """Calls `work` in two processes that may find each other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.start_processes(_process, (port, work, arguments), nprocs=2, start_method="fork")


def train_in_two_processes(plain: dict[str, Any], strategy: str, output: Path) -> Path:
    """The folder of the checkpoint that two processes have trained."""
    in_two_processes(train, {**plain, "strategy": strategy, "devices": 2}, output)
    return output / "checkpoint"


def assert_same_weights(found: Path, expected: Path, atol: float = 2e-4, rtol: float = 1e-3) -> None:
    weights, wanted = (load_file(folder / "model.safetensors") for folder in (found, expected))
    assert weights.keys() == wanted.keys()
    for name in wanted:
        torch.testing.assert_close(weights[name], wanted[name], atol=atol, rtol=rtol)
