"""Manifests in training: their clips or states, the lengths of their texts, and what the decoder learns from them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from jepa.data.features import ClipReader, Features
from jepa.data.manifest_batches import Prompts, Read
from jepa.data.manifests import CaptionSample, ClassSample, QuestionSample, read_manifest
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA
from jepa.training.latents import StreamLatents

Answered: TypeAlias = CaptionSample | QuestionSample | ClassSample
Tokenize: TypeAlias = Callable[[Sequence[str]], tuple[Tensor, Tensor]]
_TEXTS_AT_ONCE, _CLIPS_AT_ONCE = 1024, 16


def reader(data: Mapping[str, Any], model: VLJEPA, trained: bool) -> Read:
    """What reads a medium's clip or, with `data.features`, the states that the model's X-Encoder gave it beforehand.

    Raises:
        InputError: the states are of another encoder, or it is `trained` in this stage.
    """
    clips = ClipReader(model.frames, model.x_encoder.size, data["fps"])
    if data["features"] is None:
        return clips
    encoder: Any = model.x_encoder
    if trained and any(parameter.requires_grad for parameter in encoder.parameters()):
        raise InputError(
            "data.features must come with an X-Encoder that is frozen (frozen: true), "
            f"got a {type(encoder).__name__} that is trained"
        )
    states = Features(Path(data["features"]))
    states.check(encoder, clips)
    return states


def check_texts(data: Mapping[str, Any], model: VLJEPA, decoded: bool) -> None:
    """Refuses queries and texts of both manifests that a part cannot take: before training, not in its midst.

    Raises:
        InputError: one is too long for the Predictor, the Y-Encoder or, if texts are `decoded`, the Y-Decoder. It names
            file, line and limit.
    """
    prompts, queries, texts = Prompts(**data["prompts"]), dict[str, str](), dict[str, str]()
    for path in (Path(data["train"]), Path(data["validation"])):
        for line, sample in enumerate(read_manifest(path), start=1):
            if isinstance(sample, Answered) and data["shares"].get(sample.kind, 0):
                place = f"{path}: {sample.id}" if path.is_dir() else f"{path}:{line}"
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
    data: Mapping[str, Any], model: VLJEPA, split: str, seed: int, clips: int, workers: int
) -> tuple[Tensor, list[str], StreamLatents]:
    """What the decoder learns from a manifest, as `DecoderBatches` takes it; the model is in evaluation mode.

    Of at most `clips` samples, drawn at random (0: all), of the kinds that have a share: the embeddings (N, E) of all
    their texts, these N texts, and the predicted embedding of each clip, under a query and with a text of its own that
    are drawn. Clips with the same text stand together, as the steps of one event of a stream do.

    Raises:
        InputError: no sample of a kind that has a share, or as `data.features` and media that cannot be read.
    """
    read, prompts = reader(data, model, trained=False), Prompts(**data["prompts"])
    samples = [
        sample
        for sample in read_manifest(Path(data[split]))
        if isinstance(sample, Answered) and data["shares"].get(sample.kind, 0)
    ]
    if not samples:
        raise InputError(f"{data[split]}: must have a sample of a kind that has a share, got none")
    order = np.random.default_rng(seed).permutation(len(samples))[: clips or None]
    chosen = [samples[row] for row in sorted(order)]
    texts = sorted({text for sample in chosen for text in prompts.choices(sample)[1]})
    loader = DataLoader(
        _Asked(chosen, read, prompts, seed), batch_size=_CLIPS_AT_ONCE, num_workers=workers, collate_fn=list
    )
    predicted: dict[str, list[Tensor]] = {}
    for batch in tqdm(loader, desc=f"latents of {split} for the decoder"):
        for error in (clip for clip, _, _ in batch if isinstance(clip, InputError)):
            if not data["skip_broken"]:
                raise error
        whole = [row for row in batch if not isinstance(row[0], InputError)]
        if whole:
            with torch.no_grad():
                states = model.encode(torch.stack([clip for clip, _, _ in whole]))
                latents = model.predict(states, [query for _, query, _ in whole]).cpu()
            for latent, (_, _, text) in zip(latents, whole, strict=True):
                predicted.setdefault(text, []).append(latent)
    if not predicted:
        raise InputError(f"{data[split]}: a clip must be readable, got none of {len(chosen)}")
    counts = torch.tensor([len(each) for each in predicted.values()])
    last = counts.cumsum(0) - 1
    steps = torch.stack([latent for each in predicted.values() for latent in each])
    return model.embed_all(texts), texts, StreamLatents(steps, last - counts + 1, last, list(predicted))


class _Asked(Dataset[tuple["Tensor | InputError", str, str]]):
    """Clip or states, query and text of each sample; a worker hands its errors over as they are."""

    def __init__(self, samples: Sequence[Answered], read: Read, prompts: Prompts, seed: int) -> None:
        self.samples, self.read, self.prompts, self.seed = samples, read, prompts, seed

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor | InputError, str, str]:
        sample = self.samples[index]
        query, text = self.prompts.ask(sample, np.random.default_rng([self.seed, index]))
        try:
            return self.read(sample.media), query, text
        except InputError as error:
            return error, query, text
