"""The documents of the two main evaluations: a VL-JEPA's streams, and a language model's answers.

Rates are decodes per second, times seconds, accuracies fractions, FLOPs whole operations.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue, model_validator
from typing_extensions import Self

from jepa.metrics import CurveDifference, DenseScores, Interval
from jepa.operations import PartCount
from jepa.results.base import Code, Count, Device, Document, Fraction, Ledger, Positive, Quantity, Ratio, Record

TrainingCurve = tuple[dict[str, float | None], ...]  # a row: the step, and whatever was logged at it

# --- Policies swept over streams.


class Reference(Record):
    """Uniform decoding that policies are compared with: a swept policy at one of its rates."""

    policy: str
    rate_hz: Positive


class CacheSettings(Record):
    """A latent cache: most keys held, whether streams share it, the requested fraction of wrong texts.

    `standing`: it holds no keys, but the decoder verifies the standing text.
    """

    capacity: Count
    shared: bool
    error_rate: Fraction
    bank: bool = False
    standing: bool = False


class CacheError(Record):
    """The fraction of look-ups with a wrong text, its 95 % interval, and the counts behind it."""

    value: Fraction
    low: Fraction
    high: Fraction
    wrong: Count
    hits: Count
    lookups: Count


class CacheResult(Record):
    """What a calibrated cache did on the test streams. `threshold` is on 1 − cos."""

    threshold: float
    error: CacheError


class Point(Record):
    """A policy at one value of its parameter."""

    value: float
    decodes_per_second: Quantity
    cider_d: Interval


class TestPoint(Point):
    """A point on the test streams. `latency` and `state` say in words how late it decides, and what it keeps.

    `one_reference` is CIDEr-D against one text of each event, where `cider_d` is against several.
    """

    __test__ = False  # no test class of pytest's

    latency: str
    state: str
    dense: DenseScores
    cache: CacheResult | None = None
    one_reference: Quantity | None = None


class Curve(Record):
    """A policy over the values of its `parameter`; "none" where it has no parameter."""

    label: str
    causal: bool
    oracle: bool
    parameter: str
    cache: CacheSettings | None
    test: Annotated[tuple[TestPoint, ...], Field(min_length=1)]
    calibration: Annotated[tuple[Point, ...], Field(min_length=1)]


class Saving(Record):
    """What `saving_at_equal_quality` found. `value` is None, with all that depends on it, where none qualified.

    `ratio` is the reference's decodes over the policy's, to be claimed only where `reached`.
    """

    reference: Reference
    tolerance: Fraction
    headline: bool
    policy: str
    value: float | None
    reached: bool
    quality: float | None
    reference_quality: float
    quality_difference: Interval | None
    temporal_f1_difference: Interval | None
    decodes_per_second: Quantity | None
    reference_decodes_per_second: Positive
    ratio: Ratio | None
    reason: str


class EstimatedSeconds(Record):
    """Wall seconds that were not measured: the mean of a call times the calls that a policy makes of it."""

    encoder: Quantity
    predictor: Quantity


class Operations(Record):
    """What an operating point counted on the test streams. `estimated` holds wall time that was not measured."""

    policy: str
    value: float
    ledger: Ledger
    estimated: EstimatedSeconds | None = None

    @property
    def seconds(self) -> float:
        """Wall seconds of all parts and of the cache, measured and estimated."""
        extra = 0.0 if self.estimated is None else self.estimated.encoder + self.estimated.predictor
        return self.ledger.total_seconds + extra


class Sweep(Record):
    """Policies swept over the streams of one setting."""

    events_per_second: Positive
    mean_event_seconds: Positive
    repeated_events: Fraction
    curves: dict[str, Curve]
    savings: Annotated[tuple[Saving, ...], Field(min_length=1)]
    areas: dict[str, CurveDifference]
    operations: tuple[Operations, ...]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        rows: list[Saving | Operations] = [*self.savings, *self.operations]
        named = [(row.policy, row.value) for row in rows]
        named += [(saving.reference.policy, None) for saving in self.savings]
        for policy, value in named:
            if policy not in self.curves:
                raise ValueError(f"{policy!r} must be a policy of curves ({', '.join(self.curves)})")
            swept = [point.value for point in self.curves[policy].test]
            if value is not None and value not in swept:
                raise ValueError(f"the value of {policy} must be one of its test curve {swept}, got {value}")
        headline = {(row.reference, row.tolerance) for row in self.savings if row.headline}
        if len(headline) != 1:
            raise ValueError("savings must have a headline against exactly one reference and tolerance")
        return self


class Event(Record):
    start: float
    end: float
    text: str


class Decode(Record):
    """An emission as the timeline shows it; `time` is the moment it stands for."""

    text: str
    time: float
    start: float
    end: float
    emitted_at: float
    source: Literal["decoder", "cache", "bank"]


class Thumbnail(Record):
    """A frame: `png` is base64."""

    time: float
    png: str


class Timeline(Record):
    """One test stream: its frames, its events, and what each policy decoded at its operating point."""

    video_id: str
    duration: Positive
    thumbnails: tuple[Thumbnail, ...]
    events: tuple[Event, ...]
    decodes: dict[str, tuple[Decode, ...]]


class StreamCounts(Record):
    """How many streams chose the operating points, and how many were scored."""

    calibration: Count
    test: Count
    seconds_each: Positive


class Setting(Sweep):
    """One kind of streams. `one_device`: the encoder and the decoder ran on the same device."""

    description: str
    step_rate_hz: Positive
    streams: StreamCounts
    timeline: Timeline
    one_device: bool = True


# --- Scores of a checkpoint.


class AnswerCost(Record):
    """Tokens and FLOPs of an answer, and of a right one (cost-of-pass, arXiv 2504.13359; None: none is right)."""

    tokens_per_answer: Quantity
    flops_per_answer: Quantity
    tokens_per_right_answer: Quantity | None
    flops_per_right_answer: Quantity | None


class PerToken(Record):
    """Accuracy against tokens: OckScore (arXiv 2511.05722), and the curve of arXiv 2508.13141 with its area."""

    ock_score: Annotated[float, Field(le=100)] | None
    accuracy_within: tuple[Fraction, ...] | None
    accuracy_area: Fraction | None


class ChoiceScores(Record):
    """Accuracy among candidates, beside chance."""

    queries: Count
    accuracy: Fraction
    candidates: Count
    chance: Fraction
    cost: AnswerCost | None = None


class QuestionScores(Record):
    """Questions answered by the nearest candidate, over all and by kind."""

    queries: Count
    accuracy: Fraction
    by_question: dict[str, ChoiceScores]
    cost: AnswerCost | None = None


class RetrievalScores(Record):
    """Recall among the first k candidates: `recall` and `cost` by k, "1" and "5"."""

    candidates: Count
    queries: Count
    chance: Fraction
    recall: dict[str, Fraction]
    cost: dict[str, AnswerCost] = Field(default_factory=dict)


class CaptionScores(Record):
    """Generated captions against the clips' own."""

    queries: Count
    cider_d: Quantity
    exact_match: Fraction
    cost: AnswerCost | None = None
    per_token: PerToken | None = None


