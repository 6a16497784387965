"""Our netlink driver on the real kernel. The oracle is `ip -json`, never the driver itself."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import struct
import sys
import threading
from pathlib import Path

import pytest
from pynet.core.model import RTN_UNREACHABLE, UNREACHABLE_METRIC, HostAddress, Link, Operation, Prefix, Route
from pynet.drivers import netlink, nlsocket, rtwire
from pynet.drivers.netlink import (
    AddressEvent,
    LinkEvent,
    Monitor,
    Netconf,
    NetlinkError,
    Overrun,
    PortLeft,
    RouteEvent,
    RouteSocket,
)

OURS, STATIC = 110, 4
both = pytest.mark.parametrize("family", [4, 6])


def packed(text):
    return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)


def prefix(text):
    address, _, length = text.partition("/")
    return Prefix(packed(address), int(length or len(packed(address)) * 8))


def gateway(i, family):
    """The address of node i of the lan."""
    return packed(f"10.99.0.{i + 1}" if family == 4 else f"fd99::{i + 1}")


def peer(i, family, **changes):
    """A route of ours as to pods of peer i, through the lan's second node."""
    subnet = bytes((10, 128 + (i >> 8), i & 255, 0)) if family == 4 else struct.pack(">HIH8x", 0xFD01, 0, i)
    route = Route(Prefix(subnet, 24 if family == 4 else 64), 100 + i % 64, gateway(1, family), 2, OURS)
    return route._replace(**changes)


def shown(node, family, *args):
    """Routes as `ip` shows them: (destination, gateway, metric, protocol), numbers as numbers."""
    rows = node.ip("-N", "-d", f"-{family}", "route", "show", *args)
    return [(row["dst"], row.get("gateway", ""), row.get("metric", 0), int(row["protocol"])) for row in rows]


def text(route):
    """The row that `ip` shows for a route of ours."""
    return str(route.prefix), str_address(route.gateway), route.metric, route.protocol


def str_address(address):
    return socket.inet_ntop(socket.AF_INET if len(address) == 4 else socket.AF_INET6, address) if address else ""


def add(*routes):
    return [Operation("add", route) for route in routes]


def delete(*routes):
    return [Operation("delete", route) for route in routes]


def at(rsock, family, where, table=254):
    """What the driver sees at a prefix."""
    return [route for route in rsock.dump_routes(family, table) if route.prefix == where]


@pytest.fixture
def node(lan3):
    return lan3[0]


@pytest.fixture
def rsock(node):
    with node.entered():
        opened = RouteSocket()
    with opened:
        yield opened


@pytest.fixture
def monitor(node):
    with node.entered():
        opened = Monitor()
    with opened:
        yield opened


def await_events(monitor, enough, seconds=5):
    """Events, until ``enough(events)``."""
    events = []
    poll = select.poll()
    poll.register(monitor.fileno(), select.POLLIN)
    while not enough(events):
        assert poll.poll(seconds * 1000), f"no such event; there were {events}"
        events += monitor.read()
    return events


# Changes


@both
def test_a_route_is_added_replaced_in_place_and_deleted(node, rsock, family):
    first, second = peer(1, family), peer(1, family, gateway=gateway(2, family))
    assert rsock.apply(add(first)) == {}
    assert text(first) in shown(node, family)
    assert rsock.apply([Operation("replace", second)]) == {}
    assert [row for row in shown(node, family) if row[0] == str(first.prefix)] == [text(second)]
    assert rsock.apply(delete(second)) == {}
    assert str(first.prefix) not in {row[0] for row in shown(node, family)}


@both
def test_what_is_added_is_dumped_exactly(rsock, family):
    routes = [peer(i, family) for i in range(1200)]
    routes += [peer(2000, family, table=1000), peer(2001, family, type=RTN_UNREACHABLE, gateway=b"", oif=0)]
    assert rsock.apply(add(*routes)) == {}
    dumped = [*rsock.dump_routes(family, 254), *rsock.dump_routes(family, 1000)]
    loopback = {2001: 1} if family == 6 else {}  # the kernel shows an unreachable IPv6 route at lo
    expected = [route._replace(oif=loopback.get(2001, 0)) if route.type == RTN_UNREACHABLE else route for route in routes]
    assert sorted(route for route in dumped if route.protocol == OURS) == sorted(expected)


