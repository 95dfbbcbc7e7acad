"""The schema of every command's configuration, and ``build``, which makes objects out of ``_target_`` nodes.

Both work on plain containers (``dict``, ``list``, numbers, strings), so that a checkpoint's configuration
is checked and built without Hydra.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol, TypeVar

from jepa.errors import InputError

ALLOWED_TARGETS = ("jepa", "torch.nn", "torch.optim", "timm", "torchmetrics", "lightning")
MISSING = "???"  # OmegaConf's mark of a value that the user has to give


class Rule(Protocol):
    """What ``Annotated[kind, rule, ...]`` asks of a value beyond its type; ``str(rule)`` goes on from "must"."""

    def holds(self, value: Any) -> bool: ...


_RELATIONS: dict[str, Callable[[float, float], bool]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le
}  # fmt: skip


@dataclass(frozen=True)
class Bound:
    """A rule on a number: ``Annotated[float, Bound(">=", 0), Bound("<", 1)]``."""

    relation: Literal[">", ">=", "<", "<="]
    limit: float

    def holds(self, value: float) -> bool:
        return _RELATIONS[self.relation](value, self.limit)

    def __str__(self) -> str:
        return f"be {self.relation} {self.limit:g}"


@dataclass(frozen=True)
class NotEmpty:
    """A rule on a list."""

    def holds(self, value: list[Any]) -> bool:
        return bool(value)

    def __str__(self) -> str:
        return "not be empty"


@dataclass(frozen=True)
class Contains:
    """A rule on a text: ``Annotated[str, Contains("{label}")]``."""

    part: str

    def holds(self, value: str) -> bool:
        return self.part in value

    def __str__(self) -> str:
        return f"contain {self.part}"


Count = Annotated[int, Bound(">=", 1)]
Several = Annotated[int, Bound(">=", 2)]  # for a bootstrap over them
Natural = Annotated[int, Bound(">=", 0)]
Positive = Annotated[float, Bound(">", 0)]
NonNegative = Annotated[float, Bound(">=", 0)]
Fraction = Annotated[float, Bound(">=", 0), Bound("<=", 1)]
FractionBelowOne = Annotated[float, Bound(">=", 0), Bound("<", 1)]
FractionAboveZero = Annotated[float, Bound(">", 0), Bound("<=", 1)]
FractionBetween = Annotated[float, Bound(">", 0), Bound("<", 1)]  # neither 0 nor 1
T = TypeVar("T")
Node = dict[str, Any]  # a `_target_` tree, checked by build()


# --- Schema. Every key has to be in the YAML: a field has a type and a rule, never a default. ---


@dataclass(frozen=True)
class TokenizerConfig:
    vocab_size: Count


@dataclass(frozen=True)
class ClipsConfig:
    """What the training clips are made of: see ``jepa.data.clips.ClipBatches``."""

    query_free: bool
    question_fraction: Fraction
    class_fraction: Fraction
    idle_fraction: Fraction
    cut_fraction: Fraction
    hard_negatives: Natural


@dataclass(frozen=True)
class StageConfig:
    """One stage of training: a warm-up (steps) to ``learning_rate``, then that rate for good or a cosine to 0.

    A step updates the weights by the mean gradient of ``accumulate`` batches of ``batch_size``, on each device.
    """

    steps: Count
    batch_size: Count
    accumulate: Count
    learning_rate: Positive
    schedule: Literal["cosine", "constant"]
    weight_decay: NonNegative
    warmup_steps: Natural
    gradient_clip: Positive
    validate_every: Count
    validation_batches: Count


@dataclass(frozen=True)
class JEPAStageConfig(StageConfig):
    """See ``jepa.training.modules.JEPAModule``."""

    loss: Node
    regulariser: Node | None
    regulariser_weight: NonNegative
    target: Literal["gradient", "stop_gradient", "ema"]
    ema_decay: Fraction
    chunk: Natural  # samples encoded at a time (cached contrastive learning); 0: the whole batch
    decoder_weight: NonNegative  # of the texts' cross-entropy through the frozen decoder; 0: without
    y_encoder_lr_multiplier: Positive | None  # null: 0.05 if it was pretrained, else 1


@dataclass(frozen=True)
class DecoderStageConfig(StageConfig):
    """The streams (of ``stream_seconds`` each) whose predicted embeddings the decoder learns to read.

    With ``data``, the samples in place of streams: at most ``clips`` of the manifest, drawn at random; 0: all.

    ``noise`` is that on text embeddings, in units of the measured error of the predictions; ``predictions`` and
    ``segment_means`` add those embeddings: see ``jepa.training.latents.DecoderBatches``.
    """

    streams: Count
    stream_seconds: Positive
    step_rate_hz: Positive
    style: Node
    clips: Natural
    noise: NonNegative
    predictions: bool
    segment_means: bool


@dataclass(frozen=True)
class PromptsConfig:
    """See ``jepa.data.manifest_batches.Prompts``."""

    captions: Annotated[list[str], NotEmpty()]
    classes: Annotated[list[str], NotEmpty()]
    label: Annotated[str, Contains("{label}")]


@dataclass(frozen=True)
class ManifestsConfig:
    """Manifests or shards to train and to validate on, and ``features``: states of their media. See docs/data.md.

    Train and validation null: clips of the world. ``fps``: frames a second of a video around the middle of its part;
    null: at equal distances over the whole part. ``fractions``: of the kinds of samples in a batch; null: as the data
    have
    them, which shards must be.
    """

    train: str | None
    validation: str | None
    features: str | None
    fps: Positive | None
    fractions: dict[str, NonNegative] | None
    buffer: Count  # samples of shards that wait to be drawn
    prompts: PromptsConfig
    skip_broken: bool


@dataclass(frozen=True)
class TrainConfig:
    variant: Literal["vl_jepa"]
    name: str
    seed: Natural
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["auto", "ddp", "fsdp"]
    devices: Count
    compile: bool
    workers: Natural
    checkpoint: str | None  # to go on from: its model and tokenizer take the place of those below
    data: ManifestsConfig | None  # null: clips of the world
    world: Node
    tokenizer: TokenizerConfig
    model: Node
    clips: ClipsConfig
    jepa: JEPAStageConfig | None  # null: the stage is left out
    decoder: DecoderStageConfig | None


@dataclass(frozen=True)
class ChatTokenizerConfig:
    """A pretrained tokenizer (hub name or folder), or one of `vocab_size` tokens trained on the training pairs."""

    pretrained: str | None
    vocab_size: Count


@dataclass(frozen=True)
class ObjectiveConfig:
    """γ·CE + λ·d: see ``jepa.training.language.Objective``. ``weight`` is λ; 0 is next-token training."""

    weight: NonNegative
    next_token_weight: NonNegative
    latent: Literal["prediction", "tube"]
    loss: Node
    regulariser: Node | None
    regulariser_weight: NonNegative
    target: Literal["gradient", "stop_gradient", "ema"]
    ema_decay: Fraction
    loss_dropout: FractionBelowOne
    direction: Literal["forward", "reverse"]
    view: Literal["shared", "alone"]
    rows: Literal["packed", "separate"]
    train_on: Literal["answer", "everything"]
    pairs: Literal["paired", "shuffled"]


@dataclass(frozen=True)
class LanguageStageConfig:
    """Training on pairs for ``epochs``: a warm-up over a fraction of the steps, then a cosine to 0; 0 epochs: none.

    A step takes ``batch_size`` pairs on each device.
    """

    epochs: NonNegative
    batch_size: Count
    row_tokens: Count
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_fraction: Fraction
    gradient_clip: Positive
    validate_every: Count
    validation_pairs: Count
    select: Literal["last", "best"]


@dataclass(frozen=True)
class AnswersConfig:
    """How answers are judged: by ``metrics``, names of ``jepa.metrics.answers.METRICS``, the first of which counts.

    ``multiple_choice`` takes the likeliest of ``choices``; ``spider`` needs the folder ``databases``.
    """

    split: Literal["test", "validation"]
    metrics: Annotated[list[str], NotEmpty()]
    choices: list[str]
    databases: str | None
    timeout_seconds: Positive
    limit: Natural  # pairs; 0: all
    batch_size: Count


@dataclass(frozen=True)
class LanguageTrainConfig:
    variant: Literal["llm_jepa"]
    name: str
    arm: str
    seed: Natural
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: Literal["auto", "cpu", "gpu"]
    strategy: Literal["auto", "ddp"]
    devices: Count
    workers: Natural
    data: Node
    checkpoint: str | None  # to go on from: its language model and tokenizer take the place of those below
    tokenizer: ChatTokenizerConfig
    model: Node
    method: ObjectiveConfig  # what the arms of a sweep derive theirs from
    objective: ObjectiveConfig
    equal_flops: ObjectiveConfig | None
    stage: LanguageStageConfig
    decoder: StageConfig | None  # of the Y-Decoder from embeddings, the rest frozen
    answers: AnswersConfig


@dataclass(frozen=True)
class ComparisonDecoderConfig(StageConfig):
    """Training of a VL-JEPA's decoder at each point of the comparison, on at most ``examples`` samples seen."""

    examples: Count


