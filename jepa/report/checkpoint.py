"""The sections on a VL-JEPA's checkpoint: its scores, parameters and training, and where the figures come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import NamedTuple

from jepa.report import figures
from jepa.report import format as fmt
from jepa.report.blocks import MEASURED, Block, Figure, Heading, Text
from jepa.report.notes import note
from jepa.report.tables import NONE, Column, Table, table
from jepa.results import (
    TRAINING_PARTS,
    AnswerCost,
    ChoiceScores,
    PartCount,
    PerToken,
    RoleParameters,
    Scores,
    Stage,
    StreamResults,
    Training,
)


def blocks(results: StreamResults) -> list[Block]:
    """The sections, in their order."""
    rows = {"run": results.name, **origin(results), "libraries": fmt.libraries_text(results.libraries)}
    return [
        Heading("Scores", evidence=(MEASURED,)),
        Text("Scores of the checkpoint on compositions held out from training, beside the score of guessing.", "lede"),
        note("scores"),
        scores_table(results.scores),
        *parameters(results.parameters),
        *_training(results.training),
        *provenance(rows.items()),
    ]


# --- Scores.

_GEOMETRY = {"rankme": "RankMe", "paired_cosine": "cosine of pairs", "unpaired_cosine": "cosine of non-pairs"}


def in_words(scores: Scores) -> str:
    """The main scores in one sentence."""
    rows = [row for _, group in scores_table(scores).groups for row in group]
    said = {name: f"{value} (chance {chance})" for name, value, chance, *_ in rows}
    return (
        f"The checkpoint, on compositions held out from training: right caption first {said['R@1']}, among the first "
        f"five {said.get('R@5', NONE)}; right action {said['accuracy']}; questions {said['accuracy, all questions']}; "
        f"generated captions CIDEr-D {fmt.quality(scores.captioning.cider_d)}."
    )


class _Score(NamedTuple):
    name: str
    value: str
    queries: int | None = None
    chance: float | None = None
    candidates: int | None = None
    cost: AnswerCost | None = None


def _spent(cost: AnswerCost | None, right: bool = False) -> str:
    """Of an answer, or of a right one; a dash where nothing was counted or none is right."""
    if cost is None:
        return NONE
    tokens = cost.tokens_per_right_answer if right else cost.tokens_per_answer
    flops = cost.flops_per_right_answer if right else cost.flops_per_answer
    scale, letter = fmt.prefix(flops or 0)
    return NONE if tokens is None or flops is None else f"{tokens:,.3g} tokens, {flops / scale:.3g} {letter}FLOPs"


def scores_table(scores: Scores) -> Table:
    """Scores of the checkpoint, each beside the score of guessing, with its cost."""
    columns: list[Column[_Score]] = [
        Column("score", lambda row: row.name, words=True),
        Column("value", lambda row: row.value),
        Column("chance", lambda row: fmt.fraction(row.chance)),
        Column("candidates", lambda row: fmt.fixed(row.candidates, 0)),
        Column("queries", lambda row: fmt.fixed(row.queries, 0)),
        Column("cost of an answer", lambda row: _spent(row.cost)),
        Column("cost of a right answer", lambda row: _spent(row.cost, right=True)),
    ]
    retrieval, captions, questions = scores.retrieval, scores.captioning, scores.question_answering

    def found(k: str) -> _Score:
        value, chance = fmt.fraction(retrieval.recall[k]), min(1.0, int(k) * retrieval.chance)
        return _Score(f"R@{k}", value, retrieval.queries, chance, retrieval.candidates, retrieval.cost.get(k))

    def chosen(name: str, part: ChoiceScores) -> _Score:
        return _Score(name, fmt.fraction(part.accuracy), part.queries, part.chance, part.candidates, part.cost)

    kinds = questions.by_question
    asked = sum(kind.queries for kind in kinds.values())
    guessed = sum(kind.chance * kind.queries for kind in kinds.values()) / asked if asked else None
    of_all = fmt.fraction(questions.accuracy)
    answers = [_Score("accuracy, all questions", of_all, questions.queries, guessed, cost=questions.cost)]
    per_token = captions.per_token or PerToken(ock_score=None, accuracy_within=None, accuracy_area=None)
    captioning = [
        _Score("CIDEr-D", fmt.quality(captions.cider_d), captions.queries),
        _Score("exact match", fmt.fraction(captions.exact_match), captions.queries, cost=captions.cost),
        _Score("OckScore of exact match", fmt.significant(per_token.ock_score), captions.queries),
        _Score("area of exact match against tokens", fmt.significant(per_token.accuracy_area), captions.queries),
    ]
    measured = {key: fmt.fixed(value, 2 if key == "rankme" else 3) for key, value in scores.geometry.items()}
    groups = [
        ("Retrieval of the caption", [found(k) for k in retrieval.recall]),
        ("Zero-shot classification", [chosen("accuracy", scores.classification)]),
        ("Question answering", answers + [chosen(name, kind) for name, kind in kinds.items()]),
        ("Captioning", captioning),
        ("Geometry of the latents", [_Score(_GEOMETRY.get(key, key), value) for key, value in measured.items()]),
    ]
    return table("Scores", columns, groups)


# --- Parameters.


def parameters(roles: Sequence[RoleParameters]) -> list[Block]:
    """Parameters by role, and their sum."""

    def row(name: str, modules: str, counted: Sequence[RoleParameters]) -> list[str]:
        used = sum(role.total if role.active is None else role.active for role in counted)
        counts = (sum(role.total for role in counted), sum(role.trainable for role in counted), used)
        return [name, modules, *(f"{count:,}" for count in counts)]

    rows = [*(row(role.role, role.modules, [role]) for role in roles), row("all roles", "", roles)]
    header = ("role", "modules", "parameters", "trained", "used by a token")
    made = Table("Parameters by role", header, [("", rows)], text_columns=2)
    return [Heading("Parameters by role"), note("parameters"), made]


# --- Training.


def training_table(stages: Sequence[Stage]) -> Table:
    """FLOPs, bytes of weights and wall time of the parts that each stage used."""
    counted = [part for stage in stages if stage.operations for part in stage.operations.parts.values()]
    flops_scale, flops = fmt.prefix(max((part.flops for part in counted), default=0))
    bytes_scale, read = fmt.prefix(max((part.weight_bytes for part in counted), default=0))

    def amount(value: float) -> str:
        return "< 0.001" if 0 < value < 0.001 else fmt.significant(value)

    columns: list[Column[tuple[str, PartCount]]] = [
        Column("part", lambda row: "Y-Encoder" if row[0] == "y_encoder" else row[0], words=True),
        Column(f"{flops}FLOPs", lambda row: amount(row[1].flops / flops_scale)),
        Column(f"{read}B of weights read", lambda row: amount(row[1].weight_bytes / bytes_scale)),
        Column("wall time, s", lambda row: fmt.seconds(row[1].seconds)),
    ]
    groups: list[tuple[str, dict[str, PartCount]]] = []
    for stage in stages:
        title = f"{stage.name}: {stage.steps:,} steps in {fmt.seconds(stage.seconds)} s"
        if stage.operations is None:
            groups.append((f"{title}, {fmt.UNCOUNTED}", {}))
            continue
        parts = stage.operations.parts
        used = {name: parts[name] for name in TRAINING_PARTS if name in parts and parts[name] != PartCount()}
        groups.append((title, used | {"all parts": sum(used.values(), PartCount())}))
    return table("Operations of training", columns, [(title, used.items()) for title, used in groups])


def _training(record: Training) -> list[Block]:
    lede = f"{record.steps:,} steps on {record.samples:,} samples in {record.seconds / 60:,.1f} minutes."
    blocks: list[Block] = [Heading("Training", evidence=(MEASURED,)), Text(lede, "lede")]
    points = {
        key: [(row["step"] or 0.0, value) for row in record.curve if (value := row.get(key)) is not None]
        for key in dict.fromkeys(key for row in record.curve for key in row if key != "step")
    }
    if points:
        draw = partial(figures.panels, {key: [(4, found)] for key, found in points.items()}, "step")
        blocks.append(Figure("training", "Training record against the step", draw, wide=True))
    if record.stages:
        operations = Heading("Operations of training", 3, (MEASURED,))
        blocks += [operations, note("training"), training_table(record.stages)]
    return blocks


# --- Provenance.


def origin(results: StreamResults) -> dict[str, str]:
    """When, from which seed, by which code and on which device the figures came about."""
    rows, sweep = {"created": results.created, "seed": str(results.seed)}, results.sweep
    rows |= {"code": fmt.code_text(results.code), "device": fmt.device_text(results.device)}
    if sweep is not None:
        rows["report"] = f"{sweep.created}; {fmt.code_text(sweep.code)}; {fmt.device_text(sweep.device)}"
    return rows


def provenance(rows: Iterable[tuple[str, str]]) -> list[Block]:
    """The section on where figures come from."""
    made = Table("Provenance", ("", ""), [("", [*rows])], text_columns=2)
    return [Heading("Provenance"), note("provenance", "lede"), made]
