"""Arms and seeds of a language model, compared with next-token training on the answers to one set of examples.

An arm is a way to train (`ntp`, `llm_jepa`, a control of your own); a seed is a repetition. A difference has two tests:
the paired t test asks whether another training would show it, McNemar's exact test whether other examples would.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import JsonValue
from scipy import stats

from jepa.config import ReportConfig
from jepa.data.json_lines import JsonObject, read_lines
from jepa.errors import InputError
from jepa.evaluation.answers import PREDICTIONS
from jepa.metrics.paired import paired_test
from jepa.results import is_kind, leaves, read_document
from jepa.results.documents import (
    Accuracy,
    Against,
    AnswerCosts,
    AnswerEvaluation,
    AnswerResults,
    AnswerScore,
    Arm,
    Contrast,
    ExampleTest,
    Run,
    RunCosts,
)

BASELINE = "ntp"  # the arm that the others are compared with
METHOD = "llm_jepa"  # the arm of the report's first sentence; without it, the first that is no baseline

_ALIKE = ("config.data", "config.tokenizer", "config.model.language_model", "split", "pairs", "scores")  # in all
_OF_ARM = ("config.objective", "config.equal_flops", "config.stage", "config.precision", "config.model")  # of an arm
_FREE = {f"config.stage.{key}" for key in ("row_tokens", "validate_every", "validation_pairs")}  # change no weight
_T = TypeVar("_T")


class _Evaluated(NamedTuple):
    """An evaluation: its N prompts and right answers, and for each metric whether each answer is right."""

    path: Path
    document: AnswerEvaluation
    asked: list[tuple[str, str]]
    verdicts: dict[str, list[bool]]

    @property
    def next_tokens_alone(self) -> bool:
        weights = ("objective.weight", "objective.transition_weight")
        return not any(value for key, value in leaves(self.document.config) if key in weights)

    @property
    def accuracy(self) -> dict[str, float]:
        return {metric: score.accuracy for metric, score in self.document.scores.items()}

    @property
    def costs(self) -> RunCosts:
        """FLOPs are those counted at every step where `operations` has them, else the estimate."""
        training, counted = self.document.training, self.document.training.operations
        return RunCosts(
            **{key: getattr(training, key) for key in ("steps", "samples", "tokens", "seconds", "steps_stretched")},
            flops=training.flops if counted is None else sum(part.flops for part in counted.parts.values()),
            flops_measured=counted is not None,
        )


def answer_evaluations(folder: Path) -> list[Path]:
    """The evaluations of language models that a folder is (with an `evaluation.json`) or has below it, in order."""
    own = folder / AnswerEvaluation.file_name
    paths = [own] if own.is_file() else sorted(folder.glob(f"**/evaluation/{own.name}"))
    return [path.parent for path in paths] if any(is_kind(path, AnswerEvaluation) for path in paths) else []


def folder_results(folder: Path, config: ReportConfig) -> AnswerResults | None:
    """The comparison of a folder's evaluations; None where it has none of a language model."""
    evaluations = answer_evaluations(folder)
    if evaluations and config.checkpoint is not None:
        raise InputError(f"checkpoint must be null for a report of answers, got {config.checkpoint}")
    return answer_results(evaluations, folder) if evaluations else None


def answer_results(evaluations: Sequence[Path], root: Path) -> AnswerResults:
    """Compare evaluations; their paths in the document are relative to `root`.

    Raises `InputError` for an evaluation that is broken, has the predictions of another, or does not compare.
    """
    runs = [_read(folder) for folder in evaluations]
    _check_alike(runs)
    # The baseline first, then the method, then the others by name; the runs of each by seed.
    names = sorted({run.document.arm for run in runs}, key=lambda arm: (arm != BASELINE, arm != METHOD, arm))
    by_seed = sorted(runs, key=lambda run: run.document.seed)
    arms = {arm: [run for run in by_seed if run.document.arm == arm] for arm in names}
    documents = [run.document for run in runs]
    first, baseline = documents[0], arms.get(BASELINE, [])
    return AnswerResults(
        created=max(document.created for document in documents),
        name=first.name if len({document.name for document in documents}) == 1 else root.resolve().name,
        split=first.split,
        pairs=first.pairs,
        training_pairs=first.training.pairs,
        duplicates=first.training.duplicates,
        metrics=tuple(first.scores),
        baseline=BASELINE if baseline else None,
        method=next((arm for arm in arms if arm != BASELINE), None),
        arms={
            arm: _arm(chosen, baseline if arm != BASELINE else [], _of_equal_flops(arms, chosen))
            for arm, chosen in arms.items()
        },
        settings=_settings(arms),
        runs=tuple(_run(run, root) for chosen in arms.values() for run in chosen),
        parameters=first.parameters,
        code=distinct([document.code for document in documents]),
        libraries=distinct([document.libraries for document in documents]),
        device=distinct([document.device for document in documents]),
        config=first.config,
    )


