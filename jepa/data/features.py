"""States of a frozen X-Encoder on disk, so that it runs once: safetensors files, read by memory mapping.

A folder holds `features.json`, which names the encoder, and files of some media each. The key of a medium is its path
relative to the folder, or the SHA-256 of its bytes where a shard holds it. The key of a part of a video ends in times.
B media, F frames, S pixels a side, N states, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from jepa.data.json_lines import check_text, located, parse, parse_any
from jepa.data.media import Media, read_clip
from jepa.errors import InputError, check_int, check_positive

FORMAT = "jepa-features-2"
_NOT_OF_STATES = ("frozen", "gradient_checkpointing")  # of an encoder's node: they change how it is trained


@dataclass(frozen=True)
class ClipReader:
    """Media as clips (F, S, S, 3) uint8, see `read_clip`.

    >>> reader = ClipReader(frames=8, size=48)  # reader(media) is a clip
    """

    frames: int
    size: int
    fps: float | None = None

    def __post_init__(self) -> None:
        check_int("frames", self.frames, 1)
        check_int("size", self.size, 1)
        if self.fps is not None:
            check_positive("fps", self.fps)

    def __call__(self, media: Media) -> Tensor:
        return torch.from_numpy(read_clip(media, self.frames, self.size, self.fps))


def fingerprint(encoder: nn.Module, reader: ClipReader) -> str:
    """SHA-256 of an encoder's type, its node if it has one, its parameters and buffers, and of how clips are read."""
    digest = hashlib.sha256(f"{type(encoder).__qualname__} {json.dumps(asdict(reader))}".encode())
    if hasattr(encoder, "node"):
        node: Any = encoder.node()  # type: ignore[operator]
        made = {name: value for name, value in node.items() if name not in _NOT_OF_STATES}
        digest.update(json.dumps(made, sort_keys=True).encode())
    for name, tensor in chain(encoder.named_parameters(), encoder.named_buffers()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@torch.no_grad()
def write_features(
    encoder: nn.Module,
    reader: ClipReader,
    media: Iterable[Media],
    folder: Path,
    batch_size: int,
    workers: int = 0,
    dtype: torch.dtype = torch.float32,
    per_file: int = 64,
    skip_broken: bool = False,
) -> list[str]:
    """Writes the states of each medium once, as `encoder`: (B, F, S, S, 3) uint8 -> (B, N, D) gives them in evaluation.

    Media that the folder already has are passed over, so that a stopped run goes on; it loses `per_file` media at most.
    `workers` processes read clips. `skip_broken` leaves media out that cannot be read, and returns their errors.

    Raises:
        InputError: the folder is of another encoder or other clips, or broken; or a medium cannot be read.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "features.json"
    if path.is_file():
        Features(folder).check(encoder, reader)
    else:
        header = {"format": FORMAT, "fingerprint": fingerprint(encoder, reader), **asdict(reader)}
        with _whole(path) as unfinished:
            unfinished.write_text(json.dumps(header, indent=1), encoding="utf-8")
    files, broken = _files(folder), list[InputError]()
    number = 1 + max((int(file.stem.split("-")[1]) for file in files), default=-1)
    todo = _missing(tqdm(media, desc="features", unit="clip"), folder, {key for file in files for key in _keys(file)})
    mode, device = encoder.training, next(encoder.parameters()).device
    encoder.eval()
    try:
        while part := list(islice(todo, per_file)):
            keys, states = list[str](), list[Tensor]()
            read = partial(_read, reader)
            for batch in DataLoader(part, batch_size, num_workers=workers, collate_fn=read):  # type: ignore[arg-type]
                broken += [clip for _, clip in batch if isinstance(clip, InputError)]
                if broken and not skip_broken:
                    raise broken[0]
                clips = {key: clip for key, clip in batch if isinstance(clip, Tensor)}
                if clips:
                    states.append(encoder(torch.stack(list(clips.values())).to(device)).to("cpu", dtype))
                    keys += clips
            if keys:
                with _whole(folder / f"states-{number:05}.safetensors") as unfinished:
                    save_file({"states": torch.cat(states)}, unfinished, metadata={"keys": json.dumps(keys)})
                number += 1
    finally:
        encoder.train(mode)
    return list(map(str, broken))


class Features:
    """States that `write_features` wrote, (N, D) float32 of a medium. They are read when they are asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fingerprint, self.reader = _header(folder / "features.json")
        self._rows = {key: (file, row) for file in _files(folder) for row, key in enumerate(_keys(file))}
        self._open: dict[Path, Any] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, media: Media) -> bool:
        return _key(media, self.folder) in self._rows

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": {}}  # a worker maps the files anew

    def __call__(self, media: Media) -> Tensor:
        key = _key(media, self.folder)
        if key not in self._rows:
            raise InputError(f"{self.folder}: must have states of {key!r}, got none among {len(self)} media")
        file, row = self._rows[key]
        if file not in self._open:
            self._open[file] = safe_open(file, framework="pt").__enter__()
        states: Tensor = self._open[file].get_slice("states")[row : row + 1]
        return states[0].float()

    def check(self, encoder: nn.Module, reader: ClipReader) -> None:
        """Raises `InputError` if another encoder wrote the states, or clips were read otherwise."""
        if self.reader != reader:
            raise InputError(f"{self.folder}: states are of clips by {self.reader}, got {reader}")
        if self.fingerprint != (got := fingerprint(encoder, reader)):
            wrote = self.fingerprint[:12]
            raise InputError(f"{self.folder}: states are of the encoder {wrote}, got the encoder {got[:12]}")


