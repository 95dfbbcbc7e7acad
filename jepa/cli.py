"""The commands ``jepa train``, ``evaluate``, ``report``, ``replay``, ``cost``: ordinary Hydra launches, plain errors.

A user's mistake ends in one line, ``error: …`` on stderr, and exit code 2. Any other exception keeps its traceback.
Hydra and the modules that do the work are imported only when a command runs.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import takewhile
from pathlib import Path
from typing import Any

import jepa
from jepa.build import nearest, unknown_key
from jepa.errors import InputError

EXIT_NOT_MET = 1  # a report below what `fail_under` asks
EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as of a program that SIGPIPE ends
_MULTIRUN = ("-m", "--multirun")  # moved to the front, where Hydra's parser needs them
# Of files and folders that the user named, or of the disk: no traceback helps.
_USERS_OS_ERRORS = {getattr(errno, n) for n in ["EACCES", "EDQUOT", "EEXIST", "ENOSPC", "ENOTDIR", "EPERM", "EROFS"]}
_SCHEMAS = {  # the defaults that conf/ builds on, as options of the group `schema`
    "vl_jepa": "jepa.config.TrainConfig",
    "llm_jepa": "jepa.config.LanguageTrainConfig",
    "objective": "jepa.config.ObjectiveConfig",
    "evaluate": "jepa.config.EvaluateConfig",
    "stream": "jepa.config.StreamConfig",
    "videos": "jepa.config.VideosConfig",
    "task": "jepa.config.TaskConfig",
    "report": "jepa.config.ReportConfig",
    "comparison": "jepa.studies.configs.ComparisonTrainConfig",
    "typing": "jepa.studies.configs.TypingConfig",
    "recurring": "jepa.studies.configs.RecurringConfig",
    "replay": "jepa.studies.configs.ReplayConfig",
    "cost": "jepa.studies.configs.CostConfig",
}


def _find(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    return getattr(importlib.import_module(module), name)


def compose(command: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a command as Hydra composes it, not yet validated."""
    from hydra import compose, initialize_config_module

    register_schemas()
    with initialize_config_module("jepa.conf", version_base="1.3"):
        return compose(command, list(overrides))


def register_schemas() -> None:
    """Make the defaults of each schema known to Hydra."""
    from hydra.core.config_store import ConfigStore

    from jepa.config import defaults

    for name, dotted in _SCHEMAS.items():
        ConfigStore.instance().store(group="schema", name=name, node=defaults(_find(dotted)))


def _validated(config: Any, schema: str) -> Any:
    from jepa.config import validate

    return validate(config, _find(_SCHEMAS[schema]))


def _train(config: Any, output: Path) -> None:
    variant = config.get("variant")
    settings = _validated(config, variant if variant in ("llm_jepa", "comparison") else "vl_jepa")
    if variant == "comparison":
        from jepa.studies.comparison import run

        run(settings, _writable(output))
        return
    if variant == "vl_jepa":
        from jepa.training.run import train

        train(settings, _writable(output))
        return
    from jepa.evaluation.answers import check_before_training, evaluate_answers

    check_before_training(settings.answers, settings.data)  # before anything is trained
    from jepa.training.fit import is_first_process
    from jepa.training.run import train

    folder = train(settings, _writable(output))  # an arm of the controls is a run with its scores
    if is_first_process():
        evaluate_answers(folder, output / "evaluation", settings.answers, settings.accelerator)


def _evaluate(config: Any, output: Path) -> None:
    settings = _validated(config, "evaluate")
    if settings.requests is not None:
        from jepa.studies.requests import run

        run(settings)
        return
    from jepa.evaluation.run import evaluate

    evaluate(settings)