@both
def test_errors_in_a_long_batch_have_their_own_index_and_the_rest_is_done(node, rsock, family):
    there = [peer(i, family) for i in (3, 499, 500, 501, 700, 1199)]
    assert rsock.apply(add(*there)) == {}
    operations = add(*(peer(i, family) for i in range(1200)))
    operations[600] = Operation("add", peer(600, family, gateway=packed("192.0.2.1" if family == 4 else "2001:db8::1")))
    operations[601] = Operation("delete", peer(601, family))
    errors = rsock.apply(operations)
    assert {i: error.errno for i, error in errors.items()} == {
        **dict.fromkeys((3, 499, 500, 501, 700, 1199), errno.EEXIST),
        600: errno.ENETUNREACH if family == 4 else errno.EHOSTUNREACH,
        601: errno.ESRCH,
    }
    assert len([row for row in shown(node, family) if row[3] == OURS]) == 1198


@both
def test_an_error_has_the_kernel_s_own_words_and_says_what_was_asked(rsock, family):
    wrong = peer(1, family, gateway=packed("192.0.2.1" if family == 4 else "2001:db8::1"))
    error = rsock.apply(add(wrong))[0]
    assert error.text == ("Nexthop has invalid gateway" if family == 4 else "No route to host")
    assert str(error) == f"[Errno {error.errno}] add route {wrong.prefix}: {error.text}"


@both
def test_an_add_never_touches_a_route_of_the_same_key(node, rsock, family):
    node.run("ip", f"-{family}", "route", "add", str(peer(1, family).prefix), "via", str_address(gateway(2, family)),
             "metric", "101", "proto", "static")  # fmt: skip
    before = shown(node, family)
    assert rsock.apply(add(peer(1, family)))[0].errno == errno.EEXIST
    assert shown(node, family) == before


@both
@pytest.mark.parametrize("wrong", ["protocol", "gateway", "oif", "metric", "table"])
def test_a_delete_that_is_wrong_in_one_point_leaves_the_route(node, rsock, family, wrong):
    route = peer(1, family)
    assert rsock.apply(add(route)) == {}
    other = {"protocol": STATIC, "gateway": gateway(2, family), "oif": 1, "metric": 102, "table": 1000}[wrong]
    assert rsock.apply(delete(route._replace(**{wrong: other})))[0].errno in {errno.ESRCH, errno.ENOENT}
    assert text(route) in shown(node, family)


@pytest.mark.parametrize("wrong", ["type", "scope", "tos"])
def test_an_ipv4_delete_is_exact_in_type_scope_and_tos_too(node, rsock, wrong):
    route = peer(1, 4)
    assert rsock.apply(add(route)) == {}
    other = {"type": 2, "scope": 253, "tos": 16}[wrong]
    assert rsock.apply(delete(route._replace(**{wrong: other})))[0].errno in {errno.ESRCH, errno.EINVAL}
    assert text(route) in shown(node, 4)


@both
def test_an_unreachable_route_takes_the_worst_metric_but_one(node, rsock, family):
    route = peer(1, family, type=RTN_UNREACHABLE, gateway=b"", oif=0, metric=UNREACHABLE_METRIC)
    assert rsock.apply(add(route)) == {}
    (row,) = [row for row in node.ip(f"-{family}", "route", "show") if row["dst"] == str(route.prefix)]
    assert (row["type"], row["metric"]) == ("unreachable", UNREACHABLE_METRIC)
    (dumped,) = at(rsock, family, route.prefix)
    assert dumped._replace(oif=0) == route
    assert rsock.apply(delete(dumped)) == {}
    assert at(rsock, family, route.prefix) == []


def test_an_ipv4_route_through_an_ipv6_gateway_is_told_as_such(node, rsock):
    node.run("ip", "route", "add", "10.5.0.0/24", "via", "inet6", "fd99::2", "dev", "eth0", "metric", "7", "proto", "static")
    route = Route(prefix("10.5.0.0/24"), 7, packed("fd99::2"), 2, STATIC)
    assert at(rsock, 4, route.prefix) == [route]
    assert rsock.apply([*delete(route), *add(route._replace(gateway=packed("fd99::3")))]) == {}
    (row,) = node.ip("route", "show", "10.5.0.0/24")
    assert row["via"] == {"family": "inet6", "host": "fd99::3"}