@dataclass(frozen=True)
class ComparisonStreamConfig:
    """Streams of ``seconds`` each, and the policy of VL-JEPA's selective decoding."""

    streams: Count
    seconds: Positive
    step_rate_hz: Positive
    style: Node
    policy: Node


@dataclass(frozen=True)
class ComparisonTrainConfig:
    """An arm of the controlled comparison: see ``jepa.studies.comparison``.

    ``pool`` counts batches of training clips, ``held_out`` compositions to test on, ``points`` steps after which an arm
    is scored, ``answers`` clips that are answered one by one.
    """

    variant: Literal["comparison"]
    name: str
    seed: Natural
    precision: Literal["32-true", "bf16-mixed"]
    accelerator: Literal["auto", "cpu", "gpu"]
    workers: Natural
    states: str
    data_seed: Natural
    pool: Count
    held_out: Count
    points: Annotated[list[Count], NotEmpty()]
    learning_rate_factors: Annotated[list[Positive], NotEmpty()]
    world: Node
    tokenizer: TokenizerConfig
    model: Node
    clips: ClipsConfig
    encoder: StageConfig
    stage: StageConfig
    loss: Node
    decoder: ComparisonDecoderConfig
    answers: Count
    stream: ComparisonStreamConfig


@dataclass(frozen=True)
class StreamConfig:
    """Streams of one setting: how many to calibrate and to test on, each of ``seconds``."""

    description: str
    style: Node
    calibration: Several
    test: Several
    seconds: Positive
    step_rate_hz: Positive


