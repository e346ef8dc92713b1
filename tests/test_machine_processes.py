"""A child forked after its parent computed is told so instead of waiting for ever."""

import subprocess
import sys

import pytest

CODE = """
import os, sys
import numpy as np
from anomalib_lite import Detector
from anomalib_lite.images.synthetic import render_part
parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(4)]
if sys.argv[1] == "before":
    detector = Detector(image_size=64).fit(parts)
child = os.fork()
if child == 0:
    try:
        if sys.argv[1] == "after":
            detector = Detector(image_size=64).fit(parts)
        print("scored", len(detector.score(parts[:1])), flush=True)
    except RuntimeError as error:
        print(error, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


@pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="this system cannot fork")
class TestFork:
    def run(self, order):
        done = subprocess.run([sys.executable, "-c", CODE, order], capture_output=True, text=True, timeout=90)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def test_after_a_fit_is_refused_and_names_spawn(self):
        assert "multiprocessing.get_context('spawn')" in self.run("before")

    def test_before_anything_was_computed_is_as_good_as_any_process(self):
        assert self.run("after") == "scored 1\n"
