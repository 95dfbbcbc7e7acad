"""A language model's own answers, with drafts or token by token, and what they take."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from tqdm import tqdm

from jepa.config import AnswersConfig
from jepa.data.chat import ChatIds
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.kept import Kept, KeptInMemory
from jepa.models.drafts import Continuation, Drafter, fastest, packed
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import PartCount
from jepa.results.documents import Drafting
from jepa.selective import Decoded

_THRESHOLDS = (0.0, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 0.85)  # of drafts; one is chosen on validation pairs
_COSTS = ("forward_passes", "tokens", "flops", "weight_bytes", "cache_bytes")


class Generated(NamedTuple):
    """N answers, their tokens and passes, and what they took."""

    answers: list[Decoded]
    rows: list[Continuation]
    spent: PartCount


def generate(
    model: LLMJEPA,
    pairs: Sequence[Example],
    batch_size: int,
    drafter: Drafter | None = None,
    store: Kept | None = None,
    name: str = "answers",
) -> Generated:
    """N answers, no longer than the longest right one. Batches hold prompts of similar length.

    Each batch is in the `store` under `name` and a number; the seconds are those that all batches took.
    """
    store, encoded = store or KeptInMemory(), model.tokenizer.encode(pairs)
    longest, prompts = longest_answer(encoded), [ids.given for ids in encoded]
    order = sorted(range(len(pairs)), key=lambda i: len(prompts[i]))
    found, seconds = dict[int, Continuation](), 0.0

    def batch(chosen: Sequence[int]) -> tuple[list[Continuation], float]:
        started = time.perf_counter()
        made = model.continuations([prompts[i] for i in chosen], longest, drafter)
        return made, time.perf_counter() - started

    for start in progress(len(pairs), batch_size, "answers"):
        chosen = order[start : start + batch_size]
        made, spent = store.get(f"{name} {start}", partial(batch, chosen))
        found.update(zip(chosen, made, strict=True))
        seconds += spent
    rows = [found[i] for i in range(len(pairs))]
    answers = model.texts(prompts, rows, drafter)
    counts = {name: sum(getattr(each, name) for each in answers) for name in _COSTS}
    return Generated(answers, rows, PartCount(calls=len(pairs), seconds=seconds, **counts))


def with_drafts(
    model: LLMJEPA, pairs: Sequence[Example], answers: AnswersConfig, splits: ExampleSplits, store: Kept | None = None
) -> tuple[Generated, Drafting | None]:
    """Answers as configured. With drafts they are generated token by token as well, for comparison."""
    with packed(model):
        uniform = generate(model, pairs, answers.batch_size, store=store)
        if (drafter := drafter_of(model, answers, splits)) is None:
            return uniform, None
        found = generate(model, pairs, answers.batch_size, drafter, store, f"drafted at {drafter.threshold}")
    passes = [each for row in found.rows for each in row.passes]
    gains = [gain for row in found.rows for gain in _gains(row)]
    places, positions = range(answers.draft_tokens), range(max(place for place, _ in gains) + 1)
    return found, Drafting(
        drafts=str(answers.drafts),
        most=answers.draft_tokens,
        threshold=drafter.threshold,
        vocabulary=answers.draft_vocabulary,
        drafted=tuple(sum(each.drafted > place for each in passes) for place in places),
        accepted=tuple(sum(each.accepted > place for each in passes) for place in places),
        passes=tuple(sum(place == here for place, _ in gains) for here in positions),
        given=tuple(sum(tokens for place, tokens in gains if place == here) for here in positions),
        identical=sum(a.tokens == b.tokens for a, b in zip(uniform.rows, found.rows, strict=True)),
        uniform=uniform.spent,
    )


def drafter_of(model: LLMJEPA, answers: AnswersConfig, splits: ExampleSplits) -> Drafter | None:
    """The drafter that is configured. A threshold that is not given is the fastest of a few on validation pairs.

    Raises `InputError` if the model has no such drafts.
    """
    if answers.drafts is None:
        return None
    only: set[int] | None = None
    if answers.draft_vocabulary == "answers":
        only = {token for ids in model.tokenizer.encode(splits.train) for token in ids.completion[ids.opening :]}
    drafter = model.drafter(answers.drafts, answers.draft_tokens, answers.draft_threshold or 0.0, only)
    if answers.drafts == "lookup" or answers.draft_threshold is not None:
        return drafter
    if not (encoded := model.tokenizer.encode(splits.validation[: max(64, 8 * answers.batch_size)])):
        raise InputError("answers.draft_threshold must be given where there are no validation pairs, got null")
    drafters = [model.drafter(answers.drafts, answers.draft_tokens, each, only) for each in _THRESHOLDS]
    prompts, longest = sorted((ids.given for ids in encoded), key=len), longest_answer(encoded)
    batches = [prompts[start : start + answers.batch_size] for start in range(0, len(prompts), answers.batch_size)]
    return fastest(drafters, lambda drafter, batch: model.continuations(batch, longest, drafter), batches)


def longest_answer(encoded: Iterable[ChatIds]) -> int:
    """Tokens of the longest right answer, its end included."""
    return max(len(ids.completion) - ids.opening for ids in encoded)


def progress(count: int, size: int, what: str) -> Iterable[int]:
    """The beginnings of batches, under a bar."""
    return tqdm(range(0, count, size), desc=what, unit="batch", leave=False)


def _gains(row: Continuation) -> Iterable[tuple[int, int]]:
    """For each pass the place in the answer from which on it gives tokens, and how many."""
    ends = accumulate((1 + each.accepted for each in row.passes), initial=0)
    places = [min(end, len(row.tokens)) for end in ends]
    return [(place, end - place) for place, end in pairwise(places)]
