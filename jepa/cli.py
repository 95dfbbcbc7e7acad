"""The commands of ``jepa``: ordinary Hydra launches, plain errors.

A user's mistake ends in one line, ``error: …``, and exit code 2. Any other exception keeps its traceback.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from importlib.resources import files
from itertools import chain, takewhile
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import yaml

import jepa
from jepa.build import dotted_keys, nearest, unknown_key
from jepa.errors import CollectedError, InputError
from jepa.overrides import overrides_of, short_name

if TYPE_CHECKING:
    from jepa.config import Config, EvaluateConfig, ReportConfig
    from jepa.studies.configs import ComparisonTrainConfig
    from jepa.training.configs import LanguageTrainConfig, TrainConfig

_CONF = files("jepa.conf")
EXIT_NOT_MET = 1  # a report below what `fail_under` asks
EXIT_INPUT_ERROR = 2
EXIT_INTERRUPTED = 130
EXIT_CLOSED_PIPE = 141  # as of a program that SIGPIPE ends
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
# Of files and folders that the user named, or of the disk: no traceback helps.
_USERS_OS_ERRORS = {getattr(errno, n) for n in ["EACCES", "EDQUOT", "EEXIST", "ENOSPC", "ENOTDIR", "EPERM", "EROFS"]}
# Kinds of results that `jepa report` makes of a folder of evaluations: what makes it, its class, what shows it.
RESULTS = (
    ("jepa.evaluation.sweep:stream_results", "jepa.results:StreamResults", "jepa.report.streams:report"),
    ("jepa.evaluation.arms:folder_results", "jepa.results:AnswerResults", "jepa.report.answers:report"),
    tuple(
        f"jepa.studies.comparison.{name}"
        for name in ("results:folder_results", "results:ComparisonResults", "report:report")
    ),
)


def compose(command: str, overrides: Sequence[str] = ()) -> Any:
    """The configuration of a command as Hydra composes it, not yet validated."""
    from hydra import compose, initialize_config_module

    register_schemas()
    with initialize_config_module("jepa.conf", version_base="1.3"):
        return compose(command, list(overrides))


@cache
def register_schemas() -> dict[str, type[Config]]:
    """The classes of configurations by name. Hydra gets their defaults, as options of the group `schema`."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    from jepa.config import Config, defaults

    OmegaConf.register_new_resolver("short", short_name, replace=True)
    named = ("config", "training.configs", "studies.configs", "live.configs", "hub")
    modules = [importlib.import_module(f"jepa.{name}") for name in named]
    found = {name: each for module in modules for name, each in vars(module).items() if isinstance(each, type)}
    schemas = {name: each for name, each in found.items() if issubclass(each, Config)}
    for name, schema in schemas.items():
        ConfigStore.instance().store(group="schema", name=name, node=defaults(schema))
    return schemas


def _train(settings: TrainConfig | LanguageTrainConfig | ComparisonTrainConfig, output: Path) -> None:
    if settings.variant == "comparison":
        resolve_name("jepa.studies.comparison:run")(settings, output)
    elif settings.variant == "vl_jepa":
        resolve_name("jepa.training.run:train")(settings, output)
    else:
        from jepa.evaluation.answers import check_before_training, evaluate_answers
        from jepa.processes import is_first_process

        check_before_training(settings.answers, settings.data)
        folder = resolve_name("jepa.training.run:train")(settings, output)  # an arm is a run with its scores
        if is_first_process():
            once, own = bool(settings.resume), output / "evaluation"
            evaluate_answers(folder, own, settings.answers, settings.accelerator, once=once)


def _evaluate(settings: EvaluateConfig, output: Path) -> None:
    resolve_name("jepa.evaluation.run:evaluate" if settings.requests is None else "jepa.studies.requests:run")(settings)


def _report(settings: ReportConfig, output: Path) -> int:
    from jepa.evaluation.provenance import announce
    from jepa.evaluation.run import compared, results_of
    from jepa.report import terminal, write_report
    from jepa.results import NotMetError

    if settings.curves is not None:
        resolve_name("jepa.training.curves:draw")(settings.curves, Path(settings.output or "outputs/curves"))
        return 0
    if settings.compare is not None:
        page = resolve_name("jepa.report.compare:report")(compared(settings))
        announce(terminal(page), write_report(None, page, settings.output or "outputs/comparison", "comparison"))
        return 0
    document, folder, required = results_of(
        settings, ((resolve_name(make), resolve_name(kind)) for make, kind, _ in RESULTS)
    )
    page = next(resolve_name(show)(document) for _, kind, show in RESULTS if isinstance(document, resolve_name(kind)))
    announce(terminal(page), write_report(document, page, folder) if folder else {})
    try:
        if required is not None:
            print(required.verdict(document), flush=True)
    except NotMetError as error:
        return _fail(str(error), "failed", EXIT_NOT_MET)
    return 0


