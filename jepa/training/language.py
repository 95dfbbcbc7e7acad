"""`train` of an LLM-JEPA: next tokens and a latent term in one pass (arXiv 2509.14252, eq. 2).

Next-token training is the same code with the weight of the latent term at 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import lightning as L
import torch
import torch.nn.functional as F
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from tqdm import tqdm

from jepa import checkpoint
from jepa.build import Node, build, build_as
from jepa.config import ObjectiveConfig
from jepa.data.batches import PairBatch, PairBatches
from jepa.data.chat import ChatIds, ChatTokenizer
from jepa.data.packing import pack, target_numbers
from jepa.data.pairs import Example, ExampleSplits
from jepa.errors import InputError
from jepa.models.llm_jepa import LLMJEPA
from jepa.operations import count_flops
from jepa.predictors.transition import LatentTransition
from jepa.processes import is_first_process, of_all_processes
from jepa.training.callbacks import EMACallback, StageRecord, meter_of, summary
from jepa.training.configs import ChatTokenizerConfig, LanguageStageConfig, LanguageTrainConfig, StageConfig
from jepa.training.fit import check_devices, fit, load_checkpoint, on_gpu, own_device, run_stages
from jepa.training.latents import PairDecoderBatches
from jepa.training.modules import DecoderModule, JointStage, ParameterGroup, Stage, without_gradients
from jepa.training.objectives import Objective, next_latent_terms
from jepa.training.saving import CheckpointCallback

_NEXT_TOKEN_ARMS = ("ntp", "ntp_equal_flops", "ntp_transition_flops")


class LanguageModule(JointStage):
    """An LLM-JEPA under an `Objective`; with target "ema", a slow copy of the model gives the targets.

    One pass of the language model is X-Encoder, Predictor and Y-Encoder at once: its operations count as `encoder`.
    """

    def __init__(self, model: LLMJEPA, objective: Objective, stage: StageConfig) -> None:
        super().__init__(stage, ks=(1, 10))
        self.model, self.objective = model, objective
        self.warns_of_collapse = objective.has_latent_term
        self.sometimes_untrained = objective.sometimes_untrained
        self.losses = [loss for loss in (objective.loss, objective.regulariser) if loss is not None]
        self.teacher: LLMJEPA | None = None
        models = [model]
        if objective.has_latent_term and objective.config.target == "ema":
            self.teacher = deepcopy(model).requires_grad_(False)  # its callback keeps it without dropout
            self.average = EMACallback(self.teacher, model, objective.config.ema_decay)
            models.append(self.teacher)
        lms = [each.language.lm for each in models]
        self.parts = {"encoder": [part for lm in lms for part in (lm.get_decoder(), lm.get_output_embeddings())]}
        if objective.config.transition_weight > 0:
            self.parts["predictor"] = [model.transition]
        self.tokens = 0  # of this process

    def facts(self) -> StageRecord:
        """Tokens and FLOPs of all processes so far."""
        meter = meter_of(self.trainer)
        spent = of_all_processes((self.tokens, 0 if meter is None else meter.ledger.total_flops))
        return dict(zip(("tokens", "flops"), map(sum, zip(*spent, strict=True)), strict=True))

    def counted(self) -> StageRecord:
        return {"tokens": self.tokens}

    def recount(self, counted: StageRecord) -> None:
        self.tokens = cast(int, counted["tokens"])

    def parameter_groups(self) -> list[ParameterGroup]:
        """Vectors (norms, biases) and the loss's own parameters are not decayed."""
        trained, of_loss = ([p for p in m.parameters() if p.requires_grad] for m in (self.model, self.objective))
        return [
            {"params": [p for p in trained if p.ndim > 1]},
            {"params": [p for p in trained if p.ndim < 2] + of_loss, "weight_decay": 0.0},
        ]

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        parts, size = self.objective(self.model, self.teacher, batch), self.stage.batch_size
        loss: Tensor = parts.pop("loss")
        self.log("loss", loss, prog_bar=True, batch_size=size, sync_dist=True)
        self.log_dict(parts, batch_size=size, sync_dist=True)
        self.tokens += sum(int((rows.segments >= 0).sum()) for rows in batch if rows is not None)
        return loss

    def validation_step(self, batch: PairBatch, index: int) -> None:
        out = self.model(batch.rows)
        loss = F.cross_entropy(out.logits, out.labels)
        self.log("val/next_token", loss, batch_size=len(out.labels), sync_dist=True)
        self.validate_latents(out.predictions, out.targets, batch.rows.target_ids)


