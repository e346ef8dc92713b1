"""What more good images do to a fitted core: its threshold is set from them, or they are learnt too."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np

from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.detecting.scoring import open_like_fitted, score_images
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import OnUnreadable, embed_source
from anomalib_lite.fitted import recalibration
from anomalib_lite.fitted.adding import Addition, added, require_bank
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.duplicates import describe_groups, duplicate_groups
from anomalib_lite.fitted.groups import Groups, group_names, numbered
from anomalib_lite.fitted.plan import EMBEDDING
from anomalib_lite.images.fixture import RegisteredSource
from anomalib_lite.images.mvtec import refuse_labelled_root
from anomalib_lite.images.training import open_training
from anomalib_lite.images.variations import VariedSource
from anomalib_lite.locating.maps import peak
from anomalib_lite.machine.progress import work
from anomalib_lite.results import Scores


def recalibrated(
    good: Any,
    parameters: Parameters,
    fitted: Fitted,
    embedder: Embedder,
    *,
    mode: recalibration.Mode,
    groups: Groups | None,
    on_unreadable: OnUnreadable,
    everything_is_good: bool,
) -> Fitted:
    """The core with a threshold from fresh good images; see `Detector.recalibrate`."""
    source = open_like_fitted(good, parameters, fitted)
    if not everything_is_good:
        refuse_labelled_root(good, source)
    names = None if groups is None else group_names(groups, source.ids)
    scores = score_images(source, parameters, fitted, embedder, on_unreadable=on_unreadable, vectors=names is None)
    if scores.unreadable:
        warnings.warn(f"{len(scores.unreadable)} images cannot be read: {scores.unreadable[0].reason}", stacklevel=3)
    numbers = np.arange(len(scores))
    if names is not None:
        of_image = dict(zip(source.ids, names, strict=True))
        numbers = numbered([of_image[name] for name in scores.ids])
    elif len(scores) and scores.vectors is not None:
        numbers = duplicate_groups(scores.vectors.copy())  # torch warns of read-only arrays
        if found := describe_groups(numbers):
            warnings.warn(f"{found}; such pictures count as one", stacklevel=3)
    core = recalibration.recalibrated(fitted, scores.scores, scores.ids, numbers, mode, _peaks(scores))
    for doubt in recalibration.doubts(fitted, scores.scores, scores.ids):
        warnings.warn(doubt, stacklevel=3)
    return core


def grown(
    good: Any,
    parameters: Parameters,
    fitted: Fitted,
    embedder: Embedder,
    *,
    groups: Groups | None,
    calibrating: bool,
    on_unreadable: OnUnreadable,
    everything_is_good: bool,
) -> Fitted:
    """The core that has learnt more good images; see `Detector.add`."""
    require_bank(fitted)
    source, _ = open_training(
        good,
        parameters.reading_in(fitted.value_range),
        everything_is_good=everything_is_good,
        variations=parameters.variations,
        random_state=parameters.random_state,
        workers=parameters.workers,
    )
    copies = source.copies if isinstance(source, VariedSource) else 1
    numbers = None if groups is None else numbered(group_names(groups, source.ids[::copies]))
    shown = source if fitted.fixture is None else RegisteredSource(source, fitted.fixture)
    stream = embed_source(
        embedder,
        shown,
        np.arange(len(source)),
        on_unreadable=on_unreadable,
        workers=parameters.workers,
        progress=EMBEDDING,
    )
    with work(parameters.progress, EMBEDDING):
        core = added(fitted, stream, Addition(source.ids, numbers, copies, calibrating, parameters.random_state))
    if isinstance(shown, RegisteredSource) and fitted.train.poses is not None:
        poses = np.concatenate([fitted.train.poses, shown.turns_and_shifts()])
        core = replace(core, train=replace(core.train, poses=poses))
    return core


def _peaks(scores: Scores) -> np.ndarray | None:
    """The highest values (n,) of the anomaly maps; None at the global level."""
    if scores.patch_scores is None:
        return None
    sizes = zip(scores.patch_scores, scores.image_sizes, strict=True)
    return np.array([peak(grid, scores.frame, size) for grid, size in sizes])  # as laid, as those of the fit
