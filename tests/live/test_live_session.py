"""Sessions and their engine: as the recorded stream, whatever is batched with what; settings, events, failures."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from time import monotonic, sleep

import av
import numpy as np
import pytest
from conftest import refuses, tiny_config

from jepa.cli import compose, main
from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.evaluation.streams import SPLITS, load_streams
from jepa.live import Changes, Engine, EventLog, Mailbox, Source
from jepa.live.recordings import paraphrases
from jepa.live.saving import Saver
from jepa.live.session import uniform_decodes
from jepa.operations import OperationLedger
from jepa.results import StreamEvaluation, StreamResults, read_document
from jepa.selective import Gate, SelectiveDecoder, Uniform

QUERY = CAPTION_QUERIES[0]
WORLD = World()
STYLE = StreamStyle(mean_event=3.0)
GATE = Changes(policy="gate", threshold=0.01)


def pictures(seconds: float, seed: int = 0, start: float = 0.0):
    """Pictures of the world, 8 a second."""
    source = WORLD.stream("s", (seed,), seconds, STYLE)
    for number, frame in enumerate(frame for chunk in source.frames() for frame in chunk):
        yield start + number / 8, av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")


def drain(engine, *sessions):
    deadline = monotonic() + 60
    while any(session.status != "ended" for session in sessions):
        assert monotonic() < deadline
        engine.work() or sleep(0.01)


def events(session, kind):
    return [event.data for event in session.log.after(0) if event.kind == kind]


@pytest.fixture
def engine(live_setup):
    made = Engine(live_setup, WORLD)
    yield made
    made.stop()
    assert not any(session.alive for session in made.sessions.values())


def alone(model, seconds, seed):
    """The same stream through the public functions."""
    ledger = OperationLedger()
    selective = SelectiveDecoder(Gate(0.01, agreement=8.0), model, ledger, latent_delay=model.window / 2)
    video = np.stack([shot.to_ndarray() for _, shot in pictures(seconds, seed)])
    emissions = []
    for latents, times in model.stream([video], 2.0, QUERY, ledger):
        for latent, time in zip(latents, times.tolist(), strict=True):
            emissions += selective.step(latent, time)
    return emissions + selective.finish(), ledger


def test_sessions_that_share_a_model_decode_as_each_alone(engine, live_setup, monkeypatch):
    seconds, batches, decode = [12.0, 7.5, 9.0], list[int](), live_setup.model.decode
    monkeypatch.setattr(live_setup.model, "decode", lambda latents: batches.append(len(latents)) or decode(latents))
    sessions = [
        engine.add(Source(f"s{seed}", lambda seed=seed, s=s: pictures(s, seed)), GATE, query=QUERY, fast=True)
        for seed, s in enumerate(seconds)
    ]
    drain(engine, *sessions)
    assert len(batches) < sum(batches) == sum(session.ledger.decoder.calls for session in sessions)
    for seed, (session, length) in enumerate(zip(sessions, seconds, strict=True)):
        expected, ledger = alone(live_setup.model, length, seed)
        assert [each.text for each in session.emissions] == [each.text for each in expected]
        assert [each.start for each in session.emissions] == [each.start for each in expected]
        for part in ("encoder", "predictor", "decoder"):
            ours, theirs = asdict(getattr(session.ledger, part)), asdict(getattr(ledger, part))
            assert ours | {"seconds": 0} == theirs | {"seconds": 0}
        assert session.ledger.stream_seconds == pytest.approx(length)
        assert [each["text"] for each in events(session, "emission")] == [each.text for each in expected]
        steps = events(session, "step")
        assert [step["step"] for step in steps] == list(range(1, session.ledger.step_count + 1))
        assert all(
            step["decoded"] == (step["signal"] is None or step["signal"] > 1) for step in steps[2:-1] if step["decoded"]
        )
        counters = events(session, "counters")[-1]
        assert counters == session.counters()
        assert counters["selective"]["decoder_calls"] == session.ledger.decoder.calls == len(expected)
        assert counters["selective"]["flops"] == session.ledger.total_flops
        assert counters["frames"] == {"taken": round(length * 8), "dropped": 0}
        decoded = sum(step["uniform"] for step in steps)
        assert counters["uniform"]["decoder_calls"] == decoded
        parts = session.ledger.encoder.flops, session.ledger.predictor.flops, session.ledger.decoder.flops
        needed = parts[0] + decoded * (parts[1] / len(steps) + parts[2] / len(expected))  # windows of 1 s, one a second
        assert counters["uniform"]["flops"] == pytest.approx(needed)
        assert events(session, "session")[-1]["status"] == "ended"


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0, 2.0, 5.0])
def test_uniform_decoding_is_counted_as_the_policy_decodes(rate):
    policy, decoded = Uniform(rate), 0
    for step in range(200):
        decoded += len(policy.step(np.ones(1, np.float32), step / 2))
        assert uniform_decodes(step + 1, 2.0, rate) == pytest.approx(decoded, abs=1 if rate == 0.3 else 0)


def test_settings_change_while_it_runs_and_take_effect_at_the_next_step(engine):
    mailbox_source = Source("push")
    session = engine.add(mailbox_source, Changes(policy="uniform", threshold=2.0), query=QUERY)
    shots = list(pictures(60.0))

    def play(a, b):
        for time, shot in shots[a * 8 : b * 8]:
            session.mailbox.offer(time, shot)
            engine.work()
        return session.ledger.decoder.calls, session.ledger.step_count

    calls, steps = play(0, 10)
    assert calls == steps > 15
    session.change(Changes(threshold=0.5))  # of a policy without a threshold: its rate
    after, steps = play(10, 20)
    assert after - calls == pytest.approx(5, abs=1)
    session.change(Changes(policy="gate", threshold=1e6))
    calls = session.ledger.decoder.calls
    assert play(20, 30)[0] == calls
    described = session.change(Changes(query="how many objects are there?"))
    assert described["query"] == "how many objects are there?"
    assert session.ledger.decoder.calls == calls + 1  # what was open answers the query before
    refuses(r"policy must be one of gate, .*got 'none'", lambda: session.change(Changes(policy="none", paused=True)))
    refuses("uniform_rate_hz must be finite and > 0", session.change, Changes(uniform_rate_hz=0.0, query="what?"))
    refuses("uniform_rate_hz must be at most 2, .* got 100", lambda: session.change(Changes(uniform_rate_hz=100.0)))
    assert session.described()["query"] == "how many objects are there?"
    session.change(Changes(policy="send_on_delta", threshold=0.0, cache_threshold=2.0))
    calls, hits = session.ledger.decoder.calls, session.ledger.cache.hits
    play(30, 40)
    assert session.ledger.decoder.calls == calls  # everything hits what the cache holds
    assert session.ledger.cache.hits > hits + 15
    session.change(Changes(policy="verified", threshold=0.01, cache_threshold=-1.0))
    flops = session.ledger.cache.flops
    play(40, 45)
    assert session.ledger.cache.flops > flops
    steps = session.ledger.step_count
    assert session.change(Changes(paused=True))["status"] == "paused"
    assert play(45, 50)[1] == steps
    assert session.change(Changes(paused=False))["status"] == "running"
    assert play(50, 60)[1] > steps + 15
    times = [step["time"] for step in events(session, "step")]
    assert times == sorted(times)
    assert max(np.diff(times)) >= 5  # the pause is a gap in the stream's time


def test_a_trigger_fires_without_the_decoder_and_is_a_policy(engine, live_setup):
    refuses("a trigger must be a sentence, got ' '", live_setup.watch, " ")
    watched = live_setup.watch("the red star blinks", threshold=-1.0)
    first = Changes(policy="on_trigger", triggers=[watched])
    session = engine.add(Source("s", lambda: pictures(10.0)), first, query=QUERY, fast=True)
    drain(engine, session)
    [alarm] = events(session, "trigger")
    assert alarm["sentence"] == "the red star blinks"
    embedding = live_setup.model.embed_all(["the red star blinks"]).numpy()[0]
    assert alarm["score"] == pytest.approx(float(session.kept[0].latent @ embedding))
    assert session.ledger.decoder.calls == 1
    [described] = session.described()["triggers"]
    assert described["threshold"] == -1.0
    assert "nothing is promised" in described["note"]
    assert "a red star keeps flickering" in paraphrases("The red star blinks.")


def test_an_error_of_one_session_ends_it_alone(engine, monkeypatch, caplog):
    good, bad = (engine.add(Source(name, lambda: pictures(5.0)), GATE, query=QUERY, fast=True) for name in "ab")
    monkeypatch.setattr(bad, "_step", lambda *_: 1 / 0)
    drain(engine, good, bad)
    assert "division by zero" in bad.message
    assert good.message == "the source ended"
    assert good.ledger.decoder.calls > 0
    for _ in range(6):
        engine.add(Source("push"), GATE, query=QUERY)
    refuses("sessions must be 8 at most", lambda: engine.add(Source("push"), GATE, query=QUERY))


def test_an_hour_without_change_is_one_segment_in_flat_memory():
    """The mailbox, the log and what is kept stay bounded; encoding is left out."""
    mailbox, log = Mailbox(48, 8, 8), EventLog(lasting=50, passing=20)
    still = av.VideoFrame.from_ndarray(np.full((48, 48, 3), 9, np.uint8), format="rgb24")
    for number in range(3600 * 8):
        mailbox.offer(number / 8, still)
        log.add("step", {"step": number})
    assert mailbox.waiting <= 16
    assert len(log.after(0)) == 20
    gate, latent = Gate(0.5, agreement=8.0), np.eye(4, dtype=np.float32)[0]
    assert not any(gate.step(latent, step / 2) for step in range(7200))
    assert len(gate.finish()) == 1


def test_a_reader_that_comes_back_finds_every_event_in_order():
    log = EventLog(lasting=1000, passing=10)
    for number in range(300):
        log.add("emission" if number % 3 == 0 else "step", {"number": number})
    all_of_them = log.after(0)
    assert [event.id for event in all_of_them] == sorted(event.id for event in all_of_them)
    assert [e.data["number"] for e in all_of_them if e.kind == "emission"] == list(range(0, 300, 3))
    assert log.after(297) == all_of_them[-3:]

    async def read() -> list[int]:
        waiting = asyncio.create_task(log.wait(log.newest, 5.0))
        assert await log.wait(log.newest, 0.01) == []
        await asyncio.to_thread(log.add, "trigger", {})
        found = await waiting
        log.close()
        assert await log.wait(log.newest, 5.0) == []
        return [event.id for event in found]

    assert asyncio.run(read()) == [301]


@pytest.mark.parametrize("truth", [True, False])
def test_a_saved_session_is_an_evaluation_that_the_report_reads(engine, live_setup, tiny_checkpoint, tmp_path, truth):
    known = WORLD.stream("s", (0,), 40.0, STYLE).record.events if truth else ()
    session = engine.add(Source("s", lambda: pictures(40.0), events=lambda: known), GATE, query=QUERY, fast=True)
    drain(engine, session)
    saver = Saver(live_setup.model, "cpu", tiny_checkpoint, tiny_config(), WORLD, {"source": "s"}, candidates=20)
    saver.save(session, tmp_path / "saved")
    saved, ledger = read_document(tmp_path / "saved", StreamEvaluation), session.ledger
    assert saved.session.ledger == ledger
    assert saved.session.emissions[-1].text == session.emissions[-1].text
    streams = [stream for split in SPLITS for stream in load_streams(tmp_path / "saved" / "live" / split)]
    for part in ("encoder", "predictor"):
        assert sum(getattr(stream.ledger, part).calls for stream in streams) == getattr(ledger, part).calls
    if truth:
        assert {event.text for stream in streams for event in stream.record.events} <= {event.text for event in known}
        return
    few = [f"~policies.{name}" for name in compose("report").policies if name not in ("uniform", "on_demand")]
    folders = [f"evaluation={tmp_path / 'saved'}", f"output={tmp_path / 'report'}"]
    assert main(["report", *folders, "workers=0", "references=[{policy: uniform, rate_hz: 1.0}]", *few]) == 0
    results = read_document(tmp_path / "report", StreamResults)
    assert results.session == saved.session
    page = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    for number in (ledger.decoder.calls, ledger.decoder.flops, ledger.predictor.flops, ledger.encoder.flops):
        assert f"{number:,}" in page