def test_without_the_capability_a_change_is_refused_and_a_dump_is_not(node, lan3):
    program = f"""
import sys; sys.path.insert(0, {str(Path(netlink.__file__).parents[2])!r})
from pynet.core.model import Operation, Prefix, Route
from pynet.drivers.netlink import RouteSocket
with RouteSocket() as rsock:
    route = Route(Prefix(bytes((10, 1, 0, 0)), 24), 5, bytes((10, 99, 0, 2)), 2, 110)
    errors = rsock.apply([Operation("add", route)] * 700)
    print(len(errors), {{error.errno for error in errors.values()}}, len(list(rsock.dump_routes(4, 254))))
"""
    said = node.run("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", program)
    assert said.split() == ["700", f"{{{errno.EPERM}}}", "1"]


# Several routes of one key, several next hops


def test_ipv4_routes_of_one_key_are_dumped_in_the_kernel_s_order_and_go_one_by_one(node, rsock):
    ours = peer(1, 4)
    assert rsock.apply(add(ours)) == {}
    for i, verb in ((2, "prepend"), (1, "prepend"), (2, "append")):
        protocol = "bird" if verb == "append" else "static"
        node.run("ip", "route", verb, str(ours.prefix), "via", f"10.99.0.{i + 1}", "metric", "101", "proto", protocol)
    order = shown(node, 4, str(ours.prefix))
    assert [(row[1], row[3]) for row in order] == [("10.99.0.2", 4), ("10.99.0.3", 4), ("10.99.0.2", OURS), ("10.99.0.3", 12)]
    routes = at(rsock, 4, ours.prefix)
    assert [text(route) for route in routes] == order
    for gone in (routes[1], routes[3], routes[0]):
        assert rsock.apply(delete(gone)) == {}
        routes.remove(gone)
        assert shown(node, 4, str(ours.prefix)) == [text(route) for route in routes]


def test_an_ipv6_multipath_route_is_one_route_and_a_delete_takes_only_the_hop_it_names(node, rsock):
    where = peer(1, 6).prefix
    node.run("ip", "-6", "route", "add", str(where), "metric", "101", "proto", "static",
             "nexthop", "via", "fd99::2", "dev", "eth0", "nexthop", "via", "fd99::3", "dev", "eth0")  # fmt: skip
    (route,) = at(rsock, 6, where)
    assert route.multipath
    assert (route.protocol, route.metric, route.oif) == (STATIC, 101, 2)
    (row,) = node.ip("-6", "route", "show", str(where))
    assert str_address(route.gateway) == row["nexthops"][0]["gateway"]
    assert rsock.apply(delete(route)) == {}
    (rest,) = at(rsock, 6, where)
    assert not rest.multipath
    assert str_address(rest.gateway) == row["nexthops"][1]["gateway"]


def test_an_ipv4_multipath_route_is_one_route_and_goes_whole(node, rsock):
    where = peer(1, 4).prefix
    node.run("ip", "route", "add", str(where), "metric", "101", "proto", "static",
             "nexthop", "via", "10.99.0.2", "nexthop", "via", "10.99.0.3")  # fmt: skip
    (route,) = at(rsock, 4, where)
    assert route == Route(where, 101, packed("10.99.0.2"), 2, STATIC, multipath=True)
    assert rsock.apply(delete(route._replace(protocol=OURS)))[0].errno == errno.ESRCH
    assert rsock.apply(delete(route)) == {}
    assert shown(node, 4, str(where)) == []


@both
def test_a_route_by_next_hop_object_counts_as_multipath_and_can_be_deleted(node, rsock, family):
    where = peer(1, family).prefix
    node.run("ip", "nexthop", "add", "id", "12", "via", str_address(gateway(2, family)), "dev", "eth0")
    node.run("ip", f"-{family}", "route", "add", str(where), "nhid", "12", "metric", "101", "proto", "static")
    (route,) = at(rsock, family, where)
    assert route == Route(where, 101, gateway(2, family), 2, STATIC, multipath=True)
    node.sysctl("net/ipv4/nexthop_compat_mode", 0)  # then the kernel tells the object's number alone
    (bare,) = at(rsock, family, where)
    assert bare.multipath
    assert (bare.gateway, bare.protocol) == (b"", STATIC)
    assert rsock.apply(delete(route)) == {}
    assert at(rsock, family, where) == []


