"""Y-Decoders: an embedding to text.

Each name is imported from its module when it is first used: most need a library that the others do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepa.decoders.bank import CaptionBank
    from jepa.decoders.language import LanguageDecoder
    from jepa.decoders.prefix import PrefixDecoder

__all__ = ["CaptionBank", "LanguageDecoder", "PrefixDecoder"]

_HOMES = {
    "CaptionBank": "bank",
    "LanguageDecoder": "language",
    "PrefixDecoder": "prefix",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
