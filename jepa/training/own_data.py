"""One's own data in training: manifests or shards, as clips or as states, the lengths of their texts, the decoder's."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from tqdm import tqdm

from jepa.data.clips import ClipBatch
from jepa.data.features import ClipReader, Features, write_features
from jepa.data.manifest_batches import ManifestBatches, Prompts, Read
from jepa.data.manifests import KINDS, CaptionSample, ClassSample, QuestionSample, Sample, media_of, read_manifest
from jepa.data.media import Media
from jepa.data.shards import ShardBatches, Shards, find_shards, read_shard
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.processes import is_first_process
from jepa.training.configs import JEPAStageConfig, TrainConfig
from jepa.training.fit import own_device
from jepa.training.latents import StreamLatents

Answered: TypeAlias = CaptionSample | QuestionSample | ClassSample
Tokenize: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
_Asked: TypeAlias = tuple["Tensor | InputError", str, str]  # clip or states, query and text
_CLIPS_AT_ONCE = 16


class OwnData:
    """`config.data` for a model: the splits "train" and "validation", shards where a name ends in `.tar`.

    Raises:
        InputError: a manifest or a shard is missing, or a manifest is broken.
    """

    def __init__(self, config: TrainConfig, model: VLJEPA) -> None:
        data = config.data
        assert data is not None
        self.config, self.data, self.model = config, data, model
        self.encoder: Any = model.x_encoder
        self.prompts = Prompts(**data.prompts.model_dump())
        self.clips = ClipReader(model.frames, model.x_encoder.size, data.fps)
        self.names = {"train": str(data.train), "validation": str(data.validation)}
        self.shards = {split: find_shards(name) for split, name in self.names.items() if name.endswith(".tar")}
        self.samples = {
            split: read_manifest(Path(name)) for split, name in self.names.items() if split not in self.shards
        }

    def batches(
        self, stage: JEPAStageConfig, seeds: Sequence[int], counts: Sequence[int]
    ) -> tuple[Dataset[ClipBatch], Dataset[ClipBatch]]:
        """Batches to train and to validate on, `counts` for all devices; shards have no end. States are written first.

        Raises:
            InputError: fewer shards than readers; states of another encoder or other clips, or of one that is trained.
        """
        data, shards, readers = self.data, self.shards, self.config.processes * max(1, self.config.workers)
        if len(shards.get("train", ())) < readers and "train" in shards:
            raise InputError(
                f"data.train must name a shard for each of {readers} readers (devices x workers), "
                f"got {len(shards['train'])}: {data.train}"
            )
        if data.features is not None and any(p.requires_grad for p in self.encoder.parameters()):
            rule, kind = "an X-Encoder that is frozen (frozen: true)", type(self.encoder).__name__
            raise InputError(f"data.features must come with {rule}, got a trained {kind}")
        self.write_missing_features(stage.chunk or stage.batch_size)
        read, size, prompts, skip = self._reader(), stage.batch_size, self.prompts, data.skip_broken

        def batches(split: str, seed: int, count: int) -> Dataset[ClipBatch]:
            if split in self.samples:
                kinds = Counter(sample.kind for sample in self.samples[split])
                own = {kind: float(kinds[kind]) for kind in KINDS if kinds[kind] and kind != "world_prediction"}
                fractions: Mapping[Any, float] = data.fractions or own
                return ManifestBatches(self.samples[split], read, seed, size, count, fractions, prompts, skip)
            validates = split == "validation"
            buffer = 1 if validates else data.buffer  # the order of the shards will do, and is there at once
            found = Shards(shards[split], seed, buffer, skip, everywhere=validates)
            return ShardBatches(found, read, size, prompts, skip)

        train, held_out = map(batches, self.names, seeds, counts)
        return train, held_out

    def write_missing_features(self, batch_size: int = _CLIPS_AT_ONCE) -> None:
        """Writes the states of `data.features` if the folder is not there: the first process does, and all wait.

        The folder appears whole. What a stopped run has written is in `<folder>.partial`, and gone on from.
        """
        if self.data.features is None:
            return
        folder, skip, config = Path(self.data.features), self.data.skip_broken, self.config
        if not folder.exists() and is_first_process():
            unfinished, what = folder.with_name(f"{folder.name}.partial"), (self.encoder, self.clips, self._media())
            self.encoder.to(own_device(config))
            broken = write_features(*what, unfinished, batch_size, config.workers, skip_broken=skip)
            self.encoder.cpu()
            unfinished.rename(folder)
            left_out = [f"without {len(broken)} media that cannot be read:", *broken] if broken else []
            print("\n".join([f"features: {folder}", *left_out]), flush=True)
        while not folder.exists():  # torchrun ends this process if the first one fails
            time.sleep(1)

    def check_texts(self, decoded: bool) -> None:
        """Refuses, before training, queries and texts of both splits that a part cannot take.

        Raises:
            InputError: `fractions` for shards; or a text is too long for the Predictor, the Y-Encoder or, if texts are
                `decoded`, the Y-Decoder. It names file, line and limit.
        """
        fractions = self.data.fractions
        if fractions is not None and self.shards:
            raise InputError(f"data.fractions must be null with shards, read in their own mixture, got {fractions}")
        queries, texts = dict[str, str](), dict[str, str]()
        for place, sample in chain.from_iterable(map(self._placed, self.names)):
            if self._is_used(sample):
                for found, places in zip(self.prompts.choices(sample), (queries, texts), strict=True):
                    places.update((text, place) for text in found if text not in places)
        tokenizers = self.model.tokenizers
        _check_lengths("predictor", self.model, tokenizers["predictor"].encode, queries)
        _check_lengths("y_encoder", self.model, self.model.text_ids, texts)
        if decoded:
            _check_lengths("y_decoder", self.model, tokenizers["y_decoder"].encode_closed, texts)

    def decoder_source(
        self, split: str, seed: int, clips: int, skipped: Counter[str]
    ) -> tuple[Tensor, list[str], StreamLatents]:
        """What the decoder learns from, as `DecoderBatches` takes it; the model is in evaluation mode.

        Of at most `clips` samples, drawn at random (0: all), of the kinds that have a fraction: the embeddings (N, E)
        of all their texts, these N texts, and the predicted embedding of each clip, under a query and with a text that
        are drawn. Clips with the same text stand together, as the steps of one event of a stream do. With `skip_broken`
        media that cannot be read are counted in `skipped`, by what was wrong.
        """
        name, workers, packed = self.names[split], self.config.workers, self.shards.get(split)
        samples = {row: sample for row, (_, sample) in enumerate(self._placed(split)) if self._is_used(sample)}
        if not samples:
            raise InputError(f"{name}: must have a sample of a kind that has a fraction, got none")
        rows = np.array(list(samples))
        chosen = sorted(rows[np.random.default_rng(seed).permutation(len(rows))[: clips or None]].tolist())
        texts = sorted({text for row in chosen for text in self.prompts.choices(samples[row])[1]})
        asked: Any = [*enumerate(samples[row] for row in chosen)]
        if packed is not None:
            asked, workers = _Packed(packed, chosen, self.data.skip_broken), min(workers, 1)  # read in one pass
        ask = partial(_ask, self._reader(), self.prompts, seed)
        loader = DataLoader(asked, batch_size=_CLIPS_AT_ONCE, num_workers=workers, collate_fn=ask)
        predicted: dict[str, list[Tensor]] = {}
        for batch in tqdm(loader, desc=f"latents of {split} for the decoder"):
            for error in (clip for clip, _, _ in batch if isinstance(clip, InputError)):
                if not self.data.skip_broken:
                    raise error
                skipped[str(error)] += 1
            whole = [row for row in batch if not isinstance(row[0], InputError)]
            if whole:
                with torch.no_grad():
                    states = self.model.encode(torch.stack([clip for clip, _, _ in whole]))
                    latents = self.model.predict(states, [query for _, query, _ in whole]).cpu()
                for latent, (_, _, text) in zip(latents, whole, strict=True):
                    predicted.setdefault(text, []).append(latent)
        if not predicted:
            raise InputError(f"{name}: a clip must be readable, got none of {len(chosen)}")
        last = torch.tensor([len(each) for each in predicted.values()]).cumsum(0) - 1
        first = torch.cat([last.new_zeros(1), last[:-1] + 1])
        steps = torch.stack([*chain.from_iterable(predicted.values())])
        return self.model.embed_all(texts), texts, StreamLatents(steps, first, last, list(predicted))

    def _reader(self) -> Read:
        """What reads a medium's clip or, with `features`, the states that the X-Encoder gave it beforehand."""
        if self.data.features is None:
            return self.clips
        states = Features(Path(self.data.features))
        states.check(self.encoder, self.clips)
        return states

    def _is_used(self, sample: Sample) -> TypeGuard[Answered]:
        fractions = self.data.fractions
        return isinstance(sample, Answered) and (not fractions or fractions.get(sample.kind, 0) > 0)

    def _media(self) -> list[Media] | Iterator[Media]:
        """The media that are trained and validated on; those of shards are read as they are asked for."""
        listed = [sample.media for sample in chain.from_iterable(self.samples.values()) if self._is_used(sample)]
        packed = (_unpacked(path, self.data.skip_broken) for path in chain.from_iterable(self.shards.values()))
        unpacked = chain.from_iterable(map(media_of, chain.from_iterable(packed)))
        return chain(listed, unpacked) if self.shards else listed

    def _placed(self, split: str) -> Iterator[tuple[str, Sample]]:
        """Each sample of a split, those of shards without their media, and where it stands."""
        if split in self.shards:
            for shard in self.shards[split]:
                for sample in _unpacked(shard, self.data.skip_broken, media=False):
                    yield f"{shard}: {sample.id}", sample
            return
        path, samples = Path(self.names[split]), self.samples[split]
        places = [f" {sample.id}" for sample in samples]
        if path.is_file():
            with path.open("rb") as file:
                places = [str(number) for number, line in enumerate(file, start=1) if line.strip()]
        yield from ((f"{path}:{place}", sample) for place, sample in zip(places, samples, strict=True))


