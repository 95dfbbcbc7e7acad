"""Training: the only room that needs Lightning, so each name is imported from its module when it is first used."""

from __future__ import annotations

from jepa.lazy import lazily

_NAMES = {
    "configs": (
        *("ChatTokenizerConfig", "ClipsConfig", "DecoderStageConfig", "JEPAStageConfig", "LanguageStageConfig"),
        *("LanguageTrainConfig", "ManifestsConfig", "PromptsConfig", "RunConfig", "SavesConfig", "StageConfig"),
        *("TokenizerConfig", "TrainConfig", "TrainerConfig"),
    ),
    "callbacks": ("EMACallback", "MeterCallback", "ProgressBar", "Summary"),
    "language": ("DraftModule", "LanguageModule"),
    "latents": ("DecoderBatches", "PairDecoderBatches", "StreamLatents"),
    "modules": ("CollapseWarning", "DecoderModule", "JEPAModule", "JointStage", "ParameterGroup", "Stage"),
    "objectives": ("Objective",),
    "own_data": ("OwnData",),
    "loggers": ("TrackioLogger",),
    "probes": ("Probes",),
    "resume": ("Run", "Signals", "StateIO", "Stopped"),
    "run": ("train",),
    "saving": ("CheckpointCallback", "StateCallback"),
}
__all__ = [name for names in _NAMES.values() for name in names]

__getattr__ = lazily(__name__, {name: module for module, names in _NAMES.items() for name in names})
