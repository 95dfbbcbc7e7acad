"""One's own data in training: manifests or shards, as clips or as states, the lengths of their texts, the decoder's."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from jepa.config import JEPAStageConfig, ManifestsConfig, TrainConfig
from jepa.data.clips import ClipBatch
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifest_batches import ManifestBatches, Prompts, Read
from jepa.data.manifests import (
    KINDS,
    CaptionSample,
    ClassSample,
    QuestionSample,
    Sample,
    media_of,
    read_manifest,
)
from jepa.data.media import Media
from jepa.data.shards import ShardBatches, Shards, find_shards, read_shard
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.training.fit import is_first_process, own_device
from jepa.training.latents import StreamLatents

Answered: TypeAlias = CaptionSample | QuestionSample | ClassSample
Tokenize: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
SPLITS = ("train", "validation")
_TEXTS_AT_ONCE, _CLIPS_AT_ONCE = 1024, 16


def own_batches(
    config: TrainConfig, stage: JEPAStageConfig, model: VLJEPA, seeds: Sequence[int], counts: Sequence[int]
) -> tuple[Dataset[ClipBatch], Dataset[ClipBatch]]:
    """Batches to train and to validate on, of `config.data`.

    A split that ends in `.tar` names shards, any other a manifest. Every process validates on all. States are written
    into the folder `features` if it is not there, by the first process.

    Args:
        config: a validated `TrainConfig` with `data`.
        seeds: of training and of validation.
        counts: batches of each, as many as all devices need; shards have no end of their own.

    Raises:
        InputError: a manifest or a shard is missing or broken; `fractions` for shards; fewer shards than readers;
            states of another encoder or other clips, or of one that is trained in this stage.
    """
    data, readers = _of(config), config.devices * max(1, config.workers)
    shards = {split: find_shards(manifest_of(data, split)) for split in SPLITS if _is_packed(data, split)}
    samples = {split: read_manifest(Path(manifest_of(data, split))) for split in SPLITS if split not in shards}
    if len(shards.get("train", ())) < readers and "train" in shards:
        raise InputError(
            f"data.train must name a shard for each of {readers} readers (devices x workers), "
            f"got {len(shards['train'])}: {data.train}"
        )
    if data.features is not None:
        _check_frozen(model)
        write_missing_features(config, model, stage.chunk or stage.batch_size)
    read = _reader(data, model)

    def batches(split: str, seed: int, count: int) -> Dataset[ClipBatch]:
        prompts, skip = Prompts(**data.prompts.model_dump()), data.skip_broken
        if split in samples:
            fractions: dict[Any, float] = data.fractions or _own_fractions(samples[split])
            return ManifestBatches(samples[split], read, seed, stage.batch_size, count, fractions, prompts, skip)
        validates = split == "validation"
        buffer = 1 if validates else data.buffer  # the order of the shards will do, and is there at once
        found = Shards(shards[split], seed, buffer, skip, everywhere=validates)
        return ShardBatches(found, read, stage.batch_size, prompts, skip)

    train, held_out = map(batches, SPLITS, seeds, counts)
    return train, held_out


def write_missing_features(config: TrainConfig, model: VLJEPA, batch_size: int = _CLIPS_AT_ONCE) -> None:
    """The states of `data.features`; where they are not there, the first process writes them, and all wait.

    The folder is written whole or not at all. What a stopped run has written is beside it, in `<folder>.partial`, and
    gone on from.

    Raises:
        InputError: a medium or a shard cannot be read, unless the data say `skip_broken`.
    """
    data = _of(config)
    if data.features is None:
        return
    folder, skip, encoder = Path(data.features), data.skip_broken, _encoder(model)
    if not folder.exists() and is_first_process():
        partial = folder.with_name(f"{folder.name}.partial")
        encoder.to(own_device(config))
        clips, media = _clips(data, model), _media(data)
        broken = write_features(encoder, clips, media, partial, batch_size, config.workers, skip_broken=skip)
        encoder.cpu()
        partial.rename(folder)
        left_out = [f"without {len(broken)} media that cannot be read:", *broken] if broken else []
        print("\n".join([f"features: {folder}", *left_out]), flush=True)
    while not folder.exists():  # torchrun ends this process if the first one fails
        time.sleep(1)


def _reader(data: ManifestsConfig, model: VLJEPA) -> Read:
    """What reads a medium's clip or, with `data.features`, the states that the model's X-Encoder gave it beforehand.

    Raises:
        InputError: the states are of another encoder or of other clips.
    """
    clips = _clips(data, model)
    if data.features is None:
        return clips
    states = Features(Path(data.features))
    states.check(_encoder(model), clips)
    return states


def _clips(data: ManifestsConfig, model: VLJEPA) -> ClipReader:
    return ClipReader(model.frames, model.x_encoder.size, data.fps)


def _encoder(model: VLJEPA) -> Any:
    return model.x_encoder


def _check_frozen(model: VLJEPA) -> None:
    if any(parameter.requires_grad for parameter in model.x_encoder.parameters()):
        raise InputError(
            "data.features must come with an X-Encoder that is frozen (frozen: true), "
            f"got a {type(model.x_encoder).__name__} that is trained"
        )


def _of(config: TrainConfig) -> ManifestsConfig:
    assert config.data is not None
    return config.data


def manifest_of(data: ManifestsConfig, split: str) -> str:
    """The manifest or shards of a split."""
    named = data.train if split == "train" else data.validation
    assert named is not None
    return named


def _is_packed(data: ManifestsConfig, split: str) -> bool:
    """Whether a split is of shards."""
    packed: bool = manifest_of(data, split).endswith(".tar")
    return packed


def _own_fractions(samples: Sequence[Sample]) -> dict[Any, float]:
    """The fraction of each kind among samples that can be trained on."""
    kinds = [sample.kind for sample in samples]
    return {kind: float(kinds.count(kind)) for kind in KINDS if kind in kinds and kind != "world_prediction"}


def _has_fraction(data: ManifestsConfig, sample: Sample) -> bool:
    return isinstance(sample, Answered) and (not data.fractions or data.fractions.get(sample.kind, 0) > 0)


def _media(data: ManifestsConfig) -> list[Media] | Iterator[Media]:
    """The media that are trained and validated on; those of shards are read as they are asked for."""
    listed, shards = list[Media](), list[Path]()
    for split in SPLITS:
        if _is_packed(data, split):
            shards += find_shards(manifest_of(data, split))
        else:
            found = filter(lambda sample: _has_fraction(data, sample), read_manifest(Path(manifest_of(data, split))))
            listed += chain.from_iterable(map(media_of, found))
    if not shards:
        return listed
    packed = (sample for path in shards for sample in _unpacked(path, data.skip_broken))
    return chain(listed, (medium for sample in packed for medium in media_of(sample)))


def _unpacked(path: Path, skip_broken: bool, media: bool = True) -> Iterator[Sample]:
    """The samples of a shard, as far as it can be read."""
    try:
        yield from read_shard(path, media)
    except InputError:
        if not skip_broken:
            raise


def _placed(data: ManifestsConfig, split: str) -> Iterator[tuple[str, Sample]]:
    """Each sample of a split, those of shards without their media, and where it stands."""
    if _is_packed(data, split):
        for shard in find_shards(manifest_of(data, split)):
            for sample in _unpacked(shard, data.skip_broken, media=False):
                yield f"{shard}: {sample.id}", sample
        return
    path = Path(manifest_of(data, split))
    samples = read_manifest(path)
    if path.is_dir():
        yield from ((f"{path}: {sample.id}", sample) for sample in samples)
        return
    with path.open("rb") as file:
        lines = [number for number, line in enumerate(file, start=1) if line.strip()]
    yield from ((f"{path}:{line}", sample) for line, sample in zip(lines, samples, strict=True))


def check_texts(data: ManifestsConfig, model: VLJEPA, decoded: bool) -> None:
    """Refuses queries and texts of both splits that a part cannot take: before training, not in its midst.

    Raises:
        InputError: `fractions` for shards; or a text is too long for the Predictor, the Y-Encoder or, if texts are
            `decoded`, the Y-Decoder. It names file, line and limit.
    """
    if data.fractions is not None and any(_is_packed(data, split) for split in SPLITS):
        raise InputError(f"data.fractions must be null with shards, read in their own mixture, got {data.fractions}")
    prompts, queries, texts = Prompts(**data.prompts.model_dump()), dict[str, str](), dict[str, str]()
    for place, sample in chain.from_iterable(_placed(data, split) for split in SPLITS):
        if isinstance(sample, Answered) and _has_fraction(data, sample):
            for found, places in zip(prompts.choices(sample), (queries, texts), strict=True):
                places.update((text, place) for text in found if text not in places)
    _check_lengths("predictor", model, model.tokenizers["predictor"].encode, queries)
    _check_lengths("y_encoder", model, model.tokenizers["y_encoder"].encode, texts)
    if decoded:
        _check_lengths("y_decoder", model, model.tokenizers["y_decoder"].encode_closed, texts)


def _check_lengths(role: str, model: VLJEPA, tokenize: Tokenize, places: Mapping[str, str]) -> None:
    limit = getattr(model.get_submodule(role), "max_length", None)

    def check(texts: Sequence[str]) -> None:
        longest = int(tokenize(texts)[1].sum(1).max())  # a pretrained tokenizer knows a limit of its own
        if limit is not None and longest > limit:
            raise InputError(f"a text must have at most {limit} tokens, got {longest}: {texts[0][:60]!r}")

    texts = list(places)
    for start in range(0, len(texts), _TEXTS_AT_ONCE):
        some = texts[start : start + _TEXTS_AT_ONCE]
        try:
            check(some)
        except InputError:
            for text in some:
                try:
                    check([text])
                except InputError as error:
                    raise InputError(f"{places[text]}: {role}: {error}") from None
            raise


def decoder_source(
    data: ManifestsConfig,
    model: VLJEPA,
    split: str,
    seed: int,
    clips: int,
    workers: int,
    skipped: Counter[str] | None = None,
) -> tuple[Tensor, list[str], StreamLatents]:
    """What the decoder learns from a manifest or shards, as `DecoderBatches` takes it; the model is in evaluation mode.

    Of at most `clips` samples, drawn at random (0: all), of the kinds that have a fraction: the embeddings (N, E) of
    all
    their texts, these N texts, and the predicted embedding of each clip, under a query and with a text of its own that
    are drawn. Clips with the same text stand together, as the steps of one event of a stream do. With `skip_broken`
    media that cannot be read are left out, and counted in `skipped` by what was wrong.

    Raises:
        InputError: no sample of a kind that has a fraction, states of another encoder, or a medium that cannot be read.
    """
    read, prompts = _reader(data, model), Prompts(**data.prompts.model_dump())
    samples = {
        row: sample
        for row, (_, sample) in enumerate(_placed(data, split))
        if isinstance(sample, Answered) and _has_fraction(data, sample)
    }
    if not samples:
        raise InputError(f"{manifest_of(data, split)}: must have a sample of a kind that has a fraction, got none")
    rows = list(samples)
    order = np.random.default_rng(seed).permutation(len(rows))[: clips or None]
    chosen = {rows[place]: samples[rows[place]] for place in sorted(order)}
    texts = sorted({text for sample in chosen.values() for text in prompts.choices(sample)[1]})
    asked: Dataset[_Clip]
    if _is_packed(data, split):
        shards, workers = find_shards(manifest_of(data, split)), min(workers, 1)  # read in one pass
        asked = _PackedAsked(shards, list(chosen), data.skip_broken, read, prompts, seed)
    else:
        asked = _Asked(list(chosen.values()), read, prompts, seed)
    loader = DataLoader(asked, batch_size=_CLIPS_AT_ONCE, num_workers=workers, collate_fn=list)
    predicted: dict[str, list[Tensor]] = {}
    for batch in tqdm(loader, desc=f"latents of {split} for the decoder"):
        for error in (clip for clip, _, _ in batch if isinstance(clip, InputError)):
            if not data.skip_broken:
                raise error
            if skipped is not None:
                skipped[str(error)] += 1
        whole = [row for row in batch if not isinstance(row[0], InputError)]
        if whole:
            with torch.no_grad():
                states = model.encode(torch.stack([clip for clip, _, _ in whole]))
                latents = model.predict(states, [query for _, query, _ in whole]).cpu()
            for latent, (_, _, text) in zip(latents, whole, strict=True):
                predicted.setdefault(text, []).append(latent)
    if not predicted:
        raise InputError(f"{manifest_of(data, split)}: a clip must be readable, got none of {len(chosen)}")
    counts = torch.tensor([len(each) for each in predicted.values()])
    last = counts.cumsum(0) - 1
    steps = torch.stack([latent for each in predicted.values() for latent in each])
    return model.embed_all(texts), texts, StreamLatents(steps, last - counts + 1, last, list(predicted))


_Clip: TypeAlias = tuple["Tensor | InputError", str, str]  # clip or states, query and text


def _ask(sample: Answered, read: Read, prompts: Prompts, rng: np.random.Generator) -> _Clip:
    """An error is handed over as it is: raised in a worker, it would come wrapped into its traceback."""
    query, text = prompts.ask(sample, rng)
    try:
        return read(sample.media), query, text
    except InputError as error:
        return error, query, text


class _Asked(Dataset[_Clip]):
    """Samples of a manifest."""

    def __init__(self, samples: Sequence[Answered], read: Read, prompts: Prompts, seed: int) -> None:
        self.samples, self.read, self.prompts, self.seed = samples, read, prompts, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> _Clip:
        return _ask(self.samples[index], self.read, self.prompts, np.random.default_rng([self.seed, index]))


class _PackedAsked(IterableDataset[_Clip]):
    """The samples of shards that stand at `rows`, ascending, of all their samples that can be read."""

    def __init__(
        self, shards: Sequence[Path], rows: Sequence[int], skip: bool, read: Read, prompts: Prompts, seed: int
    ) -> None:
        self.shards, self.rows, self.skip = shards, rows, skip
        self.read, self.prompts, self.seed = read, prompts, seed

    def __iter__(self) -> Iterator[_Clip]:
        index = {row: number for number, row in enumerate(self.rows)}
        samples = chain.from_iterable(_unpacked(shard, self.skip) for shard in self.shards)
        for row, sample in enumerate(samples):
            if row in index and isinstance(sample, Answered):
                yield _ask(sample, self.read, self.prompts, np.random.default_rng([self.seed, index[row]]))
