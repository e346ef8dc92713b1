"""What a classifier is to tell apart: labelled images in; names of classes and a number per image out."""

from __future__ import annotations

from typing import Literal

import numpy as np

from anomalib_lite.supervised.labelled import LabelledDataError, LabelledImages
from anomalib_lite.supervised.splitting import Split

Target = Literal["kinds", "defective"]

DEFECTIVE = "defective"


def targets_of(images: LabelledImages, parts: Split, target: Target) -> tuple[list[str], np.ndarray]:
    """Class names and the class number (n,) of every image; images of classes nobody learns are numbered 0.

    Parameters
    ----------
    target : "kinds" or "defective"
        Every kind a class, or two classes: good, and everything else.

    Raises
    ------
    LabelledDataError
        If there are fewer than two classes, or one has no training image.
    """
    if target not in ("kinds", "defective"):
        raise ValueError(f"target={target!r}; choose 'kinds' or 'defective'")
    if target == "defective":
        good = images.good or "good"
        classes, numbers = [good, DEFECTIVE], images.defective.astype(np.int64)
    else:
        learnt = {images.kinds[i] for i in parts.learning.tolist()}
        classes = [kind for kind in images.classes if kind in learnt]
        place = {kind: i for i, kind in enumerate(classes)}
        numbers = np.array([place.get(kind, 0) for kind in images.kinds], np.int64)
    counts = np.bincount(numbers[parts.train], minlength=len(classes))
    if len(classes) < 2 or (counts == 0).any():
        lacking = [name for name, count in zip(classes, counts, strict=True) if count == 0] or classes
        raise LabelledDataError(
            f"{images.root}: nothing to tell apart, {'no training image of' if len(classes) > 1 else 'only'} "
            f"{', '.join(lacking)}; add labelled images"
        )
    return classes, numbers
