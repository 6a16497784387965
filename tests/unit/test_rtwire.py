"""The codec against pyroute2's: what we encode it reads alike, what it encodes we read alike; and no bytes lead us astray."""

from __future__ import annotations

import errno
import functools
import socket
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pynet.core.model import RTN_UNREACHABLE, UNREACHABLE_METRIC, HostAddress, Link, Prefix, Route, format_address
from pynet.drivers import rtwire
from pynet.drivers.rtwire import NetlinkError
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg

untimed = settings(deadline=None)  # other tests may have the processor
U32 = st.integers(0, 2**32 - 1)
BYTE = st.integers(0, 255)


@st.composite
def routes(draw, *, gateway_needed=False):
    """Any route of one next hop, its destination with host bits and all."""
    width = draw(st.sampled_from((4, 16)))
    gateways = [st.binary(min_size=width, max_size=width)]
    if width == 4:
        gateways.append(st.binary(min_size=16, max_size=16))
    if not gateway_needed:
        gateways.append(st.just(b""))
    prefix = Prefix(draw(st.binary(min_size=width, max_size=width)), draw(st.integers(0, width * 8)))
    return Route(
        prefix,
        metric=draw(st.one_of(st.sampled_from((0, 100, UNREACHABLE_METRIC)), U32)),
        gateway=draw(st.one_of(gateways)),
        oif=draw(st.one_of(st.just(0), st.integers(1, 2**31 - 1))),
        protocol=draw(BYTE),
        type=draw(st.sampled_from((1, 2, 6, RTN_UNREACHABLE, 8))),
        table=draw(st.one_of(st.sampled_from((254, 255, 256, 1000)), st.integers(1, 2**32 - 1))),
        scope=draw(st.sampled_from((0, 200, 253, 254))),
        tos=draw(st.sampled_from((0, 4, 16))),
    )


def one(buffer):
    """The only message of a datagram."""
    (message,) = rtwire.messages(buffer)
    return message


def by_pyroute2(buffer):
    message = rtmsg(buffer)
    message.decode()
    return message


def built_by_pyroute2(kind, fields, attributes, message_type=24):
    message = kind()
    message["header"]["type"] = message_type
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = attributes
    message.encode()
    return bytes(message.data)


def pyroute2_route(route, extra=(), *, order=None):
    """``route`` as pyroute2 would put it, with attributes of no concern to us, in any order."""
    via = {"family": socket.AF_INET6, "addr": format_address(route.gateway)} if route.gateway else None
    same = len(route.gateway) == len(route.prefix.address)
    attributes = [
        ("RTA_TABLE", route.table),
        ("RTA_DST", format_address(route.prefix.address)),
        ("RTA_PRIORITY", route.metric) if route.metric else None,
        (("RTA_GATEWAY", format_address(route.gateway)) if same else ("RTA_VIA", via)) if route.gateway else None,
        ("RTA_OIF", route.oif) if route.oif else None,
        *extra,
    ]
    attributes = [attribute for attribute in attributes if attribute]
    fields = {
        "family": socket.AF_INET if len(route.prefix.address) == 4 else socket.AF_INET6,
        "dst_len": route.prefix.length,
        "tos": route.tos,
        "table": min(route.table, 255),
        "proto": route.protocol,
        "scope": route.scope,
        "type": route.type,
    }
    return built_by_pyroute2(rtmsg, fields, order(attributes) if order else attributes)


def unless_refused(call):
    """What ``call`` returns, None if it says that the message is malformed; any other error is one of ours."""
    try:
        return call()
    except NetlinkError as error:
        if error.errno != errno.EBADMSG:
            raise
        return None


def noise(family):
    """Attributes that the kernel sends and that are nothing to us."""
    prefsrc = "192.0.2.1" if family == 4 else "2001:db8::1"
    cache = dict.fromkeys(("clntref", "lastuse", "expires", "error", "used", "id", "ts", "ts_age"), 0)
    return [
        ("RTA_PREFSRC", prefsrc), ("RTA_PREF", 0), ("RTA_CACHEINFO", cache),
        ("RTA_METRICS", {"attrs": [("RTAX_MTU", 1400)]}), ("RTA_FLOW", 7),
    ]  # fmt: skip


