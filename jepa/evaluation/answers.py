"""Evaluation of a language model: its answers under the metrics of the configuration, and the geometry of its latents.

N: examples; E: embedding dimensions.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from jepa import checkpoint
from jepa.build import Node, build_as
from jepa.config import AnswersConfig, ObjectiveConfig
from jepa.data.json_lines import located
from jepa.data.packing import IGNORE, PackedBatch, pack, target_numbers
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.evaluation.generation import longest_answer, progress, with_drafts
from jepa.evaluation.provenance import device_of, evaluated, kept_in
from jepa.evaluation.tasks import score_line
from jepa.kept import Kept, KeptInMemory
from jepa.metrics.answers import METRICS, multiple_choice, proportion_interval, score, scorer_for
from jepa.metrics.geometry import LatentGeometry
from jepa.metrics.latents import collapse_message, paraphrase, recall_at_false_fraction, ridge_r2
from jepa.metrics.per_token import answer_costs, choice_costs
from jepa.models.costs import pass_flops
from jepa.models.drafts import Continuation, Verified
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import TRAINING_PARTS, OperationLedger, PartCount
from jepa.results.base import write_files
from jepa.results.documents import AnswerCosts, AnswerEvaluation, AnswerScore, LanguageTraining, TrainingOperations
from jepa.selective import Decoded

CHOICE = "multiple_choice"  # the metric that compares likelihoods; the others read a generated text
PREDICTIONS = "predictions.jsonl"
_ROW_TOKENS = 64
_PARAPHRASES = 100  # fewest answers in two phrasings whose neighbours say something


class _Answered(NamedTuple):
    """N texts, and by metric whether each is right and what an answer cost."""

    texts: list[str]
    verdicts: dict[str, list[bool]]
    costs: dict[str, AnswerCosts]


# --- Checks before anything is trained or generated.


def check_before_training(answers: AnswersConfig, data: Mapping[str, Any]) -> None:
    """`check_answers` on the data of a training, so that its evaluation at the end will not fail."""
    check_answers(answers, build_as(ExampleSplits, "data", data))


def check_answers(answers: AnswersConfig, splits: ExampleSplits) -> None:
    """Score each right answer once, so that unreadable ones are found before anything is generated.

    Raises `InputError` for those, for no example, and for metrics and choices that do not fit together.
    """
    pairs = getattr(splits, answers.split)
    if not pairs:
        raise InputError(f"answers.split must hold at least 1 pair, got none in {answers.split}")
    if CHOICE in answers.metrics and answers.drafts is not None:
        raise InputError(f"answers.drafts must be null with {CHOICE}, which generates nothing, got {answers.drafts}")
    for name in answers.metrics:
        if name != CHOICE:
            scorer = scorer_for(name, **_scorer_options(name, answers))
            for pair in pairs[: answers.limit or None]:
                with located(pair.source):
                    scorer(pair.completion, pair.completion, pair.prompt)
        elif len(answers.choices) < 2 or len(answers.metrics) > 1:
            raise InputError(f"{CHOICE} must stand alone and have >= 2 answers.choices, got {answers.choices}")
        else:
            for pair in pairs:
                if pair.completion.strip() not in answers.choices:
                    choices = ", ".join(answers.choices)
                    raise InputError(f"{pair.source}: answer must be one of {choices}, got {pair.completion!r}")


def _scorer_options(metric: str, answers: AnswersConfig) -> dict[str, str | float]:
    if metric != "spider":
        return {}
    if answers.databases is None:
        raise InputError("answers.databases must name the folder of Spider's databases, got none")
    return {"databases": answers.databases, "timeout_seconds": answers.timeout_seconds}


# --- The evaluation.


@torch.no_grad()
def evaluate_answers(
    folder: Path,
    output: Path,
    answers: AnswersConfig,
    accelerator: str,
    splits: ExampleSplits | None = None,
    once: bool = False,
) -> Path:
    """Answer the prompts of a split (of the training's data without `splits`), score, and write the folder `output`.

    It holds an `AnswerEvaluation`, a line for each example, and predicted and target embeddings (N, E). What was done
    `once`, of the same weights, answers and code, is not done again.

    Raises:
        InputError: another kind of checkpoint, no record of its training, or answers that cannot be scored.
    """
    trained, device = checkpoint.read_config(folder), device_of(accelerator)
    splits = splits or build_as(ExampleSplits, "data", trained["data"])
    model = load_language_model(folder, device)
    pairs = getattr(splits, answers.split)[: answers.limit or None]
    training = _training(folder)
    check_answers(answers, splits)
    if answers.drafts is not None:
        model.drafter(answers.drafts)  # refused before anything is computed
    objective = ObjectiveConfig(**trained["objective"])
    store = kept_in(output, folder, (Continuation, Verified), answers=answers.model_dump(), pairs=[*map(vars, pairs)])
    if once and store.finished:
        return output
    with store:
        predictions, targets, ids = embeddings(model, pairs, answers.batch_size, objective, store)
        drafting = None
        if CHOICE in answers.metrics:
            started = time.perf_counter()
            found = _choose(model, pairs, answers)
            count = PartCount(calls=len(pairs), seconds=time.perf_counter() - started)
        else:
            made, drafting = with_drafts(model, pairs, answers, splits, store)
            found, count = _scored(model, made.answers, pairs, answers), made.spent
        texts = {"prediction": found.texts}
        if model.y_decoder is not None and CHOICE not in answers.metrics:
            said = _from_embeddings(model, pairs, predictions, answers)
            texts["prediction from the embedding"] = said.texts
            found.verdicts.update({f"{name} from the embedding": right for name, right in said.verdicts.items()})
            found.costs.update({f"{name} from the embedding": cost for name, cost in said.costs.items()})
        measured = geometry(predictions, targets, ids, pairs, answers)
        document = evaluated(
            AnswerEvaluation,
            *(folder, output, trained, device, model),
            arm=trained["arm"],
            config=trained,
            training=training,
            split=answers.split,
            pairs=len(pairs),
            scores={name: _score(right, found.costs[name]) for name, right in found.verdicts.items()},
            generation=count,
            drafting=drafting,
            geometry={name: value for name, value in measured.items() if math.isfinite(value)},
            warning=collapse_message(measured) if measured else "fewer than 2 distinct targets: nothing to tell apart",
        )
        lines = []
        for i, pair in enumerate(pairs):
            line = {"source": pair.source, "prompt": pair.prompt, "completion": pair.completion}
            line |= {name: column[i] for name, column in (texts | found.verdicts).items()}
            lines.append(json.dumps(line, ensure_ascii=False) + "\n")
        output.mkdir(parents=True, exist_ok=True)
        save_file({"predictions": predictions, "targets": targets}, output / "latents.safetensors")
        files = {PREDICTIONS: "".join(lines).encode(), AnswerEvaluation.file_name: document.to_json()}
        write_files({output / name: content for name, content in files.items()})
        print("\n".join([*_summary(document), f"evaluation: {output}"]), flush=True)
    return output


def load_language_model(folder: Path, device: str) -> LLMJEPA:
    """The LLM-JEPA of a checkpoint. Raises `InputError` for a checkpoint of another model."""
    model = checkpoint.load(folder)
    if not isinstance(model, LLMJEPA):
        raise InputError(f"{folder} must be a checkpoint of an LLM-JEPA, got {type(model).__name__}")
    return model.to(device)


def _training(folder: Path) -> LanguageTraining:
    """The training of the language model, all of its stages together; the curve is of the last."""
    language = [stage for stage in checkpoint.read_stages(folder) if stage["name"] == "llm_jepa"]
    if not language:
        raise InputError(f"{folder} must have been trained in a stage llm_jepa, got none")
    last = language[-1]
    return LanguageTraining(
        **{key: sum(stage[key] for stage in language) for key in ("steps", "samples", "tokens", "flops", "seconds")},
        **{key: last[key] for key in ("pairs", "duplicates", "steps_stretched")},
        operations=_operations([stage.get("operations") for stage in language]),
        curve=tuple(
            {key: value if math.isfinite(value) else None for key, value in row.items()} for row in last["curve"]
        ),
    )


def _operations(stages: Sequence[Node | None]) -> TrainingOperations | None:
    """The sum of the stages' counts; None where a stage was not counted."""
    counted = [TrainingOperations.model_validate(stage) for stage in stages if stage is not None]
    if len(counted) < len(stages):
        return None
    parts = {part: sum((each.parts[part] for each in counted), PartCount()) for part in TRAINING_PARTS}
    return TrainingOperations(steps=sum(each.steps for each in counted), parts=parts)


# --- Answers.


def _from_embeddings(
    model: LLMJEPA, pairs: Sequence[Example], predictions: Tensor, answers: AnswersConfig
) -> _Answered:
    """Answers of the Y-Decoder to predicted embeddings (N, E). Predicting them is part of their cost."""
    decoded = [one for part in predictions.split(answers.batch_size) for one in model.decode(part)]
    ledger = OperationLedger()
    starts = progress(len(pairs), answers.batch_size, "operations")
    for _ in model.stream((pairs[start : start + answers.batch_size] for start in starts), ledger):
        pass
    return _scored(model, decoded, pairs, answers, before=ledger.total_flops / len(pairs))


def _scored(
    model: LLMJEPA, decoded: Sequence[Decoded], pairs: Sequence[Example], answers: AnswersConfig, before: float = 0.0
) -> _Answered:
    """Verdicts and costs of answers, each alone, its end included; `before`: mean FLOPs of one before its decoder."""
    texts, longest = [one.text for one in decoded], longest_answer(model.tokenizer.encode(pairs))
    golds, prompts = [pair.completion for pair in pairs], [pair.prompt for pair in pairs]
    verdicts = {name: score(name, texts, golds, prompts, **_scorer_options(name, answers)) for name in answers.metrics}
    tokens = torch.tensor([one.tokens for one in decoded])
    flops = torch.tensor([one.flops + before for one in decoded], dtype=torch.float64)
    costs = {
        name: AnswerCosts.model_validate(answer_costs(torch.tensor(right), tokens, flops, longest))
        for name, right in verdicts.items()
    }
    return _Answered(texts, verdicts, costs)


def _choose(model: LLMJEPA, pairs: Sequence[Example], answers: AnswersConfig) -> _Answered:
    """The likeliest of the choices, by the summed log-likelihood of its tokens, its end included; each costs a pass."""
    choices, flops = answers.choices, 0
    layout = model.layout(row_tokens=_ROW_TOKENS)
    likelihoods = torch.empty(len(pairs), len(choices))
    for start in progress(len(pairs), answers.batch_size, "choices"):
        for column, choice in enumerate(choices):
            part = [Example(p.prompt, choice, p.system) for p in pairs[start : start + answers.batch_size]]
            encoded = model.tokenizer.encode(part)
            rows = pack(encoded, layout)
            out = model(_on_device(rows, model))
            scores = -F.cross_entropy(out.logits, out.labels, reduction="none").cpu()
            owner = rows.segments[rows.labels != IGNORE] // 2  # an example has two segments: prompt and completion
            likelihoods[start : start + len(part), column] = torch.zeros(len(part)).index_add(0, owner, scores)
            lengths = [(len(ids.prompt) + len(ids.completion), len(ids.completion) - ids.opening) for ids in encoded]
            flops += sum(pass_flops(model.language.lm, length, length, logits) for length, logits in lengths)
    wanted = torch.tensor([choices.index(p.completion.strip()) for p in pairs])
    right = multiple_choice(likelihoods, wanted).tolist()
    cost = choice_costs(sum(right) / len(right), flops / len(pairs))
    unbounded = {"ock_score": None, "accuracy_within": None, "accuracy_area": None}  # of generated tokens only
    texts = [choices[int(c)] for c in likelihoods.argmax(1)]
    return _Answered(texts, {CHOICE: right}, {CHOICE: AnswerCosts.model_validate(cost | unbounded)})


def _score(right: Sequence[bool], cost: AnswerCosts) -> AnswerScore:
    found = proportion_interval(sum(right), len(right))
    return AnswerScore(accuracy=found.value, interval=(found.low, found.high), cost=cost)


# --- Latents.


def embeddings(
    model: LLMJEPA, pairs: Sequence[Example], batch_size: int, objective: ObjectiveConfig, store: Kept | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted and target embeddings (N, E), L2-normalised, and numbers (N,) that are equal for equal targets.

    An objective that does not train the [PRED] tokens takes the last state of view 1 as prediction.
    """
    layout = model.layout(row_tokens=_ROW_TOKENS, direction=objective.direction, view=objective.view)
    if objective.weight == 0 or objective.latent == "tube":
        layout = replace(layout, predictors=())
    encoded = model.tokenizer.encode(pairs)
    ids = target_numbers(encoded, layout)
    store = store or KeptInMemory()

    def batch(start: int) -> list[Tensor]:
        part = encoded[start : start + batch_size]
        rows = pack(part, layout, part, ids[start : start + batch_size])
        rows = rows._replace(labels=torch.full_like(rows.labels, IGNORE))  # no logits are wanted
        out = model(_on_device(rows, model))
        return [F.normalize(each.float(), dim=-1).cpu() for each in (out.predictions, out.targets)]

    starts = progress(len(pairs), batch_size, "latents")
    parts = [store.get(f"latents {start}", partial(batch, start)) for start in starts]
    predictions, targets = map(torch.cat, zip(*parts, strict=True))
    return predictions, targets, torch.tensor(ids)


def geometry(
    predictions: Tensor, targets: Tensor, ids: Tensor, pairs: Sequence[Example], answers: AnswersConfig
) -> dict[str, float]:
    """Alignment, spread, rank and retrieval of the latents, by name; empty with fewer than 2 distinct targets.

    With enough answers in two phrasings, `paraphrase.…` compare phrasings of one answer with other answers; a neighbour
    is right if one of the metrics accepts its completion.
    """
    if len(ids.unique()) < 2:
        return {}
    measure = LatentGeometry(ks=(1, 10))
    measure.update(predictions, targets, ids)
    found = {name: float(value) for name, value in measure.compute().items()}
    if len(predictions) >= 4 * predictions.shape[1]:  # with fewer rows the fit says little
        found["ridge_r2"] = float(ridge_r2(predictions, targets))
    by_answer: dict[int, dict[str, int]] = {}
    for row, (number, pair) in enumerate(zip(ids.tolist(), pairs, strict=True)):
        by_answer.setdefault(number, {}).setdefault(pair.prompt, row)
    twice = [list(rows.values())[:2] for rows in by_answer.values() if len(rows) > 1]
    scorers = [name for name in answers.metrics if name in METRICS and name != "spider"]
    if len(twice) >= _PARAPHRASES and scorers:
        first, second = (torch.tensor([rows[i] for rows in twice]) for i in (0, 1))
        cosines, nearest = (predictions[first] @ predictions[second].T).max(1)
        golds, others = ([pairs[int(row)].completion for row in rows] for rows in (first, second[nearest]))
        right = torch.tensor([any(each) for each in zip(*(score(s, others, golds) for s in scorers), strict=True)])
        apart = paraphrase(predictions[first], predictions[second], ids[first])
        found["paraphrase.pairs"] = len(twice)
        found |= {f"paraphrase.{name}": float(value) for name, value in apart.items()}
        found["paraphrase.recall at 1% false neighbours"] = float(recall_at_false_fraction(cosines, right))
    return found


def _on_device(rows: PackedBatch, model: LLMJEPA) -> PackedBatch:
    return PackedBatch(*(field.to(model.device) for field in rows))


def _summary(document: AnswerEvaluation) -> list[str]:
    scores = (score_line(name, each.accuracy, None, each.interval, each.cost) for name, each in document.scores.items())
    measured = (
        score_line(name.replace("paraphrase.", "two phrasings: "), value) for name, value in document.geometry.items()
    )
    warning = [f"warning: {document.warning}"] if document.warning else []
    drafts = [] if (found := document.drafting) is None else [f"{f'drafts: {found.drafts}':28} {document.drafted}"]
    return [f"{document.pairs} pairs of the {document.split} split", *scores, *drafts, *measured, *warning]
