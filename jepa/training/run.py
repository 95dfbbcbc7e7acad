"""`train`: the stages of a VL-JEPA one after the other, on the procedural world."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import lightning as L

from jepa import checkpoint
from jepa.config import DecoderStageConfig, JEPAStageConfig, build
from jepa.data.clips import ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import World, corpus
from jepa.errors import InputError
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.training import language
from jepa.training.fit import fit, on_gpu, summary
from jepa.training.latents import (
    DecoderBatches,
    predicted_latents,
    prediction_error,
    training_texts,
)
from jepa.training.modules import DecoderModule, JEPAModule

_VALIDATION_SEED = 1_000_003  # added to the seed: validation clips never occur in training


def train(config: dict[str, Any], output: Path) -> Path:
    """Trains a validated configuration of `TRAIN_CONFIGS` and returns the checkpoint's folder, `output/checkpoint`.

    The checkpoint is written after every stage, logs go to `output/logs`.
    """
    if config["variant"] == "llm_jepa":
        return language.train(config, output)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    L.seed_everything(config["seed"], verbose=False)
    world = build(config["world"])
    tokenizer = Tokenizer.train(corpus(), **config["tokenizer"])
    model = checkpoint.build_model(config, tokenizer)
    if (world.size, world.fps) != (model.x_encoder.size, model.fps):
        raise InputError(
            f"world.size and world.fps must be those of the model, got {world.size} px at {world.fps} Hz "
            f"for a model of {model.x_encoder.size} px at {model.fps} Hz"
        )
    # Plain attention is about 1.7 times as fast as the fused kernel in bf16 on a CPU (scripts/bench_attention.py).
    set_fused_attention(model, not (config["precision"] == "bf16-mixed" and not on_gpu(config)))
    folder = output / "checkpoint"
    stages = []
    for name, run in (("jepa", _train_jepa), ("decoder", _train_decoder)):
        started = time.perf_counter()
        result = run(config, model.train(), world, output)
        stages.append({"name": name, "seconds": round(time.perf_counter() - started, 2), **result})
        checkpoint.save(model.cpu(), config, folder)
        (folder / "training.json").write_text(json.dumps({"stages": stages}, indent=1), encoding="utf-8")
    print(f"checkpoint: {folder}", flush=True)
    return folder


def _train_jepa(config: dict[str, Any], model: VLJEPA, world: World, output: Path) -> dict[str, Any]:
    stage = JEPAStageConfig(**config["jepa"])
    seed = config["seed"]
    batches = ClipBatches(world, seed, stage.batch_size, stage.steps, model.frames, **config["clips"])
    validation = ClipBatches(
        world, seed + _VALIDATION_SEED, stage.batch_size, stage.validation_batches, model.frames, **config["clips"]
    )
    loss = build(stage.loss)
    module = JEPAModule(model, loss, stage, stage.y_encoder_lr_multiplier)
    model.y_decoder.requires_grad_(False)
    trainer = fit(module, batches, validation, stage, config, output, "jepa")
    model.y_decoder.requires_grad_(True)
    return summary(trainer, stage, output / "logs" / "jepa") | {"temperature": float(loss.temperature.detach())}


def _train_decoder(config: dict[str, Any], model: VLJEPA, world: World, output: Path) -> dict[str, Any]:
    stage = DecoderStageConfig(**config["decoder"])
    seed = config["seed"]
    model.eval().to("cuda" if on_gpu(config) else "cpu")
    streams = predicted_latents(
        model,
        world,
        build(stage.style),
        seed,
        stage.streams,
        stage.stream_seconds,
        stage.step_rate_hz,
    )
    noise = prediction_error(model, streams)
    texts = training_texts(world)
    text_latents = model.embed_all(texts)
    batches, validation = (
        DecoderBatches(text_latents, texts, streams, noise, s, stage.batch_size, n)
        for s, n in ((seed, stage.steps), (seed + _VALIDATION_SEED, stage.validation_batches))
    )
    module = DecoderModule(model, stage)
    module.train()
    trainer = fit(module, batches, validation, stage, config, output, "decoder")
    return summary(trainer, stage, output / "logs" / "decoder") | {"noise_per_dimension": round(noise, 5)}
