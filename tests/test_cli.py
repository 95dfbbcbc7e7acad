"""The commands: what they pass on, where outputs go, and how errors look."""

from __future__ import annotations

import errno
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

import jepa
from jepa.cli import COMMANDS, main
from jepa.errors import InputError
from jepa.training.configs import TrainConfig

ROOT = Path(__file__).parent.parent
# Examples of the help are those at the head of the command's file.
EXAMPLES = {
    command: re.findall(r"^#   (jepa .*)$", (ROOT / "conf" / f"{command}.yaml").read_text(encoding="utf-8"), re.M)
    for command in COMMANDS
}
MANDATORY = {
    "train": ["name=trial"],
    "evaluate": ["checkpoint=somewhere"],
    "report": ["evaluation=somewhere"],
    "replay": ["timeline.format=coin", "timeline.path=COIN.json"],
    "live": ["checkpoint=somewhere"],
    "cost": [],
    "push": ["checkpoint=somewhere", "to=a/b"],
    "export": ["checkpoint=somewhere", "output=out"],
}


@pytest.fixture
def calls(monkeypatch, tmp_path) -> list[tuple[Any, Path]]:
    """The work of every command replaced by a record of its arguments; the current folder is an empty one."""
    record: list[tuple[Any, Path]] = []
    for command in COMMANDS:
        monkeypatch.setitem(COMMANDS, command, lambda settings, output: record.append((settings, output)))
    monkeypatch.chdir(tmp_path)
    return record


def fail_with(monkeypatch, command: str, error: BaseException) -> None:
    def work(settings: Any, output: Path) -> None:
        raise error

    monkeypatch.setitem(COMMANDS, command, work)


