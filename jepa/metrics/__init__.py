"""Metrics: captions (CIDEr-D), streams, savings at equal quality, and the geometry of latents."""

from __future__ import annotations

from jepa.metrics.cider import CIDErD, DocumentFrequency, cider_d, document_frequency, tokenize
from jepa.metrics.latents import LatentGeometry, paired_cosine, rankme, retrieval_at_k, unpaired_cosine
from jepa.metrics.savings import Interval, Saving, SweepPoint, bootstrap_mean, saving_at_equal_quality
from jepa.metrics.stream import match_nearest, stream_scores

__all__ = [
    "CIDErD",
    "DocumentFrequency",
    "Interval",
    "LatentGeometry",
    "Saving",
    "SweepPoint",
    "bootstrap_mean",
    "cider_d",
    "document_frequency",
    "match_nearest",
    "paired_cosine",
    "rankme",
    "retrieval_at_k",
    "saving_at_equal_quality",
    "stream_scores",
    "tokenize",
    "unpaired_cosine",
]
