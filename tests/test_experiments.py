"""Every published experiment, as its users run it: two steps of each stage, then evaluation and report."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import FEW_POLICIES, SHORT, SMALL_TEXT_PARTS, annotate, never, real_data, write_video
from safetensors.numpy import load_file, save_file

import jepa
from jepa.checkpoint import build_model
from jepa.cli import compose, main
from jepa.config import validate
from jepa.data.pairs import Example
from jepa.results import AnswerEvaluation, StreamEvaluation, StreamResults, read_document
from jepa.training.configs import LanguageTrainConfig
from jepa.training.language import make_tokenizer

ROOT = Path(__file__).parents[1]
# After two steps latents may be anything.
pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")
SHORT_LANGUAGE = ["stage.epochs=0.1", "stage.batch_size=8", "stage.validate_every=1", "stage.validation_pairs=8"]
SHORT_LANGUAGE += [
    f"model.language_model.architecture.{key}"
    for key in ("hidden_size=32", "intermediate_size=64", "num_hidden_layers=1")
]
SHORT_LANGUAGE += ["answers.limit=4", "workers=0", "accelerator=cpu", "precision=32-true"]
SHORT_DATA = ["data.pairs=170", "data.test_pairs=8"]  # of the generator
SMALL = ["candidates=12", "accelerator=cpu"] + [
    f"streams.{name}.{key}" for name in ("everyday", "dense") for key in ("calibration=2", "test=2", "seconds=20")
]


def stages(folder: Path) -> list[dict]:
    return json.loads((folder / "checkpoint" / "training.json").read_text(encoding="utf-8"))["stages"]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    """The output folder of a VL-JEPA, trained for two steps a stage, all from the start."""
    folder = tmp_path_factory.mktemp("scratch")
    assert main(["train", "experiment=scratch", f"hydra.run.dir={folder}", *SHORT, *SMALL_TEXT_PARTS]) == 0
    return folder


@pytest.fixture(scope="module")
def evaluated(scratch) -> Path:
    assert main(["evaluate", f"checkpoint={scratch}/checkpoint", *SMALL]) == 0
    return scratch


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> Path:
    """The output folder of an LLM-JEPA, trained for two steps."""
    folder = tmp_path_factory.mktemp("language")
    assert main(["train", "experiment=llm_jepa_regex", f"hydra.run.dir={folder}", *SHORT_LANGUAGE, *SHORT_DATA]) == 0
    return folder


def test_an_experiment_trains_and_its_checkpoint_loads(scratch):
    model = jepa.load(scratch / "checkpoint")
    assert model.embed(["the red bar moves left"]).shape[0] == 1
    assert [(stage["name"], stage["steps"]) for stage in stages(scratch)] == [("jepa", 2), ("decoder", 2)]
    assert any("val/retrieval@1" in row for row in stages(scratch)[0]["curve"])
    logs = scratch / "logs" / "jepa"
    assert (logs / "metrics.csv").is_file()
    assert list(logs.glob("events.out.tfevents.*"))


def test_the_stages_of_the_paper_hand_their_checkpoint_on(tmp_path):
    """As three commands; the paper's full size is composed in tests/training/test_stages.py."""
    before = SMALL_TEXT_PARTS
    for name, stage in (("captioning", "jepa"), ("finetuning", "jepa"), ("decoder", "decoder")):
        short = [item for item in SHORT if item.partition(".")[0] in (stage, item)]
        folder = tmp_path / name
        assert main(["train", f"experiment=vl_jepa_{name}", f"hydra.run.dir={folder}", *before, *short]) == 0
        before = [f"checkpoint={folder}/checkpoint"]
    assert [stage["name"] for stage in stages(folder)] == ["jepa", "jepa", "decoder"]
    assert jepa.load(folder / "checkpoint").decode(torch.zeros(1, 128))[0].tokens >= 1