def train(config: LanguageTrainConfig, output: Path) -> Path:
    """`jepa.training.run.train` of an LLM-JEPA: the language model and, if asked for, a decoder from its embeddings.

    With `equal_flops` the steps, and with them the schedule, are stretched until as many operations are spent as the
    objective given there would: measured on a few batches of either.
    """
    check_devices(config)
    weight, epochs = config.objective.weight, config.stage.epochs
    if config.arm in _NEXT_TOKEN_ARMS and (weight or config.objective.transition_weight):
        raise InputError(
            f"objective.weight and transition_weight must be 0 in arm {config.arm}, which is next-token training, got "
            f"{weight} and {config.objective.transition_weight}; "
            "what the arms of a method have in common is set under method"
        )
    if config.checkpoint is None and not epochs:
        raise InputError("stage.epochs must be > 0 for a new language model, got 0 and no checkpoint")
    if not epochs and config.decoder is None and config.draft is None:
        raise InputError("there is nothing to train: stage.epochs is 0, decoder and draft are null")
    L.seed_everything(config.seed, verbose=False)
    splits = build_as(ExampleSplits, "data", config.data)
    if is_first_process():
        print(splits.summary(), flush=True)
    config, model, before = _start(config, splits)
    model.language.set_attention("sdpa" if on_gpu(config) else "eager")
    asked = {"llm_jepa": epochs, "decoder": config.decoder, "draft": config.draft}
    work = {"llm_jepa": _train_language, "decoder": _train_decoder, "draft": _train_draft}
    stages = {name: partial(work[name], config, splits, output) for name, given in asked.items() if given}
    return run_stages(model, config, output, before, stages)


