"""Zero-shot tasks on two gloo processes find what one process finds: no sample is left out or counted twice."""

from __future__ import annotations

import datetime
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from jepa.cli import compose
from jepa.config import EvaluateConfig, validate
from jepa.errors import InputError
from jepa.evaluation.run import evaluate
from jepa.evaluation.streams import load_streams

SAMPLES = 5  # of these one process gets two, the other three
TASKS = ("classification", "retrieval", "vqa", "captioning", "world_prediction")
WAIT = datetime.timedelta(seconds=60)


def config(folder: Path, task: str, output: str, candidates: int = SAMPLES) -> EvaluateConfig:
    composed = compose("evaluate", [f"checkpoint={folder}/checkpoint", f"task={task}"])
    changed = {"output": f"{folder}/{output}/{task}", "accelerator": "cpu", "candidates": candidates, "batch_size": 2}
    return validate(composed, EvaluateConfig).model_copy(update=changed)


def streams(folder: Path, output: str) -> EvaluateConfig:
    """Two streams to calibrate on and three to test on: of these one process gets one, the other two."""
    made = [f"streams.everyday.{key}" for key in ("calibration=2", "test=3", "seconds=6.0")]
    options = [f"checkpoint={folder}/checkpoint", "~streams.dense", "task=stream", *made]
    composed = compose("evaluate", options)
    changed = {"output": f"{folder}/{output}/stream", "accelerator": "cpu", "candidates": 12}
    return validate(composed, EvaluateConfig).model_copy(update=changed)


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{folder}/meet", WAIT, world_size=2, rank=rank)
    for task in TASKS:
        evaluate(config(Path(folder), task, "two"))
    evaluate(streams(Path(folder), "two"))
    try:
        evaluate(config(Path(folder), "captioning", "one sample", candidates=1))
    except InputError as error:
        Path(f"{folder}/error{rank}").write_text(str(error))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_checkpoint) -> Path:
    folder = tmp_path_factory.mktemp("tasks")
    shutil.copytree(tiny_checkpoint, folder / "checkpoint")
    mp.start_processes(work, (str(folder),), nprocs=2, start_method="fork")
    return folder


@pytest.mark.parametrize("task", TASKS)
def test_two_processes_find_what_one_finds(folder, task):
    evaluate(config(folder, task, "one"))
    one, two = folder / "one" / task, folder / "two" / task
    lines = [(path / "predictions.jsonl").read_text(encoding="utf-8").splitlines() for path in (one, two)]
    assert len(lines[0]) == len(lines[1]) == len({json.loads(line)["id"] for line in lines[1]})
    for a, b in zip(*(map(json.loads, each) for each in lines), strict=True):
        assert a.keys() == b.keys()
        cosines = ("nearest", "cosines")  # batches of other sizes round otherwise
        assert {k: v for k, v in a.items() if k not in cosines} == {k: v for k, v in b.items() if k not in cosines}
    records = [json.loads((path / "evaluation.json").read_text(encoding="utf-8")) for path in (one, two)]
    assert records[0]["scores"] == records[1]["scores"]
    assert [record["processes"] for record in records] == [1, 2]


def test_fewer_samples_than_processes_are_refused_by_all(folder):
    for rank in range(2):
        assert (folder / f"error{rank}").read_text() == "a task must have a sample for each of 2 processes, got 1"


def test_two_processes_encode_the_streams_of_one(folder):
    evaluate(streams(folder, "one"))
    one, two = (folder / name / "stream" for name in ("one", "two"))
    records = [json.loads((path / "evaluation.json").read_text(encoding="utf-8")) for path in (one, two)]
    assert records[0]["scores"] == records[1]["scores"]
    assert records[0]["settings"] == records[1]["settings"]
    assert [record["processes"] for record in records] == [1, 2]
    for split, count in (("calibration", 2), ("test", 3)):
        sets = [load_streams(path / "everyday" / split) for path in (one, two)]
        assert len(sets[0]) == count
        for a, b in zip(*sets, strict=True):
            assert a.record == b.record
            np.testing.assert_allclose(a.latents, b.latents, atol=1e-5)
            assert a.ledger.encoder.flops == b.ledger.encoder.flops
            assert a.ledger.predictor.flops == b.ledger.predictor.flops
