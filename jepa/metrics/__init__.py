"""Metrics: captions, streams, dense captions, cost per right answer, savings at equal quality, and latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jepa.lazy import lazily
from jepa.metrics.cider import DocumentFrequency, cider_d, document_frequency, tokenize
from jepa.metrics.dense import DenseScores, dense_scores
from jepa.metrics.latents import paired_cosine, rankme, unpaired_cosine
from jepa.metrics.paired import PairedTest, corrected, paired_test
from jepa.metrics.regex import UndecidedError
from jepa.metrics.retrieval import Ranks, retrieval_ranks, retrieval_scores
from jepa.metrics.savings import (
    CurveDifference,
    Interval,
    Saving,
    SweepPoint,
    area_between_curves,
    bootstrap_mean,
    bootstrap_ratio,
    resample,
    saving_at_equal_quality,
)
from jepa.metrics.sql import Spider
from jepa.metrics.stream import CaptionPairs, References, match_nearest, stream_scores

if TYPE_CHECKING:
    from jepa.metrics.geometry import LatentGeometry

__all__ = [
    "CaptionPairs", "CurveDifference", "DenseScores", "DocumentFrequency", "Interval", "LatentGeometry", "PairedTest",
    "Ranks", "References", "Saving", "Spider", "SweepPoint", "UndecidedError", "area_between_curves", "bootstrap_mean",
    "bootstrap_ratio", "cider_d", "corrected", "dense_scores", "document_frequency", "match_nearest", "paired_cosine",
    "paired_test", "rankme", "resample", "retrieval_ranks", "retrieval_scores", "saving_at_equal_quality",
    "stream_scores", "tokenize", "unpaired_cosine",
]  # fmt: skip

__getattr__ = lazily(__name__, {"LatentGeometry": "geometry"})
