"""Shards: the samples and the bytes of the manifest, each read once an epoch whoever reads, and broken tar files."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
import torch
from conftest import real_data, refuses, write_manifest
from PIL import Image
from torch.utils.data import DataLoader

from jepa.data.features import ClipReader
from jepa.data.manifest_batches import Prompts
from jepa.data.manifests import (
    CaptionSample,
    ClassSample,
    QuestionSample,
    WorldPredictionSample,
    media_of,
    read_manifest,
)
from jepa.data.media import Media
from jepa.data.shards import ShardBatches, Shards, find_shards, read_shard, write_shards

READER = ClipReader(frames=2, size=8)
PROMPTS = Prompts(["Describe."], ["What?"], "{label}")


def picture(path: Path, grey: int) -> Media:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(path)
    return Media(path.name, path)


@pytest.fixture
def manifest(tmp_path) -> Path:
    """Ten classes of grey pictures, a caption of a folder of frames, a question, and a world prediction."""
    pictures = [picture(tmp_path / f"{i}.png", 20 * i) for i in range(10)]
    frames = [picture(tmp_path / "frames" / name, grey) for name, grey in (("b.png", 200), ("a.png", 50))]
    samples = [
        *(ClassSample(f"class{i}", medium, f"grey {i}") for i, medium in enumerate(pictures)),
        CaptionSample("caption", Media("frames", frames[0].source.parent), ("It «brightens».",)),
        QuestionSample("question", pictures[3], "How many?", "two", ("one", "two")),
        WorldPredictionSample(
            "world", pictures[0], pictures[9], (pictures[1], Media("frames", tmp_path / "frames")), 1
        ),
    ]
    return write_manifest(tmp_path / "m.jsonl", samples)


def classes(manifest: Path) -> Path:
    path = manifest.with_name("classes.jsonl")
    path.write_text("".join(line for line in manifest.read_text("utf-8").splitlines(True)[:10]), "utf-8")
    return path


def test_what_is_packed_is_read_again(tmp_path, manifest):
    paths = write_shards(manifest, tmp_path / "shards", 4)
    assert [path.name for path in paths] == [f"shard-{i:05}.tar" for i in range(4)]
    packed, plain = [sample for path in paths for sample in read_shard(path)], read_manifest(manifest)
    assert [sample.id for sample in packed] == [sample.id for sample in plain]
    for ours, theirs in zip(packed, plain, strict=True):
        assert type(ours) is type(theirs)
        others = {name: value for name, value in vars(theirs).items() if isinstance(value, str | int | tuple)}
        others.pop("candidates", None)
        assert {name: vars(ours)[name] for name in others} == others
        for packed_medium, medium in zip(media_of(ours), media_of(theirs), strict=True):
            assert torch.equal(READER(packed_medium), READER(medium))
    means = READER(packed[10].media).float().mean((1, 2, 3))
    assert means.tolist() == [50, 200]  # frames in order of name
    assert isinstance(packed[0].media.source, bytes)


def test_an_epoch_has_every_sample_once_in_an_order_of_its_own(tmp_path, manifest):
    paths = write_shards(manifest, tmp_path / "shards", 3)
    ids = [sample.id for sample in islice(Shards(paths, 0, 1), 26)]
    assert set(Counter(ids[:13]).values()) == set(Counter(ids[13:]).values()) == {1}
    assert ids[:13] != ids[13:]
    assert ids == [sample.id for sample in islice(Shards(paths, 0, 1), 26)]
    shuffled = [sample.id for sample in islice(Shards(paths, 0, 6), 13)]
    assert shuffled != ids[:13]
    assert [sample.id for sample in islice(Shards(paths, 1, 6), 13)] != shuffled


def test_workers_read_different_shards(tmp_path, manifest, monkeypatch):
    paths = write_shards(classes(manifest), tmp_path / "shards", 5)
    assert len(paths) == 2
    batches = ShardBatches(Shards(paths, 0, 1), READER, 5, PROMPTS)
    first, second = islice(DataLoader(batches, batch_size=None, num_workers=2), 2)
    assert sorted(first.texts + second.texts) == [f"grey {i}" for i in range(10)]
    for batch in (first, second):
        assert batch.queries == ["What?"] * 5
        assert [f"grey {int(clip.float().mean()) // 20}" for clip in batch.frames] == batch.texts
    monkeypatch.setattr(Shards, "place", lambda shards: (0, 3))
    refuses("at least one a rank and worker, 3, got 2", lambda: next(iter(batches)))


@pytest.mark.parametrize(
    ("length", "message"),
    [
        (100, "cannot be read as a shard"),
        (4096, "must end as a tar file does"),
        (5120, r"00000002: media not found: 00000002\.png"),
        (5800, "cannot be read as a shard"),
    ],
    ids=["in a header", "between samples", "between members", "in a member"],
)
def test_a_truncated_shard_is_named_or_left_out_and_counted(tmp_path, manifest, length, message):
    paths = write_shards(classes(manifest), tmp_path / "shards", 5)
    paths[0].write_bytes(paths[0].read_bytes()[:length])
    refuses(rf"shard-00000\.tar: {message}", lambda: list(read_shard(paths[0])))
    shards = Shards(paths, 0, 1, skip_broken=True)
    found = Counter(sample.id for sample in islice(shards, 40))
    assert len(shards.skipped) >= 4
    assert all("shard-00000.tar: " in each for each in shards.skipped)
    assert all(found[f"class{i}"] >= 4 for i in range(5, 10))
    missing = iter(Shards([tmp_path / "none.tar"], 0, 1, skip_broken=True))
    refuses(r"can be read, got none in 1 shards; the last error: .*none\.tar", next, missing)


def test_broken_media_are_an_error_or_left_out_and_counted(tmp_path, manifest):
    (tmp_path / "4.png").write_bytes(b"no picture")
    paths = write_shards(classes(manifest), tmp_path / "shards", 10)
    refuses(r"00000004\.png: cannot be read", lambda: next(iter(ShardBatches(Shards(paths, 0, 1), READER, 9, PROMPTS))))
    batches = ShardBatches(Shards(paths, 0, 1), READER, 9, PROMPTS, skip_broken=True)
    assert sorted(next(iter(batches)).texts) == [f"grey {i}" for i in range(10) if i != 4]
    [message] = next(iter(batches)).skipped
    assert message.startswith("00000004.png: cannot be read as a picture")
    paths[0].write_bytes(paths[0].read_bytes().rstrip(bytes(1))[:-10])  # in the last picture
    cut = ShardBatches(Shards(paths, 0, 1, skip_broken=True), READER, 9, PROMPTS, skip_broken=True)
    for batch in islice(cut, 2):
        assert [each.split(": ")[0] for each in batch.skipped] == ["00000004.png", str(paths[0])]


def test_shards_are_found_by_a_pattern_or_named(tmp_path, manifest):
    paths = write_shards(classes(manifest), tmp_path / "shards", 3)
    for pattern, found in (
        ("shard-{00001..00002}.tar", paths[1:3]),
        ("shard-*.tar", paths),
        ("shard-00003.tar", paths[3:]),
    ):
        assert find_shards(f"{tmp_path}/shards/{pattern}") == found
    for pattern, missing in (("shard-{00000..00005}.tar", "shard-00004"), ("a-*.tar", r"a-\*")):
        refuses(rf"shard not found: .*{missing}\.tar", find_shards, f"{tmp_path}/shards/{pattern}")


def test_shards_with_nothing_but_broken_media_end(tmp_path, manifest):
    for number in range(10):
        (tmp_path / f"{number}.png").write_bytes(b"no picture")
    paths = write_shards(classes(manifest), tmp_path / "shards", 10)
    batches = ShardBatches(Shards(paths, 0, 1), READER, 9, PROMPTS, skip_broken=True)
    refuses(r"none of 1000 samples in a row can be read, the last: .*\.png: cannot", lambda: next(iter(batches)))


def test_samples_that_are_not_as_they_must_be_are_named(tmp_path, manifest):
    for name, content, message in (
        ("7.txt", "x", r"7: a sample must have 7\.json, got 7\.txt"),
        ("7.json", "{", "7: not JSON"),
        ("7.json", '{"media": "7.mp4", "label": "x"}', r"7: media not found: 7\.mp4"),
        ("a/7.json", '{"media": "a/7.mp4"}', "a/7: a sample must have exactly one of"),
    ):
        path = tmp_path / "bad.tar"
        (tmp_path / "member").write_text(content)
        with tarfile.open(path, "w") as tar:
            tar.add(tmp_path / "member", name)
        refuses(rf"bad\.tar: {message}", list, read_shard(path))


def test_odd_members_of_shards(tmp_path):
    """Under ./ or a folder, beside hidden ones, folders and links, and one that is not UTF-8, in name and in text."""
    path, line = tmp_path / "odd.tar", b'{"media": "%s.jpg", "label": "x"}'
    members = {"./a.json": line % b"a", "./a.jpg": b"1", "._a.json": b"", "d/b.json": line % b"b", "d/b.jpg": b"2"}
    with tarfile.open(path, "w", encoding="latin-1") as tar:
        tar.addfile(tarfile.TarInfo("./"))
        for name, data in [*members.items(), ("c\u00e9.json", b'{"label": "\xe9"}')]:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("e.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    skipped: list[str] = []
    assert [sample.media.source for sample in read_shard(path, skipped=skipped)] == [b"1", b"2"]
    assert len(skipped) == 1
    assert f"{path}: c" in skipped[0]
    assert "must be UTF-8, got byte 0xe9" in skipped[0]
    refuses("must be UTF-8", lambda: list(read_shard(path)))


def test_shards_that_went_wrong():
    assert len(list(read_shard(real_data("cases/shards/prefix.tar")))) == 4
    path, skipped = real_data("cases/shards/latin1.tar"), list[str]()
    assert (len(list(read_shard(path, skipped=skipped))), len(skipped)) == (3, 1)


def test_bad_use_is_refused(tmp_path, manifest):
    paths = write_shards(manifest, tmp_path / "shards", 20)
    refuses("shards: must have no shards yet", write_shards, manifest, tmp_path / "shards", 20)
    refuses("per_shard must be a whole number >= 1, got 0", write_shards, manifest, tmp_path / "other", 0)
    refuses("shards must be at least 1, got none", Shards, [], 0, 1)
    refuses("no world prediction, got 'world'", next, iter(ShardBatches(Shards(paths, 0, 1), READER, 20, PROMPTS)))
