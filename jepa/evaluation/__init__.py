"""A checkpoint and its data in, scores, latents and results out. The names below are imported when first used."""

from __future__ import annotations

from jepa.lazy import lazily

_HOMES = {
    **dict.fromkeys(("CachedDecoder", "Recorded", "Segments"), "segments"),
    **dict.fromkeys(("EncodedStream", "encode_stream", "load_streams", "save_streams"), "streams"),
    **dict.fromkeys(("Swept", "check_sweep", "sweep_setting"), "sweep"),
    "Found": "zero_shot",
    "Task": "zero_shot",
    **dict.fromkeys(("compared", "results_of", "stream_results"), "report"),
    "Ranks": "ranks",
    **dict.fromkeys(("Described", "Evaluated"), "provenance"),
    "evaluate": "run",
}
__all__ = list(_HOMES)

__getattr__ = lazily(__name__, _HOMES)
