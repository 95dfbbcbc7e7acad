"""The documentation follows the code: every command composes and validates, every recipe runs."""

from __future__ import annotations

import json
import re
import shlex
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import language_config, refuses, tiny_config
from torch.nn.functional import normalize

from jepa import checkpoint
from jepa.build import build
from jepa.cli import COMMANDS, compose, overrides_of
from jepa.config import EvaluateConfig, ReportConfig, validate
from jepa.data import timelines
from jepa.data.records import Event, StreamRecord
from jepa.data.world import StreamStyle, World
from jepa.hub import ExportConfig, PushConfig
from jepa.live import LiveConfig
from jepa.models.roles import SlotEncoder
from jepa.report.render import html, markdown, terminal
from jepa.report.tables import Column, table
from jepa.results import StreamResults, read_document
from jepa.studies.configs import ComparisonTrainConfig, CostConfig, ReplayConfig
from jepa.training.configs import LanguageTrainConfig, TrainConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
SCHEMAS = {"evaluate": EvaluateConfig, "report": ReportConfig, "replay": ReplayConfig, "cost": CostConfig}
SCHEMAS |= {"push": PushConfig, "export": ExportConfig, "live": LiveConfig}
VARIANTS = {"vl_jepa": TrainConfig, "llm_jepa": LanguageTrainConfig, "comparison": ComparisonTrainConfig}


