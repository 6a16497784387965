"""Pod traffic through a FORWARD policy of DROP, in both backends of iptables and both families, on the real kernel."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

import pytest
from pynet.apply import forward
from pynet.apply.forward import CHAIN, Forward, ForwardState, rules
from pynet.core.addresses import parse_prefix
from pynet.drivers import command

from tests.kernel.keeper import Keeper
from tests.support.netns import CommandError, Namespace
from tests.support.transactions import Transactions
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator

OWN = tuple(map(parse_prefix, ("10.1.0.0/24", "fd00:1::/64")))
STATE = ForwardState(OWN)
BACKENDS = [("nft", 4), ("nft", 6), ("legacy", 4), ("legacy", 6)]
both_backends = pytest.mark.parametrize(("kind", "family"), BACKENDS, ids=str)


def keeper_in(netns: Namespace) -> Keeper:
    return Keeper(Forward, netns, STATE)


@pytest.fixture
def keeper(netns) -> Iterator[Keeper]:
    with keeper_in(netns) as made:
        yield made


class Tables:
    """One backend's iptables in a namespace, as the oracle."""

    def __init__(self, netns: Namespace, kind: str, family: int) -> None:
        self.netns, self.family = netns, family
        self.program = f"{'iptables' if family == 4 else 'ip6tables'}-{kind}"

    def __call__(self, *args: str) -> str:
        return self.netns.run(self.program, "-w", "5", *args)

    def chain(self) -> list[str] | None:
        try:
            return self("-S", CHAIN).splitlines()
        except CommandError:
            return None

    def forward(self) -> list[str]:
        return self("-S", "FORWARD").splitlines()

    def right(self) -> bool:
        jumps = [line for line in self.forward() if line.endswith(f"-j {CHAIN}")]
        return self.chain() == rules(OWN, self.family) and len(jumps) == 1

    def absent(self) -> bool:
        return self.chain() is None and not any(CHAIN in line for line in self.forward())


@pytest.fixture
def tables(netns, kind, family) -> Tables:
    return Tables(netns, kind, family)


# ---- packets


@pytest.fixture
def routed() -> Iterator[tuple[Namespace, Namespace, Namespace]]:
    """A pod (10.1.0.2, fd00:1::2), its node, and a peer (10.2.0.2, fd00:2::2) behind it."""
    with contextlib.ExitStack() as stack:
        node, pod, peer = (stack.enter_context(Namespace()) for _ in range(3))
        for number, there in ((1, pod), (2, peer)):
            node.run("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", there.name)
            for side, link, host in ((node, f"v{number}", 1), (there, "eth0", 2)):
                side.run("ip", "link", "set", link, "up")
                side.run("ip", "addr", "add", f"10.{number}.0.{host}/24", "dev", link)
                side.run("ip", "addr", "add", f"fd00:{number}::{host}/64", "dev", link, "nodad")
            there.run("ip", "route", "add", "default", "via", f"10.{number}.0.1")
            there.run("ip", "route", "add", "default", "via", f"fd00:{number}::1")
        node.sysctl("net/ipv4/ip_forward", 1)
        node.sysctl("net/ipv6/conf/all/forwarding", 1)
        yield node, pod, peer


def pings(there: Namespace, address: str) -> bool:
    return ", 0% packet loss" in there.run("ping", "-n", "-c", "1", "-W", "1", address, check=False)


@both_backends
def test_pods_pass_a_forward_policy_of_drop(routed, kind, family) -> None:
    node, pod, peer = routed
    tables = Tables(node, kind, family)
    there, back = ("10.2.0.2", "10.1.0.2") if family == 4 else ("fd00:2::2", "fd00:1::2")
    until(lambda: pings(pod, there), "a path")
    tables("-P", "FORWARD", "DROP")
    assert not pings(pod, there)
    with keeper_in(node) as keeper:
        keeper.settle()
        until(lambda: pings(pod, there), "pod to peer")
        until(lambda: pings(peer, back), "peer to pod")
        keeper.settle(ForwardState(OWN, "never"))
    assert not pings(pod, there)
    assert tables.absent()


@both_backends
def test_traffic_of_others_meets_the_policy_as_before(routed, kind, family) -> None:
    node, pod, _peer = routed
    Tables(node, kind, family)("-P", "FORWARD", "DROP")
    with keeper_in(node) as keeper:
        keeper.settle(ForwardState(tuple(map(parse_prefix, ("10.77.0.0/24", "fd00:77::/64")))))
        assert not pings(pod, "10.2.0.2" if family == 4 else "fd00:2::2")


