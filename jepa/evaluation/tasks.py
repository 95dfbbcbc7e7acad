"""Zero-shot tasks of a VL-JEPA, on held-out compositions and on any manifest.

All but captioning choose the nearest embedding (VL-JEPA, arXiv 2512.10942, 3.2). On manifests candidates level with the
nearest share its credit, as if one of them were drawn: a collapsed model scores chance. Processes that torchrun started
share the samples; what they find is joined in order, and scored once.

N clips or samples, M candidates, C clips of a sample, F frames a clip, S pixels a side, E embedding dimensions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import JsonValue
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build
from jepa.config import EvaluateConfig, TaskConfig
from jepa.data.manifests import Kind, QuestionSample, Sample, WorldPredictionSample, read_manifest
from jepa.data.media import read_clip
from jepa.data.world import CAPTION_QUERIES, SOLO_ACTIONS, Question, Scene, World, captions, questions
from jepa.data.world_tasks import held_out_clips, held_out_scenes, world_samples
from jepa.errors import InputError
from jepa.evaluation.provenance import announce, device_of, evaluated, kept_in
from jepa.kept import Kept, KeptInMemory
from jepa.metrics import cider_d, paired_cosine, rankme, retrieval_ranks, retrieval_scores, unpaired_cosine
from jepa.metrics.answers import proportion_interval
from jepa.metrics.per_token import answer_costs, choice_costs
from jepa.models.vl_jepa import VLJEPA
from jepa.operations import similarity_flops
from jepa.processes import Ranks, ranks
from jepa.results import TaskEvaluation, write_files
from jepa.results.documents import (
    AnswerCost,
    CaptionScores,
    ChoiceScores,
    PerToken,
    QuestionScores,
    RetrievalScores,
    Scores,
    TaskScore,
)
from jepa.selective import Decoded

CAPTION_TOKENS = 32  # the largest budget of exact match against tokens


def score_tasks(model: VLJEPA, world: World, seed: int, candidates: int, batch_size: int) -> Scores:
    """Scores on one clip of each of `candidates` distinct held-out compositions, with the cost of an answer.

    Retrieval is of a clip's predicted embedding under a caption query against the captions of all; captioning is of
    greedy text against all paraphrases.
    """
    scenes = held_out_scenes(world, candidates, seed)
    clips = torch.from_numpy(held_out_clips(world, scenes, model.frames, seed))
    starts = tqdm(range(0, len(scenes), batch_size), desc="task clips", unit="batch", leave=False)
    states = torch.cat([model.encode(clips[i : i + batch_size]) for i in starts])

    def predict(queries: Sequence[str], rows: Sequence[int]) -> Tensor:
        """Embeddings (len(rows), E) of the clips `rows` under one query each."""
        parts = [
            model.predict(states[list(rows[i : i + batch_size])], queries[i : i + batch_size])
            for i in range(0, len(rows), batch_size)
        ]
        return torch.cat(parts).cpu()

    predictions = predict([CAPTION_QUERIES[0]] * len(scenes), range(len(scenes)))
    texts = [captions(scene)[0] for scene in scenes]
    targets = model.embed_all(texts)
    labels = torch.arange(len(scenes))
    ranks = retrieval_ranks(predictions, targets, labels, labels)
    recall = {k: float(ranks.recall(k).float().mean()) for k in (1, 5)}
    flops = answer_flops(model, CAPTION_QUERIES[0], *targets.shape) + embedding_flops(model, texts) / len(scenes)
    before = model.clip_flops() + model.query_flops(CAPTION_QUERIES[0])
    return Scores(
        retrieval=RetrievalScores(
            candidates=len(scenes),
            queries=len(scenes),
            chance=1 / len(scenes),
            recall={str(k): value for k, value in recall.items()},
            cost={str(k): choice_cost(value, flops) for k, value in recall.items()},
        ),
        classification=_classification(model, scenes, predictions),
        question_answering=_question_answering(model, scenes, predict),
        captioning=caption_scores(model.decode(predictions), [captions(scene) for scene in scenes], before),
        geometry={
            "retrieval@1": recall[1],
            "rankme": float(rankme(predictions)),
            "paired_cosine": float(paired_cosine(predictions, targets)),
            "unpaired_cosine": float(unpaired_cosine(predictions, targets)),
        },
    )


def answer_flops(model: VLJEPA, query: str, candidates: int, width: int) -> int:
    """FLOPs of an answer alone: its whole clip encoded, its embedding (E,) predicted and compared with M candidates."""
    return model.clip_flops() + model.query_flops(query) + similarity_flops(1, candidates, width)


def embedding_flops(model: VLJEPA, texts: Iterable[str]) -> int:
    """FLOPs of embedding candidate texts once each, without padding."""
    return sum(model.text_flops(text) for text in texts)


def choice_cost(accuracy: float, flops: float) -> AnswerCost:
    """The cost of answers that are chosen among candidates: no token is generated."""
    return AnswerCost.model_validate(choice_costs(accuracy, flops), from_attributes=True)


def score_line(
    name: str,
    value: float,
    chance: float | None = None,
    interval: tuple[float, float] | None = None,
    cost: AnswerCost | None = None,
) -> str:
    """A score with its interval, chance level, and the tokens and FLOPs of an answer and of a right one."""
    line = f"{name:32} {value:7.3f}"
    if interval is not None:
        line += f"  ({interval[0]:.3f} to {interval[1]:.3f})"
    if chance is not None:
        line += f"  (chance {chance:.3f})"
    if cost is None:
        return line
    line += f"  {cost.tokens_per_answer:.3g} tokens, {cost.flops_per_answer:.3g} FLOPs an answer; a right one: "
    if cost.flops_per_right_answer is None:
        return line + "none"
    return line + f"{cost.tokens_per_right_answer:.3g} tokens, {cost.flops_per_right_answer:.3g} FLOPs"


def score_lines(scores: Scores) -> str:
    """Each score beside its chance level and its cost, a line each."""
    retrieval, captioning = scores.retrieval, scores.captioning
    parts = {"classification": scores.classification}
    parts |= {f"question: {kind}": part for kind, part in scores.question_answering.by_question.items()}
    name = f"retrieval R@1 of {retrieval.candidates}"
    lines = [
        "held-out compositions",
        score_line(name, retrieval.recall["1"], retrieval.chance, cost=retrieval.cost["1"]),
        *(score_line(name, part.accuracy, part.chance, cost=part.cost) for name, part in parts.items()),
        score_line("caption CIDEr-D (0-10)", captioning.cider_d),
        score_line("caption exact match", captioning.exact_match, cost=captioning.cost),
    ]
    return "\n".join(lines)


def caption_scores(decoded: Sequence[Decoded], references: Sequence[Sequence[str]], before: int) -> CaptionScores:
    """CIDEr-D (x10, mean) of N captions, the fraction that is one of their references, and the cost.

    `before`: FLOPs of each caption until it is decoded.
    """
    texts, tokens = [d.text for d in decoded], torch.tensor([d.tokens for d in decoded])
    right = torch.tensor([text in refs for text, refs in zip(texts, references, strict=True)])
    flops = torch.tensor([before + d.flops for d in decoded], dtype=torch.float64)
    costs = answer_costs(right, tokens, flops, CAPTION_TOKENS)
    return CaptionScores(
        queries=len(decoded),
        cider_d=float(cider_d(texts, references).mean()),
        exact_match=float(right.double().mean()),
        cost=AnswerCost(**{name: value for name, value in costs.items() if name in AnswerCost.model_fields}),
        per_token=PerToken(**{name: value for name, value in costs.items() if name in PerToken.model_fields}),
    )


def _nearest(predictions: Tensor, candidates: Tensor) -> Tensor:
    """Index (N,) of the nearest of M candidates: `candidates` is (M, E), or (N, M, E) for a set of each row's own."""
    return torch.einsum("ne,nme->nm", predictions, candidates.expand(len(predictions), -1, -1)).argmax(-1)


