"""Learning curves from the CSV logs of trainings, several runs over each other."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from jepa.errors import InputError
from jepa.results import check_folder

_COLUMNS = 3


def draw(runs: Sequence[str], output: Path) -> Path:
    """Writes `curves.png`: a panel for each stage and logged value, a line for each run; prints the last values.

    `runs` are output folders of `jepa train`, also of a run that is under way.

    Raises:
        InputError: a run without a log, or none.
    """
    if not runs:
        raise InputError("curves must name at least one run, got none")
    read = {run: _read(Path(run)) for run in runs}
    panels = list(dict.fromkeys(panel for found in read.values() for panel in found))
    rows = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(4.5 * _COLUMNS, 3 * rows), layout="constrained")
    for number, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, _COLUMNS, number)
        axes.set_title(panel, fontsize=9)
        axes.grid(alpha=0.3)
        for run, found in read.items():
            if panel in found:
                axes.plot(*found[panel], label=run, marker="." if len(found[panel][0]) < 30 else None)
                print(f"{panel:36} {run:40} step {found[panel][0][-1]:6}  {found[panel][1][-1]:.4g}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside lower center", fontsize=9)
    path = check_folder(output) / "curves.png"
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    print(f"curves: {path}", flush=True)
    return path


def _read(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values by stage and name."""
    found: dict[str, tuple[list[int], list[float]]] = {}
    for log in sorted(run.glob("logs/*/metrics.csv"), key=lambda path: path.stat().st_mtime):
        with log.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name in row.keys() - {"epoch", "step"}:
                    if row[name]:
                        steps, values = found.setdefault(f"{log.parent.name}: {name}", ([], []))
                        steps.append(int(row["step"]))
                        values.append(float(row[name]))
    if not found:
        raise InputError(f"{run}: must have a log, {run}/logs/<stage>/metrics.csv, got none")
    return dict(sorted(found.items()))