def _start(
    config: LanguageTrainConfig, splits: ExampleSplits
) -> tuple[LanguageTrainConfig, LLMJEPA, list[StageRecord]]:
    """A new model, or the one of `checkpoint` with the stages behind it; with the decoder that is asked for.

    The configuration then tells the model; where the language model stays as it is, also how that was trained.
    """
    if config.checkpoint is None:
        node, before = {**config.model, "y_decoder": None, "transition": None}, list[StageRecord]()
        tokenizer = make_tokenizer(config.tokenizer, splits.train)
        model: LLMJEPA = checkpoint.build_model({"variant": config.variant, "model": node}, tokenizer)
    else:
        model, before = load_checkpoint(config.checkpoint, LLMJEPA)
    decoder = _decoder_node(config, model, splits)
    model.y_decoder = None if decoder is None else build(decoder)
    transition = config.model.get("transition")
    if (transition is None) == (config.draft is not None or config.objective.transition_weight > 0):
        raise InputError(
            "model.transition must be given with draft or objective.transition_weight, and only with them, got "
            f"{transition}, {config.draft} and {config.objective.transition_weight}"
        )
    if transition is not None:
        model.transition = build_as(LatentTransition, "model.transition", transition, width=model.language.width)
    if config.answers.drafts is not None:
        model.drafter(config.answers.drafts)  # refused before anything is trained
    changed: Node = {"model": {**model.node(), "y_decoder": decoder}}
    if config.checkpoint is not None and not config.stage.epochs:
        kept = checkpoint.read_config(Path(config.checkpoint))
        changed |= {
            "arm": kept["arm"],
            "objective": ObjectiveConfig(**kept["objective"]),
            "equal_flops": kept["equal_flops"] and ObjectiveConfig(**kept["equal_flops"]),
            "tokenizer": ChatTokenizerConfig(**kept["tokenizer"]),
            "stage": LanguageStageConfig.model_construct(**kept["stage"]),
        }
    return config.model_copy(update=changed), model, before


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
    config: LanguageTrainConfig, splits: ExampleSplits, output: Path, model: LLMJEPA, callback: CheckpointCallback
) -> StageRecord:
    stage, objective = config.stage, Objective(config.objective)
    if objective.config.view == "shared" and any(pair.text is not None for pair in splits.train):
        raise InputError("objective.view must be alone for data with text and code views, got shared")
    pairs = model.tokenizer.encode(splits.train)
    validation = model.tokenizer.encode(splits.validation[: stage.validation_pairs])
    _check_lengths(model, pairs, splits.train, objective.config.train_on == "published")
    model.to(own_device(config))
    steps = max(1, round(stage.epochs * len(pairs) / (stage.batch_size * config.processes)))
    stretched = 1.0
    if config.equal_flops is not None:
        both = objective, Objective(config.equal_flops)
        own, wanted = (step_flops(each, model, stage, pairs, config.seed) for each in both)
        steps, stretched = round(steps * wanted / own), wanted / own
    same = {"batch_size", "learning_rate", "weight_decay", "gradient_clip", "validate_every"}
    warmup = round(stage.warmup_fraction * steps)
    settings = StageConfig(steps=steps, warmup_steps=warmup, validation_batches=1, **stage.model_dump(include=same))
    module = LanguageModule(model, objective, settings)
    batches = objective.batches(pairs, model, stage, config.seed, steps, config.processes)
    held_out = validation_batches(objective, model, stage, validation)
    callback.known = {"pairs": len(pairs), "duplicates": dict(splits.duplicates), "steps_stretched": stretched}
    idle = model.transition if objective.config.transition_weight == 0 else None
    with without_gradients(model.y_decoder), without_gradients(idle):
        trainer = fit(module, batches, held_out, config, output, "llm_jepa", callback)
    return {**summary(trainer), **module.facts()}


def validation_batches(
    objective: Objective, model: LLMJEPA, stage: LanguageStageConfig, pairs: Sequence[ChatIds]
) -> list[PairBatch]:
    """Every pair once, in batches of the stage's size; the last may be smaller. Needs 2 distinct targets."""
    layout, size = objective.layout(model, stage), stage.batch_size
    if not objective.has_latent_term or objective.tube is not None:
        layout = replace(layout, predictors=())  # nothing trains them
    ids = target_numbers(pairs, layout)
    if len(set(ids)) < 2:
        raise InputError(
            f"the validation split must hold at least 2 distinct targets, got {len(set(ids))}; "
            "raise stage.validation_pairs or data.validation_fraction"
        )
    parts = [slice(i, i + size) for i in range(0, len(pairs), size)]
    return [PairBatch(pack(pairs[part], layout, pairs[part], ids[part]), None) for part in parts]


def _train_decoder(
    config: LanguageTrainConfig, splits: ExampleSplits, output: Path, model: LLMJEPA, callback: CheckpointCallback
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
            (splits.train, config.seed, stage.steps * stage.accumulate * config.processes),
            (splits.validation, config.seed + 1, stage.validation_batches),
        )
    )
    trainer = fit(DecoderModule(model, stage).train(), batches, validation, config, output, "decoder", callback)
    return {**summary(trainer), "noise_per_dimension": round(batches.noise, 5)}


