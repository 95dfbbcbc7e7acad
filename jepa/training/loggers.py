"""Where training logs to beside its CSV file, and what the user hangs into it."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from jepa.build import Node, build, build_as
from jepa.errors import InputError


class TrackioLogger(Logger):
    """Logs to a run of Trackio; one of the same name in the project goes on.

    Raises:
        ModuleNotFoundError: trackio is not installed.
    """

    def __init__(self, project: str, name: str) -> None:
        super().__init__()
        self._module: Any = __import__("trackio")
        self._project, self._name = project, name
        self._run: Any = None

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self._name

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run."""
        self._run = self._run or self._module.init(project=self._project, name=self._name, resume="allow")
        return self._run

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None: ...

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()


def loggers(nodes: Mapping[str, Node], run: str, logs: Path, stage: str, state: Mapping[str, Any] | None) -> list[Any]:
    """The CSV log of a stage, then the trackers that `nodes` name; those of a stage with a `state` go on in their runs.

    `run` is the name of the training, `logs` its folder.

    Raises:
        InputError: a tracker's package is not installed.
    """
    found: list[Any] = [CSVLogger(logs, stage, "")]
    ids, step = ({}, None) if state is None else (state["trackers"], state["global_step"])
    for key, node in nodes.items():
        kind = str(node.get("_target_")).rpartition(".")[2]
        places: dict[str, Node] = {
            "TensorBoardLogger": {"save_dir": str(logs), "name": stage, "version": "", "purge_step": step},
            "WandbLogger": {"save_dir": str(logs), "name": f"{run} {stage}", "id": ids.get(kind), "resume": "allow"},
            "MLFlowLogger": {"run_name": f"{run} {stage}", "run_id": ids.get(kind)},
            "TrackioLogger": {"name": f"{run} {stage}"},
        }
        try:
            found.append(build({**places.get(kind, {}), **node}))
        except ModuleNotFoundError as error:
            raise InputError(f"logger.{key} must have its package installed, got {error}") from None
    return found


def own_callbacks(nodes: Mapping[str, Node]) -> list[L.Callback]:
    """Callbacks of `_target_` nodes; a node with `own: module:Class` names a class of the user's, here or installed.

    Raises:
        InputError: a node that names no callback.
    """
    found = []
    for key, node in nodes.items():
        if "own" not in node:
            found.append(build_as(L.Callback, f"callbacks.{key}", node))
            continue
        sys.path.insert(0, os.getcwd())
        try:
            made = resolve_name(str(node["own"]))(**{name: value for name, value in node.items() if name != "own"})
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise InputError(f"callbacks.{key}.own must be <module>:<class>, got {node['own']!r}: {error}") from None
        finally:
            sys.path.remove(os.getcwd())
        if not isinstance(made, L.Callback):
            raise InputError(f"callbacks.{key}.own must be a lightning.Callback, got {type(made).__name__}")
        found.append(made)
    return found
