"""The configuration of the studies: the controlled comparison, streams of requests, replay, serving cost."""

from __future__ import annotations

from typing import Annotated, Literal

from jepa.build import Node
from jepa.config import (
    Config,
    Count,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    FractionBetween,
    Natural,
    NonNegative,
    NotEmpty,
    Positive,
    SweepConfig,
    TimelineConfig,
)
from jepa.training.configs import INFONCE, ClipsConfig, RunConfig, StageConfig, TokenizerConfig


class ComparisonDecoderConfig(StageConfig):
    """A VL-JEPA's decoder at each point of the comparison, on at most ``examples`` samples seen."""

    examples: Count = 6144


class ComparisonStreamConfig(Config):
    """Streams of ``seconds`` each, and the policy of VL-JEPA's selective decoding."""

    streams: Count = 2
    seconds: Positive = 90.0
    step_rate_hz: Positive = 2.0
    style: Node
    policy: Node = {"_target_": "jepa.selective.Gate", "threshold": 3.0, "agreement": 8.0}


class ComparisonTrainConfig(RunConfig):
    """An arm of the controlled comparison: see `jepa.studies.comparison`."""

    variant: Literal["comparison"] = "comparison"
    states: str = "outputs/states"  # the frozen encoder and its states, shared by all arms and seeds
    data_seed: Natural = 0  # of the encoder, the clips and the held-out compositions
    pool: Count = 240  # batches of training clips
    held_out: Count = 180  # compositions to choose the learning rate on, and as many to test on
    points: Annotated[list[Count], NotEmpty] = [15, 30, 60, 120, 240]  # steps after which an arm is scored
    learning_rate_factors: Annotated[list[Positive], NotEmpty] = [0.4, 1.0, 2.5]  # chosen on validation clips
    world: Node
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: Node
    clips: ClipsConfig = ClipsConfig(hard_negatives=0)  # the baseline has no use for negative captions
    encoder: StageConfig = StageConfig(steps=280, warmup_steps=30, validate_every=140)  # the frozen one
    stage: StageConfig = StageConfig(steps=240, warmup_steps=20, validate_every=80, validation_batches=1)  # of an arm
    loss: Node = INFONCE  # of VL-JEPA
    decoder: ComparisonDecoderConfig = ComparisonDecoderConfig(
        steps=200, batch_size=256, learning_rate=2e-3, warmup_steps=25, validate_every=200, validation_batches=1
    )
    answers: Count = 20  # held-out clips answered one by one
    stream: ComparisonStreamConfig


class TypingValuesConfig(Config):
    """The values that each method's parameter is chosen from: see `jepa.studies.requests`."""

    delta: Annotated[list[NonNegative], NotEmpty] = [0.003, 0.006, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4]
    endpoint_quantiles: Annotated[list[Fraction], NotEmpty] = [0.3, 0.4, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8]
    every: Annotated[list[Count], NotEmpty] = [2, 3, 4]
    debounce: Annotated[list[NonNegative], NotEmpty] = [0.5, 1.0, 1.5, 2.0, 3.0]


class TypingStyle(Config):
    """How requests are typed: speed, with five characters to a word (spaces included), and its variation."""

    words_per_minute: Positive = 50.0
    jitter: NonNegative = 0.3  # standard deviation of the logarithm of a word's duration
    corrections: Fraction = 0.05  # of words, before which a wrong word is typed and removed
    pause: Positive = 5.0  # mean seconds between two requests; they vary as the words do


class TypingConfig(Config):
    """Requests typed word by word."""

    kind: Literal["typing"] = "typing"
    requests: Natural = 300  # of the test pairs; 0: all
    per_stream: Count = 10
    style: TypingStyle = TypingStyle()
    control: str | None = None  # checkpoint of a next-token model, whose states are tried in place of the latents
    probe_requests: Count = 3000  # training requests that the endpoint rules learn from
    confidence: FractionAboveZero = 0.5  # of calibration resamples that must keep uniform decoding's exact match
    values: TypingValuesConfig = TypingValuesConfig()
    batch_size: Count = 256


class RecurringConfig(Config):
    """Requests whose expressions recur in several phrasings, answered with a cache of ``capacity`` answers."""

    kind: Literal["recurring"] = "recurring"
    orders: Count = 2  # random orders of every phrasing once, of each half of the expressions
    zipf_streams: Count = 8
    zipf_length: Count = 600
    zipf_exponent: NonNegative = 1.0
    capacity: Count = 4096
    reach: NonNegative = 0.3  # 1 − cos within which an answer is verified
    errors: Annotated[list[Fraction], NotEmpty] = [0.005, 0.01, 0.02]  # of requests spoiled by reuse
    distances: Annotated[list[NonNegative], NotEmpty] = [0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08]
    tolerances: Annotated[list[NonNegative], NotEmpty] = [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0]  # nats
    batch_size: Count = 256


