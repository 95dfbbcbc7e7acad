"""`evaluate` of an LLM-JEPA: answers judged by the metrics of the config, and what the latents look like."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build_as
from jepa.config import AnswersConfig
from jepa.data.chat import ChatIds
from jepa.data.packing import IGNORE, pack, target_numbers
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.evaluation.judging import check_answers, scorer_options
from jepa.evaluation.record import ANSWERS, code_version, describe_device, device_of, library_versions
from jepa.metrics.answers import METRICS, judge, multiple_choice, proportion_interval
from jepa.metrics.latents import (
    LatentGeometry,
    collapse_message,
    paraphrase,
    recall_at_false_fraction,
    ridge_r2,
)
from jepa.metrics.per_token import answer_costs, choice_costs
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import TRAINING_PARTS, OperationLedger, PartCount
from jepa.selective import Decoded

_ROW_TOKENS = 64


@torch.no_grad()
def evaluate_answers(
    folder: Path, output: Path, answers: AnswersConfig, accelerator: str, splits: ExampleSplits | None = None
) -> Path:
    """Answers the requests of a split, judges them, and writes the folder `output`.

    `evaluation.json` has the scores, `predictions.jsonl` a line for each pair, `latents.safetensors` the predicted and
    target embeddings (N, E). Without `splits` the data are those that the checkpoint was trained on. Scores
    of generated answers have their `cost`: see `jepa.metrics.per_token.answer_costs`.
    """
    trained, device = checkpoint.read_config(folder), device_of(accelerator)
    splits = splits or build_as(ExampleSplits, "data", trained["data"])
    model = load_language_model(folder, device)
    pairs = getattr(splits, answers.split)
    pairs = pairs[: answers.limit] if answers.limit else pairs
    output.mkdir(parents=True, exist_ok=True)

    training = _training(folder)
    check_answers(answers, splits)
    predictions, targets, ids = embeddings(model, pairs, answers.batch_size, trained["objective"])
    started = time.perf_counter()
    decoded: list[Decoded] = []
    choosing = 0.0
    if "multiple_choice" in answers.metrics:
        texts, verdicts, choosing = _choose(model, pairs, answers)
        tokens = 0
    else:
        decoded = generate(model, pairs, answers.batch_size)
        texts, tokens = [d.text for d in decoded], sum(d.tokens for d in decoded)
        verdicts = _verdicts(texts, pairs, answers)
    seconds = time.perf_counter() - started
    longest = longest_answer(model.tokenizer.encode(pairs))
    costs = {
        name: _answer_costs(right, decoded, longest) if decoded else choice_costs(sum(right) / len(right), choosing)
        for name, right in verdicts.items()
    }
    spoken: list[str] = []
    if model.y_decoder is not None and "multiple_choice" not in verdicts:
        said = [d for part in predictions.split(answers.batch_size) for d in model.decode(part)]
        spoken = [d.text for d in said]
        heard = _verdicts(spoken, pairs, answers)
        verdicts |= {f"{name} from the embedding": right for name, right in heard.items()}
        before = _predicting_flops(model, pairs, answers.batch_size) / len(pairs)
        costs |= {f"{name} from the embedding": _answer_costs(heard[name], said, longest, before) for name in heard}
    lines = [
        {
            "source": pair.source,
            "request": pair.prompt,
            "gold": pair.completion,
            "prediction": text,
            **({"prediction from the embedding": spoken[i]} if spoken else {}),
            **{name: right[i] for name, right in verdicts.items()},
        }
        for i, (pair, text) in enumerate(zip(pairs, texts, strict=True))
    ]
    (output / "predictions.jsonl").write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    save_file({"predictions": predictions, "targets": targets}, output / "latents.safetensors")
    record = {
        "format": ANSWERS,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "checkpoint": os.path.relpath(folder.resolve(), output.resolve()),
        "name": trained["name"],
        "arm": trained["arm"],
        "seed": trained["seed"],
        "config": trained,
        "code": code_version(),
        "libraries": library_versions(),
        "device": describe_device(device),
        "parameters": model.parameters_by_role(),
        "training": training,
        "split": answers.split,
        "pairs": len(pairs),
        "scores": {
            name: _score(right) | ({"cost": costs[name]} if name in costs else {}) for name, right in verdicts.items()
        },
        "generation": {"seconds": seconds, "tokens": tokens},
        "geometry": geometry(predictions, targets, ids, pairs, answers),
    }
    (output / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    for line in _summary(record):
        print(line)
    print(f"evaluation: {output}", flush=True)
    return output


def load_language_model(folder: Path, device: str) -> LLMJEPA:
    """The model of a checkpoint. Raises `InputError` if it is none of an LLM-JEPA."""
    model = checkpoint.load(folder)
    if not isinstance(model, LLMJEPA):
        raise InputError(f"{folder} must be a checkpoint of an LLM-JEPA, got {type(model).__name__}")
    return model.to(device)


def embeddings(
    model: LLMJEPA, pairs: Sequence[Example], batch_size: int, objective: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and target embeddings (N, E), L2-normalised, and numbers (N,) equal for equal targets.

    They are of the `direction` and `view` of the objective that the model was trained with. Where it has no term that
    trains the [PRED] tokens, the prediction is the last state of view 1, as with none of them.
    """
    layout = model.layout(row_tokens=_ROW_TOKENS, direction=objective["direction"], view=objective["view"])
    if objective["weight"] == 0 or objective["latent"] == "tube":
        layout = replace(layout, predictors=())
    encoded = model.tokenizer.encode(pairs)
    ids = target_numbers(encoded, layout)
    predictions, targets = [], []
    for start in _progress(len(pairs), batch_size, "latents"):
        part = encoded[start : start + batch_size]
        rows = pack(part, layout, part, ids[start : start + batch_size])
        rows = rows._replace(labels=torch.full_like(rows.labels, IGNORE))  # no logits are wanted
        out = model(type(rows)(*(field.to(model.device) for field in rows)))
        predictions.append(F.normalize(out.predictions.float(), dim=-1).cpu())
        targets.append(F.normalize(out.targets.float(), dim=-1).cpu())
    return torch.cat(predictions), torch.cat(targets), torch.tensor(ids)


