"""The mirror of the routing table: after a dump it shows what the kernel has, whatever was seen or missed before."""

from __future__ import annotations

import random

import pytest
from pynet.core.model import RT_TABLE_MAIN, Operation, Prefix, Route
from pynet.drivers import rtwire
from pynet.drivers.netlink import Monitor, NetlinkError, RouteSocket
from pynet.observe import fib
from pynet.observe.fib import Fib, Interest

OURS, STATIC = 110, 4


def route(i: int, **changes) -> Route:
    """A route of ours to prefix number i."""
    made = Route(Prefix(bytes((10, 128, i, 0)), 24), 100, bytes((10, 99, 0, 2)), 2, OURS)
    return made._replace(**changes)


class Table:
    """A namespace's routes, a mirror of them, and a way to change them that the mirror is told of like any other."""

    def __init__(self, lan3, table: int = RT_TABLE_MAIN) -> None:
        self.node = lan3[0]
        self.table = table
        with self.node.entered():
            self.socket, self.monitor, self.other = RouteSocket(), Monitor(), RouteSocket()
        self.fib = self.mirror()
        self.oif = next(link.ifindex for link in self.socket.dump_links() if link.name == "eth0")
        self.wanted = {each.prefix: each for each in map(self.here, map(route, range(20)))}

    def mirror(self) -> Fib:
        return Fib(self.socket, self.monitor, table=self.table, protocol=OURS)

    def here(self, each: Route) -> Route:
        return each._replace(oif=self.oif, table=self.table)

    def dump(self) -> None:
        self.fib.dump(self.wanted)

    def change(self, kind: str, *routes: Route) -> None:
        operations = [Operation(kind, self.here(each)) for each in routes]
        assert self.other.apply(operations) == {}

    def read(self) -> None:
        self.fib.read(Interest())

    def assert_right(self) -> None:
        """The mirror is what a new one would be."""
        fresh = self.mirror()
        fresh.dump(self.wanted)
        self.dump()
        assert self.fib.routes == fresh.routes
        assert self.fib.ours == fresh.ours
        assert self.fib.count_peers() == fresh.count_peers()
        assert self.fib.on_link(()) == fresh.on_link(())

    def close(self) -> None:
        for each in (self.socket, self.monitor, self.other):
            each.close()


@pytest.fixture(params=[RT_TABLE_MAIN, 1000])
def table(request, lan3):
    made = Table(lan3, request.param)
    yield made
    made.close()


def test_what_a_dump_finds_unchanged_is_not_decoded_again(table, monkeypatch):
    table.change("add", *map(route, range(20)))
    table.dump()
    before = table.fib.routes
    monkeypatch.setattr(rtwire, "decode_route", None)  # to be called is to fail
    table.dump()
    assert table.fib.routes is before
    assert len(table.fib.ours) == 20


def test_what_becomes_wanted_later_is_one_object_with_what_is_there(table):
    """After a restart the routes are there before the Nodes are known. Two objects for each would stay for good."""
    table.change("add", *map(route, range(20)))
    table.fib.dump({})
    table.dump()
    assert all(table.fib.routes[prefix][0] is want for prefix, want in table.wanted.items())


@pytest.mark.parametrize("seen", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        [("add", route(30))],
        [("delete", route(3))],
        [("replace", route(3, gateway=bytes((10, 99, 0, 3))))],
        [("delete", route(3)), ("add", route(3, metric=200))],
        [("delete", route(3)), ("add", route(3, protocol=STATIC))],
        [("delete", route(3)), ("add", route(3))],
    ],
)
def test_a_dump_shows_every_change_whether_it_was_told_or_missed(table, changes, seen):
    table.change("add", *map(route, range(20)))
    table.dump()
    for kind, each in changes:
        table.change(kind, each)
    if seen:
        table.read()
    table.assert_right()


def test_what_was_told_and_undone_unseen_is_not_kept(table):
    table.change("add", *map(route, range(20)))
    table.dump()
    table.change("delete", route(3))
    table.read()
    table.change("add", route(3))  # the kernel is as it was at the dump, the mirror is not
    table.assert_right()
    assert route(3).prefix in table.fib.ours


def test_after_a_dump_that_could_not_be_decoded_the_next_is(table, monkeypatch):
    table.dump()
    table.change("add", *map(route, range(20)))
    with monkeypatch.context() as broken:
        broken.setattr(rtwire, "decode_route", _malformed)
        with pytest.raises(NetlinkError):
            table.dump()
    table.assert_right()
    assert len(table.fib.ours) == 20


def test_of_a_table_too_large_to_be_kept_another_prefix_is_wanted_later(table, monkeypatch):
    monkeypatch.setattr(fib, "_FOREIGN_LIMIT", 3)
    table.change("add", *(route(i, protocol=STATIC) for i in range(20)))
    table.fib.dump({})
    assert table.fib.partial
    assert route(19).prefix not in table.fib.routes
    table.fib.dump({route(19).prefix: route(19)})
    assert route(19).prefix in table.fib.routes


def test_routes_whose_order_an_event_does_not_tell_are_read_again(table):
    """Two routes of one key: which comes first is decided by how they were added, and the event does not say."""
    table.change("add", *map(route, range(5)))
    table.dump()
    table.node.run("ip", "route", "prepend", "10.128.3.0/24", "via", "10.99.0.3", "metric", "100", "table", str(table.table))
    table.fib.read(Interest(table.wanted))
    assert table.fib.stale
    table.dump()
    assert [each.gateway[-1] for each in table.fib.routes[route(3).prefix]] == [3, 2]
    assert not table.fib.stale


def test_a_doubt_is_over_with_a_dump_that_finds_all_as_before(table):
    table.change("add", *map(route, range(5)))
    table.dump()
    other = ("10.128.3.0/24", "via", "10.99.0.3", "metric", "100", "table", str(table.table))
    table.node.run("ip", "route", "prepend", *other)
    table.fib.read(Interest(table.wanted))
    assert table.fib.stale
    table.node.run("ip", "route", "del", *other)
    table.dump()
    assert not table.fib.stale


def test_a_dump_under_constant_change_is_never_taken_for_the_same_as_the_last(table, monkeypatch):
    monkeypatch.setattr(table.socket, "_saw_change", lambda _table: True)
    table.dump()
    table.node.run("ip", "-6", "route", "add", "fd01::/64", "via", "fd99::2", "proto", str(OURS), "table", str(table.table))
    table.dump()
    assert len(table.fib.ours) == 1


def test_a_route_of_the_main_table_counts_whichever_table_ours_live_in(table):
    table.dump()
    before = table.fib.on_link(())
    table.node.run("ip", "route", "add", "192.0.2.0/24", "dev", "eth0")
    table.dump()
    assert table.fib.on_link(()) - before


@pytest.mark.parametrize("seed", range(5))
def test_any_history_of_changes_reads_and_dumps_ends_in_what_the_kernel_has(table, seed):
    rng = random.Random(seed)
    there: set[int] = set()
    for _ in range(120):
        act = rng.choice(("change", "change", "read", "dump"))
        if act == "change":
            i = rng.randrange(12)
            kind = rng.choice(("replace", "delete")) if i in there else "add"
            gateway = bytes((10, 99, 0, rng.choice((2, 3))))
            table.change(kind, route(i, gateway=b"" if kind == "delete" else gateway))
            (there.discard if kind == "delete" else there.add)(i)
        elif act == "read":
            table.read()
        else:
            table.dump()
            assert table.fib.ours == {route(i).prefix for i in there}
    table.assert_right()


def _malformed(*_):
    raise NetlinkError(74, "malformed", "decode")
