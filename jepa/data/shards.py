"""Samples with their media in tar files, in WebDataset's layout: read in one pass, sharded over ranks and workers.

A sample is the members of one key: `00000017.json`, its line of a manifest, and beside it the media that the line names
(`00000017.mp4`; `00000017.before.jpg`; the frames of a folder as `00000017.media.00000.jpg` and so on).
"""

from __future__ import annotations

import io
import json
import os
import posixpath
import re
import tarfile
from collections.abc import Iterator, Sequence
from glob import glob
from itertools import count, groupby
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info
from tqdm import tqdm

from jepa.data.clips import ClipBatch
from jepa.data.json_lines import located, parse
from jepa.data.manifest_batches import Prompts, Read, Row, collate
from jepa.data.manifests import Sample, WorldPredictionSample, parse_sample, read_manifest, sample_fields
from jepa.data.media import Media, frame_files, natural
from jepa.errors import InputError, check_int

_END = bytes(2 * tarfile.BLOCKSIZE)
_BROKEN_IN_A_ROW = 1000  # samples; then nothing more is expected of the shards
_UNREAD = torch.empty(0)  # a medium of a batch that is passed over


def write_shards(manifest: str | Path, folder: str | Path, per_shard: int) -> list[Path]:
    """Packs a manifest, or an image folder, with its media into `shard-00000.tar` and on, `per_shard` samples each."""
    check_int("per_shard", per_shard, 1)
    manifest, folder = Path(manifest), Path(folder)
    samples = read_manifest(manifest)
    if any(folder.glob("shard-*.tar")):
        raise InputError(f"{folder}: must have no shards yet, got some")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for first in tqdm(range(0, len(samples), per_shard), desc="shards", unit="shard"):
        path = folder / f"shard-{first // per_shard:05}.tar"
        partial = path.with_suffix(".partial")
        with tarfile.open(partial, "w") as tar:
            for number, sample in enumerate(samples[first : first + per_shard], start=first):
                _add_sample(tar, f"{number:08}", sample, manifest if manifest.is_dir() else manifest.parent)
        os.replace(partial, path)
        paths.append(path)
    return paths


def find_shards(pattern: str) -> list[Path]:
    """The shards that a pattern names, in order: `s/shard-{00000..00012}.tar` (all), `s/shard-*.tar`, or a path."""
    found = [Path(path) for name in _unfolded(pattern) for path in (sorted(glob(name), key=natural) or [name])]
    for path in found:
        if not path.is_file():
            raise InputError(f"shard not found: {path}")
    return found


def _unfolded(pattern: str) -> Iterator[str]:
    """Every name of a pattern with ranges `{00000..00012}`, of which all numbers have the width of the first."""
    span = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if span is None:
        yield pattern
        return
    first, last = span.groups()
    for number in range(int(first), int(last) + 1):
        yield from _unfolded(f"{pattern[: span.start()]}{number:0{len(first)}}{pattern[span.end() :]}")


def read_shard(path: Path, media: bool = True, skipped: list[str] | None = None) -> Iterator[Sample]:
    """The samples of a shard in order, with their media in memory; without `media` they are left empty.

    Malformed samples are left out if there is a list `skipped`, which gets their errors. Members that are hidden, such
    as `._0.json`, or no files are passed over.

    Raises:
        InputError: the shard is missing, truncated or no tar file, or a sample is malformed.
    """
    try:
        with path.open("rb") as file, _open(file, "r|" if media else "r:") as tar:
            samples = groupby(_members(tar, media), lambda member: _key(member[0]))
            for number, (key, members) in enumerate(samples, start=1):
                files = dict(members)
                try:
                    with located(f"{path}: {key}"):
                        sample = _sample(key, files, number)
                except InputError as error:
                    if skipped is None:
                        raise
                    skipped.append(str(error))
                else:
                    yield sample
            file.seek(-len(_END), os.SEEK_END)  # tarfile takes a file that is cut between two members for whole
            if file.read() != _END:
                raise InputError(f"{path}: must end as a tar file does, in two blocks of zeros, got others: truncated")
    except InputError:
        raise
    except (OSError, tarfile.TarError, EOFError, ValueError) as error:  # a ValueError: a header that is no number
        raise InputError(f"{path}: cannot be read as a shard: {error}") from None


