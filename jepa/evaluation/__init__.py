"""A checkpoint and its data in, scores, latents and results out. The names below are imported when first used."""

from __future__ import annotations

from jepa.lazy import lazily

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

__getattr__ = lazily(__name__, _HOMES)
