"""Lightning modules of the two stages: the joint embedding, then the decoder."""

from __future__ import annotations

import inspect
import math
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from hashlib import blake2b
from itertools import chain
from typing import Any, TypedDict

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Required

from jepa.build import build
from jepa.config import JEPAStageConfig, StageConfig
from jepa.data.clips import ClipBatch
from jepa.errors import InputError
from jepa.losses.cached import cached_loss
from jepa.metrics.latents import LatentGeometry, collapse_message
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.roles import Part, TextTokenizer, YDecoder
from jepa.models.vl_jepa import VLJEPA
from jepa.predictors.experts import Routing, load_balancing_loss, recorded_routing
from jepa.training.callbacks import EMACallback, MeterCallback
from jepa.training.sharding import clip_gradients, shard


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


def check_finite(values: Tensor, step: int, rate: float) -> None:
    """Refuses to go on from what is no number any more; what was validated before is in the checkpoint."""
    if not bool(values.isfinite().all()):
        raise InputError(
            f"training must stay finite, got a NaN or an infinity when validated after step {step}; the learning rate, "
            f"{rate:g}, may be too high. The checkpoint holds what was validated before"
        )


def warn_of_collapse(geometry: Mapping[str, Tensor], step: int) -> None:
    """Warns if unpaired latents are as good as equal."""
    if message := collapse_message(geometry):
        warnings.warn(f"step {step}: {message}", CollapseWarning, stacklevel=3)


class ParameterGroup(TypedDict, total=False):
    """Parameters that share a learning rate and a weight decay: those of the stage unless they are given."""

    params: Required[list[nn.Parameter]]
    lr: float
    weight_decay: float


class Stage(L.LightningModule):
    """AdamW, with a linear warm-up, then a constant rate or a cosine to zero over the stage's steps.

    Under a strategy with a device mesh the parts are sharded, and their operations are not counted.
    """

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.stage = stage

    def parameter_groups(self) -> list[ParameterGroup]:
        raise NotImplementedError

    def average(self) -> EMACallback | None:
        """What updates the teacher, for a module that has one."""
        return None

    def metered(self) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
        """The modules of each part, and the losses, whose operations are counted in training; no part: nothing is."""
        return {}, []

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            for part in chain.from_iterable(self.metered()[0].values()):
                shard(part, self.device_mesh["data_parallel"])

    def configure_callbacks(self) -> list[L.Callback]:
        updated = sum(p.numel() * p.element_size() for group in self.parameter_groups() for p in group["params"])
        average, meter = self.average(), MeterCallback(*self.metered(), updated)
        return [meter] if average is None else [average, meter]  # the meter's clock stops last

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


