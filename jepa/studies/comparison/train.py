"""Training of one arm and seed: VL-JEPA, or the token-space model, on the states of a frozen X-Encoder.

The states of clips of the procedural world are computed once, for all arms and seeds.

B clips, F frames a clip, S pixels a side, N states, D width.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import Node, build
from jepa.data.clips import ClipBatch, ClipBatches
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import CAPTION_QUERIES, Scene, Span, World, captions
from jepa.errors import InputError
from jepa.models.token_vlm import TokenVLM, candidate_scores, ranks_of_own
from jepa.models.vl_jepa import VLJEPA, set_fused_attention
from jepa.operations import count_flops
from jepa.studies.comparison.results import DecoderTraining, StepFlops, Trial
from jepa.studies.configs import ComparisonTrainConfig
from jepa.training.configs import StageConfig
from jepa.training.fit import fit, on_gpu, precision
from jepa.training.latents import PairDecoderBatches
from jepa.training.modules import DecoderModule, ParameterGroup, Stage, text_ids

_ENCODER, _STATES, _SAMPLES = "encoder.safetensors", "states.safetensors", "samples.jsonl"
_VARIANTS = {"VLJEPA": "vl_jepa", "TokenVLM": "token_vlm"}
_SAMPLES_SEED = 2_000_003  # added to the seed: apart from the clips that the encoder saw
_VALIDATION_SEED = 1_000_003

# --- Data.


class StateBatch(NamedTuple):
    """B clips as `states` (B, N, D) float32, each with a query and the text that answers it."""

    states: Tensor
    queries: list[str]
    texts: list[str]


class StateBatches(Dataset[StateBatch]):
    """Item i is the i-th batch of the samples of a folder, in an order that is a function of the seed alone.

    The order is a permutation of all samples, then another. The states stay on disk, memory-mapped. Raises InputError
    if there are fewer samples than a batch takes.
    """

    def __init__(self, folder: Path, seed: int, batch_size: int, batches: int) -> None:
        self.states = load_file(folder / _STATES)["states"]
        lines = (folder / _SAMPLES).read_text(encoding="utf-8").splitlines()
        self.samples: list[tuple[str, str]] = [tuple(json.loads(line)) for line in lines]
        if len(self.samples) < batch_size:
            raise InputError(f"{folder} must hold at least a batch of {batch_size} samples, got {len(self.samples)}")
        rng, wanted = np.random.default_rng(seed), batch_size * batches
        epochs = -(-wanted // len(self.samples))
        self.order = np.concatenate([rng.permutation(len(self.samples)) for _ in range(epochs)])[:wanted]
        self.batch_size = batch_size

    def __len__(self) -> int:
        return len(self.order) // self.batch_size

    def __getitem__(self, index: int) -> StateBatch:
        if index >= len(self):
            raise IndexError(index)
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        queries, texts = zip(*(self.samples[row] for row in rows), strict=True)
        return StateBatch(self.states[torch.from_numpy(rows)].float(), list(queries), list(texts))


class HeldOutClips(NamedTuple):
    """A clip of each of B compositions that no training clip shows: `frames` (B, F, S, S, 3) uint8."""

    frames: Tensor
    scenes: list[Scene]
    references: list[list[str]]  # all captions of each

    @property
    def names(self) -> list[str]:
        """The canonical caption of each."""
        return [captions[0] for captions in self.references]

    @torch.no_grad()
    def states(self, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """The states (B, N, D) that an X-Encoder gives."""
        return torch.cat([encode(part) for part in self.frames.split(64)])


def held_out_clips(world: World, count: int, frames: int, seed: int) -> tuple[HeldOutClips, HeldOutClips]:
    """`count` clips to choose settings on and as many to test on: no composition is in both.

    Half of the compositions, or as many as there are, are solo actions; the others are pair actions. Raises InputError
    if the world does not have as many.
    """
    rng = np.random.default_rng([seed, 6])
    solo, pairs = ([each[i] for i in rng.permutation(len(each))] for each in world.splits["held_out"])
    solo = solo[: min(count, len(solo) // 2 * 2)]
    chosen = solo + pairs[: 2 * count - len(solo)]
    if len(chosen) < 2 * count:
        raise InputError(f"held-out clips must be at most {len(chosen) // 2}, half of the compositions, got {count}")
    windows = rng.uniform(0.5, 8.0, (len(chosen), 1)) + np.arange(frames) / world.fps
    clips = torch.from_numpy(world.clips([[Span(0.0, np.inf, scene, "")] for scene in chosen], windows, rng))
    references = [captions(scene) for scene in chosen]
    validation, test = (HeldOutClips(clips[part::2], chosen[part::2], references[part::2]) for part in (0, 1))
    return validation, test


# --- An arm.


class _LossModule(Stage):
    """A stage whose `forward` is the loss of a batch."""

    def training_step(self, batch: ClipBatch | StateBatch, index: int) -> Tensor:
        loss: Tensor = self(batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.texts))
        return loss

    def validation_step(self, batch: ClipBatch | StateBatch, index: int) -> None:
        self.log("val/loss", self(batch), batch_size=len(batch.texts))


class WordsModule(_LossModule):
    """The X-Encoder and a linear map of its mean state, trained to name the tokens of a clip's text in any order.

    The loss is softmax cross-entropy with the distinct tokens as equal targets (Joulin et al. 2016, arXiv 1511.02251).
    It is neither contrastive nor autoregressive, so the frozen encoder favours the objective of neither arm.
    """

    def __init__(self, encoder: nn.Module, width: int, tokenizer: Tokenizer, stage: StageConfig) -> None:
        super().__init__(stage)
        self.encoder, self.tokenizer = encoder, tokenizer
        self.head = nn.Linear(width, len(tokenizer))

    def parameter_groups(self) -> list[ParameterGroup]:
        return [{"params": list(self.parameters())}]

    def forward(self, batch: ClipBatch) -> Tensor:
        """Mean cross-entropy of the batch's texts, in nats."""
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode(batch.texts))
        logits = self.head(self.encoder(batch.frames).mean(1)).float()
        words = torch.zeros_like(logits).scatter_add_(1, ids, mask.to(logits.dtype)).clamp_max(1)
        return F.cross_entropy(logits, words / words.sum(1, keepdim=True))