def _classification(model: VLJEPA, scenes: Sequence[Scene], predictions: Tensor) -> ChoiceScores:
    """Which solo action a solo clip shows, of one caption an action with the clip's own object."""
    rows = [row for row, scene in enumerate(scenes) if scene.action in SOLO_ACTIONS]
    actions = list(SOLO_ACTIONS)
    texts = [captions(Scene(action, scenes[row].objects))[0] for row in rows for action in actions]
    candidates = model.embed_all(texts).reshape(len(rows), len(actions), -1)
    chosen = _nearest(predictions[rows], candidates).tolist()
    accuracy = float(np.mean([actions[c] == scenes[row].action for c, row in zip(chosen, rows, strict=True)]))
    flops = answer_flops(model, CAPTION_QUERIES[0], *candidates.shape[1:]) + embedding_flops(model, texts) / len(rows)
    return _choice(accuracy, len(rows), len(actions), flops)


def _question_answering(
    model: VLJEPA, scenes: Sequence[Scene], predict: Callable[[Sequence[str], Sequence[int]], Tensor]
) -> QuestionScores:
    asked: list[tuple[int, Question]] = [(row, q) for row, scene in enumerate(scenes) for q in questions(scene)]
    predictions = predict([q.text for _, q in asked], [row for row, _ in asked])
    by_kind: dict[str, list[int]] = {}
    for index, (_, question) in enumerate(asked):
        by_kind.setdefault(question.kind, []).append(index)
    results, total, spent = {}, 0, 0
    for kind, rows in by_kind.items():
        candidates = asked[rows[0]][1].candidates
        embedded = model.embed_all(candidates)
        chosen = _nearest(predictions[rows], embedded)
        hits = sum(candidates[c] == asked[row][1].answer for c, row in zip(chosen.tolist(), rows, strict=True))
        flops = sum(answer_flops(model, asked[row][1].text, *embedded.shape) for row in rows)
        flops += embedding_flops(model, candidates)
        total, spent = total + hits, spent + flops
        results[kind] = _choice(hits / len(rows), len(rows), len(candidates), flops / len(rows))
    accuracy = total / len(asked)
    cost = choice_cost(accuracy, spent / len(asked))
    return QuestionScores(queries=len(asked), accuracy=accuracy, cost=cost, by_question=results)


