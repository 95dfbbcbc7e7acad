"""Cached states: equal to the encoder's own, written once, of one encoder, and without what cannot be read."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import rebuilt, refuses
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from jepa.data.features import ClipReader, Features, fingerprint, write_features
from jepa.data.media import Media
from jepa.encoders.vision_timm import TimmEncoder
from jepa.encoders.vision_vjepa2 import VJEPA2

READER = ClipReader(frames=2, size=8)


class Encoder(nn.Module):
    """Two states a clip, and a count of the clips that it saw."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.dropout, self.seen = nn.Linear(3, 5), nn.Dropout(0.5), 0
        nn.init.normal_(self.linear.weight, std=scale)
        self.register_buffer("mean", torch.tensor(128.0), persistent=False)

    def forward(self, frames: Tensor) -> Tensor:
        self.seen += len(frames)
        return self.dropout(self.linear((frames.float() - self.mean).mean((2, 3))))


@pytest.fixture
def media(tmp_path) -> list[Media]:
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return [Media(f"{i}.png", tmp_path / f"{i}.png") for i in range(5)]


def own(encoder: Encoder, medium: Media) -> Tensor:
    with torch.no_grad():
        return encoder.eval()(READER(medium)[None])[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_states_are_those_of_the_encoder(tmp_path, media, workers):
    encoder, folder = Encoder().train(), tmp_path / "features"
    assert write_features(encoder, READER, [*media, media[0]], folder, 2, workers, per_file=3) == []
    assert encoder.training
    assert encoder.seen == 5
    features = pickle.loads(pickle.dumps(Features(folder)))
    features.check(encoder, READER)
    assert len(features) == 5
    for medium in media:
        torch.testing.assert_close(features(medium), own(encoder, medium))


def test_a_stopped_run_goes_on_where_it_was(tmp_path, media):
    class Interrupted(Encoder):
        def forward(self, frames: Tensor) -> Tensor:
            if self.seen >= 3:
                raise KeyboardInterrupt
            return super().forward(frames)

    Interrupted.__qualname__ = Encoder.__qualname__
    folder = tmp_path / "features"
    with pytest.raises(KeyboardInterrupt):
        write_features(Interrupted(), READER, media, folder, 1, per_file=2)
    assert [medium in Features(folder) for medium in media] == [True, True, False, False, False]
    encoder = Encoder()
    write_features(encoder, READER, media, folder, 1, per_file=2)
    assert encoder.seen == 3
    assert all(medium in Features(folder) for medium in media)
    torch.testing.assert_close(Features(folder)(media[4]), own(encoder, media[4]))


def test_states_in_half_precision_are_read_in_float32(tmp_path, media):
    write_features(Encoder(), READER, media, tmp_path, 5, dtype=torch.bfloat16)
    features = Features(tmp_path)
    assert features(media[1]).dtype == torch.float32
    torch.testing.assert_close(features(media[1]), own(Encoder(), media[1]), rtol=1e-2, atol=0.1)


def test_another_encoder_or_other_clips_are_refused(tmp_path, media):
    folder = tmp_path / "features"
    write_features(Encoder(), READER, media, folder, 5)
    refuses(r"states are of the encoder \w{12}, got the encoder", Features(folder).check, Encoder(scale=1.01), READER)
    other_mean = Encoder()
    other_mean.mean += 1
    refuses("states are of the encoder", write_features, other_mean, READER, media, folder, 5)
    other_clips = r"states are of clips by ClipReader\(frames=2, .*, got ClipReader\(frames=4, "
    refuses(other_clips, Features(folder).check, Encoder(), ClipReader(4, 8))


def test_media_that_cannot_be_read_are_an_error_or_left_out_and_named(tmp_path, media):
    media[2].source.write_bytes(media[2].source.read_bytes()[:60])
    refuses(r"2\.png: cannot be read", lambda: write_features(Encoder(), READER, media, tmp_path / "a", 2, workers=1))
    (message,) = write_features(Encoder(), READER, media, tmp_path / "b", 2, skip_broken=True)
    assert "2.png: cannot be read as a picture" in message
    refuses(r"must have states of '\.\./2\.png', got none among 4 media", lambda: Features(tmp_path / "b")(media[2]))


def test_media_of_one_name_in_two_folders_have_states_of_their_own(tmp_path, media):
    """As `train/0001.png` and `val/0001.png`, each named `0001.png` by its manifest; or so named in two shards."""
    pixels = [medium.source.read_bytes() for medium in media[:2]]
    named = []
    for split, content in zip(("train", "val"), pixels, strict=True):
        (tmp_path / split).mkdir()
        (tmp_path / split / "0001.png").write_bytes(content)
        named += [Media("0001.png", tmp_path / split / "0001.png"), Media("0001.png", content)]
    frames = [Media("f", tuple(pixels)), Media("f", tuple(reversed(pixels)))]
    encoder, folder = Encoder(), tmp_path / "features"
    write_features(encoder, READER, [*named, *frames], folder, 2)
    features = Features(folder)
    assert len(features) == 6
    assert not torch.allclose(own(encoder, named[0]), own(encoder, named[2]))
    for medium in (*named, *frames):
        torch.testing.assert_close(features(medium), own(encoder, medium))


def test_a_medium_is_one_from_wherever_it_is_named_and_moves_with_the_folder(tmp_path, media, monkeypatch):
    encoder, home = Encoder(), tmp_path / "home"
    home.mkdir()
    (home / "a.png").write_bytes(media[0].source.read_bytes())
    write_features(encoder, READER, [Media("a.png", home / "a.png")], home / "features", 2)
    monkeypatch.chdir(home)
    assert Media("x/a.png", Path("a.png")) in Features(Path("features"))
    home.rename(tmp_path / "moved")
    assert Media("a.png", tmp_path / "moved" / "a.png") in Features(tmp_path / "moved" / "features")


def test_what_an_encoder_has_beside_its_tensors_tells_it_from_others(tmp_path, media):
    def normalising(mean: float = 0.0, frozen: bool = False) -> Encoder:
        encoder = Encoder()
        encoder.node = lambda: {"mean": mean, "frozen": frozen}  # of which `mean` is in no tensor
        return encoder

    write_features(normalising(), READER, media, tmp_path / "features", 5)
    features = Features(tmp_path / "features")
    features.check(normalising(frozen=True), READER)  # its states are the same
    refuses("states are of the encoder", lambda: features.check(normalising(mean=0.5), READER))


@pytest.mark.parametrize("kind", ["vjepa2", "timm"])
def test_an_encoder_from_a_folder_and_the_same_from_a_checkpoint_are_one(kind, tmp_path):
    """A stage that goes on from a checkpoint reads the states that the one before wrote."""
    torch.manual_seed(0)
    if kind == "vjepa2":
        sizes = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 8, "crop_size": 16}
        made = VJEPA2(architecture={"model_type": "vjepa2", **sizes, "frames_per_clip": 2})
        made.model.save_pretrained(tmp_path)
        encoder: Any = VJEPA2(pretrained=str(tmp_path))
    else:
        sizes = {"img_size": 16, "embed_dim": 32, "depth": 1, "num_heads": 2}
        model = timm.create_model("vit_tiny_patch16_224", **sizes)
        timm.models.save_for_hf(model, tmp_path, model_args=sizes, safe_serialization=True)
        encoder = TimmEncoder(f"local-dir:{tmp_path}", pretrained=True, frozen=True)
    assert fingerprint(rebuilt(encoder), READER) == fingerprint(encoder, READER)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "features not found"),
        ('{"format": "x"}', "format must be 'jepa-features-2', got 'x'"),
        ("[1]", "must be a JSON object"),
        ('{"format": ', "not JSON"),
        ('{"format": "jepa-features-2", "fps": 1}', "must have fingerprint, frames, size"),
    ],
)
def test_a_folder_without_a_right_header_is_named(tmp_path, text, message):
    if text is not None:
        (tmp_path / "features.json").write_text(text)
    refuses(message, Features, tmp_path)


