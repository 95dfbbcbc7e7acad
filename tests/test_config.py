"""The schema, `build` and every YAML of conf/."""

from __future__ import annotations

import re
from functools import cache
from itertools import takewhile, zip_longest
from pathlib import Path
from typing import Any

import pytest
from conftest import refuses
from omegaconf import OmegaConf

from jepa.cli import COMMANDS, compose, groups
from jepa.config import Config, EvaluateConfig, ReportConfig, defaults, validate
from jepa.hub import ExportConfig, PushConfig
from jepa.live import LiveConfig
from jepa.studies.configs import ComparisonTrainConfig, CostConfig, ReplayConfig
from jepa.training.configs import LanguageTrainConfig, TrainConfig

CONF = Path(__file__).parent.parent / "conf"
SCHEMAS: dict[str, type[Config]] = {
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "report": ReportConfig,
    "replay": ReplayConfig,
    "cost": CostConfig,
    "push": PushConfig,
    "export": ExportConfig,
    "live": LiveConfig,
}
ARMS = ("vl_jepa", "token_vlm")  # models of the comparison


@cache
def composed(command: str, *overrides: str) -> dict[str, Any]:
    """A composition as plain containers, with text for what the user has to give."""
    config = compose(command, list(overrides))
    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given")
    return OmegaConf.to_container(config, resolve=True)


def replaced(config: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    config = OmegaConf.create(config)
    OmegaConf.update(config, key, value, force_add=True)
    return OmegaConf.to_container(config)


@pytest.mark.parametrize("command", SCHEMAS)
def test_each_command_composes_to_its_schema(command):
    config = composed(command)
    assert validate(config, SCHEMAS[command]).model_dump() == config


def test_every_yaml_at_the_root_is_a_command():
    assert {path.stem for path in CONF.glob("*.yaml")} == set(COMMANDS) == set(SCHEMAS)


def schema(command: str, config: dict[str, Any]) -> type[Config]:
    variants = {"vl_jepa": TrainConfig, "llm_jepa": LanguageTrainConfig, "comparison": ComparisonTrainConfig}
    return variants[config["variant"]] if command == "train" else SCHEMAS[command]


def rounds() -> list[tuple[str, list[str]]]:
    """Commands with choices that offer each option of each of their groups once, many groups at a time."""
    found = []
    for command in COMMANDS:
        for variant, listed in groups(command).items():
            offered = [[f"{group}={option}" for option in options(group, variant)] for group in listed]
            if command == "train" and not variant:  # an experiment has a variant
                found += [(command, [choice]) for each in offered for choice in each]
                continue
            first = [f"variant={variant}"] if variant else []
            found += [(command, [*first, *filter(None, choices)]) for choices in zip_longest(*offered)]
    return found


def options(group: str, variant: str) -> list[str]:
    """What may be chosen of a group, of models those of the variant."""
    folder, _, place = group.partition("@")
    found = sorted(path.stem for path in CONF.joinpath(folder).glob("*.yaml"))
    if folder == "model":
        return [name for name in found if variant in name or (variant == "comparison" and name in ARMS)]
    return [name for name in found if (folder, name, place) != ("objective", "method", "method")]  # that of itself


ROUNDS = rounds()


@pytest.mark.parametrize(("command", "choices"), ROUNDS)
def test_each_option_composes_to_the_schema_of_each_command_that_offers_it(command, choices):
    config = composed(command, *choices)
    validate(config, schema(command, config))


def test_every_option_is_offered():
    chosen = {re.sub("@[^=]*", "", choice) for _, choices in ROUNDS for choice in choices}
    assert chosen >= {f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/**/*.yaml")}


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_each_experiment_opens_with_its_command_cost_and_expected_figures(path):
    header = list(takewhile(lambda line: line.startswith("#"), path.read_text().splitlines()))
    assert header[0] == "# @package _global_"
    for part in ("# Command:", "# Cost:", "# Expected:"):
        assert any(line.startswith(part) for line in header), f"{path.name} lacks {part!r} in its header"
    assert f"experiment={path.stem}" in "\n".join(header)
    assert "to be measured" not in path.read_text()


POLICY = {"label": "new", "policy": {"_target_": "jepa.X"}, "parameter": "rate_hz"}


@pytest.mark.parametrize(
    ("command", "key", "value", "message"),
    [
        ("evaluate", "batch_sise", 3, "unknown key 'batch_sise'; nearest valid: batch_size"),
        ("evaluate", "streams.new.tests", 3, "unknown key 'streams.new.tests'; nearest valid: streams.dense.test"),
        ("evaluate", "zzzzzz", 3, "unknown key 'zzzzzz'; valid here: accelerator, answers, batch_size, candidates, "),
        ("evaluate", "batch_size", "many", "batch_size must be an integer, got 'many'"),
        ("evaluate", "batch_size", 1.5, "batch_size must be an integer, got 1.5"),
        ("evaluate", "batch_size", True, "batch_size must be an integer, got True"),
        ("evaluate", "batch_size", None, "batch_size must be an integer, got None"),
        ("evaluate", "batch_size", 0, "batch_size must be >= 1, got 0"),
        ("evaluate", "checkpoint", ["a"], "checkpoint must be text, got ['a']"),
        ("evaluate", "checkpoint", "???", "checkpoint is missing: give it as checkpoint=<value>"),
        ("evaluate", "streams.new", 3, "streams.new must be a group of keys, got 3"),
        ("evaluate", "streams", None, "streams must be a group of keys, got None"),
        ("evaluate", "streams.new", {"description": "d"}, "streams.new.style is missing"),
        ("report", "confidence", 1.5, "confidence must be <= 1, got 1.5"),
        ("report", "confidence", 0, "confidence must be > 0, got 0"),
        ("report", "tolerances", [0.0, 1.0], "tolerances[1] must be < 1, got 1.0"),
        ("report", "tolerances", [], "tolerances must not be empty, got []"),
        ("replay", "calibration_fraction", 1.0, "calibration_fraction must be < 1, got 1.0"),
        ("replay", "noise", [-0.1], "noise[0] must be >= 0, got -0.1"),
        ("train", "accelerator", "abacus", "accelerator must be one of "),
        ("train", "resume", "maybe", "resume must be one of True, False, auto, got 'maybe'"),
        ("report", "policies.new", {**POLICY, "values": [1, "two"]}, "policies.new.values[1] must be a finite number"),
        ("report", "policies.new", {**POLICY, "values": 3}, "policies.new.values must be a list, got 3"),
        ("train", "model.deep", [{"size": "???"}], "model.deep[0].size is missing"),
        ("train", "world._target_", "os.system", "world._target_ must lie within jepa, "),
        ("train", "model.some.part._target_", "os.system", "model.some.part._target_ must lie within jepa, "),
    ],
)
def test_what_breaks_the_schema_is_refused_by_key_rule_and_value(command, key, value, message):
    assert refuses("", validate, replaced(composed(command), key, value), SCHEMAS[command]).startswith(message)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), 0, -1.0])
