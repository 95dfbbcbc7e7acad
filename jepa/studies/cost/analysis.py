# ruff: noqa: E501
"""`cost`: what a workload costs to serve, and what several optimisations save of it together.

An optimisation changes the baseline: another model, another chip, fewer output tokens, selective decoding. Savings of optimisations
do not multiply, since one acts on what another has left. All optimisations are therefore applied together, and their joint
saving is set beside the product of the single ones; the averaged order (Shapley, of the logarithm of the cost) shares
the joint saving out.

The costs are a roofline's estimates (`jepa.studies.cost.estimate`). Every ratio has a range: the least and the most over
the ends and the middles of the efficiencies' intervals, independent for each kind of chip, and of measured savings'.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from jepa.build import build, build_as, nearest
from jepa.config import validate
from jepa.errors import InputError
from jepa.evaluation.record import announce, code_version
from jepa.operations import Dimensions
from jepa.report.schema import read_results
from jepa.report.tables import best_causal, headline_savings, operations_ratio, reference_row, without_contrast
from jepa.studies.configs import DeployedModelConfig, HardwareConfig
from jepa.studies.cost.estimate import Cost, DeployedParts, Perception, Service, Values, Workload, serving_cost
from jepa.studies.cost.hardware import Hardware
from jepa.studies.cost.report import COST_SCHEMA, cost_summary, write_cost

MOST_OPTIMISATIONS = 8  # all their subsets are evaluated
LANGUAGE = ("prefill", "decode")  # parts of a request


@dataclass(frozen=True)
class DeployedModel:
    """A model that is deployed; see `jepa.config.DeployedModelConfig`."""

    name: str
    model: Dimensions
    perception: Perception | None
    input_per_step: int
    every_step: bool
    measured: tuple[float, float] | None  # seconds of a step of perception and of a decode
    source: str
    as_of: str
    assumed: str | None


@dataclass(frozen=True)
class Scenario:
    """A workload on a model on a chip, with the optimisations that are applied and those whose saving is uncertain."""

    deployed: DeployedModel
    perceiving: DeployedModel | None
    hardware: Hardware
    weights: str
    cache: str
    chips: int | None
    memory_fraction: float
    input_tokens: float
    output_tokens: float
    batch: int
    steps: float
    requests: float
    savings: tuple[str, ...] = ()  # of requests, by the optimisation's name
    optimisations: tuple[str, ...] = ()  # those applied

    def service(self) -> Service:
        perception = self.deployed.perception or (self.perceiving.perception if self.perceiving is not None else None)
        return Service(
            self.deployed.model,
            self.hardware,
            self.weights,
            self.cache,
            perception if self.steps else None,
            self.deployed.input_per_step if self.steps else 0,
            self.chips,
            self.memory_fraction,
        )

    def workload(self) -> Workload:
        requests = self.steps if self.deployed.every_step and self.steps else self.requests
        return Workload(self.input_tokens, self.output_tokens, self.batch, self.steps, requests)


Basis = Literal["measured", "published", "assumed", "estimated"]


@dataclass(frozen=True)
class Optimisation:
    """A change of a scenario. `claim`: the factor that is advertised for it, None if there is none."""

    label: str
    claim: float | None

    def __post_init__(self) -> None:
        if self.claim is not None and not self.claim > 0:
            raise InputError(f"claim must be > 0, got {self.claim}")

    def apply(self, name: str, scenario: Scenario) -> Scenario:
        """The scenario with the optimisation, which `name` names."""
        raise NotImplementedError

    @property
    def evidence(self) -> Basis:
        """Where its size comes from. What it saves is always estimated."""
        return "estimated"

    @property
    def interval(self) -> tuple[float, float, float] | None:
        """Fewer requests: the factor, its lower and its upper end; None where it leaves them as they are."""
        return None

    @property
    def measured_flops_saving(self) -> float | None:
        """Of the results that it rests on, end to end; None without."""
        return None

    def facts(self) -> dict[str, str]:
        """What it changes, in words, and its source."""
        raise NotImplementedError


@dataclass(frozen=True)
class AnotherModel(Optimisation):
    """Another language model, by its name in conf/deployed; the perception stays, unless that model has its own."""

    deployed: str

    def apply(self, name: str, scenario: Scenario) -> Scenario:
        perceiving = scenario.perceiving if scenario.deployed.perception is None else scenario.deployed
        return replace(scenario, deployed=read_deployed(self.deployed), perceiving=perceiving)

    def facts(self) -> dict[str, str]:
        found = read_deployed(self.deployed)
        return {"change": f"{found.name} is deployed", "source": found.source}


@dataclass(frozen=True)
class AnotherChip(Optimisation):
    """Other hardware, by its name in conf/hardware, and another number format of the weights."""

    hardware: str
    weights: str | None

    def apply(self, name: str, scenario: Scenario) -> Scenario:
        return replace(scenario, hardware=read_hardware(self.hardware), weights=self.weights or scenario.weights)

    def facts(self) -> dict[str, str]:
        settings = _read("hardware", self.hardware)
        form = f", weights in {self.weights}" if self.weights else ""
        return {"change": f"{settings['name']}{form}", "source": settings["bandwidth"]["source"]}


@dataclass(frozen=True)
class FewerTokens(Optimisation):
    """Output tokens divided by `factor`; `basis` says where that comes from."""

    factor: float
    basis: Literal["measured", "published", "assumed"]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.factor > 0:
            raise InputError(f"factor must be > 0, got {self.factor}")
        if self.basis not in ("measured", "published", "assumed"):
            raise InputError(f"basis must be measured, published or assumed, got {self.basis!r}")

    def apply(self, name: str, scenario: Scenario) -> Scenario:
        return replace(scenario, output_tokens=scenario.output_tokens / self.factor)

    @property
    def evidence(self) -> Basis:
        return self.basis

    def facts(self) -> dict[str, str]:
        return {"change": f"output tokens / {self.factor:g}", "source": self.basis}


@dataclass(frozen=True)
class SelectiveDecoding(Optimisation):
    """Fewer requests on a stream: what a policy saved in a results document, or an assumed factor.

    Args:
        results: a `results.json` under the schema jepa.results/2, or its folder; its saving of decoder calls takes the
            factor's place.
        setting: of the results; None takes the first.
        policy: of the setting; None takes the best causal one.
        factor: without results, the factor to assume.

    Of a policy that selects steps, perception's steps are divided by the ratio of the steps computed. The Predictor is
    priced at each of them: what predicting on demand saves is left out.
    The encoder's calls are time slots where windows share these: what it reads at a step is the perception's matter.
    """

    results: str | None
    setting: str | None
    policy: str | None
    factor: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.results is None and (self.factor is None or not self.factor > 0):
            raise InputError(f"factor must be > 0 without results, got {self.factor}")
        _ = self.measured  # so that a wrong file is refused here

    @cached_property
    def measured(self) -> dict[str, Any] | None:
        """What the results say of the policy; None without results."""
        if self.results is None:
            return None
        path = Path(self.results)
        path = path / "results.json" if path.is_dir() else path
        settings = read_results(path)["settings"]
        name = next(iter(settings)) if self.setting is None else self.setting
        if name not in settings:
            raise InputError(f"setting must be one of {', '.join(settings)} in {path}, got {name!r}")
        setting = settings[name]
        if self.policy is not None and self.policy not in setting["curves"]:
            raise InputError(f"policy must be one of {', '.join(setting['curves'])} in {path}, got {self.policy!r}")
        saving = best_causal(setting)
        if self.policy is not None:
            saving = next((row for row in headline_savings(setting) if row["policy"] == self.policy), None)
        policy = saving["policy"] if saving else self.policy
        if saving is None or not saving["reached"] or saving["saving"] is None:
            reason = saving["reason"] if saving else "no operating point"
            raise InputError(f"policy must save decoder calls at equal quality in {path}, got {policy!r}: {reason}")
        if warning := without_contrast(setting):
            raise InputError(
                f"setting, one of {', '.join(settings)} in {path}, must have a quality that depends on decoding, "
                f"got {name!r}: {warning}"
            )
        point = (saving["policy"], saving["knob"])
        row = next((row for row in setting["operations"] if (row["policy"], row["knob"]) == point), None)
        steps, flops, reference = 1.0, None, reference_row(setting)
        if row is not None and reference is not None:
            flops = operations_ratio(setting, row).flops
            computed = [r["ledger"]["steps"] / r["ledger"]["stream_seconds"] for r in (reference, row)]
            steps = computed[0] / computed[1]
        found, fewer = saving["saving"], "" if steps == 1 else f", steps of perception / {steps:.2f}"
        high = found["value"] if found["high"] is None else found["high"]  # no bound: the value is the safe end
        return {
            "interval": (found["value"], found["low"], high),
            "steps": steps,
            "flops": flops,
            "change": f"decoder calls / {found['value']:.2f}{fewer}, as {policy} saved on {name} streams",
        }

    def apply(self, name: str, scenario: Scenario) -> Scenario:
        if not scenario.steps:
            raise InputError(f"optimisations.{name} needs a stream, got stream_rates=null")
        if scenario.deployed.every_step:
            raise InputError(f"optimisations.{name} needs a model that may stay silent, got {scenario.deployed.name}")
        steps = self.measured["steps"] if self.measured is not None else 1.0
        return replace(scenario, steps=scenario.steps / steps, savings=(*scenario.savings, name))

    @property
    def evidence(self) -> Basis:
        return "assumed" if self.measured is None else "measured"

    @property
    def interval(self) -> tuple[float, float, float]:
        if self.measured is not None:
            found: tuple[float, float, float] = self.measured["interval"]
            return found
        return (float(self.factor or 1),) * 3

    def facts(self) -> dict[str, str]:
        if self.measured is None:
            return {"change": f"decoder calls / {self.factor:g}", "source": "assumed"}
        return {"change": self.measured["change"], "source": str(self.results)}

    @property
    def measured_flops_saving(self) -> float | None:
        return self.measured["flops"] if self.measured is not None else None


# --- The files of conf/hardware and conf/deployed.


def _options(group: str) -> list[str]:
    """The names in a folder of conf/, but for `config`, which needs a path."""
    names = (entry.name for entry in files("jepa.conf").joinpath(group).iterdir())
    return sorted({name.removesuffix(".yaml") for name in names if name.endswith(".yaml")} - {"config"})


def _read(group: str, name: str) -> dict[str, Any]:
    """A file of conf/, against its schema."""
    options = _options(group)
    if name not in options:
        close = ", ".join(nearest(name, options) or options)
        raise InputError(f"there is no {group} {name!r}; nearest valid: {close}")
    text = files("jepa.conf").joinpath(group, f"{name}.yaml").read_text(encoding="utf-8")
    schema = HardwareConfig if group == "hardware" else DeployedModelConfig
    return validate(yaml.safe_load(text), schema).model_dump()


def read_hardware(name: str) -> Hardware:
    """A chip of conf/hardware. Raises InputError if there is none of that name."""
    return _hardware(_read("hardware", name))


def read_deployed(name: str) -> DeployedModel:
    """A model of conf/deployed. Raises InputError if there is none of that name."""
    return _deployed(_read("deployed", name))


def _hardware(settings: Mapping[str, Any]) -> Hardware:
    peaks = {name: figure["value"] for name, figure in settings["peaks"].items()}
    watts = settings["watts"]["value"] if settings["watts"] is not None else None
    return Hardware(settings["name"], peaks, settings["memory"]["value"], settings["bandwidth"]["value"], watts)


def _deployed(settings: Mapping[str, Any]) -> DeployedModel:
    parts = build(settings["model"])
    if isinstance(parts, Dimensions):
        parts = DeployedParts(
            parts,
            _perception(settings["perception"]),
            settings["input_per_step"],
            settings["every_step"],
            settings["assumed"],
        )
    elif not isinstance(parts, DeployedParts):
        raise InputError(f"deployed.model._target_ must build Dimensions or DeployedParts, got {type(parts).__name__}")
    measured = settings["measured"]
    return DeployedModel(
        settings["name"],
        parts.model,
        parts.perception,
        parts.input_per_step,
        parts.every_step,
        None if measured is None else (measured["step_seconds"], measured["decode_seconds"]),
        settings["source"],
        settings["as_of"],
        parts.assumed,
    )


def _perception(settings: Mapping[str, Any] | None) -> Perception | None:
    if settings is None:
        return None
    parts = {
        name: build_as(Dimensions, f"deployed.perception.{name}.dimensions", part["dimensions"])
        for name, part in settings.items()
    }
    return Perception(parts, {name: part["tokens"] for name, part in settings.items()})


# --- Costs over what is uncertain.


@dataclass(frozen=True)
class Space:
    """Efficiencies of each kind of chip, and the factor on requests of each optimisation that saves some, as arrays."""

    compute: Mapping[str, Values]
    memory: Mapping[str, Values]
    requests: Mapping[str, Values]


def _spaces(
    chips: Sequence[str],
    optimisations: Mapping[str, Optimisation],
    compute: Mapping[str, float],
    memory: Mapping[str, float],
) -> tuple[Space, Space]:
    """The middle of every interval, and all combinations of the ends and middles: one axis each."""
    savings = {
        name: optimisation.interval for name, optimisation in optimisations.items() if optimisation.interval is not None
    }
    axes = 2 * len(chips) + len(savings)

    def along(axis: int, values: Sequence[float]) -> Values:
        shape = [1] * axes
        shape[axis] = len(values)
        return np.asarray(values, dtype=np.float64).reshape(shape)

    def over(efficiency: Mapping[str, float], start: int) -> dict[str, Values]:
        values = [efficiency[key] for key in ("low", "value", "high")]
        return {chip: along(2 * i + start, values) for i, chip in enumerate(chips)}

    requests = {
        name: along(2 * len(chips) + i, [1 / factor for factor in sorted(interval)])
        for i, (name, interval) in enumerate(savings.items())
    }
    middle = Space(
        dict.fromkeys(chips, np.float64(compute["value"])),  # type: ignore[arg-type]
        dict.fromkeys(chips, np.float64(memory["value"])),  # type: ignore[arg-type]
        {name: np.float64(1 / interval[0]) for name, interval in savings.items()},  # type: ignore[misc]
    )
    return middle, Space(over(compute, 0), over(memory, 1), requests)


@dataclass(frozen=True)
class Comparison:
    """A baseline, optimisations in their order, and what is uncertain.

    Args:
        baseline: what the optimisations change.
        optimisations: by name, in the order in which they are applied.
        middle: the central figures.
        whole: the intervals.
        measure: "chip_seconds", "joules" or "price".
        prices: of a chip for an hour, by hardware name.
    """

    baseline: Scenario
    optimisations: Mapping[str, Optimisation]
    middle: Space
    whole: Space
    measure: str
    prices: Mapping[str, float]

    def scenario(self, names: Sequence[str]) -> Scenario:
        """The baseline with these optimisations, applied in the order of all."""
        scenario = self.baseline
        for name, optimisation in self.optimisations.items():
            if name in names:
                scenario = replace(optimisation.apply(name, scenario), optimisations=(*scenario.optimisations, name))
        return scenario

    def estimate(self, scenario: Scenario, space: Space) -> Cost:
        """Its cost over a space.

        Raises:
            InputError: it does not fit, or the chip does not compute in its format; the model and the optimisations are named.
        """
        requests: Any = 1.0
        for name in scenario.savings:
            requests = requests * space.requests[name]
        compute, memory = space.compute[scenario.hardware.name], space.memory[scenario.hardware.name]
        try:
            return serving_cost(scenario.service(), scenario.workload(), compute, memory, requests)
        except InputError as error:
            changed = ", ".join(f"optimisations.{name}" for name in scenario.optimisations)
            what = scenario.deployed.name + (f" with {changed}" if changed else "")
            raise InputError(f"{what}: {error}") from error

    def figure(self, scenario: Scenario, space: Space) -> Values:
        """Its cost in the measure."""
        return self.estimate(scenario, space).chip_seconds * self.rate(scenario.hardware)

    def rate(self, hardware: Hardware) -> float:
        """The measure of a chip-second.

        Raises:
            InputError: the chip's power or price is not known.
        """
        if self.measure == "chip_seconds":
            return 1.0
        if self.measure == "joules":
            if hardware.watts is None:
                raise InputError(f"measure=joules needs the power of {hardware.name}, which its maker does not give")
            return hardware.watts
        if hardware.name not in self.prices:
            raise InputError(f"measure=price needs prices of {hardware.name}, got {', '.join(self.prices) or 'none'}")
        return self.prices[hardware.name] / 3600

    def ratio(self, names: Sequence[str]) -> dict[str, float]:
        """Baseline over the scenario with these optimisations: the central figure and its range."""
        changed = self.scenario(names)
        value = float(self.figure(self.baseline, self.middle) / self.figure(changed, self.middle))
        ratios = self.figure(self.baseline, self.whole) / self.figure(changed, self.whole)
        return {"value": value, "low": float(np.min(ratios)), "high": float(np.max(ratios))}


def shapley(values: Mapping[frozenset[str], float], names: Sequence[str]) -> dict[str, float]:
    """Each name's fraction of `values[all] - values[none]`, its gain averaged over all orders (Shapley 1953).

    Args:
        values: of every subset of `names`.
        names: the players.
    """
    count = len(names)
    fractions = {}
    for name in names:
        others = [other for other in names if other != name]
        fractions[name] = math.fsum(
            (values[frozenset({*subset, name})] - values[frozenset(subset)])
            / (count * math.comb(count - 1, len(subset)))
            for size in range(count)
            for subset in itertools.combinations(others, size)
        )
    return fractions


def _changed_parts(before: Cost, after: Cost) -> list[str]:
    """The baseline's parts whose cost an optimisation changes."""
    return [
        name
        for name, amount in before.parts.items()
        if name not in after.parts or not np.isclose(float(amount), float(after.parts[name]), rtol=1e-9)
    ]