def _choice(accuracy: float, queries: int, candidates: int, flops: float) -> ChoiceScores:
    chance, cost = 1 / candidates, choice_cost(accuracy, flops)
    return ChoiceScores(queries=queries, accuracy=accuracy, candidates=candidates, chance=chance, cost=cost)


# --- Any manifest.


@torch.no_grad()
def evaluate_task(folder: Path, output: Path, config: EvaluateConfig, settings: TaskConfig) -> Path:
    """Scores the checkpoint `folder` on a task; writes `output`, a `TaskEvaluation` with a line for each sample.

    Raises:
        InputError: a bad manifest, fewer samples than processes, or a medium that cannot be read; with the task's
            `skip_broken`, none that can.
    """
    trained = checkpoint.read_config(folder)
    with ranks() as all_ranks:
        device = device_of(config.accelerator)
        model = checkpoint.load(folder).to(device)
        kind, run = TASKS[settings.kind]
        if settings.manifest is None:
            samples = world_samples(build(trained["world"]), kind, config.candidates, model.frames, config.seed)
        else:
            samples = read_manifest(Path(settings.manifest), [kind])[: settings.limit or None]
        if len(samples) < all_ranks.count:
            raise InputError(f"a task must have a sample for each of {all_ranks.count} processes, got {len(samples)}")
        plain, ids = config.model_dump(), [sample.id for sample in samples]
        with kept_in(output, folder, (Decoded,), device=device, config=plain, ids=ids) as store:
            task = Task(model, settings, samples, config.batch_size, all_ranks, store=store)
            found = run(task)
            if all_ranks.rank:
                return output
            document = evaluated(
                TaskEvaluation,
                *(folder, output, trained, device, model),
                config={"train": trained, "evaluate": config.model_dump()},
                task=settings.kind,
                data=settings.manifest or "embedded",
                samples=len(found.lines),
                skipped=tuple(task.skipped),
                processes=all_ranks.count,
                scores=found.scores,
                counts=found.counts,
                per_token=found.per_token,
            )
            lines = zip(task.kept, found.lines, strict=True)
            text = "".join(json.dumps({"id": sample.id, **line}, ensure_ascii=False) + "\n" for sample, line in lines)
            write_files({output / "predictions.jsonl": text.encode(), output / document.file_name: document.to_json()})
    shown = [f"{settings.kind}, {document.data} data, {document.samples} samples"]
    shown += [f"{name:32} {count:7}" for name, count in document.counts.items()]
    shown += [
        score_line(name, each.value, each.chance, each.interval, each.cost) for name, each in found.scores.items()
    ]
    skipped = [f"skipped {len(task.skipped)} of {len(samples)} samples:", *task.skipped] if task.skipped else []
    announce("\n".join([*shown, *skipped]), {"evaluation": output})
    return output


