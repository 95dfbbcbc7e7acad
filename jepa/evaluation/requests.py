"""`evaluate` of an LLM-JEPA on streams of requests: when to answer a text being typed, when to reuse an answer.

The two evaluations are `jepa.evaluation.typed_requests` and `jepa.evaluation.recurring_requests`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from jepa import checkpoint
from jepa.config import REQUESTS_CONFIGS, build_as, validate
from jepa.data.pairs import PairSplits
from jepa.errors import InputError
from jepa.evaluation.record import code_version, describe_device, library_versions
from jepa.evaluation.recurring_requests import evaluate_recurring
from jepa.evaluation.request_sessions import load_language_model
from jepa.evaluation.typed_requests import evaluate_typing
from jepa.report.requests import SCHEMA, summary, write_report


def evaluate_requests(
    folder: Path, output: Path, settings: Mapping[str, Any], seed: int, accelerator: str, data: Any = None
) -> dict[str, Path]:
    """Runs one of the two evaluations on a checkpoint and writes requests.json, requests.md and requests.png.

    Args:
        folder: checkpoint of an LLM-JEPA.
        output: folder to write to.
        settings: a configuration of `REQUESTS_CONFIGS`, by its `kind`.
        seed: of streams, folds and resampling.
        accelerator: "auto", "cpu" or "gpu".
        data: what differs from the data that the checkpoint was trained on, or other data with a `_target_`.

    Raises:
        InputError: settings that break a rule, a checkpoint of another variant, or data without what is asked for.
    """
    kind = settings.get("kind")
    if kind not in REQUESTS_CONFIGS:
        raise InputError(f"requests.kind must be one of {', '.join(REQUESTS_CONFIGS)}, got {kind!r}")
    settings = validate(dict(settings), REQUESTS_CONFIGS[kind])
    trained = checkpoint.read_config(folder)
    device = "cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu"
    if accelerator == "gpu" and device == "cpu":
        raise InputError("accelerator is gpu, but no GPU is available")
    model = load_language_model(folder, device)
    node = data if data and "_target_" in data else {**trained["data"], **(data or {})}
    splits = build_as(PairSplits, "data", node)
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
    print(summary(results))
    for name, path in paths.items():
        print(f"{name}: {path}")
    return paths
