"""Zero-shot tasks on manifests and on the embedded data, through the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import tiny_config

from jepa import checkpoint
from jepa.cli import main
from jepa.data.manifests import read_manifest
from jepa.data.world import World
from jepa.data.world_tasks import write_world_manifest
from jepa.evaluation import zero_shot
from jepa.evaluation.zero_shot import _Task
from jepa.selective import Decoded

SETTINGS: dict[str, Any] = {
    "manifest": None, "limit": 0, "fps": None, "workers": 0, "query": "what happens?", "action_query": "which?",
    "templates": ["{label}", "a {label}"], "top": [1, 2, 9], "ks": [1, 2], "prompt": "{question}",
    "candidate": "{candidate}",
}  # fmt: skip
KINDS = {
    "classification": "class",
    "retrieval": "caption",
    "vqa": "question",
    "captioning": "caption",
    "world_prediction": "world_prediction",
}


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

    def decode(self, latents: torch.Tensor) -> list[Decoded]:
        names = {level: text for text, level in self.levels.items()}
        levels = (torch.atan2(latents[:, 1], latents[:, 0]) * 100).round()
        return [Decoded(names[int(level)], 3, 3, flops=50) for level in levels]


def cost(accuracy: float, flops: float, tokens: float = 0.0) -> dict[str, Any]:
    """Of an answer, and of a right one."""
    one = {"tokens_per_answer": tokens, "flops_per_answer": pytest.approx(flops)}
    return one | {
        "tokens_per_right_answer": pytest.approx(tokens / accuracy),
        "flops_per_right_answer": pytest.approx(flops / accuracy),
    }


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


def run(kind: str, model: Reader, samples: list[Any], **settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return zero_shot._TASKS[kind](_Task(model, {**SETTINGS, **settings}, samples, 2, 0, 1))


def test_a_clip_has_the_label_whose_prompts_are_nearest_on_average(tmp_path):
    levels = {"cat": 0, "a cat": 40, "dog": 60, "a dog": 100, "owl": 200, "a owl": 240}  # 20, 80 and 220 on average
    labels = {10: "cat", 40: "cat", 70: "dog", 160: "dog", 250: "owl"}
    samples = manifest(tmp_path, [{"media": f"level{n}.png", "label": label} for n, label in labels.items()])
    scores, lines = run("classification", Reader(levels), samples)
    assert [line["prediction"] for line in lines] == ["cat", "cat", "dog", "owl", "owl"]
    assert [next(iter(line["nearest"])) for line in lines] == [line["prediction"] for line in lines]
    # A clip, a query of 13 letters, products with 3 labels of 2 dimensions; a fifth of prompts of 24 letters.
    flops = 10_000 + 1300 + 2 * 3 * 2 + 24 / 5
    assert scores == {
        "classes": 3,
        "top-1": {"value": pytest.approx(4 / 5), "chance": 1 / 3, "cost": cost(4 / 5, flops)},
        "top-2": {"value": 1.0, "chance": 2 / 3, "cost": cost(1.0, flops)},  # and no top-9 of three
    }


def test_retrieval_goes_both_ways_over_several_captions(tmp_path):
    levels = {"a": 10, "b": 100, "c": 98, "d": 205}
    lines = [
        {"media": "level10.png", "captions": ["a", "b"]},
        {"media": "level100.png", "captions": ["c"]},
        {"media": "level200.png", "captions": ["d"]},
    ]
    scores, found = run("retrieval", Reader(levels), manifest(tmp_path, lines))
    assert [(line["nearest"], line["rank"]) for line in found] == [("a", 1), ("b", 2), ("d", 1)]
    assert scores["video_to_text"]["r@1"]["value"] == pytest.approx(2 / 3)
    assert scores["text_to_video"]["r@1"]["value"] == pytest.approx(3 / 4)  # "b" is nearest to the second clip
    assert scores["video_to_text"]["r@1"]["chance"] == pytest.approx((2 / 4 + 1 / 4 + 1 / 4) / 3)
    assert (scores["video_to_text"]["candidates"], scores["text_to_video"]["candidates"]) == (4, 3)
    spent = 3 * (10_000 + 1300) + 4 + 2 * 3 * 4 * 2  # clips, captions of a letter, products
    assert scores["video_to_text"]["r@1"]["cost"] == cost(2 / 3, spent / 3)
    assert scores["text_to_video"]["r@1"]["cost"] == cost(3 / 4, spent / 4)
    assert "cost" not in scores["video_to_text"]["median_rank"]


def test_a_question_is_answered_by_its_candidates_or_by_all_answers(tmp_path):
    levels = {"yes": 0, "no": 100, "red": 50, "scarlet": 70, "blue": 200}
    lines = [
        {"media": "level60.png", "question": "is it?", "answer": "yes", "candidates": ["yes", "no"]},
        {"media": "level40.png", "question": "is it?", "answer": "yes", "candidates": ["no", "yes"]},
        {"media": "level70.png", "question": "what colour?", "answer": "red", "alternatives": ["scarlet"]},
        {"media": "level80.png", "question": "what hue?", "answer": "scarlet", "candidates": ["scarlet", "blue"]},
    ]
    model = Reader(levels)
    scores, found = run("vqa", model, manifest(tmp_path, lines), prompt="Q: {question}")
    assert [line["prediction"] for line in found] == ["no", "yes", "scarlet", "scarlet"]
    assert [line["right"] for line in found] == [False, True, True, True]
    assert model.asked == ["Q: is it?", "Q: is it?", "Q: what colour?", "Q: what hue?"]
    assert scores["accuracy"]["value"] == 3 / 4
    # The answers of all are yes, red and scarlet, of which two are right for the third question.
    assert scores["accuracy"]["chance"] == pytest.approx((1 / 2 + 1 / 2 + 2 / 3 + 1 / 2) / 4)
    texts = len("yes" + "no" + "red" + "scarlet" + "blue")  # all candidates, once each
    spent = 4 * 10_000 + 100 * sum(map(len, model.asked)) + 2 * 2 * (2 + 2 + 3 + 2) + texts
    assert scores["accuracy"]["cost"] == cost(3 / 4, spent / 4)
    assert scores["accuracy"]["interval"][0] < 3 / 4 < scores["accuracy"]["interval"][1]


def test_captions_are_scored_beside_those_of_other_clips(tmp_path):
    levels = {"the cat sleeps on a mat": 10, "two birds fly over the sea": 100}
    lines = [{"media": f"level{n}.png", "captions": [text, "something"]} for text, n in levels.items()]
    scores, found = run("captioning", Reader(levels), manifest(tmp_path, lines))
    assert [line["prediction"] for line in found] == list(levels)
    assert scores["exact_match"] == 1
    assert scores["cider_d"]["value"] > scores["cider_d"]["chance"] == 0
    assert scores["cost"] == cost(1, 10_000 + 1300 + 50, 3)
    assert [(line["tokens"], line["flops"]) for line in found] == [(3, 11_350)] * 2


def test_world_prediction_takes_two_states_as_one_clip(tmp_path):
    lines = [
        {
            "before": f"level{a}.png",
            "after": f"level{b}.png",
            "candidates": [f"level{n}.png" for n in among],
            "answer": k,
        }
        for a, b, among, k in ((0, 100, (0, 100, 50), 2), (200, 40, (120, 60), 1))  # seen: 50 and 120
    ]
    model = Reader({})
    scores, found = run("world_prediction", model, manifest(tmp_path, lines))
    assert [line["prediction"] for line in found] == [2, 0]
    assert scores["accuracy"]["value"] == 1 / 2
    assert scores["accuracy"]["chance"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert model.asked == ["what happens?", *["which?"] * 3, "what happens?", *["which?"] * 2]
    spent = 7 * 10_000 + 100 * sum(map(len, model.asked)) + 2 * 2 * (3 + 2)
    assert scores["accuracy"]["cost"] == cost(1 / 2, spent / 2)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model) -> Path:
    folder = tmp_path_factory.mktemp("run") / "checkpoint"
    checkpoint.save(tiny_model, tiny_config(), folder)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_each_task_is_the_same_on_the_embedded_data_and_on_their_manifest(trained, tmp_path, capsys, kind):
    made = write_world_manifest(World(), KINDS[kind], 8, 8, 0, tmp_path)
    options = [f"checkpoint={trained}", f"task={kind}", "candidates=8", "accelerator=cpu", "batch_size=3"]
    assert main(["evaluate", *options]) == 0
    assert main(["evaluate", *options, f"task.manifest={made}", f"output={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("chance ") >= 2
    assert printed.count("FLOPs an answer; a right one: ") >= 2
    first, second = trained.parent / f"task_{kind}", tmp_path / "out"
    assert (first / "predictions.jsonl").read_text() == (second / "predictions.jsonl").read_text()
    records = [json.loads((folder / "evaluation.json").read_text()) for folder in (first, second)]
    assert records[0]["scores"] == records[1]["scores"]
    assert [record["data"] for record in records] == ["embedded", str(made)]
    assert records[0]["samples"] == len((first / "predictions.jsonl").read_text().splitlines())


def test_a_limit_takes_the_first_samples(trained, tmp_path):
    made = write_world_manifest(World(), "caption", 6, 2, 0, tmp_path)
    options = [f"checkpoint={trained}", "task=captioning", f"task.manifest={made}", "task.limit=4", "accelerator=cpu"]
    assert main(["evaluate", *options, f"output={tmp_path}/out"]) == 0
    ids = [json.loads(line)["id"] for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert ids == [f"clip{i:04d}" for i in range(4)]


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
def test_bad_tasks_end_in_one_line(trained, tmp_path, capsys, options, message):
    made = write_world_manifest(World(), "caption", 2, 1, 0, tmp_path)
    options = [option.replace("{made}", str(made)) for option in options]
    assert main(["evaluate", f"checkpoint={trained}", "accelerator=cpu", *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_task_needs_a_vl_jepa(tmp_path, capsys):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    config = {"format": checkpoint.FORMAT, "variant": "llm_jepa", "model": {}, "data": {}}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["evaluate", f"checkpoint={folder}", "task=vqa"]) == 2
    assert "task needs a checkpoint of vl_jepa, got one of llm_jepa" in capsys.readouterr().err
