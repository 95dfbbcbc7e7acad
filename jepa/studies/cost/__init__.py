"""`jepa cost`: estimates what a workload costs to serve, and what several optimisations save together."""

from jepa.lazy import lazily

_NAMES = {
    "analysis": ("Comparison", "analyse", "run", "shapley"),
    "deployed": ("checkpoint_parts", "read_hardware", "read_model", "read_parts"),
    "estimate": ("CostEstimate", "CountedPart", "DeployedModel", "PerceptionPart", "Scenario", "serving_cost"),
    "optimisations": ("Optimisation", "another_chip", "another_model", "fewer_tokens", "selective_decoding"),
    "report": ("report",),
    "waterfall": ("Fall",),
    "results": (
        *("CostResults", "GridCell", "OptimisationSaving", "PartCost"),
        *("PublishedTimes", "Range", "ScenarioCost", "Source"),
    ),
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names}
__all__ = sorted(_HOMES)
__getattr__ = lazily(__name__, _HOMES)
