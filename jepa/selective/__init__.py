"""Selective decoding: decode a stream of latents when its meaning changes, not at every step."""

from jepa.selective.cache import CacheEntry, LatentCache
from jepa.selective.calibration import (
    Calibration,
    ErrorRate,
    audit_cache,
    calibrate_cache,
    calibrate_threshold,
    decode_segments,
    measured_error,
)
from jepa.selective.decoder import SelectiveDecoder
from jepa.selective.encoding import ColourChange, SelectiveEncoding, StepSelection, slots_needed
from jepa.selective.policies.base import CausalPolicy, OfflinePolicy, Policy
from jepa.selective.policies.debounce import Debounce
from jepa.selective.policies.delta import SendOnDelta
from jepa.selective.policies.drift import Drift
from jepa.selective.policies.gate import Gate
from jepa.selective.policies.on_demand import OnDemand
from jepa.selective.policies.optimal import Optimal
from jepa.selective.policies.oracle import Oracle
from jepa.selective.policies.prediction import PredictionError
from jepa.selective.policies.uniform import Uniform
from jepa.selective.policies.variance import LocalVariance
from jepa.selective.policies.ward import Ward, WardCut
from jepa.selective.policies.wrappers import Budget, LongestGap
from jepa.selective.types import Decoded, Decoder, Emission, Segment

__all__ = [
    "Budget",
    "CacheEntry",
    "Calibration",
    "CausalPolicy",
    "ColourChange",
    "Debounce",
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
    "OnDemand",
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
    "calibrate_cache",
    "calibrate_threshold",
    "decode_segments",
    "measured_error",
    "slots_needed",
]
