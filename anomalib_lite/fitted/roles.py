"""What every image does in a fit: whether it is learnt, by which of its copies it calibrates, its group and its fold.

An *index* counts copies; the number of an image is index // copies.
"""

from __future__ import annotations

import numpy as np

from anomalib_lite.fitted.calibration import images_needed
from anomalib_lite.fitted.duplicates import duplicate_groups
from anomalib_lite.fitted.folds import assign_folds

# Of the copies of an image under the declared variations, so many calibrate it, by the worst score. With one, three of
# bottle's 20 good test images alarm at 5 % when the light is at the end of its range (20 % up), with two one does.
_WORST_OF = 2
# Of the groups, at least and at most so many are held out of the fit where some are.
_LEAST_HELD_OUT, _MOST_HELD_OUT = 0.25, 0.5


class Roles:
    """The roles of images in a fit.

    Parameters
    ----------
    n_shown : indices, copies of images counted
    copies : of every image
    groups : int (n,) of the images; None: each its own, until `put_twins_together`
    held_out_for : a false-alarm rate: as many groups are not learnt from as it takes, but a quarter to a half of them;
        None: all images are learnt
    calibration_images : that calibrate, at most
    random_state : seed of all of it

    Attributes
    ----------
    learnt, held_out : int (m,), indices in random order, so that the first of them are a random sample
    groups, folds : int (n,), of the images
    parts : int (m,), the same number for images among those seen that seem to show one part; None before
    """

    def __init__(
        self,
        n_shown: int,
        *,
        copies: int,
        groups: np.ndarray | None,
        held_out_for: float | None,
        calibration_images: int,
        random_state: int,
    ):
        n = n_shown // copies
        rng = np.random.default_rng(random_state)
        order = rng.permutation(n_shown)
        self.copies, self.calibration_images, self.random_state = copies, calibration_images, random_state
        self.groups_are_given = groups is not None
        self.groups = np.arange(n) if groups is None else groups
        # Of each image (n, m), the copies that it is calibrated by; at random, every copy as often as any other.
        self._calibrating_copies = rng.permuted(np.tile(np.arange(copies), (n, 1)), axis=1)[:, :_WORST_OF]
        self._calibrating: set[int] = set()
        out = np.zeros(n, dtype=bool)
        if held_out_for is not None:
            names = rng.permutation(np.unique(self.groups))
            least, most = (round(share * len(names)) for share in (_LEAST_HELD_OUT, _MOST_HELD_OUT))
            out = np.isin(self.groups, names[: min(max(least, images_needed(held_out_for), 1), max(most, 1))])
        self.learnt = order[~out[order // copies]]
        self.held_out = np.array([i for i in order.tolist() if out[i // copies] and self.calibrates(i)], dtype=int)
        self.folds = assign_folds(self.groups, random_state=random_state)
        self.parts: np.ndarray | None = None
        self._vectors: dict[int, np.ndarray] = {}  # of each image: whether some show one part

    def group(self, index: int) -> int:
        """The group of an image by the index of one of its copies."""
        return int(self.groups[index // self.copies])

    def fold(self, index: int) -> int:
        """Its fold."""
        return int(self.folds[index // self.copies])

    def calibrates(self, index: int) -> bool:
        """Whether its image is calibrated by this copy; so many images are, the first that are asked for."""
        number, copy = divmod(index, self.copies)
        if not (self._calibrating_copies[number] == copy).any():
            return False
        if number not in self._calibrating and len(self._calibrating) < self.calibration_images:
            self._calibrating.add(number)
        return number in self._calibrating

    def see(self, index: int, vector: np.ndarray) -> None:
        """Keep the vector of an image; of so many as calibrate, since comparing them takes quadratic time."""
        number = index // self.copies
        as_it_is = index % self.copies == 0 or len(self.held_out) > 0
        if as_it_is and number not in self._vectors and len(self._vectors) < self.calibration_images:
            self._vectors[number] = vector

    def put_twins_together(self) -> None:
        """Images seen that show one part become one group and fold, unless the groups were given."""
        numbers = np.array(list(self._vectors), dtype=np.int64)
        self.parts = duplicate_groups(np.stack(list(self._vectors.values())))
        self.groups, self.folds = self.groups.copy(), self.folds.copy()
        if not self.groups_are_given:
            first = numbers[np.unique(self.parts, return_index=True)[1]][self.parts]
            self.groups[numbers], self.folds[numbers] = self.groups[first], self.folds[first]
        if len(np.unique(self.folds[numbers])) == 1:  # the few that could be read fell into one fold
            self.folds[numbers] = assign_folds(self.groups[numbers], random_state=self.random_state)
