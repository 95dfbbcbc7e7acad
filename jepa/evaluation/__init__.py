"""A checkpoint and its data in, scores, latents and results out. The names below are imported when first used."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    **dict.fromkeys(("CachedDecoder", "Recorded", "Segments"), "segments"),
    **dict.fromkeys(("StreamSet", "encode_streams", "load_streams", "save_streams"), "streams"),
    **dict.fromkeys(("Family", "Swept", "sweep_families", "sweep_setting"), "sweep"),
    "Found": "zero_shot",
    "Task": "zero_shot",
    "Kind": "report",
    "Ranks": "ranks",
    "evaluate": "run",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
