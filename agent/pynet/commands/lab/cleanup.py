"""Remove a lab: its processes, its Nodes in a real cluster, its namespaces, its folder. Nothing else."""

from __future__ import annotations

import shutil

from pynet.commands.lab import cluster, namespaces, processes, state
from pynet.commands.lab.plan import LabError, folder_of


def remove(number: int) -> list[str]:
    """Remove lab ``number``, which the caller holds. Return what could not be removed, a line each; [] if nothing is left.

    Works on half a lab as well: each step does what there is to do, and a step that fails does not keep back the others.
    """
    folder = folder_of(number)
    kept = state.read(number)
    left = [f"process {each.pid} ({each.name}) does not end" for each in processes.stop(processes.recorded(folder))]
    if kept is not None and kept.kubeconfig:
        left.extend(cluster.delete_nodes(kept.kubeconfig, kept.token))
    for namespace in namespaces.leftover(number):
        try:
            namespaces.remove(namespace)
        except LabError as error:
            left.append(str(error))
    if left:  # the folder says what is left, so it goes last
        left.append(f"try again; or remove {folder}, which remembers it, and see to the rest yourself")
    else:
        shutil.rmtree(folder, ignore_errors=True)
        if folder.exists():
            left.append(f"the folder {folder} cannot be removed")
    return left


def clean(number: int) -> list[str]:
    """Remove a lab that nobody is at, as an earlier command left it. Return what could not be removed.

    Raises BusyError if somebody is at it.
    """
    folder_of(number).mkdir(mode=0o700, exist_ok=True)  # there may be namespaces only
    with state.hold(number):
        return remove(number)
