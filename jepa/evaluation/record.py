"""The provenance of records that are still plain mappings."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepa.errors import InputError
from jepa.evaluation import provenance
from jepa.evaluation.provenance import announce, device_of, library_versions

if TYPE_CHECKING:
    from jepa.metrics import Interval

__all__ = ["announce", "code_version", "describe_device", "device_of", "library_versions"]

ANSWERS = "jepa.answers/1"  # of a language model's answers


def code_version() -> dict[str, Any]:
    return provenance.code_version().model_dump()


def describe_device(kind: str) -> dict[str, Any]:
    return provenance.describe_device(kind).model_dump()


def read_evaluation(folder: Path, version: str) -> dict[str, Any]:
    """`evaluation.json` of an evaluation folder. Raises `InputError` if it is missing, broken or of another version."""
    path = folder / "evaluation.json"
    if not path.is_file():
        raise InputError(f"evaluation not found: {path}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not JSON: {error}") from None
    found = record.get("format") if isinstance(record, dict) else None
    if found != version:
        raise InputError(f"{path}: format must be {version!r}, got {found!r}: evaluate the checkpoint again")
    return record


def plain_ratio(found: Interval | None) -> dict[str, float | None] | None:
    """A ratio with its interval as documents hold it: null for none, and for an upper end without a bound."""
    if found is None:
        return None
    return {**asdict(found), "high": found.high if math.isfinite(found.high) else None}


def answer_evaluations(folder: Path) -> list[Path]:
    """The evaluations of language models that a folder is or holds, in order; none where it has none."""
    own = folder / "evaluation.json"
    paths = [own] if own.is_file() else sorted(folder.glob("**/evaluation/evaluation.json"))
    return [path.parent for path in paths] if any(_format(path) == ANSWERS for path in paths) else []


def _format(path: Path) -> str | None:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        return None
    return found.get("format") if isinstance(found, dict) else None