@dataclass(frozen=True)
class TimelineConfig:
    """An annotated timeline: see ``jepa.data.timelines.read_timeline``; ``split_by`` keeps groups or videos whole."""

    format: str
    path: str
    durations: str | None
    point_seconds: Positive
    split_by: Literal["group", "video"]


@dataclass(frozen=True)
class VideosConfig:
    """A folder of videos, ``<video_id>.mp4`` or the like, with their annotations; ``minutes`` of each, 0: all."""

    description: str
    folder: str
    timeline: TimelineConfig
    calibration_fraction: FractionBetween
    minutes: NonNegative
    step_rate_hz: Positive


@dataclass(frozen=True)
class TaskConfig:
    """A zero-shot task on a ``manifest``: see ``jepa.evaluation.zero_shot``; null: on the embedded data."""

    kind: str
    manifest: str | None
    limit: Natural  # samples of the manifest, from its beginning; 0: all
    fps: Positive | None  # of videos: frames a second around the middle; null: at equal distances over the whole part
    workers: Natural
    skip_broken: bool  # leave out samples with a medium that cannot be read, named and counted; otherwise an error


@dataclass(frozen=True)
class ClassificationTaskConfig(TaskConfig):
    query: str
    templates: Annotated[list[Annotated[str, Contains("{label}")]], NotEmpty()]
    top: Annotated[list[Count], NotEmpty()]