@dataclass
class Task:
    """What a task works with: all `samples`, of which this process reads its part.

    After `predict`, `kept` are the samples that were read, in order, and `skipped` says what was wrong with the others.
    """

    model: VLJEPA
    settings: TaskConfig
    samples: Sequence[Any]  # all of one kind
    batch_size: int
    ranks: Ranks = field(default_factory=Ranks)
    kept: list[Any] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    store: Kept = field(default_factory=KeptInMemory)  # of what is computed

    def predict(self, queries: Callable[[Any], Sequence[str]]) -> Tensor:
        """Predicted embeddings (clips of the kept samples, E), float32 on the CPU; `queries`: one a clip of a sample.

        Each process runs its own samples, and gets all embeddings. Raises `InputError` for a sample that cannot be
        read, unless the settings say `skip_broken`; and where none can.
        """
        own, size = range(len(self.samples))[self.ranks.part(len(self.samples))], self.batch_size
        parts = [own[start : start + size] for start in range(0, len(own), size)]
        names = [f"clips from {part[0]}" for part in parts]
        todo = [part for name, part in zip(names, parts, strict=True) if self.store.find(name) is None]
        reader = _Clips([self.samples[i] for part in todo for i in part], self.model, self.settings.fps)
        batches = DataLoader(reader, size, num_workers=self.settings.workers, collate_fn=list)
        shown = tqdm(batches, desc="clips", unit="batch", leave=False, disable=self.ranks.rank > 0)
        for part, batch in zip(todo, shown, strict=True):
            self.store.put(f"clips from {part[0]}", self._predict(part, batch, queries))
        done = [self.store.find(name) for name in names]
        rows, kept, broken = ([each for found in done for each in found[i]] for i in range(3))
        found = self.ranks.gather((rows, kept, broken))
        self.kept = [self.samples[number] for _, numbers, _ in found for number in numbers]
        self.skipped = [message for _, _, messages in found for message in messages]
        if not self.kept:
            raise InputError(f"none of {len(self.samples)} samples can be read, the first: {self.skipped[0]}")
        return torch.cat([part for parts, _, _ in found for part in parts])

    def _predict(
        self, numbers: Sequence[int], batch: Sequence[Tensor | InputError], queries: Callable[[Any], Sequence[str]]
    ) -> tuple[list[Tensor], list[int], list[str]]:
        """Predictions of a batch of samples, the numbers of those that were read, and what was wrong with others."""
        rows, kept, broken, read, asked = list[Tensor](), list[int](), list[str](), list[Tensor](), list[str]()
        for number, clips in zip(numbers, batch, strict=True):
            if isinstance(clips, Tensor):
                read.append(clips)
                kept.append(number)
                asked += queries(self.samples[number])
            elif self.settings.skip_broken:
                broken.append(f"{self.samples[number].id}: {clips}")
            else:
                raise clips
        for clips in torch.cat(read).split(self.batch_size) if read else ():
            states = self.model.encode(clips)
            rows.append(self.model.predict(states, asked[: len(clips)]).float().cpu())
            del asked[: len(clips)]
        return rows, kept, broken

    def decode(self, predictions: Tensor) -> list[Decoded]:
        """The decoded texts of N predictions, each process decoding its part."""
        own = predictions[self.ranks.part(len(predictions))]
        parts = own.split(self.batch_size) if len(own) else ()
        names = (f"texts {number} of rank {self.ranks.rank}" for number in range(len(parts)))
        decoded = [
            self.store.get(name, partial(self.model.decode, part)) for name, part in zip(names, parts, strict=True)
        ]
        return [*chain.from_iterable(chain.from_iterable(self.ranks.gather(decoded)))]


class _Clips(Dataset["Tensor | InputError"]):
    """The clips (C, F, S, S, 3) uint8 of each sample; of a world prediction the two states as one clip come first.

    An error is handed over as it is: raised in a worker, it would come wrapped into its traceback.
    """

    def __init__(self, samples: Sequence[Sample], model: VLJEPA, fps: float | None) -> None:
        self.samples, self.frames, self.size, self.fps = samples, model.frames, model.x_encoder.size, fps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Tensor | InputError:
        sample, half = self.samples[index], self.frames // 2
        try:
            if not isinstance(sample, WorldPredictionSample):
                return torch.from_numpy(read_clip(sample.media, self.frames, self.size, self.fps))[None]
            parts = ((sample.before, half), (sample.after, self.frames - half))
            states = np.concatenate([read_clip(media, frames, self.size) for media, frames in parts])
            candidates = [read_clip(media, self.frames, self.size, self.fps) for media in sample.candidates]
            return torch.from_numpy(np.stack([states, *candidates]))
        except InputError as error:
            return error


Lines = list[dict[str, JsonValue]]


