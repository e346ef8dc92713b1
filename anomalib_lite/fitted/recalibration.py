"""A new threshold for an old fit: the core and scores of fresh good images in, a core with another calibration out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.suspicion import far_out_limit

Mode = Literal["replace", "extend"]

_RECOGNISED = 0.5  # of the images: if more score so low, they were learnt from, or the light is quite another


def recalibrated(
    fitted: Fitted,
    scores: np.ndarray,
    ids: Sequence[str],
    groups: np.ndarray,
    mode: Mode = "replace",
    peaks: np.ndarray | None = None,
) -> Fitted:
    """The core with a threshold from scores (n,) of fresh good images, of the groups (n,), at the rate it has.

    Parameters
    ----------
    peaks : (n,), the highest values of their anomaly maps; None at the global level
    mode : "replace" or "extend"
        "replace" forgets the old calibration scores: exact split conformal. "extend" adds to them, for more images of
        the same process.

    Raises
    ------
    ValueError
        If there are no images, or the mode is none.
    """
    if mode not in ("replace", "extend"):
        raise ValueError(f"mode={mode!r}; 'replace' forgets the old calibration, 'extend' adds to it")
    if len(scores) == 0:
        raise ValueError("no fresh good image can be read; nothing to set a threshold from")
    old = fitted.calibration
    # A threshold set by hand belongs to the scores it was chosen by, and goes with them.
    rate = old.false_alarm_rate if old.fixed is None else float(fitted.parameters["false_alarm_rate"])

    def from_fresh(old: Calibration, values: np.ndarray) -> Calibration:
        if mode == "replace":
            return Calibration(values, rate, groups=groups, exact=True)
        return Calibration(
            np.append(old.scores, values),
            rate,
            groups=np.append(old.groups, groups + old.groups.max() + 1),
            withheld=old.withheld,
            exact=old.exact,
        )

    calibration = from_fresh(old, scores)
    highest = None if peaks is None or fitted.peaks is None else from_fresh(fitted.peaks, peaks)
    return _with(replace(fitted, peaks=highest), calibration, Record.of(mode, calibration, ids))


def doubts(fitted: Fitted, scores: np.ndarray, ids: Sequence[str]) -> list[str]:
    """What speaks against taking images (n,) for fresh good ones, in words: that some are defective, or not fresh."""
    found = []
    far = np.flatnonzero(scores > far_out_limit(scores))
    if len(far):
        worst = far[np.argsort(-scores[far], kind="stable")]
        named = ", ".join(ids[i] for i in worst[:5]) + (f" and {len(far) - 5} more" if len(far) > 5 else "")
        found.append(
            f"{len(far)} of {len(scores)} images are unlike the others: {named}. If they are defective, the threshold "
            "is now too high; take them out and recalibrate again"
        )
    # An image is near its own rows in the bank. Of fresh ones 1 in n + 1 scores below all n that calibrated.
    known = int((scores < fitted.calibration.scores[0]).sum())
    if known > _RECOGNISED * len(scores):
        found.append(
            f"{known} of {len(scores)} images score below every good image that calibrated before; if they were learnt "
            "from, they are recognised, and new ones will alarm more often than promised"
        )
    return found


def at_rate(fitted: Fitted, false_alarm_rate: float, look_again: float | None = None) -> Fitted:
    """The core with the threshold for another rate; see `Calibration.at_rate`."""
    calibration = fitted.calibration.at_rate(false_alarm_rate, look_again=look_again)
    peaks = None if fitted.peaks is None else fitted.peaks.at_rate(false_alarm_rate)
    return _with(replace(fitted, peaks=peaks), calibration, Record.of("rate", calibration))


def at_threshold(fitted: Fitted, threshold: float, look_again: float | None = None) -> Fitted:
    """The core with a threshold set by hand; see `Calibration.at_threshold`."""
    calibration = fitted.calibration.at_threshold(threshold, look_again=look_again)
    return _with(fitted, calibration, Record.of("threshold", calibration))


def _with(fitted: Fitted, calibration: Calibration, record: Record) -> Fitted:
    history = fitted.history
    by_hand = ("rate", "threshold")
    if history and history[-1].how in by_hand and record.how in by_hand:
        history = history[:-1]  # the line tries several; the one it stays with counts
    parameters = dict(fitted.parameters)
    if calibration.fixed is None:
        parameters["false_alarm_rate"] = calibration.false_alarm_rate
    return replace(fitted, calibration=calibration, history=(*history, record), parameters=parameters)
