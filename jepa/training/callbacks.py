"""What happens around the mathematics of training: counting operations, averaging weights, writing checkpoints."""

from __future__ import annotations

import csv
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias, TypedDict, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import TQDMProgressBar
from torch import Tensor, nn

from jepa.config import StageConfig
from jepa.operations import TrainingMeter

StageRecord: TypeAlias = dict[str, object]  # a stage in `training.json`


@torch.no_grad()
def ema_update(teacher: nn.Module, model: nn.Module, decay: float) -> None:
    """Moves the parameters of `teacher` towards those of `model`: an exponential moving average.

    >>> teacher, model = nn.Linear(1, 1), nn.Linear(1, 1)
    >>> _ = nn.init.zeros_(teacher.weight), nn.init.ones_(model.weight)
    >>> ema_update(teacher, model, decay=0.75)
    >>> teacher.weight.item()
    0.25
    """
    for slow, fast in zip(teacher.parameters(), model.parameters(), strict=True):
        slow.lerp_(fast, 1 - decay)


class EMACallback(L.Callback):
    """Updates a teacher after every optimiser step. The teacher stays in evaluation mode."""

    def __init__(self, teacher: nn.Module, model: nn.Module, decay: float) -> None:
        self.teacher, self.model, self.decay = teacher, model, decay

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.teacher.eval()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if _ends_step(trainer, index):
            ema_update(self.teacher, self.model, self.decay)


class MeterCallback(L.Callback):
    """Counts the operations of each part with a `TrainingMeter`. Sharded parts are not counted.

    Args:
        parts: the modules of each part; without any, nothing is counted.
        losses: the modules whose operations count as the loss.
        updated: bytes of the parameters that an optimiser step writes.
    """

    def __init__(self, parts: dict[str, list[nn.Module]], losses: list[nn.Module], updated: int) -> None:
        self.parts, self.losses, self.updated = parts, losses, updated
        self.meter: TrainingMeter | None = None

    def on_fit_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.parts and module.device_mesh is None:
            self.meter = TrainingMeter(self.parts, self.losses)

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.meter is not None:
            self.meter.remove()

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if self.meter is not None:
            self.meter.start(module.device)

    def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
        if self.meter is not None:
            self.meter.backward()

    def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.meter is not None:
            self.meter.update()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        if self.meter is not None:
            self.meter.stop(self.updated if _ends_step(trainer, index) else None)


class BestCallback(L.Callback):
    """Remembers the weights of `model` at the validation where the metric `monitor` was lowest."""

    def __init__(self, model: nn.Module, monitor: str) -> None:
        self.model, self.monitor = model, monitor
        self.value, self.step = float("inf"), 0
        self.state: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        value = float(trainer.callback_metrics[self.monitor])
        if not self.state or value < self.value:
            self.value, self.step = value, trainer.global_step
            self.state = {name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()}


class CheckpointCallback(L.Callback):
    """Writes the checkpoint of a stage after each validation but the last, in case training is cut off.

    `finish` writes the finished stage. Every process calls both; `write` decides who writes. The seconds of the stage
    count from construction. `facts` gives further entries of the stage's record.

    >>> written = []
    >>> callback = CheckpointCallback("jepa", [{"name": "before"}], written.append)
    >>> callback.finish({"steps": 2})["steps"]
    2
    >>> [stage["name"] for stage in written[0]]
    ['before', 'jepa']
    """

    def __init__(self, name: str, before: Sequence[StageRecord], write: Callable[[list[StageRecord]], None]) -> None:
        self.name, self.before, self.write = name, before, write
        self.facts: Callable[[L.Trainer], StageRecord] = lambda trainer: {}
        self._started = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            for logger in trainer.loggers:
                logger.save()
            result: StageRecord = {**summary(trainer)} if trainer.is_global_zero else {}
            self.finish({**result, **self.facts(trainer), "unfinished": True})

    def finish(self, result: StageRecord) -> StageRecord:
        """Writes the checkpoint with the record of the stage, and returns the record."""
        record = {"name": self.name, "seconds": round(time.perf_counter() - self._started, 2), **result}
        self.write([*self.before, record])
        return record


class ProgressBar(TQDMProgressBar):
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


def meter_of(trainer: L.Trainer) -> TrainingMeter | None:
    """The meter of a trainer's `MeterCallback`; None if operations were not counted."""
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
