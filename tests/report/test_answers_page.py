"""The report on a made-up document of language models: four arms, three seeds of most."""

from __future__ import annotations

import copy
import html.parser as html_parser
import io
import json
from typing import Any

import matplotlib.image
import pytest

from jepa.errors import InputError
from jepa.report.answers import (
    arms_table,
    budget_figure,
    headline,
    html,
    markdown,
    overview_png,
    runs_table,
    settings_table,
    summary,
    validate_results,
    verdict,
    write_report,
)

HOSTILE = '<script>alert("1")</script> & $x_1$ | `code` *bold* \x00\nnext'
GEOMETRY = {"retrieval@1": 0.95, "unpaired_cosine": 0.012, "paired_cosine": 0.8, "rankme": 21.3}
COSTS = {"steps": 100, "samples": 6400, "tokens": 91000, "flops": 2e12, "seconds": 61.0, "steps_stretched": 1.0}

ANSWER_COSTS = {
    "tokens_per_answer": 12.0,
    "flops_per_answer": 3e9,
    "tokens_per_right_answer": 15.0,
    "flops_per_right_answer": 3.75e9,
    "ock_score": 85.98,
    "accuracy_within": [0.0, 0.0, 0.3, 0.6, 0.86],
    "accuracy_area": 0.225,
}


def _arm(accuracy: float, seeds: int, against: float | None, **geometry: float) -> dict[str, Any]:
    over = {"low": accuracy - 0.02, "high": accuracy + 0.02, "over": "seeds" if seeds > 1 else "examples"}
    bounds = (against - 0.007, against + 0.007, 0.2) if against is not None and seeds > 1 else (None, None, None)
    test = dict(zip(("low", "high", "p"), bounds, strict=True))
    examples = {"count": 600, "won": 12, "lost": 9, "p": 0.0004}
    found = {
        "seeds": list(range(seeds)),
        "metrics": {"exact_match": {"value": against, **test, "examples": examples}},
        "flops_ratio": 1.5,
    }
    return {
        "seeds": list(range(seeds)),
        "accuracy": {"exact_match": {"value": accuracy, **over}},
        "answer_costs": {"exact_match": dict(ANSWER_COSTS)},
        "against_baseline": None if against is None else found,
        "costs": dict(COSTS),
        "geometry": GEOMETRY | geometry,
        "collapsed": seeds if geometry.get("unpaired_cosine", 0) > 0.9 else 0,
    }


def make_answers() -> dict[str, Any]:
    arms = {
        "ntp": _arm(0.86, 3, None, **{"retrieval@1": 0.02, "unpaired_cosine": 0.4}),
        "llm_jepa": _arm(0.864, 3, 0.004),
        "cosine": _arm(0.85, 3, -0.01, **{"retrieval@1": 0.0, "unpaired_cosine": 0.9995}),
        "single": _arm(0.84, 1, -0.02, **{"retrieval@1": 0.5}),
    }
    runs = [
        {
            "arm": name, "seed": seed, "evaluation": f"{name}/seed_{seed}/evaluation",
            "accuracy": {"exact_match": arm["accuracy"]["exact_match"]["value"] + 0.004 * (seed - 1)},
            "answer_costs": {"exact_match": dict(ANSWER_COSTS)},
            "costs": dict(COSTS), "geometry": arm["geometry"], "warning": "collapsed" if arm["collapsed"] else None,
            "curve": [
                {"step": 9, "loss": None},
                {"step": 49, "val/next_token": 1.2, "val/retrieval@1": 0.3},
                {"step": 99, "val/next_token": 0.4, "val/retrieval@1": 0.9},
            ],
        }
        for name, arm in arms.items()
        for seed in arm["seeds"]
    ]  # fmt: skip
    return {
        "schema": "jepa.answers-results/2", "created": "2026-01-01T00:00:00+00:00", "name": "controls", "split": "test",
        "pairs": 200, "training_pairs": 7600, "duplicates": {"train_test_pairs": 3}, "metrics": ["exact_match"],
        "baseline": "ntp", "method": "llm_jepa", "arms": arms, "runs": runs,
        "settings": {
            "objective.weight": {"ntp": 0.0, "llm_jepa": 0.3, "cosine": 1.0, "single": 0.3},
            "objective.loss._target_": {"llm_jepa": "jepa.losses.infonce.InfoNCE"},
        },
        "parameters": [{"role": "X-Encoder", "total": 10, "trainable": 10, "modules": "Llama"}],
        "code": [{"version": "0.1.0", "commit": "abc", "dirty": False}], "libraries": [{"torch": "2.11.0"}],
        "device": [{"type": "cpu", "name": "a CPU", "threads": 1}], "config": {"name": "controls"},
    }  # fmt: skip


@pytest.fixture
def results() -> dict[str, Any]:
    return make_answers()


