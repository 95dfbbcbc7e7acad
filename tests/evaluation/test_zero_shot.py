"""Zero-shot tasks on manifests and on the embedded data, through the command."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import refuses, write_samples

from jepa import checkpoint
from jepa.cli import main
from jepa.config import TaskConfig
from jepa.data.manifests import read_manifest
from jepa.data.world import World
from jepa.data.world_tasks import world_samples
from jepa.evaluation.tasks import TASKS, Found, Task
from jepa.results import TaskEvaluation, read_document
from jepa.results.documents import AnswerCost, TaskScore
from jepa.selective import Decoded

SETTINGS = {"query": "what happens?", "action_query": "which?", "top": [1, 2, 9], "ks": [1, 2]}
SETTINGS |= {"templates": ["{label}", "a {label}"], "prompt": "{question}", "candidate": "{candidate}"}


class Reader:
    """A model that is sure of what it saw: a clip's grey level is its direction, a text's that in `levels`."""

    frames, device = 4, torch.device("cpu")

    def __init__(self, levels: dict[str, int]) -> None:
        self.levels, self.asked = levels, list[str]()
        self.x_encoder = type("Encoder", (), {"size": 8})()

    def encode(self, clips: torch.Tensor) -> torch.Tensor:
        return clips.float().mean((2, 3, 4))  # (B, F)

    def predict(self, states: torch.Tensor, queries: list[str]) -> torch.Tensor:
        self.asked += queries
        return direction(states.mean(1))

    def embed_all(self, texts: list[str]) -> torch.Tensor:
        return direction(torch.tensor([float(self.levels[text]) for text in texts]))

    def clip_flops(self) -> int:
        return 10_000

    def query_flops(self, query: str) -> int:
        return 100 * len(query)

    def text_flops(self, text: str) -> int:
        return len(text)

    def decode(self, latents: torch.Tensor, payloads: object = None) -> list[Decoded]:
        names = {level: text for text, level in self.levels.items()}
        levels = (torch.atan2(latents[:, 1], latents[:, 0]) * 100).round()
        return [Decoded(names[int(level)], 3, 3, flops=50) for level in levels]


def check(score: TaskScore, value: float, chance: float | None, flops: float, tokens: float = 0.0) -> None:
    """A score, its chance level, and the cost of an answer and of a right one."""
    cost = score.cost
    assert (score.value, score.chance) == pytest.approx((value, chance))
    assert isinstance(cost, AnswerCost)
    assert (cost.tokens_per_answer, cost.flops_per_answer) == pytest.approx((tokens, flops))
    assert cost.tokens_per_right_answer == pytest.approx(tokens / value)
    assert cost.flops_per_right_answer == pytest.approx(flops / value)


def direction(levels: torch.Tensor) -> torch.Tensor:
    return torch.stack([(levels / 100).cos(), (levels / 100).sin()], 1)


def manifest(folder: Path, lines: list[dict[str, Any]]) -> list[Any]:
    """Samples of a manifest, whose media `level<n>.png` are grey pictures of that level."""
    from PIL import Image

    for level in range(0, 260, 10):
        Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(folder / f"level{level}.png")
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return read_manifest(path)


def run(kind: str, model: Reader, samples: list[Any], **settings: Any) -> Found:
    return TASKS[kind][1](Task(model, TaskConfig(kind=kind, **{**SETTINGS, **settings}), samples, 2))


def test_a_clip_has_the_label_whose_prompts_are_nearest_on_average(tmp_path):
    levels = {"cat": 0, "a cat": 40, "dog": 60, "a dog": 100, "owl": 200, "a owl": 240}  # 20, 80 and 220 on average
    labels = {10: "cat", 40: "cat", 70: "dog", 160: "dog", 250: "owl"}
    samples = manifest(tmp_path, [{"media": f"level{n}.png", "label": label} for n, label in labels.items()])
    scores, lines, counts, _ = run("classification", Reader(levels), samples)
    assert [line["prediction"] for line in lines] == ["cat", "cat", "dog", "owl", "owl"]
    assert [next(iter(line["nearest"])) for line in lines] == [line["prediction"] for line in lines]
    # A clip, a query of 13 letters, products with 3 labels of 2 dimensions; a fifth of prompts of 24 letters.
    flops = 10_000 + 1300 + 2 * 3 * 2 + 24 / 5
    assert counts == {"classes": 3}
    assert [*scores] == ["top-1", "top-2"]  # and no top-9 of three
    check(scores["top-1"], 4 / 5, 1 / 3, flops)
    check(scores["top-2"], 1.0, 2 / 3, flops)
    found = run("classification", Reader({"cat": 0, "a cat": 40}), samples[:2])  # of one class: chance
    assert (found.counts, [*found.scores]) == ({"classes": 1}, ["top-1"])
    check(found.scores["top-1"], 1.0, 1.0, 10_000 + 1300 + 2 * 2 + 8 / 2)


def test_retrieval_goes_both_ways_over_several_captions(tmp_path):
    levels = {"a": 10, "b": 100, "c": 98, "d": 205}
    lines = [
        {"media": "level10.png", "captions": ["a", "b"]},
        {"media": "level100.png", "captions": ["c"]},
        {"media": "level200.png", "captions": ["d"]},
    ]
    scores, found, counts, _ = run("retrieval", Reader(levels), manifest(tmp_path, lines))
    assert [(line["nearest"], line["rank"]) for line in found] == [("a", 1), ("b", 2), ("d", 1)]
    assert (counts["video_to_text candidates"], counts["text_to_video candidates"]) == (4, 3)
    spent = 3 * (10_000 + 1300) + 4 + 2 * 3 * 4 * 2  # clips, captions of a letter, products
    check(scores["video_to_text r@1"], 2 / 3, (2 / 4 + 1 / 4 + 1 / 4) / 3, spent / 3)
    check(scores["text_to_video r@1"], 3 / 4, 1 / 3, spent / 4)  # "b" is nearest to the second clip
    assert scores["video_to_text median_rank"].cost is None


def test_a_question_is_answered_by_its_candidates_or_by_all_answers(tmp_path):
    levels = {"yes": 0, "no": 100, "red": 50, "scarlet": 70, "blue": 200}
    lines = [
        {"media": "level60.png", "question": "is it?", "answer": "yes", "candidates": ["yes", "no"]},
        {"media": "level40.png", "question": "is it?", "answer": "yes", "candidates": ["no", "yes"]},
        {"media": "level70.png", "question": "what colour?", "answer": "red", "alternatives": ["scarlet"]},
        {"media": "level80.png", "question": "what hue?", "answer": "scarlet", "candidates": ["scarlet", "blue"]},
    ]
    model = Reader(levels)
    scores, found, _, _ = run("vqa", model, manifest(tmp_path, lines), prompt="Q: {question}")
    assert [line["prediction"] for line in found] == ["no", "yes", "scarlet", "scarlet"]
    assert [line["right"] for line in found] == [False, True, True, True]
    assert model.asked == ["Q: is it?", "Q: is it?", "Q: what colour?", "Q: what hue?"]
    texts = len("yes" + "no" + "red" + "scarlet" + "blue")  # all candidates, once each
    spent = 4 * 10_000 + 100 * sum(map(len, model.asked)) + 2 * 2 * (2 + 2 + 3 + 2) + texts
    # The answers of all are yes, red and scarlet, of which two are right for the third question.
    check(scores["accuracy"], 3 / 4, (1 / 2 + 1 / 2 + 2 / 3 + 1 / 2) / 4, spent / 4)
    low, high = scores["accuracy"].interval or (1.0, 0.0)
    assert low < 3 / 4 < high


def test_captions_are_scored_beside_those_of_other_clips(tmp_path):
    levels = {"the cat sleeps on a mat": 10, "two birds fly over the sea": 100}
    lines = [{"media": f"level{n}.png", "captions": [text, "something"]} for text, n in levels.items()]
    scores, found, counts, per_token = run("captioning", Reader(levels), manifest(tmp_path, lines))
    assert [line["prediction"] for line in found] == list(levels)
    assert scores["cider_d"].value > scores["cider_d"].chance == 0
    check(scores["exact_match"], 1, None, 10_000 + 1300 + 50, 3)
    assert counts == {"queries": 2}
    assert per_token.accuracy_within[2:4] == (0, 1)
    assert [(line["tokens"], line["flops"]) for line in found] == [(3, 11_350)] * 2


def test_world_prediction_takes_two_states_as_one_clip(tmp_path):
    pictures = [f"level{n}.png" for n in range(201)]
    lines = [
        {"before": pictures[a], "after": pictures[b], "candidates": [pictures[n] for n in among], "answer": k}
        for a, b, among, k in ((0, 100, (0, 100, 50), 2), (200, 40, (120, 60), 1))  # seen: 50 and 120
    ]
    model = Reader({})
    scores, found, _, _ = run("world_prediction", model, manifest(tmp_path, lines))
    assert [line["prediction"] for line in found] == [2, 0]
    assert model.asked == ["what happens?", *["which?"] * 3, "what happens?", *["which?"] * 2]
    spent = 7 * 10_000 + 100 * sum(map(len, model.asked)) + 2 * 2 * (3 + 2)
    check(scores["accuracy"], 1 / 2, (1 / 3 + 1 / 2) / 2, spent / 2)


class Collapsed(Reader):
    """A model to which everything is alike but for rounding, so that whatever comes first would be the nearest."""

    def __init__(self) -> None:
        super().__init__({})

    def predict(self, states: torch.Tensor, queries: list[str]) -> torch.Tensor:
        return torch.tensor([[0.6, 0.8]]).repeat(len(states), 1)

    def embed_all(self, texts: list[str]) -> torch.Tensor:
        return torch.tensor([[0.6, 0.8]]).repeat(len(texts), 1) * (1 - 1e-7 * torch.arange(len(texts))[:, None])


@pytest.mark.parametrize("first", [True, False])
def test_a_collapsed_model_scores_chance_wherever_the_right_candidate_stands(tmp_path, first):
    letters = ["a", "b", "c", "d"] if first else ["b", "c", "d", "a"]
    states = {"before": "level0.png", "after": "level10.png", "candidates": [f"level{n}0.png" for n in (3, 4, 5, 6)]}
    asked = {"media": "level0.png", "question": "?", "answer": "a", "candidates": letters}
    several = {**asked, "alternatives": ["b"]}
    model = Collapsed()
    for kind, lines, right in (
        ("vqa", [asked, asked], [0.25, 0.25]),
        ("vqa", [several], [0.5]),
        ("world_prediction", [{**states, "answer": 0 if first else 3}], [0.25]),
    ):
        scores, found, _, _ = run(kind, model, manifest(tmp_path, lines))
        assert [line["right"] for line in found] == pytest.approx(right)
        chance = sum(right) / len(right)
        check(scores["accuracy"], chance, chance, scores["accuracy"].cost.flops_per_answer)
    labels = [{"media": "level0.png", "label": label} for label in letters]
    scores = run("classification", model, manifest(tmp_path, labels), top=[1, 3]).scores
    for name, chance in (("top-1", 1 / 4), ("top-3", 3 / 4)):
        # A clip, a query of 13 letters, products with 4 labels of 2 dimensions; prompts of 1 and 3 letters.
        flops = 10_000 + 1300 + 2 * 4 * 2 + (4 * 4) / 4
        check(scores[name], chance, chance, flops)


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_that_cannot_be_read_are_an_error_or_left_out_and_named(tmp_path, workers):
    levels = {"yes": 0, "no": 100}
    asked = [(0, "yes"), (10, "yes"), (100, "no"), (20, "yes"), (90, "no")]
    lines = [{"media": f"level{n}.png", "question": f"{n}?", "answer": answer} for n, answer in asked]
    samples = manifest(tmp_path, lines)
    for level in (0, 20):
        (tmp_path / f"level{level}.png").write_bytes(b"no picture")
    model = Reader(levels)
    refuses(r"level0\.png: cannot be read as a picture", run, "vqa", model, samples, workers=workers)
    task = Task(model, TaskConfig(kind="vqa", skip_broken=True, workers=workers, **SETTINGS), samples, 2)
    scores, found, _, _ = TASKS["vqa"][1](task)
    assert [line["prediction"] for line in found] == ["yes", "no", "no"]
    assert model.asked == ["10?", "100?", "90?"]
    spent = 3 * (10_000 + 2 * 2 * 2) + 100 * len("10?100?90?") + len("yesno")  # of the three, and both candidates
    check(scores["accuracy"], 1, 1 / 2, spent / 3)
    assert task.kept == [samples[i] for i in (1, 2, 4)]
    assert [message.split(": cannot")[0] for message in task.skipped] == [
        f"{number}: {tmp_path}/level{level}.png" for number, level in (("1", 0), ("4", 20))
    ]
    broken = [samples[0], samples[3]]
    refuses(r"none of 2 samples can be read, the first: 1: .*level0\.png", run, "vqa", model, broken, skip_broken=True)


def test_a_world_prediction_without_one_of_its_clips_is_left_out(tmp_path):
    states = {"before": "level0.png", "after": "level100.png", "answer": 0}
    lines = [{**states, "candidates": [f"level{n}.png" for n in among]} for among in ((50, 200), (50, 210), (50, 90))]
    samples = manifest(tmp_path, lines)
    (tmp_path / "level210.png").write_bytes(b"no picture")
    scores, found, _, _ = run("world_prediction", Reader({}), samples, skip_broken=True)
    assert [line["right"] for line in found] == [1, 1]
    assert [len(line["cosines"]) for line in found] == [2, 2]
    spent = 6 * 10_000 + 100 * 2 * (13 + 2 * 6) + 2 * 2 * (2 + 2)
    check(scores["accuracy"], 1, 1 / 2, spent / 2)


def test_captions_of_left_out_clips_are_no_candidates(tmp_path):
    lines = [{"media": f"level{n}.png", "captions": [f"{n}", f"about {n}"]} for n in (0, 50, 100)]
    samples = manifest(tmp_path, lines)
    (tmp_path / "level50.png").write_bytes(b"no picture")
    levels = {text: n for n in (0, 50, 100) for text in (f"{n}", f"about {n}")}
    scores, found, counts, _ = run("retrieval", Reader(levels), samples, skip_broken=True)
    assert [line["captions"] for line in found] == [["0", "about 0"], ["100", "about 100"]]
    assert counts["video_to_text candidates"] == 4
    spent = 2 * (10_000 + 1300) + len("0about 0100about 100") + 2 * 2 * 4 * 2
    for direction, queries in (("video_to_text", 2), ("text_to_video", 4)):
        check(scores[f"{direction} r@1"], 1, 1 / 2, spent / queries)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_checkpoint) -> Path:
    return Path(shutil.copytree(tiny_checkpoint, tmp_path_factory.mktemp("run") / "checkpoint"))


@pytest.mark.parametrize("kind", TASKS)
def test_each_task_is_the_same_on_the_embedded_data_and_on_their_manifest(trained, tmp_path, capsys, kind):
    made = write_samples(world_samples(World(), TASKS[kind][0], 8, 8, 0), tmp_path)
    options = [f"checkpoint={trained}", f"task={kind}", "candidates=8", "accelerator=cpu", "batch_size=3"]
    assert main(["evaluate", *options]) == 0
    assert main(["evaluate", *options, f"task.manifest={made}", f"output={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("chance ") >= 2
    assert printed.count("FLOPs an answer; a right one: ") >= 2
    first, second = trained.parent / f"task_{kind}", tmp_path / "out"
    assert (first / "predictions.jsonl").read_text() == (second / "predictions.jsonl").read_text()
    documents = [read_document(folder, TaskEvaluation) for folder in (first, second)]
    assert documents[0].scores == documents[1].scores
    assert [document.data for document in documents] == ["embedded", str(made)]
    assert documents[0].samples == len((first / "predictions.jsonl").read_text().splitlines())


def test_left_out_samples_are_in_the_record_and_in_the_report(trained, tmp_path, capsys, fails):
    made = write_samples(world_samples(World(), "caption", 4, 2, 0), tmp_path)
    (tmp_path / "clip0001" / "0000.png").write_bytes(b"no picture")
    options = [f"checkpoint={trained}", "task=captioning", f"task.manifest={made}", "accelerator=cpu"]
    fails(["evaluate", *options], "0000.png: cannot be read as a picture")
    assert main(["evaluate", *options, "task.skip_broken=true", f"output={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    document = read_document(tmp_path / "out", TaskEvaluation)
    [message] = document.skipped
    assert "skipped 1 of 4 samples:" in printed
    assert message in printed
    assert document.samples == 3
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["clip0000", "clip0002", "clip0003"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["task=retrieval", "task.manifest=none.jsonl"], "manifest not found: none.jsonl"),
        (["task=retrieval", "+task.kss=[1]"], "unknown key 'task.kss'; nearest valid: task.ks"),
        (["task=retrieval", "task.ks=[0]"], "task.ks[0] must be >= 1, got 0"),
        (["task=classification", "task.templates=[dog]"], "task.templates[0] must contain {label}, got 'dog'"),
        (["task=vqa", "task.kind=quiz"], "task.kind must be one of classification, retrieval, vqa"),
        (["task=vqa", "task.manifest={made}"], "samples must be of kind question, got caption"),
    ],
)
def test_bad_tasks_end_in_one_line(trained, tmp_path, fails, options, message):
    made = write_samples(world_samples(World(), "caption", 2, 1, 0), tmp_path)
    options = [option.replace("{made}", str(made)) for option in options]
    fails(["evaluate", f"checkpoint={trained}", "accelerator=cpu", *options], message)


def test_templates_are_given_as_the_documentation_has_it(trained, tmp_path):
    text = (Path(__file__).parents[2] / "docs" / "vl_jepa.md").read_text(encoding="utf-8")
    [option] = set(re.findall(r"`'(task\.templates=.*?)'`", text))
    made = write_samples(world_samples(World(), "class", 4, 2, 0), tmp_path)
    options = [f"checkpoint={trained}", "task=classification", f"task.manifest={made}", "accelerator=cpu"]
    assert main(["evaluate", *options, f"output={tmp_path}/out", option, "task.limit=1"]) == 0
    [line] = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "clip0000"


def test_a_task_needs_a_vl_jepa(tmp_path, fails):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"format": checkpoint.FORMAT, "variant": "llm_jepa", "model": {}, "data": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    fails(["evaluate", f"checkpoint={folder}", "task=vqa"], "task needs a checkpoint of vl_jepa, got one of llm_jepa")
