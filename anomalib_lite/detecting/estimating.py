"""scikit-learn's habits, and PyOD's: what their tools call on a detector, so that it stands in a `Pipeline` of theirs.

scikit-learn is not imported until one of its tools asks: a base class of it would make every start slower.
"""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.embedding.streaming import OnUnreadable
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.results import Scores

if TYPE_CHECKING:
    from sklearn.utils import Tags


class Chosen(Protocol):
    """What has parameters."""

    _parameters: Parameters

    def __init__(self, **parameters: Any) -> None: ...


class Learnt(Protocol):
    """What has learnt, and scores."""

    @property
    def fitted_(self) -> Fitted: ...
    def score(self, images: Any, *, on_unreadable: OnUnreadable = "skip") -> Scores: ...


C = TypeVar("C", bound=Chosen)


class EstimatorHabits:
    """The methods of `Detector` that scikit-learn and PyOD have named; signs are scikit-learn's, below 0 is odd."""

    _estimator_type = "outlier_detector"  # for scikit-learn before 1.6

    def get_params(self: Chosen, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as they were given; `deep` changes nothing, since none has arguments of its own.

        Examples
        --------
        >>> from sklearn.base import clone
        >>> from anomalib_lite import Detector
        >>> clone(Detector(image_size=64, k=3)).get_params()["k"]
        3
        """
        return {field.name: getattr(self._parameters, field.name) for field in fields(self._parameters)}

    def set_params(self: C, **parameters: Any) -> C:
        """Choose other parameters; what was learnt by those of before is forgotten. Returns the detector.

        Raises
        ------
        ValueError
            If there is no such parameter, or a value is none that there is.
        """
        known = {field.name: getattr(self._parameters, field.name) for field in fields(self._parameters)}
        if unknown := sorted(set(parameters) - set(known)):
            raise ValueError(f"a detector has no parameter {unknown[0]!r}; it has {', '.join(known)}")
        if parameters:
            type(self).__init__(self, **{**known, **parameters})
        return self

    def decision_function(self: Learnt, images: Any) -> np.ndarray:
        """How far below the threshold each score lies, float64 (n,): below 0 is an alarm, as scikit-learn has it.

        PyOD has the opposite sign; `score` gives scores that grow with what is odd.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        UnreadableImageError
            If an image cannot be read: every one has a place in what comes back.
        """
        scores = self.score(images, on_unreadable="raise")
        return scores.threshold - scores.scores

    def predict(self: Learnt, images: Any) -> np.ndarray:
        """-1 for images that alarm and 1 for others, int64 (n,); see `decision_function`, also for what is raised.

        Examples
        --------
        >>> from anomalib_lite import Detector
        >>> from anomalib_lite.images.synthetic import render_part
        >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(21)]
        >>> detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])
        >>> detector.predict([parts[20], 255 - parts[20]])
        array([ 1, -1])
        """
        return np.where(self.score(images, on_unreadable="raise").alarms, -1, 1)

    @property
    def decision_scores_(self: Learnt) -> np.ndarray:
        """Scores float64 (n,) of the training images, each as if it were new; higher is odder, as PyOD has it.

        NaN for those that calibrate nothing: unreadable ones, and those beyond `calibration_images`.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        """
        fitted = self.fitted_
        found = np.full(len(fitted.train.ids) // fitted.train.copies, np.nan)
        for index, score in fitted.train_scores.items():
            found[index] = score
        return found

    def __sklearn_is_fitted__(self) -> bool:
        return self._learnt is not None  # type: ignore[attr-defined]

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="outlier_detector",
            target_tags=TargetTags(required=False),
            input_tags=InputTags(two_d_array=False, three_d_array=True),
        )


def require_one_kind(y: Any) -> None:
    """Refuse labels that say that some of the images to learn from are of another kind than others."""
    if y is not None and len({str(label) for label in np.asarray(y).ravel().tolist()}) > 1:
        raise ValueError(
            "y has several labels, and a detector learns from good images alone: give those, without labels; to learn "
            "from labels take supervised models"
        )
