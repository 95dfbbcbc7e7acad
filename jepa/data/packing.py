"""Packing: the sequences of a batch laid into a few rows under a block mask, so that nothing is computed twice.

A *segment* is a run of tokens. It sees itself causally and, if it has a parent, all of its parent's tokens. Its
positions continue those of the parent. One pass over an example (LLM-JEPA section 3.1, in one row instead of three):

    prompt ── answer given the prompt      next tokens
          └── [PRED] given the prompt      the predicted embedding
    answer alone                           the target embedding

R rows of L tokens, N examples.
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
    """Packed rows."""

    ids: Tensor  # (R, L) tokens
    segments: Tensor  # (R, L) number of each token's segment, counted over all rows in order of examples; -1: padding
    parents: Tensor  # (R, L) number of its segment's parent, -2 where there is none
    positions: Tensor  # (R, L) for the model's position encoding
    labels: Tensor  # (R, L) the token to predict at each position, `IGNORE` at the others
    predicted: Tensor  # (N,) flat index into R·L of the predicted embedding's state; (0,) without latent term
    target: Tensor  # (N,) flat index of the target embedding's state
    tube: Tensor  # (N, 3) flat indices s < r < t of each conversation for the semantic tube; (0, 3) without it
    target_ids: Tensor  # (N,) equal for equal targets


@dataclass(frozen=True)
class Layout:
    """Which sequences go into the rows, and how.

    >>> chat = ChatIds(prompt=[5, 6], completion=[7, 8], opening=0, text=[5, 6], code=[7, 8])
    >>> pack([chat], Layout(row_tokens=8)).ids.tolist()
    [[5, 6, 7, 8]]
    """

    row_tokens: int  # room of a row; a longer sequence makes all rows of its batch as long as itself
    predictors: tuple[int, ...] = ()  # ids of the [PRED] tokens; without any, the last state of view 1 predicts
    # [PRED] after view 1, or before it, which computes it again; turn: at the end of the user's words, as published
    placement: Literal["append", "prepend", "turn"] = "append"
    direction: Literal["forward", "reverse"] = "forward"  # predicts view 2 from view 1, or view 1 from view 2
    view: Literal["shared", "alone"] = "shared"  # view 1: the prompt, or the user's turn by itself, as published
    # two: the conversation, and both views side by side; separate: a row for every sequence; both compute view 1 anew
    rows: Literal["packed", "two", "separate"] = "packed"
    # The answer with its end of turn; or also the prompt and the opening. published: also what the template writes
    # after the end of turn, but no token that doubles as padding.
    train_on: Literal["answer", "everything", "published"] = "answer"
    pad_id: int = -1

    def __post_init__(self) -> None:
        if self.row_tokens < 1:
            raise InputError(f"row_tokens must be >= 1, got {self.row_tokens}")


@dataclass
class _Segment:
    ids: list[int]
    parent: int = -1  # index within its sequence group
    trained: bool = False  # its tokens are labels, but for:
    given: int = 0  # tokens at its start that generation is given


@dataclass
class _Group:
    """Segments that must lie in one row, and the marked states as (segment, token)."""

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
    """Lays out N conversations and, with `targets`, the sequences of the latent term.

    The views 2 (views 1 in reverse) of N `targets` are predicted: of `pairs` itself, or of others as a control. Equal
    ones have equal `target_ids`. `tube` draws the three positions of the semantic tube. `apart` leaves the targets out;
    `pack_targets` lays them into rows of their own, for another model.
    """
    if not pairs:
        raise InputError("a batch must hold at least 1 pair, got none")
    groups, conversations = list[_Group](), list[int]()
    for i, pair in enumerate(pairs):
        conversations.append(len(groups))
        groups += _groups(pair, None if targets is None else targets[i], layout, apart)
    rows, locate = _lay(groups, layout)
    triples = []
    if tube is not None:
        for group in conversations:  # prompt and answer lie one after the other
            length = sum(len(s.ids) for s in groups[group].segments[:2])
            if length < 3:
                raise InputError(f"a conversation must have at least 3 tokens for the semantic tube, got {length}")
            triples.append([locate(group, (0, 0)) + int(j) for j in np.sort(tube.choice(length, 3, replace=False))])
    return rows._replace(
        predicted=_index([locate(i, group.predicted) for i, group in enumerate(groups) if group.predicted]),
        target=_index([locate(i, group.target) for i, group in enumerate(groups) if group.target and not apart]),
        tube=_index(triples).reshape(-1, 3),
        target_ids=_index(list(target_ids)),
    )


def pack_targets(targets: Sequence[ChatIds], layout: Layout) -> PackedBatch:
    """Rows of the target views alone, for a teacher that embeds only the targets."""
    groups = [_target(pair, layout) for pair in targets]
    rows, locate = _lay(groups, layout)
    return rows._replace(target=_index([locate(i, group.target) for i, group in enumerate(groups) if group.target]))


def target_numbers(pairs: Sequence[ChatIds], layout: Layout) -> list[int]:
    """A number for each pair, equal for equal targets."""
    numbers: dict[tuple[int, ...], int] = {}
    return [numbers.setdefault(tuple(_target(pair, layout).segments[0].ids), len(numbers)) for pair in pairs]


def _index(values: list[Any]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _lay(groups: Sequence[_Group], layout: Layout) -> tuple[PackedBatch, Callable[[int, tuple[int, int]], int]]:
    """The rows, and a function from (group, mark) to the flat index of a state."""
    rows, starts = _place([group.length for group in groups], layout)
    shape = (max(rows) + 1, max(start + group.length for start, group in zip(starts, groups, strict=True)))
    ids, positions = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    numbers, parents = np.full(shape, -1), np.full(shape, -2)
    trained, number = np.zeros(shape, dtype=bool), 0
    columns: list[list[int]] = []  # of the first token of each segment of each group
    for group, row, start in zip(groups, rows, starts, strict=True):
        first, column, columns = number, start, [*columns, []]
        for index, segment in enumerate(group.segments):
            place = (row, slice(column, column + len(segment.ids)))
            offset = len(group.segments[segment.parent].ids) if segment.parent >= 0 else 0
            ids[place], numbers[place] = segment.ids, number
            positions[place] = np.arange(offset, offset + len(segment.ids))
            if segment.parent >= 0:
                parents[place] = first + segment.parent
            if layout.train_on != "answer":  # the prompt, too, but for the first token of all
                answered = any(s.trained for s in group.segments[index : index + 2])
                trained[row, column + (segment.parent < 0) : place[1].stop] = answered
            elif segment.trained:
                trained[row, column + segment.given : place[1].stop] = True
            columns[-1].append(column)
            column, number = column + len(segment.ids), number + 1
    if layout.train_on == "published":
        trained &= ids != layout.pad_id
    labels = np.full(shape, IGNORE)
    labels[:, :-1] = np.where(trained[:, 1:], ids[:, 1:], IGNORE)

    def locate(group: int, mark: tuple[int, int]) -> int:
        segment, token = mark
        return rows[group] * shape[1] + columns[group][segment] + token

    tensor, empty = torch.from_numpy, _index([])
    tokens = (tensor(ids), tensor(numbers), tensor(parents), tensor(positions), tensor(labels))
    return PackedBatch(*tokens, empty, empty, empty.reshape(0, 3), empty), locate


def _place(lengths: Sequence[int], layout: Layout) -> tuple[list[int], list[int]]:
    """Row and first column of each group: first fit, the longest first; one row each unless packed."""
    if layout.rows != "packed":
        return list(range(len(lengths))), [0] * len(lengths)
    room = max(layout.row_tokens, *lengths)
    rows, starts, used = [0] * len(lengths), [0] * len(lengths), list[int]()
    for group in sorted(range(len(lengths)), key=lambda group: -lengths[group]):
        row = next((r for r, n in enumerate(used) if n + lengths[group] <= room), len(used))
        if row == len(used):
            used.append(0)
        rows[group], starts[group] = row, used[row]
        used[row] += lengths[group]
    return rows, starts


def _groups(pair: ChatIds, target: ChatIds | None, layout: Layout, apart: bool) -> list[_Group]:
    """The conversation first, then the sequences of the latent term."""
    said = [*pair.completion, *pair.after] if layout.train_on == "published" else pair.completion
    answer = _Segment(said, parent=0, trained=True, given=pair.opening)
    conversation = _Group([_Segment(pair.prompt), answer])
    if target is None:
        return [conversation]
    predictors = list(layout.predictors)
    forward = layout.direction == "forward"
    shared = layout.rows == "packed" and layout.view == "shared" and layout.placement != "turn"
    targets = [] if apart else [_target(target, layout)]
    if forward and shared and layout.placement == "append":
        if predictors:
            conversation.segments.append(_Segment(predictors, parent=0))
            conversation.predicted = (2, len(predictors) - 1)
        else:
            conversation.predicted = (0, len(pair.prompt) - 1)
        return [conversation, *targets]
    if not forward and shared and target is pair:  # the prompt's last state is there already
        conversation.target, targets = (0, len(pair.prompt) - 1), []
    ids, state = view(pair, layout, 1 if forward else 2, predictors)
    source = _Group([_Segment(ids)], predicted=(0, state))
    if layout.rows == "two" and targets:
        source.segments += targets[0].segments
        source.target, targets = (1, len(source.segments[1].ids) - 1), []
    return [conversation, source, *targets]


def view(pair: ChatIds, layout: Layout, number: Literal[1, 2], predictors: Sequence[int] = ()) -> tuple[list[int], int]:
    """The tokens of view 1 or 2 with [PRED] tokens, and which of them has the state that embeds it: the last one.

    With placement turn it is the last before the end of the turn, which a row of its own goes on to, and [PRED] tokens
    stand there in the order k to 1.
    """
    if layout.placement == "turn":
        words, end = (pair.words, pair.closing) if number == 1 else (pair.code[:-1], [pair.code[-1], *pair.after])
        ids = [*words, *reversed(predictors)]
        if not ids:
            raise InputError("a view must have at least 1 token before its end of turn, got none")
        return [*ids, *(end if layout.rows == "separate" else ())], len(ids) - 1
    text = pair.prompt if layout.view == "shared" else pair.text
    ids = text if number == 1 else pair.code
    ids = [*ids, *predictors] if layout.placement == "append" else [*predictors, *ids]
    return ids, len(ids) - 1


def _target(pair: ChatIds, layout: Layout) -> _Group:
    """The tokens of the target: of view 2, or of view 1 in reverse."""
    ids, state = view(pair, layout, 2 if layout.direction == "forward" else 1)
    return _Group([_Segment(ids)], target=(0, state))
