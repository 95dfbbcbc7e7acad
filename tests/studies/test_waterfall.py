"""The waterfall of the cost study."""

from __future__ import annotations

import pytest

from jepa.report import figures
from jepa.report.figures import LIGHT
from jepa.studies.cost.waterfall import Fall, draw_waterfall


def test_a_waterfall_ends_where_its_ratios_say():
    falls = [
        Fall("baseline", "1", 1.0),
        Fall("first", "2×", 0.5, 1.0),
        Fall("second", "2.5×", 0.2, 0.5, measured=False),
        Fall("together", "5×", 0.2, low=0.1, high=0.25),
        Fall("naive", "6×", 1 / 6, faint=True),
    ]
    axes = figures.sized(480, 300).add_subplot()
    draw_waterfall(axes, falls, "cost", 0.4, LIGHT)
    assert len(axes.patches) == len(falls)
    for bar, fall in zip(axes.patches, falls, strict=True):
        assert bar.get_x() + (bar.get_width() if fall.start is None else 0) == pytest.approx(fall.end)
        assert bool(bar.get_hatch()) == (not fall.measured)
    assert axes.get_xscale() == "log"
    assert axes.get_xlim()[0] < 0.1
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first bar at the top
