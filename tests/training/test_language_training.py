"""Training an LLM-JEPA: every objective for a few steps, the terms by hand, equal operations, repetition."""

from __future__ import annotations

import copy
import csv
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from conftest import refuses
from processes import (
    INFONCE,
    STAGE,
    assert_same_weights,
    objective_config,
    stages,
    train,
    train_config,
    train_in_two_processes,
)

from jepa import checkpoint
from jepa.build import build
from jepa.cli import compose
from jepa.config import ObjectiveConfig, validate
from jepa.losses.distance import Cosine
from jepa.losses.infonce import InfoNCE
from jepa.metrics import LatentGeometry
from jepa.operations import TrainingMeter, count_flops
from jepa.predictors.transition import LatentTransition
from jepa.training import language
from jepa.training.configs import LanguageStageConfig, LanguageTrainConfig, StageConfig
from jepa.training.language import LanguageModule, step_flops
from jepa.training.modules import CollapseWarning
from jepa.training.objectives import Objective

pytestmark = [
    pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),  # of peft
]
LOSSES = "jepa.losses."


def objective(**changed: Any) -> Objective:
    return Objective(ObjectiveConfig(**objective_config(**changed)))


def record(folder: Path) -> dict[str, Any]:
    [stage] = stages(folder)
    return stage


def logged(output: Path, name: str) -> list[float]:
    with (output / "logs" / "llm_jepa" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


ARMS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "next tokens": ({"weight": 0.0}, {}),
    "cosine": ({"loss": {"_target_": LOSSES + "distance.Cosine"}, "weight": 1.0}, {}),
    "mse": ({"loss": {"_target_": LOSSES + "distance.MSE"}}, {}),
    "siglip": ({"loss": {"_target_": LOSSES + "siglip.SigLIP"}}, {}),
    "vicreg": ({"regulariser": {"_target_": LOSSES + "regularisers.VICReg"}, "regulariser_weight": 0.1}, {}),
    "sigreg": ({"regulariser": {"_target_": LOSSES + "regularisers.SIGReg"}, "regulariser_weight": 0.1}, {}),
    "ema": ({"target": "ema"}, {}),
    "stop-gradient": ({"target": "stop_gradient"}, {}),
    "tube": ({"latent": "tube", "weight": 0.02}, {}),
    "loss dropout": ({"loss_dropout": 0.5}, {}),
    "shuffled": ({"pairs": "shuffled"}, {}),
    "reverse": ({"direction": "reverse"}, {}),
    "prepend": ({}, {"placement": "prepend"}),
    "no tokens": ({}, {"tokens": 0}),
    "separate rows": ({"rows": "separate", "view": "alone"}, {}),
    "everything": ({"train_on": "everything"}, {}),
    "published": ({"rows": "two", "view": "alone", "train_on": "published"}, {"placement": "turn"}),
    "lora": ({}, {"lora": {"r": 2}}),
    "transition": ({"weight": 0.0, "transition_weight": 0.5}, {}),
    "all of it by lora": ({"transition_weight": 0.5}, {"lora": {"r": 2}}),
}


@pytest.mark.parametrize("arm", ARMS)
def test_every_objective_trains_and_its_checkpoint_loads(arm, tmp_path):
    changed, model = ARMS[arm]
    folder = train(train_config(changed, **model), tmp_path)
    stage = record(folder)
    assert stage["steps"] == 2
    assert stage["pairs"] == 90
    assert stage["tokens"] > 0
    assert stage["flops"] > 0
    assert stage["steps_stretched"] == 1
    losses = logged(tmp_path, "loss")
    assert losses
    latent = logged(tmp_path, "latent")
    without = arm in ("next tokens", "transition")
    assert bool(latent) != without or arm == "loss dropout"  # which may have skipped both steps
    assert len(logged(tmp_path, "val/next_token")) == 1
    loaded = checkpoint.load(folder)
    assert (loaded.transition is not None) == bool(logged(tmp_path, "kl")) == ("transition_weight" in changed)
    assert loaded.answer(["lines with a digit"], 3)[0].tokens <= 3
    assert loaded.predictor.tokens == model.get("tokens", 1)


def test_a_loss_that_does_not_speak_of_norms_gets_unit_latents(tmp_path, monkeypatch):
    train(train_config(ARMS["cosine"][0]), tmp_path / "said")
    monkeypatch.delattr(Cosine, "unit_norm")
    train(train_config(ARMS["cosine"][0]), tmp_path / "unsaid")
    assert logged(tmp_path / "unsaid", "latent") == logged(tmp_path / "said", "latent")


