"""What a user hangs into Lightning's trainer: its own keys, trackers, callbacks, probes."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import lightning as L
import pytest
import torch
from conftest import refuses
from omegaconf import OmegaConf
from PIL import Image
from processes import config, train
from sklearn.neighbors import KNeighborsClassifier
from torch.testing import assert_close

from jepa import checkpoint
from jepa.cli import compose, main
from jepa.training.loggers import loggers
from jepa.training.probes import linear_probe, nearest_neighbours

pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
OWN = """
from pathlib import Path

import lightning as L

class Told(L.Callback):
    def __init__(self, times):
        self.times = times

    def on_train_end(self, trainer, module):
        Path("told").write_text(f"{trainer.global_step * self.times}")
"""


def logged(folder: Path) -> set[str]:
    with (folder / "logs" / "jepa" / "metrics.csv").open(encoding="utf-8") as file:
        return set(csv.DictReader(file).fieldnames or ())


def test_groups_reach_the_trainer_and_ones_own_callback_is_called(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    groups = ["trainer=profile", "callbacks=[learning_rate,probes]", "logger=csv", "+callbacks.mine.own=mine:Told"]
    kept = {
        "_target_": "lightning.pytorch.callbacks.ModelCheckpoint",
        "dirpath": str(tmp_path / "kept"),
        "filename": "theirs",
    }
    groups += [f"+callbacks.kept.{key}={value}" for key, value in kept.items()]
    train(config("decoder=null", *groups, "+callbacks.mine.times=5", "trainer.log_every_n_steps=1"), tmp_path)
    assert (tmp_path / "told").read_text() == "10"
    assert (tmp_path / "kept" / "theirs.ckpt").is_file()
    assert "run_training_batch" in (tmp_path / "logs" / "jepa" / "fit-profile.txt").read_text()
    assert not list(tmp_path.rglob("events.out.*"))
    wanted = {f"probe/{rows}/{key}" for rows in ("states", "latents") for key in ("knn", "linear", "rankme")}
    assert wanted <= logged(tmp_path)
    assert any(name.startswith("lr-AdamW") for name in logged(tmp_path))


def test_training_stops_early_where_nothing_improves(tmp_path):
    stop = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    steps = ["jepa.steps=50", "jepa.validate_every=1", "jepa.learning_rate=1e-12"]
    train(config("decoder=null", *steps, *stop), tmp_path)
    with (tmp_path / "logs" / "jepa" / "metrics.csv").open(encoding="utf-8") as file:
        assert max(int(row["step"]) for row in csv.DictReader(file)) < 49


def test_the_checkpoint_holds_the_average_of_the_weights(tmp_path):
    groups = ["decoder=null", "jepa.warmup_steps=0", "jepa.steps=2", "+callbacks.mine.own=mine:Kept"]
    kept: list[torch.Tensor] = []

    class Kept(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            kept.append(module.model.predictor.head.weight.detach().clone())

    with patch.dict(sys.modules, mine=SimpleNamespace(Kept=Kept)):
        train(config(*groups, "callbacks=ema", "callbacks.ema.decay=0.75"), tmp_path)
    found = checkpoint.load(tmp_path / "checkpoint").predictor.head.weight
    assert_close(found, 0.75 * kept[0] + 0.25 * kept[1])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["logger=trackio"], r"logger\.trackio must have its package installed, got No module named 'trackio'"),
        (["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/nope"], r"callbacks: .*metric `val/nope`"),
        (["+callbacks.mine.own=nowhere:Told"], r"callbacks\.mine\.own must be <module>:<class>, got 'nowhere:Told'"),
        (["+callbacks.mine.own=json:JSONDecoder"], r"callbacks\.mine\.own must be a lightning\.Callback, got JSONDec"),
        (
            ["+callbacks.mine._target_=jepa.data.world.World"],
            r"callbacks\.mine\._target_ must build Callback, got World",
        ),
    ],
)
def test_what_cannot_be_hung_in_is_named(overrides, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    error = message.replace("No module named 'trackio'", ".*trackio.*")
    refuses(error, lambda: train(config("decoder=null", *overrides), tmp_path))


def test_a_tracker_gets_every_step_of_a_run_that_it_is_asked_to_continue(tmp_path, monkeypatch):
    runs: list[dict[str, Any]] = []
    steps: list[int] = []

    def init(**options: Any) -> Any:
        runs.append(options)
        return SimpleNamespace(log=lambda values, step: steps.append(step), finish=lambda: None)

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    train(config("decoder=null", "logger=[csv,trackio]", "trainer.log_every_n_steps=1"), tmp_path)
    assert runs == [{"project": "jepa", "name": "tiny jepa", "resume": "allow"}]
    assert sorted(set(steps)) == [0, 1]


def test_a_resumed_stage_asks_for_the_runs_that_it_had(tmp_path, monkeypatch):
    """The identifiers are those that a state keeps; tested with wandb and mlflow themselves: docs/training.md."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    state = {"trackers": {"WandbLogger": "w1", "MLFlowLogger": "m1"}, "global_step": 16}
    composed = compose("train", ["experiment=scratch", "logger=[wandb,mlflow,tensorboard]"])
    nodes = OmegaConf.to_container(composed.logger, resolve=True)
    asked: list[dict[str, Any]] = []
    for given in (None, state):
        with patch("jepa.training.loggers.build", side_effect=asked.append):
            loggers(nodes, "tiny", tmp_path, "jepa", given)
    found = [{node["_target_"].rpartition(".")[2]: node for node in asked[start : start + 3]} for start in (0, 3)]
    assert [each["WandbLogger"]["id"] for each in found] == [None, "w1"]
    assert [each["WandbLogger"]["resume"] for each in found] == ["allow", "allow"]
    assert [each["MLFlowLogger"]["run_id"] for each in found] == [None, "m1"]
    assert [each["TensorBoardLogger"]["purge_step"] for each in found] == [None, 16]
    assert found[0]["MLFlowLogger"]["tracking_uri"] == "sqlite:///mlflow.db"  # mlflow refuses a folder of files


