"""The report of swept policies, on the document of a real sweep."""

from __future__ import annotations

import pytest
from conftest import refuses
from made_streams import with_contrast, with_savings

from jepa.report import checkpoint, compare, streams, sweep_figures, sweep_tables, timeline
from jepa.report import format as fmt
from jepa.report.figures import HATCH, LIGHT, drawing
from jepa.report.render import markdown, terminal, write_report
from jepa.results import analysis, read_document
from jepa.results.documents import StreamResults


@pytest.fixture(scope="module")
def shown(stream_results):
    return streams.report(stream_results)


@pytest.fixture(scope="module")
def page(stream_report):
    return stream_report["report.html"].read_text(encoding="utf-8")


def rows(table) -> list[list[str]]:
    return [list(row) for _, group in table.groups for row in group]


def by_header(table) -> list[dict[str, str]]:
    return [dict(zip(table.header, row, strict=True)) for row in rows(table)]


# --- The whole.


def test_the_report_is_written_as_four_files(stream_results, stream_report):
    assert sorted(stream_report) == ["report.html", "report.md", "report.png", "results.json"]
    assert read_document(stream_report["results.json"].parent, StreamResults) == stream_results


def test_every_section_and_table_is_in_page_and_markdown(page, shown):
    words = markdown(shown)
    for heading in (
        "Quality against operations", "One stream", "Savings at equal quality", "Compute", "Stream quality",
        "Operations", "Cache", "Scores", "Parameters by role", "Training", "Provenance", "What is measured and how",
    ):  # fmt: skip
        assert f">{heading}" in page
        assert f"## {heading}" in words


def test_the_summary_fits_one_screen(stream_results, shown):
    lines = terminal(shown, colour=False).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    whole = " ".join(" ".join(lines).split())
    for setting in stream_results.settings.values():
        best = analysis.best_causal(setting)
        assert fmt.saving(best.ratio) in whole
    assert "chance" in whole


# --- Claims.


def test_the_claim_is_the_best_causal_policy(stream_results):
    for name, setting in with_contrast(stream_results).settings.items():
        best, found = analysis.best_causal(setting), streams.claim(name, setting)
        assert found.figure == f"{best.ratio.value:.2f}×"
        assert f"CIDEr-D {best.reference_quality:.2f}" in found.text
        assert found.detail.startswith(analysis.point_name(setting, best.policy, best.value))
        assert "encoder and predictor included" in found.second_text


def test_a_quality_that_is_not_reached_is_said_in_words(stream_results):
    setting = with_savings(stream_results.settings["everyday"], lambda row: {"reached": False})
    found = streams.claim("everyday", setting)
    assert found.figure == "not reached"
    assert "No causal policy reaches the quality of " in found.text
    assert "comes closest" in found.detail
    _, headline = sweep_tables.savings_table(setting).groups[0]
    assert all("not reached" in " ".join(row) for row in headline)


def test_a_saving_without_contrast_is_void(stream_results):
    setting = stream_results.settings["everyday"]
    ratio = analysis.best_causal(setting).ratio.model_copy(update={"value": 10.0, "high": None})
    own = setting.savings[0].reference.policy
    idle = with_savings(setting, lambda row: {"ratio": ratio, "reached": True} if row.policy == own else {})
    found = streams.claim("everyday", idle)
    assert (found.figure, found.second_figure) == ("void", "void")
    assert found.text.startswith("Quality does not depend on decoding here")
    clear = with_contrast(stream_results)
    runs = {"a": clear, "b": clear.model_copy(update={"settings": {"everyday": idle}})}
    saved = next(row for row in rows(compare.runs_table(runs)) if row[0] == "saving, decoder calls")
    assert saved[2] == f"void ({saved[1]})"


def test_a_policy_that_decodes_nothing_has_no_ratio(stream_results):
    setting = with_savings(
        stream_results.settings["everyday"],
        lambda row: {"ratio": None, "decodes_per_second": 0.0} if row.policy == "gate" else {},
    )
    found = next(row for row in by_header(sweep_tables.savings_table(setting)) if row["policy"].startswith("Gate"))
    assert found["saving"].endswith("decodes nothing")


# --- Tables.


def test_savings_stand_against_each_reference_and_tolerance_the_headline_first(stream_results):
    setting = stream_results.settings["everyday"]
    made = sweep_tables.savings_table(setting)
    wanted = list(dict.fromkeys(analysis.wanted_name(setting, row) for row in setting.savings))
    assert [title.partition(": ")[0] for title, _ in made.groups] == [f"against {name}" for name in wanted]
    assert [len(group) for _, group in made.groups] == [len(setting.curves)] * len(wanted)
    for row, cells in zip(setting.savings, by_header(made), strict=True):
        assert cells["saving"].startswith("not reached") == (not row.reached)
        assert (cells["curves, CIDEr-D"] != "–") == (
            row.headline and row.policy in setting.areas and setting.areas[row.policy].difference is not None
        )


