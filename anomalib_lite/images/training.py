"""Images to learn from: opened, seen to be of good parts alone, varied if asked for, and read in the range they use."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

from anomalib_lite.images.loading import guess_value_range
from anomalib_lite.images.mvtec import refuse_labelled_root
from anomalib_lite.images.reading import Reading
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.variations import Variations, VariedSource


def open_training(
    images: Any,
    reading: Reading,
    *,
    guess_range: bool = False,
    everything_is_good: bool = False,
    variations: Variations | None = None,
    random_state: int = 0,
    workers: int | None = None,
) -> tuple[ImageSource, Reading]:
    """Open images to learn from.

    Parameters
    ----------
    images : as for `open_source`
    reading : Reading
    guess_range : bool
        Look at all of them for the bits in use, and warn if there are fewer than the files hold.
    everything_is_good : bool
        Do not look for test images and masks among them.
    variations : Variations, optional
        Each is shown in varied copies too; see `VariedSource`.
    random_state : int
        Seed of these.
    workers : int, optional
        Threads that look for the range.

    Returns
    -------
    The source, and how it is read: with the range found.

    Raises
    ------
    ValueError
        As `open_source` and `refuse_labelled_root`.
    """
    source = open_source(images, reading)
    if not everything_is_good:
        refuse_labelled_root(images, source)
    if guess_range and (guessed := guess_value_range(source, workers=workers)):
        reading = replace(reading, value_range=guessed)
        source.reading = reading  # type: ignore[attr-defined]  # a range is found in sources of ours alone
        warnings.warn(
            f"the pictures of 16 bits have no value above {guessed[1]}, so that is taken for white, here and when "
            f"new ones are scored; say value_range={guessed}, or None for the whole range",
            stacklevel=4,  # of `Detector.fit` or `add`
        )
    return (source if variations is None else VariedSource(source, variations, random_state)), reading
