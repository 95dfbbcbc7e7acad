"""`jepa report` on results that are there: a bar that they must reach, and runs side by side."""

from __future__ import annotations

import copy
import json

import pytest
from test_answers_page import make_answers
from test_report import add_costs, make_results

from jepa.cli import main
from jepa.errors import InputError
from jepa.report import answers, html, write_results
from jepa.report.compare import comparison_table
from jepa.report.requirement import NotMetError, Requirement
from jepa.report.tables import best_causal, headline, summary, without_contrast


@pytest.fixture(scope="module")
def results():
    return make_results()


def test_the_bar_is_the_headline_saving(results, tmp_path, capsys):
    saving = best_causal(results["settings"]["everyday"])["saving"]
    write_results(results, tmp_path / "results.json")
    for figure, key in (("savings", "value"), ("savings.everyday.low", "low")):
        assert main(["report", f"results={tmp_path}", "--fail-under", f"{figure}>={saving[key]}"]) == 0
        assert "holds; savings of everyday" in capsys.readouterr().out
        assert main(["report", f"results={tmp_path}", f"fail_under={figure}>={saving[key] + 0.001}"]) == 1
        assert f"{saving['value']:.2f}×" in capsys.readouterr().err


def test_a_setting_that_is_not_reached_fails(results):
    document = copy.deepcopy(results)
    for saving in document["settings"]["everyday"]["savings"]:
        saving["reached"] = False
    with pytest.raises(NotMetError, match="not reached"):
        Requirement.parse("savings>=0").verdict(document)


def test_a_quality_that_does_not_depend_on_decoding_is_no_ground_for_savings(results):
    """A model that says the same of everything keeps its quality with any decodes: no bar holds for it."""
    document = copy.deepcopy(results)
    setting = document["settings"]["everyday"]
    own = next(s for s in setting["savings"] if s["headline"] and s["policy"] == s["reference"]["policy"])
    assert without_contrast(setting) is None
    own["saving"] = dict.fromkeys(("value", "low", "high"), 10.0)
    with pytest.raises(NotMetError, match="Quality does not depend on decoding here: uniform at 1 Hz"):
        Requirement.parse("savings>=0").verdict(document)
    with pytest.raises(NotMetError, match="Quality does not depend on decoding here: uniform at 1 Hz"):
        Requirement.parse("compute_savings>=0").verdict(document)
    assert "warning: Quality does not depend" in summary(document)
    best = best_causal(setting)["saving"]
    words = headline(setting)
    assert (words.figure, words.compute_figure) == ("void", "void")
    assert words.claim.startswith("Quality does not depend on decoding here")
    assert words.detail.startswith(f"{best['value']:.2f}× fewer decoder calls")
    opening = html(document).partition("<h2 id=")[0]
    assert '<p class="number words">void</p>' in opening
    row = next(
        row for row in comparison_table({"a": results, "b": document}).groups[0][1] if row[0].startswith("saving")
    )
    assert row[2] == f"void ({row[1]})"


def test_a_saving_in_compute_is_chosen_on_the_calibration_streams(results):
    """The largest ratio of FLOPs among the points of reached savings, whatever else is no worse on the test streams."""
    document = copy.deepcopy(results)
    setting = document["settings"]["everyday"]
    reference = setting["operations"][0]
    reached = {(s["policy"], s["knob"]) for s in setting["savings"] if s["headline"] and s["reached"]}

    def flops(row):
        return sum(row["ledger"][part]["flops"] for part in ("detector", "encoder", "predictor", "decoder"))

    causal = [row for row in setting["operations"] if setting["curves"][row["policy"]]["causal"]]
    largest = max(flops(reference) / flops(row) for row in causal if (row["policy"], row["knob"]) in reached)
    verdict = Requirement.parse("compute_savings>=1").verdict(document)
    assert f"compute_savings of everyday: {largest:.2f}× by " in verdict

    free = copy.deepcopy(next(row for row in causal if row["policy"] == "gate"))
    free["knob"] = next(p["knob"] for p in setting["curves"]["gate"]["test"] if p["knob"] < free["knob"])
    for part in ("encoder", "predictor", "decoder"):
        free["ledger"][part]["flops"] = 1
    setting["operations"].append(free)
    assert Requirement.parse("compute_savings>=1").verdict(document) == verdict
    assert "Leaner still, without a saving at equal quality" in headline(setting).compute
    for saving in setting["savings"]:
        if setting["curves"][saving["policy"]]["causal"] and saving["policy"] != "uniform":
            saving["reached"] = False
    with pytest.raises(
        NotMetError, match="not reached: no causal policy with counted FLOPs keeps the quality of uniform"
    ):
        Requirement.parse("compute_savings>=0").verdict(document)


