"""New images to `Scores`, by a fitted core and the embedder that is bound to it."""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import Any

import numpy as np

from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.streaming import Intake, OnUnreadable
from anomalib_lite.fitted.core import Fitted, ScoredRows
from anomalib_lite.images.fixture import RegisteredSource
from anomalib_lite.images.sources import ImageSource, lies_in_files, open_source
from anomalib_lite.machine.progress import work
from anomalib_lite.results import Scores
from anomalib_lite.scaling.embedding import score_source

SCORING = "scoring"  # a stage, see `machine.progress`


def open_like_fitted(images: Any, parameters: Parameters, fitted: Fitted) -> ImageSource:
    """Images as an `ImageSource` that reads them as those of the fit were read."""
    return open_source(images, parameters.reading_in(fitted.value_range))


def score_images(
    images: Any,
    parameters: Parameters,
    fitted: Fitted,
    embedder: Embedder,
    *,
    on_unreadable: OnUnreadable = "skip",
    vectors: bool = False,
    model: str = "",
) -> Scores:
    """Score new images; see `Detector.score`."""
    source = open_like_fitted(images, parameters, fitted)
    registered = None if fitted.fixture is None else RegisteredSource(source, fitted.fixture)
    intake = Intake()
    ids: list[str] = []
    found: list[ScoredRows] = []
    whole: list[np.ndarray] = []
    stream = score_source(
        fitted,
        embedder,
        registered or source,
        on_unreadable=on_unreadable,
        workers=parameters.workers,
        progress=SCORING if len(source) > 1 else None,
        vectors=vectors,
    )
    with work(parameters.progress, SCORING):
        for image in intake.readable(stream):
            ids.append(image.id)
            found.append(image.scored)
            if image.whole is not None:
                whole.append(image.whole)
    scores = np.array([scored.score for scored in found], dtype=np.float64)
    maps = np.array([scored.patch_scores for scored in found], dtype=np.float32).reshape(-1, *fitted.grid)
    calibration = fitted.calibration
    alarms, notes = calibration.alarms(scores), dict(getattr(source, "notes", {}))
    nearest = [scored.nearest for scored in found if scored.nearest] if fitted.explains else None
    poses = None
    if registered is not None:
        poses = [registered.poses[index] for index in intake.sizes]
        lost = [i for i, pose in enumerate(poses) if not pose.found]
        alarms[lost] = True
        notes |= {ids[i]: f"cannot be registered by the fixture, and alarms: {poses[i].reason}" for i in lost}
        if nearest is not None:
            sizes = intake.sizes.values()
            nearest = [
                replace(one, box=pose.box_undone(one.box, size))
                for one, pose, size in zip(nearest, poses, sizes, strict=True)
            ]
    return Scores(
        ids=ids,
        scores=scores,
        p_values=calibration.p_values(scores),
        alarms=alarms,
        threshold=calibration.threshold,
        look_again=calibration.look_again,
        false_alarm_rate=calibration.false_alarm_rate,
        guarantee_met=calibration.guarantee_met,
        calibration_groups=calibration.n,
        image_sizes=list(intake.sizes.values()),
        patch_scores=None if embedder.level == "global" else maps,
        # Half the threshold is where good parts live; twice is beyond doubt.
        map_scale=(0.5 * calibration.threshold, 2.0 * calibration.threshold),
        nearest=nearest,
        unreadable=intake.unreadable,
        whole_scores=np.array([one.whole_score for one in found], dtype=np.float64) if fitted.whole else None,
        vectors=np.array(whole, dtype=np.float32) if vectors else None,
        notes=notes,
        poses=poses,
        reading=parameters.reading_in(fitted.value_range),
        frame=fitted.frame,
        pixel_threshold=None if fitted.peaks is None else fitted.peaks.threshold,
        usual_score=fitted.usual_score,
        pixel_size=parameters.pixel_size,
        model=model,
        time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        source=source if lies_in_files(source) else None,
    )
