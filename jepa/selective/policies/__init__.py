"""Policies: which segments of a stream to decode. `base` says what a policy is."""

from jepa.selective.policies.base import CausalPolicy, OfflinePolicy, OpenSegment, Policy, RunningMean, step_segment
from jepa.selective.policies.debounce import Debounce
from jepa.selective.policies.delta import SendOnDelta
from jepa.selective.policies.gate import Gate
from jepa.selective.policies.offline import Segmentation
from jepa.selective.policies.on_demand import OnDemand
from jepa.selective.policies.oracle import Oracle
from jepa.selective.policies.prediction import PredictionError
from jepa.selective.policies.uniform import Uniform
from jepa.selective.policies.variance import LocalVariance
from jepa.selective.policies.ward import Ward, WardTree, segment_count, ward_tree
from jepa.selective.policies.wrappers import Around, Budget, LongestGap

__all__ = [
    "Around",
    "Budget",
    "CausalPolicy",
    "Debounce",
    "Gate",
    "LocalVariance",
    "LongestGap",
    "OfflinePolicy",
    "OnDemand",
    "OpenSegment",
    "Oracle",
    "Policy",
    "PredictionError",
    "RunningMean",
    "Segmentation",
    "SendOnDelta",
    "Uniform",
    "Ward",
    "WardTree",
    "segment_count",
    "step_segment",
    "ward_tree",
]