@dataclass(frozen=True)
class RetrievalTaskConfig(TaskConfig):
    query: str
    ks: Annotated[list[Count], NotEmpty()]


@dataclass(frozen=True)
class VQATaskConfig(TaskConfig):
    prompt: Annotated[str, Contains("{question}")]
    candidate: Annotated[str, Contains("{candidate}")]


@dataclass(frozen=True)
class CaptioningTaskConfig(TaskConfig):
    query: str


@dataclass(frozen=True)
class WorldPredictionTaskConfig(TaskConfig):
    query: str  # of the two states
    action_query: str  # of each candidate clip


@dataclass(frozen=True)
class StreamTaskConfig:
    """The streams of ``streams`` or ``videos``, as without a task."""

    kind: str


TASK_CONFIGS: dict[str, type] = {  # of `evaluate`, by kind
    "classification": ClassificationTaskConfig,
    "retrieval": RetrievalTaskConfig,
    "vqa": VQATaskConfig,
    "captioning": CaptioningTaskConfig,
    "world_prediction": WorldPredictionTaskConfig,
    "stream": StreamTaskConfig,
}


@dataclass(frozen=True)
class EvaluateConfig:
    checkpoint: str
    output: str | None
    seed: Natural
    accelerator: Literal["auto", "cpu", "gpu"]
    candidates: Count
    batch_size: Count
    streams: dict[str, StreamConfig]
    videos: VideosConfig | None
    task: Node | None  # a zero-shot task of a VL-JEPA, see TASK_CONFIGS
    answers: Node  # keys of AnswersConfig to change; the others are those that the model was trained with
    data: Node | None
    requests: Node | None  # of a language model, in place of its answers: streams of requests, see REQUESTS_CONFIGS


@dataclass(frozen=True)
class TypingValuesConfig:
    """What each method's knob may be: see ``jepa.studies.requests.typed``."""

    delta: Annotated[list[NonNegative], NotEmpty()]
    endpoint_quantiles: Annotated[list[Fraction], NotEmpty()]
    every: Annotated[list[Count], NotEmpty()]
    debounce: Annotated[list[NonNegative], NotEmpty()]


@dataclass(frozen=True)
class TypingConfig:
    """Requests typed word by word, ``per_stream`` to a stream; 0 test ``requests`` are all."""

    kind: Literal["typing"]
    requests: Natural
    per_stream: Count
    style: Node
    control: str | None  # checkpoint of a next-token model, whose states are tried in place of the latents
    probe_requests: Count
    confidence: FractionAboveZero
    values: TypingValuesConfig
    live_streams: Natural
    batch_size: Count


@dataclass(frozen=True)
class RecurringConfig:
    """Requests whose expressions recur in several phrasings, answered with a cache of ``capacity`` answers."""

    kind: Literal["recurring"]
    orders: Count
    zipf_streams: Count
    zipf_length: Count
    zipf_exponent: NonNegative
    capacity: Count
    reach: NonNegative
    errors: Annotated[list[Fraction], NotEmpty()]
    distances: Annotated[list[NonNegative], NotEmpty()]
    tolerances: Annotated[list[NonNegative], NotEmpty()]
    batch_size: Count


REQUESTS_CONFIGS = {"typing": TypingConfig, "recurring": RecurringConfig}  # of `evaluate`, by kind


@dataclass(frozen=True)
class ReferenceConfig:
    """Decoding that the policies are compared with: a policy of ``policies``, at one of its values in Hz."""

    policy: str
    rate_hz: Positive


@dataclass(frozen=True)
class CacheConfig:
    """A latent cache, whose threshold is calibrated to a fraction ``error_rate`` of the look-ups with a wrong text.

    A ``bank`` is filled from the calibration streams and takes up nothing afterwards; it must be ``shared``.
    """

    capacity: Count
    shared: bool
    error_rate: FractionBetween
    bank: bool