class Scores(Record):
    """What a VL-JEPA checkpoint scores on compositions held out from training. `geometry` is by metric name."""

    retrieval: RetrievalScores
    classification: ChoiceScores
    question_answering: QuestionScores
    captioning: CaptionScores
    geometry: dict[str, float]


class RoleParameters(Record):
    """Parameters of a role: all, trained, and (mixtures of experts) used for one input."""

    role: str
    total: Count
    trainable: Count
    modules: str
    active: Count | None = None


class TrainingOperations(Record):
    """Counts of a stage by part (`jepa.operations.TRAINING_PARTS`)."""

    steps: Count
    parts: dict[str, PartCount]


class Stage(Record):
    name: str
    steps: Count
    seconds: Quantity
    operations: TrainingOperations | None = None


class Training(Record):
    steps: Count
    samples: Count
    seconds: Quantity
    stages: tuple[Stage, ...]
    curve: TrainingCurve


class ModelDocument(Document):
    """Figures of one checkpoint, and where they come from."""

    seed: int
    config: dict[str, JsonValue]
    code: Code
    libraries: dict[str, str]
    device: Device
    parameters: tuple[RoleParameters, ...]


class Evaluation(ModelDocument):
    """A checkpoint evaluated. `checkpoint` is its folder, relative to that of the document."""

    file_name: ClassVar[str] = "evaluation.json"

    checkpoint: str


