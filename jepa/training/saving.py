"""What training writes as it goes: the checkpoint of a stage, and the state that it can go on from."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import CSVLogger

from jepa.operations import OperationLedger
from jepa.processes import of_all_processes
from jepa.training.callbacks import StageRecord, meter_of, summary
from jepa.training.configs import SavesConfig
from jepa.training.resume import Run, Signals, State, read_state


class CheckpointCallback(L.Callback):
    """Writes the checkpoint of a stage after each validation but the last, in case training is cut off.

    `finish` writes the finished stage. Every process calls both; `write` decides who writes. The stage's seconds count
    from construction. `known` are entries of its record that do not change, `state` what a stage goes on from.

    >>> written = []
    >>> callback = CheckpointCallback("jepa", [{"name": "before"}], written.append)
    >>> callback.finish({"steps": 2})["steps"]
    2
    >>> [stage["name"] for stage in written[0]]
    ['before', 'jepa']
    """

    def __init__(
        self,
        name: str,
        before: Sequence[StageRecord],
        write: Callable[[list[StageRecord]], None],
        state: StateCallback | None = None,
    ) -> None:
        self.name, self.before, self.write, self.state = name, before, write, state
        self.known: StageRecord = {}
        self._started = time.perf_counter()

    def state_dict(self) -> State:
        return {"seconds": time.perf_counter() - self._started}

    def load_state_dict(self, state_dict: State) -> None:
        self._started -= state_dict["seconds"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.global_step < trainer.max_steps:
            for logger in trainer.loggers:
                logger.save()
            result: StageRecord = {**summary(trainer)} if trainer.is_global_zero else {}
            self.finish({**result, **cast(Any, module).facts(), "unfinished": True})

    def finish(self, result: StageRecord) -> StageRecord:
        """Writes the checkpoint with the record of the stage, and returns the record."""
        seconds = round(time.perf_counter() - self._started, 2)
        record = {"name": self.name, "seconds": seconds, **self.known, **result}
        self.write([*self.before, record])
        return record


class StateCallback(L.Callback):
    """Writes a stage's state every so many steps and minutes, and before training stops for a signal.

    It does so when the next step begins: all of the step before is validated and logged then. The first step after
    going on puts back what Lightning does not. `start` is the number of steps that are done. A run that SLURM asks to
    be queued again is, if it would `requeue`: the command must go on by itself.
    """

    def __init__(self, run: Run, name: str, saves: SavesConfig, signals: Signals, requeue: bool) -> None:
        self.run, self.name, self.saves, self.signals, self.requeue = run, name, saves, signals, requeue
        self.path = run.state
        self.start: int = 0 if self.path is None else read_state(self.path)["global_step"]
        self._written = self.start
        self._own: State | None = None
        self._since = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._since = time.monotonic()
        self.signals.listen()
        trainer._signal_connector.received_sigterm = False  # it would end the run without a state, and with 0

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, index: int) -> None:
        if self._own is not None:
            own, self._own = self._own, None
            module.recount(own["counted"])
            if (meter := meter_of(trainer)) is not None:
                meter.ledger = OperationLedger.from_dict(own["operations"])
            trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step  # the step that loggers get
            _set_random_states(own["random"])
        if index % trainer.accumulate_grad_batches or trainer.global_step == self._written:
            return
        late = time.monotonic() - self._since >= 60 * self.saves.every_minutes
        asked = torch.tensor([self.signals.received, late], device=module.device)
        received, late = trainer.strategy.reduce(asked, reduce_op="max").tolist()
        if received or late or trainer.global_step % self.saves.every_steps == 0:
            self._write(trainer)
        if received:
            self.signals.received = received
            if received == signal.SIGUSR1 and self.requeue and trainer.is_global_zero:
                _requeue()
            self.signals.stop(f"after step {trainer.global_step} of stage {self.name}")

    def on_save_checkpoint(self, trainer: L.Trainer, module: Any, checkpoint: State) -> None:
        meter = meter_of(trainer)
        operations = None if meter is None else meter.ledger.to_dict()
        own = {"random": _random_states(module.device), "counted": module.counted(), "operations": operations}
        checkpoint["processes"] = of_all_processes(own)
        checkpoint["trackers"] = {type(logger).__name__: str(logger.version) for logger in trainer.loggers[1:]}
        checkpoint["rows"] = _rows(trainer) if trainer.is_global_zero else []

    def on_load_checkpoint(self, trainer: L.Trainer, module: L.LightningModule, checkpoint: State) -> None:
        self._own = checkpoint["processes"][trainer.global_rank]
        logger = trainer.loggers[0]
        if trainer.is_global_zero and isinstance(logger, CSVLogger):
            logger.experiment.metrics.extend(checkpoint["rows"])  # its file is written anew

    def _write(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            logger.save()
        trainer.save_checkpoint(self.run.folder / f"{self.name}-{trainer.global_step:09d}.ckpt")
        self._written, self._since = trainer.global_step, time.monotonic()
        if trainer.is_global_zero:
            for path in sorted(self.run.folder.glob(f"{self.name}-*.ckpt"))[: -self.saves.keep]:
                path.unlink()


def _requeue() -> None:
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]
    subprocess.run(["scontrol", "requeue", job], check=False)


def _rows(trainer: L.Trainer) -> list[dict[str, str]]:
    """The rows of the CSV log so far, without empty cells."""
    path = Path(str(trainer.loggers[0].log_dir)) / "metrics.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def _random_states(device: torch.device) -> State:
    numpy: Any = np.random.get_state()
    plain = (numpy[0], numpy[1].tolist(), *numpy[2:])
    found = {"torch": torch.get_rng_state(), "python": random.getstate(), "numpy": plain}
    return found | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def _set_random_states(states: State) -> None:
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])
