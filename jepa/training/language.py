"""`train` of an LLM-JEPA: next tokens and a latent term in one pass (arXiv 2509.14252, eq. 2).

Next-token training is the same code with the weight of the latent term at 0.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor, nn
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import Node, build, build_as
from jepa.config import ChatTokenizerConfig, LanguageStageConfig, LanguageTrainConfig, ObjectiveConfig, StageConfig
from jepa.data.batches import PairBatch
from jepa.data.chat import ChatIds, ChatTokenizer
from jepa.data.packing import Layout, pack, target_numbers
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.metrics.latents import LatentGeometry
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import count_flops
from jepa.training.callbacks import (
    BestCallback,
    CheckpointCallback,
    EMACallback,
    StageRecord,
    meter_of,
    summary,
)
from jepa.training.fit import (
    check_devices,
    fit,
    is_first_process,
    on_gpu,
    own_device,
    print_parameters,
    write_checkpoint,
)
from jepa.training.latents import PairDecoderBatches
from jepa.training.modules import DecoderModule, ParameterGroup, Stage, check_finite, warn_of_collapse
from jepa.training.objectives import Objective

_NEXT_TOKEN_ARMS = ("ntp", "ntp_equal_flops")
_FLOPS_SAMPLE = 4  # batches whose operations are counted before training, for a number of steps


class LanguageModule(Stage):
    """An LLM-JEPA under an `Objective`; with target "ema", a slow copy of the model gives the targets."""

    def __init__(self, model: LLMJEPA, objective: Objective, stage: StageConfig) -> None:
        super().__init__(stage)
        self.model, self.objective = model, objective
        self.teacher: LLMJEPA | None = None
        if objective.has_latent_term and objective.config.target == "ema":
            self.teacher = deepcopy(model).requires_grad_(False)  # its callback keeps it without dropout
        self.geometry = LatentGeometry(ks=(1, 10), sync_on_compute=False)  # every process validates on all
        self.tokens = 0  # of this process

    def parameter_groups(self) -> list[ParameterGroup]:
        """Vectors (norms, biases) and the loss's own parameters are not decayed."""
        trained, of_loss = ([p for p in m.parameters() if p.requires_grad] for m in (self.model, self.objective))
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim < 2] + of_loss, "weight_decay": 0.0},
        ]

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        parts = self.objective(self.model, self.teacher, batch)
        size = self.stage.batch_size
        self.log("loss", parts["loss"], prog_bar=True, batch_size=size, sync_dist=True)
        terms = {name: value for name, value in parts.items() if name != "loss"}
        self.log_dict(terms, batch_size=size, sync_dist=True)
        self.tokens += int((batch.rows.segments >= 0).sum())
        if batch.targets is not None:
            self.tokens += int((batch.targets.segments >= 0).sum())
        return parts["loss"]

    def average(self) -> EMACallback | None:
        if self.teacher is None:
            return None
        return EMACallback(self.teacher, self.model, self.objective.config.ema_decay)

    def metered(self) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
        """One pass of the language model is X-Encoder, Predictor and Y-Encoder at once: it counts as `encoder`."""
        models = [self.model] if self.teacher is None else [self.model, self.teacher]
        lms = [model.language.lm for model in models]
        modules = [module for lm in lms for module in (lm.get_decoder(), lm.get_output_embeddings())]
        losses = [loss for loss in (self.objective.loss, self.objective.regulariser) if loss is not None]
        return {"encoder": modules}, losses

    def validation_step(self, batch: PairBatch, index: int) -> None:
        out = self.model(batch.rows)
        loss = F.cross_entropy(out.logits, out.labels)
        check_finite(loss, self.global_step, self.stage.learning_rate)
        self.log("val/next_token", loss, batch_size=len(out.labels), sync_dist=True)
        self.geometry.update(out.predictions, out.targets, batch.rows.target_ids)

    def on_validation_epoch_end(self) -> None:
        geometry = self.geometry.compute()
        self.geometry.reset()
        self.log_dict({f"val/{name}": value for name, value in geometry.items()}, sync_dist=True)
        self.log("R@1", geometry["retrieval@1"], prog_bar=True, logger=False, sync_dist=True)
        if self.objective.has_latent_term and not self.trainer.sanity_checking:
            warn_of_collapse(geometry, self.global_step)


