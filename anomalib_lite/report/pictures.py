"""What a page holds of every image: a small picture, its heat map and outlines, a few kilobytes within it."""

from __future__ import annotations

import base64
import io
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from anomalib_lite.fitted.calibration import GOOD
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource, ReadsReduced
from anomalib_lite.locating.regions import Ring
from anomalib_lite.plotting.overlays import heat_layer
from anomalib_lite.plotting.scored import pictures_of
from anomalib_lite.results import Scores

# Bytes of all pictures together, so that a page of 5 000 images stays below 30 MB with its heat maps.
_PICTURE_BYTES = 14_000_000
_GENEROUS_BYTES = 6_000_000  # within which pictures are larger than 320 pixels, to be looked at closely
_SIDES = (768, 512, 320, 256, 192, 128, 96, 64)  # of a picture, in pixels at most
_USUAL_SIDE = 320  # where a picture starts however many there are
_BYTES_PER_PIXEL = 0.25  # of JPEG at this quality, for photographs
_QUALITY = 80  # JPEG, since printing to PDF takes it over as it is; WebP is decoded, and four times as large there
_OUTLINE_SIDE = 512  # steps of an outline along the longer side of a picture: small whole numbers
_HEAT_SIDE = 96  # pixels of a heat map: a browser smooths it, paper does not


class Thumbnails:
    """An image source that keeps a small picture of every image read through it: JPEG, 10 kB each where there are many.

    Give it to `Detector.score`, with ``vectors=True``, and both to `write_report`, and no image is decoded twice.
    `pictures` is by position.
    """

    def __init__(self, source: ImageSource) -> None:
        self.source, self.ids = source, source.ids
        self.pictures: dict[int, bytes] = {}
        fitting = math.sqrt(_GENEROUS_BYTES / max(1, len(self.ids)) / (4 / 3) / _BYTES_PER_PIXEL)
        self._side = max(_USUAL_SIDE, next((side for side in _SIDES if side <= fitting), 0))

    def __len__(self) -> int:
        return len(self.ids)

    def read(self, i: int) -> np.ndarray:
        return self._kept(i, self.source.read(i))

    def read_reduced(self, i: int, least: tuple[int, int]) -> tuple[np.ndarray, tuple[int, int]]:
        """See `images.sources.ReadsReduced`: large pictures are decoded for scoring as they are without thumbnails."""
        if isinstance(self.source, ReadsReduced):
            pixels, size = self.source.read_reduced(i, least)
            return self._kept(i, pixels), size
        pixels = self.read(i)
        return pixels, (pixels.shape[0], pixels.shape[1])

    def sharpen(self, i: int, size: tuple[int, int]) -> None:
        """Keep a picture of `size` (height, width) at the side it is to have, if it was decoded smaller for scoring."""
        share = min(1.0, self._side / max(size))
        if max(size_of(self.pictures[i])) >= int(share * max(size)) or not isinstance(self.source, ReadsReduced):
            return
        try:
            pixels, found = self.source.read_reduced(i, (math.ceil(share * size[0]), math.ceil(share * size[1])))
        except UnreadableImageError:  # it has gone by now: what was seen of it stays
            return
        if found == size:
            self.pictures[i] = as_jpeg(pixels, self._side)

    def _kept(self, i: int, pixels: np.ndarray) -> np.ndarray:
        if i not in self.pictures:
            self.pictures[i] = as_jpeg(pixels, self._side)
        return pixels


