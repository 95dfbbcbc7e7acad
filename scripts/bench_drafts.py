"""Answers of an LLM-JEPA with drafts against token by token: the same code, the same requests, in one run.

    python scripts/bench_drafts.py [--quick] [--checkpoint outputs/llm_jepa_draft/checkpoint] [--requests 200]

Each kind of drafts answers the test requests of the checkpoint's training one by one and in batches of 32; the
threshold is chosen on its validation pairs. Without a checkpoint a small one is trained on generated pairs first, for
--steps steps of next tokens and next-latent prediction together. --quick trains for 30, asks 16 requests and takes a
threshold of 0.2. Seconds are the sum over batches of the fastest of --repetitions, which a busy machine disturbs least.
Prints a table and ends with one JSON line, which has the first kind, one by one, at its top. packed_ratio: seconds
token by token, one by one, without packed weights over with them.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Literal, TypeAlias, TypeVar

import torch

from jepa.build import build_as
from jepa.checkpoint import read_config
from jepa.cli import compose, keep_freed_memory
from jepa.config import AnswersConfig, validate
from jepa.data.pairs import Example, ExampleSplits
from jepa.evaluation.answers import load_language_model
from jepa.evaluation.generation import generate, with_drafts
from jepa.kept import KeptInMemory
from jepa.models.drafts import packed
from jepa.models.llm_jepa import LLMJEPA
from jepa.training.configs import LanguageTrainConfig
from jepa.training.run import train

T = TypeVar("T")
Kind: TypeAlias = Literal["latent", "lookup", "both"]
KINDS: tuple[Kind, ...] = ("latent", "lookup", "both")
GOAL = {"passes_ratio": 2.85, "seconds_ratio": 1.8}  # one by one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hardly trained model and few requests, under 50 s")
    parser.add_argument("--checkpoint", type=Path, help="folder of an LLM-JEPA with a transition")
    parser.add_argument("--requests", type=int, default=200, help="of the test pairs")
    parser.add_argument("--drafts", nargs="+", default=KINDS, choices=KINDS)
    parser.add_argument("--draft-tokens", type=int, default=8, help="at most")
    parser.add_argument("--steps", type=int, default=400, help="of training, without a checkpoint")
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the command does
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    count = 16 if arguments.quick else arguments.requests
    with tempfile.TemporaryDirectory() as folder:
        made = arguments.checkpoint or trained(Path(folder), 30 if arguments.quick else arguments.steps, count)
        model = load_language_model(made, "cpu")
        splits = build_as(ExampleSplits, "data", read_config(made)["data"])
    figures: dict[str, Mapping[str, float]] = {}
    print(f"{'drafts':8}{'batch':>6}{'passes':>9}{'seconds':>9}{'FLOPs':>8}{'stand':>8}{'identical':>11}")
    for kind in arguments.drafts:
        for batch in (1, 32):
            found = measure(model, splits, kind, batch, arguments, count)
            figures[f"{kind}, batch {batch}"] = found
            ratios = "".join(f"{found[key]:9.2f}x"[1:] for key in ("passes_ratio", "seconds_ratio", "flops_ratio"))
            print(f"{kind:8}{batch:6}{ratios}{found['accepted']:8.2f}{found['identical']:11.3f}", flush=True)
    top = figures[f"{arguments.drafts[0]}, batch 1"]
    for name, goal in GOAL.items():
        print(f"{name} {top[name]:.2f}, goal {goal}: {'met' if top[name] >= goal else 'missed'}")
    packing = packed_ratio(model, splits.test[: min(count, 64)], 1 if arguments.quick else arguments.repetitions)
    print(f"packed weights: {packing:.2f}x fewer seconds token by token")
    print(json.dumps({**top, "packed_ratio": packing, "requests": count, "by": figures}))


class Fastest(KeptInMemory):
    """Keeps no answers, but for each batch the fewest seconds that it took."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds: dict[str, float] = {}

    def get(self, name: str, compute: Callable[[], T]) -> T:
        started = time.perf_counter()
        found = compute()
        self.seconds[name] = min(time.perf_counter() - started, self.seconds.get(name, math.inf))
        return found


def measure(
    model: LLMJEPA, splits: ExampleSplits, kind: Kind, batch: int, arguments: argparse.Namespace, count: int
) -> Mapping[str, float]:
    """Ratios of token by token over drafts, and the fractions of drafted tokens that stand and of equal texts."""
    threshold = 0.2 if arguments.quick else None
    answers = AnswersConfig(
        drafts=kind, draft_tokens=arguments.draft_tokens, draft_threshold=threshold, batch_size=batch
    )
    pairs, fastest = splits.test[:count], Fastest()
    for _ in range(1 if arguments.quick else arguments.repetitions):
        made, drafting = with_drafts(model, pairs, answers, splits, fastest)
        answers = answers.model_copy(update={"draft_threshold": drafting and drafting.threshold})  # chosen once
    assert drafting is not None
    spent, alone = made.spent, sum(each for name, each in fastest.seconds.items() if name.startswith("answers "))
    seconds = sum(fastest.seconds.values()) - alone
    return {
        "identical": drafting.identical / len(pairs),
        "passes_ratio": drafting.uniform.forward_passes / spent.forward_passes,
        "seconds_ratio": alone / seconds,
        "flops_ratio": drafting.uniform.flops / spent.flops,
        "accepted": drafting.accepted_fraction,
        "threshold": drafting.threshold,
    }


def packed_ratio(model: LLMJEPA, pairs: Sequence[Example], repetitions: int) -> float:
    """Seconds of answers token by token, one by one, without packed weights over with them; the fastest of each."""

    def seconds(context: AbstractContextManager[None]) -> float:
        with context:
            return generate(model, pairs, 1).spent.seconds

    runs = [(seconds(nullcontext()), seconds(packed(model))) for _ in range(repetitions)]
    plain, fast = map(min, zip(*runs, strict=True))
    return plain / fast


def trained(folder: Path, steps: int, requests: int) -> Path:
    """The checkpoint of a small model whose states were trained together with their prediction."""
    pairs = max(2000, 16 * steps)
    sizes = [f"data.pairs={pairs}", f"data.test_pairs={requests}", "data.validation_fraction=0.1"]
    epochs = 32 * steps / (0.9 * pairs)
    options = [f"stage.epochs={epochs}", "stage.validate_every=100000", "workers=0", "accelerator=cpu"]
    overrides = ["experiment=llm_jepa_regex", "arm=transition", *sizes, *options]
    return train(validate(compose("train", overrides), LanguageTrainConfig), folder)


if __name__ == "__main__":
    main()
