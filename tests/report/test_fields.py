"""The fields of all documents: what the docs say is what the checks ask."""

from __future__ import annotations

from pathlib import Path

from test_report import make_operations, make_results

from jepa.report.fields import DOCUMENTS, UNITS, fields, fields_markdown
from jepa.report.schema import number, record, sequence, text


def test_the_docs_are_current():
    path = Path(__file__).parents[2] / "docs" / "results_schema.md"
    assert path.read_text(encoding="utf-8") == fields_markdown(), "run python -m jepa.report.fields"


def test_fields_say_path_type_and_unit():
    check = record({"seconds": sequence(number(0), shortest=2), "name": text}, optional={"p": number(0, 1)})
    assert list(fields(check)) == [
        ("seconds", "list of at least 2", ""),
        ("seconds[]", "number >= 0", "s"),
        ("name", "text", ""),
        ("p?", "number >= 0 and <= 1", "fraction of 1"),
    ]


def test_every_field_of_a_document_is_named():
    named = {path.replace("?", "") for path, _, _ in fields(DOCUMENTS[0][2])}

    def walk(value: object, path: str) -> None:
        if isinstance(value, dict):
            free = f"{path}.<name>".lstrip(".") in named and not any(
                f"{path}.{key}".lstrip(".") in named for key in value
            )
            for key, inner in value.items():
                walk(inner, f"{path}.{'<name>' if free else key}".lstrip("."))
        elif isinstance(value, list):
            for inner in value:
                walk(inner, f"{path}[]")
        assert not path or path in named or path.startswith("config") or ".curve[]" in path, path

    results = make_results()
    results["training"]["stages"][0]["operations"] = make_operations()
    walk({key: value for key, value in results.items() if key != "schema"}, "")


def test_units_are_those_of_fields_there_are():
    names = {
        path.replace("[]", "").replace("?", "").rpartition(".")[2] for _, _, c in DOCUMENTS for path, _, _ in fields(c)
    }
    assert set(UNITS) <= names
