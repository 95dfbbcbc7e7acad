"""`train`: the stages of a VL-JEPA one after the other, on the procedural world, on manifests or on shards."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepa import checkpoint
from jepa.build import Node, build
from jepa.config import (
    DecoderStageConfig,
    JEPAStageConfig,
    LanguageTrainConfig,
    ManifestsConfig,
    TokenizerConfig,
    TrainConfig,
)
from jepa.data.clips import ClipBatch, ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import World, corpus
from jepa.errors import InputError
from jepa.models.roles import Part
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.training import language
from jepa.training.callbacks import CheckpointCallback, StageRecord, summary
from jepa.training.fit import (
    all_skipped,
    check_devices,
    fit,
    is_first_process,
    on_gpu,
    own_device,
    precision,
    print_parameters,
    write_checkpoint,
)
from jepa.training.latents import (
    DecoderBatches,
    StreamLatents,
    predicted_latents,
    prediction_error,
    training_texts,
)
from jepa.training.modules import DecoderModule, JEPAModule
from jepa.training.own_data import check_texts, decoder_source, own_batches, write_missing_features
from jepa.training.sharding import gather

_PRETRAINED_MULTIPLIER = 0.05  # of a pretrained Y-Encoder's learning rate (VL-JEPA section 3.1)
_VALIDATION_SEED = 1_000_003  # added to the seed: validation clips never occur in training


def train(config: TrainConfig | LanguageTrainConfig, output: Path) -> Path:
    """Trains a validated configuration of `TRAIN_CONFIGS` and returns the checkpoint's folder, `output/checkpoint`.

    The checkpoint is written after every stage and, within one, after every validation; logs go to `output/logs`. With
    `checkpoint` its model and its stages are gone on from. On several devices every process calls this; the first
    writes.
    """
    try:
        if isinstance(config, LanguageTrainConfig):
            return language.train(config, output)
        return _train_vl_jepa(config, output)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()  # what follows runs in the first process alone


def _train_vl_jepa(config: TrainConfig, output: Path) -> Path:
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    L.seed_everything(config.seed, verbose=False)
    config = config.model_copy(update={"data": _manifests(config.data)})
    _check(config)
    config, model, stages = _start(config)
    print_parameters(model)
    world = build(config.world)
    if config.jepa and config.jepa.decoder_weight and not any(stage["name"] == "decoder" for stage in stages):
        raise InputError(
            f"jepa.decoder_weight > 0 must come with a checkpoint whose decoder is trained, got {config.checkpoint}"
        )
    if config.data is not None:
        decoded = config.decoder is not None or (config.jepa is not None and config.jepa.decoder_weight > 0)
        check_texts(config.data, model, decoded)
    elif (world.size, world.fps) != (model.x_encoder.size, model.fps):
        raise InputError(
            f"world.size and world.fps must be those of the model, got {world.size} px at {world.fps} Hz "
            f"for a model of {model.x_encoder.size} px at {model.fps} Hz"
        )
    # Plain attention is about 1.7 times as fast as the fused kernel in bf16 on a CPU (scripts/bench_attention.py).
    set_fused_attention(model, not (precision(config) == "bf16-mixed" and not on_gpu(config)))
    folder = output / "checkpoint"
    for name, run in (("jepa", _train_jepa), ("decoder", _train_decoder)):
        if getattr(config, name) is None:
            continue
        trained = deepcopy(model) if config.strategy == "fsdp" else model
        callback = CheckpointCallback(name, list(stages), partial(_write, trained, model, config, folder))
        stages.append(callback.finish(run(config, trained.train(), world, output, callback)))
        model.cpu()
    if is_first_process():
        print(f"checkpoint: {folder}", flush=True)
    return folder


def _write(trained: VLJEPA, model: VLJEPA, config: TrainConfig, folder: Path, stages: list[StageRecord]) -> None:
    """Writes the checkpoint; of sharded parameters every process gathers the whole ones in `model` for it."""
    if trained is not model:
        gather(trained, model)
    write_checkpoint(model, config, folder, stages)


def _manifests(data: ManifestsConfig | None) -> ManifestsConfig | None:
    """`data`, or None where it names neither manifests nor shards."""
    if data is None or (data.train is None and data.validation is None):
        return None
    if data.train is None or data.validation is None:
        raise InputError(
            f"data.train and data.validation must be given together, got {data.train} and {data.validation}"
        )
    return data


def _check(config: TrainConfig) -> None:
    if config.jepa is None and config.decoder is None:
        raise InputError("there is nothing to train: jepa and decoder are null")
    if config.compile and config.strategy == "fsdp":
        raise InputError("compile must be false with strategy fsdp, got true")
    if config.compile and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise InputError("compile must be false where there is no C++ compiler, g++ or what CXX names, got true")
    check_devices(config)


def _start(config: TrainConfig) -> tuple[TrainConfig, VLJEPA, list[StageRecord]]:
    """The configuration, and a new model or the one of `checkpoint` with the stages behind it.

    The configuration then has the checkpoint's model and tokenizer and, if it is not trained on, its world. An open
    learning rate of the Y-Encoder becomes the checkpoint's, or the one that suits a pretrained or a new Y-Encoder.
    """
    before = None if config.checkpoint is None else checkpoint.read_config(Path(config.checkpoint))
    if config.jepa and config.jepa.y_encoder_lr_multiplier is None:
        multiplier = {"y_encoder_lr_multiplier": _y_encoder_multiplier(config, before)}
        config = config.model_copy(update={"jepa": config.jepa.model_copy(update=multiplier)})
    if before is None:
        tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
        model: VLJEPA = checkpoint.build_model({"variant": config.variant, "model": config.model}, tokenizer)
        return config, model, []
    folder = Path(str(config.checkpoint))
    model = checkpoint.load(folder)
    if not isinstance(model, VLJEPA):
        raise InputError(f"checkpoint must be of a VL-JEPA, got {type(model).__name__}: {folder}")
    kept = {"model": before["model"], "tokenizer": TokenizerConfig(**before["tokenizer"])}
    if config.data is not None:
        kept["world"] = before["world"]
    return (
        config.model_copy(update=kept),
        model,
        json.loads((folder / "training.json").read_text(encoding="utf-8"))["stages"],
    )


def _y_encoder_multiplier(config: TrainConfig, before: Node | None) -> float:
    if before is not None and before.get("jepa"):
        return float(before["jepa"]["y_encoder_lr_multiplier"] or 1.0)
    pretrained = config.model["y_encoder"].get("pretrained") if before is None else None
    return 1.0 if pretrained is None else _PRETRAINED_MULTIPLIER


@contextmanager
def _unchanged(*parts: Part) -> Iterator[None]:
    """What of the parts is trained is so again at the end, whatever was frozen in between."""
    trained = [(parameter, parameter.requires_grad) for part in parts for parameter in part.parameters()]
    try:
        yield
    finally:
        for parameter, wanted in trained:
            parameter.requires_grad_(wanted)


def _batches_needed(stage: JEPAStageConfig | DecoderStageConfig, config: TrainConfig) -> int:
    return stage.steps * stage.accumulate * config.devices


def _jepa_batches(
    config: TrainConfig, stage: JEPAStageConfig, model: VLJEPA, world: World
) -> tuple[Dataset[ClipBatch], Dataset[ClipBatch]]:
    """Training and validation batches, of one's own data or of the world."""
    seeds = config.seed, config.seed + _VALIDATION_SEED
    counts = _batches_needed(stage, config), stage.validation_batches
    if config.data is None:
        first, second = (
            ClipBatches(world, seed, stage.batch_size, count, model.frames, **config.clips.model_dump())
            for seed, count in zip(seeds, counts, strict=True)
        )
        return first, second
    return own_batches(config, stage, model, seeds, counts)


