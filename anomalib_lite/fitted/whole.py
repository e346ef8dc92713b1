"""What an image is like as a whole, beside its patches: a piece too few or too many is no patch unlike the others.

One vector per image, the mean and deviation of the layers, is compared with those of good images by a Gaussian
(`scoring.subspace`). Its score is brought to the unit of patch scores, so that both exceed their usual value by as much
on a good image, and the larger of the two is the image's score. Calibration sees that larger one, as if unseen, so the
promised rate stays what it was. docs/benchmarks.md has what it gives and costs, and what visual words gave instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from anomalib_lite.fitted.folds import assign_folds, left_out
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.scoring.subspace import SubspaceScorer

BOTH = "both"  # the level of a detector that compares patches and whole images

# Vectors that teach the Gaussian; those of images that calibrate are kept in any case.
_MOST_VECTORS = 10_000
# A fold costs next to nothing here. With fewer images than dimensions a tenth less changes the Gaussian: by ten folds
# of 200 drawn trays 9 % of good ones alarm at a promised 5 %, by forty 5 %. Of a thousand, fewer than promised do.
_FOLDS, _FOLDS_OF_MANY, _MANY = 40, 10, 1000
# What both scores of good images are brought together by, beside their medians.
_HIGH = 0.9


@dataclass(frozen=True, eq=False)
class Whole:
    """Scores whole images, in the unit of patch scores.

    Attributes
    ----------
    scorer : SubspaceScorer, fitted on vectors (n, d) of good images
    usual : float, median score of good ones by it
    usual_patches : float, median score of the same images by their patches
    unit : float, patch scores per score of the whole, not negative
    """

    scorer: SubspaceScorer
    usual: float
    usual_patches: float
    unit: float

    def score(self, vector: np.ndarray) -> float:
        """The score of one image's vector (d,), in the unit of patch scores."""
        return self.brought(float(self.scorer.score(vector[None])[0]))

    def brought(self, score: float) -> float:
        """A score of the Gaussian in the unit of patch scores."""
        return self.usual_patches + self.unit * (score - self.usual)

    def to_dict(self) -> dict[str, Any]:
        """All but what the scorer learnt, JSON-able."""
        return {
            "parameters": self.scorer.parameters(),
            "usual": self.usual,
            "usual_patches": self.usual_patches,
            "unit": self.unit,
        }

    @classmethod
    def read(cls, values: Mapping[str, Any], state: dict[str, np.ndarray], *, device: str = "auto") -> Whole:
        """What `to_dict` and the scorer's `state` hold; raises an error of any kind where it does not fit."""
        numbers = [values[name] for name in ("usual", "usual_patches", "unit")]
        if not all(isinstance(number, float) and np.isfinite(number) for number in numbers) or numbers[2] < 0:
            raise ValueError(f"what whole images usually score is malformed: {numbers}")
        return cls(SubspaceScorer.from_state(values["parameters"], state, device=device), *numbers)


@dataclass
class WholeVectors:
    """Vectors of training images as they stream by, and what becomes of them."""

    roles: Roles
    _of_index: dict[int, np.ndarray] = field(default_factory=dict)

    def see(self, index: int, vector: np.ndarray) -> None:
        """Keep the vector (d,) of an image that is learnt, if there is room or it calibrates."""
        if len(self._of_index) < _MOST_VECTORS or self.roles.calibrates(index):
            self._of_index[index] = vector

    def learn(self) -> SubspaceScorer:
        """The Gaussian of all vectors kept."""
        return SubspaceScorer().fit(np.stack(list(self._of_index.values())))

    def as_if_unseen(self) -> dict[int, float]:
        """Score of every image that calibrates by a Gaussian without its fold, by number, the worst of its copies."""
        indices = np.array(list(self._of_index), dtype=np.int64)
        X = np.stack(list(self._of_index.values()))
        groups = self.roles.groups[indices // self.roles.copies]
        folds = whole_folds(groups, self.roles.random_state)
        calibrating = np.array([self.roles.calibrates(index) for index in indices.tolist()], dtype=bool)
        found: dict[int, float] = {}
        for fold, unseen in left_out(SubspaceScorer, X, folds, groups, wanted=folds[calibrating]):
            mine = np.flatnonzero(calibrating & (folds == fold))
            for index, score in zip(indices[mine].tolist(), unseen.score(X[mine]).tolist(), strict=True):
                keep_worst(found, index // self.roles.copies, score)
        return found


def brought_together(scorer: SubspaceScorer, whole: Mapping[int, float], patches: Mapping[int, float]) -> Whole:
    """`Whole` from scores of the same good images by number, as if unseen: as wholes, and by their patches."""
    both = np.array([(whole[number], patches[number]) for number in patches])
    usual, usual_patches = np.median(both, axis=0).tolist()
    above, above_patches = (np.quantile(both, _HIGH, axis=0) - [usual, usual_patches]).tolist()
    return Whole(scorer, usual, usual_patches, above_patches / above if above > 0 else 0.0)


def whole_folds(groups: np.ndarray, random_state: int) -> np.ndarray:
    """Fold (n,) of every image by its group (n,), where images have one vector each."""
    count = _FOLDS if len(np.unique(groups)) <= _MANY else _FOLDS_OF_MANY
    return assign_folds(groups, count, random_state=random_state)


def keep_worst(scores: dict[int, float], number: int, score: float) -> None:
    """Keep the largest score of the copies of an image."""
    scores[number] = max(score, scores.get(number, score))
