"""The caption bank: nearest captions against a float64 reference, the margin, and what falls back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jepa.decoders.bank import CaptionBank
from jepa.errors import InputError
from jepa.models.bank import BankDecoder
from jepa.selective import Decoded, SelectiveDecoder, Uniform


def unit(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=-1)


class Spelling:
    """A decoder that says the largest dimension of a latent, in two tokens, and remembers what it was given."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def decode(self, latents: Tensor) -> list[Decoded]:
        self.calls.append(len(latents))
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


def test_what_the_bank_does_not_know_is_generated_and_counted_on_top():
    eye = torch.eye(4)
    bank = CaptionBank(["zero", "one"], eye[:2], margin=0.9)
    fallback = Spelling()
    latents = torch.stack([eye[1], eye[3], F.normalize(eye[0] + 0.1 * eye[2], dim=0), eye[2]])
    look_up, read = 2 * 2 * 4, 2 * 4 * 4
    assert bank.flops == look_up
    assert BankDecoder(bank, fallback).decode(latents) == [
        Decoded("one", 0, 0, look_up, read, source="bank"),
        Decoded("dimension 3", 2, 2, 1000 + look_up, read),
        Decoded("zero", 0, 0, look_up, read, source="bank"),
        Decoded("dimension 2", 2, 2, 1000 + look_up, read),
    ]
    assert fallback.calls == [2]
    BankDecoder(bank, fallback).decode(eye[:2])
    assert fallback.calls == [2]  # nothing was unknown: no call


def test_a_stream_says_which_texts_the_bank_gave():
    eye = torch.eye(3)
    decoder = SelectiveDecoder(Uniform(1.0), BankDecoder(CaptionBank(["zero"], eye[:1], margin=0.5), Spelling()))
    emissions = decoder.run(eye[[0, 2, 0]], [0.0, 1.0, 2.0])
    assert [(e.text, e.source) for e in emissions] == [("zero", "bank"), ("dimension 2", "decoder"), ("zero", "bank")]
    assert decoder.ledger.decoder.tokens == 2
    assert decoder.ledger.decoder.flops == 3 * 6 + 1000


def test_a_bank_alone_answers_everything():
    bank = CaptionBank(["zero", "one"], torch.eye(2))
    assert [d.text for d in BankDecoder(bank).decode(-torch.eye(2))] == ["one", "zero"]
    with pytest.raises(InputError, match=r"a bank without a fallback must have the margin -1, got 0\.5"):
        BankDecoder(CaptionBank(["zero"], torch.eye(2)[:1], margin=0.5))


@pytest.mark.parametrize(
    ("texts", "embeddings", "margin", "message"),
    [
        ([], torch.zeros(0, 4), 0.0, r"embeddings must have the shape \(N, E\) with N, E >= 1, got \(0, 4\)"),
        (["a"], torch.ones(4), 0.0, r"embeddings must have the shape \(N, E\) .*, got \(4,\)"),
        (["a"], torch.eye(2), 0.0, "texts must be as many as embeddings, 2, got 1"),
        (["a", "a"], torch.eye(2), 0.0, "texts must be distinct, got 'a' twice"),
        (
            ["a", "b"],
            torch.tensor([[1.0, 0], [0, 1.1]]),
            0.0,
            r"must have unit norm, got norm 1\.1 in row 1",
        ),
        (["a"], torch.full((1, 2), math.nan), 0.0, "embeddings must have unit norm, got norm nan in row 0"),
        (["a"], torch.eye(2)[:1], 1.5, r"margin must be in \[-1, 1\], got 1\.5"),
        (["a"], torch.eye(2)[:1], math.nan, r"margin must be in \[-1, 1\], got nan"),
    ],
)
def test_bad_banks_are_refused(texts, embeddings, margin, message):
    with pytest.raises(InputError, match=message):
        CaptionBank(texts, embeddings, margin=margin)


def test_latents_of_another_width_are_refused():
    with pytest.raises(InputError, match=r"latents must have the shape \(B, 2\), got \(1, 3\)"):
        CaptionBank(["a"], torch.eye(2)[:1]).lookup(torch.eye(3)[:1])
