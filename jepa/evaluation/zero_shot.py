"""Zero-shot tasks on any manifest: all but captioning choose the nearest embedding (VL-JEPA, arXiv 2512.10942, 3.2).

The samples are split over the processes that torchrun started, each sample to one of them; what they find is joined in
the order of the samples, and scored once. Candidates that are level with the nearest share its credit, as if one of
them were drawn: a collapsed model scores chance.

n samples of this process, N of all; C clips of a sample, F frames a clip, S pixels a side, E embedding dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import chain
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from jepa import checkpoint
from jepa.config import build, validate_task
from jepa.data.manifests import Kind, Sample, WorldPredictionSample, read_manifest
from jepa.data.media import read_clip
from jepa.data.world_tasks import world_samples
from jepa.errors import InputError
from jepa.evaluation.ranks import Ranks, ranks
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


@torch.no_grad()
def evaluate_task(folder: Path, output: Path, config: Mapping[str, Any]) -> Path:
    """Scores the checkpoint `folder` on the `task` of a validated `EvaluateConfig`; writes and returns `output`.

    It holds `evaluation.json` with the scores, and `predictions.jsonl` with a line for each sample.

    Raises:
        InputError: a task that breaks its schema, a manifest without samples of its kind or that cannot be read, fewer
            samples than processes, or a medium that cannot be read; with the task's `skip_broken`, none that can.
    """
    settings = validate_task(config["task"])
    kind, trained = settings["kind"], checkpoint.read_config(folder)
    with ranks() as all_ranks:
        device = device_of(config["accelerator"])
        model = checkpoint.load(folder).to(device)
        samples = _samples(settings, trained, model.frames, config["candidates"], config["seed"])
        if len(samples) < all_ranks.count:
            raise InputError(f"a task must have a sample for each of {all_ranks.count} processes, got {len(samples)}")
        task = _Task(model, settings, samples, config["batch_size"], all_ranks)
        scores, lines = _TASKS[kind](task)
        if all_ranks.rank:
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
            "samples": len(lines),
            "skipped": task.skipped,
            "processes": all_ranks.count,
            "code": code_version(),
            "libraries": library_versions(),
            "device": describe_device(device),
            "parameters": model.parameters_by_role(),
            "scores": scores,
        }
        output.mkdir(parents=True, exist_ok=True)
        text = "".join(
            json.dumps({"id": sample.id, **line}, ensure_ascii=False) + "\n"
            for sample, line in zip(task.kept, lines, strict=True)
        )
        (output / "predictions.jsonl").write_text(text, encoding="utf-8")
        (output / "evaluation.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    heading = f"{kind}, {record['data']} data, {len(lines)} samples"
    skipped = [f"skipped {len(task.skipped)} of {len(samples)} samples:", *task.skipped] if task.skipped else []
    announce("\n".join([heading, *_table(scores), *skipped]), {"evaluation": output})
    return output


@dataclass
class _Task:
    """What a task works with: all `samples`, of which this process reads its fraction.

    After `predict`, `kept` are the samples that were read, in order, and `skipped` says what was wrong with the others.
    """

    model: VLJEPA
    settings: dict[str, Any]
    samples: Sequence[Any]  # all of one kind
    batch_size: int
    ranks: Ranks = field(default_factory=Ranks)
    kept: list[Any] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def predict(self, queries: Sequence[Sequence[str]]) -> Tensor:
        """Predicted embeddings of every clip of every kept sample: each process runs its own, all get all, on the CPU.

        Args:
            queries: for each of N samples one query a clip.

        Returns:
            (clips of the kept samples, E) float32, in order.

        Raises:
            InputError: a sample cannot be read, unless the settings say `skip_broken`; or none can.
        """
        own = range(len(self.samples))[self.ranks.share(len(self.samples))]
        reader = _Clips([self.samples[i] for i in own], self.model, self.settings["fps"])
        batches = DataLoader(reader, self.batch_size, num_workers=self.settings["workers"], collate_fn=list)
        rows, kept, broken, asked = list[Tensor](), list[int](), list[str](), list[str]()
        numbers = iter(own)
        for batch in tqdm(batches, desc="clips", unit="batch", leave=False, disable=self.ranks.rank > 0):
            read = list[Tensor]()
            for clips in batch:
                number = next(numbers)
                if isinstance(clips, Tensor):
                    read.append(clips)
                    kept.append(number)
                    asked += queries[number]
                elif self.settings["skip_broken"]:
                    broken.append(f"{self.samples[number].id}: {clips}")
                else:
                    raise clips
            for clips in torch.cat(read).split(self.batch_size) if read else ():
                states = self.model.encode(clips)
                rows.append(self.model.predict(states, asked[: len(clips)]).float().cpu())
                del asked[: len(clips)]
        found = self.ranks.gather((rows, kept, broken))
        self.kept = [self.samples[number] for _, numbers, _ in found for number in numbers]
        self.skipped = [message for _, _, messages in found for message in messages]
        if not self.kept:
            raise InputError(f"none of {len(self.samples)} samples can be read, the first: {self.skipped[0]}")
        return torch.cat([part for parts, _, _ in found for part in parts])

    def decode(self, predictions: Tensor) -> list[Any]:
        """The decoded texts of N predictions, each process decoding its fraction."""
        own = predictions[self.ranks.share(len(predictions))]
        parts = own.split(self.batch_size) if len(own) else ()
        decoded = chain.from_iterable(map(self.model.decode, parts))
        return list(chain.from_iterable(self.ranks.gather(list(decoded))))


class _Clips(Dataset["Tensor | InputError"]):
    """The clips (C, F, S, S, 3) uint8 of each sample; of a world prediction the two states as one clip come first.

    An error is handed over as it is: raised in a worker, it would come wrapped into its traceback.
    """

    def __init__(self, samples: Sequence[Sample], model: VLJEPA, fps: float | None) -> None:
        self.samples, self.frames, self.size, self.fps = samples, model.frames, model.x_encoder.size, fps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor | InputError:
        try:
            return self._read(self.samples[index])
        except InputError as error:
            return error

    def _read(self, sample: Sample) -> Tensor:
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
    means = F.normalize(embedded.mean(1), dim=-1)
    right = torch.tensor([labels.index(sample.label) for sample in task.kept])
    ks = [k for k in settings["top"] if k <= len(labels)]
    ranks = retrieval_ranks(predictions, means, right, torch.arange(len(labels)))
    nearest = (predictions @ means.T).topk(max([1, *ks]), sorted=True)
    flops = answer_flops(task.model, settings["query"], len(labels), predictions.shape[1])
    shared = embedding_flops(task.model, prompts) / len(task.kept)
    scores: dict[str, Any] = {"classes": len(labels)}
    for k in ks:
        value = float(ranks.recall(k).mean())
        cost = choice_costs(value, flops + shared)
        scores[f"top-{k}"] = {"value": value, "chance": k / len(labels), "cost": cost}
    lines = [
        {
            "label": sample.label,
            "prediction": labels[chosen[0]],
            "nearest": {labels[c]: cosine for c, cosine in zip(chosen, values, strict=True)},
        }
        for sample, chosen, values in zip(task.kept, nearest.indices.tolist(), nearest.values.tolist(), strict=True)
    ]
    return scores, lines


def _retrieval(task: _Task) -> Found:
    """Clips, each predicted under one query, against the captions of all, both ways.

    The clips share the embedded captions, and the captions the predicted clips.
    """
    query, captions = task.settings["query"], [(each.id, text) for each in task.samples for text in each.captions]
    embedded = task.model.embed_all([text for _, text in captions])  # first: it refuses texts too long
    predictions = task.predict([[query]] * len(task.samples))
    samples, kept = task.kept, {sample.id for sample in task.kept}
    rows = [row for row, (name, _) in enumerate(captions) if name in kept]
    texts, embedded, clip_ids = [captions[row][1] for row in rows], embedded[rows], torch.arange(len(samples))
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
    texts = list(dict.fromkeys(chain.from_iterable(sample.candidates or answers for sample in samples)))
    row = {text: number for number, text in enumerate(texts)}
    prompts = [settings["candidate"].replace("{candidate}", text) for text in texts]
    embedded = task.model.embed_all(prompts)
    predictions = task.predict([[settings["prompt"].replace("{question}", sample.question)] for sample in samples])
    credits, chances, lines = list[float](), list[float](), list[dict[str, Any]]()
    flops = embedding_flops(task.model, prompts)
    for sample, prediction in zip(task.kept, predictions, strict=True):
        candidates = sample.candidates or answers
        rows = embedded[[row[text] for text in candidates]]
        right = [text in (sample.answer, *sample.alternatives) for text in candidates]
        credits.append(_credit(prediction, rows, right))
        chances.append(sum(right) / len(right))
        query = settings["prompt"].replace("{question}", sample.question)
        flops += answer_flops(task.model, query, len(candidates), len(prediction))
        chosen = candidates[int((rows @ prediction).argmax())]
        asked = {"question": sample.question, "answer": sample.answer}
        lines.append({**asked, "prediction": chosen, "right": credits[-1]})
    return {"accuracy": _accuracy(credits, chances, flops)}, lines


def _captioning(task: _Task) -> Found:
    """Decoded captions against all references; chance is what the caption of another clip scores."""
    query = task.settings["query"]
    predictions = task.predict([[query]] * len(task.samples))
    decoded = task.decode(predictions)
    references = [list(sample.captions) for sample in task.kept]
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
    if task.model.frames < 2:
        raise InputError(
            "world_prediction needs a model whose clips have at least 2 frames, got 1: two states, one clip"
        )
    query, asked = task.settings["query"], task.settings["action_query"]
    rows = task.predict([[query, *[asked] * len(sample.candidates)] for sample in task.samples])
    counts = [len(sample.candidates) for sample in task.kept]
    credits, lines = list[float](), list[dict[str, Any]]()
    for sample, part in zip(task.kept, rows.split([1 + count for count in counts]), strict=True):
        credits.append(_credit(part[0], part[1:], [i == sample.answer for i in range(len(sample.candidates))]))
        cosines = part[1:] @ part[0]
        found = {"prediction": int(cosines.argmax()), "right": credits[-1], "cosines": cosines.tolist()}
        lines.append({"answer": sample.answer, **found})
    flops = sum(answer_flops(task.model, query, count, rows.shape[1]) for count in counts)
    flops += sum(counts) * (task.model.clip_flops() + task.model.query_flops(asked))
    return {"accuracy": _accuracy(credits, [1 / count for count in counts], flops)}, lines


_TASKS: dict[str, Callable[[_Task], Found]] = {
    "classification": _classification,
    "retrieval": _retrieval,
    "vqa": _vqa,
    "captioning": _captioning,
    "world_prediction": _world_prediction,
}


def _credit(prediction: Tensor, candidates: Tensor, right: Sequence[bool]) -> float:
    """The fraction that is right of the candidates (M, E) nearest to a prediction (E,): of those that are level."""
    ranks = retrieval_ranks(prediction[None], candidates, torch.tensor([1]), torch.tensor(right).long())
    return float(ranks.recall(1))


def _accuracy(credits: Sequence[float], chances: Sequence[float], flops: int) -> dict[str, Any]:
    """The fraction right with its interval, chance level and cost; `flops`: of all answers."""
    interval = proportion_interval(sum(credits), len(credits))
    value = sum(credits) / len(credits)
    return {
        "value": value,
        "interval": [interval.low, interval.high],
        "chance": sum(chances) / len(chances),
        "cost": choice_costs(value, flops / len(credits)),
    }


def _samples(
    settings: Mapping[str, Any], trained: Mapping[str, Any], frames: int, candidates: int, seed: int
) -> list[Sample]:
    kind = _KINDS[settings["kind"]]
    if settings["manifest"] is None:
        return world_samples(build(trained["world"]), kind, candidates, frames, seed)
    samples = read_manifest(Path(settings["manifest"]), [kind])
    return samples[: settings["limit"] or None]


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