def error_line(capsys) -> str:
    """The one line on stderr, without its `error: `."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


def test_help_and_version_show_examples_that_parse(capsys):
    assert main(["--help"]) == main([]) == main(["-h"]) == 0
    text = capsys.readouterr().out
    assert all(f"jepa {command}" in text for command in COMMANDS)
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert EXAMPLES[command]
        assert all(example in text for example in EXAMPLES[command])
    assert main(["trian"]) == 2
    assert error_line(capsys) == "unknown command 'trian'; nearest valid: train"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"jepa {jepa.__version__}"


@pytest.mark.parametrize("example", [example for each in EXAMPLES.values() for example in each])
def test_every_example_of_the_help_runs(calls, capsys, example):
    program, *arguments = example.split()
    assert program == "jepa"
    assert main(arguments) == 0
    assert capsys.readouterr().err == ""


def test_train_gets_a_validated_config_and_its_output_folder(calls, tmp_path):
    assert main(["train", "name=trial", "seed=3"]) == 0
    [(config, output)] = calls
    assert isinstance(config, TrainConfig)
    assert (config.name, config.seed) == ("trial", 3)
    assert output == tmp_path / "outputs" / "trial"
    assert output.is_dir()


@pytest.mark.parametrize("command", ["evaluate", "report"])
def test_evaluate_and_report_leave_no_folders_of_hydra(calls, tmp_path, command):
    assert main([command, *MANDATORY[command]]) == 0
    [(config, _)] = calls
    assert type(config).__name__ == f"{command.capitalize()}Config"
    assert list(tmp_path.iterdir()) == []


def test_a_sweep_runs_each_job_in_its_own_folder(calls, tmp_path, capsys):
    assert main(["train", "-m", "name=trial", "seed=0,1,2"]) == 0
    assert [config.seed for config, _ in calls] == [0, 1, 2]
    folders = [output for _, output in calls]
    assert folders == [tmp_path / f"outputs/trial/multirun/name-trial-seed-{seed}" for seed in range(3)]
    assert capsys.readouterr().out.splitlines()[1].startswith("job 1: name=trial seed=1 -> ")


def test_a_sweep_goes_on_in_its_folders_and_one_over_what_may_change_has_a_folder_each(calls):
    changed = ["resume=auto", "trainer.enable_progress_bar=false", "logger=[csv,tensorboard]", "saves.keep=1"]
    for more in ([], changed):
        assert main(["train", "-m", "name=trial", "seed=0,1", *more]) == 0
    first, second, *again = [output for _, output in calls]
    assert [first, second] == again
    assert main(["train", "-m", "name=trial", "seed=0", "trainer.deterministic=false,true", "resume=auto"]) == 0
    assert len({output for _, output in calls}) == 4


def test_the_folders_of_long_sweeps_are_short_and_named_in_the_next_command(calls, tmp_path):
    stage = "steps", "batch_size", "accumulate", "warmup_steps", "validate_every", "validation_batches"
    many = [f"{part}.{key}=3" for part in ("jepa", "decoder") for key in stage] + ["data.train=a=\u00fc, b.jsonl"]
    (tmp_path / "a=\u00fc, b.jsonl").touch()
    assert main(["train", "-m", "name=trial", "decoder.noise=0,1", *many]) == 0
    [one, two] = [output.relative_to(tmp_path) for _, output in calls]
    assert one != two
    assert len(one.name) <= 80
    assert calls[0][0].data.train == "a=\u00fc, b.jsonl"
    (tmp_path / (odd := "a=1,b (\u00fc) ${x}")).mkdir()
    assert main(["evaluate", "-m", f"checkpoint={one},{two}", f"output={odd}"]) == 0
    assert [(config.checkpoint, config.output) for config, _ in calls[2:]] == [(str(one), odd), (str(two), odd)]


def test_names_can_be_swept_over_with_the_flag_anywhere(calls, monkeypatch):
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = list(sys.argv)
    assert main(["train", "name=a,b", "-m"]) == 0
    assert [output.parent.parent.name for _, output in calls] == ["a", "b"]
    assert (sys.argv, os.environ.get("HYDRA_FULL_ERROR")) == (before, None)  # the process is left as it was


def test_a_sweep_goes_on_after_a_job_with_bad_input(calls, capsys):
    assert main(["train", "-m", "name=trial", "seed=0,-1,2"]) == 2
    assert [config.seed for config, _ in calls] == [0, 2]
    assert error_line(capsys) == "seed must be >= 0, got -1"


def test_hydra_flags_work(tmp_path):
    """In a process of its own, as it changes what is logged. For `--cfg`, see the scripts below."""
    call = [sys.executable, str(ROOT / "scripts" / "train.py"), "name=trial", "--info", "searchpath"]
    assert "pkg://jepa.conf" in subprocess.check_output(call, cwd=tmp_path, text=True, timeout=60)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["seed=x"], r"seed must be an integer, got 'x'"),
        (["seeed=1"], r"unknown key 'seeed'; nearest valid: seed"),
        (["+seeed=1"], r"unknown key 'seeed'; nearest valid: seed"),
        (["++seeed=1"], r"unknown key 'seeed'; nearest valid: seed"),
        (["name=x", "jepa=null", "jepa.steps=4"], r"jepa\.steps cannot be given: jepa is null or has no keys"),
        (["experiment=vl_jepa_decoder", "jepa.steps=4"], r"jepa\.steps cannot be given: jepa is null or has no keys"),
        (["experment=demo"], r"unknown key 'experment'; nearest valid: experiment"),
        (["experiment=dmeo"], r"there is no experiment 'dmeo'; nearest valid: .*demo.*"),
        (["experiment=d" + 300 * "9"], r".*File name too long.*"),
        (["-m", "experiment=dmeo,demo"], r"there is no experiment 'dmeo'; nearest valid: .*demo.*"),
        (["world=zzz"], r"there is no world 'zzz'; nearest valid: .+"),
        (["world._targett_=jepa.X"], r"unknown key 'world\._targett_'; nearest valid: world\._target_.*"),
        (["world._target_=os.system"], r"world\._target_ must lie within jepa, .*, got 'os\.system'"),
        (["seed=["], r"cannot parse override 'seed=\[': .+"),
        (["seed"], r"cannot parse override 'seed': .+"),
        (["name=\udcbb"], r"arguments must be valid Unicode, got 'name=\\udcbb'"),
        (["seed=1,2"], r"Ambiguous value for argument 'seed=1,2' .*--multirun.*"),
        (["seed=${nothing}"], r"seed cannot be resolved: Interpolation key 'nothing' not found"),
        (["name=${nothing}"], r"hydra\.run\.dir: Interpolation key 'nothing' not found"),
        (["--config-name", "nothing"], r"Cannot find primary config 'nothing'\..*"),
        (["--cfg", "job", "-m"], r"Only one of --run, .*"),
    ],
)
def test_configuration_errors_are_one_line(calls, capsys, overrides, message):
    assert main(["train", "name=trial", *overrides]) == 2
    line = error_line(capsys)
    assert re.fullmatch(message, line), line
    assert calls == []


@pytest.mark.parametrize("command", ["train", "evaluate", "replay"])
def test_a_missing_mandatory_value_is_named(calls, capsys, command):
    assert main([command]) == 2
    key = MANDATORY[command][0].partition("=")[0]
    line = error_line(capsys)
    assert re.fullmatch(rf"{key} is missing: give it as {key}=<.*>(, or choose experiment=.*)?", line), line


@pytest.mark.parametrize("command", COMMANDS)
def test_an_input_error_within_a_command_is_one_line(calls, monkeypatch, capsys, command):
    fail_with(monkeypatch, command, InputError("latents must be finite,\n got nan at step 3"))
    assert main([command, *MANDATORY[command]]) == 2
    assert error_line(capsys) == "latents must be finite, got nan at step 3"


class _Broken(Dataset[int]):
    def __getitem__(self, index: int) -> int:
        raise InputError(f"sample {index} must be whole,\n got half of it")

    def __len__(self) -> int:
        return 1


def test_an_input_error_in_a_worker_is_one_line(calls, monkeypatch, capsys):
    with pytest.raises(InputError) as found:
        next(iter(DataLoader(_Broken(), num_workers=1)))
    fail_with(monkeypatch, "train", found.value)
    assert main(["train", "name=trial"]) == 2
    assert error_line(capsys) == "sample 0 must be whole, got half of it"


def test_other_exceptions_keep_their_traceback(calls, monkeypatch):
    fail_with(monkeypatch, "train", RuntimeError("a bug"))
    with pytest.raises(RuntimeError, match="a bug") as error:
        main(["train", "name=trial"])
    assert error.traceback[-1].name == "work"
    fail_with(monkeypatch, "train", FileNotFoundError(errno.ENOENT, "No such file", "inner"))
    with pytest.raises(FileNotFoundError):
        main(["train", "name=trial"])


def test_an_interrupt_ends_with_130(calls, monkeypatch, capsys):
    fail_with(monkeypatch, "train", KeyboardInterrupt())
    assert main(["train", "name=trial"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize("arguments", [["--help"], ["cost", "--cfg", "job"]])
def test_a_reader_that_has_gone_is_no_error(arguments, tmp_path):
    """As in `jepa cost --cfg job | head -2`: no traceback, and the exit status of a program that SIGPIPE ends."""
    call = [sys.executable, "-c", "import sys; from jepa.cli import main; sys.exit(main())", *arguments]
    with subprocess.Popen(call, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_an_output_folder_that_cannot_be_made_is_one_line(calls, capsys, tmp_path, flags):
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert main(["train", "name=trial", *flags]) == 2
    assert re.fullmatch(r".*outputs.*: (Not a directory|File exists)", error_line(capsys))
    assert calls == []


def test_a_full_disk_within_a_command_is_one_line(calls, capsys, monkeypatch):
    fail_with(monkeypatch, "evaluate", OSError(errno.ENOSPC, "No space left on device", "/data/latents"))
    assert main(["evaluate", "checkpoint=x"]) == 2
    assert error_line(capsys) == "/data/latents: No space left on device"


@pytest.mark.parametrize("command", COMMANDS)
def test_scripts_are_the_commands(calls, monkeypatch, capsys, command):
    key = {"cost": "batch", "live": "port", "push": "licence", "export": "output"}.get(command, "seed")
    value = "out" if command == "export" else "4"
    arguments = [*MANDATORY[command], f"{key}={value}", "--cfg", "job"]
    script = str(ROOT / "scripts" / f"{command}.py")
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_path(script, run_name="__main__")
    printed = capsys.readouterr().out
    assert f"{key}: {value}" in printed.splitlines()
    assert main([command, *arguments]) == 0
    assert capsys.readouterr().out == printed
