"""Policies: which latents of a stream to decode, and when."""

from jepa.selective.policies.base import CausalPolicy, OfflinePolicy, Policy, Segment
from jepa.selective.policies.delta import SendOnDelta
from jepa.selective.policies.drift import Drift
from jepa.selective.policies.gate import Gate
from jepa.selective.policies.optimal import Optimal
from jepa.selective.policies.oracle import Oracle
from jepa.selective.policies.prediction import PredictionError
from jepa.selective.policies.uniform import Uniform
from jepa.selective.policies.variance import LocalVariance
from jepa.selective.policies.ward import Ward, WardCut
from jepa.selective.policies.wrappers import Budget, LongestGap

__all__ = [
    "Budget",
    "CausalPolicy",
    "Drift",
    "Gate",
    "LocalVariance",
    "LongestGap",
    "OfflinePolicy",
    "Optimal",
    "Oracle",
    "Policy",
    "PredictionError",
    "Segment",
    "SendOnDelta",
    "Uniform",
    "Ward",
    "WardCut",
]
