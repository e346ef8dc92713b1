"""The beginning and the end that all fits have: whether there is enough to learn from, and the core put together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage, Intake
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.fitted.duplicates import describe_groups, too_many_twins
from anomalib_lite.fitted.groups import numbered
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.plan import NoGoodImagesError, Plan
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.fitted.whole import Whole
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.scoring import Scorer
from anomalib_lite.scoring.base import ExplainsByNeighbors
from anomalib_lite.scoring.reduction import Reduction


def finished(
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


def require_enough(
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
