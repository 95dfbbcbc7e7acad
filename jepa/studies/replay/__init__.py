"""`jepa replay`: decoding policies on the timeline of a real data set, with simulated embeddings."""

from jepa.studies.replay.simulation import run

__all__ = ["run"]
