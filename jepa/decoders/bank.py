"""Y-Decoder without generation: the nearest caption of a bank. B latents, N captions, E embedding dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from jepa.errors import InputError, check_finite


class CaptionBank(nn.Module):
    """Answers a latent with the nearest of N captions by cosine, and knows when none is near enough.

    A latent is *known* where the cosine to its nearest caption is at least `margin`: −1 answers every latent, above 1
    none is answered. The gap to the second caption does not count. It is small where two captions say the same in
    other words, and the answer is safest there.

    Args:
        texts: the N captions, distinct.
        embeddings: (N, E) of unit norm, in the space of the latents, row i that of caption i.
        margin: the lowest cosine that the bank answers for, >= −1: see `jepa.models.bank.calibrate_margin`.

    Raises:
        InputError: an argument breaks its rule; norms may be off by 0.001.

    >>> bank = CaptionBank(["a dog", "a cat"], torch.eye(2), margin=0.5)
    >>> bank.lookup(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
    ['a dog', None]
    """

    embeddings: Tensor

    def __init__(self, texts: Sequence[str], embeddings: Tensor, *, margin: float = -1.0) -> None:
        super().__init__()
        if embeddings.ndim != 2 or 0 in embeddings.shape:
            raise InputError(f"embeddings must have the shape (N, E) with N, E >= 1, got {tuple(embeddings.shape)}")
        if len(texts) != len(embeddings):
            raise InputError(f"texts must be as many as embeddings, {len(embeddings)}, got {len(texts)}")
        if len(set(texts)) < len(texts):
            again = next(text for index, text in enumerate(texts) if text in texts[:index])
            raise InputError(f"texts must be distinct, got {again!r} twice")
        norms = torch.linalg.vector_norm(embeddings.double(), dim=1)
        if len(wrong := torch.nonzero(~((norms - 1).abs() <= 1e-3))):
            row = int(wrong[0])
            raise InputError(f"embeddings must have unit norm, got norm {norms[row]:.6g} in row {row}")
        if check_finite("margin", margin) < -1:
            raise InputError(f"margin must be >= -1, got {margin}")
        self.texts = tuple(texts)
        self.margin = margin
        self.register_buffer("embeddings", embeddings.detach().float(), persistent=False)

    @property
    def flops(self) -> int:
        """FLOPs of one look-up, 2·N·E."""
        return 2 * self.embeddings.numel()

    @torch.no_grad()
    def nearest(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Indices (B,) of the captions nearest to latents (B, E) of unit norm, the first of equals; and cosines (B,).

        Raises:
            InputError: the latents have another width than the bank.
        """
        width = self.embeddings.shape[1]
        if latents.ndim != 2 or latents.shape[1] != width:
            raise InputError(f"latents must have the shape (B, {width}), got {tuple(latents.shape)}")
        cosines, indices = (latents.to(self.embeddings) @ self.embeddings.T).max(dim=1)
        return indices, cosines

    def lookup(self, latents: Tensor) -> list[str | None]:
        """The caption of each latent (B, E), or None where the nearest is below the margin."""
        indices, cosines = self.nearest(latents)
        found = zip(indices.tolist(), (cosines >= self.margin).tolist(), strict=True)
        return [self.texts[index] if known else None for index, known in found]