def _cells(results: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for _, rows in arms_table(results).groups for row in rows}


# --- Sentences and tables.


def test_the_headline_has_difference_interval_and_latents(results):
    assert headline(results) == (
        "llm_jepa against ntp: +0.4 points exact match (−0.3 to +1.1; p 0.2, 3 seeds); "
        "latents informative (retrieval@1 0.95, unpaired cosine 0.01)"
    )


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        (
            "ntp",
            "ntp: exact match 0.860 (0.840 to 0.880); latents uninformative (retrieval@1 0.02, unpaired cosine 0.40)",
        ),
        ("cosine", "latents collapsed in 3 of 3 seeds (retrieval@1 0.00, unpaired cosine 1.00)"),
        (
            "single",
            "−2.0 points exact match (1 seed, so no interval; over examples p < 0.001); latents partly informative",
        ),
    ],
)
def test_a_verdict_says_what_the_figures_say(results, arm, words):
    assert words in verdict(results, arm)


def test_no_text_speaks_of_significance(results):
    for shown in (markdown(results), html(results), summary(results)):
        assert "significan" not in shown


def test_a_missing_baseline_is_said(results):
    for name in ("ntp", "cosine", "single"):
        del results["arms"][name]
    results["runs"] = [run for run in results["runs"] if run["arm"] == "llm_jepa"]
    results["arms"]["llm_jepa"]["against_baseline"] = results["baseline"] = None
    assert headline(results).startswith("llm_jepa: exact match 0.864 (0.844 to 0.884), no difference: no arm ntp; ")
    for shown in (markdown(results), html(results), summary(results)):
        assert "There is no arm ntp, so differences to next-token training are left out." in shown
    assert not any("ntp" in title for title in _cells(results))


def test_accuracy_stands_beside_what_a_right_answer_costs(results):
    results["arms"]["cosine"]["answer_costs"]["exact_match"] = None
    results["arms"]["single"]["answer_costs"]["exact_match"] |= {
        "tokens_per_right_answer": None,
        "flops_per_right_answer": None,
    }
    cells = _cells(results)
    assert cells["generated tokens per right answer"] == ("15", "15", "–", "∞")
    assert cells["FLOPs per right answer"] == ("3.75e+09", "3.75e+09", "–", "∞")
    assert "\nper right answer: ntp 15 tokens, 3.75e+09 FLOPs; " in summary(results)
    assert "; cosine not counted; single ∞ tokens, ∞ FLOPs\n" in summary(results)
    assert runs_table(results).groups[0][1][0][3:6] == ("0.856", "15", "3.75e+09")
    for shown in (markdown(results), html(results)):
        assert "2504.13359" in shown


def test_the_table_holds_every_figure_of_every_arm(results):
    cells = _cells(results)
    assert cells["mean and 95 % interval over seeds"][0] == "0.860 (0.840 to 0.880)"
    assert cells["mean and 95 % interval over seeds"][3] == "0.840 (0.820 to 0.860) °"
    assert cells["points over ntp, 95 % interval over seeds"] == (
        "–", "+0.4 (−0.3 to +1.1)", "−1.0 (−1.7 to −0.3)", "−2.0",
    )  # fmt: skip
    assert cells["p, paired t test over seeds"] == ("–", "0.2", "0.2", "–")
    assert cells["p, McNemar over examples, seeds pooled"] == ("–", "< 0.001", "< 0.001", "< 0.001")
    assert cells["answers won : lost, seeds pooled"][1] == "12 : 9"
    assert cells["FLOPs relative to ntp, same seed est."] == ("1.00×", "1.50×", "1.50×", "1.50×")
    assert cells["seeds that collapsed"] == ("0 of 3", "0 of 3", "3 of 3", "0 of 1")
    assert "two phrasings: AUC" not in cells
    results["arms"]["single"]["geometry"]["paraphrase.auc"] = 0.98
    assert _cells(results)["two phrasings: AUC"] == ("–", "–", "–", "0.980")


def test_training_flops_are_estimated_unless_every_run_counted_them(results):
    def titles() -> set[str]:
        return {title for title in _cells(results) if title.startswith("FLOPs") and "answer" not in title}

    estimated = {"FLOPs, from some batches est.", "FLOPs relative to ntp, same seed est."}
    assert titles() == estimated
    for part in (*results["runs"], *results["arms"].values()):
        part["costs"]["flops_measured"] = True
    assert titles() == {"FLOPs, counted at every step", "FLOPs relative to ntp, same seed"}
    badges = html(results).count('class="badge estimated"')
    results["runs"][0]["costs"]["flops_measured"] = False
    assert titles() == estimated
    assert html(results).count('class="badge estimated"') > badges
    training = [row[runs_table(results).header.index("training FLOPs")] for row in runs_table(results).groups[0][1]]
    assert training == ["2e+12 est.", *["2e+12"] * 9]


