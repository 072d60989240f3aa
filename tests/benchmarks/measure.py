"""How the benchmarks measure: medians of interleaved runs for time, one fresh process a case for memory."""

import importlib.util
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One line of the table; None where something was not measured, and `note` says why."""

    what: str
    ours_ms: float | None = None
    peer: str = ""
    peer_ms: float | None = None
    ours_mb: float | None = None
    peer_mb: float | None = None
    note: str = ""


def installed(package: str) -> bool:
    """Whether a peer is there to be compared with."""
    return importlib.util.find_spec(package) is not None


def interleaved_ms(*steps: Callable[[], object], repeat: int) -> list[float]:
    """Median milliseconds of each step, taken in turns so that a busy machine slows all of them alike."""
    times = [[] for _ in steps]
    for turn in range(repeat + 1):
        for step, mine in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            if turn:  # the first turn warms up
                mine.append(1000 * (time.perf_counter() - start))
    return [statistics.median(mine) for mine in times]


def memory_mb() -> tuple[float, float]:
    """Resident memory of this process: now, and at its highest.

    Linux tells both in /proc; `ru_maxrss` would do for the second, but a child inherits its parent's there.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return tuple(int(lines[key].split()[0]) / 1024 for key in ("VmRSS", "VmHWM"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on a Mac
    return peak, peak


def growth_mb(step: Callable[[], object], repeat: int = 3) -> float:
    """How far the memory of this process rises above where it is now while the step runs a few times."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")  # the peak so far, from making the inputs, starts again from here
    before, _ = memory_mb()
    for _ in range(repeat):
        step()
    return memory_mb()[1] - before


def growth_in_a_fresh_process(module: str, case: str) -> float:
    """The `growth_mb` of one case of a benchmark file, which `python FILE CASE` prints."""
    command = [sys.executable, module, case]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return float(printed.split()[-1])