def _read(reader: ClipReader, media: Sequence[tuple[str, Media]]) -> list[tuple[str, Tensor | InputError]]:
    """Errors come as they are: raised in a worker, they would be wrapped into its traceback."""
    found: list[tuple[str, Tensor | InputError]] = []
    for key, medium in media:
        try:
            found.append((key, reader(medium)))
        except InputError as error:
            found.append((key, error))
    return found


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("states-*.safetensors"))


def _missing(media: Iterable[Media], folder: Path, done: set[str]) -> Iterator[tuple[str, Media]]:
    """Media with their keys, each once, without those whose keys are in `done`."""
    for medium in media:
        if (key := _key(medium, folder)) not in done:
            done.add(key)
            yield key, medium


def _key(media: Media, folder: Path) -> str:
    """What tells a medium from all others: `../clips/kitchen.mp4#1.5-4.0`, or of bytes `sha256:9f86...`."""
    if isinstance(media.source, Path):
        key = os.path.relpath(media.source.resolve(), folder.resolve())
    else:
        files = (media.source,) if isinstance(media.source, bytes) else media.source
        digest = hashlib.sha256(b"".join(hashlib.sha256(file).digest() for file in files))
        key = f"sha256:{digest.hexdigest()}"
    if media.start is None and media.end is None:
        return key
    return f"{key}#{media.start or 0.0}-{'' if media.end is None else media.end}"


def _header(path: Path) -> tuple[str, ClipReader]:
    """The encoder's fingerprint, and how clips were read."""
    if not path.is_file():
        raise InputError(f"features not found: {path}")
    with located(str(path)):
        header = parse(path.read_bytes())
        if header.get("format") != FORMAT:
            raise InputError(f"format must be {FORMAT!r}, got {header.get('format')!r}")
        if missing := {"fingerprint", "frames", "size", "fps"} - header.keys():
            raise InputError(f"must have {', '.join(sorted(missing))}, got {', '.join(header)}")
        check_text("fingerprint", header["fingerprint"])
        return header["fingerprint"], ClipReader(header["frames"], header["size"], header["fps"])


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A path to write to that becomes `path` when it is whole."""
    unfinished = path.with_suffix(".partial")
    yield unfinished
    os.replace(unfinished, path)


def _keys(file: Path) -> list[str]:
    """The keys of a file's rows."""
    try:
        with safe_open(file, framework="pt") as opened:
            keys = parse_any((opened.metadata() or {})["keys"].encode())
            shape = opened.get_slice("states").get_shape()
    except (SafetensorError, OSError, KeyError, InputError) as error:
        raise InputError(f"{file}: not a whole file of states: {error}") from None
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise InputError(f"{file}: keys must be a list of texts, got {str(keys)[:80]}")
    if len(shape) != 3 or len(keys) != shape[0]:
        raise InputError(f"{file}: states must be (rows, N, D) with a key for each, got {shape}, {len(keys)} keys")
    return keys
