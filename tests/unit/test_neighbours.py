"""When the bridge's neighbours are forgotten, and when not. A double of the socket counts; tests/kernel has a real one."""

from __future__ import annotations

import errno

import pytest
import structlog
from pynet.apply.neighbours import Neighbours
from pynet.drivers.netlink import NetlinkError

BRIDGE, OTHER = 1, 99
"""Loopback stands for the bridge: it is there on every machine, and has index 1."""


class Socket:
    """Notes at which interfaces neighbours were to be forgotten; refuses while there are ``errors``."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.errors: list[NetlinkError] = []

    def forget_neighbours(self, ifindex: int) -> int:
        self.asked.append(ifindex)
        if self.errors:
            raise self.errors.pop()
        return 1


@pytest.fixture
def socket():
    return Socket()


@pytest.fixture
def neighbours(socket):
    """Of a node that has been looked at once."""
    made = Neighbours(socket, "lo", structlog.get_logger())
    made.ports_left(set(), unsure=False)
    assert socket.asked == [BRIDGE], "a pod may have left while no agent was there"
    socket.asked.clear()
    return made


def test_however_many_ports_have_left_the_neighbours_are_forgotten_once(socket, neighbours):
    neighbours.ports_left({BRIDGE, OTHER}, unsure=True)
    assert socket.asked == [BRIDGE]
    neighbours.ports_left(set(), unsure=False)
    assert socket.asked == [BRIDGE]


def test_a_port_of_another_bridge_is_no_reason(socket, neighbours):
    neighbours.ports_left({OTHER}, unsure=False)
    assert socket.asked == []


def test_lost_notifications_may_have_told_of_a_port(socket, neighbours):
    neighbours.ports_left(set(), unsure=True)
    assert socket.asked == [BRIDGE]


def test_what_the_kernel_refuses_is_tried_again_and_disturbs_nothing(socket, neighbours):
    socket.errors.append(NetlinkError(errno.ETIMEDOUT))
    neighbours.ports_left({BRIDGE}, unsure=False)
    neighbours.ports_left(set(), unsure=False)
    neighbours.ports_left(set(), unsure=False)
    assert socket.asked == [BRIDGE, BRIDGE]


def test_without_the_bridge_there_is_nothing_to_forget(socket):
    none = Neighbours(socket, "pynet-none", structlog.get_logger())
    none.ports_left({0, BRIDGE}, unsure=True)
    assert socket.asked == []
