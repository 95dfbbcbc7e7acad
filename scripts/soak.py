"""Commands killed at random moments, over and over, against the same commands left alone.

    python scripts/soak.py [--kills 100] [--cases world,language] [--seed 0]

Each case runs `jepa train`, and `jepa evaluate` and `jepa report` where it has them, in a forked process of its own
process group. The group is killed (kill -9) after a random part of the time that the command took when left alone,
and the command is given again with `resume=auto`, until it has been killed as often as was asked. Then weights, logs
and results must be the same to the bit, and no run may have begun before the newest state that the one before it had
written. Ends with one JSON line; the exit code is 1 if anything differs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from tqdm import tqdm

from jepa.cli import main as jepa
from jepa.data.json_lines import write_lines
from jepa.data.manifests import sample_fields
from jepa.data.shards import write_shards
from jepa.data.world import World
from jepa.data.world_tasks import world_samples

FEW = ["accelerator=cpu", "precision=32-true", "saves.every_steps=3"]
VL_JEPA = ["experiment=scratch", "jepa.batch_size=4", "jepa.validate_every=10", "jepa.validation_batches=1", *FEW]
SMALL = [f"model.{part}.{key}" for part in ("predictor", "y_encoder") for key in ("width=32", "depth=1")]
SMALL += ["model.x_encoder.embed_dim=32", "model.x_encoder.depth=1", "model.predictor.state_dim=32"]
LANGUAGE = ["experiment=llm_jepa_regex", "data.pairs=200", "data.test_pairs=16", "answers.batch_size=4", *FEW]
LANGUAGE += ["stage.epochs=4", "stage.batch_size=16", "stage.validate_every=10"]
LANGUAGE += ["objective.target=ema", "objective.loss_dropout=0.5"]
WIDTH = "model.language_model.architecture"
LANGUAGE += [f"{WIDTH}.{key}" for key in ("hidden_size=32", "intermediate_size=64", "num_hidden_layers=2")]
LANGUAGE += [f"+{WIDTH}.attention_dropout=0.1"]


class Case(NamedTuple):
    """Commands one after the other, given the folder of the data; `processes` of torchrun for the training."""

    commands: Callable[[Path], list[list[str]]]
    processes: int = 1


def world(data: Path) -> list[list[str]]:
    """Both stages of a VL-JEPA on made clips, its streams, and the report."""
    decoder = ["decoder.steps=30", "decoder.streams=2", "decoder.stream_seconds=20", "decoder.validate_every=10"]
    train = ["train", "name=run", *VL_JEPA, *SMALL, "jepa.steps=40", "jepa.target=ema", *decoder]
    few = ("calibration=2", "test=2", "seconds=40")
    streams = [f"streams.{name}.{key}" for name in ("everyday", "dense") for key in few]
    evaluate = ["evaluate", "checkpoint=outputs/run/checkpoint", "candidates=12", "accelerator=cpu", *streams]
    return [train, evaluate, ["report", "evaluation=outputs/run/evaluation", "workers=0"]]


def own_data(data: Path, *more: str) -> list[list[str]]:
    return [["train", "name=run", *VL_JEPA, *SMALL, "jepa.steps=40", "decoder=null", *more]]


def manifest(data: Path) -> list[list[str]]:
    path = made_manifest(data)
    return own_data(data, f"data.train={path}", f"data.validation={path}")


def features(data: Path) -> list[list[str]]:
    path = made_manifest(data)
    frozen = ["+model.x_encoder.frozen=true", f"data.features={data}/states"]
    return own_data(data, f"data.train={path}", f"data.validation={path}", *frozen)


def shards(data: Path) -> list[list[str]]:
    if not (data / "shards").exists():
        write_shards(made_manifest(data), data / "shards", 8)
    train = [f"data.{split}={data}/shards/shard-*.tar" for split in ("train", "validation")]
    return own_data(data, *train, "data.fractions=null", "data.buffer=5", "workers=2")


def language(data: Path) -> list[list[str]]:
    """A language model, and the answers that are scored after it."""
    return [["train", "name=run", *LANGUAGE]]


CASES = {
    "world": Case(world),
    "manifest": Case(manifest),
    "shards": Case(shards),
    "language": Case(language),
    "two processes": Case(lambda data: own_data(data, "devices=2", "strategy=ddp"), processes=2),
}


def made_manifest(data: Path) -> Path:
    """Captioned clips of the made world, as folders of pictures."""
    path = data / "manifest.jsonl"
    if not path.exists():
        samples: list[Any] = world_samples(World(), "caption", 32, 8, 0)
        for sample in samples:
            folder = data / sample.media.name
            folder.mkdir(parents=True, exist_ok=True)
            for number, picture in enumerate(sample.media.source):
                (folder / f"{number:04d}.png").write_bytes(picture)
        write_lines(path, (sample_fields(sample, lambda _, media: media.name) for sample in samples))
    return path


def start(arguments: list[str], folder: Path, processes: int) -> list[int]:
    """The command in forked processes, the leaders of their own groups; their output goes to `folder/out`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        sys.stdout.flush()
        if (process := os.fork()) == 0:
            _work(arguments, folder, rank, processes, port)
        started.append(process)
    return started