class JEPAModule(Stage):
    """X-Encoder, Predictor and Y-Encoder trained together by a latent loss (VL-JEPA section 3.2).

    The loss d is called with predictions (B, E), targets (B, E) and the texts' ids (B,), and with further negative
    texts (M, E) and their ids (M,) if it takes some. Frozen parameters stay as they are, and with target
    "stop_gradient" all of the Y-Encoder's; it learns at `y_encoder_lr_multiplier` times the learning rate (None: once).
    With target "ema" each side is compared with a slow copy of the other, d(Ŝ, S_slow) / 2 + d(Ŝ_slow, S) / 2: the
    targets alone would leave the Y-Encoder without gradient. Copies are made of Predictor and Y-Encoder, not of the
    X-Encoder.

    A regulariser gets both embeddings times √E, so that unit vectors in all directions have variance 1 in each
    dimension. Sparse experts add their load-balancing losses, each with its weight.

    With `decoder_weight` the cross-entropy of the texts' tokens (mean, in nats a token) is added, times that: a frozen
    Y-Decoder reads the predictions, and the gradient goes through it (SONAR-LLM, arXiv 2508.05305).

    Raises:
        InputError: the regulariser and its weight are not given together.
    """

    def __init__(self, model: VLJEPA, stage: JEPAStageConfig) -> None:
        super().__init__(stage)
        if (stage.regulariser is None) != (stage.regulariser_weight == 0):
            raise InputError(
                "jepa.regulariser and jepa.regulariser_weight must be given together, "
                f"got {stage.regulariser} and {stage.regulariser_weight}"
            )
        self.model, self.settings = model, stage
        self.loss: Any = build(stage.loss)
        self.regulariser: Any = None if stage.regulariser is None else build(stage.regulariser)
        self.takes_negatives = "negatives" in inspect.signature(self.loss.forward).parameters
        self.teacher: Any = deepcopy(self.pair()).requires_grad_(False) if stage.target == "ema" else None
        if stage.target == "stop_gradient":
            model.y_encoder.requires_grad_(False)
        self.geometry = LatentGeometry(sync_on_compute=False)  # every process validates on all
        self.skipped: Counter[str] = Counter()  # what was wrong with media of this process that were left out

    def pair(self) -> nn.ModuleList:
        """Predictor and Y-Encoder."""
        return nn.ModuleList([self.model.predictor, self.model.y_encoder])  # type: ignore[list-item]

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
        chunks = _in_chunks(
            batch if self.takes_negatives else batch._replace(negatives=[]), self.settings.chunk or len(batch.texts)
        )
        ids = text_ids(text for chunk in chunks for text in chunk.texts).to(self.device)
        negative_ids = text_ids(text for chunk in chunks for text in chunk.negatives).to(self.device)
        through_decoder = self.settings.decoder_weight > 0
        encode = self.nats_and_embeddings if through_decoder else self.embeddings
        loss = partial(self.joint_loss if through_decoder else self.latent_loss, ids, negative_ids)
        predictor: Any = self.model.predictor
        with recorded_routing(predictor) as routings:
            value = loss(*encode(batch)) if len(chunks) == 1 else cached_loss(encode, chunks, loss)
        self.log("loss", value, prog_bar=True, batch_size=len(batch.texts))
        self.skipped.update(batch.skipped)
        if self.skipped:
            self.log("skipped", float(self.skipped.total()), prog_bar=True, batch_size=len(batch.texts))
        return value + self.balance(routings) if routings else value

    def embeddings(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """Predictions (B, E), targets (B, E), negative texts (M, E); then these by the slow copies, if there are."""
        count = len(batch.texts)
        states = self.model.encode(batch.frames)
        texts = [*batch.texts, *batch.negatives] if self.takes_negatives else batch.texts
        predictions, targets = self.model.predict(states, batch.queries), self.model.embed(texts)
        found = predictions, targets[:count], targets[count:]
        if self.teacher is None:
            return found
        with torch.no_grad():
            tokenizers, (predictor, y_encoder) = self.model.tokenizers, self.teacher
            queries, tokens = tokenizers["predictor"].encode(batch.queries), tokenizers["y_encoder"].encode(texts)
            targets = y_encoder(*(t.to(self.device) for t in tokens))
            return *found, predictor(states, *(t.to(self.device) for t in queries)), targets[:count], targets[count:]

    def nats(self, predictions: Tensor, texts: Sequence[str]) -> Tensor:
        """Cross-entropy (N,) of the texts' N tokens, as the decoder reads predictions (B, E)."""
        return token_cross_entropy(self.model.y_decoder, self.model.tokenizers["y_decoder"], predictions, texts)

    def nats_and_embeddings(self, batch: ClipBatch) -> tuple[Tensor, ...]:
        """What `nats` gives, then what `embeddings` gives."""
        found = self.embeddings(batch)
        return self.nats(found[0], batch.texts), *found

    def joint_loss(self, ids: Tensor, negative_ids: Tensor, nats: Tensor, *embeddings: Tensor) -> Tensor:
        """`latent_loss` of the embeddings, and the weighted mean of the tokens' cross-entropy (N,)."""
        cross_entropy = nats.mean()
        self.log("cross_entropy", cross_entropy, batch_size=len(ids))
        return self.latent_loss(ids, negative_ids, *embeddings) + self.settings.decoder_weight * cross_entropy

    def latent_loss(
        self, ids: Tensor, negative_ids: Tensor, predictions: Tensor, targets: Tensor, negatives: Tensor, *slow: Tensor
    ) -> Tensor:
        """Of embeddings as `embeddings` gives them, with ids (B,) and negative ids (M,)."""

        def distance(predictions: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
            more = (negatives, negative_ids) if self.takes_negatives else ()
            found: Tensor = self.loss(predictions, targets, ids, *more)
            return found

        if slow:
            slow_predictions, slow_targets, slow_negatives = slow
            forth = distance(predictions, slow_targets, slow_negatives)
            loss = 0.5 * (forth + distance(slow_predictions, targets, negatives))
        else:
            loss = distance(predictions, targets, negatives)
        if self.regulariser is not None:
            scale = predictions.shape[1] ** 0.5
            loss = loss + self.settings.regulariser_weight * self.regulariser(predictions * scale, targets * scale)
        return loss

    def average(self) -> EMACallback | None:
        return None if self.teacher is None else EMACallback(self.teacher, self.pair(), self.settings.ema_decay)

    def metered(self) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
        parts: dict[str, Any] = {
            "encoder": [self.model.x_encoder],
            "predictor": [self.model.predictor],
            "y_encoder": [self.model.y_encoder],
        }
        if self.teacher is not None:
            parts["predictor"].append(self.teacher[0])
            parts["y_encoder"].append(self.teacher[1])
        if self.settings.decoder_weight:
            parts["decoder"] = [self.model.y_decoder]
        return parts, [loss for loss in (self.loss, self.regulariser) if loss is not None]

    def balance(self, routings: list[Routing]) -> Tensor:
        """Weighted sum of the layers' load-balancing losses; logs their mean and the loads furthest from even."""
        losses = torch.stack([load_balancing_loss(r.probabilities, r.chosen, gather=True) for r in routings])
        loads = torch.stack([routing.load for routing in routings])
        self.log_dict({"balance": losses.mean(), "busiest_expert": loads.max(), "idlest_expert": loads.min()})
        return (losses * losses.new_tensor([routing.balance_weight for routing in routings])).sum()

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        self.skipped.update(batch.skipped)
        predictions = self.model.predict(self.model.encode(batch.frames), batch.queries)
        targets = self.model.embed(batch.texts)
        check_finite(predictions, self.global_step, self.stage.learning_rate)
        self.geometry.update(predictions, targets, text_ids(batch.texts).to(self.device))
        if self.settings.decoder_weight:
            nats = self.nats(predictions, batch.texts)
            self.log("val/cross_entropy", nats.mean(), batch_size=len(batch.texts), sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        geometry = self.geometry.compute()
        self.geometry.reset()
        self.log_dict({f"val/{name}": value for name, value in geometry.items()}, sync_dist=True)
        self.log("R@1", geometry["retrieval@1"], prog_bar=True, logger=False, sync_dist=True)
        if not self.trainer.sanity_checking:
            warn_of_collapse(geometry, self.global_step)


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

    def parameter_groups(self) -> list[ParameterGroup]:
        return [{"params": list(self.decoder.parameters())}]

    def metered(self) -> tuple[dict[str, list[nn.Module]], list[nn.Module]]:
        decoder: Any = self.decoder
        return {"decoder": [decoder]}, []

    def cross_entropy(self, latents: Tensor, texts: list[str]) -> Tensor:
        """Mean next-token cross-entropy, in nats a token, end tokens included."""
        return token_cross_entropy(self.decoder, self.tokenizer, latents, texts).mean()

    def training_step(self, batch: tuple[Tensor, list[str]], index: int) -> Tensor:
        loss = self.cross_entropy(*batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: tuple[Tensor, list[str]], index: int) -> None:
        self.log("val/loss", self.cross_entropy(*batch), batch_size=len(batch[1]), sync_dist=True)
