"""Where a result comes from: the code, the libraries and the device."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from jepa import __version__
from jepa.build import Node
from jepa.errors import InputError
from jepa.kept import Kept
from jepa.results import Code, Device
from jepa.results.documents import Evaluation, RoleParameters

if TYPE_CHECKING:
    from jepa.models.llm_jepa import LLMJEPA
    from jepa.models.vl_jepa import VLJEPA

E = TypeVar("E", bound=Evaluation)
_LIBRARIES = (
    *("torch", "lightning", "timm", "transformers", "peft", "torchmetrics"),
    *("tokenizers", "safetensors", "numpy", "hydra-core"),
)


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def device_of(accelerator: str) -> str:
    """ "cuda" or "cpu" for an accelerator "auto", "cpu" or "gpu". Raises `InputError` for a GPU that is not there."""
    if accelerator == "mps" and torch.backends.mps.is_available():
        return "mps"
    if accelerator in ("auto", "gpu") and torch.cuda.is_available():
        return "cuda"
    if accelerator in ("gpu", "mps"):
        raise InputError(f"accelerator is {accelerator}, but no {accelerator.upper()} is available")
    return "cpu"


def announce(summary: str, paths: Mapping[str, Path]) -> None:
    """Prints what a command found, and where it wrote it."""
    print(summary, *(f"{name}: {path}" for name, path in paths.items()), sep="\n", flush=True)


def evaluated(
    kind: type[E], folder: Path, output: Path, trained: Node, device: str, model: VLJEPA | LLMJEPA, **fields: Any
) -> E:
    """The evaluation of a checkpoint `folder`, as it was `trained`, into `output`, with the fields of its `kind`."""
    return kind(
        created=now(),
        name=trained["name"],
        seed=trained["seed"],
        checkpoint=os.path.relpath(folder.resolve(), output.resolve()),
        code=code_version(),
        libraries=library_versions(),
        device=describe_device(device),
        parameters=tuple(RoleParameters.model_validate(role) for role in model.parameters_by_role()),
        **fields,
    )


def kept_in(output: Path, folder: Path, kinds: Sequence[type], lasting: bool = False, **depends_on: object) -> Kept:
    """What an evaluation of the checkpoint `folder` into `output` has computed, with these libraries."""
    made_by = {"libraries": library_versions(), "weights": folder / "model.safetensors"}
    return Kept(output, {**made_by, **depends_on}, kinds, lasting)


def library_versions() -> dict[str, str]:
    """The versions of Python and of the libraries that decide figures, by name."""
    return {"python": platform.python_version(), **{name: _version(name) for name in _LIBRARIES}}


def code_version() -> Code:
    """The package's version, and the commit that it runs from in a git checkout."""
    root = Path(__file__).parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD") if (root / ".git").exists() else None
    dirty = git("status", "--porcelain", "--untracked-files=no") if commit else None
    return Code(version=__version__, commit=commit, dirty=None if dirty is None else bool(dirty))


def describe_device(kind: str) -> Device:
    """The device "cpu" or "cuda" of this machine."""
    if kind == "cuda":
        return Device(type="cuda", name=torch.cuda.get_device_name(), threads=torch.get_num_threads())
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = (models or [platform.processor() or platform.machine()])[0]
    return Device(type="cpu", name=name, threads=torch.get_num_threads())


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
