"""`report` of language models: the answers of several arms and seeds, compared with next-token training.

The arm is what was done (`ntp`, `llm_jepa`, a control of your own), the seed what was drawn at random. Two tests are
made of each difference, and told apart: the paired t test over seeds, which asks whether another training would show
it, and McNemar's exact test over examples, which asks only whether other test examples would.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy import stats

from jepa.errors import InputError
from jepa.evaluation.record import ANSWERS, announce, read_evaluation
from jepa.metrics.paired import paired_test
from jepa.report.old_answers import SCHEMA, summary, write_report
from jepa.report.requirement import Requirement
from jepa.report.schema import (
    CODE,
    DEVICE,
    OPERATIONS,
    PARAMETERS,
    PER_TOKEN,
    Check,
    count,
    flag,
    integer,
    mapping,
    number,
    plain,
    record,
    text,
)
from jepa.report.schema import nullable as or_null
from jepa.report.schema import sequence as list_of

BASELINE = "ntp"  # the arm that the others are compared with
METHOD = "llm_jepa"  # the arm that the report's first sentence is about; without it, the first that is no baseline

_ALIKE = ("config.data", "config.tokenizer", "config.model", "split", "pairs")  # in every record
_OF_ARM = ("config.objective", "config.equal_flops", "config.stage", "config.precision")  # in every record of an arm
_FREE = ("config.stage.row_tokens",)  # how pairs are laid into rows changes no loss
_COSTS = ("steps", "samples", "tokens", "flops", "seconds", "steps_stretched")

_FRACTION = number(0, 1)
_COST = record(
    dict.fromkeys(("tokens_per_answer", "flops_per_answer"), number(0))
    | dict.fromkeys(("tokens_per_right_answer", "flops_per_right_answer"), or_null(number(0))),
    optional=PER_TOKEN,
)

_RECORD: Check = record(
    {
        "created": text,
        "name": text,
        "arm": text,
        "seed": integer,
        "config": record(
            dict.fromkeys(("data", "tokenizer", "model", "objective", "equal_flops", "stage", "precision"), plain)
        ),
        "code": CODE,
        "libraries": mapping(text),
        "device": DEVICE,
        "parameters": PARAMETERS,
        "training": record(
            dict.fromkeys(("steps", "samples", "tokens", "pairs"), count)
            | dict.fromkeys(("flops", "seconds", "steps_stretched"), number(above=0))
            | {"curve": list_of(record({"step": count})), "duplicates": mapping(count, empty=True)},
            optional={"operations": or_null(OPERATIONS)},
        ),
        "split": text,
        "pairs": count,
        "scores": mapping(
            record(  # older evaluations have no cost
                {"accuracy": _FRACTION, "interval": list_of(_FRACTION, shortest=2)}, optional={"cost": _COST}
            )
        ),
        "geometry": record({"warning": or_null(text)}),
    }
)


@dataclass(frozen=True)
class _Run:
    """One evaluation: its record, the N requests and gold answers, and for each metric whether each answer is right."""

    path: Path
    record: dict[str, Any]
    asked: list[tuple[str, str]]
    verdicts: dict[str, list[bool]]

    @property
    def seed(self) -> int:
        return int(self.record["seed"])

    @property
    def training(self) -> dict[str, Any]:
        """The record of training; its `flops` are those counted at every step, where they were (`flops_measured`)."""
        found = self.record["training"]
        counted = found.get("operations")
        if counted is None:
            return {**found, "flops_measured": False}
        flops = sum(part["flops"] for part in counted["parts"].values())
        return {**found, "flops": flops, "flops_measured": True}


def report_answers(
    config: dict[str, Any], evaluations: Sequence[Path], required: Requirement | None = None
) -> dict[str, Path]:
    """Runs a validated `ReportConfig` over `evaluations`, prints a summary, and returns the paths of the files written.

    Raises:
        InputError: as `answers_results`, a `checkpoint`, of which this report has no use, or a requirement of no arm.
        NotMetError: the files are written, and what is required does not hold.
    """
    if config["checkpoint"] is not None:
        raise InputError(f"checkpoint must be null for a report of answers, got {config['checkpoint']}")
    folder = Path(config["evaluation"])
    results = answers_results(evaluations, folder)
    if required:
        required.check_arm(results["arms"])
    beside = folder.parent if list(evaluations) == [folder] else folder
    paths = write_report(results, Path(config["output"] or beside))
    announce(summary(results), paths)
    if required:
        print(required.verdict(results), flush=True)
    return paths


def answers_results(evaluations: Sequence[Path], root: Path) -> dict[str, Any]:
    """The document `jepa.answers-results/2` of several evaluations; paths in it are relative to `root`.

    Raises:
        InputError: a record that is missing, broken or of another format; records of different data, split, model,
            tokenizer or way of judging; two of one arm and seed; an arm whose seeds were trained differently; or
            predictions that are not those of the record.
    """
    runs = [_read(folder) for folder in evaluations]
    if not runs:
        raise InputError(f"evaluations must be at least 1, got none in {root}")
    _check_alike(runs)
    arms = _arms(runs)
    _check_budget(arms)
    first = runs[0].record
    names = {run.record["name"] for run in runs}
    return {
        "schema": SCHEMA,
        "created": max(run.record["created"] for run in runs),
        "name": first["name"] if len(names) == 1 else root.resolve().name,
        "split": first["split"],
        "pairs": first["pairs"],
        "training_pairs": first["training"]["pairs"],
        "duplicates": first["training"]["duplicates"],
        "metrics": list(first["scores"]),
        "baseline": BASELINE if BASELINE in arms else None,
        "method": next((arm for arm in arms if arm != BASELINE), None),
        "arms": {arm: _arm(chosen, arms.get(BASELINE, []), arm) for arm, chosen in arms.items()},
        "settings": _settings(arms),
        "runs": [_run(run, root) for chosen in arms.values() for run in chosen],
        "parameters": first["parameters"],
        **{key: _distinct([run.record[key] for run in runs]) for key in ("code", "libraries", "device")},
        "config": first["config"],
    }


# --- Reading and checking.


def _read(folder: Path) -> _Run:
    found = read_evaluation(folder, ANSWERS)
    path = folder / "evaluation.json"
    _RECORD(found, f"{path}: record")
    asked, verdicts = _predictions(folder / "predictions.jsonl", list(found["scores"]))
    for metric, right in verdicts.items():
        fraction = found["scores"][metric]["accuracy"]
        if len(right) != found["pairs"] or not math.isclose(sum(right), fraction * len(right), abs_tol=1e-6):
            raise InputError(
                f"{folder / 'predictions.jsonl'}: {metric} must be true in a fraction of {fraction:.4g} of "
                f"{found['pairs']} "
                f"lines, as {path.name} has it, got {sum(right)} of {len(right)}"
            )
    return _Run(path, found, asked, verdicts)


def _predictions(path: Path, metrics: Sequence[str]) -> tuple[list[tuple[str, str]], dict[str, list[bool]]]:
    """(request, gold answer) of each line, and each metric's verdicts."""
    try:
        lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from None
    line_check = record(dict.fromkeys(("request", "gold"), text) | dict.fromkeys(metrics, flag))
    asked: list[tuple[str, str]] = []
    verdicts: dict[str, list[bool]] = {metric: [] for metric in metrics}
    for row, line in enumerate(lines, start=1):
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise InputError(f"{path}:{row}: not JSON: {error}") from None
        line_check(answer, f"{path}:{row}: answer")
        asked.append((answer["request"], answer["gold"]))
        for metric, found in verdicts.items():
            found.append(answer[metric])
    return asked, verdicts