@dataclass(frozen=True)
class PolicyConfig:
    """A policy to sweep: ``policy`` is built once for each of ``values``, given as its argument ``parameter``.

    The parameter ``none`` stands for a policy without one; its one value means nothing. With ``steps``
    (a ``jepa.selective.StepSelection``) only the steps that it selects are computed and decoded from.
    """

    label: str
    policy: Node
    parameter: str
    values: Annotated[list[float], NotEmpty()]
    cache: CacheConfig | None
    steps: Node | None


@dataclass(frozen=True)
class ReportConfig:
    """One of ``evaluation``, ``results`` and ``compare`` is given: see ``jepa.evaluation.report``."""

    evaluation: str | None
    results: str | None
    compare: list[str] | None
    fail_under: str | None
    checkpoint: str | None
    output: str | None
    seed: Natural
    workers: Natural
    confidence: FractionAboveZero
    tolerances: Annotated[list[FractionBelowOne], NotEmpty()]
    references: Annotated[list[ReferenceConfig], NotEmpty()]
    policies: dict[str, PolicyConfig]


@dataclass(frozen=True)
class ReplayConfig:
    """Policies on a real timeline with simulated embeddings: see ``jepa.studies.replay``."""

    timeline: TimelineConfig
    output: str
    seed: Natural
    workers: Natural
    limit: Natural  # videos at most; 0: all
    minutes: NonNegative  # of each video; 0: all
    calibration_fraction: FractionBetween
    step_rate_hz: Positive
    gap: Literal["last", "background"]
    noise: Annotated[list[NonNegative], NotEmpty()]
    autocorrelation: FractionBelowOne
    confidence: FractionAboveZero
    references: Annotated[list[ReferenceConfig], NotEmpty()]
    policies: dict[str, PolicyConfig]


@dataclass(frozen=True)
class FigureConfig:
    """A figure of a datasheet, where it stands and when it was read."""

    value: Positive
    source: str
    as_of: str


@dataclass(frozen=True)
class HardwareConfig:
    """One chip: see ``jepa.studies.cost.Hardware``; ``peaks`` by number format."""

    name: str
    peaks: dict[str, FigureConfig]
    memory: FigureConfig
    bandwidth: FigureConfig
    watts: FigureConfig | None


@dataclass(frozen=True)
class PerceptionPartConfig:
    """A part of a model that reads ``tokens`` at every step of a stream."""

    tokens: Count
    dimensions: Node


@dataclass(frozen=True)
class MeasuredTimesConfig:
    """What the model's authors measured: a step of perception, and a decode."""

    step_seconds: Positive
    decode_seconds: Positive


@dataclass(frozen=True)
class DeployedModelConfig:
    """A deployed model: its language ``model``, and what it runs at every step of a stream.

    It reads ``input_per_step`` tokens with every request beside the workload's; ``every_step``: it generates at every
    step of a stream.
    """

    name: str
    source: str
    as_of: str
    assumed: str | None
    model: Node
    perception: dict[str, PerceptionPartConfig] | None
    input_per_step: Natural
    every_step: bool
    measured: MeasuredTimesConfig | None


@dataclass(frozen=True)
class EfficiencyConfig:
    """The fraction of a chip's peak that is reached, with its interval."""

    value: FractionAboveZero
    low: FractionAboveZero
    high: FractionAboveZero
    source: str


@dataclass(frozen=True)
class StreamLoadConfig:
    """Steps of perception, and requests to the language model, in a second of a stream."""

    steps_per_second: Positive
    requests_per_second: Positive


@dataclass(frozen=True)
class CostGridConfig:
    input_tokens: Annotated[list[NonNegative], NotEmpty()]
    output_tokens: Annotated[list[Positive], NotEmpty()]
    batches: Annotated[list[Count], NotEmpty()]


@dataclass(frozen=True)
class CostConfig:
    """What a workload costs to serve, and what several optimisations save together: see ``jepa.studies.cost``."""

    output: str
    deployed: DeployedModelConfig
    perception: str | None  # a deployed model whose perception runs on the stream where ``deployed`` has none
    hardware: HardwareConfig
    weights: str
    cache: str
    chips: Count | None
    memory_fraction: FractionAboveZero
    input_tokens: NonNegative
    output_tokens: Positive
    batch: Count
    stream_rates: StreamLoadConfig | None
    compute_efficiency: EfficiencyConfig
    memory_efficiency: EfficiencyConfig
    measure: Literal["chip_seconds", "joules", "price"]
    prices: dict[str, Positive]  # of a chip for an hour, by the hardware's name
    optimisations: dict[str, Node]
    order: Annotated[list[str], NotEmpty()]
    goal: list[Positive]
    grid: CostGridConfig


TRAIN_CONFIGS = {  # of `train`, by variant
    "vl_jepa": TrainConfig,
    "llm_jepa": LanguageTrainConfig,
    "comparison": ComparisonTrainConfig,
}


# --- Checking a configuration against its schema. ---


def validate(config: Any, schema: type) -> dict[str, Any]:
    """Checks a composed configuration against the dataclass ``schema`` and returns it as plain containers.

    Interpolations are resolved. It does not matter where a key comes from: YAML, ``key=value`` or
    ``+key=value``.

    Raises:
        InputError: a key is unknown (the nearest valid ones are named) or missing, a value has a wrong type
            or breaks its field's rule, or a ``_target_`` lies outside ``ALLOWED_TARGETS``.
    """
    plain = _plain(config)
    return _checked(plain, schema, "", list(_dotted_keys(schema, plain)))


def validate_task(task: Mapping[str, Any]) -> dict[str, Any]:
    """The `task` of an `EvaluateConfig`, checked by the schema of its kind. Raises `InputError` as `validate`."""
    if (kind := task.get("kind")) not in TASK_CONFIGS:
        raise InputError(f"task.kind must be one of {', '.join(TASK_CONFIGS)}, got {kind!r}")
    schema = TASK_CONFIGS[kind]
    return typing.cast("dict[str, Any]", _checked(task, schema, "task", list(_dotted_keys(schema, task, "task."))))


def nearest(word: str, options: Iterable[str]) -> list[str]:
    """Up to three of the dotted ``options`` that ``word`` is close to, as a whole or by its last part."""
    options = list(dict.fromkeys(options))
    by_last_part: dict[str, list[str]] = {}
    for option in options:
        by_last_part.setdefault(option.rpartition(".")[2], []).append(option)
    last_parts = difflib.get_close_matches(word.rpartition(".")[2], by_last_part, cutoff=0.75)
    found = difflib.get_close_matches(word, options, cutoff=0.75)
    found += [option for part in last_parts for option in by_last_part[part]]
    found += difflib.get_close_matches(word, options, cutoff=0.6)
    return list(dict.fromkeys(found))[:3]


def unknown_key(key: str, options: Iterable[str]) -> InputError:
    """The error for a dotted ``key`` that has no place: names its nearest of ``options``, or its siblings."""
    options = list(options)
    top = key.partition(".")[0]
    if key in options or (top in options and top != key and not any(each.startswith(f"{top}.") for each in options)):
        return InputError(f"{key} cannot be given: {top} is null or has no keys")
    if found := nearest(key, options):
        return InputError(f"unknown key {key!r}; nearest valid: {', '.join(found)}")
    parent = key.rpartition(".")[0]
    level = sorted({option for option in options if option.rpartition(".")[0] == parent})
    if not level:
        return InputError(f"unknown key {key!r}")
    return InputError(f"unknown key {key!r}; valid here: {', '.join(level)}")


def _plain(config: Any) -> Any:
    if isinstance(config, dict):
        return config
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{error.full_key} cannot be resolved: {reason}") from error


