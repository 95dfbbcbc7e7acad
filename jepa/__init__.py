"""Joint-embedding predictive architectures for vision and language, with selective decoding.

``import jepa`` is instant: the names below are imported from their modules when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily

if TYPE_CHECKING:
    from jepa.checkpoint import load
    from jepa.errors import InputError
    from jepa.operations import OperationLedger
    from jepa.selective import SelectiveDecoder

__version__ = "0.2.0"  # the one place that states it: pyproject.toml reads it from here

__all__ = ["InputError", "OperationLedger", "SelectiveDecoder", "__version__", "load"]

_HOMES = {
    "InputError": "errors",
    "OperationLedger": "operations",
    "SelectiveDecoder": "selective",
    "load": "checkpoint",
}

__getattr__ = lazily(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
