"""Repairs are free until somebody keeps undoing them."""

from __future__ import annotations

from pynet.core.fights import Fights


def test_a_few_repairs_are_free():
    fights = Fights()
    for n in range(19):
        fights.repaired("p", n * 0.1)
        assert fights.not_before("p", n * 0.1) == 0
    assert fights.not_before("other", 0) == 0


def test_somebody_who_keeps_undoing_makes_us_pause_longer_and_longer_up_to_half_a_minute():
    fights, now, pauses = Fights(), 0.0, []
    for _ in range(30):
        fights.repaired("p", now)
        end = fights.not_before("p", now)
        if end:
            pauses.append(end - now)
            assert fights.next_end(now) == end
            now = end
    assert [round(p) for p in pauses[:7]] == [1, 2, 4, 8, 16, 30, 30]
    assert fights.next_end(now) == float("inf")


def test_peace_is_forgotten_about():
    fights = Fights()
    for _ in range(25):
        fights.repaired("p", 0.0)
    fights.prune(5.0)
    assert len(fights) == 1
    fights.prune(200.0)
    assert len(fights) == 0
    fights.repaired("p", 200.0)
    assert fights.not_before("p", 200.0) == 0


def test_where_a_repair_is_dear_fewer_are_free_and_the_pause_grows_longer():
    fights, now, waits = Fights(free=3, window=180.0, longest=60.0), 1000.0, []
    for _ in range(11):
        assert fights.not_before("file", now) == 0
        fights.repaired("file", now)
        waits.append(max(0.0, fights.not_before("file", now) - now))
        now += waits[-1] + 1
    assert waits == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert fights.told("file") == "put back 11 times, now only after 60 s"
    now += 181
    fights.repaired("file", now)
    assert fights.not_before("file", now) == 0
