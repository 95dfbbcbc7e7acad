"""Arms of a language model: made-up evaluations of several arms and seeds, and tiny real ones by the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import changed_file, refuses

from jepa.cli import main
from jepa.evaluation.arms import answer_evaluations, answer_results, folder_results
from jepa.operations import TRAINING_PARTS
from jepa.results import AnswerResults, read_document
from jepa.results.arms import corrected_p

N = 20


def made_up(arm: str, seed: int, right: int, **training: Any) -> dict[str, Any]:
    """An evaluation of N answers of which the first `right` are right."""
    cost = {"tokens_per_answer": 8.0, "flops_per_answer": 4e9, "accuracy_within": [0.0, right / N]}
    cost |= dict.fromkeys(("tokens_per_right_answer", "flops_per_right_answer"))
    return {
        "kind": "jepa.answer-evaluation/2", "created": f"2026-01-0{seed + 1}T00:00:00+00:00", "name": "controls",
        "checkpoint": "../checkpoint", "arm": arm, "seed": seed,
        "config": {
            "data": {"_target_": "jepa.data.regex_grammar.generate", "pairs": 100}, "tokenizer": {"vocab_size": 300},
            "model": {"_target_": "jepa.models.llm_jepa.LLMJEPA", "language_model": {"hidden_size": 32}},
            "objective": {"weight": 0.0 if arm == "ntp" else 0.3}, "equal_flops": None, "stage": {"epochs": 2.0},
            "precision": "32-true", "seed": seed,
        },
        "code": {"version": "0.1.0", "commit": "abc", "dirty": False}, "libraries": {"torch": "2.11.0"},
        "device": {"type": "cpu", "name": "a CPU", "threads": 1},
        "parameters": [{"role": "X-Encoder", "total": 10, "trainable": 10, "modules": "Llama"}],
        "training": {
            "steps": 10, "samples": 640, "tokens": 9000, "flops": 1e12 if arm == "ntp" else 1.5e12, "seconds": 2.0,
            "steps_stretched": 1.0, "pairs": 95, "duplicates": {"train_test_pairs": 0}, "operations": None,
            "curve": [{"step": 9, "loss": 2.0, "val/retrieval@1": 0.5}],
        } | training,
        "split": "test", "pairs": N, "generation": {"seconds": 1.0, "tokens": 160},
        "scores": {
            "exact_match": {
                "accuracy": right / N, "interval": [0.1, 0.95], "cost": cost | {"ock_score": 1.0, "accuracy_area": 0.2},
            }
        },
        "geometry": {"retrieval@1": 0.9 + 0.02 * seed, "unpaired_cosine": 0.01, "paraphrase.auc": 0.99},
        "warning": None,
    }  # fmt: skip


def write(root: Path, document: dict[str, Any], verdicts: list[bool] | None = None) -> Path:
    """An evaluation where the sweep of the controls leaves it."""
    folder = root / document["arm"] / f"seed_{document['seed']}" / "evaluation"
    folder.mkdir(parents=True)
    right = round(document["scores"]["exact_match"]["accuracy"] * N)
    verdicts = [i < right for i in range(N)] if verdicts is None else verdicts
    common = {"completion": "g", "prediction": "p"}
    lines = [  # U+2028 ends a line for str.splitlines, but not in JSONL
        json.dumps({"prompt": f"r{i}\u2028", **common, "exact_match": v}, ensure_ascii=False)
        for i, v in enumerate(verdicts)
    ]
    (folder / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(document), encoding="utf-8")
    return folder


@pytest.fixture
def controls(tmp_path: Path) -> Path:
    for arm, rights in {"ntp": (10, 12, 11), "llm_jepa": (12, 13, 15), "mine": (10, 12, 11)}.items():
        for seed, right in enumerate(rights):
            write(tmp_path, made_up(arm, seed, right))
    return tmp_path


def results_of(root: Path) -> AnswerResults:
    return answer_results(answer_evaluations(root), root)


def change(folder: Path, key: str, value: Any) -> None:
    changed_file(folder / "evaluation.json", key, value)


def test_arms_are_compared_over_seeds_and_over_examples(controls):
    results = results_of(controls)
    assert list(results.arms) == ["ntp", "llm_jepa", "mine"]
    assert (results.baseline, results.method) == ("ntp", "llm_jepa")
    arm = results.arms["llm_jepa"]
    # 0.6, 0.65, 0.75: standard deviation 0.0763763, t(0.975, 2) = 4.302653
    accuracy = arm.accuracy["exact_match"]
    assert accuracy.value == pytest.approx(2 / 3)
    assert accuracy.low == pytest.approx(2 / 3 - 4.302653 * 0.0763763 / 3**0.5, abs=1e-6)
    assert accuracy.over == "seeds"
    found = arm.against_baseline.metrics["exact_match"]
    # differences 0.1, 0.05, 0.2: mean 7/60, standard error 0.0440959, t = 2.645751, 2 degrees: p = 1 − t/√(t² + 2)
    assert found.value == pytest.approx(7 / 60)
    assert found.high == pytest.approx(7 / 60 + 4.302653 * 0.0440959, abs=1e-6)
    assert found.p == pytest.approx(1 - 7**0.5 / 3)
    # 2 + 1 + 4 answers that only the method gets right, none that only the baseline does
    assert (found.examples.count, found.examples.won, found.examples.lost) == (3 * N, 7, 0)
    assert found.examples.p == pytest.approx(2 / 2**7)
    assert arm.against_baseline.flops_ratio == pytest.approx(1.5)
    assert arm.geometry == pytest.approx({"retrieval@1": 0.92, "unpaired_cosine": 0.01, "paraphrase.auc": 0.99})
    assert results.arms["ntp"].against_baseline is None
    assert results.settings == {"objective.weight": {"ntp": 0.0, "llm_jepa": 0.3, "mine": 0.3}}


def test_an_arm_is_compared_with_the_next_tokens_of_nearest_operations(controls):
    for arm, flops in (("near", 1.4e12), ("nearer", 1.51e12), ("far", 5e12), ("transition", 1.05e12)):
        for seed in range(3):
            folder = write(controls, made_up(arm, seed, 11, flops=flops))
            change(folder, "config.objective", {"weight": 0.0, "transition_weight": float(arm == "transition")})
    arms = results_of(controls).arms
    found = arms["llm_jepa"].at_equal_flops
    assert (found.arm, found.seeds) == ("nearer", (0, 1, 2))
    assert found.metrics["exact_match"].value == pytest.approx((12 + 13 + 15 - 33) / 3 / N)
    assert arms["transition"].at_equal_flops.arm == "ntp"
    assert [arms[arm].at_equal_flops for arm in ("ntp", "near", "nearer", "far")] == [None] * 4


def test_p_is_corrected_for_the_number_of_arms(controls):
    results = results_of(controls)
    alone = results.arms["llm_jepa"].against_baseline.metrics["exact_match"].p
    assert corrected_p(results, "exact_match", "against_baseline") == pytest.approx({"llm_jepa": 2 * alone, "mine": 1})
    assert corrected_p(results, "exact_match", "at_equal_flops") == {}  # all have 1.5 times the operations of ntp


def test_a_right_answer_costs_what_all_answers_did(controls):
    results = results_of(controls)
    cost = results.arms["llm_jepa"].answer_costs["exact_match"]
    assert cost.tokens_per_right_answer == pytest.approx(8 * 3 * N / 40)  # 40 of 60 answers are right
    assert cost.flops_per_right_answer == pytest.approx(4e9 * 3 * N / 40)
    assert cost.accuracy_within == pytest.approx((0.0, 2 / 3))
    runs = [run.answer_costs["exact_match"] for run in results.runs if run.arm == "llm_jepa"]
    assert runs[2].tokens_per_right_answer == pytest.approx(8 * N / 15)
    write(controls, made_up("ntp", 3, 0))
    cost = results_of(controls).runs[3].answer_costs["exact_match"]  # nothing is right
    assert (cost.tokens_per_right_answer, cost.flops_per_right_answer) == (None, None)


def test_equal_arms_differ_by_nothing(controls):
    against = results_of(controls).arms["mine"].against_baseline
    found = against.metrics["exact_match"]
    assert (found.value, found.p, found.examples.p) == (0, 1, 1)


def test_wins_and_losses_are_counted_by_example(tmp_path):
    write(tmp_path, made_up("ntp", 0, 10), [i < 10 for i in range(N)])
    write(tmp_path, made_up("other", 0, 10), [4 <= i < 14 for i in range(N)])
    against = results_of(tmp_path).arms["other"].against_baseline
    assert against.metrics["exact_match"].examples.model_dump() == {"count": N, "won": 4, "lost": 4, "p": 1}


def test_one_seed_has_the_interval_over_examples_and_no_test_over_seeds(tmp_path):
    write(tmp_path, made_up("ntp", 0, 10))
    write(tmp_path, made_up("llm_jepa", 0, 12))
    arm = results_of(tmp_path).arms["llm_jepa"]
    assert arm.accuracy["exact_match"].model_dump() == {"value": 0.6, "low": 0.1, "high": 0.95, "over": "examples"}
    found = arm.against_baseline.metrics["exact_match"]
    assert (found.low, found.high, found.p, found.examples.p) == (None, None, None, 0.5)


def test_differences_are_of_the_same_seed(tmp_path):
    for arm, seed, right in (("ntp", 0, 10), ("ntp", 1, 20), ("llm_jepa", 1, 19), ("llm_jepa", 2, 5)):
        write(tmp_path, made_up(arm, seed, right))
    against = results_of(tmp_path).arms["llm_jepa"].against_baseline
    assert against.seeds == (1,)
    assert against.metrics["exact_match"].value == pytest.approx(-0.05)


def test_an_interval_of_accuracies_stays_within_its_range(tmp_path):
    for seed, right in ((0, 16), (1, 18)):  # 0.85 ± 12.7 · 0.05
        write(tmp_path, made_up("ntp", seed, right))
    score = results_of(tmp_path).arms["ntp"].accuracy["exact_match"]
    assert (score.low, score.high) == (pytest.approx(0.85 - 12.7062 * 0.05, abs=1e-4), 1.0)


def test_training_flops_are_those_counted_at_every_step_where_they_were(tmp_path):
    part = {"calls": 8, "flops": 0, "weight_bytes": 4, "seconds": 0.5}
    for arm, each in (("ntp", 3_000_000), ("llm_jepa", 6_000_000)):
        parts = dict.fromkeys(TRAINING_PARTS, part) | {key: part | {"flops": each} for key in ("encoder", "loss")}
        for seed in (0, 1):
            counted = arm == "ntp" or seed == 0
            write(tmp_path, made_up(arm, seed, 10, operations={"steps": 10, "parts": parts} if counted else None))
    results = results_of(tmp_path)
    assert [run.costs.flops for run in results.runs] == [6e6, 6e6, 12e6, 1.5e12]
    assert [run.costs.flops_measured for run in results.runs] == [True, True, True, False]
    assert [(arm.costs.flops, arm.costs.flops_measured) for arm in results.arms.values()] == [
        (6e6, True), ((12e6 + 1.5e12) / 2, False),
    ]  # fmt: skip
    against = results.arms["llm_jepa"].against_baseline
    assert against.flops_ratio == pytest.approx((2 + 1.5e12 / 6e6) / 2)


# --- Evaluations that do not compare.


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("config.data.pairs", 99, "config.data.pairs"),
        ("config.model.language_model.hidden_size", 64, "config.model.language_model.hidden_size"),
        ("config.tokenizer.vocab_size", 9, "config.tokenizer.vocab_size"),
        ("split", "validation", "split"),
        ("config.stage.epochs", 4.0, "config.stage.epochs"),
        ("config.equal_flops", {"weight": 0.3}, "config.equal_flops.weight"),
        ("seed", 0, "arm and seed must occur once"),
        ("kind", "jepa.stream-evaluation/1", "kind"),
        ("training.flops", -1, "training.flops"),
        ("scores.exact_match.cost.tokens_per_answer", -1, "cost.tokens_per_answer"),
        ("scores.exact_match.accuracy", 0.9, "exact_match"),
    ],
)
def test_mixtures_and_broken_evaluations_are_refused_by_file_and_key(controls, key, value, named):
    folder = controls / "ntp" / "seed_1" / "evaluation"
    change(folder, key, value)
    said = refuses(named, results_of, controls)
    assert str(folder) in said
    assert "\n" not in said


def test_arms_may_be_trained_differently(controls):
    for seed in range(3):
        change(controls / "mine" / f"seed_{seed}" / "evaluation", "config.stage.epochs", 5.0)
        change(controls / "mine" / f"seed_{seed}" / "evaluation", "config.model.predictor", {"placement": "turn"})
    change(controls / "mine" / "seed_1" / "evaluation", "config.stage.validation_pairs", 7)  # changes no weight
    assert results_of(controls).settings["stage.epochs"] == {"ntp": 2.0, "llm_jepa": 2.0, "mine": 5.0}


@pytest.mark.parametrize(
    ("spoil", "place"),
    [
        (lambda text: text.replace('"r3', '"r4'), "predictions.jsonl:4: prompt"),
        (lambda text: text.replace("true", "1", 1), "predictions.jsonl:1: answer.exact_match"),
        (lambda text: text.replace("prompt", "request", 1), "predictions.jsonl:1: .*prompt"),
        (lambda text: text[:-5], f"predictions.jsonl:{N}: not JSON"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-2]), "predictions.jsonl"),
    ],
)
def test_predictions_that_do_not_belong_are_refused(controls, spoil, place):
    path = controls / "ntp" / "seed_1" / "evaluation" / "predictions.jsonl"
    path.write_text(spoil(path.read_text()))
    refuses(place, results_of, controls)


# --- Where evaluations are found, and the command.


def test_evaluations_are_found_below_a_folder_or_in_it(controls):
    found = answer_evaluations(controls)
    assert len(found) == 9
    assert answer_evaluations(found[0]) == [found[0]]
    assert answer_evaluations(controls / "nowhere") == []
    change(write(controls / "elsewhere", made_up("x", 0, 1)), "kind", "jepa.stream-evaluation/1")
    assert folder_results(controls / "elsewhere", SimpleNamespace()) is None
    refuses("checkpoint", lambda: folder_results(controls / "ntp", SimpleNamespace(checkpoint="x")))


def test_the_report_of_one_evaluation_lies_beside_it(tmp_path, capsys):
    folder = write(tmp_path, made_up("ntp", 0, 10))
    assert main(["report", f"evaluation={folder}"]) == 0
    assert {path.name for path in folder.parent.iterdir()} >= {"results.json", "report.md", "report.png", "report.html"}
    assert "0.500" in capsys.readouterr().out
    other = folder.rename(folder.with_name("evaluation_validation"))
    assert main(["report", f"evaluation={other}"]) == 0
    assert (other / "report.md").is_file()


def test_the_command_reports_what_training_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "model.language_model.architecture."
    sizes = [f"{small}hidden_size=16", f"{small}intermediate_size=16", f"{small}num_hidden_layers=1"]
    data = ["data.pairs=120", "data.test_pairs=10", "data.validation_fraction=0.1", "tokenizer.vocab_size=300"]
    stage = ["stage.epochs=0.2", "stage.batch_size=8", "stage.validation_pairs=8", "accelerator=cpu"]
    arms = ["experiment=llm_jepa_controls", "arm=ntp,llm_jepa", "seed=0", "answers.metrics=[exact_match]"]
    assert main(["train", "-m", *arms, *sizes, *data, *stage]) == 0
    assert main(["report", "evaluation=outputs/llm_jepa_controls"]) == 0
    results = read_document("outputs/llm_jepa_controls/results.json", AnswerResults)
    assert {(run.arm, run.seed) for run in results.runs} == {("ntp", 0), ("llm_jepa", 0)}
    arm = results.arms["llm_jepa"]
    assert arm.against_baseline.flops_ratio > 1
    assert arm.answer_costs["exact_match"].tokens_per_answer >= 1
    folder = Path("outputs/llm_jepa_controls/llm_jepa/seed_0")
    [trained] = json.loads((folder / "checkpoint/training.json").read_text())["stages"]
    assert arm.costs.flops_measured
    assert arm.costs.flops == sum(part["flops"] for part in trained["operations"]["parts"].values()) > 0