RequestsConfig = TypingConfig | RecurringConfig
REQUESTS_CONFIGS: dict[str, type[RequestsConfig]] = {"typing": TypingConfig, "recurring": RecurringConfig}


class ReplayConfig(SweepConfig):
    """Policies on a real timeline with simulated embeddings: see `jepa.studies.replay`."""

    timeline: TimelineConfig
    output: str = "outputs/replay"
    limit: Natural = 60  # videos at most, chosen by a fixed hash; 0: all
    minutes: NonNegative = 10.0  # of each video; 0: all
    calibration_fraction: FractionBetween = 0.5
    step_rate_hz: Positive = 2.0
    gap: Literal["last", "background"] = "background"  # between narrations: the text before, or the mean of all
    noise: Annotated[list[NonNegative], NotEmpty] = [1.2]  # for each unit of norm; the first is the headline
    autocorrelation: FractionBelowOne = 0.6  # of the noise, from step to step


class FigureConfig(Config):
    """A figure of a datasheet, and where and when it was read."""

    value: Positive
    source: str
    as_of: str


class HardwareConfig(Config):
    """One chip."""

    name: str
    peaks: dict[str, FigureConfig]  # FLOP/s by number format
    memory: FigureConfig  # bytes
    bandwidth: FigureConfig  # bytes/s
    watts: FigureConfig | None = None


class PerceptionPartConfig(Config):
    """A part of a model that reads ``tokens`` at every step of a stream."""

    tokens: Count
    dimensions: Node


class MeasuredTimesConfig(Config):
    """What the model's authors measured: a step of perception, and a decode."""

    step_seconds: Positive
    decode_seconds: Positive


class DeployedModelConfig(Config):
    """A deployed model: its language ``model``, and what it runs at every step of a stream.

    It reads ``input_per_step`` more tokens with every request; ``every_step``: it generates at every step of a stream.
    """

    name: str
    source: str
    as_of: str
    assumed: str | None = None
    model: Node
    perception: dict[str, PerceptionPartConfig] | None = None
    input_per_step: Natural = 0
    every_step: bool = False
    measured: MeasuredTimesConfig | None = None


class EfficiencyConfig(Config):
    """The fraction of a chip's peak that is reached, with its interval."""

    value: FractionAboveZero
    low: FractionAboveZero
    high: FractionAboveZero
    source: str = "assumed: a roofline is 30 to 50 % off (arXiv 2211.05102)"


class StreamLoadConfig(Config):
    """Steps of perception, and requests to the language model, in a second of a stream."""

    steps_per_second: Positive = 1.0
    requests_per_second: Positive = 1.0


class CostGridConfig(Config):
    """Workloads of the map."""

    input_tokens: Annotated[list[NonNegative], NotEmpty] = [100, 500, 2000, 10000, 30000, 100000]
    output_tokens: Annotated[list[Positive], NotEmpty] = [50, 200, 500, 1450, 2000, 8000]
    batches: Annotated[list[Count], NotEmpty] = [1, 16, 128, 1024]


class CostConfig(Config):
    """What a workload costs to serve, and what optimisations save together: see `jepa.studies.cost`."""

    output: str = "outputs/cost"
    deployed: DeployedModelConfig
    perception: str | None = "vl_jepa"  # a deployed model whose perception runs where ``deployed`` has none
    hardware: HardwareConfig
    weights: str = "bf16"  # number format of weights and computation: bf16, fp8, int8 or mx4, as the chip has it
    cache: str = "bf16"  # of the KV cache
    chips: Count | None = None  # null: the least power of two that the model fits in
    memory_fraction: FractionAboveZero = 0.9
    input_tokens: NonNegative = 500
    output_tokens: Positive = 2000
    batch: Count = 128
    stream_rates: StreamLoadConfig | None = StreamLoadConfig()  # null: the unit of work is a request
    compute_efficiency: EfficiencyConfig = EfficiencyConfig(value=0.5, low=0.35, high=0.65)
    memory_efficiency: EfficiencyConfig = EfficiencyConfig(value=0.7, low=0.49, high=0.91)
    measure: Literal["chip_seconds", "joules", "price"] = "chip_seconds"  # also given; price needs prices
    prices: dict[str, Positive] = {}  # of a chip for an hour, by the hardware's name
    optimisations: dict[str, Node]
    order: Annotated[list[str], NotEmpty] = ["experts", "tokens", "hardware", "selective"]
    goal: list[Positive] = [10.0, 20.0]  # over which workloads is the joint saving within?
    grid: CostGridConfig = CostGridConfig()
