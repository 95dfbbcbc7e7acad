"""Commands that are killed go on where they were: what they computed is used again, and nothing else is."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Program, language_config
from made_streams import POLICIES
from safetensors.numpy import load_file

from jepa import checkpoint
from jepa.cli import compose
from jepa.config import AnswersConfig, EvaluateConfig, ObjectiveConfig, ReportConfig, validate
from jepa.data.pairs import Example, ExampleSplits
from jepa.evaluation import answers, sweep, videos
from jepa.kept import Kept
from jepa.models.llm_jepa import LLMJEPA
from jepa.selective import Decoded


class KilledError(Exception):
    pass


class Counted:
    """A function whose calls are counted, and which is killed in the one after `left` if that is a number."""

    def __init__(self, work: Any, left: int | None = None) -> None:
        self.work, self.left, self.calls = work, left, 0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if self.calls == self.left:
            raise KilledError
        self.calls += 1
        return self.work(*arguments, **options)


def test_streams_and_their_sweep_go_on(tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint, tmp_path / "run" / "checkpoint"))
    few = [f"streams.everyday.{each}" for each in ("calibration=2", "test=2", "seconds=20")]
    plain = compose("evaluate", [f"checkpoint={folder}", *few, "~streams.dense", "candidates=10", "accelerator=cpu"])
    config = validate(plain, EvaluateConfig)

    def run(left: int | None, output: Path) -> int:
        monkeypatch.setattr(videos, "encode_stream", encode := Counted(encode_stream, left))
        videos.evaluate_videos(folder, output, config)
        return encode.calls

    encode_stream = videos.encode_stream
    with pytest.raises(KilledError):
        run(3, tmp_path / "run" / "evaluation")
    assert run(None, tmp_path / "run" / "evaluation") == 1
    assert run(None, tmp_path / "run" / "whole") == 4
    for split in ("calibration", "test"):
        files = (tmp_path / "run" / name / "everyday" / split for name in ("evaluation", "whole"))
        found, wanted = (load_file(each / "latents.safetensors") for each in files)
        assert found.keys() == wanted.keys()
        assert all((found[key] == wanted[key]).all() for key in wanted)

    def report(left: int | None, output: str, **more: Any) -> tuple[Any, int]:
        policies = {name: POLICIES[name] for name in ("uniform", "gate", "gate_cache")}
        chosen = ReportConfig(policies=policies, output=str(tmp_path / output), workers=0, **more)
        monkeypatch.setattr(sweep, "segment_streams", segment := Counted(segment_streams, left))
        results = sweep.stream_results(tmp_path / "run" / "evaluation", chosen)
        assert results is not None
        return results.settings["everyday"], segment.calls

    segment_streams = sweep.segment_streams
    with pytest.raises(KilledError):
        report(4 * 4 + 1, "cut")
    found, on = report(None, "cut")
    wanted, whole = report(None, "whole")
    assert on == whole - 4 * 4  # the segments of the gate's four values in two streams of both splits
    assert (found.curves, found.savings) == (wanted.curves, wanted.savings)
    again, fewest = report(None, "cut", tolerances=[0.0])
    assert again.curves == wanted.curves
    assert fewest <= 3  # of the points whose operations are counted
    assert report(None, "cut", seed=1)[1] == whole


def test_answers_go_on(tiny_llm_jepa: LLMJEPA, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "checkpoint"
    objective = ObjectiveConfig(loss={}).model_dump()
    checkpoint.save(tiny_llm_jepa, language_config() | {"arm": "none", "objective": objective}, folder)
    stage = {"steps": 1, "samples": 1, "tokens": 1, "flops": 1.0, "seconds": 1.0, "pairs": 1, "duplicates": {}}
    record = {"name": "llm_jepa", **stage, "steps_stretched": 1.0, "curve": [], "operations": None}
    (folder / "training.json").write_text(json.dumps({"stages": [record]}), encoding="utf-8")
    pairs = [Example("lines with " + "a" * number, "a" * (1 + number % 3), None) for number in range(6)]
    split, config = ExampleSplits([], [], pairs, {}), AnswersConfig(batch_size=2)
    continuations = LLMJEPA.continuations

    def run(output: str, left: int | None = None, **options: bool) -> int:
        counted = Counted(continuations, left)
        monkeypatch.setattr(LLMJEPA, "continuations", lambda *arguments: counted(*arguments))
        answers.evaluate_answers(folder, tmp_path / output, config, "cpu", split, **options)
        return counted.calls

    with pytest.raises(KilledError):
        run("cut", 2)
    assert run("cut") == 1
    assert run("whole") == 3
    found, wanted = ((tmp_path / name / "predictions.jsonl").read_text() for name in ("cut", "whole"))
    assert found == wanted
    assert run("cut", once=True) == 0  # all of it is there
    assert run("cut") == 3
    other = copy.deepcopy(tiny_llm_jepa)
    with torch.no_grad():
        next(other.parameters()).add_(0.1)
    checkpoint.save(other, language_config() | {"arm": "none", "objective": objective}, folder)
    assert run("cut", once=True) == 3


def test_only_whole_values_of_the_same_origin_and_of_known_kinds_are_used(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_text("one")
    kept = Kept(tmp_path, {"source": source}, (Decoded,))
    kept.put("known", Decoded("text", 1, 1))
    kept.put("unknown", Program())
    kept.put("cut", list(range(10_000)))
    newest = max((tmp_path / ".kept").rglob("*.pt"), key=lambda path: path.stat().st_size)
    os.truncate(newest, 1000)
    assert kept.find("known") == Decoded("text", 1, 1)
    assert kept.find("unknown") is None
    assert kept.find("cut") is None
    assert not (tmp_path / "was_run").exists()
    source.write_text("two")
    with Kept(tmp_path, {"source": source}, (Decoded,)) as other:
        assert other.find("known") is None
    assert kept.find("known") is None  # removed: nothing can go on from it
