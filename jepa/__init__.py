"""Joint-embedding predictive architectures for vision and language, with selective decoding.

``import jepa`` is instant: the names below are imported from their modules when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa.checkpoint import load
    from jepa.errors import InputError
    from jepa.operations import OperationLedger
    from jepa.selective import SelectiveDecoder

__version__ = "0.1.0"  # the one place that states it: pyproject.toml reads it from here

__all__ = ["InputError", "OperationLedger", "SelectiveDecoder", "__version__", "load"]

_HOMES = {
    "InputError": "jepa.errors",
    "OperationLedger": "jepa.operations",
    "SelectiveDecoder": "jepa.selective",
    "load": "jepa.checkpoint",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'jepa' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
