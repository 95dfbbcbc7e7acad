"""The report of a language model's arms and seeds, and bars on them: four arms, three seeds of most."""

from __future__ import annotations

import pytest
from conftest import refuses

from jepa.operations import PartCount
from jepa.report import answers
from jepa.report.render import html, markdown, terminal
from jepa.results import (
    Accuracy,
    Against,
    AnswerCosts,
    AnswerResults,
    Arm,
    Code,
    Contrast,
    Device,
    Drafting,
    ExampleTest,
    NotMetError,
    Requirement,
    RoleParameters,
    Run,
    RunCosts,
    arms,
)

COSTS = RunCosts(steps=100, samples=6400, tokens=91_000, seconds=61.0, flops=2e12, steps_stretched=1.0)
SPENT = AnswerCosts(
    tokens_per_answer=12.0,
    flops_per_answer=3e9,
    tokens_per_right_answer=15.0,
    flops_per_right_answer=3.75e9,
    ock_score=85.98,
    accuracy_within=(0.0, 0.0, 0.3, 0.6, 0.86),
    accuracy_area=0.225,
)
CURVE: tuple[dict[str, float | None], ...] = (
    {"step": 9, "loss": None},
    {"step": 49, "val/next_token": 1.2, "val/retrieval@1": 0.3},
    {"step": 99, "val/next_token": 0.4, "val/retrieval@1": 0.9},
)


def make_arm(accuracy: float, seeds: int, gain: float | None, retrieval: float, cosine: float) -> Arm:
    several = seeds > 1
    against = None
    if gain is not None:
        ends = {"low": gain - 0.007, "high": gain + 0.007, "p": 0.2} if several else dict.fromkeys(("low", "high", "p"))
        found = Contrast(value=gain, examples=ExampleTest(count=600, won=12, lost=9, p=0.0004), **ends)
        against = Against(arm="ntp", seeds=tuple(range(seeds)), metrics={"exact_match": found}, flops_ratio=1.5)
    over = "seeds" if several else "examples"
    return Arm(
        seeds=tuple(range(seeds)),
        accuracy={"exact_match": Accuracy(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02, over=over)},
        answer_costs={"exact_match": SPENT},
        against_baseline=against,
        at_equal_flops=None,
        costs=COSTS,
        geometry={"retrieval@1": retrieval, "unpaired_cosine": cosine, "paired_cosine": 0.8, "rankme": 21.3},
        collapsed=seeds if cosine > 0.9 else 0,
    )


@pytest.fixture
def answer_results() -> AnswerResults:
    arms = {
        "ntp": make_arm(0.86, 3, None, 0.02, 0.4),
        "llm_jepa": make_arm(0.864, 3, 0.004, 0.95, 0.012),
        "cosine": make_arm(0.85, 3, -0.01, 0.0, 0.9995),
        "single": make_arm(0.84, 1, -0.02, 0.5, 0.012),
    }
    runs = [
        Run(
            arm=name,
            seed=seed,
            evaluation=f"{name}/seed_{seed}/evaluation",
            accuracy={"exact_match": arm.accuracy["exact_match"].value + 0.004 * (seed - 1)},
            costs=COSTS,
            answer_costs={"exact_match": SPENT},
            geometry=arm.geometry,
            warning=None,
            curve=CURVE,
        )
        for name, arm in arms.items()
        for seed in arm.seeds
    ]
    return AnswerResults(
        created="2026-01-01T00:00:00+00:00",
        name="controls",
        split="test",
        pairs=200,
        training_pairs=7600,
        duplicates={"train_test_pairs": 3},
        metrics=("exact_match",),
        baseline="ntp",
        method="llm_jepa",
        arms=arms,
        settings={
            "objective.weight": {"ntp": 0.0, "llm_jepa": 0.3, "cosine": 1.0, "single": 0.3},
            "objective.loss._target_": {"llm_jepa": "jepa.losses.infonce.InfoNCE"},
        },
        runs=tuple(runs),
        parameters=(RoleParameters(role="X-Encoder", total=10, trainable=10, modules="Llama"),),
        code=(Code(version="0.1.0", commit="abc", dirty=False),),
        libraries=({"torch": "2.11.0"},),
        device=(Device(type="cpu", name="a CPU", threads=1),),
        config={"name": "controls"},
    )


def cells(results) -> dict[str, list[str]]:
    return {row[0]: list(row[1:]) for _, rows in answers.arms_table(results).groups for row in rows}


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ("llm_jepa", "against ntp: +0.4 (−0.3 to +1.1) points exact match, p 0.2, 3 seeds; latents informative"),
        ("cosine", "latents collapsed in 3 of 3 seeds (retrieval@1 0.00, unpaired cosine 1.00)"),
        ("single", "−2.0 points exact match, 1 seed, so no interval; over examples p < 0.001; latents partly"),
        ("ntp", "ntp: exact match 0.860 (0.840 to 0.880); latents uninformative"),
    ],
)
def test_a_verdict_says_what_the_figures_say(answer_results, arm, words):
    assert words in answers.verdict(answer_results, arm)


