"""Metrics: captions, streams, dense captions, cost per right answer, savings at equal quality, and latents."""

from __future__ import annotations

from jepa.metrics.cider import DocumentFrequency, cider_d, document_frequency, tokenize
from jepa.metrics.dense import (
    DenseScores,
    FScore,
    Similarity,
    dense_scores,
    emissions_within,
    in_force,
    merge_repeats,
    soda_c,
    temporal_f1,
    tim_cover,
    tim_redun,
)
from jepa.metrics.latents import LatentGeometry, paired_cosine, rankme, retrieval_at_k, unpaired_cosine
from jepa.metrics.per_token import (
    accuracy_area,
    accuracy_within,
    cost_of_pass,
    ock_score,
)
from jepa.metrics.retrieval import retrieval_ranks, retrieval_scores
from jepa.metrics.savings import (
    CurveDifference,
    Interval,
    Saving,
    SweepPoint,
    area_between_curves,
    bootstrap_mean,
    bootstrap_ratio,
    paired_difference,
    resample,
    saving_at_equal_quality,
)
from jepa.metrics.stream import CaptionPairs, match_nearest, stream_scores

__all__ = [
    "CaptionPairs",
    "CurveDifference",
    "DenseScores",
    "DocumentFrequency",
    "FScore",
    "Interval",
    "LatentGeometry",
    "Saving",
    "Similarity",
    "SweepPoint",
    "accuracy_area",
    "accuracy_within",
    "area_between_curves",
    "bootstrap_mean",
    "bootstrap_ratio",
    "cider_d",
    "cost_of_pass",
    "dense_scores",
    "document_frequency",
    "emissions_within",
    "in_force",
    "match_nearest",
    "merge_repeats",
    "ock_score",
    "paired_cosine",
    "paired_difference",
    "rankme",
    "resample",
    "retrieval_at_k",
    "retrieval_ranks",
    "retrieval_scores",
    "saving_at_equal_quality",
    "soda_c",
    "stream_scores",
    "temporal_f1",
    "tim_cover",
    "tim_redun",
    "tokenize",
    "unpaired_cosine",
]
