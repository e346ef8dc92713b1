"""More good images into a standing core, and images out of it again, without those that it was fitted on.

Only a bank of neighbours can take more in (`scoring.KNNScorer`): new rows that lie farther from it than it covers, the
others are known, are merged with the standing ones by the rule that chose those (a greedy k-center of their union, of
`bank_size` at most; merge and reduce, Har-Peled and Mazumdar, STOC 2004). The reduction stays as it was fitted, since
the rows it was learnt from are gone; where it explains much less of the new images than of those, that is said.

New images calibrate by the standing core, which has not seen them. The bank that scores from then on knows more, so the
threshold errs to the safe side: fewer false alarms than promised. `Detector.recalibrate` makes it exact.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage, Intake
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.fitted.duplicates import describe_groups, duplicate_groups
from anomalib_lite.fitted.groups import numbered
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.recalibration import doubts
from anomalib_lite.fitted.rows import RowCollector
from anomalib_lite.fitted.whole import keep_worst
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.locating.maps import peak
from anomalib_lite.scoring import image_score
from anomalib_lite.scoring.knn import KNNScorer
from anomalib_lite.scoring.reduction import PCA

_WORST_OF = 2  # copies that calibrate an image, as in a fit
_LOOKED_AT = 4  # new images whose variance is compared with that of the fit
_MUCH_MORE = 2.0  # times the share of variance that the reduction leaves unexplained


@dataclass(frozen=True)
class Addition:
    """What is to be added, and how.

    Attributes
    ----------
    ids : of the images, copies counted
    groups : int (n,) of the images, without copies; None: shots of one part among them are looked for
    copies : times that every image is shown, with consecutive indices
    calibrating : whether they are a fair sample of good images, and so extend the calibration
    random_state : of what is drawn
    """

    ids: Sequence[str]
    groups: np.ndarray | None = None
    copies: int = 1
    calibrating: bool = True
    random_state: int = 0


def require_bank(fitted: Fitted) -> KNNScorer:
    """The core's bank, or ValueError where it has none that more can be added to."""
    if not isinstance(fitted.scorer, KNNScorer):
        raise ValueError(
            f"scorer={fitted.scorer.name!r} keeps no rows that others could be added to or taken from; only 'knn' "
            "does. Fit again"
        )
    if fitted.whole is not None:
        raise ValueError("level='both' keeps no vectors of whole images that others could be added to; fit again")
    return fitted.scorer


