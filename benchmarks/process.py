"""What a process uses, as the kernel counts it."""

from __future__ import annotations

import os
import time
from pathlib import Path

_TICK = 1 / os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """User and system time of the process and of its children that have ended, in seconds (10 ms steps)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * _TICK


def memory_mb(pid: int) -> tuple[float, float]:
    """Resident memory now and at its peak, in MB (10^6 bytes)."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line)
    now, peak = (int(lines[key].split()[0]) * 1024 / 1e6 for key in ("VmRSS", "VmHWM"))
    return now, peak


def lateness(seconds: float = 5.0) -> str:
    """How late this machine wakes a thread that does nothing but sleep 0.2 ms at a time: no figure can be better than that."""
    late = []
    end = time.monotonic() + seconds
    while (began := time.monotonic()) < end:
        time.sleep(0.0002)
        late.append(1000 * (time.monotonic() - began - 0.0002))
    late.sort()
    at = {name: late[min(len(late) - 1, int(len(late) * share))] for name, share in (("p50", 0.5), ("p99", 0.99), ("max", 1.0))}
    return f"a thread that only sleeps is woken late by {', '.join(f'{k} {v:.2f}' for k, v in at.items())} ms (n={len(late)})"
