"""Section 5: things go and come back: pods, a hundred of them, kubelet, nodes, the control plane."""

from __future__ import annotations

import contextlib
import ipaddress
import json
import time

from tests.e2e import workload
from tests.e2e.cluster import run, until
from tests.e2e.test_2_reach import TCP, conversations, everybody_reaches, targets_of
from tests.e2e.workload import pod_name

FLAVOURS = ("ipv4", "dual")


@contextlib.contextmanager
def no_packet_lost(cluster):
    """Between pods of the two workers, in both directions and every family, a ping each 10 ms while the block runs."""
    one, other = (pod_name("a", worker) for worker in cluster.workers)
    with contextlib.ExitStack() as stack:
        pings = {
            f"{source} -> {address}": stack.enter_context(cluster.pinging(source, address))
            for source, target in ((one, other), (other, one))
            for address in cluster.pod_addresses(target).values()
        }
        yield
    assert not any(ping.lost for ping in pings.values()), pings
    assert all(ping.sent > 50 for ping in pings.values()), pings


def test_kubelet_restart_loses_no_packet(cluster, pods):
    node = cluster.workers[0]
    began = time.time()
    with no_packet_lost(cluster):
        cluster.on_node(node, "systemctl", "restart", "kubelet")
        until("kubelet has reported again", lambda: cluster.is_ready(node) and _renewed_since(cluster, node, began), 60)
        until("kubelet knows its pods again", lambda: cluster.exec(pod_name("a", node), "echo yes"))


def _renewed_since(cluster, node, began):
    """Whether kubelet has renewed its lease after ``began`` (seconds since the epoch)."""
    renewed = cluster.get("lease", node, "-n", "kube-node-lease")["spec"]["renewTime"]
    return renewed > time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(began + 1))


def test_pods_talk_while_the_control_plane_is_away(cluster, pods, pynet):
    with no_packet_lost(cluster):
        run("docker", "restart", "--time", "10", cluster.control_plane, timeout=90)
        until("the API server answers", lambda: cluster.get("nodes"), 120)
        for node in cluster.nodes:
            # On the node that was restarted kube-proxy has to come first; then an attempt is at most 15 s away.
            until(f"the agent of {node} hears of the API server", lambda n=node: pynet.status(n)["api"]["connected"], 45)
        until("every agent is ready", pynet.ready, 120)
    # The control plane's own pods have started again, with new addresses.
    cluster.wait_ready("pods", "app in (a,b,host)", 3 * len(cluster.nodes), 120)
    everybody_reaches(cluster, "b", 8080, TCP)


def test_a_node_that_was_restarted_comes_back(cluster, pods, pynet, note):
    node = cluster.workers[0]
    names = [pod_name(kind, node) for kind in ("a", "b")]
    before = {name: _restarts(cluster, name) for name in names}
    began = time.monotonic()
    run("docker", "restart", "--time", "10", node, timeout=90)
    until("its pods have started again", lambda: all(_restarts(cluster, name) > before[name] for name in names), 120)
    cluster.wait_ready("pods", "app in (a,b,host)", 3 * len(cluster.nodes), 120)
    note(f"docker restart of a worker to its pods ready: {time.monotonic() - began:.1f} s")
    everybody_reaches(cluster, "b", 8080, TCP)
    pynet.wait_ready()


def _restarts(cluster, pod):
    return cluster.get("pod", pod)["status"]["containerStatuses"][0]["restartCount"]


def test_a_node_that_left_can_join_again_with_another_pod_cidr(cluster, pods, pynet, note):
    node = cluster.workers[1]
    others = [other for other in cluster.nodes if other != node]
    old_cidrs, old_uid = cluster.pod_cidrs(node), cluster.get("node", node)["metadata"]["uid"]
    cluster.kubectl("drain", node, "--ignore-daemonsets", "--force", "--delete-emptydir-data", "--timeout=60s", timeout=70)
    cluster.kubectl("delete", "node", node)
    for other in others:
        until(f"{other} has no route to {node}", lambda o=other: not _routes(cluster, o) & set(old_cidrs.values()), 30)

    # The podCIDR that it gave back goes to somebody else: a Node that only the API server knows.
    cluster.apply({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "placeholder"}})
    taken = until("the placeholder has a podCIDR", lambda: cluster.pod_cidrs("placeholder"))
    cluster.on_node(node, "systemctl", "restart", "kubelet")
    until("the node is registered", lambda: cluster.get("node", node)["metadata"]["uid"] != old_uid, 60)
    until("it is Ready", lambda: cluster.is_ready(node), 90)
    new_cidrs = until("it has a podCIDR", lambda: cluster.pod_cidrs(node))
    cluster.kubectl("delete", "node", "placeholder")
    assert new_cidrs != old_cidrs, f"the placeholder has {taken}"
    note(f"podCIDR of a node that joined again: {old_cidrs} -> {new_cidrs}")
    for other in others:
        until(f"{other} has routes to {node}", lambda o=other: set(new_cidrs.values()) <= _routes(cluster, o), 30)
    pynet.wait_ready()
    # Until its own agent has seen the new Node too, pods would get addresses of the old podCIDR.
    conflist = ("cat", "/etc/cni/net.d/05-pynet.conflist")
    for cidr in new_cidrs.values():
        until("the conflist has the new podCIDR", lambda c=cidr: c in cluster.on_node(node, *conflist), 15)

    cluster.kubectl("uncordon", node)
    workload.deploy(cluster)
    for family, address in cluster.pod_addresses(pod_name("a", node)).items():
        assert ipaddress.ip_address(address) in ipaddress.ip_network(new_cidrs[family])
    everybody_reaches(cluster, "b", 8080, TCP)
    bridge = cluster.on_node(node, "ip", "-o", "address", "show", "dev", "pynet0", "scope", "global")
    for cidr in old_cidrs.values():
        assert f"{ipaddress.ip_network(cidr)[1]}/" not in bridge, "the old gateway address is still on the bridge"