@pytest.mark.parametrize("kind", ["nft", "legacy"])
def test_what_others_reject_stays_rejected(routed, kind) -> None:
    """Say kube-proxy's answer for a Service without endpoints; ours comes after it. `always` is before everything."""
    node, pod, _peer = routed
    tables = Tables(node, kind, 4)
    tables("-N", "KUBE-SERVICES")
    tables("-A", "KUBE-SERVICES", "-d", "10.2.0.2/32", "-j", "REJECT")
    tables("-A", "FORWARD", "-j", "KUBE-SERVICES")
    tables("-P", "FORWARD", "DROP")
    with keeper_in(node) as keeper:
        keeper.settle()
        refused = "Destination Port Unreachable"
        until(lambda: refused in pod.run("ping", "-n", "-c", "1", "-W", "1", "10.2.0.2", check=False), "the refusal")
        tables("-D", "FORWARD", *keeper_jump(tables))
        keeper.settle(ForwardState(OWN, "always"))
        until(lambda: pings(pod, "10.2.0.2"), "accepted before all others")


def keeper_jump(tables: Tables) -> list[str]:
    import shlex

    return shlex.split(next(line for line in tables.forward() if CHAIN in line))[2:]


# ---- the rules


@both_backends
def test_chain_is_kept_where_the_policy_is_drop(tables, keeper) -> None:
    tables("-A", "FORWARD", "-s", "10.9.9.9" if tables.family == 4 else "fd00:9::9", "-j", "LOG")
    before = tables.forward()
    tables("-P", "FORWARD", "DROP")
    keeper.settle()
    assert tables.right()
    assert tables.forward()[1:-1] == before[1:]  # theirs, untouched, and first
    print("\n".join(["", *tables.forward(), *(tables.chain() or [])]))


@both_backends
def test_nothing_is_made_where_the_policy_is_accept_nor_in_the_other_backend(tables, keeper, netns, kind, family) -> None:
    tables("-P", "FORWARD", "ACCEPT")
    other = Tables(netns, kind, 10 - family)
    other("-P", "FORWARD", "DROP")
    keeper.settle()
    assert tables.absent()
    assert other.right()


def test_on_a_host_without_iptables_rules_no_table_appears(keeper, netns) -> None:
    for mode in ("auto", "always", "never"):
        keeper.settle(ForwardState(OWN, mode))
        keeper.resync()
    assert netns.run("nft", "list", "ruleset") == ""
    with netns.entered():
        assert not forward.has_legacy_filter(4)
        assert not forward.has_legacy_filter(6)


def test_a_legacy_table_that_is_not_there_is_not_made_by_looking_for_it(keeper, netns) -> None:
    for family in (4, 6):
        Tables(netns, "nft", family)("-P", "FORWARD", "DROP")  # so that there is something to do in the other backend
        Tables(netns, "legacy", family)("-t", "nat", "-S")
    keeper.settle()
    keeper.resync()
    assert keeper.it.stop(5)
    with netns.entered():
        forward.remove()
    for names in ("ip_tables_names", "ip6_tables_names"):
        assert netns.run("cat", f"/proc/net/{names}").split() == ["nat"]


@both_backends
def test_always_keeps_the_chain_whatever_the_policy_and_first(tables, keeper) -> None:
    tables("-A", "FORWARD", "-j", "DROP")
    keeper.settle(ForwardState(OWN, "always"))
    assert tables.right()
    assert CHAIN in tables.forward()[1]


@both_backends
def test_second_look_changes_nothing(tables, keeper, netns) -> None:
    tables("-P", "FORWARD", "DROP")
    keeper.settle()
    announced = Transactions(netns)
    counters = tables("-vnL", "FORWARD")
    with keeper_in(netns) as restarted:
        keeper.resync()
        restarted.settle()
        restarted.resync()
    assert tables("-vnL", "FORWARD") == counters
    assert announced.since_last_look() == []


@both_backends
def test_chain_goes_when_the_policy_becomes_accept(tables, keeper) -> None:
    tables("-P", "FORWARD", "DROP")
    keeper.settle()
    tables("-P", "FORWARD", "ACCEPT")
    keeper.resync()
    assert tables.absent()


