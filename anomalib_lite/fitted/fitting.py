"""How a detector learns from patches: a stream of embedded good images in, the fitted core out.

The first images (the stream is in random order) teach the PCA, all fill the scorer's rows, and each is scored as if it
had not been among them. What is held in memory has a budget; images that calibrate but were not kept are read once
more.

Scored as if it had not been among them: by a scorer made without its fold (``"cross"``), or, where images can be
spared, by one that never saw it (``"split"``). Images of one group share their fate. Of varied copies of an image two,
drawn at random, calibrate it by the worse score: what is promised is for a good part under two such variations, so that
it holds near the ends of the declared range too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from anomalib_lite.embedding.streaming import Block, EmbeddedImage, Intake
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.finishing import finished, require_enough
from anomalib_lite.fitted.folds import left_out
from anomalib_lite.fitted.plan import CALIBRATING, Embed, Plan, least_to_learn, roles_for, stages
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.fitted.rows import FoldedRows, enlarged
from anomalib_lite.fitted.whole import WholeVectors, brought_together, keep_worst
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.locating.maps import peak
from anomalib_lite.machine import progress
from anomalib_lite.machine.memory import available_bytes
from anomalib_lite.scoring import Scorer, image_score
from anomalib_lite.scoring.base import coreset_size, least_images

# Embeddings held back to learn the PCA from, and reduced rows held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
# Images that the budget has room for, and patches of each that are looked at in any case.
_LEAST_SAMPLED, _LEAST_ROWS = 8, 1024


def fit_patches(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on patch grids of the images `ids`, each embedded once (or twice, see the module).

    Raises
    ------
    NoGoodImagesError
        If fewer images can be read than the scorer needs.
    ValueError
        If the images are all the same, or all rows are to be kept and do not fit into memory.
    """
    roles = roles_for(ids, plan)
    intake = Intake()
    stream = intake.readable(embed(roles.learnt))
    scorer = plan.make_scorer()
    least = least_to_learn(max(least_images(scorer), 3 if plan.whole else 0), plan)
    sample, X, counts, grid = _first(stream, _SAMPLE_BYTES, least, roles)
    require_enough(roles, sample, np.split(X, np.cumsum(counts)[:-1]), intake, least)
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
    return finished(
        plan, ids, roles, intake, reduction, scorer, origins, (grid[0], grid[1]), train_scores, peaks, medians, whole
    )


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