def _train_jepa(
    config: TrainConfig, model: VLJEPA, world: World, output: Path, callback: CheckpointCallback
) -> StageRecord:
    stage = config.jepa
    assert stage is not None
    batches, validation = _jepa_batches(config, stage, model, world)
    with _unchanged(model.y_encoder, model.y_decoder):
        model.y_decoder.requires_grad_(False).eval()
        module = JEPAModule(model, stage)
        parts = (model.x_encoder, model.predictor, model.y_encoder) if config.compile else ()
        with _compiled(*parts):
            on = config.strategy, config.devices
            trainer = fit(module, batches, validation, stage, config, output, "jepa", *on, [callback])
    learned = {"temperature": float(module.loss.temperature.detach())} if hasattr(module.loss, "temperature") else {}
    skipped = {"skipped": all_skipped(module.skipped)}
    return {**summary(trainer), **learned, **skipped}


@contextmanager
def _compiled(*parts: Any) -> Iterator[None]:
    """The forward passes of the parts' blocks by `torch.compile`, so that one compilation serves a whole stack of them.

    It makes dynamic what differs between batches, no more: all dynamic is more than torch 2.14 can sort the strides of.
    """
    blocks = [block for part in parts for block in _blocks(part)]
    for block in blocks:
        block.forward = torch.compile(block.forward)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _blocks(module: Any) -> list[Any]:
    """The blocks that a module repeats, two or more of a class one after the other; itself if it repeats none."""
    stacks: list[str] = []
    for name, stack in module.named_modules():
        alike = isinstance(stack, nn.ModuleList | nn.Sequential) and len({type(block) for block in stack}) == 1
        if alike and len(stack) > 1 and not any(name.startswith(f"{outer}.") for outer in stacks):
            stacks.append(name)
    return [block for name in stacks for block in module.get_submodule(name)] or [module]