@both_backends
def test_another_pod_cidr_replaces_the_rules(tables, keeper) -> None:
    tables("-P", "FORWARD", "DROP")
    keeper.settle(ForwardState(tuple(map(parse_prefix, ("10.7.0.0/24", "fd00:7::/64")))))
    keeper.settle()
    assert tables.right()
    keeper.settle(ForwardState(()))
    assert tables.absent()
    assert keeper.drifts.empty()


# ---- repaired


HARMS = [
    ["-F", CHAIN],
    ["-F", "FORWARD"],
    ["-D", CHAIN, "1"],
    ["-I", CHAIN, "-j", "DROP"],
    ["-A", "FORWARD", "-j", CHAIN],
    ["-D", "FORWARD", "1"],
]


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("harm", HARMS, ids=" ".join)
def test_nft_backend_is_repaired_on_the_event(netns, keeper, family, harm) -> None:
    tables = Tables(netns, "nft", family)
    tables("-P", "FORWARD", "DROP")
    keeper.settle()
    tables(*harm)
    kind, seconds = keeper.drifts.get(timeout=5)
    assert kind == "forward"
    print(f"\n{' '.join(harm)}: repaired {1000 * seconds:.0f} ms after the event")
    until(tables.right, "repaired")


@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("harm", HARMS, ids=" ".join)
def test_legacy_backend_is_repaired_on_resync(netns, keeper, family, harm) -> None:
    tables = Tables(netns, "legacy", family)
    tables("-P", "FORWARD", "DROP")
    keeper.settle()
    tables(*harm)
    assert not tables.right()
    keeper.resync()
    assert tables.right()
    assert keeper.drifts.get(timeout=5)[0] == "forward"


@pytest.mark.parametrize("family", [4, 6])
def test_a_policy_that_becomes_drop_later_is_noticed_at_once(netns, keeper, family) -> None:
    """Docker sets it when it starts, which may be after us."""
    keeper.settle()
    tables = Tables(netns, "nft", family)
    tables("-P", "FORWARD", "DROP")
    began = time.monotonic()
    until(tables.right, "the chain")
    print(f"\naccepted {1000 * (time.monotonic() - began):.0f} ms after the policy became DROP")
    assert keeper.drifts.empty()


def test_our_own_writes_wake_nobody(netns, keeper, monkeypatch) -> None:
    looks = []
    look = forward.list_chains
    monkeypatch.setattr(forward, "list_chains", lambda: looks.append(None) or look())
    Tables(netns, "nft", 4)("-P", "FORWARD", "DROP")
    keeper.settle()
    time.sleep(3 * forward._GAP)  # that nothing happens can only be waited for
    assert len(looks) == 1


def test_a_fight_is_told_and_paused(netns, keeper) -> None:
    tables = Tables(netns, "nft", 4)
    tables("-P", "FORWARD", "DROP")
    keeper.settle()

    def fought() -> bool:
        tables("-F", "FORWARD")
        return "keeps undoing" in keeper.it.error

    until(fought, "a pause", seconds=30)
    assert keeper.it.error.startswith("iptables-nft: ")
    until(tables.right, "peace")


# ---- what can go wrong


def test_native_nft_drop_is_reported_only(netns, keeper) -> None:
    netns.run("nft", "add table inet fw; add chain inet fw forward { type filter hook forward priority 0; policy drop; }")
    netns.run("nft", "add chain inet fw other { type filter hook forward priority 1; policy accept; }")
    netns.run("nft", "add chain inet fw inbound { type filter hook input priority 1; policy drop; }")
    before = netns.run("nft", "list", "ruleset")
    keeper.settle()
    assert len(keeper.it.reported) == 1
    assert keeper.it.reported[0].startswith("nft chain inet fw forward drops")
    assert netns.run("nft", "list", "ruleset") == before
    netns.run("nft", "flush", "ruleset")
    keeper.resync()
    assert keeper.it.reported == ()


def in_a_process(netns: Namespace, *wrapper: str, mode: str = "auto", env: tuple[str, ...] = ()) -> str:
    program = (
        "import structlog, threading\n"
        "from pynet.apply.forward import Forward, ForwardState\nfrom pynet.core.addresses import parse_prefix\n"
        "done = threading.Event()\n"
        "it = Forward(lambda *result: (print('result', *result), done.set()), print, structlog.get_logger())\n"
        f"it.submit(ForwardState((parse_prefix('10.1.0.0/24'),), {mode!r}))\ndone.wait(10)\n"
    )
    said = netns.run(*env, *wrapper, sys.executable, "-c", program)
    return next(line for line in said.splitlines() if line.startswith("result"))


