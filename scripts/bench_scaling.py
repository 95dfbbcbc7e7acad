"""What grows with what: a step's memory, bytes between processes, memory of the sweep and of retrieval.

    python scripts/bench_scaling.py [--quick]

- step: peak memory of VL-JEPA's step (vl_jepa_small, forward and backward, float32) against batch and chunk;
- gathered: bytes that InfoNCE hands to collectives on each rank, in one process and in two of gloo, equal to
  `gathered_bytes`, which also predicts 8 and 64 ranks;
- sweep: peak memory of loading saved streams and sweeping policies over them, against hours of streams;
- gallery: peak memory of retrieval against rows of the gallery;
- weights: a prediction from the parameters of vl_jepa_paper: bytes of weights, gradients and AdamW per rank.

Each peak is that of a forked process above what it held before, from Linux' /proc. Ends with one JSON line."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from bench_selective import STEP_RATE, STEPS, Nearest, annotated
from torch import Tensor

from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import ReportConfig, validate
from jepa.data.clips import ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import corpus
from jepa.evaluation.streams import SPLITS, load_streams, save_streams
from jepa.evaluation.sweep import sweep_setting
from jepa.losses.infonce import info_nce
from jepa.metrics import retrieval_ranks
from jepa.training.configs import TrainConfig
from jepa.training.modules import JEPAModule

MIB, WIDTH = 2**20, 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller sizes, under 50 s")
    quick = parser.parse_args().quick
    torch.set_num_threads(1)
    batches = [(16, 0), (32, 0), (32, 8)] if quick else [(64, 0), (128, 0), (256, 0), (128, 32), (256, 32)]
    model = {name: training_model(name) for name in ("vl_jepa_small", "vl_jepa_paper")}
    figures: dict[str, Any] = {
        "bench": "scaling",
        "step_mib": {
            f"batch {size}, chunk {chunk or size}": peak(partial(step, model["vl_jepa_small"], size, chunk))
            for size, chunk in batches
        },
        "gathered_bytes": {
            f"{ranks} ranks, {'chunks' if chunk else 'at once'}": gathered(ranks, chunk)
            for ranks in (1, 2)
            for chunk in (None, 16)
        },
        "predicted_gathered_mib": {  # of 1,024 rows of 1,536 a rank
            f"{ranks} ranks, {'chunks' if chunk else 'at once'}": round(
                gathered_bytes(1024, 1536, ranks, chunk) / MIB, 1
            )
            for ranks in (8, 64)
            for chunk in (None, 1024)
        },
        "sweep_mib": {
            f"{count * STEPS / STEP_RATE / 3600:.1f} h": swept(count) for count in ((4, 8) if quick else (8, 16, 32))
        },
        "gallery_mib": {
            f"{rows:,} rows": peak(partial(search, rows))
            for rows in ((4096, 32768) if quick else (4096, 32768, 131072, 262144))
        },
        "predicted_weights_gib": weights(model["vl_jepa_paper"]),
    }
    for name, found in figures.items():
        if isinstance(found, dict):
            print(name)
            for case, value in found.items():
                print(f"  {case:32} {value}")
    print(json.dumps(figures))


def in_fork(work: Callable[[], Any]) -> Any:
    """What work returns in a process of its own."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work()))
    process.start()
    sender.close()
    value = receiver.recv()
    process.join()
    return value


def peak(work: Callable[[], Any]) -> float:
    """MiB at the most above what the process held before."""

    def measured() -> float:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = held()
        work()
        return round(held() - before, 1)

    return float(in_fork(measured))


def held() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 2**10


def training_model(name: str) -> tuple[TrainConfig, Any]:
    """A configuration and its model; that of full size on the meta device."""
    large = name == "vl_jepa_paper"
    overrides = ["name=bench", f"model={name}", f"world.size={256 if large else 48}"]
    config = validate(compose("train", overrides), TrainConfig)
    torch.manual_seed(0)
    with torch.device("meta" if large else "cpu"):
        return config, build_model(config.model_dump(), Tokenizer.train(corpus(), config.tokenizer.vocab_size))