# Dumps


@both
def test_a_dump_shows_every_route_of_its_table_and_no_other(node, rsock, family):
    here = "10.7" if family == 4 else "fd07:"
    end = ".0.0/24" if family == 4 else "::/64"
    via = str_address(gateway(1, family))
    node.run("ip", f"-{family}", "route", "add", f"{here}0{end}", "via", via, "metric", "5")
    node.run("ip", f"-{family}", "route", "add", f"{here}1{end}", "dev", "eth0")
    node.run("ip", f"-{family}", "route", "add", f"{here}2{end}", "via", via, "table", "1000")
    for i, kind in enumerate(("unreachable", "blackhole", "prohibit"), start=3):
        node.run("ip", f"-{family}", "route", "add", kind, f"{here}{i}{end}")
    node.run("ip", f"-{family}", "route", "add", "default", "via", via)
    for table in (254, 255, 1000):
        seen = [
            ("default" if route.prefix.length == 0 else str(route.prefix).removesuffix("/32").removesuffix("/128"),
             str_address(route.gateway), route.metric, route.protocol)
            for route in rsock.dump_routes(family, table)
        ]  # fmt: skip
        assert sorted(seen) == sorted(shown(node, family, "table", str(table)))
        assert seen
    types = {route.type for route in rsock.dump_routes(family, 254)}
    assert types == {1, 6, 7, 8}


@both
def test_a_table_that_is_not_there_has_no_routes(rsock, family):
    assert list(rsock.dump_routes(family, 4711)) == []


def test_without_ipv6_there_are_no_ipv6_routes(node, rsock):
    node.sysctl("net/ipv6/conf/all/disable_ipv6", 1)
    assert list(rsock.dump_routes(6, 254)) == []
    assert rsock.dump_addresses(6) == []


def test_a_kernel_that_knows_no_ipv6_answers_for_ipv4_and_is_not_misunderstood(monkeypatch, node, rsock):
    """With ipv6.disable=1 it takes a question about IPv6 for one about every family, which any kernel can be asked."""
    dump = rsock._dump
    monkeypatch.setattr(rsock, "_dump", lambda kind, body, doing: dump(kind, bytes(1) + body[1:], doing))
    assert [link for link in node.ip("addr", "show") if link["addr_info"]]
    assert {len(address.address) for address in rsock.dump_addresses(6)} == {16}
    assert {route.prefix.family for route in rsock.dump_routes(6, 254)} == {6}
    assert {route.prefix.family for route in rsock.dump_routes(4, 254)} == {4}


def test_exceptions_that_the_kernel_makes_of_routes_are_left_out(lan3, node, rsock):
    lan3[1].run("ip", "link", "add", "small", "mtu", "1280", "type", "veth", "peer", "end")
    lan3[1].run("ip", "addr", "add", "10.50.0.1/24", "dev", "small")
    lan3[1].run("ip", "link", "set", "small", "up")
    lan3[1].sysctl("net/ipv4/ip_forward", 1)
    node.run("ip", "route", "add", "10.50.0.0/24", "via", "10.99.0.2")
    node.run("ping", "-c", "1", "-W", "1", "-M", "do", "-s", "1400", "10.50.0.9", check=False)
    assert "cache" in node.run("ip", "route", "get", "10.50.0.9")
    assert prefix("10.50.0.9/32") not in {route.prefix for route in rsock.dump_routes(4, 254)}


@contextlib.contextmanager
def between_datagrams(monkeypatch, change):
    """Have ``change()`` done once, after the next datagram that the request socket reads. Yields the sizes of what was read."""
    receive, sizes = nlsocket.receive, []

    def receive_and_change(opened, scratch, flags=0):
        buffer = receive(opened, scratch, flags)
        if not flags:
            sizes.append(len(buffer))
            if len(sizes) == 1:
                change()
        return buffer

    with monkeypatch.context() as patch:
        patch.setattr(nlsocket, "receive", receive_and_change)
        yield sizes


