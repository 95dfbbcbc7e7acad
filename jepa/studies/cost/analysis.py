"""`jepa cost`: what a workload costs to serve, and what several optimisations save together.

An optimisation changes the baseline: another model, another chip, fewer output tokens, selective decoding. The savings
do not multiply, since each acts on the cost that the others left. So all are applied together, and the joint saving
stands beside the product of the single ones. The averaged order (Shapley, of the logarithm of the cost) divides the
joint saving among them.

The costs are a roofline's estimates (`jepa.studies.cost.estimate`). Every ratio has a range: the least and the most
over the intervals of measured savings and of the efficiencies, which are independent for each kind of chip.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jepa.build import build_as
from jepa.errors import InputError
from jepa.evaluation.provenance import announce, code_version, now
from jepa.report.render import terminal, write_report
from jepa.studies.configs import CostConfig, CostGridConfig, HardwareConfig
from jepa.studies.cost.deployed import model_of, options, read_model
from jepa.studies.cost.estimate import CostEstimate, DeployedModel, Scenario, Values, serving_cost
from jepa.studies.cost.optimisations import Optimisation, figures_of, on_stream
from jepa.studies.cost.report import report
from jepa.studies.cost.results import (
    CostResults,
    GridCell,
    OptimisationSaving,
    PartCost,
    PublishedTimes,
    Range,
    ScenarioCost,
    Source,
)

MOST_OPTIMISATIONS = 8  # all their subsets are evaluated


def run(config: CostConfig) -> CostResults:
    """Estimate, print a summary, and write cost.json, cost.md, cost.png and cost.html.

    Raises:
        InputError: as `analyse`, or the output folder cannot be written.
    """
    results = analyse(config)
    shown = report(results)
    announce(terminal(shown), write_report(results, shown, config.output, "cost"))
    return results


def analyse(config: CostConfig) -> CostResults:
    """The document of a configuration.

    Raises:
        InputError: a name, a format, an optimisation or a results file breaks a rule, or a model does not fit.
    """
    _check(config)
    optimisations = {name: _optimisation(name, config) for name in config.order}
    model, eyes, stream = model_of(config.deployed), _perceiving(config.perception), config.stream_rates
    eyes = eyes if stream and not model.perception else None
    steps, requests = (stream.steps_per_second, stream.requests_per_second) if stream else (0.0, 1.0)
    baseline = Scenario(
        on_stream(model, eyes, steps),
        config.hardware,
        config.weights,
        config.cache,
        config.input_tokens,
        config.output_tokens,
        config.batch,
        steps,
        requests,
        config.chips,
        config.memory_fraction,
    )
    chips = [baseline.hardware.name, *(each.hardware for each in optimisations.values() if each.hardware)]
    middle, whole = uncertainty(chips, optimisations, config)
    comparison = Comparison(baseline, optimisations, middle, whole, config.measure, config.prices)
    rows, changed = attribution(comparison), comparison.scenario(config.order)
    claims = [row.claim for row in rows if row.claim is not None]
    return CostResults(
        name="cost",
        created=now(),
        code=code_version(),
        config=config.model_dump(mode="json"),
        unit="second of stream" if stream else "request",
        measure=config.measure,
        baseline=scenario_cost(comparison, comparison.baseline),
        optimised=scenario_cost(comparison, changed),
        optimisations=rows,
        joint=comparison.ratio(config.order),
        product=math.prod(row.alone.value for row in rows),
        claims=math.prod(claims) if len(claims) == len(rows) else None,
        published=_published(comparison.baseline, changed, optimisations),
        goal=(config.goal[0], config.goal[1]),
        grid=tuple(workload_grid(comparison, config.grid)),
        sources=_sources(config.hardware, [model, eyes], optimisations),
        efficiencies={
            kind: f"{found.value:g} ({found.low:.2f} to {found.high:.2f}), {found.source}"
            for kind, found in (("compute", config.compute_efficiency), ("memory", config.memory_efficiency))
        },
    )


def _check(config: CostConfig) -> None:
    order = config.order
    unknown = [name for name in order if name not in config.optimisations]
    if unknown or len(set(order)) < len(order) or len(order) > MOST_OPTIMISATIONS:
        names = ", ".join(config.optimisations)
        rule = f"name at most {MOST_OPTIMISATIONS} of the optimisations ({names}), each once"
        raise InputError(f"order must {rule}, got {order}")
    if len(config.goal) != 2 or config.goal[0] > config.goal[1]:
        raise InputError(f"goal must be a lower and an upper factor, got {config.goal}")
    for key, found in (
        ("compute_efficiency", config.compute_efficiency),
        ("memory_efficiency", config.memory_efficiency),
    ):
        if not found.low <= found.value <= found.high:
            raise InputError(f"{key} must have low <= value <= high, got {found}")


def _optimisation(name: str, config: CostConfig) -> Optimisation:
    try:
        return build_as(Optimisation, f"optimisations.{name}", config.optimisations[name])
    except InputError as error:
        raise InputError(f"optimisations.{name}: {error}") from error


def _perceiving(name: str | None) -> DeployedModel | None:
    """The model of conf/deployed whose perception runs where the deployed model has none."""
    if name is None:
        return None
    found = read_model(name)
    if not found.perception:
        having = ", ".join(option for option in options("deployed") if read_model(option).perception)
        raise InputError(f"perception must be null or a model with an encoder of its own ({having}), got {name!r}")
    return found


def _sources(
    hardware: HardwareConfig, models: Sequence[DeployedModel | None], optimisations: Mapping[str, Optimisation]
) -> tuple[Source, ...]:
    """Of the figures of chips and models, each once."""
    chip = Source(name=hardware.name, as_of=hardware.bandwidth.as_of, source=hardware.bandwidth.source)
    rows = [chip, *map(figures_of, filter(None, models)), *(each.figures for each in optimisations.values())]
    return tuple({row.model_dump_json(): row for row in rows if row is not None}.values())


def _published(
    baseline: Scenario, changed: Scenario, optimisations: Mapping[str, Optimisation]
) -> PublishedTimes | None:
    """What selective decoding saves by the times that the perception's authors measured, in place of a roofline.

    Steps and requests of a second of stream, each times its seconds; None where there are no such times.
    """
    measured = baseline.model.measured
    savings = [found.value for name in changed.applied if (found := optimisations[name].requests) is not None]
    if measured is None or not baseline.steps or not savings:
        return None
    step, decode = measured
    before = baseline.steps * step + baseline.requests * decode
    after = changed.steps * step + baseline.requests / math.prod(savings) * decode
    return PublishedTimes(step_seconds=step, decode_seconds=decode, saving=before / after)


# --- Costs over uncertain quantities.


Space = Mapping[tuple[str, str], Values]  # ("compute" or "memory", chip) and ("requests", optimisation)


def uncertainty(
    chips: Sequence[str], optimisations: Mapping[str, Optimisation], config: CostConfig
) -> tuple[Space, Space]:
    """The middle of every interval, and all combinations of the ends and middles, one axis each."""
    axes: dict[tuple[str, str], list[float]] = {}
    for chip in chips:
        for kind, found in (("compute", config.compute_efficiency), ("memory", config.memory_efficiency)):
            axes[kind, chip] = [found.low, found.value, found.high]
    for name, each in optimisations.items():
        if (factor := each.requests) is not None:
            axes["requests", name] = [1 / factor.low, 1 / factor.value, 1 / factor.high]
    whole = np.meshgrid(*axes.values(), indexing="ij", sparse=True)
    return {key: np.asarray(values[1]) for key, values in axes.items()}, dict(zip(axes, whole, strict=True))


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
        """The baseline with these optimisations, applied in the order of all. Raises InputError, naming a misfit."""
        scenario = self.baseline
        for name, optimisation in self.optimisations.items():
            if name in names:
                try:
                    scenario = replace(optimisation.apply(scenario), applied=(*scenario.applied, name))
                except InputError as error:
                    raise InputError(f"optimisations.{name}: {error}") from error
        return scenario

    def estimate(self, scenario: Scenario, space: Space) -> CostEstimate:
        """Its cost over a space. Raises InputError if it does not fit, naming the model and the optimisations."""
        requests = math.prod(space["requests", name] for name in scenario.applied if ("requests", name) in space)
        chip = scenario.hardware.name
        try:
            return serving_cost(scenario, space["compute", chip], space["memory", chip], requests)
        except InputError as error:
            changed = ", ".join(f"optimisations.{name}" for name in scenario.applied)
            raise InputError(f"{scenario.model.name}{changed and f' with {changed}'}: {error}") from error

    def figure(self, scenario: Scenario, space: Space) -> Values:
        """Its cost in the measure. Raises InputError if the chip's power or price is not known."""
        hardware, rate = scenario.hardware, 1.0
        if self.measure == "joules":
            if hardware.watts is None:
                raise InputError(f"measure=joules needs the power of {hardware.name}, which its maker does not give")
            rate = hardware.watts.value
        elif self.measure == "price":
            if hardware.name not in self.prices:
                known = ", ".join(self.prices) or "none"
                raise InputError(f"measure=price needs prices of {hardware.name}, got {known}")
            rate = self.prices[hardware.name] / 3600
        return self.estimate(scenario, space).chip_seconds * rate

    def ratio(self, names: Sequence[str]) -> Range:
        """Baseline over the scenario with these optimisations: the central figure and its range."""
        changed = self.scenario(names)
        value = float(self.figure(self.baseline, self.middle) / self.figure(changed, self.middle))
        ratios = self.figure(self.baseline, self.whole) / self.figure(changed, self.whole)
        return Range(value=value, low=float(np.min(ratios)), high=float(np.max(ratios)))


