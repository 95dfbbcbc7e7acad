"""VL-JEPA's training step: samples per second, model-FLOPs utilisation, and what the contrastive loss takes.

    python scripts/bench_train.py [--quick] [--peak 989e12] [--rows 24576]

A step is forward, backward and AdamW on one batch of generated clips, in bf16 by autocast where the device computes
in it. The embedded model is that of conf/model/vl_jepa_small.yaml; where there is a GPU, the full-size one of
vl_jepa_paper.yaml with random weights is measured, too. Utilisation is the step's FLOPs (`count_flops`, activations
computed again included) over its time and the device's peak: --peak in FLOP/s, otherwise that of a square matrix
product in bf16, measured here. The contrastive loss is measured forward and backward on rows of 1,536 dimensions in
float32, whole and in chunks, each in a process of its own; memory is that process's peak above what it held before
(on a CPU from Linux' /proc). Ends with one JSON line."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import validate
from jepa.data.clips import ClipBatch, ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import corpus
from jepa.losses.infonce import info_nce
from jepa.models.vl_jepa import set_fused_attention
from jepa.operations import count_flops
from jepa.training.configs import TrainConfig
from jepa.training.fit import computes_in_bf16
from jepa.training.modules import JEPAModule

WIDTH, CHUNK = 1536, 512  # of the paper's embeddings; rows of similarities at a time


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small batches, under 50 s")
    parser.add_argument("--peak", type=float, help="FLOP/s of the device")
    parser.add_argument("--rows", type=int, default=24_576, help="of the contrastive loss")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    repetitions = 2 if arguments.quick else arguments.repetitions
    peak = arguments.peak or measured_peak(device, 512 if arguments.quick else 2048)
    models = {"embedded": ("vl_jepa_small", 16 if arguments.quick else 128)}
    if device == "cuda":
        models["full size"] = ("vl_jepa_paper", 2 if arguments.quick else 16)
    rates: dict[str, Any] = {}
    for name, (model, size) in models.items():
        rates[name] = found = step_rate(model, size, device, repetitions)
        found["utilisation"] = round(found["flops"] / found["seconds"] / peak, 4)
        print(
            f"{name:10} {size:4} samples a step: {found['samples_per_second']:9.2f} samples/s, "
            f"{found['flops']:.4g} FLOPs a step, utilisation {found['utilisation']:.1%} of {peak:.3g} FLOP/s"
        )
    rows = 4096 if arguments.quick else arguments.rows
    loss = {name: contrastive(rows, chunk, device) for name, chunk in (("plain", None), ("chunked", CHUNK))}
    for name, (seconds, mebibytes) in loss.items():
        print(f"InfoNCE of {rows} x {WIDTH}, {name:8}: {seconds:7.2f} s, {mebibytes:9.0f} MiB")
    figures = {
        "bench": "train",
        "device": device,
        "threads": torch.get_num_threads(),
        "peak_flops": peak,
        "models": rates,
        "contrastive_rows": rows,
        "contrastive_seconds": {name: round(seconds, 3) for name, (seconds, _) in loss.items()},
        "contrastive_mebibytes": {name: round(mebibytes, 1) for name, (_, mebibytes) in loss.items()},
    }
    print(json.dumps(figures))


def measured_peak(device: str, size: int = 2048) -> float:
    """FLOP/s of the fastest of ten products of square matrices, in bf16 where the device computes in it."""
    dtype = torch.bfloat16 if computes_in_bf16(device) else torch.float32
    a = torch.randn(size, size, device=device, dtype=dtype)
    return 2 * size**3 / min(seconds_of(lambda: a @ a, device) for _ in range(10))


def seconds_of(run: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    run()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def step_rate(name: str, size: int, device: str, repetitions: int) -> dict[str, Any]:
    """Median time of a step, and its FLOPs, which are counted in one before."""
    world_size = 256 if name == "vl_jepa_paper" else 48
    overrides = ["name=bench", f"model={name}", f"world.size={world_size}"]
    config = validate(compose("train", overrides), TrainConfig)
    assert config.jepa is not None
    torch.manual_seed(0)
    model = build_model(config.model_dump(), Tokenizer.train(corpus(), config.tokenizer.vocab_size)).to(device).train()
    set_fused_attention(model, device == "cuda")
    model.y_decoder.requires_grad_(False)
    module = JEPAModule(model, config.jepa).to(device)
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    optimizer = torch.optim.AdamW([dict(group) for group in module.parameter_groups()], lr=1e-4, fused=True)
    batch: ClipBatch = ClipBatches(build(config.world), 0, size, 1, model.frames, **config.clips.model_dump())[0]

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=computes_in_bf16(device)):
            loss = module.training_step(batch, 0)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    flops = count_flops(step).total
    seconds = statistics.median(seconds_of(step, device) for _ in range(repetitions))
    return {"samples_per_second": round(size / seconds, 3), "seconds": seconds, "flops": flops}


def contrastive(rows: int, chunk: int | None, device: str) -> tuple[float, float]:
    """Seconds and peak memory (MiB) of InfoNCE, forward and backward, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_contrastive, (rows, chunk, device))


def _contrastive(rows: int, chunk: int | None, device: str) -> tuple[float, float]:
    def run(count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        first, second = (torch.randn(count, WIDTH, generator=generator).to(device).requires_grad_() for _ in range(2))
        info_nce(F.normalize(first, dim=-1), F.normalize(second, dim=-1), 0.07, chunk=chunk).backward()

    def peak() -> float:
        if device == "cuda":
            return torch.cuda.max_memory_allocated() / 2**20
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10

    run(64)
    if device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = peak()
    seconds = seconds_of(lambda: run(rows), device)
    return seconds, peak() - before


if __name__ == "__main__":
    main()
