"""Packing: the sequences of a batch laid into a few rows under a block mask, so that nothing is computed twice.

A *segment* is a run of tokens. It sees itself causally and, if it has a parent, all of its parent's tokens; its
positions go on from the parent's. In one pass over a pair (LLM-JEPA section 3.1, in one row instead of its three):

    prompt ── answer given the prompt      next tokens
          └── [PRED] given the prompt      the predicted embedding
    answer alone                           the target embedding

R rows of L tokens, N pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from jepa.data.chat import ChatIds
from jepa.errors import InputError

IGNORE = -100  # a label that is not trained on, as in torch.nn.functional.cross_entropy


class PackedBatch(NamedTuple):
    """Packed rows.

    Args:
        ids: (R, L) tokens.
        segments: (R, L) number of each token's segment, counted over all rows in the order of the pairs; −1 at padding.
        parents: (R, L) number of its segment's parent, −2 where there is none.
        positions: (R, L) positions for the model's position encoding.
        labels: (R, L) the token to predict at each position, `IGNORE` where none is trained on.
        predicted: (N,) flat index into R·L of the state that is the predicted embedding; (0,) without latent term.
        target: (N,) flat index of the state that is the target embedding.
        tube: (N, 3) flat indices s < r < t of each conversation for the semantic tube; (0, 3) without it.
        target_ids: (N,) equal for equal targets.
    """

    ids: Tensor
    segments: Tensor
    parents: Tensor
    positions: Tensor
    labels: Tensor
    predicted: Tensor
    target: Tensor
    tube: Tensor
    target_ids: Tensor


@dataclass(frozen=True)
class Layout:
    """What is laid into the rows.

    Args:
        row_tokens: room of a row; if a sequence is longer, the rows of its batch are as long as it.
        predictors: ids of the [PRED] tokens; none: the last state of view 1 is the prediction.
        placement: the [PRED] tokens come after view 1, or before it (which then is computed a second time).
        direction: "forward" predicts view 2 from view 1, "reverse" view 1 from view 2.
        view: "shared" takes the conversation's prompt as view 1; "alone" the user's turn by itself, as published.
        packed: False gives every sequence a row of its own, as published, and computes view 1 for each anew.
        train_on: "answer" and its end of turn, or "everything" for the prompt's tokens and the turn's opening, too.
    """

    row_tokens: int
    predictors: tuple[int, ...] = ()
    placement: Literal["append", "prepend"] = "append"
    direction: Literal["forward", "reverse"] = "forward"
    view: Literal["shared", "alone"] = "shared"
    packed: bool = True
    train_on: Literal["answer", "everything"] = "answer"

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise InputError(f"row_tokens must be >= 1, got {self.row_tokens}")


@dataclass
class _Segment:
    ids: list[int]
    parent: int = -1  # index within its sequence group
    trained: bool = False  # its tokens are labels
    given: int = 0  # but for so many at its start, which generation is given


@dataclass
class _Group:
    """Segments that have to lie in one row, and where the marked states are: (segment, token)."""

    segments: list[_Segment]
    predicted: tuple[int, int] | None = None
    target: tuple[int, int] | None = None

    @property
    def length(self) -> int:
        return sum(len(s.ids) for s in self.segments)


def pack(
    pairs: Sequence[ChatIds],
    layout: Layout,
    targets: Sequence[ChatIds] | None = None,
    target_ids: Sequence[int] = (),
    tube: np.random.Generator | None = None,
    apart: bool = False,
) -> PackedBatch:
    """Lays out a batch: the conversations and, where `targets` are given, what the latent term needs.

    Args:
        pairs: N conversations.
        targets: N pairs whose view 2 (view 1 in reverse) is the target of each: `pairs` itself, or others as a
            control. None: next tokens alone.
        target_ids: N numbers, equal for equal targets.
        tube: draws the three positions of the semantic tube.
        apart: leave the targets out; `pack_targets` lays them into rows of their own, for another model.

    Raises:
        InputError: there is no pair.
    """
    if not pairs:
        raise InputError("a batch must hold at least 1 pair, got none")
    groups: list[_Group] = []
    conversation, predicted, target = [], [], []  # index of the group of each pair
    for i, pair in enumerate(pairs):
        of_pair = _groups(pair, None if targets is None else targets[i], layout)
        if apart:
            of_pair = [g for g in of_pair if g.target is None or g.predicted is not None or g is of_pair[0]]
        conversation.append(len(groups))
        predicted += [len(groups) + j for j, g in enumerate(of_pair) if g.predicted is not None]
        target += [len(groups) + j for j, g in enumerate(of_pair) if g.target is not None]
        groups += of_pair
    rows, place = _lay(groups, layout)
    triples = []
    if tube is not None:
        for group in conversation:  # prompt and answer lie one after the other
            length = sum(len(s.ids) for s in groups[group].segments[:2])
            if length < 3:
                raise InputError(f"a conversation must have at least 3 tokens for the semantic tube, got {length}")
            triples.append([place(group, (0, 0)) + int(j) for j in np.sort(tube.choice(length, 3, replace=False))])
    return rows._replace(
        predicted=_index([place(g, groups[g].predicted) for g in predicted]),
        target=_index([] if apart else [place(g, groups[g].target) for g in target]),
        tube=_index(triples).reshape(-1, 3),
        target_ids=_index(list(target_ids)),
    )


def pack_targets(targets: Sequence[ChatIds], layout: Layout) -> PackedBatch:
    """Rows of the target views alone, for a model that gives the targets only (an EMA of the one that is trained)."""
    groups = [_target(pair, layout) for pair in targets]
    rows, place = _lay(groups, layout)
    return rows._replace(target=_index([place(i, group.target) for i, group in enumerate(groups)]))


def _index(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _lay(groups: Sequence[_Group], layout: Layout) -> tuple[PackedBatch, Callable[[int, tuple[int, int] | None], int]]:
    """The rows, and a function from (group, mark) to the flat index of a state."""
    row, starts = _place(groups, layout)
    fields, first = _tensors(groups, row, starts, everything=layout.train_on == "everything")
    width = fields["ids"].shape[1]

    def place(group: int, mark: tuple[int, int] | None) -> int:
        segment, token = mark if mark is not None else (0, 0)
        return int(row[group] * width + first[group][segment] + token)

    empty = _index([])
    return PackedBatch(**fields, predicted=empty, target=empty, tube=empty.reshape(0, 3), target_ids=empty), place


def _groups(pair: ChatIds, target: ChatIds | None, layout: Layout) -> list[_Group]:
    """The conversation first, then what the latent term adds."""
    conversation = _Group(
        [_Segment(pair.prompt), _Segment(pair.completion, parent=0, trained=True, given=pair.opening)]
    )
    if target is None:
        return [conversation]
    predictors = list(layout.predictors)
    forward = layout.direction == "forward"
    shared = layout.packed and layout.view == "shared"
    text = pair.prompt if layout.view == "shared" else pair.text
    source, other = text if forward else pair.code, _target(target, layout)
    if not forward and shared and target is pair:  # the prompt's last state is there already
        conversation.target = (0, len(pair.prompt) - 1)
        return [conversation, _prediction(source, predictors, layout)]
    if forward and shared and layout.placement == "append":
        if predictors:
            conversation.segments.append(_Segment(predictors, parent=0))
            conversation.predicted = (2, len(predictors) - 1)
        else:
            conversation.predicted = (0, len(pair.prompt) - 1)
        return [conversation, other]
    return [conversation, _prediction(source, predictors, layout), other]


def target_view(pair: ChatIds, layout: Layout) -> list[int]:
    """The tokens whose last state is the target: view 2, or view 1 in reverse."""
    if layout.direction == "forward":
        return pair.code
    return pair.prompt if layout.view == "shared" else pair.text


def target_numbers(pairs: Sequence[ChatIds], layout: Layout) -> list[int]:
    """A number for each pair, equal for equal targets."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(tuple(target_view(pair, layout)), len(numbers)) for pair in pairs]