def attribution(comparison: Comparison) -> list[dict[str, Any]]:
    """One row an optimisation: alone, after those before it, averaged over all orders; and the fraction that it touches."""
    names = list(comparison.optimisations)
    costs = {
        frozenset(subset): float(comparison.figure(comparison.scenario(subset), comparison.middle))
        for size in range(len(names) + 1)
        for subset in itertools.combinations(names, size)
    }
    fractions = shapley({subset: math.log(cost) for subset, cost in costs.items()}, names)
    before = comparison.estimate(comparison.baseline, comparison.middle)
    rows = []
    for place, name in enumerate(names):
        optimisation, earlier = comparison.optimisations[name], frozenset(names[:place])
        others = [other for other in names if other != name]
        gains = [
            costs[frozenset(subset)] / costs[frozenset({*subset, name})]
            for size in range(len(names))
            for subset in itertools.combinations(others, size)
        ]
        touched = _changed_parts(before, comparison.estimate(comparison.scenario([name]), comparison.middle))
        fraction = sum(float(before.parts[part]) for part in touched) / float(before.chip_seconds)
        rows.append(
            {
                "name": name,
                "label": optimisation.label,
                "evidence": optimisation.evidence,
                "claim": optimisation.claim,
                "measured_flops_saving": optimisation.measured_flops_saving,
                **optimisation.facts(),
                "factor": None
                if optimisation.interval is None
                else dict(zip(("value", "low", "high"), optimisation.interval, strict=True)),
                "touches": touched,
                "fraction": fraction,
                "limit": 1 / (1 - fraction) if fraction < 1 - 1e-12 else None,
                "alone": comparison.ratio([name]),
                "in_order": costs[earlier] / costs[earlier | {name}],
                "averaged": math.exp(-fractions[name]),
                "least": min(gains),
                "most": max(gains),
            }
        )
    return rows