def test_legacy_without_net_raw_says_what_is_needed(netns) -> None:
    Tables(netns, "legacy", 4)("-P", "FORWARD", "DROP")
    without = ("setpriv", "--bounding-set=-net_raw", "--inh-caps=-net_raw")
    said = in_a_process(netns, *without)
    print(said)
    assert "iptables-legacy: " in said
    assert "CAP_NET_RAW" in said
    assert in_a_process(netns, *without, mode="never") == "result forward "


def test_legacy_without_the_lock_file_says_what_is_needed(netns, keeper, monkeypatch) -> None:
    Tables(netns, "legacy", 4)("-P", "FORWARD", "DROP")
    Tables(netns, "nft", 6)("-P", "FORWARD", "DROP")
    run = command.run
    locked = "Fatal: can't open lock file /run/xtables.lock: Read-only file system"

    def denied(arguments, *rest, **more):
        if "legacy" in arguments[0]:
            raise command.CommandError(arguments[0], locked, 4)
        return run(arguments, *rest, **more)

    monkeypatch.setattr(command, "run", denied)
    keeper.submit()
    assert keeper.results.get(timeout=5) == (
        "forward",
        f"iptables-legacy: {locked} (/run/xtables.lock of the host must be mounted writable)",
    )
    assert Tables(netns, "nft", 6).right()  # one backend that fails does not stop the others
    monkeypatch.undo()
    until(keeper.is_settled, "allowed")
    assert Tables(netns, "legacy", 4).right()


def test_without_iptables_the_reason_is_one_line(netns, keeper, monkeypatch) -> None:
    Tables(netns, "nft", 4)("-P", "FORWARD", "DROP")
    monkeypatch.setattr(command, "find", lambda _name: None)
    keeper.submit()
    assert keeper.results.get(timeout=5) == ("forward", "iptables-nft: not installed: install the package iptables")


def test_a_chain_with_native_rules_is_an_error_not_a_guess(netns, keeper) -> None:
    Tables(netns, "legacy", 4)("-P", "FORWARD", "ACCEPT")  # then iptables-nft begins with a remark
    Tables(netns, "nft", 4)("-P", "FORWARD", "DROP")
    netns.run("nft", "add rule ip filter FORWARD meta mark set 1 ct state vmap { new : accept }")
    keeper.submit()
    _, error = keeper.results.get(timeout=5)
    print(error)
    assert "incompatible" in error
    assert "Warning" not in error


# ---- cleanup


def test_remove_takes_ours_from_every_backend_and_nothing_else(netns, keeper) -> None:
    every = [Tables(netns, kind, family) for kind, family in BACKENDS]
    before = {}
    for tables in every:
        tables("-N", "THEIRS")
        tables("-A", "FORWARD", "-j", "THEIRS")
        tables("-P", "FORWARD", "DROP")
        before[tables.program] = tables("-S")
    keeper.settle()
    assert all(tables.right() for tables in every)
    assert keeper.it.stop(5)
    names = [f"{tables.program} chain {CHAIN}" for tables in every]
    with netns.entered():
        assert forward.remove(dry_run=True) == names
        assert all(tables.right() for tables in every)
        assert forward.remove() == names
        assert forward.remove() == []
    assert {tables.program: tables("-S") for tables in every} == before


def test_remove_goes_on_after_a_backend_that_fails_and_then_tells(netns, keeper, monkeypatch) -> None:
    every = [Tables(netns, kind, family) for kind, family in BACKENDS]
    for tables in every:
        tables("-P", "FORWARD", "DROP")
    keeper.settle()
    assert keeper.it.stop(5)
    run = command.run

    def denied(arguments, *rest, **more):
        if arguments[0] == "iptables-nft":
            raise command.CommandError(arguments[0], "Permission denied", 4)
        return run(arguments, *rest, **more)

    monkeypatch.setattr(command, "run", denied)
    with netns.entered(), pytest.raises(command.CommandError, match="iptables-nft: Permission denied"):
        forward.remove()
    assert [tables.absent() for tables in every] == [False, True, True, True]


def test_remove_on_a_host_without_iptables_rules_makes_nothing(netns) -> None:
    with netns.entered():
        assert forward.remove() == []
        assert not forward.has_legacy_filter(4)
    assert netns.run("nft", "list", "ruleset") == ""
