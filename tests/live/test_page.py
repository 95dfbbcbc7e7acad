"""The page of a live session in headless Chromium: it shows what it is told, and asks for what is done on it."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("websockets")

from browser import Browser, chromium_page, wait
from conftest import write_video
from omegaconf import OmegaConf
from scripted import Script

from jepa.cli import compose
from jepa.config import validate
from jepa.live import Changes, LiveConfig, Source
from jepa.live.command import bind, make, serve
from jepa.live.server import Server
from jepa.report import figures
from jepa.results import StreamEvaluation, read_document

PAGE = Path(figures.__file__).parents[1] / "live" / "page"
COUNTED = {
    "decoder_calls": 12, "decoder_flops": 161_771_520_123_457, "decoder_seconds": 0.1234567890123, "cache_lookups": 20,
    "cache_hits": 8, "predictor_calls": 128, "encoder_calls": 130, "flops": 234_771_520_123_459, "seconds": 1.5,
}  # fmt: skip
UNIFORM = {"rate_hz": 1.0, "decoder_calls": 40, "decoder_flops": 5e14, "decoder_seconds": 0.4, "flops": 6e14}


@pytest.fixture(scope="module")
def script() -> Script:
    """Twenty steps of two texts, and counters."""
    script = Script()
    for step in range(20):
        script.tell("step", time=step / 2, step=step, signal=step / 10, decoded=step == 8, uniform=step % 2 == 0)
    tell_text(script, "a red star blinks", 0.0, 4.0)
    tell_text(script, "the blue bar spins", 4.0, 9.0, "cache")
    latency = {"p50": 0.01, "p95": 0.02, "p99": None}
    frames = {"taken": 1234, "dropped": 5}
    seconds = {"latency": latency, "compute": latency}
    script.tell("counters", time=9.5, steps=20, frames=frames, selective=COUNTED, uniform=UNIFORM, **seconds)
    return script


def tell_text(script: Script, text: str, start: float, end: float, source: str = "decoder") -> None:
    script.tell("emission", text=text, start=start, end=end, emitted_at=end + 0.5, source=source, latency_seconds=0.012)


@pytest.fixture(scope="module")
def page(script: Script, chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium_page(chromium, tmp_path_factory.mktemp("chromium")) as browser, script.serve() as url:
        browser.look(1280)
        browser.open(url)
        browser.wait("document.querySelector('#text').textContent === 'the blue bar spins'")
        yield browser
        assert browser.errors == []


def test_the_text_changes_and_says_since_when(page, script):
    tell_text(script, "the blue bar spins", 9.0, 9.5)
    tell_text(script, "all is still", 9.5, 10.75)
    page.wait("document.querySelector('#text').textContent === 'all is still'")
    page.wait("document.querySelector('#earlier li:nth-child(2)')")
    assert page.text("#earlier li") == "0:04the blue bar spins"  # two texts that are alike are one
    assert page.text("#since").startswith("since 0:09, seen to 0:10 · ")
    assert page.run("document.querySelector('#text').ariaLive") == "polite"


def test_the_counters_are_those_of_the_ledger_to_the_digit(page):
    page.wait("document.querySelector('#selective-flops').value")
    shown = page.run("Object.fromEntries([...document.querySelectorAll('data')].map(each => [each.id, each.value]))")
    for key in ("decoder_calls", "decoder_flops", "decoder_seconds", "flops"):
        assert float(shown[f"selective-{key}"]) == COUNTED[key]
        assert float(shown[f"uniform-{key}"]) == UNIFORM[key]
    assert page.text("#selective-decoder_flops small") == f"{COUNTED['decoder_flops']:,}"
    assert page.text("#ratio") == "3.33×"


def test_the_timeline_has_what_happened(page):
    marks = "document.querySelectorAll('#track .{} .mark{}').length"
    assert page.run(marks.format("steps", "")) == 20
    assert page.run(marks.format("uniform", "")) == 10
    assert page.run(marks.format("decodes", ".cached")) == 1
    page.wait(marks.format("pictures", " canvas"))
    left, right = page.run("[...document.querySelectorAll('#track .uniform .mark')].slice(0, 2).map(e => e.offsetLeft)")
    assert right - left == pytest.approx(18, abs=1)  # pixels a second


def move(page: Browser, name: str, value: Any) -> None:
    page.run(f"(e => {{ e.value = {value!r}; e.dispatchEvent(new Event('input')) }})(document.forms.controls.{name})")


@pytest.mark.parametrize(("name", "value"), [("threshold", 2.5), ("cache_threshold", 0.1), ("uniform_rate_hz", 0.5)])
def test_a_control_reaches_the_server_and_leaves_a_mark(page, script, name, value):
    lines = page.run("document.querySelectorAll('.line').length")
    move(page, name, value)
    wait(lambda: {name: value} in script.asked)
    assert script.session["settings"][name] == value
    page.wait(f"document.querySelectorAll('.line').length === {lines + 1}")
    assert str(value) in page.text(f"#{name}-value")


def test_a_refusal_is_told_and_the_control_goes_back(page):
    page.run("(e => { e.value = ' '; e.dispatchEvent(new Event('change')) })(document.forms.controls.query)")
    page.wait("document.querySelector('#alert').textContent === 'query must not be empty'")
    assert page.run("document.forms.controls.query.value") == "what happens?"


def test_a_sentence_rings(page, script):
    page.run("document.querySelector('#sentence').value = 'a red star blinks'")
    page.run("document.querySelector('#tell').requestSubmit()")
    page.wait("document.querySelector('#triggers li')")
    assert script.session["triggers"][0]["sentence"] == "a red star blinks"
    page.wait("performance.now() - opened > 1500")  # what is told on opening is no news, and does not ring
    script.tell("trigger", sentence="a red star blinks", time=9.0, score=0.7, threshold=0.5)
    page.wait("document.querySelector('.line.rung')")
    assert page.text(".line.rung") == "a red star blinks"
    assert page.text("#rang") == "0:09 a red star blinks"
    page.wait("document.querySelector('#triggers li.rung')")
    assert "rang once" in page.text("#triggers li small")


def test_a_saved_session_says_where(page):
    page.run("document.querySelector('#save').click()")
    page.wait("!document.querySelector('#saved').hidden")
    assert page.text("#saved code") == "jepa report evaluation=outputs/live/evaluation"


def test_a_lost_source_is_told(page, script):
    script.tell("source", status="lost", message="connection timed out", attempt=3, retry_seconds=60.0)
    page.wait("document.querySelector('#status').textContent === 'source lost, attempt 3'")
    assert re.fullmatch(r"connection timed out; next try in (60|5\d) s", page.text("#message"))
    script.tell("source", status="connected", message="", attempt=0, retry_seconds=None)
    page.wait("document.querySelector('#status').textContent === 'running'")


@pytest.mark.parametrize("width", [390, 820, 1280])
def test_nothing_is_wider_than_the_window(page, width):
    page.look(width)
    needed, shown = page.run("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert needed <= shown == width


def test_every_control_has_a_name(page):
    tree = page.command("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "slider", "textbox", "combobox", "region"}
    names = {node["name"]["value"].strip() for node in tree if node.get("role", {}).get("value") in roles}
    assert {"Pause", "Session", "Policy", "Timeline, scrolls sideways"} <= names
    assert "" not in names


def test_the_colours_are_those_of_the_report(page):
    names = {"surface": "surface", "ink": "ink", "muted": "muted", "grid": "grid", "series-4": "selective"}
    names |= {"series-1": "uniform", "series-0": "step", "series-3": "alarm", "series-5": "good"}
    for dark, theme in enumerate((figures.LIGHT, figures.DARK)):
        page.look(1280, dark=bool(dark))
        style = "getComputedStyle(document.documentElement).getPropertyValue('--{}').trim()"
        assert {role: page.run(style.format(name)) for role, name in names.items()} == {r: theme[r] for r in names}


def test_a_clock_that_jumps_starts_the_timeline_over(page, script):
    script.tell("step", time=90_000.0, step=20, signal=None, decoded=False, uniform=False)
    page.wait("document.querySelectorAll('#track .steps .mark').length === 1")
    script.tell("step", time=90_010.0, step=21, signal=None, decoded=False, uniform=False)
    page.wait("document.querySelectorAll('#track .axis .mark').length === 1")
    assert page.text("#track .axis .mark") == "25:00:10"


def test_a_server_that_goes_and_comes_back(chromium, tmp_path):
    script = Script()
    with chromium_page(chromium, tmp_path / "chromium") as browser:
        with script.serve() as url:
            browser.open(url)
            tell_text(script, "before", 0.0, 1.0)
            browser.wait("document.querySelector('#text').textContent === 'before'")
        browser.wait("document.querySelector('#status').textContent === 'no server'")
        assert not browser.run("document.querySelector('#alert').hidden")
        tell_text(script, "meanwhile", 1.0, 2.0)
        with script.serve():
            browser.wait("document.querySelector('#text').textContent === 'meanwhile'")
            assert browser.run("document.querySelector('#alert').hidden")
            assert browser.run("document.querySelectorAll('.texts .span').length") == 2  # none twice


# --- Before the real server.


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, str]]:
    """The tiny model over an endless stream, and over a file of 24 s played as fast as it can be."""
    folder = tmp_path_factory.mktemp("live")
    write_video(folder / "video.mp4", seed=0)
    options = [f"checkpoint={tiny_checkpoint}", f"output={folder / 'saved'}", "policy=uniform", "port=0"]
    made = make(validate(OmegaConf.to_container(compose("live", options)), LiveConfig))
    made.saver.candidates = 20
    made.engine.add(str(folder / "video.mp4"), Changes(policy="uniform"), query=made.query, fast=True)
    listening, stop, urls = bind("127.0.0.1", 0), threading.Event(), list[str]()
    thread = threading.Thread(target=lambda: asyncio.run(serve(made, listening, urls.append, stop.is_set)))
    thread.start()
    try:
        yield made, wait(lambda: urls)[0]
    finally:
        stop.set()
        thread.join(20)
        made.engine.stop()
        listening.close()


def test_the_page_of_the_real_server(server, chromium, tmp_path, tmp_path_factory):
    made, url = server
    endless, file = made.engine.sessions.values()
    with chromium_page(chromium, tmp_path / "chromium") as page:
        page.look(1280)
        page.open(url)
        page.wait("document.querySelectorAll('.texts .span').length > 2")  # uniform decoding at 1 Hz
        assert page.text("#text") in {emission.text for emission in endless.emissions}
        page.wait("document.querySelectorAll('.pictures canvas').length > 0")

        move(page, "policy", "gate")
        wait(lambda: endless.described()["settings"]["policy"] == "gate")
        page.wait("document.forms.controls.threshold.max === '6'")
        move(page, "threshold", 4.5)
        wait(lambda: endless.described()["settings"]["threshold"] == 4.5)

        page.run("document.querySelector('#sentence').value = 'a red star blinks'")
        page.run("document.querySelector('#tell').requestSubmit()")
        wait(lambda: [each.sentence for each in endless.watched] == ["a red star blinks"])
        endless.change(Changes(triggers=[made.engine.setup.watch("a red star blinks", threshold=-1.0)]))
        page.wait("document.querySelector('.line.rung')")

        page.run("document.querySelector('#pause').click()")
        wait(lambda: endless.paused)
        page.wait("document.querySelector('#status').textContent === 'paused'")

        wait(lambda: file.status == "ended")
        page.run(f"(e => {{ e.value = {file.id!r}; e.onchange() }})(document.querySelector('#sessions'))")
        page.wait("document.querySelector('#status').textContent === 'ended'")
        page.wait(f"document.querySelector('#selective-flops').value == {file.ledger.total_flops}")
        counted = "document.querySelector('#selective-decoder_{}').value"
        shown = {key: page.run(counted.format(key)) for key in ("calls", "flops", "seconds")}
        page.run("document.querySelector('#save').click()")
        page.wait("!document.querySelector('#saved').hidden")
        folder = Path(page.text("#saved code").partition("evaluation=")[2])

        empty = made.engine.add(Source("push"), Changes(policy="uniform"), query=made.query)
        page.wait("document.querySelectorAll('#sessions option').length === 3")
        page.run(f"(e => {{ e.value = {empty.id!r}; e.onchange() }})(document.querySelector('#sessions'))")
        page.wait("document.querySelector('#text').textContent === 'Listening…'")
        assert page.run("document.querySelectorAll('#track .mark').length") == 0  # nothing of the session before
        assert (page.text("#ratio"), page.text("#bar-selective"), page.text("#frames")) == ("–", "0", "")
        assert page.errors == []
    ledger = read_document(folder, StreamEvaluation).session.ledger
    assert {key: float(value) for key, value in shown.items()} == {key: getattr(ledger.decoder, key) for key in shown}


def test_the_page_asks_no_other_host():
    for path in PAGE.iterdir():
        found = re.findall(r"(?:https?:)?//[\w.-]+\.\w+", path.read_text(encoding="utf-8"))
        assert [each for each in found if "www.w3.org" not in each] == []
