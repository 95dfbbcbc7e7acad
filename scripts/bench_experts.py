"""Training step of the latent predictor: sparse experts against dense feed-forward layers of two widths.

    python scripts/bench_experts.py [--quick]

One dense layer is as wide as the experts that are active for a token, the other as wide as all of them together. Prints
parameters, FLOPs and the median step time of each predictor alone, alternating in one run, and ends with one JSON line
of ratios to the narrow dense layer. The loop computes one expert after the other in place of torch's grouped product.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any, cast

import torch
from timm.layers import Mlp
from torch import Tensor
from tqdm import tqdm

from jepa.build import build
from jepa.cli import compose
from jepa.config import validate
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, corpus
from jepa.models.vl_jepa import set_fused_attention
from jepa.operations import count_flops
from jepa.predictors.experts import Experts, active_parameters
from jepa.predictors.transformer import QueryPredictor
from jepa.training.configs import TrainConfig
from jepa.training.fit import computes_in_bf16


def predictors(node: dict[str, Any]) -> dict[str, QueryPredictor]:
    """The experts of a configured predictor, with both products, and the dense predictors."""
    mixture, width = build(node["mixture"]), node["width"]
    made: dict[str, QueryPredictor] = {}
    for name, routed in (("dense, equal active", mixture.top_k), ("dense, equal total", mixture.experts)):
        made[name] = build({key: value for key, value in node.items() if key != "mixture"})
        for block in made[name].blocks:
            block.mlp = Mlp(width, (routed + mixture.shared) * mixture.hidden, bias=False)  # as experts have none
    for name, grouped in (("experts, grouped", True), ("experts, loop", False)):
        made[name] = build(node)
        for block in made[name].blocks:
            cast("Experts", block.mlp).grouped = grouped
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller batch and fewer repetitions, under 50 s")
    quick = parser.parse_args().quick
    repetitions, batch = (3, 16) if quick else (20, 128)
    config = validate(compose("train", ["experiment=scratch", "model=vl_jepa_experts"]), TrainConfig)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
    made = {name: predictor.to(device) for name, predictor in predictors(config.model["predictor"]).items()}
    generator = torch.Generator().manual_seed(0)
    x_encoder = config.model["x_encoder"]
    slots, patches = (
        config.model["frames"] // x_encoder["tubelet"],
        (x_encoder["size"] // x_encoder["patch_size"]) ** 2,
    )
    states = torch.randn(batch, slots * patches, x_encoder["embed_dim"], generator=generator).to(device)
    ids, mask = (tensor.to(device) for tensor in tokenizer.encode([CAPTION_QUERIES[0]] * batch))

    def step(predictor: QueryPredictor) -> None:
        with torch.autocast(device, torch.bfloat16, enabled=computes_in_bf16(device)):
            predicted: Tensor = predictor(states, ids, mask)
        predicted.square().mul(torch.arange(predicted.shape[1], device=device)).mean().backward()
        predictor.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    flops: dict[str, int] = {}
    for name, predictor in made.items():
        set_fused_attention(predictor, device == "cuda")
        flops[name] = count_flops(lambda predictor=predictor: step(predictor)).total  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in made}
    for repetition in tqdm(range(repetitions + 1), desc="repetitions"):
        for name, predictor in made.items():
            started = time.perf_counter()
            step(predictor)
            if repetition:  # the first warms up
                times[name].append(time.perf_counter() - started)
    seconds = {name: statistics.median(measured) for name, measured in times.items()}
    print(f"{'predictor':22}{'parameters':>12}{'active':>10}{'GFLOPs a step':>15}{'ms a step':>12}")
    for name, predictor in made.items():
        total, active = sum(p.numel() for p in predictor.parameters()), active_parameters(predictor)
        print(f"{name:22}{total:12,}{active:10,}{flops[name] / 1e9:15.2f}{seconds[name] * 1e3:12.1f}")
    narrow = "dense, equal active"
    figures = {
        "bench": "experts",
        "device": device,
        "torch": torch.__version__,
        "flops_over_dense_equal_active": {name: round(count / flops[narrow], 4) for name, count in flops.items()},
        "seconds_over_dense_equal_active": {name: round(s / seconds[narrow], 3) for name, s in seconds.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