@dataclass(frozen=True)
class _Plan:
    """How long to train: steps, and how much longer than asked for by epochs."""

    steps: int
    stretched: float


def train(config: LanguageTrainConfig, output: Path) -> Path:
    """Trains a validated `LanguageTrainConfig` and returns the checkpoint's folder, `output/checkpoint`.

    The stages are the language model and, if asked for, a decoder from its embeddings; the checkpoint is written after
    each and, within one, after every validation. With `equal_flops` the number of steps, and with it the schedule, is
    stretched so that as many operations are spent as the objective given there would: measured on a few batches of
    either. On several devices every process calls this; the first writes.
    """
    check_devices(config)
    weight = config.objective.weight
    if config.arm in _NEXT_TOKEN_ARMS and weight != 0:
        raise InputError(
            f"objective.weight must be 0 in arm {config.arm}, which is next-token training, got {weight}; "
            "what the arms of a method have in common is set under method"
        )
    if config.checkpoint is None and not config.stage.epochs:
        raise InputError("stage.epochs must be > 0 for a new language model, got 0 and no checkpoint")
    if not config.stage.epochs and config.decoder is None:
        raise InputError("there is nothing to train: stage.epochs is 0 and decoder is null")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # tips and device lists
    L.seed_everything(config.seed, verbose=False)
    splits = build_as(ExampleSplits, "data", config.data)
    if is_first_process():
        print(splits.summary(), flush=True)
    model = _model(config, splits)
    print_parameters(model)
    model.language.set_attention("sdpa" if on_gpu(config) else "eager")
    folder, epochs = output / "checkpoint", config.stage.epochs
    node = {**model.node(), "y_decoder": _decoder_node(config, model, splits)}
    config = config.model_copy(update={"model": node})
    if config.checkpoint is not None and not config.stage.epochs:  # the language model stays what it is
        before = checkpoint.read_config(Path(config.checkpoint))
        config = config.model_copy(
            update={
                "arm": before["arm"],
                "objective": ObjectiveConfig(**before["objective"]),
                "equal_flops": before["equal_flops"] and ObjectiveConfig(**before["equal_flops"]),
                "tokenizer": ChatTokenizerConfig(**before["tokenizer"]),
                "stage": LanguageStageConfig(**before["stage"]),
            }
        )
    trains = {"llm_jepa": epochs > 0, "decoder": config.decoder is not None}
    stages: list[StageRecord] = []
    if config.checkpoint is not None:
        stages = json.loads((Path(config.checkpoint) / "training.json").read_text(encoding="utf-8"))["stages"]
    for name, run in (("llm_jepa", _train_language), ("decoder", _train_decoder)):
        if not trains[name]:
            continue
        callback = CheckpointCallback(name, list(stages), partial(write_checkpoint, model, config, folder))
        stages.append(callback.finish(run(config, model.train(), splits, output, callback)))
        model.cpu()
    if is_first_process():
        print(f"checkpoint: {folder}", flush=True)
    return folder


def _model(config: LanguageTrainConfig, splits: ExampleSplits) -> LLMJEPA:
    """A new model or, with `checkpoint`, that of a checkpoint; with the decoder that `model.y_decoder` asks for."""
    if config.checkpoint is None:
        node = {**config.model, "y_decoder": None}
        model = checkpoint.build_model(
            {"variant": config.variant, "model": node}, make_tokenizer(config.tokenizer, splits.train)
        )
    else:
        model = checkpoint.load(config.checkpoint)
        if not isinstance(model, LLMJEPA):
            raise InputError(f"checkpoint must be of an LLM-JEPA, got {type(model).__name__}: {config.checkpoint}")
    decoder = _decoder_node(config, model, splits)
    model.y_decoder = None if decoder is None else build(decoder)
    return model


def _decoder_node(config: LanguageTrainConfig, model: LLMJEPA, splits: ExampleSplits) -> Node | None:
    """`model.y_decoder` with the sizes that the model and the longest answer give it."""
    node = config.model["y_decoder"]
    if (node is None) != (config.decoder is None):
        raise InputError(f"decoder and model.y_decoder must be given together, got {config.decoder} and {node}")
    if node is None:
        return None
    answers = [pair.completion for part in (splits.train, splits.validation, splits.test) for pair in part]
    longest = model.tokenizer.encode_closed(answers)[0].shape[1]
    sizes = {"vocab_size": len(model.tokenizer), "embedding_dim": model.language.width}
    return {"max_length": longest, **node, **sizes}


