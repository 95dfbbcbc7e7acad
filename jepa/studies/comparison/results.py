"""Documents of the controlled comparison: one arm and seed, and all of them side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field, JsonValue

from jepa.config import ReportConfig
from jepa.errors import InputError
from jepa.evaluation.arms import distinct
from jepa.metrics.paired import paired_test
from jepa.results.base import Code, Count, Device, Document, Fraction, Positive, Quantity, Record, read_document
from jepa.results.documents import RoleParameters

ARMS = {"vl_jepa": "VL-JEPA", "token_vlm": "token VLM"}
FIGURES = {"cider_d": "CIDEr-D", "top5": "top-5", "top1": "top-1", "exact": "exact captions"}
EVERY_STEP, SELECTIVELY = "every step", "selectively"
_ALIKE = ("states", "data_seed", "held_out", "points", "stage", "learning_rate_factors", "precision", "stream")


class Trial(Record):
    """A learning rate over the whole schedule, and the mean reciprocal rank of the right validation caption."""

    learning_rate: Positive
    validation_mrr: Fraction
    seconds: Quantity


class DecoderTraining(Record):
    """A Y-Decoder trained on the embeddings of one point."""

    flops: Count
    seconds: Quantity


class StepFlops(Record):
    """FLOPs of a training step: the trained parts forward and backward, and the frozen encoder once."""

    trained: Count
    encoder: Count


class ScoredPoint(Record):
    """A checkpoint `samples_<samples>` after so many steps, scored on so many held-out clips.

    `exact`, `top1` and `top5` are fractions. The token VLM needs no decoder training.
    """

    samples: Count
    steps: Count
    decoder: DecoderTraining | None
    clips: Count
    cider_d: Quantity
    exact: Fraction
    top1: Fraction
    top5: Fraction

    @property
    def chance5(self) -> float:
        """The top-5 of a random order."""
        return min(1.0, 5 / self.clips)


class SingleAnswers(Record):
    """Answers to single clips: median milliseconds of the parts, and mean tokens."""

    encode_ms: Quantity
    answer_ms: Quantity
    tokens: Quantity
    predict_ms: Quantity | None


class StreamStep(Record):
    """Means over the steps of all streams, and the streams' CIDEr-D."""

    answers_per_step: Quantity
    flops_per_step: Quantity
    ms_per_step: Quantity
    cider_d: Quantity


class ArmRun(Record):
    """One arm with one seed: all learning rates tried, the one kept, its scores at each point, costs of its answers."""

    arm: Literal["vl_jepa", "token_vlm"]
    encoder_states: str
    learning_rate: Positive
    tried: tuple[Trial, ...]
    step_flops: StepFlops
    seed: int
    points: Annotated[tuple[ScoredPoint, ...], Field(min_length=1)]
    parameters: tuple[RoleParameters, ...]
    answers: SingleAnswers
    streams: dict[str, StreamStep]

    def per_decoder(self, key: Literal["flops", "seconds"]) -> float | None:
        """Mean FLOPs or seconds of training a decoder; None for the token VLM."""
        found = [getattr(point.decoder, key) for point in self.points if point.decoder is not None]
        return sum(found) / len(found) if found else None


class ArmEvaluation(Document):
    """The document of one arm with one seed.

    >>> ArmEvaluation.file_name
    'comparison.json'
    """

    file_name: ClassVar[str] = "comparison.json"

    kind: Literal["jepa.comparison-arm/2"] = "jepa.comparison-arm/2"
    run: ArmRun
    config: dict[str, JsonValue]
    code: Code
    libraries: dict[str, str]
    device: Device


class SeedMean(Record):
    """Mean over seeds with its 95 % t interval and the p of a t test (None for one seed), and the values.

    >>> SeedMean.of([0.5, 0.7]).value
    0.6
    >>> SeedMean.of([0.5]).low is None
    True
    """

    value: float
    low: float | None
    high: float | None
    p: Fraction | None
    seeds: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """From one value of each seed."""
        found = paired_test(values)
        return cls(value=found.mean, low=found.low, high=found.high, p=found.p, seeds=tuple(values))


