"""Whether an exported graph says what the library says, on the same pictures: the largest differences, and a refusal.

The library's side goes the way of `Detector.score`, with the search in float32 (`scoring.exact`), as in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import embed_source
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import open_source
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.locating.maps import anomaly_map
from anomalib_lite.scoring.exact import searching_exactly

Running = Callable[[np.ndarray], dict[str, np.ndarray]]  # pixels uint8 (H, W, 3) to outputs by name
BOUND = 1e-3
MAP_BOUND = 1e-2  # of a map's highest value
# Of the threshold: a picture that is in the bank itself scores nearly nothing, of which no share can be told.
_LEAST = 0.01
_LARGEST_SIDE = 1024  # of the pictures that are drawn


class ExportMismatchError(ValueError):
    """An export that scores otherwise than the library; nothing was written."""


@dataclass(frozen=True)
class Check:
    """How an export differs from the library.

    Attributes
    ----------
    images : compared
    score : largest difference of a score, relative to the library's
    p_value : largest difference of a p-value
    verdicts : images with another verdict, whose score is not within `BOUND` of the threshold
    anomaly_map : largest difference of a map, relative to the map's highest value; 0 without maps
    worst : id of the image with that difference of scores
    """

    images: int
    score: float
    p_value: float
    verdicts: int
    anomaly_map: float
    worst: str

    def explain(self) -> str:
        """In words."""
        return (
            f"checked on {self.images} images against the library: scores differ by {self.score:.2g} (relative) at "
            f"most, p-values by {self.p_value:.2g}, maps by {self.anomaly_map:.2g}; {self.verdicts} other verdicts"
        )


def compare(
    run: Running, fitted: Fitted, embedder: Embedder, images: Iterable[tuple[str, np.ndarray]], *, bound: float = BOUND
) -> Check:
    """Compare a graph with the library.

    Parameters
    ----------
    run : computes the graph
    fitted, embedder : of the detector
    images : ids and pixels uint8 (H, W, 3)
    bound : relative difference of scores that is borne

    Raises
    ------
    ExportMismatchError
        If a score differs by more than the bound, a p-value or verdict by more than such a score explains, or a map by
        more than `MAP_BOUND`.
    ValueError
        If there is no image that the detector can score.
    """
    exact = replace(fitted, scorer=searching_exactly(fitted.scorer))
    calibration = fitted.calibration
    n, score, p_value, verdicts, maps, worst, faults = 0, 0.0, 0.0, 0, 0.0, "", []
    for name, pixels in images:
        (image,) = embed_source(embedder, open_source([pixels]), np.arange(1), workers=0)
        if isinstance(image, UnreadableImage):  # of other proportions than a region was drawn for
            continue
        rows = exact.score(image)
        found = run(pixels)
        n += 1
        scale = max(abs(rows.score), _LEAST * abs(calibration.threshold), 1e-12)
        off = abs(float(found["score"]) - rows.score) / scale
        if not off <= score:  # also where it is no number
            score, worst = off, name
        within = bound * scale
        least, most = calibration.p_values([rows.score + within, rows.score - within]).tolist()
        p = float(calibration.p_values([rows.score])[0])
        p_value = max(p_value, abs(float(found["p_value"]) - p))
        verdict = int(found["verdict"])
        allowed = {verdict_of(calibration, rows.score + off) for off in (-within, 0.0, within)}
        if verdict not in allowed:
            verdicts += 1
            faults.append(f"{name}: verdict {verdict} instead of {verdict_of(calibration, rows.score)}")
        if not least - 1e-6 <= float(found["p_value"]) <= most + 1e-6:
            faults.append(f"{name}: p-value {float(found['p_value']):.4g} instead of {p:.4g}")
        if not off <= bound:
            faults.append(f"{name}: score {float(found['score']):.6g} instead of {rows.score:.6g}")
        if "anomaly_map" in found:
            expected = anomaly_map(rows.patch_scores, fitted.frame, image.original_size)
            highest = max(float(expected.max()), _LEAST * abs(calibration.threshold), 1e-12)
            apart = float(np.abs(found["anomaly_map"] - expected).max()) / highest
            if not apart <= maps:
                maps = apart
            if not apart <= MAP_BOUND:  # a score alone may hide it, such as that of a whole image
                faults.append(f"{name}: an anomaly map that is {apart:.2g} of its height off")
    if not n:
        raise ValueError("none of the images to check the export on can be scored; give others")
    if faults:
        raise ExportMismatchError(
            f"the export is refused, and nothing was written: {len(faults)} differences from the library beyond "
            f"{bound:g}, such as {faults[0]}. Score with the library, and report this"
        )
    return Check(n, score, p_value, verdicts, maps, worst)


def verdict_of(calibration: Calibration, score: float) -> int:
    """0 for good, 1 for "look again", 2 for an alarm."""
    lower = calibration.threshold if calibration.look_again is None else calibration.look_again
    return 2 if score > calibration.threshold else 1 if score > lower else 0


def drawn_images(frame: Frame, random_state: int = 0) -> Iterator[tuple[str, np.ndarray]]:
    """Pictures to check by where none are given: parts and noise, of several sizes and proportions."""
    rng = np.random.default_rng(random_state)
    height, width = frame.size
    largest = min(1.0, _LARGEST_SIDE / max(height, width))
    for number, (down, right) in enumerate(
        [(1.0, 1.0), (0.5, 0.5), (0.73, 0.73), (1.4, 1.4), (1.0, 0.6), (0.6, 1.0), (2.3, 0.8), (0.3, 0.9)]
    ):
        size = max(8, round(height * down * largest)), max(8, round(width * right * largest))
        part = Image.fromarray(render_part(rng, 256, "scratch" if number % 2 else None)[0])
        shown = np.array(part.resize((size[1], size[0]), Image.Resampling.BICUBIC))
        yield f"a drawn part of {size[0]} × {size[1]} pixels", shown
        if number % 3 == 0:
            noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
            yield f"noise of {size[0]} × {size[1]} pixels", noise