class ArmModule(_LossModule):
    """One arm on the states of the frozen X-Encoder; keeps copies of its weights after the steps in `points`.

    VL-JEPA learns by `loss` between predicted embeddings and the texts', the token VLM by their tokens' cross-entropy.
    """

    def __init__(self, model: VLJEPA | TokenVLM, loss: nn.Module | None, stage: StageConfig, points: Sequence[int]):
        super().__init__(stage)
        self.model, self.objective, self.points = model, loss, points
        self.kept: dict[int, dict[str, Tensor]] = {}

    def parameter_groups(self) -> list[ParameterGroup]:
        groups: list[ParameterGroup] = [{"params": [p for p in self.model.parameters() if p.requires_grad]}]
        if self.objective is not None:
            groups.append({"params": list(self.objective.parameters()), "weight_decay": 0.0})
        return groups

    def forward(self, batch: StateBatch) -> Tensor:
        """The arm's loss of a batch."""
        if isinstance(self.model, TokenVLM):
            return self.model.loss(batch.states, batch.queries, batch.texts)
        assert self.objective is not None  # a VL-JEPA has a loss
        ids = text_ids(batch.texts).to(batch.states.device)
        predictions = self.model.predict(batch.states, batch.queries)
        loss: Tensor = self.objective(predictions, self.model.embed(batch.texts), ids)
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, index: int) -> None:
        if self.global_step in self.points:
            self.kept[self.global_step] = {
                name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()
            }


def fit_arm(
    config: ComparisonTrainConfig,
    stage: StageConfig,
    tokenizer: Tokenizer,
    states: Path,
    validation: HeldOutClips,
    output: Path,
) -> tuple[ArmModule, Trial]:
    """One learning rate over the whole schedule, and how well it finds the right captions of the validation clips."""
    started = time.perf_counter()
    torch.manual_seed(config.seed)
    model = _model(config, tokenizer, states)
    held_out = validation.states(model.encode)
    queries = [CAPTION_QUERIES[0]] * len(validation.scenes)
    loss = build(config.loss) if isinstance(model, VLJEPA) else None
    module = ArmModule(model, loss, stage, config.points)
    batches = StateBatches(states, config.seed, stage.batch_size, stage.steps)
    check = [StateBatch(held_out, queries, validation.names)]
    fit(module, batches, check, config, output, f"learning_rate_{stage.learning_rate:g}")
    model.to("cpu").eval()
    ranks = ranks_of_own(candidate_scores(model, held_out, queries, validation.names))
    seconds, mrr = round(time.perf_counter() - started, 2), float((1 / ranks).mean())
    return module, Trial(learning_rate=stage.learning_rate, validation_mrr=mrr, seconds=seconds)


def arm_config(config: ComparisonTrainConfig) -> Node:
    """The configuration of an arm's checkpoint. Raises InputError for a model of neither arm."""
    target = str(config.model.get("_target_"))
    if (variant := _VARIANTS.get(target.rpartition(".")[2])) is None:
        raise InputError(f"model._target_ must be one of {', '.join(_VARIANTS)}, got {target!r}")
    return {**config.model_dump(), "variant": variant}


