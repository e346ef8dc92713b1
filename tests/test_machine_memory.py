"""Peak memory is this process's own."""

import subprocess
import sys

from anomalib_lite.machine.memory import peak_rss_mb

CHILD = "from anomalib_lite.machine.memory import peak_rss_mb; print(peak_rss_mb())"


def test_the_peak_grows_with_memory_touched():
    before = peak_rss_mb()
    block = bytearray(b"\1" * (int(before * 1e6) + 50_000_000))
    assert peak_rss_mb() - before > 40
    del block


def test_a_child_does_not_inherit_its_parents_peak():
    block = bytearray(b"\1" * 300_000_000)
    child = subprocess.run([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True, check=True)
    assert float(child.stdout) < len(block) / 1e6