def test_a_dump_that_the_kernel_calls_interrupted_is_read_again(monkeypatch, node, rsock):
    names = [f"br{i}" for i in range(80)]
    node.run("ip", "-batch", "-", input="\n".join(f"link add {name} type bridge" for name in names))
    with between_datagrams(monkeypatch, lambda: node.run("ip", "link", "del", "br0")) as sizes:
        links = rsock.dump_links()
    assert [link.name for link in links] == ["lo", "eth0", *names[1:]]
    with between_datagrams(monkeypatch, lambda: None) as undisturbed:
        rsock.dump_links()
    assert sum(sizes) > 1.5 * sum(undisturbed)


def test_an_ipv6_dump_under_change_leaves_out_no_route_that_was_there_all_along(monkeypatch, node, rsock):
    stay, go, come = [peer(i, 6) for i in range(500, 2500)], [peer(i, 6) for i in range(100)], peer(3000, 6)
    assert rsock.apply(add(*stay, *go)) == {}
    with node.entered():
        other = RouteSocket()
    with other, between_datagrams(monkeypatch, lambda: other.apply([*delete(*go), *add(come)])):
        dumped = list(rsock.dump_routes(6, 254))
    assert [route for route in dumped if route.protocol == OURS] == [*stay, come]
    assert rsock.apply(delete(come)) == {}
    assert rsock._watch.read() == []  # changes are watched for during the dump only


@both
def test_a_dump_amid_constant_change_has_all_that_stays_and_nothing_twice(node, rsock, family):
    stay, turn = [peer(2 * i, family) for i in range(1500)], [peer(2 * i + 1, family) for i in range(1500)]
    assert rsock.apply(add(*stay)) == {}
    with node.entered():
        other = RouteSocket()
    done = threading.Event()

    def change():
        while not done.is_set():
            for i in range(0, len(turn), 50):
                other.apply([*add(*turn[i : i + 50]), *delete(*turn[i - 50 : i])])
                if done.wait(0.001):
                    return
            other.apply(delete(*turn))

    thread = threading.Thread(target=change)
    thread.start()
    try:
        dumps = [list(rsock.dump_routes(family, 254)) for _ in range(15)]
    finally:
        done.set()
        thread.join()
        other.close()
    for dumped in dumps:
        assert set(stay) <= set(dumped)
        assert len(set(dumped)) == len(dumped)


def test_links_are_dumped_as_ip_shows_them(node, rsock):
    node.run("ip", "link", "add", "pynet0", "type", "bridge")
    node.run("ip", "link", "add", "veth0", "mtu", "1400", "master", "pynet0", "type", "veth", "peer", "veth1")
    node.run("ip", "link", "set", "veth0", "up")
    rows = {row["ifname"]: row for row in node.ip("-d", "link", "show")}
    expected = [
        Link(row["ifindex"], name, "UP" in row["flags"], row["mtu"], row.get("linkinfo", {}).get("info_kind", ""),
             rows[row["master"]]["ifindex"] if "master" in row else 0)
        for name, row in rows.items()
    ]  # fmt: skip
    assert sorted(rsock.dump_links()) == sorted(expected)
    assert {link.kind for link in expected} == {"", "veth", "bridge"}


@both
def test_addresses_are_dumped_as_ip_shows_them(node, rsock, family):
    wide = 32 if family == 4 else 128
    one, other = ("10.1.1.1", "10.1.1.2") if family == 4 else ("fd11::1", "fd11::2")
    node.run("ip", "addr", "add", one, "peer", f"{other}/{wide}", "dev", "eth0")
    rows = [(link["ifindex"], row) for link in node.ip(f"-{family}", "addr", "show") for row in link["addr_info"]]
    expected = [HostAddress(index, packed(row["local"]), row["prefixlen"]) for index, row in rows]
    assert sorted(rsock.dump_addresses(family)) == sorted(expected)
    assert packed(one) in {address.address for address in expected}


def test_an_ipv6_address_that_somebody_else_has_is_dumped_too(lan3, rsock):
    lan3[0].sysctl("net/ipv6/conf/eth0/accept_dad", 1)
    with lan3[0].entered(), Monitor() as watch:
        lan3[0].run("ip", "addr", "add", "fd99::2/64", "dev", "eth0")
        assert packed("fd99::2") in {address.address for address in rsock.dump_addresses(6)}  # tentative
        while not [row for row in lan3[0].ip("addr", "show", "dev", "eth0", "dadfailed") if row.get("addr_info")]:
            await_events(watch, bool)
    assert packed("fd99::2") in {address.address for address in rsock.dump_addresses(6)}


