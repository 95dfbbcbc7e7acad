"""Losses on predicted and target embeddings, right over any number of processes."""

from __future__ import annotations

from jepa.losses.cached import cached_loss
from jepa.losses.distance import L1, L2, MSE, Cosine, SmoothL1, cosine_distance
from jepa.losses.gather import GlobalBatch, broadcast
from jepa.losses.infonce import InfoNCE, ProjectionHead, info_nce
from jepa.losses.regularisers import SIGReg, VICReg, sigreg, vicreg
from jepa.losses.siglip import SigLIP, siglip
from jepa.losses.transition import next_latent_loss
from jepa.losses.tube import semantic_tube

__all__ = [
    "L1", "L2", "MSE", "Cosine", "GlobalBatch", "InfoNCE", "ProjectionHead", "SIGReg", "SigLIP", "SmoothL1", "VICReg",
    "broadcast", "cached_loss", "cosine_distance", "info_nce", "next_latent_loss", "semantic_tube", "siglip", "sigreg",
    "vicreg",
]  # fmt: skip
