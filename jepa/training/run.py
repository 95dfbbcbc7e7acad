"""`train`: the stages of a VL-JEPA one after the other, on the procedural world, on manifests or on shards."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.data import Dataset

from jepa import checkpoint
from jepa.build import Node, build
from jepa.data.clips import ClipBatch, ClipBatches, StateBatches, StoredClips
from jepa.data.features import ClipReader, fingerprint
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import World, corpus
from jepa.encoders import SentenceEncoder
from jepa.errors import InputError
from jepa.kept import Kept, held
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.processes import in_processes
from jepa.training import language
from jepa.training.callbacks import StageRecord, summary
from jepa.training.configs import DecoderStageConfig, JEPAStageConfig, LanguageTrainConfig, TokenizerConfig, TrainConfig
from jepa.training.fit import (
    StageRun,
    all_skipped,
    check_devices,
    fit,
    load_checkpoint,
    on_gpu,
    own_device,
    precision,
    run_stages,
)
from jepa.training.latents import DecoderBatches, clip_latents, predicted_latents, prediction_error, training_texts
from jepa.training.modules import DecoderModule, JEPAModule, without_gradients
from jepa.training.own_data import OwnData
from jepa.training.saving import CheckpointCallback

_PRETRAINED_MULTIPLIER = 0.05  # of a pretrained Y-Encoder's learning rate (VL-JEPA section 3.1)
_VALIDATION_SEED = 1_000_003  # added to the seed: validation clips never occur in training


def train(config: TrainConfig | LanguageTrainConfig, output: Path) -> Path:
    """Trains a validated configuration and returns the checkpoint's folder, `output/checkpoint`.

    The checkpoint is written after every stage and, within one, after every validation; logs go to `output/logs`. With
    `checkpoint` its model and its stages are gone on from. On several devices every process calls this. With `resume`
    a run of the same configuration that was cut off goes on.

    Raises:
        InputError: the output folder is in use by another run.
        Stopped: a signal ended training.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    try:
        with held(output):
            return language.train(config, output) if isinstance(config, LanguageTrainConfig) else _train(config, output)
    finally:
        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()  # what follows runs in the first process alone


def last_value(output: Path, key: str) -> float:
    """The last value that a training logged under a key. Raises `InputError` if there is none."""
    stages = checkpoint.read_stages(output / "checkpoint")
    values = [row[key] for stage in stages for row in stage["curve"] if key in row]
    if not values:
        found = sorted({name for stage in stages for row in stage["curve"] for name in row} - {"step"})
        raise InputError(f"monitor must be one of {', '.join(found)}, got {key!r}")
    return float(values[-1])


def _train(config: TrainConfig, output: Path) -> Path:
    L.seed_everything(config.seed, verbose=False)
    config = _checked(config)
    config, model, before = _start(config)
    world = build(config.world)
    through_decoder = config.jepa is not None and config.jepa.decoder_weight > 0
    if through_decoder and not any(stage["name"] == "decoder" for stage in before):
        rule = "must come with a checkpoint whose decoder is trained"
        raise InputError(f"jepa.decoder_weight > 0 {rule}, got {config.checkpoint}")
    if config.data is not None:
        OwnData(config, model).check_texts(decoded=config.decoder is not None or through_decoder)
    elif (world.size, world.fps) != (model.x_encoder.size, model.fps):
        raise InputError(
            f"world.size and world.fps must be those of the model, got {world.size} px at {world.fps} Hz "
            f"for a model of {model.x_encoder.size} px at {model.fps} Hz"
        )
    # Plain attention is about 1.7 times as fast as the fused kernel in bf16 on a CPU (scripts/bench_attention.py).
    set_fused_attention(model, precision(config) != "bf16-mixed" or on_gpu(config))
    stages: dict[str, StageRun[VLJEPA]] = {}
    if config.jepa is not None:
        stages["jepa"] = partial(_train_jepa, config, config.jepa, world, output)
    if config.decoder is not None:
        stages["decoder"] = partial(_train_decoder, config, config.decoder, world, output)
    return run_stages(model, config, output, before, stages)


