"""Packed rows against a plain construction: one list of tokens for everything that a token may see."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, count, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.data.chat import ChatIds
from jepa.data.packing import IGNORE, Layout, pack, pack_targets
from jepa.errors import InputError


def chat(prompt: int, answer: int, text: int, code: int, tokens: count) -> ChatIds:
    """A pair of the given lengths, in tokens that occur nowhere else."""
    part = [[next(tokens) for _ in range(n)] for n in (prompt, answer, text, code)]
    return ChatIds(part[0], part[1], 1, part[2], part[3])


def batch(lengths: list[tuple[int, int, int, int]]) -> list[ChatIds]:
    tokens = count(100)
    return [chat(*of_pair, tokens) for of_pair in lengths]


def seen(rows, row: int, column: int) -> list[int]:
    """Columns that a token sees, as `PackedBatch` defines it."""
    segment, parent = rows.segments[row, column], rows.parents[row, column]
    return [c for c in range(column + 1) if rows.segments[row, c] in (segment, parent)]


def context(rows, row: int, column: int) -> tuple[int, ...]:
    """The tokens that a token sees, itself the last; their positions have to count up from 0."""
    columns = seen(rows, row, column)
    assert rows.positions[row, columns].tolist() == list(range(len(columns)))
    return tuple(rows.ids[row, columns].tolist())


def contexts(rows) -> dict[tuple[int, int], tuple[int, ...]]:
    real = (rows.segments >= 0).nonzero().tolist()
    return {(row, column): context(rows, row, column) for row, column in real}


def at(rows, index: torch.Tensor) -> list[tuple[int, ...]]:
    width = rows.ids.shape[1]
    return [context(rows, int(i) // width, int(i) % width) for i in index]


def prefixes(sequence: list[int], shortest: int = 1) -> list[tuple[int, ...]]:
    return [tuple(sequence[:n]) for n in range(shortest, len(sequence) + 1)]


def prediction(pair: ChatIds, layout: Layout) -> list[int]:
    text = pair.prompt if layout.view == "shared" else pair.text
    source, tokens = text if layout.direction == "forward" else pair.code, list(layout.predictors)
    return source + tokens if layout.placement == "append" else tokens + source


def target(pair: ChatIds, layout: Layout) -> list[int]:
    if layout.direction == "forward":
        return pair.code
    return pair.prompt if layout.view == "shared" else pair.text


def expected(pairs: list[ChatIds], targets: list[ChatIds] | None, layout: Layout, apart: bool) -> Counter:
    """Contexts of all tokens that have to be computed."""
    found: Counter = Counter()
    shared = layout.packed and layout.view == "shared"
    for i, pair in enumerate(pairs):
        found.update(prefixes(pair.prompt + pair.completion))
        if targets is None:
            continue
        there = shared and layout.direction == "forward" and layout.placement == "append"  # view 1 of the prediction
        found.update(prefixes(prediction(pair, layout), len(pair.prompt) + 1 if there else 1))
        if not apart and not (shared and layout.direction == "reverse" and targets[i] is pair):
            found.update(prefixes(target(targets[i], layout)))
    return found


LENGTH = st.integers(1, 6)
LENGTHS = st.lists(st.tuples(LENGTH, LENGTH, LENGTH, LENGTH), min_size=1, max_size=6)
LAYOUTS = st.builds(
    Layout,
    row_tokens=st.integers(1, 60),
    predictors=st.sampled_from([(), (7,), (7, 8), (7, 8, 9)]),
    placement=st.sampled_from(["append", "prepend"]),
    direction=st.sampled_from(["forward", "reverse"]),
    view=st.sampled_from(["shared", "alone"]),
    packed=st.booleans(),
    train_on=st.sampled_from(["answer", "everything"]),
)


@settings(max_examples=100)
@given(LENGTHS, LAYOUTS, st.sampled_from(["none", "own", "shuffled"]), st.booleans(), st.integers(0, 9))
def test_every_token_sees_what_it_must_and_nothing_else(lengths, layout, partner, apart, seed):
    pairs = batch(lengths)
    order = np.random.default_rng(seed).permutation(len(pairs)) if partner == "shuffled" else np.arange(len(pairs))
    targets = None if partner == "none" else [pairs[i] for i in order]
    ids = [] if targets is None else order.tolist()
    rows = pack(pairs, layout, targets, ids, apart=apart)
    assert Counter(contexts(rows).values()) == expected(pairs, targets, layout, apart)

    if targets is None:
        assert len(rows.predicted) == len(rows.target) == len(rows.target_ids) == 0
    else:
        assert at(rows, rows.predicted) == [tuple(prediction(pair, layout)) for pair in pairs]
        embedded = [tuple(target(pair, layout)) for pair in targets]
        assert at(rows, rows.target) == ([] if apart else embedded)
        alone = pack_targets(targets, layout)
        assert at(alone, alone.target) == embedded
        assert Counter(contexts(alone).values()) == Counter(p for t in embedded for p in prefixes(list(t)))
        assert (alone.labels == IGNORE).all()
        assert rows.target_ids.tolist() == ids

    trained = Counter()
    for (row, column), before in contexts(rows).items():
        if rows.labels[row, column] != IGNORE:
            trained[(*before, int(rows.labels[row, column]))] += 1
    first = {"answer": lambda pair: len(pair.prompt) + pair.opening + 1, "everything": lambda pair: 2}[layout.train_on]
    assert trained == Counter(p for pair in pairs for p in prefixes(pair.prompt + pair.completion, first(pair)))

    padding = rows.segments < 0
    assert (rows.parents[padding] == -2).all()
    assert (rows.labels[padding] == IGNORE).all()


@settings(max_examples=40)
@given(LENGTHS, LAYOUTS)
def test_rows_are_full_and_no_longer_than_they_may_be(lengths, layout):
    """First fit: no two rows could have been one; only a sequence that is too long itself makes longer rows."""
    pairs = batch(lengths)
    rows = pack(pairs, layout, pairs, list(range(len(pairs))))
    used = (rows.segments >= 0).sum(1).tolist()
    assert rows.ids.shape[1] == max(used)
    if not layout.packed:
        assert len(used) == 3 * len(pairs)
        return
    parts = [len(pair.prompt + pair.completion) + len(layout.predictors) for pair in pairs]
    room = max(layout.row_tokens, *parts, *(len(prediction(p, layout)) for p in pairs), *(len(p.code) for p in pairs))
    assert max(used) <= room
    for a, b in combinations(used, 2):
        assert a + b > layout.row_tokens


@settings(max_examples=40)
@given(LENGTHS, st.integers(1, 60), st.integers(0, 9))
def test_the_tube_lies_in_order_in_each_conversation(lengths, row_tokens, seed):
    pairs = batch([(2 + p, a, t, c) for p, a, t, c in lengths])
    rows = pack(pairs, Layout(row_tokens, predictors=(7,)), tube=np.random.default_rng(seed))
    assert rows.tube.shape == (len(pairs), 3)
    assert len(rows.predicted) == len(rows.target) == 0
    assert Counter(contexts(rows).values()) == expected(pairs, None, Layout(row_tokens), apart=False)
    for pair, triple in zip(pairs, rows.tube, strict=True):
        a, b, c = at(rows, triple)
        assert len(a) < len(b) < len(c)
        assert c == tuple((pair.prompt + pair.completion)[: len(c)])
        assert c[: len(b)] == b
        assert b[: len(a)] == a


def test_the_tube_reaches_every_position():
    pairs = batch([(2, 2, 1, 1)])
    generator = np.random.default_rng(0)
    layout = Layout(10)
    drawn = {tuple(pack(pairs, layout, tube=generator).tube[0].tolist()) for _ in range(100)}
    assert drawn == set(combinations(range(4), 3))


def test_one_pass_computes_view_1_once():
    """The tokens of one pair: prompt, answer, [PRED] and the answer alone; the published form repeats the first two."""
    pairs = batch([(5, 3, 5, 3)])
    tokens = {}
    for packed, view in product((True, False), ("shared", "alone")):
        rows = pack(pairs, Layout(50, predictors=(7, 8), packed=packed, view=view), pairs, [0])
        tokens[packed, view] = int((rows.segments >= 0).sum())
    assert tokens == {
        (True, "shared"): 5 + 3 + 2 + 3,
        (True, "alone"): 5 + 3 + 5 + 2 + 3,
        (False, "shared"): 5 + 3 + 5 + 2 + 3,
        (False, "alone"): 5 + 3 + 5 + 2 + 3,
    }


def test_bad_layouts_are_named():
    with pytest.raises(InputError, match="row_tokens must be >= 1, got 0"):
        Layout(0)
    with pytest.raises(InputError, match="a batch must hold at least 1 pair, got none"):
        pack([], Layout(8))
