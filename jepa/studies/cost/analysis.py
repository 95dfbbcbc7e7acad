"""`jepa cost`: what a workload costs to serve, and what several optimisations save together.

An optimisation changes the baseline: another model, another chip, fewer output tokens, selective decoding. The savings
do not multiply, since each acts on the cost that the others left. So all are applied together, and the joint saving
stands beside the product of the single ones. The averaged order (Shapley, of the logarithm of the cost) divides the
joint saving among them.

The costs are a roofline's estimates (`jepa.studies.cost.estimate`). Every ratio has a range: the least and the most
over the intervals of measured savings and of the efficiencies, which are independent for each kind of chip.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from jepa.build import build_as
from jepa.errors import InputError
from jepa.evaluation.provenance import announce, code_version, now
from jepa.report.render import terminal, write_report
from jepa.studies.configs import CostConfig, CostGridConfig
from jepa.studies.cost import results
from jepa.studies.cost.deployed import model_of, options, read_model
from jepa.studies.cost.estimate import CostEstimate, DeployedModel, Scenario, Values, serving_cost
from jepa.studies.cost.optimisations import Optimisation, datasheet, figures_of, on_stream
from jepa.studies.cost.report import report

MOST_OPTIMISATIONS = 8  # all their subsets are evaluated


def run(config: CostConfig) -> results.CostResults:
    """Estimate, print a summary, and write cost.json, cost.md, cost.png and cost.html. Errors as of `analyse`."""
    found = analyse(config)
    shown = report(found)
    announce(terminal(shown), write_report(found, shown, config.output, "cost"))
    return found


def analyse(config: CostConfig) -> results.CostResults:
    """The document of a configuration.

    Raises InputError if a name, a format, an optimisation or a results file breaks a rule, or if a model does not fit.
    """
    efficiencies = {"compute": config.compute_efficiency, "memory": config.memory_efficiency}
    for kind, found in efficiencies.items():
        if not found.low <= found.value <= found.high:
            raise InputError(f"{kind}_efficiency must have low <= value <= high, got {found}")
    if len(config.goal) != 2 or config.goal[0] > config.goal[1]:
        raise InputError(f"goal must be a lower and an upper factor, got {config.goal}")
    optimisations = _optimisations(config)
    model, eyes, stream = model_of(config.deployed), _perceiving(config.perception), config.stream_rates
    eyes = eyes if stream and not model.perception else None
    steps, requests = (stream.steps_per_second, stream.requests_per_second) if stream else (0.0, 1.0)
    workload = ("weights", "cache", "input_tokens", "output_tokens", "batch", "chips", "memory_fraction", "hardware")
    baseline = Scenario(
        on_stream(model, eyes, steps), steps=steps, requests=requests, **{key: getattr(config, key) for key in workload}
    )
    chips = [config.hardware.name, *(each.hardware for each in optimisations.values() if each.hardware)]
    middle, whole = uncertainty(chips, optimisations, config)
    comparison = Comparison(baseline, optimisations, middle, whole, config.measure, config.prices)
    rows, changed = attribution(comparison), comparison.scenario(config.order)
    claims = [row.claim for row in rows if row.claim is not None]
    sources = [
        datasheet(config.hardware),
        *(figures_of(each) for each in (model, eyes) if each is not None),
        *(each.figures for each in optimisations.values() if each.figures is not None),
    ]
    return results.CostResults(
        name="cost",
        created=now(),
        code=code_version(),
        config=config.model_dump(mode="json"),
        unit="second of stream" if stream else "request",
        measure=config.measure,
        baseline=scenario_cost(comparison, baseline),
        optimised=scenario_cost(comparison, changed),
        optimisations=rows,
        joint=comparison.ratio(config.order),
        product=math.prod(row.alone.value for row in rows),
        claims=math.prod(claims) if len(claims) == len(rows) else None,
        published=_published(comparison, changed),
        goal=(config.goal[0], config.goal[1]),
        grid=tuple(workload_grid(comparison, config.grid)),
        sources=tuple({row.model_dump_json(): row for row in sources}.values()),
        efficiencies={
            kind: f"{found.value:g} ({found.low:.2f} to {found.high:.2f}), {found.source}"
            for kind, found in efficiencies.items()
        },
    )


def _optimisations(config: CostConfig) -> dict[str, Optimisation]:
    order, known = config.order, config.optimisations
    if not set(order) <= known.keys() or len(set(order)) < len(order) or len(order) > MOST_OPTIMISATIONS:
        rule = f"name at most {MOST_OPTIMISATIONS} of the optimisations ({', '.join(known)}), each once"
        raise InputError(f"order must {rule}, got {order}")
    found = {}
    for name in order:
        try:
            found[name] = build_as(Optimisation, f"optimisations.{name}", known[name])
        except InputError as error:
            raise InputError(f"optimisations.{name}: {error}") from error
    return found


def _perceiving(name: str | None) -> DeployedModel | None:
    if name is None:
        return None
    found = read_model(name)
    if not found.perception:
        having = ", ".join(option for option in options("deployed") if read_model(option).perception)
        raise InputError(f"perception must be null or a model with an encoder of its own ({having}), got {name!r}")
    return found


def _published(comparison: Comparison, changed: Scenario) -> results.PublishedTimes | None:
    """What selective decoding saves by the times that the perception's authors measured, in place of a roofline.

    None where there are no such times.
    """
    baseline = comparison.baseline
    fewer = [comparison.optimisations[name].requests for name in changed.applied]
    savings, times = [found.value for found in fewer if found is not None], baseline.model.measured
    if times is None or not baseline.steps or not savings:
        return None
    step, decode = times.step_seconds, times.decode_seconds
    before = baseline.steps * step + baseline.requests * decode
    after = changed.steps * step + baseline.requests / math.prod(savings) * decode
    return results.PublishedTimes(step_seconds=step, decode_seconds=decode, saving=before / after)


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
    """A baseline, optimisations in their order, and what is uncertain."""

    baseline: Scenario
    optimisations: Mapping[str, Optimisation]
    middle: Space  # the central figures
    whole: Space  # the intervals
    measure: str  # "chip_seconds", "joules" or "price"
    prices: Mapping[str, float]  # of a chip for an hour, by hardware name

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

    def ratio(self, names: Sequence[str]) -> results.Range:
        """Baseline over the scenario with these optimisations: the central figure and its range."""
        changed = self.scenario(names)
        value = float(self.figure(self.baseline, self.middle) / self.figure(changed, self.middle))
        ratios = self.figure(self.baseline, self.whole) / self.figure(changed, self.whole)
        return results.Range(value=value, low=float(np.min(ratios)), high=float(np.max(ratios)))


# --- Who saves how much.


def _subsets(names: Sequence[str]) -> Iterator[frozenset[str]]:
    for size in range(len(names) + 1):
        yield from map(frozenset, itertools.combinations(names, size))


def shapley(values: Mapping[frozenset[str], float], names: Sequence[str]) -> dict[str, float]:
    """Each name's part of `values[all] - values[none]`: its gain averaged over all orders (Shapley 1953).

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