def step(made: tuple[TrainConfig, Any], size: int, chunk: int) -> None:
    config, model = made
    assert config.jepa is not None
    module = JEPAModule(model.train(), config.jepa.model_copy(update={"chunk": chunk}))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    batch = ClipBatches(build(config.world), 0, size, 1, model.frames, **config.clips.model_dump())[0]
    module.training_step(batch, 0).backward()


def gathered_bytes(batch: int, width: int, ranks: int, chunk: int | None) -> int:
    """Of InfoNCE over `ranks` ranks of `batch` rows with ids, forward and backward, float32, on each rank.

    At once both sides are gathered; in chunks the targets and the columns' log denominators of each rank. Backward
    sends the gradients of as many. A ring sends 2 (ranks − 1) / ranks times as much.
    """
    if ranks == 1:
        return 0
    rows = batch * ranks
    sizes_and_ids = 8 * ranks + 8 * rows
    if chunk is None:
        return sizes_and_ids + 2 * 4 * rows * 2 * width
    return sizes_and_ids + 2 * 4 * rows * width + 8 * ranks + 2 * 4 * ranks * rows


def gathered(ranks: int, chunk: int | None, batch: int = 64) -> int:
    """Bytes counted on the first of some gloo processes."""
    with tempfile.TemporaryDirectory() as folder:

        def work(rank: int) -> int:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
            counted: list[int] = []
            all_reduce: Any = dist.all_reduce

            def counting(tensor: Tensor) -> None:
                counted.append(tensor.nbytes)
                all_reduce(tensor)

            vars(dist)["all_reduce"] = counting
            generator = torch.Generator().manual_seed(rank)
            sides = F.normalize(torch.randn(2, batch, WIDTH, generator=generator), dim=2).requires_grad_()
            ids = torch.arange(batch) + rank * batch
            info_nce(sides[0], sides[1], 0.07, ids, gather=True, chunk=chunk).backward()
            dist.destroy_process_group()
            return sum(counted)

        others = [multiprocessing.get_context("fork").Process(target=work, args=(rank,)) for rank in range(1, ranks)]
        for process in others:
            process.start()
        found = int(in_fork(lambda: work(0)))
        for process in others:
            process.join()
    assert found == gathered_bytes(batch, WIDTH, ranks, chunk)
    return found


def swept(count: int) -> float:
    """Of loading `count` streams of six minutes, latents and states of 256, and sweeping two policies over them."""
    decoder = Nearest(WIDTH)
    config = validate(compose("report", ["workers=0"]), ReportConfig)
    policies = {name: config.policies[name] for name in ("uniform", "gate")}
    few = config.model_copy(update={"policies": policies, "references": config.references[:1]})
    with tempfile.TemporaryDirectory() as folder:

        def save() -> None:
            for number, split in enumerate(SPLITS):
                half = range(number * count // 2, (number + 1) * count // 2)
                save_streams(annotated(half, decoder), Path(folder) / split)

        def work() -> None:
            streams = {split: load_streams(Path(folder) / split) for split in SPLITS}
            sweep_setting(streams, decoder, few, latent_delay=0.5, name="scaling")

        in_fork(save)
        return peak(work)


def search(rows: int) -> None:
    gallery = torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(0))
    retrieval_ranks(gallery[:1024], gallery, torch.arange(1024), torch.arange(rows))


def weights(made: tuple[TrainConfig, Any]) -> dict[str, float]:
    """GiB a rank: float32 weights, gradients of those that are trained, and AdamW's two moments of them.

    DDP keeps all of it on every rank; FSDP a part of 1 / ranks, and one block whole while it computes.
    """
    parts = [made[1].x_encoder, made[1].predictor, made[1].y_encoder]
    every = [p for part in parts for p in part.parameters()]
    trained = sum(p.numel() for p in every if p.requires_grad)
    total = 4 * sum(p.numel() for p in every) + 12 * trained
    found = {"DDP, any number": total, **{f"FSDP, {ranks} ranks": total / ranks for ranks in (8, 64)}}
    return {name: round(size / 2**30, 2) for name, size in {**found, "gradients of a step": 4 * trained}.items()}


if __name__ == "__main__":
    main()
