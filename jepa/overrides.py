"""What is typed behind a command, as Hydra's grammar takes it: paths are quoted, whatever stands in them."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from itertools import takewhile

from jepa.errors import InputError

# Last parts of the keys whose values are paths.
PATHS = {"checkpoint", "output", "evaluation", "results", "folder", "path", "durations", "manifest", "databases"}
PATHS |= {"train", "validation", "test", "features", "pretrained"}
_RENDERED = ("results", "compare", "curves")  # of a report: what is there, without a sweep
_SWEPT = {"policies", "references", "tolerances", "confidence", "checkpoint", "seed", "workers"}
_PLAIN = re.compile(r"null|(?!(true|false|inf|nan)$)[a-z./][\w./-]*", re.ASCII | re.IGNORECASE)  # needs no quotes
_NUMBER = re.compile(r"[\d.]+")  # of `streams.dense.test`, which is no path
_GRAMMAR = re.compile(r"['\"\[]|\w+\(|.*\$\{|$")  # quoted already, a list, a function, an interpolation, or nothing


def overrides_of(command: str, arguments: Sequence[str]) -> list[str]:
    """Arguments as Hydra takes them: paths quoted; of a report ``--fail-under EXPR``, ``--compare A B``, ``>=``.

    >>> overrides_of("evaluate", ["checkpoint=runs/a=1,b/checkpoint", "seed=1"])
    ["checkpoint='runs/a=1,b/checkpoint'", 'seed=1']
    """
    overrides, rest = list[str](), list(arguments)
    sweeps = not {"-m", "--multirun"}.isdisjoint(arguments)
    while rest:
        item = rest.pop(0)
        if command == "report" and item == "--compare":
            runs = list(takewhile(lambda run: os.path.exists(run) or not re.match(r"-|[a-z_.]+=", run), rest))
            del rest[: len(runs)]
            item = f"compare=[{','.join(map(_quoted, runs))}]"
        elif command == "report" and item == "--fail-under":
            if not rest:
                raise InputError("--fail-under must be followed by such as 'savings>=2.85', got nothing")
            item = f"fail_under={rest.pop(0)}"
        key, _, value = item.partition("=")
        if key == "fail_under" and set(value) & {"=", ">"} and value[0] not in "'\"":
            item = f"fail_under={_quoted(value)}"
        elif key.endswith(".pretrained") and value.lower() in ("true", "false"):
            pass  # of a timm model
        elif key.lstrip("+").rpartition(".")[2] in PATHS:
            item = f"{key}={_path(value, sweeps)}" if value else item
        overrides.append(item)
    keys = [re.split(r"[.@/=]", item.lstrip("+~"))[0] for item in overrides]
    rendered = [key for key in keys if key in _RENDERED]
    unused = [item for key, item in zip(keys, overrides, strict=True) if key in _SWEPT]
    if command == "report" and rendered and unused:
        raise InputError(f"{rendered[0]}= is drawn without a sweep: {unused[0]} needs evaluation=")
    return overrides


def short_name(items: Sequence[str], left_out: Sequence[str] = ()) -> str:
    """A job's overrides as the name of its folder: any command takes it as it stands, and any file system.

    >>> short_name(["seed=0", "resume=auto", "experiment=demo"], left_out=["resume"])
    'experiment-demo-seed-0'
    """
    overrides = ",".join(sorted(item for item in items if re.split("[=@]", item.lstrip("+~"))[0] not in left_out))
    name = re.sub(r"[^\w.+-]+", "-", overrides).strip("-") or "run"
    if len(name.encode()) <= 80 and set(overrides) - set(name) <= {"=", ","}:
        return name
    return f"{name.encode()[:60].decode(errors='ignore')}-{hashlib.sha256(overrides.encode()).hexdigest()[:8]}"


def _path(value: str, sweeps: bool) -> str:
    """What exists is a path as it stands; what does not may be grammar, or paths to sweep over."""
    exists = os.path.exists(value)
    if _PLAIN.fullmatch(value) or (not exists and (_GRAMMAR.match(value) or _NUMBER.fullmatch(value))):
        return value
    return ",".join(map(_quoted, value.split(",") if sweeps and not exists else [value]))


def _quoted(value: str) -> str:
    r"""In single quotes; backslashes count only before what they escape: a quote, `${`, or the end."""
    return "'" + re.sub(r"(\\*)('|\$\{|\Z)", lambda at: 2 * at[1] + ("\\" + at[2] if at[2] else ""), value) + "'"
