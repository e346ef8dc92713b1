"""How a detector learns: a stream of embedded good images in, a reduction, a scorer and a calibration out.

Patches: the first images (the stream is in random order) teach the PCA, all fill the scorer's rows, and each
is scored as if it had not been among them. What is held in memory has a budget; images that calibrate
but were not kept are read once more. Global vectors are few and small, so all are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from anomalib_lite.calibration import Calibration, CrossFit
from anomalib_lite.collecting import RowCollector
from anomalib_lite.embedding.streaming import EmbeddedImage
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.reduction import Reduction
from anomalib_lite.scoring import KNNScorer, Scorer, image_score

# Embeddings held back to learn the PCA from, and reduced rows held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
# Images that calibrate the threshold at most: enough for a false-alarm rate of 0.1 %.
_CALIBRATION_IMAGES = 1000
# At the global level a fold costs next to nothing, and more folds come closer to the final scorer.
_GLOBAL_FOLDS = 10

Embed = Callable[[np.ndarray], Iterator[EmbeddedImage | UnreadableImage]]


class NoGoodImagesError(ValueError):
    """Too few readable images to learn from."""


@dataclass
class Intake:
    """What was met on the way through a stream of images."""

    sizes: dict[int, tuple[int, int]] = field(default_factory=dict)
    unreadable: list[UnreadableImage] = field(default_factory=list)

    def readable(self, stream: Iterator[EmbeddedImage | UnreadableImage]) -> Iterator[EmbeddedImage]:
        """Pass readable images on; note their sizes, and the unreadable ones."""
        for image in stream:
            if isinstance(image, UnreadableImage):
                self.unreadable.append(image)
            else:
                self.sizes[image.index] = image.original_size
                yield image


@dataclass(frozen=True)
class Fitted:
    """What a detector knows after fitting.

    Attributes
    ----------
    origins : int64 (m, 2)
        For kNN the training image and patch of every bank row; empty for other scorers.
    grid : (gh, gw)
        Patches per image; (1, 1) at the global level.
    """

    reduction: Reduction
    scorer: Scorer
    calibration: Calibration
    origins: np.ndarray
    grid: tuple[int, int]


def fit_patches(
    embed: Embed,
    order: np.ndarray,
    intake: Intake,
    *,
    make_reduction: Callable[[int], Reduction],
    make_scorer: Callable[[], Scorer],
    top_share: float,
    false_alarm_rate: float,
    random_state: int,
) -> Fitted:
    """Fit on patch grids of the images `order` (n,), each embedded once (or twice, see the module).

    Raises
    ------
    NoGoodImagesError
        If fewer than two images can be read.
    """
    stream = intake.readable(embed(order))
    sample = _first(stream, _SAMPLE_BYTES)
    _require_two(len(sample), intake)
    grid = sample[0].embedding.shape[:2]
    reduction = make_reduction(sample[0].embedding.shape[2])
    reduction.fit(np.concatenate([image.rows for image in sample]))

    scorer = make_scorer()
    collector = RowCollector(scorer.max_rows, coreset_size=_coreset_size(scorer), random_state=random_state)
    held: dict[int, np.ndarray] = {}
    held_bytes = 0
    for image in _emptying(sample, stream):
        rows = reduction.transform(image.rows)
        collector.add(rows, image.index)
        if held_bytes < _HELD_BYTES and len(held) < _CALIBRATION_IMAGES:
            held[image.index] = rows
            held_bytes += rows.nbytes

    X, origins = collector.rows()
    scorer.fit(X, origins[:, 0])
    unseen = scorer if isinstance(scorer, KNNScorer) else CrossFit(make_scorer).fit(X, origins[:, 0])
    del X
    calibration_scores = []

    def calibrate(rows: np.ndarray, index: int) -> None:
        patch_scores = unseen.score_excluding(rows, np.full(len(rows), index))
        calibration_scores.append(image_score(patch_scores, top_share))

    for index, rows in held.items():
        calibrate(rows, index)
    rest = [index for index in intake.sizes if index not in held][: _CALIBRATION_IMAGES - len(held)]
    held.clear()
    if rest:
        for image in Intake().readable(embed(np.array(rest))):
            calibrate(reduction.transform(image.rows), image.index)
    return Fitted(
        reduction,
        scorer,
        Calibration(np.array(calibration_scores), false_alarm_rate),
        _bank_origins(scorer, origins),
        (grid[0], grid[1]),
    )


def fit_global(
    embed: Embed,
    order: np.ndarray,
    intake: Intake,
    *,
    make_reduction: Callable[[int], Reduction],
    make_scorer: Callable[[], Scorer],
    false_alarm_rate: float,
) -> Fitted:
    """Fit on one vector per image.

    Raises
    ------
    NoGoodImagesError
        If fewer than two images can be read.
    """
    images = list(intake.readable(embed(order)))
    _require_two(len(images), intake)
    X = np.stack([image.embedding for image in images])
    index = np.array([image.index for image in images])

    def make() -> _Pipeline:
        return _Pipeline(make_reduction(X.shape[1]), make_scorer())

    fitted = make().fit(X, index)
    # With few more images than dimensions a PCA knows the images it was learnt from: every fold learns its own.
    unseen = CrossFit(make, n_folds=_GLOBAL_FOLDS).fit(X, index)
    calibration = Calibration(unseen.score_excluding(X, index), false_alarm_rate)
    origins = np.stack([index, np.zeros_like(index)], axis=1)
    return Fitted(fitted.reduction, fitted.scorer, calibration, _bank_origins(fitted.scorer, origins), (1, 1))


class _Pipeline:
    """Reduction and scorer as one, so that cross-fitting leaves an image out of both."""

    def __init__(self, reduction: Reduction, scorer: Scorer):
        self.reduction = reduction
        self.scorer = scorer

    def fit(self, X: np.ndarray, groups: np.ndarray) -> _Pipeline:
        self.reduction.fit(X)
        self.scorer.fit(self.reduction.transform(X), groups)
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        return self.scorer.score(self.reduction.transform(X))


def _first(stream: Iterator[EmbeddedImage], budget: int) -> list[EmbeddedImage]:
    """The first images of a stream, as many as fit the budget in bytes, two at least."""
    sample: list[EmbeddedImage] = []
    used = 0
    for image in stream:
        sample.append(image)
        used += image.embedding.nbytes
        if used >= budget and len(sample) >= 2:
            break
    return sample


def _emptying(sample: list[EmbeddedImage], stream: Iterator[EmbeddedImage]) -> Iterator[EmbeddedImage]:
    """The images held back, each let go of when it has been used, then the rest of the stream."""
    while sample:
        yield sample.pop(0)
    yield from stream


def _coreset_size(scorer: Scorer) -> int | None:
    return scorer.bank_size if isinstance(scorer, KNNScorer) and scorer.selection == "k-center" else None


def _bank_origins(scorer: Scorer, origins: np.ndarray) -> np.ndarray:
    return origins[scorer.bank_rows_] if isinstance(scorer, KNNScorer) else origins[:0]


def _require_two(n_images: int, intake: Intake) -> None:
    if n_images >= 2:
        return
    reasons = "".join(f"\n  {image.reason}" for image in intake.unreadable[:5])
    raise NoGoodImagesError(
        f"{n_images} readable image(s) among {n_images + len(intake.unreadable)} to learn from; two good images are the "
        f"least, some dozens are recommended{reasons and '. Unreadable:' + reasons}"
    )
