"""A line to try the server on: drawn parts before a simulated camera, most of them good.

The camera is another thread that sends pictures over HTTP, as a real one's program would. Some parts have a defect,
some are good and only of a greener metal than any that was learnt from (false alarms, to be learnt), and now and then
the camera sends a black picture.
"""

from __future__ import annotations

import io
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
from PIL import Image

from anomalib_lite.detector import Detector
from anomalib_lite.images.synthetic import Defect, render_part

PART = "drawn-nut"
_SIDE, _TRAINING = 256, 80
_DEFECTIVE, _GREENER, _BLACK = 0.10, 0.08, 0.02
_RATE = 0.05
_GREEN = np.array([0.55, 1.12, 0.65])


def demo_model(path: Path) -> Path:
    """A model of drawn parts, fitted if it is not there yet."""
    if not path.is_file():
        good = good_folder(path)
        good.mkdir(parents=True, exist_ok=True)
        for i in range(_TRAINING):
            Image.fromarray(render_part(np.random.default_rng((1, i)), _SIDE)[0]).save(good / f"{i:03d}.png")
        Detector(false_alarm_rate=_RATE).fit(good, groups="each").save(path)
    return path


def good_folder(model: Path) -> Path:
    """Where the pictures are that the demo's model was fitted on."""
    return model.with_name("good")


def demo_part(number: int) -> tuple[str, np.ndarray]:
    """The part of this number: what is true of it, and its picture uint8 (H, W, 3)."""
    rng = np.random.default_rng((2, number))
    chance = rng.random()
    if chance < _BLACK:
        return "black", np.zeros((_SIDE, _SIDE, 3), dtype=np.uint8)
    if chance < _BLACK + _DEFECTIVE:
        defect: Defect = rng.choice(get_args(Defect))
        return str(defect), render_part(rng, _SIDE, defect)[0]
    pixels = render_part(rng, _SIDE)[0]
    if chance < _BLACK + _DEFECTIVE + _GREENER:
        return "good, greener", np.clip(pixels * _GREEN, 0, 255).astype(np.uint8)
    return "good", pixels


class Camera:
    """Sends a part after the other, in a thread of its own.

    Parameters
    ----------
    server : its address, such as "http://127.0.0.1:8000"
    seconds : from part to part
    """

    def __init__(self, server: str, seconds: float, complain: Callable[[str], None] = lambda text: None):
        self.server, self.seconds, self.complain = server, seconds, complain
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="anomalib_lite-camera", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        number = 0
        while not self._stop.wait(self.seconds):
            truth, pixels = demo_part(number)
            file = io.BytesIO()
            Image.fromarray(pixels).save(file, "png")
            about = urllib.parse.urlencode({"name": f"{number:05d} ({truth})", "camera": "demo", "lot": number // 100})
            try:
                with urllib.request.urlopen(
                    f"{self.server}/v1/models/{PART}/score?{about}", file.getvalue(), timeout=30
                ) as answer:
                    answer.read()
                number += 1
            except OSError as error:  # it has not started yet, or is busy; the part waits
                if number:
                    self.complain(f"the camera was not answered: {error}")
