"""Peak memory is this process's own."""

import os
import platform
import subprocess
import sys

import pytest

CHILD = "from anomalib_lite.machine.memory import peak_rss_mb; print(peak_rss_mb())"


def test_the_peak_grows_with_memory_touched():
    """In a process of its own, whose peak is small: beyond it there is nothing to tell."""
    grown = "before = peak_rss_mb(); block = bytearray(100_000_000); print(peak_rss_mb() - before)"
    child = subprocess.run(
        [sys.executable, "-c", CHILD.replace("print(peak_rss_mb())", grown)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert 90 < float(child.stdout) < 200


def test_a_child_does_not_inherit_its_parents_peak():
    block = bytearray(b"\1" * 300_000_000)
    child = subprocess.run([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, check=True)
    assert float(child.stdout) < len(block) / 1e6


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is glibc's memory")
def test_freed_memory_is_kept_where_the_environment_gives_it_back():
    # Faults of pages are what it costs: of memory that was given back each page is asked for anew.
    code = (
        "import resource, numpy as np\n"
        "from anomalib_lite.machine.memory import keep_freed_memory\n"
        "def faults():\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "    for _ in range(50): np.ones(1 << 18)\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before\n"
        "given_back = faults(); keep_freed_memory(); faults(); print(given_back, faults())"
    )
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 4
