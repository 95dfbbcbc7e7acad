"""`evaluate`: which evaluation a checkpoint and its configuration ask for.

What does the work is imported when the data have been read: bad input is refused before the model libraries load.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepa import checkpoint
from jepa.build import build_as
from jepa.config import AnswersConfig, EvaluateConfig, validate
from jepa.data.pairs import ExampleSplits
from jepa.errors import InputError


def evaluate(config: EvaluateConfig) -> Path:
    """Runs a validated `EvaluateConfig` and returns the folder written, by default `evaluation` beside the checkpoint.

    Of a VL-JEPA: see `evaluate_videos`, and `evaluate_task` for its zero-shot `task`, whose folder is by default
    `task_<kind>` beside the checkpoint; of a language model: see `evaluate_answers`. The keys of `data` take the place
    of the keys of the training; `data` with a `_target_` takes the place of all.

    Raises:
        InputError: a checkpoint of another kind than `task` needs, or several processes for a language model.
    """
    folder = Path(config.checkpoint)
    trained = checkpoint.read_config(folder)
    if trained["variant"] == "token_vlm":
        raise InputError(f"checkpoint must be of vl_jepa or llm_jepa, got one of token_vlm: {folder}")
    if trained["variant"] != "llm_jepa":
        if (task := config.task) is not None and task.kind != "stream":
            from jepa.evaluation.zero_shot import evaluate_task

            return evaluate_task(folder, Path(config.output or folder.parent / f"task_{task.kind}"), config, task)
        from jepa.evaluation.videos import evaluate_videos

        return evaluate_videos(folder, Path(config.output or folder.parent / "evaluation"), config)
    if config.task is not None:
        raise InputError(f"task needs a checkpoint of vl_jepa, got one of {trained['variant']}: {folder}")
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(f"a language model is evaluated by one process, without torchrun, got {processes}")
    splits = build_as(ExampleSplits, "data", data_of(trained["data"], config.data))
    from jepa.evaluation.answers import evaluate_answers

    answers = validate({**trained["answers"], **config.answers}, AnswersConfig, "answers")
    own = answers.split == trained["answers"]["split"]  # another split is not written over it
    output = Path(config.output or folder.parent / ("evaluation" if own else f"evaluation_{answers.split}"))
    return evaluate_answers(folder, output, answers, config.accelerator, splits)


def data_of(trained: Mapping[str, Any], changes: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The data node of an evaluation: that of the training with `changes`, or these alone if they have a `_target_`."""
    changes = changes or {}
    return changes if "_target_" in changes else {**trained, **changes}
