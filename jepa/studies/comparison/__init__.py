"""The controlled comparison: a VL-JEPA and a token-space model on the states of one frozen X-Encoder.

What predicting embeddings buys over predicting tokens (VL-JEPA, arXiv 2512.10942, section 4.2). Encoder, clips, order,
batch, schedule and number of samples are the same for both arms. Only the part behind the states differs.
"""

from jepa.studies.comparison.data import HeldOutClips, StateBatch, StateBatches
from jepa.studies.comparison.evaluate import run
from jepa.studies.comparison.report import report
from jepa.studies.comparison.results import (
    ArmEvaluation,
    ArmRun,
    ArmTraining,
    ComparisonResults,
    DecoderTraining,
    ScoredPoint,
    SeedMean,
    SingleAnswers,
    StepFlops,
    StreamStep,
    TrainedPoint,
    Trial,
    comparison_results,
    folder_results,
)
from jepa.studies.comparison.train import ArmModule, WordsModule

__all__ = [
    "ArmEvaluation", "ArmModule", "ArmRun", "ArmTraining", "ComparisonResults", "DecoderTraining", "HeldOutClips",
    "ScoredPoint", "SeedMean", "SingleAnswers", "StateBatch", "StateBatches", "StepFlops", "StreamStep",
    "TrainedPoint", "Trial", "WordsModule", "comparison_results", "folder_results", "report", "run",
]  # fmt: skip
