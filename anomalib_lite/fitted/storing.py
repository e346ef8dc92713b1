"""The fitted core as arrays and plain values, and back: whether they belong together is checked here.

What a model file is, safe to open and written atomically, is the business of `files.model_file`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted, TrainingImages
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.whole import Whole
from anomalib_lite.images.fixture import Fixture
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sight import Sight
from anomalib_lite.scoring import SCORERS
from anomalib_lite.scoring.base import ExplainsByNeighbors, check_state
from anomalib_lite.scoring.named import can_be_stored
from anomalib_lite.scoring.reduction import restore_reduction

Arrays = dict[str, np.ndarray]


def to_arrays(fitted: Fitted) -> tuple[Arrays, dict[str, Any]]:
    """Arrays by name, and the rest as JSON-able values.

    Raises
    ------
    ValueError
        If the scorer is of a class that `from_arrays` does not know.
    """
    scorer = fitted.scorer
    if not can_be_stored(scorer):
        raise ValueError(
            f"a {type(scorer).__name__} cannot be saved: a model file holds numbers, no code, and only "
            f"{', '.join(SCORERS)} are known where it is opened"
        )
    parts: dict[str, dict[str, np.ndarray]] = {
        "reduction": fitted.reduction.state(),
        "scorer": scorer.state(),
        "train": {
            "origins": fitted.origins,
            "sizes": fitted.train.sizes,
            "calibrating": fitted.train.calibrating,
            "scores": fitted.train.scores,
            "groups": fitted.train.groups,
        },
        "calibration": {"scores": fitted.calibration.scores, "groups": fitted.calibration.groups},
    }
    arrays = {f"{part}.{key}": np.asarray(value) for part, state in parts.items() for key, value in state.items()}
    if fitted.peaks is not None:
        arrays |= {"peaks.scores": fitted.peaks.scores, "peaks.groups": fitted.peaks.groups}
    if fitted.fixture is not None:
        arrays |= {"fixture.template": fitted.fixture.template, "train.poses": np.asarray(fitted.train.poses)}
    if fitted.whole is not None:
        arrays |= {f"whole.{key}": value for key, value in fitted.whole.scorer.state().items()}
    if fitted.frame is not None and fitted.frame.region is not None:
        arrays["frame.region"] = fitted.frame.region.to_array()
    return arrays, {
        "parameters": dict(fitted.parameters),
        "embedder": dict(fitted.embedder),
        "scorer": {"name": scorer.name, "parameters": scorer.parameters()},
        "grid": list(fitted.grid),
        "top_share": fitted.top_share,
        "usual_score": fitted.usual_score,
        "value_range": fitted.value_range,
        "frame": None if fitted.frame is None else fitted.frame.to_dict(),
        "calibration": fitted.calibration.settings(),
        "peaks": None if fitted.peaks is None else fitted.peaks.settings(),
        "fixture": None if fitted.fixture is None else fitted.fixture.to_dict(),
        "sight": None if fitted.sight is None else fitted.sight.to_dict(),
        "whole": None if fitted.whole is None else fitted.whole.to_dict(),
        "history": [record.to_dict() for record in fitted.history],
        "train_ids": list(fitted.train.ids),
        "unreadable": [[entry.index, entry.id, entry.reason] for entry in fitted.train.unreadable],
        "copies": fitted.train.copies,
    }


def from_arrays(arrays: Arrays, values: dict[str, Any], *, device: str = "auto") -> Fitted:
    """The core that `to_arrays` took apart; raises an error of any kind where something is missing or does not fit."""
    scorer_class = SCORERS[values["scorer"]["name"]]
    scorer = scorer_class.from_state(values["scorer"]["parameters"], _part(arrays, "scorer"), device=device)
    reduction = restore_reduction(_part(arrays, "reduction"))
    train = _training_images(_part(arrays, "train"), values)
    rows, columns = (int(side) for side in values["grid"])
    if min(rows, columns) < 1 or not 0 < values["top_share"] <= 1:
        raise ValueError("the grid or top_share is malformed")
    origins = arrays["train.origins"]
    if isinstance(scorer, ExplainsByNeighbors):
        (bank,) = check_state({"bank": _part(arrays, "scorer")["bank"][:, 0]}, bank="m")
        if origins.shape != (bank, 2) or origins.dtype.kind != "i" or (origins < 0).any():
            raise ValueError("train.origins does not fit the bank")
        if (origins >= (len(train.ids), rows * columns)).any():
            raise ValueError("train.origins names images or patches that are not there")
    fitted = Fitted(
        reduction=reduction,
        scorer=scorer,
        calibration=_calibration(_part(arrays, "calibration"), values["calibration"]),
        peaks=None if values["peaks"] is None else _calibration(_part(arrays, "peaks"), values["peaks"]),
        fixture=None if values["fixture"] is None else Fixture.read(values["fixture"], arrays["fixture.template"]),
        sight=None if values["sight"] is None else Sight.read(values["sight"]),
        whole=None if values["whole"] is None else Whole.read(values["whole"], _part(arrays, "whole"), device=device),
        grid=(rows, columns),
        top_share=float(values["top_share"]),
        usual_score=_finite(values["usual_score"]),
        origins=origins,
        train=train,
        value_range=None if values["value_range"] is None else _range(*values["value_range"]),
        frame=None if values["frame"] is None else Frame.read(values["frame"], arrays.get("frame.region")),
        parameters=values["parameters"],
        history=tuple(Record.read(record) for record in values["history"]),
        embedder=values["embedder"],
    )
    _check_it_tells_apart(fitted)
    return fitted


def _training_images(state: Arrays, values: dict[str, Any]) -> TrainingImages:
    ids, copies = values["train_ids"], values["copies"]
    unreadable = tuple(UnreadableImage(int(i), name, reason) for i, name, reason in values["unreadable"])
    texts = [*ids, *(text for entry in unreadable for text in (entry.id, entry.reason))]
    n, _, _ = check_state(state, sizes="n 2", calibrating="c", scores="c", groups="g")
    if n != len(ids) or not all(isinstance(text, str) for text in texts) or not isinstance(copies, int) or copies < 1:
        raise ValueError("the list of training images is malformed")
    calibrating = state["calibrating"]
    if calibrating.dtype.kind != "i" or (calibrating < 0).any() or (calibrating * copies >= n).any():
        raise ValueError("train.calibrating names images that are not there")
    if state["sizes"].dtype.kind != "i" or (state["sizes"] < 0).any():
        raise ValueError("train.sizes holds what is no size")
    groups = state["groups"]
    if groups.dtype.kind != "i" or groups.shape != (n // copies,):
        raise ValueError("train.groups does not fit the training images")
    poses = None
    if values["fixture"] is not None:
        check_state(state, poses=f"{n} 3")
        poses = state["poses"]
    return TrainingImages(tuple(ids), state["sizes"], unreadable, calibrating, state["scores"], groups, copies, poses)


def _calibration(state: Arrays, settings: dict[str, Any]) -> Calibration:
    check_state(state, scores="m", groups="m")
    return Calibration(state["scores"], groups=state["groups"], **settings)


def _finite(value: float) -> float:
    if not isinstance(value, float) or not np.isfinite(value):
        raise ValueError(f"{value!r} is no number")
    return value


def _range(low: int, high: int) -> tuple[int, int]:
    if not (isinstance(low, int) and isinstance(high, int) and -(2**31) <= low < high < 2**32):
        raise ValueError(f"value_range is {low, high}")
    return low, high


def _check_it_tells_apart(fitted: Fitted) -> None:
    """Score rows such as the reduction was learnt from: whether dimensions fit, and whether the scores say anything."""
    mean, spread = fitted.reduction.mean_, fitted.reduction.scale_
    rows = mean + spread * np.random.default_rng(0).normal(size=(8, len(mean)))
    with np.errstate(over="ignore", invalid="ignore"):
        scores = fitted.scorer.score(fitted.reduction.transform(rows.astype(np.float32)))
    if not np.isfinite(scores).all() or np.ptp(scores) == 0:
        raise ValueError("it gives all images one score, or scores that are no numbers")


def _part(arrays: Arrays, name: str) -> Arrays:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
