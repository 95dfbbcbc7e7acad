"""Readers of examples: the real files, strict errors, splits and duplicates."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import SimpleNamespace

import pytest
from conftest import real_data, refusals, refuses, write_chat

from jepa.data.pairs import Example, ExampleSplits, chat_files, column_files, hugging_face, nlrx, read_chat, split_pairs

EXAMPLES = [
    Example("«two» lines\nof\u2028text", "an answer", "Answer.", source="pairs.jsonl:1"),
    Example("which ending?\nA) x", "A", "Choose.", text="a start", code="x", source="pairs.jsonl:2"),
    Example("no system prompt", "fine", None, source="pairs.jsonl:3"),
]


def numbered(count: int, answers: int | None = None, start: int = 0) -> list[Example]:
    return [Example(f"request {i}", f"answer {i % (answers or count)}", None) for i in range(start, start + count)]


def message(role: str = "user", content: object = "hello") -> dict[str, object]:
    return {"role": role, "content": content}


GOOD = {"messages": [message(), message("assistant", "hi")]}


def test_what_is_written_is_read(tmp_path):
    path = write_chat(tmp_path / "pairs.jsonl", EXAMPLES)
    assert read_chat(path) == EXAMPLES
    assert path.read_bytes().count(b"\n") == 3
    assert [example.system for example in read_chat(path, system=False)] == [None] * 3
    assert [example.views for example in EXAMPLES[1:]] == [("a start", "x"), ("no system prompt", "fine")]


@pytest.mark.parametrize("folder", ["nlrx", "chat"])
def test_real_files(folder):
    for path in sorted(real_data(folder).glob("*.jsonl")):
        examples = read_chat(path)
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        said = [tuple(turn["content"] for turn in row["messages"]) for row in rows]
        assert [(each.system, each.prompt, each.completion) for each in examples] == said
        codes = [row["code"][0]["content"] if "code" in row else None for row in rows]
        assert [each.code for each in examples] == codes
        assert examples[16].source == f"{path.name}:17"


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[" * 200_000,
        "[]",
        b'{"\xff',
        "{}",
        GOOD | {"id": 3},
        GOOD | {"text": [message()]},
        GOOD | {"text": [message()], "code": [message()]},
        {"messages": message()},
        {"messages": [message(), "hi"]},
        {"messages": [{"role": "user"}]},
        {"messages": [message() | {"name": "x"}]},
        {"messages": GOOD["messages"][::-1]},
        {"messages": GOOD["messages"] * 2},
        {"messages": []},
        {"messages": [message(), message("assistant", " \n")]},
        {"messages": [message(content=7), message("assistant")]},
        {"messages": [message(content="\ud800"), message("assistant")]},
    ],
)
def test_bad_lines_are_named(tmp_path, line):
    path = tmp_path / "pairs.jsonl"
    text = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\r\n" + text + b"\n" + good + b"\n")
    refuses(r"pairs\.jsonl:2: ", read_chat, path)


def test_bad_files_and_the_fields_of_bad_lines_are_named(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "pairs.jsonl").write_text(json.dumps({"messages": [message(), message("assistant", 7)]}))
    for name, rule in (
        ("empty", "at least 1 line"),
        ("none", "not found"),
        ("pairs", r"messages\[1\]\.content must be text that is not empty, got 7"),
    ):
        refuses(rule, read_chat, tmp_path / f"{name}.jsonl")


def test_blank_lines_a_byte_order_mark_and_a_missing_line_end_are_passed_over(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n\r\n" + json.dumps(GOOD).encode())
    assert read_chat(path) == [Example("hello", "hi", None, source=f"pairs.jsonl:{line}") for line in (1, 3)]


def test_chat_files_follow_each_other(tmp_path):
    for name, start in (("a", 0), ("b", 10), ("c", 20)):
        write_chat(tmp_path / f"{name}.jsonl", numbered(10, start=start))
    splits = chat_files(["a.jsonl", "b.jsonl"], "c.jsonl", 0.2, seed=0, folder=str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (16, 4)
    assert [example.source for example in splits.test] == [f"c.jsonl:{line}" for line in range(1, 11)]
    assert chat_files(str(tmp_path / "a.jsonl"), None, 0.0, seed=0).train == read_chat(tmp_path / "a.jsonl")


@pytest.mark.parametrize("answers", [7, 40, 200])
def test_no_completion_lies_on_both_sides_of_validation(answers):
    examples = numbered(200, answers)
    splits = split_pairs(examples, [], 0.25, seed=3)
    assert sorted(splits.train + splits.validation, key=examples.index) == examples
    assert splits.train == [example for example in examples if example in splits.train]
    assert {each.completion for each in splits.train}.isdisjoint(each.completion for each in splits.validation)
    assert 50 - 200 / answers < len(splits.validation) <= 50
    assert splits == split_pairs(examples, [], 0.25, seed=3)
    assert splits.validation != split_pairs(examples, [], 0.25, seed=4).validation


def test_completions_are_told_apart_by_their_code():
    examples = [Example(f"request {i}", "ABCD"[i % 4], None, f"start {i}", f"ending {i}") for i in range(100)]
    assert len(split_pairs(examples, [], 0.1, seed=0).validation) == 10


def test_completions_that_are_classes_do_not_prevent_a_validation_split():
    splits = split_pairs(numbered(80, answers=4), [], 0.1, 0)
    assert len(splits.validation) == 8
    assert {example.completion for example in splits.train} == {f"answer {i}" for i in range(4)}
    assert not {each.prompt for each in splits.train} & {each.prompt for each in splits.validation}


def test_limits_are_nested_and_leave_validation_alone():
    examples = numbered(200)
    full = split_pairs(examples, [], 0.1, seed=0)
    kept: set[Example] = set()
    for limit in (1, 10, 100, 180):
        splits = split_pairs(examples, [], 0.1, seed=0, limit=limit)
        assert splits.validation == full.validation
        assert splits.train == [example for example in full.train if example in splits.train]
        assert len(splits.train) == limit
        assert kept < set(splits.train)
        kept = set(splits.train)
    assert kept == set(full.train)


def test_duplicates_are_counted_or_dropped():
    train = [*numbered(6), Example("request 0", "answer 0", None), Example("request 9", "other", None)]
    prompts = [("request 0", "answer 0"), ("request 9", "answer 9"), ("new", "answer 1"), ("newer", "newer")]
    test = [Example(prompt, completion, "system") for prompt, completion in prompts]
    splits = split_pairs(train, test, 0.0, seed=0)
    counts = {
        "train_test_pairs": 1,
        "train_test_requests": 2,
        "train_test_answers": 2,
        "train_validation_requests": 0,
        "within_train_pairs": 1,
        "dropped": 0,
    }
    assert splits == ExampleSplits(train, [], test, counts)
    assert splits.summary().startswith("8 train, 0 validation, 4 test pairs; duplicates: train_test_pairs 1, ")
    dropped = split_pairs(train, test, 0.0, seed=0, drop_test_duplicates=True)
    assert dropped.train == train[1:6]
    assert dropped.test == test
    assert dropped.duplicates == dict.fromkeys(counts, 0) | {"train_test_answers": 1, "dropped": 3}


test_bad_values_are_refused = refusals(
    (partial(Example, "request", "answer", None, code="x"), "text and code"),
    (partial(split_pairs, numbered(9), [], 1.0, 0), "validation_fraction"),
    (partial(split_pairs, numbered(9), [], -0.1, 0), "validation_fraction"),
    (partial(split_pairs, numbered(2), [], 0.2, 0), "0.2 of 2 pairs"),
    (partial(split_pairs, numbered(9), [], 0.0, 0, limit=10), "limit"),
    (partial(split_pairs, numbered(9), [], 0.0, 0, limit=0), "limit"),
    (partial(split_pairs, numbered(9), numbered(9), 0.0, 0, drop_test_duplicates=True), "9 of them dropped"),
    (partial(nlrx, "folder", "all", 0.0, seed=0), "phrasing must be synth, turk or both, got 'all'"),
)


def test_columns_are_read_by_name(tmp_path):
    rows = [{"id": i, "question": f"q {i}", "sql": f"SELECT {i}"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    read = partial(column_files, "a.jsonl", validation_fraction=0.0, seed=0, folder=str(tmp_path))
    splits = read("a.jsonl", "question", "sql", system="Write SQL.")
    expected = [Example(f"q {i}", f"SELECT {i}", "Write SQL.", source=f"a.jsonl:{i + 1}") for i in range(10)]
    assert splits.train == expected
    assert splits.duplicates["train_test_pairs"] == 10
    for column in ("query", "id"):  # missing, and no text
        refuses(rf"a\.jsonl:1: .*{column} must be", read, None, "question", column)


@pytest.fixture
def hub(monkeypatch):
    """The hub's library, with one data set of two splits."""
    calls = []

    class DatasetsError(Exception):
        pass

    def load_dataset(path, name=None, split=None, revision=None):
        calls.append((path, name, split, revision))
        if split == "broken":
            raise DatasetsError("An error occurred while generating the dataset")
        if split not in ("train", "test"):
            raise ValueError(f'Unknown split "{split}".')
        return [{"q": f"{split} {i}", "a": None if i == 20 else f"answer {i}"} for i in range(22 if name else 20)]

    library = SimpleNamespace(load_dataset=load_dataset, exceptions=SimpleNamespace(DatasetsError=DatasetsError))
    monkeypatch.setitem(sys.modules, "datasets", library)
    return calls


