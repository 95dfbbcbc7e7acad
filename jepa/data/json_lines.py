"""Files of JSON objects, one a line. Every error names file and line."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from jepa.errors import InputError

JsonObject: TypeAlias = dict[str, Any]


def read_lines(path: Path, what: str) -> Iterator[tuple[int, JsonObject]]:
    """Each line's number, from 1, and its object. Blank lines and a byte order mark are passed over."""
    if not path.is_file():
        raise InputError(f"{what} not found: {path}")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                with located(f"{path}:{number}"):
                    value = parse(line)
                yield number, value


def write_lines(path: Path, rows: Iterable[JsonObject]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def parse(text: bytes) -> JsonObject:
    """A JSON object."""
    value = parse_any(text)
    if not isinstance(value, dict):
        raise InputError(f"must be a JSON object, got {type(value).__name__}")
    return value


def parse_any(text: bytes) -> Any:
    """A JSON value in UTF-8."""
    try:
        return json.loads(text.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"must be UTF-8, got byte 0x{text[error.start]:02x} at {error.start}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except (ValueError, RecursionError) as error:  # a number too long for the parser, or nesting too deep
        raise InputError(f"not JSON: {error}") from None


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` before the message of an `InputError`."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def check_text(name: str, value: object) -> str:
    """The value of the field `name`, if it is text, not empty, and valid Unicode."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} must be text that is not empty, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{name} must be valid Unicode, got a lone surrogate in {value!r}") from None
    return value
