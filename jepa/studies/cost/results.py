"""The document of `jepa cost`: estimated costs of a workload, and the savings of optimisations alone and together."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from jepa.results import Code, Document, Positive, Quantity, Ratio, Record

Basis = Literal["measured", "published", "assumed", "estimated"]
Part = Annotated[float, Field(ge=0, le=1 + 1e-9)]  # of a cost; sums of parts round


class Range(Ratio):
    """A central figure with the least and the most of it.

    >>> Range(value=2.0, low=1.5, high=3.0).value
    2.0
    """

    high: Positive


class PartCost(Record):
    """Chip-seconds of a part, its fraction of all, and what bounds it: compute, or memory for weights or cache."""

    chip_seconds: Quantity
    fraction: Part
    region: str


class ScenarioCost(Record):
    """A scenario and its cost. `memory`: bytes of weights and of cache; `price`: in the currency of the prices."""

    model: str
    parameters: int
    active_parameters: int
    experts_touched: Quantity
    hardware: str
    weights: str
    cache: str
    chips: int
    memory: dict[str, Quantity]
    input_tokens: Quantity
    output_tokens: Positive
    steps: Quantity
    requests: Quantity
    parts: dict[str, PartCost]
    chip_seconds: Positive
    joules: Positive | None
    price: Positive | None


class OptimisationSaving(Record):
    """The savings of an optimisation: alone, after those before it, and averaged over all orders.

    `touches` are the baseline's parts that it changes, `fraction` is their part of the cost, and `limit` the saving if
    they cost nothing (Amdahl; None: no limit). `factor` is its factor on requests.
    """

    name: str
    label: str
    evidence: Basis
    claim: Positive | None
    change: str
    measured_flops_saving: Positive | None
    factor: Range | None
    touches: tuple[str, ...]
    fraction: Part
    limit: Annotated[float, Field(ge=1)] | None
    alone: Range
    in_order: Positive
    averaged: Positive


class GridCell(Record):
    """A workload of the grid and its joint saving; None where a model does not fit."""

    batch: int
    input_tokens: Quantity
    output_tokens: Positive
    joint: Range | None


class PublishedTimes(Record):
    """Measured seconds of a step and of a decode, as published, and the saving that follows from them."""

    step_seconds: Positive
    decode_seconds: Positive
    saving: Positive


class Source(Record):
    """Where the figures of a chip or a model come from."""

    name: str
    as_of: str
    source: str


class CostResults(Document):
    """What a workload costs to serve, and what several optimisations save together.

    >>> from jepa.results import read_document
    >>> schema = CostResults.model_json_schema()
    """

    file_name: ClassVar[str] = "cost.json"

    kind: Literal["jepa.cost/3"] = "jepa.cost/3"
    code: Code
    config: dict[str, JsonValue]
    unit: str
    measure: Literal["chip_seconds", "joules", "price"]
    baseline: ScenarioCost
    optimised: ScenarioCost
    optimisations: Annotated[tuple[OptimisationSaving, ...], Field(min_length=1)]
    joint: Range
    product: Positive
    claims: Positive | None
    published: PublishedTimes | None
    goal: tuple[Positive, Positive]
    grid: Annotated[tuple[GridCell, ...], Field(min_length=1)]
    sources: tuple[Source, ...]
    efficiencies: dict[str, str]
