"""kill -9 at a few random moments of whole commands; `scripts/soak.py` does it a hundred times over more of them."""

from __future__ import annotations

import random

import pytest


@pytest.mark.parametrize(("name", "shorter"), [("language", "stage.epochs=2"), ("shards", "jepa.steps=20")])
def test_commands_that_are_killed_end_as_those_that_are_not(name, shorter, tmp_path, script):
    soak = script("soak")
    case = soak.Case(lambda data: [[*each, shorter] for each in soak.CASES[name].commands(data)])
    found = soak.soak(case, 3, tmp_path, random.Random(0))
    assert found.kills == 3
    assert found.lost == 0
    assert found.differs == []
