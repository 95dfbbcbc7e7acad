"""Runs side by side: one report from two or more documents of streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime, timezone

from jepa.report import checkpoint
from jepa.report import format as fmt
from jepa.report.blocks import MEASURED, Heading, Report
from jepa.report.notes import note
from jepa.report.streams import VOID, setting_facts
from jepa.report.tables import NONE, Cells, Table, side_by_side
from jepa.results import Setting, StreamResults, analysis, leaves

Runs = Mapping[str, StreamResults]  # a path, or any other distinct name -> a document


def report(runs: Runs) -> Report:
    """The blocks of two or more documents; runs are called by their paths, without the file's name."""
    runs = {path.removesuffix("/results.json"): results for path, results in runs.items()}
    return Report(
        title=f"Runs side by side: {', '.join(runs)}",
        kicker=f"{datetime.now(timezone.utc).isoformat(timespec='seconds')} · {len(runs)} runs",
        summary=[_table(runs, _main_cells)],
        blocks=[Heading("Quality and savings", evidence=(MEASURED,)), note("compare", "lede"), runs_table(runs)],
        footer=f"The figures of this page are those of {', '.join(runs)}.",
    )


# --- The cells of a run, in its column.

_PROVENANCE, _CONFIGURATION = "Provenance, where it differs", "Configuration, where it differs"


def _table(runs: Runs, cells: Callable[[StreamResults], Cells]) -> Table:
    columns = [(name, cells(results)) for name, results in runs.items()]
    return side_by_side("Runs side by side", columns, words=True, differing=(_PROVENANCE, _CONFIGURATION))


def runs_table(runs: Runs) -> Table:
    """Savings, scores, parameters and training; of provenance and configuration only what differs."""

    def cells(results: StreamResults) -> Cells:
        training = results.training
        counts = {role.role: role.total for role in results.parameters}
        counts |= {"all roles": sum(counts.values()), "trained": sum(role.trainable for role in results.parameters)}
        last = training.curve[-1] if training.curve else {}
        facts = {f"streams, {name}": setting_facts(setting) for name, setting in results.settings.items()}
        return {
            **{name: _setting(setting) for name, setting in results.settings.items()},
            **_scores(results),
            "Parameters": {name: f"{count:,}" for name, count in counts.items()},
            "Training": {
                "steps": f"{training.steps:,}",
                "samples": f"{training.samples:,}",
                "seconds": fmt.seconds(training.seconds),
                **{f"{k}, last": f"{v:.4g}" for k, v in last.items() if k != "step" and v is not None},
            },
            _PROVENANCE: {**checkpoint.origin(results), **results.libraries, **facts},
            _CONFIGURATION: {key: json.dumps(value, ensure_ascii=False) for key, value in leaves(results.config)},
        }

    return _table(runs, cells)


def _main_cells(results: StreamResults) -> Cells:
    """For a terminal."""
    kept = ("saving, decoder calls", "by", "difference", "saving, FLOPs end to end", "compute, by")
    found = {name: _setting(setting) for name, setting in results.settings.items()}
    main = {name: {row: cells[row] for row in kept if row in cells} for name, cells in found.items()}
    return main | {"Scores": _scores(results)["Retrieval of the caption"]}


def _setting(setting: Setting) -> Mapping[str, str]:
    first, best = analysis.headline_savings(setting)[0], analysis.best_causal(setting)
    cells = {
        "reference": analysis.wanted_name(setting, first),
        "reference, CIDEr-D": fmt.quality(first.reference_quality),
        "saving, decoder calls": "not reached",
    }
    if best is not None and best.value is not None:
        cells |= {
            "saving, decoder calls": _marked(setting, fmt.saving(best.ratio), best.reached),
            "by": analysis.point_name(setting, best.policy, best.value),
            "CIDEr-D": fmt.quality(best.quality),
            "difference": fmt.difference(best.quality_difference),
            "temporal F1, difference": fmt.difference(best.temporal_f1_difference),
            "decodes/s": fmt.fixed(best.decodes_per_second, 3),
        }
    lean = analysis.leanest(setting, kept=True) or analysis.leanest(setting)
    if lean is not None:
        saved = fmt.factor(analysis.operations_ratio(setting, lean).flops)
        cells |= {
            "saving, FLOPs end to end": _marked(setting, saved, analysis.qualified(setting, lean)),
            "compute, by": analysis.point_name(setting, lean.policy, lean.value),
            "compute, CIDEr-D": fmt.quality(analysis.point(setting, lean).cider_d.value),
        }
    return cells | {"events/s": f"{setting.events_per_second:.3g}"}


def _marked(setting: Setting, saving: str, reached: bool) -> str:
    """The saving, in brackets after its flaw: not reached, or no contrast in quality."""
    if not reached:
        return f"not reached ({saving})"
    return f"{VOID} ({saving})" if analysis.without_contrast(setting) else saving


def _scores(results: StreamResults) -> Cells:
    """Each score, and what a right answer costs where it was counted."""
    scores = checkpoint.scores_table(results.scores)
    found: dict[str, dict[str, str]] = {}
    for title, rows in scores.groups:
        cells = found.setdefault(title, {})
        for name, value, *_, cost in rows:
            cells |= {name: value} | ({} if cost == NONE else {f"{name}: {scores.header[-1]}": cost})
    return found
