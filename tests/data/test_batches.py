"""Training batches of pairs: what each holds, and that it depends on the seed and its number alone."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from conftest import refuses

from jepa.data.batches import PairBatches
from jepa.data.chat import ChatIds
from jepa.data.packing import IGNORE, Layout, pack

LAYOUT = Layout(row_tokens=40, predictors=(7,))


def chats(count: int) -> list[ChatIds]:
    """Example i has the prompt [100 + i, 5], its text the prompt [200 + i], and an answer of its own."""
    return [ChatIds([100 + i, 5], [6, 300 + i, 1], 1, [200 + i], [6, 300 + i, 1]) for i in range(count)]


def numbers(rows) -> list[int]:
    """Which pairs of `chats` a batch trains on, in its order."""
    return sorted(int(i) - 300 for i in rows.labels[rows.labels >= 300])


def same(a, b) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("pairs", "size"), [(12, 4), (10, 4), (7, 7), (5, 3)])
def test_every_epoch_holds_every_pair_once(pairs, size):
    batches = PairBatches(chats(pairs), LAYOUT, 0, size, 3 * pairs)
    order = [i for batch in (batches.chosen(k) for k in range(3 * pairs)) for i in batch]
    assert len(order) == 3 * pairs * size
    for epoch in range(3):
        assert sorted(order[epoch * pairs : (epoch + 1) * pairs]) == list(range(pairs))
    assert order[:pairs] != order[pairs : 2 * pairs]
    for k in (0, 1, 2):
        assert numbers(batches[k].rows) == sorted(batches.chosen(k))


def test_a_batch_depends_on_seed_and_number_alone():
    pairs = chats(20)
    first, again = (PairBatches(pairs, LAYOUT, 3, 8, 50, loss_dropout=0.5, tube=True) for _ in range(2))
    assert all(same(again[k].rows, first[k].rows) for k in reversed(range(50)))
    other = PairBatches(pairs, LAYOUT, 4, 8, 50)
    assert any(numbers(first[k].rows) != numbers(other[k].rows) for k in range(50))


def test_arms_train_on_the_same_pairs_in_the_same_order():
    """λ = 0, the method and the shuffled control differ in nothing else; fewer batches are the first of more."""
    pairs = chats(20)
    arms = [
        PairBatches(pairs, LAYOUT, 0, 8, 30, latent=False),
        PairBatches(pairs, LAYOUT, 0, 8, 60),
        PairBatches(pairs, LAYOUT, 0, 8, 30, shuffled=True),
        PairBatches(pairs, LAYOUT, 0, 8, 30, loss_dropout=0.5),
        PairBatches(pairs, LAYOUT, 0, 8, 30, tube=True),
    ]
    for k in range(30):
        assert len({tuple(numbers(arm[k].rows)) for arm in arms}) == 1


def test_next_token_batches_hold_nothing_else():
    pairs = chats(20)
    batches = PairBatches(pairs, LAYOUT, 0, 8, 10, latent=False)
    for k in range(10):
        assert same(batches[k].rows, pack([pairs[i] for i in batches.chosen(k)], LAYOUT))
        assert batches[k].targets is None


@pytest.mark.parametrize("fraction", [0.25, 0.75])
def test_loss_dropout_leaves_the_extra_tokens_out_of_its_share_of_batches(fraction):
    batches = PairBatches(chats(8), LAYOUT, 0, 4, 300, loss_dropout=fraction)
    plain = 0
    for k in range(300):
        rows = batches[k].rows
        tokens = int((rows.segments >= 0).sum())
        assert (tokens, len(rows.predicted), 7 in rows.ids) in ((4 * 5, 0, False), (4 * (5 + 1 + 3), 4, True))
        plain += len(rows.predicted) == 0
    assert plain == pytest.approx(300 * fraction, abs=4 * np.sqrt(300 * fraction * (1 - fraction)))


@pytest.mark.parametrize("pairs", [2, 3, 20])
def test_shuffled_pairs_never_keep_their_own_target(pairs):
    batches = PairBatches(chats(pairs), LAYOUT, 0, 2, 60, shuffled=True)
    partners = {}
    for k in range(60):
        rows, chosen = batches[k].rows, batches.chosen(k)
        tokens = rows.ids.flatten()
        for i, end, number in zip(chosen, rows.target, rows.target_ids, strict=True):
            partner = int(tokens[end - 1]) - 300
            assert partner != i
            assert number == batches.ids[partner]
            assert partners.setdefault(i, partner) == partner  # one permutation for the whole training
        assert numbers(rows) == sorted(chosen)  # next tokens stay as they are
    assert sorted(partners.values()) == list(range(pairs))


def test_targets_apart_hold_what_the_rows_leave_out():
    pairs = chats(20)
    apart, together = (PairBatches(pairs, LAYOUT, 0, 8, 5, apart=apart) for apart in (True, False))
    for k in range(5):
        rows, targets = apart[k]
        assert len(rows.target) == 0
        assert len(rows.predicted) == 8
        assert torch.equal(rows.target_ids, together[k].rows.target_ids)
        ends = targets.ids.flatten()[targets.target - 1] - 300
        assert ends.tolist() == apart.chosen(k)
        counts = [int((r.segments >= 0).sum()) for r in (rows, targets, together[k].rows)]
        assert counts[0] + counts[1] == counts[2]
        assert together[k].targets is None


def test_tube_batches_have_three_positions_and_no_extra_tokens():
    batches = PairBatches(chats(20), LAYOUT, 0, 8, 10, tube=True)
    seen = Counter()
    for k in range(10):
        rows = batches[k].rows
        assert rows.tube.shape == (8, 3)
        assert (rows.tube.diff(dim=1) > 0).all()
        assert (rows.segments.flatten()[rows.tube] >= 0).all()
        assert int((rows.segments >= 0).sum()) == 8 * 5
        seen.update(map(tuple, (rows.tube - rows.tube[:, :1]).tolist()))
    assert len(seen) > 3  # drawn anew


@pytest.mark.parametrize(
    ("direction", "view", "part"),
    [("forward", "shared", "code"), ("reverse", "shared", "prompt"), ("reverse", "alone", "text")],
)
def test_equal_targets_have_equal_numbers(direction, view, part):
    pairs = chats(8)
    for i in (5, 6):
        pairs[i] = pairs[i]._replace(**{part: getattr(pairs[2], part)})
    batches = PairBatches(pairs, Layout(40, predictors=(7,), direction=direction, view=view), 0, 8, 1)
    for i, a in enumerate(pairs):
        for j, b in enumerate(pairs):
            assert (batches.ids[i] == batches.ids[j]) == (getattr(a, part) == getattr(b, part))
    chosen = batches.chosen(0)
    assert batches[0].rows.target_ids.tolist() == [batches.ids[i] for i in chosen]


def test_bad_batches_are_named():
    refuses("batch_size", lambda: PairBatches(chats(3), LAYOUT, 0, 4, 1))
    for fraction in (-0.1, 1.0, float("nan")):
        refuses("loss_dropout", PairBatches, chats(3), LAYOUT, 0, 2, 1, loss_dropout=fraction)
    batches = PairBatches(chats(3), LAYOUT, 0, 2, 4)
    assert len(batches) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError):
            batches[index]
    assert IGNORE not in batches.ids
