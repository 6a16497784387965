"""Attach a pod by CNI ADD, as a container runtime does; where no plugins are installed, by the same bridge and veth.

The conflist is the one that the node's agent wrote. What a runtime does with it is small: each plugin of the list is run in
turn, in the node's namespace, with its own part of the configuration and the result of the one before.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from pynet.commands.lab.namespaces import enter
from pynet.commands.lab.plan import NAMESPACES, LabError, NodePlan, PodPlan

PLUGIN_FOLDERS: Final = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
PLUGINS: Final = ("bridge", "host-local", "portmap", "bandwidth")
INTERFACE: Final = "eth0"
PLUGIN_SECONDS: Final = 30.0

Json = dict[str, Any]


def find_plugins() -> Path | None:
    """Return the folder that holds the CNI plugins that the agent's conflist names, None if there is none."""
    return next((folder for folder in PLUGIN_FOLDERS if all((folder / name).exists() for name in PLUGINS)), None)


def stand_in(folder: Path) -> Path:
    """Make a folder of programs named like the plugins, for an agent that checks that they are there; none can be used."""
    folder.mkdir()
    for name in PLUGINS:
        program = folder / name
        program.write_text("#!/bin/sh\n" + f"""echo '{{"code": 100, "msg": "a stand-in of pynet lab for {name}"}}'; exit 1\n""")
        program.chmod(0o755)
    return folder


def attach(conflist: Json, plugins: Path | None, node: NodePlan, pod: PodPlan) -> tuple[str, ...]:
    """Give a pod its interface eth0 as the conflist says. Return its addresses. Raises LabError with the plugin's own words."""
    if plugins is None:
        return _by_hand(conflist["plugins"][0], node, pod)
    result: Json | None = None
    for part in conflist["plugins"]:
        request = {**part, "name": conflist["name"], "cniVersion": conflist["cniVersion"]}
        if result is not None:
            request["prevResult"] = result
        result = _run(plugins, request, node, pod)
    return tuple(ip["address"].partition("/")[0] for ip in (result or {}).get("ips", ()))


def _run(plugins: Path, request: Json, node: NodePlan, pod: PodPlan) -> Json:
    """Run one plugin. Its configuration is its input, its result what it prints (CNI specification, section 4)."""
    environment = {
        "PATH": os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": pod.namespace,
        "CNI_NETNS": str(NAMESPACES / pod.namespace),
        "CNI_IFNAME": INTERFACE,
        "CNI_PATH": str(plugins),
    }
    command = ["nsenter", f"--net={NAMESPACES / node.namespace}", "--", str(plugins / request["type"])]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(request).encode(),
            capture_output=True,
            env=environment,
            timeout=PLUGIN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"{pod.name}: the CNI plugin {request['type']} did not end within {PLUGIN_SECONDS:g} s") from None
    try:
        answer: Json = json.loads(done.stdout)
    except ValueError:
        answer = {"msg": done.stderr.decode(errors="replace").strip() or f"no result, exit status {done.returncode}"}
    if done.returncode or "msg" in answer:
        words = " ".join(str(answer.get(key, "")) for key in ("msg", "details")).strip()
        raise LabError(f"{pod.name}: the CNI plugin {request['type']} says: {words}")
    return answer


def _by_hand(bridge: Json, node: NodePlan, pod: PodPlan) -> tuple[str, ...]:
    """Do what the plugins bridge and host-local do: a bridge with the gateways, a veth, an address of each subnet."""
    subnets = [ipaddress.ip_network(entry[0]["subnet"]) for entry in bridge["ipam"]["ranges"]]
    gateways = [subnet.network_address + 1 for subnet in subnets]
    addresses = [subnet.network_address + 2 + node.pods.index(pod) for subnet in subnets]
    port = f"veth{node.pods.index(pod)}"

    def on_node() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            if not kernel.link_lookup(ifname=bridge["bridge"]):
                kernel.link("add", ifname=bridge["bridge"], kind="bridge", address="02:00:00:00:00:01", state="up")
                for subnet, gateway in zip(subnets, gateways, strict=True):
                    index = kernel.link_lookup(ifname=bridge["bridge"])[0]
                    kernel.addr("add", index=index, address=str(gateway), prefixlen=subnet.prefixlen)
            peer = {"ifname": INTERFACE, "net_ns_fd": pod.namespace}
            mtu = {"mtu": bridge["mtu"]} if bridge.get("mtu") else {}
            kernel.link("add", ifname=port, kind="veth", peer={**peer, **mtu}, **mtu)
            master = kernel.link_lookup(ifname=bridge["bridge"])[0]
            index = kernel.link_lookup(ifname=port)[0]
            kernel.link("set", index=index, master=master, state="up")
            kernel.brport("set", index=index, mode=int(bool(bridge.get("hairpinMode"))))

    def in_pod() -> None:
        from pyroute2 import IPRoute

        with IPRoute() as kernel:
            index = kernel.link_lookup(ifname=INTERFACE)[0]
            kernel.link("set", index=index, state="up")
            for subnet, gateway, address in zip(subnets, gateways, addresses, strict=True):
                kernel.addr("add", index=index, address=str(address), prefixlen=subnet.prefixlen)
                kernel.route("add", dst="default" if subnet.version == 4 else "::/0", gateway=str(gateway), oif=index)

    enter(node.namespace, on_node)
    enter(pod.namespace, in_pod)
    return tuple(map(str, addresses))