@untimed
@given(routes(), st.sampled_from((24, 25)), st.integers(0, 0xFFFF), U32)
def test_pyroute2_reads_our_routes_as_we_meant_them(route, kind, flags, seq):
    buffer = rtwire.encode_route(kind, flags, seq, route)
    message = by_pyroute2(buffer)
    header = message["header"]
    assert (header["length"], header["type"], header["flags"]) == (len(buffer), kind, flags | 1)
    assert (header["sequence_number"], header["pid"]) == (seq, 0)
    assert message["family"] == (socket.AF_INET if len(route.prefix.address) == 4 else socket.AF_INET6)
    assert (message["dst_len"], message["src_len"], message["tos"]) == (route.prefix.length, 0, route.tos)
    assert (message["proto"], message["scope"], message["type"]) == (route.protocol, route.scope, route.type)
    assert message["flags"] == 0
    assert (message.get_attr("RTA_TABLE") or message["table"]) == route.table
    assert message.get_attr("RTA_DST") == format_address(route.prefix.address)
    assert (message.get_attr("RTA_PRIORITY") or 0) == route.metric
    assert (message.get_attr("RTA_OIF") or 0) == route.oif
    via = message.get_attr("RTA_VIA")
    gateway = via["addr"] if via else message.get_attr("RTA_GATEWAY")
    assert gateway == (format_address(route.gateway) if route.gateway else None)
    known = {"RTA_TABLE", "RTA_DST", "RTA_PRIORITY", "RTA_OIF", "RTA_VIA", "RTA_GATEWAY"}
    assert {name for name, _ in message["attrs"]} <= known


@untimed
@given(routes())
def test_our_bytes_are_those_of_pyroute2_but_for_the_order_of_attributes(route):
    ours, theirs = rtwire.encode_route(24, 0x500, 7, route), pyroute2_route(route)

    def parts(buffer):
        found, at = [], 28
        while at < len(buffer):
            size, kind = struct.unpack_from("=HH", buffer, at)
            found.append((kind, buffer[at + 4 : at + size]))
            at += (size + 3) & ~3
        assert at == len(buffer)
        return sorted(found)

    explicit = [(15, struct.pack("=I", route.table))] if route.table <= 255 else []  # it says the table twice
    assert sorted(parts(ours) + explicit) == parts(theirs)
    assert ours[16:20] == theirs[16:20]
    assert ours[21:28] == theirs[21:28]


@untimed
@given(routes(), st.randoms(use_true_random=False), st.booleans())
def test_we_read_pyroute2_s_routes_as_it_meant_them_whatever_the_order_of_attributes(route, random, noisy):
    extra = noise(route.prefix.family) if noisy else ()
    buffer = pyroute2_route(route, extra, order=lambda attributes: random.sample(attributes, len(attributes)))
    assert rtwire.decode_route(buffer, 16, len(buffer)) == route


@untimed
@given(routes(gateway_needed=True).filter(lambda r: r.metric and r.oif and len(r.gateway) == len(r.prefix.address)))
def test_the_kernel_s_usual_layout_is_read_as_any_other(route):
    cache = dict.fromkeys(("clntref", "lastuse", "expires", "error", "used", "id", "ts", "ts_age"), 0)
    tail = [("RTA_CACHEINFO", cache), ("RTA_PREF", 0)] if route.prefix.family == 6 else ()
    buffer = pyroute2_route(route, tail)
    assert len(buffer) - 16 in rtwire._SHAPES
    assert rtwire.decode_route(buffer, 16, len(buffer)) == route == rtwire._walk_route(buffer, 16, len(buffer))


@untimed
@given(routes(), st.integers(2, 4), st.data())
def test_of_several_next_hops_the_first_is_given_and_that_there_are_more(route, hops, data):
    width = len(route.prefix.address)
    hop = st.tuples(st.binary(min_size=width, max_size=width), st.integers(1, 2**31 - 1))
    chosen = data.draw(st.lists(hop, min_size=hops, max_size=hops))
    legs = [{"oif": oif, "hops": 0, "attrs": [("RTA_GATEWAY", format_address(gateway))]} for gateway, oif in chosen]
    buffer = pyroute2_route(route._replace(gateway=b"", oif=0), [("RTA_MULTIPATH", legs)])
    decoded = rtwire.decode_route(buffer, 16, len(buffer))
    assert decoded == route._replace(gateway=chosen[0][0], oif=chosen[0][1], multipath=True)


def grown(buffer, kind, value):
    """``buffer``, one message, with one more attribute."""
    attribute = struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
    return struct.pack("=I", len(buffer) + len(attribute)) + buffer[4:] + attribute