def _checked(config: TrainConfig) -> TrainConfig:
    """The configuration with its `data`, or none where they name neither manifests nor shards."""
    if config.jepa is None and config.decoder is None:
        raise InputError("there is nothing to train: jepa and decoder are null")
    if config.compile and config.strategy == "fsdp":
        raise InputError("compile must be false with strategy fsdp, got true")
    if config.compile and shutil.which(os.environ.get("CXX", "g++")) is None:
        raise InputError("compile must be false where there is no C++ compiler, g++ or what CXX names, got true")
    check_devices(config)
    named = [] if config.data is None else [config.data.train, config.data.validation]
    if any(named) and not all(named):
        raise InputError(f"data.train and data.validation must be given together, got {named[0]} and {named[1]}")
    return config if any(named) else config.model_copy(update={"data": None})


def _start(config: TrainConfig) -> tuple[TrainConfig, VLJEPA, list[StageRecord]]:
    """The configuration as trained, and a new model or the one of `checkpoint` with the stages behind it.

    An open learning rate of the Y-Encoder becomes the checkpoint's, or suits a pretrained or a new Y-Encoder.
    """
    kept = None if config.checkpoint is None else checkpoint.read_config(Path(config.checkpoint))
    if config.jepa and config.jepa.y_encoder_lr_multiplier is None:
        multiplier = {"y_encoder_lr_multiplier": _y_encoder_multiplier(config, kept)}
        config = config.model_copy(update={"jepa": config.jepa.model_copy(update=multiplier)})
    if config.checkpoint is None or kept is None:
        tokenizer = Tokenizer.train(corpus(), config.tokenizer.vocab_size)
        return config, checkpoint.build_model({"variant": config.variant, "model": config.model}, tokenizer), []
    changed = {"model": kept["model"], "tokenizer": TokenizerConfig(**kept["tokenizer"])}
    if config.data is not None:
        changed["world"] = kept["world"]
    return config.model_copy(update=changed), *load_checkpoint(config.checkpoint, VLJEPA)


def _y_encoder_multiplier(config: TrainConfig, before: Node | None) -> float:
    if before is not None and before.get("jepa"):
        return float(before["jepa"]["y_encoder_lr_multiplier"] or 1.0)
    y_encoder = config.model["y_encoder"] if before is None else {}
    return 1.0 if y_encoder.get("pretrained") is None or y_encoder.get("frozen") else _PRETRAINED_MULTIPLIER


def _train_jepa(
    config: TrainConfig, stage: JEPAStageConfig, world: World, output: Path, model: VLJEPA, callback: CheckpointCallback
) -> StageRecord:
    seeds = config.seed, config.seed + _VALIDATION_SEED
    counts = stage.steps * stage.accumulate * config.processes, stage.validation_batches
    batches: Dataset[ClipBatch]
    validation: Dataset[ClipBatch]
    held: AbstractContextManager[None] = nullcontext()
    if config.data is not None:
        batches, validation = OwnData(config, model).batches(stage, seeds, counts)
    elif stage.clips:
        stored = _stored(config, stage, world, output, model)
        (batches, validation), held = stored.batches(), stored.held(model)
    else:
        batches, validation = (
            ClipBatches(world, seed, stage.batch_size, count, model.frames, **config.clips.model_dump())
            for seed, count in zip(seeds, counts, strict=True)
        )
    parts = (model.x_encoder, model.predictor, model.y_encoder) if config.compile else ()
    decoder: Any = model.y_decoder
    module = JEPAModule(model, stage)  # slow copies are made of what is not compiled
    with held, without_gradients(decoder.eval()), _compiled(*parts):
        trainer = fit(module, batches, validation, config, output, "jepa", callback)
    learned = {"temperature": float(module.loss.temperature.detach())} if hasattr(module.loss, "temperature") else {}
    return {**summary(trainer), **learned, "skipped": all_skipped(module.skipped)}