def test_the_report_holds_what_was_evaluated_and_needs_no_encoder(evaluated, capsys, monkeypatch):
    from jepa.encoders.vision import FrameViT
    from jepa.predictors.transformer import QueryPredictor

    for part, method in ((FrameViT, "encode_slots"), (FrameViT, "forward"), (QueryPredictor, "forward")):
        monkeypatch.setattr(part, method, never)
    few = [each for each in FEW_POLICIES if each not in ("~policies.ward_mean", "~policies.gate_cache")]
    assert main(["report", f"evaluation={evaluated}/evaluation", *few]) == 0
    out = capsys.readouterr().out
    assert "report.html" in out
    results = read_document(evaluated, StreamResults)
    assert set(results.settings) == {"everyday", "dense"}
    for setting in results.settings.values():
        assert {"uniform", "ward_mean", "gate", "gate_cache", "selective_encoding"} <= set(setting.curves)
        fastest = setting.curves["uniform"].test[0]
        assert fastest.value == 2.0
        assert fastest.decodes_per_second == pytest.approx(39 / 20)  # 39 windows of 1 s in 20 s, every 0.5 s
        operations = setting.operations[0].ledger
        assert operations.encoder.calls == 2 * 40  # slots of half a second
        assert operations.predictor.calls == operations.decoder.calls == 2 * 20
    assert results.scores.retrieval.candidates == 12
    for name in ("report.html", "report.md", "report.png"):
        assert (evaluated / name).stat().st_size > 1000


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> list[Path]:
    """Seven videos, `v_0.mp4` and so on, the fourth half as long as the others."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(7):
        write_video(folder / f"v_{number}.mp4", number, seconds=12 if number == 3 else 24)
    return sorted(folder.iterdir())


def annotated(videos: list[Path], folder: Path) -> list[str]:
    """Videos with annotations for 24 s in a folder, as overrides of `evaluate`."""
    for video in videos:
        (folder / video.name).symlink_to(video)
    return annotate(folder, len(videos), 24.0)


def test_real_videos_go_from_files_to_a_report(evaluated, videos, tmp_path, capsys):
    """Of seven annotated videos one is not there, and one proves broken on the way: neither costs another."""
    overrides = annotated(videos, tmp_path)
    (tmp_path / "v_6.mp4").unlink()
    output = tmp_path / "run" / "evaluation"
    command = ["evaluate", f"checkpoint={evaluated}/checkpoint", f"output={output}", "candidates=12", "accelerator=cpu"]
    assert main([*command, *overrides]) == 2
    shown = capsys.readouterr()
    assert "6 of 7 annotated videos" in shown.out
    [error] = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert "must be whole, got 1 that are not, left out of" in error
    assert "v_3.mp4: must last 24.00 s" in error
    evaluation = read_document(output, StreamEvaluation)
    assert evaluation.scores.retrieval.candidates == 12
    assert list(evaluation.settings["videos"].broken) == ["v_3"]
    assert main(["report", f"evaluation={output}", *FEW_POLICIES]) == 0
    setting = read_document(tmp_path / "run", StreamResults).settings["videos"]
    assert setting.streams.calibration + setting.streams.test == 5
    assert setting.streams.seconds_each == 24.0
    assert setting.description.endswith("; broken and left out: 1")
    assert setting.operations[0].ledger.predictor.calls == 24 * setting.streams.test  # uniform decoding, 1 Hz
    assert all(setting.timeline.decodes.values())
    assert len(setting.timeline.thumbnails) == 36


def test_what_streams_need_is_checked_before_anything_is_computed(evaluated, videos, tmp_path, fails, monkeypatch):
    monkeypatch.setattr("jepa.evaluation.videos.score_tasks", never)
    monkeypatch.setattr("jepa.evaluation.videos.encode_stream", never)
    command = ["evaluate", f"checkpoint={evaluated}/checkpoint", f"output={tmp_path}/out", "accelerator=cpu"]
    overrides = annotated(videos[:4], tmp_path)
    fails([*command, *overrides, "videos.timeline.format=coco"], "format must be one of", "got 'coco'")
    fails([*command, *overrides, f"videos.timeline.durations={tmp_path}/none.csv"], "durations")
    fails([*command, *overrides, f"videos.folder={tmp_path}/none"], "videos.folder must hold annotated videos")
    fails([*command, *overrides, "videos.step_rate_hz=3"], "videos.step_rate_hz: step_rate must divide")
    fails([*command, *overrides, "videos.minutes=0.001"], "must have at least 2 streams")
    fails([*command, "streams.dense.step_rate_hz=3"], "streams.dense.step_rate_hz: step_rate must divide")
    fails([*command, "streams.dense.seconds=0.5"], "must last at least", "got 0.5 s")
    fails([*command, "streams.dense.calibration=1"], "streams.dense.calibration must be >= 2, got 1")
    (tmp_path / "v_1.mp4").unlink()
    (tmp_path / "v_1.mp4").write_bytes(b"broken")
    fails([*command, *overrides], "v_1.mp4: cannot be decoded")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["llm_jepa_regex", "llm_jepa_nlrx", "llm_jepa_published"])
def test_a_language_experiment_trains_answers_and_evaluates_again(name, tmp_path):
    real = name == "llm_jepa_nlrx"
    data = [f"data.folder={real_data('nlrx')}", "data.limit=160"] if real else SHORT_DATA
    command = ["train", f"experiment={name}", f"hydra.run.dir={tmp_path}", *SHORT_LANGUAGE, *data]
    assert main(command) == 0
    model = jepa.load(tmp_path / "checkpoint")
    assert model.embed(["the answer"]).shape == (1, 32)
    [stage] = stages(tmp_path)
    assert (stage["name"], stage["steps"]) == ("llm_jepa", 2)
    lines = (tmp_path / "evaluation" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 4
    keys = ["exact_match", "regex_equivalence"]
    if name == "llm_jepa_published":
        config = yaml.safe_load((tmp_path / "checkpoint" / "config.yaml").read_text(encoding="utf-8"))
        keys, published = ["prefix_match", *keys], config["objective"]
        assert (config["arm"], config["data"]["system"], model.predictor.placement) == ("published", True, "turn")
        told = ("rows", "view", "train_on", "rescale_dropout", "direction", "target")
        assert [published[key] for key in told] == ["separate", "alone", "published", False, "forward", "gradient"]
        assert published["loss"] == {"_target_": "jepa.losses.distance.Cosine"}
    assert list(json.loads(lines[0])) == ["source", "prompt", "completion", "prediction", *keys]
    latents = load_file(tmp_path / "evaluation" / "latents.safetensors")
    assert latents["predictions"].shape == latents["targets"].shape == (4, 32)
    first = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert main(["evaluate", f"checkpoint={tmp_path}/checkpoint", f"output={tmp_path}/again", "accelerator=cpu"]) == 0
    again = json.loads((tmp_path / "again" / "evaluation.json").read_text(encoding="utf-8"))
    assert (again["scores"], again["geometry"]) == (first["scores"], first["geometry"])


def test_a_decoder_from_embeddings_is_trained_on_a_frozen_model(language, tmp_path):
    first, second = language, tmp_path / "second"
    short = ["decoder.steps=2", "decoder.batch_size=8", "decoder.validate_every=1", "answers.limit=4", "workers=0"]
    command = ["train", "experiment=llm_jepa_decoder", f"checkpoint={first}/checkpoint", f"hydra.run.dir={second}"]
    assert main([*command, *short, *SHORT_DATA, "accelerator=cpu", "precision=32-true"]) == 0
    before, after = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (first, second))
    assert all((before[name] == after[name]).all() for name in before)
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"y_decoder"}
    assert [stage["name"] for stage in stages(second)] == ["llm_jepa", "decoder"]
    scores = json.loads((second / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))["scores"]
    assert "exact_match from the embedding" in scores
    assert jepa.load(second / "checkpoint").decode(jepa.load(first / "checkpoint").embed(["a"]))[0].tokens >= 1


def test_drafts_are_trained_on_a_frozen_model_and_change_no_answer(language, tmp_path, capsys, fails):
    """The first run's model forgets nothing: with drafts, its answers are the same in fewer passes."""
    first, second = language, tmp_path / "second"
    short = ["draft.steps=3", "draft.batch_size=8", "draft.validate_every=1", "draft.validation_batches=1", "workers=0"]
    command = ["train", "experiment=llm_jepa_draft", f"checkpoint={first}/checkpoint", f"hydra.run.dir={second}"]
    assert main([*command, *short, "answers.limit=4", *SHORT_DATA, "accelerator=cpu", "precision=32-true"]) == 0
    before, after = (load_file(folder / "checkpoint" / "model.safetensors") for folder in (first, second))
    assert all((before[name] == after[name]).all() for name in before)
    assert {name.partition(".")[0] for name in after.keys() - before.keys()} == {"transition"}
    assert [stage["name"] for stage in stages(second)] == ["llm_jepa", "draft"]
    assert stages(second)[-1]["operations"]["parts"]["predictor"]["flops"] > 0
    files = [folder / "evaluation" / "predictions.jsonl" for folder in (first, second)]
    assert files[0].read_bytes() == files[1].read_bytes()
    found = read_document(second / "evaluation", AnswerEvaluation)
    drafts, passes = found.drafting, found.generation.forward_passes
    assert drafts.identical == drafts.uniform.calls == 4
    assert sum(drafts.passes) == passes
    assert sum(drafts.given) == drafts.uniform.forward_passes == drafts.uniform.tokens == found.generation.tokens
    assert passes + sum(drafts.accepted) >= drafts.uniform.forward_passes > sum(drafts.accepted) >= 0
    assert main(["report", f"evaluation={second}/evaluation"]) == 0
    assert "texts identical to token by token" in (second / "report.md").read_text(encoding="utf-8")
    assert "4 texts identical" in capsys.readouterr().out
    evaluate = ["evaluate", f"checkpoint={first}/checkpoint", f"output={tmp_path}/lookup", "accelerator=cpu"]
    assert main([*evaluate, "+answers.drafts=lookup", "+answers.draft_tokens=3"]) == 0
    lookup = read_document(tmp_path / "lookup", AnswerEvaluation).drafting
    assert (lookup.identical, lookup.most, lookup.threshold) == (4, 3, 0.0)
    few = ["evaluate", f"checkpoint={second}/checkpoint", f"output={tmp_path}/few", "accelerator=cpu"]
    assert main([*few, "+answers.drafts=latent", "+answers.draft_vocabulary=answers"]) == 0
    assert read_document(tmp_path / "few", AnswerEvaluation).drafting.identical == 4
    fails([*evaluate, "+answers.drafts=latent"], "needs a checkpoint with a draft stage")
    without = [*command, *short, *SHORT_DATA, "draft=null", "stage.epochs=0.1", "accelerator=cpu"]
    fails(without, "model.transition must be given with draft or objective.transition_weight")


