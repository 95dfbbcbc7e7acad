"""Packed rows against a plain construction: one list of tokens for everything that a token may see."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, count, product

import numpy as np
import torch
from conftest import refuses
from hypothesis import given, settings
from hypothesis import strategies as st

from jepa.data.chat import ChatIds
from jepa.data.packing import IGNORE, Layout, pack, pack_targets


def chat(prompt: int, answer: int, text: int, code: int, tokens: count) -> ChatIds:
    """A pair of the given lengths, in tokens that occur nowhere else."""
    part = [[next(tokens) for _ in range(n)] for n in (prompt, answer, text, code)]
    return ChatIds(part[0], part[1], 1, part[2], part[3], part[2], [next(tokens)], [next(tokens)])


def batch(lengths: list[tuple[int, int, int, int]]) -> list[ChatIds]:
    tokens = count(100)
    return [chat(*of_pair, tokens) for of_pair in lengths]


def context(rows, row: int, column: int) -> tuple[int, ...]:
    """The tokens that a token sees, itself the last; their positions have to count up from 0."""
    seen = rows.segments[row, column], rows.parents[row, column]  # as `PackedBatch` defines it
    columns = [c for c in range(column + 1) if rows.segments[row, c] in seen]
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
    source, tokens = viewed(pair, layout, layout.direction == "forward"), list(layout.predictors)
    if layout.placement == "turn":
        return source + tokens[::-1]
    return source + tokens if layout.placement == "append" else tokens + source


def target(pair: ChatIds, layout: Layout) -> list[int]:
    return viewed(pair, layout, layout.direction == "reverse")


def viewed(pair: ChatIds, layout: Layout, first: bool) -> list[int]:
    """View 1 or 2, up to the state that is read."""
    if layout.placement == "turn":
        return pair.words if first else pair.code[:-1]
    return pair.code if not first else pair.prompt if layout.view == "shared" else pair.text


def said(pair: ChatIds, layout: Layout) -> list[int]:
    return pair.completion + (pair.after if layout.train_on == "published" else [])


def ended(tokens: list[int], pair: ChatIds, layout: Layout, first: bool) -> list[int]:
    """The end of the turn after the state that is read: in a row of its own alone."""
    end = pair.closing if first else pair.code[-1:] + pair.after
    return tokens + (end if (layout.placement, layout.rows) == ("turn", "separate") else [])


def expected(pairs: list[ChatIds], targets: list[ChatIds] | None, layout: Layout, apart: bool) -> Counter:
    """Contexts of all tokens that have to be computed."""
    found: Counter = Counter()
    shared = layout.rows == "packed" and layout.view == "shared" and layout.placement != "turn"
    forward = layout.direction == "forward"
    for i, pair in enumerate(pairs):
        found.update(prefixes(pair.prompt + said(pair, layout)))
        if targets is None:
            continue
        there = shared and forward and layout.placement == "append"  # view 1 of the prediction
        source = ended(prediction(pair, layout), pair, layout, forward)
        found.update(prefixes(source, len(pair.prompt) + 1 if there else 1))
        if not apart and not (shared and layout.direction == "reverse" and targets[i] is pair):
            found.update(prefixes(ended(target(targets[i], layout), targets[i], layout, not forward)))
    return found


LENGTH = st.integers(1, 6)
LENGTHS = st.lists(st.tuples(LENGTH, LENGTH, LENGTH, st.integers(2, 6)), min_size=1, max_size=6)
LAYOUTS = st.builds(
    Layout,
    row_tokens=st.integers(1, 60),
    predictors=st.sampled_from([(), (7,), (7, 8), (7, 8, 9)]),
    placement=st.sampled_from(["append", "prepend", "turn"]),
    direction=st.sampled_from(["forward", "reverse"]),
    view=st.sampled_from(["shared", "alone"]),
    rows=st.sampled_from(["packed", "two", "separate"]),
    train_on=st.sampled_from(["answer", "everything", "published"]),
    pad_id=st.just(104),
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
        whole = [ended(target(p, layout), p, layout, layout.direction == "reverse") for p in targets]
        assert Counter(contexts(alone).values()) == Counter(p for t in whole for p in prefixes(t))
        assert (alone.labels == IGNORE).all()
        assert rows.target_ids.tolist() == ids

    trained = Counter()
    for (row, column), before in contexts(rows).items():
        if rows.labels[row, column] != IGNORE:
            trained[(*before, int(rows.labels[row, column]))] += 1
    wanted = Counter()
    for pair in pairs:
        first = len(pair.prompt) + pair.opening + 1 if layout.train_on == "answer" else 2
        wanted.update(prefixes(pair.prompt + said(pair, layout), first))
    if layout.train_on == "published":  # a token that doubles as padding is no label
        wanted = Counter({p: n for p, n in wanted.items() if p[-1] != layout.pad_id})
    assert trained == wanted

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
    if layout.rows != "packed":
        assert len(used) == {"two": 2, "separate": 3}[layout.rows] * len(pairs)
        return
    parts = [len(pair.prompt + said(pair, layout)) + len(layout.predictors) for pair in pairs]
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
    for how, view in product(("packed", "separate"), ("shared", "alone")):
        rows = pack(pairs, Layout(50, predictors=(7, 8), rows=how, view=view), pairs, [0])
        tokens[how, view] = int((rows.segments >= 0).sum())
    assert tokens == {
        ("packed", "shared"): 5 + 3 + 2 + 3,
        ("packed", "alone"): 5 + 3 + 5 + 2 + 3,
        ("separate", "shared"): 5 + 3 + 5 + 2 + 3,
        ("separate", "alone"): 5 + 3 + 5 + 2 + 3,
    }


def test_bad_layouts_are_named():
    refuses("row_tokens must be >= 1, got 0", Layout, 0)
    refuses("a batch must hold at least 1 pair, got none", lambda: pack([], Layout(8)))
    short = [ChatIds([5], [6], 0, [5], [6])]
    refuses("a view must have at least 1 token .*, got none", lambda: pack(short, Layout(8, placement="turn"), short))