class _Stored(NamedTuple):
    """Clips of the world to train and to validate on, and all their texts; `pooled` by a Y-Encoder that is frozen."""

    drawn: Sequence[ClipBatches]
    clips: Sequence[StoredClips]
    texts: Sequence[str]
    pooled: Tensor | None

    def batches(self) -> list[StateBatches]:
        return [StateBatches(**vars(drawn), stored=clips) for drawn, clips in zip(self.drawn, self.clips, strict=True)]

    def held(self, model: VLJEPA) -> AbstractContextManager[None]:
        """Within, the texts are embedded from what is stored of them."""
        return nullcontext() if self.pooled is None else model.hold_pooled(self.texts, self.pooled)


@torch.no_grad()
def _stored(config: TrainConfig, stage: JEPAStageConfig, world: World, output: Path, model: VLJEPA) -> _Stored:
    """Encodes `jepa.clips` once, and texts if the Y-Encoder is frozen; `output/states` keeps both."""
    encoder: Any = model.x_encoder
    if any(parameter.requires_grad for parameter in encoder.parameters()):
        kind = type(encoder).__name__
        raise InputError(f"jepa.clips must come with an X-Encoder that is frozen (frozen: true), got a trained {kind}")
    y_encoder: Any = (
        model.y_encoder if isinstance(model.y_encoder, SentenceEncoder) and model.y_encoder.frozen else None
    )
    frozen = [fingerprint(encoder, ClipReader(model.frames, world.size))]
    frozen += [] if y_encoder is None else [fingerprint(y_encoder.lm, ClipReader(1, 1))]
    mode = model.training
    model.eval().to(own_device(config))
    counts = stage.steps * stage.accumulate * config.processes, stage.validation_batches
    drawn = [
        ClipBatches(world, seed, stage.batch_size, count, model.frames, **config.clips.model_dump())
        for seed, count in zip((config.seed, config.seed + _VALIDATION_SEED), counts, strict=True)
    ]
    depends_on = [config.world, config.clips.model_dump(), model.frames, frozen]
    with Kept(output / "states", depends_on, lasting=True) as kept:
        sizes = stage.clips, stage.validation_batches * stage.batch_size
        over = partial(in_processes, workers=torch.get_num_threads() if model.device.type == "cpu" else 0)
        drawing = partial(StoredClips.draw, encode=model.encode, keep=kept.get, over=over)
        clips = [drawing(each, size) for each, size in zip(drawn, sizes, strict=True)]
        texts, pooled = sorted({text for each in clips for text in each.texts}), None
        if y_encoder is not None:
            pooled = kept.get(f"texts of {config.seed} {sizes}", partial(model.pool_all, texts))
    model.train(mode)
    return _Stored(drawn, clips, texts, pooled)


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
    config: TrainConfig,
    stage: DecoderStageConfig,
    world: World,
    output: Path,
    model: VLJEPA,
    callback: CheckpointCallback,
) -> StageRecord:
    seed, size, skipped = config.seed, stage.batch_size, Counter[str]()
    own = None if config.data is None else OwnData(config, model)
    if own is not None:
        own.write_missing_features()
    model.eval().to(own_device(config))
    if own is not None:
        source = own.decoder_source("train", seed, stage.clips, skipped)
        held_out = own.decoder_source("validation", seed, size * stage.validation_batches, skipped)
        noise = prediction_error(model, source[2])
    else:
        held: AbstractContextManager[None] = nullcontext()
        if config.jepa is not None and config.jepa.clips:
            stored = _stored(config, config.jepa, world, output, model)
            texts, held, streams = list(stored.texts), stored.held(model), clip_latents(model, stored.clips[0], seed)
        else:
            sizes = stage.streams, stage.stream_seconds, stage.step_rate_hz
            texts, streams = training_texts(world), predicted_latents(model, world, build(stage.style), seed, *sizes)
        with held:
            source = held_out = model.embed_all(texts), texts, streams
            noise = prediction_error(model, streams)
    count = stage.steps * stage.accumulate * config.processes
    switches = stage.predictions, stage.segment_means
    batches = DecoderBatches(*source, stage.noise * noise, seed, size, count, *switches)
    validation = DecoderBatches(*held_out, noise, seed + _VALIDATION_SEED, size, stage.validation_batches)
    trainer = fit(DecoderModule(model, stage).train(), batches, validation, config, output, "decoder", callback)
    return {**summary(trainer), "noise_per_dimension": round(noise, 5), "skipped": all_skipped(skipped)}
