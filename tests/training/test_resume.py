"""A run that was killed goes on as if it had not been: weights, logs and records, in every stage and on all data."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from conftest import LLAMA, Program, refuses, without_seconds
from lightning.pytorch.loops.fit_loop import _FitLoop
from processes import (
    assert_same_weights,
    config,
    data_of,
    frozen,
    in_two_processes,
    pictures,
    stages,
    train,
    train_config,
)
from torch.multiprocessing.spawn import ProcessExitedException

from jepa.cli import main
from jepa.data.shards import write_shards
from jepa.training.configs import StageConfig
from jepa.training.resume import newest, read_state
from jepa.training.saving import StateCallback

pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
SAVES = {"every_steps": 2, "every_minutes": 60.0, "keep": 2}


def world(folder: Path) -> dict[str, Any]:
    """Both stages, with slow copies, random projections and accumulated batches."""
    sigreg = {"_target_": "jepa.losses.regularisers.SIGReg", "projections": 8}
    plain = config("jepa.steps=5", "jepa.validate_every=3", "decoder.steps=5", "jepa.accumulate=2")
    plain["jepa"] |= {"target": "ema", "regulariser": sigreg, "regulariser_weight": 0.1}
    return plain


def features(folder: Path) -> dict[str, Any]:
    """With a slow copy of the whole model, by the callback."""
    plain = frozen(
        config(
            "jepa.steps=5",
            "decoder=null",
            "callbacks=[ema,learning_rate]",
            "callbacks.ema.decay=0.5",
            "trainer.log_every_n_steps=1",
        )
    )
    return plain | {"data": data_of(pictures(folder / "pictures", 7), features=str(folder / "states"))}


def shards(folder: Path) -> dict[str, Any]:
    """Two workers take turns; a medium that cannot be read is counted each time."""
    manifest = pictures(folder / "pictures", 12)
    (folder / "pictures" / "2.png").write_bytes(b"no picture")
    write_shards(manifest, folder / "shards", 4)
    data = data_of(Path(f"{folder}/shards/shard-*.tar"), buffer=3, skip_broken=True)
    return config("jepa.steps=5", "decoder=null") | {"data": data, "workers": 2}


def language(folder: Path) -> dict[str, Any]:
    """All three stages, with dropout of weights and of the latent term, and a slow copy."""
    plain = train_config({"target": "ema", "loss_dropout": 0.5}, {"epochs": 0.5})
    model = plain["model"]
    model["language_model"]["architecture"] = {**LLAMA, "attention_dropout": 0.2}
    model["y_decoder"] = {"_target_": "jepa.decoders.prefix.PrefixDecoder", "width": 32, "depth": 1, "heads": 2}
    model["transition"] = {"_target_": "jepa.predictors.transition.LatentTransition", "horizon": 2}
    short = StageConfig(steps=3, batch_size=8, warmup_steps=0, validation_batches=1).model_dump()
    return plain | {"decoder": short, "draft": short}


# What is trained, and the steps of stages where it is killed, one after the other.
RUNS: dict[str, tuple[Callable[[Path], dict[str, Any]], list[tuple[str, int]]]] = {
    "world": (world, [("jepa", 1), ("jepa", 3), ("decoder", 1), ("decoder", 4)]),
    "features": (features, [("jepa", 3)]),
    "shards": (shards, [("jepa", 3)]),
    "language": (language, [("llm_jepa", 3), ("decoder", 2), ("draft", 1)]),
}


def kill_at(stage: str, step: int, number: signal.Signals = signal.SIGKILL, first: bool = False) -> None:
    """This process gets a signal when the step begins: before or after its state is written, if that is due."""
    write = StateCallback.on_train_batch_start

    def on_train_batch_start(self: StateCallback, trainer: Any, *arguments: Any) -> None:
        here = (self.name, trainer.global_step) == (stage, step)
        if first and here:
            os.kill(os.getpid(), number)
        write(self, trainer, *arguments)
        if here and not first:
            os.kill(os.getpid(), number)

    StateCallback.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]


def _killed(rank: int, plain: dict[str, Any], output: Path, stage: str, step: int) -> None:
    torch.set_num_threads(1)
    kill_at(stage, step)
    train(plain, output)


def killed(plain: dict[str, Any], output: Path, stage: str, step: int) -> None:
    with pytest.raises(ProcessExitedException, match="SIGKILL"):
        mp.start_processes(_killed, (plain, output, stage, step), nprocs=1, start_method="fork")


def assert_same_run(found: Path, wanted: Path) -> None:
    assert_same_weights(found / "checkpoint", wanted / "checkpoint", atol=0, rtol=0)
    assert without_seconds(stages(found / "checkpoint")) == without_seconds(stages(wanted / "checkpoint"))
    logs = [path.relative_to(wanted) for path in wanted.glob("logs/*/metrics.csv")]
    assert logs
    for log in logs:
        assert (found / log).read_text() == (wanted / log).read_text()


@pytest.mark.parametrize("name", RUNS)
def test_a_killed_run_goes_on_as_if_it_had_not_been(name, tmp_path):
    make, kills = RUNS[name]
    plain = make(tmp_path) | {"saves": SAVES}
    train(plain, tmp_path / "whole")
    for stage, step in kills:
        killed(plain | {"resume": "auto"}, tmp_path / "killed", stage, step)
        assert len(list((tmp_path / "killed" / "resume").glob("*.ckpt"))) <= SAVES["keep"]
    train(plain | {"resume": True}, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")
    assert not list((tmp_path / "killed" / "resume").glob("*.ckpt*"))  # of stages that are finished


def test_two_processes_go_on_as_if_they_had_not_been_killed(tmp_path):
    plain = config("jepa.steps=5", "decoder=null") | {"saves": SAVES, "strategy": "ddp", "devices": 2}
    in_two_processes(train, plain, tmp_path / "whole")
    with pytest.raises(ProcessExitedException):
        in_two_processes(_train_until, plain, tmp_path / "killed", 3, signal.SIGKILL)
    with pytest.raises(ProcessExitedException, match="exit code 143"):
        in_two_processes(_train_until, plain | {"resume": True}, tmp_path / "killed", 3, signal.SIGTERM)
    [_, state] = sorted((tmp_path / "killed" / "resume").glob("*.ckpt"))
    assert read_state(state)["global_step"] == 3  # both stopped after it, though one alone was told to
    in_two_processes(train, plain | {"resume": True}, tmp_path / "killed")
    assert_same_run(tmp_path / "killed", tmp_path / "whole")


def test_a_signal_while_the_loader_starts_waits_for_a_step(tmp_path, monkeypatch, capsys):
    """Lightning has its own handlers there, and an exception in the middle of a fork is lost."""
    set_up = _FitLoop.setup_data

    def setup_data(loop: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        set_up(loop)

    plain = config("jepa.steps=5", "decoder=null") | {"saves": SAVES, "resume": "auto"}
    with monkeypatch.context() as patch:
        patch.setattr(_FitLoop, "setup_data", setup_data)
        with pytest.raises(SystemExit) as stopped:
            train(plain, tmp_path / "stopped")
    assert stopped.value.code == 143
    assert "stopped by SIGTERM after step 1 of stage jepa" in capsys.readouterr().out
    train(plain, tmp_path / "stopped")
    train(plain, tmp_path / "whole")
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert "trains anew" not in capsys.readouterr().out
    train(plain | {"resume": False}, tmp_path / "whole")
    assert "trains anew and replaces an earlier run" in capsys.readouterr().out


def test_a_record_of_a_run_that_is_cut_off_is_named(begun, tmp_path):
    plain, output = begun
    folder = Path(shutil.copytree(output / "resume", tmp_path / "resume"))
    os.truncate(folder / "run.json", 100)
    refuses("resume/run.json: not JSON", train, plain, tmp_path)


class Keeps(L.Callback):
    """Its state is an object."""

    def state_dict(self) -> dict[str, Any]:
        return {"own": Program()}


def test_a_callback_whose_state_could_not_be_read_again_is_refused(tmp_path):
    own = {"mine": {"own": f"{__name__}:Keeps"}}
    plain = config("jepa.steps=5", "decoder=null") | {"saves": SAVES, "callbacks": own}
    refuses("state of the callback Keeps must be tensors and plain data", train, plain, tmp_path)


def _train_until(plain: dict[str, Any], output: Path, step: int, number: signal.Signals) -> None:
    """SIGTERM reaches the second process alone."""
    if number == signal.SIGKILL or os.environ["RANK"] == "1":
        kill_at("jepa", step, number, first=number == signal.SIGTERM)
    train(plain, output)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A run that was killed with states of steps 2 and 4. Do not change it: copy it."""
    output = tmp_path_factory.mktemp("begun")
    plain = config("jepa.steps=6", "decoder=null") | {"saves": SAVES, "resume": "auto"}
    killed(plain, output, "jepa", 5)
    return plain, output


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def altered(path: Path) -> None:
    """A weight is another."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def executable(path: Path) -> None:
    """A program in a pickle."""
    torch.save({**torch.load(path, weights_only=True), "more": Program()}, path)


def garbled(path: Path) -> None:
    """A text in its pickle is no UTF-8."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02X\x01\0\0\0\x85.")
        file.writestr("archive/version", b"3\n")


