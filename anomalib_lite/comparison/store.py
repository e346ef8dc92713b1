"""Finished verdicts, so that none is reached twice, and on disk, so that a killed comparison goes on."""

from __future__ import annotations

import base64
import io
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomalib_lite.comparison.runs import Verdict
from anomalib_lite.evaluation.pixel_metrics import PixelMetrics
from anomalib_lite.files.atomic import write_atomically


class Ledger:
    """Verdicts by key, in memory and, if a folder is given, on disk.

    Raises ValueError if the folder holds those of another comparison than `identity` says.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, identity: dict[str, Any]) -> None:
        self.folder = None if folder is None else Path(folder)
        self._known: dict[str, Verdict] = {}
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "comparison.json"
        text = json.dumps(identity)
        if path.is_file() and path.read_text() != text:
            raise ValueError(
                f"{self.folder} holds the checkpoints of another comparison (other images or settings); name another "
                "folder, or delete it"
            )
        write_atomically(path, text.encode())

    def get(self, key: str) -> Verdict | None:
        """The verdict of that key, if there is one yet."""
        if key not in self._known and self.folder is not None and (self.folder / f"{key}.json").is_file():
            self._known[key] = _restored(json.loads((self.folder / f"{key}.json").read_text()))
        return self._known.get(key)

    def put(self, key: str, verdict: Verdict) -> None:
        """Keep a verdict; the state of its training is not needed any more."""
        self._known[key] = verdict
        if self.folder is not None:
            stored = asdict(verdict)
            stored |= {name: value.tolist() for name, value in stored.items() if isinstance(value, np.ndarray)}
            stored["maps"] = {image_id: _as_png(pixels) for image_id, pixels in verdict.maps.items()}
            write_atomically(self.folder / f"{key}.json", json.dumps(stored).encode())
        training = self.training(key)
        if training is not None:
            training.unlink(missing_ok=True)

    def training(self, key: str) -> Path | None:
        """Where the training under way keeps its state."""
        return None if self.folder is None else self.folder / f"{key}.checkpoint"


def _restored(stored: dict[str, Any]) -> Verdict:
    pixels = None if stored["pixels"] is None else PixelMetrics(**stored["pixels"])
    arrays = {
        name: np.array(stored[name], dtype)
        for name, dtype in (("scores", np.float64), ("alarms", bool), ("confidence", np.float64))
    }
    maps = {image_id: _from_png(text) for image_id, text in stored["maps"].items()}
    return Verdict(**{**stored, **arrays, "pixels": pixels, "maps": maps})


def _as_png(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _from_png(text: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))))
