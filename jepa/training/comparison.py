"""`train` of one arm of the controlled comparison: VL-JEPA or the token-space baseline on the same frozen encoder.

What predicting embeddings buys over predicting tokens (VL-JEPA, arXiv 2512.10942, section 4.2): encoder, clips, order,
batch, schedule and number of samples are the same for both arms; only what is trained on the states differs.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import build
from jepa.config import StageConfig
from jepa.data.clips import ClipBatch, ClipBatches
from jepa.data.comparison import SAMPLES, STATES, HeldOutClips, StateBatch, StateBatches, held_out_clips
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, corpus
from jepa.errors import InputError
from jepa.models.token_baseline import TokenVLM, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.operations import count_flops
from jepa.training.callbacks import summary
from jepa.training.fit import fit, on_gpu
from jepa.training.latents import PairDecoderBatches
from jepa.training.modules import DecoderModule, Stage, text_ids

_ENCODER = "encoder.safetensors"
_SAMPLES_SEED = 2_000_003  # added to the seed: apart from the clips that the encoder saw
_VALIDATION_SEED = 1_000_003


class WordsModule(Stage):
    """The X-Encoder and a linear map of its mean state, trained to name the tokens of a clip's text in any order.

    Softmax cross-entropy with the distinct tokens as equal targets (Joulin et al. 2016, arXiv 1511.02251): neither
    contrastive nor autoregressive, so that the frozen encoder owes nothing to the objective of either arm.
    """

    def __init__(self, encoder: nn.Module, width: int, tokenizer: Tokenizer, stage: StageConfig) -> None:
        super().__init__(stage)
        self.encoder, self.tokenizer = encoder, tokenizer
        self.head = nn.Linear(width, len(tokenizer))

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.parameters())}]

    def cross_entropy(self, batch: ClipBatch) -> Tensor:
        """In nats a text."""
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode(batch.texts))
        logits = self.head(self.encoder(batch.frames).mean(1)).float()
        words = torch.zeros_like(logits).scatter_add_(1, ids, mask.to(logits.dtype)).clamp_max(1)
        return F.cross_entropy(logits, words / words.sum(1, keepdim=True))

    def training_step(self, batch: ClipBatch, index: int) -> Tensor:
        loss = self.cross_entropy(batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.texts))
        return loss

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        self.log("val/loss", self.cross_entropy(batch), batch_size=len(batch.texts))


class ArmModule(Stage):
    """One arm on the states of the frozen X-Encoder; keeps copies of its weights after the steps in `points`.

    VL-JEPA learns by `loss` between predicted embeddings and those of the texts, the baseline by the cross-entropy of
    the texts' tokens.
    """

    def __init__(self, model: VLJEPA | TokenVLM, loss: nn.Module | None, stage: StageConfig, points: Sequence[int]):
        super().__init__(stage)
        self.model, self.objective, self.points = model, loss, points
        self.kept: dict[int, dict[str, Tensor]] = {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = [{"params": [p for p in self.model.parameters() if p.requires_grad]}]
        if self.objective is not None:
            groups.append({"params": list(self.objective.parameters()), "weight_decay": 0.0})
        return groups

    def forward(self, batch: StateBatch) -> Tensor:
        """The arm's loss of a batch."""
        if isinstance(self.model, TokenVLM):
            return self.model.loss(batch.states, batch.queries, batch.texts)
        if self.objective is None:
            raise ValueError("a VL-JEPA must have a loss")
        ids = text_ids(batch.texts).to(batch.states.device)
        predictions = self.model.predict(batch.states, batch.queries)
        loss: Tensor = self.objective(predictions, self.model.embed(batch.texts), ids)
        return loss

    def training_step(self, batch: StateBatch, index: int) -> Tensor:
        loss = self(batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.texts))
        return loss

    def validation_step(self, batch: StateBatch, index: int) -> None:
        self.log("val/loss", self(batch), batch_size=len(batch.texts))

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if self.global_step in self.points:
            self.kept[self.global_step] = {
                name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()
            }


