"""One Lightning fit, as every stage of every variant uses it."""

from __future__ import annotations

import csv
import warnings
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from jepa.config import StageConfig
from jepa.training.sharding import sharded_strategy


def on_gpu(config: dict[str, Any]) -> bool:
    return config["accelerator"] != "cpu" and torch.cuda.is_available()


def fit(
    module: L.LightningModule,
    batches: Dataset[Any],
    validation: Dataset[Any] | list[Any],
    stage: StageConfig,
    config: dict[str, Any],
    output: Path,
    name: str,
    strategy: str = "auto",
    devices: int = 1,
) -> L.Trainer:
    """Trains for `stage.steps` steps with a progress bar; logs go to `output/logs/<name>`.

    `batches` has as many as all devices need, which take turns: steps * accumulate * devices.
    """
    logs = output / "logs"
    trainer = L.Trainer(
        accelerator=config["accelerator"],
        devices=devices,
        strategy=sharded_strategy(devices) if strategy == "fsdp" else strategy,
        precision=config["precision"],
        max_steps=stage.steps,
        max_epochs=1,
        accumulate_grad_batches=stage.accumulate,
        gradient_clip_val=stage.gradient_clip,
        val_check_interval=min(stage.validate_every, stage.steps) * stage.accumulate,
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
        # Of libraries, not of the run: frozen parts are in evaluation mode, no output of a part is changed in place.
        known = (".*does not have many workers.*", ".*LeafSpec.*", ".*in eval mode at the start.*")
        for noise in (*known, ".*returned a view tensor.*"):
            warnings.filterwarnings("ignore", message=noise)
        trainer.fit(module, loader, DataLoader(cast("Dataset[Any]", validation), batch_size=None))
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


def summary(trainer: L.Trainer, stage: StageConfig, logs: Path) -> dict[str, Any]:
    """Steps and samples seen, what the first device's operations were, and the curve that the CSV log holds."""
    meter = getattr(trainer.lightning_module, "meter", None)
    return {
        "steps": trainer.global_step,
        "samples": trainer.global_step * stage.accumulate * trainer.world_size * stage.batch_size,
        "operations": None if meter is None else meter.record(),
        "curve": _curve(logs / "metrics.csv"),
    }


def _curve(path: Path) -> list[dict[str, float]]:
    """Rows of Lightning's CSV log merged by step, without empty cells."""
    rows: dict[int, dict[str, float]] = {}
    with path.open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            step = int(row["step"])
            values = {key: float(v) for key, v in row.items() if v and key not in ("step", "epoch")}
            rows.setdefault(step, {"step": step}).update(values)
    return [rows[step] for step in sorted(rows)]
