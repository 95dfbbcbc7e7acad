"""Trainings of tiny models: their plain configurations and records; in this process or in two, as torchrun does it."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from conftest import tiny_config
from safetensors.torch import load_file

from jepa.cli import compose
from jepa.config import validate
from jepa.training import run
from jepa.training.configs import LanguageTrainConfig, TrainConfig


def config(*overrides: str) -> dict[str, Any]:
    """Two steps of each stage of a tiny model, on a CPU."""
    short = [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("steps=2", "batch_size=6", "warmup_steps=0")]
    short += [f"{stage}.{key}" for stage in ("jepa", "decoder") for key in ("validate_every=2", "validation_batches=1")]
    short += ["decoder.streams=1", "decoder.stream_seconds=6", "workers=0", "accelerator=cpu", "precision=32-true"]
    plain = validate(compose("train", ["name=tiny", *short, *overrides]), TrainConfig)
    return plain.model_dump() | {"model": tiny_config()["model"]}


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
