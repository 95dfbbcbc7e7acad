"""Examples of a prompt and its completion: readers of files and of the Hugging Face hub, and their splits.

Chat files are JSON lines of `{"messages": [system?, user, assistant]}` with messages `{"role", "content"}`, as
LLM-JEPA uses them (arXiv 2509.14252). Where the views of the latent term differ from prompt and completion, a line
adds `"text": [user]` and `"code": [assistant]`.

Readers take one or several files of training and of test examples, relative to `folder`, and the arguments of
`split_pairs`. They raise `InputError` for a file that is missing, empty or breaks its form, naming line and field.
"""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Literal

from jepa.data.json_lines import JsonObject, check_text, located, read_lines
from jepa.errors import InputError


@dataclass(frozen=True)
class Example:
    """A user's prompt and the assistant's completion, from the line `source` of a file (`synth_train.jsonl:17`).

    `text` and `code` are the two views of the latent term where they differ from `prompt` and `completion`.

    >>> Example("lines with a digit", ".*[0-9].*", system=None).views
    ('lines with a digit', '.*[0-9].*')
    """

    prompt: str
    completion: str
    system: str | None
    text: str | None = None
    code: str | None = None
    source: str = ""

    def __post_init__(self) -> None:
        if (self.text is None) != (self.code is None):
            raise InputError(f"text and code must be given together, got text {self.text!r}, code {self.code!r}")

    @property
    def views(self) -> tuple[str, str]:
        """The two views that the latent term brings together."""
        text = self.prompt if self.text is None else self.text
        return text, self.completion if self.code is None else self.code


@dataclass(frozen=True)
class ExampleSplits:
    """Examples to train, validate and test on.

    `duplicates` counts test examples whose prompt and completion (`train_test_pairs`), prompt (`train_test_requests`)
    or completion (`train_test_answers`) also occurs in training, validation examples whose prompt does
    (`train_validation_requests`), repeated training examples (`within_train_pairs`), and those `dropped` because the
    test file has their prompt.
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    duplicates: dict[str, int]

    def summary(self) -> str:
        """One line: the sizes of the splits, and their duplicates."""
        counts = ", ".join(f"{name} {count}" for name, count in self.duplicates.items())
        sizes = f"{len(self.train)} train, {len(self.validation)} validation, {len(self.test)} test pairs"
        return f"{sizes}; duplicates: {counts}"


def split_pairs(
    train: Sequence[Example],
    test: Sequence[Example],
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """Holds a fraction of `train` out for validation, and keeps `limit` of the others; `test` stays as it is.

    Examples with one completion (one `code`, where there is one) stay together: completions are held out in random
    order as long as they fit into the fraction. If a completion exceeds the fraction, as a class does, prompts are held
    out instead. The order of examples is kept. A smaller limit keeps a subset of a larger one, with the same validation
    examples. `drop_test_duplicates` drops training examples whose prompt occurs in `test`; otherwise they are counted.

    Raises:
        InputError: a fraction or limit out of its range, no training example, or a fraction in which nothing fits.

    >>> examples = [Example(f"say {i}", str(i), None) for i in range(8)]
    >>> split_pairs(examples, [], validation_fraction=0.25, seed=0).summary().partition(";")[0]
    '6 train, 2 validation, 0 test pairs'
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    tested = {example.prompt for example in test} if drop_test_duplicates else set()
    usable = [example for example in train if example.prompt not in tested]

    room, held_out = round(validation_fraction * len(usable)), set[str]()
    classes = max(Counter(example.views[1] for example in usable).values(), default=0) > max(1, room)
    keys = [example.prompt if classes else example.views[1] for example in usable]
    sizes = Counter(keys)
    order, rng = list(sizes), Random(seed)
    rng.shuffle(order)
    for key in order:
        if sizes[key] <= room:
            held_out.add(key)
            room -= sizes[key]
    if validation_fraction and not held_out:
        raise InputError(
            f"validation_fraction must be large enough to hold out all pairs of one answer or request, "
            f"got {validation_fraction} of {len(usable)} pairs"
        )
    validation = [example for example, key in zip(usable, keys, strict=True) if key in held_out]
    kept = [example for example, key in zip(usable, keys, strict=True) if key not in held_out]
    dropped = len(train) - len(usable)
    if not kept:
        lost = f"{dropped} of them dropped and {len(validation)} held out"
        raise InputError(f"a training set must have at least 1 pair, got {len(train)} pairs, {lost}")
    if limit is not None:
        if not 1 <= limit <= len(kept):
            raise InputError(f"limit must be in 1..{len(kept)} (training pairs after validation), got {limit}")
        rows = list(range(len(kept)))
        rng.shuffle(rows)
        kept = [kept[row] for row in sorted(rows[:limit])]
    return ExampleSplits(kept, validation, list(test), _duplicates(kept, validation, test) | {"dropped": dropped})