def _train_language(
    config: LanguageTrainConfig, model: LLMJEPA, splits: ExampleSplits, output: Path, callback: CheckpointCallback
) -> StageRecord:
    stage, objective = config.stage, Objective(config.objective)
    if objective.config.view == "shared" and any(pair.text is not None for pair in splits.train):
        raise InputError("objective.view must be alone for data with text and code views, got shared")
    pairs = model.tokenizer.encode(splits.train)
    validation = model.tokenizer.encode(splits.validation[: stage.validation_pairs])
    _check_lengths(model, pairs, splits.train)
    model.to(own_device(config))
    plan = _plan(config, stage, objective, model, pairs)
    steps = StageConfig(
        steps=plan.steps,
        batch_size=stage.batch_size,
        accumulate=1,
        learning_rate=stage.learning_rate,
        schedule="cosine",
        weight_decay=stage.weight_decay,
        warmup_steps=round(stage.warmup_fraction * plan.steps),
        gradient_clip=stage.gradient_clip,
        validate_every=stage.validate_every,
        validation_batches=1,
    )
    layout = objective.layout(model, stage)
    if not objective.has_latent_term or objective.tube is not None:
        layout = replace(layout, predictors=())  # nothing trains them
    devices = config.devices
    held_out = _every_pair_once(validation, layout, stage.batch_size)
    module = LanguageModule(model, objective, steps)
    if model.y_decoder is not None:
        model.y_decoder.requires_grad_(False)
    batches = objective.batches(pairs, model, stage, config.seed, plan.steps, devices)
    strategy: str = config.strategy
    if strategy == "ddp" and objective.sometimes_untrained:
        strategy = "ddp_find_unused_parameters_true"
    best = BestCallback(model, "val/next_token")

    def facts(trainer: L.Trainer) -> StageRecord:
        spent = _spent(trainer, module.tokens)
        return {
            "pairs": len(pairs),
            "duplicates": dict(splits.duplicates),
            "steps_stretched": plan.stretched,
            "tokens": spent["tokens"],
            "flops": spent["flops"],
        }

    callback.facts = facts
    callbacks = [best, callback] if stage.select == "best" else [callback]
    trainer = fit(module, batches, held_out, steps, config, output, "llm_jepa", strategy, devices, callbacks)
    if model.y_decoder is not None:
        model.y_decoder.requires_grad_(True)
    record = {**summary(trainer), **facts(trainer)}
    if best.state:
        model.load_state_dict(best.state)
        record["selected_step"] = best.step
    return record


def _spent(trainer: L.Trainer, tokens: int) -> dict[str, int]:
    """Tokens and FLOPs of all processes so far, of which this one saw `tokens`; every process calls it."""
    meter = meter_of(trainer)
    own = {"tokens": tokens, "flops": meter.ledger.total_flops if meter is not None else 0}
    if trainer.world_size == 1:
        return own
    each: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(each, own)
    return {name: sum(counts[name] for counts in each) for name in own}


def _every_pair_once(pairs: Sequence[ChatIds], layout: Layout, size: int) -> list[PairBatch]:
    """Validation batches; the last may be smaller."""
    ids = target_numbers(pairs, layout)
    if len(set(ids)) < 2:
        raise InputError(
            f"the validation split must hold at least 2 distinct targets, got {len(set(ids))}; "
            "raise stage.validation_pairs or data.validation_fraction"
        )
    parts = [slice(i, i + size) for i in range(0, len(pairs), size)]
    return [PairBatch(pack(pairs[part], layout, pairs[part], ids[part]), None) for part in parts]