@pytest.mark.parametrize(("arm", "weight"), [("ntp", 0.0), ("llm_jepa", 0.3), ("cosine", 1.0)])
def test_the_full_size_experiment_composes_and_has_the_published_parameters(arm, weight):
    """Llama-3.2-1B has 1,235,814,400; the [PRED] tokens use rows that its vocabulary reserves."""
    overrides = ["experiment=llm_jepa_llama_1b", "data.folder=x", "tokenizer.pretrained=null", f"arm={arm}"]
    config = validate(compose("train", overrides), LanguageTrainConfig)
    assert (config.arm, config.objective.weight) == (arm, weight)
    tokenizer = make_tokenizer(config.tokenizer, [Example("lines with a dog", "(.*dog.*)", None)])
    with torch.device("meta"):
        model = build_model(config.model_dump(), tokenizer)
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_235_814_400


def test_the_controls_are_a_sweep_over_arms_and_seeds(tmp_path):
    arms = ("ntp", "ntp_equal_flops", "ntp_transition_flops")
    sweep = [f"hydra.sweep.dir={tmp_path}", f"arm={','.join(arms)}", "seed=0"]
    short = [*SHORT_LANGUAGE, *SHORT_DATA, "stage.epochs=0.4"]
    assert main(["train", "-m", "experiment=llm_jepa_controls", *sweep, *short]) == 0
    steps = {}
    for arm in arms:
        folder = tmp_path / "llm_jepa_controls" / arm / "seed_0"
        record = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
        assert (record["arm"], record["seed"], record["pairs"]) == (arm, 0, 4)
        steps[arm] = record["training"]["steps"]
        assert record["config"]["model"]["transition"] is None
    assert steps["ntp_transition_flops"] > steps["ntp_equal_flops"] > steps["ntp"], record["training"]


