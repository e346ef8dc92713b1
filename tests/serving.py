"""What the tests of the server share: small models, pictures as bytes, and a server of its own."""

import io
import socket
import threading
import time
from contextlib import contextmanager

import numpy as np
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.images.synthetic import render_part

GREEN = np.array([0.6, 1.1, 0.7])


def part(seed, defect=None, *, green=False):
    pixels = render_part(np.random.default_rng(seed), 64, defect)[0]
    return np.clip(pixels * GREEN, 0, 255).astype(np.uint8) if green else pixels


def spoilt(seed):
    """A part with a chequered block on it."""
    pixels = part(seed).copy()
    squares = np.indices((20, 20)).sum(axis=0) // 4 % 2
    pixels[20:40, 20:40] = (255 * squares[..., None]).astype(np.uint8)
    return pixels


def encoded(pixels, kind="png"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def small_detector(first=0, **options):
    good = [part(i) for i in range(first, first + 24)]
    return Detector(image_size=64, workers=0, false_alarm_rate=0.1, **options).fit(good, groups="each")


@contextmanager
def running(app, **options):
    """The application on a free port of loopback, by a real server; options are uvicorn's."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="error", **options))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
