"""The controlled comparison: the data both arms see, and a tiny run of it from the command to the report."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import refuses, vlm_config
from safetensors.torch import load_file, save_file

from jepa import checkpoint
from jepa.build import build
from jepa.cli import main
from jepa.data.clips import ClipBatches
from jepa.data.world import World
from jepa.results import read_document
from jepa.studies.comparison import ArmEvaluation, ComparisonResults, comparison_results, folder_results
from jepa.studies.comparison.report import counted
from jepa.studies.comparison.train import ArmModule, StateBatch, StateBatches, held_out_clips
from jepa.training.configs import StageConfig

SHORT = [
    "accelerator=cpu", "precision=32-true", "pool=3", "held_out=10", "points=[1,2]", "learning_rate_factors=[0.5,1.0]",
    "answers=2", "stream.streams=1", "stream.seconds=8", "decoder.examples=24", "model.x_encoder.depth=1",
    *(f"{stage}.{key}" for stage in ("encoder", "stage", "decoder")
      for key in ("steps=2", "batch_size=12", "validate_every=2", "validation_batches=1")),
]  # fmt: skip
SMALLER = {
    "vl_jepa": ["model.predictor.depth=1", "model.y_encoder.depth=1", "model.y_decoder.depth=1"],
    "token_vlm": ["model.language_model.architecture.num_hidden_layers=1"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Both arms, two seeds: the sweep of the experiment."""
    folder = tmp_path_factory.mktemp("comparison")
    for arm, smaller in SMALLER.items():
        sweep = [f"hydra.sweep.dir={folder}", "name=runs", f"states={folder}/states", "seed=0,1"]
        assert main(["train", "-m", "experiment=controlled_comparison", f"model={arm}", *sweep, *SHORT, *smaller]) == 0
    return folder / "runs"


def evaluations(folder):
    return [read_document(path, ArmEvaluation) for path in sorted(folder.glob("*/*/comparison.json"))]


def test_all_runs_share_one_frozen_encoder(runs):
    [states] = (runs.parent / "states").iterdir()
    frozen = load_file(states / "encoder.safetensors")
    found = sorted(runs.glob("*/*/samples_*/model.safetensors"))
    assert len(found) == 2 * 2 * 2
    for path in found:
        saved = load_file(path)
        assert all((saved[f"x_encoder.{name}"] == tensor).all() for name, tensor in frozen.items())
    weights = [load_file(path) for path in found if "vl_jepa/seed_0" in str(path)]
    assert any((weights[0][name] != weights[1][name]).any() for name in weights[0])


def test_the_states_are_those_that_the_encoder_gives(runs):
    """Of the first clips of the pool, by the checkpoint's own encoder, up to half precision."""
    [states] = (runs.parent / "states").iterdir()
    model = checkpoint.load(next(runs.glob("vl_jepa/seed_0/samples_*")))
    clips = ClipBatches(World(), 2_000_003, 12, 3, hard_negatives=0)[0]
    stored = load_file(states / "states.safetensors")["states"]
    assert stored.shape == (36, 32, 128)
    with torch.no_grad():
        torch.testing.assert_close(stored[:12].float(), model.encode(clips.frames), rtol=2e-3, atol=2e-3)
    batch = StateBatches(states, 0, 12, 3)
    rows = batch.order[:12]
    assert batch[0].texts == [batch.samples[row][1] for row in rows]
    torch.testing.assert_close(batch[0].states, stored[torch.from_numpy(rows)].float())


