"""What answers are judged by, checked before anything is trained or generated, and before a model is imported."""

from __future__ import annotations

from typing import Any

from jepa.build import build_as
from jepa.config import AnswersConfig
from jepa.data.pairs import ExampleSplits
from jepa.errors import InputError


def check_before_training(config: dict[str, Any]) -> None:
    """Raises `InputError` for what the evaluation at the end of a training would stumble over."""
    check_answers(AnswersConfig(**config["answers"]), build_as(ExampleSplits, "data", config["data"]))


def check_answers(answers: AnswersConfig, splits: ExampleSplits) -> None:
    """Raises `InputError` for what could not be judged, before anything is generated: each right answer is, once."""
    pairs = getattr(splits, answers.split)
    if not pairs:
        raise InputError(f"answers.split must hold at least 1 pair, got none in {answers.split}")
    if not answers.metrics:
        raise InputError("answers.metrics must name at least 1 metric, got none")
    from jepa.metrics.answers import scorer_for

    for name in answers.metrics:
        if name != "multiple_choice":
            judge = scorer_for(name, **scorer_options(name, answers))
            for pair in pairs[: answers.limit or None]:
                try:
                    judge(pair.completion, pair.completion, pair.prompt)
                except InputError as error:
                    raise InputError(f"{pair.source}: {error}") from error
        elif len(answers.choices) < 2 or len(answers.metrics) > 1:
            raise InputError(f"multiple_choice must stand alone and have >= 2 answers.choices, got {answers.choices}")
        else:
            for pair in pairs:
                if pair.completion.strip() not in answers.choices:
                    choices = ", ".join(answers.choices)
                    raise InputError(f"{pair.source}: answer must be one of {choices}, got {pair.completion!r}")


def scorer_options(metric: str, answers: AnswersConfig) -> dict[str, Any]:
    if metric != "spider":
        return {}
    if answers.databases is None:
        raise InputError("answers.databases must name the folder of Spider's databases, got none")
    return {"databases": answers.databases, "timeout_seconds": answers.timeout_seconds}
