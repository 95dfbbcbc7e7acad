"""Optimisations: changes of a scenario that may save cost. `conf/cost.yaml` lists them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

from jepa.errors import InputError, check_positive
from jepa.results import StreamResults, read_document
from jepa.results.analysis import best_causal, headline_savings, operations_ratio, reference_row, without_contrast
from jepa.studies.configs import HardwareConfig
from jepa.studies.cost.deployed import read_hardware, read_model
from jepa.studies.cost.estimate import DeployedModel, Scenario
from jepa.studies.cost.results import Basis, Range, Source


@dataclass(frozen=True)
class Optimisation:
    """A change of a scenario. `apply` raises InputError where it does not fit the scenario."""

    label: str
    claim: float | None  # the advertised factor, > 0
    change: str  # in words
    apply: Callable[[Scenario], Scenario]
    evidence: Basis = "estimated"  # the basis of its size; its saving is always estimated
    requests: Range | None = None  # the factor by which there are fewer requests
    flops_saving: float | None = None  # end to end, in the results that it rests on
    figures: Source | None = None  # of a chip or model that it brings
    hardware: str | None = None  # the name of a chip that it brings

    def __post_init__(self) -> None:
        if self.claim is not None:
            check_positive("claim", self.claim)


def on_stream(model: DeployedModel, other: DeployedModel | None, steps: float) -> DeployedModel:
    """The model on a stream, with the perception of `other` where it has none; without steps nothing perceives."""
    if not steps:
        return replace(model, perception={}, input_per_step=0, every_step=False)
    if model.perception or other is None:
        return model
    return replace(model, perception=other.perception, measured=other.measured)


def figures_of(model: DeployedModel) -> Source:
    """Where the dimensions of a model come from, its assumptions included."""
    assumed = f"; assumed: {model.assumed}" if model.assumed else ""
    return Source(name=model.name, as_of=model.as_of, source=f"{model.source}{assumed}")


def datasheet(chip: HardwareConfig) -> Source:
    """Where the figures of a chip come from."""
    return Source(name=chip.name, as_of=chip.bandwidth.as_of, source=chip.bandwidth.source)


def another_model(label: str, claim: float | None, deployed: str) -> Optimisation:
    """Another language model, by its name in conf/deployed. The perception stays, unless the model has its own.

    >>> another_model("mixture of experts", claim=3.0, deployed="mistral_small_4").change
    'Mistral Small 4 is deployed'
    """
    model = read_model(deployed)

    def apply(scenario: Scenario) -> Scenario:
        return replace(scenario, model=on_stream(model, scenario.model, scenario.steps))

    return Optimisation(label, claim, f"{model.name} is deployed", apply, figures=figures_of(model))


def another_chip(label: str, claim: float | None, hardware: str, weights: str | None) -> Optimisation:
    """Other hardware, by its name in conf/hardware; `weights` is another number format, None the baseline's.

    >>> another_chip("newer chip", claim=2.27, hardware="b200", weights="fp8").change
    'NVIDIA B200, weights in fp8'
    """
    chip = read_hardware(hardware)
    change = chip.name + (f", weights in {weights}" if weights else "")
    apply = partial(replace, hardware=chip, **({"weights": weights} if weights else {}))
    return Optimisation(label, claim, change, apply, figures=datasheet(chip), hardware=chip.name)


def fewer_tokens(
    label: str, claim: float | None, factor: float, basis: Literal["measured", "published", "assumed"]
) -> Optimisation:
    """Output tokens divided by `factor` > 0; `basis` says where the factor comes from.

    >>> fewer_tokens("fewer output tokens", claim=3.6, factor=3.6, basis="published").change
    'output tokens / 3.6'
    """
    check_positive("factor", factor)
    if basis not in ("measured", "published", "assumed"):
        raise InputError(f"basis must be measured, published or assumed, got {basis!r}")

    def apply(scenario: Scenario) -> Scenario:
        return replace(scenario, output_tokens=scenario.output_tokens / factor)

    return Optimisation(label, claim, f"output tokens / {factor:g}", apply, basis)


def selective_decoding(
    label: str, claim: float | None, results: str | None, setting: str | None, policy: str | None, factor: float | None
) -> Optimisation:
    """Fewer requests on a stream: a policy's saving of decoder calls in `results`, or an assumed `factor` > 0.

    `results` is a `results.json` of `jepa report`, or its folder. Without a `setting` its first one counts, without a
    `policy` the best causal one. Perception's steps are divided by the ratio of the steps that uniform decoding and
    the policy compute. A policy on demand runs the Predictor at a fraction of them.

    >>> selective_decoding("selective", 2.85, results=None, setting=None, policy=None, factor=2.85).change
    'decoder calls / 2.85'
    """
    if results is not None:
        return _measured(label, claim, results, setting, policy)
    if factor is None or not factor > 0:
        raise InputError(f"factor must be > 0 without results, got {factor}")
    requests = Range(value=factor, low=factor, high=factor)
    return Optimisation(label, claim, f"decoder calls / {factor:g}", _fewer_steps, "assumed", requests)


def _fewer_steps(scenario: Scenario, ratio: float = 1.0, predicted: float = 1.0) -> Scenario:
    if not scenario.steps:
        raise InputError("must be applied to a stream, got stream_rates=null")
    if scenario.model.every_step:
        raise InputError(f"must be applied to a model that may stay silent, got {scenario.model.name}")
    return replace(scenario, steps=scenario.steps / ratio, predicted=predicted)


def _measured(label: str, claim: float | None, path: str, name: str | None, policy: str | None) -> Optimisation:
    """Selective decoding as a policy saved in results."""
    settings = read_document(path, StreamResults).settings
    name = next(iter(settings)) if name is None else name
    if name not in settings:
        raise InputError(f"setting must be one of {', '.join(settings)} in {path}, got {name!r}")
    setting = settings[name]
    if policy is not None and policy not in setting.curves:
        raise InputError(f"policy must be one of {', '.join(setting.curves)} in {path}, got {policy!r}")
    by_policy = {row.policy: row for row in headline_savings(setting)}
    saving = by_policy.get(policy) if policy else best_causal(setting)
    if saving is None or not saving.reached or saving.ratio is None:
        got, reason = (saving.policy, saving.reason) if saving else (policy, "no operating point")
        raise InputError(f"policy must save decoder calls at equal quality in {path}, got {got!r}: {reason}")
    if warning := without_contrast(setting):
        rule = f"setting, one of {', '.join(settings)} in {path}, must have a quality that depends on decoding"
        raise InputError(f"{rule}, got {name!r}: {warning}")
    steps, predicted, flops, reference, ratio = 1.0, 1.0, None, reference_row(setting), saving.ratio
    point = (saving.policy, saving.value)
    row = next((row for row in setting.operations if (row.policy, row.value) == point), None)
    if row is not None and reference is not None:
        flops = operations_ratio(setting, row).flops
        theirs = reference.ledger.predictor.calls or reference.ledger.step_count
        steps = theirs * row.ledger.stream_seconds / (row.ledger.step_count * reference.ledger.stream_seconds)
        predicted = (row.ledger.predictor.calls or row.ledger.step_count) / row.ledger.step_count
    high = ratio.value if ratio.high is None else ratio.high  # no bound: the value is the safe end
    requests = Range(value=ratio.value, low=ratio.low, high=high)
    fewer = "" if steps == 1 else f", steps of perception / {steps:.2f}"
    fewer += "" if predicted == 1 else f", the Predictor at {predicted:.0%} of them"
    change = f"decoder calls / {ratio.value:.2f}{fewer}, as {saving.policy} saved on {name} streams"
    apply = partial(_fewer_steps, ratio=steps, predicted=predicted)
    return Optimisation(label, claim, change, apply, "measured", requests, flops)