def scenario_facts(comparison: Comparison, scenario: Scenario) -> dict[str, Any]:
    """What a scenario is and costs."""
    service, workload = scenario.service(), scenario.workload()
    cost = comparison.estimate(scenario, comparison.middle)
    total = float(cost.chip_seconds)
    price = comparison.prices.get(scenario.hardware.name)
    requests = math.prod(float(comparison.middle.requests[name]) for name in scenario.savings)
    return {
        "model": scenario.deployed.name,
        "parameters": scenario.deployed.model.parameters,
        "active_parameters": scenario.deployed.model.active_parameters,
        "experts_touched": scenario.deployed.model.touched(workload.batch),
        "hardware": scenario.hardware.name,
        "weights": scenario.weights,
        "cache": scenario.cache,
        "chips": cost.chips,
        "memory": service.memory(workload),
        "input_tokens": workload.input_tokens + service.input_per_step,
        "output_tokens": workload.output_tokens,
        "steps": workload.steps,
        "requests": workload.requests * requests,
        "parts": {
            name: {"chip_seconds": float(amount), "fraction": float(amount) / total, "region": cost.regions[name]}
            for name, amount in cost.parts.items()
        },
        "chip_seconds": total,
        "request_seconds": float(cost.seconds),
        "joules": None if cost.joules is None else float(cost.joules),
        "price": None if price is None else total * price / 3600,
    }


