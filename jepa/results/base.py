"""What every results document is: a frozen pydantic model that knows its kind and version, JSON in and out."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from typing_extensions import Self

from jepa.errors import InputError
from jepa.metrics import Interval
from jepa.operations import OperationLedger

Count = Annotated[int, Field(ge=0)]
Quantity = Annotated[float, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Record(BaseModel):
    """A part of a document. It is frozen, takes no unknown key, and holds finite numbers only."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, arbitrary_types_allowed=True)


Ledger = Annotated[
    OperationLedger,
    BeforeValidator(lambda value: value if isinstance(value, OperationLedger) else OperationLedger.from_dict(value)),
    PlainSerializer(OperationLedger.to_dict),
    WithJsonSchema({"type": "object", "title": "OperationLedger"}),
]


class Ratio(Record):
    """A ratio with its 95 % interval. `high` is None where the interval has no upper bound."""

    value: Positive
    low: Positive
    high: Positive | None

    @classmethod
    def of(cls, found: Interval | None) -> Self | None:
        """From an `Interval` whose upper end may be infinite; None stays None."""
        if found is None:
            return None
        return cls(value=found.value, low=found.low, high=found.high if found.high < float("inf") else None)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high is not None and self.low > self.high:
            raise ValueError(f"low must be <= high, got {self.low} and {self.high}")
        return self


class Code(Record):
    """The code a figure comes from. `commit` and `dirty` are None outside a git checkout."""

    version: str
    commit: str | None
    dirty: bool | None


class Device(Record):
    """What a figure was measured on: `type` is "cpu" or "cuda"."""

    type: str
    name: str
    threads: Count


class Document(Record):
    """A results document. A subclass sets `kind` as a `Literal` such as ``"jepa.streams/4"``.

    >>> from jepa.results import StreamResults, read_document
    >>> schema = StreamResults.model_json_schema()
    """

    file_name: ClassVar[str] = "results.json"

    kind: str
    created: str
    name: str

    def to_json(self) -> bytes:
        """The content of the document's file."""
        return json.dumps(self.model_dump(mode="json"), allow_nan=False, indent=1).encode()

    def save(self, folder: Path) -> Path:
        """Write the document's file into a folder, and return its path."""
        path = folder / self.file_name
        write_files({path: self.to_json()})
        return path


def read_document(path: str | Path, *kinds: type[Document]) -> Any:
    """Read a document of one of `kinds` from a file, or from the first kind's file in a folder.

    Raises `InputError` if the file is missing, no JSON, of another kind, or breaks a rule. The message names the file,
    the place in it, the rule and the value got.
    """
    path = Path(path)
    path = path / kinds[0].file_name if path.is_dir() else path
    plain = _read_json(path)
    by_kind = {kind.model_fields["kind"].default: kind for kind in kinds}
    found = plain.get("kind") if isinstance(plain, dict) else None
    if not isinstance(found, str) or found not in by_kind:
        raise InputError(f"results file {path}: kind must be one of {', '.join(by_kind)}, got {found!r}")
    try:
        return by_kind[found].model_validate(plain)
    except ValidationError as error:
        raise InputError(f"results file {path}: {_first_fault(error)}") from error


def is_kind(path: Path, kind: type[Document]) -> bool:
    """Whether a file is there and holds a document of this kind. Raises `InputError` where it is no whole JSON."""
    plain = _read_json(path) if path.is_file() else None
    return isinstance(plain, dict) and plain.get("kind") == kind.model_fields["kind"].default


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"results file {path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"results file {path} must be whole, valid JSON, got an error: {error}") from error


def _first_fault(error: ValidationError) -> str:
    """The first fault that pydantic found, as one line: place, rule, value got."""
    fault = error.errors()[0]
    place = ""
    for step in fault["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}" if place else str(step)
    value = repr(fault["input"])
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{place or 'document'}: {fault['msg']}, got {shown}"


def write_files(contents: Mapping[Path, bytes]) -> None:
    """Write files so that each is whole at every moment: temporary files beside them, then a rename each.

    No file is renamed before all have been written, so that a full disk leaves every old file as it was. Raises
    `InputError` if a file cannot be written.
    """
    temporary = {path: path.with_name(f".{path.name}.{os.getpid()}.tmp") for path in contents}
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary[path].write_bytes(content)
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise InputError(f"{', '.join(map(str, contents))} must be writable, got: {error.strerror or error}") from error
    finally:
        for path in temporary.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def check_folder(path: Path) -> Path:
    """A folder to write to, before anything is computed. Raises `InputError` if a file is in its way."""
    found = next(each for each in (path, *path.absolute().parents) if each.exists())
    if not found.is_dir():
        raise InputError(f"{path} must be a folder, got a file: {found}")
    return path


def leaves(node: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """(dotted key, value) of every value of nested mappings that is not itself a mapping with keys.

    >>> dict(leaves({"stage": {"steps": 3}, "answers": {}}))
    {'stage.steps': 3, 'answers': {}}
    """
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
