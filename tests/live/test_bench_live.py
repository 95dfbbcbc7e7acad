"""The benchmark of live streams on the tiny model: what it counts is what happened."""

from __future__ import annotations


def test_streams_are_served_and_clients_leave_nothing(script, live_setup):
    bench = script("bench_live")
    shots = bench.pictures(2.0)
    assert bench.served(live_setup, shots, 2, 3.0) > 0
    grown = bench.memory(live_setup, shots, 40 / 3600)
    assert (grown["steps"], grown["dropped"]) == (78, 0)
    assert max(grown["mb"]) < grown["mb"][0] + 50
    found = bench.clients(live_setup, shots, 12, 2)
    assert found["emissions"] > found["missed"] == found["missed_slowly"] == 0
    assert set(found["left"].values()) == {0}
    measured = bench.triggers(live_setup, bench.WORLD, 0.17, 2)
    assert measured["events"] >= 2
    assert measured["promises_kept"] == 0  # ten minutes cannot promise one false alarm an hour
    assert 0 <= measured["trigger"]["recall"] <= 1
