"""Lightning modules of the stages: the joint embedding of a VL-JEPA, then the decoder of either variant."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, TypedDict, cast

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn
from typing_extensions import Required

from jepa.build import build
from jepa.data.clips import ClipBatch
from jepa.errors import InputError
from jepa.losses.cached import cached_loss
from jepa.metrics.geometry import LatentGeometry
from jepa.metrics.latents import collapse_message
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.roles import Part, TextTokenizer, YDecoder
from jepa.models.vl_jepa import VLJEPA
from jepa.predictors.experts import Routing, load_balancing_loss, recorded_routing
from jepa.training.callbacks import EMACallback, MeterCallback, StageRecord
from jepa.training.configs import JEPAStageConfig, StageConfig
from jepa.training.sharding import clip_gradients, shard

_PARTS = {"encoder": "x_encoder", "predictor": "predictor", "y_encoder": "y_encoder"}  # of the ledger: roles


class CollapseWarning(UserWarning):
    """The latents of different things have become the same."""


def text_ids(texts: Iterable[str]) -> Tensor:
    """(B,) integers, equal for equal texts, whichever batch or rank they are in: the first 8 bytes of their hashes."""
    digests = b"".join(blake2b(text.encode(), digest_size=8).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(digests, dtype=np.int64).copy())


def token_cross_entropy(decoder: YDecoder, tokenizer: TextTokenizer, latents: Tensor, texts: Sequence[str]) -> Tensor:
    """Next-token cross-entropy (N,) of the N tokens of B texts, end tokens included, given embeddings (B, E)."""
    ids, mask = (t.to(latents.device) for t in tokenizer.encode_closed(texts))
    logits = decoder(latents, ids)
    return F.cross_entropy(logits[mask], ids[mask], reduction="none")


@contextmanager
def without_gradients(part: nn.Module | None) -> Iterator[None]:
    """What is trained of a part is not within, and is again afterwards."""
    trained = [p for p in part.parameters() if p.requires_grad] if part is not None else []
    for parameter in trained:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class ParameterGroup(TypedDict, total=False):
    """Parameters that share a learning rate and a weight decay: those of the stage unless they are given."""

    params: Required[list[nn.Parameter]]
    lr: float
    weight_decay: float


class Stage(L.LightningModule):
    """AdamW, with a linear warm-up, then a constant rate or a cosine to zero over the stage's steps.

    Under a strategy with a device mesh the parts are sharded, and their operations are not counted.

    Attributes:
        parts: modules whose operations are counted in training, by part of the ledger; without any, nothing is.
        losses: modules whose operations count as `loss`.
        average: what updates the teacher of a module that has one.
        sometimes_untrained: whether a batch may leave trained parameters without gradient.
    """

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.stage = stage
        self.parts: dict[str, list[Any]] = {}
        self.losses: list[nn.Module] = []
        self.average: EMACallback | None = None
        self.sometimes_untrained = False

    def parameter_groups(self) -> list[ParameterGroup]:
        raise NotImplementedError

    def facts(self) -> StageRecord:
        """What the module adds to the record of its stage, at every validation; every process calls it."""
        return {}

    def counted(self) -> StageRecord:
        """What this process has counted so far, plain data: `recount` puts it back when training goes on."""
        return {}

    def recount(self, counted: StageRecord) -> None:
        """Takes what `counted` gave."""

    def on_train_batch_start(self, batch: Any, index: int) -> None:
        """What a batch does not log would else be logged with the value of an earlier one."""
        for value in self.trainer.fit_loop.epoch_loop._results.values():
            if not value.meta.on_epoch:
                value.reset()

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part in chain.from_iterable(self.parts.values()):
                shard(part, self.device_mesh["data_parallel"])

    def configure_callbacks(self) -> list[L.Callback]:
        found: list[L.Callback] = [] if self.average is None else [self.average]
        if self.parts and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            updated = sum(p.numel() * p.element_size() for group in self.parameter_groups() for p in group["params"])
            found.append(MeterCallback(self.parts, self.losses, updated))  # last, so that its clock stops last
        return found

    def configure_gradient_clipping(self, optimizer: Any, *arguments: Any, **limits: Any) -> None:
        if self.device_mesh is None:
            super().configure_gradient_clipping(optimizer, *arguments, **limits)
        else:
            clip_gradients((p for group in optimizer.param_groups for p in group["params"]), self.stage.gradient_clip)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            [dict(group) for group in self.parameter_groups()],
            lr=self.stage.learning_rate,
            weight_decay=self.stage.weight_decay,
            betas=(0.9, 0.98),
        )
        warmup, steps = self.stage.warmup_steps, self.stage.steps

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            if self.stage.schedule == "constant":
                return 1.0
            return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, scale), "interval": "step"}]


class JointStage(Stage):
    """A stage that trains predictions and targets together: validates their geometry, and warns of a collapse."""

    warns_of_collapse = True

    def __init__(self, stage: StageConfig, ks: Sequence[int]) -> None:
        super().__init__(stage)
        self.geometry = LatentGeometry(ks=ks, sync_on_compute=False)  # every process validates on all

    def validate_latents(self, predictions: Tensor, targets: Tensor, ids: Tensor) -> None:
        """Takes a batch (B, E) with the ids (B,) of its targets; raises `InputError` if predictions are not finite."""
        if not bool(predictions.isfinite().all()):
            raise InputError(
                f"training must stay finite, got a NaN or an infinity when validated after step {self.global_step}; "
                f"the learning rate, {self.stage.learning_rate:g}, may be too high. The last checkpoint is kept"
            )
        self.geometry.update(predictions, targets, ids)

    def on_validation_epoch_end(self) -> None:
        geometry = self.geometry.compute()
        self.geometry.reset()
        self.log_dict({f"val/{name}": value for name, value in geometry.items()}, sync_dist=True)
        self.log("R@1", geometry["retrieval@1"], prog_bar=True, logger=False, sync_dist=True)
        if self.warns_of_collapse and (message := collapse_message(geometry)):
            warnings.warn(f"step {self.global_step}: {message}", CollapseWarning, stacklevel=2)


class JEPAModule(JointStage):
    """X-Encoder, Predictor and Y-Encoder trained together by a latent loss (VL-JEPA section 3.2).

    The loss d is called with predictions (B, E), targets (B, E) and the texts' ids (B,), and with further negative
    texts (M, E) and their ids (M,) if it takes some. Frozen parameters stay as they are, and with target
    "stop_gradient" all of the Y-Encoder's; it learns at `y_encoder_lr_multiplier` times the learning rate (None: once).
    With target "ema" each side is compared with a slow copy of the other, d(Ŝ, S_slow) / 2 + d(Ŝ_slow, S) / 2: the
    targets alone would leave the Y-Encoder without gradient. The X-Encoder has no copy.

    A regulariser gets both embeddings times √E: unit vectors in all directions then have variance 1 in each dimension.
    Sparse experts add their load-balancing losses, each with its weight. With `decoder_weight` a frozen Y-Decoder reads
    the predictions, and that times its cross-entropy (mean, nats a token) is added (SONAR-LLM, arXiv 2508.05305).
    """

    def __init__(self, model: VLJEPA, stage: JEPAStageConfig) -> None:
        super().__init__(stage, ks=(1,))
        if (stage.regulariser is None) != (stage.regulariser_weight == 0):
            raise InputError(
                "jepa.regulariser and jepa.regulariser_weight must be given together, "
                f"got {stage.regulariser} and {stage.regulariser_weight}"
            )
        self.model, self.settings = model, stage
        self.loss: Any = build(stage.loss)
        self.regulariser: Any = None if stage.regulariser is None else build(stage.regulariser)
        self.losses = [loss for loss in (self.loss, self.regulariser) if loss is not None]
        self.takes_negatives = "negatives" in inspect.signature(self.loss.forward).parameters
        self.parts = {name: [getattr(model, role)] for name, role in _PARTS.items()}
        if stage.decoder_weight:
            self.parts["decoder"] = [model.y_decoder]
        self.teacher: Any = None
        if stage.target == "ema":
            pair = nn.ModuleList([model.predictor, model.y_encoder])  # type: ignore[list-item]
            self.teacher = deepcopy(pair).requires_grad_(False)
            self.average = EMACallback(self.teacher, pair, stage.ema_decay)
            self.parts["predictor"].append(self.teacher[0])
            self.parts["y_encoder"].append(self.teacher[1])
        if stage.target == "stop_gradient":
            model.y_encoder.requires_grad_(False)
        self.sometimes_untrained = getattr(model.x_encoder, "takes_images", False)  # its image path, by clips
        self.skipped: Counter[str] = Counter()  # what was wrong with media of this process that were left out

    def counted(self) -> StageRecord:
        return {"skipped": dict(self.skipped)}

    def recount(self, counted: StageRecord) -> None:
        self.skipped.update(cast("dict[str, int]", counted["skipped"]))

    def parameter_groups(self) -> list[ParameterGroup]:
        def trained(*parts: Part) -> list[nn.Parameter]:
            return [p for part in parts for p in part.parameters() if p.requires_grad]

        multiplier = self.settings.y_encoder_lr_multiplier
        rate = self.stage.learning_rate * (1.0 if multiplier is None else multiplier)
        groups: list[ParameterGroup] = [
            {"params": trained(self.model.x_encoder, self.model.predictor)},
            {"params": trained(self.model.y_encoder), "lr": rate},
            {"params": list(self.loss.parameters()), "weight_decay": 0.0},
        ]
        return [group for group in groups if group["params"]]

    def training_step(self, batch: ClipBatch, index: int) -> Tensor:
        used = batch if self.takes_negatives else batch._replace(negatives=[])
        chunks = _in_chunks(used, self.settings.chunk or len(batch.texts))
        if len(chunks) > 1 and not any(p.requires_grad for p in self.model.x_encoder.parameters()):
            # What is frozen is encoded once: its states are kept, as frames that were encoded before.
            chunks = [chunk._replace(frames=self.model.encode(chunk.frames)) for chunk in chunks]
        ids = text_ids(text for chunk in chunks for text in chunk.texts).to(self.device)
        negative_ids = text_ids(text for chunk in chunks for text in chunk.negatives).to(self.device)
        loss = partial(self.total_loss, ids, negative_ids)
        predictor: Any = self.model.predictor
        with recorded_routing(predictor) as routings:
            value = loss(*self.encode(batch)) if len(chunks) == 1 else cached_loss(self.encode, chunks, loss)
        self.log("loss", value, prog_bar=True, batch_size=len(batch.texts))
        self.skipped.update(batch.skipped)
        if self.skipped:
            self.log("skipped", float(self.skipped.total()), prog_bar=True, batch_size=len(batch.texts))
        return value + self.balance(routings) if routings else value

    def encode(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """`nats` (N,), predictions (B, E), targets (B, E), negative texts (M, E); these three again by slow copies."""
        count = len(batch.texts)
        states = self.model.encode(batch.frames)
        texts = [*batch.texts, *batch.negatives] if self.takes_negatives else batch.texts
        predictions, targets = self.model.predict(states, batch.queries), self.model.embed(texts)
        found = self.nats(predictions, batch.texts), predictions, targets[:count], targets[count:]
        if self.teacher is None:
            return found
        with torch.no_grad():
            predictor, y_encoder = self.teacher
            queries, tokens = self.model.tokenizers["predictor"].encode(batch.queries), self.model.text_ids(texts)
            targets = y_encoder(*(t.to(self.device) for t in tokens))
            return *found, predictor(states, *(t.to(self.device) for t in queries)), targets[:count], targets[count:]

    def nats(self, predictions: Tensor, texts: Sequence[str]) -> Tensor:
        """Cross-entropy (N,) of the texts' N tokens given predictions (B, E); (0,) without `decoder_weight`."""
        if not self.settings.decoder_weight:
            return predictions.new_zeros(0)
        return token_cross_entropy(self.model.y_decoder, self.model.tokenizers["y_decoder"], predictions, texts)

    def total_loss(self, ids: Tensor, negative_ids: Tensor, nats: Tensor, *embeddings: Tensor) -> Tensor:
        """Of what `encode` gives, with the texts' ids (B,) and those of the negatives (M,)."""

        def distance(predictions: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
            more = (negatives, negative_ids) if self.takes_negatives else ()
            found: Tensor = self.loss(predictions, targets, ids, *more)
            return found

        (predictions, targets, negatives), slow = embeddings[:3], embeddings[3:]
        if slow:
            forth = distance(predictions, *slow[1:])
            loss = 0.5 * (forth + distance(slow[0], targets, negatives))
        else:
            loss = distance(predictions, targets, negatives)
        if self.regulariser is not None:
            scale = predictions.shape[1] ** 0.5
            loss = loss + self.settings.regulariser_weight * self.regulariser(predictions * scale, targets * scale)
        if self.settings.decoder_weight:
            cross_entropy = nats.mean()
            self.log("cross_entropy", cross_entropy, batch_size=len(ids))
            loss = loss + self.settings.decoder_weight * cross_entropy
        return loss

    def balance(self, routings: list[Routing]) -> Tensor:
        """Weighted sum of the layers' load-balancing losses; logs their mean and the extreme loads."""
        losses = torch.stack([load_balancing_loss(r.probabilities, r.chosen, gather=True) for r in routings])
        loads = torch.stack([routing.load for routing in routings])
        self.log_dict({"balance": losses.mean(), "busiest_expert": loads.max(), "idlest_expert": loads.min()})
        return (losses * losses.new_tensor([routing.balance_weight for routing in routings])).sum()

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        self.skipped.update(batch.skipped)
        predictions = self.model.predict(self.model.encode(batch.frames), batch.queries)
        self.validate_latents(predictions, self.model.embed(batch.texts), text_ids(batch.texts).to(self.device))
        if self.settings.decoder_weight:
            nats = self.nats(predictions, batch.texts)
            self.log("val/cross_entropy", nats.mean(), batch_size=len(batch.texts), sync_dist=True)


def _in_chunks(batch: ClipBatch, size: int) -> list[ClipBatch]:
    """Batches of at most `size` samples; the negative texts are dealt out."""
    starts = range(0, len(batch.texts), size)
    return [
        ClipBatch(
            batch.frames[start : start + size],
            batch.queries[start : start + size],
            batch.texts[start : start + size],
            batch.negatives[number :: len(starts)],
        )
        for number, start in enumerate(starts)
    ]


class DecoderModule(Stage):
    """The Y-Decoder trained to say the text of an embedding; everything else stays as it is."""

    def __init__(self, model: VLJEPA | LLMJEPA, stage: StageConfig) -> None:
        super().__init__(stage)
        if model.y_decoder is None:
            raise InputError("the model must have a y_decoder to train, got none")
        self.decoder: Any = model.y_decoder
        self.tokenizer: Any = model.tokenizers["y_decoder"] if isinstance(model, VLJEPA) else model.tokenizer
        self.parts = {"decoder": [self.decoder]}

    def parameter_groups(self) -> list[ParameterGroup]:
        return [{"params": list(self.decoder.parameters())}]

    def cross_entropy(self, latents: Tensor, texts: list[str]) -> Tensor:
        """Mean next-token cross-entropy, in nats a token, end tokens included."""
        return token_cross_entropy(self.decoder, self.tokenizer, latents, texts).mean()

    def training_step(self, batch: tuple[Tensor, list[str]], index: int) -> Tensor:
        loss = self.cross_entropy(*batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: tuple[Tensor, list[str]], index: int) -> None:
        self.log("val/loss", self.cross_entropy(*batch), batch_size=len(batch[1]), sync_dist=True)
