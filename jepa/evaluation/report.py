"""`report`: policies swept over the latents of an evaluation, and the pages that show it. No encoder runs.

Of results that are there already it makes the pages again, holds them to a bar, or shows them side by side.

What does the work is imported when the evaluation has been read: what is missing or broken is refused at once.
"""

from __future__ import annotations

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa import checkpoint
from jepa.errors import InputError
from jepa.evaluation.record import (
    EVALUATION,
    announce,
    answer_evaluations,
    code_version,
    describe_device,
    read_evaluation,
)

if TYPE_CHECKING:
    from jepa.evaluation.streams import StreamSet
    from jepa.report.requirement import Requirement


def report(config: dict[str, Any]) -> dict[str, Path]:
    """Runs a validated `ReportConfig`, prints a summary, and returns the paths of the files written.

    Of an evaluation it sweeps the policies; of `results`, a results file or its folder, it only renders; of `compare`,
    two or more of them, it shows the runs side by side. Of a language model it compares the arms and seeds: see
    `jepa.evaluation.answers_report`.

    Raises `InputError` for bad input, and `jepa.report.requirement.NotMetError`, once all files are written, if what
    `fail_under` asks does not hold.
    """
    given = [key for key in ("evaluation", "results", "compare") if config[key] is not None]
    if len(given) != 1:
        raise InputError(f"give one of evaluation=, results= and compare=, got {' and '.join(given) or 'none'}")
    if config["compare"] is not None:
        return _compare(config)
    required = _requirement(config)
    if config["results"] is not None:
        return _rendered(config["results"], config["output"], required)
    folder = Path(config["evaluation"])
    if arms := sorted(folder.glob("**/comparison.json")):
        if required:
            raise InputError(f"fail_under holds streams or answers to a bar, got a comparison of arms: {folder}")
        from jepa.evaluation.comparison import report_comparison

        return report_comparison(config, arms)
    if answers := answer_evaluations(folder):
        from jepa.evaluation.answers_report import report_answers

        return report_answers(config, answers, required)
    record = read_evaluation(folder, EVALUATION)
    if required:
        required.check_setting(record["settings"])
    from jepa.evaluation.streams import SPLITS, load_streams
    from jepa.evaluation.sweep import sweep_setting, sweeps
    from jepa.report import SCHEMA

    model = checkpoint.load(Path(config["checkpoint"] or folder / record["checkpoint"]))
    settings, families = {}, sweeps(config["policies"])
    device = describe_device("cpu")  # the decoder's
    for name, setting in record["settings"].items():
        streams = {split: load_streams(folder / name / split) for split in SPLITS}
        swept = sweep_setting(
            streams,
            model,
            families,
            config["references"],
            record["latent_delay"],
            config["confidence"],
            config["seed"],
            name,
            config["tolerances"],
            config["workers"],
        )
        settings[name] = _setting(folder / name, setting, streams, swept) | {"one_device": device == record["device"]}
    results = {
        "schema": SCHEMA,
        **{key: record[key] for key in ("created", "name", "seed", "code", "libraries", "device")},
        **{key: record[key] for key in ("parameters", "training", "scores")},
        "config": {**record["config"], "report": config},
        "report": {
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "code": code_version(),
            "device": device,
        },
        "settings": settings,
    }
    return _written(results, Path(config["output"] or folder.parent), required)


def _requirement(config: dict[str, Any]) -> Requirement | None:
    if config["fail_under"] is None:
        return None
    from jepa.report.requirement import Requirement

    return Requirement.parse(config["fail_under"])


def _written(results: dict[str, Any], output: Path | None, required: Requirement | None) -> dict[str, Path]:
    """Writes the report of a document, prints its summary, then holds it to what is required."""
    from jepa.report import summary, write_report

    paths = write_report(results, output) if output else {}
    announce(summary(results), paths)
    if required:
        print(required.verdict(results), flush=True)
    return paths


def _rendered(path: str, output: str | None, required: Requirement | None) -> dict[str, Path]:
    """The report of a results file, of streams or of answers; without an `output` nothing is written."""
    from jepa.report import answers, read_results

    results = read_results(_results_file(path), {answers.SCHEMA: answers.validate_results})
    if results["schema"] == answers.SCHEMA:
        if required:
            required.check_arm(results["arms"])
        paths = answers.write_report(results, output) if output else {}
        announce(answers.summary(results), paths)
        if required:
            print(required.verdict(results), flush=True)
        return paths
    if required:
        required.check_setting(results["settings"])
    return _written(results, Path(output) if output else None, required)


def _results_file(path: str) -> Path:
    """A results file, or that of a folder."""
    return Path(path) / "results.json" if Path(path).is_dir() else Path(path)


def _compare(config: dict[str, Any]) -> dict[str, Path]:
    """Runs side by side, printed and written."""
    if config["fail_under"] is not None:
        raise InputError("fail_under holds one run to a bar: give evaluation= or results=, not compare=")
    if len(config["compare"]) < 2:
        raise InputError(f"compare must name two or more results, got {config['compare']}")
    from jepa.report import answers, read_results
    from jepa.report.compare import comparison_summary, write_comparison

    runs = {path: read_results(_results_file(path), {answers.SCHEMA: _no_streams}) for path in config["compare"]}
    if len(runs) < len(config["compare"]):
        raise InputError(f"compare must name each of its results once, got {config['compare']}")
    paths = write_comparison(runs, config["output"] or "outputs/comparison")
    announce(comparison_summary(runs), paths)
    return paths


def _no_streams(_: dict[str, Any]) -> None:
    raise InputError(
        "compare takes results of streams, got a language model's answers: jepa report evaluation=<a folder that holds "
        "their evaluations> shows those side by side"
    )


def _setting(
    folder: Path, setting: dict[str, Any], streams: dict[str, StreamSet], swept: dict[str, Any]
) -> dict[str, Any]:
    """One entry of the results' `settings`: what the test streams are like, and what was swept."""
    from jepa.evaluation.streams import SPLITS, density

    records = streams["test"].records
    if not any(record.events for record in records):
        raise InputError(f"{folder}: the test streams must hold at least one annotated event")
    emissions = swept.pop("emissions")
    first = records[0]
    return {
        "description": setting["description"],
        "step_rate_hz": setting["step_rate_hz"],
        **density(records),
        "streams": {
            **{split: len(streams[split].records) for split in SPLITS},
            "seconds_each": setting["seconds_each"],
        },
        **swept,
        "strip": {
            "video_id": first.video_id,
            "duration": first.duration,
            "thumbnails": json.loads((folder / "thumbnails.json").read_text(encoding="utf-8")),
            "events": [{"start": e.start, "end": e.end, "text": e.text} for e in first.events],
            "decodes": emissions,
        },
    }