def _report(config: Any, output: Path) -> int:
    settings = _validated(config, "report")
    from jepa.evaluation.report import KINDS, Kind, report
    from jepa.results import NotMetError

    names = ("results:ComparisonResults", "report:report", "results:folder_results")
    comparison = Kind(*(f"jepa.studies.comparison.{name}" for name in names))
    try:
        report(settings, (*KINDS, comparison))
    except NotMetError as error:
        sys.stdout.flush()
        print(f"failed: {error}", file=sys.stderr, flush=True)
        return EXIT_NOT_MET
    return 0


def _report_flags(arguments: list[str]) -> list[str]:
    """``--fail-under EXPR`` and ``--compare A B`` as overrides; Hydra takes ``>=`` only in quotes of its own."""
    overrides: list[str] = []
    rest = list(arguments)
    while rest:
        item = rest.pop(0)
        if item == "--compare":
            runs = list(takewhile(lambda run: "=" not in run and not run.startswith("-"), rest))
            del rest[: len(runs)]
            item = f"compare=[{','.join(map(_quoted, runs))}]"
        elif item == "--fail-under":
            if not rest:
                raise InputError("--fail-under must be followed by such as 'savings>=2.85', got nothing")
            item = f"fail_under={rest.pop(0)}"
        key, _, value = item.partition("=")
        if key == "fail_under" and set(value) & {"=", ">"} and value[0] not in "'\"":
            item = f"fail_under={_quoted(value)}"
        overrides.append(item)
    return overrides


def _quoted(value: str) -> str:
    return "'" + value.replace("'", "\\'") + "'"


def _study(name: str) -> Callable[[Any, Path], None]:
    def command(config: Any, output: Path) -> None:
        settings = _validated(config, name)
        _find(f"jepa.studies.{name}.run")(settings)

    return command


@dataclass(frozen=True)
class Command:
    """``run(config, output)`` gets the composed configuration and Hydra's output folder; it may return an exit code."""

    name: str
    purpose: str
    run: Callable[[Any, Path], int | None]
    groups: tuple[str, ...]  # folders of conf/ that it chooses from, with @ where the choice goes elsewhere
    examples: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # more of them, by variant
    flags: Callable[[list[str]], list[str]] = list  # flags of the command's own as overrides

    @property
    def choices(self) -> tuple[str, ...]:
        """All groups of the command, whatever the variant."""
        return tuple(dict.fromkeys([*self.groups, *(group for more in self.variants.values() for group in more)]))


