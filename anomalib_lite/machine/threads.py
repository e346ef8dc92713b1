"""How many threads this process may use: the cores it is let onto, and what a container's quota allows of them.

torch and faiss start a thread per core they see, and see no quota; threads beyond it only wait for each other.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any


@lru_cache(maxsize=1)
def usable_cores() -> int:
    """Cores that this process may compute on, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return max(1, cores if quota is None else min(cores, math.ceil(quota)))


def cpu_quota(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float | None:
    """Processor seconds per second that the control group allows (Linux); None for no limit.

    Parameters
    ----------
    root, own : Path
        The tree of control groups, and the file that names this process's own.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        return None
    quotas = []
    for line in lines:
        _, controllers, name = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        base = root / controllers if controllers else root
        # A container often sees its own group as the root of the tree, whatever its name outside.
        for folder in {base, *(base / part for part in _ancestors(name))}:
            quotas.append(_quota(folder))
    known = [quota for quota in quotas if quota is not None]
    return min(known, default=None)


def limit_threads() -> None:
    """Keep torch and faiss from starting more threads than `usable_cores`, unless OMP_NUM_THREADS says how many."""
    import torch

    if not os.environ.get("OMP_NUM_THREADS") and torch.get_num_threads() > usable_cores():
        torch.set_num_threads(usable_cores())


@lru_cache(maxsize=1)
def computing() -> ThreadPoolExecutor:
    """The one thread of a server that networks run in.

    Each thread that asks torch for something gets helpers of its own, and as soon as there are more of them than cores
    they sleep instead of waiting awake: one picture of metal_nut takes 18 ms in a second thread, 14 in the only one
    (two cores).
    """
    return ThreadPoolExecutor(1, thread_name_prefix="anomalib_lite-computing")


def _ancestors(name: str) -> list[str]:
    parts = name.strip("/").split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts)) if parts[0]]


def _quota(folder: Path) -> float | None:
    try:
        if (folder / "cpu.max").is_file():
            limit, period = (folder / "cpu.max").read_text().split()
        else:
            limit = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return None if limit in ("max", "-1") else int(limit) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return None


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Let numpy multiply matrices by one thread: its others go on spinning, and torch's wait for the cores they hold.

    A picture of metal_nut whose regions are asked for between two that are scored takes 48 ms without and 22 with it
    (two cores).
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@lru_cache(maxsize=1)
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()