def test_probes_are_those_of_the_library_and_find_what_is_linear():
    generator = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(200, 8, generator=generator), torch.randint(5, (200,), generator=generator)
    unit = torch.nn.functional.normalize(rows, dim=-1)
    known = KNeighborsClassifier(7, metric="cosine").fit(unit[::2], labels[::2]).predict(unit[1::2])
    assert nearest_neighbours(rows[::2], labels[::2], rows[1::2], 7).tolist() == known.tolist()
    truth = (rows @ torch.randn(8, 3, generator=generator)).argmax(1) * 10
    found = linear_probe(rows[::2], truth[::2], rows[1::2])
    assert (found == truth[1::2]).float().mean() > 0.8
    assert set(found.tolist()) <= {0, 10, 20}


def test_curves_of_runs_are_drawn_over_each_other(tmp_path, capsys):
    for name, values in (("one", ["4.0", "2.5"]), ("two", ["3.0", ""])):
        (tmp_path / name / "logs" / "jepa").mkdir(parents=True)
        rows = [f"0,{step},{value},{step}.25" for step, value in enumerate(values)]
        (tmp_path / name / "logs" / "jepa" / "metrics.csv").write_text("\n".join(["epoch,step,loss,val/x", *rows]))
    runs = f"curves=[{tmp_path}/one,{tmp_path}/two]"
    assert main(["report", runs, f"output={tmp_path}/drawn"]) == 0
    last = {tuple(line.split())[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("jepa: loss")}
    assert last == {("loss", f"{tmp_path}/one", "step", "1", "2.5"), ("loss", f"{tmp_path}/two", "step", "0", "3")}
    with Image.open(tmp_path / "drawn" / "curves.png") as picture:
        assert picture.size[0] > 1000
    assert main(["report", f"curves=[{tmp_path}/nothing]"]) == 2