# Look-ups


@both
def test_a_look_up_gives_the_route_that_the_kernel_chooses(node, rsock, family):
    best, worse = peer(1, family, metric=50), peer(1, family, gateway=gateway(2, family))
    assert rsock.apply(add(worse, best)) == {}
    assert rsock.lookup(best.prefix.address[:-1] + b"\x09") == best
    on_link = rsock.lookup(gateway(1, family))
    assert (on_link.gateway, on_link.oif, on_link.prefix.length) == (b"", 2, 24 if family == 4 else 64)
    own = rsock.lookup(gateway(0, family))
    assert own.type == 2  # RTN_LOCAL


@both
@pytest.mark.parametrize("kind", ["unreachable", "blackhole", "prohibit", ""])
def test_a_look_up_of_what_goes_nowhere_gives_none(node, rsock, family, kind):
    if kind:
        node.run("ip", f"-{family}", "route", "add", kind, str(peer(1, family).prefix))
    assert rsock.lookup(peer(1, family).prefix.address[:-1] + b"\x09") is None


# Notifications


@both
def test_the_monitor_tells_our_changes_from_those_of_others(node, rsock, monitor, family):
    ours, theirs = peer(1, family), peer(2, family, protocol=STATIC)
    with node.entered():
        other = RouteSocket()
    with other:
        assert rsock.apply(add(ours)) == {}
        assert other.apply(add(theirs)) == {}
        assert rsock.apply([Operation("replace", ours._replace(gateway=gateway(2, family)))]) == {}
        assert other.apply(delete(theirs)) == {}
        events = await_events(monitor, lambda events: len(events) >= 4)
        assert events == [
            RouteEvent(False, ours, rsock.portid, False, False),
            RouteEvent(False, theirs, other.portid, False, False),
            RouteEvent(False, ours._replace(gateway=gateway(2, family)), rsock.portid, True, False),
            RouteEvent(True, theirs, other.portid, False, False),
        ]
        assert monitor.read() == []


def test_the_monitor_tells_routes_of_every_table(rsock, monitor):
    assert rsock.apply(add(peer(1, 4, table=1000))) == {}
    (event,) = await_events(monitor, bool)
    assert event.route.table == 1000


def test_an_appended_route_is_told_as_such(node, rsock, monitor):
    assert rsock.apply(add(peer(1, 4))) == {}
    node.run("ip", "route", "append", str(peer(1, 4).prefix), "via", "10.99.0.3", "metric", "101")
    first, second = await_events(monitor, lambda events: len(events) >= 2)
    assert (first.append, second.append) == (False, True)
    assert second.portid not in {0, rsock.portid}


def test_link_down_takes_ipv4_routes_away_in_silence_and_ipv6_routes_by_the_kernel_s_own_hand(node, rsock, monitor):
    assert rsock.apply(add(peer(1, 4), peer(1, 6))) == {}
    await_events(monitor, lambda events: len(events) >= 2)
    node.run("ip", "link", "set", "eth0", "down")
    down = LinkEvent(Link(2, "eth0", False, 1500, "veth"), deleted=False)
    events = await_events(monitor, lambda events: down in events and RouteEvent(True, peer(1, 6), 0, False, False) in events)
    assert shown(node, 4) == shown(node, 6) == []
    routes = [event.route.prefix for event in events if isinstance(event, RouteEvent)]
    assert peer(1, 4).prefix not in routes
    node.run("ip", "link", "set", "eth0", "up")
    await_events(monitor, lambda events: any(isinstance(event, LinkEvent) and event.link.up for event in events))


def test_one_s_own_changes_of_routes_can_be_left_out_and_nothing_else_is(node, rsock, monitor):
    with node.entered():
        other = RouteSocket()
    with other:
        assert rsock.apply(add(*(peer(i, 6) for i in range(3)))) == {}
        assert other.apply(add(peer(7, 6))) == {}
        node.run("ip", "link", "set", "eth0", "down")
        events = monitor.read(but_routes_of=rsock.portid)
        assert [event for event in events if isinstance(event, RouteEvent) and not event.deleted] == [
            RouteEvent(False, peer(7, 6), other.portid, False, False)
        ]
        gone = {event.route for event in events if isinstance(event, RouteEvent) and event.deleted and event.portid == 0}
        assert {peer(i, 6) for i in (0, 1, 2, 7)} <= gone
        assert [event.link.up for event in events if isinstance(event, LinkEvent)][-1] is False


