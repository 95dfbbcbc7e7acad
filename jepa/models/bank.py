"""A caption bank as a decoder of streams, with an autoregressive decoder behind it. N latents, E dimensions."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from jepa.decoders.bank import CaptionBank
from jepa.errors import InputError
from jepa.selective import Decoded, Decoder


class BankDecoder:
    """Decodes by looking up, and generates only what the bank does not know.

    An answer of the bank takes no token and no forward pass; its look-up costs `bank.flops` and reads the whole bank.
    A latent below the bank's margin goes to `fallback`, and what that counts comes on top of the look-up.

    Args:
        bank: the captions.
        fallback: decodes the latents that the bank does not know. Without one the margin must be −1.

    Raises:
        InputError: the bank has a margin above −1 and there is no fallback.
    """

    def __init__(self, bank: CaptionBank, fallback: Decoder | None = None) -> None:
        if fallback is None and bank.margin > -1:
            raise InputError(f"a bank without a fallback must have the margin -1, got {bank.margin}")
        self.bank = bank
        self.fallback = fallback

    def decode(self, latents: Tensor) -> list[Decoded]:
        """Decode latents (N, E), float32 of unit norm; N results in their order."""
        texts = self.bank.lookup(latents)
        unknown = [index for index, text in enumerate(texts) if text is None]
        generated = iter(self.fallback.decode(latents[torch.tensor(unknown)]) if self.fallback and unknown else ())
        results = []
        for text in texts:
            decoded = next(generated) if text is None else Decoded(text, tokens=0, forward_passes=0, source="bank")
            cost = {"flops": self.bank.flops, "weight_bytes": self.bank.embeddings.nbytes}
            results.append(replace(decoded, **{name: getattr(decoded, name) + more for name, more in cost.items()}))
        return results
