"""The fitted core: everything a detector knows after a fit, immutable, arrays in and arrays out.

It holds no image, no network and no file, so that any number of threads may score by it, and it can be stored, sent and
compared. `fitting` makes one, `storing` turns it into a file and back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np

from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.history import Record
from anomalib_lite.fitted.whole import Whole
from anomalib_lite.images.fixture import Fixture, Pose
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sight import Sight
from anomalib_lite.scoring import Scorer, image_score
from anomalib_lite.scoring.base import ExplainsByNeighbors, read_only
from anomalib_lite.scoring.reduction import Reduction


@dataclass(frozen=True, eq=False)
class TrainingImages:
    """What is kept of the images a detector was fitted on.

    Attributes
    ----------
    ids : tuple of str, length n; of varied copies, which follow each other, every one
    sizes : int64 (n, 2), height and width; 0 where an image was not readable
    unreadable : tuple of UnreadableImage
    calibrating : int64 (c,), images (not copies) that were scored as if they had not been there
    scores : float64 (c,), their scores
    groups : int64 (n / copies,), the same number for images that belong together
    copies : times that every image was shown: once, and once for every variation drawn
    poses : float32 (n, 3), turn in degrees, shifts down and right as shares, by which a fixture laid each; or None
    """

    ids: tuple[str, ...]
    sizes: np.ndarray
    unreadable: tuple[UnreadableImage, ...]
    calibrating: np.ndarray
    scores: np.ndarray
    groups: np.ndarray
    copies: int = 1
    poses: np.ndarray | None = None

    def __post_init__(self) -> None:
        for name in ("sizes", "calibrating", "scores", "groups"):
            object.__setattr__(self, name, read_only(getattr(self, name)))
        if self.poses is not None:
            object.__setattr__(self, "poses", read_only(self.poses))

    @property
    def n_readable(self) -> int:
        """Images, not copies, that were learnt from."""
        return int(self.sizes[:: self.copies].any(axis=1).sum())


class Embedded(Protocol):
    """An image's embedding, see `embedding.streaming.EmbeddedImage`."""

    @property
    def original_size(self) -> tuple[int, int]:
        """Height and width."""
        ...

    @property
    def whole(self) -> np.ndarray:
        """Its one vector (d,)."""
        ...

    def blocks(self, reduction: Reduction) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Numbers (n,) of patches on the grid, with their reduced rows (n, q)."""
        ...


@dataclass(frozen=True)
class Nearest:
    """What the worst patch of an image looks most like among the good training images.

    Boxes are (left, top, right, bottom) in pixels of the image they lie in, as it came. `distance` is that to the
    nearest row of the bank, the mean of good patches of which the one that is named lies nearest to it.
    """

    box: tuple[int, int, int, int]
    train_id: str
    train_box: tuple[int, int, int, int]
    distance: float


@dataclass(frozen=True, eq=False)
class ScoredRows:
    """What the rows of one image say.

    Attributes
    ----------
    score : the image's score; higher = more anomalous
    patch_scores : float32 (gh, gw), NaN beside the picture
    nearest : Nearest; None for scorers that do not know
    whole_score : what the image scores as a whole; None where it is not compared so
    """

    score: float
    patch_scores: np.ndarray
    nearest: Nearest | None
    whole_score: float | None = None


@dataclass(frozen=True, eq=False)
class Fitted:
    """What a detector knows after fitting.

    Attributes
    ----------
    reduction, scorer : fitted, their search indexes built
    calibration : Calibration
    peaks : Calibration or None
        The same, of the highest value of every image's anomaly map; None at the global level.
    fixture : Fixture or None
        What lays every picture as in a template; what is told here is of pictures so laid.
    sight : Sight or None
        What a picture must show to be judged, for `judging`; changes no score.
    whole : Whole or None
        What images are compared by as wholes, beside their patches.
    usual_score : float
        Of a patch of a good image: the median, over calibrating images, of their medians.
    grid : (gh, gw)
        Patches per image; (1, 1) at the global level.
    top_share : float
        Share of the largest patch scores whose mean is the image score.
    value_range : (low, high) or None
        Stored values that are black and white in pictures of more than 8 bits; None for the range of each file.
    origins : int64 (m, 2)
        Training image and patch of every row of the scorer's bank; empty for scorers that do not explain by neighbours.
    train : TrainingImages
    frame : Frame, or None
        How a picture lies on the grid; None: the grid is stretched over it.
    history : tuple of Record, every time that the threshold was set
    parameters : the detector's parameters as they were chosen, JSON-able
    embedder : what made the embeddings, see `Embedder.describe`
    """

    reduction: Reduction
    scorer: Scorer
    calibration: Calibration
    grid: tuple[int, int]
    top_share: float
    origins: np.ndarray
    train: TrainingImages
    value_range: tuple[int, int] | None = None
    frame: Frame | None = None
    peaks: Calibration | None = None
    fixture: Fixture | None = None
    sight: Sight | None = None
    whole: Whole | None = None
    usual_score: float = 0.0
    history: tuple[Record, ...] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    embedder: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "origins", read_only(self.origins))
        object.__setattr__(self, "parameters", MappingProxyType(dict(self.parameters)))
        object.__setattr__(self, "embedder", MappingProxyType(dict(self.embedder)))

    def __reduce__(self) -> tuple[Any, ...]:  # a mapping that cannot be written to cannot be pickled or copied
        values = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return _remade, ({**values, "parameters": dict(self.parameters), "embedder": dict(self.embedder)},)

    @property
    def explains(self) -> bool:
        """Whether scores come with the training patch that the worst patch is most like."""
        return isinstance(self.scorer, ExplainsByNeighbors) and len(self.origins) > 0

    @property
    def train_scores(self) -> dict[int, float]:
        """From training image to its score as if it had not been there, for those that calibrate."""
        return dict(zip(self.train.calibrating.tolist(), self.train.scores.tolist(), strict=True))

    def score(self, image: Embedded) -> ScoredRows:
        """Score one image. Patches in none of its blocks do not count."""
        on_grid = np.full(self.grid[0] * self.grid[1], np.nan, dtype=np.float32)
        found: list[np.ndarray] = []
        nearest, highest = None, -np.inf
        for patches, reduced in image.blocks(self.reduction):
            if isinstance(self.scorer, ExplainsByNeighbors) and len(self.origins):
                patch_scores, bank_rows, distances = self.scorer.score_and_nearest(reduced)
                worst = int(patch_scores.argmax())
                if patch_scores[worst] > highest:
                    highest = patch_scores[worst]
                    nearest = self._nearest(
                        int(patches[worst]), image.original_size, bank_rows[worst], distances[worst]
                    )
            else:
                patch_scores = self.scorer.score(reduced)
            on_grid[patches] = patch_scores
            found.append(patch_scores)
        score = image_score(found[0] if len(found) == 1 else np.concatenate(found), self.top_share)
        whole_score = None
        if self.whole is not None:
            whole_score = self.whole.score(image.whole)
            score = max(score, whole_score)
        return ScoredRows(score, on_grid.reshape(self.grid), nearest, whole_score)

    def _nearest(self, patch: int, image_size: tuple[int, int], bank_row: int, distance: float) -> Nearest:
        train_image, train_patch = self.origins[bank_row].tolist()
        height, width = self.train.sizes[train_image].tolist()
        return Nearest(
            box=self._box(patch, image_size),
            train_id=self.train.ids[train_image],
            train_box=self._pose_of(train_image).box_undone(self._box(train_patch, (height, width)), (height, width)),
            distance=float(distance),
        )

    def _pose_of(self, train_image: int) -> Pose:
        return Pose() if self.train.poses is None else Pose(*self.train.poses[train_image].tolist())

    def _box(self, patch: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Pixels (left, top, right, bottom) of a patch of the grid in an image of `size` (height, width)."""
        height, width = size if self.frame is None else self.frame.canvas(size)
        row, column = divmod(patch, self.grid[1])
        return (
            round(column * width / self.grid[1]),
            round(row * height / self.grid[0]),
            min(size[1], round((column + 1) * width / self.grid[1])),
            min(size[0], round((row + 1) * height / self.grid[0])),
        )


def _remade(values: dict[str, Any]) -> Fitted:
    return Fitted(**values)