def train(config: dict[str, Any], output: Path) -> Path:
    """Trains one arm and one seed by a validated `ComparisonTrainConfig` and returns `output`.

    Every learning rate is tried over the whole schedule; the one with the best mean reciprocal rank of the right
    caption on the validation clips is kept, with a checkpoint `samples_<n>` at each of its `points`. A VL-JEPA gets a
    new decoder at each of them, trained on what it predicts for samples it has seen. `training.json` has what was
    tried and counted.

    Raises:
        InputError: the points do not increase up to the last step, or the model is neither of the two.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    points = config["points"]
    if sorted(set(points)) != points or points[-1] != config["stage"]["steps"]:
        raise InputError(f"points must increase up to stage.steps = {config['stage']['steps']}, got {points}")
    tokenizer = Tokenizer.train(corpus(), **config["tokenizer"])
    states = frozen_states(config, tokenizer)
    validation, _ = held_out_clips(
        build(config["world"]), config["held_out"], config["model"]["frames"], config["data_seed"]
    )
    tried = []
    best: tuple[float, ArmModule, StageConfig] | None = None
    for factor in config["learning_rate_factors"]:
        stage = StageConfig(**{**config["stage"], "learning_rate": factor * config["stage"]["learning_rate"]})
        started = time.perf_counter()
        module, record = _fit(config, stage, states, validation, tokenizer, output)
        record["seconds"] = round(time.perf_counter() - started, 2)
        tried.append(record)
        if best is None or record["validation_mrr"] > best[0]:
            best = record["validation_mrr"], module, stage
    if best is None:
        raise InputError("learning_rate_factors must hold at least one factor, got none")
    _, module, stage = best
    variant = "token_vlm" if isinstance(module.model, TokenVLM) else "vl_jepa"
    flops = _step_flops(module, StateBatches(states, config["seed"], stage.batch_size, 1)[0])
    record = {
        "arm": variant,
        "states": states.name,
        "learning_rate": stage.learning_rate,
        "tried": tried,
        "step_flops": flops,
        "points": [],
    }
    for point in points:
        module.model.load_state_dict(module.kept[point])
        decoder = _train_decoder(config, module.model, states, point, output) if variant == "vl_jepa" else None
        seen = point * stage.batch_size
        checkpoint.save(module.model.cpu(), {**config, "variant": variant}, output / f"samples_{seen}")
        record["points"].append({"samples": seen, "steps": point, "decoder": decoder})
    (output / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
    return output


def _fit(
    config: dict[str, Any],
    stage: StageConfig,
    states: Path,
    validation: HeldOutClips,
    tokenizer: Tokenizer,
    output: Path,
) -> tuple[ArmModule, dict[str, Any]]:
    """One learning rate over the whole schedule, and how well it finds the right captions of the validation clips."""
    L.seed_everything(config["seed"], verbose=False)
    model = _model(config, tokenizer, states)
    held_out = _every_state(model, validation)
    queries = [CAPTION_QUERIES[0]] * len(validation.scenes)
    loss = build(config["loss"]) if isinstance(model, VLJEPA) else None
    module = ArmModule(model, loss, stage, config["points"])
    batches = StateBatches(states, config["seed"], stage.batch_size, stage.steps)
    name = f"learning_rate_{stage.learning_rate:g}"
    check = [StateBatch(held_out, queries, validation.names)]
    trainer = fit(module, batches, check, stage, config, output, name)
    model.to("cpu").eval()
    ranks = ranks_of_own(candidate_scores(model, held_out, queries, validation.names))
    return module, {
        "learning_rate": stage.learning_rate,
        "validation_mrr": float((1 / ranks).mean()),
        **summary(trainer),
    }


def _model(config: dict[str, Any], tokenizer: Tokenizer, states: Path) -> VLJEPA | TokenVLM:
    """A new model of an arm; its X-Encoder is the frozen one."""
    name = str(config["model"].get("_target_")).rpartition(".")[2]
    variants = {"VLJEPA": "vl_jepa", "TokenVLM": "token_vlm"}
    if name not in variants:
        raise InputError(f"model._target_ must be one of {', '.join(variants)}, got {name!r}")
    model: VLJEPA | TokenVLM = checkpoint.build_model({**config, "variant": variants[name]}, tokenizer)
    encoder: Any = model.x_encoder
    encoder.load_state_dict(load_file(states / _ENCODER))
    encoder.requires_grad_(False)
    plain = config["precision"] == "bf16-mixed" and not on_gpu(config)  # the fused kernel is slower in bf16 on a CPU
    if isinstance(model, TokenVLM):
        model.language_model.set_attention("eager" if plain else "sdpa")
    else:
        set_fused_attention(model, not plain)
        model.y_decoder.requires_grad_(False)
    return model


def _step_flops(module: ArmModule, batch: StateBatch) -> dict[str, int]:
    """FLOPs of a training step: of what is trained, forward and backward, and of encoding the batch's clips once."""
    model = module.model
    encoder: Any = model.x_encoder
    frames = torch.zeros(1, model.frames, *2 * (encoder.size,), 3, dtype=torch.uint8)
    encoding = count_flops(lambda: model.encode(frames)).total
    trained = count_flops(lambda: module(batch).backward()).total
    module.zero_grad(set_to_none=True)
    return {"trained": trained, "encoder": encoding * len(batch.texts)}