def generate(model: LLMJEPA, pairs: Sequence[Example], batch_size: int) -> list[Any]:
    """The model's own answers, in batches of similar length, each as long as the longest gold answer may need."""
    encoded = model.tokenizer.encode(pairs)
    longest = longest_answer(encoded)
    order = sorted(range(len(pairs)), key=lambda i: len(encoded[i].given))
    decoded: list[Any] = [None] * len(pairs)
    for start in _progress(len(pairs), batch_size, "answers"):
        chosen = order[start : start + batch_size]
        for i, answer in zip(chosen, model.continuations([encoded[i].given for i in chosen], longest), strict=True):
            decoded[i] = answer
    return decoded


def _answer_costs(
    right: Sequence[bool], decoded: Sequence[Decoded], longest: int, before: float = 0.0
) -> dict[str, Any]:
    """`answer_costs` of N generated answers.

    Tokens are those of the checkpoint's tokenizer, the end token included. FLOPs are those of each request answered
    alone, its prompt included; `before` is what an answer took on average before its decoder.
    """
    tokens, flops = (torch.tensor(each) for each in zip(*((d.tokens, d.flops + before) for d in decoded), strict=True))
    return answer_costs(torch.tensor(list(right)), tokens, flops.double(), longest)


def geometry(
    predictions: Tensor, targets: Tensor, ids: Tensor, pairs: Sequence[Example], judged: AnswersConfig
) -> dict[str, Any]:
    """Alignment, spread, rank and retrieval, and what tells two phrasings of one answer from different answers.

    A nearest neighbour among the other phrasings is a right one if its answer would serve: if one of the metrics that
    judge the answers takes it for the request's own.
    """
    if len(ids.unique()) < 2:
        return {"warning": "fewer than 2 distinct targets: nothing to tell apart"}
    measure = LatentGeometry(ks=(1, 10))
    measure.update(predictions, targets, ids)
    found: dict[str, Any] = {name: float(value) for name, value in measure.compute().items()}
    if len(predictions) >= 4 * predictions.shape[1]:  # with fewer rows the fit says little
        found["ridge_r2"] = float(ridge_r2(predictions, targets))
    by_answer: dict[int, dict[str, int]] = {}
    for row, (number, pair) in enumerate(zip(ids.tolist(), pairs, strict=True)):
        by_answer.setdefault(number, {}).setdefault(pair.prompt, row)
    twice = [list(rows.values())[:2] for rows in by_answer.values() if len(rows) > 1]
    if len(twice) >= 100 and set(judged.metrics) - {"spider", "multiple_choice"}:
        first, second = (torch.tensor([rows[i] for rows in twice]) for i in (0, 1))
        cosines, nearest = (predictions[first] @ predictions[second].T).max(1)
        answers, others = ([pairs[int(row)].completion for row in rows] for rows in (first, second[nearest]))
        serves = [
            judge(name, others, answers, **scorer_options(name, judged))
            for name in judged.metrics
            if name in METRICS and name != "spider"
        ]
        right = torch.tensor([any(verdicts) for verdicts in zip(*serves, strict=True)])
        found["paraphrase"] = {
            "pairs": len(twice),
            **{k: float(v) for k, v in paraphrase(predictions[first], predictions[second], ids[first]).items()},
            "recall at 1% false neighbours": float(recall_at_false_fraction(cosines, right)),
        }
    found["warning"] = collapse_message(found)
    return found


def _training(folder: Path) -> dict[str, Any]:
    """The record of the last training of the language model, with the costs of all.

    `operations` are null unless all trainings counted theirs.
    """
    path = folder / "training.json"
    if not path.is_file():
        raise InputError(f"training record not found: {path}")
    stages = json.loads(path.read_text(encoding="utf-8"))["stages"]
    language = [stage for stage in stages if stage["name"] == "llm_jepa"]
    if not language:
        raise InputError(f"{path} must have a stage llm_jepa, got {[stage['name'] for stage in stages]}")
    costs = ("steps", "samples", "tokens", "flops", "seconds")
    sums = {key: sum(stage[key] for stage in language) for key in costs}
    return {**language[-1], **sums, "operations": _operations([stage.get("operations") for stage in language])}


