"""What counting costs: the fraction of whole runs that is spent in the operation ledger and the training meter.

    python scripts/bench_ledger.py [--quick]

Three runs in one process, each through the code that users run: `jepa train experiment=scratch`, `jepa evaluate` of its
checkpoint, and a live stream of frames through encoder, predictor, gate, cache and decoder. Every call of a method of
`OperationLedger` and `TrainingMeter`, and of `count_flops`, is timed, the outermost one only; the stop watch's own time
counts as theirs. The fraction is that time over the rest of the run's wall time: over a run
without counting. What counting the FLOPs of a shape takes, once, when it first comes, is told apart from what every
step takes: it is much of a short run (--quick) and little of a long one. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jepa
from jepa.build import build
from jepa.cli import compose
from jepa.cli import main as command
from jepa.data.world import World
from jepa.operations import OperationLedger, TrainingMeter
from jepa.operations.flops import count_flops
from jepa.selective import Gate, LatentCache, SelectiveDecoder


class StopWatch:
    """Seconds within wrapped functions; of calls within each other the outermost counts."""

    def __init__(self) -> None:
        self.seconds, self._within = 0.0, False

    @contextlib.contextmanager
    def _timed(self) -> Iterator[None]:
        if self._within:
            yield
            return
        self._within, started = True, time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - started
            self._within = False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*arguments: Any, **keywords: Any) -> Any:
            with self._timed():
                return function(*arguments, **keywords)

        return wrapped

    def wrap_context(self, manager: Callable[..., Any]) -> Callable[..., Any]:
        """Of a context manager its beginning and its end, not what runs within it."""

        @contextlib.contextmanager
        def wrapped(*arguments: Any) -> Iterator[None]:
            with self._timed():
                inner = manager(*arguments)
                inner.__enter__()
            yield
            with self._timed():
                inner.__exit__(None, None, None)

        return wrapped


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short runs, under 50 s")
    quick = parser.parse_args().quick
    watch, once = StopWatch(), StopWatch()
    timed = watch.wrap_context(OperationLedger.timed)
    for counting in (OperationLedger, TrainingMeter):
        for name, function in list(vars(counting).items()):
            if inspect.isfunction(function):
                setattr(counting, name, watch.wrap(function))
    OperationLedger.timed = timed  # type: ignore[method-assign]
    counter = watch.wrap(once.wrap(count_flops))
    for module in [m for name, m in sys.modules.items() if name.startswith("jepa.")]:
        if getattr(module, "count_flops", None) is count_flops:
            vars(module)["count_flops"] = counter
    train = ["jepa.steps=8", "jepa.batch_size=32", "decoder.steps=8", "decoder.streams=2"] if quick else []
    streams = [f"streams.{name}.{split}=2" for name in ("everyday", "dense") for split in ("calibration", "test")]
    evaluate = [*streams, "candidates=12"] if quick else []
    home = Path.cwd()
    fractions: dict[str, dict[str, float]] = {}

    def measure(name: str, run: Callable[[], Any]) -> None:
        before, first, started = watch.seconds, once.seconds, time.perf_counter()
        if run():
            raise SystemExit(f"{name} failed")
        wall, counting = time.perf_counter() - started, watch.seconds - before
        rest, first = wall - counting, once.seconds - first
        fractions[name] = {
            "seconds": round(wall, 2),
            "fraction": round(counting / rest, 5),
            "every_step": round((counting - first) / rest, 5),
        }

    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        checkpoint = Path(folder, "outputs/scratch/checkpoint")
        measure("jepa train experiment=scratch", lambda: command(["train", "experiment=scratch", *train]))
        measure("jepa evaluate", lambda: command(["evaluate", f"checkpoint={checkpoint}", *evaluate]))
        model = jepa.load(checkpoint)
        measure("a live stream", lambda: live(model, 30 if quick else 1800))
        os.chdir(home)
    for name, found in fractions.items():
        print(
            f"{name:28} {found['seconds']:8.1f} s, counting adds {found['fraction']:.3%}, "
            f"{found['every_step']:.3%} without the first counts of shapes"
        )
    print(json.dumps({"bench": "ledger", "quick": quick, "runs": fractions}))


def live(model: Any, seconds: float) -> None:
    style = build(compose("evaluate", ["checkpoint=none"]).streams.everyday.style)
    stream = World().stream("bench", (0,), seconds, style)
    selective = SelectiveDecoder(Gate(threshold=2.0), model, cache=LatentCache(threshold=0.05, capacity=64))
    for latents, times in model.stream(stream.frames(), 2.0, "What happens?", selective.ledger):
        for latent, when in zip(latents, times, strict=True):
            selective.step(latent, float(when))
    selective.finish()


if __name__ == "__main__":
    main()
