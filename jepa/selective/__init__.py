"""Selective decoding: decode a stream of latents when its meaning changes, not at every step."""

from jepa.selective.decoder import Decoded, Decoder, Emission, SelectiveDecoder
from jepa.selective.policies import Gate, OfflinePolicy, Policy, Segment, Uniform, Ward

__all__ = [
    "Decoded",
    "Decoder",
    "Emission",
    "Gate",
    "OfflinePolicy",
    "Policy",
    "Segment",
    "SelectiveDecoder",
    "Uniform",
    "Ward",
]
