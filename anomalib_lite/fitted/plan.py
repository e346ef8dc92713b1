"""What is to be learnt and how, and who takes part: what fits of patches and of whole images have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from anomalib_lite.embedding.streaming import EmbeddedImage
from anomalib_lite.fitted.roles import Roles
from anomalib_lite.fitted.rows import RowSelection
from anomalib_lite.images.fixture import Fixture
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.scoring import Scorer
from anomalib_lite.scoring.base import coreset_size
from anomalib_lite.scoring.reduction import Reduction

Embed = Callable[[np.ndarray], Iterator[EmbeddedImage | UnreadableImage]]
# The same by other processes, which reduce the rows already; None for the reduction where only `whole` is wanted.
EmbedElsewhere = Callable[[np.ndarray, Reduction | None], Iterator[EmbeddedImage | UnreadableImage]]
CalibrationKind = Literal["cross", "split"]
# Stages of a fit, see `machine.progress`.
EMBEDDING, CHOOSING, LEARNING, CALIBRATING = "embedding", "choosing the bank", "learning", "calibrating"


class NoGoodImagesError(ValueError):
    """Too few readable images to learn from.

    Examples
    --------
    >>> from anomalib_lite import fit
    >>> fit([np.zeros((64, 64, 3), dtype=np.uint8)])  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite.fitted.plan.NoGoodImagesError: ...
    """


@dataclass(frozen=True)
class Plan:
    """What is to be learnt, and how.

    Attributes
    ----------
    make_reduction, make_scorer : unfitted ones; the reduction for rows that can give so many components
    selection : RowSelection, unfitted
    false_alarm_rate, top_share, calibration, calibration_images, random_state : see `Detector`
    groups : int (n,) of the images, or None: shots of one part are looked for
    value_range, frame : how the images were read and seen, kept in the result
    copies : times that every image is shown, with consecutive indices; the first is the image as it is
    whole : whether images are compared as wholes too, beside their patches
    fixture : by which the images are laid, and kept in the result
    poses : gives turn and shifts (n, 3) of all images, when all is embedded; None without a fixture
    parameters : kept in the result, see `Fitted`
    embedder : gives what is kept of it in the result, when all is embedded
    elsewhere : embeds by other processes, what need not be embedded here; None to embed all here
    """

    make_reduction: Callable[[int], Reduction]
    make_scorer: Callable[[], Scorer]
    selection: RowSelection = field(default_factory=RowSelection)
    false_alarm_rate: float = 0.01
    top_share: float = 0.01
    calibration: CalibrationKind = "cross"
    calibration_images: int = 1000
    random_state: int = 0
    groups: np.ndarray | None = None
    copies: int = 1
    whole: bool = False
    value_range: tuple[int, int] | None = None
    frame: Frame | None = None
    fixture: Fixture | None = None
    poses: Callable[[], np.ndarray] | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    embedder: Callable[[], Mapping[str, Any]] = dict
    elsewhere: EmbedElsewhere | None = None


def stages(scorer: Scorer, level: str) -> list[str]:
    """The stages of a fit by this scorer, in order."""
    if level == "global":
        return [EMBEDDING, CALIBRATING]
    return [EMBEDDING, CHOOSING if coreset_size(scorer) else LEARNING, CALIBRATING]


def roles_for(ids: Sequence[str], plan: Plan) -> Roles:
    return Roles(
        len(ids),
        copies=plan.copies,
        groups=plan.groups,
        held_out_for=plan.false_alarm_rate if plan.calibration == "split" else None,
        calibration_images=plan.calibration_images,
        random_state=plan.random_state,
    )


def least_to_learn(images: int, plan: Plan) -> int:
    """Images to learn from where, one left out, so many are needed."""
    return images if plan.calibration == "cross" else max(images - 1, 1)