def test_the_table_holds_every_figure_of_every_arm(answer_results):
    found = cells(answer_results)
    assert found["seeds"] == ["3", "3", "3", "1"]
    assert found["mean and 95 % interval over seeds"][0] == "0.860 (0.840 to 0.880)"
    assert found["mean and 95 % interval over seeds"][3].endswith("°")
    over = found["points over ntp, 95 % interval over seeds"]
    assert over == ["–", "+0.4 (−0.3 to +1.1)", "−1.0 (−1.7 to −0.3)", "−2.0"]
    assert found["generated tokens per right answer"] == ["15"] * 4
    assert found["FLOPs relative to ntp, same seed est."] == ["1.00×", "1.50×", "1.50×", "1.50×"]
    assert found["retrieval@1"] == ["0.020", "0.950", "0.000", "0.500"]
    assert found["seeds that collapsed"][2] == "3 of 3"


def test_training_flops_are_measured_only_if_every_run_counted_them(answer_results):
    assert "FLOPs, from some batches est." in cells(answer_results)
    costs = COSTS.model_copy(update={"flops_measured": True})
    runs = tuple(run.model_copy(update={"costs": costs}) for run in answer_results.runs)
    counted = answer_results.model_copy(update={"runs": runs})
    assert "FLOPs, counted at every step" in cells(counted)


def test_no_right_answer_and_no_counts_are_told_apart(answer_results):
    arms = dict(answer_results.arms)
    costs = arms["ntp"].answer_costs["exact_match"]
    none = costs.model_copy(update={"tokens_per_right_answer": None, "flops_per_right_answer": None})
    arms["ntp"] = arms["ntp"].model_copy(update={"answer_costs": {"exact_match": none}})
    arms["cosine"] = arms["cosine"].model_copy(update={"answer_costs": {"exact_match": None}})
    changed = answer_results.model_copy(update={"arms": arms})
    assert cells(changed)["FLOPs per right answer"] == ["∞", "3.75e+09", "–", "3.75e+09"]
    shown = terminal(answers.report(changed))
    assert "∞" in shown
    assert "not counted" in shown


def test_remarks_say_what_does_not_compare(answer_results):
    [remark] = answers.remarks(answer_results)
    assert remark == "The arms do not have the same seeds: differences to ntp are of shared ones."
    device = answer_results.device[0]
    other = {"device": (device, device.model_copy(update={"name": "b"})), "baseline": None}
    found = " ".join(answers.remarks(answer_results.model_copy(update=other)))
    assert "no arm ntp" in found
    assert "their seconds do not compare" in found


def test_the_report_shows_arms_settings_runs_and_budget(answer_results):
    shown = answers.report(answer_results)
    page = html(shown)
    for text in ("objective.weight", "InfoNCE", "0.860, 0.864, 0.868", "X-Encoder", "abc"):
        assert text in page
    assert "significan" not in markdown(shown)
    assert page.count("<svg") == 2


def test_drafts_are_told_of_all_seeds_together(answer_results):
    uniform = PartCount(calls=200, forward_passes=4000, tokens=4000, flops=10**9, seconds=8.0)
    drafting = Drafting(
        drafts="latent", most=2, threshold=0.1, vocabulary="all", drafted=(1000, 500), accepted=(900, 300),
        passes=(200, 0, 1000), given=(200, 0, 3800), identical=200, uniform=uniform,
    )  # fmt: skip
    spent = PartCount(calls=200, forward_passes=1200, tokens=4000, seconds=4.0)
    runs = [
        run.model_copy(update={"generation": spent, "drafting": drafting} if run.arm == "llm_jepa" else {})
        for run in answer_results.runs
    ]
    changed = answer_results.model_copy(update={"runs": tuple(runs)})
    found = cells(changed)
    assert found["passes of the model a token"] == ["–", "0.3", "–", "–"]
    assert found["passes saved"] == ["–", "3.33×", "–", "–"]
    assert found["seconds saved"][1] == "2.00×"
    assert found["drafted tokens that stand"][1] == "0.800"
    assert found["texts identical to token by token"][1] == "600 of 600"
    joined = arms.drafting(changed)["llm_jepa"]
    assert arms.by_place(joined.given, joined.passes) == [(0.0, 1.0), (2.0, 3.8)]
    assert html(answers.report(changed)).count("<svg") == 3


def test_the_summary_fits_one_screen(answer_results):
    lines = terminal(answers.report(answer_results)).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert any("llm_jepa" in line and "+0.4" in line and "1.50×" in line for line in lines)


@pytest.mark.parametrize(
    ("bar", "holds", "words"),
    [
        ("accuracy>=0.864", True, "accuracy of llm_jepa: exact_match 0.864, 95 % interval from 0.844 to 0.884"),
        ("accuracy.low>=0.864", False, "accuracy of llm_jepa: exact_match 0.864"),
        ("accuracy.ntp>=0.99", False, "accuracy of ntp: exact_match 0.860"),
        ("accuracy_difference.low>=-0.01", True, "+0.004, 95 % interval from -0.003 to +0.011, over ntp"),
        ("accuracy_difference.ntp>=0", False, "not measured: no seed of ntp has a run of next tokens alone"),
        ("retrieval>=0.9", True, "retrieval of llm_jepa: 0.950"),
    ],
)
def test_answers_are_held_to_a_bar(answer_results, bar, holds, words):
    required = Requirement.parse(bar)
    if holds:
        assert words in required.verdict(answer_results)
    else:
        with pytest.raises(NotMetError) as error:
            required.verdict(answer_results)
        assert "does not hold" in str(error.value)
        assert words in str(error.value)


@pytest.mark.parametrize("bar", ["accuracy.other>=0", "savings>=1"])
def test_a_bar_without_such_an_arm_or_figure_is_refused(answer_results, bar):
    refuses("fail_under", lambda: Requirement.parse(bar).verdict(answer_results))
