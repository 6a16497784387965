"""Status, readiness and `pynet status`: the truth, in words that a person can act on."""

from __future__ import annotations

import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pynet.commands.status import render
from pynet.core.model import Prefix
from pynet.report.readiness import Waiting, liveness, readiness
from pynet.report.status import (
    ApiStatus,
    HeldStatus,
    NodeStatus,
    PartStatus,
    PassStatus,
    PeerStatus,
    Status,
    StatusBoard,
    SysctlStatus,
)

NOW = 1_800_000_000.0
RIGHT = PartStatus("ok")
GOOD = Status(
    node=NodeStatus("node-1", "uid-1", known=True, pod_cidrs=("10.244.1.0/24",), addresses=("192.168.0.1",)),
    api=ApiStatus("https://10.0.0.1:6443", connected=True, last_contact=NOW - 2, complete=True, source="api"),
    sysctls=(SysctlStatus("net.ipv4.ip_forward", "1", "1"),),
    masquerade=RIGHT,
    forward=PartStatus("off"),
    conflist=PartStatus("ok", detail="/etc/cni/net.d/05-pynet.conflist"),
    condition=RIGHT,
    last_pass=PassStatus(NOW - 3, 0.0004, "node", 1, verified=True),
    settled=True,
    started=NOW - 3600,
)


def but(**changes: object) -> Status:
    return msgspec.structs.replace(GOOD, **changes)


def api(**changes: object) -> Status:
    return but(api=msgspec.structs.replace(GOOD.api, **changes))


def judge(status: Status, counts=None, waiting=()):
    return readiness(status, counts or {}, waiting, NOW)


# Readiness


def test_a_node_where_all_is_right_is_ready_and_has_nothing_to_remark():
    assert judge(GOOD, {(4, "programmed"): 5000}) == (True, (), ())


NOT_READY = {
    "nothing known": (Status(), "no complete list of Nodes yet, and no snapshot"),
    "no list, and why": (api(source="none", error="refused"), "no complete list of Nodes yet, and no snapshot: refused"),
    "own Node unknown": (but(node=NodeStatus("node-1")), "our own Node 'node-1' has not been seen"),
    "own Node without podCIDR": (
        but(node=NodeStatus("node-1", known=True)),
        "our own Node has no podCIDR that can be used: spec.podCIDRs is empty",
    ),
    "own podCIDR refused": (
        but(node=NodeStatus("node-1", known=True, refused=("10.0.0.1/8 has host bits set",))),
        "our own Node has no podCIDR that can be used: 10.0.0.1/8 has host bits set",
    ),
    "401 for a minute": (
        api(unauthorized_since=NOW - 60, error="401: Unauthorized"),
        "the API server refuses us for 60 s: 401:",
    ),
    "no pass": (but(last_pass=None), "no pass of the loop has ended yet"),
    "pass failed": (
        but(last_pass=PassStatus(NOW, 0, "node", 0, verified=False, error="Operation not permitted")),
        "the last pass failed: Operation not permitted",
    ),
    "pass not verified": (but(last_pass=PassStatus(NOW, 0, "node", 3, verified=False)), "the last pass is not verified"),
    "not settled": (but(settled=False), "no pass over all routes is verified yet"),
    "sysctl": (
        but(sysctls=(SysctlStatus("net.ipv4.ip_forward", "1", "0", "read-only file system", ok=False),)),
        "sysctl net.ipv4.ip_forward is 0, must be 1: read-only file system",
    ),
    "sysctl unreadable": (
        but(sysctls=(SysctlStatus("net.ipv4.ip_forward", "1", "", "no such file", ok=False),)),
        "sysctl net.ipv4.ip_forward is unreadable, must be 1: no such file",
    ),
    "masquerade": (but(masquerade=PartStatus("failed", "nft: not found")), "masquerade: nft: not found"),
    "forward": (but(forward=PartStatus("failed", "xtables.lock")), "forward: xtables.lock"),
    "conflist": (
        but(conflist=PartStatus("failed", "03-calico.conflist comes first")),
        "conflist: 03-calico.conflist comes first",
    ),
    "conflist waits": (but(conflist=PartStatus("waiting")), "conflist: not yet in place"),
    "conflist waits for the rules": (
        but(conflist=PartStatus("waiting", "the rules come before")),
        "conflist: the rules come before",
    ),
    "listener": (but(problems=("metrics port 9793: Address already in use",)), "metrics port 9793: Address already in use"),
}


@pytest.mark.parametrize("case", NOT_READY)
def test_what_this_node_could_mend_makes_it_not_ready_and_is_named(case):
    status, words = NOT_READY[case]
    verdict = judge(status)
    assert not verdict.ready
    assert any(reason.startswith(words) for reason in verdict.reasons), verdict.reasons
    if case != "nothing known":
        assert len(verdict.reasons) == 1


