"""A document of answers: four arms, three seeds of most."""

from __future__ import annotations

import pytest

from jepa.results import (
    Accuracy,
    AgainstBaseline,
    AnswerCosts,
    AnswerResults,
    Arm,
    Code,
    Contrast,
    Device,
    ExampleTest,
    RoleParameters,
    Run,
    RunCosts,
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
        against = AgainstBaseline(seeds=tuple(range(seeds)), metrics={"exact_match": found}, flops_ratio=1.5)
    over = "seeds" if several else "examples"
    return Arm(
        seeds=tuple(range(seeds)),
        accuracy={"exact_match": Accuracy(value=accuracy, low=accuracy - 0.02, high=accuracy + 0.02, over=over)},
        answer_costs={"exact_match": SPENT},
        against_baseline=against,
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