@pytest.mark.parametrize("spoil", [truncated, altered, executable, garbled])
def test_a_state_that_is_not_whole_is_named_and_the_one_before_used(spoil, begun, tmp_path, capsys, monkeypatch):
    _, output = begun
    folder = Path(shutil.copytree(output / "resume", tmp_path / "resume"))
    monkeypatch.chdir(tmp_path)
    first, last = sorted(folder.glob("jepa-*.ckpt"))
    spoil(last)
    assert newest(folder, "jepa") == first
    assert f"{last}: not" in capsys.readouterr().out
    truncated(first)
    assert newest(folder, "jepa") is None
    assert not (tmp_path / "was_run").exists()


def test_runs_that_cannot_go_on_are_refused(begun, tmp_path):
    plain, output = begun
    refuses("resume must be false or auto where no run was begun", train, plain | {"resume": True}, tmp_path)
    copied = Path(shutil.copytree(output, tmp_path / "copied"))
    changed = plain | {"jepa": plain["jepa"] | {"learning_rate": 0.5}}
    refuses(r"jepa\.learning_rate must be 0\.001, as the run was begun, .* got 0\.5", train, changed, copied)
    own = plain | {"checkpoint": str(copied / "checkpoint")}
    refuses("resume must be false where checkpoint is the run's own", train, own, copied)


