"""Policies: which latents of a stream to decode, and when."""

from jepa.selective.policies.base import OfflinePolicy, Policy, Segment
from jepa.selective.policies.gate import Gate
from jepa.selective.policies.uniform import Uniform
from jepa.selective.policies.ward import Ward

__all__ = ["Gate", "OfflinePolicy", "Policy", "Segment", "Uniform", "Ward"]
