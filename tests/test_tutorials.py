"""The tutorials, as a reader follows them: every block of Python and every command of a page, in order, in one folder.

Commands get further keys, and a few numbers in the code become smaller: nothing else is changed.
"""

from __future__ import annotations

import re
import shlex
import sys
import time
import types
from itertools import pairwise
from pathlib import Path

import pytest
from conftest import FEW_POLICIES, SHORT, SMALL_TEXT_PARTS, refuses

import jepa.live.command
from jepa.cli import main
from jepa.results import AnswerResults, StreamResults, TaskEvaluation, read_document

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ["index.md", *sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("tutorials/*.md"))]
SMALLER = {  # in the code of the pages
    "seconds=240": "seconds=120",
    "COUNT, HELD = 400, 60": "COUNT, HELD = 16, 8",
    "range(6)": "range(4)",
    "duration=20.0": "duration=12.0",
    '"duration": 20.0': '"duration": 12.0',
}
FRAMES = ["precision=32-true", *SHORT]
WORDS = ["stage.epochs=0.5", "stage.batch_size=16", "stage.validate_every=5", "stage.validation_pairs=8", "workers=0"]
WORDS += ["model.language_model.architecture.hidden_size=32", "model.language_model.architecture.num_hidden_layers=1"]
WORDS += ["answers.limit=4", "accelerator=cpu", "precision=32-true"]
SHORTER = {  # further keys of the commands that begin so; the first that fits
    "jepa train experiment=scratch": [*FRAMES, *SMALL_TEXT_PARTS],
    "jepa train experiment=demo": [*FRAMES, *(key for key in SMALL_TEXT_PARTS if "y_encoder" not in key)],
    "jepa train experiment=llm_jepa_regex": WORDS,
    "jepa train -m experiment=llm_jepa_controls": WORDS,
    "jepa evaluate checkpoint=outputs/quick/": [
        *(f"streams.dense.{key}" for key in ("calibration=2", "test=2", "seconds=20")),
        *("candidates=12", "accelerator=cpu"),
    ],
    "jepa evaluate checkpoint=outputs/mine/checkpoint output=": ["candidates=12", "accelerator=cpu"],
    "jepa report evaluation=outputs/quick/": [*FEW_POLICIES, "workers=0"],
    "jepa report evaluation=outputs/mine/long": [*FEW_POLICIES, "workers=0"],
    "jepa live": ["port=0", "accelerator=cpu"],
}
# After two steps latents may be anything.
pytestmark = pytest.mark.filterwarnings("ignore::jepa.training.modules.CollapseWarning")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, tuple[Path, set[str]]]:
    """A folder for the pages that share a checkpoint, with the commands that were run in it, and one for each other."""
    shared = tmp_path_factory.mktemp("quick"), set[str]()
    own = {name: (tmp_path_factory.mktemp(Path(name).stem), set[str]()) for name in PAGES}
    return own | dict.fromkeys(("index.md", "tutorials/read_report.md", "tutorials/add_policy.md"), shared)


@pytest.fixture
def follow(folders, monkeypatch, capsys):
    """Follows a page; gives its folder, the names of its code, and all that it printed."""

    def serve_for_a_while(server, listening, told):
        end = time.monotonic() + 3
        return serve(server, listening, told, lambda: time.monotonic() > end)

    def run(name: str) -> tuple[Path, dict[str, object], str]:
        folder, done = folders[name]
        monkeypatch.chdir(folder)
        scope: dict[str, object] = {}
        text = (DOCS / name).read_text(encoding="utf-8")
        blocks = re.findall(r"(?:File `(jepa/\w[\w/]*)\.py`:\n\n)?```(\w*)\n(.*?)```", text, re.S)
        for module, language, block in blocks:
            if language == "python":
                for number, smaller in SMALLER.items():
                    block = block.replace(number, smaller)
                names = scope
                if module:
                    made = types.ModuleType(module.replace("/", "."))
                    monkeypatch.setitem(sys.modules, made.__name__, made)
                    names = made.__dict__
                exec(compile(block, name, "exec"), names)
                continue
            assert language == "", f"{name}: a block is of Python or of commands, got {language}"
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("jepa ") and line not in done:
                    done.add(line)
                    keys = next((keys for start, keys in SHORTER.items() if line.startswith(start)), [])
                    assert main([*shlex.split(line, comments=True)[1:], *keys]) == 0, line
        return folder, scope, capsys.readouterr().out

    serve = jepa.live.command.serve
    monkeypatch.setattr(jepa.live.command, "serve", serve_for_a_while)
    return run


