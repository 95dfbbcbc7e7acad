"""The results document: what it holds, how it is checked, how it is read and written.

A results document is plain data (what JSON can hold) under the schema ``jepa.results/2``. Keys that the
schema does not name are allowed, so that a document can carry more than a report shows; a missing key, a
wrong type, a number that is not finite, or a reference to a policy or a knob without a curve is refused. Messages name
the place as a path, such as ``settings.everyday.curves.gate.test[3].cider_d.low``.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import itertools
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NoReturn

from jepa.errors import InputError

SCHEMA = "jepa.results/2"

Results = dict[str, Any]
Check = Callable[[Any, str], None]


def refuse(path: str, rule: str, value: object) -> NoReturn:
    shown = repr(value)
    raise InputError(f"{path} must {rule}, got {shown if len(shown) <= 80 else shown[:77] + '...'}")


# --- The vocabulary: each function returns a check of one value at one path.


@dataclass(frozen=True)
class Described:
    """A check that can say what it asks: a type in words, and the checks of what is inside.

    The keys of `inner` are those of an object ("key?": it may lack it), "<name>" for free names, "[]" for a list.
    """

    check: Check
    words: str
    inner: Mapping[str, Check] = field(default_factory=dict)

    def __call__(self, value: Any, path: str) -> None:
        self.check(value, path)


def number(low: float = -math.inf, high: float = math.inf, *, above: float = -math.inf) -> Check:
    """A finite number in [low, high] that is also > above."""
    bounds = [f">= {low:g}"] * (low > -math.inf) + [f"> {above:g}"] * (above > -math.inf)
    bounds += [f"<= {high:g}"] * (high < math.inf)
    rule = " ".join(["be a finite number", " and ".join(bounds)]).rstrip()

    def check(value: Any, path: str) -> None:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            refuse(path, rule, value)
        if not (low <= value <= high and value > above):
            refuse(path, rule, value)

    return Described(check, rule.removeprefix("be a finite "))


def count(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        refuse(path, "be a whole number >= 0", value)


def integer(value: Any, path: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        refuse(path, "be a whole number", value)


def text(value: Any, path: str) -> None:
    if not isinstance(value, str):
        refuse(path, "be text", value)


def choice(*options: str) -> Check:
    """One of these texts."""

    def check(value: Any, path: str) -> None:
        if value not in options:
            refuse(path, f"be one of {', '.join(options)}", value)

    return Described(check, f"one of {', '.join(options)}")


def flag(value: Any, path: str) -> None:
    if not isinstance(value, bool):
        refuse(path, "be true or false", value)


def _png(value: Any, path: str) -> None:
    text(value, path)
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error:
        data = b""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        refuse(path, "be a PNG file in base64", value)


def plain(value: Any, path: str) -> None:
    """Anything JSON can hold."""
    if isinstance(value, dict):
        mapping(plain, empty=True)(value, path)
    elif isinstance(value, list):
        sequence(plain)(value, path)
    elif isinstance(value, float):
        number()(value, path)
    elif value is not None and not isinstance(value, (str, int)):
        refuse(path, "be plain data (text, number, true, false, null, list or object)", value)


_WORDS: Mapping[Check, str] = {
    count: "whole number >= 0",
    integer: "whole number",
    text: "text",
    flag: "true or false",
    plain: "anything that JSON can hold",
    _png: "PNG file in base64",
}


def nullable(check: Check) -> Check:
    def check_unless_null(value: Any, path: str) -> None:
        if value is not None:
            check(value, path)

    words, inner = described(check)
    return Described(check_unless_null, f"{words}, or null", inner)


def sequence(check: Check, *, shortest: int = 0) -> Check:
    def check_all(value: Any, path: str) -> None:
        if not isinstance(value, list) or len(value) < shortest:
            refuse(path, "be a list" + f" of at least {shortest}" * (shortest > 0), value)
        for index, item in enumerate(value):
            check(item, f"{path}[{index}]")

    return Described(check_all, "list" + f" of at least {shortest}" * (shortest > 0), {"[]": check})


def mapping(check: Check, *, empty: bool = False) -> Check:
    """An object whose keys are free names."""

    def check_all(value: Any, path: str) -> None:
        if not isinstance(value, dict) or not (value or empty):
            refuse(path, "be an object" + " with at least one entry" * (not empty), value)
        for key, item in value.items():
            if not isinstance(key, str):
                refuse(path, "have text as keys", key)
            check(item, f"{path}.{key}")

    return Described(check_all, "object of free names" + ", at least one" * (not empty), {"<name>": check})


def record(keys: Mapping[str, Check], rule: Check | None = None, optional: Mapping[str, Check] | None = None) -> Check:
    """An object that has all these keys, and may have the `optional` ones; `rule` then judges them together."""
    more = optional or {}

    def check_all(value: Any, path: str) -> None:
        if not isinstance(value, dict):
            refuse(path, "be an object", value)
        for key, check in keys.items():
            if key not in value:
                refuse(path, f"have the key {key!r}", sorted(map(str, value)))
            check(value[key], f"{path}.{key}")
        for key in more.keys() & value.keys():
            more[key](value[key], f"{path}.{key}")
        if rule is not None:
            rule(value, path)

    inner = {**keys, **{f"{key}?": check for key, check in more.items()}}
    return Described(check_all, "object", inner)


def alike(names: Iterable[str], check: Check) -> Check:
    """An object that has all these keys, with the same check for each."""
    keys = dict.fromkeys(names, check)
    return Described(record(keys), f"object of {', '.join(keys)}", {"<name>": check})


def described(check: Check) -> tuple[str, Mapping[str, Check]]:
    """What a check asks in words, and the checks of what is inside, as `Described` has them."""
    if isinstance(check, Described):
        return check.words, check.inner
    return _WORDS[check], {}


def ordered(*keys: str) -> Check:
    """The values of these keys do not decrease from one to the next."""

    def check(value: Any, path: str) -> None:
        if any(value[a] > value[b] for a, b in itertools.pairwise(keys)):
            refuse(path, "have " + " <= ".join(keys), {key: value[key] for key in keys})

    return check


# --- The document.

_POSITIVE, _QUANTITY, _FRACTION = number(above=0), number(0), number(0, 1)
_INTERVAL = record({"value": number(), "low": number(), "high": number()}, ordered("low", "high"))

_PART = record({"calls": count, "forward_passes": count, "tokens": count, "flops": count, "seconds": _QUANTITY})
_CACHE = record(
    {"lookups": count, "hits": count, "audited": count, "wrong_hits": count, "seconds": _QUANTITY},
    optional={"flops": count},
)
_LATENCY = {"count": count} | {key: nullable(_QUANTITY) for key in ("mean", "p50", "p95", "max")}
_LEDGER = record(
    {"detector": _PART, "encoder": _PART, "predictor": _PART, "decoder": _PART, "cache": _CACHE}
    | {"stream_seconds": _QUANTITY, "steps": count, "latency_seconds": record(_LATENCY)}
)

_DENSE = record(
    dict.fromkeys(("temporal_f1", "temporal_f1_merged", "soda_c", "tim_cover"), _FRACTION) | {"tim_redun": _QUANTITY}
)
_RATE = {"value": _FRACTION, "low": _FRACTION, "high": _FRACTION, "wrong": count, "hits": count, "lookups": count}


def _error_agrees(error: Any, path: str) -> None:
    ordered("low", "value", "high")(error, path)
    ordered("wrong", "hits", "lookups")(error, path)


_CACHED = record({"threshold": number(), "error": record(_RATE, _error_agrees)})
_POINT = {"knob": number(), "decodes_per_second": _QUANTITY, "cider_d": _INTERVAL}
_NEEDS = {"latency": text, "state": text}  # of each point; in documents from before that, of the curve's first one


def _curve_agrees(curve: Any, path: str) -> None:
    if not _NEEDS.keys() <= curve.keys():
        sequence(record(_NEEDS))(curve["test"], f"{path}.test")
    if curve["cache"] is not None:
        sequence(record({"cache": _CACHED}))(curve["test"], f"{path}.test")


_CURVE = record(
    {
        "label": text,
        "causal": flag,
        "oracle": flag,
        "knob": text,
        "cache": nullable(
            record({"capacity": count, "shared": flag, "error_rate": _FRACTION}, optional={"bank": flag})
        ),
        "selects_steps": flag,
        "test": sequence(record(_POINT | {"dense": _DENSE}, optional={"cache": _CACHED} | _NEEDS), shortest=1),
        "calibration": sequence(record(_POINT), shortest=1),
    },
    _curve_agrees,
    _NEEDS,
)


def _bounded(value: Any, path: str) -> None:
    if value["high"] is not None:
        ordered("low", "high")(value, path)


# An interval whose upper end is null where it has no bound.
ratio = record({"value": _POSITIVE, "low": _POSITIVE, "high": nullable(_POSITIVE)}, _bounded)


def _saving_agrees(saving: Any, path: str) -> None:
    expected = saving["knob"] is not None
    for key in ("quality", "quality_difference", "temporal_f1_difference", "decodes_per_second"):
        if (saving[key] is not None) != expected:
            refuse(f"{path}.{key}", "be null exactly when the knob is null", saving[key])
    if (saving["saving"] is not None) != bool(saving["decodes_per_second"]):
        refuse(f"{path}.saving", "be null exactly when the policy decodes nothing", saving["saving"])
    if saving["reached"] and not expected:
        refuse(f"{path}.reached", "be false when the knob is null", True)


_SAVING = record(
    {
        "reference": record({"policy": text, "rate_hz": _POSITIVE}),
        "tolerance": _FRACTION,
        "headline": flag,
        "policy": text,
        "knob": nullable(number()),
        "reached": flag,
        "quality": nullable(number()),
        "reference_quality": number(),
        "quality_difference": nullable(_INTERVAL),
        "temporal_f1_difference": nullable(_INTERVAL),
        "decodes_per_second": nullable(_QUANTITY),
        "reference_decodes_per_second": _POSITIVE,
        "saving": nullable(ratio),
        "reason": text,
    },
    _saving_agrees,
)
_AREA = record({"difference": nullable(_INTERVAL), "low_rate": nullable(_POSITIVE), "high_rate": nullable(_POSITIVE)})

_DECODE = {key: number() for key in ("time", "start", "end", "emitted_at")}
_DECODE |= {"text": text, "source": choice("decoder", "cache", "bank")}
_STRIP = record(
    {
        "video_id": text,
        "duration": _POSITIVE,
        "thumbnails": sequence(record({"time": number(), "png": _png})),
        "events": sequence(record({"start": number(), "end": number(), "text": text}, ordered("start", "end"))),
        "decodes": mapping(sequence(record(_DECODE, ordered("start", "end"))), empty=True),
    }
)


def swept_agrees(setting: Any, path: str) -> None:
    """Policies and knobs have a curve, and one reference and tolerance is the headline."""
    curves, rows = setting["curves"], ("savings", "operations")
    named = [(f"areas.{policy}", policy) for policy in setting["areas"]]
    named += [(f"{kind}[{i}].policy", row["policy"]) for kind in rows for i, row in enumerate(setting[kind])]
    named += [(f"savings[{i}].reference.policy", s["reference"]["policy"]) for i, s in enumerate(setting["savings"])]
    for place, policy in named:
        _check_policy(setting, f"{path}.{place}", path, policy)
    for kind in rows:
        for index, row in enumerate(setting[kind]):
            swept = [point["knob"] for point in curves[row["policy"]]["test"]]
            if row["knob"] is not None and row["knob"] not in swept:
                refuse(f"{path}.{kind}[{index}].knob", f"be a knob of the policy's test curve {swept}", row["knob"])
    headline = {
        (saving["reference"]["policy"], saving["reference"]["rate_hz"], saving["tolerance"])
        for saving in setting["savings"]
        if saving["headline"]
    }
    if len(headline) != 1:
        refuse(f"{path}.savings", "have a headline against exactly one reference and tolerance", sorted(headline))


def _setting_agrees(setting: Any, path: str) -> None:
    for policy in setting["strip"]["decodes"]:
        _check_policy(setting, f"{path}.strip.decodes.{policy}", path, policy)
    swept_agrees(setting, path)


def _check_policy(setting: Any, place: str, path: str, policy: str) -> None:
    if policy not in setting["curves"]:
        refuse(place, f"be a policy of {path}.curves ({', '.join(setting['curves'])})", policy)


SWEPT: Mapping[str, Check] = {  # of every setting that policies were swept on, under `swept_agrees`
    "events_per_second": _POSITIVE,
    "mean_event_seconds": _POSITIVE,
    "repeated_events": _FRACTION,
    "curves": mapping(_CURVE),
    "savings": sequence(_SAVING, shortest=1),
    "areas": mapping(_AREA, empty=True),
    "operations": sequence(record({"policy": text, "knob": number(), "ledger": _LEDGER, "seconds_estimated": flag})),
}
_SETTING = record(
    {
        **SWEPT,
        "description": text,
        "step_rate_hz": _POSITIVE,
        "streams": record({"calibration": count, "test": count, "seconds_each": _POSITIVE}),
        "strip": _STRIP,
    },
    _setting_agrees,
    {"one_device": flag},
)

PER_TOKEN: Mapping[str, Check] = {  # of answers judged right or wrong: jepa.metrics.per_token
    "ock_score": number(high=100),
    "accuracy_within": sequence(_FRACTION, shortest=2),
    "accuracy_area": _FRACTION,
}
_COST = record(  # of an answer, and of a right one; older documents have none
    dict.fromkeys(("tokens_per_answer", "flops_per_answer"), _QUANTITY)
    | dict.fromkeys(("tokens_per_right_answer", "flops_per_right_answer"), nullable(_QUANTITY))
)
_CAPTION_COSTS = {
    **dict.fromkeys(("tokens_per_caption", "flops_per_caption"), _QUANTITY),  # of older documents: of decoding alone
    "tokens_per_right_caption": nullable(_QUANTITY),
    **PER_TOKEN,
    "cost": _COST,
}
_ANSWERS = record(
    {"queries": count, "accuracy": _FRACTION, "candidates": count, "chance": _FRACTION}, None, {"cost": _COST}
)
_SCORES = record(
    {
        "retrieval": record(
            {"candidates": count, "queries": count, "r@1": _FRACTION, "r@5": _FRACTION, "chance": _FRACTION},
            optional={"cost": record({"r@1": _COST, "r@5": _COST})},
        ),
        "classification": _ANSWERS,
        "question_answering": record(
            {"queries": count, "accuracy": _FRACTION, "by_question": mapping(_ANSWERS)}, optional={"cost": _COST}
        ),
        "captioning": record(
            {"queries": count, "cider_d": _QUANTITY, "exact_match": _FRACTION}, optional=_CAPTION_COSTS
        ),
        "geometry": record(
            {
                "retrieval@1": _FRACTION,
                "rankme": _QUANTITY,
                "paired_cosine": number(),
                "unpaired_cosine": number(),
            }
        ),
    }
)


CODE = record({"version": text, "commit": nullable(text), "dirty": nullable(flag)})
DEVICE = record({"type": text, "name": text, "threads": count})


def _active_agrees(role: Any, path: str) -> None:
    if "active" in role:
        ordered("active", "total")(role, path)


_ROLE = record({"role": text, "total": count, "trainable": count, "modules": text}, _active_agrees, {"active": count})
PARAMETERS = sequence(_ROLE, shortest=1)


def _curve_row(value: Any, path: str) -> None:
    mapping(nullable(number()))(value, path)
    record({"step": count})(value, path)


CURVE = sequence(Described(_curve_row, "object", {"step": count, "<name>": nullable(number())}))

TRAINING_PARTS = {  # of the operations of training: what a report calls them
    "encoder": "X-Encoder",
    "predictor": "Predictor",
    "y_encoder": "Y-Encoder",
    "decoder": "Y-Decoder",
    "loss": "loss",
    "optimizer": "optimizer",
}
_TRAINED = record({"calls": count, "flops": count, "weight_bytes": count, "seconds": _QUANTITY})
OPERATIONS = record({"steps": count, "parts": alike(TRAINING_PARTS, _TRAINED)})  # of all its steps
_STAGE = record(
    {"name": text, "steps": count, "seconds": _QUANTITY}, optional={"operations": nullable(OPERATIONS)}
)  # null: not counted
_TRAINING = record(
    {
        "steps": count,
        "samples": count,
        "seconds": _QUANTITY,
        "stages": sequence(_STAGE),
        "curve": CURVE,
    }
)

_REPORT = record({"created": text, "code": CODE, "device": DEVICE})

DOCUMENT = record(
    {
        "created": text,
        "name": text,
        "seed": integer,
        "config": mapping(plain, empty=True),
        "code": CODE,
        "libraries": mapping(text),
        "device": DEVICE,
        "parameters": PARAMETERS,
        "training": _TRAINING,
        "scores": _SCORES,
        "settings": mapping(_SETTING),
    },
    optional={"report": _REPORT},
)


def validate_results(results: Results) -> None:
    """Check a results document against ``jepa.results/2``.

    Raises InputError on the first fault, naming its path in the document, the rule and the value got; a
    document of another schema version is refused with both versions named.
    """
    check_document(results, SCHEMA, DOCUMENT)


def check_document(results: Results, schema: str, check: Check) -> None:
    """The rules of every schema: its name and version, plain data, and then what `check` asks."""
    record({"schema": text})(results, "results")
    if results["schema"] != schema:
        refuse("results.schema", f"be {schema!r}, the version this code reads", results["schema"])
    plain(results, "results")
    check(results, "results")


def to_json(results: Results) -> bytes:
    """A results document, validated, as the content of its file."""
    validate_results(results)
    return json.dumps(results, allow_nan=False, indent=1).encode()


def write_results(results: Results, path: str | Path) -> None:
    """Validate a results document and write it as JSON, whole or not at all.

    Raises InputError for a bad document (NaN and infinities included) or a path that cannot be written.
    """
    write_whole({Path(path): to_json(results)})


def read_results(path: str | Path, others: Mapping[str, Callable[[Results], None]] = MappingProxyType({})) -> Results:
    """Read and validate a results document, ``jepa.results/2`` or of one of the `others`.

    Args:
        path: the file.
        others: schema -> what checks a document of it.

    Raises InputError if the file is missing, unreadable, cut off, not JSON or not a valid document.
    """
    try:
        results = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"results file {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"results file {path} must be whole, valid JSON, got an error: {error}") from error
    schema = results.get("schema") if isinstance(results, dict) else None
    try:
        others.get(str(schema), validate_results)(results)
    except InputError as error:
        raise InputError(f"results file {path}: {error}") from error
    return results


def write_whole(files: Mapping[Path, bytes]) -> None:
    """Write files so that each is whole at every moment: temporary files beside them, then a rename each.

    No file is renamed before all have been written, so that a full disk leaves every old file as it was.
    Raises InputError if the folder or a file cannot be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in files}
    try:
        for path, content in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in files:
            os.replace(temporary[path], path)
    except OSError as error:
        names = _names(list(files))
        raise InputError(f"{names} must be writable, got: {error.strerror or error}") from error
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _names(paths: Sequence[Path]) -> str:
    """One path as it is, several as ``folder/{a, b}``."""
    if len(paths) == 1:
        return str(paths[0])
    return f"{paths[0].parent}/{{{', '.join(path.name for path in paths)}}}"
