"""Paths on the command line: read back by Hydra's own grammar as they were typed."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import refuses
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from jepa.overrides import overrides_of, short_name

PARSER = OverridesParser.create()
ODD = ["a=1", "a b", "a,b", "~x", "#y", "(z)", "[l]", "{d}", "\u00fc", "it's", 'q"', "back\\", "\\'", "${x}", "\\${x}"]
ODD += ["a:b", "100%", "007", "1e3", "true", "*", "x\ty", "new\nline", "e=mc,2~#(\u00fc) x", "$HOME", "glob(*)", "'q'"]


def read(*arguments: str, command: str = "evaluate") -> list[object]:
    """The values that Hydra and OmegaConf make of arguments; of a sweep, the list of its elements."""
    values = []
    for override in PARSER.parse_overrides(overrides_of(command, arguments)):
        value = override.value()
        for element in value.list if override.is_choice_sweep() else [value]:
            plain = getattr(element, "text", element)
            values.append(OmegaConf.to_container(OmegaConf.create({"value": plain}), resolve=True)["value"])
    return values


@pytest.mark.parametrize("before", ["", "./", "{}/"], ids=["alone", "relative", "absolute"])
def test_a_path_that_exists_is_taken_whatever_stands_in_it(tmp_path, monkeypatch, before):
    monkeypatch.chdir(tmp_path)
    for path in (before.format(tmp_path) + name for name in ODD):
        Path(path).mkdir()
        assert read(f"checkpoint={path}") == [path]
        assert read(f"+videos.timeline.path={path}") == [path]
        assert read("--compare", "runs/a", path, f"output={path}", command="report") == [["runs/a", path], path]


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=20))
def test_so_is_one_that_does_not_exist(name):
    """Behind `no/`, where it is neither grammar nor an interpolation."""
    path = f"no/{name}".replace("${", "$ {")
    assert read(f"data.train={path}") == [path]


def test_grammar_stays_grammar():
    assert read("data.train=[a.jsonl,b.jsonl]", "output=null", "seed=3") == [["a.jsonl", "b.jsonl"], None, 3]
    assert overrides_of("evaluate", ["-m", "checkpoint=no=1,no=2"])[1] == "checkpoint='no=1','no=2'"
    assert overrides_of("evaluate", ["checkpoint=no=1,2"]) == ["checkpoint='no=1,2'"]
    kept = ["checkpoint=outputs/${name}", "checkpoint='a b'", "experiment=demo", "checkpoint=", "a.pretrained=false"]
    assert overrides_of("train", kept) == kept


@given(st.text(max_size=300), st.text(max_size=300))
def test_short_names_are_short_and_plain_and_tell_overrides_apart(one, other):
    names = [short_name([f"key={text}"]) for text in (one, other)]
    assert all(0 < len(name.encode()) <= 80 for name in names)
    assert all(read(f"checkpoint={name}") == [name] for name in names)
    assert one == other or names[0] != names[1]
    assert short_name(["seed=-1"]) != short_name(["seed=1"])


def test_a_report_without_a_sweep_refuses_what_only_a_sweep_reads():
    for rendered in ("results=a.json", "compare=[a,b]", "curves=[a]"):
        assert len(overrides_of("report", [rendered, "output=b"])) == 2
        for swept in ("references=[]", "policies/extra=mine", "~policies.gate", "+policies.gate.values=[1]", "seed=1"):
            refuses(rf"^{rendered.partition('=')[0]}= is drawn without", overrides_of, "report", [rendered, swept])
            assert overrides_of("report", ["evaluation=a", swept]) == ["evaluation=a", swept]
