"""Spider's judge on small databases: each rule, and each way to be scored right for nothing."""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import closing

import pytest
from conftest import real_data, refuses

from jepa.metrics.sql import Spider, has_own_order

REQUEST = "For db_id:[shop]\n\nWhat is sold?"


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "shop" / "shop.sqlite"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(
            """
            CREATE TABLE item (name TEXT, price REAL, stock INTEGER);
            INSERT INTO item VALUES ('pear', 0.1, 3), ('apple', 0.2, 3), ('fig', NULL, 18), ('plum', 0.3, 18);
            CREATE TABLE number (n INTEGER);
            WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 500)
            INSERT INTO number SELECT n FROM c;
            CREATE TABLE word (w TEXT);
            INSERT INTO word VALUES (CAST(x'ff61' AS TEXT));
            """
        )
    return tmp_path


@pytest.mark.parametrize(
    ("prediction", "gold", "expected"),
    [
        ("select name from item", "SELECT name FROM item", True),
        ("SELECT name FROM item ORDER BY name", "SELECT name FROM item", True),  # the gold query asks for no order
        ("SELECT name FROM item ORDER BY name DESC", "SELECT name FROM item ORDER BY name", False),
        ("SELECT name FROM item", "SELECT name FROM item ORDER BY name", False),
        ("SELECT name FROM item ORDER BY name DESC", "SELECT name FROM (SELECT name FROM item ORDER BY name)", True),
        ("SELECT stock FROM item", "SELECT DISTINCT stock FROM item", False),  # rows count as often as they occur
        ("SELECT 3, 3, 18", "SELECT 3, 18, 18", False),
        ("SELECT price, name FROM item", "SELECT name, price FROM item", False),  # columns in their order
        ("SELECT name, stock FROM item", "SELECT name FROM item", False),
        ("SELECT name AS other FROM item", "SELECT name FROM item", True),  # and not by name
        ("SELECT price FROM item WHERE name = 'fig'", "SELECT NULL", True),
        ("SELECT 0", "SELECT NULL", False),
        ("SELECT ''", "SELECT NULL", False),
        ("SELECT 0.1 + 0.2", "SELECT price FROM item WHERE name = 'plum'", True),
        ("SELECT 18.0", "SELECT 18", True),
        ("SELECT '18'", "SELECT 18", False),
        ("SELECT 10000001", "SELECT 10000002", False),  # whole numbers have no tolerance
        ("SELECT 0.31", "SELECT 0.3", False),
        (
            "SELECT 0.1 + 0.2, 'b' UNION ALL SELECT 0.3, 'a'",
            "SELECT 0.3, 'b' UNION ALL SELECT 0.1 + 0.2, 'a'",
            True,
        ),
        ("SELECT w FROM word", "SELECT w FROM word", True),  # not UTF-8
        ("SELECT name FROM item WHERE 0", "SELECT name FROM item WHERE name = 'kiwi'", True),  # two empty tables
        ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 3) SELECT n FROM c",
         "SELECT n FROM number WHERE n < 4", True),
        ("SELECT name FROM item;", "SELECT name FROM item", True),
    ],
)  # fmt: skip
def test_rows_are_compared(folder, prediction, gold, expected):
    assert Spider(folder)(prediction, gold, REQUEST) is expected


@pytest.mark.parametrize(
    "prediction",
    [
        "",
        "   ",
        ";",
        "-- nothing",
        "junk",
        "SELECT nothing FROM nowhere",
        "SELECT name FROM item WHERE 0; SELECT 1",
        "SELECT \0",
        "SELECT '\ud800'",
        "PRAGMA table_info(nothing)",
        "DELETE FROM item WHERE 0",
        "SELECT load_extension('x')",
        "BEGIN",
        "DELETE FROM item",
        "DROP TABLE item",
        "CREATE TABLE other (x)",
        "INSERT INTO item VALUES ('x', 1, 1) RETURNING name",
        "PRAGMA query_only = OFF",
        "VACUUM INTO '{folder}/copy.sqlite'",
        "ATTACH DATABASE '{folder}/new.sqlite' AS new",
    ],
)
def test_what_gives_no_table_is_wrong_even_against_an_empty_one_and_cannot_write(folder, prediction):
    path = folder / "shop" / "shop.sqlite"
    before = path.read_bytes()
    for gold in ("SELECT name FROM item WHERE 0", "SELECT name FROM item"):
        assert not Spider(folder)(prediction.format(folder=folder), gold, REQUEST)
    assert path.read_bytes() == before
    assert sorted(p.name for p in folder.rglob("*")) == ["shop", "shop.sqlite"]


@pytest.mark.parametrize(
    ("prediction", "timeout_seconds"),
    [
        ("SELECT count(*) FROM number a, number b, number c, number d", 0.2),
        ("WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT count(*) FROM c", 0.2),
        ("SELECT * FROM number a, number b, number c, number d", 10.0),  # of 62 billion rows a few are fetched
    ],
)
def test_a_prediction_that_takes_too_long_is_wrong(folder, prediction, timeout_seconds):
    start = time.perf_counter()
    assert not Spider(folder, timeout_seconds=timeout_seconds)(prediction, "SELECT 1, 1, 1, 1", REQUEST)
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize(
    ("gold", "prompt", "message"),
    [
        ("SELECT 1", "What is sold?", "prompt must name its database as 'For db_id:.name.', got 'What is sold"),
        ("SELECT 1", "For db_id:[../shop]", "prompt must name its database"),
        ("SELECT 1", "For db_id:[gone]", r"databases must hold gone/gone\.sqlite, got no file .*gone\.sqlite"),
        ("SELECT x FROM gone", REQUEST, r"gold query must run on .*shop\.sqlite, got no such table: gone"),
        ("", REQUEST, r"must give a table .* on .*shop\.sqlite, got no table"),
        ("SELECT count(*) FROM number a, number b, number c, number d", REQUEST, "got interrupted"),
    ],
)
def test_what_is_not_the_predictions_fault_is_an_error(folder, gold, prompt, message):
    for prediction in ("junk", gold):
        refuses(message, Spider(folder, timeout_seconds=0.2), prediction, gold, prompt)


def test_a_file_that_is_no_database_is_an_error(folder):
    (folder / "shop" / "shop.sqlite").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 40)
    refuses(r"shop\.sqlite, got file is not a database", Spider(folder), "SELECT 1", "SELECT name FROM item", REQUEST)
    refuses("timeout_seconds must be finite and > 0, got 0", Spider, folder, timeout_seconds=0)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("SELECT a FROM t ORDER BY a", True),
        ("select a from t order\n by a limit 1", True),
        ("SELECT a FROM t UNION SELECT b FROM u ORDER BY a", True),
        ("SELECT a FROM (SELECT a FROM t ORDER BY a LIMIT 3)", False),
        ("SELECT row_number() OVER (ORDER BY a) FROM t", False),
        ("SELECT a FROM t WHERE b = 'order by' -- order by a", False),
        ("SELECT ')' FROM t ORDER BY a", True),
        ("SELECT a FROM t /* ( */ ORDER BY a", True),
        ("SELECT border, bya FROM t", False),
    ],
)
def test_own_order(query, expected):
    assert has_own_order(query) is expected


def test_every_prompt_of_spider_names_its_database(tmp_path):
    for line in real_data("chat/spider_sample.jsonl").read_text(encoding="utf-8").splitlines():
        prompt = json.loads(line)["messages"][1]["content"]
        refuses("got no file", Spider(tmp_path), "SELECT 1", "SELECT 1", prompt)
