"""`evaluate` of an LLM-JEPA on streams of requests: when to answer a text being typed, when to reuse an answer.

The two evaluations are `jepa.evaluation.typed_requests` and `jepa.evaluation.recurring_requests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jepa import checkpoint
from jepa.build import build_as
from jepa.config import validate
from jepa.data.pairs import ExampleSplits
from jepa.errors import InputError
from jepa.evaluation.language import load_language_model
from jepa.evaluation.record import announce, code_version, describe_device, device_of, library_versions
from jepa.evaluation.recurring_requests import evaluate_recurring
from jepa.evaluation.typed_requests import evaluate_typing
from jepa.report.requests import SCHEMA, summary, write_report
from jepa.studies.configs import REQUESTS_CONFIGS


def evaluate_requests(
    folder: Path,
    output: Path,
    requests: Mapping[str, Any],
    seed: int,
    accelerator: str,
    splits: ExampleSplits | None = None,
) -> dict[str, Path]:
    """Runs one of the two evaluations on a checkpoint and writes requests.json, requests.md and requests.png.

    Args:
        folder: checkpoint of an LLM-JEPA.
        output: folder to write to.
        requests: a configuration of `REQUESTS_CONFIGS`, by its `kind`.
        seed: of streams, folds and resampling.
        accelerator: "auto", "cpu" or "gpu".
        splits: the data; None: those that the checkpoint was trained on.

    Raises:
        InputError: settings that break a rule, a checkpoint of another variant, or data without what is asked for.
    """
    kind = requests.get("kind")
    if kind not in REQUESTS_CONFIGS:
        raise InputError(f"requests.kind must be one of {', '.join(REQUESTS_CONFIGS)}, got {kind!r}")
    settings: Any = validate(dict(requests), REQUESTS_CONFIGS[kind], "requests")
    trained, device = checkpoint.read_config(folder), device_of(accelerator)
    splits = splits or build_as(ExampleSplits, "data", trained["data"])
    model = load_language_model(folder, device)
    run = evaluate_typing if kind == "typing" else evaluate_recurring
    results = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kind": kind,
        "name": f"{trained['name']}, {trained['arm']}, seed {trained['seed']}",
        **run(model, splits, settings, seed, device),
        "code": code_version(),
        "libraries": library_versions(),
        "device": describe_device(device),
        "config": {"train": trained, "requests": settings, "seed": seed},
    }
    paths = write_report(results, output)
    announce(summary(results), paths)
    return paths
