"""Which images that are called good look as if they were not: scores in, the limit beyond which one is far out."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def far_out_limit(scores: ArrayLike) -> float:
    """The score above which an image is farther out than a sample of good images is expected to reach.

    Parameters
    ----------
    scores : (n,), n at least 1, each by a scorer that has not learnt from the image

    Notes
    -----
    Tukey's limit for far outliers on the logarithm of the scores: the upper quartile plus three times the quartiles'
    distance. About one good image in a million lies beyond it if logarithms are normal (Tukey, 1977).

    Examples
    --------
    >>> scores = np.array([1.0, 1.1, 1.2, 1.3, 9.0])
    >>> (scores > far_out_limit(scores)).tolist()
    [False, False, False, False, True]
    """
    logs = np.log(np.maximum(np.asarray(scores, dtype=np.float64), 1e-12))
    lower, upper = np.quantile(logs, [0.25, 0.75])
    return float(np.exp(upper + 3 * (upper - lower)))
