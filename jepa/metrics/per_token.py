"""Performance per generated token: accuracy with what it cost.

Tokens are those that were generated, counted by one named tokenizer; counts of different tokenizers do not compare.
Read accuracy beside each of these: none of them says it alone.

N: answers; `right` (N,) are booleans, `tokens` (N,) whole numbers >= 0, others raise `InputError`. Results are float64.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from jepa.errors import InputError, check_int

OCK_WEIGHT, OCK_TOKENS = 10.0, 10_000.0  # of OckScore: weight of the penalty, tokens at which it is 10 ln 2


def cost_of_pass(right: Tensor, costs: Tensor) -> Tensor:
    """Cost of a right answer: the mean cost of an attempt over the fraction that is right.

    Cost-of-pass = E[cost of an attempt] / P(right) (Erol et al. 2025, arXiv 2504.13359), infinite where nothing is
    right. The paper takes it of each problem, over repeated attempts; we attempt each once, and take it of all: the
    cost of all attempts, wrong ones too, over the number of right ones. `costs` (N,) have any unit.

    >>> cost_of_pass(torch.tensor([True, False]), torch.tensor([2, 6]))
    tensor(8., dtype=torch.float64)
    """
    right, costs = _checked(right, costs, "costs")
    return costs.sum() / right.sum() if right.any() else costs.new_tensor(torch.inf)


def ock_score(right: Tensor, tokens: Tensor) -> Tensor:
    """Accuracy in percent less a penalty for tokens: 100 accuracy - 10 ln(mean tokens / 10,000 + 1).

    OckScore (Du et al. 2025, arXiv 2511.05722; formula and logarithm as in the authors' code, `src/core/scoring.py` of
    github.com/OckBench/OckBench). That code counts the prompt's tokens too; give these in `tokens` to compare with its
    figures. Made for answers of thousands of tokens: it is all but the accuracy for short ones.

    >>> ock_score(torch.tensor([True, False]), torch.tensor([0, 0]))
    tensor(50., dtype=torch.float64)
    """
    right, tokens = _checked(right, tokens, "tokens")
    return 100 * right.double().mean() - OCK_WEIGHT * torch.log1p(tokens.mean() / OCK_TOKENS)


def accuracy_within(right: Tensor, tokens: Tensor, longest: int) -> Tensor:
    """Fraction of all answers that are right and at most b tokens long, for b = 0, 1, ..., `longest`.

    This curve of accuracy against tokens is our definition. It is OAA_t of Aggarwal et al. 2025 (arXiv 2508.13141) at
    t = b + 1, who count the tokens of thinking and ask for fewer than t. (longest + 1,) fractions in 0..1, none below
    the one before it; curves compare only at the same `longest`, >= 1.

    >>> accuracy_within(torch.tensor([True, False]), torch.tensor([2, 1]), longest=3).tolist()
    [0.0, 0.0, 0.5, 0.5]
    """
    right, tokens = _checked(right, tokens, "tokens")
    budgets = torch.arange(check_int("longest", longest, 1) + 1, device=tokens.device)
    in_time = tokens[right].sort().values
    return torch.searchsorted(in_time, budgets.double(), right=True).double() / len(right)


def accuracy_area(right: Tensor, tokens: Tensor, longest: int) -> Tensor:
    """Area under `accuracy_within` as a curve of steps from 0 to `longest` tokens, divided by `longest`.

    Equal to AUC_OAA (arXiv 2508.13141) with t_max = `longest`: the mean over answers of
    right * max(0, longest - tokens) / longest, as in the authors' code (`projects/otb/eval.py` of
    github.com/facebookresearch/RAM), which has `longest` = 1000 and counts the tokens of thinking only. From 0 to the
    accuracy, which only right answers of no tokens reach.

    >>> accuracy_area(torch.tensor([True, False]), torch.tensor([1, 1]), longest=4).item()
    0.375
    """
    right, tokens = _checked(right, tokens, "tokens")
    return (right * (check_int("longest", longest, 1) - tokens).clamp(min=0)).mean() / longest


def answer_costs(right: Tensor, tokens: Tensor, flops: Tensor, longest: int) -> dict[str, Any]:
    """What N answers cost in `tokens` (N,) and `flops` (N,), as plain data for a report to print beside their accuracy.

    Means `tokens_per_answer` and `flops_per_answer`; `tokens_per_right_answer` and `flops_per_right_answer` by
    `cost_of_pass` (None: none is right); `ock_score`; `accuracy_within` as a list; `accuracy_area`.
    """
    found: dict[str, Any] = {}
    for unit, spent in (("tokens", tokens), ("flops", flops)):
        found[f"{unit}_per_answer"] = float(spent.double().mean())
        found[f"{unit}_per_right_answer"] = float(cost_of_pass(right, spent)) if right.any() else None
    found["ock_score"] = float(ock_score(right, tokens))
    found["accuracy_within"] = accuracy_within(right, tokens, longest).tolist()
    found["accuracy_area"] = float(accuracy_area(right, tokens, longest))
    return found


def choice_costs(accuracy: float, flops: float) -> dict[str, float | None]:
    """What answers cost that are chosen among given ones, under the keys of `answer_costs`: no token is generated.

    `accuracy` is the fraction that is right, or expected to be where ties are broken at random; `flops` is a mean.
    """
    return {
        "tokens_per_answer": 0.0,
        "flops_per_answer": float(flops),
        "tokens_per_right_answer": 0.0 if accuracy else None,
        "flops_per_right_answer": flops / accuracy if accuracy else None,
    }


def _checked(right: Tensor, costs: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Both, the costs as float64."""
    if right.ndim != 1 or right.shape != costs.shape or not len(right) or right.dtype != torch.bool:
        got = f"{tuple(right.shape)} {right.dtype} and {tuple(costs.shape)}"
        raise InputError(f"right and {name} must be (N,) with N >= 1, right of booleans, got {got}")
    bad = ~(costs.isfinite() & (costs >= 0))
    if bad.any():
        raise InputError(f"{name} must be finite and >= 0, got {costs[bad][0].item()}")
    return right, costs.double()
