"""The one exception that every part of the package may raise and the command line understands; rules that raise it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

DISTRIBUTION = "selective-jepa"  # on the package index, where another project has the name jepa
A = TypeVar("A")
B = TypeVar("B")


class InputError(ValueError):
    """Something the user gave breaks a rule. One line names the thing, the rule and the value got.

    The commands print it as ``error: <message>`` and exit with code 2, without a traceback.
    """


@contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """What is imported within comes with an extra of the distribution.

    Raises:
        InputError: a package is not installed; the line has the command that installs it.

    >>> with needs_extra("video"):
    ...     import no_such_package
    Traceback (most recent call last):
    jepa.errors.InputError: no_such_package is not installed: pip install 'selective-jepa[video]'
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        raise InputError(f"{package} is not installed: {install(extra)}") from error


def install(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install '{DISTRIBUTION}[{extra}]'"


class CollectedError(InputError):
    """Several at once, a line each."""


class Problems:
    """Collects the errors of a file, so that all are reported in one go: of several, their count and the first `shown`.

    >>> problems = Problems("a.csv")
    >>> problems.each([4, -1, 0], lambda value: check_positive("size", value))
    [4]
    >>> problems.raise_any()
    Traceback (most recent call last):
    jepa.errors.CollectedError: a.csv: 2 problems
      size must be finite and > 0, got -1
      size must be finite and > 0, got 0
    """

    def __init__(self, name: object, shown: int = 20) -> None:
        self.name, self.shown = name, shown
        self.count, self.first = 0, list[str]()

    @contextmanager
    def collect(self) -> Iterator[None]:
        """What is within stops at an `InputError`, what comes after goes on."""
        try:
            yield
        except InputError as error:
            self.add(str(error))

    def add(self, message: str) -> None:
        self.count += 1
        if self.count <= self.shown:
            self.first.append(" ".join(message.split()))

    def each(self, items: Iterable[A], read: Callable[[A], B]) -> list[B]:
        """What `read` makes of the items that it does not refuse."""
        found = list[B]()
        for item in items:
            with self.collect():
                found.append(read(item))
        return found

    def raise_any(self) -> None:
        """Raises an `InputError` if one was collected, `CollectedError` if several were."""
        if self.count == 1:
            raise InputError(self.first[0])
        if self.count:
            more = f", the first {self.shown}" if self.count > self.shown else ""
            raise CollectedError("\n  ".join([f"{self.name}: {self.count} problems{more}", *self.first]))


def check_finite(name: str, value: float) -> float:
    """The value of the argument `name`. Raises `InputError` if it is no finite number; a bool is none."""
    if not _is_finite(value):
        raise InputError(f"{name} must be a finite number, got {value!r}")
    return value


def check_positive(name: str, value: float) -> float:
    """The value of the argument `name`. Raises `InputError` if it is no finite number > 0; a bool is none."""
    if not (_is_finite(value) and value > 0):
        raise InputError(f"{name} must be finite and > 0, got {value!r}")
    return value


def check_nonnegative(name: str, value: float) -> float:
    """The value of the argument `name`. Raises `InputError` if it is no finite number >= 0; a bool is none."""
    if not (_is_finite(value) and value >= 0):
        raise InputError(f"{name} must be finite and >= 0, got {value!r}")
    return value


def check_int(name: str, value: int, least: int) -> int:
    """The value of the argument `name`. Raises `InputError` if it is no whole number >= `least`; a bool is none."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"{name} must be a whole number >= {least}, got {value!r}")
    return value


def _is_finite(value: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf
