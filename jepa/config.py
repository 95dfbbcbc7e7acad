"""The configuration: typed objects with defaults, validated once, then handed on; here of evaluation and report.

Hydra gets the `defaults`: conf/ holds only what differs from them, and `--cfg job` shows every key.
"""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Literal, TypeVar, get_args

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from jepa.build import MISSING, Node, check_node, dotted, dotted_keys, unknown_key
from jepa.errors import InputError


class Config(BaseModel):
    """A part of a configuration: frozen, strict about types, without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


C = TypeVar("C", bound=Config)
Count = Annotated[int, Ge(1)]
Natural = Annotated[int, Ge(0)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Ge(0), Le(1)]
FractionBelowOne = Annotated[float, Ge(0), Lt(1)]
FractionAboveZero = Annotated[float, Gt(0), Le(1)]
FractionBetween = Annotated[float, Gt(0), Lt(1)]  # neither 0 nor 1
Text = Annotated[str, BeforeValidator(lambda value: str(value) if type(value) is int else value)]  # name=7 is a text
NotEmpty = Field(min_length=1)
WithLabel = Annotated[str, Field(pattern=r"\{label\}")]
Accelerator = Literal["auto", "cpu", "gpu", "mps"]


class ObjectiveConfig(Config):
    """γ·CE + λ·d: see `jepa.training.objectives.Objective`. ``weight`` is λ; 0 is next-token training."""

    weight: NonNegative = 0.3
    next_token_weight: NonNegative = 1.0  # γ
    latent: Literal["prediction", "tube"] = "prediction"
    loss: Node
    regulariser: Node | None = None
    regulariser_weight: NonNegative = 0.0
    transition_weight: NonNegative = 0.0  # of next-latent prediction by `model.transition`
    target: Literal["gradient", "stop_gradient", "ema"] = "gradient"  # of both sides, as published
    ema_decay: Fraction = 0.996
    loss_dropout: FractionBelowOne = 0.0
    rescale_dropout: bool = True  # λ / (1 − α) where the term is left; false: λ, as published
    direction: Literal["forward", "reverse"] = "forward"
    view: Literal["shared", "alone"] = "shared"
    rows: Literal["packed", "two", "separate"] = "packed"
    train_on: Literal["answer", "everything", "published"] = "answer"
    pairs: Literal["paired", "shuffled"] = "paired"


class AnswersConfig(Config):
    """How answers are scored: by ``metrics`` of `jepa.metrics.answers.METRICS`, the first of which counts."""

    split: Literal["test", "validation"] = "test"
    metrics: Annotated[list[str], NotEmpty] = ["exact_match"]
    choices: list[str] = []  # of multiple_choice
    databases: str | None = None  # of spider
    timeout_seconds: Positive = 10.0
    limit: Natural = 0  # pairs; 0: all
    batch_size: Count = 256
    drafts: Literal["latent", "lookup", "both"] | None = None  # drafted by the transition, from the prompt, or by both
    draft_tokens: Count = 8  # at most
    draft_threshold: Fraction | None = None  # of the probability that a draft stands; null: calibrated on validation
    draft_vocabulary: Literal["all", "answers"] = "all"  # tokens of the transition's drafts: those of training answers


class StreamConfig(Config):
    """Streams of one setting: how many to calibrate and to test on, each of ``seconds``."""

    description: str
    style: Node
    calibration: Annotated[int, Ge(2)] = 24  # for a bootstrap over them
    test: Annotated[int, Ge(2)] = 24
    seconds: Positive = 180.0
    step_rate_hz: Positive = 2.0


class TimelineConfig(Config):
    """An annotated timeline: see `jepa.data.timelines.read_timeline`; ``split_by`` keeps groups or videos whole."""

    format: str  # ego_exo4d, ego4d, epic, activitynet, youcook2, coin or vitt
    path: str
    durations: str | None = None  # the file with the videos' lengths, for formats that lack them
    point_seconds: Positive = 8.0  # how long a point in time is in force at most
    split_by: Literal["group", "video"] = "group"


class VideosConfig(Config):
    """A folder of videos, ``<video_id>.mp4`` or the like, with their annotations."""

    description: str = "real videos"
    folder: str
    timeline: TimelineConfig
    calibration_fraction: FractionBetween = 0.5
    minutes: NonNegative = 0.0  # of each video; 0: all
    step_rate_hz: Positive = 2.0


class TaskConfig(Config):
    """A zero-shot task: see `jepa.evaluation.tasks`. That of a stream is as without a task."""

    kind: Literal["classification", "retrieval", "vqa", "captioning", "world_prediction", "stream"]
    manifest: str | None = None  # null: on the embedded data
    limit: Natural = 0  # samples of the manifest, from its beginning; 0: all
    fps: Positive | None = None  # around the middle of a video; null: at equal distances over it
    workers: Natural = 0
    skip_broken: bool = False  # leave out samples with an unreadable medium, named and counted
    query: str = "what happens?"  # of world prediction: asked of the two states as one clip
    templates: Annotated[list[WithLabel], NotEmpty] = ["{label}"]  # of classification
    top: Annotated[list[Count], NotEmpty] = [1, 5]  # of classification
    ks: Annotated[list[Count], NotEmpty] = [1, 5, 10]  # of retrieval
    prompt: Annotated[str, Field(pattern=r"\{question\}")] = "{question}"  # of questions
    candidate: Annotated[str, Field(pattern=r"\{candidate\}")] = "{candidate}"  # of questions
    action_query: str = "what happens?"  # of world prediction: asked of each candidate clip


class EvaluateConfig(Config):
    """What of a checkpoint is scored."""

    checkpoint: str
    output: str | None = None  # null: the folder `evaluation` beside the checkpoint
    seed: Natural = 0
    accelerator: Accelerator = "auto"
    candidates: Count = 240  # distinct held-out compositions in the retrieval gallery
    batch_size: Count = 64
    streams: dict[str, StreamConfig]
    videos: VideosConfig | None = None  # in place of these streams
    task: TaskConfig | None = None  # a zero-shot task of a VL-JEPA
    answers: Node = {}  # keys of AnswersConfig that differ from the training's
    data: Node | None = None  # null: as trained
    requests: Node | None = None  # streams of requests in place of answers: `jepa.studies.configs.REQUESTS_CONFIGS`


class ReferenceConfig(Config):
    """Decoding that the policies are compared with: a policy of ``policies``, at one of its values in Hz."""

    policy: str
    rate_hz: Positive


class CacheConfig(Config):
    """A latent cache, calibrated to a fraction ``error_rate`` of look-ups with a wrong text."""

    capacity: Count = 64
    shared: bool = False
    error_rate: FractionBetween = 0.2
    bank: bool = False  # filled from calibration streams, takes up nothing afterwards; must be shared
    standing: bool = False  # no keys: the decoder says whether the standing text still holds


class PolicyConfig(Config):
    """A policy to sweep: ``policy`` is built once for each of ``values``, given as its argument ``parameter``."""

    label: str
    policy: Node
    parameter: str  # none: it takes no value
    values: Annotated[list[float], NotEmpty]
    cache: CacheConfig | None = None
    steps: Node | None = None  # a StepSelection: only the steps that it selects are computed and decoded from


class SweepConfig(Config):
    """How policies are swept. The first reference at the first tolerance is the headline."""

    seed: Natural = 0
    workers: Natural = 2  # processes that share the sweep; below 2: this one alone
    confidence: FractionAboveZero = 0.5  # of calibration resamples that must reach the reference: 0.5, no margin
    references: Annotated[list[ReferenceConfig], NotEmpty] = [ReferenceConfig(policy="uniform", rate_hz=1.0)]
    policies: dict[str, PolicyConfig]


class ReportConfig(SweepConfig):
    """One of ``evaluation``, ``results`` and ``compare`` is given."""

    evaluation: str | None = None  # folder to sweep or to compare
    results: str | None = None  # results file, or its folder: rendered again; no sweep
    compare: list[str] | None = None  # two or more results files or folders, side by side
    curves: list[str] | None = None  # folders of trainings, whose logs are drawn over each other
    fail_under: str | None = None  # <name>[.<setting or arm>][.low]>=<number>: exit status 1 if it does not hold
    checkpoint: str | None = None  # null: the evaluated one; only its decoder runs
    output: str | None = None  # null: beside the folder `evaluation`, or in a folder of another name
    tolerances: Annotated[list[FractionBelowOne], NotEmpty] = [0.0, 0.02, 0.05, 0.1]  # of the quality, may be lost


def defaults(schema: type[Config]) -> Node:
    """Every key of a schema with its default, `MISSING` where it has none.

    >>> defaults(ReferenceConfig)
    {'policy': '???', 'rate_hz': '???'}
    """
    given = schema.model_construct().model_dump()
    return {name: given[name] if name in given else _required(field) for name, field in schema.model_fields.items()}


def _required(field: FieldInfo) -> object:
    options = get_args(field.annotation) if isinstance(field.annotation, UnionType) else (field.annotation,)
    inner = next((each for each in options if isinstance(each, type) and issubclass(each, Config)), None)
    return MISSING if inner is None else defaults(inner)


def validate(config: object, schema: type[C], key: str = "") -> C:
    """A composed configuration, or plain containers, as the object that the schema describes.

    Interpolations are resolved. `key` is the place of the configuration in a larger one.

    >>> validate({"policy": "uniform", "rate_hz": 1}, ReferenceConfig)
    ReferenceConfig(policy='uniform', rate_hz=1.0)

    Raises:
        InputError: a key is unknown or missing, a value breaks its rule, or a ``_target_`` is not allowed.
    """
    plain: object = config
    if not isinstance(config, dict):
        from omegaconf import OmegaConf, errors

        try:
            plain = OmegaConf.to_container(config, resolve=True)
        except errors.OmegaConfBaseException as error:
            raise InputError(f"{error.full_key} cannot be resolved: {str(error).splitlines()[0]}") from error
    check_node(plain, key)
    try:
        return schema.model_validate(plain)
    except ValidationError as error:
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise _input_error(faults[0], plain, key) from None


_RULES = {
    "greater_than": "be > {gt:g}",
    "greater_than_equal": "be >= {ge:g}",
    "less_than": "be < {lt:g}",
    "less_than_equal": "be <= {le:g}",
    "too_short": "not be empty",
    "literal_error": "be one of {expected}",
    "string_pattern_mismatch": "contain {pattern}",
    **dict.fromkeys(("finite_number", "float_type"), "be a finite number"),
    **dict.fromkeys(("model_type", "dict_type"), "be a group of keys"),
    "list_type": "be a list",
    "int_type": "be an integer",
    "bool_type": "be true or false",
    "string_type": "be text",
}


def _input_error(fault: ErrorDetails, plain: object, key: str) -> InputError:
    """A fault that pydantic found, as one line: the key, the rule, the value got."""
    kind, context, top = fault["type"], dict(fault.get("ctx", {})), key
    for step in fault["loc"]:
        key = f"{key}[{step}]" if isinstance(step, int) else dotted(key, step)
    if kind == "extra_forbidden":
        return unknown_key(key, (valid for valid in dotted_keys(plain, top) if valid != key))
    if kind == "missing":
        return InputError(f"{key} is missing: give it as {key}=<value>")
    if kind == "literal_error":
        context["expected"] = context["expected"].replace("'", "").replace(" or ", ", ")
    if kind == "string_pattern_mismatch":
        context["pattern"] = context["pattern"].replace("\\", "")
    rule = _RULES[kind].format(**context) if kind in _RULES else fault["msg"]
    return InputError(f"{key} must {rule}, got {fault['input']!r}")