class Shards(IterableDataset[Sample]):
    """Samples of shards, epoch after epoch without end, in an order that the seed and the number of readers fix.

    Every epoch takes the shards in a new order. One rank and worker reads each, or `everywhere`, as in validation, one
    worker of every rank. Samples are shuffled within a buffer of so many samples, with their media; 1 keeps the order
    of a shard. `skip_broken` leaves malformed samples out and gives a shard up where it breaks; `skipped` names both.
    Workers take turns: the one whose turn it is after `first` batches is the first.
    """

    def __init__(
        self, paths: Sequence[Path], seed: int, buffer: int, skip_broken: bool = False, everywhere: bool = False
    ) -> None:
        if not paths:
            raise InputError("shards must be at least 1, got none")
        self.paths, self.seed, self.buffer = paths, seed, check_int("buffer", buffer, 1)
        self.skip_broken, self.everywhere, self.first = skip_broken, everywhere, 0
        self.skipped: list[str] = []  # what this process left out, each time

    def place(self) -> tuple[int, int]:
        """The number of this reader and of all readers: ranks x workers."""
        worker = get_worker_info()
        workers, number = (1, 0) if worker is None else (worker.num_workers, worker.id)
        number = (self.first + number) % workers
        grouped = dist.is_available() and dist.is_initialized() and not self.everywhere
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if grouped else (0, 1)
        return rank * workers + number, ranks * workers

    def __iter__(self) -> Iterator[Sample]:
        reader, readers = self.place()
        if len(self.paths) < readers:
            raise InputError(f"shards must be at least one a rank and worker, {readers}, got {len(self.paths)}")
        rng = np.random.default_rng([self.seed, 1, reader])
        waiting: list[Sample] = []
        for epoch in count():
            order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.paths))
            found = False
            for number in order[reader::readers]:
                for sample in self._read(self.paths[number]):
                    found = True
                    waiting.append(sample)
                    if len(waiting) >= self.buffer:
                        chosen = int(rng.integers(len(waiting)))
                        waiting[chosen], waiting[-1] = waiting[-1], waiting[chosen]
                        yield waiting.pop()
            if not found:
                why = f"; the last error: {self.skipped[-1]}" if self.skipped else ""
                raise InputError(f"shards must have a sample that can be read, got none in {len(order)} shards{why}")

    def _read(self, path: Path) -> Iterator[Sample]:
        try:
            yield from read_shard(path, skipped=self.skipped if self.skip_broken else None)
        except InputError as error:
            if not self.skip_broken:
                raise
            self.skipped.append(str(error))


class ShardBatches(IterableDataset[ClipBatch]):
    """Training batches of the captions, questions and classes of shards without end, in the mixture that these have.

    `skip_broken` leaves samples out whose medium cannot be read. The next batch's `skipped` names them and the shards
    that were given up. A sample of world prediction is an error, and so are 1000 broken media in a row.

    Those of this rank before number `start` are passed over. Their shards are read again, and their media not decoded,
    unless `skip_broken` has to know which of them can be.
    """

    def __init__(
        self, shards: Shards, read: Read, batch_size: int, prompts: Prompts, skip_broken: bool = False
    ) -> None:
        self.shards, self.read, self.prompts, self.skip_broken = shards, read, prompts, skip_broken
        self.batch_size, self.start = check_int("batch_size", batch_size, 1), 0

    def __iter__(self) -> Iterator[ClipBatch]:
        worker, self.shards.first = get_worker_info(), self.start
        passed = self.start if worker is None else (self.start + worker.id) // worker.num_workers  # of this reader
        rng = np.random.default_rng([self.shards.seed, 2, self.shards.place()[0]])
        rows, skipped, broken = list[Row](), list[str](), 0
        for sample in self.shards:
            if isinstance(sample, WorldPredictionSample):
                raise InputError(f"samples to train on must be no world prediction, got {sample.id!r}")
            try:
                states = _UNREAD if passed and not self.skip_broken else self.read(sample.media)
            except InputError as error:
                broken += 1
                if not self.skip_broken:
                    raise
                if broken == _BROKEN_IN_A_ROW:
                    raise InputError(f"none of {broken} samples in a row can be read, the last: {error}") from error
                skipped.append(str(error))
                continue
            broken = 0
            rows.append((states, *self.prompts.ask(sample, rng)))
            if len(rows) == self.batch_size:
                if not passed:
                    yield collate(rows, skipped + self.shards.skipped)
                passed = max(0, passed - 1)
                self.shards.skipped.clear()
                rows, skipped = [], []


def _add_sample(tar: tarfile.TarFile, key: str, sample: Sample, folder: Path) -> None:
    """Members of a sample whose media lie in `folder`."""
    contents: dict[str, Path] = {}

    def rename(role: str, media: Media) -> str:
        if media.is_frames:
            name = f"{key}.{role}"
            files = frame_files(folder / media.name)
            contents.update({f"{name}.{i:05}{file.suffix}": file for i, file in enumerate(files)})
        else:
            name = f"{key}{'' if role == 'media' else f'.{role}'}{Path(media.name).suffix.lower()}"
            contents[name] = folder / media.name
        return name

    line = json.dumps(sample_fields(sample, rename), ensure_ascii=False).encode()
    for name, data in [(f"{key}.json", line), *((name, file.read_bytes()) for name, file in contents.items())]:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def _open(file: BinaryIO, mode: Literal["r|", "r:"]) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode=mode, encoding="utf-8", errors="replace")  # of names


def _members(tar: tarfile.TarFile, media: bool) -> Iterator[tuple[str, bytes]]:
    for info in tar:
        name = posixpath.normpath(info.name)
        if info.issparse():  # of any size, whatever the size of the shard
            raise tarfile.ReadError(f"must hold whole files, got a sparse one: {name}")
        file = tar.extractfile(info) if info.isreg() and not posixpath.basename(name).startswith(".") else None
        if file is not None:
            yield name, file.read() if media or name.endswith(".json") else b""


def _key(name: str) -> str:
    """As WebDataset has it: all before the first dot of the file's name."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _sample(key: str, files: dict[str, bytes], number: int) -> Sample:
    if f"{key}.json" not in files:
        raise InputError(f"a sample must have {key}.json, got {', '.join(files)}")

    def find(name: str) -> bytes | tuple[bytes, ...]:
        beside = posixpath.normpath(posixpath.join(posixpath.dirname(key), name))
        for each in (beside, name):
            if each in files:
                return files[each]
            if frames := sorted((file for file in files if file.startswith(f"{each}.")), key=natural):
                return tuple(files[frame] for frame in frames)
        raise InputError(f"media not found: {name}")

    return parse_sample(parse(files[f"{key}.json"]), number, find)
