"""A checkpoint and its data in, scores, latents and results out. The names below are imported when first used."""

from __future__ import annotations

from jepa.lazy import lazily

_NAMES = {
    "streams": "EncodedStream Said Segments encode_stream load_streams save_streams",
    "sweep": "Swept check_sweep stream_results sweep_setting",
    "tasks": "Found Task",
    "generation": "Generated drafter_of generate with_drafts",
    "run": "compared evaluate results_of",
}
_HOMES = {name: home for home, names in _NAMES.items() for name in names.split()}
__all__ = list(_HOMES)

__getattr__ = lazily(__name__, _HOMES)
