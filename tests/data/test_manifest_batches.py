"""Batches from a manifest: the mixture, epochs, reproducibility over workers and ranks, and media that fail."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from conftest import refusals, refuses
from torch.utils.data import DataLoader, DistributedSampler

from jepa.data.manifest_batches import ManifestBatches, Prompts
from jepa.data.manifests import CaptionSample, ClassSample, QuestionSample
from jepa.data.media import Media
from jepa.errors import InputError

PROMPTS = Prompts([""], ["What is shown?"], "a video of {label}")
SAMPLES = [
    *(CaptionSample(f"c{i}", Media(f"c{i}.mp4", b""), (f"c{i} one", f"c{i} two")) for i in range(8)),
    *(QuestionSample(f"q{i}", Media(f"q{i}.mp4", b""), f"q{i}?", f"q{i}!") for i in range(3)),
    *(ClassSample(f"l{i}", Media(f"l{i}.mp4", b""), f"l{i}") for i in range(2)),
]
SHARES = {"caption": 0.5, "question": 0.25, "class": 0.25}


def read(media: Media) -> torch.Tensor:
    return torch.tensor([ord(media.name[0]), int(media.name[1])])


def half_broken(media: Media) -> torch.Tensor:
    if int(media.name[1]) % 2:
        raise InputError(f"{media.name}: broken")
    return read(media)


def made(**changes: object) -> ManifestBatches:
    options = {"seed": 3, "batch_size": 8, "batches": 6, "fractions": SHARES, "prompts": PROMPTS, "read": read}
    return ManifestBatches(SAMPLES, **{**options, **changes})


def test_every_sample_has_its_own_query_text_and_medium():
    queries, texts = set(), set()
    for batch in [made()[i] for i in range(6)]:
        assert batch.negatives == []
        assert batch.frames.shape == (8, 2)
        for (letter, number), query, text in zip(batch.frames.tolist(), batch.queries, batch.texts, strict=True):
            name = f"{chr(letter)}{number}"
            asked = {"c": "", "q": f"{name}?", "l": "What is shown?"}[name[0]]
            answers = {"c": [f"{name} one", f"{name} two"], "q": [f"{name}!"], "l": [f"a video of {name}"]}[name[0]]
            assert (query, text in answers) == (asked, True)
            queries.add(query)
            texts.add(text)
    assert queries == {"", "What is shown?", "q0?", "q1?", "q2?"}
    assert len(texts) >= 8 + 3 + 2


def test_shares_hold_in_every_batch_and_no_sample_is_left_out_of_an_epoch():
    names = [[(chr(c), n) for c, n in made()[i].frames.tolist()] for i in range(6)]
    assert all(Counter(c for c, _ in batch) == {"c": 4, "q": 2, "l": 2} for batch in names)
    assert {pair for pair in names[0] + names[1] if pair[0] == "c"} == {("c", i) for i in range(8)}
    assert Counter(pair for batch in names for pair in batch if pair[0] == "c") == {("c", i): 3 for i in range(8)}
    assert Counter(pair for batch in names for pair in batch if pair[0] == "q") == {("q", i): 4 for i in range(3)}
    assert names[:2] != names[2:4]


def test_a_batch_depends_on_seed_and_number_alone():
    plain = [made()[i] for i in range(6)]
    loaded = list(DataLoader(made(), batch_size=None, num_workers=2))
    for ours, theirs in zip(plain, loaded, strict=True):
        assert torch.equal(ours.frames, theirs.frames)
        assert ours[1:] == tuple(theirs[1:])
    assert made(seed=4)[0].texts != plain[0].texts


def test_ranks_share_the_batches():
    found = []
    for rank in range(2):
        sampler = DistributedSampler(made(), num_replicas=2, rank=rank, shuffle=False)
        found.append([batch.texts for batch in DataLoader(made(), batch_size=None, sampler=sampler)])
    assert [texts for both in zip(*found, strict=True) for texts in both] == [made()[i].texts for i in range(6)]


def test_kinds_without_a_share_are_left_out():
    batch = made(fractions={"caption": 0.0, "question": 2.0})[0]
    assert all(text.startswith("q") for text in batch.texts)


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_media_are_replaced_by_their_kind_and_named_over_workers(workers):
    batches = list(DataLoader(made(read=half_broken, skip_broken=True), batch_size=None, num_workers=workers))
    found = [(chr(c), n) for batch in batches for c, n in batch.frames]
    assert Counter(c for c, _ in found) == {"c": 24, "q": 12, "l": 12}
    assert all(n % 2 == 0 for _, n in found)
    # In 3 epochs of captions 12 have an odd number, in 4 of questions 4, in 6 of classes 6; a replacement may, too.
    skipped = Counter(message for batch in batches for message in batch.skipped)
    assert skipped.total() >= 12 + 4 + 6
    assert set(skipped) == {f"{name}.mp4: broken" for name in ("c1", "c3", "c5", "c7", "q1", "l1")}


def test_broken_media_are_an_error_unless_skipped():
    refuses(r"\w\d\.mp4: broken", lambda: [made(read=half_broken)[i] for i in range(6)])

    def all_broken(media: Media) -> torch.Tensor:
        raise InputError("no disk")

    refuses("16 media in a row cannot be read; the last: no disk", lambda: made(read=all_broken, skip_broken=True)[0])


test_bad_input_is_refused = refusals(
    (lambda: made(fractions={"caption": 0.0}), r"fractions must have one above 0, got \{'caption': 0.0\}"),
    (lambda: made(fractions={"caption": -1.0}), r"fractions.caption must be finite and >= 0, got -1.0"),
    (lambda: made(fractions={"caption": 1.0, "class": 0.01}), "fractions.class must make at least 1"),
    (lambda: made(fractions={"world_prediction": 1.0}), "a sample to train on, got none of world_prediction"),
    (lambda: made(batches=0), "batches must be a whole number >= 1, got 0"),
    (lambda: Prompts([], ["x"], "{label}"), "captions must have at least 1 query, got none"),
    (lambda: Prompts(["x"], ["x"], "label"), r"label must hold \{label\}, got 'label'"),
)