class EncodedStreams(Record):
    """Saved latents of a setting. `broken`: what is wrong with streams left out; `thumbnails` are of the first one."""

    description: str
    step_rate_hz: Positive
    seconds_each: Quantity
    broken: dict[str, str]
    thumbnails: tuple[Thumbnail, ...]


class LiveSession(Record):
    """A live session: what it was asked and decoded by when it was saved, and its ledger since it began."""

    source: str
    query: str
    policy: str
    value: float  # of the policy's parameter
    frames_taken: Count
    frames_dropped: Count
    ledger: Ledger
    emissions: tuple[Decode, ...]


class StreamEvaluation(Evaluation):
    """Scores of a VL-JEPA beside its saved latents, in a folder for each of `settings`, known `latent_delay` s late."""

    kind: Literal["jepa.stream-evaluation/1"] = "jepa.stream-evaluation/1"
    latent_delay: Quantity
    processes: Count
    training: Training
    scores: Scores
    settings: dict[str, EncodedStreams]
    session: LiveSession | None = None


class TaskScore(Record):
    """A score beside its chance level, with the 95 % interval and the cost of an answer where they are known."""

    value: float
    chance: float | None = None
    interval: tuple[float, float] | None = None
    cost: AnswerCost | None = None


class TaskEvaluation(Evaluation):
    """Scores of a zero-shot task. `skipped` names samples that could not be read; `counts` are classes, queries, ..."""

    kind: Literal["jepa.task-evaluation/1"] = "jepa.task-evaluation/1"
    task: str
    data: str
    samples: Count
    skipped: tuple[str, ...]
    processes: Count
    scores: dict[str, TaskScore]
    counts: dict[str, Count]
    per_token: PerToken | None = None


class SweepOrigin(Record):
    """When, by which code and on which device the policies were swept."""

    created: str
    code: Code
    device: Device


class StreamResults(ModelDocument):
    """Decoding policies swept over the streams of a VL-JEPA, with the scores of its checkpoint."""

    kind: Literal["jepa.streams/4"] = "jepa.streams/4"
    training: Training
    scores: Scores
    settings: dict[str, Setting]
    sweep: SweepOrigin | None = None
    session: LiveSession | None = None


# --- Answers of a language model: of one checkpoint, then under several arms and seeds.


class AnswerCosts(AnswerCost, PerToken):
    """Cost of answers with accuracy against tokens."""


class AnswerScore(Record):
    """Accuracy of a metric with its 95 % Wilson interval over examples, and the cost of the answers."""

    accuracy: Fraction
    interval: tuple[Fraction, Fraction]
    cost: AnswerCosts


class LanguageTraining(Record):
    """Sums over the stages of a language model, with size of data and curve of the last one. `flops` is estimated."""

    pairs: Count
    duplicates: dict[str, Count]
    steps: Count
    samples: Count
    tokens: Count
    seconds: Quantity
    flops: Quantity
    steps_stretched: Positive
    operations: TrainingOperations | None
    curve: TrainingCurve


class Drafting(Record):
    """How answers were drafted, and their generation token by token: the same pairs, in batches of the same size."""

    drafts: str
    most: Count  # tokens in a draft
    threshold: Fraction
    vocabulary: str  # tokens that a draft may hold: all, or those of the training's answers
    drafted: tuple[Count, ...]  # tokens, by their place in a draft
    accepted: tuple[Count, ...]
    passes: tuple[Count, ...]  # of the language model, by the place in the answer from which on they give tokens
    given: tuple[Count, ...]  # the tokens that these give
    identical: Count  # texts, token for token
    uniform: PartCount

    @property
    def accepted_fraction(self) -> float:
        return sum(self.accepted) / max(1, sum(self.drafted))