# --- Who saves how much.


def _subsets(names: Sequence[str]) -> Iterator[frozenset[str]]:
    for size in range(len(names) + 1):
        yield from map(frozenset, itertools.combinations(names, size))


def shapley(values: Mapping[frozenset[str], float], names: Sequence[str]) -> dict[str, float]:
    """Each name's part of `values[all] - values[none]`: its gain averaged over all orders (Shapley 1953).

    Args:
        values: of every subset of `names`.
        names: the players.

    >>> values = {frozenset(): 0.0, frozenset("a"): 1.0, frozenset("b"): 2.0, frozenset("ab"): 4.0}
    >>> shapley(values, "ab")
    {'a': 1.5, 'b': 2.5}
    """
    count = len(names)
    return {
        name: math.fsum(
            (values[subset | {name}] - values[subset]) / (count * math.comb(count - 1, len(subset)))
            for subset in _subsets([other for other in names if other != name])
        )
        for name in names
    }


def _changed_parts(before: CostEstimate, after: CostEstimate) -> tuple[str, ...]:
    """The baseline's parts whose cost an optimisation changes."""
    return tuple(
        name
        for name, amount in before.parts.items()
        if name not in after.parts or not np.isclose(float(amount), float(after.parts[name]), rtol=1e-9)
    )


