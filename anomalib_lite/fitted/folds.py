"""Every good image scored as if it had not been there: scorers that were fitted without its fold.

Images are divided into folds, groups of images never. Leaving a fold out means a scorer that was made without it, not
the final one with holes: a k-center bank keeps one row per neighbourhood, and where an image gave that row nothing of
the others is left, so that it looks odder than a new one would. This is cross-conformal prediction (Vovk, Annals of
Mathematics and Artificial Intelligence 74 (2015)), whose relatives with a proof are CV+ and the jackknife+ (Barber,
Candès, Ramdas and Tibshirani, Annals of Statistics 49 (2021)).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import numpy as np

# Five fits on four fifths of the images each. With few groups ten cost little, and come closer to the final fit.
_FOLDS, _FOLDS_OF_FEW, _FEW = 5, 10, 40


class FoldScorer(Protocol):
    """What is fitted without a fold."""

    def fit(self, X: Any, groups: Any) -> Any: ...

    def score(self, X: Any) -> Any: ...


S = TypeVar("S", bound=FoldScorer)


def assign_folds(groups: np.ndarray, n_folds: int | None = None, *, random_state: int = 0) -> np.ndarray:
    """Fold (n,) of every image: those of one group (n,) together, folds of about the same size, drawn at random.

    Parameters
    ----------
    groups : int (n,)
    n_folds : int, optional
        With fewer groups every group is left out alone. Default: 10 up to 40 groups, 5 above.
    random_state : int

    Raises
    ------
    ValueError
        If n_folds < 2.

    Examples
    --------
    >>> folds = assign_folds(np.array([0, 0, 0, 1, 2, 3]), 2)
    >>> sorted(np.bincount(folds).tolist()), len(set(folds[:3].tolist()))
    ([3, 3], 1)
    """
    _, of_image, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    if n_folds is None:
        n_folds = _FOLDS_OF_FEW if len(sizes) <= _FEW else _FOLDS
    if n_folds < 2:
        raise ValueError(f"n_folds is {n_folds}: at least 2 folds are needed to leave one out")
    # Largest first, each into the fold with the fewest images, equals in random order.
    shuffled = np.random.default_rng(random_state).permutation(len(sizes))
    fold_of_group = np.zeros(len(sizes), dtype=np.int64)
    filled = np.zeros(n_folds, dtype=np.int64)
    for group in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        fold_of_group[group] = filled.argmin()
        filled[fold_of_group[group]] += sizes[group]
    return fold_of_group[of_image]


def left_out(
    make: Callable[[], S], X: np.ndarray, fold: np.ndarray, groups: np.ndarray, *, wanted: np.ndarray | None = None
) -> Iterator[tuple[int, S]]:
    """One fold after the other, ascending, with a scorer fitted on the rows (n, d) of all others.

    Parameters
    ----------
    make : returns an unfitted scorer
    X, fold, groups : rows (n, d), the fold (n,) and the group (n,) of each
    wanted : folds, optional
        By default those of the rows. Of one without rows all are others.

    Raises
    ------
    ValueError
        If all rows are of one fold.

    Examples
    --------
    >>> class DistanceToMean:
    ...     def fit(self, X, groups):
    ...         self.mean_ = X.mean(axis=0)
    ...         return self
    ...     def score(self, X):
    ...         return np.linalg.norm(X - self.mean_, axis=1)
    >>> X = np.array([[0.0], [2.0], [4.0]])
    >>> [scorer.score(X[[i]]).item() for i, scorer in left_out(DistanceToMean, X, np.arange(3), np.arange(3))]
    [3.0, 0.0, 3.0]
    """
    for number in np.unique(fold if wanted is None else wanted).tolist():
        seen = fold != number
        if not seen.any():
            raise ValueError(
                "all rows are of one fold: two images are needed to score one without having learnt from it"
            )
        yield number, make().fit(X[seen], groups[seen])
