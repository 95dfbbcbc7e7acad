"""`jepa replay`: decoding policies on the timeline of a real data set, with simulated embeddings."""

from jepa.studies.replay.report import report
from jepa.studies.replay.results import (
    Level,
    ReplayedPart,
    ReplayedTimeline,
    ReplayResults,
    counted_levels,
    savings_end,
)
from jepa.studies.replay.simulation import last_in_force, run, simulate_latents, simulate_streams, text_in_force

__all__ = [
    "Level",
    "ReplayResults",
    "ReplayedPart",
    "ReplayedTimeline",
    "counted_levels",
    "last_in_force",
    "report",
    "run",
    "savings_end",
    "simulate_latents",
    "simulate_streams",
    "text_in_force",
]
