"""How a detector learns: a stream of embedded good images in, the fitted core out.

Patches: the first images (the stream is in random order) teach the PCA, all fill the scorer's rows, and each
is scored as if it had not been among them. What is held in memory has a budget; images that calibrate
but were not kept are read once more. Global vectors are few and small, so all are kept.

Scored as if it had not been among them: by a scorer made without its fold (``"cross"``), or, where images can be
spared, by one that never saw it (``"split"``). Images of one group share their fate. Of varied copies of an image two,
drawn at random, calibrate it by the worse score: what is promised is for a good part under two such variations, so that
it holds near the ends of the declared range too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from anomalib_lite.embedding.streaming import Block, EmbeddedImage, Intake
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.fitted.duplicates import describe_groups, too_many_twins
from anomalib_lite.fitted.folds import left_out
from anomalib_lite.fitted.groups import numbered
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.fitted.rows import FoldedRows, RowSelection, enlarged
from anomalib_lite.fitted.whole import Whole, WholeVectors, brought_together, keep_worst, whole_folds
from anomalib_lite.images.fixture import Fixture
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.locating.maps import peak
from anomalib_lite.machine import progress
from anomalib_lite.machine.memory import available_bytes
from anomalib_lite.scoring import Scorer, image_score
from anomalib_lite.scoring.base import ExplainsByNeighbors, coreset_size, least_images
from anomalib_lite.scoring.reduction import Reduction

# Embeddings held back to learn the PCA from, and reduced rows held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
# Images that the budget has room for, and patches of each that are looked at in any case.
_LEAST_SAMPLED, _LEAST_ROWS = 8, 1024
Embed = Callable[[np.ndarray], Iterator[EmbeddedImage | UnreadableImage]]
# The same by other processes, which reduce the rows already; None for the reduction where only `whole` is wanted.
EmbedElsewhere = Callable[[np.ndarray, Reduction | None], Iterator[EmbeddedImage | UnreadableImage]]
CalibrationKind = Literal["cross", "split"]
# Stages of a fit, see `machine.progress`.
EMBEDDING, CHOOSING, LEARNING, CALIBRATING = "embedding", "choosing the bank", "learning", "calibrating"


class NoGoodImagesError(ValueError):
    """Too few readable images to learn from.

    Examples
    --------
    >>> from anomalib_lite import fit
    >>> fit([np.zeros((64, 64, 3), dtype=np.uint8)])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite.fitted.fitting.NoGoodImagesError: ...
    """


@dataclass(frozen=True)
class Plan:
    """What is to be learnt, and how.

    Attributes
    ----------
    make_reduction, make_scorer : unfitted ones; the reduction for rows that can give so many components
    selection : RowSelection, unfitted
    false_alarm_rate, top_share, calibration, calibration_images, random_state : see `Detector`
    groups : int (n,) of the images, or None: shots of one part are looked for
    value_range, frame : how the images were read and seen, kept in the result
    copies : times that every image is shown, with consecutive indices; the first is the image as it is
    whole : whether images are compared as wholes too, beside their patches
    fixture : by which the images are laid, and kept in the result
    poses : gives turn and shifts (n, 3) of all images, when all is embedded; None without a fixture
    parameters : kept in the result, see `Fitted`
    embedder : gives what is kept of it in the result, when all is embedded
    elsewhere : embeds by other processes, what need not be embedded here; None to embed all here
    """

    make_reduction: Callable[[int], Reduction]
    make_scorer: Callable[[], Scorer]
    selection: RowSelection = field(default_factory=RowSelection)
    false_alarm_rate: float = 0.01
    top_share: float = 0.01
    calibration: CalibrationKind = "cross"
    calibration_images: int = 1000
    random_state: int = 0
    groups: np.ndarray | None = None
    copies: int = 1
    whole: bool = False
    value_range: tuple[int, int] | None = None
    frame: Frame | None = None
    fixture: Fixture | None = None
    poses: Callable[[], np.ndarray] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    embedder: Callable[[], Mapping[str, Any]] = dict
    elsewhere: EmbedElsewhere | None = None


def stages(scorer: Scorer, level: str) -> list[str]:
    """The stages of a fit by this scorer, in order."""
    if level == "global":
        return [EMBEDDING, CALIBRATING]
    return [EMBEDDING, CHOOSING if coreset_size(scorer) else LEARNING, CALIBRATING]


def fit_patches(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on patch grids of the images `ids`, each embedded once (or twice, see the module).

    Raises
    ------
    NoGoodImagesError
        If fewer images can be read than the scorer needs.
    ValueError
        If the images are all the same, or all rows are to be kept and do not fit into memory.
    """
    roles = _roles(ids, plan)
    intake = Intake()
    stream = intake.readable(embed(roles.learnt))
    scorer = plan.make_scorer()
    least = _least(max(least_images(scorer), 3 if plan.whole else 0), plan)
    sample, X, counts, grid = _first(stream, _SAMPLE_BYTES, least, roles)
    _require_enough(roles, sample, np.split(X, np.cumsum(counts)[:-1]), intake, least)
    reduction = plan.make_reduction(min(X.shape)).fit(X)
    selection = plan.selection
    if selection.trim:
        groups = np.repeat([roles.group(image.index) for image in sample], counts)
        selection = selection.learn(reduction.transform(X), groups)
    del X

    def embed_reduced(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
        return embed(indices) if plan.elsewhere is None else plan.elsewhere(indices, reduction)

    if plan.elsewhere is not None:  # the first images were embedded here; the rest needs no more than the reduction
        stream.close()
        met = {*intake.sizes, *(entry.index for entry in intake.unreadable)}
        rest_of_all = np.array([index for index in roles.learnt.tolist() if index not in met], dtype=np.int64)
        stream = intake.readable(embed_reduced(rest_of_all))

    if scorer.max_rows is None:
        _require_memory(len(roles.learnt) * grid[0] * grid[1], next(sample[0].blocks(reduction))[1].shape[1])
    collected = FoldedRows(
        int(roles.folds.max()) + 1,
        scorer.max_rows,
        coreset_size=coreset_size(scorer),
        random_state=plan.random_state,
    )
    held: dict[int, list[Block]] = {}  # of images that calibrate, by index
    held_bytes = 0
    wholes = WholeVectors(roles) if plan.whole else None
    for image in _emptying(sample, stream):
        holds = plan.calibration == "cross" and roles.calibrates(image.index) and held_bytes < _HELD_BYTES
        blocks: list[Block] = []
        for numbers, rows in image.blocks(reduction):
            kept = selection.kept(rows, roles.group(image.index))
            some = len(kept) < len(rows)
            collected.add(
                rows[kept] if some else rows, image.index, numbers[kept] if some else numbers, roles.fold(image.index)
            )
            if holds and blocks and held_bytes >= _HELD_BYTES:  # one of many windows is too large to be held
                holds, held_bytes = False, held_bytes - sum(held_rows.nbytes for _, held_rows in blocks)
                blocks = []
            if holds:
                blocks.append((numbers, rows))
                held_bytes += rows.nbytes
        roles.see(image.index, image.whole)
        if wholes is not None:
            wholes.see(image.index, image.whole)
        if holds:
            held[image.index] = blocks

    roles.put_twins_together()
    with progress.stage(stages(scorer, "patch")[1], len(np.unique(roles.folds)) + 1, "folds") as step:
        X, origins = collected.rows(np.repeat(roles.folds, plan.copies), step)
        groups = roles.groups[origins[:, 0] // plan.copies]
        scorer.fit(X, groups)
        step()
    train_scores: dict[int, float] = {}
    peaks: dict[int, float] = {}
    medians: list[float] = []

    def calibrate(unseen: Scorer, blocks: Iterable[Block], index: int) -> None:
        on_grid = np.full(grid[0] * grid[1], np.nan, dtype=np.float32)
        found = []
        for numbers, rows in blocks:
            found.append(unseen.score(rows))
            on_grid[numbers] = found[-1]
        keep_worst(train_scores, index // plan.copies, image_score(np.concatenate(found), plan.top_share))
        medians.append(float(np.nanmedian(on_grid)))
        highest = peak(on_grid.reshape(grid), plan.frame, intake.sizes[index])
        keep_worst(peaks, index // plan.copies, highest)

    gaussian = None if wholes is None else wholes.learn()
    whole_scores: dict[int, float] = {}
    if plan.calibration == "split":
        held_out = intake.readable(embed_reduced(roles.held_out))
        for image in progress.over(CALIBRATING, held_out, len(roles.held_out)):
            roles.see(image.index, image.whole)
            calibrate(scorer, image.blocks(reduction), image.index)
            if gaussian is not None:
                keep_worst(whole_scores, image.index // plan.copies, float(gaussian.score(image.whole[None])[0]))
        roles.put_twins_together()
    else:
        rest = [index for index in intake.sizes if roles.calibrates(index) and index not in held]
        rest.sort(key=roles.fold)
        again = Intake().readable(embed_reduced(np.array(rest))) if rest else iter(())
        waiting = next(again, None)
        folds = roles.folds[origins[:, 0] // plan.copies]
        wanted = np.array([roles.fold(index) for index in (*held, *rest)])
        with progress.stage(CALIBRATING, len(wanted)) as step:
            for fold, unseen in left_out(plan.make_scorer, X, folds, groups, wanted=wanted):
                for index in [index for index in held if roles.fold(index) == fold]:
                    calibrate(unseen, held.pop(index), index)
                    step()
                while waiting is not None and roles.fold(waiting.index) == fold:
                    calibrate(unseen, waiting.blocks(reduction), waiting.index)
                    step()
                    waiting = next(again, None)
    del X
    whole = None
    if wholes is not None and gaussian is not None and train_scores:
        if plan.calibration == "cross":
            whole_scores = wholes.as_if_unseen()
        whole = brought_together(gaussian, whole_scores, train_scores)
        train_scores = {i: max(score, whole.brought(whole_scores[i])) for i, score in train_scores.items()}
    return _finished(
        plan, ids, roles, intake, reduction, scorer, origins, (grid[0], grid[1]), train_scores, peaks, medians, whole
    )


def fit_global(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on one vector per image.

    Raises
    ------
    NoGoodImagesError
        If fewer than three images can be read.
    ValueError
        If the images are all the same.
    """
    roles = _roles(ids, plan)
    intake = Intake()

    def embed_whole(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
        return embed(indices) if plan.elsewhere is None else plan.elsewhere(indices, None)

    learnt = list(intake.readable(embed_whole(roles.learnt)))
    # Calibration leaves one out, and what is left has to vary.
    X = np.array([image.whole for image in learnt])
    _require_enough(roles, learnt, list(X), intake, _least(3, plan))
    for image in learnt:
        roles.see(image.index, image.whole)
    roles.put_twins_together()
    index = np.array([image.index for image in learnt])
    groups = roles.groups[index // plan.copies]

    def make() -> _Pipeline:
        return _Pipeline(plan.make_reduction(X.shape[1]), plan.make_scorer())

    rows = np.arange(len(X))
    if plan.selection.trim:
        reduced = plan.make_reduction(min(X.shape)).fit(X).transform(X)
        selection = plan.selection.learn(reduced, groups)
        rows = np.flatnonzero([len(selection.kept(reduced[i : i + 1], groups[i])) for i in rows])
    fitted = make().fit(X[rows], groups[rows])
    train_scores: dict[int, float] = {}
    if plan.calibration == "split":
        for image in intake.readable(embed_whole(roles.held_out)):
            roles.see(image.index, image.whole)
            keep_worst(train_scores, image.index // plan.copies, float(fitted.score(image.whole[None])[0]))
        roles.put_twins_together()
    else:
        # With few more images than dimensions a PCA knows the images it was learnt from: every fold learns its own.
        fold = whole_folds(groups, plan.random_state)
        calibrating = np.array([roles.calibrates(i) for i in index.tolist()], dtype=bool)
        with progress.stage(CALIBRATING, int(calibrating.sum())) as step:
            for number, unseen in left_out(make, X[rows], fold[rows], groups[rows], wanted=fold[calibrating]):
                mine = np.flatnonzero(calibrating & (fold == number))
                for i, score in zip(mine.tolist(), unseen.score(X[mine]).tolist(), strict=True):
                    keep_worst(train_scores, int(index[i]) // plan.copies, score)
                    step()
    origins = np.stack([index, np.zeros_like(index)], axis=1)[rows]
    return _finished(plan, ids, roles, intake, fitted.reduction, fitted.scorer, origins, (1, 1), train_scores)


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
    roles: Roles,
    intake: Intake,
    reduction: Reduction,
    scorer: Scorer,
    origins: np.ndarray,
    grid: tuple[int, int],
    train_scores: dict[int, float],
    peaks: Mapping[int, float] | None = None,
    medians: Sequence[float] = (),
    whole: Whole | None = None,
) -> Fitted:
    """Put the core together; `origins` (n, 2) are those of the rows the scorer was fitted on."""
    copies = plan.copies
    # A file that cannot be read is one file, however often it was asked for.
    lost = {entry.index // copies: entry for entry in reversed(intake.unreadable)}
    unreadable = tuple(UnreadableImage(number, ids[number * copies], lost[number].reason) for number in sorted(lost))
    if plan.calibration == "split" and plan.groups is None:
        # A shot of a part that was learnt from is recognised.
        learnt = set(roles.groups[roles.learnt // copies].tolist())
        train_scores = {i: score for i, score in train_scores.items() if int(roles.groups[i]) not in learnt}
    calibrating = np.array(list(train_scores), dtype=np.int64)
    scores = np.array(list(train_scores.values()), dtype=np.float64)
    if not len(scores):
        raise NoGoodImagesError(
            "none of the images held out to calibrate can be read, or all show parts that were learnt; give more, "
            "or calibration='cross'"
        )
    train = TrainingImages(
        ids=tuple(ids),
        sizes=np.array([intake.sizes.get(i, (0, 0)) for i in range(len(ids))], dtype=np.int64),
        unreadable=unreadable,
        calibrating=calibrating,
        scores=scores,
        groups=numbered(roles.groups.tolist()),
        copies=copies,
        poses=None if plan.poses is None else plan.poses(),
    )
    parts = roles.parts
    withheld = ""
    if plan.groups is None and parts is not None and too_many_twins(parts):
        withheld = describe_groups(parts)
    calibration_groups = train.groups[calibrating]
    calibration = Calibration(
        scores,
        plan.false_alarm_rate,
        groups=calibration_groups,
        withheld=withheld,
        exact=plan.calibration == "split",
    )
    highest = None
    if peaks is not None:
        highest = replace(calibration, scores=np.array([peaks[i] for i in train_scores]), groups=calibration_groups)
    explains = isinstance(scorer, ExplainsByNeighbors)
    return Fitted(
        reduction=reduction,
        scorer=scorer,
        calibration=calibration,
        peaks=highest,
        whole=whole,
        usual_score=float(np.median(medians)) if medians else 0.0,
        grid=grid,
        top_share=plan.top_share,
        origins=origins[scorer.bank_rows_] if explains else origins[:0],  # type: ignore[attr-defined]
        train=train,
        value_range=plan.value_range,
        frame=plan.frame,
        fixture=plan.fixture,
        history=(Record.of("fit", calibration, [ids[i * copies] for i in calibrating.tolist()]),),
        parameters=plan.parameters,
        embedder=plan.embedder(),
    )


def _require_enough(
    roles: Roles, images: list[EmbeddedImage], embeddings: Sequence[np.ndarray], intake: Intake, least: int
) -> None:
    """Refuse too few images or groups, and embeddings that are all the same; varied copies do not count."""
    copies = roles.copies
    n_images, n_groups = len({i.index // copies for i in images}), len({roles.group(i.index) for i in images})
    if n_images < least:
        reasons = [entry.reason for entry in intake.unreadable if entry.index % copies == 0]
        shown = "".join(f"\n  {reason}" for reason in reasons[:5])
        given = len(roles.learnt) // copies
        raise NoGoodImagesError(
            f"{n_images} readable image(s) among {given} to learn from; {least} good images are the "
            f"least, some dozens are recommended{shown and '. Unreadable:' + shown}"
        )
    if n_groups < least:
        raise NoGoodImagesError(
            f"{n_images} images of {n_groups} group(s) can be read to learn from; {least} groups are the least, "
            "some dozens are recommended"
        )
    # Of many large images only a few are held; that those are the same may be chance.
    pairs = zip(images, embeddings, strict=False)  # of no image there is one part, an empty one
    upright = [embedding for image, embedding in pairs if image.index % copies == 0]
    n_given = len(roles.learnt)
    if (len(images) + len(intake.unreadable) < n_given and len(upright) < 16) or len(upright) < 2:
        return
    tolerance = 1e-5 * float(np.abs(upright[0]).max())  # the last batch may be smaller, and rounded otherwise
    if all(
        embedding.shape == upright[0].shape and np.allclose(embedding, upright[0], rtol=0, atol=tolerance)
        for embedding in upright[1:]
    ):
        raise ValueError(
            f"the training images are all the same ({len(upright)} were compared); a detector learns from how good "
            "images vary, so give images of different parts"
        )


def _roles(ids: Sequence[str], plan: Plan) -> Roles:
    return Roles(
        len(ids),
        copies=plan.copies,
        groups=plan.groups,
        held_out_for=plan.false_alarm_rate if plan.calibration == "split" else None,
        calibration_images=plan.calibration_images,
        random_state=plan.random_state,
    )


def _least(images: int, plan: Plan) -> int:
    """Images to learn from where, one left out, so many are needed."""
    return images if plan.calibration == "cross" else max(images - 1, 1)


def _first(
    stream: Iterator[EmbeddedImage], budget: int, least: int, roles: Roles
) -> tuple[list[EmbeddedImage], np.ndarray, list[int], tuple[int, int]]:
    """The first images of a stream, as many as fit the budget in bytes, but of `least` groups; their rows, and grid.

    Of every image, too, how many of the rows are its.
    """
    sample: list[EmbeddedImage] = []
    counts: list[int] = []
    groups: set[int] = set()
    X, used, grid = np.empty((0, 0), dtype=np.float32), 0, (0, 0)
    for image in stream:
        grid, begun = image.grid, used
        drawing = np.random.default_rng(0)  # the same patches of every image: whether all are the same is asked of them
        for _, rows in image.blocks():
            # Of a large image a part, so that there is room for others.
            share = max(budget / (_LEAST_SAMPLED * rows[0].nbytes), _LEAST_ROWS) / (grid[0] * grid[1])
            rows = rows if share >= 1 else rows[drawing.random(len(rows)) < share]
            if not len(rows):
                continue
            if used + len(rows) > len(X):  # at once all that the budget allows, which costs memory only as it is filled
                X = enlarged(X[:used], max(used + len(rows), -(-budget // rows.nbytes) * len(rows)), rows)
            X[used : used + len(rows)] = rows
            used += len(rows)
        sample.append(image)
        counts.append(used - begun)
        groups.add(roles.group(image.index))
        if used * rows.itemsize * rows.shape[1] >= budget and len(groups) >= least:
            break
    return sample, X[:used], counts, grid


def _emptying(sample: list[EmbeddedImage], stream: Iterator[EmbeddedImage]) -> Iterator[EmbeddedImage]:
    """The images held back, each let go of when it has been used, then the rest of the stream."""
    while sample:
        yield sample.pop(0)
    yield from stream


def _require_memory(rows: int, dimension: int) -> None:
    """Refuse a bank of all rows that does not fit: the rows, the index over them, and what makes both."""
    needed, there = 4 * 4 * rows * dimension, available_bytes()
    if there is not None and needed > there:
        raise ValueError(
            f"a bank of all {rows} rows takes about {needed / 1e9:.1f} GB and {there / 1e9:.1f} GB of memory are free; "
            "choose selection='k-center', or give fewer images"
        )
