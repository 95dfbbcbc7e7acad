"""A VL-JEPA exported as ONNX beside the model in PyTorch: speed, memory, size and quality, float32 and int8.

    python scripts/bench_export.py [--quick] [--checkpoint outputs/demo/checkpoint] [--candidates 240]

A step of a role is a window encoded, an embedding predicted, a caption embedded, or a latent decoded to its end: one at
a time, on one thread of each library. The three take turns; times are medians of processor time. Memory (on Linux) is
the peak of a process that loads what the role needs and takes one step, libraries included. Quality is retrieval R@1
and CIDEr-D of one clip of each of --candidates held-out compositions, as in `jepa evaluate`. Without a checkpoint the
model is that of experiment=scratch with random weights. --quick takes few repetitions and clips and weighs no process.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from jepa import checkpoint
from jepa.cli import compose
from jepa.config import validate
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, World, captions, corpus
from jepa.data.world_tasks import held_out_clips, held_out_scenes
from jepa.export import export_graphs
from jepa.metrics import cider_d, retrieval_ranks
from jepa.models.vl_jepa import VLJEPA
from jepa.runtime import ExportedModel, OnnxModel
from jepa.selective import Decoded
from jepa.training.configs import TrainConfig

ROLES = {  # and the step whose memory is measured
    "x_encoder": "model.encode(frames)",
    "predictor": "model.predict(states, [query])",
    "y_encoder": "model.embed([text])",
    "y_decoder": "model.decode(latents)",
}
CHILD = """
import numpy as np
{load}
given = np.load({inputs!r})
frames, states, latents = (array(given[name]) for name in ("frames", "states", "latents"))
query, text = str(given["query"]), str(given["text"])
{step}
[line] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]  # not that of the parent
print(line.split()[1])
"""
IN_TORCH = """
import torch, jepa
torch.set_num_threads(1)
torch.set_grad_enabled(False)
model, array = jepa.load({folder!r}), torch.from_numpy
"""
IN_ONNX = """
from jepa.runtime import OnnxModel
model, array = OnnxModel({folder!r}, int8={int8}, threads=1), np.asarray
"""


class InTorch:
    """The model in PyTorch, with arrays in and out as `OnnxModel`."""

    def __init__(self, model: VLJEPA) -> None:
        self.model = model

    @torch.no_grad()
    def encode(self, frames: np.ndarray) -> np.ndarray:
        return self.model.encode(torch.from_numpy(frames)).numpy()

    @torch.no_grad()
    def predict(self, states: np.ndarray, queries: Sequence[str]) -> np.ndarray:
        return self.model.predict(torch.from_numpy(states), queries).numpy()

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> np.ndarray:
        return self.model.embed(texts).numpy()

    def decode(self, latents: np.ndarray) -> list[Decoded]:
        return self.model.decode(torch.from_numpy(latents))


Runner = InTorch | ExportedModel


def quality(runner: Runner, world: World, frames: int, candidates: int, batch: int = 32) -> dict[str, float]:
    """Retrieval R@1 and CIDEr-D of one clip of each of some held-out compositions: as `score_tasks`."""
    scenes = held_out_scenes(world, candidates, seed=0)
    clips = held_out_clips(world, scenes, frames, seed=0)
    found, targets = [], []
    for first in tqdm(range(0, len(clips), batch), desc="clips", unit="batch"):
        some = clips[first : first + batch]
        found.append(runner.predict(runner.encode(some), [CAPTION_QUERIES[0]] * len(some)))
        targets.append(runner.embed([captions(scene)[0] for scene in scenes[first : first + batch]]))
    latents, labels = np.concatenate(found), torch.arange(len(scenes))
    ranks = retrieval_ranks(torch.from_numpy(latents), torch.from_numpy(np.concatenate(targets)), labels, labels)
    texts = [decoded.text for decoded in runner.decode(latents)]
    scores = cider_d(texts, [captions(scene) for scene in scenes])
    return {"r@1": round(float(ranks.recall(1).float().mean()), 4), "cider_d": round(float(scores.mean()), 4)}


def step_ms(steps: dict[str, Callable[[], object]], repetitions: int) -> dict[str, float]:
    """Median milliseconds of processor time of each of some steps that take turns."""
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for repetition in range(repetitions + 2):
        for name, step in steps.items():
            start = time.process_time()
            step()
            if repetition >= 2:  # the first ones warm up
                taken[name].append(1e3 * (time.process_time() - start))
    return {name: round(statistics.median(each), 3) for name, each in taken.items()}


def peak_mb(load: str, inputs: Path, step: str) -> float:
    """Peak resident megabytes of a process that loads a model and takes a step."""
    code = CHILD.format(load=load, inputs=str(inputs), step=step)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return round(int(done.stdout.split()[-1]) / 1024, 1)


def size_mb(folder: Path, end: str) -> dict[str, float]:
    """Megabytes of the graphs of each role whose files have this ending."""
    sizes = dict.fromkeys(ROLES, 0.0)
    for path in folder.glob("*.onnx"):
        name, _, rest = path.name.partition(".")
        if rest == end:
            sizes["x_encoder" if name == "x_encoder_time" else name] += path.stat().st_size / 1e6
    return {role: round(size, 2) for role, size in sizes.items()}


def made_checkpoint(folder: Path) -> Path:
    """A checkpoint of experiment=scratch with random weights."""
    config = validate(compose("train", ["experiment=scratch"]), TrainConfig).model_dump()
    torch.manual_seed(0)
    model = checkpoint.build_model(config, Tokenizer.train(corpus(), config["tokenizer"]["vocab_size"]))
    checkpoint.save(model, config, folder)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few repetitions and clips, under 50 s")
    parser.add_argument("--checkpoint", type=Path, help="folder of a VL-JEPA")
    parser.add_argument("--candidates", type=int, default=240, help="held-out compositions")
    parser.add_argument("--repetitions", type=int, default=50)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    repetitions, candidates = (5, 16) if arguments.quick else (arguments.repetitions, arguments.candidates)
    with tempfile.TemporaryDirectory() as place:
        folder, inputs = Path(place) / "exported", Path(place) / "inputs.npz"
        trained = arguments.checkpoint or made_checkpoint(Path(place) / "checkpoint")
        model = checkpoint.load(trained)
        parity, _ = export_graphs(model, folder, "onnx", int8=True)
        float32, int8 = OnnxModel(folder, threads=1), OnnxModel(folder, int8=True, threads=1)
        runners: dict[str, Runner] = {"torch": InTorch(model), "onnx": float32, "int8": int8}
        world = World(size=model.x_encoder.size, fps=model.fps)
        [scene] = held_out_scenes(world, 1, seed=1)
        frames = held_out_clips(world, [scene], model.frames, seed=1)
        query, text = CAPTION_QUERIES[0], captions(scene)[0]
        states = runners["torch"].encode(frames)
        latents = runners["torch"].predict(states, [query])
        np.savez(inputs, frames=frames, states=states, latents=latents, query=query, text=text)
        calls: dict[str, Callable[[Runner], object]] = {
            "x_encoder": lambda runner: runner.encode(frames),
            "predictor": lambda runner: runner.predict(states, [query]),
            "y_encoder": lambda runner: runner.embed([text]),
            "y_decoder": lambda runner: runner.decode(latents),
        }
        speed = {
            role: step_ms({name: lambda r=runner, c=call: c(r) for name, runner in runners.items()}, repetitions)  # type: ignore[misc]
            for role, call in tqdm(calls.items(), desc="speed", unit="role")
        }
        loads = {
            "torch": IN_TORCH.format(folder=str(trained)),
            "onnx": IN_ONNX.format(folder=str(folder), int8=False),
            "int8": IN_ONNX.format(folder=str(folder), int8=True),
        }
        memory = {
            role: {name: peak_mb(load, inputs, ROLES[role]) for name, load in loads.items()}
            for role in tqdm([] if arguments.quick else ROLES, desc="memory", unit="role")
        }
        size = {"onnx": size_mb(folder, "onnx"), "int8": size_mb(folder, "int8.onnx")}
        scores = {name: quality(runner, world, model.frames, candidates) for name, runner in runners.items()}
    print(f"{'a step':12}{'torch':>10}{'onnx':>10}{'int8':>10}  ms; how many times faster than torch")
    for role, each in speed.items():
        ratios = ", ".join(f"{name} {each['torch'] / each[name]:.2f}" for name in ("onnx", "int8"))
        print(f"{role:12}" + "".join(f"{value:10.2f}" for value in each.values()) + f"  {ratios}")
    for role, peaks in memory.items():
        print(f"{role:12}" + "".join(f"{value:10.0f}" for value in peaks.values()) + "  MB at the peak")
    for name, found in size.items():
        print(f"{name:12}" + ", ".join(f"{role} {value}" for role, value in found.items()) + " MB on disk")
    for name, score in scores.items():
        print(f"{name:12}R@1 {score['r@1']:.3f}, CIDEr-D {score['cider_d']:.3f}")
    figures = {
        "bench": "export",
        "torch": torch.__version__,
        "checkpoint": arguments.checkpoint is not None,
        "candidates": candidates,
        "largest_difference": {role: each.difference for role, each in parity.roles.items()},
        "milliseconds": speed,
        "speedup": {
            role: {name: round(each["torch"] / each[name], 3) for name in ("onnx", "int8")}
            for role, each in speed.items()
        },
        "peak_mb": memory,
        "disk_mb": size,
        "quality": scores,
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
