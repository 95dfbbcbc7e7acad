"""The configuration of training: stages, data and devices of either variant."""

from __future__ import annotations

from typing import Annotated, Literal

from jepa.build import Node
from jepa.config import (
    Accelerator,
    AnswersConfig,
    Config,
    Count,
    Fraction,
    Natural,
    NonNegative,
    NotEmpty,
    ObjectiveConfig,
    Positive,
    Text,
    WithLabel,
)

FREE = ("resume", "saves", "trainer", "logger", "callbacks")  # keys that may change when a run goes on
Precision = Literal["32-true", "16-mixed", "bf16-mixed", "bf16-true"]
INFONCE: Node = {"_target_": "jepa.losses.infonce.InfoNCE", "temperature": 0.07}


class TokenizerConfig(Config):
    """A tokenizer trained on the texts of the data."""

    vocab_size: Count = 512


class ClipsConfig(Config):
    """What training clips are made of: see `jepa.data.clips.ClipBatches`."""

    query_free: bool = False  # captions without a query
    question_fraction: Fraction = 0.25
    class_fraction: Fraction = 0.0  # of samples that ask for the class of the action
    idle_fraction: Fraction = 0.04
    cut_fraction: Fraction = 0.15  # another event begins or ends within the window
    hard_negatives: Natural = 2  # captions that differ in one thing; the fourth in who does what to whom


class StageConfig(Config):
    """A stage of training: a warm-up to ``learning_rate``, then that rate (constant) or a cosine to 0."""

    steps: Count = 1000
    batch_size: Count = 128
    accumulate: Count = 1  # batches of batch_size whose mean gradient makes a step, on each device
    learning_rate: Positive = 1e-3
    schedule: Literal["cosine", "constant"] = "cosine"
    weight_decay: NonNegative = 0.05
    warmup_steps: Natural = 50
    gradient_clip: Positive = 1.0
    validate_every: Count = 100
    validation_batches: Count = 2


class JEPAStageConfig(StageConfig):
    """The joint embedding: see `jepa.training.modules.JEPAModule`."""

    y_encoder_lr_multiplier: Positive | None = None  # null: 0.05 for a pretrained one that is not frozen, else 1
    loss: Node = INFONCE
    regulariser: Node | None = None
    regulariser_weight: NonNegative = 0.0
    target: Literal["gradient", "stop_gradient", "ema"] = "gradient"  # of both sides, as the paper
    ema_decay: Fraction = 0.996
    chunk: Natural = 0  # samples encoded at a time (cached contrastive learning); 0: the whole batch
    clips: Natural = 0  # of the world, encoded once by a frozen X-Encoder; 0: every batch shows new ones
    decoder_weight: NonNegative = 0.0  # of the texts' cross-entropy through the frozen decoder of `checkpoint`


class DecoderStageConfig(StageConfig):
    """The Y-Decoder, on samples of ``data``, else ``jepa.clips``, else streams of the world: see `DecoderBatches`."""

    steps: Count = 600
    batch_size: Count = 256
    learning_rate: Positive = 2e-3
    validate_every: Count = 200
    streams: Count = 48  # this and the next three: without data and jepa.clips
    stream_seconds: Positive = 120.0
    step_rate_hz: Positive = 2.0
    style: Node
    clips: Natural = 10000  # with data: samples at most; 0: all
    noise: NonNegative = 1.0  # on text embeddings, in units of the predictions' measured error
    predictions: bool = True
    segment_means: bool = True


class PromptsConfig(Config):
    """See `jepa.data.manifest_batches.Prompts`."""

    captions: Annotated[list[str], NotEmpty] = [""]
    classes: Annotated[list[str], NotEmpty] = ["What is happening?"]
    label: WithLabel = "{label}"


class ManifestsConfig(Config):
    """Manifests or shards to train and validate on (docs/data.md); both null: clips of the world."""

    train: str | None = None
    validation: str | None = None
    features: str | None = None  # a folder of the frozen encoder's states, written first if it is not there
    fps: Positive | None = None  # around the middle of a video's part; null: at equal distances over it
    fractions: dict[str, NonNegative] | None = {"caption": 1.0, "question": 0.0, "class": 0.0}  # null for shards
    buffer: Count = 1000  # samples of shards that wait to be drawn
    prompts: PromptsConfig = PromptsConfig()
    skip_broken: bool = False


