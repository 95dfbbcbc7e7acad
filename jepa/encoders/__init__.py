"""X-Encoders of frames and text, and Y-Encoders of text.

Each name is imported from its module when it is first used: most need a library that the others do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily

if TYPE_CHECKING:
    from jepa.encoders.flow import optical_flow
    from jepa.encoders.language import LanguageModel
    from jepa.encoders.sentence import SentenceEncoder, embed_sentences
    from jepa.encoders.text import TextTransformer
    from jepa.encoders.vision import ConvStem, FeatureEncoder, FrameViT, FrozenWhere, SlotsInTime
    from jepa.encoders.vision_timm import TimmEncoder
    from jepa.encoders.vision_vjepa2 import VJEPA2
    from jepa.encoders.vision_vjepa21 import VJEPA21, VJEPA21Sizes

__all__ = [
    "VJEPA2",
    "VJEPA21",
    "ConvStem",
    "FeatureEncoder",
    "FrameViT",
    "FrozenWhere",
    "LanguageModel",
    "SentenceEncoder",
    "SlotsInTime",
    "TextTransformer",
    "TimmEncoder",
    "VJEPA21Sizes",
    "embed_sentences",
    "optical_flow",
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
    "VJEPA21": "vision_vjepa21",
    "VJEPA21Sizes": "vision_vjepa21",
    "embed_sentences": "sentence",
    "optical_flow": "flow",
}

__getattr__ = lazily(__name__, _HOMES)
