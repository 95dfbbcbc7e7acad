"""Answers of the small LLM-JEPA in sorted batches, as evaluation makes them, against one request at a time.

    python scripts/bench_generate.py [--quick] [--checkpoint outputs/llm_jepa_nlrx/checkpoint] [--data pairs.jsonl]

Both generate greedily with a key/value cache, in float32. One request at a time may take --max-new-tokens, as in
published code; a batch takes what its longest gold answer needs. A model learns to end its answers: without a
checkpoint it is trained for --steps of next tokens first. --quick trains for 10, and gives both the same limit.
Texts must be equal as far as the batch's limit reaches. Prints answers per second and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from tqdm import tqdm

import jepa
from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import validate
from jepa.data.packing import PackedBatch, pack
from jepa.data.pairs import Example, read_chat
from jepa.evaluation.generation import generate, longest_answer
from jepa.models.llm_jepa import LLMJEPA
from jepa.training.configs import LanguageTrainConfig
from jepa.training.language import make_tokenizer

TARGET = 10.0  # times as many answers per second as one request at a time, at least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a hardly trained model and few answers, under 50 s")
    parser.add_argument("--checkpoint", help="folder of a trained LLM-JEPA")
    parser.add_argument("--data", help="chat JSON lines; the default is generated")
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--requests", type=int, default=1024, help="that are answered in batches")
    parser.add_argument("--single", type=int, default=64, help="of them, evenly spaced, are answered one at a time")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="limit of one request at a time")
    parser.add_argument("--steps", type=int, default=200, help="of training, without a checkpoint")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    size, count = arguments.batch_size, arguments.requests
    repetitions, singles = arguments.repetitions, arguments.single
    if arguments.quick:
        count, repetitions, singles = size, 1, 16
    steps = 0 if arguments.checkpoint else 10 if arguments.quick else arguments.steps
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    overrides = ["variant=llm_jepa", "name=bench", "data.pairs=2000", f"data.test_pairs={count}"]
    config = validate(compose("train", overrides), LanguageTrainConfig)
    if arguments.data:
        pairs = read_chat(arguments.data, config.data["system"])
        asked, training = pairs[:count], pairs[count:]
    else:
        splits = build(config.data)
        asked, training = splits.test[:count], splits.train
    if len(asked) < singles:
        parser.error(f"there must be at least {singles} pairs to answer, got {len(asked)}")
    if steps and len(training) < config.stage.batch_size:
        parser.error(f"training needs {config.stage.batch_size} pairs beside those to answer, got {len(training)}")
    torch.manual_seed(config.seed)
    if arguments.checkpoint:
        model = jepa.load(arguments.checkpoint)
    else:
        model = build_model(config.model_dump(), make_tokenizer(config.tokenizer, training or asked))
    model.to(device)
    train(model, training, steps, config.stage.batch_size, config.stage.row_tokens)
    model.eval()

    limit = None if arguments.quick else arguments.max_new_tokens
    rates, stopped, tokens = answers_per_second(model, asked, singles, size, limit, repetitions)
    speedup = rates["batched"] / rates["one at a time"]
    for name, rate in rates.items():
        print(f"{name:14}{rate:10.1f} answers/s")
    print(f"{tokens:.1f} tokens an answer, {stopped:.0%} ended by the model; float32 on {device}")
    print(f"batched is faster by {speedup:.1f}x (target: at least {TARGET:g})")
    figures = {
        "bench": "generate",
        "device": device,
        "threads": torch.get_num_threads(),
        "batch_size": size,
        "requests": len(asked),
        "training_steps": None if arguments.checkpoint else steps,
        "tokens_per_answer": round(tokens, 2),
        "ended": round(stopped, 4),
        "answers_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "speedup": round(speedup, 3),
    }
    print(json.dumps(figures))


def train(model: LLMJEPA, pairs: Sequence[Example], steps: int, size: int, row_tokens: int) -> None:
    """Next tokens alone, so that answers have realistic lengths."""
    encoded = model.tokenizer.encode(pairs)
    layout = model.layout(row_tokens=row_tokens)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for step in tqdm(range(steps), desc="training"):
        chosen = [encoded[(step * size + i) % len(encoded)] for i in range(size)]
        out = model(PackedBatch(*(field.to(model.device) for field in pack(chosen, layout))))
        F.cross_entropy(out.logits, out.labels).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()


def answers_per_second(
    model: LLMJEPA, pairs: Sequence[Example], singles: int, size: int, limit: int | None, repetitions: int
) -> tuple[dict[str, float], float, float]:
    """Median rates, the fraction of answers that the model ended, and mean tokens an answer.

    `singles` of the pairs, evenly spaced, are answered one at a time, with `limit` new tokens (None: the longest gold
    answer).
    """
    longest = longest_answer(model.tokenizer.encode(pairs))
    spaced = [i * len(pairs) // singles for i in range(singles)]
    times: dict[str, list[float]] = {"batched": [], "one at a time": []}
    for repetition in tqdm(range(repetitions + 1), desc="repetitions"):
        if not repetition:  # warms up
            model.answer(pairs[:1], 4)
            continue
        started = time.perf_counter()
        batched = generate(model, pairs, size).answers
        times["batched"].append((time.perf_counter() - started) / len(pairs))
        started = time.perf_counter()
        alone = [model.answer([pairs[i]], limit or longest)[0] for i in spaced]
        times["one at a time"].append((time.perf_counter() - started) / singles)
        for ours, theirs in zip((batched[i] for i in spaced), alone, strict=True):
            cut = ours.tokens == longest  # may stand within a character, and within white space
            same = theirs.text.startswith(ours.text.rstrip("\ufffd")) if cut else theirs.text == ours.text
            if not same:
                raise AssertionError(f"answers must be equal, got {ours.text!r} batched and {theirs.text!r} alone")
    rates = {name: 1 / statistics.median(seconds) for name, seconds in times.items()}
    ended = sum(answer.tokens < longest for answer in batched) / len(batched)
    return rates, ended, sum(answer.tokens for answer in batched) / len(batched)


if __name__ == "__main__":
    main()