def attribution(comparison: Comparison) -> tuple[results.OptimisationSaving, ...]:
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
        after = comparison.estimate(comparison.scenario([name]), comparison.middle).parts
        touched = tuple(
            part
            for part, amount in before.parts.items()
            if part not in after or not np.isclose(float(amount), float(after[part]), rtol=1e-9)
        )
        fraction = sum(float(before.parts[part]) for part in touched) / float(before.chip_seconds)
        row = results.OptimisationSaving(
            name=name,
            label=optimisation.label,
            evidence=optimisation.evidence,
            claim=optimisation.claim,
            change=optimisation.change,
            measured_flops_saving=optimisation.flops_saving,
            factor=optimisation.requests,
            touches=touched,
            fraction=fraction,
            limit=1 / (1 - fraction) if fraction < 1 - 1e-12 else None,
            alone=comparison.ratio([name]),
            in_order=costs[earlier] / costs[earlier | {name}],
            averaged=math.exp(-gains[name]),
        )
        rows.append(row)
    return tuple(rows)


def scenario_cost(comparison: Comparison, scenario: Scenario) -> results.ScenarioCost:
    """A scenario and its cost, by the central figures."""
    cost = comparison.estimate(scenario, comparison.middle)
    total, model, hardware = float(cost.chip_seconds), scenario.model.model, scenario.hardware
    amounts = {name: float(amount) for name, amount in cost.parts.items()}
    savings = [comparison.middle.get(("requests", name), 1.0) for name in scenario.applied]
    return results.ScenarioCost(
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
            name: results.PartCost(chip_seconds=amount, fraction=amount / total, region=cost.regions[name])
            for name, amount in amounts.items()
        },
        chip_seconds=total,
        joules=None if hardware.watts is None else total * hardware.watts.value,
        price=total * comparison.prices[hardware.name] / 3600 if hardware.name in comparison.prices else None,
    )


def workload_grid(comparison: Comparison, grid: CostGridConfig) -> Iterator[results.GridCell]:
    """The joint saving over input tokens × output tokens × batch."""
    for batch, inputs, outputs in itertools.product(grid.batches, grid.input_tokens, grid.output_tokens):
        changed = replace(comparison.baseline, batch=batch, input_tokens=inputs, output_tokens=outputs)
        joint = None
        with contextlib.suppress(InputError):  # a model does not fit
            joint = replace(comparison, baseline=changed).ratio(list(comparison.optimisations))
        yield results.GridCell(batch=batch, input_tokens=inputs, output_tokens=outputs, joint=joint)