def test_another_seed_trains_otherwise(tmp_path):
    first, other = (train(train_config(seed=seed), tmp_path / str(seed)).parent for seed in (0, 1))
    assert logged(first, "next_token") != logged(other, "next_token")


# --- The objective. ---


def batch_of(chosen: Objective, model, pairs, index: int = 0, steps: int = 4):
    stage = LanguageStageConfig(**STAGE)
    return chosen.batches(model.tokenizer.encode(pairs), model, stage, 0, steps)[index]


def test_the_loss_is_what_equation_2_says(tiny_llm_jepa, pairs):
    chosen = objective(weight=0.7, next_token_weight=0.4, loss={"_target_": LOSSES + "distance.Cosine"})
    batch = batch_of(chosen, tiny_llm_jepa, pairs)
    parts = chosen(tiny_llm_jepa, None, batch)
    out = tiny_llm_jepa(batch.rows)
    distance = 1 - F.cosine_similarity(out.predictions, out.targets).mean()
    torch.testing.assert_close(parts["latent"], distance)
    torch.testing.assert_close(parts["next_token"], F.cross_entropy(out.logits, out.labels))
    torch.testing.assert_close(parts["loss"], 0.4 * parts["next_token"] + 0.7 * distance)


def test_next_latent_prediction_reaches_the_model_beside_the_other_terms(tiny_llm_jepa, pairs):
    model = copy.deepcopy(tiny_llm_jepa)
    model.transition = LatentTransition(model.language.width, horizon=2)
    chosen, plain = objective(transition_weight=0.5), objective()
    batch = batch_of(chosen, model, pairs)
    with_it, without = chosen(model, None, batch), plain(model, None, batch)
    assert with_it["latent"] == without["latent"]
    assert with_it["kl"] > 0 < with_it["smooth_l1"]
    extra = with_it["loss"] - without["loss"]
    torch.testing.assert_close(extra, 0.5 * (with_it["kl"] + with_it["smooth_l1"]))
    extra.backward()
    assert all(p.grad.abs().sum() > 0 for p in model.language.lm.get_decoder().layers.parameters())


def test_next_token_training_has_no_extra_tokens_and_the_same_next_token_loss(tiny_llm_jepa, pairs):
    arms = [objective(weight=0.0), objective()]
    batches = [batch_of(arm, tiny_llm_jepa, pairs) for arm in arms]
    encoded = {tuple(e.prompt + e.completion) for e in tiny_llm_jepa.tokenizer.encode(pairs)}
    assert int((batches[0].rows.segments >= 0).sum()) < int((batches[1].rows.segments >= 0).sum())
    assert tiny_llm_jepa.predictor_ids[0] not in batches[0].rows.ids
    assert max(map(len, encoded)) < STAGE["row_tokens"]
    plain, method = (arm(tiny_llm_jepa, None, batch) for arm, batch in zip(arms, batches, strict=True))
    assert set(plain) == {"loss", "next_token"}
    torch.testing.assert_close(plain["loss"], plain["next_token"])
    torch.testing.assert_close(plain["next_token"], method["next_token"])


def test_infonce_leaves_equal_targets_out(tiny_llm_jepa, pairs):
    chosen = objective()
    same = [*pairs[:7], pairs[0]]
    batch = batch_of(chosen, tiny_llm_jepa, same)
    assert len(batch.rows.target_ids.unique()) == 7
    out = tiny_llm_jepa(batch.rows)
    unit = [F.normalize(x, dim=-1) for x in (out.predictions, out.targets)]
    expected = InfoNCE(0.07, learnable=False)(*unit, batch.rows.target_ids)
    torch.testing.assert_close(chosen(tiny_llm_jepa, None, batch)["latent"], expected)


def gradients_of_latent(target: str, model, pairs) -> dict[str, torch.Tensor]:
    """Of the mean squared error alone."""
    chosen = objective(weight=1.0, next_token_weight=0.0, target=target, loss={"_target_": LOSSES + "distance.MSE"})
    teacher = copy.deepcopy(model).requires_grad_(False) if target == "ema" else None
    model.zero_grad()
    chosen(model, teacher, batch_of(chosen, model, pairs))["loss"].backward()
    if teacher is not None:
        assert all(p.grad is None for p in teacher.parameters())
    return {name: p.grad.clone() for name, p in model.named_parameters()}


