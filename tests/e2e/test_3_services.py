"""Section 3: everything that a Service can be, over pynet's routes: the traffic of kube-proxy, portmap, an Ingress."""

from __future__ import annotations

import ipaddress
import json

import pytest

from tests.e2e import workload
from tests.e2e.cluster import by_family, in_url, run, until
from tests.e2e.test_2_reach import UDP
from tests.e2e.workload import pod_name

HOST_PORT = 18081


@pytest.fixture(scope="session")
def services(cluster, pods):
    """The Services of this section; waits until each has endpoints in every family."""
    worker, other = cluster.workers
    http = {"name": "http", "port": 80, "targetPort": 8080}
    cluster.apply(
        workload.service("all", {"app": "a"}, [http, {"name": "udp", "port": 53, "targetPort": 8080, "protocol": "UDP"}]),
        workload.service("port", {"app": "a"}, [http], type="NodePort"),
        workload.service("local", {"app": "a", "on": worker}, [http], type="NodePort", externalTrafficPolicy="Local"),
        workload.service("hairpin", {"app": "b", "on": worker}, [http]),
        workload.service("backend", {"app": "b", "on": other}, [http]),
    )
    families = len(cluster.flavour.families)
    until(
        "endpoints of all",
        lambda: len(cluster.get("endpointslices", "-l", "kubernetes.io/service-name=all")["items"]) == families,
    )
    return {name: cluster.get("service", name) for name in ("all", "port", "local", "hairpin", "backend")}


def addresses(service):
    """A Service's ClusterIPs by family."""
    return by_family(service["spec"]["clusterIPs"])


def node_port(service):
    return service["spec"]["ports"][0]["nodePort"]


def answers(cluster, source, url, count=12, options=""):
    """Who answered, and whom it saw, in ``count`` requests from a pod."""
    script = f"for i in $(seq {count}); do curl -s -S -m 3 {options} {url} || exit 1; done"
    return [tuple(line.split()) for line in cluster.exec(source, script).splitlines()]


def test_cluster_ip_reaches_pods_on_every_node_with_the_clients_address(cluster, services):
    everybody = {pod_name("a", node) for node in cluster.nodes}
    for node in cluster.nodes:
        source = pod_name("b", node)
        own = cluster.pod_addresses(source)
        for family, address in addresses(services["all"]).items():
            found = until(
                "each pod answered", lambda a=address, s=source: _all_of(everybody, answers(cluster, s, f"http://{in_url(a)}/"))
            )
            assert {seen for _, seen in found} == {own[family]}


def _all_of(names, found):
    """``found`` if everybody is in it: kube-proxy chooses by chance."""
    return found if {name for name, _ in found} == names else None


def test_services_are_found_by_name(cluster, services):
    for node in cluster.nodes:
        for name in ("all", "all.e2e.svc.cluster.local"):
            assert answers(cluster, pod_name("b", node), f"http://{name}/", count=2)


def test_hosts_reach_cluster_ips(cluster, services):
    for node in cluster.nodes:
        for address in addresses(services["all"]).values():
            assert len(answers(cluster, pod_name("host", node), f"http://{in_url(address)}/", count=6)) == 6


def test_udp_service(cluster, services):
    for node in cluster.nodes:
        for address in addresses(services["all"]).values():
            said = cluster.exec(pod_name("b", node), UDP.format(address=address, port=53))
            assert said.startswith("a-"), said


def test_node_port_through_every_node_from_outside(cluster, services, outside):
    port = node_port(services["port"])
    for node in cluster.nodes:
        for address in cluster.node_addresses(node).values():
            for _ in range(4):
                assert outside.exec(f"curl -s -S -m 3 http://{in_url(address)}:{port}/").startswith("a-")


def test_external_traffic_policy_local_keeps_the_clients_address(cluster, services, outside):
    port = node_port(services["local"])
    worker, other = cluster.workers
    for family, address in cluster.node_addresses(worker).items():
        said = outside.exec(f"curl -s -S -m 3 http://{in_url(address)}:{port}/").split()
        assert said == [pod_name("a", worker), outside.addresses[family]]
    for address in cluster.node_addresses(other).values():
        assert outside.exec(f"curl -s -m 1 http://{in_url(address)}:{port}/ || echo refused") == "refused\n"


def test_host_port(cluster, pods, outside):
    worker, other = cluster.workers
    spec = workload.pod_spec(workload.serving(8080), 8080, nodeName=worker)
    spec["containers"][0]["ports"] = [{"containerPort": 8080, "hostPort": HOST_PORT}]
    cluster.apply(workload.pod("host-port", {"app": "host-port"}, spec))
    cluster.wait_ready("pods", "app=host-port", 1)
    for address in cluster.node_addresses(worker).values():
        url = f"http://{in_url(address)}:{HOST_PORT}/"
        assert outside.exec(f"curl -s -S -m 3 {url}").startswith("host-port ")
        assert answers(cluster, pod_name("a", other), url, count=2)[0][0] == "host-port"
        assert answers(cluster, pod_name("a", worker), url, count=2)[0][0] == "host-port"
    cluster.kubectl("delete", "pod", "host-port", "--now")


def test_a_pod_reaches_itself_through_its_service(cluster, services):
    source = pod_name("b", cluster.workers[0])
    for address in addresses(services["hairpin"]).values():
        assert {name for name, _ in answers(cluster, source, f"http://{in_url(address)}/", count=3)} == {source}


