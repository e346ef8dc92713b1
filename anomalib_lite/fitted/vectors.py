"""How a detector learns from one vector per image: they are few and small, so all are kept.

Each is scored as if it had not been learnt from: by a reduction and a scorer made without its fold (``"cross"``), or,
where images can be spared, by those that never saw it (``"split"``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage, Intake
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.finishing import finished, require_enough
from anomalib_lite.fitted.folds import left_out
from anomalib_lite.fitted.plan import CALIBRATING, Embed, Plan, least_to_learn, roles_for
from anomalib_lite.fitted.whole import keep_worst, whole_folds
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.machine import progress
from anomalib_lite.scoring import Scorer
from anomalib_lite.scoring.reduction import Reduction


def fit_global(embed: Embed, ids: Sequence[str], plan: Plan) -> Fitted:
    """Fit on one vector per image.

    Raises
    ------
    NoGoodImagesError
        If fewer than three images can be read.
    ValueError
        If the images are all the same.
    """
    roles = roles_for(ids, plan)
    intake = Intake()

    def embed_whole(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
        return embed(indices) if plan.elsewhere is None else plan.elsewhere(indices, None)

    learnt = list(intake.readable(embed_whole(roles.learnt)))
    # Calibration leaves one out, and what is left has to vary.
    X = np.array([image.whole for image in learnt])
    require_enough(roles, learnt, list(X), intake, least_to_learn(3, plan))
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
    return finished(plan, ids, roles, intake, fitted.reduction, fitted.scorer, origins, (1, 1), train_scores)


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
