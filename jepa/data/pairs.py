"""Pairs of a request and its answer: readers of chat and column files and of the Hugging Face hub, and their splits.

Chat files are JSON lines of `{"messages": [system?, user, assistant]}` with messages `{"role", "content"}`, as LLM-JEPA
(Huang, LeCun, Balestriero 2025, arXiv 2509.14252) uses them. Where the views of the latent term differ from request and
answer, a line adds `"text": [user]` and `"code": [assistant]`.

Every reader returns `ExampleSplits`. Validation pairs are held out of the training file and never touch the test file.
"""

from __future__ import annotations

import importlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any, Literal

from jepa.errors import InputError


@dataclass(frozen=True)
class Example:
    """What the user says and what the assistant answers.

    `text` and `code` are the two views of the latent term where they differ from `prompt` and `completion`; `source`
    says
    where the pair comes from (`synth_train.jsonl:17`).
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
        return (
            self.prompt if self.text is None else self.text,
            self.completion if self.code is None else self.code,
        )


@dataclass(frozen=True)
class ExampleSplits:
    """Pairs to train, validate and test on.

    `duplicates` counts the test pairs whose pair, request or answer also occurs in training (`train_test_pairs`,
    `train_test_requests`, `train_test_answers`), the validation pairs whose request does (`train_validation_requests`),
    the training pairs that repeat an earlier one (`within_train_pairs`), and the pairs of the training file that were
    dropped because the test file has their request (`dropped`).
    """

    train: list[Example]
    validation: list[Example]
    test: list[Example]
    duplicates: dict[str, int]

    def summary(self) -> str:
        """One line: the sizes of the splits, and what they share."""
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
    """Hold validation pairs out of `train`, and keep `limit` of the others.

    Pairs with one answer (with one `code`, where there is one) stay together: answers are held out in random order as
    long as they fit into the fraction. Where answers are classes, so few that one of them exceeds the fraction,
    requests are
    held out instead. The order of pairs is kept. With one seed, the pairs kept at a smaller limit are among those kept
    at a larger one, and the validation pairs are the same.

    Args:
        train: pairs of the training file.
        test: pairs of the test file, returned as they are.
        validation_fraction: fraction of `train` to hold out, in [0, 1).
        seed: of the choice of validation and of kept pairs.
        limit: training pairs to keep, at most as many as there are; None keeps all.
        drop_test_duplicates: drop the pairs of `train` whose request occurs in `test`; otherwise they are counted only.

    Raises:
        InputError: a fraction or limit out of its range, no training pair, or a fraction in which nothing fits.
    """
    if not 0 <= validation_fraction < 1:
        raise InputError(f"validation_fraction must be in [0, 1), got {validation_fraction}")
    asked = {pair.prompt for pair in test} if drop_test_duplicates else set()
    usable = [pair for pair in train if pair.prompt not in asked]

    room, held_out = round(validation_fraction * len(usable)), set[str]()
    classes = max(Counter(pair.views[1] for pair in usable).values(), default=0) > max(1, room)
    keys = [pair.prompt if classes else pair.views[1] for pair in usable]
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
    validation = [pair for pair, key in zip(usable, keys, strict=True) if key in held_out]
    kept = [pair for pair, key in zip(usable, keys, strict=True) if key not in held_out]
    if not kept:
        raise InputError(
            f"a training set must have at least 1 pair, got {len(train)} pairs, {len(train) - len(usable)} of them "
            f"dropped and {len(validation)} held out"
        )
    if limit is not None:
        if not 1 <= limit <= len(kept):
            raise InputError(f"limit must be in 1..{len(kept)} (training pairs after validation), got {limit}")
        rows = list(range(len(kept)))
        rng.shuffle(rows)
        kept = [kept[row] for row in sorted(rows[:limit])]
    duplicates = _duplicates(kept, validation, test) | {"dropped": len(train) - len(usable)}
    return ExampleSplits(kept, validation, list(test), duplicates)


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
    """Chat JSON lines; several files follow each other.

    Args:
        train: files of training pairs.
        test: files of test pairs; None for no test pairs.
        validation_fraction: as in `split_pairs`.
        seed: as in `split_pairs`.
        limit: as in `split_pairs`.
        folder: where the files are; None for the working directory.
        system: keep the system prompts.
        drop_test_duplicates: as in `split_pairs`.

    Raises:
        InputError: a file that is missing, empty or not as the form says (naming file, line and field), or what
            `split_pairs` refuses.
    """
    training, testing = (
        [pair for path in _paths(files, folder) for pair in read_chat(path, system)] for files in (train, test)
    )
    return split_pairs(training, testing, validation_fraction, seed, limit, drop_test_duplicates)


def column_files(
    train: str | list[str],
    test: str | list[str] | None,
    request: str,
    answer: str,
    validation_fraction: float,
    seed: int,
    limit: int | None = None,
    folder: str | None = None,
    system: str | None = None,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """JSON lines whose columns `request` and `answer` are text; other columns are not read.

    Args:
        train: files of training pairs.
        test: files of test pairs; None for no test pairs.
        request: name of the request's column.
        answer: name of the answer's column.
        validation_fraction: as in `split_pairs`.
        seed: as in `split_pairs`.
        limit: as in `split_pairs`.
        folder: where the files are; None for the working directory.
        system: the system prompt of every pair, if any.
        drop_test_duplicates: as in `split_pairs`.

    Raises:
        InputError: as for `chat_files`.
    """
    training, testing = (
        [
            _columns(row, request, answer, system, source, where)
            for path in _paths(files, folder)
            for row, source, where in _rows(path)
        ]
        for files in (train, test)
    )
    return split_pairs(training, testing, validation_fraction, seed, limit, drop_test_duplicates)


def hugging_face(
    path: str,
    train_split: str,
    test_split: str | None,
    request: str,
    answer: str,
    validation_fraction: float,
    seed: int,
    name: str | None = None,
    revision: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    drop_test_duplicates: bool = False,
) -> ExampleSplits:
    """Two text columns of a data set that the `datasets` library loads.

    Args:
        path: the data set's name on the hub, or its folder.
        train_split: as `datasets` writes splits: `train`, `train[:1000]`.
        test_split: likewise; None for no test pairs.
        request: name of the request's column.
        answer: name of the answer's column.
        validation_fraction: as in `split_pairs`.
        seed: as in `split_pairs`.
        name: the data set's configuration, if it has several.
        revision: branch, tag or commit; None for the newest.
        limit: as in `split_pairs`.
        system: the system prompt of every pair, if any.
        drop_test_duplicates: as in `split_pairs`.

    Raises:
        InputError: `datasets` is not installed or cannot load the split, a column is missing or a row is not text
            (naming split, row and column), or what `split_pairs` refuses.
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
        sources = (f"{path}/{split}:{index}" for index in range(len(rows)))
        return [
            _columns(row, request, answer, system, source, source) for row, source in zip(rows, sources, strict=True)
        ]

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

    SYNTH is the English of a grammar, TURK the paraphrase of it by people. TURK has no test file here: its unseen
    requests are those of the validation pairs, and the test pairs of `turk` are none, those of `both` SYNTH's. With
    `both`, an expression is held out in both phrasings, and `limit` counts the pairs of both.

    Args:
        folder: holds `synth_train.jsonl`, `turk_train.jsonl` and `synth_test.jsonl`.
        phrasing: what is trained on.
        validation_fraction: as in `split_pairs`.
        seed: as in `split_pairs`.
        limit: as in `split_pairs`.
        system: keep the system prompts.
        drop_test_duplicates: as in `split_pairs`.

    Raises:
        InputError: an unknown phrasing, with `both` files that are not aligned, or as for `chat_files`.
    """
    if phrasing not in ("synth", "turk", "both"):
        raise InputError(f"phrasing must be synth, turk or both, got {phrasing!r}")
    if phrasing == "both":
        aligned_phrasings(folder)
    train = [f"{name}_train.jsonl" for name in ("synth", "turk") if phrasing in (name, "both")]
    test = None if phrasing == "turk" else "synth_test.jsonl"
    return chat_files(train, test, validation_fraction, seed, limit, folder, system, drop_test_duplicates)


def aligned_phrasings(folder: str) -> list[tuple[Example, Example]]:
    """The (SYNTH, TURK) pairs of one expression: line i of `synth_train.jsonl` and of `turk_train.jsonl`.

    Raises:
        InputError: the files differ in length or in an answer, or as for `chat_files`.
    """
    synth, turk = (read_chat(Path(folder) / f"{name}_train.jsonl") for name in ("synth", "turk"))
    if len(synth) != len(turk):
        raise InputError(
            f"{folder}: synth_train.jsonl and turk_train.jsonl must have the same number of lines, "
            f"got {len(synth)} and {len(turk)}"
        )
    for first, second in zip(synth, turk, strict=True):
        if first.completion != second.completion:
            raise InputError(
                f"{folder}: {second.source} must have the answer of {first.source}, "
                f"{first.completion!r}, got {second.completion!r}"
            )
    return list(zip(synth, turk, strict=True))


def read_chat(path: str | Path, system: bool = True) -> list[Example]:
    """The pairs of a chat file, without their system prompts unless `system`.

    Raises:
        InputError: naming file, line, field, the rule and the value got.
    """
    pairs = [_chat(row, source, where) for row, source, where in _rows(Path(path))]
    return pairs if system else [replace(pair, system=None) for pair in pairs]


def write_chat(path: str | Path, pairs: Iterable[Example]) -> None:
    """The pairs as a chat file; `source` is not written, it is the line itself."""
    lines = []
    for pair in pairs:
        prompt = [] if pair.system is None else [_message("system", pair.system)]
        row = {"messages": [*prompt, _message("user", pair.prompt), _message("assistant", pair.completion)]}
        if pair.text is not None and pair.code is not None:
            row |= {"text": [_message("user", pair.text)], "code": [_message("assistant", pair.code)]}
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    Path(path).write_text("".join(lines), encoding="utf-8", newline="\n")


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _duplicates(train: Sequence[Example], validation: Sequence[Example], test: Sequence[Example]) -> dict[str, int]:
    def pair(item: Example) -> tuple[str, str]:
        return item.prompt, item.completion

    def shared(others: Sequence[Example], key: Callable[[Example], Any]) -> int:
        known = set(map(key, train))
        return sum(key(other) in known for other in others)

    return {
        "train_test_pairs": shared(test, pair),
        "train_test_requests": shared(test, lambda item: item.prompt),
        "train_test_answers": shared(test, lambda item: item.completion),
        "train_validation_requests": shared(validation, lambda item: item.prompt),
        "within_train_pairs": len(train) - len(set(map(pair, train))),
    }


def _paths(files: str | Sequence[str] | None, folder: str | None) -> list[Path]:
    names = [] if files is None else [files] if isinstance(files, str) else files
    return [Path(folder or "") / name for name in names]


def _rows(path: Path) -> Iterator[tuple[dict[str, Any], str, str]]:
    """The JSON object of each line, with `file:line` by the file's name and by its path."""
    if not path.is_file():
        raise InputError(f"file of pairs not found: {path}")
    data = path.read_bytes()
    if not data:
        raise InputError(f"{path}: a file of pairs must have at least one line, got an empty file")
    if data.startswith(b"\xef\xbb\xbf"):
        raise InputError(f"{path}:1: a file of pairs must be UTF-8 without a byte order mark, got one")
    lines = data.removesuffix(b"\n").split(b"\n")
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            raise InputError(f"{where}: each line must hold a JSON object, got a blank line")
        try:
            row = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: must be UTF-8, got byte 0x{line[error.start]:02x} at {error.start}") from None
        except json.JSONDecodeError as error:
            last = number == len(lines) and not data.endswith(b"\n")
            cut = " (the last line, without a line end: cut off?)" if last else ""
            raise InputError(f"{where}: not JSON: {error.msg} at column {error.colno}{cut}") from None
        except (ValueError, RecursionError) as error:  # a number too long, or nesting too deep, for the parser
            raise InputError(f"{where}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise InputError(f"{where}: each line must hold a JSON object, got {type(row).__name__}")
        yield row, f"{path.name}:{number}", where


def _chat(row: dict[str, Any], source: str, where: str) -> Example:
    unknown = row.keys() - {"messages", "text", "code"}
    if unknown:
        raise InputError(f"{where}: keys must be among messages, text and code, got {sorted(unknown)}")
    if ("text" in row) != ("code" in row):
        raise InputError(f"{where}: text and code must be given together, got {'text' if 'text' in row else 'code'}")
    messages = _messages(row, "messages", (("system", "user", "assistant"), ("user", "assistant")), where)
    *prompt, request, answer = messages
    text = code = None
    if "text" in row:
        (text,) = _messages(row, "text", (("user",),), where)
        (code,) = _messages(row, "code", (("assistant",),), where)
    return Example(request, answer, prompt[0] if prompt else None, text, code, source)


def _messages(row: dict[str, Any], field: str, orders: Sequence[tuple[str, ...]], where: str) -> list[str]:
    """The contents of a list of messages whose roles are in one of `orders`."""
    if field not in row:
        raise InputError(f"{where}: {field} must be given, got keys {sorted(row)}")
    messages = row[field]
    if not isinstance(messages, list):
        raise InputError(f"{where}: {field} must be a list, got {messages!r}")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise InputError(f"{where}: {field}[{index}] must have the keys role and content, got {message!r}")
    roles = [message["role"] for message in messages]
    if roles not in [list(order) for order in orders]:
        expected = " or ".join(", ".join(order) for order in orders)
        raise InputError(f"{where}: roles of {field} must be {expected}, got {roles}")
    return [_text(message["content"], f"{field}[{index}].content", where) for index, message in enumerate(messages)]


def _columns(row: dict[str, Any], request: str, answer: str, system: str | None, source: str, where: str) -> Example:
    for column in (request, answer):
        if column not in row:
            raise InputError(f"{where}: column {column} must be given, got columns {sorted(row)}")
    return Example(_text(row[request], request, where), _text(row[answer], answer, where), system, source=source)


def _text(value: Any, field: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: {field} must be text that is not empty, got {value!r}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError(f"{where}: {field} must be valid Unicode, got a lone surrogate in {value!r}") from None
    return value