COMMANDS = {
    "train": Command(
        "train",
        "Train a model; its checkpoint goes to outputs/<name>/checkpoint.",
        _train,
        ("experiment", "variant"),
        (
            "jepa train experiment=demo",
            "jepa train experiment=demo name=longer jepa.steps=5000",
            "jepa train -m experiment=demo seed=0,1,2",
            "jepa train experiment=demo --cfg job",
            "jepa train experiment=llm_jepa_regex objective=cosine",
        ),
        {
            "vl_jepa": ("world", "model", "stream@decoder.style"),
            "llm_jepa": ("pairs@data", "model", "objective", "objective@method", "arm"),
            "comparison": ("world", "model", "stream@stream.style"),
        },
    ),
    "evaluate": Command(
        "evaluate",
        "Score a checkpoint and save the latents of its streams.",
        _evaluate,
        ("stream@streams.everyday.style", "stream@streams.dense.style", "videos", "task", "requests"),
        (
            "jepa evaluate checkpoint=outputs/demo/checkpoint",
            "jepa evaluate checkpoint=outputs/demo/checkpoint task=retrieval",
            "jepa evaluate checkpoint=outputs/llm_jepa_nlrx/checkpoint requests=typing",
        ),
    ),
    "report": Command(
        "report",
        "Write the report: decoding policies swept over saved latents, or a language model's arms compared.",
        _report,
        ("policies",),
        (
            "jepa report evaluation=outputs/demo/evaluation",
            "jepa report evaluation=outputs/llm_jepa_controls",
            "jepa report results=outputs/demo/results.json --fail-under 'savings>=2.85'",
            "jepa report --compare outputs/demo outputs/longer",
        ),
        flags=_report_flags,
    ),
    "replay": Command(
        "replay",
        "Compare decoding policies on the timeline of a real data set, with simulated embeddings.",
        _study("replay"),
        ("policies",),
        ("jepa replay timeline.format=youcook2 timeline.path=youcook2.json noise=[0.6,1.2,2.4]",),
    ),
    "cost": Command(
        "cost",
        "Estimate what a workload costs to serve, and what several optimisations save together.",
        _study("cost"),
        ("deployed", "hardware"),
        (
            "jepa cost input_tokens=100000 output_tokens=1450",
            "jepa cost optimisations.selective.results=outputs/demo/results.json",
            "jepa cost deployed=config deployed.model.path=Qwen3-0.6B/config.json order=[tokens,hardware]",
        ),
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``argv`` (default: the command line without the program's name) and return the exit code."""
    try:
        status = _main(list(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()  # here, where a reader that has gone can be told from an error
        return status
    except BrokenPipeError:
        return _unread()
    except InputError as error:
        return _fail(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _main(arguments: list[str]) -> int:
    first = arguments[0] if arguments else "--help"
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        print(f"jepa {jepa.__version__}")
        return 0
    if first not in COMMANDS:
        close = ", ".join(nearest(first, COMMANDS) or COMMANDS)
        raise InputError(f"unknown command {first!r}; nearest valid: {close}")
    command = COMMANDS[first]
    overrides = sorted(command.flags(arguments[1:]), key=lambda item: item not in _MULTIRUN)
    if {"-h", "--help"} & set(overrides):
        print(_command_help(command))
        return 0
    return _launch(command, overrides)


def _launch(command: Command, overrides: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf.errors import OmegaConfBaseException

    started, failures, status = False, 0, 0
    register_schemas()

    @hydra.main(version_base="1.3", config_path="pkg://jepa.conf", config_name=command.name)
    def job(config: Any) -> None:
        nonlocal started, failures, status
        started = True
        settings = HydraConfig.get()
        output = Path(settings.runtime.output_dir)
        if settings.mode is RunMode.MULTIRUN:
            print(f"job {settings.job.num}: {' '.join(settings.overrides.task)} -> {output}", flush=True)
        try:
            status = max(status, command.run(config, output) or 0)
        except InputError as error:  # reported here: Hydra would add lines of its own, and a sweep goes on
            failures += 1
            _fail(error)
        except BrokenPipeError:  # here: Hydra would add lines of its own
            status = _unread()
        except OSError as error:
            if error.errno not in _USERS_OS_ERRORS:
                raise
            failures += 1
            _fail(InputError(f"{error.filename or output}: {error.strerror}"))

    with _hydra_process([f"jepa {command.name}", *overrides]):
        try:
            job()
        except (HydraException, OmegaConfBaseException) as error:
            raise _composition_error(error, command, overrides) from error
        except (OSError, ValueError) as error:
            if started:
                raise
            if isinstance(error, OSError):  # Hydra makes the folder before the job starts
                raise _folder_error(error) from error
            raise InputError(_one_line(error)) from error
    return EXIT_INPUT_ERROR if failures else status


@contextmanager
def _hydra_process(argv: list[str]) -> Iterator[None]:
    """Hydra reads ``sys.argv``, and leaves exceptions to its caller only if HYDRA_FULL_ERROR is set."""
    argv_before, full_error_before = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = argv_before
        if full_error_before is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full_error_before


# --- Errors in one line. ---


def _unread() -> int:
    """The reader of standard output has gone, as in ``jepa cost | head -2``: what is left goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return EXIT_CLOSED_PIPE


def _fail(error: InputError) -> int:
    sys.stdout.flush()
    print(f"error: {_one_line(error)}", file=sys.stderr, flush=True)
    return EXIT_INPUT_ERROR


def _one_line(error: Exception) -> str:
    """The message without line breaks and without what Hydra, OmegaConf and the workers of a DataLoader add."""
    text = str(error) or str(error.__cause__)
    if text.startswith("Caught InputError in DataLoader worker process"):
        text = text.rpartition("InputError: ")[2]  # what comes before is the worker's traceback
    for appendix in ("Config search path:", "See https://hydra.cc", "    full_key:"):
        text = text.partition(appendix)[0]
    return " ".join(text.split())


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise _folder_error(error, folder) from error


def _folder_error(error: OSError, folder: Path | None = None) -> InputError:
    return InputError(f"output folder must be writable, got {folder or error.filename}: {error.strerror}")


def _composition_error(error: Exception, command: Command, overrides: list[str]) -> InputError:
    """What Hydra or OmegaConf says about a configuration that cannot be composed, in the user's words."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import (
        ConfigAttributeError,
        ConfigKeyError,
        InterpolationToMissingValueError,
        OmegaConfBaseException,
    )

    if isinstance(error, OverrideParseException):
        reason = _one_line(error).removeprefix(f"Error parsing override '{error.override}'").strip()
        return InputError(f"cannot parse override {error.override!r}: {reason}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        close = ", ".join(nearest(option, error.options) or error.options)
        return InputError(f"there is no {group} {option!r}; nearest valid: {close}")
    if isinstance(error, InterpolationToMissingValueError):
        key = _one_line(error).rpartition("Missing mandatory value: ")[2]
        choice = f", or choose experiment={'|'.join(_options('experiment'))}" if "experiment" in command.groups else ""
        return InputError(f"{key} is missing: give it as {key}=<value>{choice}")
    cause = error.__cause__
    if isinstance(cause, (ConfigAttributeError, ConfigKeyError)) and cause.full_key:
        return unknown_key(cause.full_key, [*command.choices, *_valid_keys(command, overrides)])
    where = f"{error.full_key}: " if isinstance(error, OmegaConfBaseException) and error.full_key else ""
    return InputError(f"{where}{_one_line(error)}")


def _valid_keys(command: Command, overrides: list[str]) -> Iterator[str]:
    """The dotted keys of the command's configuration under the groups that the user chose."""
    from omegaconf import OmegaConf

    chosen = [item for item in overrides if item.partition("=")[0] in command.choices and "," not in item]

    def walk(node: Any, prefix: str) -> Iterator[str]:
        for key, value in node.items():
            yield f"{prefix}{key}"
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return walk(OmegaConf.to_container(compose(command.name, chosen)), "")


# --- Help. ---


def _help() -> str:
    purposes = [f"  {command.name:10}{command.purpose}" for command in COMMANDS.values()]
    examples = [f"  {command.examples[0]}" for command in COMMANDS.values()]
    lines = ["usage: jepa <command> [flags] [key=value ...]", "", "commands:", *purposes, "", "examples:", *examples]
    return "\n".join([*lines, "", "jepa <command> --help shows more of each; jepa --version prints the version."])


def _command_help(command: Command) -> str:
    choices = [f"  {group}={'|'.join(_options(group))}" for group in command.groups]
    for variant, groups in command.variants.items():
        choices += [f"  {group}={'|'.join(_options(group))}  (variant {variant})" for group in groups]
    return "\n".join(
        [
            f"usage: jepa {command.name} [flags] [key=value ...]",
            "",
            command.purpose,
            "",
            "examples:",
            *(f"  {example}" for example in command.examples),
            "",
            "choices:",
            *choices,
            "",
            "flags:",
            "  --cfg job         print the whole configuration, that is every key=value there is, and stop",
            "  -m, --multirun    run once for each combination of values: seed=0,1,2",
            "  --info            print how the configuration is composed, and stop",
            "  --hydra-help      the other flags of Hydra",
        ]
    )


def _options(group: str) -> list[str]:
    """The files of a folder of conf/, without their ending."""
    names = (entry.name for entry in files("jepa.conf").joinpath(group.partition("@")[0]).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))