class ComparisonResults(Document):
    """Both arms over their seeds: `curves` by arm, figure and point, `difference` VL-JEPA less token VLM by seed.

    >>> ComparisonResults.file_name
    'results.json'
    """

    kind: Literal["jepa.comparison-results/3"] = "jepa.comparison-results/3"
    seeds: tuple[int, ...]
    samples: tuple[int, ...]
    held_out: Count
    curves: dict[str, dict[str, tuple[SeedMean, ...]]]
    difference: dict[str, tuple[SeedMean, ...]]
    arms: dict[str, tuple[ArmRun, ...]]
    config: dict[str, JsonValue]
    code: tuple[Code, ...]
    libraries: tuple[dict[str, str], ...]
    device: tuple[Device, ...]

    def trained(self, arm: str) -> dict[str, int]:
        """Parameters of each trained role of an arm."""
        return {role.role: role.total for role in self.arms[arm][0].parameters if role.role != "X-Encoder"}


def folder_results(folder: Path, config: ReportConfig) -> ComparisonResults | None:
    """All arms and seeds below a folder side by side; None where it has none.

    Raises InputError as `comparison_results`, for a broken `comparison.json`, or a bar.
    """
    paths = sorted(folder.glob(f"**/{ArmEvaluation.file_name}"))
    if not paths:
        return None
    if config.fail_under is not None:
        raise InputError(f"fail_under holds streams or answers to a bar, got a comparison of arms: {folder}")
    return comparison_results([read_document(path, ArmEvaluation) for path in paths], folder)


def comparison_results(evaluations: Sequence[ArmEvaluation], root: Path) -> ComparisonResults:
    """Put all arms and seeds side by side; `root` is named in errors.

    Raises InputError for other states, clips or schedules, and for an arm and seed that is missing or occurs twice.
    """
    first = evaluations[0]
    by_seed: dict[str, dict[int, ArmRun]] = {arm: {} for arm in ARMS}
    for evaluation in evaluations:
        _check_alike(evaluation, first, root)
        run = evaluation.run
        if run.seed in by_seed[run.arm]:
            raise InputError(f"{root}: arm {run.arm} and seed {run.seed} must occur once")
        by_seed[run.arm][run.seed] = run
    seeds, others = (sorted(by_seed[arm]) for arm in ARMS)
    if not seeds or seeds != others:
        raise InputError(f"{root}: both arms must have the same seeds, got vl_jepa {seeds} and token_vlm {others}")
    arms = {arm: tuple(found[seed] for seed in seeds) for arm, found in by_seed.items()}
    points = (list(zip(*(run.points for run in runs), strict=True)) for runs in arms.values())  # of each, its seeds'
    jepa, vlm = ({key: [[getattr(one, key) for one in each] for each in found] for key in FIGURES} for found in points)
    return ComparisonResults(
        created=max(evaluation.created for evaluation in evaluations),
        name=first.name,
        seeds=tuple(seeds),
        samples=tuple(point.samples for point in first.run.points),
        held_out=first.run.points[0].clips,
        curves={
            arm: {key: tuple(map(SeedMean.of, points)) for key, points in figures.items()}
            for arm, figures in zip(arms, (jepa, vlm), strict=True)
        },
        difference={
            key: tuple(SeedMean.of(np.subtract(*point).tolist()) for point in zip(jepa[key], vlm[key], strict=True))
            for key in FIGURES
        },
        arms=arms,
        config=first.config,
        code=distinct([evaluation.code for evaluation in evaluations]),
        libraries=distinct([evaluation.libraries for evaluation in evaluations]),
        device=distinct([evaluation.device for evaluation in evaluations]),
    )


def _check_alike(evaluation: ArmEvaluation, first: ArmEvaluation, root: Path) -> None:
    mine, theirs = (
        {"encoder_states": each.run.encoder_states, **{key: each.config[key] for key in _ALIKE}}
        for each in (evaluation, first)
    )
    for key in mine:
        if mine[key] != theirs[key]:
            raise InputError(f"{root}: {key} must be the same in all runs, got {mine[key]!r} and {theirs[key]!r}")
