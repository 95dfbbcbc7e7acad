"""Losses on predicted and target embeddings, right over any number of processes."""

from jepa.losses.cached import cached_loss
from jepa.losses.distance import (
    L1,
    L2,
    MSE,
    Cosine,
    SmoothL1,
    cosine_distance,
    l1_distance,
    l2_distance,
    mse_distance,
    smooth_l1_distance,
)
from jepa.losses.gather import GlobalBatch, broadcast
from jepa.losses.infonce import InfoNCE, ProjectionHead, info_nce
from jepa.losses.regularisers import SIGReg, VICReg, sigreg, vicreg
from jepa.losses.siglip import SigLIP, siglip
from jepa.losses.tube import SemanticTube, semantic_tube

__all__ = [
    "L1",
    "L2",
    "MSE",
    "Cosine",
    "GlobalBatch",
    "InfoNCE",
    "ProjectionHead",
    "SIGReg",
    "SemanticTube",
    "SigLIP",
    "SmoothL1",
    "VICReg",
    "broadcast",
    "cached_loss",
    "cosine_distance",
    "info_nce",
    "l1_distance",
    "l2_distance",
    "mse_distance",
    "semantic_tube",
    "siglip",
    "sigreg",
    "smooth_l1_distance",
    "vicreg",
]  # fmt: skip