def test_links_come_and_go_but_not_by_leaving_a_bridge(node, monitor):
    def told(want):
        events = await_events(monitor, lambda events: any(isinstance(event, LinkEvent) and want(event) for event in events))
        return [event for event in events if isinstance(event, LinkEvent)]

    node.run("ip", "link", "add", "br9", "type", "bridge")
    (*_, bridge) = told(lambda event: event.link.name == "br9")
    assert bridge == LinkEvent(Link(bridge.link.ifindex, "br9", False, 1500, "bridge"), deleted=False)
    node.run("ip", "link", "add", "veth0", "type", "veth", "peer", "veth1")
    node.run("ip", "link", "set", "veth0", "master", "br9")
    told(lambda event: event.link.name == "veth0" and event.link.master == bridge.link.ifindex)
    node.run("ip", "link", "set", "veth0", "nomaster")
    assert not [event for event in told(lambda event: event.link[1::4] == ("veth0", 0)) if event.deleted]
    node.run("ip", "link", "del", "veth0")
    told(lambda event: event.deleted and event.link.name == "veth0")


@pytest.mark.parametrize("leave", ["set v0 nomaster", "del v0", "del w0", "del br9"])
def test_a_bridge_that_loses_a_port_is_told(node, monitor, leave):
    for command in ("add br9 type bridge", "add v0 type veth peer w0", "set v0 master br9"):
        node.run("ip", "link", *command.split())
    index = node.ip("link", "show", "br9")[0]["ifindex"]
    events = await_events(monitor, lambda events: any(getattr(event, "link", (0,) * 6)[5] == index for event in events))
    assert not [event for event in events if isinstance(event, PortLeft)]
    node.run("ip", "link", *leave.split())
    events = await_events(monitor, lambda events: any(isinstance(event, PortLeft) for event in events))
    assert [event for event in events if isinstance(event, PortLeft)] == [PortLeft(index)]


def test_neighbours_are_forgotten_in_batches_and_those_that_have_gone_by_themselves_are_no_error(monkeypatch, node, rsock):
    entries = [
        f"{ip}{i:x}" if ":" in ip else f"{ip}{i // 250}.{i % 250 + 2}" for ip in ("10.98.", "fd98::1:") for i in range(400)
    ]
    lines = [f"neigh add {ip} lladdr 02:00:00:00:00:01 dev eth0 nud stale" for ip in entries]
    node.run("ip", "-batch", "-", input="\n".join(lines))
    dump = rsock._dump

    def dump_and_lose_one(*asked):
        dumped = list(dump(*asked))
        node.run("ip", "neigh", "del", entries[0], "dev", "eth0")
        return dumped

    monkeypatch.setattr(rsock, "_dump", dump_and_lose_one)
    ifindex = node.ip("link", "show", "eth0")[0]["ifindex"]
    assert rsock.forget_neighbours(ifindex) == len(entries)
    assert not {e["dst"] for e in node.ip("neigh", "show", "dev", "eth0")} & set(entries)


@both
def test_addresses_come_and_go(node, monitor, family):
    where = "10.98.0.1/24" if family == 4 else "fd98::1/64"
    address = HostAddress(2, *prefix(where))
    for verb in ("add", "del"):
        node.run("ip", "addr", verb, where, "dev", "eth0")
        await_events(monitor, lambda events, gone=verb == "del": AddressEvent(address, gone) in events)


@both
def test_a_change_of_forwarding_is_told(node, monitor, family):
    node.sysctl(f"net/ipv{family}/conf/eth0/forwarding", 1)
    assert Netconf(family, 2, True) in await_events(monitor, bool)
    node.sysctl(f"net/ipv{family}/conf/all/forwarding", 1)
    await_events(monitor, lambda events: Netconf(family, -1, True) in events)
    node.sysctl(f"net/ipv{family}/conf/all/forwarding", 0)
    events = await_events(monitor, lambda events: {Netconf(family, -1, False), Netconf(family, 2, False)} <= set(events))
    assert all(isinstance(event, Netconf | RouteEvent) for event in events)


