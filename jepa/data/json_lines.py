"""Files of JSON objects, one a line. Every error names file and line."""

from __future__ import annotations

import json
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from jepa.errors import InputError, Problems

JsonObject: TypeAlias = dict[str, Any]
T = TypeVar("T")
_DIGITS = 300  # of a whole number at most: every number fits a float


def read_lines(path: Path, what: str, read: Callable[[JsonObject, int], T]) -> list[T]:
    """What `read` makes of each line's object and its number, from 1; blank lines and a BOM are passed over.

    Raises:
        InputError: the file, which is called `what`, is missing, or lines are refused: see `Problems`.
    """
    if not path.is_file():
        raise InputError(f"{what} not found: {path}")
    found, problems = list[T](), Problems(path)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.removeprefix(BOM_UTF8).strip():
                with problems.collect(), located(f"{path}:{number}"):
                    found.append(read(parse(line.rstrip()), number))
    problems.raise_any()
    return found


def write_lines(path: Path, rows: Iterable[JsonObject]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")


def read_json(path: Path, what: str) -> Any:
    """The value of a JSON file, which is called `what`: see `parse_any`. Raises `InputError` naming the file."""
    if not path.is_file():
        raise InputError(f"{what} not found: {path}")
    with located(str(path)):
        return parse_any(path.read_bytes())


def parse(text: bytes) -> JsonObject:
    """A JSON object."""
    value = parse_any(text)
    if not isinstance(value, dict):
        raise InputError(f"must be a JSON object, got {type(value).__name__}")
    return value


def parse_any(text: bytes) -> Any:
    """A JSON value in UTF-8. A key that an object has twice is refused, and half a surrogate pair."""
    try:
        value = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_object, parse_int=_int)
        if b"\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except UnicodeDecodeError as error:
        raise InputError(f"must be UTF-8, got byte 0x{text[error.start]:02x} at {error.start}") from None
    except UnicodeEncodeError as error:
        found = error.object[error.start :][:40]
        raise InputError(f"must be valid Unicode, got a lone surrogate in {found!r}") from None
    except json.JSONDecodeError as error:
        line = f"line {error.lineno}, " if error.lineno > 1 else ""
        raise InputError(f"not JSON: {error.msg} at {line}column {error.colno}") from None
    except RecursionError:
        raise InputError("not JSON that can be read: nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> JsonObject:
    value = dict(pairs)
    if len(value) < len(pairs):
        [(twice, count)] = Counter(key for key, _ in pairs).most_common(1)
        raise InputError(f"an object must have a key once, got {twice[:80]!r} {count} times")
    return value


def _int(digits: str) -> int:
    if len(digits) > _DIGITS:
        raise InputError(f"a whole number must have at most {_DIGITS} digits, got {len(digits)}")
    return int(digits)


@contextmanager
def located(where: str) -> Iterator[None]:
    """Puts `where` before the message of an `InputError`."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{where}: {error}") from None


def check_text(name: str, value: object) -> str:
    """The value of the field `name`, if it is text, not empty, and valid Unicode."""
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name} must be text that is not empty, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{name} must be valid Unicode, got a lone surrogate in {value!r}") from None
    return value
