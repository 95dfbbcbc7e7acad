"""The fields of the documents that reports are made of, as Markdown: ``python -m jepa.report.fields`` writes docs.

Types and bounds are read from the checks that every document passes, so that they cannot differ from them; units are
given here by the names of fields.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from jepa.report import answers, schema
from jepa.report.schema import Check, described

DOCUMENTS: tuple[tuple[str, str, Check], ...] = (
    (schema.SCHEMA, "`jepa report` of a VL-JEPA: `results.json`", schema.DOCUMENT),
    (answers.SCHEMA, "`jepa report` of language models: `results.json`", answers.DOCUMENT),
)

# Unit -> the names that have it; other numbers are counts, named by what they count, or have no unit.
_UNITS = {
    "s": (
        "seconds time start end emitted_at duration seconds_each mean_event_seconds stream_seconds "
        "wait_seconds training_seconds mean p50 p95 max"
    ),
    "ms": "encode_ms predict_ms answer_ms ms_per_step decoder_ms_per_step",
    "Hz": "rate_hz step_rate_hz",
    "1/s": "decodes_per_second reference_decodes_per_second events_per_second low_rate high_rate",
    "FLOP": (
        "flops flops_per_answer flops_per_right_answer flops_per_caption encoder_flops predictor_flops decoder_flops "
        "flops_per_step trained encoder"
    ),
    "bytes": "cache weight_bytes",
    "CIDEr-D, 0 to 10": "cider_d quality reference_quality quality_difference",
    "points, at most 100": "ock_score",
    "fraction of 1": (
        "accuracy accuracy_within accuracy_area exact_match chance r@1 r@5 retrieval@1 temporal_f1 temporal_f1_merged "
        "soda_c tim_cover error_rate repeated_events tolerance p top1 top5 chance5 exact"
    ),
    "ratio": ("saving flops_ratio steps_stretched passes_ratio"),
    "cosine": "paired_cosine unpaired_cosine",
    "of the knob": "knob threshold",
}
UNITS = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_OF_AN_INTERVAL = ("value", "low", "high", "seeds", "[]", "<name>")  # they have the unit of what they are in


def fields(check: Check, path: str = "") -> Iterator[tuple[str, str, str]]:
    """(path, type with its bounds, unit or "") of everything inside a document, in the order of its schema.

    In a path, `[]` is each item of a list, `<name>` each of an object's free names; a field that may be missing ends in
    `?`.
    """
    words, inner = described(check)
    if path:
        yield path, words, _unit(path) if "number" in words else ""
    for key, within in inner.items():
        yield from fields(within, f"{path}{key}" if key == "[]" else f"{path}.{key}".lstrip("."))


def _unit(path: str) -> str:
    names = path.replace("[]", ".[]").replace("?", "").split(".")
    while names and names[-1] in _OF_AN_INTERVAL:
        names.pop()
    return UNITS.get(names[-1], "") if names else ""


def fields_markdown() -> str:
    """All documents: a table each of field, type and unit."""
    blocks = [
        "# The documents behind the reports",
        "Written by `python -m jepa.report.fields` from the checks in `jepa/report`; a test holds the two together. "
        "Every command checks its document before anything is written, and every reader before anything is shown: a "
        "missing field, a wrong type, a number out of bounds or not finite, or another version is an error that names "
        "the path, the rule and the value. Fields that are not named here are allowed. `[]` is each item of a list, "
        "`<name>` each free name of an object; a field that ends in `?` may be missing. Every document begins with "
        "`schema`, its name and version. A number without a unit is a count of what its name says, or a plain number.",
    ]
    for name, made, check in DOCUMENTS:
        rows = [f"| `{path}` | {words} | {unit} |" for path, words, unit in fields(check)]
        blocks += [f"## {name}", f"{made}.", "\n".join(["| field | type | unit |", "|---|---|---|", *rows])]
    return "\n\n".join(blocks) + "\n"


if __name__ == "__main__":
    Path("docs/results_schema.md").write_text(fields_markdown(), encoding="utf-8")
