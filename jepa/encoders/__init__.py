"""X-Encoders of frames and text, and Y-Encoders of text.

Each name is imported from its module when it is first used: most need a library that the others do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily

if TYPE_CHECKING:
    from jepa.encoders.language import LanguageModel
    from jepa.encoders.sentence import SentenceEncoder, embed_sentences
    from jepa.encoders.text import TextTransformer
    from jepa.encoders.vision import ConvStem, FeatureEncoder, FrameViT, FrozenWhere, SlotsInTime
    from jepa.encoders.vision_timm import TimmEncoder
    from jepa.encoders.vision_vjepa2 import VJEPA2

__all__ = [
    "VJEPA2",
    "ConvStem",
    "FeatureEncoder",
    "FrameViT",
    "FrozenWhere",
    "LanguageModel",
    "SentenceEncoder",
    "SlotsInTime",
    "TextTransformer",
    "TimmEncoder",
    "embed_sentences",
]

_HOMES = {
    "ConvStem": "vision",
    "FeatureEncoder": "vision",
    "FrameViT": "vision",
    "FrozenWhere": "vision",
    "LanguageModel": "language",
    "SentenceEncoder": "sentence",
    "SlotsInTime": "vision",
    "TextTransformer": "text",
    "TimmEncoder": "vision_timm",
    "VJEPA2": "vision_vjepa2",
    "embed_sentences": "sentence",
}

__getattr__ = lazily(__name__, _HOMES)
