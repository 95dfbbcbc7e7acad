"""`jepa report` on results that are there: a bar that they must reach, and runs side by side."""

from __future__ import annotations

import copy
import json

import pytest
from test_report import add_costs, make_results

from jepa.cli import main
from jepa.errors import InputError
from jepa.report import write_results
from jepa.report.requirement import NotMetError, Requirement
from jepa.report.tables import best_causal, summary, without_contrast


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
    assert "warning: Quality does not depend" in summary(document)


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


@pytest.mark.parametrize("given", [[], ["evaluation=a", "results=b"], ["compare=[a]"], ["compare=[a,a]"]])
def test_one_source_is_given(given, capsys):
    assert main(["report", *given]) == 2
    assert capsys.readouterr().err.startswith("error: ")
