"""Finished runs, so that none is made twice, and on disk, so that a killed comparison goes on.

A file that is damaged, or was made by somebody else, is recognised before it is believed; its run is made anew.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.comparison.runs import MAPS, Run
from anomalib_lite.embedding.pixels import LARGEST_SIDE
from anomalib_lite.evaluation.pixel_metrics import PixelMetrics
from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.supervised.training import History

_LARGEST_FILE = 256 * 2**20  # bytes: a million images tested; what is larger would only fill the memory


class RunStore:
    """Runs by key, in memory and, if a folder is given, on disk.

    Raises ValueError if the folder holds those of another comparison than `identity` says.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, Run] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "comparison.json"
        text = json.dumps(identity).encode()
        if path.is_file() and path.read_bytes() != text:
            raise ValueError(
                f"{self.folder} holds the checkpoints of another comparison (other images or settings); name another "
                "folder, or delete it"
            )
        write_atomically(path, text)

    def get(self, key: str, ids: Sequence[str]) -> Run | None:
        """The run of that key, if there is a sound one yet that tested some of these images."""
        path = None if self.folder is None else self.folder / f"{key}.json"
        if key not in self._known and path is not None and path.is_file():
            try:
                self._known[key] = _read(path, ids)
            except Exception as error:  # in whatever way a file is wrong, its run can be made anew
                warnings.warn(f"{path} holds no sound run ({error!r:.200}); it is made anew", stacklevel=2)
        return self._known.get(key)

    def put(self, key: str, run: Run) -> None:
        """Keep a run; the state of its training is not needed any more.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        self._known[key] = run
        if self.folder is not None:
            stored = asdict(run)
            stored |= {name: value.tolist() for name, value in stored.items() if isinstance(value, np.ndarray)}
            stored["maps"] = {image_id: _as_png(pixels) for image_id, pixels in run.maps.items()}
            write_atomically(self.folder / f"{key}.json", json.dumps(stored).encode())
        training = self.training(key)
        if training is not None:
            training.unlink(missing_ok=True)

    def training(self, key: str) -> Path | None:
        """Where the training under way keeps its state."""
        return None if self.folder is None else self.folder / f"{key}.checkpoint"


def _read(path: Path, ids: Sequence[str]) -> Run:
    """A stored run of some of these images; an exception of any kind if it is none."""
    if path.stat().st_size > _LARGEST_FILE:
        raise ValueError(f"larger than {_LARGEST_FILE} bytes")
    stored = json.loads(path.read_bytes())
    if not 0 < len(set(stored["ids"])) == len(stored["ids"]) or not {*stored["ids"], *stored["maps"]} <= set(ids):
        raise ValueError("not of the images tested here")
    if len(stored["maps"]) > MAPS:
        raise ValueError(f"more than {MAPS} maps")
    pixels = None if stored["pixels"] is None else PixelMetrics(**stored["pixels"])
    arrays = {name: np.array(stored[name]) for name in ("scores", "alarms", "confidence")}
    maps = {image_id: _from_png(text) for image_id, text in stored["maps"].items()}
    run = Run(**{**stored, **arrays, "pixels": pixels, "maps": maps})
    measured = (pixels.pixel_auroc, pixels.pixel_ap, pixels.aupro) if pixels else ()
    optional = (run.iou, stored["promised_rate"], *measured)  # an older file says not whether a rate is promised
    numbers = [run.train_seconds, run.ms_per_image, *(x for x in optional if x is not None)]
    numbers += [x for values in run.curves.values() for x in values]
    if not all(isinstance(x, float) and math.isfinite(x) for x in numbers):
        raise ValueError("a time, a metric or a point of a curve is no number")
    if History(**stored["curves"]).curves != run.curves:
        raise ValueError("curves of another kind")
    return run


def _as_png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_png(text: str) -> np.ndarray:
    # Named, since other formats start other programs; and the size is read before any pixel is.
    with Image.open(io.BytesIO(base64.b64decode(text)), formats=("PNG",)) as image:
        if image.mode != "L" or max(image.size) > LARGEST_SIDE:
            raise ValueError(f"a map of {image.size} pixels in mode {image.mode}")
        return np.array(image)