def attribution(comparison: Comparison) -> tuple[OptimisationSaving, ...]:
    """One row for each optimisation: alone, after those before it, averaged over all orders, and what it touches."""
    names = list(comparison.optimisations)
    costs = {
        subset: float(comparison.figure(comparison.scenario(list(subset)), comparison.middle))
        for subset in _subsets(names)
    }
    gains = shapley({subset: math.log(cost) for subset, cost in costs.items()}, names)
    before = comparison.estimate(comparison.baseline, comparison.middle)
    rows = []
    for place, (name, optimisation) in enumerate(comparison.optimisations.items()):
        earlier = frozenset(names[:place])
        single = [costs[subset] / costs[subset | {name}] for subset in _subsets([n for n in names if n != name])]
        touched = _changed_parts(before, comparison.estimate(comparison.scenario([name]), comparison.middle))
        fraction = sum(float(before.parts[part]) for part in touched) / float(before.chip_seconds)
        row = OptimisationSaving(
            name=name,
            label=optimisation.label,
            evidence=optimisation.evidence,
            claim=optimisation.claim,
            change=optimisation.change,
            source=optimisation.source,
            measured_flops_saving=optimisation.flops_saving,
            factor=optimisation.requests,
            touches=touched,
            fraction=fraction,
            limit=1 / (1 - fraction) if fraction < 1 - 1e-12 else None,
            alone=comparison.ratio([name]),
            in_order=costs[earlier] / costs[earlier | {name}],
            averaged=math.exp(-gains[name]),
            least=min(single),
            most=max(single),
        )
        rows.append(row)
    return tuple(rows)


def scenario_cost(comparison: Comparison, scenario: Scenario) -> ScenarioCost:
    """A scenario and its cost, by the central figures."""
    cost = comparison.estimate(scenario, comparison.middle)
    total, model, hardware = float(cost.chip_seconds), scenario.model.model, scenario.hardware
    savings = [comparison.middle.get(("requests", name), 1.0) for name in scenario.applied]
    return ScenarioCost(
        model=scenario.model.name,
        parameters=model.parameters,
        active_parameters=model.active_parameters,
        experts_touched=model.touched(scenario.batch),
        hardware=hardware.name,
        weights=scenario.weights,
        cache=scenario.cache,
        chips=cost.chips,
        memory=scenario.memory(),
        input_tokens=scenario.context,
        output_tokens=scenario.output_tokens,
        steps=scenario.steps,
        requests=scenario.request_count * math.prod(map(float, savings)),
        parts={
            name: PartCost(chip_seconds=float(amount), fraction=float(amount) / total, region=cost.regions[name])
            for name, amount in cost.parts.items()
        },
        chip_seconds=total,
        request_seconds=float(cost.request_seconds),
        joules=None if hardware.watts is None else total * hardware.watts.value,
        price=total * comparison.prices[hardware.name] / 3600 if hardware.name in comparison.prices else None,
    )


def workload_grid(comparison: Comparison, grid: CostGridConfig) -> Iterator[GridCell]:
    """The joint saving and the product of the single ones over input tokens × output tokens × batch."""
    for batch, inputs, outputs in itertools.product(grid.batches, grid.input_tokens, grid.output_tokens):
        changed = replace(comparison.baseline, batch=batch, input_tokens=inputs, output_tokens=outputs)
        there = replace(comparison, baseline=changed)
        joint = product = None
        try:
            joint = there.ratio(list(there.optimisations))
            whole = float(there.figure(there.baseline, there.middle))
            alone = [float(there.figure(there.scenario([name]), there.middle)) for name in there.optimisations]
            product = math.prod(whole / figure for figure in alone)
        except InputError:  # a model does not fit
            pass
        yield GridCell(batch=batch, input_tokens=inputs, output_tokens=outputs, joint=joint, product=product)
