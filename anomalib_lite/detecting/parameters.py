"""What was chosen for a detector: its constructor's arguments, checked once, and as a model file keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from anomalib_lite.detecting.quality import MOST_PIXELS, Quality
from anomalib_lite.embedding.embedder import Level
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.fitted.plan import CalibrationKind
from anomalib_lite.fitted.whole import BOTH
from anomalib_lite.images.fixture import check_turn
from anomalib_lite.images.framing import Tiles, check_tiles
from anomalib_lite.images.reading import Reading
from anomalib_lite.images.region import readable
from anomalib_lite.images.variations import Variations
from anomalib_lite.machine.integers import EngineName
from anomalib_lite.scoring import Scorer, ScorerName
from anomalib_lite.scoring.knn import Selection

# A file names weights by their fingerprint; a bar belongs to whoever looks at it.
_NOT_STORED = ("weights", "progress")


@dataclass(frozen=True, eq=False, kw_only=True)
class Parameters:
    """The arguments of `Detector`, which has their meaning and their defaults.

    Raises
    ------
    ValueError
        If one is none that there is. What the scorer, the selection of rows and the embedder are made of is checked by
        those (`making.Templates`).
    """

    backbone: str
    layers: str | Sequence[str] | None
    weights: Weights | None
    level: Level | Literal["both"]
    quality: Quality
    image_size: int | tuple[int, int] | None
    context: float | Literal["auto"]
    tiles: int | tuple[int, int] | None
    tile_overlap: float
    roi: Any
    ignore: Any
    fixture: float | None
    pixel_size: float | None
    scorer: ScorerName | Scorer
    bank_size: int
    selection: Selection
    k: int
    trim: float
    n_clusters: int | Literal["silhouette", "auto"]
    eps: float | Literal["knee"]
    min_samples: int
    n_components: int | float | Literal["auto"] | None
    whiten: bool | Literal["auto"]
    top_share: float | None
    variations: Variations | None
    false_alarm_rate: float
    calibration: CalibrationKind
    calibration_images: int
    value_range: tuple[int, int] | Literal["auto"] | None
    bits: int | None
    max_pixels: int
    device: str
    dtype: str
    engine: EngineName
    batch_size: int
    workers: int | None
    random_state: int
    progress: bool | None

    def __post_init__(self) -> None:
        if self.quality not in MOST_PIXELS:
            raise ValueError(f"quality={self.quality!r}; choose 'fast', 'balanced' or 'best'")
        if self.top_share is not None and not 0 < self.top_share <= 1:
            raise ValueError(f"top_share={self.top_share} is a share of patches, in (0, 1]")
        if not 0 < self.false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={self.false_alarm_rate} is a share of good images, in (0, 1)")
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} is the number of images per forward pass, at least 1")
        if self.random_state < 0:
            raise ValueError(f"random_state={self.random_state} is a seed, not negative")
        if self.calibration_images < 1:
            raise ValueError(f"calibration_images={self.calibration_images}; at least 1")
        if self.calibration not in ("cross", "split"):
            raise ValueError(f"calibration={self.calibration!r}; choose 'cross' or 'split'")
        if self.variations is not None and not isinstance(self.variations, Variations):
            raise ValueError(f"variations={self.variations!r}; give Variations(brightness=0.2, ...), or None")
        if isinstance(self.context, str) and self.context != "auto":
            raise ValueError(f"context={self.context!r}: give a weight, such as 0.5, or 'auto'")
        if not 0 <= self.tile_overlap < 1:
            raise ValueError(
                f"tile_overlap={self.tile_overlap} is the share of a tile that the next one has too, in [0, 1)"
            )
        for given, check in ((self.tiles, check_tiles), (self.fixture, check_turn)):
            if given is not None:
                check(given)
        if self.pixel_size is not None and not 0 < self.pixel_size < np.inf:
            raise ValueError(f"pixel_size={self.pixel_size} is the side of an image's pixel in millimetres, above 0")
        if self.bits is not None and (self.value_range not in ("auto", None) or not 1 <= self.bits <= 32):
            raise ValueError(f"bits={self.bits}, value_range={self.value_range}: give one of them, bits from 1 to 32")
        _ = self.reading  # which checks the range

    @property
    def embedded_at(self) -> Level:
        """The level at which images are embedded: for "both" that of patches, beside which whole images come along."""
        return "patch" if self.level == BOTH else self.level  # type: ignore[return-value]

    @property
    def cut(self) -> Tiles | None:
        """`tiles` as plain numbers."""
        return None if self.tiles is None else check_tiles(self.tiles)

    @property
    def turn(self) -> float | None:
        """`fixture`, the degrees that parts may be turned by, as a plain number."""
        return None if self.fixture is None else check_turn(self.fixture)

    @property
    def stored_range(self) -> tuple[int, int] | Literal["auto"] | None:
        """`value_range`, or what `bits` is short for."""
        return self.value_range if self.bits is None else (0, 2**self.bits - 1)

    @property
    def reading(self) -> Reading:
        """How pictures to learn from are read, as far as that was chosen."""
        low_and_high = self.stored_range
        known = None if low_and_high in ("auto", None) else tuple(low_and_high)
        return Reading(value_range=known, max_pixels=self.max_pixels)  # type: ignore[arg-type]

    def reading_in(self, value_range: tuple[int, int] | None) -> Reading:
        """How pictures are read after a fit, in the range that it found or was given."""
        return replace(self.reading, value_range=value_range)

    def given(self) -> dict[str, Any]:
        """The constructor's arguments, as they were given or left; of masks only that there was one."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return values | {"roi": readable(self.roi), "ignore": readable(self.ignore)}

    def stored(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; without weights, which a file names by their fingerprint."""
        scorer, layers = self.scorer, self.layers
        return {
            **{name: value for name, value in self.given().items() if name not in _NOT_STORED},
            "layers": layers if layers is None or isinstance(layers, str) else list(layers),
            "variations": None if self.variations is None else self.variations.to_dict(),
            "scorer": scorer if isinstance(scorer, str) else {"name": scorer.name, "parameters": scorer.parameters()},
        }


STORED = frozenset(field.name for field in fields(Parameters)) - set(_NOT_STORED)
