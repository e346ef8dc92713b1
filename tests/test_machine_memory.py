"""Peak memory is this process's own."""

import subprocess
import sys

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
