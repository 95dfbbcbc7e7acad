"""The controlled comparison: a VL-JEPA and a token-space model on the states of one frozen X-Encoder.

What predicting embeddings buys over predicting tokens (VL-JEPA, arXiv 2512.10942, section 4.2). Encoder, clips, order,
batch, schedule and number of samples are the same for both arms. Only the part behind the states differs.
"""

from jepa.studies.comparison.evaluate import run
from jepa.studies.comparison.report import report
from jepa.studies.comparison.results import ArmEvaluation, ComparisonResults, comparison_results, folder_results

__all__ = [
    "ArmEvaluation",
    "ComparisonResults",
    "comparison_results",
    "folder_results",
    "report",
    "run",
]