# --- Reading and checking.


def _read(folder: Path) -> _Evaluated:
    path = folder / AnswerEvaluation.file_name
    document: AnswerEvaluation = read_document(path, AnswerEvaluation)
    asked, verdicts = _predictions(folder / PREDICTIONS, list(document.scores))
    for metric, right in verdicts.items():
        fraction = document.scores[metric].accuracy
        if len(right) != document.pairs or not math.isclose(sum(right), fraction * len(right), abs_tol=1e-6):
            raise InputError(
                f"{folder / PREDICTIONS}: {metric} must be true in a fraction of {fraction:.4g} of {document.pairs} "
                f"lines, as {path.name} has it, got {sum(right)} of {len(right)}"
            )
    return _Evaluated(path, document, asked, verdicts)


def _predictions(path: Path, metrics: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, list[bool]]]:
    """(prompt, completion) of each line, and each metric's verdicts."""
    asked: list[tuple[str, str]] = []
    verdicts: dict[str, list[bool]] = {metric: [] for metric in metrics}

    def read(answer: JsonObject, number: int) -> None:
        for key, kind in {"prompt": str, "completion": str, **dict.fromkeys(metrics, bool)}.items():
            if not isinstance(answer.get(key), kind):
                rule = "text" if kind is str else "true or false"
                raise InputError(f"answer.{key} must be {rule}, got {answer.get(key)!r}")
        asked.append((answer["prompt"], answer["completion"]))
        for metric, found in verdicts.items():
            found.append(answer[metric])

    read_lines(path, "predictions", read)
    return asked, verdicts


def _check_alike(runs: Sequence[_Evaluated]) -> None:
    """All evaluations share data, model and metrics, those of an arm all settings; an arm and seed occur once."""
    seen: dict[tuple[str, int], _Evaluated] = {}
    by_arm: dict[str, _Evaluated] = {}
    first = runs[0]
    for run in runs:
        arm, seed = run.document.arm, run.document.seed
        twin = seen.setdefault((arm, seed), run)
        if twin is not run:
            raise InputError(f"{run.path}: arm and seed must occur once, got {arm!r} and {seed} also in {twin.path}")
        for other, keys in ((first, _ALIKE), (by_arm.setdefault(arm, run), _OF_ARM)):
            mine, theirs = _settings_of(run, keys), _settings_of(other, keys)
            for key in dict.fromkeys([*theirs, *mine]):
                if mine.get(key) != theirs.get(key):
                    raise InputError(
                        f"{run.path}: {key} must be {theirs.get(key)!r} as in {other.path}, got {mine.get(key)!r}: "
                        "runs must share data, model and metrics, and the seeds of an arm all settings"
                    )
        if run.asked != first.asked:
            at = next(i for i, pair in enumerate(zip(run.asked, first.asked, strict=True), 1) if pair[0] != pair[1])
            raise InputError(
                f"{run.path.parent / PREDICTIONS}:{at}: prompt and completion must be those of "
                f"{first.path.parent / PREDICTIONS}, got {run.asked[at - 1]}"
            )


def _settings_of(run: _Evaluated, keys: Sequence[str]) -> dict[str, JsonValue]:
    """The evaluation's settings below some keys, by dotted key."""
    settings: dict[str, JsonValue] = {
        "config": run.document.config,
        "split": run.document.split,
        "pairs": run.document.pairs,
        "scores": [*run.verdicts],
    }
    return {
        key: value
        for key, value in leaves(settings)
        if key not in _FREE and any(key == start or key.startswith(f"{start}.") for start in keys)
    }


# --- The parts of the document.


def _of_equal_flops(arms: Mapping[str, Sequence[_Evaluated]], runs: Sequence[_Evaluated]) -> Sequence[_Evaluated]:
    """The runs of next tokens alone whose operations are nearest to those of `runs`, if they are within 10 %."""

    def distance(others: Sequence[_Evaluated]) -> float:
        return abs(math.log(_mean([run.costs.flops for run in others]) / _mean([run.costs.flops for run in runs])))

    near = [others for others in arms.values() if others[0].next_tokens_alone and distance(others) <= math.log(1.1)]
    return () if runs[0].next_tokens_alone else min(near, key=distance, default=())


def _arm(runs: Sequence[_Evaluated], baseline: Sequence[_Evaluated], equal_flops: Sequence[_Evaluated]) -> Arm:
    geometry, costs = [run.document.geometry for run in runs], [run.costs for run in runs]
    scores = {metric: [run.document.scores[metric] for run in runs] for metric in runs[0].verdicts}
    means = {key: _mean([getattr(cost, key) for cost in costs]) for key in RunCosts.model_fields}
    return Arm(
        seeds=tuple(run.document.seed for run in runs),
        accuracy={metric: _accuracy(each) for metric, each in scores.items()},
        answer_costs={metric: _answer_costs(each) for metric, each in scores.items()},
        against_baseline=_against(runs, baseline),
        at_equal_flops=_against(runs, equal_flops),
        costs=RunCosts.model_validate(means | {"flops_measured": all(cost.flops_measured for cost in costs)}),
        geometry={
            key: _mean([values[key] for values in geometry])
            for key in geometry[0]
            if all(key in values for values in geometry)
        },
        collapsed=sum(run.document.warning is not None for run in runs),
    )


