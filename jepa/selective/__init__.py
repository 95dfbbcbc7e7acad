"""Selective decoding: decode a stream of latents when its meaning changes, not at every step."""

from jepa.selective.cache import CacheEntry, LatentCache
from jepa.selective.calibration import Calibration, ErrorRate, audit_cache, calibrate_threshold, decode_segments
from jepa.selective.decoder import Decoded, Decoder, Emission, SelectiveDecoder
from jepa.selective.encoding import ColourChange, SelectiveEncoding, StepSelection, slots_needed, step_changes
from jepa.selective.policies import (
    Budget,
    CausalPolicy,
    Drift,
    Gate,
    LocalVariance,
    LongestGap,
    OfflinePolicy,
    Optimal,
    Oracle,
    Policy,
    PredictionError,
    Segment,
    SendOnDelta,
    Uniform,
    Ward,
    WardCut,
)

__all__ = [
    "Budget",
    "CacheEntry",
    "Calibration",
    "CausalPolicy",
    "ColourChange",
    "Decoded",
    "Decoder",
    "Drift",
    "Emission",
    "ErrorRate",
    "Gate",
    "LatentCache",
    "LocalVariance",
    "LongestGap",
    "OfflinePolicy",
    "Optimal",
    "Oracle",
    "Policy",
    "PredictionError",
    "Segment",
    "SelectiveDecoder",
    "SelectiveEncoding",
    "SendOnDelta",
    "StepSelection",
    "Uniform",
    "Ward",
    "WardCut",
    "audit_cache",
    "calibrate_threshold",
    "decode_segments",
    "slots_needed",
    "step_changes",
]
