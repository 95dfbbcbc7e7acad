"""The small VL-JEPA: shapes, gradients, streams against single windows, cached against uncached decoding."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from conftest import refuses

from jepa.data.world import CAPTION_QUERIES, StreamStyle, World
from jepa.evaluation.streams import encode_stream, encoding_operations, load_streams, read_out, save_streams
from jepa.losses.infonce import InfoNCE
from jepa.models import WindowStream
from jepa.models.vl_jepa import PredictorOnDemand, summary, summary_flops
from jepa.operations import OperationLedger
from jepa.selective import ColourChange, Gate, OnDemand, Readout, SelectiveDecoder, SelectiveEncoding, StepSelection
from jepa.selective.policies import Uniform

TEXTS = ["the red bar moves left", "a cyan ring spins", "red"]
QUERIES = ["what happens?", "what colour is the bar?", "how many objects are there?"]


def frames(count: int = 3, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 8, 48, 48, 3), dtype=torch.uint8, generator=generator)


def test_every_parameter_gets_a_gradient(tiny_model):
    model = copy.deepcopy(tiny_model)
    loss = InfoNCE()
    loss(model.predict(model.encode(frames()), QUERIES), model.embed(TEXTS)).backward()
    ids, mask = model.tokenizer.encode(TEXTS, eos=True)
    logits = model.y_decoder(model.embed(TEXTS).detach(), ids)
    torch.nn.functional.cross_entropy(logits[mask], ids[mask]).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert without == []
    assert loss.log_scale.grad is not None


def test_embeddings_have_unit_norm_and_do_not_depend_on_the_batch(tiny_model):
    states = tiny_model.encode(frames())
    assert states.shape == (3, 2 * 16, 32)
    together = tiny_model.predict(states, QUERIES)
    torch.testing.assert_close(together.norm(dim=-1), torch.ones(3))
    for row, query in enumerate(QUERIES):
        alone = tiny_model.predict(states[row : row + 1], [query])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-4, atol=1e-5)
    for row, text in enumerate(TEXTS):
        torch.testing.assert_close(tiny_model.embed([text])[0], tiny_model.embed(TEXTS)[row], rtol=1e-4, atol=1e-5)


def test_the_query_changes_the_prediction(tiny_model):
    states = tiny_model.encode(frames(1))
    a, b = (tiny_model.predict(states, [query]) for query in QUERIES[:2])
    assert (a - b).abs().max() > 1e-3


def test_a_step_rate_that_does_not_fit_is_named(tiny_model):
    for rate in (3.0, 0.0, 1.7):
        message = f"step_rate must divide the slot rate of 2 Hz into whole hops, got {rate} Hz"
        refuses(message, lambda rate=rate: list(tiny_model.stream([], rate, QUERIES[0])))


def test_decoding_counts_tokens_with_the_end(tiny_model):
    latents = tiny_model.embed(TEXTS)
    rows = tiny_model.y_decoder.generate(latents, tiny_model.tokenizer.eos_id)
    for decoded, row in zip(tiny_model.decode(latents), rows, strict=True):
        assert decoded.tokens == decoded.forward_passes == min(len(row) + 1, tiny_model.y_decoder.max_length)


def test_parameters_by_role_add_up(tiny_model):
    roles = tiny_model.parameters_by_role()
    assert [r["role"] for r in roles] == ["X-Encoder", "Predictor", "Y-Encoder", "Y-Decoder"]
    assert sum(r["total"] for r in roles) == sum(p.numel() for p in tiny_model.parameters())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(1, 8, 32, 32, 3, dtype=torch.uint8), r"frames must be \(B, F, 48, 48, 3\) uint8"),
        (torch.zeros(1, 8, 48, 48, 3), "uint8, got .* torch.float32"),
        (torch.zeros(1, 6, 48, 48, 3, dtype=torch.uint8), "multiple of tubelet 4, got 6"),
    ],
)
def test_bad_frames_are_named(tiny_model, bad, message):
    refuses(message, tiny_model.encode, bad)


def test_frames_of_a_stream_that_have_another_size_are_named(tiny_model):
    size = tiny_model.x_encoder.size
    stream = tiny_model.stream([np.zeros((8, 8, 8, 3), np.uint8)], 2.0, "what happens?")
    refuses(rf"frames must be \(M, {size}, {size}, 3\) uint8, got \(8, 8, 8, 3\) uint8", next, stream)


def test_a_text_that_is_too_long_is_named(tiny_model):
    states, long = tiny_model.encode(frames(1)), [" ".join(["red"] * 40)]
    refuses("a text must have at most 32 tokens, got 40", tiny_model.embed, long)
    refuses("a query must have at most 32 tokens, got 40", tiny_model.predict, states, long)


def test_selective_encoding_computes_the_selected_steps_and_encodes_only_their_slots(tiny_model):
    """The latents are those of the whole stream at the steps selected, whatever the chunks."""
    video = np.concatenate(list(World().stream("s", (3,), 20.0, StreamStyle(3.0, shortest=1.0)).frames()))
    every, times = (np.concatenate(part) for part in zip(*tiny_model.stream([video], 2.0, QUERIES[0]), strict=True))
    for chunk in (5, 40, 1000):
        ledger = OperationLedger()
        selection = SelectiveEncoding(ColourChange(), StepSelection(1.0, burst=2, hold=6))
        chunks = (video[i : i + chunk] for i in range(0, len(video), chunk))
        parts = list(tiny_model.stream(chunks, 2.0, QUERIES[0], ledger, selection))
        latents, at = (np.concatenate(part) for part in zip(*parts, strict=True))
        chosen = np.flatnonzero(np.isin(times, at))
        assert 0 < len(chosen) == len(at) < len(times)
        np.testing.assert_allclose(latents, every[chosen], rtol=1e-4, atol=1e-5)
        slots = {slot for i in chosen for slot in (i, i + 1)}
        assert ledger.encoder.calls == len(slots) < len(video) // 4
        assert ledger.predictor.calls == len(chosen)
        assert ledger.detector.calls == len(video) // 4
        assert ledger.encoder.flops == len(slots) * tiny_model.encoding_flops()
        assert ledger.predictor.flops == len(chosen) * tiny_model.query_flops(QUERIES[0])
        assert ledger.detector.flops == len(video) // 4 * selection.detector.flops(4, 48)


@pytest.mark.parametrize("rate", [1.0, 2.0])
def test_a_live_stream_takes_the_operations_that_the_evaluation_gives_a_recorded_one(tiny_model, tmp_path, rate):
    """Windows of 2 slots every 1 or 2; what the evaluation saved is read back first."""
    stream = World().stream("s", (3,), 20.0, StreamStyle(3.0, shortest=1.0))
    save_streams([encode_stream(tiny_model, stream, rate)], tmp_path)
    [recorded] = load_streams(tmp_path)
    assert (recorded.hop, recorded.length) == (2 / rate, 2)
    assert len(recorded.changes) == len(recorded.times)
    for steps in (StepSelection(1.0, burst=2, hold=6), StepSelection(None, hold=3)):
        live = OperationLedger()
        selection = SelectiveEncoding(ColourChange(), steps)
        list(tiny_model.stream(stream.frames(), rate, CAPTION_QUERIES[0], live, selection))
        known, _ = encoding_operations(recorded, steps, None, [])
        assert 0 < known.predictor.calls < len(recorded.times)
        for part in ("encoder", "predictor"):
            ours, theirs = getattr(known, part), getattr(live, part)
            assert (ours.calls, ours.forward_passes, ours.flops) == (theirs.calls, theirs.forward_passes, theirs.flops)
        if steps.threshold is not None:
            assert (known.detector.calls, known.detector.flops) == (live.detector.calls, live.detector.flops)
    uniform = Uniform(rate / 3)  # one step in three: what `hold=3` computes is what it needs
    found = uniform.run(recorded.latents, recorded.times)
    assert encoding_operations(recorded, None, uniform, found)[0] == known


@pytest.mark.parametrize("steps", [None, StepSelection(1.0, burst=3, hold=4)])
def test_a_live_stream_is_predicted_on_demand_as_a_recorded_one(tiny_model, steps):
    """What the sweep finds in saved latents and states is what a live stream gives, at the same operations."""
    stream = World().stream("s", (3,), 30.0, StreamStyle(3.0, shortest=1.0))
    encoded = encode_stream(tiny_model, stream, 2.0)
    readout = Readout.fit(encoded.states, encoded.latents)
    recorded = read_out({"calibration": [encoded]})["calibration"][0]
    latents, states, times = (getattr(recorded.selected(steps), part) for part in ("latents", "states", "times"))

    def policy(predict):
        return OnDemand(Gate(0.3, noise_floor=0.01), predict, keep=6, correction=0.5)

    expected = SelectiveDecoder(policy(latents.__getitem__), tiny_model).run(states, times)
    ledger, found = OperationLedger(), []
    demand = PredictorOnDemand(tiny_model, CAPTION_QUERIES[0], readout, ledger, held=8)
    selective = SelectiveDecoder(policy(demand.predict), tiny_model, ledger)
    selection = None if steps is None else SelectiveEncoding(ColourChange(), steps)
    for some, at in demand.stream(stream.frames(), 2.0, selection):
        for state, time in zip(some, at, strict=True):
            found += selective.step(state, float(time))
    found += selective.finish()
    assert [(e.start, e.end, e.text) for e in found] == [(e.start, e.end, e.text) for e in expected]
    asking = policy(latents.__getitem__)
    known, _ = encoding_operations(recorded, steps, asking, asking.run(states, times))
    assert 1 < len(found) < len(times)
    for part in ("detector", "encoder", "predictor"):
        ours, theirs = getattr(known, part), getattr(ledger, part)
        assert (ours.calls, ours.forward_passes, ours.flops) == (theirs.calls, theirs.forward_passes, theirs.flops)
    refuses(f"step must be one of the newest 8 of {len(times)}, got 0", demand.predict, 0)


def test_states_are_summarised_over_a_window_alone():
    states = torch.randn(3, 7, 4, generator=torch.Generator().manual_seed(0))
    rows = states.numpy()
    expected = np.concatenate([rows.mean(1), rows.max(1), rows.std(1)], axis=1)
    np.testing.assert_allclose(summary(states), expected, atol=1e-6)
    assert np.isfinite(summary(states[:, :1].bfloat16())).all()  # one state has no spread
    assert summary_flops(states) == 5 * 3 * 7 * 4


@pytest.mark.parametrize("whole", [False, True])
def test_streams_encoded_together_are_as_each_alone_and_go_on_after_a_gap(tiny_model, whole):
    """Three streams pushed in turn, with and without slots to share; a gap moves the times and spans no window."""
    model = copy.deepcopy(tiny_model)
    if whole:
        encoder = model.x_encoder
        model.x_encoder = WholeWindows(encoder)
    videos = [next(World().stream("s", (seed,), 6.0, StreamStyle(3.0)).frames()) for seed in range(3)]
    alone, ledgers = [], [OperationLedger() for _ in videos]
    for video in videos:
        alone.append([np.concatenate(part) for part in zip(*model.stream([video], 2.0, QUERIES[0]), strict=True)])
    streams = [WindowStream(model, 2.0, ledger) for ledger in ledgers]
    found: list[list] = [[] for _ in videos]
    for chunk in range(0, 48, 6):
        for video, stream in zip(videos, streams, strict=True):
            stream.push(video[chunk : chunk + 6])
        parts = list(model.encode_windows(streams))
        latents = model.predict_together([(states, QUERIES[0], ledgers[place]) for place, states, _ in parts])
        for (place, _, times), rows in zip(parts, latents, strict=True):
            found[place] += zip(rows, times, strict=True)
    for (latents, times), rows, ledger in zip(alone, found, ledgers, strict=True):
        np.testing.assert_allclose([row for row, _ in rows], latents, atol=1e-5)
        assert [time for _, time in rows] == times.tolist()
        assert ledger.encoder.calls == (11 if whole else 12)
        assert ledger.predictor.calls == 11
    streams[0].push(videos[0][:3])
    streams[0].skip(80)
    streams[0].push(videos[0][:12])
    [(place, states, times)] = model.encode_windows(streams)
    assert (place, times.tolist()) == (0, [10.5, 11.0])
    np.testing.assert_allclose(model.predict(states, [QUERIES[0]] * 2).detach(), alone[0][0][:2], atol=1e-5)
    seconds = [ledger.predictor.seconds for ledger in ledgers]
    assert seconds[0] == pytest.approx(seconds[1]) == pytest.approx(seconds[2])
    assert min(seconds) > 0


class WholeWindows(torch.nn.Module):
    """An X-Encoder whose slots cannot be had alone."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder, self.size, self.tubelet, self.width = encoder, encoder.size, encoder.tubelet, encoder.width

    def forward(self, frames):
        return self.encoder(frames)


def test_the_likelihood_of_a_text_is_its_cross_entropy_and_costs_one_pass(tiny_model):
    latents, tokenizer = tiny_model.embed(TEXTS).detach(), tiny_model.tokenizer
    ids, mask = tokenizer.encode_closed(TEXTS)
    logits = tiny_model.y_decoder(latents, ids).detach()
    for row, text in enumerate(TEXTS):
        score, flops = tiny_model.likelihood(latents[row].numpy(), text)
        length = int(mask[row].sum())
        expected = torch.nn.functional.cross_entropy(logits[row, :length], ids[row, :length])
        assert score == pytest.approx(-float(expected), abs=1e-4)
        assert flops == pytest.approx(tiny_model.y_decoder.flops(length), rel=0.1)  # of as many passes