def test_the_order_depends_on_the_seed_alone_and_takes_every_sample_once(tmp_path):
    save_file({"states": torch.arange(10.0)[:, None, None].half()}, tmp_path / "states.safetensors")
    lines = [json.dumps(["q", str(number)]) for number in range(10)]
    (tmp_path / "samples.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    seen = {seed: [batch.texts for batch in StateBatches(tmp_path, seed, 5, 4)] for seed in (0, 1)}
    assert seen[0] == [batch.texts for batch in StateBatches(tmp_path, 0, 5, 4)] != seen[1]
    for first in (0, 2):
        assert sorted(seen[0][first] + seen[0][first + 1]) == [str(number) for number in range(10)]
    for batch in StateBatches(tmp_path, 0, 5, 4):
        assert batch.states[:, 0, 0].tolist() == [float(text) for text in batch.texts]
    refuses("at least a batch of 11 samples, got 10", StateBatches, tmp_path, 0, 11, 1)


def test_validation_and_test_share_no_composition_with_each_other_or_with_training():
    world = World()
    validation, test = held_out_clips(world, 40, 8, seed=0)
    train = {scene for part in world.splits["train"] for scene in part}
    assert len(set(validation.scenes)) == len(set(test.scenes)) == 40
    assert not set(validation.scenes) & set(test.scenes)
    assert not train & set(validation.scenes + test.scenes)
    assert test.frames.shape == (40, 8, 48, 48, 3)
    assert all(name in references for name, references in zip(test.names, test.references, strict=True))
    refuses("held-out clips must be at most", held_out_clips, world, 10_000, 8, seed=0)


def test_every_trained_parameter_of_the_baseline_gets_a_gradient_and_the_encoder_none(tokenizer):
    model = checkpoint.build_model(vlm_config(), tokenizer)
    model.x_encoder.requires_grad_(False)
    module = ArmModule(model, None, StageConfig(), [1])
    module(StateBatch(torch.randn(3, 32, 32), ["what happens?"] * 3, ["red", "a bar", "one"])).backward()
    grouped = {id(p) for group in module.parameter_groups() for p in group["params"]}
    for name, parameter in model.named_parameters():
        assert (id(parameter) in grouped) == (not name.startswith("x_encoder."))
        assert (parameter.grad is not None) == (id(parameter) in grouped), name


def test_the_learning_rate_is_chosen_on_validation_clips(runs):
    for run in (evaluation.run for evaluation in evaluations(runs)):
        best = max(run.tried, key=lambda trial: trial.validation_mrr)
        assert run.learning_rate == best.learning_rate
        assert [trial.learning_rate for trial in run.tried] == [5e-4, 1e-3]


def test_the_report_puts_the_arms_side_by_side(runs, capsys):
    assert main(["report", f"evaluation={runs}"]) == 0
    assert "CIDEr-D after 24 samples" in capsys.readouterr().out
    results = read_document(runs, ComparisonResults)
    assert (results.seeds, results.samples) == ((0, 1), (12, 24))
    for key in ("cider_d", "top5"):
        values = {arm: [getattr(run.points[1], key) for run in found] for arm, found in results.arms.items()}
        for arm, found in values.items():
            assert results.curves[arm][key][1].value == pytest.approx(sum(found) / 2)
        differences = [a - b for a, b in zip(values["vl_jepa"], values["token_vlm"], strict=True)]
        assert results.difference[key][1].seeds == pytest.approx(differences)
    for run in results.arms["vl_jepa"]:
        assert run.streams["every step"].answers_per_step == 1
        assert 0 < run.streams["selectively"].answers_per_step <= 1
    assert results.arms["token_vlm"][0].streams["every step"].answers_per_step == 1
    model = build({"_target_": "jepa.predictors.transformer.QueryPredictor"} | {
        "vocab_size": 512, "state_dim": 128, "embedding_dim": 128, "width": 128, "depth": 1, "heads": 4
    })  # fmt: skip
    assert counted(results)["VL-JEPA: Predictor"] == sum(p.numel() for p in model.parameters())
    text = (runs / "report.md").read_text(encoding="utf-8")
    assert "Trained parameters" in text
    assert "every step" in text
    assert (runs / "report.png").stat().st_size > 5000


def test_evaluations_that_do_not_compare_are_refused(runs, tmp_path, fails):
    found = evaluations(runs)
    refuses("both arms must have the same seeds", lambda: comparison_results(found[:3], runs))
    refuses("arm token_vlm and seed 0 must occur once", lambda: comparison_results([*found, found[0]], runs))
    other = found[1].model_copy(update={"run": found[1].run.model_copy(update={"encoder_states": "another"})})
    refuses("encoder_states must be the same in all runs", comparison_results, [found[0], other, *found[2:]], runs)
    assert folder_results(tmp_path, None) is None
    shutil.copytree(runs / "vl_jepa" / "seed_0", tmp_path / "vl_jepa" / "seed_0")
    (tmp_path / "vl_jepa" / "seed_0" / "comparison.json").write_text("{}", encoding="utf-8")
    fails(["report", f"evaluation={tmp_path}"], "jepa.comparison-arm/2")


def test_points_must_end_with_the_last_step(tmp_path, fails):
    command = ["train", "experiment=controlled_comparison", f"states={tmp_path}/s", f"hydra.run.dir={tmp_path}"]
    fails([*command, *SHORT, "points=[1,3]"], "points must increase up to stage.steps = 2, got [1, 3]")


def test_a_checkpoint_of_the_baseline_is_not_evaluated_as_a_vl_jepa(runs, fails):
    folder = next(runs.glob("token_vlm/seed_0/samples_*"))
    fails(["evaluate", f"checkpoint={folder}"], "must be of vl_jepa or llm_jepa, got one of token_vlm")
