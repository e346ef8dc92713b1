"""From patch scores to the score of their image."""

from __future__ import annotations

import numpy as np


def image_score(patch_scores: np.ndarray, top_share: float = 0.01) -> float:
    """Mean of the largest `top_share` of the patch scores (n,) of an image, of one patch at least.

    The mean of the top 1 % is steadier than the maximum and as sharp.

    Examples
    --------
    >>> image_score(np.array([0.0, 1.0, 3.0, 2.0]), top_share=0.5)
    2.5
    """
    count = max(1, int(len(patch_scores) * top_share))
    return float(np.partition(patch_scores, -count)[-count:].mean())
