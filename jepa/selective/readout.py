"""A linear read-out of X-Encoder states: what a policy watches where the Predictor runs on demand."""

from __future__ import annotations

import numpy as np

from jepa.errors import InputError

_RIDGE = 0.1  # of the variance of a standardised feature; from 0.01 to 0.1 the segments hardly change


class Readout:
    """Predicted embeddings as far as a linear map of summarised states tells them, for 2·D·E FLOPs a step.

    States change with what is seen, predicted embeddings with what is said of it. The map, ridge regression on the
    states of a few streams of which every step was predicted, has a `Gate` cut where the embeddings would have it cut.

    `fit` takes summaries (T, D) of the states (`jepa.models.vl_jepa.summary`) and the embeddings (T, E) predicted from
    them; a read-out makes summaries (T, D) into (T, E) float32 of unit norm.

    Raises:
        InputError: no steps, not as many embeddings, or summaries of another width.

    >>> states = np.random.default_rng(0).normal(size=(200, 6)).astype(np.float32)
    >>> readout = Readout.fit(states, states[:, :2] / np.linalg.norm(states[:, :2], axis=1, keepdims=True))
    >>> readout(states[:3]).shape, readout.flops
    ((3, 2), 30)
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.weight, self.bias = weight, bias  # (D, E) and (E,) float64

    @classmethod
    def fit(cls, states: np.ndarray, latents: np.ndarray) -> Readout:
        if states.ndim != 2 or latents.ndim != 2 or len(states) != len(latents) or not len(states):
            got = f"{states.shape}, {latents.shape}"
            raise InputError(f"states and latents must be (T, D) and (T, E) with T >= 1, got shapes {got}")
        mean, offset = states.mean(axis=0, dtype=np.float64), latents.mean(axis=0, dtype=np.float64)
        scale = states.std(axis=0, dtype=np.float64)
        scale = np.where(scale > 0, scale, 1.0)
        features = (states - mean) / scale
        gram = features.T @ features + _RIDGE * len(features) * np.eye(features.shape[1])
        weight = np.linalg.solve(gram, features.T @ (latents - offset)) / scale[:, None]
        return cls(weight, offset - mean @ weight)

    @property
    def flops(self) -> int:
        """Of a step."""
        width, wide = self.weight.shape
        return 2 * width * wide + 3 * wide

    def __call__(self, states: np.ndarray) -> np.ndarray:
        if states.ndim != 2 or states.shape[1] != len(self.weight):
            raise InputError(f"states must be (T, {len(self.weight)}), got shape {states.shape}")
        read = states @ self.weight + self.bias
        return np.asarray(read / np.maximum(np.linalg.norm(read, axis=1, keepdims=True), 1e-12), dtype=np.float32)