def test_a_duration_is_finite_and_positive(seconds):
    evaluation = composed("evaluate")
    good = {"description": "d", "style": {}, "calibration": 2, "test": 2, "seconds": 2, "step_rate_hz": 2.0}
    checked = validate(replaced(evaluation, "streams.new", good), EvaluateConfig)
    assert type(checked.streams["new"].seconds) is float
    bad = replaced(evaluation, "streams.new", {**good, "seconds": seconds})
    refuses(r"^streams\.new\.seconds must be .*, got (nan|inf|0|-1\.0)$", validate, bad, EvaluateConfig)


def test_the_defaults_are_what_yaml_adds_to_and_an_object_cannot_change():
    evaluation = composed("evaluate")
    assert defaults(EvaluateConfig)["candidates"] == validate(evaluation, EvaluateConfig).candidates == 240
    assert defaults(TrainConfig)["name"] == "???"
    with pytest.raises(ValueError, match="frozen"):
        validate(evaluation, EvaluateConfig).seed = 1


def test_interpolations_are_resolved_and_their_errors_name_the_key():
    config = OmegaConf.create({**composed("evaluate"), "seed": 7, "batch_size": "${seed}"})
    assert validate(config, EvaluateConfig).batch_size == 7
    config.batch_size = "${sed}"
    refuses("^batch_size cannot be resolved: Interpolation key 'sed' not ", validate, config, EvaluateConfig)