def test_the_hub_is_read_by_columns(hub):
    splits = hugging_face("some/set", "train", "test", "q", "a", 0.1, seed=0, revision="abc", limit=5)
    assert [len(part) for part in (splits.train, splits.validation, splits.test)] == [5, 2, 20]
    assert splits.test[3] == Example("test 3", "answer 3", None, source="some/set/test:3")
    assert hub == [("some/set", None, "train", "abc"), ("some/set", None, "test", "abc")]


@pytest.mark.parametrize(
    ("arguments", "name", "message"),
    [
        (("train", "dev", "q", "a"), None, "some/set: cannot load split 'dev'"),
        (("broken", None, "q", "a"), None, "some/set: cannot load split 'broken'"),
        (("train", None, "q", "a"), "main", "some/set/train:20: a must be text"),
        (("train", None, "q", "b"), None, "some/set/train:0: column b must be given"),
    ],
)
def test_gaps_of_the_hub_are_named(hub, arguments, name, message):
    refuses(message, hugging_face, "some/set", *arguments, 0.1, seed=0, name=name)


def test_without_the_hub_library_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    refuses("pip install datasets", hugging_face, "some/set", "train", None, "q", "a", 0.1, seed=0)


def test_nlrx_phrasings_hold_out_the_same_expressions():
    folder = str(real_data("nlrx"))
    splits = {phrasing: nlrx(folder, phrasing, 0.05, seed=0) for phrasing in ("synth", "turk", "both")}
    sizes = {name: (len(s.train), len(s.validation), len(s.test)) for name, s in splits.items()}
    assert sizes == {"synth": (7600, 400, 2000), "turk": (7600, 400, 0), "both": (15200, 800, 2000)}
    held_out = {name: sorted({example.completion for example in s.validation}) for name, s in splits.items()}
    assert held_out["synth"] == held_out["turk"] == held_out["both"]
    assert {example.completion for example in splits["both"].train}.isdisjoint(held_out["both"])
    assert splits["both"].validation == splits["synth"].validation + splits["turk"].validation
    assert splits["synth"].duplicates["train_test_pairs"] == 37
    dropped = nlrx(folder, "synth", 0.05, seed=0, drop_test_duplicates=True)
    tested = {example.prompt for example in dropped.test}
    assert tested.isdisjoint(example.prompt for example in dropped.train + dropped.validation)
    assert len(dropped.train) + len(dropped.validation) + dropped.duplicates["dropped"] == 8000