def test_a_run_begun_anew_forgets_the_one_before(begun, tmp_path):
    plain, output = begun
    copied = Path(shutil.copytree(output, tmp_path / "copied"))
    killed(plain | {"resume": False}, copied, "jepa", 1)
    assert not list((copied / "resume").glob("*.ckpt"))


def test_a_full_disk_is_said_in_one_line_and_the_state_before_it_stays(begun, tmp_path):
    plain, output = begun
    folder = Path(shutil.copytree(output, tmp_path / "copied")) / "resume"
    (folder / "jepa-000000004.ckpt").unlink()
    (folder / "jepa-000000004.ckpt.partial").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device; the state before it is kept") as raised:
        train(plain, folder.parent)
    assert raised.value.filename.endswith("jepa-000000004.ckpt")
    assert [path.name for path in folder.glob("jepa-*")] == ["jepa-000000002.ckpt"]
    assert read_state(folder / "jepa-000000002.ckpt")["global_step"] == 2
    train(plain, folder.parent)  # once there is space


COMMAND = ["train", "experiment=scratch", "name=run", "jepa.batch_size=4", "jepa.steps=1000", "decoder=null"]
COMMAND += ["jepa.validate_every=1000", "accelerator=cpu", "precision=32-true"]


def _run(folder: Path, more: list[str], environment: dict[str, str]) -> None:
    os.setsid()  # a process group of its own
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(name, os.O_CREAT | os.O_WRONLY), descriptor)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    begin = StateCallback.on_train_batch_start

    def on_train_batch_start(self: StateCallback, trainer: Any, *arguments: Any) -> None:
        if trainer.global_step == 2:
            (folder / "two steps").touch()
        begin(self, trainer, *arguments)

    StateCallback.on_train_batch_start = on_train_batch_start  # type: ignore[method-assign]
    sys.exit(main([*COMMAND, *more]))


def begin(folder: Path, *more: str, **environment: str) -> Any:
    """A run that has done two steps and has many to go."""
    process = mp.get_context("fork").Process(target=_run, args=(folder, list(more), environment))
    process.start()
    while not (folder / "two steps").exists():
        assert process.is_alive(), (folder / "err").read_text()
        time.sleep(0.05)
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_run_in_good_order(number, status, tmp_path, monkeypatch, capsys):
    """The workers of the loader get it, too. Meanwhile no other run may have the folder."""
    process = begin(tmp_path, "workers=1")
    monkeypatch.chdir(tmp_path)
    assert main(COMMAND) == 2
    refused = f"outputs/run: must be of one run at a time, in use by process {process.pid}\n"
    assert capsys.readouterr().err.endswith(refused)
    os.killpg(process.pid, number)
    process.join()
    out, err = (Path(name).read_text() for name in ("out", "err"))
    assert process.exitcode == status
    assert "Traceback" not in out + err
    [line] = [line for line in out.splitlines() if "stopped by" in line]
    [state] = Path("outputs/run/resume").glob("*.ckpt")
    step = read_state(state)["global_step"]
    assert step >= 2
    assert line.startswith(f"stopped by {number.name} after step {step} of stage jepa: the same command with resume=")


def test_slurm_is_asked_to_queue_a_run_again_that_goes_on_by_itself(tmp_path):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    scontrol.chmod(0o755)
    slurm = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "17"}
    process = begin(tmp_path, "workers=0", "resume=auto", **slurm)
    os.kill(process.pid, signal.SIGUSR1)
    process.join()
    assert process.exitcode == 143
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
