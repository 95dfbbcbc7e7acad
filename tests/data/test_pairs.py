"""Readers of pairs: the real files, strict errors, splits and duplicates, the chat form's round trip."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import pytest
from conftest import real_data

from jepa.data.pairs import (
    Example,
    ExampleSplits,
    aligned_phrasings,
    chat_files,
    column_files,
    hugging_face,
    nlrx,
    read_chat,
    split_pairs,
    write_chat,
)
from jepa.errors import InputError

PAIRS = [
    Example("«two» lines\nof\u2028text", "an answer", "Answer.", source="pairs.jsonl:1"),
    Example("which ending?\nA) x", "A", "Choose.", text="a start", code="x", source="pairs.jsonl:2"),
    Example("no system prompt", "fine", None, source="pairs.jsonl:3"),
]


def numbered(count: int, answers: int | None = None, start: int = 0) -> list[Example]:
    return [Example(f"request {i}", f"answer {i % (answers or count)}", None) for i in range(start, start + count)]


def message(role: str = "user", content: object = "hello") -> dict[str, object]:
    return {"role": role, "content": content}


GOOD = {"messages": [message(), message("assistant", "hi")]}


# ------------------------------------------------------------------------------------------------- chat files


def test_round_trip(tmp_path):
    path = tmp_path / "pairs.jsonl"
    write_chat(path, PAIRS)
    assert read_chat(path) == PAIRS
    assert path.read_bytes().count(b"\n") == 3
    assert [pair.system for pair in read_chat(path, system=False)] == [None] * 3
    assert [pair.views for pair in PAIRS[1:]] == [("a start", "x"), ("no system prompt", "fine")]


@pytest.mark.parametrize("folder", ["nlrx", "chat"])
def test_real_files_survive_a_round_trip(tmp_path, folder):
    for path in sorted(real_data(folder).glob("*.jsonl")):
        pairs = read_chat(path)
        rows = [json.loads(line) for line in path.read_bytes().splitlines()]
        assert [pair.prompt for pair in pairs] == [row["messages"][1]["content"] for row in rows]
        assert [pair.completion for pair in pairs] == [row["messages"][2]["content"] for row in rows]
        assert [pair.code for pair in pairs] == [row["code"][0]["content"] if "code" in row else None for row in rows]
        write_chat(tmp_path / path.name, pairs)
        assert read_chat(tmp_path / path.name) == pairs
        assert pairs[16].source == f"{path.name}:17"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("{", "not JSON: Expecting property name .* at column 2$"),
        ("[" * 200_000, "not JSON: maximum recursion depth exceeded"),
        ("[]", "each line must hold a JSON object, got list"),
        ("", "each line must hold a JSON object, got a blank line"),
        (b'{"\xff', "must be UTF-8, got byte 0xff at 2"),
        ("{}", r"messages must be given, got keys \[\]"),
        (GOOD | {"id": 3}, r"keys must be among messages, text and code, got \['id'\]"),
        (GOOD | {"text": [message()]}, "text and code must be given together, got text"),
        (GOOD | {"text": [message()], "code": [message()]}, r"roles of code must be assistant, got \['user'\]"),
        ({"messages": message()}, "messages must be a list, got {'role': 'user'"),
        ({"messages": [message(), "hi"]}, r"messages\[1\] must have the keys role and content, got 'hi'"),
        ({"messages": [{"role": "user"}]}, r"messages\[0\] must have the keys role and content, got {'role'"),
        (
            {"messages": [message() | {"name": "x"}]},
            r"messages\[0\] must have the keys role and content, got .*'name': 'x'",
        ),
        (
            {"messages": GOOD["messages"][::-1]},
            r"roles of messages must be system, user, assistant or user, assistant, got \['assistant', 'user'\]",
        ),
        ({"messages": GOOD["messages"] * 2}, r"roles of messages must be .*, got \['user', 'assistant', 'user', "),
        ({"messages": []}, r"roles of messages must be .*, got \[\]"),
        (
            {"messages": [message(), message("assistant", " \n")]},
            r"messages\[1\].content must be text that is not empty, got ' \\n'",
        ),
        (
            {"messages": [message(content=7), message("assistant")]},
            r"messages\[0\].content must be text that is not empty, got 7",
        ),
        (
            {"messages": [message(content="\ud800"), message("assistant")]},
            r"messages\[0\].content must be valid Unicode, got a lone surrogate in '\\ud800'",
        ),
    ],
)
def test_bad_lines_are_named(tmp_path, line, rule):
    path = tmp_path / "pairs.jsonl"
    text = line if isinstance(line, bytes) else (line if isinstance(line, str) else json.dumps(line)).encode()
    good = json.dumps(GOOD).encode()
    path.write_bytes(good + b"\r\n" + text + b"\n" + good + b"\n")
    with pytest.raises(InputError, match=rf"{path.name}:2: {rule}"):
        read_chat(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"", "must have at least one line, got an empty file"),
        (b"\n", ":1: each line must hold a JSON object, got a blank line"),
        (b"\xef\xbb\xbf{}", ":1: a file of pairs must be UTF-8 without a byte order mark"),
        (json.dumps(GOOD).encode() + b'\n{"messages": [', r":2: not JSON: .*\(the last line, without a line end: cut"),
    ],
)
def test_bad_files_are_named(tmp_path, content, rule):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"pairs\.jsonl.*{rule}"):
        read_chat(path)


def test_missing_files_are_named(tmp_path):
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(InputError, match=f"file of pairs not found: {path}"):
            read_chat(path)


def test_a_last_line_needs_no_line_end(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD), encoding="utf-8")
    assert read_chat(path) == [Example("hello", "hi", None, source="pairs.jsonl:1")]


def test_chat_files_follow_each_other(tmp_path):
    for name, start in (("a", 0), ("b", 10), ("c", 20)):
        write_chat(tmp_path / f"{name}.jsonl", numbered(10, start=start))
    splits = chat_files(["a.jsonl", "b.jsonl"], "c.jsonl", 0.2, seed=0, folder=str(tmp_path))
    assert (len(splits.train), len(splits.validation)) == (16, 4)
    assert [pair.source for pair in splits.test] == [f"c.jsonl:{line}" for line in range(1, 11)]
    assert chat_files(str(tmp_path / "a.jsonl"), None, 0.0, seed=0).train == read_chat(tmp_path / "a.jsonl")


def test_a_view_alone_is_refused():
    with pytest.raises(InputError, match="text and code must be given together, got text None, code 'x'"):
        Example("request", "answer", None, code="x")


# ------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("answers", [7, 40, 200])
def test_no_answer_lies_on_both_sides_of_validation(answers):
    pairs = numbered(200, answers)
    splits = split_pairs(pairs, [], 0.25, seed=3)
    assert sorted(splits.train + splits.validation, key=pairs.index) == pairs
    assert splits.train == [pair for pair in pairs if pair in splits.train]
    assert {pair.completion for pair in splits.train}.isdisjoint(pair.completion for pair in splits.validation)
    assert 50 - 200 / answers < len(splits.validation) <= 50
    assert splits == split_pairs(pairs, [], 0.25, seed=3)
    assert splits.validation != split_pairs(pairs, [], 0.25, seed=4).validation


def test_answers_are_told_apart_by_their_code():
    pairs = [Example(f"request {i}", "ABCD"[i % 4], None, f"start {i}", f"ending {i}") for i in range(100)]
    assert len(split_pairs(pairs, [], 0.1, seed=0).validation) == 10


def test_limits_are_nested_and_leave_validation_alone():
    pairs = numbered(200)
    full = split_pairs(pairs, [], 0.1, seed=0)
    kept: set[Example] = set()
    for limit in (1, 10, 100, 180):
        splits = split_pairs(pairs, [], 0.1, seed=0, limit=limit)
        assert splits.validation == full.validation
        assert splits.train == [pair for pair in full.train if pair in splits.train]
        assert len(splits.train) == limit
        assert kept < set(splits.train)
        kept = set(splits.train)
    assert kept == set(full.train)


def test_duplicates_are_counted_or_dropped():
    train = [*numbered(6), Example("request 0", "answer 0", None), Example("request 9", "other", None)]
    test = [
        Example("request 0", "answer 0", "system"),
        Example("request 9", "answer 9", None),
        Example("new", "answer 1", None),
        Example("newer", "newer", None),
    ]
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
    assert splits.summary() == (
        "8 train, 0 validation, 4 test pairs; duplicates: train_test_pairs 1, train_test_requests 2, "
        "train_test_answers 2, train_validation_requests 0, within_train_pairs 1, dropped 0"
    )
    dropped = split_pairs(train, test, 0.0, seed=0, drop_test_duplicates=True)
    assert dropped.train == train[1:6]
    assert dropped.test == test
    assert dropped.duplicates == dict.fromkeys(counts, 0) | {"train_test_answers": 1, "dropped": 3}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: split_pairs(numbered(9), [], 1.0, 0), r"validation_fraction must be in \[0, 1\), got 1.0"),
        (lambda: split_pairs(numbered(9), [], -0.1, 0), r"validation_fraction must be in \[0, 1\), got -0.1"),
        (
            lambda: split_pairs(numbered(2), [], 0.2, 0),
            "hold out all pairs of one answer or request, got 0.2 of 2 pairs",
        ),
        (lambda: split_pairs(numbered(9), [], 0.0, 0, limit=10), r"limit must be in 1\.\.9 .*, got 10"),
        (lambda: split_pairs(numbered(9), [], 0.0, 0, limit=0), r"limit must be in 1\.\.9 .*, got 0"),
        (
            lambda: split_pairs(numbered(9), numbered(9), 0.0, 0, drop_test_duplicates=True),
            "a training set must have at least 1 pair, got 9 pairs, 9 of them dropped and 0 held out",
        ),
    ],
)
def test_bad_splits_are_refused(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_answers_that_are_classes_do_not_prevent_a_validation_split():
    splits = split_pairs(numbered(80, answers=4), [], 0.1, 0)
    assert len(splits.validation) == 8
    assert {pair.completion for pair in splits.train} == {f"answer {i}" for i in range(4)}
    assert not {pair.prompt for pair in splits.train} & {pair.prompt for pair in splits.validation}


# ------------------------------------------------------------------------------------------------- other readers


def test_columns_are_read_by_name(tmp_path):
    rows = [{"id": i, "question": f"q {i}", "sql": f"SELECT {i}"} for i in range(10)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    splits = column_files(
        "a.jsonl", "a.jsonl", "question", "sql", 0.0, seed=0, folder=str(tmp_path), system="Write SQL."
    )
    assert splits.train == [
        Example(f"q {i}", f"SELECT {i}", "Write SQL.", source=f"a.jsonl:{i + 1}") for i in range(10)
    ]
    assert splits.duplicates["train_test_pairs"] == 10
    with pytest.raises(InputError, match=r"a.jsonl:1: column query must be given, got columns \['id', 'question'"):
        column_files("a.jsonl", None, "question", "query", 0.0, seed=0, folder=str(tmp_path))
    with pytest.raises(InputError, match=r"a.jsonl:1: id must be text that is not empty, got 0"):
        column_files("a.jsonl", None, "question", "id", 0.0, seed=0, folder=str(tmp_path))


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


def test_what_the_hub_lacks_is_named(hub):
    with pytest.raises(InputError, match="some/set: cannot load split 'dev': Unknown split \"dev\""):
        hugging_face("some/set", "train", "dev", "q", "a", 0.1, seed=0)
    with pytest.raises(InputError, match="some/set: cannot load split 'broken': An error occurred while generating"):
        hugging_face("some/set", "broken", None, "q", "a", 0.1, seed=0)
    with pytest.raises(InputError, match="some/set/train:20: a must be text that is not empty, got None"):
        hugging_face("some/set", "train", None, "q", "a", 0.1, seed=0, name="main")
    with pytest.raises(InputError, match=r"some/set/train:0: column b must be given, got columns \['a', 'q'\]"):
        hugging_face("some/set", "train", None, "q", "b", 0.1, seed=0)


def test_without_the_hub_library_the_remedy_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="reading some/set needs the library datasets: pip install datasets"):
        hugging_face("some/set", "train", None, "q", "a", 0.1, seed=0)


# ------------------------------------------------------------------------------------------------- NL-RX


def test_nlrx_phrasings_hold_out_the_same_expressions():
    splits = {phrasing: nlrx(str(real_data("nlrx")), phrasing, 0.05, seed=0) for phrasing in ("synth", "turk", "both")}
    sizes = {name: (len(s.train), len(s.validation), len(s.test)) for name, s in splits.items()}
    assert sizes == {"synth": (7600, 400, 2000), "turk": (7600, 400, 0), "both": (15200, 800, 2000)}
    held_out = {name: sorted({pair.completion for pair in s.validation}) for name, s in splits.items()}
    assert held_out["synth"] == held_out["turk"] == held_out["both"]
    assert {pair.completion for pair in splits["both"].train}.isdisjoint(held_out["both"])
    assert splits["both"].validation == splits["synth"].validation + splits["turk"].validation
    assert splits["synth"].duplicates["train_test_pairs"] == 37


def test_test_requests_are_dropped_from_nlrx_training():
    splits = nlrx(str(real_data("nlrx")), "synth", 0.05, seed=0, drop_test_duplicates=True)
    asked = {pair.prompt for pair in splits.test}
    assert asked.isdisjoint(pair.prompt for pair in splits.train + splits.validation)
    assert len(splits.train) + len(splits.validation) + splits.duplicates["dropped"] == 8000


def test_nlrx_lines_are_aligned():
    aligned = aligned_phrasings(str(real_data("nlrx")))
    assert len(aligned) == 8000
    assert all(synth.completion == turk.completion for synth, turk in aligned)
    assert (aligned[6][0].source, aligned[6][1].source) == ("synth_train.jsonl:7", "turk_train.jsonl:7")


def test_misaligned_phrasings_are_named(tmp_path):
    write_chat(tmp_path / "synth_train.jsonl", numbered(4))
    write_chat(tmp_path / "turk_train.jsonl", [*numbered(3), Example("request", "else", None)])
    with pytest.raises(InputError, match=r"turk_train.jsonl:4 must have the answer of .*:4, 'answer 3', got 'else'"):
        nlrx(str(tmp_path), "both", 0.0, seed=0)
    write_chat(tmp_path / "turk_train.jsonl", numbered(3))
    with pytest.raises(InputError, match="must have the same number of lines, got 4 and 3"):
        aligned_phrasings(str(tmp_path))
    with pytest.raises(InputError, match="phrasing must be synth, turk or both, got 'all'"):
        nlrx(str(tmp_path), "all", 0.0, seed=0)
