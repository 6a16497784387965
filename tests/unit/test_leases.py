"""Who has lost the bridge is told, and nobody else."""

from __future__ import annotations

from pynet.apply.leases import stranded

GONE = "pynet-no-bridge"
HERE = "lo"


def lease(folder, *names: str):
    for name in names:
        (folder / name).write_text("id\neth0\n")
    return folder


def test_pods_with_a_lease_and_no_bridge_are_told(tmp_path):
    lease(tmp_path, "10.244.1.5", "fd00::5", "lock", "last_reserved_ip.0")
    said = stranded(tmp_path, GONE)
    assert said.startswith(f"bridge {GONE} is gone, and with it the network of the pods here (10.244.1.5, fd00::5): delete")


def test_of_many_pods_a_few_are_named(tmp_path):
    assert "(10.0.0.1, 10.0.0.2, 10.0.0.3, …)" in stranded(lease(tmp_path, *[f"10.0.0.{n}" for n in range(1, 9)]), GONE)


def test_nothing_is_told_while_the_bridge_is_there_or_no_pod_is(tmp_path):
    assert stranded(lease(tmp_path, "lock", "last_reserved_ip.0"), GONE) == ""
    assert stranded(tmp_path / "none", GONE) == ""
    assert stranded(lease(tmp_path, "10.244.1.5"), HERE) == ""