def commands(page: Path) -> list[str]:
    """The `jepa` commands of a page's blocks and spans of code, one line each."""
    text = page.read_text(encoding="utf-8")
    blocks = [lines for language, lines in re.findall(r"```(\w*)\n(.*?)```", text, re.S) if language in ("", "bash")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += [
        " ".join(span.split()) for span in re.findall(r"`(jepa [^`]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    ]
    return [line.strip() for line in lines if re.match(rf"jepa ({'|'.join(COMMANDS)})\b", line.strip())]


ALL = {line: page.relative_to(ROOT).as_posix() for page in PAGES for line in commands(page)}  # each line once


@pytest.mark.parametrize("line", ALL, ids=[f"{page}-{number}" for number, page in enumerate(ALL.values())])
def test_every_command_of_the_documentation_is_valid(line):
    """What a reader fills in (`<…>` and `…`) becomes a word."""
    line = re.sub(r" … ", " ", re.sub(r"<[^<>]+>", "given", line)).replace("task=…", "task=vqa").replace("…", "given")
    _, name, *words = shlex.split(line.replace("'given[.given][.low]>=given'", "savings>=1"), comments=True)
    words = [word for word in overrides_of(name, words) if word not in ("-m", "--cfg", "job")]
    one_of_a_sweep = [re.sub(r"^((?!.*[\[{(]).*?=[^,]*),.*$", r"\1", word) for word in words]
    config = compose(name, one_of_a_sweep)
    from omegaconf import OmegaConf

    for key in OmegaConf.missing_keys(config):
        OmegaConf.update(config, key, "given")
    schema = VARIANTS[config.variant] if name == "train" else SCHEMAS[name]
    assert validate(config, schema) is not None


def python(page: str) -> list[str]:
    """The blocks of Python of a page."""
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.S)


@pytest.fixture
def checkpoints(tiny_model, tiny_llm_jepa, tmp_path, monkeypatch):
    """A folder with tiny checkpoints where the documentation has them."""
    monkeypatch.chdir(tmp_path)
    checkpoint.save(tiny_model, tiny_config(), tmp_path / "outputs/demo/checkpoint")
    checkpoint.save(tiny_llm_jepa, language_config(), tmp_path / "outputs/llm_jepa_regex/checkpoint")


def test_every_experiment_is_in_the_table_of_them():
    _, _, part = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("## What there is to train")
    rows = part.partition("## ")[0].splitlines()
    names = [name for row in rows if row.startswith("| `") for name in re.findall(r"`(\w+)`", row)]
    assert sorted(names) == sorted(path.stem for path in (ROOT / "conf" / "experiment").glob("*.yaml"))


def test_the_code_of_the_readme_decodes_your_own_embeddings(checkpoints, capsys):
    latents = normalize(torch.ones(20, 16) + torch.arange(16) * (torch.arange(20)[:, None] > 9), dim=-1)
    scope = {"stream": zip(latents.numpy(), np.arange(20) / 2, strict=True)}
    for block in python("README.md"):
        exec(block, scope)
    assert scope["selective"].ledger.decoder.calls >= 1
    assert "PartCount" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["docs/concepts.md", "docs/llm_jepa.md", "docs/sharing.md"])
def test_the_code_of_the_pages_runs_from_top_to_bottom(page, checkpoints, capsys):
    scope: dict[str, object] = {}
    for block in python(page):
        exec(block, scope)
        assert "selective" not in scope or scope["selective"].ledger.decoder.calls >= 1
    assert ("PartCount" in capsys.readouterr().out) == ("selective" in scope)


def test_the_code_of_the_export_decodes_a_stream(exported, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "exported").symlink_to(exported)
    video = World(size=48, fps=8).stream("live", seed=(3,), duration=20.0, style=StreamStyle(mean_event=3.0))
    [block] = python("docs/export.md")
    exec(block, scope := {"frames": video.frames(chunk=4)})
    assert scope["selective"].ledger.decoder.calls >= 1
    assert "PartCount" in capsys.readouterr().out


def code(title: str, block: int = 0) -> str:
    """A block of Python under a heading of docs/extending.md."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.S)[block]


@pytest.fixture
def module(monkeypatch):
    """Makes a module out of the code under a heading."""

    def make(name: str, title: str) -> types.ModuleType:
        made = types.ModuleType(name)
        monkeypatch.setitem(sys.modules, name, made)
        exec(compile(code(title), name, "exec"), made.__dict__)
        return made

    return make


def test_the_loss_of_extending_falls_along_its_gradient(module):
    module("jepa.losses.hinge", "A loss")
    loss = build({"_target_": "jepa.losses.hinge.Hinge", "margin": 0.9})
    torch.manual_seed(0)
    predictions, targets = normalize(torch.randn(2, 8, 4), dim=-1)
    predictions.requires_grad_()
    before = loss(predictions, targets, torch.arange(8))
    before.backward()
    assert loss(predictions - 0.1 * predictions.grad, targets, torch.arange(8)) < before
    assert loss(targets, targets, torch.arange(8)) == 0


def test_the_encoder_of_extending_sees_each_cell_of_each_slot(module):
    module("jepa.encoders.colour_grid", "An encoder")
    node = {"_target_": "jepa.encoders.colour_grid.ColourGrid", "size": 8, "width": 6, "tubelet": 2, "cells": 2}
    encoder = build(node)
    assert isinstance(encoder, SlotEncoder)
    frames = torch.randint(256, (1, 4, 8, 8, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    slots = encoder.encode_slots(frames)
    assert encoder(frames).shape == (1, 8, 6)
    below = frames[0, 2:, 4:, :4].float().mean(dim=(1, 2)).flatten() / 255  # second slot, lower left cell
    torch.testing.assert_close(slots[0, 1, 2], encoder.map(below))
    refuses("frames must be", lambda: encoder(frames[:, :, :4]))


def test_the_format_of_extending_is_read(tmp_path, monkeypatch):
    names = dict(vars(timelines))
    exec(code("A format of annotations"), names)
    [(name, made)] = eval("{" + code("A format of annotations", 1) + "}", names).items()
    monkeypatch.setitem(timelines.FORMATS, name, made)
    label = {"from": 1.0, "to": 2.5, "text": "a man cuts onions"}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps({"name": "kitchen", "seconds": 9.0, "labels": [label]}), encoding="utf-8")
    [record] = timelines.read_timeline(path, name).records
    assert record == StreamRecord("kitchen", 9.0, (Event(1.0, 2.5, "a man cuts onions"),))
    path.write_text(json.dumps({"name": "kitchen", "seconds": 9.0, "labels": [{**label, "to": "2"}]}), encoding="utf-8")
    refuses(r"labels.jsonl.*labels\[0\]", timelines.read_timeline, path, name)


def test_the_document_of_extending_is_written_shown_and_read(module, tmp_path, capsys):
    made = module("jepa.studies.latency", "A kind of results document")
    rows = [made.PolicyLatency(policy="gate", seconds=2.5), made.PolicyLatency(policy="uniform", seconds=0.5)]
    results = made.LatencyResults(created="2026-01-01", name="trial", policies=rows)
    made.show(results, tmp_path)
    assert "gate" in capsys.readouterr().out
    assert read_document(tmp_path, made.LatencyResults) == results
    for render in (terminal, markdown, html):
        shown = render(made.report(results))
        assert shown.index("0.50") < shown.index("2.50")


def test_the_column_of_extending_is_a_cell_of_each_operating_point(stream_results: StreamResults):
    column = eval(code("A column of a table"), {"Column": Column})
    for setting in stream_results.settings.values():
        [(_, rows)] = table("", [column], [("", setting.operations)]).groups
        assert [float(cell) >= 0 for (cell,) in rows] == [True] * len(setting.operations)
