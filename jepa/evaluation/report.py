"""`report`: policies swept over the latents of an evaluation, and the pages that show it. No encoder runs.

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


def report(config: dict[str, Any]) -> dict[str, Path]:
    """Runs a validated `ReportConfig`, prints a summary, and returns the paths of the files written.

    Of a language model it compares the arms and seeds: see `jepa.evaluation.answers_report`.
    """
    folder = Path(config["evaluation"])
    if answers := answer_evaluations(folder):
        from jepa.evaluation.answers_report import report_answers

        return report_answers(config, answers)
    record = read_evaluation(folder, EVALUATION)
    from jepa.evaluation.streams import SPLITS, load_streams
    from jepa.evaluation.sweep import sweep_setting, sweeps
    from jepa.report import SCHEMA, summary, write_report

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
    output = Path(config["output"] or folder.parent)
    paths = write_report(results, output)
    announce(summary(results), paths)
    return paths


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
