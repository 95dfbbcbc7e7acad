"""`jepa cost`: estimates what a workload costs to serve, and what several optimisations save together."""

from jepa.studies.cost.analysis import Comparison, analyse, run, shapley
from jepa.studies.cost.deployed import checkpoint_parts, read_hardware, read_model, read_parts
from jepa.studies.cost.estimate import (
    CostEstimate,
    CountedPart,
    DeployedModel,
    PerceptionPart,
    Scenario,
    serving_cost,
)
from jepa.studies.cost.optimisations import (
    Optimisation,
    another_chip,
    another_model,
    fewer_tokens,
    selective_decoding,
)
from jepa.studies.cost.report import report
from jepa.studies.cost.results import (
    CostResults,
    GridCell,
    OptimisationSaving,
    PartCost,
    PublishedTimes,
    Range,
    ScenarioCost,
    Source,
)
from jepa.studies.cost.waterfall import Fall

__all__ = [
    "Comparison",
    "CostEstimate",
    "CostResults",
    "CountedPart",
    "DeployedModel",
    "Fall",
    "GridCell",
    "Optimisation",
    "OptimisationSaving",
    "PartCost",
    "PerceptionPart",
    "PublishedTimes",
    "Range",
    "Scenario",
    "ScenarioCost",
    "Source",
    "analyse",
    "another_chip",
    "another_model",
    "checkpoint_parts",
    "fewer_tokens",
    "read_hardware",
    "read_model",
    "read_parts",
    "report",
    "run",
    "selective_decoding",
    "serving_cost",
    "shapley",
]