class Found(NamedTuple):
    """Scores by name, a line of predictions for each sample, the sizes of the task, and accuracy against tokens."""

    scores: dict[str, TaskScore]
    lines: Lines
    counts: dict[str, int]
    per_token: PerToken | None = None


def classification(task: Task) -> Found:
    """The nearest label; of a label's prompts the mean embedding counts (CLIP, arXiv 2103.00020, 3.1.4).

    All samples share the embedded prompts.
    """
    settings, samples = task.settings, task.samples
    labels = sorted({sample.label for sample in samples})
    prompts = [template.replace("{label}", label) for label in labels for template in settings.templates]
    embedded = task.model.embed_all(prompts).reshape(len(labels), len(settings.templates), -1)
    predictions = task.predict(lambda sample: [settings.query])
    means = F.normalize(embedded.mean(1), dim=-1)
    right = torch.tensor([labels.index(sample.label) for sample in task.kept])
    ks = [k for k in settings.top if k <= len(labels)]
    ranks = retrieval_ranks(predictions, means, right, torch.arange(len(labels)))
    nearest = (predictions @ means.T).topk(max([1, *ks]), sorted=True)
    flops = answer_flops(task.model, settings.query, len(labels), predictions.shape[1])
    flops_each = flops + embedding_flops(task.model, prompts) / len(task.kept)
    scores = {}
    for k in ks:
        value = float(ranks.recall(k).mean())
        scores[f"top-{k}"] = TaskScore(value=value, chance=k / len(labels), cost=choice_cost(value, flops_each))
    lines: Lines = []
    for sample, chosen, values in zip(task.kept, nearest.indices.tolist(), nearest.values.tolist(), strict=True):
        cosines = {labels[c]: cosine for c, cosine in zip(chosen, values, strict=True)}
        lines.append({"label": sample.label, "prediction": labels[chosen[0]], "nearest": cosines})
    return Found(scores, lines, {"classes": len(labels)})


def retrieval(task: Task) -> Found:
    """Clips, each predicted under one query, against the captions of all, both ways.

    The clips share the embedded captions, and the captions the predicted clips.
    """
    query, captions = task.settings.query, [(each.id, text) for each in task.samples for text in each.captions]
    embedded = task.model.embed_all([text for _, text in captions])  # first: it refuses texts too long
    predictions = task.predict(lambda sample: [query])
    samples, kept = task.kept, {sample.id for sample in task.kept}
    rows = [row for row, (name, _) in enumerate(captions) if name in kept]
    texts, embedded, clip_ids = [captions[row][1] for row in rows], embedded[rows], torch.arange(len(samples))
    text_ids = clip_ids.repeat_interleave(torch.tensor([len(sample.captions) for sample in samples]))
    clips = len(samples) * (task.model.clip_flops() + task.model.query_flops(query))
    spent = clips + embedding_flops(task.model, texts) + similarity_flops(len(samples), *embedded.shape)
    scores, counts = dict[str, TaskScore](), dict[str, int]()
    for direction, each in retrieval_scores(predictions, clip_ids, embedded, text_ids, task.settings.ks).items():
        counts |= {f"{direction} {name}": each[name] for name in ("queries", "candidates")}
        for name, chance in each["chance"].items():
            cost = choice_cost(each[name], spent / each["queries"]) if name.startswith("r@") else None
            scores[f"{direction} {name}"] = TaskScore(value=each[name], chance=chance, cost=cost)
    ranks = retrieval_ranks(predictions, embedded, clip_ids, text_ids).expected().tolist()
    nearest = [int((part @ embedded.T).argmax()) for part in predictions]
    lines: Lines = [
        {"captions": list(sample.captions), "nearest": texts[chosen], "rank": rank}
        for sample, chosen, rank in zip(samples, nearest, ranks, strict=True)
    ]
    return Found(scores, lines, counts)