class _Packed(IterableDataset[tuple[int, Answered]]):
    """The samples of shards that stand at `rows`, ascending, of all their samples that can be read; numbered."""

    def __init__(self, shards: Sequence[Path], rows: Sequence[int], skip: bool) -> None:
        self.shards, self.rows, self.skip = shards, rows, skip

    def __iter__(self) -> Iterator[tuple[int, Answered]]:
        numbers = {row: number for number, row in enumerate(self.rows)}
        samples = chain.from_iterable(_unpacked(shard, self.skip) for shard in self.shards)
        for row, sample in enumerate(samples):
            if row in numbers and isinstance(sample, Answered):
                yield numbers[row], sample


def _ask(read: Read, prompts: Prompts, seed: int, samples: Sequence[tuple[int, Answered]]) -> list[_Asked]:
    """A query and a text drawn for each sample. An error is handed over: raised in a worker, it would be wrapped."""
    asked: list[_Asked] = []
    for number, sample in samples:
        query, text = prompts.ask(sample, np.random.default_rng([seed, number]))
        try:
            asked.append((read(sample.media), query, text))
        except InputError as error:
            asked.append((error, query, text))
    return asked


def _unpacked(path: Path, skip_broken: bool, media: bool = True) -> Iterator[Sample]:
    """The samples of a shard, as far as it can be read."""
    try:
        yield from read_shard(path, media, skipped=[] if skip_broken else None)
    except InputError:
        if not skip_broken:
            raise


def _check_lengths(role: str, model: VLJEPA, tokenize: Tokenize, places: Mapping[str, str]) -> None:
    limit = getattr(model.get_submodule(role), "max_length", None)
    for text, place in places.items():
        try:
            length = int(tokenize([text])[1].sum())  # a pretrained tokenizer knows a limit of its own
            if limit is not None and length > limit:
                raise InputError(f"a text must have at most {limit} tokens, got {length}: {text[:60]!r}")
        except InputError as error:
            raise InputError(f"{place}: {role}: {error}") from None