@untimed
@given(routes())
def test_a_next_hop_object_counts_as_several_next_hops(route):
    buffer = grown(pyroute2_route(route), 30, struct.pack("=I", 12))  # RTA_NH_ID: pyroute2 has no name for it
    assert rtwire.decode_route(buffer, 16, len(buffer)) == route._replace(multipath=True)


@untimed
@given(routes(), st.binary(max_size=40), st.binary(max_size=40))
def test_what_stands_around_a_message_is_not_read(route, before, after):
    buffer = pyroute2_route(route)
    framed = before + buffer + after
    assert rtwire.decode_route(framed, len(before) + 16, len(before) + len(buffer)) == route


@untimed
@given(routes(), st.data())
def test_a_truncated_route_is_refused_or_lacks_only_whole_attributes(route, data):
    buffer = pyroute2_route(route, noise(route.prefix.family))
    end = data.draw(st.integers(16, len(buffer)))
    decoded = unless_refused(lambda: rtwire.decode_route(buffer[:end], 16, end))
    if decoded:
        assert decoded.protocol == route.protocol
        assert decoded.prefix.address in {route.prefix.address, bytes(len(route.prefix.address))}


KINDS = (16, 17, 20, 21, 24, 25, 80, 81, 2, 3, 999)


@untimed
@given(st.sampled_from(KINDS), st.binary(max_size=200), st.integers(0, 0xFFFF))
def test_no_body_makes_decoding_fail_but_with_a_netlink_error(kind, body, flags):
    buffer = rtwire.encode_message(kind, flags, 1, body)
    for decode in (rtwire.decode_event, rtwire.decode_error):
        unless_refused(functools.partial(decode, buffer, one(buffer)))


@untimed
@given(routes(), st.lists(st.tuples(st.integers(0, 300), BYTE), min_size=1, max_size=6))
def test_a_garbled_route_ends_in_a_route_or_a_netlink_error(route, changes):
    plain = pyroute2_route(route, noise(route.prefix.family))
    garbled = bytearray(grown(plain, 9, struct.pack("=HBBi", 16, 0, 0, 2) + bytes(8)))
    for at, value in changes:
        garbled[at % len(garbled)] = value
    buffer = bytes(garbled)
    unless_refused(lambda: [rtwire.decode_event(buffer, message) for message in rtwire.messages(buffer)])


@untimed
@given(st.binary(max_size=300))
def test_walking_over_any_bytes_ends(buffer):
    walked = unless_refused(lambda: list(rtwire.messages(buffer))) or []
    assert all(start <= end <= len(buffer) for *_, start, end in walked)
    assert len(walked) <= len(buffer) / 16


@pytest.mark.parametrize("length", [0, 1, 15, 17, 2**32 - 1])
def test_a_length_that_cannot_be_is_refused(length):
    with pytest.raises(NetlinkError, match="malformed"):
        list(rtwire.messages(struct.pack("=IHHII", length, 24, 0, 0, 0)))


@untimed
@given(st.lists(routes(), max_size=5))
def test_each_message_of_a_datagram_is_found(several):
    buffer = b"".join(rtwire.encode_route(24, 0, seq, route) for seq, route in enumerate(several))
    walked = list(rtwire.messages(buffer))
    assert [message[2] for message in walked] == list(range(len(several)))
    assert [rtwire.decode_route(buffer, start, end) for *_, start, end in walked] == several


@pytest.mark.parametrize(
    ("fields", "attributes"),
    [
        ({"family": 2, "dst_len": 33}, []),
        ({"family": 10, "dst_len": 129}, []),
        ({"family": 28, "dst_len": 20}, []),
        ({"family": 2, "dst_len": 24}, [("RTA_GATEWAY", "10.0.0.1"), ("RTA_MULTIPATH", [])]),
    ],
)
def test_a_route_that_cannot_be_is_refused(fields, attributes):
    buffer = built_by_pyroute2(rtmsg, fields, attributes)
    with pytest.raises(NetlinkError, match="malformed"):
        rtwire.decode_route(buffer, 16, len(buffer))


