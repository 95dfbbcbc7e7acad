"""Studies: each answers one question, and nothing else imports it. A command of the command line runs it."""

from jepa.lazy import lazily

_NAMES = {
    "comparison": ("ArmEvaluation", "ComparisonResults"),
    "configs": (
        *("ComparisonDecoderConfig", "ComparisonStreamConfig", "ComparisonTrainConfig"),
        *("RecurringConfig", "TypingConfig", "TypingStyle", "TypingValuesConfig", "ReplayConfig"),
        *("CostConfig", "CostGridConfig", "DeployedModelConfig", "EfficiencyConfig", "FigureConfig", "HardwareConfig"),
        *("MeasuredTimesConfig", "PerceptionPartConfig", "StreamLoadConfig"),
    ),
    "cost": ("CostResults",),
    "replay": ("Level", "ReplayResults", "ReplayedPart", "ReplayedTimeline"),
    "requests": ("RequestResults",),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