def _routes(cluster, node):
    """The destinations of our unicast routes on a node."""
    found = set()
    for family in cluster.flavour.families:
        routes = json.loads(cluster.on_node(node, "ip", "-json", f"-{family}", "route", "show", "protocol", "110"))
        found |= {route["dst"] for route in routes if route.get("type", "unicast") == "unicast"}
    return found


def test_an_address_is_used_again_at_once(cluster, pods, note):
    """The agent forgets the old pod's neighbour entry: by itself the node would trust it for up to 45 s, and ask for 8 s more.

    The bridge plug-in announces no new pod (it sets arp_notify, but the address comes after the link is up). host-local goes
    round, so that this needs a small podCIDR or many pods within a minute.
    """
    node = cluster.workers[0]
    spec = workload.pod_spec(workload.serving(8080), 8080, nodeName=node)
    source = pod_name("a", cluster.workers[1])

    def begin():
        cluster.apply(workload.pod("again", {"app": "again"}, spec))
        until("the pod runs", lambda: cluster.get("pod", "again")["status"]["phase"] == "Running")
        return cluster.all_pod_addresses()

    def answers(family):
        targets = {key: value for key, value in targets_of(addresses, ["again"], 8080).items() if key[1] == family}
        return "failed" not in conversations(cluster, source, targets, TCP).values()

    addresses = first = begin()
    for family in cluster.flavour.families:
        until(f"the pod answers over IPv{family}", lambda f=family: answers(f), timeout=10)
    cluster.kubectl("delete", "pod", "again", "--now")
    # Have host-local begin one before, so that the very same address comes next.
    for family, address in first["again"].items():
        last = str(ipaddress.ip_address(address) - 1)
        find = f"find /run/pynet/ipam -name 'last_reserved_ip.*' -exec grep -l '{':' if family == 6 else '[.]'}' {{}} +"
        cluster.on_node(node, "sh", "-c", f"for f in $({find}); do printf %s {last} >$f; done")
    addresses = begin()
    began = time.monotonic()
    assert addresses["again"] == first["again"]
    for family in cluster.flavour.families:
        until(f"the pod answers over IPv{family}", lambda f=family: answers(f), timeout=5)
        note(f"an address used again at once answers over IPv{family} after {time.monotonic() - began:.1f} s")
    cluster.kubectl("delete", "pod", "again", "--now")


def test_a_hundred_pods_at_once(cluster, pods, note):
    count = 100
    sleeper = {"name": "c", "image": workload.TOOLS, "imagePullPolicy": "Never", "command": ["sleep", "infinity"]}
    labels = {"app": "many"}
    spec = {
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "containers": [sleeper],
    }
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "many"},
        "spec": {
            "replicas": count,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }
    began = time.monotonic()
    cluster.apply(deployment)
    items = cluster.wait_ready("pods", "app=many", count, 240)
    note(f"{count} pods at once, ready after {time.monotonic() - began:.1f} s")
    addresses = [entry["ip"] for item in items for entry in item["status"]["podIPs"]]
    assert len(set(addresses)) == count * len(cluster.flavour.families)
    silent = "".join(f"ping -c 1 -W 2 -n {address} >/dev/null || echo {address}\n" for address in addresses)
    assert cluster.exec(pod_name("a", cluster.workers[0]), silent, timeout=120) == ""
    cluster.kubectl("delete", "deployment", "many", "--cascade=foreground", timeout=180)
    cluster.wait_gone("pods", "-l", "app=many", timeout=120)
    for node in cluster.workers:
        until(
            f"{node} has given the addresses back", lambda node=node: _leases(cluster, node) <= _running_on(cluster, node), 60
        )


def _leases(cluster, node):
    """Addresses that host-local holds on a node."""
    names = cluster.on_node(node, "find", "/run/pynet/ipam", "-type", "f", "-printf", "%f\n").split()
    return {
        str(ipaddress.ip_address(name)) for name in names if name.replace(":", "").replace(".", "").isalnum() and name[0] != "l"
    }


def _running_on(cluster, node):
    items = cluster.get("pods", "-A", "--field-selector", f"spec.nodeName={node}")["items"]
    return {entry["ip"] for item in items for entry in item["status"].get("podIPs", [])}
