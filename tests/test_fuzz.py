"""A small part of the fuzz run; the whole one is `python tests/fuzz.py`."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_damaged_pictures_and_models_end_in_the_documented_errors_only():
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("fuzz.py"), "--pictures", "600", "--models", "120"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
