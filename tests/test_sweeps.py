"""Sweeps by plugins of Hydra: jobs on a SLURM cluster, and values that Optuna chooses."""

from __future__ import annotations

import json
import shlex

import pytest
import yaml
from hydra import compose, initialize_config_module

from jepa.cli import COMMANDS, main, register_schemas


def test_jobs_are_composed_for_slurm():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="hydra-submitit-launcher is not installed")
    register_schemas()
    chosen = ["experiment=demo", "hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu", "resume=auto"]
    with initialize_config_module("jepa.conf", version_base="1.3"):
        config = compose("train", chosen, return_hydra_config=True)
    assert config.hydra.launcher._target_.endswith("SlurmLauncher")
    assert config.hydra.launcher.partition == "gpu"
    assert config.resume == "auto"


@pytest.mark.filterwarnings("default")  # of Optuna
def test_optuna_gets_the_monitored_value_of_each_job(tmp_path, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="hydra-optuna-sweeper is not installed")
    monkeypatch.chdir(tmp_path)
    tried = []

    def train(settings, output):
        rate = settings.jepa.learning_rate
        tried.append(rate)
        (output / "checkpoint").mkdir(parents=True)
        curve = [{"step": 0, "val/x": 100.0}, {"step": 1, "val/x": rate}]
        stage = {"name": "jepa", "steps": 2, "samples": 2, "seconds": 1.0, "curve": curve}
        (output / "checkpoint" / "training.json").write_text(json.dumps({"stages": [stage]}))

    monkeypatch.setitem(COMMANDS, "train", train)
    sweep = "train -m experiment=demo monitor=val/x hydra/sweeper=optuna hydra.sweeper.n_trials=4"
    sweep += " hydra.sweeper.n_jobs=1 hydra.sweeper.direction=maximize 'jepa.learning_rate=interval(0.001,0.1)'"
    assert main(shlex.split(sweep)) == 0
    assert len(set(tried)) == 4
    [found] = tmp_path.rglob("optimization_results.yaml")
    assert yaml.safe_load(found.read_text())["best_value"] == max(tried)