def test_compute_is_flops_per_second_of_stream(stream_results):
    for setting in stream_results.settings.values():
        made = by_header(sweep_tables.compute_table(setting))
        scale, _ = sweep_figures.flops_unit(setting)
        assert len(made) == len(setting.operations)
        for row, cells in zip(setting.operations, made, strict=True):
            names = ("encoder", "predictor", "decoder", "detector", "cache")
            parts = [float(cells[name].replace(",", "")) for name in names]
            assert sum(parts) == pytest.approx(float(cells["all"].replace(",", "")), rel=0.02)
            total = row.ledger.total_flops / row.ledger.stream_seconds / scale
            assert float(cells["all"].replace(",", "")) == pytest.approx(total, rel=0.01)
            estimated = (analysis.reference_row(setting).estimated, row.estimated) != (None, None)
            assert cells["saving, wall time"].endswith(" est.") == estimated
        reference = setting.operations.index(analysis.reference_row(setting))
        assert made[reference]["saving, FLOPs"] == "1.00×"


def test_uncounted_flops_are_no_zero(stream_results):
    setting = stream_results.settings["everyday"]
    row = analysis.reference_row(setting)
    plain = row.ledger.to_dict()
    plain["encoder"]["flops"] = 0
    blind = row.model_copy(update={"ledger": type(row.ledger).from_dict(plain)})
    others = tuple(each for each in setting.operations if each is not row)
    made = by_header(sweep_tables.compute_table(setting.model_copy(update={"operations": (blind, *others)})))
    assert (made[0]["encoder"], made[0]["all"]) == ("not counted", "not counted")
    assert {cells["saving, FLOPs"] for cells in made} == {"–"}


def test_operations_are_the_ledgers(stream_results):
    setting = stream_results.settings["everyday"]
    for row, cells in zip(setting.operations, by_header(sweep_tables.operations_table(setting)), strict=True):
        assert cells["decoder calls"] == f"{row.ledger.decoder.calls:,}"
        assert cells["encoder calls"] == f"{row.ledger.encoder.calls:,}"
        assert cells["all, s"].removesuffix(" est.") == fmt.seconds(row.seconds)


def test_quality_and_cache_stand_at_the_operating_point(stream_results):
    setting = stream_results.settings["everyday"]
    for row, cells in zip(setting.operations, by_header(sweep_tables.quality_table(setting)), strict=True):
        at = analysis.point(setting, row)
        assert cells["TimCover"] == fmt.fraction(at.dense.tim_cover)
        assert cells["latency"] == at.latency
    cached = [policy for policy, curve in setting.curves.items() if curve.cache is not None]
    made = by_header(sweep_tables.cache_table(setting))
    assert {cells["policy"] for cells in made} == {setting.curves[policy].label for policy in cached}


def test_scores_stand_beside_chance_and_cost(stream_results):
    made = by_header(checkpoint.scores_table(stream_results.scores))
    retrieval = stream_results.scores.retrieval
    assert made[0]["value"] == fmt.fraction(retrieval.recall["1"])
    assert made[0]["chance"] == fmt.fraction(retrieval.chance)
    assert made[0]["cost of an answer"].endswith("FLOPs")
    assert {row["score"] for row in made} >= {"R@1", "R@5", "accuracy, all questions", "exact match", "RankMe"}


def test_operations_of_training_end_in_their_sum(stream_results):
    made = checkpoint.training_table(stream_results.training.stages)
    for title, group in made.groups:
        assert "steps in" in title
        *parts, whole = [[float(cell) for cell in row[1:]] for row in group]
        assert [pytest.approx(sum(column)) for column in zip(*parts, strict=True)] == whole


def test_settings_without_operations_or_curve_are_shown(stream_results):
    bare = {name: setting.model_copy(update={"operations": ()}) for name, setting in stream_results.settings.items()}
    training = stream_results.training.model_copy(update={"curve": (), "stages": ()})
    document = stream_results.model_copy(update={"settings": bare, "training": training, "sweep": None})
    words = markdown(streams.report(document))
    assert words.count("None were recorded.") == 3 * len(bare)
    assert "not counted" in words


# --- Figures.


