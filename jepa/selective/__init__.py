"""Selective decoding: decode a stream of latents when its meaning changes, not at every step.

Policies, cache and decoder need NumPy alone; what calibrates is imported from its module when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily
from jepa.selective import policies
from jepa.selective.cache import CacheEntry, LatentCache
from jepa.selective.decoder import SelectiveDecoder, Waiting, decode_together
from jepa.selective.encoding import ColourChange, EveryStep, SelectiveEncoding, StepSelection, slots_needed
from jepa.selective.policies import *  # noqa: F403
from jepa.selective.readout import Readout
from jepa.selective.triggers import (
    ScoredStream,
    Trigger,
    TriggerCalibration,
    alarms,
    calibrate_trigger,
    zero_alarm_hours,
)
from jepa.selective.types import Decoded, Decoder, Emission, Segment
from jepa.selective.windows import WindowStream, slots_of

if TYPE_CHECKING:
    from jepa.selective.calibration import (
        CachedDecoder,
        Calibration,
        CheckedStream,
        ErrorRate,
        calibrate_cache,
        calibrate_threshold,
        decode_segments,
        measured_error,
    )
    from jepa.selective.standing import StandingText, Verifier, calibrate_standing

__all__ = [
    "CacheEntry",
    "CachedDecoder",
    "Calibration",
    "CheckedStream",
    "ColourChange",
    "Decoded",
    "Decoder",
    "Emission",
    "ErrorRate",
    "EveryStep",
    "LatentCache",
    "Readout",
    "ScoredStream",
    "Segment",
    "SelectiveDecoder",
    "SelectiveEncoding",
    "StandingText",
    "StepSelection",
    "Trigger",
    "TriggerCalibration",
    "Verifier",
    "Waiting",
    "WindowStream",
    "alarms",
    "calibrate_cache",
    "calibrate_standing",
    "calibrate_threshold",
    "calibrate_trigger",
    "decode_segments",
    "decode_together",
    "measured_error",
    "slots_needed",
    "slots_of",
    "zero_alarm_hours",
]
__all__ += policies.__all__

_HOMES = {
    "CachedDecoder": "calibration",
    "Calibration": "calibration",
    "CheckedStream": "calibration",
    "ErrorRate": "calibration",
    "StandingText": "standing",
    "Verifier": "standing",
    "calibrate_cache": "calibration",
    "calibrate_standing": "standing",
    "calibrate_threshold": "calibration",
    "decode_segments": "calibration",
    "measured_error": "calibration",
}

__getattr__ = lazily(__name__, _HOMES)