def test_five_minutes(follow):
    folder, _, printed = follow("index.md")
    said = [line.split(" ", 2)[2] for line in printed.splitlines() if re.match(r"\d\.0 \d\.0 ", line)]
    assert ["fridge" in text for text in said] == [True, False]
    assert "2 calls of the decoder for 6 embeddings" in printed
    assert "live: http://127.0.0.1:" in printed
    assert (folder / "outputs/quick/report.html").is_file()


def test_your_own_embeddings(follow):
    _, scope, printed = follow("tutorials/decode_embeddings.md")
    truth = scope["truth"]
    changes = 1 + sum(a != b for a, b in pairwise(truth))
    shares = [float(share) for share in re.findall(r"([\d.]+) right", printed)]
    calls = [int(count) for count in re.findall(r"(\d+) calls", printed)]
    assert calls[0] == len(truth)
    assert shares[0] > 0.9  # uniform: "nearly all"
    assert shares[3:6] == shares[:1] * 3  # thresholds from 1 to 4
    assert calls[3:6] == [changes] * 3
    assert shares[6] < 0.8 * shares[0]  # 8 misses changes
    cached, live = scope["cached"].ledger, scope["live"].ledger
    assert cached.decoder.calls + cached.cache.hits == live.decoder.calls + live.cache.hits
    assert cached.decoder.calls < changes  # states come again


def test_your_own_pairs(follow):
    folder, scope, printed = follow("tutorials/llm_jepa_pairs.md")
    assert len(scope["pairs"]) == 704
    results = read_document(folder / "outputs/compare/results.json", AnswerResults)
    assert {arm.name if hasattr(arm, "name") else arm for arm in results.arms} == {"ntp", "llm_jepa"}
    assert printed.count("->") >= 2


def test_your_own_videos(follow):
    folder, _, printed = follow("tutorials/vl_jepa_videos.md")
    for task in ("retrieval", "captioning"):
        document = read_document(folder / f"outputs/mine/task_{task}/evaluation.json", TaskEvaluation)
        assert document.name == "mine"
    results = read_document(folder / "outputs/mine/report/results.json", StreamResults)
    assert results.settings["videos"].streams.test == 2
    assert "it says: " in printed


def test_reading_a_report(follow):
    _, scope, printed = follow("tutorials/read_report.md")
    savings = scope["analysis"].headline_savings(scope["dense"])
    assert len(re.findall(r"no operating point|quality kept", printed)) == len(savings) > 1
    assert "decoder calls, " in printed


def test_a_policy_of_your_own(follow):
    follow("tutorials/read_report.md")  # its evaluation
    folder, _, printed = follow("tutorials/add_policy.md")
    assert "0.0 1.0 0\n2.0 3.0 1\n4.0 4.0 2\n" in printed
    swept = read_document(folder / "outputs/quick/time_slot/results.json", StreamResults)
    assert "time_slot" in swept.settings["dense"].curves


def test_the_animation_shows_what_was_known_at_a_moment(follow, monkeypatch, script):
    """The stream is drawn again from the results, and a text appears when it was emitted."""
    folder, *_ = follow("tutorials/read_report.md")
    script = script("draw_animation")
    results = read_document(folder / "outputs/quick/results.json", StreamResults)
    film = script.Film(results, "dense", 20.0)
    drawn: list[str] = []
    monkeypatch.setattr(script.Canvas, "text", lambda self, x, y, words, *style, **more: drawn.append(words))
    for now in (0.0, 10.0, 30.0):  # at its end all is known
        drawn.clear()
        assert film.frame(now).size == (script.WIDTH, script.HEIGHT)
        known = [decode for decode in film.selective if decode.emitted_at <= now]
        assert sum(text.startswith("annotated: ") for text in drawn) == min(len(known), script.ROWS)
        assert str(sum(decode.emitted_at <= now for decode in film.uniform)) in drawn
    assert known
    world = {**results.config["train"], "world": {**results.config["train"]["world"], "held_out_percent": 50}}
    other = results.model_copy(update={"config": {**results.config, "train": world}})
    refuses("must be of the world", script.Film, other, "dense", 20.0)


def test_every_tutorial_is_followed():
    followed = set(re.findall(r'follow\("([^"]+)"\)', Path(__file__).read_text(encoding="utf-8")))
    assert followed == set(PAGES)