@pytest.mark.parametrize("state", ["pending", "failed"])
@pytest.mark.parametrize("family", [4, 6])
def test_an_accepted_peer_that_is_not_programmed_makes_us_not_ready(state, family):
    waiting = [Waiting("node-7", family, state, "Network is unreachable")]
    verdict = judge(GOOD, {(family, state): 1}, waiting)
    assert verdict.reasons == (f"1 accepted peer is not programmed: node-7 IPv{family} {state} (Network is unreachable)",)


def test_peers_not_programmed_are_counted_over_families_and_states():
    verdict = judge(GOOD, {(4, "pending"): 2, (6, "failed"): 3, (4, "programmed"): 9}, [Waiting("a", 4, "pending", "x")])
    assert verdict.reasons[0].startswith("5 accepted peers are not programmed: a IPv4 pending")


@pytest.mark.parametrize("state", ["conflict", "unreachable", "rejected"])
def test_one_bad_node_blocks_no_rollout_but_is_remarked(state):
    verdict = judge(GOOD, {(4, state): 1, (6, state): 1})
    assert verdict.ready
    assert verdict.remarks == (f"2 peers in state {state}",)


def test_nodes_that_cannot_be_read_are_remarked_a_few_by_name():
    verdict = judge(api(unreadable={"large": "20000000 bytes, more than 16777216", "": "no name"}))
    assert verdict.ready
    [remark] = verdict.remarks
    assert remark.startswith("2 Nodes cannot be read, what was known of them stays: large (20000000 bytes, more than 16777216)")
    assert remark.endswith("; one whose name is unknown (no name)")
    [remark] = judge(api(unreadable={f"n{i}": "x" for i in range(5000)})).remarks
    assert remark.startswith("5000 Nodes cannot be read")
    assert remark.endswith("n2 (x); and 4997 more")


def test_ignored_peers_are_nothing_to_speak_of():
    assert judge(GOOD, {(4, "ignored"): 3, (4, "conflict"): 0}) == (True, (), ())


@pytest.mark.parametrize("error", ["timeout: no answer within 10 s", "503: etcd is not there"])
def test_an_api_server_that_is_away_never_makes_us_not_ready(error):
    verdict = judge(api(connected=False, error=error, last_contact=NOW - 86400))
    assert verdict.ready
    assert verdict.remarks == (f"the API server is not connected, routes stay as they are: {error}",)


def test_401_counts_only_after_a_minute():
    assert judge(api(unauthorized_since=NOW - 59.9)).ready
    assert not judge(api(unauthorized_since=NOW - 60)).ready


def test_ready_from_a_snapshot_says_so():
    verdict = judge(api(source="snapshot", complete=False, connected=False, error="refused"))
    assert verdict.ready
    assert verdict.remarks == ("routes come from the last-good snapshot; the API server has not been reached: refused",)


def test_held_removal_condition_and_half_working_sysctl_are_remarks_only():
    status = but(
        held=HeldStatus(40, "40 of 50 IPv4 routes would go at once", NOW),
        condition=PartStatus("failed", "NetworkUnavailable not set: 403: forbidden"),
        sysctls=(SysctlStatus("net.bridge.bridge-nf-call-iptables", "1", "", "br_netfilter is not loaded"),),
        node=NodeStatus("node-1", known=True, pod_cidrs=("10.244.1.0/24",), refused=("fd00::1/64 has host bits set",)),
    )
    verdict = judge(status)
    assert verdict.ready
    assert verdict.remarks == (
        "a podCIDR of our own Node is not used: fd00::1/64 has host bits set",
        "a removal of 40 routes is held: 40 of 50 IPv4 routes would go at once",
        "the Node condition: NetworkUnavailable not set: 403: forbidden",
        "sysctl net.bridge.bridge-nf-call-iptables: br_netfilter is not loaded",
    )


def test_a_condition_that_waits_or_is_off_does_not_matter():
    assert judge(but(condition=PartStatus("waiting"))) == (True, (), ())
    assert judge(but(condition=PartStatus("off"))) == (True, (), ())


def test_every_reason_is_reported_not_only_the_first():
    assert (
        len(judge(but(masquerade=PartStatus("failed", "a"), conflist=PartStatus("failed", "b"), last_pass=None)).reasons) == 3
    )


def test_alive_means_a_tick_within_30_seconds():
    assert liveness(0) == liveness(30.0) == ""
    assert liveness(30.5) == "the loop has not ticked for 30 s (allowed: 30)"
    assert liveness(float("inf"))


