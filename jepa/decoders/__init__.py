"""Y-Decoders: an embedding to text.

Each name is imported from its module when it is first used: most need a library that the others do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily

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

__getattr__ = lazily(__name__, _HOMES)
