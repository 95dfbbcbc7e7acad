"""The cost of serving a model: an estimate from its dimensions and a chip's datasheet, by a roofline.

The formulas come from Pope et al. (arXiv 2211.05102); mixture-of-experts layers and latent attention are added.
Nothing here is measured. A roofline leaves out communication between chips, scheduling and kernels, and is 30 to 50 %
off. So use ratios of costs, with the ranges that the intervals of the efficiencies give.

B sequences served together; I input and O output tokens of each; n chips; b bytes of a weight; F peak FLOP/s and W
bytes/s of a chip; η_c and η_m the reached fractions of F and W.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jepa.errors import InputError
from jepa.operations import Dimensions
from jepa.studies.configs import HardwareConfig, MeasuredTimesConfig

Values = NDArray[np.float64]  # a figure, or an array of it over uncertain quantities

# Bytes of a number. MX4 is 4 bits and one 8-bit scale for each 32 (OCP Microscaling Formats 1.0, section 5.2).
FORMATS = {"bf16": 2.0, "fp8": 1.0, "int8": 1.0, "mx4": 0.53125}


@dataclass(frozen=True)
class CountedPart:
    """A part of a model by counts in place of `Dimensions`. A pass reads all of its parameters.

    >>> CountedPart(parameters=1000, tokens=10, flops=20_000).prefill_flops(5)
    10000.0
    """

    parameters: int
    tokens: int  # that a pass over one sequence reads; sequences do not see each other
    flops: int  # of that pass, by `jepa.operations.count_flops`

    def prefill_flops(self, tokens: float) -> float:
        """FLOPs of reading `tokens` tokens, a sequence of `self.tokens` or several."""
        return self.flops * tokens / self.tokens

    def read_weights(self, tokens: float) -> float:
        """Weights read for one pass over any number of tokens."""
        return self.parameters


@dataclass(frozen=True)
class PerceptionPart:
    """A part of a model that reads `tokens` at every step of a stream, and at most `most` in a second.

    An encoder of time slots has such a limit: it reads each slot once, whatever the overlap of the windows.

    >>> part = PerceptionPart(CountedPart(parameters=1000, tokens=10, flops=20_000), tokens=30, most=45)
    >>> part.tokens_at(steps=2)
    22.5
    """

    size: Dimensions | CountedPart
    tokens: int
    most: float | None = None

    def tokens_at(self, steps: float) -> float:
        """Tokens read at one of `steps` steps in a second, > 0."""
        return self.tokens if self.most is None else min(self.tokens, self.most / steps)


@dataclass(frozen=True)
class DeployedModel:
    """A model as it is served: `model` answers requests, `perception` runs at every step of a stream.

    >>> lm = Dimensions(layers=2, width=8, heads=2, kv_heads=2, key_width=4, value_width=4, feed_forward=16)
    >>> DeployedModel("tiny", lm).parameters == lm.parameters
    True
    """

    name: str
    model: Dimensions
    perception: Mapping[str, PerceptionPart] = field(default_factory=dict)
    input_per_step: int = 0  # positions read with every request beside the workload's, such as those of an image
    every_step: bool = False  # the model generates at every step of a stream
    measured: MeasuredTimesConfig | None = None
    source: str = ""  # of the dimensions
    as_of: str = ""
    assumed: str | None = None  # what the cost rests on beside dimensions and counts

    @property
    def parameters(self) -> int:
        """Of the model and its perception."""
        return self.model.parameters + sum(part.size.parameters for part in self.perception.values())


@dataclass(frozen=True)
class Scenario:
    """A workload on a model on chips. The unit of work is a second of stream, or without a stream a request.

    Raises InputError for a number format that is unknown, or that the chip does not compute in.
    """

    model: DeployedModel  # with its perception, on the same chips
    hardware: HardwareConfig
    weights: str  # number format of the weights and of the computation
    cache: str  # number format of the KV cache
    input_tokens: float  # I
    output_tokens: float  # O; it may be a fraction, such as a mean
    batch: int  # B, requests or streams
    steps: float = 0.0  # of perception in a unit of work; 0 without a stream
    predicted: float = 1.0  # fraction of the steps at which the Predictor runs
    requests: float = 1.0  # in that unit
    chips: int | None = None  # n; None: the least power of two that the model fits in
    memory_fraction: float = 0.9  # of the memory, for weights and cache
    applied: tuple[str, ...] = ()  # the optimisations that made the scenario

    def __post_init__(self) -> None:
        for name in (self.weights, self.cache):
            if name not in FORMATS:
                raise InputError(f"number format must be one of {', '.join(FORMATS)}, got {name!r}")
        if self.weights not in self.hardware.peaks:
            formats = ", ".join(self.hardware.peaks)
            rule = f"format must be one that {self.hardware.name} computes in ({formats})"
            raise InputError(f"{rule}, got {self.weights!r}")

    @property
    def request_count(self) -> float:
        """Requests in a unit of work: one a step where the model generates at every step."""
        return self.steps if self.model.every_step and self.steps else self.requests

    @property
    def context(self) -> float:
        """Tokens read before a request's first output token."""
        return self.input_tokens + self.model.input_per_step

    def memory(self) -> dict[str, float]:
        """Bytes of the `weights`, and of the KV `cache` of a full batch at its longest."""
        cache = self.batch * self.model.model.cached(self.context + self.output_tokens) * FORMATS[self.cache]
        return {"weights": self.model.parameters * FORMATS[self.weights], "cache": cache}

    def chip_count(self) -> int:
        """n, such that the memory is enough. Raises InputError if `chips`, or 1,024 without it, are too few."""
        need, room = sum(self.memory().values()), self.hardware.memory.value * self.memory_fraction
        chips = self.chips or next((2**power for power in range(10) if need <= room * 2**power), 1024)
        if need > room * chips:
            raise InputError(
                f"the model and its caches must fit in {chips} × {self.hardware.name} ({chips * room / 1e9:,.1f} GB of "
                f"their memory may be used), got {need / 1e9:,.1f} GB at batch {self.batch}"
            )
        return chips


