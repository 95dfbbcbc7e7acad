"""The geometry of latents against plain loops, scikit-learn and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import randn, refusals, refuses
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.metrics.pairwise import cosine_similarity

from jepa.metrics.geometry import LatentGeometry
from jepa.metrics.latents import (
    collapse_message,
    paired_cosine,
    paraphrase,
    rankme,
    recall_at_false_fraction,
    ridge_r2,
    unpaired_cosine,
)
from jepa.metrics.retrieval import retrieval_ranks


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def values(scalars: dict[str, torch.Tensor]) -> dict[str, float]:
    return {name: value.item() for name, value in scalars.items()}


def test_cosines_equal_plain_loops():
    predictions, targets, n = randn(7, 5), randn(7, 5, seed=1) + 0.5, 7
    paired = np.mean([cosine(predictions[i], targets[i]) for i in range(n)])
    assert paired_cosine(predictions, targets).item() == pytest.approx(paired, abs=1e-12)
    for ids in (None, torch.tensor([9, 2, 9, 9, 2, 5, 7])):  # rows with equal ids are not unpaired
        texts = range(n) if ids is None else ids
        unpaired = [cosine(predictions[i], targets[j]) for i in range(n) for j in range(n) if texts[i] != texts[j]]
        assert unpaired_cosine(predictions, targets, ids).item() == pytest.approx(np.mean(unpaired), abs=1e-12)


def test_cosines_in_half_precision_are_computed_in_float32():
    predictions, targets = randn(64, 32).bfloat16(), randn(64, 32, seed=1).bfloat16()
    value = paired_cosine(predictions, targets)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(paired_cosine(predictions.double(), targets.double()).item(), abs=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 50.0])
def test_rankme_closed_forms(dtype, scale):
    orthonormal = torch.linalg.qr(randn(40, 8))[0].to(dtype)  # identity covariance: all 8 directions equally
    line = torch.outer(randn(40), randn(8, seed=1)).to(dtype)
    assert rankme(scale * orthonormal).item() == pytest.approx(8, rel=1e-4)
    assert rankme(scale * line).item() == pytest.approx(1, rel=1e-3)
    assert rankme(0 * line).item() == pytest.approx(1, rel=1e-3)


def test_rankme_of_a_known_spectrum():
    fractions = np.array([0.5, 0.25, 0.125, 0.125])  # entropy 1.75 bits
    rows, columns = torch.linalg.qr(randn(30, 4))[0], torch.linalg.qr(randn(4, 4, seed=1))[0]
    latents = rows @ torch.diag(torch.tensor(fractions)) @ columns
    assert rankme(latents).item() == pytest.approx(2**1.75, rel=1e-5)
    assert rankme(latents[torch.randperm(30)]).item() == pytest.approx(2**1.75, rel=1e-5)


test_bad_input_is_refused = refusals(
    (lambda: paired_cosine(randn(3, 2), randn(2, 2)), r"same shape, got \(3, 2\) and \(2, 2\)"),
    (lambda: paired_cosine(randn(3), randn(3)), r"predictions must be floating-point \(N, E\), .* \(3,\)"),
    (lambda: rankme(torch.ones(2, 2).long()), "latents must be floating-point .* got torch.int64"),
    (lambda: rankme(torch.tensor([[0.0], [math.nan]])), "latents must be finite, got a NaN"),
    (lambda: unpaired_cosine(randn(1, 2), randn(1, 2)), "at least 2 different targets, got 1 in N = 1 rows"),
    (lambda: unpaired_cosine(randn(2, 2), randn(2, 2), torch.ones(2)), r"ids must be \(2,\) integers, got \(2,\)"),
    (lambda: ridge_r2(randn(3, 2), randn(3, 2)), "must have >= 4 rows .* got 3, 0.001"),
    (lambda: ridge_r2(randn(4, 2), randn(4, 2), ridge=0), "ridge > 0, got 4, 0"),
    (lambda: paraphrase(randn(2, 2), randn(2, 2), torch.tensor([5, 5])), "2 different meanings, got only 5"),
)


def test_ridge_r2_equals_scikit_learn():
    predictions, targets = randn(300, 6) + 3, randn(300, 6, seed=1) + 1
    targets = targets + predictions @ randn(6, 6, seed=2)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(4))
    fit, held_out = order[:150], order[150:]
    spread = float((predictions[fit] - predictions[fit].mean(0)).square().sum()) / 6
    model = Ridge(alpha=0.05 * spread).fit(predictions[fit].numpy(), targets[fit].numpy())
    guessed = model.predict(predictions[held_out].numpy())
    expected = r2_score(targets[held_out].numpy(), guessed, multioutput="variance_weighted")
    assert 0.5 < expected < 0.95
    assert ridge_r2(predictions, targets, ridge=0.05, seed=4).item() == pytest.approx(expected, abs=1e-8)
    assert ridge_r2(20 * predictions, targets, ridge=0.05, seed=4).item() == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ridge_r2_from_nothing_to_all(dtype):
    predictions, noise = randn(400, 8).to(dtype), randn(400, 8, seed=1).to(dtype)
    affine = predictions @ randn(8, 8, seed=2).to(dtype) + 5
    assert ridge_r2(predictions, affine).item() == pytest.approx(1, abs=1e-4)
    assert -0.2 < ridge_r2(predictions, noise).item() < 0.02
    assert -0.1 < ridge_r2(torch.ones_like(noise), noise).item() <= 0
    assert ridge_r2(1 + 1e-7 * noise, noise).item() < 0.02  # collapsed but for rounding
    assert ridge_r2(torch.zeros_like(noise), noise).item() <= 0
    assert ridge_r2(predictions, torch.ones_like(noise)).item() == 0


def test_paraphrase_equals_plain_loops():
    ids = torch.arange(60) % 50  # some meanings twice
    meanings = randn(50, 8)[ids]
    first, second = meanings + 1.2 * randn(60, 8, seed=1), 3 * (meanings + 1.2 * randn(60, 8, seed=2))
    own = [cosine(first[i], second[i]) for i in range(60)]
    others = [cosine(first[i], second[j]) for i in range(60) for j in range(60) if ids[i] != ids[j]]
    found = np.mean([np.mean(np.array(others) >= value) <= 0.01 for value in own])
    auc = roc_auc_score([1] * len(own) + [0] * len(others), own + others)
    assert 0.6 < auc < 0.95
    assert 0 < found < 0.6
    assert values(paraphrase(first, second, ids)) == pytest.approx({"auc": auc, "recall@1%": found}, abs=1e-12)


def test_paraphrase_in_chunks_equals_scikit_learn():
    count = 1500  # more rows than are compared at once
    first = randn(count, 16).float()
    second = first + 2 * randn(count, 16, seed=1).float()
    scores = cosine_similarity(first.numpy(), second.numpy())
    result = paraphrase(first, second, torch.arange(count))
    auc = roc_auc_score(np.eye(count).ravel(), scores.ravel())
    threshold = np.quantile(scores[~np.eye(count, dtype=bool)], 0.99)
    assert result["auc"].item() == pytest.approx(auc, abs=1e-5)
    assert result["recall@1%"].item() == pytest.approx(np.mean(np.diag(scores) > threshold), abs=2 / count)


def test_paraphrase_of_perfect_and_collapsed_latents():
    ids, latents = torch.arange(200), F.normalize(randn(200, 64).float(), dim=1)
    assert values(paraphrase(latents, latents, ids)) == {"auc": 1.0, "recall@1%": 1.0}
    point = latents[:1].expand(200, -1)
    assert values(paraphrase(point, 2 * point, ids)) == {"auc": 0.5, "recall@1%": 0.0}


def test_the_message_of_a_collapse():
    geometry = {"unpaired_cosine": torch.tensor(0.95), "rankme": torch.tensor(1.24), "retrieval@1": torch.tensor(0.01)}
    said = "latents have collapsed: unpaired cosine 0.950 > 0.9, RankMe 1.2, retrieval@1 0.010"
    assert collapse_message(geometry) == said
    assert collapse_message({**geometry, "unpaired_cosine": 0.9}) is None


# ------------------------------------------------------------------------------------------------- metric

IDS = torch.tensor([7, 3, 7, 11, 3, 20, 4])
TEXTS = randn(21, 5)  # the latent of each text
TARGETS = TEXTS[IDS]
PREDICTIONS = TARGETS + 1.5 * randn(7, 5, seed=1)


def expected_geometry() -> dict[str, float]:
    distinct = sorted(set(IDS.tolist()))
    hits = [max(distinct, key=lambda text: cosine(PREDICTIONS[i], TEXTS[text])) == IDS[i].item() for i in range(7)]
    unpaired = [cosine(PREDICTIONS[i], TARGETS[j]) for i in range(7) for j in range(7) if IDS[i] != IDS[j]]
    return {
        "retrieval@1": np.mean(hits),
        "rankme": rankme(PREDICTIONS).item(),
        "paired_cosine": paired_cosine(PREDICTIONS, TARGETS).item(),
        "unpaired_cosine": np.mean(unpaired),
    }


def filled(start: int, stop: int) -> LatentGeometry:
    metric = LatentGeometry()
    metric.update(PREDICTIONS[start:stop], TARGETS[start:stop], IDS[start:stop])
    return metric


def check(metric: LatentGeometry) -> None:
    expected = expected_geometry()
    assert 0 < expected["retrieval@1"] < 1
    assert values(metric.compute()) == pytest.approx(expected, abs=1e-6)


def test_metric_over_batches():
    metric = filled(0, 3)
    metric.update(PREDICTIONS[3:].clone().requires_grad_(), TARGETS[3:], IDS[3:])
    assert not any(batch.requires_grad for batch in metric.predictions)
    check(metric)
    metric.reset()
    for part in (slice(0, 4), slice(4, 7)):
        metric(PREDICTIONS[part], TARGETS[part], IDS[part])
    check(metric)


def test_metric_merges_and_gathers():
    merged = filled(0, 2)
    merged.merge_state(filled(2, 7))
    check(merged)

    others = iter([PREDICTIONS[2:], TARGETS[2:], IDS[2:]])  # states are gathered in order of definition
    gather = {"dist_sync_fn": lambda state, group: [state, next(others)], "distributed_available_fn": lambda: True}
    here = LatentGeometry(**gather)
    here.update(PREDICTIONS[:2], TARGETS[:2], IDS[:2])
    check(here)


def test_metric_retrieves_at_each_k_that_the_targets_are_enough_for():
    metric = LatentGeometry(ks=(1, 3, 5, 10))  # 5 distinct targets
    metric.update(PREDICTIONS, TARGETS, IDS)
    ranks = retrieval_ranks(PREDICTIONS, TEXTS[IDS.unique()], IDS, IDS.unique())
    expected = {f"retrieval@{k}": ranks.recall(k).mean().item() for k in (1, 3, 5)}
    assert values(metric.compute()) == pytest.approx({**expected_geometry(), **expected}, abs=1e-6)


def test_metric_of_a_collapsed_model():
    metric = LatentGeometry()
    metric.update(torch.ones(40, 16), torch.ones(40, 16), torch.arange(40) % 10)
    expected = {"retrieval@1": 0.1, "rankme": 1.0, "paired_cosine": 1.0, "unpaired_cosine": 1.0}
    assert values(metric.compute()) == pytest.approx(expected, abs=1e-3)


def test_metric_refuses_what_it_cannot_measure():
    metric = LatentGeometry()
    metric.update(randn(3, 2), randn(3, 2), torch.tensor([5, 5, 5]))
    refuses("at least 2 different targets, got 1", metric.compute)
    refuses(r"ids must be \(2,\) .* got \(3,\)", metric.update, randn(2, 2), randn(2, 2), torch.tensor([1, 2, 3]))


def test_recall_at_a_share_of_false_neighbours():
    cosines = torch.tensor([0.9, 0.8, 0.7, 0.6])
    right = torch.tensor([True, True, False, True])
    assert recall_at_false_fraction(cosines, right, 0.0) == 0.5
    assert recall_at_false_fraction(cosines, right, 0.25) == 0.75  # one false of four
    assert recall_at_false_fraction(cosines, ~right, 0.01) == 0.0
    level = torch.tensor([0.9, 0.9, 0.7, 0.6])  # the second cannot be had without the first
    assert recall_at_false_fraction(level, torch.tensor([True, False, True, True]), 0.3) == 0.75
    assert recall_at_false_fraction(level, torch.tensor([True, False, True, True]), 0.2) == 0.0
