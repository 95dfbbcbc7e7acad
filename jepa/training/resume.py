"""Going on after training was cut off: a run's folder `resume/`, what is written there, and signals to stop.

`run.json` has the configuration and the records of finished stages. `<stage>-<step>.ckpt` are Lightning's checkpoints:
weights, optimizer, schedule, loops and callbacks, and of each process the random states and what it has counted. Only
tensors and plain data are read from them.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import signal
import threading
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeAlias

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from jepa.build import Node, dotted_keys
from jepa.data.json_lines import read_json
from jepa.errors import InputError
from jepa.processes import is_first_process
from jepa.training.callbacks import StageRecord
from jepa.training.configs import FREE, RunConfig

State: TypeAlias = Node  # tensors and plain data, as Lightning names them
_PARTS = {"state_dict", "optimizer_states", "lr_schedulers", "loops", "callbacks", "processes", "rows", "trackers"}


class Run:
    """The stages of a run in an output folder: those that are finished, and the state that the next one goes on from.

    Args:
        stages: names of the stages, in order.

    Raises:
        InputError: with `resume=true` nothing was begun, or the run was begun with another configuration.
    """

    def __init__(self, config: RunConfig, output: Path, stages: Sequence[str]) -> None:
        self.folder, self._file = output / "resume", output / "resume" / "run.json"
        self._config = json.loads(config.model_dump_json(exclude=set(FREE)))
        self.finished: list[StageRecord] = []
        self.state: Path | None = None
        begun = self._file.is_file() and bool(config.resume)
        if config.resume is True and not begun:
            raise InputError(f"resume must be false or auto where no run was begun, got true: {output}")
        if begun:
            kept = read_json(self._file, "record of the run")
            _check_unchanged(kept["config"], self._config)
            self.finished = kept["finished"]
            if len(self.finished) < len(stages):
                self.state = newest(self.folder, stages[len(self.finished)])
        elif is_first_process():
            if self._file.is_file():
                say(f"{output}: trains anew and replaces an earlier run; resume=auto goes on with one")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            self._write()

    def finish(self, record: StageRecord) -> None:
        """A stage is finished and its checkpoint written: what it could go on from is removed."""
        self.finished.append(record)
        self.state = None
        if is_first_process():
            self._write()
            for path in self.folder.glob(f"{record['name']}-*"):
                path.unlink()

    def _write(self) -> None:
        partial = self._file.with_suffix(".partial")
        partial.write_text(json.dumps({"config": self._config, "finished": self.finished}), encoding="utf-8")
        os.replace(partial, self._file)


def _check_unchanged(before: Any, now: Any) -> None:
    for key in dotted_keys(now):
        values = [_at(config, key) for config in (before, now)]
        if values[0] != values[1] and not any(isinstance(value, dict) for value in values):
            raise InputError(f"{key} must be {values[0]!r}, as the run was begun, to resume it, got {values[1]!r}")
    if before != now:
        raise InputError("the configuration must be the one that the run was begun with to resume it, got another")


def _at(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = config.get(name) if isinstance(config, dict) else None
    return config


def newest(folder: Path, stage: str) -> Path | None:
    """The newest whole state of a stage; those after it are named. None: the stage starts at its beginning."""
    for path in sorted(folder.glob(f"{stage}-*.ckpt"), reverse=True):
        try:
            step = read_state(path)["global_step"]
        except InputError as error:
            say(f"resume: {error}; it is not used")
        else:
            say(f"resume: stage {stage} goes on after step {step}: {path}")
            return path
    say(f"resume: stage {stage} starts at its beginning")
    return None


def read_state(path: Path) -> State:
    """What a state file holds, mapped from disk: tensors and plain data.

    Raises:
        InputError: the file is truncated or altered, holds anything else, or not all that is needed.
    """
    try:
        with zipfile.ZipFile(path) as file:
            stored = all(member.compress_type == zipfile.ZIP_STORED for member in file.infolist())
            broken = file.testzip() if stored else "compressed members"
        if broken is not None:
            raise InputError(f"{path}: not as it was written: {broken}")
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except InputError:
        raise
    except Exception as error:  # torch raises whatever its reader of pickles stumbles over
        raise InputError(f"{path}: not a whole state: {(str(error) or repr(error)).splitlines()[0]}") from None
    if not isinstance(state, dict) or _PARTS - state.keys():
        raise InputError(f"{path}: not a state of a stage")
    return state


class StateIO(TorchCheckpointIO):
    """Writes a state so that the file appears whole or not at all. Raises the `OSError` of a full disk as it is."""

    def save_checkpoint(self, checkpoint: State, path: Any, storage_options: Any = None) -> None:
        partial = Path(f"{path}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)  # of a user's own callback
        for name, own in checkpoint["callbacks"].items():
            torch.save(own, buffer := io.BytesIO())
            try:
                torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
            except pickle.UnpicklingError:
                raise InputError(f"the state of the callback {name} must be tensors and plain data") from None
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            cause = error if isinstance(error, OSError) else error.__context__  # torch's own hides the disk's
            if not isinstance(cause, OSError):
                raise
            raise OSError(cause.errno, f"{cause.strerror}; the state before it is kept", str(path)) from None


class Stopped(SystemExit):
    """A signal ended training after `what`. The exit code is 130 for SIGINT and 143 for any other."""

    def __init__(self, number: int, what: str) -> None:
        super().__init__(128 + (number if number == signal.SIGINT else signal.SIGTERM))
        self.message = f"stopped by {signal.Signals(number).name} {what}: the same command with resume=true goes on"


class Signals:
    """While it is entered, SIGTERM, SIGINT and under SLURM its requeue signal end training in good order.

    Within a stage's steps they wait until the step is finished; `received` has the number. Elsewhere, and if one comes
    again a second later, they raise `Stopped` at once.
    """

    def __init__(self) -> None:
        self.received, self.stepping = 0, False
        self._when, self._pid = 0.0, os.getpid()
        self._handled = [signal.SIGTERM, signal.SIGINT]
        if "SLURM_JOB_ID" in os.environ:
            self._handled.append(signal.SIGUSR1)
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {each: signal.getsignal(each) for each in self._handled}
            self.listen()
        return self

    def __exit__(self, *error: object) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def listen(self) -> None:
        """Take the signals over, also from Lightning, which takes them when a fit begins."""
        for each in self._before:
            signal.signal(each, self._receive)

    def stop(self, what: str) -> None:
        """Raise `Stopped`, after `what`, if a signal was received."""
        if self.received:
            raise Stopped(self.received, what)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            return  # a worker: the process that it belongs to ends it
        again = self.received and time.monotonic() - self._when > 1
        if not self.received:
            self.received, self._when = number, time.monotonic()
        if again or not self.stepping:
            self.stop("between steps" if not again else "in a step, which is lost")


def ignore_signals(worker: int) -> None:
    """For a data loader's worker: SIGINT and SIGTERM are for its process, which ends it with a SIGTERM of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # tells who sent it
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_by_parent, daemon=True).start()


def _end_by_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def say(message: str) -> None:
    """A line of the first process."""
    if is_first_process():
        print(message, flush=True)