class AnswerEvaluation(Evaluation):
    """Answers of one checkpoint on the examples of a split: lines of `predictions.jsonl` beside the document.

    `geometry` holds measures of the latents by name, `warning` says what is wrong with them.

    >>> AnswerEvaluation.file_name
    'evaluation.json'
    """

    kind: Literal["jepa.answer-evaluation/2"] = "jepa.answer-evaluation/2"
    arm: str
    training: LanguageTraining
    split: str
    pairs: Count
    scores: Annotated[dict[str, AnswerScore], Field(min_length=1)]
    generation: PartCount
    drafting: Drafting | None = None
    geometry: dict[str, float]
    warning: str | None

    @property
    def drafted(self) -> str:
        """What drafts saved, in words; empty without any."""
        if (drafts := self.drafting) is None:
            return ""
        fewer = drafts.uniform.forward_passes / self.generation.forward_passes
        faster = drafts.uniform.seconds / self.generation.seconds
        told = f"{drafts.accepted_fraction:.0%} of drafted tokens stand, {drafts.identical} texts identical"
        return f"{fewer:.2f}x fewer passes, {faster:.2f}x fewer seconds, {told}"


class Accuracy(Record):
    """An accuracy with its interval, over seeds where there are several, else over examples."""

    value: Fraction
    low: Fraction
    high: Fraction
    over: Literal["seeds", "examples"]


class ExampleTest(Record):
    """Examples on which one of two arms alone is right, and the p value of an exact sign test."""

    count: Count
    won: Count
    lost: Count
    p: Fraction


class Contrast(Record):
    """A difference of two arms over paired seeds; no interval and no p with one seed."""

    value: float
    low: float | None
    high: float | None
    p: Fraction | None
    examples: ExampleTest


class Against(Record):
    """An arm less another, on the seeds that both have, by metric."""

    arm: str
    seeds: tuple[int, ...]
    metrics: dict[str, Contrast]
    flops_ratio: Positive


class RunCosts(Record):
    """What training took. `flops_measured`: counted, not estimated."""

    steps: Quantity
    samples: Quantity
    tokens: Quantity
    seconds: Quantity
    flops: Positive
    steps_stretched: Positive
    flops_measured: bool = False


class Arm(Record):
    """All seeds of an arm. `answer_costs` is None by metric where nothing was counted; `collapsed` counts seeds."""

    seeds: tuple[int, ...]
    accuracy: dict[str, Accuracy]
    answer_costs: dict[str, AnswerCosts | None]
    against_baseline: Against | None
    at_equal_flops: Against | None  # next tokens alone, with as many operations
    costs: RunCosts
    geometry: dict[str, float]
    collapsed: Count


class Run(Record):
    """One seed of an arm. `evaluation` is its folder."""

    arm: str
    seed: int
    evaluation: str
    accuracy: dict[str, Fraction]
    costs: RunCosts
    answer_costs: dict[str, AnswerCosts | None]
    geometry: dict[str, float]
    warning: str | None
    curve: TrainingCurve
    generation: PartCount = PartCount()
    drafting: Drafting | None = None


class AnswerResults(Document):
    """Arms and seeds of a language model compared on the answers to one set of examples."""

    kind: Literal["jepa.answers/5"] = "jepa.answers/5"
    split: str
    pairs: Count
    training_pairs: Count
    duplicates: dict[str, Count]
    metrics: Annotated[tuple[str, ...], Field(min_length=1)]
    baseline: str | None
    method: str | None
    arms: dict[str, Arm]
    settings: dict[str, dict[str, JsonValue]]
    runs: tuple[Run, ...]
    parameters: tuple[RoleParameters, ...]
    code: tuple[Code, ...]
    libraries: tuple[dict[str, str], ...]
    device: tuple[Device, ...]
    config: dict[str, JsonValue]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        for key in (self.baseline, self.method):
            if key is not None and key not in self.arms:
                raise ValueError(f"baseline and method must be arms ({', '.join(self.arms)}), got {key!r}")
        return self