def test_bad_input_ends_in_one_line(evaluated, tmp_path, fails):
    evaluation, checkpoint = evaluated / "evaluation", evaluated / "checkpoint"
    fails(["evaluate", f"checkpoint={tmp_path}/none"], "checkpoint not found", f"{tmp_path}/none")
    fails(["report", f"evaluation={tmp_path}/none"], "evaluation not found")
    fails(["evaluate", f"checkpoint={checkpoint}", "candidates=4"], "candidates must be >= 5", "got 4")
    blocked = tmp_path / "file"
    blocked.write_text("in the way", encoding="utf-8")
    fails(["evaluate", f"checkpoint={checkpoint}", f"output={blocked}/x", *SMALL], str(blocked))
    fails(["report", f"evaluation={evaluation}", f"output={blocked}"], str(blocked))
    fails(["train", "experiment=scratch", f"hydra.run.dir={blocked}/x", *SHORT], str(blocked))
    train = ["train", "experiment=scratch", *SHORT, f"hydra.run.dir={tmp_path}/a"]
    fails([*train, "model.x_encoder.depht=3"], "depht")
    fails([*train, "world.fps=4", "model.fps=8"], "world.size and world.fps must be those of the model")


def test_broken_latents_end_in_one_line_and_leave_the_report_whole(evaluated, fails):
    path, report = evaluated / "evaluation" / "everyday" / "test" / "latents.safetensors", evaluated / "report.md"
    whole, kept = path.read_bytes(), report.read_bytes() if report.exists() else b""
    tensors = {name: array.copy() for name, array in load_file(path).items()}
    tensors["everyday-test-0001/latents"][3, 0] = np.nan
    save_file(tensors, path)
    try:
        fails(["report", f"evaluation={evaluated}/evaluation"], "everyday-test-0001", "norm nan at step 3")
    finally:
        path.write_bytes(whole)
    assert not kept or report.read_bytes() == kept