def _work(arguments: list[str], folder: Path, rank: int, processes: int, port: int) -> None:
    status = 70
    try:
        os.setsid()
        tqdm.set_lock(threading.RLock())  # that which forks share may be held by one that was killed
        os.chdir(folder)
        out = os.open("out" if rank == 0 else os.devnull, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = io.TextIOWrapper(io.FileIO(1, "w"), write_through=True), sys.stdout
        sys.stderr = io.TextIOWrapper(io.FileIO(2, "w"), write_through=True)
        if processes > 1:
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            launched = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "soak", "GROUP_RANK": 0}
            os.environ.update({name: str(value) for name, value in (ranks | launched).items()})
        status = jepa(arguments)
    finally:
        os._exit(status)


def finish(processes: list[int], seconds: float | None) -> bool:
    """Waits for the processes; whether they ended before so many seconds. After these their groups are killed.

    Raises:
        RuntimeError: one ended with another exit code than 0.
    """
    deadline, left, statuses = time.monotonic() + (seconds or 3600), set(processes), []
    while left and time.monotonic() < deadline:
        for process in list(left):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                left.discard(process)
                statuses.append(status)
        time.sleep(0.002)
    if any(statuses):
        raise RuntimeError(f"a command ended with status {statuses}")
    for process in left:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
    return not left


def newest_step(folder: Path) -> dict[str, int]:
    """The step of the newest state of each stage."""
    found: dict[str, int] = {}
    for path in sorted(folder.glob("outputs/run/resume/*.ckpt")):
        stage, _, step = path.stem.rpartition("-")
        found[stage] = int(step)
    return found


class Found(NamedTuple):
    """Kills of a case, starts from a state, steps lost by these, and files that differed in the end."""

    kills: int
    went_on: int
    lost: int
    differs: list[str]


def soak(case: Case, kills: int, folder: Path, draw: random.Random) -> Found:
    """Runs a case alone, then killed, from its beginning on as often as it takes, and compares each time."""
    data, alone = folder / "data", folder / "alone"
    data.mkdir(parents=True)
    alone.mkdir()
    commands, took, found = case.commands(data), list[float](), Found(0, 0, 0, [])
    for arguments in commands:
        began = time.monotonic()
        finish(start(arguments, alone, case.processes if arguments[0] == "train" else 1), None)
        took.append(time.monotonic() - began)
    while found.kills < kills:
        killed = folder / f"killed after {found.kills}"
        killed.mkdir()
        for arguments, seconds in zip(commands, took, strict=True):
            found = killed_until_it_ends(found, kills, arguments, case.processes, seconds, killed, draw)
        found = found._replace(differs=[*found.differs, *differences(alone, killed)])
        shutil.rmtree(killed)
    return found


def killed_until_it_ends(
    found: Found, kills: int, arguments: list[str], processes: int, seconds: float, folder: Path, draw: random.Random
) -> Found:
    """A command that takes so many seconds, killed within half of them until it is through or was killed enough."""
    trains = arguments[0] == "train"
    while True:
        before, out = newest_step(folder), folder / "out"
        printed = out.stat().st_size if out.exists() else 0
        group = start([*arguments, "resume=auto"] if trains else arguments, folder, processes if trains else 1)
        ended = finish(group, draw.uniform(0.05, 0.6) * seconds if found.kills < kills else None)
        said = out.read_bytes()[printed:].decode(errors="replace")
        for stage, step in re.findall(r"resume: stage (\w+) goes on after step (\d+)", said):
            lost = before.get(stage, 0) - int(step)
            found = found._replace(went_on=found.went_on + 1, lost=found.lost + lost)
        if ended:
            return found
        found = found._replace(kills=found.kills + 1)


def differences(alone: Path, killed: Path) -> list[str]:
    """Files that are not the same: weights and latents to the bit, logs as text, curves of results."""
    found = []
    for path in sorted(alone.rglob("*.safetensors")):
        name = path.relative_to(alone)
        ours, theirs = load_file(killed / name), load_file(path)
        if ours.keys() != theirs.keys() or not all(torch.equal(ours[key], theirs[key]) for key in theirs):
            found.append(str(name))
    for path in [*sorted(alone.rglob("metrics.csv")), *sorted(alone.rglob("predictions.jsonl"))]:
        name = path.relative_to(alone)
        if (killed / name).read_bytes() != path.read_bytes():
            found.append(str(name))
    for path in alone.rglob("results.json"):
        name = path.relative_to(alone)
        ours, theirs = (json.loads(each.read_text())["settings"] for each in (killed / name, path))
        if any(ours[key]["curves"] != theirs[key]["curves"] for key in theirs):
            found.append(str(name))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100, help="of all cases together")
    parser.add_argument("--cases", default=",".join(CASES), help="names, with commas between them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for module in ("training.run", "evaluation.answers", "evaluation.videos", "evaluation.sweep", "report.streams"):
        importlib.import_module(f"jepa.{module}")  # once, not in every process
    names, draw, began = options.cases.split(","), random.Random(options.seed), time.monotonic()
    found: dict[str, Found] = {}
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate(names):
            share = (options.kills - sum(each.kills for each in found.values())) // (len(names) - number)
            found[name] = soak(CASES[name], share, Path(folder) / name.replace(" ", "_"), draw)
            print(f"{name}: {found[name]}", flush=True)
    total = {
        "kills": sum(each.kills for each in found.values()),
        "went_on": sum(each.went_on for each in found.values()),
        "steps_lost": sum(each.lost for each in found.values()),
        "differs": [f"{name}: {file}" for name, each in found.items() for file in each.differs],
        "by_case": {name: each.kills for name, each in found.items()},
        "seconds": round(time.monotonic() - began),
    }
    print(json.dumps(total))
    return int(bool(total["differs"] or total["steps_lost"]))


if __name__ == "__main__":
    sys.exit(main())
