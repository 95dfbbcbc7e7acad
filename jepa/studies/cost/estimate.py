"""What it costs to serve a model: an estimate from its dimensions and a chip's datasheet, by a roofline.

The formulas are those of Pope et al. (arXiv 2211.05102), with mixture-of-experts layers and latent attention added.
Nothing here is measured. A roofline leaves out communication between chips, scheduling and kernels, and is 30 to 50 %
off: use ratios of costs, with the ranges that the efficiencies' intervals give.

B sequences deployed together; I input and O output tokens of each; n chips; b bytes of a weight; F peak FLOP/s and W
bytes/s of a chip; η_c and η_m the fractions of F and W that are reached.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from jepa.errors import InputError
from jepa.operations import Dimensions
from jepa.studies.cost.hardware import Hardware, number_format

Values = NDArray[np.float64]  # a figure, or an array of it over the intervals of what is uncertain


@dataclass(frozen=True)
class CountedPart:
    """A part of perception by counts in place of `Dimensions`. A pass reads all of its parameters.

    Args:
        parameters: all of them.
        tokens: that a pass over one sequence reads; sequences do not see each other.
        flops: of that pass, by `jepa.operations.count_flops`.
    """

    parameters: int
    tokens: int
    flops: int

    def prefill_flops(self, tokens: float) -> float:
        """FLOPs of reading `tokens` tokens, a sequence of `self.tokens` or several."""
        return self.flops * tokens / self.tokens

    def read_weights(self, tokens: float) -> float:
        """Weights read for one pass over any number of tokens."""
        return self.parameters


@dataclass(frozen=True)
class Perception:
    """What runs at every step of a stream.

    Args:
        parts: name → dimensions, or counts.
        tokens: name → tokens that the part reads at a step.
        most: name → tokens that the part reads in a second of a stream, at most; a part without has no limit. An
            encoder of time slots reads each once, whatever the overlap of the windows.

    Raises:
        InputError: the names differ, or a figure breaks its rule.
    """

    parts: Mapping[str, Dimensions | CountedPart]
    tokens: Mapping[str, int]
    most: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if set(self.parts) != set(self.tokens):
            raise InputError(f"tokens must name the parts {', '.join(self.parts)}, got {', '.join(self.tokens)}")
        for name, value in self.tokens.items():
            if type(value) is not int or value < 1:
                raise InputError(f"tokens.{name} must be a whole number >= 1, got {value!r}")
        for name, most in self.most.items():
            if name not in self.parts or not most > 0:
                raise InputError(f"most must be > 0 for some of the parts {', '.join(self.parts)}, got {name} {most}")

    def tokens_of(self, name: str, steps: float) -> float:
        """Tokens that the part reads at one of `steps` steps in a second, > 0."""
        return min(self.tokens[name], self.most[name] / steps) if name in self.most else self.tokens[name]


@dataclass(frozen=True)
class DeployedParts:
    """A model that is deployed.

    Args:
        model: answers the requests.
        perception: runs at every step of a stream; None where nothing does.
        input_per_step: positions that the model reads with every request beside the workload's tokens.
        every_step: it generates at every step of a stream.
        assumed: what its cost rests on beside its dimensions and counts, in words; None where nothing is.
    """

    model: Dimensions
    perception: Perception | None = None
    input_per_step: int = 0
    every_step: bool = False
    assumed: str | None = None


@dataclass(frozen=True)
class Workload:
    """What is asked of the service.

    Args:
        input_tokens: I, of a request, >= 0.
        output_tokens: O, of a request, > 0. It may be a fraction, such as a mean.
        batch: B, requests (or streams) deployed together, >= 1.
        steps: perception's steps in a unit of work, such as a second of stream; 0 without a stream.
        requests: requests in that unit; 1 without a stream, so that the unit is a request.

    Raises:
        InputError: a figure breaks its rule.
    """

    input_tokens: float
    output_tokens: float
    batch: int
    steps: float = 0.0
    requests: float = 1.0

    def __post_init__(self) -> None:
        for name, low in (("input_tokens", 0), ("batch", 1), ("steps", 0), ("requests", 0)):
            if not getattr(self, name) >= low:
                raise InputError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.output_tokens > 0:
            raise InputError(f"output_tokens must be > 0, got {self.output_tokens}")


@dataclass(frozen=True)
class Service:
    """A model on a chip.

    Args:
        model: answers the requests.
        hardware: of each of its chips.
        weights: number format of the weights and of the computation.
        cache: number format of the KV cache.
        perception: runs at every step of the stream, on the same chips; None without a stream.
        input_per_step: tokens that the model reads with every request beside the workload's, such as those of an image.
        chips: n; None takes the least power of two that the model fits in.
        memory_fraction: how much of the memory weights and cache may take.

    Raises:
        InputError: the chip does not compute in that format, or a figure breaks its rule.
    """

    model: Dimensions
    hardware: Hardware
    weights: str
    cache: str
    perception: Perception | None = None
    input_per_step: int = 0
    chips: int | None = None
    memory_fraction: float = 0.9

    def __post_init__(self) -> None:
        self.hardware.peak(self.weights)
        number_format(self.cache)
        if self.chips is not None and self.chips < 1:
            raise InputError(f"chips must be >= 1, got {self.chips}")
        if not 0 < self.memory_fraction <= 1:
            raise InputError(f"memory_fraction must be > 0 and <= 1, got {self.memory_fraction}")

    def memory(self, workload: Workload) -> dict[str, float]:
        """Bytes of the weights, and of the KV caches of a full batch at its longest."""
        size = number_format(self.weights)
        weights = self.model.parameters + sum(part.parameters for part in self._parts().values())
        tokens = workload.input_tokens + self.input_per_step + workload.output_tokens
        cache = workload.batch * self.model.cached(tokens) * number_format(self.cache)
        return {"weights": weights * size, "cache": cache}

    def _parts(self) -> Mapping[str, Dimensions | CountedPart]:
        return self.perception.parts if self.perception is not None else {}

    def chips_for(self, workload: Workload) -> int:
        """n, such that the memory is enough.

        Raises:
            InputError: `chips` are too few, or none are given and 1,024 are too few.
        """
        need = sum(self.memory(workload).values())
        room = self.hardware.memory * self.memory_fraction
        if self.chips is None:
            chips = next((2**power for power in range(11) if need <= room * 2**power), None)
            limit = 1024
        else:
            chips, limit = (self.chips if need <= room * self.chips else None), self.chips
        if chips is None:
            raise InputError(
                f"the model and its caches must fit in {limit} × {self.hardware.name} ({limit * room / 1e9:,.1f} GB of "
                f"their memory may be used), got {need / 1e9:,.1f} GB at batch {workload.batch}"
            )
        return chips


@dataclass(frozen=True)
class Cost:
    """An estimate of one unit of work.

    Args:
        chips: n.
        parts: name → chip-seconds of perception's parts, `prefill` and `decode`.
        regions: name → what bounds the part: "compute", "memory: weights" or "memory: cache".
        seconds: of a request, from its start to its last token: prefill alone and all decode steps.
        joules: at the module's highest power; None if that is unknown.
    """

    chips: int
    parts: Mapping[str, Values]
    regions: Mapping[str, str]
    seconds: Values
    joules: Values | None

    @property
    def chip_seconds(self) -> Values:
        """All parts together."""
        return np.sum(np.broadcast_arrays(*self.parts.values()), axis=0)


def serving_cost(
    service: Service,
    workload: Workload,
    compute: float | Values,
    memory: float | Values,
    requests: float | Values = 1.0,
) -> Cost:
    """AnotherChip-seconds, seconds and joules of a unit of work.

        prefill = max(FLOPs of I tokens/(F·η_c), b·weights read for B·I tokens/(B·W·η_m))
        decode step = max(2·B·N_act/(F·η_c), b·weights read for B tokens/(W·η_m)) + B·s·κ/(W·η_m)

    where s is the mean context I + O/2 and κ a token's bytes in the cache; a request costs prefill + O/B decode steps.
    Both are in chip-seconds, so that n drops out; it decides what fits, and how long a request takes. In the prefill,
    the requests of a batch fraction the reading of the weights.

    Args:
        service: the model and its chips.
        workload: what is asked.
        compute: η_c; an array gives an array of costs, broadcast with the others.
        memory: η_m.
        requests: factor on the workload's requests, for an uncertain one.

    Raises:
        InputError: the model does not fit.
    """
    chips = service.chips_for(workload)
    flops = service.hardware.peak(service.weights) * np.asarray(compute, dtype=np.float64)
    bandwidth = service.hardware.bandwidth * np.asarray(memory, dtype=np.float64)
    size, batch, model = number_format(service.weights), workload.batch, service.model
    parts: dict[str, Values] = {}
    regions: dict[str, str] = {}

    def add(name: str, computing: Values, weights: Values, cache: Values, times: float | Values) -> Values:
        bound = np.maximum(computing, weights)
        parts[name] = (bound + cache) * times
        middle = [float(np.median(figure)) for figure in (computing, weights, cache)]
        largest = max(middle[0], middle[1])
        kind = "compute" if middle[0] >= middle[1] else "memory: weights"
        regions[name] = "memory: cache" if middle[2] > largest else kind
        return bound + cache

    nothing = np.float64(0.0) * bandwidth
    for name, part in service._parts().items():
        assert service.perception is not None
        tokens = service.perception.tokens_of(name, workload.steps)
        computing, reading = part.prefill_flops(tokens) / flops, size * part.read_weights(batch * tokens) / bandwidth
        add(name, computing, reading / batch, nothing, workload.steps)

    number = workload.requests * np.asarray(requests, dtype=np.float64)
    context = workload.input_tokens + service.input_per_step
    prefill = np.asarray(nothing)
    if context:
        computing, reading = (
            model.prefill_flops(context) / flops,
            size * model.read_weights(batch * context) / bandwidth,
        )
        prefill = add("prefill", computing, reading / batch, nothing, number)
    held = model.cached(context + workload.output_tokens / 2) * number_format(service.cache) / bandwidth
    computing, reading = 2 * model.active_parameters / flops, size * model.read_weights(batch) / bandwidth
    token = add("decode", computing, reading / batch, held, number * workload.output_tokens)
    seconds = (prefill + workload.output_tokens * batch * token) / chips
    total = np.sum(np.broadcast_arrays(*parts.values()), axis=0)
    watts = service.hardware.watts
    return Cost(chips, parts, regions, seconds, None if watts is None else total * watts)