@pytest.mark.parametrize("text", ["speed>=2", "savings>2", "savings>=nan", "savings>=two", "compute_savings.low>=1"])
def test_what_cannot_be_required_is_refused(text):
    with pytest.raises(InputError, match="fail_under"):
        Requirement.parse(text)


def test_runs_side_by_side(results, tmp_path, capsys):
    other = copy.deepcopy(results) | {"name": "other", "seed": 7}
    add_costs(other["scores"])
    for name, document in (("a", results), ("b", other)):
        write_results(document, tmp_path / name / "results.json")
    folders = [str(tmp_path / name) for name in "ab"]
    assert main(["report", "--compare", *folders, f"output={tmp_path / 'out'}"]) == 0
    assert "seed" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"comparison.{kind}" for kind in ("md", "html", "png")
    }
    words = (tmp_path / "out" / "comparison.md").read_text()
    assert "| R@1: tokens, FLOPs of a right one | – | 0, 2.81e+08 |" in words
    path = tmp_path / "b" / "results.json"
    path.write_text(json.dumps(other | {"schema": "jepa.answers-results/1"}))
    assert main(["report", f"compare=[{folders[0]},{folders[1]}]"]) == 2
    assert "results.schema must be" in capsys.readouterr().err
    path.write_text(json.dumps(make_answers()))
    assert main(["report", f"compare=[{folders[0]},{folders[1]}]"]) == 2
    assert "compare takes results of streams, got a language model's answers" in capsys.readouterr().err


def test_results_of_answers_are_rendered_again(tmp_path, capsys):
    written = answers.write_report(make_answers(), tmp_path / "a")
    again = tmp_path / "b"
    assert main(["report", f"results={tmp_path / 'a'}", f"output={again}"]) == 0
    assert answers.summary(make_answers()) in capsys.readouterr().out
    for name in ("results.json", "report.md", "report.html"):
        assert (again / name).read_bytes() == written[name].read_bytes()


@pytest.mark.parametrize(
    ("bar", "status", "words"),
    [
        ("accuracy>={value}", 0, "accuracy of llm_jepa: exact_match "),
        ("accuracy>{value}", 2, "fail_under must be"),
        ("accuracy.low>={value}", 1, "does not hold; accuracy of llm_jepa: exact_match "),
        ("accuracy.ntp>=0.99", 1, "accuracy of ntp: exact_match "),
        ("accuracy_difference.low>=-0.01", 0, "over ntp, 95 % interval "),
        ("accuracy_difference.ntp>=0", 1, "not measured: no seed of ntp has a run of next tokens alone"),
        ("retrieval>=0.9", 0, "retrieval of llm_jepa: 0.950"),
        ("retrieval.low>=0.9", 2, "retrieval has no interval"),
        ("accuracy.other>=0", 2, "the arm must be one of "),
        ("savings>=1", 2, "of answers it must be one of accuracy, accuracy_difference, retrieval, got 'savings'"),
    ],
)
def test_answers_are_held_to_a_bar(tmp_path, capsys, bar, status, words):
    document = make_answers()
    (tmp_path / "results.json").write_text(json.dumps(document))
    value = document["arms"]["llm_jepa"]["accuracy"]["exact_match"]["value"]
    assert main(["report", f"results={tmp_path}", "--fail-under", bar.format(value=value)]) == status
    printed = capsys.readouterr()
    assert words in (printed.err if status else printed.out)


def test_a_bar_of_answers_is_none_of_streams(results):
    with pytest.raises(InputError, match=r"of streams it must be one of savings, .*, got 'accuracy'"):
        Requirement.parse("accuracy>=0.5").verdict(results)


@pytest.mark.parametrize("given", [[], ["evaluation=a", "results=b"], ["compare=[a]"], ["compare=[a,a]"]])
def test_one_source_is_given(given, capsys):
    assert main(["report", *given]) == 2
    assert capsys.readouterr().err.startswith("error: ")
