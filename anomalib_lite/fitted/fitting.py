"""How a detector learns: a stream of embedded good images in, the fitted core out.

Patches: the first images (the stream is in random order) teach the PCA, all fill the scorer's rows, and each
is scored as if it had not been among them. What is held in memory has a budget; images that calibrate
but were not kept are read once more. Global vectors are few and small, so all are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage, Intake
from anomalib_lite.fitted.calibration import Calibration, CrossFit
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.fitted.duplicates import describe_groups, duplicate_groups, too_many_twins
from anomalib_lite.fitted.rows import RowCollector, RowSelection
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.machine.memory import available_bytes
from anomalib_lite.scoring import Scorer, image_score
from anomalib_lite.scoring.base import ExplainsByNeighbors, ScoresLeftOut, coreset_size, least_images
from anomalib_lite.scoring.reduction import Reduction

# Embeddings held back to learn the PCA from, and reduced rows held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
# At the global level a fold costs next to nothing, and more folds come closer to the final scorer.
_GLOBAL_FOLDS = 10

Embed = Callable[[np.ndarray], Iterator[EmbeddedImage | UnreadableImage]]


class NoGoodImagesError(ValueError):
    """Too few readable images to learn from."""


@dataclass(frozen=True)
class Plan:
    """What is to be learnt, and how.

    Attributes
    ----------
    make_reduction, make_scorer : unfitted ones; the reduction for rows that can give so many components
    selection : RowSelection, unfitted
    false_alarm_rate, top_share, calibration_images, random_state : see `Detector`
    value_range : how the images were read, kept in the result
    copies : rotated copies of every image, with consecutive indices; the first calibrates, all others left out
    parameters, embedder : kept in the result, see `Fitted`
    """

    make_reduction: Callable[[int], Reduction]
    make_scorer: Callable[[], Scorer]
    selection: RowSelection = field(default_factory=RowSelection)
    false_alarm_rate: float = 0.01
    top_share: float = 0.01
    calibration_images: int = 1000
    random_state: int = 0
    copies: int = 1
    value_range: tuple[int, int] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    embedder: Mapping[str, Any] = field(default_factory=dict)


def fit_patches(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on patch grids of the images `ids`, each embedded once (or twice, see the module).

    Raises
    ------
    NoGoodImagesError
        If fewer images can be read than the scorer needs.
    ValueError
        If the images are all the same, or all rows are to be kept and do not fit into memory.
    """
    copies = plan.copies
    intake = Intake()
    stream = intake.readable(embed(_shuffled(ids, plan)))
    scorer = plan.make_scorer()
    least = least_images(scorer)
    sample = _first(stream, _SAMPLE_BYTES, least, copies)
    _require_enough(sample, intake, len(ids), least, copies)
    grid = sample[0].embedding.shape[:2]
    X = np.concatenate([image.rows for image in sample])
    reduction = plan.make_reduction(min(X.shape)).fit(X)
    selection = plan.selection
    if selection.trim:
        groups = np.repeat([image.index // copies for image in sample], grid[0] * grid[1])
        selection = selection.learn(reduction.transform(X), groups)
    del X

    if scorer.max_rows is None:
        _require_memory(len(ids) * grid[0] * grid[1], reduction.transform(sample[0].rows[:1]).shape[1])
    collector = RowCollector(scorer.max_rows, coreset_size=coreset_size(scorer), random_state=plan.random_state)
    held: dict[int, np.ndarray] = {}
    vectors: list[np.ndarray] = []  # of each image that calibrates, in that order: whether some show one part
    held_bytes = 0
    for image in _emptying(sample, stream):
        rows = reduction.transform(image.rows)
        kept = selection.kept(rows, image.index // copies)
        collector.add(rows if len(kept) == len(rows) else rows[kept], image.index, kept)
        if image.index % copies == 0 and held_bytes < _HELD_BYTES and len(held) < plan.calibration_images:
            held[image.index] = rows
            vectors.append(image.whole)
            held_bytes += rows.nbytes

    X, origins = collector.rows()
    groups = origins[:, 0] // copies
    scorer.fit(X, groups)
    unseen = scorer if isinstance(scorer, ScoresLeftOut) else CrossFit(plan.make_scorer).fit(X, groups)
    del X
    train_scores: dict[int, float] = {}

    def calibrate(rows: np.ndarray, index: int) -> None:
        patch_scores = unseen.score_excluding(rows, np.full(len(rows), index // copies))
        train_scores[index // copies] = image_score(patch_scores, plan.top_share)

    for index, rows in held.items():
        calibrate(rows, index)
    upright = [index for index in intake.sizes if index not in held and index % copies == 0]
    rest = upright[: plan.calibration_images - len(held)]
    held.clear()
    if rest:
        for image in Intake().readable(embed(np.array(rest))):
            calibrate(reduction.transform(image.rows), image.index)
            vectors.append(image.whole)
    return _finished(plan, ids, intake, reduction, scorer, origins, (grid[0], grid[1]), train_scores, vectors)


def fit_global(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on one vector per image.

    Raises
    ------
    NoGoodImagesError
        If fewer than three images can be read.
    ValueError
        If the images are all the same.
    """
    copies = plan.copies
    intake = Intake()
    images = list(intake.readable(embed(_shuffled(ids, plan))))
    # Calibration leaves one out, and what is left has to vary.
    _require_enough(images, intake, len(ids), 3, copies)
    X = np.stack([image.embedding for image in images])
    index = np.array([image.index for image in images])
    groups = index // copies

    def make() -> _Pipeline:
        return _Pipeline(plan.make_reduction(X.shape[1]), plan.make_scorer())

    rows = np.arange(len(X))
    if plan.selection.trim:
        reduced = plan.make_reduction(min(X.shape)).fit(X).transform(X)
        selection = plan.selection.learn(reduced, groups)
        rows = np.flatnonzero([len(selection.kept(reduced[i : i + 1], groups[i])) for i in rows])
    fitted = make().fit(X[rows], groups[rows])
    # With few more images than dimensions a PCA knows the images it was learnt from: every fold learns its own.
    unseen = CrossFit(make, n_folds=_GLOBAL_FOLDS).fit(X[rows], groups[rows])
    upright = index % copies == 0
    scores = unseen.score_excluding(X[upright], groups[upright])
    train_scores = dict(zip(groups[upright].tolist(), scores.tolist(), strict=True))
    origins = np.stack([index, np.zeros_like(index)], axis=1)[rows]
    vectors = [image.whole for image in images if image.index % copies == 0]
    return _finished(plan, ids, intake, fitted.reduction, fitted.scorer, origins, (1, 1), train_scores, vectors)


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


def _finished(
    plan: Plan,
    ids: Sequence[str],
    intake: Intake,
    reduction: Reduction,
    scorer: Scorer,
    origins: np.ndarray,
    grid: tuple[int, int],
    train_scores: dict[int, float],
    vectors: list[np.ndarray],
) -> Fitted:
    """Put the core together; `origins` (n, 2) are those of the rows the scorer was fitted on, `vectors` one for each
    image that calibrates."""
    # A file that cannot be read is one file, at however many angles it was asked for.
    unreadable = tuple(
        UnreadableImage(entry.index // plan.copies, entry.id, entry.reason)
        for entry in sorted(intake.unreadable, key=lambda entry: entry.index)
        if entry.index % plan.copies == 0
    )
    scores = np.array(list(train_scores.values()), dtype=np.float64)
    train = TrainingImages(
        ids=tuple(ids),
        sizes=np.array([intake.sizes.get(i, (0, 0)) for i in range(len(ids))], dtype=np.int64),
        unreadable=unreadable,
        calibrating=np.array(list(train_scores), dtype=np.int64),
        scores=scores,
        copies=plan.copies,
    )
    parts = duplicate_groups(np.stack(vectors))
    explains = isinstance(scorer, ExplainsByNeighbors)
    return Fitted(
        reduction=reduction,
        scorer=scorer,
        calibration=Calibration(scores, plan.false_alarm_rate, describe_groups(parts) if too_many_twins(parts) else ""),
        grid=grid,
        top_share=plan.top_share,
        origins=origins[scorer.bank_rows_] if explains else origins[:0],  # type: ignore[attr-defined]
        train=train,
        value_range=plan.value_range,
        parameters=plan.parameters,
        embedder=plan.embedder,
    )


def _shuffled(ids: Sequence[str], plan: Plan) -> np.ndarray:
    """Indices of all images in random order, so that the first of them are a random sample."""
    return np.random.default_rng(plan.random_state).permutation(len(ids))


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


def _require_memory(rows: int, dimension: int) -> None:
    """Refuse a bank of all rows that does not fit: the rows, the index over them, and what makes both."""
    needed, there = 4 * 4 * rows * dimension, available_bytes()
    if there is not None and needed > there:
        raise ValueError(
            f"a bank of all {rows} rows takes about {needed / 1e9:.1f} GB and {there / 1e9:.1f} GB of memory are free; "
            "choose selection='k-center', or give fewer images"
        )
