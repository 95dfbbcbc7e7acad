"""Zero-shot tasks on any manifest: all but captioning choose the nearest embedding (VL-JEPA, arXiv 2512.10942, 3.2).

The samples are split over the processes that torchrun started, each sample to one of them; what they find is joined in
the order of the samples, and scored once.

n samples of this process, N of all; C clips of a sample, F frames a clip, S pixels a side, E embedding dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchmetrics.functional.classification import multiclass_accuracy
from tqdm import tqdm

from jepa import checkpoint
from jepa.config import build, validate_task
from jepa.data.manifests import Kind, Sample, WorldPredictionSample, read_manifest
from jepa.data.media import read_clip
from jepa.data.world_tasks import world_samples
from jepa.errors import InputError
from jepa.evaluation.record import announce, code_version, describe_device, device_of, library_versions
from jepa.evaluation.tasks import answer_flops, caption_scores, cost_line, embedding_flops
from jepa.metrics import cider_d, retrieval_ranks, retrieval_scores
from jepa.metrics.answers import proportion_interval
from jepa.metrics.per_token import choice_costs
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import similarity_flops

TASK = "jepa.task/2"  # the format of the record
_KINDS: dict[str, Kind] = {  # of a manifest's samples, by task
    "classification": "class",
    "retrieval": "caption",
    "vqa": "question",
    "captioning": "caption",
    "world_prediction": "world_prediction",
}
T = TypeVar("T")


@torch.no_grad()
def evaluate_task(folder: Path, output: Path, config: Mapping[str, Any]) -> Path:
    """Scores the checkpoint `folder` on the `task` of a validated `EvaluateConfig`; writes and returns `output`.

    It holds `evaluation.json` with the scores, and `predictions.jsonl` with a line for each sample.

    Raises:
        InputError: a task that breaks its schema, a manifest without samples of its kind or that cannot be read, or
            fewer samples than processes.
    """
    settings = validate_task(config["task"])
    kind, trained = settings["kind"], checkpoint.read_config(folder)
    with _processes() as (rank, world_size):
        device = device_of(config["accelerator"])
        model = checkpoint.load(folder).to(device)
        samples = _samples(settings, trained, model.frames, config["candidates"], config["seed"])
        if len(samples) < world_size:
            raise InputError(f"a task must have a sample for each of {world_size} processes, got {len(samples)}")
        task = _Task(model, settings, samples, config["batch_size"], rank, world_size)
        scores, lines = _TASKS[kind](task)
        if rank:
            return output
        record = {
            "format": TASK,
            "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "checkpoint": os.path.relpath(folder.resolve(), output.resolve()),
            "name": trained["name"],
            "seed": trained["seed"],
            "task": kind,
            "config": {"train": trained, "evaluate": {**config, "task": settings}},
            "data": settings["manifest"] or "embedded",
            "samples": len(samples),
            "processes": world_size,
            "code": code_version(),
            "libraries": library_versions(),
            "device": describe_device(device),
            "parameters": model.parameters_by_role(),
            "scores": scores,
        }
        output.mkdir(parents=True, exist_ok=True)
        text = "".join(
            json.dumps({"id": sample.id, **line}, ensure_ascii=False) + "\n"
            for sample, line in zip(samples, lines, strict=True)
        )
        (output / "predictions.jsonl").write_text(text, encoding="utf-8")
        (output / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    heading = f"{kind}, {record['data']} data, {len(samples)} samples"
    announce("\n".join([heading, *_table(scores)]), {"evaluation": output})
    return output


@dataclass(frozen=True)
class _Task:
    """What a task works with: all `samples`, of which this process reads `own`."""

    model: VLJEPA
    settings: dict[str, Any]
    samples: Sequence[Any]  # all of one kind
    batch_size: int
    rank: int
    world_size: int

    @property
    def own(self) -> range:
        """The samples of this process: equal parts, but for the remainder, in order and without an overlap."""
        ends = [len(self.samples) * part // self.world_size for part in range(self.world_size + 1)]
        return range(ends[self.rank], ends[self.rank + 1])

    def predict(self, queries: Sequence[Sequence[str]]) -> Tensor:
        """Predicted embeddings of every clip of every sample: each process runs its own, all get all, on the CPU.

        Args:
            queries: for each of N samples one query a clip.

        Returns:
            (clips of all samples, E) float32, in order.
        """
        reader = _Clips([self.samples[i] for i in self.own], self.model, self.settings["fps"])
        batches = DataLoader(reader, self.batch_size, num_workers=self.settings["workers"], collate_fn=list)
        rows, asked = [], iter([query for i in self.own for query in queries[i]])
        for batch in tqdm(batches, desc="clips", unit="batch", leave=False, disable=self.rank > 0):
            for clips in torch.cat(batch).split(self.batch_size):
                states = self.model.encode(clips)
                rows.append(self.model.predict(states, [next(asked) for _ in clips]).float().cpu())
        return torch.cat(self.gather(torch.cat(rows)))

    def decode(self, predictions: Tensor) -> list[Any]:
        """The decoded texts of N predictions, one a sample, each process decoding its own."""
        own = predictions[self.own.start : self.own.stop]
        decoded = chain.from_iterable(map(self.model.decode, own.split(self.batch_size)))
        return list(chain.from_iterable(self.gather(list(decoded))))

    def gather(self, found: T) -> list[T]:
        """What each process found, in order."""
        if self.world_size == 1:
            return [found]
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, found)
        return parts


class _Clips(Dataset[Tensor]):
    """The clips (C, F, S, S, 3) uint8 of each sample; of a world prediction the two states as one clip come first."""

    def __init__(self, samples: Sequence[Sample], model: VLJEPA, fps: float | None) -> None:
        self.samples, self.frames, self.size, self.fps = samples, model.frames, model.x_encoder.size, fps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor:
        sample = self.samples[index]
        if not isinstance(sample, WorldPredictionSample):
            return torch.from_numpy(read_clip(sample.media, self.frames, self.size, self.fps))[None]
        half = self.frames // 2
        states = [read_clip(sample.before, half, self.size), read_clip(sample.after, self.frames - half, self.size)]
        candidates = [read_clip(media, self.frames, self.size, self.fps) for media in sample.candidates]
        clips = [torch.cat([torch.from_numpy(state) for state in states]), *map(torch.from_numpy, candidates)]
        return torch.stack(clips)


Found = tuple[dict[str, Any], list[dict[str, Any]]]  # scores, and a line for each sample


def _classification(task: _Task) -> Found:
    """The nearest label; of a label's prompts the mean embedding counts (CLIP, arXiv 2103.00020, 3.1.4).

    All samples share the embedded prompts.
    """
    settings, samples = task.settings, task.samples
    labels = sorted({sample.label for sample in samples})
    prompts = [template.replace("{label}", label) for label in labels for template in settings["templates"]]
    embedded = task.model.embed_all(prompts).reshape(len(labels), len(settings["templates"]), -1)
    predictions = task.predict([[settings["query"]]] * len(samples))
    cosines = predictions @ F.normalize(embedded.mean(1), dim=-1).T
    right = torch.tensor([labels.index(sample.label) for sample in samples])
    ks = [k for k in settings["top"] if k <= len(labels)]
    nearest = cosines.topk(max([1, *ks]), sorted=True)
    width = predictions.shape[1]
    flops = answer_flops(task.model, settings["query"], len(labels), width)
    shared = embedding_flops(task.model, prompts) / len(samples)
    scores: dict[str, Any] = {"classes": len(labels)}
    for k in ks:
        value = float(multiclass_accuracy(cosines, right, len(labels), average="micro", top_k=k))
        cost = choice_costs(value, flops + shared)
        scores[f"top-{k}"] = {"value": value, "chance": k / len(labels), "cost": cost}
    lines = [
        {
            "label": sample.label,
            "prediction": labels[chosen[0]],
            "nearest": {labels[c]: cosine for c, cosine in zip(chosen, values, strict=True)},
        }
        for sample, chosen, values in zip(samples, nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    ]
    return scores, lines


def _retrieval(task: _Task) -> Found:
    """Clips, each predicted under one query, against the captions of all, both ways.

    The clips share the embedded captions, and the captions the predicted clips.
    """
    samples, query = task.samples, task.settings["query"]
    texts = [text for sample in samples for text in sample.captions]
    embedded, clip_ids = task.model.embed_all(texts), torch.arange(len(samples))  # first: it refuses texts too long
    predictions = task.predict([[query]] * len(samples))
    text_ids = clip_ids.repeat_interleave(torch.tensor([len(sample.captions) for sample in samples]))
    found = retrieval_scores(predictions, clip_ids, embedded, text_ids, task.settings["ks"])
    clips = len(samples) * (task.model.clip_flops() + task.model.query_flops(query))
    spent = clips + embedding_flops(task.model, texts) + similarity_flops(len(samples), *embedded.shape)
    scores: dict[str, Any] = {}
    for direction, each in found.items():
        scores[direction] = {"queries": each["queries"], "candidates": each["candidates"]}
        for name, chance in each["chance"].items():
            scores[direction][name] = {"value": each[name], "chance": chance}
            if name.startswith("r@"):
                scores[direction][name]["cost"] = choice_costs(each[name], spent / each["queries"])
    ranks = retrieval_ranks(predictions, embedded, clip_ids, text_ids).expected().tolist()
    nearest = [int((part @ embedded.T).argmax()) for part in predictions]
    lines = [
        {"captions": list(sample.captions), "nearest": texts[chosen], "rank": rank}
        for sample, chosen, rank in zip(samples, nearest, ranks, strict=True)
    ]
    return scores, lines


def _vqa(task: _Task) -> Found:
    """The nearest candidate; where a question has none of its own, all answers of the manifest are candidates.

    All samples share the embedded candidates, each text once.
    """
    settings, samples = task.settings, task.samples
    answers = tuple(dict.fromkeys(sample.answer for sample in samples))
    offered = [sample.candidates or answers for sample in samples]
    texts = list(dict.fromkeys(chain.from_iterable(offered)))
    row = {text: number for number, text in enumerate(texts)}
    prompts = [settings["candidate"].replace("{candidate}", text) for text in texts]
    embedded = task.model.embed_all(prompts)
    asked = [settings["prompt"].replace("{question}", sample.question) for sample in samples]
    predictions = task.predict([[query] for query in asked])
    rightful = [{sample.answer, *sample.alternatives} for sample in samples]
    chosen = [
        candidates[int((embedded[[row[text] for text in candidates]] @ prediction).argmax())]
        for candidates, prediction in zip(offered, predictions, strict=True)
    ]
    right = [text in good for text, good in zip(chosen, rightful, strict=True)]
    chances = [
        sum(text in good for text in candidates) / len(candidates)
        for candidates, good in zip(offered, rightful, strict=True)
    ]
    lines = [
        {"question": sample.question, "answer": sample.answer, "prediction": text, "right": hit}
        for sample, text, hit in zip(samples, chosen, right, strict=True)
    ]
    width = predictions.shape[1]
    each = [answer_flops(task.model, q, len(among), width) for q, among in zip(asked, offered, strict=True)]
    return {"accuracy": _accuracy(right, chances, sum(each) + embedding_flops(task.model, prompts))}, lines


def _captioning(task: _Task) -> Found:
    """Decoded captions against all references; chance is what the caption of another clip scores."""
    samples, query = task.samples, task.settings["query"]
    predictions = task.predict([[query]] * len(samples))
    decoded = task.decode(predictions)
    references = [list(sample.captions) for sample in samples]
    texts = [each.text for each in decoded]
    before = task.model.clip_flops() + task.model.query_flops(query)
    scores = caption_scores(decoded, references, before)
    others = float(cider_d([*texts[1:], texts[0]], references).mean())
    lines = [
        {"captions": refs, "prediction": each.text, "tokens": each.tokens, "flops": before + each.flops}
        for refs, each in zip(references, decoded, strict=True)
    ]
    return {**scores, "cider_d": {"value": scores["cider_d"], "chance": others}}, lines


def _world_prediction(task: _Task) -> Found:
    """The candidate clip nearest to the clip of the two states (VL-JEPA's protocol for WorldPrediction-WM).

    Every sample has candidates of its own, which are encoded and predicted as it is.
    """
    settings, samples = task.settings, task.samples
    if task.model.frames < 2:
        raise InputError(
            "world_prediction needs a model whose clips have at least 2 frames, got 1: two states, one clip"
        )
    counts = [len(sample.candidates) for sample in samples]
    rows = task.predict([[settings["query"], *[settings["action_query"]] * count] for count in counts])
    parts = rows.split([1 + count for count in counts])
    chosen = [int((part[1:] @ part[0]).argmax()) for part in parts]
    right = [choice == sample.answer for choice, sample in zip(chosen, samples, strict=True)]
    lines = [
        {"answer": sample.answer, "prediction": choice, "right": hit, "cosines": (part[1:] @ part[0]).tolist()}
        for sample, choice, hit, part in zip(samples, chosen, right, parts, strict=True)
    ]
    width, query, asked = rows.shape[1], settings["query"], settings["action_query"]
    flops = sum(answer_flops(task.model, query, count, width) for count in counts)
    flops += sum(counts) * (task.model.clip_flops() + task.model.query_flops(asked))
    return {"accuracy": _accuracy(right, [1 / count for count in counts], flops)}, lines


_TASKS: dict[str, Callable[[_Task], Found]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "vqa": _vqa,
    "captioning": _captioning,
    "world_prediction": _world_prediction,
}


def _accuracy(right: Sequence[bool], chances: Sequence[float], flops: int) -> dict[str, Any]:
    """The share right with its interval, chance level and cost; `flops`: of all answers."""
    interval = proportion_interval(sum(right), len(right))
    return {
        "value": sum(right) / len(right),
        "interval": [interval.low, interval.high],
        "chance": sum(chances) / len(chances),
        "cost": choice_costs(sum(right) / len(right), flops / len(right)),
    }


def _samples(
    settings: Mapping[str, Any], trained: Mapping[str, Any], frames: int, candidates: int, seed: int
) -> list[Sample]:
    kind = _KINDS[settings["kind"]]
    if settings["manifest"] is None:
        return world_samples(build(trained["world"]), kind, candidates, frames, seed)
    samples = read_manifest(Path(settings["manifest"]), [kind])
    return samples[: settings["limit"] or None]


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """This process's rank and the number of processes; joins those of torchrun, each on a GPU of its own."""
    joins = dist.is_torchelastic_launched() and not dist.is_initialized()
    if joins:
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("gloo")  # what is gathered lies on the CPU
    try:
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    finally:
        if joins:
            dist.destroy_process_group()


def _table(scores: Mapping[str, Any], prefix: str = "") -> list[str]:
    """A line a score, with its interval and its chance level, and a line a cost; no lists."""
    lines = []
    for name, score in scores.items():
        if isinstance(score, list):
            continue
        if name == "cost":
            lines.append(f"{prefix + name:32} {cost_line(score)}")
        elif not isinstance(score, dict):
            value = "none" if score is None else f"{score:.4g}"
            lines.append(f"{prefix + name:32} {value:>9}")
        elif "value" in score:
            low, high = score.get("interval", (None, None))
            interval = "" if low is None else f"  ({low:.3f} to {high:.3f})"
            lines.append(f"{prefix + name:32} {score['value']:9.3f}{interval}   chance {score['chance']:.3f}")
            if "cost" in score:
                lines.append(f"{'':32} {cost_line(score['cost'])}")
        else:
            lines += _table(score, f"{name} ")
    return lines