def workload_grid(comparison: Comparison, grid: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The joint saving and the product of the single ones over input tokens × output tokens × batch.

    The ratios are null where a model does not fit.
    """
    cells = []
    for batch, inputs, outputs in itertools.product(grid["batches"], grid["input_tokens"], grid["output_tokens"]):
        base = replace(comparison.baseline, batch=batch, input_tokens=inputs, output_tokens=outputs)
        there = replace(comparison, baseline=base)
        cell: dict[str, Any] = {"batch": batch, "input_tokens": inputs, "output_tokens": outputs}
        try:
            joint = there.ratio(list(there.optimisations))
            whole = float(there.figure(base, there.middle))
            alone = [float(there.figure(there.scenario([name]), there.middle)) for name in there.optimisations]
        except InputError:
            cells.append({**cell, "joint": None, "product": None})
            continue
        cells.append({**cell, "joint": joint, "product": math.prod(whole / figure for figure in alone)})
    return cells


def _optimisation(name: str, node: Mapping[str, Any]) -> Optimisation:
    try:
        return build_as(Optimisation, f"optimisations.{name}", node)
    except InputError as error:
        raise InputError(f"optimisations.{name}: {error}") from error


def _sources(
    hardware: Mapping[str, Any], baseline: Scenario, optimisations: Mapping[str, Optimisation]
) -> list[dict[str, str]]:
    """Where the figures of the chips and models come from, the assumptions of a model included."""
    chips, models = [hardware], [baseline.deployed]
    if baseline.perceiving is not None:
        models.append(baseline.perceiving)
    for optimisation in optimisations.values():
        if isinstance(optimisation, AnotherChip):
            chips.append(_read("hardware", optimisation.hardware))
        elif isinstance(optimisation, AnotherModel):
            models.append(read_deployed(optimisation.deployed))
    rows = [{"name": c["name"], "as_of": c["bandwidth"]["as_of"], "source": c["bandwidth"]["source"]} for c in chips]
    for model in models:
        assumed = f"; assumed: {model.assumed}" if model.assumed else ""
        rows.append({"name": model.name, "as_of": model.as_of, "source": f"{model.source}{assumed}"})
    return [dict(row) for row in {tuple(row.items()): row for row in rows}.values()]


def _perceiving(name: str | None) -> DeployedModel | None:
    """The model of conf/deployed whose perception runs where the deployed model has none."""
    if name is None:
        return None
    found = read_deployed(name)
    if found.perception is None:
        having = ", ".join(option for option in _options("deployed") if read_deployed(option).perception is not None)
        raise InputError(f"perception must be null or a model with an encoder of its own ({having}), got {name!r}")
    return found


def analyse(config: Mapping[str, Any]) -> dict[str, Any]:
    """The document `jepa.cost/1` of a configuration (`jepa.config.CostConfig`).

    Raises:
        InputError: a name, a format, an optimisation or a results file is not what it must be, or a model does not fit.
    """
    order = config["order"]
    unknown = [name for name in order if name not in config["optimisations"]]
    if unknown or len(set(order)) < len(order) or len(order) > MOST_OPTIMISATIONS:
        rule = (
            f"name at most {MOST_OPTIMISATIONS} of the optimisations ({', '.join(config['optimisations'])}), each once"
        )
        raise InputError(f"order must {rule}, got {order}")
    if len(config["goal"]) != 2 or config["goal"][0] > config["goal"][1]:
        raise InputError(f"goal must be a lower and an upper factor, got {config['goal']}")
    for key in ("compute_efficiency", "memory_efficiency"):
        if not config[key]["low"] <= config[key]["value"] <= config[key]["high"]:
            raise InputError(f"{key} must have low <= value <= high, got {config[key]}")
    optimisations = {name: _optimisation(name, config["optimisations"][name]) for name in order}
    stream, perceiving = config["stream_rates"], _perceiving(config["perception"])
    deployed = _deployed(config["deployed"])
    baseline = Scenario(
        deployed,
        perceiving if stream and deployed.perception is None else None,
        _hardware(config["hardware"]),
        config["weights"],
        config["cache"],
        config["chips"],
        config["memory_fraction"],
        config["input_tokens"],
        config["output_tokens"],
        config["batch"],
        stream["steps_per_second"] if stream else 0.0,
        stream["requests_per_second"] if stream else 1.0,
    )
    chips = [baseline.hardware.name]
    chips += [
        read_hardware(optimisation.hardware).name
        for optimisation in optimisations.values()
        if isinstance(optimisation, AnotherChip)
    ]
    spaces = _spaces(
        list(dict.fromkeys(chips)), optimisations, config["compute_efficiency"], config["memory_efficiency"]
    )
    comparison = Comparison(baseline, optimisations, *spaces, config["measure"], config["prices"])
    rows = attribution(comparison)
    cells = workload_grid(comparison, config["grid"])
    claims = [row["claim"] for row in rows]
    return {
        "schema": COST_SCHEMA,
        "name": "cost",
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "code": code_version(),
        "config": dict(config),
        "unit": "second of stream" if stream else "request",
        "measure": config["measure"],
        "baseline": scenario_facts(comparison, baseline),
        "optimised": scenario_facts(comparison, comparison.scenario(order)),
        "optimisations": rows,
        "joint": comparison.ratio(order),
        "product": math.prod(row["alone"]["value"] for row in rows),
        "claims": None if None in claims else math.prod(claims),
        "published": _published(baseline, comparison.scenario(order), optimisations),
        "goal": list(config["goal"]),
        "grid": cells,
        "sources": _sources(config["hardware"], baseline, optimisations),
    }


def _published(
    baseline: Scenario, changed: Scenario, optimisations: Mapping[str, Optimisation]
) -> dict[str, float] | None:
    """What selective decoding saves by the times that the perception's authors measured, in place of a roofline.

    Steps and requests of a second of stream, each times its seconds; null where there are no such times.
    """
    perception = baseline.deployed if baseline.deployed.perception is not None else baseline.perceiving
    if perception is None or perception.measured is None or not changed.savings:
        return None
    step, decode = perception.measured
    saving = math.prod((optimisations[name].interval or (1.0,))[0] for name in changed.savings)
    before = baseline.steps * step + baseline.requests * decode
    after = changed.steps * step + baseline.requests / saving * decode
    return {"step_seconds": step, "decode_seconds": decode, "saving": before / after}


def run(config: Mapping[str, Any]) -> None:
    """Run the command: print the table, write cost.json, cost.md, cost.png and cost.html.

    Raises:
        InputError: as `analyse`, or the output folder cannot be written.
    """
    results = analyse(config)
    paths = write_cost(results, Path(config["output"]))
    announce(cost_summary(results), paths)
