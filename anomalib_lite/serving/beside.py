"""What good looks like there: the worst patch of a judged part, and the good patch it is most like, side by side.

A model remembers of which training picture a good patch is, and where in it, but no picture. So a server is given them
(`serve --good`), and keeps those that it has learnt from itself. A picture is known by its id alone, and only shown
where it has the size that the model remembers.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anomalib_lite.detector import Detector
from anomalib_lite.fitted.core import Nearest
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.machine.threads import computing
from anomalib_lite.plotting.places import FRAME_ALARM, FRAME_GOOD, Box, Colour, enlarged
from anomalib_lite.serving.drawing import jpeg, picture
from anomalib_lite.serving.improving import learnt_as
from anomalib_lite.serving.line import Line

Side = Literal["part", "good"]
_REMEMBERED = 500  # parts whose nearest patch is known already
_LARGEST = 1024  # pixels of a side


@dataclass(frozen=True)
class Found:
    """The nearest good patch of a judged part.

    Attributes
    ----------
    nearest : Nearest
    missing : why its picture cannot be shown, "" where it can
    """

    nearest: Nearest
    missing: str


class Beside:
    """Nearest good patches of the judged parts of one part type; safe from any thread."""

    def __init__(self, line: Line):
        self._line = line
        self._known: OrderedDict[int, Nearest | None] = OrderedDict()
        self._loaded: tuple[int, Detector] | None = None  # the last version that was loaded for this
        self._places: dict[str, int] | None = None  # of ids among the pictures given
        self._finding = threading.Lock()

    def find(self, entry: dict[str, Any]) -> Found | str:
        """What is nearest to the worst patch of a part, or why nothing is, in words."""
        with self._finding:
            if entry["id"] not in self._known:
                pixels = None if entry["score"] is None else picture(self._line, entry["id"])
                if pixels is None:
                    return "The picture of this part is not kept, or it was not judged."
                self._known[entry["id"]] = self._nearest(entry, pixels)
                if len(self._known) > _REMEMBERED:
                    self._known.popitem(last=False)
            nearest = self._known[entry["id"]]
        if nearest is None:
            return "This model does not compare with single good patches."
        found = self._good(entry, nearest)
        return Found(nearest, found if isinstance(found, str) else "")

    def drawn(self, entry: dict[str, Any], side: Side, width: int) -> bytes | None:
        """The patch of the part, or the good one, as JPEG; None where it cannot be shown."""
        found = self.find(entry)
        if isinstance(found, str):
            return None
        if side == "part":
            pixels = picture(self._line, entry["id"])
            return None if pixels is None else _place(pixels, found.nearest.box, width, FRAME_ALARM)
        good = self._good(entry, found.nearest)
        return None if isinstance(good, str) else _place(good, found.nearest.train_box, width, FRAME_GOOD)

    def _nearest(self, entry: dict[str, Any], pixels: np.ndarray) -> Nearest | None:
        version = entry["version"]
        if version == self._line.version.number or self._loaded is None or self._loaded[0] != version:
            try:
                self._loaded = version, self._line.detector(version)
            except KeyError:
                return None
        scores = computing().submit(self._loaded[1].score, [pixels]).result()
        return scores.nearest[0] if scores.nearest else None

    def _good(self, entry: dict[str, Any], nearest: Nearest) -> np.ndarray | str:
        """The pixels of the good picture, or why they cannot be shown."""
        pixels: np.ndarray | None = None
        learnt = learnt_as(nearest.train_id)
        if learnt is not None:
            pixels = picture(self._line, learnt)
        elif self._line.good is None:
            return (
                "The model remembers where it saw this good patch, but holds no pictures. "
                "Start the server with --good PART=FOLDER, and it is shown here."
            )
        else:
            if self._places is None:
                self._places = {name: place for place, name in enumerate(self._line.good.ids)}
            if nearest.train_id in self._places:
                try:
                    pixels = self._line.good.read(self._places[nearest.train_id])
                except UnreadableImageError:
                    pixels = None
        if pixels is None:
            return f"The good picture {nearest.train_id} is not among those that this server was given or kept."
        train = self._line.fitted(entry["version"]).train
        if tuple(train.sizes[train.ids.index(nearest.train_id)].tolist()) != pixels.shape[:2]:
            return f"The picture that is called {nearest.train_id} now is not the one that was learnt from."
        return pixels


def _place(pixels: np.ndarray, box: Box, width: int, colour: Colour) -> bytes:
    return jpeg(enlarged(pixels, box, min(width, _LARGEST), colour))
