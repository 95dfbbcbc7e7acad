"""Training step of the small LLM-JEPA: the packed pass against rows padded as published code pads them.

    python scripts/bench_llm_step.py [--quick] [--data pairs.jsonl] [--batch-size 32] [--length 512]

All variants train the same model on the same pairs with the same loss, next tokens + (1 − cos), which is first shown to
be the same, gradients included. A step builds its batch from token ids, runs forward and backward, and updates the
weights. The references compute logits at the trained positions only, as we do; published code computes all of them.
Each variant is timed with eager and with fused attention, and its faster one counts.

    padded rows    conversation, text view + [PRED], code view: three rows padded to --length (arXiv 2509.14252)
    trimmed rows   the same, padded to the longest of the batch
    masked rows    conversation, and text view + [PRED] with the code view behind a block mask: two rows, trimmed
    packed pass    ours: several pairs to a row, view 1 computed once
    next tokens    our pass without latent term

Prints samples per second and the targets, and ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from jepa.build import build
from jepa.checkpoint import build_model
from jepa.cli import compose
from jepa.config import validate
from jepa.data.batches import PairBatch
from jepa.data.chat import ChatIds
from jepa.data.packing import IGNORE, pack
from jepa.data.pairs import read_chat
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import count_flops
from jepa.training.configs import LanguageTrainConfig
from jepa.training.fit import computes_in_bf16
from jepa.training.language import make_tokenizer
from jepa.training.objectives import Objective

Loss = Callable[[Sequence[ChatIds]], Tensor]
DROPOUT = 0.75
TARGETS = {"padded rows": 4.0, "masked rows": 1.5}  # how many times as many samples per second, at least
FLOPS_TARGETS = {0.0: 1.6, DROPOUT: 1.2}  # over next-token training at a loss dropout, at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one step of 2 pairs, under 50 s")
    parser.add_argument("--data", help="chat JSON lines; the default is generated")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--length", type=int, default=512, help="tokens of a padded row")
    parser.add_argument("--predictors", type=int, default=1, help="[PRED] tokens")
    parser.add_argument("--precision", choices=["bf16", "fp32"], help="bf16: by autocast; default: the device's")
    parser.add_argument("--threads", type=int, help="of torch, on a CPU")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    repetitions, size = (1, 2) if arguments.quick else (arguments.repetitions, arguments.batch_size)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    wanted = size * (repetitions + 1)
    overrides = ["variant=llm_jepa", "objective=cosine", f"model.predictor.tokens={arguments.predictors}"]
    overrides += ["name=bench", f"data.pairs={wanted + 1}", "data.test_pairs=0", "data.validation_fraction=0"]
    config = validate(compose("train", overrides), LanguageTrainConfig)
    data = config.data
    pairs = read_chat(arguments.data, data["system"])[:wanted] if arguments.data else build(data).train[:wanted]
    if len(pairs) < wanted:
        parser.error(f"{arguments.data} must have at least {wanted} pairs, got {len(pairs)}")
    tokenizer = make_tokenizer(config.tokenizer, pairs)
    torch.manual_seed(config.seed)
    model = build_model(config.model_dump(), tokenizer).to(device)
    encoded = tokenizer.encode(pairs)
    longest = max(len(p.prompt) + max(len(p.completion), arguments.predictors) for p in encoded)
    if longest > arguments.length:
        parser.error(f"--length must be at least the longest conversation, {longest} tokens, got {arguments.length}")

    check_agreement(model, variants(model, config, longest + 8), encoded[:2])
    losses = variants(model, config, arguments.length)
    batches = [encoded[start : start + size] for start in range(0, wanted, size)]
    precision = arguments.precision or ("bf16" if computes_in_bf16(device) else "fp32")
    seconds, kernels = step_seconds(model, losses, batches, autocast=precision == "bf16")
    flops = {name: step_flops(model, losses[name], batches) for name in ("packed pass", "next tokens")}

    rates = {name: size / value for name, value in seconds.items()}
    speedups = {name: rates["packed pass"] / rate for name, rate in rates.items()}
    print(f"{precision} on {device}, {torch.get_num_threads()} threads, {size} pairs a batch")
    print(f"{'':14}{'ms a step':>10}{'samples/s':>11}  attention  packed pass is faster by")
    for name in losses:
        target = f" (target: at least {TARGETS[name]})" if name in TARGETS else ""
        print(
            f"{name:14}{seconds[name] * 1e3:10.1f}{rates[name]:11.1f}  {kernels[name]:9}  {speedups[name]:.2f}x{target}"
        )
    over_next_tokens = {}
    for dropout, goal in FLOPS_TARGETS.items():
        over_next_tokens[dropout] = [with_dropout(cost, dropout) for cost in (flops, seconds)]
        operations, time_ratio = over_next_tokens[dropout]
        print(
            f"over next-token training, loss dropout {dropout:4}: FLOPs {operations:.2f}x (target: at most {goal}), "
            f"time {time_ratio:.2f}x"
        )
    figures = {
        "bench": "llm_step",
        "device": device,
        "precision": precision,
        "threads": torch.get_num_threads(),
        "batch_size": size,
        "length": arguments.length,
        "predictors": arguments.predictors,
        "samples_per_second": {name: round(rate, 2) for name, rate in rates.items()},
        "attention": kernels,
        "speedup": {name: round(speedups[name], 3) for name in losses if name not in ("packed pass", "next tokens")},
        "flops_over_next_tokens": {d: round(ratios[0], 4) for d, ratios in over_next_tokens.items()},
        "time_over_next_tokens": {d: round(ratios[1], 4) for d, ratios in over_next_tokens.items()},
    }
    print(json.dumps(figures))


def variants(model: LLMJEPA, config: LanguageTrainConfig, length: int) -> dict[str, Loss]:
    """The loss of a batch of pairs, by each way to compute it."""
    stage = config.stage
    objective = Objective(config.objective).to(model.device)
    layout = objective.layout(model, stage)

    def packed(pairs: Sequence[ChatIds], targets: Sequence[ChatIds] | None) -> Tensor:
        rows = pack(pairs, layout, targets)
        return objective(model, None, PairBatch(type(rows)(*(x.to(model.device) for x in rows)), None))["loss"]

    return {
        "padded rows": lambda pairs: three_rows(model, pairs, length),
        "trimmed rows": lambda pairs: three_rows(model, pairs),
        "masked rows": lambda pairs: two_rows(model, pairs),
        "packed pass": lambda pairs: packed(pairs, pairs),
        "next tokens": lambda pairs: packed(pairs, None),
    }


def three_rows(model: LLMJEPA, pairs: Sequence[ChatIds], length: int | None = None) -> Tensor:
    """Next tokens + (1 − cos) from three rows a pair, padded on the right to `length` or the longest."""
    texts = [[*pair.prompt, *model.predictor_ids] for pair in pairs]
    rows = [*_conversations(pairs), *texts, *(pair.code for pair in pairs)]
    ids = _padded(rows, model.tokenizer.pad_id, length).to(model.device)
    lengths = torch.tensor([len(row) for row in rows], device=model.device)
    mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
    base = model.language.lm.get_decoder()
    states = base(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state
    last = states[torch.arange(len(rows), device=model.device), lengths - 1]
    _, predictions, targets = last.chunk(3)
    return _loss(model, pairs, states[: len(pairs)], predictions, targets)


def two_rows(model: LLMJEPA, pairs: Sequence[ChatIds]) -> Tensor:
    """Next tokens + (1 − cos) from two rows a pair, padded to the longest, under an additive mask.

    The second row is the text view with its [PRED] tokens and then the code view, which does not see them and starts
    at position 0.
    """
    texts = [[*pair.prompt, *model.predictor_ids] for pair in pairs]
    views = [[*text, *pair.code] for text, pair in zip(texts, pairs, strict=True)]
    rows = [*_conversations(pairs), *views]
    ids = _padded(rows, model.tokenizer.pad_id).to(model.device)
    order = torch.arange(ids.shape[1], device=model.device)
    starts = torch.tensor([ids.shape[1]] * len(pairs) + [len(t) for t in texts], device=model.device)[:, None]
    second = order >= starts  # the code view
    see = (second[:, None] == second[:, :, None]) & (order[:, None] >= order)
    kind = torch.get_autocast_dtype(ids.device.type) if torch.is_autocast_enabled(ids.device.type) else torch.float32
    mask = torch.zeros(see.shape, dtype=kind, device=ids.device).masked_fill(~see, torch.finfo(kind).min)[:, None]
    positions = torch.where(second, order - starts, order)
    base = model.language.lm.get_decoder()
    states = base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).last_hidden_state
    number = torch.arange(len(pairs), device=model.device)
    ends = torch.tensor([len(row) for row in views], device=model.device)
    predictions, targets = (states[len(pairs) + number, at - 1] for at in (starts[len(pairs) :, 0], ends))
    return _loss(model, pairs, states[: len(pairs)], predictions, targets)


def _conversations(pairs: Sequence[ChatIds]) -> list[list[int]]:
    return [[*pair.prompt, *pair.completion] for pair in pairs]


def _padded(rows: Sequence[Sequence[int]], fill: int, length: int | None = None) -> Tensor:
    width = length or max(map(len, rows))
    return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows])


def _loss(model: LLMJEPA, pairs: Sequence[ChatIds], states: Tensor, predictions: Tensor, targets: Tensor) -> Tensor:
    """A state (of `states` (B, L, D), the conversations) is trained on the next token where that is the answer's."""
    rows = [[IGNORE] * (len(p.prompt) + p.opening - 1) + p.completion[p.opening :] for p in pairs]
    labels = _padded(rows, IGNORE, states.shape[1]).to(model.device)
    trained = labels != IGNORE
    next_tokens = F.cross_entropy(model.language.logits(states[trained]), labels[trained])
    return next_tokens + 1 - F.cosine_similarity(predictions.float(), targets.float()).mean()