def attribute(kind, value, size=None):
    """An attribute that claims ``size`` bytes, its true size if None."""
    return struct.pack("=HH", 4 + len(value) if size is None else size, kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    "attributes",
    [
        attribute(4, bytes(4), size=3),
        attribute(4, bytes(4), size=9),
        attribute(1, bytes(4)) + attribute(4, bytes(3)),
        attribute(1, bytes(16)),
        attribute(5, bytes(5)),
        attribute(18, bytes(7)),
        attribute(9, bytes(7)),
        attribute(9, struct.pack("=HBBi", 7, 0, 0, 2)),
        attribute(9, struct.pack("=HBBi", 16, 0, 0, 2) + bytes(4)),
        attribute(9, struct.pack("=HBBi", 16, 0, 0, 2) + attribute(5, bytes(4), size=12)),
    ],
)
def test_an_attribute_that_cannot_be_is_refused(attributes):
    body = struct.pack("=8BI", 2, 24, 0, 0, 254, 110, 0, 1, 0) + attributes
    with pytest.raises(NetlinkError, match="malformed"):
        rtwire.decode_route(body + bytes(64), 0, len(body))


def test_messages_begin_at_multiples_of_four_bytes():
    buffer = rtwire.encode_message(24, 0, 1, bytes(13)) + bytes(3) + rtwire.encode_message(25, 0, 2, bytes(12))
    assert [(kind, start, end) for kind, _, _, _, start, end in rtwire.messages(buffer)] == [(24, 16, 29), (25, 48, 60)]


LINKS = st.builds(
    Link,
    ifindex=st.integers(1, 2**31 - 1),
    name=st.text("abc-.0", min_size=1, max_size=15),
    up=st.booleans(),
    mtu=U32,
    kind=st.sampled_from(("", "bridge", "veth")),
    master=st.integers(0, 99),
)


@untimed
@given(LINKS)
def test_we_read_pyroute2_s_links_as_it_meant_them(link):
    attributes = [("IFLA_IFNAME", link.name), ("IFLA_MTU", link.mtu), ("IFLA_ADDRESS", "02:00:00:00:00:01")]
    attributes += [("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", link.kind)]})] if link.kind else []
    attributes += [("IFLA_MASTER", link.master)] if link.master else []
    buffer = built_by_pyroute2(ifinfmsg, {"family": 0, "index": link.ifindex, "flags": int(link.up) | 0x1002}, attributes)
    assert rtwire.decode_link(buffer, 16, len(buffer)) == link


@untimed
@given(st.sampled_from((4, 16)), st.data(), st.integers(1, 2**31 - 1), st.booleans())
def test_we_read_pyroute2_s_addresses_as_it_meant_them_our_end_of_a_point_to_point_link(width, data, ifindex, peer):
    ours, theirs = (data.draw(st.binary(min_size=width, max_size=width)) for _ in range(2))
    length = data.draw(st.integers(0, width * 8))
    attributes = [("IFA_ADDRESS", format_address(theirs if peer else ours))]
    attributes += [("IFA_LOCAL", format_address(ours))] if peer or width == 4 else []
    fields = {"family": 2 if width == 4 else 10, "prefixlen": length, "index": ifindex}
    buffer = built_by_pyroute2(ifaddrmsg, fields, attributes, 20)
    assert rtwire.decode_address(buffer, 16, len(buffer)) == HostAddress(ifindex, ours, length)


