"""Y-Decoders: an embedding to text."""

from jepa.decoders.bank import CaptionBank
from jepa.decoders.language import LanguageDecoder
from jepa.decoders.prefix import PrefixDecoder

__all__ = ["CaptionBank", "LanguageDecoder", "PrefixDecoder"]
