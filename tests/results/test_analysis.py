"""The analysis of swept policies, against figures computed here from the document's own counts; and bars on them."""

from __future__ import annotations

import pytest
from conftest import refuses
from made_streams import with_contrast, with_savings

from jepa.operations import OperationLedger
from jepa.results import NotMetError, Requirement, analysis


@pytest.fixture(params=["everyday", "dense"])
def setting(request, stream_results):
    return stream_results.settings[request.param]


def test_the_best_causal_policy_saves_most_among_those_that_keep_the_quality(setting):
    kept = {
        row.policy: row.ratio.value
        for row in setting.savings
        if row.headline and row.reached and row.ratio and row.policy != row.reference.policy
        and setting.curves[row.policy].causal
        and not (setting.curves[row.policy].cache and setting.curves[row.policy].cache.shared)
    }  # fmt: skip
    best = analysis.best_causal(setting)
    assert kept[best.policy] == max(kept.values())


def test_without_any_that_keeps_the_quality_the_closest_is_best(setting):
    missed = with_savings(setting, lambda row: {"reached": False})
    best = analysis.best_causal(missed)
    rivals = [
        row.quality_difference.value
        for row in missed.savings
        if row.headline and row.value is not None and missed.curves[row.policy].causal
        and row.policy != row.reference.policy
    ]  # fmt: skip
    assert best.quality_difference.value == max(rivals)
    nothing = with_savings(setting, lambda row: {"value": None})
    assert analysis.best_causal(nothing) is None


def test_a_cache_that_streams_share_is_no_headline(setting):
    best = analysis.best_causal(setting).policy
    cache = next(curve.cache for curve in setting.curves.values() if curve.cache is not None)
    curve = setting.curves[best].model_copy(update={"cache": cache.model_copy(update={"shared": True})})
    shared = setting.model_copy(update={"curves": {**setting.curves, best: curve}})
    assert analysis.best_causal(shared).policy != best


@pytest.mark.parametrize(("ratio", "reached", "void"), [(2.0, True, True), (1.99, True, False), (5.0, False, False)])
def test_half_of_the_references_decodes_at_its_quality_voids_savings(setting, ratio, reached, void):
    own = setting.savings[0].reference.policy
    some = analysis.best_causal(setting).ratio
    found = some.model_copy(update={"value": ratio, "low": ratio, "high": ratio})
    changed = with_savings(setting, lambda row: {"ratio": found, "reached": reached} if row.policy == own else {})
    assert (analysis.without_contrast(changed) is not None) == void


def test_ratios_are_of_totals_per_second_of_stream(setting):
    reference = analysis.reference_row(setting)
    for row in setting.operations:
        ratios = analysis.operations_ratio(setting, row)
        seconds = row.ledger.stream_seconds / reference.ledger.stream_seconds
        if row.ledger.decoder.calls:
            assert ratios.calls == pytest.approx(reference.ledger.decoder.calls / row.ledger.decoder.calls * seconds)
        assert ratios.flops == pytest.approx(reference.ledger.total_flops / row.ledger.total_flops * seconds)
        assert ratios.seconds == pytest.approx(reference.seconds / row.seconds * seconds)
    assert analysis.operations_ratio(setting, reference)[:3] == (1.0, 1.0, 1.0)
    elsewhere = setting.model_copy(update={"one_device": False})
    assert {analysis.operations_ratio(elsewhere, row).seconds for row in setting.operations} == {None}
    alone = setting.model_copy(update={"operations": (setting.operations[-1],)})
    assert analysis.operations_ratio(alone, setting.operations[-1])[:3] == (None, None, None)


def test_flops_of_a_called_part_without_a_count_are_unknown():
    ledger = OperationLedger()
    ledger.count("decoder", calls=2, flops=10)
    ledger.count_cache(lookups=1, flops=3)
    assert analysis.counted_flops(ledger) == 13
    assert analysis.part_flops(ledger, "encoder") == 0
    assert analysis.part_flops(ledger, "cache") == 3
    ledger.count("encoder", calls=1)
    assert analysis.part_flops(ledger, "encoder") is None
    assert analysis.counted_flops(ledger) is None


