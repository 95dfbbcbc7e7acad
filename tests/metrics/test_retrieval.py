"""Retrieval against an independent count over all orders of the gallery."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
import torch
from conftest import refusals
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import top_k_accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from jepa.metrics.retrieval import Ranks, chance_ranks, retrieval_ranks, retrieval_scores


def brute_force(cosines: list[float], right: list[bool], k: int) -> tuple[float, float]:
    """Recall at k and the rank of the first right row: means over all orders in which level rows may stand."""
    ranks = []
    for order in permutations(range(len(cosines))):
        if all(cosines[a] >= cosines[b] for a, b in pairwise(order)):
            ranks.append(1 + next(place for place, row in enumerate(order) if right[row]))
    return float(np.mean([rank <= k for rank in ranks])), float(np.mean(ranks))


@given(st.lists(st.tuples(st.sampled_from([-0.5, 0.0, 0.3, 0.9]), st.booleans()), min_size=1, max_size=6), st.data())
def test_ranks_and_recall_are_means_over_all_orders_of_level_rows(rows, data):
    cosines, right = [c for c, _ in rows], [r for _, r in rows]
    right[data.draw(st.integers(0, len(rows) - 1))] = True
    ids = torch.tensor([7 if r else 100 + i for i, r in enumerate(right)])
    first = torch.tensor(cosines)  # to (1, 0)
    candidates = 3 * torch.stack([first, (1 - first**2).sqrt()], 1)
    ranks = retrieval_ranks(torch.tensor([[2.0, 0.0]]), candidates, torch.tensor([7]), ids)
    for k in range(1, len(rows) + 1):
        recall, rank = brute_force(cosines, right, k)
        assert float(ranks.recall(k)) == pytest.approx(recall, abs=1e-9)
        assert float(ranks.expected()) == pytest.approx(rank)
    assert float(ranks.recall(len(rows) + 3)) == 1


def test_both_directions_by_sorting():
    generator = torch.Generator().manual_seed(0)
    clips, texts = torch.randn(30, 8, generator=generator), torch.randn(75, 8, generator=generator)
    owners = torch.cat([torch.arange(30), torch.randint(30, (45,), generator=generator)])
    texts += 0.7 * clips[owners]
    found = retrieval_scores(clips, 100 + torch.arange(30), texts, 100 + owners, (1, 5, 10, 40))

    cosines = torch.nn.functional.cosine_similarity(clips[:, None], texts[None], dim=-1).numpy()
    by_clip = [next(r for r, t in enumerate(np.argsort(-row), 1) if owners[t] == i) for i, row in enumerate(cosines)]
    by_text = [1 + list(np.argsort(-column)).index(owners[t]) for t, column in enumerate(cosines.T)]
    for direction, ranks, candidates in (("video_to_text", by_clip, 75), ("text_to_video", by_text, 30)):
        scores = found[direction]
        expected = {f"r@{k}": np.mean(np.array(ranks) <= k) for k in (1, 5, 10, 40) if k <= candidates}
        expected |= {"queries": len(ranks), "candidates": candidates, "median_rank": np.median(ranks)}
        assert {key: value for key, value in scores.items() if key != "chance"} == pytest.approx(expected)
    assert found["text_to_video"]["chance"]["r@5"] == pytest.approx(5 / 30)
    assert found["text_to_video"]["chance"]["median_rank"] == pytest.approx(31 / 2)


@pytest.mark.parametrize("k", [1, 3])
def test_recall_of_many_queries_equals_scikit_learn(k):
    gallery, labels = torch.randn(12, 6, generator=torch.Generator().manual_seed(0)), torch.arange(2500) % 12
    queries = gallery[labels] + 1.5 * torch.randn(2500, 6, generator=torch.Generator().manual_seed(1))
    ranks = retrieval_ranks(3 * queries, gallery, labels, torch.arange(12))  # more queries than are compared at once
    expected = top_k_accuracy_score(labels, cosine_similarity(queries, gallery), k=k)
    assert 0.1 < expected < 0.95
    assert ranks.recall(k).mean().item() == pytest.approx(expected)


def test_a_collapsed_model_scores_chance():
    ids, owners = torch.arange(6), torch.tensor([0, 0, 1, 2, 3, 4, 5, 5, 5])
    for scores in retrieval_scores(torch.ones(6, 4), ids, torch.ones(9, 4), owners, (1, 3)).values():
        assert {key: scores[key] for key in scores["chance"]} == pytest.approx(scores["chance"])
        assert 0 < scores["r@1"] < scores["r@3"] < 1


def test_chance_counts_the_captions_of_each_clip():
    ranks = chance_ranks(torch.tensor([1, 3]), torch.tensor([1, 1, 2, 3]))
    assert [each.tolist() for each in ranks] == [[0, 0], [2, 3], [2, 1]]
    assert Ranks(*ranks).recall(1).tolist() == pytest.approx([2 / 4, 1 / 4])
    assert Ranks(*ranks).recall(2).tolist() == pytest.approx([1 - 1 / 6, 2 / 4])


test_bad_input_is_refused = refusals(
    (torch.ones(2, 3), torch.ones(2, 4), [0, 1], [0, 1], "same E, got 3 and 4"),
    (torch.ones(2, 3), torch.ones(2, 3), [0, 5], [0, 1], "got none for the id 5"),
    (torch.ones(2, 3), torch.full((2, 3), torch.nan), [0, 1], [0, 1], "gallery must be finite"),
    (torch.ones(2, 3), torch.ones(2, 3), [0], [0, 1], r"query_ids must be \(2,\) integers"),
    (torch.ones(2, 3), torch.ones(0, 3), [0, 1], [], "gallery must be"),
    of=lambda queries, gallery, query_ids, gallery_ids: retrieval_ranks(
        queries, gallery, torch.tensor(query_ids), torch.tensor(gallery_ids)
    ),
)