def test_a_file_of_states_that_is_not_whole_is_named(tmp_path, media):
    folder = tmp_path / "features"
    write_features(Encoder(), READER, media, folder, 5)
    path = folder / "states-00000.safetensors"
    content = path.read_bytes()
    for half in (content[: len(content) // 2], b"", b"no states"):
        path.write_bytes(half)
        refuses(r"states-00000\.safetensors: not a whole file of states", Features, folder)
    save_file({"states": torch.zeros(2, 1, 1)}, path, {"keys": '["a.png"]'})
    refuses(r"must be \(rows, N, D\) with a key for each, got \[2, 1, 1\], 1 keys", Features, folder)
    for keys in ("2", '[{}, "a.png"]'):
        save_file({"states": torch.zeros(2, 1, 1)}, path, {"keys": keys})
        refuses("keys must be a list of texts", Features, folder)
    save_file({"states": torch.zeros(2, 1, 1)}, path)
    refuses("not a whole file of states", lambda: write_features(Encoder(), READER, media, folder, 5))


def test_media_are_taken_as_they_come(tmp_path, media):
    """Those of shards are in memory: no more of them are drawn than a file of states holds."""
    seen = list[int]()

    def drawn() -> Iterator[Media]:
        for number, medium in enumerate(media):
            seen.append(number - len(list((tmp_path / "features").glob("states-*"))) * 2)
            yield medium

    write_features(Encoder(), READER, drawn(), tmp_path / "features", 2, per_file=2)
    assert max(seen) <= 1
    assert len(Features(tmp_path / "features")) == 5