def chat_files(
    train: str | list[str],
    test: str | list[str] | None,
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    folder: str | None = None,
    system: bool = True,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """Chat JSON lines; `system` keeps their system prompts."""
    read = partial(_from_chat, system=system)
    training, testing = _read_all(train, folder, read), _read_all(test, folder, read)
    return split_pairs(training, testing, validation_fraction, seed, limit, drop_test_duplicates)


def column_files(
    train: str | list[str],
    test: str | list[str] | None,
    prompt: str,
    completion: str,
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    folder: str | None = None,
    system: str | None = None,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """JSON lines with a column of text for prompts, one for completions; `system` is every example's system prompt."""
    read = partial(_from_columns, prompt=prompt, completion=completion, system=system)
    training, testing = _read_all(train, folder, read), _read_all(test, folder, read)
    return split_pairs(training, testing, validation_fraction, seed, limit, drop_test_duplicates)


def hugging_face(
    path: str,
    train_split: str,
    test_split: str | None,
    prompt: str,
    completion: str,
    validation_fraction: float,
    seed: int,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """Two text columns of a data set on the hub, or of its folder, by the `datasets` library.

    Splits are written as `datasets` has them (`train[:1000]`). `name` is the data set's configuration, if it has
    several; `revision` a branch, tag or commit.
    """
    try:
        datasets = importlib.import_module("datasets")
    except ModuleNotFoundError:
        raise InputError(f"reading {path} needs the library datasets: pip install datasets") from None

    def load(split: str | None) -> list[Example]:
        if split is None:
            return []
        try:
            rows = datasets.load_dataset(path, name=name, split=split, revision=revision)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            raise InputError(f"{path}: cannot load split {split!r}: {error}") from error
        examples = []
        for index, row in enumerate(rows):
            with located(source := f"{path}/{split}:{index}"):
                examples.append(_from_columns(row, source, prompt, completion, system))
        return examples

    return split_pairs(load(train_split), load(test_split), validation_fraction, seed, limit, drop_test_duplicates)


def nlrx(
    folder: str,
    phrasing: Literal["synth", "turk", "both"],
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    system: bool = True,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """NL-RX (Locascio et al. 2016, arXiv 1608.03000): requests for regular expressions, in two phrasings.

    SYNTH is the English of a grammar, TURK its paraphrase by people. TURK has no test file here, so `turk` has no test
    examples and `both` has those of SYNTH. With `both`, an expression is held out in both phrasings, and `limit` counts
    the examples of both. `folder` holds `synth_train.jsonl`, `turk_train.jsonl` and `synth_test.jsonl`.
    """
    if phrasing not in ("synth", "turk", "both"):
        raise InputError(f"phrasing must be synth, turk or both, got {phrasing!r}")
    train = [f"{name}_train.jsonl" for name in ("synth", "turk") if phrasing in (name, "both")]
    test = None if phrasing == "turk" else "synth_test.jsonl"
    return chat_files(train, test, validation_fraction, seed, limit, folder, system, drop_test_duplicates)


def read_chat(path: str | Path, system: bool = True) -> list[Example]:
    """The examples of a chat file, without their system prompts unless `system`."""
    return _read_all(str(path), None, partial(_from_chat, system=system))


def _duplicates(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> dict[str, int]:
    def both(example: Example) -> tuple[str, str]:
        return example.prompt, example.completion

    def shared(others: Sequence[Example], key: Callable[[Example], object]) -> int:
        known = set(map(key, train))
        return sum(key(other) in known for other in others)

    return {
        "train_test_pairs": shared(test, both),
        "train_test_requests": shared(test, lambda example: example.prompt),
        "train_test_answers": shared(test, lambda example: example.completion),
        "train_validation_requests": shared(validation, lambda example: example.prompt),
        "within_train_pairs": len(train) - len(set(map(both, train))),
    }


def _read_all(
    files: str | Sequence[str] | None, folder: str | None, read: Callable[[JsonObject, str], Example]
) -> list[Example]:
    """The examples of several files: `read` makes one of a line's object and its source."""
    paths = [Path(folder or "") / name for name in ([files] if isinstance(files, str) else files or [])]
    return [example for path in paths for example in _read_file(path, read)]


def _read_file(path: Path, read: Callable[[JsonObject, str], Example]) -> list[Example]:
    if found := read_lines(path, "file of pairs", lambda row, number: read(row, f"{path.name}:{number}")):
        return found
    raise InputError(f"{path}: a file of pairs must have at least 1 line, got none")


def _from_chat(row: JsonObject, source: str, system: bool) -> Example:
    if unknown := row.keys() - {"messages", "text", "code"}:
        raise InputError(f"keys must be among messages, text and code, got {sorted(unknown)}")
    *before, prompt, completion = _messages(row, "messages", ["system", "user", "assistant"], ["user", "assistant"])
    (text,) = _messages(row, "text", ["user"]) if "text" in row else (None,)
    (code,) = _messages(row, "code", ["assistant"]) if "code" in row else (None,)
    return Example(prompt, completion, before[0] if before and system else None, text, code, source)


def _messages(row: JsonObject, field: str, *orders: list[str]) -> list[str]:
    """The contents of a list of messages whose roles are in one of `orders`."""
    messages = row.get(field)
    if not isinstance(messages, list):
        raise InputError(f"{field} must be a list, got {messages!r}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise InputError(f"{field}[{index}] must have the keys role and content, got {message!r}")
    roles = [message["role"] for message in messages]
    if roles not in orders:
        raise InputError(f"roles of {field} must be {' or '.join(map(', '.join, orders))}, got {roles}")
    return [check_text(f"{field}[{index}].content", message["content"]) for index, message in enumerate(messages)]


def _from_columns(row: JsonObject, source: str, prompt: str, completion: str, system: str | None) -> Example:
    for column in (prompt, completion):
        if column not in row:
            raise InputError(f"column {column} must be given, got columns {sorted(row)}")
    return Example(check_text(prompt, row[prompt]), check_text(completion, row[completion]), system, source=source)