def _train_decoder(
    config: TrainConfig, model: VLJEPA, world: World, output: Path, callback: CheckpointCallback
) -> StageRecord:
    stage = config.decoder
    assert stage is not None
    seed, skipped = config.seed, Counter[str]()
    if config.data is not None:
        write_missing_features(config, model)
    model.eval().to(own_device(config))
    source, held_out = _decoder_sources(config, stage, model, world, skipped)
    noise = prediction_error(model, source[2])
    switches = stage.predictions, stage.segment_means
    count = _batches_needed(stage, config)
    batches = DecoderBatches(*source, stage.noise * noise, seed, stage.batch_size, count, *switches)
    validation = DecoderBatches(  # the same whatever is switched off
        *held_out, noise, seed + _VALIDATION_SEED, stage.batch_size, stage.validation_batches
    )
    module = DecoderModule(model, stage)
    module.train()
    on = config.strategy, config.devices
    trainer = fit(module, batches, validation, stage, config, output, "decoder", *on, [callback])
    learned = {"noise_per_dimension": round(noise, 5), "skipped": all_skipped(skipped)}
    return {**summary(trainer), **learned}


def _decoder_sources(
    config: TrainConfig, stage: DecoderStageConfig, model: VLJEPA, world: World, skipped: Counter[str]
) -> list[tuple[Tensor, list[str], StreamLatents]]:
    """Text embeddings, texts and predictions to train on, and those to validate on: of the world, the same.

    Media that are left out are counted in `skipped`.
    """
    seed, data = config.seed, config.data
    if data is None:
        style = build(stage.style)
        streams = predicted_latents(model, world, style, seed, stage.streams, stage.stream_seconds, stage.step_rate_hz)
        texts = training_texts(world)
        return 2 * [(model.embed_all(texts), texts, streams)]
    limits = {"train": stage.clips, "validation": stage.batch_size * stage.validation_batches}
    return [decoder_source(data, model, split, seed, limits[split], config.workers, skipped) for split in limits]
