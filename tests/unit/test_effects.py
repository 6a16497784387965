"""What a pass hands on: the sets of the rules, the conflist, the snapshot. What the appliers do is tested with each."""

from __future__ import annotations

from types import SimpleNamespace

import msgspec
import pytest
import structlog
from pynet import config
from pynet.apply.effects import Effects, Now, Parts
from pynet.apply.snapshot import load
from pynet.core.addresses import parse_address, parse_prefix
from pynet.core.claims import Claim
from pynet.core.desired import Desired
from pynet.core.host import Host

from tests.support.waiting import until
from tests.unit.strategies import OWN, OWN_FACTS, host
from tests.unit.test_desired import SETTINGS, peer, world

SETTLED = Now(settled=True, complete=True, verified=True, advertised=frozenset())
GOOGLE = parse_address("8.8.8.8")


class Part:
    """Takes what is submitted, in place of an applier."""

    ok = True

    def __init__(self) -> None:
        self.given: list = []

    def submit(self, value: object) -> None:
        self.given.append(value)

    def stop(self, seconds: float) -> None:
        pass


@pytest.fixture
def made(tmp_path):
    """Effects over a world of one's own: ``made(desired)``."""
    every: list[Effects] = []

    def make(desired: Desired, *, socket: object = None, **settings: object) -> Effects:
        chosen = msgspec.convert({"stateDir": str(tmp_path), **settings}, config.Config)
        effects = Effects(
            chosen, desired, Parts(Part(), Part(), Part(), None, None), None, structlog.get_logger(), socket=socket
        )
        every.append(effects)
        return effects

    yield make
    for effects in every:
        effects.stop(5)


def rules(effects: Effects, now: Now = SETTLED):
    """The ruleset that follows from a pass."""
    given = effects.parts.masquerade.given
    count = len(given)
    effects.hand_over(now)
    until(lambda: len(given) > count, "a ruleset")
    return given[-1]


def test_accepted_peers_are_in_the_sets_and_rejected_ones_are_not(made):
    found = rules(made(world(peer("a"), peer("bad", "10.96.0.0/24", "10.99.0.3"))))
    assert found.pods == set(map(parse_prefix, ("10.244.0.0/24", "10.244.1.0/24", "fd00:0:0:1::/64")))
    assert set(found.nodes) == {parse_address(ip) for ip in ("10.99.0.1", "fd99::1", "10.99.0.2")}


def test_an_address_that_never_was_on_link_switches_no_masquerading_off(made):
    """A kubelet may write any InternalIP into its own status."""
    assert GOOGLE not in rules(made(world(peer("evil", ip="8.8.8.8")))).nodes


def test_an_outage_of_the_link_leaves_the_peers_in_the_sets(made):
    desired = world(peer("a"))
    effects = made(desired)
    before = rules(effects)
    desired.set_host(host(addresses=False, link=False))
    assert desired.verdicts["a", 4].state == "unreachable"
    after = rules(effects)
    assert (after.pods, after.nodes) == (before.pods, before.nodes)
    desired.update({"a": peer("a", ip="8.8.8.8")})
    assert GOOGLE not in rules(effects).nodes


def test_what_the_removal_guard_keeps_stays_in_the_sets_and_in_the_snapshot(made):
    desired = world(peer("a"), peer("b", "10.244.2.0/24", "10.99.0.3"))
    effects = made(desired)
    before = rules(effects)
    until(lambda: effects.snapshot_saved, "the snapshot", seconds=10)
    saved = effects.snapshot_saved
    desired.update({"a": None, "b": None})
    kept = frozenset(Claim(parse_prefix(f"10.244.{n}.0/24"), parse_address(f"10.99.0.{n + 1}")) for n in (1, 2))
    held = rules(effects, SETTLED._replace(kept=kept))
    assert (held.pods, held.nodes) == (before.pods, before.nodes)
    effects._snapshot.stop(10)  # nothing is under way any more
    assert effects.snapshot_saved == saved
    assert {node.name for node in load(effects.snapshot_path, OWN).nodes} == {OWN, "a", "b"}


def test_an_interface_that_is_gone_for_a_moment_does_not_take_the_mtu_out_of_the_conflist(made):
    desired = world(peer("a"))
    effects = made(desired)
    effects.hand_over(SETTLED)
    desired.set_host(Host())
    effects.hand_over(SETTLED)
    assert [wanted.mtu for wanted in effects.parts.conflist.given] == [1500, 1500]


def test_nothing_tells_that_pods_may_start_before_the_routes_and_the_rules_are_there(made):
    effects = made(world(peer("a")))
    effects.hand_over(SETTLED._replace(settled=False))
    assert effects.parts.conflist.given == []
    effects.parts.masquerade.ok = effects.parts.conflist.ok = False
    effects.hand_over(SETTLED)
    assert effects.parts.conflist.given == []
    effects.parts.masquerade.ok = True
    effects.hand_over(SETTLED)
    assert len(effects.parts.conflist.given) == 1


def test_without_our_own_node_nothing_is_handed_over(made):
    desired = Desired(SETTINGS)
    desired.set_host(host())
    desired.update({"a": peer("a")})
    effects = made(desired)
    effects.hand_over(SETTLED)
    desired.update({OWN: OWN_FACTS})
    assert len(rules(effects).own) == 2
    assert len(effects.parts.masquerade.given) == 1


def test_a_sysctl_that_is_written_is_told_with_what_it_was(made, tmp_path):
    for name, value in (("conf/eth0/forwarding", "1"), ("ip_forward", "0")):
        path = tmp_path / "net/ipv4" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value)
    effects = made(world(peer("a")), sysctls={"root": str(tmp_path)}, cni={"enabled": False})
    with structlog.testing.capture_logs() as said:
        effects.write_sysctls(SETTLED)
    told = {"event": "sysctl_written", "log_level": "info", "name": "net.ipv4.ip_forward", "was": "0", "value": "1"}
    assert told in said


@pytest.mark.parametrize(
    ("cni", "forgets"), [({}, True), ({"plugin": "ptp"}, False), ({"enabled": False}, False)], ids=["bridge", "ptp", "off"]
)
def test_neighbours_are_forgotten_at_a_bridge_of_ours_and_nowhere_else(made, cni, forgets):
    asked = []
    socket = SimpleNamespace(forget_neighbours=asked.append)
    made(world(), socket=socket, cni={"bridgeName": "lo", **cni}).ports_left({1}, unsure=True)
    assert asked == ([1] if forgets else [])