def _model(config: ComparisonTrainConfig, tokenizer: Tokenizer, states: Path) -> VLJEPA | TokenVLM:
    """A new model of an arm; its X-Encoder is the frozen one."""
    model: VLJEPA | TokenVLM = checkpoint.build_model(arm_config(config), tokenizer)
    encoder: Any = model.x_encoder
    encoder.load_state_dict(load_file(states / _ENCODER))
    encoder.requires_grad_(False)
    if isinstance(model, TokenVLM):
        model.language_model.set_attention("sdpa" if _fused(config) else "eager")
    else:
        set_fused_attention(model, _fused(config))
        model.y_decoder.requires_grad_(False)
    return model


def _fused(config: ComparisonTrainConfig) -> bool:
    """Whether attention runs in the fused kernel, which is slower in bf16 on a CPU."""
    return precision(config) != "bf16-mixed" or on_gpu(config)


def step_flops(module: ArmModule, batch: StateBatch) -> StepFlops:
    """FLOPs of a step on a batch."""
    model = module.model
    encoder: Any = model.x_encoder
    frames = torch.zeros(1, model.frames, *2 * (encoder.size,), 3, dtype=torch.uint8)
    encoding = count_flops(lambda: model.encode(frames)).total
    trained = count_flops(lambda: module(batch).backward()).total
    module.zero_grad(set_to_none=True)
    return StepFlops(trained=trained, encoder=encoding * len(batch.texts))


def train_decoder(
    config: ComparisonTrainConfig, model: VLJEPA, states: Path, point: int, output: Path
) -> DecoderTraining:
    """A new Y-Decoder on the embeddings that the model at a point predicts for samples seen until then."""
    started, stage = time.perf_counter(), config.decoder
    torch.manual_seed(config.seed)
    model.y_decoder = build(config.model["y_decoder"])
    batches = StateBatches(states, config.seed, config.stage.batch_size, point)
    predictions, texts = [], []
    model.eval()
    with torch.no_grad():
        for index in range(min(point, -(-stage.examples // batches.batch_size))):
            batch = batches[index]
            predictions.append(model.predict(batch.states, batch.queries))
            texts += batch.texts
    pairs = (torch.cat(predictions), model.embed_all(texts), texts)
    train, check = (
        PairDecoderBatches(*pairs, seed, stage.batch_size, count)
        for seed, count in ((config.seed, stage.steps), (config.seed + _VALIDATION_SEED, 1))
    )
    module = DecoderModule(model, stage)
    module.train()
    flops = count_flops(lambda: module.cross_entropy(*train[0]).backward()).total
    module.zero_grad(set_to_none=True)
    fit(module, train, check, config, output, f"decoder_{point}")
    return DecoderTraining(flops=flops * stage.steps, seconds=round(time.perf_counter() - started, 2))


# --- The frozen encoder and its states, the same for all arms and seeds.


def frozen_states(config: ComparisonTrainConfig, tokenizer: Tokenizer) -> Path:
    """The folder with the frozen encoder and the states of the training clips; made if it is not there.

    Its name is a digest of everything that it is made from: arms and seeds of one comparison share it.
    """
    plain = config.model_dump()
    made_from = {key: plain[key] for key in ("world", "tokenizer", "clips", "encoder", "data_seed", "pool")}
    made_from |= {key: config.model[key] for key in ("x_encoder", "frames")}
    digest = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:12]
    folder = Path(config.states) / digest
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


def _make_states(config: ComparisonTrainConfig, tokenizer: Tokenizer, folder: Path) -> None:
    """Train the encoder, then write it, its states (float16) and their samples."""
    world, seed, frames, stage = build(config.world), config.data_seed, config.model["frames"], config.encoder
    torch.manual_seed(seed)
    encoder = build(config.model["x_encoder"])
    set_fused_attention(encoder, _fused(config))
    clips = {**config.clips.model_dump(), "hard_negatives": 0}
    batches, validation = (
        ClipBatches(world, s, stage.batch_size, count, frames, **clips)
        for s, count in ((seed, stage.steps), (seed + _VALIDATION_SEED, stage.validation_batches))
    )
    module = WordsModule(encoder, encoder.width, tokenizer, stage)
    fit(module, batches, validation, config, folder, "encoder")
    encoder.to("cpu").eval()
    save_file({name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}, folder / _ENCODER)
    pool = ClipBatches(world, seed + _SAMPLES_SEED, stage.batch_size, config.pool, frames, **clips)
    states, lines = [], []
    with torch.no_grad():
        for index in tqdm(range(len(pool)), desc="states of the clips", unit="batch"):
            batch = pool[index]
            states.append(encoder(batch.frames).half())
            lines += [json.dumps(sample) for sample in zip(batch.queries, batch.texts, strict=True)]
    save_file({"states": torch.cat(states)}, folder / _STATES)
    (folder / _SAMPLES).write_text("\n".join(lines) + "\n", encoding="utf-8")