def _check_alike(runs: Sequence[_Run]) -> None:
    """What all records must share, what those of an arm must share, and one record of each arm and seed."""
    seen: dict[tuple[str, int], _Run] = {}
    by_arm: dict[str, _Run] = {}
    first = runs[0]
    for run in runs:
        arm = run.record["arm"]
        twin = seen.setdefault((arm, run.seed), run)
        if twin is not run:
            raise InputError(
                f"{run.path}: arm and seed must occur once, got {arm!r} and {run.seed} also in {twin.path}"
            )
        if run.verdicts.keys() != first.verdicts.keys():
            raise InputError(
                f"{run.path}: scores must be {list(first.verdicts)} as in {first.path}, got {list(run.verdicts)}"
            )
        _refuse_difference(run, first, _ALIKE)
        _refuse_difference(run, by_arm.setdefault(arm, run), _OF_ARM)
        if run.asked != first.asked:
            at = next(i for i, pair in enumerate(zip(run.asked, first.asked, strict=True), 1) if pair[0] != pair[1])
            raise InputError(
                f"{run.path.parent / 'predictions.jsonl'}:{at}: request and gold must be those of "
                f"{first.path.parent / 'predictions.jsonl'}, got {run.asked[at - 1]}"
            )


def _refuse_difference(run: _Run, other: _Run, keys: Sequence[str]) -> None:
    mine, theirs = (dict(_leaves(r.record)) for r in (run, other))
    for key in dict.fromkeys([*theirs, *mine]):
        chosen = key not in _FREE and any(key == start or key.startswith(f"{start}.") for start in keys)
        if chosen and mine.get(key) != theirs.get(key):
            raise InputError(
                f"{run.path}: {key} must be {theirs.get(key)!r} as in {other.path}, got {mine.get(key)!r}: "
                "a report compares runs that share data, model and judging, and the seeds of an arm all settings"
            )