class SavesConfig(Config):
    """When a training writes what it goes on from: see `jepa.training.resume`. The last ``keep`` are kept."""

    every_steps: Count = 1000
    every_minutes: Positive = 15.0
    keep: Count = 2


class TrainerConfig(Config):
    """Keys of `lightning.Trainer`; ``accelerator``, ``devices``, ``strategy`` and ``precision`` are the run's own."""

    num_nodes: Count = 1  # of ``devices`` each
    deterministic: Literal[True, False, "warn"] = False
    benchmark: bool | None = None
    detect_anomaly: bool = False
    profiler: Literal["simple", "advanced", "pytorch"] | None = None
    limit_train_batches: Count | None = None  # null: all of the stage's steps
    limit_val_batches: Count | None = None
    log_every_n_steps: Count = 10
    gradient_clip_algorithm: Literal["norm", "value"] = "norm"
    enable_progress_bar: bool = True


class RunConfig(Config):
    """What every training has."""

    name: Text
    seed: Natural = 0
    precision: Literal[Precision, "auto"] = "auto"  # auto: bf16-mixed where the device computes in it
    accelerator: Accelerator = "auto"
    workers: Natural = 1
    resume: Literal[True, False, "auto"] = False  # go on from the newest state; auto: or begin where there is none
    saves: SavesConfig = SavesConfig()
    monitor: str | None = None  # of the logs, such as val/retrieval@1: a sweeper gets the last value of each job
    trainer: TrainerConfig = TrainerConfig()
    logger: dict[str, Node] = {}  # beside the CSV log
    callbacks: dict[str, Node] = {}  # see `jepa.training.loggers.own_callbacks`


class _Devices(RunConfig):
    devices: Count = 1  # of each node; several are launched by torchrun

    @property
    def processes(self) -> int:
        """Of all nodes together."""
        return self.devices * self.trainer.num_nodes


class TrainConfig(_Devices):
    """A VL-JEPA, stage by stage; a stage that is null is left out."""

    variant: Literal["vl_jepa"] = "vl_jepa"
    strategy: Literal["auto", "ddp", "fsdp"] = "auto"
    compile: bool = False
    checkpoint: str | None = None  # to go on from: its model and tokenizer take the place of those below
    data: ManifestsConfig | None = ManifestsConfig()
    world: Node
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: Node
    clips: ClipsConfig = ClipsConfig()
    jepa: JEPAStageConfig | None = JEPAStageConfig()
    decoder: DecoderStageConfig | None


class ChatTokenizerConfig(TokenizerConfig):
    """A pretrained tokenizer (hub name or folder), or one trained on the training pairs."""

    pretrained: str | None = None


class LanguageStageConfig(Config):
    """Training on pairs for ``epochs``: a warm-up over a fraction of the steps, then a cosine to 0."""

    epochs: NonNegative = 16.0
    batch_size: Count = 32
    row_tokens: Count = 64  # short rows suit short pairs on a CPU; a longer pair gets a row of its own length
    learning_rate: Positive = 1e-3
    weight_decay: NonNegative = 0.1
    warmup_fraction: Fraction = 0.05
    gradient_clip: Positive = 1.0
    validate_every: Count = 250
    validation_pairs: Count = 200


class LanguageTrainConfig(_Devices):
    """An LLM-JEPA, stage by stage; a stage that is null is left out."""

    variant: Literal["llm_jepa"] = "llm_jepa"
    arm: str
    strategy: Literal["auto", "ddp"] = "auto"
    data: Node
    checkpoint: str | None = None  # to go on from
    tokenizer: ChatTokenizerConfig = ChatTokenizerConfig()
    model: Node
    method: ObjectiveConfig  # what the arms of a sweep derive theirs from
    objective: ObjectiveConfig
    equal_flops: ObjectiveConfig | None = None
    stage: LanguageStageConfig = LanguageStageConfig()
    decoder: StageConfig | None = None  # of the Y-Decoder from embeddings, the rest frozen
    draft: StageConfig | None = None  # of the transition that drafts answers, the rest frozen
    answers: AnswersConfig = AnswersConfig()
