"""Which evaluation `jepa evaluate` asks for, and which results `jepa report`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jepa import checkpoint
from jepa.build import build_as
from jepa.config import AnswersConfig, EvaluateConfig, ReportConfig, validate
from jepa.data.pairs import ExampleSplits
from jepa.errors import InputError
from jepa.results import Document, Requirement, StreamEvaluation, StreamResults, check_folder, read_document

Make = Callable[[Path, ReportConfig], Document | None]  # of a folder; None where it holds other evaluations


def evaluate(config: EvaluateConfig) -> Path:
    """Runs an evaluation; returns the folder written, by default `evaluation` or `task_<kind>` beside the checkpoint.

    See `evaluate_videos` and `evaluate_task` for a VL-JEPA, `evaluate_answers` for a language model.

    Raises:
        InputError: a checkpoint of another kind than `task` needs, or several processes for a language model.
    """
    folder = Path(config.checkpoint)
    check_folder(Path(config.output or folder.parent))
    trained = checkpoint.read_config(folder)
    if trained["variant"] == "token_vlm":
        raise InputError(f"checkpoint must be of vl_jepa or llm_jepa, got one of token_vlm: {folder}")
    if trained["variant"] != "llm_jepa":
        if (task := config.task) is not None and task.kind != "stream":
            from jepa.evaluation.tasks import evaluate_task

            return evaluate_task(folder, Path(config.output or folder.parent / f"task_{task.kind}"), config, task)
        from jepa.evaluation.videos import evaluate_videos

        return evaluate_videos(folder, Path(config.output or folder.parent / "evaluation"), config)
    if config.task is not None:
        raise InputError(f"task needs a checkpoint of vl_jepa, got one of {trained['variant']}: {folder}")
    splits = splits_of(trained, config)
    from jepa.evaluation.answers import evaluate_answers

    answers = validate({**trained["answers"], **config.answers}, AnswersConfig, "answers")
    own = answers.split == trained["answers"]["split"]  # another split is not written over it
    output = Path(config.output or folder.parent / ("evaluation" if own else f"evaluation_{answers.split}"))
    return evaluate_answers(folder, output, answers, config.accelerator, splits)


def splits_of(trained: Mapping[str, Any], config: EvaluateConfig) -> ExampleSplits:
    """The pairs of a language model's evaluation, in one process: those of the training, changed by `config.data`."""
    if (processes := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise InputError(f"a language model is evaluated by one process, without torchrun, got {processes}")
    changes = config.data or {}
    return build_as(ExampleSplits, "data", changes if "_target_" in changes else {**trained["data"], **changes})


def results_of(
    config: ReportConfig, kinds: Iterable[tuple[Make, type[Document]]]
) -> tuple[Any, Path | None, Requirement | None]:
    """The document that the configuration names, the folder that it goes to, and what `fail_under` asks of it.

    Raises:
        InputError: for bad input, or a document that has not what `fail_under` asks.
    """
    given = [key for key in ("evaluation", "results") if getattr(config, key) is not None]
    if len(given) != 1:
        raise InputError(f"give one of evaluation=, results= and compare=, got {' and '.join(given) or 'none'}")
    required = None if config.fail_under is None else Requirement.parse(config.fail_under)
    output = None if config.output is None else check_folder(Path(config.output))
    if config.results is not None:
        document = read_document(config.results, *(kind for _, kind in kinds))
    else:
        folder = Path(str(config.evaluation))
        path = folder / StreamEvaluation.file_name
        document = next((found for make, _ in kinds if (found := make(folder, config)) is not None), None)
        if document is None:
            raise InputError(f"evaluation not found: {path}")
        beside = path.is_file() and folder.name == "evaluation"  # of another, the report lies in it
        output = output or (folder.parent if beside else folder)
    if required is not None:
        required.check_document(document)
    return document, output, required


def compared(config: ReportConfig) -> dict[str, StreamResults]:
    """The results that `compare` names, by path."""
    paths = config.compare or []
    if config.evaluation is not None or config.results is not None or config.fail_under is not None:
        raise InputError("compare= must stand without evaluation=, results= and fail_under=, which are of one run")
    if len(set(paths)) < max(2, len(paths)):
        raise InputError(f"compare must name two or more results, each once, got {paths}")
    return {path: read_document(path, StreamResults) for path in paths}
