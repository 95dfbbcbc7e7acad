"""The caption bank: nearest captions against a float64 reference, the margin and its calibration, what it leaves."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import refusals, refuses
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.decoders.bank import CaptionBank
from jepa.models.bank import BankCache, BankDecoder, calibrate_margin, caption_bank, fill_bank
from jepa.selective import Decoded, SelectiveDecoder, Uniform


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


class Spelling:
    """A decoder that says the largest dimension of a latent, in two tokens."""

    def decode(self, latents: Tensor) -> list[Decoded]:
        return [Decoded(f"dimension {int(row.argmax())}", 2, 2, flops=1000) for row in latents]


@given(st.integers(1, 20), st.integers(2, 12), st.integers(1, 9), st.integers(0, 10**6), st.floats(-1, 1))
@settings(max_examples=60)
def test_the_nearest_caption_and_the_margin_are_those_of_float64(captions, width, queries, seed, margin):
    embeddings, latents = unit(captions, width, seed), unit(queries, width, seed + 1)
    bank = CaptionBank([f"caption {i}" for i in range(captions)], embeddings, margin=margin)
    exact = latents.double().numpy() @ embeddings.double().numpy().T
    indices, cosines = bank.nearest(latents)
    chosen = exact[np.arange(queries), indices.numpy()]
    assert np.allclose(chosen, exact.max(axis=1), atol=1e-6)
    assert np.allclose(cosines.numpy(), chosen, atol=1e-6)
    for text, index, best in zip(bank.lookup(latents), indices.tolist(), exact.max(axis=1), strict=True):
        if abs(best - margin) > 1e-6:
            assert text == (f"caption {index}" if best > margin else None)


def test_every_caption_finds_itself_and_equal_ones_give_the_first():
    embeddings = unit(30, 8, 0)
    embeddings[7] = embeddings[3]
    bank = CaptionBank([str(i) for i in range(30)], embeddings, margin=0.999)
    assert bank.lookup(embeddings) == [str(3 if i == 7 else i) for i in range(30)]
    assert bank.lookup(-embeddings[:2]) == [None, None]


def test_what_a_bank_knows_is_a_hit_and_no_decoder_call():
    eye = torch.eye(4)
    bank = CaptionBank(["zero", "one"], eye[:2], margin=0.9)
    near = F.normalize(eye[0] + 0.1 * eye[2], dim=0)
    latents = torch.stack([eye[1], eye[3], near, eye[2], eye[3], eye[0]])
    selective = SelectiveDecoder(Uniform(1.0), Spelling(), cache=BankCache(bank))
    for streams in (1, 2):  # the bank takes nothing up: the second time as the first
        emissions = selective.run(latents, np.arange(6.0))
        assert [(e.text, e.source) for e in emissions] == [
            ("one", "cache"), ("dimension 3", "decoder"), ("zero", "cache"), ("dimension 2", "decoder"),
            ("dimension 3", "decoder"), ("zero", "cache"),
        ]  # fmt: skip
        ledger = selective.ledger
        assert (ledger.cache.lookups, ledger.cache.hits) == (6 * streams, 3 * streams)
        assert ledger.decoder.calls == 3 * streams
        assert ledger.decoder.tokens == 6 * streams
        assert ledger.cache.flops == 6 * streams * bank.flops == 6 * streams * 2 * 2 * 4
    refuses("latents must be as wide as .* cache, 4, got 3", lambda: selective.run(torch.eye(3), np.arange(3.0)))


@given(st.integers(1, 20), st.integers(2, 12), st.integers(0, 10**6), st.floats(-1, 1))
@settings(max_examples=60)
def test_a_bank_as_a_cache_knows_what_it_looks_up(captions, width, seed, margin):
    embeddings, latents = unit(captions, width, seed), unit(9, width, seed + 1)
    bank = CaptionBank([f"caption {i}" for i in range(captions)], embeddings, margin=margin)
    best = (latents.double() @ embeddings.double().T).sort(dim=1, descending=True).values
    for number, (latent, text) in enumerate(zip(latents, bank.lookup(latents), strict=True)):
        close = captions > 1 and best[number, 0] - best[number, 1] < 1e-6
        if abs(best[number, 0] - margin) > 1e-6 and not close:
            entry, hit = BankCache(bank).look_up(latent.numpy())
            assert (entry.decoded.text if hit else None) == text
    nothing = BankCache(bank).fresh(-1.0)
    assert nothing.threshold == -1.0
    assert not any(nothing.look_up(embedding.numpy())[1] for embedding in embeddings)
    nothing.clear()
    assert len(nothing) == captions


def test_a_bank_that_decodes_answers_everything_and_each_is_a_decode():
    bank = CaptionBank(["zero", "one"], torch.eye(2))
    look_up, read = 2 * 2 * 2, 2 * 2 * 4
    assert BankDecoder(bank).decode(-torch.eye(2)) == [
        Decoded("one", 0, 0, look_up, read, source="bank"), Decoded("zero", 0, 0, look_up, read, source="bank"),
    ]  # fmt: skip
    selective = SelectiveDecoder(Uniform(1.0), BankDecoder(bank))
    selective.run(torch.eye(2), [0.0, 1.0])
    assert (selective.ledger.decoder.calls, selective.ledger.cache.lookups) == (2, 0)
    refuses(r"must have the margin -1, got 0\.5", BankDecoder, CaptionBank(["zero"], torch.eye(2)[:1], margin=0.5))


# --- Filled and calibrated from decodes


def decoded_streams(seed: int, streams: int, wordings: int = 1) -> list[tuple[np.ndarray, list[str]]]:
    """Latents near six centres; the text is that of the centre, in one of several wordings."""
    rng = np.random.default_rng(seed)
    centres, made = np.eye(6, 8), []
    for _ in range(streams):
        meanings = rng.integers(0, 6, 40)
        rows = centres[meanings] + 0.6 / np.sqrt(8) * rng.standard_normal((40, 8))
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        said = [f"{meaning}, {rng.integers(0, wordings)}" for meaning in meanings]
        made.append((rows.astype(np.float32), said))
    return made


def test_a_bank_holds_the_most_frequent_texts_at_the_means_of_their_latents():
    x, y, z = np.eye(3, dtype=np.float32)
    streams = [(np.stack([x, y, 2 * x]), ["a", "b", "c"]), (np.stack([z, y]), ["a", "b"])]
    bank = caption_bank(streams, 2)
    assert bank.texts == ("a", "b")
    assert np.allclose(bank.embeddings.numpy(), [(x + z) / np.sqrt(2), y])
    assert caption_bank(streams, 9).texts == ("a", "b", "c")
    refuses("capacity must be a whole number >= 1, got 0", caption_bank, streams, 0)


@given(seed=st.integers(0, 10**6), error_rate=st.floats(0.02, 0.6))
@settings(max_examples=15)
def test_the_error_at_the_margin_found_is_low_enough(seed, error_rate):
    bank = caption_bank(decoded_streams(seed, 4), 4)  # it lacks two meanings
    held_out = decoded_streams(seed + 1, 6)
    found = calibrate_margin(bank, held_out, error_rate)
    assert found.bound <= error_rate or found.threshold == -1.0
    rows = np.concatenate([latents for latents, _ in held_out]).astype(np.float64)
    said = np.array([text for _, texts in held_out for text in texts])
    cosines = rows @ bank.embeddings.double().numpy().T
    best, answers = cosines.max(axis=1), np.array(bank.texts)[cosines.argmax(axis=1)]
    wrong = answers != said
    surely, at_most = (1 - best <= found.threshold + slack for slack in (-1e-6, 1e-6))
    assert (surely & wrong).sum() <= found.measured.wrong <= (at_most & wrong).sum()
    assert surely.sum() <= found.measured.hits <= at_most.sum()


def test_a_filled_bank_keeps_the_requested_error_on_other_streams():
    cache, calibration = fill_bank(decoded_streams(1, 12), 0.1, capacity=64)
    assert len(cache) == 6
    assert cache.threshold == pytest.approx(calibration.threshold)
    looked_up = [
        (cache.look_up(latent), text)
        for latents, texts in decoded_streams(2, 20)
        for latent, text in zip(latents, texts, strict=True)
    ]
    hits = [(entry.decoded.text, text) for (entry, hit), text in looked_up if hit]
    assert sum(found != text for found, text in hits) <= 0.1 * len(looked_up)
    assert len(hits) > 0.8 * len(looked_up)  # and is of use
    cache, calibration = fill_bank(decoded_streams(1, 12, wordings=30), 0.01, capacity=64)
    assert calibration.threshold == -1.0
    assert not any(cache.look_up(latent)[1] for latents, _ in decoded_streams(2, 5, 30) for latent in latents)
    refuses("streams must be at least 4 .*, got 3", lambda: fill_bank(decoded_streams(1, 3), 0.1, capacity=4))


test_bad_banks_are_refused = refusals(
    ([], torch.zeros(0, 4), 0.0, r"embeddings must have the shape \(N, E\) with N, E >= 1, got \(0, 4\)"),
    (["a"], torch.ones(4), 0.0, r"embeddings must have the shape \(N, E\) .*, got \(4,\)"),
    (["a"], torch.eye(2), 0.0, "texts must be as many as embeddings, 2, got 1"),
    (["a", "a"], torch.eye(2), 0.0, "texts must be distinct, got 'a' twice"),
    (["a", "b"], torch.tensor([[1.0, 0], [0, 1.1]]), 0.0, r"must have unit norm, got norm 1\.1 in row 1"),
    (["a"], torch.full((1, 2), math.nan), 0.0, "must have unit norm, got norm nan in row 0"),
    (["a"], torch.eye(2)[:1], -1.5, r"margin must be >= -1, got -1\.5"),
    (["a"], torch.eye(2)[:1], math.nan, r"margin must be a finite number, got nan"),
    of=lambda texts, embeddings, margin: CaptionBank(texts, embeddings, margin=margin),
)


def test_latents_of_another_width_are_refused():
    bank = CaptionBank(["a"], torch.eye(2)[:1])
    refuses(r"latents must have the shape \(B, 2\), got \(1, 3\)", bank.lookup, torch.eye(3)[:1])