# The board


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def board(clock) -> StatusBoard:
    return StatusBoard(lambda: GOOD, clock)


PREFIX = Prefix(bytes((10, 244, 7, 0)), 24)
HOP = bytes((192, 168, 0, 7))


def only(board: StatusBoard) -> PeerStatus:
    (peer,) = board.status().peers
    return peer


def test_a_peer_is_shown_as_the_loop_put_it(board):
    board.put(("node-7", 4), "programmed", uid="u7", prefix=PREFIX, next_hop=HOP)
    assert only(board) == PeerStatus("node-7", "u7", 4, "10.244.7.0/24", "192.168.0.7", "programmed", "", NOW)
    board.put(("node-7", 4), "rejected", "podCIDR is missing", uid="u7")
    assert only(board) == PeerStatus("node-7", "u7", 4, "", "", "rejected", "podCIDR is missing", NOW)


def test_since_tells_when_the_state_began(board, clock):
    key = ("node-7", 4)
    assert board.put(key, "pending", "not yet", uid="u7", prefix=PREFIX, next_hop=HOP)
    clock.now += 5
    assert not board.put(key, "pending", "not yet", uid="u7", prefix=PREFIX, next_hop=HOP)
    assert board.put(key, "pending", "still not", uid="u7", prefix=PREFIX, next_hop=HOP)  # other words, same state
    assert only(board).since == NOW
    assert only(board).reason == "still not"
    assert board.put(key, "programmed", uid="u7", prefix=PREFIX, next_hop=HOP)
    assert only(board).since == NOW + 5


@pytest.mark.parametrize("change", [{"uid": "u8"}, {"next_hop": bytes(4)}, {"prefix": Prefix(bytes(4), 24)}])
def test_another_node_route_or_prefix_begins_anew(board, clock, change):
    facts = {"uid": "u7", "prefix": PREFIX, "next_hop": HOP}
    board.put(("node-7", 4), "programmed", **facts)
    clock.now += 5
    assert board.put(("node-7", 4), "programmed", **(facts | change))
    assert only(board).since == NOW + 5
    assert board.counts[4, "programmed"] == 1


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["put", "drop"]),
            st.tuples(st.sampled_from("abc"), st.sampled_from([4, 6])),
            st.sampled_from(["programmed", "pending", "failed", "conflict"]),
        )
    )
)
def test_counts_are_those_of_the_peers_shown_whatever_happened(steps):
    board = StatusBoard(lambda: GOOD)
    for what, key, state in steps:
        if what == "put":
            board.put(key, state)
        else:
            board.drop(key)
    status = board.status()
    shown: dict[tuple[int, str], int] = {}
    for peer in status.peers:
        shown[peer.family, peer.state] = shown.get((peer.family, peer.state), 0) + 1
    assert {key: count for key, count in board.counts.items() if count} == shown
    assert {(int(f), s): n for f, states in status.counts.items() for s, n in states.items()} == shown
    assert status.ready == board.readiness().ready == (not any(peer.state in {"pending", "failed"} for peer in status.peers))


def test_at_most_three_of_many_waiting_peers_are_named(board):
    for number in range(5000):
        board.put((f"node-{number}", 4), "pending", "not yet")
    (reason,) = board.readiness().reasons
    assert reason.startswith("5000 accepted peers are not programmed: node-0 IPv4 pending (not yet); ")
    assert reason.count("not yet") == 3


def test_peers_are_in_the_order_of_their_names(board):
    for key in (("b", 6), ("a", 6), ("b", 4), ("a", 4)):
        board.put(key, "programmed")
    assert [(peer.name, peer.family) for peer in board.status().peers] == [("a", 4), ("a", 6), ("b", 4), ("b", 6)]


def test_the_document_reads_back_as_it_was_and_has_kubernetes_keys(board):
    board.put(("node-7", 4), "programmed", uid="u7", prefix=PREFIX, next_hop=HOP)
    document = board.document()
    assert msgspec.json.decode(document, type=Status) == board.status()
    plain = msgspec.json.decode(document)
    assert plain["peers"][0].keys() == {"name", "uid", "family", "podCIDR", "nextHop", "state", "reason", "since"}
    assert plain["node"]["podCIDRs"] == ["10.244.1.0/24"]
    assert plain["lastPass"]["verified"] is True
    assert plain["api"]["lastContact"] == NOW - 2
    assert (plain["ready"], plain["time"]) == (True, NOW)


def test_a_document_of_a_newer_agent_can_be_read(board):
    newer = msgspec.json.decode(board.document()) | {"moon": "full"}
    assert msgspec.json.decode(msgspec.json.encode(newer), type=Status).ready