def _train_decoder(
    config: LanguageTrainConfig, model: LLMJEPA, splits: ExampleSplits, output: Path, callback: CheckpointCallback
) -> StageRecord:
    """The Y-Decoder on the embeddings of the frozen model: predicted ones, and those of the answers with noise."""
    stage, objective = config.decoder, config.objective
    assert stage is not None
    if (objective.direction, objective.view) != ("forward", "shared"):
        raise InputError(
            "a decoder needs a model with objective.direction forward and objective.view shared, got "
            f"{objective.direction} and {objective.view}"
        )
    model.eval().to(own_device(config))
    batches, validation = (
        PairDecoderBatches(*_latents(model, pairs), [pair.completion for pair in pairs], seed, stage.batch_size, count)
        for pairs, seed, count in (
            (splits.train, config.seed, stage.steps * stage.accumulate * config.devices),
            (splits.validation, config.seed + 1, stage.validation_batches),
        )
    )
    module = DecoderModule(model, stage)
    module.train()
    on = config.strategy, config.devices
    trainer = fit(module, batches, validation, stage, config, output, "decoder", *on, [callback])
    return {**summary(trainer), "noise_per_dimension": round(batches.noise, 5)}


def _latents(model: LLMJEPA, pairs: Sequence[Example], size: int = 128) -> tuple[Tensor, Tensor]:
    """Predicted and target embeddings (N, E), L2-normalised."""
    parts = [pairs[i : i + size] for i in range(0, len(pairs), size)]
    predictions = [model.predict(model.encode(part)).cpu() for part in tqdm(parts, desc="latents for the decoder")]
    return torch.cat(predictions), torch.cat([model.embed([pair.completion for pair in part]).cpu() for part in parts])


def make_tokenizer(config: ChatTokenizerConfig, pairs: Sequence[Example]) -> ChatTokenizer:
    """A pretrained tokenizer, or one trained on the pairs."""
    if config.pretrained is not None:
        return ChatTokenizer.pretrained(config.pretrained)
    texts = [text for pair in pairs for text in (pair.system or "", pair.prompt, pair.completion)]
    return ChatTokenizer.train(texts, config.vocab_size)


def _plan(
    config: LanguageTrainConfig,
    stage: LanguageStageConfig,
    objective: Objective,
    model: LLMJEPA,
    pairs: Sequence[ChatIds],
) -> _Plan:
    steps = max(1, round(stage.epochs * len(pairs) / (stage.batch_size * config.devices)))
    if config.equal_flops is None:
        return _Plan(steps, 1.0)
    other = Objective(config.equal_flops)
    own, wanted = (step_flops(each, model, stage, pairs, config.seed) for each in (objective, other))
    return _Plan(round(steps * wanted / own), wanted / own)


def _check_lengths(model: LLMJEPA, encoded: Sequence[ChatIds], pairs: Sequence[Example]) -> None:
    limit = getattr(model.language.lm.config.get_text_config(), "max_position_embeddings", None)
    longest = max(range(len(encoded)), key=lambda i: len(encoded[i].prompt) + len(encoded[i].completion))
    length = len(encoded[longest].prompt) + max(len(encoded[longest].completion), len(model.predictor_ids))
    if limit is not None and length > limit:
        raise InputError(
            f"{pairs[longest].source}: a pair must have at most {limit} tokens, as many as the model has positions, "
            f"got {length}"
        )


def step_flops(
    objective: Objective, model: LLMJEPA, stage: LanguageStageConfig, pairs: Sequence[ChatIds], seed: int
) -> float:
    """Mean operations of a training step, forward and backward, measured on the first batches (without autocast).

    With loss dropout α, batches with and without the latent term are measured apart and weighted by 1 − α and α.
    """
    objective = objective.to(model.device)
    batches = objective.batches(pairs, model, stage, seed, _FLOPS_SAMPLE)
    fraction = 1 - batches.loss_dropout if batches.latent else 0.0
    batches.loss_dropout = 0.0

    def measured(latent: bool) -> float:
        batches.latent = latent

        def run() -> None:
            for index in range(_FLOPS_SAMPLE):
                batch = move_data_to_device(batches[index], model.device)
                objective(model, model, batch)["loss"].backward()

        total = count_flops(run).total
        model.zero_grad(set_to_none=True)
        objective.zero_grad(set_to_none=True)
        return total / _FLOPS_SAMPLE

    return (fraction * measured(True) if fraction > 0 else 0.0) + (
        (1 - fraction) * measured(False) if fraction < 1 else 0.0
    )
