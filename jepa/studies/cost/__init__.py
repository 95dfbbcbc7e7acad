"""`jepa cost`: estimates what a workload costs to serve, and what several optimisations save together."""

from jepa.studies.cost.analysis import AnotherChip, AnotherModel, FewerTokens, SelectiveDecoding, analyse, run
from jepa.studies.cost.deployed import read_parts

__all__ = ["AnotherChip", "AnotherModel", "FewerTokens", "SelectiveDecoding", "analyse", "read_parts", "run"]