def test_settings_and_runs_are_shown(results):
    assert settings_table(results).groups[0][1][1] == ("objective.loss._target_", "–", "InfoNCE", "–", "–")
    assert len(runs_table(results).groups[0][1]) == 10


def test_what_does_not_compare_is_remarked(results):
    assert "do not have the same seeds" in markdown(results)
    results["device"].append({"type": "cuda", "name": "a GPU", "threads": 1})
    results["code"].append({"version": "0.1.0", "commit": "def", "dirty": False})
    assert "different devices" in markdown(results)
    assert "different versions of the code" in markdown(results)


def test_the_summary_fits_a_terminal(results):
    table = summary(results).split("\n\n")[0]
    assert max(map(len, table.splitlines())) <= 106


# --- The document.


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("schema",), "jepa.results/1", "results.schema must be 'jepa.answers-results/2'"),
        (("baseline",), "other", "results.baseline must be an arm"),
        (("metrics",), ["f1"], "results.arms.ntp.accuracy must have the metrics f1"),
        (("runs",), [], "results.runs must be a list of at least 1"),
        (("arms", "ntp", "seeds"), [0, 1], "results.runs must be one for each arm and seed"),
        (("arms", "ntp", "costs", "flops"), float("nan"), "results.arms.ntp.costs.flops must be a finite number"),
        (("arms", "ntp", "accuracy", "exact_match", "over"), "luck", "over must be one of seeds, examples"),
        (("arms", "ntp", "accuracy", "exact_match", "low"), 0.9, "must have low <= value <= high"),
        (
            ("arms", "cosine", "against_baseline", "metrics", "exact_match", "p"),
            None,
            "must have all of low, high and p, or none",
        ),
    ],
)
def test_a_faulty_document_is_refused_by_its_path(results, path, value, words):
    validate_results(results)
    node = results
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    with pytest.raises(InputError) as refused:
        validate_results(results)
    assert words in str(refused.value)


# --- The files.


def test_the_files_are_written_whole(results, tmp_path):
    before = copy.deepcopy(results)
    paths = write_report(results, tmp_path / "new")
    assert results == before
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == sorted(paths)
    assert json.loads(paths["results.json"].read_text()) == results
    assert paths["report.png"].read_bytes().startswith(b"\x89PNG")


def test_hostile_names_stay_text(results):
    arms = results["arms"]
    arms[HOSTILE] = arms.pop("single")
    results["runs"] = [run | {"arm": HOSTILE} if run["arm"] == "single" else run for run in results["runs"]]
    results["name"] = HOSTILE
    page = html(results)
    tags = []

    class Reader(html_parser.HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            tags.append(tag)

    Reader().feed(page)
    assert "script" not in tags
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "\\<script\\>" in markdown(results)
    assert overview_png(results)


def test_the_picture_shows_each_arm_and_each_run(results):
    shown = matplotlib.image.imread(io.BytesIO(overview_png(results)))
    results["arms"].pop("cosine")
    results["runs"] = [run for run in results["runs"] if run["arm"] != "cosine"]
    fewer = matplotlib.image.imread(io.BytesIO(overview_png(results)))
    assert shown.shape[1] == fewer.shape[1]
    assert shown.shape[0] > fewer.shape[0]
    page = html(results)
    for run in results["runs"]:
        assert f"{run['arm']}, seed {run['seed']}: {run['accuracy']['exact_match']:.3f}" in page


def test_runs_without_validation_or_geometry_can_be_shown(results):
    for run in results["runs"]:
        run["curve"], run["geometry"] = [], {}
    for arm in results["arms"].values():
        arm["geometry"] = {}
    assert "latents not measured" in headline(results)
    assert html(results)
    assert overview_png(results)


def test_ockscore_and_the_budget_curve_stand_beside_accuracy(results):
    """In the tables, the summary and the picture; a dash where an evaluation has no tokens of its answers."""
    for key in ("ock_score", "accuracy_within", "accuracy_area"):
        results["arms"]["cosine"]["answer_costs"]["exact_match"][key] = None
    cells = _cells(results)
    assert cells["OckScore"] == ("85.98", "85.98", "–", "85.98")
    assert cells["area of accuracy against tokens"] == ("0.225", "0.225", "–", "0.225")
    assert "area of accuracy against tokens: ntp 85.98, 0.225; " in summary(results)
    lines = budget_figure(results).axes[0].lines
    assert [line.get_label().split(":")[0] for line in lines] == ["ntp", "llm_jepa", "single"]
    for line in lines:
        assert list(line.get_ydata()) == ANSWER_COSTS["accuracy_within"]
        assert line.get_label().endswith("0.860, area 0.225")