class DraftModule(Stage):
    """A transition trained to predict the next states of the frozen language model, over a horizon."""

    def __init__(self, model: LLMJEPA, stage: StageConfig) -> None:
        super().__init__(stage)
        if model.transition is None:
            raise InputError("the model must have a transition to train, got none")
        self.model = model
        lm = model.language.lm
        self.parts = {"encoder": [lm.get_decoder()], "predictor": [model.transition, lm.get_output_embeddings()]}

    def parameter_groups(self) -> list[ParameterGroup]:
        assert self.model.transition is not None
        return [{"params": list(self.model.transition.parameters())}]

    def terms(self, batch: PairBatch) -> dict[str, Tensor]:
        """`smooth_l1` and `kl` of a batch, in float32."""
        rows = batch.rows
        with torch.no_grad():
            states = self.model.language.states(rows.ids, rows.segments, rows.parents, rows.positions)
        return next_latent_terms(self.model, states, rows.labels)

    def training_step(self, batch: PairBatch, index: int) -> Tensor:
        terms = self.terms(batch)
        loss = terms["smooth_l1"] + terms["kl"]
        self.log("loss", loss, prog_bar=True, batch_size=self.stage.batch_size, sync_dist=True)
        self.log_dict(terms, batch_size=self.stage.batch_size, sync_dist=True)
        return loss

    def validation_step(self, batch: PairBatch, index: int) -> None:
        found = {f"val/{name}": value for name, value in self.terms(batch).items()}
        self.log_dict(found, batch_size=self.stage.batch_size, sync_dist=True)


def _train_draft(
    config: LanguageTrainConfig, splits: ExampleSplits, output: Path, model: LLMJEPA, callback: CheckpointCallback
) -> StageRecord:
    """Next-latent prediction (arXiv 2511.05963) on a frozen model: what generation drafts its answers with."""
    stage = config.draft
    assert stage is not None
    layout = model.layout(row_tokens=config.stage.row_tokens, train_on=config.objective.train_on)
    pairs, validation = model.tokenizer.encode(splits.train), model.tokenizer.encode(splits.validation)
    count = stage.steps * stage.accumulate * config.processes
    batches = PairBatches(pairs, layout, config.seed, stage.batch_size, count, latent=False, ranks=config.processes)
    starts = range(0, min(len(validation), stage.validation_batches * stage.batch_size), stage.batch_size)
    held_out = [PairBatch(pack(validation[i : i + stage.batch_size], layout), None) for i in starts]
    model.eval().to(own_device(config))
    module = DraftModule(model, stage)
    assert model.transition is not None
    model.transition.train()
    with without_gradients(model.language), without_gradients(model.y_decoder):
        return {**summary(fit(module, batches, held_out, config, output, "draft", callback))}


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


def _check_lengths(model: LLMJEPA, encoded: Sequence[ChatIds], pairs: Sequence[Example], after: bool) -> None:
    limit = getattr(model.language.lm.config.get_text_config(), "max_position_embeddings", None)
    said = [len(ids.completion) + after * len(ids.after) for ids in encoded]
    lengths = [len(ids.prompt) + max(n, len(model.predictor_ids)) for ids, n in zip(encoded, said, strict=True)]
    longest = max(lengths)
    if limit is not None and longest > limit:
        source = pairs[lengths.index(longest)].source
        raise InputError(f"{source}: a pair must have at most {limit} tokens, the model's positions, got {longest}")


def step_flops(
    objective: Objective,
    model: LLMJEPA,
    stage: LanguageStageConfig,
    pairs: Sequence[ChatIds],
    seed: int,
    sample: int = 4,
) -> float:
    """Mean operations of a training step, forward and backward, of the first `sample` batches (without autocast).

    With loss dropout α, batches with and without the latent term are measured apart and weighted by 1 − α and α. Where
    the objective takes a transition and the model has none, it has one meanwhile.
    """
    objective, transition = objective.to(model.device), model.transition
    if objective.config.transition_weight > 0 and transition is None:
        model.transition = LatentTransition(model.language.width).to(model.device)
    batches = objective.batches(pairs, model, stage, seed, sample)
    with_latent = 1 - batches.loss_dropout if batches.latent else 0.0
    batches.loss_dropout = 0.0

    def run() -> None:
        for index in range(sample):
            batch = move_data_to_device(batches[index], model.device)
            objective(model, model, batch)["loss"].backward()

    found = 0.0
    for latent, weight in ((True, with_latent), (False, 1 - with_latent)):
        batches.latent = latent
        found += weight * (count_flops(run).total / sample) if weight else 0.0
    model.transition = transition
    model.zero_grad(set_to_none=True)
    objective.zero_grad(set_to_none=True)
    return found
