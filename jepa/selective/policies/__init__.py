"""Policies: which segments of a stream to decode. `base` says what a policy is."""

from jepa.selective.policies.base import CausalPolicy, Comparisons, OpenSegment, Policy, Recorded, RunningMean
from jepa.selective.policies.gate import Gate
from jepa.selective.policies.offline import OfflinePolicy, Oracle
from jepa.selective.policies.prediction import PredictionError
from jepa.selective.policies.single import Debounce, SendOnDelta
from jepa.selective.policies.trigger import OnTrigger
from jepa.selective.policies.uniform import Uniform
from jepa.selective.policies.variance import LocalVariance
from jepa.selective.policies.ward import Ward
from jepa.selective.policies.wrappers import Budget, LongestGap, OnDemand

__all__ = [
    "Budget",
    "CausalPolicy",
    "Comparisons",
    "Debounce",
    "Gate",
    "LocalVariance",
    "LongestGap",
    "OfflinePolicy",
    "OnDemand",
    "OnTrigger",
    "OpenSegment",
    "Oracle",
    "Policy",
    "PredictionError",
    "Recorded",
    "RunningMean",
    "SendOnDelta",
    "Uniform",
    "Ward",
]
