"""Cached states: equal to the encoder's own, written once, of one encoder, and without what cannot be read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from jepa.data.features import ClipReader, Features, write_features
from jepa.data.media import Media
from jepa.errors import InputError

READER = ClipReader(frames=2, size=8)


class Encoder(nn.Module):
    """Two states a clip, and a count of the clips that it saw."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.linear, self.dropout, self.seen = nn.Linear(3, 5), nn.Dropout(0.5), 0
        torch.manual_seed(0)
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


def test_half_precision_halves_the_file(tmp_path, media):
    for dtype in (torch.float32, torch.bfloat16):
        write_features(Encoder(), READER, media, tmp_path / str(dtype), 5, dtype=dtype)
    features = Features(tmp_path / "torch.bfloat16")
    assert features(media[1]).dtype == torch.float32
    torch.testing.assert_close(features(media[1]), own(Encoder(), media[1]), rtol=1e-2, atol=0.1)


def test_another_encoder_or_other_clips_are_refused(tmp_path, media):
    folder = tmp_path / "features"
    write_features(Encoder(), READER, media, folder, 5)
    with pytest.raises(InputError, match=r"states are of the encoder \w{12}, got the encoder"):
        Features(folder).check(Encoder(scale=1.01), READER)
    other_mean = Encoder()
    other_mean.mean += 1
    with pytest.raises(InputError, match="states are of the encoder"):
        write_features(other_mean, READER, media, folder, 5)
    with pytest.raises(InputError, match="states are of clips with frames 2, got 4"):
        Features(folder).check(Encoder(), ClipReader(4, 8))


def test_media_that_cannot_be_read_are_an_error_or_left_out_and_named(tmp_path, media):
    media[2].source.write_bytes(media[2].source.read_bytes()[:60])
    with pytest.raises(InputError, match=r"2\.png: cannot be read as a picture"):
        write_features(Encoder(), READER, media, tmp_path / "a", 2, workers=1)
    (message,) = write_features(Encoder(), READER, media, tmp_path / "b", 2, skip_broken=True)
    assert "2.png: cannot be read as a picture" in message
    with pytest.raises(InputError, match=r"must have states of '2\.png', got none among 4 media"):
        Features(tmp_path / "b")(media[2])


def test_folders_without_features_are_named(tmp_path):
    with pytest.raises(InputError, match=r"features not found: .*features\.json"):
        Features(tmp_path)
    (tmp_path / "features.json").write_text('{"format": "x"}')
    with pytest.raises(InputError, match=r"features\.json: format must be 'jepa-features-1', got 'x'"):
        Features(tmp_path)
