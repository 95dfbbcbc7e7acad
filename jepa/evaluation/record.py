"""What a result carries beside its figures (the code, the libraries, the device it comes from), and its reading."""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from jepa import __version__
from jepa.errors import InputError

if TYPE_CHECKING:
    from jepa.metrics import Interval

_LIBRARIES = (
    "torch",
    "lightning",
    "timm",
    "transformers",
    "peft",
    "torchmetrics",
    "tokenizers",
    "safetensors",
    "numpy",
    "hydra-core",
)


EVALUATION = "jepa.evaluation/3"  # of a VL-JEPA's streams
ANSWERS = "jepa.answers/1"  # of a language model's answers


def device_of(accelerator: str) -> str:
    """ "cuda" or "cpu" for an accelerator "auto", "cpu" or "gpu". Raises `InputError` for a GPU that is not there."""
    if accelerator != "cpu" and torch.cuda.is_available():
        return "cuda"
    if accelerator == "gpu":
        raise InputError("accelerator is gpu, but no GPU is available")
    return "cpu"


def announce(summary: str, paths: Mapping[str, Path]) -> None:
    """Prints what a command found, and where it wrote it."""
    print(summary)
    for name, path in paths.items():
        print(f"{name}: {path}", flush=True)


def read_evaluation(folder: Path, version: str) -> dict[str, Any]:
    """`evaluation.json` of an evaluation folder. Raises `InputError` if it is missing, broken or of another version."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise InputError(f"evaluation not found: {path}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != version:
        raise InputError(f"{path}: format must be {version!r}, got {found!r}: evaluate the checkpoint again")
    return record


def plain_ratio(found: Interval | None) -> dict[str, float | None] | None:
    """A ratio with its interval as documents hold it: null for none, and for an upper end without a bound."""
    if found is None:
        return None
    return {**asdict(found), "high": found.high if math.isfinite(found.high) else None}


def answer_evaluations(folder: Path) -> list[Path]:
    """The evaluations of language models that a folder is or holds, in order; none where it has none.

    The folder is one if it has an `evaluation.json`; otherwise all `evaluation/evaluation.json` below it count.
    """
    own = folder / "evaluation.json"
    paths = [own] if own.is_file() else sorted(folder.glob("**/evaluation/evaluation.json"))
    return [path.parent for path in paths] if any(_format(path) == ANSWERS for path in paths) else []


def _format(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found.get("format") if isinstance(found, dict) else None


def library_versions() -> dict[str, str]:
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def code_version() -> dict[str, Any]:
    """The package's version, and the commit it runs from if it is a git checkout: `{version, commit, dirty}`."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    dirty = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return {"version": __version__, "commit": commit, "dirty": None if dirty is None else bool(dirty)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def describe_device(kind: str) -> dict[str, Any]:
    if kind == "cuda":
        return {"type": "cuda", "name": torch.cuda.get_device_name(), "threads": torch.get_num_threads()}
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        name = models[0].partition(":")[2].strip() if models else name
    return {"type": "cpu", "name": name, "threads": torch.get_num_threads()}
