"""The controlled comparison: a VL-JEPA and a token-space model on the states of one frozen X-Encoder.

What predicting embeddings buys over predicting tokens (VL-JEPA, arXiv 2512.10942, section 4.2). Encoder, clips, order,
batch, schedule and number of samples are the same for both arms. Only the part behind the states differs.
"""

from jepa.lazy import lazily

_NAMES = {
    "evaluate": ("run",),
    "results": (
        *("ArmEvaluation", "ArmRun", "ComparisonResults", "DecoderTraining", "ScoredPoint", "SeedMean"),
        *("SingleAnswers", "StepFlops", "StreamStep", "Trial", "comparison_results", "folder_results"),
    ),
    "train": ("ArmModule", "HeldOutClips", "StateBatch", "StateBatches", "WordsModule"),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
