"""Lightning modules of the two stages: the joint embedding, then the decoder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.config import StageConfig
from jepa.data.clips import ClipBatch
from jepa.errors import InputError
from jepa.metrics.latents import LatentGeometry, collapse_message
from jepa.models.llm_jepa import LLMJEPA
from jepa.models.vl_jepa import VLJEPA
from jepa.predictors.experts import Routing, load_balancing_loss, recorded_routing


class CollapseWarning(UserWarning):
    """The latents of different things have become the same."""


def text_ids(texts: Iterable[str]) -> Tensor:
    """(B,) integers, equal for equal texts."""
    return torch.from_numpy(np.unique(list(texts), return_inverse=True)[1])


def warn_of_collapse(geometry: Mapping[str, Tensor], step: int) -> None:
    """Warns if unpaired latents are as good as equal."""
    if message := collapse_message(geometry):
        warnings.warn(f"step {step}: {message}", CollapseWarning, stacklevel=3)


class Stage(L.LightningModule):
    """AdamW, with a linear warm-up and a cosine to zero over the stage's steps."""

    def __init__(self, stage: StageConfig) -> None:
        super().__init__()
        self.stage = stage

    def parameter_groups(self) -> list[dict[str, Any]]:
        raise NotImplementedError

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.parameter_groups(),
            lr=self.stage.learning_rate,
            weight_decay=self.stage.weight_decay,
            betas=(0.9, 0.98),
        )
        warmup, steps = self.stage.warmup_steps, self.stage.steps

        def scale(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup))

        return [optimizer], [{"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, scale), "interval": "step"}]


class JEPAModule(Stage):
    """X-Encoder, Predictor and Y-Encoder trained together by a latent loss (VL-JEPA section 3.2).

    `loss` is called with predictions (B, E), targets (B, E), the texts' ids (B,), and further negative texts (M, E)
    with their ids (M,). The Y-Encoder learns at `y_encoder_lr_multiplier` times the learning rate. Sparse experts add
    their load-balancing losses, each with its weight.
    """

    def __init__(self, model: VLJEPA, loss: nn.Module, stage: StageConfig, y_encoder_lr_multiplier: float) -> None:
        super().__init__(stage)
        self.model, self.loss = model, loss
        self.multiplier = y_encoder_lr_multiplier
        self.geometry = LatentGeometry()

    def parameter_groups(self) -> list[dict[str, Any]]:
        fast = [*self.model.x_encoder.parameters(), *self.model.predictor.parameters()]
        return [
            {"params": fast},
            {
                "params": list(self.model.y_encoder.parameters()),
                "lr": self.stage.learning_rate * self.multiplier,
            },
            {"params": list(self.loss.parameters()), "weight_decay": 0.0},
        ]

    def training_step(self, batch: ClipBatch, index: int) -> Tensor:
        with recorded_routing(self.model.predictor) as routings:
            predictions = self.model.predict(self.model.encode(batch.frames), batch.queries)
        texts = [*batch.texts, *batch.negatives]
        targets, ids = self.model.embed(texts), text_ids(texts).to(self.device)
        count = len(batch.texts)
        loss = self.loss(predictions, targets[:count], ids[:count], targets[count:], ids[count:])
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.texts))
        return loss + self.balance(routings) if routings else loss

    def balance(self, routings: list[Routing]) -> Tensor:
        """Weighted sum of the layers' load-balancing losses; logs their mean and the loads furthest from even."""
        losses = torch.stack([load_balancing_loss(r.probabilities, r.chosen, gather=True) for r in routings])
        loads = torch.stack([routing.load for routing in routings])
        self.log_dict({"balance": losses.mean(), "busiest_expert": loads.max(), "idlest_expert": loads.min()})
        return (losses * losses.new_tensor([routing.balance_weight for routing in routings])).sum()

    def validation_step(self, batch: ClipBatch, index: int) -> None:
        predictions = self.model.predict(self.model.encode(batch.frames), batch.queries)
        targets = self.model.embed(batch.texts)
        self.geometry.update(predictions, targets, self._known_ids(batch.texts).to(self.device))

    def on_validation_epoch_start(self) -> None:
        self._known: dict[str, int] = {}

    def _known_ids(self, texts: list[str]) -> Tensor:
        """Like `text_ids`, but the same over all batches of a validation."""
        return torch.tensor([self._known.setdefault(text, len(self._known)) for text in texts])

    def on_validation_epoch_end(self) -> None:
        geometry = self.geometry.compute()
        self.geometry.reset()
        self.log_dict({f"val/{name}": value for name, value in geometry.items()})
        self.log("R@1", geometry["retrieval@1"], prog_bar=True, logger=False)
        if not self.trainer.sanity_checking:
            warn_of_collapse(geometry, self.global_step)


class DecoderModule(Stage):
    """The Y-Decoder trained to say the text of an embedding; everything else stays as it is."""

    def __init__(self, model: VLJEPA | LLMJEPA, stage: StageConfig) -> None:
        super().__init__(stage)
        if model.y_decoder is None:
            raise InputError("the model must have a y_decoder to train, got none")
        self.decoder, self.tokenizer = model.y_decoder, model.tokenizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self.decoder.parameters())}]

    def cross_entropy(self, latents: Tensor, texts: list[str]) -> Tensor:
        """Mean next-token cross-entropy, in nats a token, end tokens included."""
        ids, mask = (t.to(self.device) for t in self.tokenizer.encode_closed(texts))
        logits = self.decoder(latents, ids)
        return F.cross_entropy(logits[mask], ids[mask])

    def training_step(self, batch: tuple[Tensor, list[str]], index: int) -> Tensor:
        loss = self.cross_entropy(*batch)
        self.log("loss", loss, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def validation_step(self, batch: tuple[Tensor, list[str]], index: int) -> None:
        self.log("val/loss", self.cross_entropy(*batch), batch_size=len(batch[1]))
