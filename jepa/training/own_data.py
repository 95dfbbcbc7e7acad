"""Training and validation batches of one's own data: manifests or shards, as clips or as states written beforehand."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from jepa.config import JEPAStageConfig
from jepa.data.clips import ClipBatch
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifest_batches import ManifestBatches, Prompts, Read
from jepa.data.manifests import KINDS, Sample, media_of, read_manifest
from jepa.data.media import Media
from jepa.data.shards import ShardBatches, Shards, find_shards, read_shard
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.training.fit import is_first_process, own_device

SPLITS = ("train", "validation")


def own_batches(
    config: dict[str, Any], stage: JEPAStageConfig, model: VLJEPA, seeds: Sequence[int], counts: Sequence[int]
) -> tuple[Dataset[ClipBatch], Dataset[ClipBatch]]:
    """Batches to train and to validate on, of `config["data"]`.

    A split that ends in `.tar` names shards, any other a manifest. Every process validates on all. States are written
    into the folder `features` if it is not there, by the first process.

    Args:
        config: a validated `TrainConfig` with `data`.
        seeds: of training and of validation.
        counts: batches of each, as many as all devices need; shards have no end of their own.

    Raises:
        InputError: a manifest or a shard is missing or broken; `shares` for shards; fewer shards than readers; states
            of another encoder or other clips.
    """
    data, readers = config["data"], config["devices"] * max(1, config["workers"])
    shards = {split: find_shards(data[split]) for split in SPLITS if data[split].endswith(".tar")}
    samples = {split: read_manifest(Path(data[split])) for split in SPLITS if split not in shards}
    if shards and data["shares"] is not None:
        raise InputError(f"data.shares must be null with shards, which are read in their mixture, got {data['shares']}")
    if len(shards.get("train", ())) < readers and "train" in shards:
        raise InputError(
            f"data.train must name a shard for each of {readers} readers (devices x workers), "
            f"got {len(shards['train'])}: {data['train']}"
        )
    reader = ClipReader(model.frames, model.x_encoder.size, data["fps"])
    read: Read = reader
    if data["features"] is not None:
        media = _media(data, samples, shards)
        read = _features(Path(data["features"]), config, stage, model, reader, media)

    def batches(split: str, seed: int, count: int) -> Dataset[ClipBatch]:
        prompts, skip = Prompts(**data["prompts"]), data["skip_broken"]
        if split in samples:
            shares = data["shares"] or _own_shares(samples[split])
            return ManifestBatches(samples[split], read, seed, stage.batch_size, count, shares, prompts, skip)
        validates = split == "validation"
        buffer = 1 if validates else data["buffer"]  # the order of the shards will do, and is there at once
        found = Shards(shards[split], seed, buffer, skip, everywhere=validates)
        return ShardBatches(found, read, stage.batch_size, prompts, skip)

    train, held_out = map(batches, SPLITS, seeds, counts)
    return train, held_out


def _own_shares(samples: Sequence[Sample]) -> dict[Any, float]:
    """The share of each kind among samples that can be trained on."""
    kinds = [sample.kind for sample in samples]
    return {kind: float(kinds.count(kind)) for kind in KINDS if kind in kinds and kind != "world_prediction"}


def _media(
    data: dict[str, Any], samples: dict[str, list[Sample]], shards: dict[str, list[Path]]
) -> list[Media] | Iterator[Media]:
    """The media that are trained and validated on; those of shards are read as they are asked for."""
    listed = list[Media]()
    for found in samples.values():
        shares = data["shares"] or _own_shares(found)
        listed += [medium for sample in found if shares.get(sample.kind) for medium in media_of(sample)]
    if not shards:
        return listed
    packed = (sample for path in chain.from_iterable(shards.values()) for sample in read_shard(path))
    return chain(listed, (medium for sample in packed for medium in media_of(sample)))


def _features(
    folder: Path,
    config: dict[str, Any],
    stage: JEPAStageConfig,
    model: VLJEPA,
    reader: ClipReader,
    media: list[Media] | Iterator[Media],
) -> Features:
    """The states of `folder`; where it is not there, the first process writes it, whole or not at all, and all wait.

    What a stopped run has written is beside it, in `<folder>.partial`, and gone on from.
    """
    encoder: Any = model.x_encoder
    encoder.requires_grad_(False)  # it sees no clip of this run
    if not folder.exists() and is_first_process():
        partial = folder.with_name(f"{folder.name}.partial")
        size, skip = stage.chunk or stage.batch_size, config["data"]["skip_broken"]
        encoder.to(own_device(config))
        broken = write_features(encoder, reader, media, partial, size, config["workers"], skip_broken=skip)
        encoder.cpu()
        partial.rename(folder)
        left_out = [f"without {len(broken)} media that cannot be read:", *broken] if broken else []
        print("\n".join([f"features: {folder}", *left_out]), flush=True)
    while not folder.exists():  # torchrun ends this process if the first one fails
        time.sleep(1)
    features = Features(folder)
    features.check(encoder, reader)
    return features