def _dotted_keys(kind: Any, value: Any, prefix: str = "") -> Iterator[str]:
    """The valid dotted keys below ``kind``; for ``dict[str, X]`` the names are those that ``value`` has."""
    value = value if isinstance(value, Mapping) else {}
    if dataclasses.is_dataclass(kind):
        children = _fields(kind)
    elif typing.get_origin(kind) is dict:
        children = dict.fromkeys(map(str, value), typing.get_args(kind)[1])
    else:
        return
    for key, child in children.items():
        yield f"{prefix}{key}"
        yield from _dotted_keys(child, value.get(key), f"{prefix}{key}.")


def _fields(schema: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(schema, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(schema)}


def _checked(value: Any, kind: Any, key: str, options: list[str]) -> Any:
    """``value`` if it is what the annotation ``kind`` says, as that type: 1 for a float becomes 1.0."""
    if value == MISSING:
        raise InputError(f"{key} is missing: give it as {key}=<{_words(kind)}>")
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _checked_fields(_mapping(value, key), _fields(kind), key, options)
    if kind == Node:
        return _checked_tree(_mapping(value, key), key)
    if origin is dict:
        items = _mapping(value, key).items()
        return {name: _checked(item, arguments[1], _join(key, name), options) for name, item in items}
    if origin is list:
        if not isinstance(value, list):
            raise InputError(f"{key} must be a list, got {value!r}")
        return [_checked(item, arguments[0], f"{key}[{i}]", options) for i, item in enumerate(value)]
    if origin is Annotated:
        checked = _checked(value, arguments[0], key, options)
        for rule in arguments[1:]:
            if not rule.holds(checked):
                raise InputError(f"{key} must {rule}, got {value!r}")
        return checked
    if origin in (typing.Union, types.UnionType):  # only `X | None` is used
        inner = next(argument for argument in arguments if argument is not type(None))
        return None if value is None else _checked(value, inner, key, options)
    if origin is Literal:
        if value not in arguments:
            raise InputError(f"{key} must be one of {', '.join(map(str, arguments))}, got {value!r}")
        return value
    return _scalar(value, kind, key)


def _checked_fields(
    value: Mapping[str, Any], fields: Mapping[str, Any], key: str, options: list[str]
) -> dict[str, Any]:
    for name in value:
        if name not in fields:
            raise unknown_key(_join(key, name), options)
    return {name: _checked(value.get(name, MISSING), kind, _join(key, name), options) for name, kind in fields.items()}


def _checked_tree(value: Any, key: str) -> Any:
    """A free tree: nothing in it may be missing, and its ``_target_``s are allowed ones."""
    if value == MISSING:
        raise InputError(f"{key} is missing: give it as {key}=<value>")
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name == "_target_":
                _check_target(item, _join(key, name))
            _checked_tree(item, _join(key, name))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            _checked_tree(item, f"{key}[{i}]")
    return value


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise InputError(f"{key or 'configuration'} must be a group of keys, got {value!r}")
    return value


def _scalar(value: Any, kind: type, key: str) -> Any:
    if kind is str and type(value) in (str, int):  # the command line reads name=7 as a number
        return str(value)
    if kind is float and type(value) in (float, int) and math.isfinite(value):
        return float(value)
    if kind in (int, bool) and type(value) is kind:
        return value
    raise InputError(f"{key} must be {_words(kind)}, got {value!r}")


_WORDS: dict[Any, str] = {str: "text", int: "an integer", float: "a finite number", bool: "true or false"}


def _words(kind: Any) -> str:
    """A type annotation in the user's words."""
    if typing.get_origin(kind) is Annotated:
        return _words(typing.get_args(kind)[0])
    if typing.get_origin(kind) is Literal:
        return "|".join(map(str, typing.get_args(kind)))
    return _WORDS.get(kind, "value")


def _join(key: str, name: Any) -> str:
    return f"{key}.{name}" if key else str(name)


# --- Building objects. ---


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Calls the class or function that ``node["_target_"]`` names, with the other keys as keyword arguments.

    Nodes within the arguments are built first; ``extra`` are further arguments of the outermost target, given
    as they are. All targets are checked before the first one is imported: each has to be a public class or
    function, named by a module of a package in ``ALLOWED_TARGETS`` and defined in such a package.

    Raises:
        InputError: a target is refused or does not exist; an argument is unknown, missing or given twice;
            or the target itself refuses a value (``ValueError``, ``AssertionError``).
    """
    _mapping(node, "node")
    for key in node.keys() & extra.keys():
        raise InputError(f"{key} is set by the program and must not be configured, got {node[key]!r}")
    _checked_tree(node, "")
    if "_target_" not in node:
        raise InputError(f"node must have a _target_, got the keys {', '.join(map(str, node)) or '(none)'}")
    return _build_node(node, "", extra)


def build_as(kind: type[T], key: str, node: Mapping[str, Any], **extra: Any) -> T:
    """`build`, of a node under `key` that has to give a `kind`.

    Raises:
        InputError: as `build`, or it gives something else.
    """
    built = build(node, **extra)
    if not isinstance(built, kind):
        raise InputError(f"{key}._target_ must build {kind.__name__}, got {type(built).__name__}")
    return built


def _build(value: Any, key: str) -> Any:
    if isinstance(value, Mapping):
        if "_target_" in value:
            return _build_node(value, key, {})
        return {name: _build(item, _join(key, name)) for name, item in value.items()}
    if isinstance(value, list):
        return [_build(item, f"{key}[{i}]") for i, item in enumerate(value)]
    return value


def _build_node(node: Mapping[str, Any], key: str, extra: Mapping[str, Any]) -> Any:
    target = node["_target_"]
    factory = _locate(target, _join(key, "_target_"))
    _check_arguments(factory, target, key, (node.keys() - {"_target_"}) | extra.keys())
    arguments = {name: _build(item, _join(key, name)) for name, item in node.items() if name != "_target_"}
    try:
        return factory(**arguments, **extra)
    except (ValueError, AssertionError) as error:  # timm asserts what its sizes have to be
        raise InputError(f"{f'{key}: ' if key else ''}{target}: {error}") from error


def _check_target(target: Any, key: str) -> None:
    """Refuses by spelling alone: nothing is imported."""
    parts = target.split(".") if isinstance(target, str) else []
    if len(parts) < 2 or not all(part.isidentifier() and not part.startswith("_") for part in parts):
        raise InputError(f"{key} must be the dotted name of a public class or function, got {target!r}")
    if not _is_allowed(target):
        raise InputError(f"{key} must lie within {', '.join(ALLOWED_TARGETS)}, got {target!r}")


def _is_allowed(dotted: str) -> bool:
    return any(dotted == prefix or dotted.startswith(f"{prefix}.") for prefix in ALLOWED_TARGETS)


def _locate(target: str, key: str) -> Callable[..., Any]:
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists and lacks a dependency
        raise InputError(f"{key}: there is no module {error.name!r}, got {target!r}") from error
    found = getattr(module, name, None)
    if not (inspect.isclass(found) or inspect.isfunction(found)) or not _is_allowed(str(found.__module__)):
        public = [n for n, item in vars(module).items() if inspect.isclass(item) or inspect.isfunction(item)]
        close = nearest(name, [n for n in public if not n.startswith("_")])
        hint = f"; nearest: {', '.join(close)}" if close else ""
        raise InputError(f"{key} must be a class or function of an allowed package, got {target!r}{hint}")
    return found


def _check_arguments(factory: Callable[..., Any], target: str, key: str, given: Collection[str]) -> None:
    try:
        parameters = inspect.signature(factory).parameters.values()
    except ValueError as error:
        raise InputError(f"{target} cannot be built: it does not tell its arguments") from error
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for name in sorted(given):
            if name not in names:
                valid = ", ".join(nearest(name, names) or names) or "(it takes none)"
                raise InputError(f"{target} has no argument {_join(key, name)!r}; nearest valid: {valid}")
    for parameter in parameters:
        if parameter.name in names and parameter.default is parameter.empty and parameter.name not in given:
            raise InputError(f"{target} needs the argument {_join(key, parameter.name)!r}")
