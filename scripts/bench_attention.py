"""Training step of the small VL-JEPA with timm's fused attention kernel against matmul-softmax-matmul.

    python scripts/bench_attention.py [--quick]

Prints the median step time of each, alternating in one run, and the ratio; ends with one JSON line. On a CPU in bf16
the plain form is the faster one, which is why training uses it there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import torch
from tqdm import tqdm

from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import validate
from jepa.data.clips import ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import corpus
from jepa.models.vl_jepa import set_fused_attention
from jepa.training.configs import TrainConfig
from jepa.training.fit import computes_in_bf16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer repetitions, under 50 s")
    repetitions = 3 if parser.parse_args().quick else 12
    config = validate(compose("train", ["experiment=scratch"]), TrainConfig)
    assert config.jepa is not None
    torch.manual_seed(config.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config.model_dump(), Tokenizer.train(corpus(), config.tokenizer.vocab_size)).to(device)
    loss = build(config.jepa.loss).to(device)
    batch = ClipBatches(build(config.world), 0, config.jepa.batch_size, 1, **config.clips.model_dump())[0]

    def step() -> float:
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=computes_in_bf16(device)):
            predictions = model.predict(model.encode(batch.frames), batch.queries)
            value = loss(predictions, model.embed(batch.texts))
        value.backward()
        model.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    times: dict[str, list[float]] = {"fused": [], "plain": []}
    for repetition in tqdm(range(repetitions + 1), desc="repetitions"):
        for name, measured in times.items():
            set_fused_attention(model, name == "fused")
            elapsed = step()
            if repetition:  # the first warms up
                measured.append(elapsed)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name:6} {seconds * 1e3:8.1f} ms a step")
    ratio = medians["fused"] / medians["plain"]
    print(f"plain attention is {ratio:.2f} times as fast as fused, bf16 on {device}")
    print(json.dumps({"bench": "attention", "device": device, "ratio_fused_over_plain": round(ratio, 3)}))


if __name__ == "__main__":
    main()