def test_a_stopped_gradient_is_that_of_the_prediction_alone(tiny_llm_jepa, pairs):
    model = copy.deepcopy(tiny_llm_jepa)
    both, stopped, ema = (gradients_of_latent(kind, model, pairs) for kind in ("gradient", "stop_gradient", "ema"))
    batch = batch_of(objective(), model, pairs)
    fixed = model(batch.rows).targets.detach()
    model.zero_grad()
    F.mse_loss(model(batch.rows).predictions, fixed).backward()
    for name, parameter in model.named_parameters():
        expected = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad  # none: of the head
        torch.testing.assert_close(stopped[name], expected)
        torch.testing.assert_close(ema[name], stopped[name], rtol=1e-3, atol=1e-6)  # the teacher starts as the model
    assert any((both[name] - stopped[name]).abs().max() > 1e-3 * stopped[name].abs().max() for name in both)


def test_the_teacher_follows_the_model_slowly(tiny_llm_jepa, pairs):
    module = LanguageModule(copy.deepcopy(tiny_llm_jepa), objective(target="ema"), stage_config(4))
    before = [p.clone() for p in module.teacher.parameters()]
    with torch.no_grad():
        for p in module.model.parameters():
            p.add_(torch.randn_like(p))
    module.average.on_train_batch_end(L.Trainer(accelerator="cpu", logger=False), module, None, None, 0)
    for old, slow, fast in zip(before, module.teacher.parameters(), module.model.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * fast)
        assert not slow.requires_grad
    grouped = {id(p) for group in module.parameter_groups() for p in group["params"]}
    assert grouped == {id(p) for p in module.model.parameters()}
    for changed in ({"target": "ema", "weight": 0.0}, {}):
        plain = LanguageModule(copy.deepcopy(tiny_llm_jepa), objective(**changed), stage_config(4))
        assert plain.teacher is None


@pytest.mark.parametrize(("rescaled", "factor"), [(True, 4), (False, 1)])
def test_loss_dropout_skips_the_term_and_may_rescale_it(rescaled, factor, tiny_llm_jepa, pairs):
    dropped = objective(loss_dropout=0.75, rescale_dropout=rescaled)
    kinds = set()
    for index in range(12):
        batch = batch_of(dropped, tiny_llm_jepa, pairs, index, 12)
        parts = dropped(tiny_llm_jepa, None, batch)
        kinds.add(len(parts))
        if len(batch.rows.predicted):
            torch.testing.assert_close(parts["loss"], parts["next_token"] + factor * 0.3 * parts["latent"])
        else:
            assert set(parts) == {"loss", "next_token"}
            assert torch.equal(parts["loss"], parts["next_token"])
            assert tiny_llm_jepa.predictor_ids[0] not in batch.rows.ids
    assert kinds == {2, 3}


def test_the_tube_needs_no_extra_tokens(tiny_llm_jepa, pairs):
    chosen = objective(latent="tube", weight=0.02)
    batch = batch_of(chosen, tiny_llm_jepa, pairs)
    assert torch.equal(batch.rows.ids, batch_of(objective(weight=0.0), tiny_llm_jepa, pairs).rows.ids)
    parts = chosen(tiny_llm_jepa, None, batch)
    states = tiny_llm_jepa.language.states(*batch.rows[:4]).flatten(0, 1)
    s, r, t = states[batch.rows.tube].unbind(1)
    torch.testing.assert_close(parts["latent"], 1 - F.cosine_similarity(t - r, r - s).mean())
    torch.testing.assert_close(parts["loss"], parts["next_token"] + 0.02 * parts["latent"])


# --- The run. ---


def stage_config(steps: int) -> StageConfig:
    return StageConfig(steps=steps, batch_size=8, learning_rate=1e-2, weight_decay=0.1, warmup_steps=1)


def test_every_trained_parameter_is_in_one_group(tiny_llm_jepa):
    chosen = objective(loss={"_target_": LOSSES + "siglip.SigLIP"})
    module = LanguageModule(copy.deepcopy(tiny_llm_jepa), chosen, stage_config(4))
    decayed, plain = module.parameter_groups()
    grouped = [id(p) for group in (decayed, plain) for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for part in (module.model, chosen) for p in part.parameters())
    assert plain["weight_decay"] == 0.0
    assert all(p.ndim < 2 for p in plain["params"])


