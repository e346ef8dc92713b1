"""How a detector learns: a stream of embedded good images in, a reduction, a scorer and a calibration out.

Patches: the first images (the stream is in random order) teach the PCA, all fill the scorer's rows, and each
is scored as if it had not been among them. What is held in memory has a budget; images that calibrate
but were not kept are read once more. Global vectors are few and small, so all are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage
from anomalib_lite.fitted.calibration import Calibration, CrossFit
from anomalib_lite.fitted.rows import RowCollector
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.scoring import DBSCANScorer, KNNScorer, Scorer, image_score
from anomalib_lite.scoring.reduction import Reduction

# Embeddings held back to learn the PCA from, and reduced rows held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
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
    train_scores : dict
        From training image to its score as if unseen, for those that calibrate; empty in a detector that was loaded.
    """

    reduction: Reduction
    scorer: Scorer
    calibration: Calibration
    origins: np.ndarray
    grid: tuple[int, int]
    train_scores: dict[int, float] = field(default_factory=dict)


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
    calibration_images: int,
    copies: int = 1,
) -> Fitted:
    """Fit on patch grids of the images `order` (n,), each embedded once (or twice, see the module).

    Of `copies` rotated copies of an image, with consecutive indices, the first calibrates, all others left out;
    `calibration_images` of them at most.

    Raises
    ------
    NoGoodImagesError
        If fewer than two images can be read, or three for DBSCAN.
    ValueError
        If the images are all the same.
    """
    stream = intake.readable(embed(order))
    scorer = make_scorer()
    # DBSCAN's knee compares images with each other, also when calibration leaves one out.
    least = 3 if isinstance(scorer, DBSCANScorer) else 2
    sample = _first(stream, _SAMPLE_BYTES, least, copies)
    _require_enough(sample, intake, len(order), least, copies)
    grid = sample[0].embedding.shape[:2]
    X = np.concatenate([image.rows for image in sample])
    reduction = make_reduction(min(X.shape)).fit(X)
    del X

    collector = RowCollector(scorer.max_rows, coreset_size=_coreset_size(scorer), random_state=random_state)
    held: dict[int, np.ndarray] = {}
    held_bytes = 0
    for image in _emptying(sample, stream):
        rows = reduction.transform(image.rows)
        collector.add(rows, image.index)
        if image.index % copies == 0 and held_bytes < _HELD_BYTES and len(held) < calibration_images:
            held[image.index] = rows
            held_bytes += rows.nbytes

    X, origins = collector.rows()
    groups = origins[:, 0] // copies
    scorer.fit(X, groups)
    unseen = scorer if isinstance(scorer, KNNScorer) else CrossFit(make_scorer).fit(X, groups)
    del X
    train_scores: dict[int, float] = {}

    def calibrate(rows: np.ndarray, index: int) -> None:
        patch_scores = unseen.score_excluding(rows, np.full(len(rows), index // copies))
        train_scores[index // copies] = image_score(patch_scores, top_share)

    for index, rows in held.items():
        calibrate(rows, index)
    upright = [index for index in intake.sizes if index not in held and index % copies == 0]
    rest = upright[: calibration_images - len(held)]
    held.clear()
    if rest:
        for image in Intake().readable(embed(np.array(rest))):
            calibrate(reduction.transform(image.rows), image.index)
    return Fitted(
        reduction,
        scorer,
        Calibration(np.array(list(train_scores.values())), false_alarm_rate),
        _bank_origins(scorer, origins),
        (grid[0], grid[1]),
        train_scores,
    )


def fit_global(
    embed: Embed,
    order: np.ndarray,
    intake: Intake,
    *,
    make_reduction: Callable[[int], Reduction],
    make_scorer: Callable[[], Scorer],
    false_alarm_rate: float,
    copies: int = 1,
) -> Fitted:
    """Fit on one vector per image; `copies` as for `fit_patches`.

    Raises
    ------
    NoGoodImagesError
        If fewer than three images can be read.
    ValueError
        If the images are all the same.
    """
    images = list(intake.readable(embed(order)))
    # Calibration leaves one out, and what is left has to vary.
    _require_enough(images, intake, len(order), 3, copies)
    X = np.stack([image.embedding for image in images])
    index = np.array([image.index for image in images])

    def make() -> _Pipeline:
        return _Pipeline(make_reduction(X.shape[1]), make_scorer())

    groups = index // copies
    fitted = make().fit(X, groups)
    # With few more images than dimensions a PCA knows the images it was learnt from: every fold learns its own.
    unseen = CrossFit(make, n_folds=_GLOBAL_FOLDS).fit(X, groups)
    upright = index % copies == 0
    scores = unseen.score_excluding(X[upright], groups[upright])
    origins = np.stack([index, np.zeros_like(index)], axis=1)
    origins = _bank_origins(fitted.scorer, origins)
    train_scores = dict(zip(groups[upright].tolist(), scores.tolist(), strict=True))
    calibration = Calibration(scores, false_alarm_rate)
    return Fitted(fitted.reduction, fitted.scorer, calibration, origins, (1, 1), train_scores)


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


def _first(stream: Iterator[EmbeddedImage], budget: int, least: int, copies: int) -> list[EmbeddedImage]:
    """The first images of a stream, as many as fit the budget in bytes, but `least` that are no copies."""
    sample: list[EmbeddedImage] = []
    originals: set[int] = set()
    used = 0
    for image in stream:
        sample.append(image)
        originals.add(image.index // copies)
        used += image.embedding.nbytes
        if used >= budget and len(originals) >= least:
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


def _require_enough(images: list[EmbeddedImage], intake: Intake, n_given: int, least: int, copies: int) -> None:
    """Refuse too few images, and images that are all the same; rotated copies do not count."""
    n_images = len({image.index // copies for image in images})
    if n_images < least:
        reasons = [entry.reason for entry in intake.unreadable if entry.index % copies == 0]
        shown = "".join(f"\n  {reason}" for reason in reasons[:5])
        raise NoGoodImagesError(
            f"{n_images} readable image(s) among {n_given // copies} to learn from; {least} good images are the least, "
            f"some dozens are recommended{shown and '. Unreadable:' + shown}"
        )
    # Of many large images only a few are held; that those are the same may be chance.
    upright = [image.embedding for image in images if image.index % copies == 0]
    if (len(images) + len(intake.unreadable) < n_given and len(upright) < 16) or len(upright) < 2:
        return
    tolerance = 1e-5 * float(np.abs(upright[0]).max())  # the last batch may be smaller, and rounded otherwise
    if all(np.allclose(embedding, upright[0], rtol=0, atol=tolerance) for embedding in upright[1:]):
        raise ValueError(
            f"the training images are all the same ({len(upright)} were compared); a detector learns from how good "
            "images vary, so give images of different parts"
        )
