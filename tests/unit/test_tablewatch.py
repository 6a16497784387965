"""What the watch notes of others' transactions. A double of the monitor says what came; tests/kernel has a real one."""

from __future__ import annotations

import os
import threading

import pytest
import structlog
from pynet.apply.tablewatch import TableWatch
from pynet.drivers.nfnetlink import Committed, TableChange
from pynet.drivers.nlsocket import Overrun

FLUSHED = TableChange("inet", "pynet", "rule", "egress-4", gone=True, portid=7)
ADDED = TableChange("inet", "pynet", "element", "nodes-4", gone=False, portid=8)


class Monitor:
    """Gives each of ``readings`` in turn, an Overrun raised; then has the watch told to stop."""

    def __init__(self, watch: TableWatch, readings: list) -> None:
        self.watch = watch
        self.readings = readings
        self.descriptor = os.eventfd(1)  # always readable

    def fileno(self) -> int:
        return self.descriptor

    def close(self) -> None:
        os.close(self.descriptor)

    def read(self, _tables, _own) -> list:
        if not self.readings:
            self.watch.stop(0)
            return []
        reading = self.readings.pop(0)
        if isinstance(reading, Overrun):
            raise reading
        return reading


@pytest.fixture
def looks():
    return []


@pytest.fixture
def watch(looks):
    return TableWatch(
        "masquerade", frozenset({("inet", "pynet")}), lambda: looks.append(threading.get_ident()), structlog.get_logger()
    )


def hear(watch: TableWatch, *readings) -> None:
    watch._follow(Monitor(watch, list(readings)))


def test_what_others_did_is_noted_with_who_it_was_once_their_transaction_ends(watch, looks):
    hear(watch, [FLUSHED], [ADDED, Committed(1, 42, "nft", 7)])
    drift, doubt = watch.take()
    assert (drift.what, drift.who, doubt) == ("rule in egress-4 removed, element in nodes-4 added or changed", "nft[42]", "")
    assert len(looks) == 1
    assert watch.take() == (None, "")


def test_the_first_of_several_is_what_is_told(watch, looks):
    hear(watch, [FLUSHED, Committed(1, 42, "nft", 7)], [ADDED, Committed(2, 43, "firewalld", 8)])
    assert watch.take()[0].who == "nft[42]"
    assert len(looks) == 1


def test_our_own_transactions_are_not_noted(watch, looks):
    watch.own.started(7)
    hear(watch, [Committed(1, 42, "nft", 7)])
    assert watch.take() == (None, "")
    assert not looks
    assert 7 not in watch.own, "another process may get this number"


def test_after_a_loss_nobody_is_blamed_for_what_somebody_else_had_begun(watch, looks):
    hear(watch, [FLUSHED], Overrun("No buffer space available"), [Committed(2, 43, "firewalld", 8)])
    assert watch.take() == (None, "nftables events were lost")
    assert len(looks) == 1


def test_what_could_not_be_put_right_is_taken_again(watch):
    hear(watch, [FLUSHED, Committed(1, 42, "nft", 7)])
    taken = watch.take()
    watch.give_back(*taken)
    assert watch.take() == taken