def test_a_reverse_proxy_serves_from_outside_to_a_backend_on_another_node(cluster, services, outside):
    """nginx resolves the backend's Service by name and is reached through a NodePort, as an Ingress controller is."""
    worker, other = cluster.workers
    location = "location /app/ { proxy_pass http://backend.e2e.svc.cluster.local/; }"
    spec = workload.pod_spec(workload.serving(8080, location), 8080, nodeName=worker)
    http = [{"name": "http", "port": 80, "targetPort": 8080}]
    cluster.apply(
        workload.pod("proxy", {"app": "proxy"}, spec), workload.service("proxy", {"app": "proxy"}, http, type="NodePort")
    )
    cluster.wait_ready("pods", "app=proxy", 1)
    port = node_port(cluster.get("service", "proxy"))
    for node in cluster.nodes:
        for address in cluster.node_addresses(node).values():
            url = f"http://{in_url(address)}:{port}/app/"
            assert outside.exec(f"curl -s -S -m 5 --retry 3 --retry-connrefused {url}").startswith(pod_name("b", other))
    cluster.kubectl("delete", "pod,service", "proxy", "--now")


def test_packets_as_large_as_the_mtu_pass_and_larger_ones_are_refused(cluster, pods):
    source, target = pod_name("a", cluster.workers[0]), pod_name("a", cluster.workers[1])
    link = cluster.exec(source, "ip -o link show eth0").split()
    mtu = int(link[link.index("mtu") + 1])
    for family, address in cluster.pod_addresses(target).items():
        payload = mtu - (28 if family == 4 else 48)
        cluster.exec(source, f"ping -M do -c 3 -i 0.05 -W 2 -s {payload} {address}")
        assert "message too long" in cluster.exec(source, f"ping -M do -c 1 -W 1 -s {payload + 1} {address} 2>&1 || true")
        size = cluster.exec(source, f"curl -s -S -m 20 -o /dev/null -w '%{{size_download}}' http://{in_url(address)}:8080/big")
        assert size == "4000000"


def test_throughput_is_that_of_a_hand_made_route(cluster, pods, note):
    """iperf3 between two pods, and between two namespaces that are joined by nothing but veth pairs and two routes."""
    ours, plain = [], []
    with _HandMade(cluster) as by_hand:
        # Each in turn, and again if need be: the machine is not the same from one moment to the next.
        while not ours or (max(ours) <= 0.6 * max(plain) and len(ours) < 5):
            ours.append(_throughput_of_pods(cluster))
            plain.append(by_hand.throughput())
    note(f"iperf3, Gbit/s: pods {[round(x, 1) for x in ours]}, by hand {[round(x, 1) for x in plain]}")
    assert max(ours) > 0.6 * max(plain)


def _throughput_of_pods(cluster):
    source, target = (pod_name("b", worker) for worker in cluster.workers)
    address = next(iter(cluster.pod_addresses(target).values()))
    cluster.exec(target, "iperf3 -s -1 -D --logfile /tmp/iperf; sleep 0.2")
    return _gbits(cluster.exec(source, f"iperf3 -J -t 3 -c {address}"))


def _gbits(report):
    return json.loads(report)["end"]["sum_received"]["bits_per_second"] / 1e9


class _HandMade:
    """A namespace on each worker, joined by a veth pair, an address and a route each, by hand; nothing of pynet."""

    def __init__(self, cluster):
        self.cluster = cluster
        self.names = [f"{worker}-by-hand" for worker in cluster.workers]
        family = cluster.flavour.families[0]
        self.networks = ["10.250.1.{}/24", "10.250.2.{}/24"] if family == 4 else ["fd00:250:1::{}/64", "fd00:250:2::{}/64"]
        self.gateways = [cluster.node_addresses(worker)[family] for worker in cluster.workers]
        self.default = "default" if family == 4 else "::/0"

    def __enter__(self):
        for (worker, name), own, other, gateway in zip(
            zip(self.cluster.workers, self.names, strict=True),
            self.networks,
            self.networks[::-1],
            self.gateways[::-1],
            strict=True,
        ):
            run("docker", "run", "--detach", "--privileged", "--name", name, "--network", f"container:{worker}", workload.TOOLS)
            there, here = own.format(2), own.format(1)
            flag = "" if "." in here else "nodad"
            script = f"""set -e
            ip netns add by-hand; ip link add byhand0 type veth peer name eth0 netns by-hand
            ip addr add {here} dev byhand0 {flag}; ip link set byhand0 up
            ip -n by-hand addr add {there} dev eth0 {flag}; ip -n by-hand link set eth0 up
            ip -n by-hand route add {self.default} via {here.split("/")[0]}
            ip route add {ipaddress.ip_network(other.format(0) if "." in other else other.format(""))} via {gateway}"""
            run("docker", "exec", name, "sh", "-c", script)
        return self

    def throughput(self):
        source, target = self.names
        run("docker", "exec", target, "sh", "-c", "ip netns exec by-hand iperf3 -s -1 -D; sleep 0.2")
        address = self.networks[1].format(2).split("/")[0]
        return _gbits(run("docker", "exec", source, "ip", "netns", "exec", "by-hand", "iperf3", "-J", "-t", "3", "-c", address))

    def __exit__(self, *_):
        for name, other in zip(self.names, self.networks[::-1], strict=True):
            network = ipaddress.ip_network(other.format(0) if "." in other else other.format(""))
            run("docker", "exec", name, "sh", "-c", f"ip route del {network}; ip link del byhand0", check=False)
            run("docker", "rm", "--force", "--volumes", name)