def test_equal_operations_stretch_the_steps_and_the_schedule(tmp_path, monkeypatch):
    seen = {}
    real = language.fit

    def watched(module, batches, *arguments):
        trainer = real(module, batches, *arguments)
        seen["rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        seen["batches"] = len(batches)
        return trainer

    monkeypatch.setattr(language, "fit", watched)
    stage = {"epochs": 1.0}
    method = record(train(train_config({}, stage), tmp_path / "method"))
    equal = record(train(train_config({"weight": 0.0}, stage, equal_flops=objective_config()), tmp_path / "equal"))
    assert method["steps"] == round(90 / 8) == 11
    assert equal["steps_stretched"] > 1.2
    assert equal["steps"] == seen["batches"] == round(11 * equal["steps_stretched"])
    assert equal["flops"] == pytest.approx(method["flops"], rel=0.06)  # to half a step
    assert seen["rate"] == pytest.approx(0, abs=1e-12)


def test_operations_of_a_step_grow_with_its_batch_and_leave_no_gradient(tiny_llm_jepa, pairs):
    model = copy.deepcopy(tiny_llm_jepa)
    encoded, stage = model.tokenizer.encode(pairs[:8]), LanguageStageConfig(**STAGE)
    plain, method = (step_flops(arm, model, stage, encoded, 0) for arm in (objective(weight=0.0), objective()))
    assert plain < method < 3 * plain
    assert all(p.grad is None for p in model.parameters())


def test_validation_in_several_batches_is_that_of_all_pairs_at_once(tmp_path):
    """20 pairs in batches of 8, 8 and 4: every token counts once, and retrieval is among all 20."""
    config = train_config(stage={"validation_pairs": 20})
    config["data"]["validation_fraction"] = 0.25
    model = checkpoint.load(train(config, tmp_path))
    encoded = model.tokenizer.encode(build(config["data"]).validation[:20])
    stage = LanguageStageConfig(**{**STAGE, "batch_size": 20})
    (batch,) = language.validation_batches(objective(), model, stage, encoded)
    geometry = LatentGeometry(ks=(1, 10))
    with torch.no_grad():
        out = model(batch.rows)
        geometry.update(out.predictions, out.targets, batch.rows.target_ids)
    expected = {"next_token": float(F.cross_entropy(out.logits, out.labels))}
    expected |= {name: float(value) for name, value in geometry.compute().items()}
    assert {name: logged(tmp_path, f"val/{name}")[-1] for name in expected} == pytest.approx(expected, rel=1e-4)


def test_collapse_is_warned_of_while_there_is_a_latent_term(tmp_path):
    """With a large cosine term every latent becomes the same; next tokens alone promise nothing about latents."""
    cosine = {"loss": {"_target_": LOSSES + "distance.Cosine"}, "weight": 5.0, "next_token_weight": 0.0}
    with pytest.warns(CollapseWarning, match="latents have collapsed: unpaired cosine"):
        train(train_config(cosine, {"epochs": 1.0, "learning_rate": 3e-2, "validate_every": 5}), tmp_path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"stage": {"batch_size": 91}}, "batch_size must be at most the number of pairs, 90, got 91"),
        ({"data": {"_target_": LOSSES + "distance.Cosine"}}, r"data\._target_ must build ExampleSplits, got Cosine"),
        ({"stage": {"validation_pairs": 1}}, r"at least 2 distinct targets, got 1; raise stage\.validation_pairs or"),
        ({"stage": {"epochs": 0.0}}, r"epochs must be > 0 for a new language model, got 0 and no checkpoint"),
        ({"model": train_config(placement="turn")["model"]}, r"objective\.view must be alone .* turn, got shared"),
        ({"devices": 2, "strategy": "ddp"}, "must be launched by torchrun --nproc-per-node 2"),
        ({"strategy": "ddp"}, "devices > 1 must come with a strategy"),
        ({"arm": "ntp"}, "objective.weight and transition_weight must be 0 in arm ntp, .* got 0.3 and 0.0; .* method"),
        ({"arm": "ntp_equal_flops"}, "must be 0 in arm ntp_equal_flops, .* got 0.3"),
        ({"objective": objective_config(transition_weight=1.0)}, "model.transition must be given with .*, got None"),
    ],
)
def test_bad_runs_are_named(changed, message, tmp_path):
    plain = train_config(stage=changed.get("stage"))
    refuses(message, lambda: train(plain | changed | {"stage": plain["stage"]}, tmp_path))