def _run(run: _Evaluated, root: Path) -> Run:
    document = run.document
    return Run(
        **{key: getattr(document, key) for key in ("arm", "seed", "geometry", "warning", "generation", "drafting")},
        evaluation=str(run.path.parent.relative_to(root)),
        accuracy=run.accuracy,
        answer_costs={metric: _answer_costs([score]) for metric, score in document.scores.items()},
        costs=run.costs,
        curve=document.training.curve,
    )


def _accuracy(scores: Sequence[AnswerScore]) -> Accuracy:
    """The mean over seeds with its t interval, cut off at 0 and 1; for one seed the Wilson interval over examples."""
    found = paired_test([score.accuracy for score in scores])
    if found.low is None or found.high is None:
        low, high = scores[0].interval
        return Accuracy(value=found.mean, low=low, high=high, over="examples")
    return Accuracy(value=found.mean, low=max(found.low, 0.0), high=min(found.high, 1.0), over="seeds")


def _answer_costs(scores: Sequence[AnswerScore]) -> AnswerCosts:
    """Tokens and FLOPs of an answer and of a right one, all seeds together.

    The cost of a right one is the mean cost over the mean accuracy (cost-of-pass, arXiv 2504.13359). OckScore and the
    accuracy within b tokens are means over seeds, None where a seed has none.
    """
    accuracy, costs = _mean([score.accuracy for score in scores]), [score.cost for score in scores]
    tokens, flops = (_mean([getattr(cost, f"{unit}_per_answer") for cost in costs]) for unit in ("tokens", "flops"))
    ock, area = ([getattr(cost, key) for cost in costs] for key in ("ock_score", "accuracy_area"))
    curves = [cost.accuracy_within for cost in costs if cost.accuracy_within is not None]
    complete = len(curves) == len(costs)
    return AnswerCosts(
        tokens_per_answer=tokens,
        flops_per_answer=flops,
        tokens_per_right_answer=tokens / accuracy if accuracy else None,
        flops_per_right_answer=flops / accuracy if accuracy else None,
        ock_score=_mean(ock) if complete else None,
        accuracy_within=tuple(map(_mean, zip(*curves, strict=True))) if complete else None,
        accuracy_area=_mean(area) if complete else None,
    )


def _against(runs: Sequence[_Evaluated], others: Sequence[_Evaluated]) -> Against | None:
    """Differences to the other arm's run of the same seed, and the operations of training relative to it."""
    of_seed = {run.document.seed: run for run in others}
    pairs = [(run, of_seed[run.document.seed]) for run in runs if run.document.seed in of_seed]
    if not pairs:
        return None
    metrics = {}
    for metric in pairs[0][0].verdicts:
        test = paired_test([run.accuracy[metric] - base.accuracy[metric] for run, base in pairs])
        metrics[metric] = Contrast(
            value=test.mean, low=test.low, high=test.high, p=test.p, examples=_mcnemar(pairs, metric)
        )
    return Against(
        arm=pairs[0][1].document.arm,
        seeds=tuple(run.document.seed for run, _ in pairs),
        metrics=metrics,
        flops_ratio=_mean([run.costs.flops / base.costs.flops for run, base in pairs]),
    )


def _mcnemar(pairs: Sequence[tuple[_Evaluated, _Evaluated]], metric: str) -> ExampleTest:
    """McNemar's exact test (McNemar 1947) over the examples that one of the two alone answers right.

    An example counts once for each seed, as if seeds were independent.
    """
    both = [each for a, b in pairs for each in zip(a.verdicts[metric], b.verdicts[metric], strict=True)]
    won, lost = both.count((True, False)), both.count((False, True))
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return ExampleTest(count=len(both), won=won, lost=lost, p=p)


def _settings(arms: Mapping[str, Sequence[_Evaluated]]) -> dict[str, dict[str, JsonValue]]:
    """The settings of training that differ between arms: dotted key -> arm -> value, where the arm has it."""
    found: dict[str, dict[str, JsonValue]] = {}
    for arm, (run, *_) in arms.items():
        for key, value in leaves({name: run.document.config[name] for name in ("objective", "stage", "precision")}):
            found.setdefault(key, {})[arm] = value
    return {key: values for key, values in found.items() if len(distinct([values.get(arm) for arm in arms])) > 1}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def distinct(values: Sequence[_T]) -> tuple[_T, ...]:
    """The values without repetition, in order; they need not be hashable."""
    return tuple(value for index, value in enumerate(values) if value not in values[:index])