def added(fitted: Fitted, stream: Iterable[EmbeddedImage | UnreadableImage], addition: Addition) -> Fitted:
    """The core that has learnt the images of a stream too.

    Warns
    -----
    UserWarning
        If new images are unlike the others (defects?), seem to have been learnt from before, vary otherwise than those
        of the fit, or cannot be read.

    Raises
    ------
    ValueError
        If the core keeps no bank, or no image can be read.
    """
    scorer = require_bank(fitted)
    known, copies = len(fitted.train.ids), addition.copies
    drawn = np.random.default_rng(addition.random_state)
    worst_of = drawn.permuted(np.tile(np.arange(copies), (len(addition.ids) // copies, 1)), axis=1)[:, :_WORST_OF]
    intake = Intake()
    collected = RowCollector(scorer.max_rows, coreset_size=scorer.coreset_size, random_state=scorer.random_state)
    scores: dict[int, float] = {}
    peaks: dict[int, float] = {}
    vectors: dict[int, np.ndarray] = {}
    for image in intake.readable(stream):
        number, shown = divmod(image.index, copies)
        if len(vectors) < _LOOKED_AT and shown == 0:
            _compare_variance(fitted, image)
        on_grid = np.full(fitted.grid[0] * fitted.grid[1], np.nan, dtype=np.float32)
        found: list[np.ndarray] = []
        for patches, rows in image.blocks(fitted.reduction):
            patch_scores, _, distances = scorer.score_and_nearest(rows)
            on_grid[patches] = patch_scores
            found.append(patch_scores)
            far = distances > scorer.covering_radius_
            collected.add(rows[far], known + image.index, patches[far])
        if shown in worst_of[number]:
            keep_worst(scores, number, image_score(np.concatenate(found), fitted.top_share))
            if fitted.peaks is not None:
                keep_worst(peaks, number, peak(on_grid.reshape(fitted.grid), fitted.frame, image.original_size))
        if shown == 0:
            vectors[number] = image.whole
    if not scores:
        reasons = "; ".join(entry.reason for entry in intake.unreadable[:3])
        raise ValueError(f"none of the images can be read, so there is nothing to add{reasons and ': ' + reasons}")
    groups = _groups(fitted, addition, vectors)
    rows, origins = collected.rows()
    train = _longer(fitted.train, addition, intake, groups, scores if addition.calibrating else {})
    core = replace(_with_bank(fitted, rows, origins), train=train)
    numbers = np.array(list(scores), dtype=np.int64)
    if not addition.calibrating:
        names = [addition.ids[number * copies] for number in numbers.tolist()]
        return replace(core, history=(*core.history, Record.of("add", core.calibration, names)))
    values, names = np.array(list(scores.values())), [addition.ids[number * copies] for number in numbers.tolist()]
    for doubt in doubts(fitted, values, names):
        warnings.warn(doubt, stacklevel=4)
    calibration = _extended(fitted.calibration, values, groups[numbers])
    highest = fitted.peaks and _extended(fitted.peaks, np.array([peaks[i] for i in scores]), groups[numbers])
    record = Record.of("add", calibration, names)
    return replace(core, calibration=calibration, peaks=highest, history=(*core.history, record))


def removed(fitted: Fitted, ids: Iterable[str]) -> Fitted:
    """The core without these images: their rows, and what they said of how good ones score.

    What lies near their rows was left out of the bank for being like them, and will look odder than it would after a
    fit without them. What they gave to the mean of a row that another image stands for stays in it. Where many are
    removed, fit again.

    Raises
    ------
    ValueError
        If the core keeps no bank, an id is unknown, or fewer than two images, or too few rows, would be left.
    """
    scorer, train = require_bank(fitted), fitted.train
    wanted = set(ids)
    if unknown := sorted(wanted - set(train.ids)):
        raise ValueError(
            f"{len(unknown)} of {len(wanted)} ids are of no image that was learnt from, such as {unknown[0]!r}; "
            f"`fitted_.train.ids` has them, such as {train.ids[0]!r}"
        )
    copies = train.copies
    out = np.array(
        [any(name in wanted for name in train.ids[i : i + copies]) for i in range(0, len(train.ids), copies)]
    )
    if not out.any():
        return fitted
    stays = ~np.repeat(out, copies)
    if train.sizes[stays][::copies].any(axis=1).sum() < 2:
        raise ValueError("fewer than two images would be left; fit anew")
    kept = np.flatnonzero(stays[fitted.origins[:, 0]])
    if len(kept) < scorer.k:
        raise ValueError(f"{len(kept)} rows would be left of the bank, and k={scorer.k}; fit anew")
    new_index, new_number = np.cumsum(stays) - 1, np.cumsum(~out) - 1
    origins = fitted.origins[kept].copy()
    origins[:, 0] = new_index[origins[:, 0]]
    calibrates = ~out[train.calibrating]
    shorter = TrainingImages(
        ids=tuple(name for name, stay in zip(train.ids, stays.tolist(), strict=True) if stay),
        sizes=train.sizes[stays],
        unreadable=tuple(
            replace(entry, index=int(new_number[entry.index])) for entry in train.unreadable if not out[entry.index]
        ),
        calibrating=new_number[train.calibrating[calibrates]],
        scores=train.scores[calibrates],
        groups=train.groups[~out],
        copies=copies,
        poses=None if train.poses is None else train.poses[stays],
    )
    gone = ~calibrates
    groups = train.groups[train.calibrating[gone]]
    calibration = _shortened(fitted.calibration, groups, train.scores[gone])
    highest = fitted.peaks and _shortened(fitted.peaks, groups)
    # What a bank was chosen from is not known to it: the radius stays that of the fit.
    bank = copy.copy(scorer).fit(scorer.bank_[kept])
    bank.covering_radius_ = scorer.covering_radius_
    return replace(
        fitted,
        scorer=bank,
        origins=origins[bank.bank_rows_],
        train=shorter,
        calibration=calibration,
        peaks=highest,
        history=(*fitted.history, Record.of("remove", calibration, sorted(wanted))),
    )


def _with_bank(fitted: Fitted, rows: np.ndarray, origins: np.ndarray) -> Fitted:
    """The core with a bank of its own rows and others (n, d), of the images and patches `origins` (n, 2)."""
    if not len(rows):
        return fitted
    scorer = require_bank(fitted)
    bank = copy.copy(scorer).fit(np.concatenate([scorer.bank_, rows]))
    bank.covering_radius_ = max(bank.covering_radius_, scorer.covering_radius_)  # of rows that are gone by now, too
    return replace(fitted, scorer=bank, origins=np.concatenate([fitted.origins, origins])[bank.bank_rows_])


def _groups(fitted: Fitted, addition: Addition, vectors: dict[int, np.ndarray]) -> np.ndarray:
    """Group (n,) of every new image, none of which was there before."""
    count = len(addition.ids) // addition.copies
    groups = np.arange(count) if addition.groups is None else np.asarray(addition.groups)
    if addition.groups is None and len(vectors) > 1:
        numbers = np.array(list(vectors))
        twins = duplicate_groups(np.stack(list(vectors.values())))
        groups[numbers] = numbers[np.unique(twins, return_index=True)[1]][twins]
        if found := describe_groups(twins):
            warnings.warn(f"{found}; such pictures count as one", stacklevel=5)
    taken = max(int(fitted.train.groups.max()), int(fitted.calibration.groups.max()))
    return numbered(groups.tolist()) + taken + 1


def _longer(
    train: TrainingImages, addition: Addition, intake: Intake, groups: np.ndarray, scores: dict[int, float]
) -> TrainingImages:
    copies, before = addition.copies, len(train.ids)
    lost = {entry.index // copies: entry for entry in reversed(intake.unreadable)}
    ids = _distinct(addition.ids, train.ids)
    entries = [
        UnreadableImage(before // copies + number, ids[number * copies], lost[number].reason) for number in sorted(lost)
    ]
    if entries:
        warnings.warn(f"{len(entries)} images cannot be read: {entries[0].reason}", stacklevel=5)
    sizes = np.array([intake.sizes.get(i, (0, 0)) for i in range(len(ids))], dtype=np.int64)
    return replace(
        train,
        ids=(*train.ids, *ids),
        sizes=np.concatenate([train.sizes, sizes]),
        unreadable=(*train.unreadable, *entries),
        calibrating=np.append(train.calibrating, np.array(list(scores), dtype=np.int64) + before // copies),
        scores=np.append(train.scores, list(scores.values())),
        groups=np.append(train.groups, groups),
    )


def _distinct(ids: Sequence[str], taken: Iterable[str]) -> list[str]:
    """The ids, those that are there already with a number behind them: "a.png", "a.png (2)"."""
    seen, found = set(taken), []
    for name in ids:
        other, number = name, 1
        while other in seen:
            number += 1
            other = f"{name} ({number})"
        seen.add(other)
        found.append(other)
    return found


def _extended(old: Calibration, values: np.ndarray, groups: np.ndarray) -> Calibration:
    return replace(old, scores=np.append(old.scores, values), groups=np.append(old.groups, groups), exact=False)


def _shortened(old: Calibration, groups: np.ndarray, scores: np.ndarray | None = None) -> Calibration:
    """Without a score of each of these groups (n,): the one that is named, or the highest."""
    stays = np.ones(old.scores.size, dtype=bool)
    for i, group in enumerate(groups.tolist()):
        mine = np.flatnonzero(stays & (old.groups == group))
        if scores is not None:
            mine = mine[old.scores[mine] == scores[i]]
        if len(mine):  # there is none where the threshold was set from fresh images since
            stays[mine[-1]] = False
    if not stays.any():
        raise ValueError("no image that calibrates would be left; fit anew")
    return replace(old, scores=old.scores[stays], groups=old.groups[stays])


def _compare_variance(fitted: Fitted, image: EmbeddedImage) -> None:
    """Warn where the reduction explains much less of a new image than of those it was learnt from."""
    if not isinstance(fitted.reduction, PCA):
        return
    rows = next(image.blocks())[1]
    pca = fitted.reduction
    spread = float((((rows - pca.mean_) / pca.scale_) ** 2).sum())
    lost = float((pca.residual(rows) ** 2).sum()) / spread if spread else 0.0
    usual = 1 - float(pca.explained_variance_ratio_.sum())
    if lost > _MUCH_MORE * usual + 0.01:
        warnings.warn(
            f"{image.id}: the PCA leaves out {100 * lost:.0f} % of how it varies, and {100 * usual:.0f} % of those "
            "it was learnt from; it is kept. If such images are to stay, fit again with all",
            stacklevel=5,
        )
