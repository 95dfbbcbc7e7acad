"""The report of language models: made-up evaluations of several arms and seeds, and tiny real ones."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from jepa.cli import main
from jepa.errors import InputError
from jepa.evaluation.answers_report import answers_results, report_answers
from jepa.evaluation.record import answer_evaluations
from jepa.operations import TRAINING_PARTS

N = 20


def made_up(arm: str, seed: int, right: int, **training: Any) -> dict[str, Any]:
    """A record of N answers of which the first `right` are right."""
    objective = {"weight": 0.0 if arm == "ntp" else 0.3, "loss": {"_target_": "jepa.losses.infonce.InfoNCE"}}
    flops = 1e12 if arm == "ntp" else 1.5e12
    return {
        "format": "jepa.answers/1", "created": f"2026-01-0{seed + 1}T00:00:00+00:00", "checkpoint": "../checkpoint",
        "name": "controls", "arm": arm, "seed": seed,
        "config": {
            "data": {"_target_": "jepa.data.regex_grammar.generate", "pairs": 100}, "tokenizer": {"vocab_size": 300},
            "model": {"_target_": "jepa.models.llm_jepa.LLMJEPA", "language_model": {"hidden_size": 32}},
            "objective": objective, "equal_flops": None, "stage": {"epochs": 2.0}, "precision": "32-true", "seed": seed,
        },
        "code": {"version": "0.1.0", "commit": "abc", "dirty": False}, "libraries": {"torch": "2.11.0"},
        "device": {"type": "cpu", "name": "a CPU", "threads": 1},
        "parameters": [{"role": "X-Encoder", "total": 10, "trainable": 10, "modules": "Llama"}],
        "training": {
            "steps": 10, "samples": 640, "tokens": 9000, "flops": flops, "seconds": 2.0, "steps_stretched": 1.0,
            "pairs": 95, "duplicates": {"train_test_pairs": 0},
            "curve": [{"step": 4, "loss": float("nan")}, {"step": 9, "loss": 2.0, "val/retrieval@1": 0.5}],
        } | training,
        "split": "test", "pairs": N,
        "scores": {"exact_match": {"accuracy": right / N, "interval": [0.1, 0.95]}},
        "geometry": {
            "retrieval@1": 0.9 + 0.02 * seed, "paired_cosine": 0.8, "unpaired_cosine": 0.01, "rankme": 12.0,
            "ridge_r2": 0.7, "paraphrase": {"pairs": 100, "auc": 0.99, "recall@1%": 0.5}, "warning": None,
        },
    }  # fmt: skip


def write(root: Path, record: dict[str, Any], verdicts: list[bool] | None = None) -> Path:
    """An evaluation where the sweep of the controls leaves it."""
    folder = root / record["arm"] / f"seed_{record['seed']}" / "evaluation"
    folder.mkdir(parents=True)
    right = round(record["scores"]["exact_match"]["accuracy"] * N)
    verdicts = [i < right for i in range(N)] if verdicts is None else verdicts
    lines = [
        # U+2028 ends a line for str.splitlines, but not in JSONL
        json.dumps(
            {"request": f"r{i}\u2028", "gold": "g", "prediction": "p", "exact_match": v, "source": str(i)},
            ensure_ascii=False,
        )
        for i, v in enumerate(verdicts)
    ]
    (folder / "predictions.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (folder / "evaluation.json").write_text(json.dumps(record), encoding="utf-8")
    return folder


@pytest.fixture
def controls(tmp_path: Path) -> Path:
    for arm, rights in {"ntp": (10, 12, 11), "llm_jepa": (12, 13, 15), "mine": (10, 12, 11)}.items():
        for seed, right in enumerate(rights):
            write(tmp_path, made_up(arm, seed, right))
    return tmp_path


def results_of(root: Path) -> dict[str, Any]:
    return answers_results(answer_evaluations(root), root)


def change(folder: Path, key: str, value: Any) -> None:
    path = folder / "evaluation.json"
    record = json.loads(path.read_text())
    *parents, last = key.split(".")
    node = record
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(json.dumps(record))


def test_arms_are_compared_over_seeds_and_over_examples(controls):
    results = results_of(controls)
    assert list(results["arms"]) == ["ntp", "llm_jepa", "mine"]
    assert (results["baseline"], results["method"]) == ("ntp", "llm_jepa")
    arm = results["arms"]["llm_jepa"]
    # 0.6, 0.65, 0.75: standard deviation 0.0763763, t(0.975, 2) = 4.302653
    assert arm["accuracy"]["exact_match"]["value"] == pytest.approx(2 / 3)
    assert arm["accuracy"]["exact_match"]["low"] == pytest.approx(2 / 3 - 4.302653 * 0.0763763 / 3**0.5, abs=1e-6)
    assert arm["accuracy"]["exact_match"]["over"] == "seeds"
    found = arm["against_baseline"]["metrics"]["exact_match"]
    # differences 0.1, 0.05, 0.2: mean 7/60, standard error 0.0440959, t = 2.645751, 2 degrees: p = 1 − t/√(t² + 2)
    assert found["value"] == pytest.approx(7 / 60)
    assert found["high"] == pytest.approx(7 / 60 + 4.302653 * 0.0440959, abs=1e-6)
    assert found["p"] == pytest.approx(1 - 7**0.5 / 3)
    # 2 + 1 + 4 answers that only the method gets right, none that only the baseline does
    assert found["examples"] == {"count": 3 * N, "won": 7, "lost": 0, "p": pytest.approx(2 / 2**7)}
    assert arm["against_baseline"]["flops_ratio"] == pytest.approx(1.5)
    assert arm["geometry"]["retrieval@1"] == pytest.approx(0.92)
    assert arm["geometry"]["paraphrase.auc"] == pytest.approx(0.99)
    assert results["arms"]["ntp"]["against_baseline"] is None
    assert results["settings"] == {"objective.weight": {"ntp": 0.0, "llm_jepa": 0.3, "mine": 0.3}}


def test_a_right_answer_costs_what_all_answers_did(controls):
    counted = {"tokens_per_answer": 8.0, "flops_per_answer": 4e9}
    for seed, right in enumerate((12, 13, 15)):
        each = {"tokens_per_right_answer": 8.0 * N / right, "flops_per_right_answer": 4e9 * N / right}
        folder = controls / "llm_jepa" / f"seed_{seed}" / "evaluation"
        change(folder, "scores.exact_match.cost", counted | each)
    results = results_of(controls)
    cost = results["arms"]["llm_jepa"]["answer_costs"]["exact_match"]
    assert cost["tokens_per_right_answer"] == pytest.approx(8 * 3 * N / 40)  # 40 of 60 answers are right
    assert cost["flops_per_right_answer"] == pytest.approx(4e9 * 3 * N / 40)
    assert results["arms"]["ntp"]["answer_costs"] == {"exact_match": None}  # an evaluation that did not count
    runs = [run["answer_costs"]["exact_match"] for run in results["runs"] if run["arm"] == "llm_jepa"]
    assert runs[2]["tokens_per_right_answer"] == pytest.approx(8 * N / 15)

    change(controls / "llm_jepa" / "seed_1" / "evaluation", "scores.exact_match.cost.tokens_per_answer", -1)
    with pytest.raises(InputError, match=r"exact_match\.cost\.tokens_per_answer must be a finite number >= 0, got -1"):
        results_of(controls)


def test_nothing_right_has_no_cost_of_a_right_answer(tmp_path):
    record = made_up("ntp", 0, 0)
    record["scores"]["exact_match"]["cost"] = {
        "tokens_per_answer": 8.0, "flops_per_answer": 4e9,
        "tokens_per_right_answer": None, "flops_per_right_answer": None,
    }  # fmt: skip
    write(tmp_path, record)
    cost = results_of(tmp_path)["arms"]["ntp"]["answer_costs"]["exact_match"]
    assert (cost["tokens_per_right_answer"], cost["flops_per_right_answer"]) == (None, None)


def test_equal_arms_differ_by_nothing(controls):
    found = results_of(controls)["arms"]["mine"]["against_baseline"]["metrics"]["exact_match"]
    assert (found["value"], found["p"], found["examples"]["p"]) == (0, 1, 1)


def test_wins_and_losses_are_counted_by_example(tmp_path):
    write(tmp_path, made_up("ntp", 0, 10), [i < 10 for i in range(N)])
    write(tmp_path, made_up("other", 0, 10), [4 <= i < 14 for i in range(N)])
    found = results_of(tmp_path)["arms"]["other"]["against_baseline"]["metrics"]["exact_match"]
    assert found["examples"] == {"count": N, "won": 4, "lost": 4, "p": pytest.approx(1)}


def test_one_seed_has_the_interval_over_examples_and_no_test_over_seeds(tmp_path):
    write(tmp_path, made_up("ntp", 0, 10))
    write(tmp_path, made_up("llm_jepa", 0, 12))
    arm = results_of(tmp_path)["arms"]["llm_jepa"]
    assert arm["accuracy"]["exact_match"] == {"value": 0.6, "low": 0.1, "high": 0.95, "over": "examples"}
    found = arm["against_baseline"]["metrics"]["exact_match"]
    assert (found["low"], found["high"], found["p"]) == (None, None, None)
    assert found["examples"]["p"] == pytest.approx(0.5)


def test_differences_are_of_the_same_seed(tmp_path):
    for arm, seed, right in (("ntp", 0, 10), ("ntp", 1, 20), ("llm_jepa", 1, 19), ("llm_jepa", 2, 5)):
        write(tmp_path, made_up(arm, seed, right))
    against = results_of(tmp_path)["arms"]["llm_jepa"]["against_baseline"]
    assert against["seeds"] == [1]
    assert against["metrics"]["exact_match"]["value"] == pytest.approx(-0.05)


def test_without_the_baseline_there_are_no_differences(tmp_path):
    write(tmp_path, made_up("llm_jepa", 0, 12))
    results = results_of(tmp_path)
    assert results["baseline"] is None
    assert results["arms"]["llm_jepa"]["against_baseline"] is None


def test_an_interval_of_accuracies_stays_within_its_range(tmp_path):
    for seed, right in ((0, 16), (1, 18)):  # 0.85 ± 12.7 · 0.05
        write(tmp_path, made_up("ntp", seed, right))
    score = results_of(tmp_path)["arms"]["ntp"]["accuracy"]["exact_match"]
    assert (score["low"], score["high"]) == (pytest.approx(0.85 - 12.7062 * 0.05, abs=1e-4), 1.0)


def test_what_was_not_finite_in_the_log_is_left_out_of_the_curve(controls):
    assert results_of(controls)["runs"][0]["curve"][0] == {"step": 4, "loss": None}


# --- What is refused.


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("config.data.pairs", 99, "config.data.pairs must be 100 as in"),
        ("config.model.language_model.hidden_size", 64, "config.model.language_model.hidden_size must be 32 as in"),
        ("config.tokenizer.vocab_size", 9, "config.tokenizer.vocab_size must be 300 as in"),
        ("split", "validation", "split must be 'test' as in"),
        ("config.stage.epochs", 4.0, "config.stage.epochs must be 2.0 as in"),
        ("config.equal_flops", {"weight": 0.3}, "config.equal_flops.weight must be None as in"),
        ("seed", 0, "arm and seed must occur once, got 'ntp' and 0 also in"),
        ("format", "jepa.evaluation/1", "format must be 'jepa.answers/1', got 'jepa.evaluation/1'"),
        ("training.flops", -1, "record.training.flops must be a finite number > 0, got -1"),
        ("scores.exact_match.accuracy", 0.9, "exact_match must be true in a fraction of 0.9 of 20 lines"),
        ("scores", {"f1": {"accuracy": 0.5, "interval": [0, 1]}}, "answer must have the key 'f1'"),
    ],
)
def test_mixtures_and_broken_records_are_refused_by_file_and_key(controls, key, value, words):
    folder = controls / "ntp" / "seed_1" / "evaluation"
    change(folder, key, value)
    with pytest.raises(InputError) as refused:
        results_of(controls)
    message = str(refused.value)
    assert words in message
    assert str(folder) in message
    assert "\n" not in message


def test_arms_may_be_trained_differently(controls):
    for seed in range(3):
        change(controls / "mine" / f"seed_{seed}" / "evaluation", "config.stage.epochs", 5.0)
    assert results_of(controls)["settings"]["stage.epochs"] == {"ntp": 2.0, "llm_jepa": 2.0, "mine": 5.0}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda text: text.replace('"r3', '"r4'), "predictions.jsonl:4: request and gold must be those of"),
        (lambda text: text.replace("true", "1", 1), "predictions.jsonl:1: answer.exact_match must be true or false"),
        (lambda text: text[:-5], f"predictions.jsonl:{N}: not JSON"),
        (lambda text: "".join(text.splitlines(keepends=True)[:-2]), "predictions.jsonl"),
    ],
)
def test_predictions_that_do_not_belong_are_refused(controls, spoil, words):
    path = controls / "ntp" / "seed_1" / "evaluation" / "predictions.jsonl"
    path.write_text(spoil(path.read_text()))
    with pytest.raises(InputError, match=words):
        results_of(controls)


# --- Where evaluations are found, and the command.


def test_evaluations_are_found_below_a_folder_or_in_it(controls):
    found = answer_evaluations(controls)
    assert len(found) == 9
    assert answer_evaluations(found[0]) == [found[0]]
    assert answer_evaluations(controls / "nowhere") == []
    other = copy.deepcopy(made_up("x", 0, 1)) | {"format": "jepa.evaluation/1"}
    change(write(controls / "elsewhere", other), "format", "jepa.evaluation/1")
    assert answer_evaluations(controls / "elsewhere") == []


def test_the_report_of_one_evaluation_lies_beside_it(tmp_path, capsys):
    folder = write(tmp_path, made_up("ntp", 0, 10))
    assert main(["report", f"evaluation={folder}"]) == 0
    assert {path.name for path in folder.parent.iterdir()} >= {"results.json", "report.md", "report.png", "report.html"}
    assert "ntp: exact match 0.500" in capsys.readouterr().out


def test_a_checkpoint_has_no_use(controls):
    config = {"evaluation": str(controls), "checkpoint": "x", "output": None}
    with pytest.raises(InputError, match="checkpoint must be null for a report of answers, got x"):
        report_answers(config, answer_evaluations(controls))


def test_training_flops_are_those_counted_at_every_step_where_they_were(tmp_path):
    part = {"calls": 8, "flops": 0, "weight_bytes": 4, "seconds": 0.5}
    for arm, each in (("ntp", 3_000_000), ("llm_jepa", 6_000_000)):
        parts = dict.fromkeys(TRAINING_PARTS, part) | {key: part | {"flops": each} for key in ("encoder", "loss")}
        for seed in (0, 1):
            counted = arm == "ntp" or seed == 0
            write(tmp_path, made_up(arm, seed, 10, operations={"steps": 10, "parts": parts} if counted else None))
    results = results_of(tmp_path)
    assert results["arms"]["ntp"]["costs"]["flops"] == 6e6
    estimated = made_up("llm_jepa", 1, 10)["training"]["flops"]
    flops, measured = ([run["costs"][key] for run in results["runs"]] for key in ("flops", "flops_measured"))
    assert flops == [6e6, 6e6, 12e6, estimated]
    assert measured == [True, True, True, False]
    assert [arm["costs"]["flops_measured"] for arm in results["arms"].values()] == [True, False]
    ratio = results["arms"]["llm_jepa"]["against_baseline"]["flops_ratio"]
    assert ratio == pytest.approx((2 + estimated / 6e6) / 2)


def test_the_command_reports_what_training_left(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = "model.language_model.architecture."
    sizes = [f"{small}hidden_size=16", f"{small}intermediate_size=16", f"{small}num_hidden_layers=1"]
    data = ["data.pairs=120", "data.test_pairs=10", "data.validation_fraction=0.1", "tokenizer.vocab_size=300"]
    stage = ["stage.epochs=0.2", "stage.batch_size=8", "stage.validation_pairs=8", "accelerator=cpu"]
    arms = ["experiment=llm_jepa_controls", "arm=ntp,llm_jepa", "seed=0", "answers.metrics=[exact_match]"]
    assert main(["train", "-m", *arms, *sizes, *data, *stage]) == 0
    assert main(["report", "evaluation=outputs/llm_jepa_controls"]) == 0
    results = json.loads(Path("outputs/llm_jepa_controls/results.json").read_text())
    assert {(run["arm"], run["seed"]) for run in results["runs"]} == {("ntp", 0), ("llm_jepa", 0)}
    assert results["arms"]["llm_jepa"]["against_baseline"]["flops_ratio"] > 1
    cost = results["arms"]["llm_jepa"]["answer_costs"]["exact_match"]
    assert cost["tokens_per_answer"] >= 1
    assert cost["flops_per_answer"] > 0
    assert "llm_jepa against ntp: " in capsys.readouterr().out
    folder = Path("outputs/llm_jepa_controls/llm_jepa/seed_0")
    [stage] = json.loads((folder / "checkpoint/training.json").read_text())["stages"]
    counted = stage["operations"]["parts"]
    [costs] = [run["costs"] for run in results["runs"] if run["arm"] == "llm_jepa"]
    assert costs["flops_measured"] is True
    assert costs["flops"] == sum(part["flops"] for part in counted.values()) > 0

    def evaluated(*stages: dict[str, Any]) -> dict[str, Any]:
        (folder / "checkpoint/training.json").write_text(json.dumps({"stages": stages}))
        assert main(["evaluate", f"checkpoint={folder}/checkpoint", "accelerator=cpu", f"output={tmp_path}/again"]) == 0
        found: dict[str, Any] = json.loads((tmp_path / "again/evaluation.json").read_text())["training"]
        return found

    twice = evaluated(stage, stage)["operations"]
    assert twice["steps"] == 2 * stage["steps"]
    for name, part in twice["parts"].items():
        assert part == {key: pytest.approx(2 * value) for key, value in counted[name].items()}
    del stage["operations"]
    assert evaluated(stage)["operations"] is None