def test_5000_peers_are_written_while_they_are_read(board):
    """The loop goes on writing while /status is made in another thread: neither may see the other half-way."""
    import threading

    keys = [(f"node-{number}", 4) for number in range(5000)]
    ends = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not ends.is_set():
                status = board.status()
                assert len({(peer.name, peer.family) for peer in status.peers}) == len(status.peers)
        except BaseException as error:
            failures.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for state in ("pending", "programmed"):
        for key in keys:
            board.put(key, state, prefix=PREFIX, next_hop=HOP)
    for key in keys[::2]:
        board.drop(key)
    ends.set()
    reader.join()
    assert not failures
    assert len(board.status().peers) == 2500
    began = time.perf_counter()
    assert len(board.document()) > 100_000
    print(f"2,500 peers as JSON: {(time.perf_counter() - began) * 1000:.1f} ms")


# pynet status, as text


def peer(name: str, state: str = "programmed", reason: str = "", family: int = 4) -> PeerStatus:
    return PeerStatus(name, "u", family, "10.244.7.0/24", "192.168.0.7", state, reason, NOW - 90)


def text(status: Status, limit: int | None = 20) -> str:
    return "\n".join(render(status, limit=limit))


def test_text_begins_with_the_verdict_and_its_reasons():
    shown = text(but(time=NOW, ready=False, reasons=("masquerade: nft: not found",), remarks=("2 peers in state conflict",)))
    assert shown.splitlines()[:3] == [
        f"NOT READY  node node-1, pynet {GOOD.version}, up 1h",
        "  not ready: masquerade: nft: not found",
        "  remark: 2 peers in state conflict",
    ]
    assert text(but(ready=True)).startswith("READY  node node-1")


def test_text_has_every_part_with_its_state():
    shown = text(
        but(
            time=NOW,
            masquerade=PartStatus("failed", "nft: not found"),
            condition=PartStatus("waiting", "being set"),
            sysctls=(SysctlStatus("net.ipv4.ip_forward", "1", "0", "read-only", ok=False), SysctlStatus("x", "1", "1")),
            held=HeldStatus(40, "40 of 50 IPv4 routes would go at once", NOW - 60),
        )
    )
    for line in (
        "podCIDRs    10.244.1.0/24",
        "addresses   192.168.0.1",
        "API         connected to https://10.0.0.1:6443, last contact 2.0s ago, Nodes from its list",
        "last pass   3.0s ago for node, 0.4 ms, 1 route messages, verified",
        "masquerade  FAILED: nft: not found",
        "condition   waiting: being set",
        "forward     off",
        "conflist    ok (/etc/cni/net.d/05-pynet.conflist)",
        "sysctls     1 of 2 right",
        "            net.ipv4.ip_forward is 0, must be 1: read-only",
        "guard       a removal of 40 routes is held since 1m: 40 of 50 IPv4 routes would go at once",
        "no peers",
    ):
        assert line in shown.splitlines(), shown


def test_text_of_an_agent_that_has_just_started_can_be_shown():
    shown = text(Status())
    assert "NOT connected to ?, never reached, no Nodes yet" in shown
    assert "last pass   none yet" in shown


def test_peers_that_are_not_programmed_come_first_and_the_rest_is_counted():
    peers = tuple(peer(f"node-{n:02}") for n in range(30))
    odd = (
        peer("zz", "conflict", "10.244.7.0/24 via 10.0.0.9 proto static is there"),
        peer("zzz", "failed", "no such device", 6),
    )
    status = but(peers=(*peers, *odd), counts={"4": {"programmed": 30, "conflict": 1}, "6": {"failed": 1}}, time=NOW)
    lines = text(status, 5).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("PEER"))
    assert [line.split()[0] for line in lines[start:]] == ["PEER", "zzz", "zz", "node-00", "node-01", "node-02", "and"]
    assert lines[start + 1].split() == ["zzz", "IPv6", "10.244.7.0/24", "192.168.0.7", "failed", "1m", "no", "such", "device"]
    assert lines[-1] == "and 27 more; --all shows them"
    assert "IPv4 peers: 30 programmed, 1 conflict" in lines
    assert "IPv6 peers: 1 failed" in lines
    assert len([line for line in text(status, None).splitlines() if line.startswith("node-")]) == 30
    assert "--all" not in text(status, None)


def test_names_from_the_api_cannot_drive_the_terminal():
    shown = text(but(peers=(peer("evil\x1b[2J", "rejected", "a\nb\u202e"),), reasons=("x\x1b]0;t\x07",)))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert r"evil\x1b[2J" in shown
    assert r"a\nb\u202e" in shown
