"""Spider: a query is right when it gives what the gold query gives (Yu et al. 2018, arXiv 1809.08887).

Both queries are executed on the database that the prompt names. Rules:

- Rows are compared as a multiset; in order, if the gold query has an ORDER BY of its own (one within parentheses
  orders no result). Rows that tie in the ordering are compared as SQLite returns them.
- Columns are compared in their order, not by name. The official evaluation also accepts columns in another order.
- NULL equals NULL; numbers are equal within a relative 1e-6 if one of them is not whole; text equals text exactly.

A prediction can do nothing but read: the file is opened read-only and immutable (so that a database with a write-ahead
log must be checkpointed), and an authorizer refuses everything but SELECT.
"""

from __future__ import annotations

import math
import re
import sqlite3
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jepa.errors import InputError, check_positive

_DATABASE = re.compile(r"For db_id:\[([\w-]+)\]")
_MOST_ROWS = 1_000_000  # of a gold query
_LONGEST_VALUE = 10_000_000  # bytes
_STEPS = 10_000  # of SQLite's virtual machine between two looks at the clock
_TOLERANCE = 1e-6
_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_SQL_TOKEN = re.compile(
    r"""(?P<ignored> '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | \[[^\]]*\] | --[^\n]* | /\*.*?\*/ )
    | (?P<order> \border\s+by\b ) | [()]""",
    re.VERBOSE | re.IGNORECASE | re.DOTALL,
)

Row = tuple[Any, ...]


@dataclass(frozen=True)
class Spider:
    """Whether a predicted query gives the rows of the gold query; the rules are at the head of this module.

    `databases` is the folder with ``<name>/<name>.sqlite``. A prediction that takes `timeout_seconds` > 0 is wrong.

    >>> Spider(Path("gone"))
    Traceback (most recent call last):
    jepa.errors.InputError: databases must be a folder, got 'gone'
    """

    databases: Path
    timeout_seconds: float = 10.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "databases", Path(self.databases))
        if not self.databases.is_dir():
            raise InputError(f"databases must be a folder, got {str(self.databases)!r}")
        check_positive("timeout_seconds", self.timeout_seconds)

    def __call__(self, prediction: str, gold: str, prompt: str) -> bool:
        """Score one prediction; an empty one, one that fails and one that returns no table are wrong.

        Raises `InputError` if the prompt does not hold ``For db_id:[name]``, the database is missing, or the gold query
        fails, takes too long or gives more than 1,000,000 rows.
        """
        path = self._path(prompt)
        with closing(self._open(path)) as connection:
            try:
                expected = self._rows(connection, gold, _MOST_ROWS)
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                raise InputError(f"the gold query must run on {path}, got {error}: {gold!r}") from error
            if expected is None or len(expected) > _MOST_ROWS:
                got = f"{'no table' if expected is None else 'more'}: {gold!r}"
                raise InputError(f"the gold query must give a table of at most {_MOST_ROWS} rows on {path}, got {got}")
            try:
                rows = self._rows(connection, prediction, len(expected))
            except (sqlite3.Error, sqlite3.Warning, ValueError):  # ValueError: a NUL or a broken character in it
                return False
        return rows is not None and _same(rows, expected, ordered=has_own_order(gold))

    def _path(self, prompt: str) -> Path:
        match = _DATABASE.search(prompt)
        if match is None:
            raise InputError(f"prompt must name its database as 'For db_id:[name]', got {prompt[:80]!r}")
        path = self.databases / match[1] / f"{match[1]}.sqlite"
        if not path.is_file():
            raise InputError(f"databases must hold {match[1]}/{match[1]}.sqlite, got no file {path}")
        return path

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        uri = f"file:{quote(str(path.resolve()))}?mode=ro&immutable=1"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None)
        connection.execute("PRAGMA query_only = ON")
        connection.set_authorizer(lambda action, *_: sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY)
        if sys.version_info >= (3, 11):
            connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _LONGEST_VALUE)
        # Some of Spider's texts are not UTF-8.
        connection.text_factory = lambda text: text.decode(errors="surrogateescape")
        return connection

    def _rows(self, connection: sqlite3.Connection, query: str, most: int) -> list[Row] | None:
        """The first `most` + 1 rows, so that more than `most` can be told; None if the query returns no table."""
        deadline = time.monotonic() + self.timeout_seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS)
        with closing(connection.execute(query)) as cursor:
            return None if cursor.description is None else cursor.fetchmany(most + 1)


def has_own_order(query: str) -> bool:
    """Whether a query has an ORDER BY outside of parentheses, quotes and comments."""
    depth = 0
    for token in _SQL_TOKEN.finditer(query):
        if token["order"] and depth == 0:
            return True
        depth += {"(": 1, ")": -1}.get(token[0], 0)
    return False


def _same(rows: list[Row], expected: list[Row], ordered: bool) -> bool:
    if len(rows) != len(expected):
        return False
    if not ordered:
        rows, expected = sorted(rows, key=_sorting), sorted(expected, key=_sorting)
    return all(
        len(row) == len(other) and all(map(_equal, row, other)) for row, other in zip(rows, expected, strict=True)
    )


def _sorting(row: Row) -> list[tuple[str, Any]]:
    """An order over mixed types, in which numbers that are equal but for rounding are level."""
    return [
        ("number", float(f"{value:.9g}") if isinstance(value, float) else value)
        if isinstance(value, (int, float))
        else (type(value).__name__, 0 if value is None else value)
        for value in row
    ]


def _equal(value: Any, other: Any) -> bool:
    if isinstance(value, float) or isinstance(other, float):
        numbers = isinstance(value, (int, float)) and isinstance(other, (int, float))
        return numbers and math.isclose(value, other, rel_tol=_TOLERANCE, abs_tol=1e-12)
    return type(value) is type(other) and value == other
