"""What an LLM-JEPA is trained by: next tokens and a latent term (arXiv 2509.14252, eq. 2). No Lightning is needed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jepa.build import build
from jepa.config import ObjectiveConfig
from jepa.data.batches import PairBatch, PairBatches
from jepa.data.chat import ChatIds
from jepa.data.packing import Layout
from jepa.errors import InputError
from jepa.losses.gather import GlobalBatch
from jepa.losses.transition import next_latent_loss
from jepa.losses.tube import semantic_tube
from jepa.models.llm_jepa import LLMJEPA
from jepa.training.configs import LanguageStageConfig


class Objective(nn.Module):
    """γ·CE + λ·d(prediction, target) + a regulariser + next-latent prediction, of one pass (LLM-JEPA eq. 2).

    On several ranks the mean over ranks of the losses, and of their gradients, is that of the global batch. With loss
    dropout α the latent term is there on a fraction 1 − α of the batches, with the weight λ / (1 − α): its mean weight
    stays λ. Not rescaled, the weight there is λ. The losses are computed in float32, whatever the model's precision.

    Raises:
        InputError: keys that do not go together.

    >>> cosine = {"_target_": "jepa.losses.distance.Cosine"}
    >>> Objective(ObjectiveConfig(loss=cosine, weight=0.0)).has_latent_term
    False
    """

    def __init__(self, config: ObjectiveConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        self.tube = semantic_tube if config.latent == "tube" else None
        self.loss = build(config.loss)
        self.regulariser = build(config.regulariser) if config.regulariser is not None else None
        if not self.has_latent_term or self.tube is not None:
            self.loss.requires_grad_(False)  # nothing trains it

    @property
    def has_latent_term(self) -> bool:
        return self.config.weight > 0

    @property
    def sometimes_untrained(self) -> bool:
        """Whether a batch may leave parameters of the loss without gradient."""
        return self.config.loss_dropout > 0 and any(parameter.requires_grad for parameter in self.parameters())

    def batches(
        self,
        pairs: Sequence[ChatIds],
        model: LLMJEPA,
        stage: LanguageStageConfig,
        seed: int,
        steps: int,
        ranks: int = 1,
    ) -> PairBatches:
        """Training batches that hold what this objective needs: for each step, one a rank."""
        config = self.config
        return PairBatches(
            pairs,
            self.layout(model, stage),
            seed,
            stage.batch_size,
            steps * ranks,
            latent=self.has_latent_term,
            loss_dropout=config.loss_dropout,
            shuffled=config.pairs == "shuffled",
            tube=self.tube is not None,
            apart=config.target == "ema",
            ranks=ranks,
        )

    def layout(self, model: LLMJEPA, stage: LanguageStageConfig) -> Layout:
        config = self.config
        if model.predictor.placement == "turn" and self.has_latent_term and config.view == "shared":
            raise InputError("objective.view must be alone with model.predictor.placement turn, got shared")
        return model.layout(
            row_tokens=stage.row_tokens,
            direction=config.direction,
            view=config.view,
            rows=config.rows,
            train_on=config.train_on,
        )

    def forward(self, model: LLMJEPA, teacher: LLMJEPA | None, batch: PairBatch) -> dict[str, Tensor]:
        """`loss` and its parts; a part that the batch does not hold is left out."""
        config, rows = self.config, batch.rows
        out = model(rows)
        share = GlobalBatch.around(out.labels, gather=True).weight
        parts = {"next_token": F.cross_entropy(out.logits, out.labels) * share}
        if self.tube is not None and out.tube is not None:
            parts["latent"] = self.tube(out.tube.float())
        elif out.predictions is not None:
            targets = out.targets
            if batch.targets is not None and teacher is not None:
                with torch.no_grad():
                    targets = teacher(batch.targets).targets
            if targets is None:
                raise ValueError("a batch with predictions must have targets")
            if config.target != "gradient":
                targets = targets.detach()
            predictions, targets = out.predictions.float(), targets.float()
            unit_norm = getattr(self.loss, "unit_norm", True)
            pair = (F.normalize(x, dim=-1) if unit_norm else x for x in (predictions, targets))
            with torch.autocast(predictions.device.type, enabled=False):
                parts["latent"] = self.loss(*pair, rows.target_ids)
                if self.regulariser is not None:
                    parts["regulariser"] = self.regulariser(predictions, targets)
        loss = config.next_token_weight * parts["next_token"]
        if config.transition_weight > 0:
            parts |= (found := next_latent_terms(model, out.states, rows.labels))
            loss = loss + config.transition_weight * sum(found.values())
        kept = 1 - config.loss_dropout if config.rescale_dropout else 1.0
        for name, weight in (("latent", config.weight), ("regulariser", config.regulariser_weight)):
            if name in parts:
                loss = loss + weight / kept * parts[name]
        return {"loss": loss, **parts}


def next_latent_terms(model: LLMJEPA, states: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """`smooth_l1` and `kl` of next-latent prediction by the model's transition, in float32."""
    transition, language = model.transition, model.language
    assert transition is not None
    with torch.autocast(states.device.type, enabled=False):
        embed = language.lm.get_input_embeddings()
        pair = next_latent_loss(transition, states.float(), labels, embed, language.logits, transition.horizon)
    return dict(zip(("smooth_l1", "kl"), pair, strict=True))


def _check(config: ObjectiveConfig) -> None:
    """Refuses keys that would be without effect or meaning."""
    weight = config.regulariser_weight
    if (config.regulariser is None) != (weight == 0):
        raise InputError(f"objective.regulariser and regulariser_weight must be given together, got weight {weight}")
    if config.regulariser is not None and config.weight == 0:
        raise InputError("objective.regulariser must have objective.weight > 0 beside it, got 0")
    if config.latent == "tube":
        alone = {"target": "gradient", "pairs": "paired", "direction": "forward", "regulariser": None}
        for key, value in alone.items():
            if getattr(config, key) != value:
                raise InputError(f"objective.{key} must be {value} with latent=tube, got {getattr(config, key)}")