def netconf(family, *numbers):
    """A netconf message: pairs of attribute and signed number."""
    body = struct.pack("=B3x", family)
    return body + b"".join(struct.pack("=HHi", 8, kind, value) for kind, value in zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize(
    ("body", "meaning"),
    [
        (netconf(2, 1, -1, 2, 1), rtwire.Netconf(4, -1, forwarding=True)),
        (netconf(10, 1, -2, 2, 0), rtwire.Netconf(6, -2, forwarding=False)),
        (netconf(2, 1, 7, 3, 1, 2, 1), rtwire.Netconf(4, 7, forwarding=True)),
        (netconf(2, 1, 7, 3, 1), None),  # rp_filter
        (netconf(28, 1, 7, 2, 1), None),  # MPLS
    ],
)
def test_netconf_tells_of_forwarding_or_nothing(body, meaning):
    buffer = rtwire.encode_message(80, 0, 0, body)
    assert rtwire.decode_event(buffer, one(buffer)) == meaning


@untimed
@given(routes(), st.sampled_from((24, 25)), st.sampled_from((0, 0x100, 0x400, 0x800, 0xC00)), U32)
def test_an_event_says_what_was_done_and_by_whom(route, kind, flags, portid):
    buffer = bytearray(pyroute2_route(route))
    struct.pack_into("=HHII", buffer, 4, kind, flags, 0, portid)
    event = rtwire.decode_event(bytes(buffer), one(bytes(buffer)))
    assert event == rtwire.RouteEvent(kind == 25, route, portid, bool(flags & 0x100), bool(flags & 0x800))


@untimed
@given(routes())
def test_exceptions_that_the_kernel_makes_of_routes_are_no_events(route):
    buffer = bytearray(pyroute2_route(route))
    struct.pack_into("=I", buffer, 24, 0x200)  # RTM_F_CLONED
    assert rtwire.decode_event(bytes(buffer), one(bytes(buffer))) is None
    assert not rtwire.is_route(bytes(buffer), 16, len(buffer), 2, 10)


def test_a_port_that_leaves_its_bridge_is_told_as_such_and_is_not_a_deleted_link():
    def told(kind, family, *more):
        buffer = built_by_pyroute2(ifinfmsg, {"family": family, "index": 5}, [("IFLA_IFNAME", "veth0"), *more], kind)
        return rtwire.decode_event(buffer, one(buffer))

    assert told(17, socket.AF_BRIDGE, ("IFLA_MASTER", 7)) == rtwire.PortLeft(7)
    assert told(16, socket.AF_BRIDGE, ("IFLA_MASTER", 7)) is None  # it came, or its state has changed
    assert told(17, socket.AF_BRIDGE) is None
    assert told(17, socket.AF_UNSPEC) == rtwire.LinkEvent(Link(5, "veth0", up=False, mtu=0), deleted=True)


def test_a_dump_of_neighbours_asks_for_one_interface_as_pyroute2_does():
    """In the attribute: the kernel refuses an index in the header of a dump."""
    assert rtwire.encode_dump_neighbours(7) == built_by_pyroute2(ndmsg, {}, [("NDA_IFINDEX", 7)])[16:]


NUD = {"incomplete": 1, "reachable": 2, "stale": 4, "delay": 8, "probe": 16, "failed": 32, "noarp": 64, "permanent": 128}


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize("state", NUD)
def test_neighbours_that_the_kernel_has_asked_for_are_learnt_and_those_that_somebody_has_set_are_not(family, state):
    def built(**fields):
        given = {"family": family, "ifindex": 7, "state": NUD[state], **fields}
        attributes = [("NDA_DST", "10.0.0.2" if family == socket.AF_INET else "fd00::2"), ("NDA_LLADDR", "02:00:00:00:00:01")]
        return built_by_pyroute2(ndmsg, given, attributes, 28)

    def learnt(buffer):
        return rtwire.is_learnt(buffer, 16, len(buffer), 7)

    assert learnt(built()) is (state not in {"noarp", "permanent"})
    assert learnt(built(flags=0x80)) is learnt(built())  # it is a router
    assert not learnt(built(flags=0x10))  # of a routing daemon
    assert not learnt(built(ifindex=8))


def test_a_truncated_neighbour_is_refused():
    with pytest.raises(NetlinkError, match="malformed"):
        rtwire.is_learnt(bytes(11), 0, 11, 0)


WORDS = struct.pack("=HH", 4 + 14, 1) + b"Nexthop wrong\0" + bytes(2)
REQUEST = rtwire.encode_route(24, 0, 3, Route(Prefix(bytes(4), 0), 1))


@pytest.mark.parametrize(
    ("kind", "flags", "body"),
    [
        (2, 0x300, struct.pack("=i", -22) + REQUEST[:16] + WORDS),  # capped: the request's header alone
        (2, 0x200, struct.pack("=i", -22) + REQUEST + WORDS),
        (3, 0x202, struct.pack("=i", -22) + WORDS),  # the end of a dump that failed
    ],
)
def test_the_kernel_s_words_are_found_in_every_form_of_an_error(kind, flags, body):
    buffer = rtwire.encode_message(kind, flags, 3, body)
    assert rtwire.decode_error(buffer, one(buffer)) == (22, "Nexthop wrong")


@pytest.mark.parametrize(("kind", "body"), [(2, struct.pack("=i", -17) + REQUEST[:16]), (3, struct.pack("=i", -17))])
def test_an_error_without_words_has_its_number(kind, body):
    buffer = rtwire.encode_message(kind, 0x100, 3, body)
    assert rtwire.decode_error(buffer, one(buffer)) == (17, "")


def test_an_error_explains_itself():
    error = NetlinkError(errno.EINVAL, "Nexthop wrong", "add route 10.0.0.0/24")
    assert (error.errno, error.text) == (errno.EINVAL, "Nexthop wrong")
    assert str(error) == "[Errno 22] add route 10.0.0.0/24: Nexthop wrong"
    assert NetlinkError(errno.ESRCH).text == "No such process"
