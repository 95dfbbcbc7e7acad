"""Figures by what they draw where: names, bars, dots, colours."""

from __future__ import annotations

import re

import pytest

from jepa.report import figures
from jepa.report.blocks import Figure
from jepa.report.figures import DARK, LIGHT, Dots, Line

PHRASES = ["a red circle grows", "the camera wobbles slowly to the left and then stops", "x" * 80, "", "a"]


def luminance(colour: str) -> float:
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_colours_stand_out_from_the_ground(colours):
    """WCAG: 4.5 for text, 3 for lines and marks."""

    def contrast(name: str) -> float:
        high, low = sorted((luminance(colours[name]), luminance(colours["surface"])), reverse=True)
        return (high + 0.05) / (low + 0.05)

    assert min(contrast("ink"), contrast("muted")) >= 4.5
    assert min(contrast(name) for name in colours if name.startswith("series")) >= 2.9


@pytest.mark.parametrize("width", [5, 20, 45, 80, 140, 400])
@pytest.mark.parametrize("text", PHRASES)
def test_fitted_text_is_the_beginning_of_the_text(text, width):
    lines = figures.fit(text, width, lines=2)
    assert len(lines) <= 2
    letters = "".join(lines).replace(" ", "")
    assert text.replace(" ", "").startswith(letters.removesuffix("…"))
    assert all(len(line) * 5 <= max(width, 5) for line in lines)
    assert figures.fit(text, 10_000, lines=1) == ([text] if text else [])


def test_an_svg_follows_the_theme_of_its_page():
    def draw(colours):
        figure = figures.sized(300, 200)
        axes = figure.add_subplot()
        figures.draw_line(axes, Line("a < b", [1, 2], [1, 2], 4, [0, 1], [2, 3]), colours)
        figures.frame(axes, colours, "y")
        return figure

    made = figures.svg(Figure("one", 'A "title"', draw))
    assert "#0102" not in made
    assert set(re.findall(r"var\(--([\w-]+)\)", made)) == {"series-4", "grid", "muted"}
    assert "<title>a &lt; b</title>" in made
    assert 'aria-label="A &quot;title&quot;"' in made
    assert 'viewBox="0 0 225 150"' in made
    assert all(found.startswith("one-") for found in re.findall(r'(?<![\w-])id="([^"]*)"', made))


def test_names_of_curves_stand_in_the_order_of_their_ends():
    axes = figures.sized(470, 370).add_subplot()
    lines = [Line(f"curve {i}", [1], [end], i) for i, end in enumerate([0.5, 0.0, 1.0])]
    figures.name_lines(axes, [*lines, Line("grey", [1], [0.2]), Line("decodes nothing", [], [], 4)], LIGHT)
    names = [text.get_text() for text in axes.get_legend().get_texts()]
    assert names == ["curve 2", "curve 0", "curve 1"]


def test_dots_show_every_value_with_mean_and_interval():
    axes = figures.sized(300, 200).add_subplot()
    rows = [Dots(4, [("a, seed 0", 0.4), ("a, seed 1", 0.6)], 0.5, 0.3, 0.7), Dots(5, [], None)]
    figures.draw_dots(axes, "accuracy", rows, LIGHT)
    dots = {line.get_gid(): line.get_xdata()[0] for line in axes.lines if line.get_gid()}
    assert dots == {"tip:a, seed 0: 0.400": 0.4, "tip:a, seed 1: 0.600": 0.6}
    drawn = [tuple(line.get_xdata()) for line in axes.lines if not line.get_gid()]
    assert drawn == [(0.3, 0.7), (0.5, 0.5)]
    assert [text.get_text() for text in axes.texts] == ["0.500"]


def test_panels_share_a_legend():
    figure = figures.panels({"loss": [(4, [(0, 3.0), (1, 2.0)])], "rank": []}, "step", LIGHT, {"a run": 4})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["loss", "rank"]
    assert list(figure.axes[0].lines[0].get_ydata()) == [3.0, 2.0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a run"]