def test_the_leanest_point_is_no_oracle_and_kept_means_reached(setting):
    lean, kept = analysis.leanest(setting), analysis.leanest(setting, kept=True)
    assert not setting.curves[lean.policy].oracle
    assert analysis.operations_ratio(setting, lean).flops >= analysis.operations_ratio(setting, kept).flops
    assert analysis.qualified(setting, kept)
    reached = {(row.policy, row.value) for row in setting.savings if row.headline and row.reached}
    assert (kept.policy, kept.value) in reached


def test_prominent_policies_are_all_policies_the_telling_ones_first(setting, stream_results):
    order = analysis.prominent(setting)
    assert sorted(order) == sorted(setting.curves)
    assert order[0] == setting.savings[0].reference.policy
    assert analysis.best_causal(setting).policy in order[:2]
    assert len(analysis.highlighted(stream_results.settings)) <= analysis.HIGHLIGHTED
    assert set(analysis.timeline_decodes(setting)) <= set(order)


def test_a_difference_has_its_interval_where_it_was_measured(setting):
    for row in setting.operations:
        found = analysis.quality_difference(setting, row)
        if row is analysis.reference_row(setting):
            assert found is None
        elif analysis.qualified(setting, row):
            assert found.low <= found.value <= found.high


# --- Bars.


def test_the_bar_is_the_best_causal_saving(stream_results):
    stream_results = with_contrast(stream_results)
    saving = analysis.best_causal(stream_results.settings["everyday"]).ratio
    for figure, value in (("savings", saving.value), ("savings.everyday.low", saving.low)):
        assert f"{saving.value:.2f}×" in Requirement.parse(f"{figure}>={value!r}").verdict(stream_results)
        with pytest.raises(NotMetError, match="does not hold; savings of everyday"):
            Requirement.parse(f"{figure}>={value + 0.001}").verdict(stream_results)


def test_a_saving_that_is_void_or_not_reached_meets_no_bar(stream_results):
    setting = stream_results.settings["everyday"]
    own = setting.savings[0].reference.policy
    ten = analysis.best_causal(setting).ratio.model_copy(update={"value": 10.0, "high": None})
    changes = {
        "not reached": lambda row: {"reached": False},
        "Quality does not depend on decoding": lambda row: {"ratio": ten, "reached": True} if row.policy == own else {},
    }
    for words, change in changes.items():
        document = stream_results.model_copy(update={"settings": {"everyday": with_savings(setting, change)}})
        for figure in ("savings", "compute_savings"):
            with pytest.raises(NotMetError, match=words):
                Requirement.parse(f"{figure}>=0").verdict(document)


def test_a_saving_in_compute_is_the_largest_that_qualified(stream_results):
    stream_results = with_contrast(stream_results)
    setting = stream_results.settings["everyday"]
    largest = max(
        analysis.operations_ratio(setting, row).flops
        for row in setting.operations
        if setting.curves[row.policy].causal and analysis.qualified(setting, row)
        and row is not analysis.reference_row(setting)
    )  # fmt: skip
    assert f"{largest:.2f}×" in Requirement.parse("compute_savings>=0").verdict(stream_results)


@pytest.mark.parametrize("text", ["speed>=2", "savings>2", "savings>=nan", "savings>=two", "compute_savings.low>=1"])
def test_a_bar_that_says_nothing_is_refused(text):
    refuses("fail_under", Requirement.parse, text)


@pytest.mark.parametrize("text", ["savings.nowhere>=1", "accuracy>=0.5"])
def test_a_bar_without_such_a_setting_or_figure_is_refused(stream_results, text):
    refuses("fail_under", lambda: Requirement.parse(text).verdict(stream_results))