def _target(pair: ChatIds, layout: Layout) -> _Group:
    ids = target_view(pair, layout)
    return _Group([_Segment(ids)], target=(0, len(ids) - 1))


def _prediction(source: list[int], predictors: list[int], layout: Layout) -> _Group:
    ids = [*source, *predictors] if layout.placement == "append" else [*predictors, *source]
    return _Group([_Segment(ids)], predicted=(0, len(ids) - 1))


def _place(groups: Sequence[_Group], layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Row and first column of each group: first fit, the longest first; one row each unless packed."""
    lengths = np.array([group.length for group in groups])
    if not layout.packed:
        return np.arange(len(groups)), np.zeros(len(groups), dtype=np.int64)
    room = max(layout.row_tokens, int(lengths.max()))
    rows, starts = np.zeros_like(lengths), np.zeros_like(lengths)
    used: list[int] = []
    for group in np.argsort(-lengths, kind="stable"):
        row = next((r for r, n in enumerate(used) if n + lengths[group] <= room), len(used))
        if row == len(used):
            used.append(0)
        rows[group], starts[group] = row, used[row]
        used[row] += int(lengths[group])
    return rows, starts


def _tensors(
    groups: Sequence[_Group], rows: np.ndarray, starts: np.ndarray, everything: bool
) -> tuple[dict[str, Tensor], list[list[int]]]:
    """The token-level fields, and the column of the first token of each segment of each group."""
    segments = [(g, j, s) for g, group in enumerate(groups) for j, s in enumerate(group.segments)]
    group = torch.tensor([g for g, _, _ in segments])
    length = torch.tensor([len(s.ids) for _, _, s in segments])
    number = torch.arange(len(segments))  # unique over all rows
    base = torch.zeros_like(number)  # number of each group's first segment
    base[1:] = torch.where(group[1:] != group[:-1], number[1:], 0)
    base = base.cummax(0).values
    local = torch.tensor([s.parent for _, _, s in segments])
    parent = torch.where(local < 0, -2, base + local)
    ends = length.cumsum(0)
    column = ends - length  # of the segment within all tokens, then within its group, then within its row
    column = column - column[base] + torch.from_numpy(starts)[group]
    offset = torch.where(local < 0, 0, length[parent.clamp_min(0)])  # positions go on from the parent's

    owner = torch.repeat_interleave(number, length)
    inside = torch.arange(int(ends[-1])) - (ends - length)[owner]
    row, col = torch.from_numpy(rows)[group][owner], column[owner] + inside
    shape = (int(rows.max()) + 1, int(col.max()) + 1)

    def scatter(values: Tensor, fill: int) -> Tensor:
        return torch.full(shape, fill, dtype=torch.long).index_put((row, col), values)

    tokens = torch.tensor([token for _, _, s in segments for token in s.ids])
    answer = torch.tensor([s.trained for _, _, s in segments])
    if everything:  # with the prompt, the segment before an answer, but for the first token of all
        trained = (answer | answer.roll(-1))[owner] & ~((inside == 0) & (parent[owner] < 0))
    else:
        given = torch.tensor([s.given for _, _, s in segments])
        trained = answer[owner] & (inside >= given[owner])
    ids = scatter(tokens, 0)
    wanted = scatter(trained.long(), 0).bool()
    labels = torch.full(shape, IGNORE, dtype=torch.long)
    labels[:, :-1] = torch.where(wanted[:, 1:], ids[:, 1:], IGNORE)
    first: list[list[int]] = [[] for _ in groups]
    for (g, _, _), start in zip(segments, column.tolist(), strict=True):
        first[g].append(start)
    fields = {
        "ids": ids,
        "segments": scatter(number[owner], -1),
        "parents": scatter(parent[owner], -2),
        "positions": scatter(offset[owner] + inside, 0),
        "labels": labels,
    }
    return fields, first
