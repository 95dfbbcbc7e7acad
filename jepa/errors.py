"""The one exception that every part of the package may raise and the command line understands; rules that raise it."""

from __future__ import annotations

import math


class InputError(ValueError):
    """Something the user gave breaks a rule. One line names the thing, the rule and the value got.

    The commands print it as ``error: <message>`` and exit with code 2, without a traceback.
    """


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
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