def vqa(task: Task) -> Found:
    """The nearest candidate; where a question has none of its own, all answers of the manifest are candidates.

    All samples share the embedded candidates, each text once.
    """
    settings, samples = task.settings, task.samples
    answers = tuple(dict.fromkeys(sample.answer for sample in samples))
    texts = list(dict.fromkeys(chain.from_iterable(sample.candidates or answers for sample in samples)))
    prompts = [settings.candidate.replace("{candidate}", text) for text in texts]
    embedded = dict(zip(texts, task.model.embed_all(prompts), strict=True))

    def query(sample: QuestionSample) -> str:
        return settings.prompt.replace("{question}", sample.question)

    predictions = task.predict(lambda sample: [query(sample)])
    choices, lines, flops = list[_Choice](), Lines(), embedding_flops(task.model, prompts)
    for sample, prediction in zip(task.kept, predictions, strict=True):
        candidates = sample.candidates or answers
        right = [text in (sample.answer, *sample.alternatives) for text in candidates]
        choice = _choose(prediction, torch.stack([embedded[text] for text in candidates]), right)
        choices.append(choice)
        flops += answer_flops(task.model, query(sample), len(candidates), len(prediction))
        asked = {"question": sample.question, "answer": sample.answer}
        lines.append({**asked, "prediction": candidates[choice.chosen], "right": choice.credit})
    return Found({"accuracy": _accuracy(choices, flops)}, lines, {})


def captioning(task: Task) -> Found:
    """Decoded captions against all references. The chance level of CIDEr-D is the score of another clip's caption."""
    query = task.settings.query
    predictions = task.predict(lambda sample: [query])
    decoded = task.decode(predictions)
    references = [list(sample.captions) for sample in task.kept]
    texts = [each.text for each in decoded]
    before = task.model.clip_flops() + task.model.query_flops(query)
    found = caption_scores(decoded, references, before)
    others = float(cider_d([*texts[1:], texts[0]], references).mean())
    lines: Lines = [
        {"captions": [*refs], "prediction": each.text, "tokens": each.tokens, "flops": before + each.flops}
        for refs, each in zip(references, decoded, strict=True)
    ]
    scores = {
        "cider_d": TaskScore(value=found.cider_d, chance=others),
        "exact_match": TaskScore(value=found.exact_match, cost=found.cost),
    }
    return Found(scores, lines, {"queries": found.queries}, found.per_token)


def world_prediction(task: Task) -> Found:
    """The candidate clip nearest to the clip of the two states (VL-JEPA's protocol for WorldPrediction-WM).

    Every sample has candidates of its own, which are encoded and predicted as it is.
    """
    if task.model.frames < 2:
        raise InputError("world_prediction needs a model whose clips have at least 2 frames, for two states, got 1")
    query, asked = task.settings.query, task.settings.action_query
    rows = task.predict(lambda sample: [query, *[asked] * len(sample.candidates)])
    choices, lines, flops = list[_Choice](), Lines(), 0
    for sample, part in zip(task.kept, rows.split([1 + len(each.candidates) for each in task.kept]), strict=True):
        choice = _choose(part[0], part[1:], [i == sample.answer for i in range(len(sample.candidates))])
        choices.append(choice)
        flops += answer_flops(task.model, query, len(choice.cosines), rows.shape[1])
        flops += len(choice.cosines) * (task.model.clip_flops() + task.model.query_flops(asked))
        found: dict[str, JsonValue] = {"answer": sample.answer, "prediction": choice.chosen}
        lines.append({**found, "right": choice.credit, "cosines": [*choice.cosines]})
    return Found({"accuracy": _accuracy(choices, flops)}, lines, {})


class _Choice(NamedTuple):
    """The candidate that is chosen, the fraction that is right of those level with it, and chance."""

    chosen: int
    credit: float
    chance: float
    cosines: list[float]


def _choose(prediction: Tensor, candidates: Tensor, right: Sequence[bool]) -> _Choice:
    """Of candidates (M, E) the nearest to a prediction (E,)."""
    ranks = retrieval_ranks(prediction[None], candidates, torch.tensor([1]), torch.tensor(right).long())
    cosines = candidates @ prediction
    return _Choice(int(cosines.argmax()), float(ranks.recall(1)), sum(right) / len(right), cosines.tolist())


def _accuracy(choices: Sequence[_Choice], flops: int) -> TaskScore:
    """The fraction right with its interval, chance level and cost; `flops`: of all answers."""
    right, count = sum(choice.credit for choice in choices), len(choices)
    interval = proportion_interval(right, count)
    return TaskScore(
        value=right / count,
        chance=sum(choice.chance for choice in choices) / count,
        interval=(interval.low, interval.high),
        cost=choice_cost(right / count, flops / count),
    )


TASKS: dict[
    str, tuple[Kind, Callable[[Task], Found]]
] = {  # the samples of a manifest that each takes, and what it does
    "classification": ("class", classification),
    "retrieval": ("caption", retrieval),
    "vqa": ("question", vqa),
    "captioning": ("caption", captioning),
    "world_prediction": ("world_prediction", world_prediction),
}