def test_policies_have_one_colour_in_all_settings(stream_results):
    series = sweep_figures.series_of(stream_results.settings)
    assert set(series) == set(analysis.highlighted(stream_results.settings))
    assert len(set(series.values())) == len(series)
    assert series["gate"] == 4


def test_curves_show_every_policy_and_mark_the_operating_points(stream_results):
    setting = stream_results.settings["everyday"]
    with drawing():
        axes = sweep_figures.curves(stream_results.settings, "everyday", LIGHT).axes[0]
    tips = [line.get_gid() or "" for line in axes.lines]
    for curve in setting.curves.values():
        assert f"tip:{analysis.label(curve)}" in tips
    reached = [row for row in analysis.headline_savings(setting) if row.value is not None and row.decodes_per_second]
    marked = [line for line in axes.lines if ": CIDEr-D" in (line.get_gid() or "")]
    series = sweep_figures.series_of(stream_results.settings)
    assert len(marked) == sum(row.policy in series for row in reached)


@pytest.mark.parametrize("measure", ["flops", "seconds"])
def test_parts_are_stacked_to_the_whole_and_estimates_are_hatched(stream_results, measure):
    setting = stream_results.settings["everyday"]
    with drawing():
        axes = sweep_figures.operations(stream_results.settings, "everyday", measure, LIGHT).axes[0]
    scale = sweep_figures.flops_unit(setting)[0] if measure == "flops" else 1e-3
    for y, row in enumerate(setting.operations):
        bars = [bar for bar in axes.patches if round(bar.get_y() + bar.get_height() / 2) == y]
        total = row.ledger.total_flops if measure == "flops" else row.seconds
        assert sum(bar.get_width() for bar in bars) == pytest.approx(total / row.ledger.stream_seconds / scale)
        hatched = measure == "seconds" and row.estimated is not None
        assert any(bar.get_hatch() == HATCH for bar in bars) == hatched


def test_the_timeline_shows_events_decodes_and_hollow_answers_of_a_cache(stream_results):
    setting = stream_results.settings["everyday"]
    with drawing():
        figure = timeline.timeline(stream_results.settings, "everyday", LIGHT)
    boxes = [box for axes in figure.axes for box in axes.patches]
    solid = {box.get_gid() for box in boxes if box.get_facecolor()[3] > 0}
    for event in setting.timeline.events:
        assert any(f": {event.text}" in gid for gid in solid)
    for policy, decodes in analysis.timeline_decodes(setting).items():
        for decode in decodes:
            found = [b for b in boxes if f"from the {decode.source}: {decode.text}" in b.get_gid()]
            if decode.source != "decoder" and decode.end > decode.start:
                assert found, policy
                assert all(box.get_facecolor()[3] == 0 for box in found)


def test_overlapping_events_have_rows_of_their_own(stream_results):
    setting = stream_results.settings["everyday"]
    event = setting.timeline.events[0]
    stream = setting.timeline.model_copy(update={"events": (event, event), "thumbnails": ()})
    with drawing():
        figure = timeline.timeline({"a": setting.model_copy(update={"timeline": stream})}, "a", LIGHT)
    tops = {
        box.get_y()
        for axes in figure.axes
        for box in axes.patches
        if f": {event.text}" in box.get_gid() and "from" not in box.get_gid()
    }
    assert len(tops) == 2


def test_a_broken_picture_is_refused(stream_results):
    setting = stream_results.settings["everyday"]
    thumbnail = setting.timeline.thumbnails[0].model_copy(update={"png": "AAAA"})
    spoilt = setting.model_copy(update={"timeline": setting.timeline.model_copy(update={"thumbnails": (thumbnail,)})})
    refuses("thumbnail .* must be a whole PNG", timeline.timeline, {"a": spoilt}, "a", LIGHT)


# --- Runs side by side.


def test_runs_side_by_side_show_a_column_each_and_what_differs(stream_results, tmp_path):
    first = with_contrast(stream_results)
    other = first.model_copy(update={"seed": 7, "config": {**first.config, "speed": {"fast": True}}})
    runs = {"a/results.json": first, "b/results.json": other}
    found = rows(compare.runs_table(runs))
    assert ["seed", "0", "7"] in found
    assert ["speed.fast", "–", "true"] in found
    assert not any(row[0] == "created" for row in found)
    best = analysis.best_causal(stream_results.settings["everyday"])
    assert ["saving, decoder calls", fmt.saving(best.ratio), fmt.saving(best.ratio)] in found
    shown = compare.report(runs)
    lines = terminal(shown, colour=False).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 100
    assert sorted(write_report(None, shown, tmp_path, "comparison")) == ["comparison.html", "comparison.md"]
