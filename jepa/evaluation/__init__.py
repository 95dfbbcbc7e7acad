"""A checkpoint and its data in, scores, latents and results out. The names below are imported when first used."""

from __future__ import annotations

from jepa.lazy import lazily

_HOMES = {
    **dict.fromkeys(
        (
            "CachedDecoder",
            "EncodedStream",
            "EveryStep",
            "Recorded",
            "Segments",
            "encode_stream",
            "load_streams",
            "save_streams",
        ),
        "streams",
    ),
    **dict.fromkeys(("Swept", "check_sweep", "stream_results", "sweep_setting"), "sweep"),
    **dict.fromkeys(("Found", "Task"), "tasks"),
    **dict.fromkeys(("Generated", "drafter_of", "generate", "with_drafts"), "generation"),
    **dict.fromkeys(("compared", "evaluate", "results_of"), "run"),
    "Ranks": "processes",
}
__all__ = list(_HOMES)

__getattr__ = lazily(__name__, _HOMES)
