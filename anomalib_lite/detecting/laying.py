"""How pictures come to lie in what the network sees: fixture, frame and region of interest, chosen once at a fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.detecting.quality import MOST_PIXELS
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import EmbeddedSource
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.images.fixture import Fixture, make_fixture
from anomalib_lite.images.foreground import estimate_foreground
from anomalib_lite.images.framing import Frame, choose_frame, picture_sizes, typical_size
from anomalib_lite.images.region import AUTO, Region, make_region
from anomalib_lite.images.sources import ImageSource


def choose_fixture(source: ImageSource, turn: float | None) -> Fixture | None:
    """By what images of a source to learn from are laid, turned by at most so many degrees; None for not at all."""
    if turn is None:
        return None
    if isinstance(source, EmbeddedSource):
        raise ValueError("a source that keeps embeddings cannot be registered; leave the fixture out")
    sizes = picture_sizes(source) or [(1, 1)]
    return make_fixture(source, turn, typical_size(sizes, choose_frame(sizes, None)))


def frame_for(
    source: ImageSource, laid: ImageSource, parameters: Parameters, embedder: Embedder, known: Region | None
) -> Frame:
    """How images of a source to learn from are seen.

    Parameters
    ----------
    source : ImageSource
    laid : that source, laid by a fixture if there is one
    parameters : Parameters
    embedder : Embedder, as it was made of them
    known : the region of interest that a model from a file has; it stays where that is fitted again

    Warns
    -----
    UserWarning
        If some have other proportions than the frame.

    Raises
    ------
    ValueError
        If the region covers half of no patch, or is none.
    """
    if isinstance(source, EmbeddedSource):  # of a comparison, whose models all see one square
        return embedder.frame
    asked, side = parameters.image_size, embedder.image_size[0]
    wanted: Any = tuple(asked) if isinstance(asked, Sequence) else asked
    if wanted is None and not embedder.takes_any_size:
        wanted = side
    sizes = picture_sizes(source) or [(side, side)]  # none can be read: that is said when they are
    frame = choose_frame(
        sizes,
        wanted,
        most=MOST_PIXELS[parameters.quality],
        tiles=parameters.cut,
        tile_overlap=parameters.tile_overlap,
    )
    region = _region(laid, parameters, typical_size(sizes, frame)) if known is None else known
    frame = replace(frame, region=region)
    if frame.region is not None and embedder.level == "patch":
        grid = frame.grid(embedder.framed(frame).own_grid)
        if not len(frame.region.cells(grid)):
            raise ValueError(
                f"the region of interest covers half of none of the {grid[0]} × {grid[1]} patches; enlarge it, or "
                "give a larger image_size"
            )
    if others := sum(frame.content(size) != frame.size for size in sizes):
        warnings.warn(
            f"{others} of {len(sizes)} pictures looked at have other proportions than {frame.size[0]} × "
            f"{frame.size[1]} (height × width), to which they are brought: they are "
            + ("unreadable, since the region" if frame.region else "laid into it, not stretched. Sets")
            + (" of interest is not drawn for them" if frame.region else " of one shape tell more"),
            stacklevel=4,  # of `Detector.fit`
        )
    return frame


def _region(laid: ImageSource, parameters: Parameters, size: tuple[int, int]) -> Region | None:
    """What is looked at of images to learn from."""
    roi = parameters.roi
    if isinstance(roi, str) and roi == AUTO:
        roi = estimate_foreground(laid, size, workers=parameters.workers)
    return make_region(roi, parameters.ignore, size)


def seen_as(fitted: Fitted, embedder: Embedder) -> str:
    """How images are looked at, in words."""
    height, width = embedder.frame.size
    words = [f"seen at {height} × {width} pixels (height × width)"]
    if embedder.frame.tiled:
        words.append("through {} × {} windows".format(*embedder.frame.count))
    if embedder.frame.region is not None:
        words.append(f"{100 * embedder.frame.region.share:.0f} % of them looked at")
    if fitted.fixture is not None:
        words.append(f"laid by a fixture (turned by at most {fitted.fixture.turn:g}°)")
    if embedder.level == "patch":
        words.append(f"{fitted.grid[0]} × {fitted.grid[1]} patches")
        words.append(f"an image's score is the mean of the highest {100 * fitted.top_share:g} % of them")
    if embedder.looks_twice:
        words.append(f"with a context of {embedder.context:g}")
    return ", ".join(words)
