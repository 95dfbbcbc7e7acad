"""On a GPU: both variants train, go on after a kill, and answer as on a CPU. Skipped where there is none."""

from __future__ import annotations

import copy
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FAMILIES, SHORT, SMALL_TEXT_PARTS, family
from safetensors.torch import load_file

from jepa.cli import main
from jepa.models.drafts import FirstOf, LatentDrafter, PromptLookup, generate
from jepa.predictors.transition import LatentTransition
from jepa.training.saving import StateCallback

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning"),
]
PROMPTS = [[7, 8, 9, 10, 11, 12, 13], [20, 21], list(range(30, 50)), [3, 4, 3, 4, 3]]
REGEX = ["data.pairs=170", "data.test_pairs=8", "answers.limit=8", "workers=0", "accelerator=gpu"]
REGEX += ["stage.epochs=0.3", "stage.batch_size=8", "stage.validate_every=2", "stage.validation_pairs=8"]


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", FAMILIES)
def test_packed_rows_and_drafted_text_are_those_of_one_text_at_a_time(name):
    on_cpu = family(name)
    language = copy.deepcopy(on_cpu).to("cuda")
    ids, rows = torch.tensor([PROMPTS[0] + PROMPTS[2]]), torch.tensor([[0] * 7 + [1] * 20])
    positions = torch.cat([torch.arange(7), torch.arange(20)])[None]
    packed = (ids, rows, torch.full_like(rows, -2), positions)
    with torch.no_grad():
        found, wanted = language.states(*(part.cuda() for part in packed)), on_cpu.states(*packed)
    torch.testing.assert_close(found.cpu(), wanted, atol=1e-3, rtol=1e-3)
    latent = LatentDrafter(language, LatentTransition(32).cuda(), most=4)
    alone = [generate(language, [prompt], 16)[0].tokens for prompt in PROMPTS]
    for drafter in (None, latent, PromptLookup(), FirstOf(PromptLookup(), latent)):
        assert [row.tokens for row in generate(language, PROMPTS, 16, drafter=drafter)] == alone


@pytest.mark.parametrize("arm", ["llm_jepa_transition", "published", "tube", "ntp_equal_flops"])
def test_an_llm_jepa_trains_and_is_scored(arm, tmp_path):
    drafts = ["+answers.drafts=both"] if arm == "llm_jepa_transition" else []
    command = ["train", "experiment=llm_jepa_regex", f"arm={arm}", f"hydra.run.dir={tmp_path}", *REGEX, *drafts]
    assert main(command) == 0
    found = read(tmp_path / "evaluation" / "evaluation.json")
    assert found["device"]["type"] == "cuda"
    assert not drafts or found["drafting"]["identical"] == 8
    again = ["evaluate", f"checkpoint={tmp_path}/checkpoint", f"output={tmp_path}/cpu", "accelerator=cpu"]
    assert main(again) == 0
    on_cpu = load_file(tmp_path / "cpu" / "latents.safetensors")
    for name, latents in load_file(tmp_path / "evaluation" / "latents.safetensors").items():
        torch.testing.assert_close(latents, on_cpu[name], atol=1e-3, rtol=1e-3)


def test_a_vl_jepa_trains_and_decodes_streams(tmp_path):
    short = [each for each in SHORT if not each.startswith("accelerator")] + ["accelerator=gpu", "seed=1"]
    command = ["train", "experiment=scratch", f"hydra.run.dir={tmp_path}", *short, *SMALL_TEXT_PARTS]
    assert main(command) == 0
    streams = [f"streams.{name}.{key}" for name in ("everyday", "dense") for key in ("calibration=2", "test=2")]
    streams += [f"streams.{name}.seconds=20" for name in ("everyday", "dense")]
    for device in ("gpu", "cpu"):
        given = [f"checkpoint={tmp_path}/checkpoint", f"output={tmp_path}/{device}", f"accelerator={device}"]
        assert main(["evaluate", *given, "candidates=12", *streams]) == 0
    on_gpu, on_cpu = (read(tmp_path / device / "evaluation.json") for device in ("gpu", "cpu"))
    assert on_gpu["device"]["type"] == "cuda"
    assert on_gpu["scores"]["retrieval"]["recall"] == pytest.approx(on_cpu["scores"]["retrieval"]["recall"], abs=0.1)


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch):
    command = ["train", "experiment=llm_jepa_regex", *REGEX, "resume=auto", "precision=32-true"]
    assert main([*command, f"hydra.run.dir={tmp_path}/whole"]) == 0
    begin = StateCallback.on_train_batch_start

    def stop(self: StateCallback, trainer: Any, *arguments: Any) -> None:
        begin(self, trainer, *arguments)
        if trainer.global_step == 3:
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(StateCallback, "on_train_batch_start", stop)
        with pytest.raises(SystemExit, match="143"):
            main([*command, f"hydra.run.dir={tmp_path}/stopped"])
    assert main([*command, f"hydra.run.dir={tmp_path}/stopped"]) == 0
    found, wanted = (load_file(tmp_path / name / "checkpoint" / "model.safetensors") for name in ("stopped", "whole"))
    for name, weights in wanted.items():
        torch.testing.assert_close(found[name], weights, atol=1e-4, rtol=1e-4)