def test_an_overrun_is_told_once_and_what_comes_after_it_arrives(node, rsock):
    with node.entered():
        small = Monitor(receive_buffer=4096)
    with small:
        routes = [peer(i, 4) for i in range(200)]
        assert rsock.apply(add(*routes)) == {}
        with pytest.raises(Overrun):
            small.read()
        assert small.read() == []
        assert rsock.apply(delete(routes[7])) == {}
        assert await_events(small, bool) == [RouteEvent(True, routes[7], rsock.portid, False, False)]
        assert rsock.apply(delete(*routes[8:])) == {}
        with pytest.raises(Overrun):
            small.read()


def test_a_first_pass_over_5000_peers_in_both_families_overruns_nothing(rsock, monitor):
    routes = [peer(i, family) for family in (4, 6) for i in range(5000)]
    assert rsock.apply(add(*routes)) == {}
    assert [event.route for event in monitor.read()] == routes


# Trust and recovery


def test_messages_of_other_processes_are_not_believed(node, rsock, monitor):
    with node.entered():
        forger = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    with forger:
        rsock.lookup(gateway(1, 4))
        event = rtwire.encode_route(24, 0, 0, peer(1, 4))
        forger.sendto(event, (monitor._socket.getsockname()[0], 0))
        assert monitor.read() == []
        answer = bytearray(rtwire.encode_route(24, 0, rsock._sequence + 1, peer(1, 4)))
        struct.pack_into("=I", answer, 12, rsock.portid)

        def forge():
            forger.sendto(bytes(answer), (rsock.portid, 0))

        send = rsock._socket.send
        rsock._send = lambda data, doing: (forge(), send(data))
        assert rsock.lookup(gateway(2, 4)).prefix == prefix("10.99.0.0/24")


def test_a_message_that_does_not_fit_is_said_to_be_lost_and_no_part_of_it_is_believed(node, monitor):
    scratch = bytearray(64)
    node.run("ip", "link", "set", "eth0", "mtu", "1400")
    with pytest.raises(OSError, match="longer than 64 bytes"):
        nlsocket.receive(monitor._socket, scratch, socket.MSG_DONTWAIT)
    node.run("ip", "link", "set", "eth0", "mtu", "1500")
    read, lost = nlsocket.waiting(monitor._socket, scratch)
    assert "longer than 64 bytes" in lost
    assert read == []


@both
def test_what_an_abandoned_request_left_does_not_disturb_the_next(rsock, family):
    routes = [peer(i, family) for i in range(3000)]
    assert rsock.apply(add(*routes)) == {}

    def abandon():
        body = rtwire.encode_dump_routes(family, 254)
        rsock._socket.send(rtwire.encode_message(26, 0x300, 0xFFFFFF00, body))
        rsock._socket.recv(65536)

    abandon()
    assert rsock.apply(add(peer(5000, family))) == {}
    abandon()
    assert rsock.lookup(gateway(1, family)).oif == 2
    abandon()
    assert len(list(rsock.dump_routes(family, 254))) >= 3001
    abandon()
    assert len(rsock.dump_links()) == 2


def test_late_answers_are_told_by_their_number(rsock):
    rsock._socket.send(rtwire.encode_message(26, 0, 0xFFFFFF00, rtwire.encode_lookup(gateway(1, 6))))
    first = rsock._number(1)
    rsock._socket.send(rtwire.encode_message(26, 0, first, rtwire.encode_lookup(gateway(1, 4))))
    buffer, message = next(rsock._answers(first, 1, "look up"))
    assert rtwire.decode_route(buffer, *message[4:]).prefix.family == 4


def test_a_silent_kernel_is_given_up(node):
    with node.entered():
        opened = RouteSocket(timeout=0.05)
    with opened, pytest.raises(NetlinkError, match="wait for nothing: the kernel does not answer") as caught:
        next(opened._answers(1, 1, "wait for nothing"))
    assert caught.value.errno == errno.ETIMEDOUT


def test_a_closed_socket_says_so(rsock, monitor):
    rsock.close()
    monitor.close()
    with pytest.raises(NetlinkError, match="Bad file descriptor"):
        rsock.dump_links()
    with pytest.raises(NetlinkError, match="Bad file descriptor"):
        monitor.read()