def _operations(stages: Sequence[dict[str, Any] | None]) -> dict[str, Any] | None:
    """The sum of what `TrainingMeter.record` gave for each stage; None if it is missing for one."""
    counted = [stage for stage in stages if stage is not None]
    if len(counted) < len(stages):
        return None
    total = OperationLedger(TRAINING_PARTS)
    for stage in counted:
        for part in TRAINING_PARTS:
            total.add(part, PartCount(**stage["parts"][part]))
    counts = total.to_dict()
    return {"steps": sum(stage["steps"] for stage in counted), "parts": {part: counts[part] for part in TRAINING_PARTS}}


def _verdicts(texts: list[str], pairs: Sequence[Example], answers: AnswersConfig) -> dict[str, list[bool]]:
    verdicts = {}
    for name in answers.metrics:
        golds, requests = [p.completion for p in pairs], [p.prompt for p in pairs]
        verdicts[name] = judge(name, texts, golds, requests, **scorer_options(name, answers))
    return verdicts


def _choose(
    model: LLMJEPA, pairs: Sequence[Example], answers: AnswersConfig
) -> tuple[list[str], dict[str, list[bool]], float]:
    """The likeliest of the choices for each request, by the sum of its tokens' log-likelihoods, its end included.

    Last comes what choosing an answer takes, in FLOPs: a pass over the request and a choice, for each choice.
    """
    choices, flops = answers.choices, 0
    layout = model.layout(row_tokens=_ROW_TOKENS)
    likelihoods = torch.empty(len(pairs), len(choices))
    for start in _progress(len(pairs), answers.batch_size, "choices"):
        for column, choice in enumerate(choices):
            part = [Example(p.prompt, choice, p.system) for p in pairs[start : start + answers.batch_size]]
            encoded = model.tokenizer.encode(part)
            rows = pack(encoded, layout)
            out = model(type(rows)(*(field.to(model.device) for field in rows)))
            scores = -F.cross_entropy(out.logits, out.labels, reduction="none").cpu()
            owner = rows.segments[rows.labels != IGNORE] // 2  # a pair has two segments: its prompt and its answer
            likelihoods[start : start + len(part), column] = torch.zeros(len(part)).index_add(0, owner, scores)
            lengths = [(len(ids.prompt) + len(ids.completion), len(ids.completion) - ids.opening) for ids in encoded]
            flops += sum(model.pass_flops(length, length, logits) for length, logits in lengths)
    right = torch.tensor([choices.index(p.completion.strip()) for p in pairs])
    verdicts = multiple_choice(likelihoods, right).tolist()
    return [choices[int(c)] for c in likelihoods.argmax(1)], {"multiple_choice": verdicts}, flops / len(pairs)


def longest_answer(encoded: Iterable[ChatIds]) -> int:
    """Tokens of the longest gold answer, its end included: most that an answer may have."""
    return max(len(ids.completion) - ids.opening for ids in encoded)


def _predicting_flops(model: LLMJEPA, pairs: Sequence[Example], batch_size: int) -> int:
    """FLOPs of predicting the embeddings of all requests, each alone."""
    ledger = OperationLedger()
    batches = (pairs[start : start + batch_size] for start in _progress(len(pairs), batch_size, "operations"))
    for _ in model.stream(batches, ledger):
        pass
    return ledger.total_flops


def _score(right: list[bool]) -> dict[str, Any]:
    interval = proportion_interval(sum(right), len(right))
    return {"accuracy": sum(right) / len(right), "interval": [interval.low, interval.high]}


def _summary(record: dict[str, Any]) -> list[str]:
    lines = [f"{record['pairs']} pairs of the {record['split']} split"]
    for name, score in record["scores"].items():
        lines.append(f"{name:28} {score['accuracy']:6.3f}   ({score['interval'][0]:.3f} to {score['interval'][1]:.3f})")
        if "cost" in score:
            tokens, flops = (score["cost"][f"{unit}_per_right_answer"] for unit in ("tokens", "flops"))
            cost = "no right answer" if tokens is None else f"{tokens:.4g} tokens, {flops:.3g} FLOPs"
            lines.append(f"{'  per right answer':28} {cost}")
    for name, value in record["geometry"].items():
        if isinstance(value, float):
            lines.append(f"{name:28} {value:6.3f}")
    for name, value in record["geometry"].get("paraphrase", {}).items():
        lines.append(f"{'two phrasings: ' + name:28} {value:6.3f}")
    if record["geometry"]["warning"]:
        lines.append(f"warning: {record['geometry']['warning']}")
    return lines


def _progress(count: int, size: int, what: str) -> Any:
    return tqdm(range(0, count, size), desc=what, unit="batch", leave=False)