def _run(name: str, settings: Any, output: Path) -> None:
    resolve_name(name)(settings)


# What runs the validated configuration, given Hydra's output folder. It may return an exit code.
COMMANDS: dict[str, Callable[[Any, Path], int | None]] = {
    "train": _train,
    "evaluate": _evaluate,
    "report": _report,
    "live": partial(_run, "jepa.live.command:run"),
    "replay": partial(_run, "jepa.studies.replay:run"),
    "cost": partial(_run, "jepa.studies.cost:run"),
    "push": partial(_run, "jepa.hub:push"),
    "export": partial(_run, "jepa.hub:export"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``argv`` (default: the command line without the program's name) and return the exit code."""
    gc.set_threshold(max(5_000, gc.get_threshold()[0]))  # imports make many objects, and no garbage
    keep_freed_memory()
    try:
        return _status(lambda: _main(list(sys.argv[1:] if argv is None else argv)))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def keep_freed_memory() -> None:
    """Lets glibc keep up to half a gigabyte of what was freed, for layers on a CPU ask for the same megabytes again.

    Handed back, they are pages that the system clears anew: a step of the demo's training takes 1.1 to 1.3 times as
    long, the stream of an evaluation 1.2 to 1.4 times.
    """
    if sys.platform == "linux" and hasattr(glibc := ctypes.CDLL(None), "gnu_get_libc_version"):
        glibc.mallopt(_MMAP_THRESHOLD, 64 << 20)
        glibc.mallopt(_TRIM_THRESHOLD, 512 << 20)


def _status(work: Callable[[], int | None]) -> int:
    """The exit code of some work; that of an error of the user's, which is printed in one line."""
    try:
        status = work() or 0
        sys.stdout.flush()  # here, where a reader that has gone can be told from an error
        return status
    except InputError as error:
        return _fail(str(error) if isinstance(error, CollectedError) else _one_line(error))
    except BrokenPipeError:  # as in `jepa cost | head -2`: what is left goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_CLOSED_PIPE
    except OSError as error:
        if error.errno not in _USERS_OS_ERRORS:
            raise
        return _fail(f"{error.filename or 'output'}: {error.strerror}")


def _fail(message: str, kind: str = "error", status: int = EXIT_INPUT_ERROR) -> int:
    sys.stdout.flush()
    print(f"{kind}: {message}", file=sys.stderr, flush=True)
    return status


def _main(arguments: list[str]) -> int:
    for argument in arguments:
        if argument != argument.encode(errors="replace").decode():
            raise InputError(f"arguments must be valid Unicode, got {argument!r}")
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        print(_help())
    elif name == "--version":
        print(f"jepa {jepa.__version__}")
    elif name not in COMMANDS:
        raise InputError(f"unknown command {name!r}; nearest valid: {', '.join(nearest(name, COMMANDS) or COMMANDS)}")
    elif {"-h", "--help"} & set(rest):
        print(_command_help(name))
    else:
        overrides = overrides_of(name, rest)  # the flag of a sweep in front, where Hydra's parser needs it
        return _launch(name, sorted(overrides, key=lambda item: item not in ("-m", "--multirun")))
    return 0


def _launch(name: str, overrides: list[str]) -> int:
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from hydra.types import RunMode
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from jepa.config import validate
    from jepa.hub import with_local_checkpoint
    from jepa.training.configs import FREE

    statuses, schemas = list[int](), register_schemas()

    @hydra.main(version_base="1.3", config_path="pkg://jepa.conf", config_name=name)
    def job(config: Any) -> float | None:
        hydras = HydraConfig.get()
        output, schema = Path(hydras.runtime.output_dir), schemas[hydras.runtime.choices["schema@_global_"]]
        if hydras.mode is RunMode.MULTIRUN:
            print(f"job {hydras.job.num}: {' '.join(hydras.overrides.task)} -> {output}", flush=True)
        statuses.append(EXIT_INPUT_ERROR)  # until it ends
        statuses[-1] = _status(
            lambda: COMMANDS[name](with_local_checkpoint(validate(config, schema)), output)
        )  # a sweep goes on
        monitored = config.get("monitor") if name == "train" and not statuses[-1] else None
        return None if monitored is None else resolve_name("jepa.training.run:last_value")(output, monitored)

    before, was_set = sys.argv, "HYDRA_FULL_ERROR" in os.environ
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [f"jepa {name}", *overrides], "1"  # with it, exceptions reach us
    try:
        free = [each for each in overrides if re.split("[.=@]", each.lstrip("+~"))[0] in FREE]
        parsed = OverridesParser.create().parse_overrides(free)
        fixed = [each.key_or_group for each in parsed if not each.is_sweep_override()]
        OmegaConf.register_new_resolver("short", partial(short_name, left_out=fixed), replace=True)
        job()
    except (HydraException, OmegaConfBaseException) as error:
        raise _composition_error(error, name, overrides) from error
    except (ValueError, OSError) as error:  # Hydra's own, of its flags, and of a name that is too long for a file
        if statuses or (isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG):
            raise
        raise InputError(_one_line(error)) from error
    finally:
        sys.argv = before
        if not was_set:
            del os.environ["HYDRA_FULL_ERROR"]
    return max(statuses, default=0)


def _one_line(error: Exception) -> str:
    """The message without line breaks and without what Hydra, OmegaConf and the workers of a DataLoader add."""
    text = str(error) or str(error.__cause__)
    if text.startswith("Caught InputError in DataLoader worker process"):
        text = text.rpartition("InputError: ")[2]  # what comes before is the worker's traceback
    for appendix in ("Config search path:", "See https://hydra.cc", "    full_key:"):
        text = text.partition(appendix)[0]
    return " ".join(text.split())


def _composition_error(error: Exception, name: str, overrides: list[str]) -> InputError:
    """What Hydra or OmegaConf says about a configuration that cannot be composed, in the user's words."""
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf import OmegaConf, errors

    if isinstance(error, OverrideParseException):
        return InputError(f"cannot parse override {error.override!r}: {_one_line(error)}")
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, option = error.missing_cfg_file.rpartition("/")
        close = ", ".join(nearest(option, error.options) or error.options)
        return InputError(f"there is no {group} {option!r}; nearest valid: {close}")
    choices = list(chain.from_iterable(groups(name).values()))
    if isinstance(error, errors.InterpolationToMissingValueError):
        key = _one_line(error).rpartition("Missing mandatory value: ")[2]
        choice = f", or choose experiment={'|'.join(_options('experiment'))}" if "experiment" in choices else ""
        return InputError(f"{key} is missing: give it as {key}=<value>{choice}")
    cause = error.__cause__
    if isinstance(cause, (errors.ConfigAttributeError, errors.ConfigKeyError)) and cause.full_key:
        chosen = [item for item in overrides if item.partition("=")[0] in choices and "," not in item]
        keys = dotted_keys(OmegaConf.to_container(compose(name, chosen)))
        return unknown_key(cause.full_key, [*choices, *keys])
    where = f"{error.full_key}: " if isinstance(error, errors.OmegaConfBaseException) and error.full_key else ""
    return InputError(f"{where}{_one_line(error)}")


# --- Help, of which conf/ has the words.


def groups(command: str) -> dict[str, list[str]]:
    """The folders of conf/ that a command chooses from (@: where the choice goes): its own ("") and its variants'."""
    found = {"": _listed(f"{command}.yaml")}
    if "variant" in found[""]:
        found |= {variant: _listed(f"variant/{variant}.yaml") for variant in _options("variant")}
    return found


def _head(command: str) -> list[str]:
    """The comment at the head of a command's file in conf/: its purpose, then examples."""
    lines = _CONF.joinpath(f"{command}.yaml").read_text(encoding="utf-8").splitlines()
    return [line.removeprefix("# ") for line in takewhile(lambda line: line.startswith("#"), lines)]


def _listed(path: str) -> list[str]:
    """The groups in the defaults list of a file of conf/."""
    items = yaml.safe_load(_CONF.joinpath(path).read_text(encoding="utf-8"))["defaults"]
    keys = [key.removeprefix("/") for item in items if isinstance(item, dict) for key in item]
    return [key for key in keys if not key.startswith(("override ", "schema@"))]


def _options(group: str) -> list[str]:
    """The files of a folder of conf/, without their ending."""
    names = (entry.name for entry in _CONF.joinpath(group.partition("@")[0]).iterdir())
    return sorted(name.removesuffix(".yaml") for name in names if name.endswith(".yaml"))


def _help() -> str:
    heads = {name: _head(name) for name in COMMANDS}
    lines = ["usage: jepa <command> [flags] [key=value ...]", "", "commands:"]
    lines += [f"  {name:10}{purpose}" for name, (purpose, *_) in heads.items()]
    lines += ["", "examples:", *(example for _, example, *_ in heads.values()), ""]
    return "\n".join([*lines, "jepa <command> --help shows more of each; jepa --version prints the version."])


def _command_help(name: str) -> str:
    lines = [f"usage: jepa {name} [flags] [key=value ...]", "", *_head(name), "", "choices:"]
    for variant, listed in groups(name).items():
        of = f"  (variant {variant})" if variant else ""
        lines += [f"  {group}={'|'.join(_options(group))}{of}" for group in listed]
    return "\n".join([*lines, "", _FLAGS])


_FLAGS = """flags:
  --cfg job         print the whole configuration, that is every key=value there is, and stop
  -m, --multirun    run once for each combination of values: seed=0,1,2
  --info            print how the configuration is composed, and stop
  --hydra-help      the other flags of Hydra"""
