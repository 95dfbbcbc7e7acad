"""What happens around the mathematics of training: counting operations, averaging weights, writing checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn

from jepa.operations import TrainingMeter
from jepa.training.configs import StageConfig

StageRecord: TypeAlias = dict[str, object]  # a stage in `training.json`


class EMACallback(L.Callback):
    """After every optimiser step, moves a teacher, kept in evaluation mode, to the exponential average of `model`.

    >>> teacher, model = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(teacher.weight), nn.init.ones_(model.weight)
    >>> EMACallback(teacher, model, decay=0.75).update()
    >>> teacher.weight.item()
    0.25
    """

    def __init__(self, teacher: nn.Module, model: nn.Module, decay: float) -> None:
        self.teacher, self.model, self.decay = teacher, model, decay

    @torch.no_grad()
    def update(self) -> None:
        for slow, fast in zip(self.teacher.parameters(), self.model.parameters(), strict=True):
            slow.lerp_(fast, 1 - self.decay)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.teacher.eval()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if _ends_step(trainer, index):
            self.update()


class MeterCallback(L.Callback):
    """Counts operations with a `TrainingMeter`; an optimiser step writes `updated` bytes of parameters."""

    meter: TrainingMeter

    def __init__(self, parts: Mapping[str, Sequence[nn.Module]], losses: Sequence[nn.Module], updated: int) -> None:
        self.parts, self.losses, self.updated = parts, losses, updated

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.meter = TrainingMeter(self.parts, self.losses)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.meter.remove()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        self.meter.start(module.device)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        self.meter.backward()

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.meter.update()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        self.meter.stop(self.updated if _ends_step(trainer, index) else None)


class ProgressBar(TQDMProgressBar):
    """One line a stage; validation does not draw a bar of its own."""

    def __init__(self, stage: str) -> None:
        super().__init__(refresh_rate=10)
        self.stage = stage

    def on_train_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_start(trainer, *args)
        self.train_progress_bar.reset(trainer.num_training_batches)  # there may be no start of an epoch
        self.train_progress_bar.set_description(self.stage)

    def on_train_epoch_start(self, trainer: L.Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(self.stage)

    def init_validation_tqdm(self) -> Any:
        bar = super().init_validation_tqdm()
        bar.disable = True
        return bar


def meter_of(trainer: L.Trainer) -> TrainingMeter | None:
    """The meter of a trainer's `MeterCallback`; None if operations are not counted."""
    callbacks = cast("list[L.Callback]", trainer.callbacks)  # type: ignore[attr-defined]
    return next((callback.meter for callback in callbacks if isinstance(callback, MeterCallback)), None)


class Summary(TypedDict):
    """What a fit did; each row of `curve` holds the step and what was logged at it."""

    steps: int
    samples: int
    operations: dict[str, object] | None
    curve: list[dict[str, float]]


def summary(trainer: L.Trainer) -> Summary:
    """Steps and samples seen, the operations of the first device, and the curve in the CSV log."""
    stage, meter = cast(StageConfig, trainer.lightning_module.stage), meter_of(trainer)
    return {
        "steps": trainer.global_step,
        "samples": trainer.global_step * stage.accumulate * trainer.world_size * stage.batch_size,
        "operations": None if meter is None else dict(meter.record()),
        "curve": _curve(Path(str(trainer.loggers[0].log_dir)) / "metrics.csv"),
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


def _ends_step(trainer: L.Trainer, index: int) -> bool:
    """Whether the weights are updated after the batch of this number."""
    return (index + 1) % trainer.accumulate_grad_batches == 0