def small_pictures(scores: Scores, source: Thumbnails, lost: dict[str, str]) -> dict[int, bytes]:
    """Small pictures by position in `scores`, at the largest side at which all of them fit their budget.

    Of an image that has gone since it was scored the reason is added to `lost`, by id.
    """
    position = {name: i for i, name in enumerate(source.ids)}
    read = pictures_of(scores, source)

    def picture(i: int) -> bytes | None:
        where = position.get(scores.ids[i], -1)
        if where not in source.pictures and scores.ids[i] not in lost:
            try:
                read(i)
            except UnreadableImageError as error:
                lost[scores.ids[i]] = str(error)
        if where in source.pictures and scores.alarms[i]:  # they are looked at closely
            source.sharpen(where, scores.image_sizes[i])
        return source.pictures.get(where)

    with ThreadPoolExecutor() as pool:
        found = {i: made for i, made in enumerate(pool.map(picture, range(len(scores)))) if made is not None}
        for side in _SIDES:
            if sum(4 * len(content) // 3 for content in found.values()) <= _PICTURE_BYTES:
                break
            smaller = [pool.submit(_smaller, content, side) for content in found.values()]
            found = {i: made.result() for i, made in zip(found, smaller, strict=True)}
    return found


def heat_maps(scores: Scores) -> list[bytes]:
    """The heat map of every image as PNG, to be laid over its picture; none at the global level."""
    if scores.patch_scores is None:
        return []

    def made(i: int) -> bytes:
        height, width = scores.image_sizes[i]
        shrink = max(height, width) / max(_HEAT_SIDE, *scores.patch_scores.shape[1:])  # type: ignore[union-attr]
        size = max(1, round(height / shrink)), max(1, round(width / shrink))
        layer = heat_layer(scores.anomaly_map(i, size), scores.map_scale, scores.looked_at(i, size))
        return _encoded(layer, "PNG")

    with ThreadPoolExecutor() as pool:
        return list(pool.map(made, range(len(scores))))


def outlines(scores: Scores) -> dict[int, str]:
    """Outlines of what is unlike the good ones, as SVG by position, of the images that are not good and have some."""
    if scores.patch_scores is None:
        return {}
    with ThreadPoolExecutor() as pool:
        wanted = [i for i, verdict in enumerate(scores.verdicts) if verdict != GOOD]
        found = pool.map(lambda i: _drawing(scores, i), wanted)
        return {i: drawing for i, drawing in zip(wanted, found, strict=True) if drawing}


def _drawing(scores: Scores, i: int) -> str:
    height, width = scores.image_sizes[i]
    step = max(height, width) / _OUTLINE_SIDE
    line = "".join(_path(ring, step) for region in scores.regions(i) for ring in region.outline)
    # Twice, the darker one broader, so that it is seen on any ground.
    return line and (
        f'<svg class="lines" aria-hidden="true" viewBox="0 0 {width / step:.6g} {height / step:.6g}" '
        f'preserveAspectRatio="none"><path class="outer" d="{line}"/><path d="{line}"/></svg>'
    )


def _path(ring: Ring, step: float) -> str:
    """A closed line as SVG, from corner to corner in whole steps; those along one line are one."""
    corners = np.rint(np.asarray(ring) / step).astype(int)
    moves = np.diff(corners, axis=0)
    moves = moves[moves.any(axis=1)]
    if not len(moves):
        return ""
    directions = moves // np.gcd.reduce(moves, axis=1, keepdims=True)
    begins = np.flatnonzero(np.r_[True, (np.diff(directions, axis=0) != 0).any(axis=1)])
    sides = " ".join(f"{x} {y}" for x, y in np.add.reduceat(moves, begins, axis=0))
    return f"M{corners[0, 0]} {corners[0, 1]}l{sides}z"


def as_jpeg(pixels: np.ndarray, side: int) -> bytes:
    """A picture uint8 (H, W, 3) of at most so many pixels a side, as JPEG."""
    return _fitted(Image.fromarray(pixels), side)


def data_uri(content: bytes, kind: str) -> str:
    """A file as an address that holds it; `kind` such as "jpeg"."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def size_of(content: bytes) -> tuple[int, int]:
    """(width, height) of a picture's file."""
    return Image.open(io.BytesIO(content)).size


def _smaller(content: bytes, side: int) -> bytes:
    return _fitted(Image.open(io.BytesIO(content)), side)


def _fitted(picture: Image.Image, side: int) -> bytes:
    picture.thumbnail((side, side), Image.Resampling.LANCZOS, reducing_gap=2.0)
    return _encoded(picture, "JPEG", quality=_QUALITY)


def _encoded(picture: Image.Image, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()