def _leaves(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of everything below that is not itself a mapping."""
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


# --- The parts of the document.


def _arms(runs: Sequence[_Run]) -> dict[str, list[_Run]]:
    """The runs of each arm by seed: the baseline first, then the method, then the others by name."""
    names = {run.record["arm"] for run in runs}
    order = sorted(names, key=lambda arm: (arm != BASELINE, arm != METHOD, arm))
    return {arm: sorted((run for run in runs if run.record["arm"] == arm), key=lambda run: run.seed) for arm in order}


def _arm(runs: Sequence[_Run], baseline: Sequence[_Run], name: str) -> dict[str, Any]:
    others = {run.seed: run for run in baseline} if name != BASELINE else {}
    pairs = [(run, others[run.seed]) for run in runs if run.seed in others]
    geometry = [_geometry(run.record["geometry"]) for run in runs]
    return {
        "seeds": [run.seed for run in runs],
        "accuracy": {metric: _accuracy(runs, metric) for metric in runs[0].verdicts},
        "answer_costs": {metric: _answer_costs(runs, metric) for metric in runs[0].verdicts},
        "against_baseline": _against(pairs) if pairs else None,
        "costs": {key: _mean([run.training[key] for run in runs]) for key in _COSTS}
        | {"flops_measured": all(run.training["flops_measured"] for run in runs)},
        "geometry": {
            key: _mean([values[key] for values in geometry])
            for key in geometry[0]
            if all(key in values for values in geometry)
        },
        "collapsed": sum(run.record["geometry"]["warning"] is not None for run in runs),
    }


def _accuracy(runs: Sequence[_Run], metric: str) -> dict[str, Any]:
    """The mean over seeds with its t interval, cut off at 0 and 1; for one seed the Wilson interval over examples."""
    if len(runs) == 1:
        score = runs[0].record["scores"][metric]
        low, high = score["interval"]
        return {"value": score["accuracy"], "low": low, "high": high, "over": "examples"}
    found = paired_test([run.record["scores"][metric]["accuracy"] for run in runs])
    if found.low is None or found.high is None:
        raise ValueError("several seeds must have an interval")
    return {"value": found.mean, "low": max(found.low, 0.0), "high": min(found.high, 1.0), "over": "seeds"}


def _answer_costs(runs: Sequence[_Run], metric: str) -> dict[str, Any] | None:
    """Tokens and FLOPs of an answer and of a right one, all seeds together; None where a run did not count them.

    Of a right one: cost-of-pass (arXiv 2504.13359), the mean cost of an answer over the mean accuracy; None where no
    answer is right. OckScore, the curve of accuracy within b tokens and its area are means over the seeds; None where a
    run has none.
    """
    scores = [run.record["scores"][metric] for run in runs]
    if not all("cost" in score for score in scores):
        return None
    accuracy = _mean([score["accuracy"] for score in scores])
    found: dict[str, Any] = {}
    for unit in ("tokens", "flops"):
        each = _mean([score["cost"][f"{unit}_per_answer"] for score in scores])
        found |= {f"{unit}_per_answer": each, f"{unit}_per_right_answer": each / accuracy if accuracy else None}
    costs = [score["cost"] for score in scores]
    complete = all(key in cost for cost in costs for key in PER_TOKEN)
    for key in ("ock_score", "accuracy_area"):
        found[key] = _mean([cost[key] for cost in costs]) if complete else None
    curves = [cost["accuracy_within"] for cost in costs] if complete else []
    found["accuracy_within"] = [_mean(fractions) for fractions in zip(*curves, strict=True)] or None
    return found


def _against(pairs: Sequence[tuple[_Run, _Run]]) -> dict[str, Any]:
    """The differences to the baseline of the same seed, and the operations spent relative to it."""
    metrics = {}
    for metric in pairs[0][0].verdicts:
        test = paired_test(
            [a.record["scores"][metric]["accuracy"] - b.record["scores"][metric]["accuracy"] for a, b in pairs]
        )
        metrics[metric] = {
            "value": test.mean,
            "low": test.low,
            "high": test.high,
            "p": test.p,
            "examples": _mcnemar(pairs, metric),
        }
    return {
        "seeds": [run.seed for run, _ in pairs],
        "metrics": metrics,
        "flops_ratio": _mean([a.training["flops"] / b.training["flops"] for a, b in pairs]),
    }


def _mcnemar(pairs: Sequence[tuple[_Run, _Run]], metric: str) -> dict[str, Any]:
    """McNemar's exact test (McNemar 1947) over the examples of all seeds: those that one of the two alone gets right.

    An example counts once for each seed, as if these were independent.
    """
    both = [answers for a, b in pairs for answers in zip(a.verdicts[metric], b.verdicts[metric], strict=True)]
    won, lost = both.count((True, False)), both.count((False, True))
    p = float(stats.binomtest(won, won + lost).pvalue) if won + lost else 1.0
    return {"count": len(both), "won": won, "lost": lost, "p": p}


def _geometry(found: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a record's geometry, those of its parts under dotted keys."""
    return {
        key: float(value) for key, value in _leaves(found) if isinstance(value, (int, float)) and math.isfinite(value)
    }


def _check_budget(arms: Mapping[str, Sequence[_Run]]) -> None:
    """An arm of equal operations has to have been given those of the method it stands beside."""
    method = arms.get(METHOD)
    for arm, runs in arms.items():
        other = runs[0].record["config"]["equal_flops"]
        if other is not None and method is not None and other != method[0].record["config"]["objective"]:
            raise InputError(
                f"{runs[0].path}: config.equal_flops of arm {arm!r} must be the objective of {METHOD!r}: "
                f"change both, objective and equal_flops; got {other}"
            )


def _settings(arms: Mapping[str, Sequence[_Run]]) -> dict[str, dict[str, Any]]:
    """The settings of training that tell the arms apart: dotted key -> arm -> value, where the arm has it."""
    found: dict[str, dict[str, Any]] = {}
    for arm, runs in arms.items():
        config = runs[0].record["config"]
        for key, value in _leaves({name: config[name] for name in ("objective", "stage", "precision")}):
            found.setdefault(key, {})[arm] = value
    return {key: values for key, values in found.items() if len(_distinct([values.get(arm) for arm in arms])) > 1}


def _run(run: _Run, root: Path) -> dict[str, Any]:
    training = run.training
    return {
        "arm": run.record["arm"],
        "seed": run.seed,
        "evaluation": str(run.path.parent.relative_to(root)),
        "accuracy": {metric: score["accuracy"] for metric, score in run.record["scores"].items()},
        "answer_costs": {metric: _answer_costs([run], metric) for metric in run.verdicts},
        "costs": {key: training[key] for key in (*_COSTS, "flops_measured")},
        "geometry": _geometry(run.record["geometry"]),
        "warning": run.record["geometry"]["warning"],
        "curve": [
            {key: value if math.isfinite(value) else None for key, value in point.items()}
            for point in training["curve"]
        ],
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _distinct(values: Sequence[Any]) -> list[Any]:
    """The values without repetition, in order; they need not be hashable."""
    return [value for index, value in enumerate(values) if value not in values[:index]]
