"""Shared fixtures: a tiny VL-JEPA in the real architecture, and its plain configuration."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepa import checkpoint
from jepa.data.tokenizer import Tokenizer
from jepa.data.world import corpus
from jepa.models.vl_jepa import VLJEPA


def tiny_config() -> dict[str, Any]:
    """The `world` and `model` of a checkpoint's configuration, 32 wide and one block deep."""
    size = {"width": 32, "depth": 1, "heads": 2}
    return {
        "name": "tiny",
        "seed": 0,
        "world": {"_target_": "jepa.data.world.World", "size": 48, "fps": 8},
        "model": {
            "_target_": "jepa.models.vl_jepa.VLJEPA",
            "frames": 8,
            "fps": 8,
            "x_encoder": {
                "_target_": "jepa.encoders.vision.FrameViT",
                "name": "vit_tiny_patch16_224",
                "size": 48,
                "tubelet": 4,
                "patch_size": 12,
                "embed_dim": 32,
                "depth": 1,
                "num_heads": 2,
            },
            "predictor": {
                "_target_": "jepa.predictors.transformer.QueryPredictor",
                "vocab_size": 512,
                "state_dim": 32,
                "embedding_dim": 16,
                **size,
            },
            "y_encoder": {
                "_target_": "jepa.encoders.text.TextTransformer",
                "vocab_size": 512,
                "embedding_dim": 16,
                **size,
            },
            "y_decoder": {
                "_target_": "jepa.decoders.prefix.PrefixDecoder",
                "vocab_size": 512,
                "embedding_dim": 16,
                **size,
            },
        },
    }


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(corpus(), 512)


@pytest.fixture(scope="session")
def tiny_model(tokenizer: Tokenizer) -> VLJEPA:
    """Random weights from a fixed seed, in evaluation mode. Do not change it: copy it."""
    torch.manual_seed(0)
    return checkpoint.build_model(tiny_config(), tokenizer).eval()