def check_agreement(model: LLMJEPA, losses: dict[str, Loss], pairs: Sequence[ChatIds]) -> None:
    """Every loss with a latent term, and every gradient of it, is the first one's, within float32."""
    first: list[Tensor] = []
    for kind in ("eager", "sdpa"):
        model.language.set_attention(kind)
        for name, loss in losses.items():
            if name == "next tokens":
                continue
            model.zero_grad()
            value = loss(pairs)
            value.backward()
            found = [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
            first = first or found
            for ours, theirs in zip(found, first, strict=True):
                scale = float(theirs.abs().max())
                if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale):
                    error = float((ours - theirs).abs().max())
                    raise AssertionError(f"{name}, {kind}: loss or gradient differs by {error:.2g} of {scale:.2g}")
    model.zero_grad()


def step_seconds(
    model: LLMJEPA, losses: dict[str, Loss], batches: Sequence[Sequence[ChatIds]], autocast: bool
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds of a step of each variant with its faster attention, and which that is.

    Variants take turns; the first batch warms up.
    """
    device = model.device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step(loss: Loss, batch: Sequence[ChatIds]) -> float:
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=autocast):
            value = loss(batch)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - started

    times: dict[str, dict[str, list[float]]] = {name: {"eager": [], "fused": []} for name in losses}
    for number, batch in enumerate(tqdm(batches, desc="batches")):
        for name, loss in losses.items():
            for kernel, measured in times[name].items():
                model.language.set_attention("sdpa" if kernel == "fused" else kernel)
                elapsed = step(loss, batch)
                if number:
                    measured.append(elapsed)
    medians = {name: {k: statistics.median(s) for k, s in kernels.items()} for name, kernels in times.items()}
    fastest = {name: min(kernels, key=lambda k: kernels[k]) for name, kernels in medians.items()}
    return {name: medians[name][kernel] for name, kernel in fastest.items()}, fastest


def step_flops(model: LLMJEPA, loss: Loss, batches: Sequence[Sequence[ChatIds]]) -> float:
    """Mean operations of a step, forward and backward, with eager attention."""
    model.language.set_attention("eager")

    def run() -> None:
        for batch in batches:
            loss(batch).backward()

    total = count_flops(run).total
    model.zero_grad()
    return total / len(batches)


def with_dropout(costs: dict[str, float], dropout: float) -> float:
    """Mean cost of a packed step over that of next tokens alone, where a fraction `dropout` of the steps is
    just that.
    """
    return dropout + (1 - dropout) * costs["packed pass"] / costs["next tokens"]


if __name__ == "__main__":
    main()