@pytest.mark.parametrize(
    "changed",
    [{}, {"target": "ema"}, {"weight": 0.0}, {"transition_weight": 1.0}],
    ids=["default", "ema", "next tokens", "transition"],
)
def test_the_operations_of_training_are_those_of_its_steps(changed, tiny_llm_jepa, pairs):
    """What the meter adds up from rows is what `count_flops` sees of the whole steps."""
    chosen, model = objective(**changed), copy.deepcopy(tiny_llm_jepa)
    model.transition = LatentTransition(model.language.width) if "transition_weight" in changed else None
    module = LanguageModule(model, chosen, stage_config(4))
    encoded = module.model.tokenizer.encode(pairs)
    batches = chosen.batches(encoded, module.model, LanguageStageConfig(**STAGE), 0, 3)
    meter = TrainingMeter(module.parts, module.losses)

    def run() -> None:
        for index in range(3):
            meter.start(torch.device("cpu"))
            loss = chosen(module.model, module.teacher, batches[index])["loss"]
            meter.backward()
            loss.backward()
            meter.update()
            meter.stop(updated=0)

    run()
    found = meter.ledger.total_flops
    meter.remove()
    assert found == count_flops(run).total


HEAD = {"_target_": LOSSES + "infonce.ProjectionHead", "width": 32, "hidden": 16, "output": 8}


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": {**INFONCE, "learnable": True, "head": HEAD}, "loss_dropout": 0.5, "target": "ema"},
        {"latent": "tube"},
        {"weight": 0.0, "transition_weight": 1.0, "loss": {**INFONCE, "learnable": True}},  # a loss that nothing trains
    ],
    ids=["learned loss, dropped out, ema", "tube", "transition"],
)
def test_two_processes_train_as_one_does_on_both_batches(changes, tmp_path):
    """Negatives of both, a mean over the tokens of both, and both leave the latent term out on the same steps."""
    tube = changes.get("latent") == "tube"  # its positions are drawn for each batch
    two = train_in_two_processes(train_config(changes, {"epochs": 1}), "ddp", tmp_path / "two")
    one = train(train_config(changes, {"epochs": 1, "batch_size": 16}), tmp_path / "one")
    found, wanted = record(two), record(one)
    for key in ("steps", "samples", "pairs", *([] if tube else ["tokens"])):
        assert found[key] == wanted[key], key
    assert found["flops"] == pytest.approx(wanted["flops"], rel=0.1)  # padding differs
    if not tube:
        assert_same_weights(two, one)
        for row, other in zip(found["curve"], wanted["curve"], strict=True):
            assert row == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_a_decoder_is_trained_on_the_batches_of_two_processes(tmp_path):
    decoder = StageConfig(steps=2, batch_size=8, warmup_steps=0, validation_batches=1).model_dump()
    size = {"width": 32, "depth": 1, "heads": 2}
    config = train_config(stage={"epochs": 0.1})
    config["model"]["y_decoder"] = {"_target_": "jepa.decoders.prefix.PrefixDecoder", **size}
    folder = train_in_two_processes({**config, "decoder": decoder}, "ddp", tmp_path)
    assert [(stage["name"], stage["samples"]) for stage in stages(folder)] == [("llm_jepa", 16), ("decoder", 32)]
    checkpoint.load(folder)  # strictly


def composed(*overrides: str) -> dict[str, Any]:
    return validate(compose("train", ["experiment=llm_jepa_controls", *overrides]), LanguageTrainConfig).model_dump()


def test_arms_follow_the_method():
    """All but the baseline have what is set under `method`, and differ from it in nothing but what they are for."""
    changes = ["objective@method=cosine", "method.weight=2", "method.target=stop_gradient"]
    arms = {arm: composed(*changes, f"arm={arm}") for arm in ("llm_jepa", "shuffled", "ntp", "ntp_equal_flops")}
    method = arms["llm_jepa"]["objective"]
    assert (method["weight"], method["target"]) == (2.0, "stop_gradient")
    assert method["loss"] == {"_target_": LOSSES + "distance.Cosine"}
    assert arms["shuffled"]["objective"] == method | {"pairs": "shuffled"}
    assert arms["ntp_equal_flops"]["equal_flops"] == method
    assert arms["ntp"]["equal_flops"] is None
    assert arms["ntp"]["objective"]["weight"] == arms["ntp_equal_flops"]["objective"]["weight"] == 0
    assert composed("objective=cosine")["objective"]["weight"] == 1.0  # of a single run


def test_what_diverges_ends_in_one_line_and_keeps_what_was_validated(tmp_path, monkeypatch):
    broken = LanguageModule.training_step

    def training_step(self: LanguageModule, batch: Any, index: int) -> Any:
        return broken(self, batch, index) * (float("nan") if index >= 3 else 1.0)

    monkeypatch.setattr(LanguageModule, "training_step", training_step)
    refuses(r"got a NaN .* after step 4; the learning rate, 0\.01", train, train_config(stage={"epochs": 1}), tmp_path)
    checkpoint.load(tmp_path / "checkpoint")
    assert record(tmp_path / "checkpoint")["steps"] == 2