@dataclass(frozen=True)
class CostEstimate:
    """An estimate for one unit of work; `serving_cost` makes it.

    >>> float(CostEstimate(1, {"prefill": np.array(1.0), "decode": np.array(2.0)}, {}).chip_seconds)
    3.0
    """

    chips: int
    parts: Mapping[str, Values]  # chip-seconds of perception's parts, `prefill` and `decode`
    regions: Mapping[str, str]  # what bounds each: "compute", "memory: weights" or "memory: cache"

    @property
    def chip_seconds(self) -> Values:
        """All parts together."""
        total: Values = np.sum(np.broadcast_arrays(*self.parts.values()), axis=0)
        return total


def serving_cost(
    scenario: Scenario, compute: float | Values, memory: float | Values, requests: float | Values = 1.0
) -> CostEstimate:
    """Chip-seconds of a unit of work, with `compute` η_c, `memory` η_m, and a factor on the `requests`.

        prefill = max(FLOPs of I tokens/(F·η_c), b·weights read for B·I tokens/(B·W·η_m))
        decode step = max(2·B·N_act/(F·η_c), b·weights read for B tokens/(W·η_m)) + B·s·κ/(W·η_m)

    where s is the mean context I + O/2 and κ a token's bytes in the cache; a request costs prefill + O/B decode steps.
    Both are in chip-seconds, so n drops out and only decides what fits. In the prefill, the requests of a batch share
    the reading of the weights. Arrays of the factors broadcast. Raises InputError if the model does not fit.
    """
    chips, model, batch = scenario.chip_count(), scenario.model.model, scenario.batch
    flops = scenario.hardware.peaks[scenario.weights].value * np.asarray(compute, dtype=np.float64)
    bandwidth = scenario.hardware.bandwidth.value * np.asarray(memory, dtype=np.float64)
    size, nothing = FORMATS[scenario.weights], 0.0 * np.asarray(memory, dtype=np.float64)
    number = scenario.request_count * np.asarray(requests, dtype=np.float64)
    output, context = scenario.output_tokens, scenario.context
    parts: dict[str, Values] = {}
    regions: dict[str, str] = {}

    def add(name: str, computing: Values, weights: float, cache: Values, times: float | Values) -> None:
        """A part of `times` passes of one sequence: its seconds of computing, weights read by the batch, cache."""
        reading = size * weights / bandwidth / batch
        parts[name] = (np.maximum(computing, reading) + cache) * times
        middle = [float(np.median(seconds)) for seconds in (computing, reading, cache)]
        kind = "compute" if middle[0] >= middle[1] else "memory: weights"
        regions[name] = "memory: cache" if middle[2] > max(middle[:2]) else kind

    for name, part in scenario.model.perception.items() if scenario.steps else ():
        tokens = part.tokens_at(scenario.steps)
        weights = part.size.read_weights(batch * tokens)
        times = scenario.steps * (scenario.predicted if name == "predictor" else 1.0)
        add(name, part.size.prefill_flops(tokens) / flops, weights, nothing, times)
    if context:
        add("prefill", model.prefill_flops(context) / flops, model.read_weights(batch * context), nothing, number)
    held = model.cached(context + output / 2) * FORMATS[scenario.cache] / bandwidth
    add("decode", 2 * model.active_parameters / flops, model.read_weights(batch), held, number * output)
    return CostEstimate(chips, parts, regions)
