"""`train`: the stages of a VL-JEPA one after the other, on the procedural world."""

from __future__ import annotations

import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from jepa import checkpoint
from jepa.config import DecoderStageConfig, JEPAStageConfig, StageConfig, build
from jepa.data.clips import ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import World, corpus
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.training.latents import (
    DecoderBatches,
    predicted_latents,
    prediction_error,
    training_texts,
)
from jepa.training.modules import DecoderModule, JEPAModule

_VALIDATION_SEED = 1_000_003  # added to the seed: validation clips never occur in training


def train(config: dict[str, Any], output: Path) -> Path:
    """Trains the stages of a validated `TrainConfig` and returns the checkpoint's folder, `output/checkpoint`.

    The checkpoint is written after every stage, logs go to `output/logs`.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    L.seed_everything(config["seed"], verbose=False)
    world = build(config["world"])
    tokenizer = Tokenizer.train(corpus(), **config["tokenizer"])
    model = checkpoint.build_model(config, tokenizer)
    if (world.size, world.fps) != (model.x_encoder.size, model.fps):
        raise InputError(
            f"world.size and world.fps must be those of the model, got {world.size} px at {world.fps} Hz "
            f"for a model of {model.x_encoder.size} px at {model.fps} Hz"
        )
    # Plain attention is about 1.7 times as fast as the fused kernel in bf16 on a CPU (scripts/bench_attention.py).
    set_fused_attention(model, not (config["precision"] == "bf16-mixed" and not _on_gpu(config)))
    folder = output / "checkpoint"
    stages = []
    for name, run in (("jepa", _train_jepa), ("decoder", _train_decoder)):
        started = time.perf_counter()
        summary = run(config, model.train(), world, output)
        stages.append({"name": name, "seconds": round(time.perf_counter() - started, 2), **summary})
        checkpoint.save(model.cpu(), config, folder)
        (folder / "training.json").write_text(json.dumps({"stages": stages}, indent=1), encoding="utf-8")
    print(f"checkpoint: {folder}", flush=True)
    return folder


def _train_jepa(config: dict[str, Any], model: VLJEPA, world: World, output: Path) -> dict[str, Any]:
    stage = JEPAStageConfig(**config["jepa"])
    seed = config["seed"]
    batches = ClipBatches(world, seed, stage.batch_size, stage.steps, model.frames, **config["clips"])
    validation = ClipBatches(
        world, seed + _VALIDATION_SEED, stage.batch_size, stage.validation_batches, model.frames, **config["clips"]
    )
    loss = build(stage.loss)
    module = JEPAModule(model, loss, stage, stage.y_encoder_lr_multiplier)
    model.y_decoder.requires_grad_(False)
    trainer = _fit(module, batches, validation, stage, config, output, "jepa")
    model.y_decoder.requires_grad_(True)
    return _summary(trainer, stage, output / "logs" / "jepa") | {"temperature": float(loss.temperature.detach())}


def _train_decoder(config: dict[str, Any], model: VLJEPA, world: World, output: Path) -> dict[str, Any]:
    stage = DecoderStageConfig(**config["decoder"])
    seed = config["seed"]
    model.eval().to("cuda" if _on_gpu(config) else "cpu")
    streams = predicted_latents(
        model,
        world,
        build(stage.style),
        seed,
        stage.streams,
        stage.stream_seconds,
        stage.step_rate_hz,
    )
    noise = prediction_error(model, streams)
    texts = training_texts(world)
    text_latents = model.embed_all(texts)
    batches, validation = (
        DecoderBatches(text_latents, texts, streams, noise, s, stage.batch_size, n)
        for s, n in ((seed, stage.steps), (seed + _VALIDATION_SEED, stage.validation_batches))
    )
    module = DecoderModule(model, stage)
    module.train()
    trainer = _fit(module, batches, validation, stage, config, output, "decoder")
    return _summary(trainer, stage, output / "logs" / "decoder") | {"noise_per_dimension": round(noise, 5)}


def _on_gpu(config: dict[str, Any]) -> bool:
    return config["accelerator"] != "cpu" and torch.cuda.is_available()


def _fit(
    module: L.LightningModule,
    batches: Dataset[Any],
    validation: Dataset[Any],
    stage: StageConfig,
    config: dict[str, Any],
    output: Path,
    name: str,
) -> L.Trainer:
    logs = output / "logs"
    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=1,
        precision=config["precision"],
        max_steps=stage.steps,
        max_epochs=1,
        gradient_clip_val=stage.gradient_clip,
        val_check_interval=min(stage.validate_every, stage.steps),
        num_sanity_val_steps=0,
        logger=[CSVLogger(logs, name=name, version=""), TensorBoardLogger(logs, name=name, version="")],
        log_every_n_steps=min(10, stage.steps),
        callbacks=[_ProgressBar(name)],
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    workers = config["workers"]
    loader = DataLoader(batches, batch_size=None, num_workers=workers, prefetch_factor=4 if workers else None)
    with warnings.catch_warnings():
        for noise in (".*does not have many workers.*", ".*LeafSpec.*"):  # of libraries, not of the run
            warnings.filterwarnings("ignore", message=noise)
        trainer.fit(module, loader, DataLoader(validation, batch_size=None))
    return trainer


class _ProgressBar(TQDMProgressBar):
    """One line a stage; validation does not draw a bar of its own."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10)
        self.stage = stage

    def init_train_tqdm(self) -> Any:
        bar = super().init_train_tqdm()
        bar.set_description(self.stage)
        return bar

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.stage)

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


def _summary(trainer: L.Trainer, stage: StageConfig, logs: Path) -> dict[str, Any]:
    """Steps and samples seen, and the curve that the CSV log holds."""
    return {
        "steps": trainer.global_step,
        "samples": trainer.global_step * stage.batch_size,
        "curve": _curve(logs / "metrics.csv"),
    }


def _curve(path: Path) -> list[dict[str, float]]:
    """Rows of Lightning's CSV log merged by step, without empty cells."""
    import csv

    rows: dict[int, dict[str, float]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row["step"])
            values = {key: float(v) for key, v in row.items() if v and key not in ("step", "epoch")}
            rows.setdefault(step, {"step": step}).update(values)
    return [rows[step] for step in sorted(rows)]
