"""Metrics: captions, streams, dense captions, cost per right answer, savings at equal quality, and latents."""

from __future__ import annotations

from jepa.metrics.answers import METRICS, multiple_choice, proportion_interval, score, scorer_for
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
from jepa.metrics.paired import PairedTest, paired_test
from jepa.metrics.per_token import (
    accuracy_area,
    accuracy_within,
    cost_of_pass,
    ock_score,
)
from jepa.metrics.regex import UndecidedError, check_regex, equivalent
from jepa.metrics.retrieval import Ranks, retrieval_ranks, retrieval_scores
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
from jepa.metrics.sql import Spider
from jepa.metrics.stream import CaptionPairs, match_nearest, stream_scores

__all__ = [
    "METRICS", "CaptionPairs", "CurveDifference", "DenseScores", "DocumentFrequency", "FScore", "Interval",
    "LatentGeometry", "PairedTest", "Ranks", "Saving", "Similarity", "Spider", "SweepPoint", "UndecidedError",
    "accuracy_area", "accuracy_within", "area_between_curves", "bootstrap_mean", "bootstrap_ratio", "check_regex",
    "cider_d", "cost_of_pass", "dense_scores", "document_frequency", "emissions_within", "equivalent", "in_force",
    "match_nearest", "merge_repeats", "multiple_choice", "ock_score", "paired_cosine", "paired_difference",
    "paired_test", "proportion_interval", "rankme", "resample", "retrieval_at_k", "retrieval_ranks",
    "retrieval_scores", "saving_at_equal_quality", "score", "scorer_for", "soda_c", "stream_scores", "temporal_f1",
    "tim_cover", "tim_redun", "tokenize", "unpaired_cosine",
]  # fmt: skip
