"""Which lines make FORWARD right, and what is left to others."""

from __future__ import annotations

import pytest
from pynet.apply.forward import CHAIN, backends, native_drops, plan, rules
from pynet.core.addresses import parse_prefix
from pynet.drivers.iptables import Backend
from pynet.drivers.nfnetlink import Chain

OWN = tuple(map(parse_prefix, ("10.1.0.0/24", "fd00:1::/64")))
JUMP = '-A FORWARD -m comment --comment "pynet: pods of this node" -j PYNET-FORWARD'
WANTED = rules(OWN, 4)


def test_rules_name_only_our_own_pods_of_the_family() -> None:
    assert WANTED == [
        "-N PYNET-FORWARD",
        '-A PYNET-FORWARD -s 10.1.0.0/24 -m comment --comment "from a pod of this node" -j ACCEPT',
        '-A PYNET-FORWARD -d 10.1.0.0/24 -m comment --comment "to a pod of this node" -j ACCEPT',
    ]
    assert [line.split()[3] for line in rules(OWN, 6)[1:]] == ["fd00:1::/64"] * 2
    assert rules(OWN[:1], 6) == []


def test_nothing_to_do_where_chain_and_jump_are_right() -> None:
    assert plan(["-P FORWARD DROP", JUMP], WANTED, WANTED, first=False) == []
    assert plan(["-P FORWARD DROP", JUMP], WANTED, WANTED, first=True) == []


def test_place_of_the_jump_is_not_fought_over() -> None:
    theirs = "-A FORWARD -j DOCKER-USER"
    for forward in ([theirs, JUMP], [JUMP, theirs]):
        for first in (False, True):
            assert plan(["-P FORWARD DROP", *forward], WANTED, WANTED, first=first) == []


@pytest.mark.parametrize(("first", "verb"), [(False, "-A"), (True, "-I")])
def test_chain_and_jump_are_made_in_one_transaction(first, verb) -> None:
    lines = plan(["-P FORWARD DROP", "-A FORWARD -j THEIRS"], None, WANTED, first=first)
    assert lines == [f":{CHAIN} - [0:0]", *WANTED[1:], verb + JUMP[2:]]


@pytest.mark.parametrize(
    "chain", [None, ["-N PYNET-FORWARD"], WANTED[:2], [*WANTED, "-A PYNET-FORWARD -j DROP"], [WANTED[0], WANTED[2], WANTED[1]]]
)
def test_a_wrong_chain_is_made_anew_and_the_jump_stays(chain) -> None:
    assert plan(["-P FORWARD DROP", JUMP], chain, WANTED, first=False) == [f":{CHAIN} - [0:0]", *WANTED[1:]]


def test_doubled_and_changed_jumps_become_one() -> None:
    odd = "-A FORWARD -i eth0 -j PYNET-FORWARD"
    goto = "-A FORWARD -g PYNET-FORWARD"
    lines = plan(["-P FORWARD DROP", JUMP, odd, JUMP, goto], WANTED, WANTED, first=False)
    assert lines == [*("-D" + line[2:] for line in (JUMP, odd, JUMP, goto)), JUMP]


def test_a_jump_to_somebody_elses_chain_is_not_ours() -> None:
    theirs = "-A FORWARD -j NOT-PYNET-FORWARD"
    assert plan(["-P FORWARD DROP", theirs], None, [], first=False) == []


def test_removal_takes_jumps_and_chain() -> None:
    assert plan(["-P FORWARD DROP", JUMP], WANTED, [], first=False) == ["-D" + JUMP[2:], f"-F {CHAIN}", f"-X {CHAIN}"]
    assert plan(["-P FORWARD ACCEPT"], ["-N PYNET-FORWARD"], [], first=False) == [f"-F {CHAIN}", f"-X {CHAIN}"]
    assert plan(["-P FORWARD DROP"], None, [], first=False) == []


CHAINS = [
    Chain("ip", "filter", "FORWARD", forward=True, drops=True),
    Chain("ip6", "filter", "INPUT", forward=False, drops=True),
    Chain("inet", "firewall", "forward", forward=True, drops=True),
    Chain("inet", "firewall", "input", forward=False, drops=True),
    Chain("inet", "other", "forward", forward=True, drops=False),
    Chain("ip", "filter", "forward", forward=True, drops=True),
]


def test_native_drops_are_named_and_iptables_chains_are_not_native() -> None:
    assert [reason.partition(" drops")[0] for reason in native_drops(CHAINS)] == [
        "nft chain inet firewall forward",
        "nft chain ip filter forward",
    ]


def test_nft_backend_is_where_iptables_has_forward(netless) -> None:
    assert backends(CHAINS) == [Backend("nft", 4)]
    assert [str(backend) for backend in (Backend("nft", 6), Backend("legacy", 4))] == ["ip6tables-nft", "iptables-legacy"]


@pytest.fixture
def netless(monkeypatch) -> None:
    monkeypatch.setattr("pynet.apply.forward.has_legacy_filter", lambda _family: False)