def _train_decoder(
    config: dict[str, Any], model: VLJEPA | TokenVLM, states: Path, point: int, output: Path
) -> dict[str, Any]:
    """A new Y-Decoder on the embeddings that the model at a point predicts for samples seen until then."""
    if isinstance(model, TokenVLM):
        raise ValueError("the baseline has no Y-Decoder")
    started = time.perf_counter()
    settings = dict(config["decoder"])
    examples = settings.pop("examples")
    stage = StageConfig(**settings)
    L.seed_everything(config["seed"], verbose=False)
    model.y_decoder = build(config["model"]["y_decoder"])
    batches = StateBatches(states, config["seed"], config["stage"]["batch_size"], point)
    predictions, texts = [], []
    model.eval()
    with torch.no_grad():
        for index in range(min(point, -(-examples // batches.batch_size))):
            batch = batches[index]
            predictions.append(model.predict(batch.states, batch.queries))
            texts += batch.texts
    pairs = (torch.cat(predictions), model.embed_all(texts), texts)
    train, check = (
        PairDecoderBatches(*pairs, seed, stage.batch_size, count)
        for seed, count in ((config["seed"], stage.steps), (config["seed"] + _VALIDATION_SEED, 1))
    )
    module = DecoderModule(model, stage)
    module.train()
    flops = count_flops(lambda: module.cross_entropy(*train[0]).backward()).total
    module.zero_grad(set_to_none=True)
    fit(module, train, check, stage, config, output, f"decoder_{point}")
    return {
        "steps": stage.steps,
        "examples": len(texts),
        "flops": flops * stage.steps,
        "seconds": round(time.perf_counter() - started, 2),
    }


@torch.no_grad()
def _every_state(model: VLJEPA | TokenVLM, clips: HeldOutClips, batch_size: int = 64) -> Tensor:
    """States (B, N, D) of held-out clips."""
    return torch.cat([model.encode(part) for part in clips.frames.split(batch_size)])


# --- The frozen encoder and its states, the same for all arms and seeds.


def frozen_states(config: Mapping[str, Any], tokenizer: Tokenizer) -> Path:
    """The folder with the frozen encoder and the states of the training clips; made if it is not there.

    Its name is a digest of everything that it is made from: arms and seeds of one comparison share it.
    """
    made_from = {key: config[key] for key in ("world", "tokenizer", "clips", "encoder", "data_seed", "pool")}
    made_from |= {key: config["model"][key] for key in ("x_encoder", "frames")}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config["states"]) / digest
    if folder.is_dir():
        return folder
    partial = folder.with_name(f"{digest}.{os.getpid()}.partial")
    partial.mkdir(parents=True)
    try:
        _make_states(config, tokenizer, partial)
        (partial / "made_from.json").write_text(json.dumps(made_from, indent=1), encoding="utf-8")
        if not folder.is_dir():  # another job may have been as fast
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _make_states(config: Mapping[str, Any], tokenizer: Tokenizer, folder: Path) -> None:
    """Trains the encoder, then writes `encoder.safetensors`, `states.safetensors` (float16) and `samples.jsonl`."""
    started = time.perf_counter()
    world, seed, frames = build(config["world"]), config["data_seed"], config["model"]["frames"]
    stage = StageConfig(**config["encoder"])
    L.seed_everything(seed, verbose=False)
    encoder = build(config["model"]["x_encoder"])
    set_fused_attention(encoder, not (config["precision"] == "bf16-mixed" and not on_gpu(dict(config))))
    clips = {**config["clips"], "hard_negatives": 0}
    batches, validation = (
        ClipBatches(world, s, stage.batch_size, count, frames, **clips)
        for s, count in ((seed, stage.steps), (seed + _VALIDATION_SEED, stage.validation_batches))
    )
    module = WordsModule(encoder, encoder.width, tokenizer, stage)
    trainer = fit(module, batches, validation, stage, dict(config), folder, "encoder")
    record = {"seconds": round(time.perf_counter() - started, 2), **summary(trainer)}
    encoder.to("cpu").eval()
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / _ENCODER)
    pool = ClipBatches(world, seed + _SAMPLES_SEED, stage.batch_size, config["pool"], frames, **clips)
    states, lines = [], []
    with torch.no_grad():
        for index in tqdm(range(len(pool)), desc="states of the clips", unit="batch"):
            batch = pool[index]
            states.append(encoder(batch.frames).half())
            lines += [json.dumps(sample) for sample in zip(batch.queries, batch.texts, strict=True)]
    save_file({"states": torch.cat(states)}, folder / STATES)
    (folder / SAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
    record["seconds_with_states"] = round(time.perf_counter() - started, 2)
    (folder / "training.json").write_text(json.dumps(record, indent=1), encoding="utf-8")
