"""What comes back to the user of a detector: `Scores` of new images. Frozen, plain arrays that cannot be written to."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
from PIL import Image

from anomalib_lite.fitted.calibration import ALARM, GOOD, LOOK_AGAIN
from anomalib_lite.fitted.core import Fitted, Nearest
from anomalib_lite.images.decoding import Reading
from anomalib_lite.images.fixture import Pose
from anomalib_lite.images.framing import Frame
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.locating.maps import anomaly_map, map_bands
from anomalib_lite.locating.regions import DefectRegion, find_regions
from anomalib_lite.scored import picking, table
from anomalib_lite.scored.image import ScoredImage
from anomalib_lite.scored.picking import Order

if TYPE_CHECKING:
    from anomalib_lite.plotting.region_files import MapFormat

_MAP_PIXELS = 1 << 22  # regions of larger images are found in a map of so many: patches have no finer detail
_OF_EACH = ("scores", "p_values", "alarms", "patch_scores", "whole_scores", "vectors")  # arrays, a row per image
_LISTED = ("ids", "image_sizes", "nearest", "poses")  # lists, an entry per image


class Scoring(Protocol):
    """A fitted detector, as those ask for it who need no more than its scores."""

    @property
    def fitted_(self) -> Fitted: ...
    @property
    def digest(self) -> str: ...
    def open(self, images: Any) -> ImageSource: ...
    def score(self, images: Any) -> Scores: ...


@dataclass(frozen=True, repr=False)
class Scores:
    """Scores of new images, in the order given; unreadable ones are listed apart.

    ``scores[3]`` is what was found of one image, and going through them gives one after the other (`ScoredImage`);
    ``scores[:10]``, ``scores[[4, 2]]`` and ``scores[scores.p_values < 0.05]`` are `Scores` again. Whatever is picked or
    sorted, unreadable images stay listed: nobody has seen what they show.

    Attributes
    ----------
    ids : list of str, length n
    scores : float64 (n,)
        Anomaly scores, in the unit of the scorer's distance; higher = more anomalous.
    p_values : float64 (n,)
        Share of good images expected to score at least as high (conformal, from good training images only).
    alarms : bool (n,)
        score > threshold.
    threshold, false_alarm_rate : float
        The alarm threshold and the false-alarm rate it was set for.
    guarantee_met : bool
        Whether there were enough training images to support that rate.
    look_again : float or None
        A lower threshold, above which an image that does not alarm is to be looked at again.
    calibration_groups : int
        Good images (or groups of them) that p-values come from; 1 / (n + 1) is the smallest they allow.
    image_sizes : list of (height, width)
    patch_scores : float32 (n, gh, gw), or None at the global level
        Scores on the patch grid, NaN where it reaches beyond the image; `anomaly_map` brings them to image size.
    map_scale : (low, high)
        The scores painted as wholly good and wholly bad, the same for all images.
    nearest : list of Nearest, or None for scorers other than kNN
    unreadable : list of UnreadableImage
    whole_scores : float64 (n,), or None but for level="both"
        What images score as wholes, in the unit of `scores`, which are at least that high.
    vectors : float32 (n, d), or None
        One vector per image, what `embedding.streaming.embed_whole` gives: a report draws its map from them.
    notes : dict of str to str
        By id, what is not shown of an image: values that leave the range of the training images, further pages.
    reading : Reading or None
        How the images were read, for those who read them again.
    pixel_threshold : float or None
        Anomaly maps exceed it anywhere in a share `false_alarm_rate` of good images; None at the global level.
    usual_score : float
        Of a patch of a good image, the median.
    pixel_size : float or None
        Side of an image's pixel in millimetres.
    poses : list of Pose, or None
        How a fixture found each part to lie; maps, boxes and regions are told in the images as they came.
    frame : Frame or None
        How an image lies on the patch grid; None: the grid is stretched over it.
    model : str
        SHA-256 of the model, see `Detector.digest`; "" for one with a scorer of your own.
    time : str
        When they were scored, ISO 8601 in UTC.
    source : ImageSource or None
        Where the images lie, for the pictures that a notebook shows; None for images in memory, which are not held.

    Examples
    --------
    >>> scores = Scores(["a.png", "b.png"], np.array([1.0, 3.0]), np.array([0.7, 0.05]), np.array([False, True]),
    ...     threshold=2.0, false_alarm_rate=0.05, guarantee_met=True, image_sizes=[(40, 60)] * 2)
    >>> scores
    Scores(2 images: 1 good, 1 alarm; threshold 2, false-alarm rate 0.05)
    >>> [image.id for image in scores.alarms_only()], scores[0].verdict, scores.sort()[0].score
    (['b.png'], 'good', 3.0)
    """

    ids: list[str]
    scores: np.ndarray
    p_values: np.ndarray
    alarms: np.ndarray
    threshold: float
    false_alarm_rate: float
    guarantee_met: bool
    image_sizes: list[tuple[int, int]]
    patch_scores: np.ndarray | None = None
    map_scale: tuple[float, float] = (0.0, 1.0)
    nearest: list[Nearest] | None = None
    look_again: float | None = None
    calibration_groups: int = 0
    unreadable: list[UnreadableImage] = field(default_factory=list)
    whole_scores: np.ndarray | None = None
    vectors: np.ndarray | None = None
    notes: Mapping[str, str] = field(default_factory=dict)
    reading: Reading | None = None
    frame: Frame | None = None
    poses: list[Pose] | None = None
    pixel_threshold: float | None = None
    usual_score: float = 0.0
    pixel_size: float | None = None
    model: str = ""
    time: str = ""
    source: ImageSource | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for name in (entry.name for entry in fields(self)):
            if isinstance(value := getattr(self, name), np.ndarray):
                value = value.view()  # the caller's own array stays writable
                value.flags.writeable = False
                object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return f"Scores({table.in_a_line(self)})"

    def _repr_html_(self) -> str:
        from anomalib_lite.plotting.notebook import as_html

        return as_html(self, table.in_a_line(self))

    @overload
    def __getitem__(self, chosen: int) -> ScoredImage: ...
    @overload
    def __getitem__(self, chosen: slice | list[int] | np.ndarray) -> Scores: ...
    def __getitem__(self, chosen: Any) -> ScoredImage | Scores:
        """One image by its position, or `Scores` of a slice, of positions or of a mask bool (n,).

        Raises
        ------
        IndexError
            If there is no image at a position, or a mask is not as long as there are images.
        TypeError
            For anything else, such as an id.
        """
        found = picking.picked(chosen, len(self))
        return self._image(found, self.verdicts) if isinstance(found, int) else self._at(found)

    def __iter__(self) -> Iterator[ScoredImage]:
        verdicts = self.verdicts
        return (self._image(i, verdicts) for i in range(len(self)))

    def sort(self, by: Order = "score") -> Scores:
        """The same in another order: the highest score first, or the smallest p-value, or by id; ties as they were.

        Raises
        ------
        ValueError
            For an order that there is not.
        """
        return self._at(picking.order(self, by))

    def alarms_only(self) -> Scores:
        """Those that alarm."""
        return self._at(np.flatnonzero(self.alarms))

    def _image(self, i: int, verdicts: list[str]) -> ScoredImage:
        return ScoredImage(
            id=self.ids[i],
            score=float(self.scores[i]),
            p_value=float(self.p_values[i]),
            verdict=verdicts[i],
            note=self.notes.get(self.ids[i], ""),
            size=self.image_sizes[i],
            nearest=None if self.nearest is None else self.nearest[i],
            whole_score=None if self.whole_scores is None else float(self.whole_scores[i]),
            registered=None if self.poses is None else self.poses[i].found,
            _scores=self,
            _position=i,
        )

    def _at(self, rows: np.ndarray) -> Scores:
        """The images at the positions (m,)."""
        picked: dict[str, Any] = {}
        for name in _OF_EACH:
            value = getattr(self, name)
            picked[name] = None if value is None else value[rows]
        for name in _LISTED:
            value = getattr(self, name)
            picked[name] = None if value is None else [value[i] for i in rows.tolist()]
        told = {*picked["ids"], *(entry.id for entry in self.unreadable)}
        picked["notes"] = {image_id: note for image_id, note in self.notes.items() if image_id in told}
        return replace(self, **picked)

    @property
    def verdicts(self) -> list[str]:
        """What is to be done with each image: "good", "look again" or "alarm"."""
        lower = self.threshold if self.look_again is None else self.look_again
        return [
            ALARM if alarm else LOOK_AGAIN if score > lower else GOOD
            for alarm, score in zip(self.alarms.tolist(), self.scores.tolist(), strict=True)
        ]

    def p_text(self, i: int) -> str:
        """The p-value of image `i` to read: "0.0244", or "≤ 0.0244" where so many good images allow no smaller one."""
        p = float(self.p_values[i])
        return f"{'≤ ' if p * (self.calibration_groups + 1) < 1 + 1e-9 else ''}{p:.4f}"

    def as_a_whole(self, i: int) -> bool:
        """Whether image `i` alarms for what it is as a whole, more than for any place of it (level="both")."""
        if self.whole_scores is None:
            return False
        return bool(self.alarms[i] and self.whole_scores[i] >= self.scores[i])

    def anomaly_map(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Anomaly map (H, W) float32 of image `i` at its original size or another, in the unit of the scores.

        It is 0 outside the region of interest, if there is one.

        Raises
        ------
        ValueError
            At the global level, which scores whole images only.
        """
        found = anomaly_map(self._grid(i), self.frame, self.image_sizes[i], size)
        return found if self.poses is None else self.poses[i].undone(found)

    def map_bands(self, i: int, size: tuple[int, int]) -> Iterator[tuple[slice, np.ndarray]]:
        """The rows of `anomaly_map`, a band at a time: for images that fill the memory."""
        if self.poses is None:
            return map_bands(self._grid(i), self.frame, self.image_sizes[i], size)
        return iter([(slice(0, size[0]), self.anomaly_map(i, size))])

    def require_maps(self) -> None:
        """Raise ValueError at the global level, which scores whole images only."""
        if self.patch_scores is None:
            raise ValueError("level='global' scores whole images and has no anomaly maps; use level='patch'")

    def regions(self, i: int, *, min_area: float = 0.0, max_regions: int | None = None) -> list[DefectRegion]:
        """Where image `i` is unlike the good ones: regions with an outline, the highest first.

        A region is where the anomaly map exceeds `pixel_threshold`, which the maps of a share `false_alarm_rate` of
        good images do anywhere (so there is no count of pixels to correct for); see `regions`.

        Parameters
        ----------
        i : position of the image
        min_area : in pixels, or square millimetres where the size of a pixel is known; smaller ones are left out
        max_regions : most that are told

        Raises
        ------
        ValueError
            At the global level, which scores whole images only.
        """
        return self._regions(i, min_area, max_regions)[0]

    def defect_mask(self, i: int, *, min_area: float = 0.0, max_regions: int | None = None) -> np.ndarray:
        """The regions of image `i` as bool (H, W), True where it is unlike the good ones; see `regions`."""
        height, width = self.image_sizes[i]
        labels = self._regions(i, min_area, max_regions)[1] > 0
        if labels.shape == (height, width):
            return labels
        return np.array(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))

    def _grid(self, i: int) -> np.ndarray:
        self.require_maps()
        assert self.patch_scores is not None
        grid: np.ndarray = self.patch_scores[i]
        return grid

    def _regions(self, i: int, min_area: float, max_regions: int | None) -> tuple[list[DefectRegion], np.ndarray]:
        grid, size = self._grid(i), self.image_sizes[i]
        if min_area < 0 or (max_regions is not None and max_regions < 0):
            raise ValueError(f"min_area={min_area}, max_regions={max_regions}: neither is negative")
        # A map is nowhere above the patches that it is made of.
        if self.pixel_threshold is None or not np.nanmax(grid) > self.pixel_threshold:
            return [], np.zeros((1, 1), dtype=np.int32)
        shrink = max(1.0, (size[0] * size[1] / _MAP_PIXELS) ** 0.5)
        shown = max(1, round(size[0] / shrink)), max(1, round(size[1] / shrink))
        canvas = shown if self.frame is None else self.frame.canvas(size, shown)
        return find_regions(
            self.anomaly_map(i, shown),
            self.pixel_threshold,
            usual=self.usual_score,
            patch=(canvas[0] / grid.shape[0], canvas[1] / grid.shape[1]),
            size=size,
            pixel_size=self.pixel_size,
            min_area=min_area,
            max_regions=max_regions,
        )

    def looked_at(self, i: int, size: tuple[int, int]) -> np.ndarray | None:
        """The region of interest as bool (H, W), in image `i` at this size; None where there is none."""
        region = None if self.frame is None else self.frame.region
        if region is None or self.poses is None:
            return None if region is None else region.at(size)
        return self.poses[i].undone(region.at(size).astype(np.float32)) > 0.5

    @property
    def registered(self) -> np.ndarray:
        """Whether each image's part was found by the fixture, bool (n,); True where there is none."""
        return np.array([True] * len(self) if self.poses is None else [pose.found for pose in self.poses], dtype=bool)

    def to_dict(self, *, min_area: float = 0.0, max_regions: int | None = None) -> dict[str, Any]:
        """Everything but the maps, JSON-able: one entry per image, with its `regions`, and the thresholds."""
        return {
            "threshold": self.threshold,
            "pixel_threshold": self.pixel_threshold,
            "pixel_size": self.pixel_size,
            "false_alarm_rate": self.false_alarm_rate,
            "guarantee_met": self.guarantee_met,
            "look_again": self.look_again,
            "smallest_p_value": 1 / (self.calibration_groups + 1),
            "model": self.model,
            "time": self.time,
            "images": [image.to_dict(min_area=min_area, max_regions=max_regions) for image in self],
            "unreadable": [asdict(entry) for entry in self.unreadable],
            "notes": dict(self.notes),
        }

    def to_csv(
        self,
        path: str | os.PathLike[str],
        *,
        overlays: str | os.PathLike[str] | None = None,
        decimal_comma: bool = False,
    ) -> Path:
        """Write one line per image, unreadable ones included with their reason; returns the path.

        Every line has the threshold, the false-alarm rate, the model's SHA-256 and the time too.

        Parameters
        ----------
        path : path
        overlays : path, optional
            The folder given to `save_overlays`: adds a column of the files that show each image's heat map.
        decimal_comma : bool
            For spreadsheets of countries that write 0,5: with semicolons between cells and a mark of UTF-8 in front.

        Raises
        ------
        OSError
            If the file cannot be written; an older file is left as it was.
        """
        shown = None
        if overlays is not None:
            from anomalib_lite.plotting.picture_folder import picture_folder

            shown = {image_id: Path(overlays, name) for name, image_id in picture_folder(overlays).items()}
        return table.to_csv(self, path, shown, decimal_comma=decimal_comma)

    def to_frame(self) -> Any:
        """The table of `to_csv` as a pandas.DataFrame; unreadable images have no score, and alarm is missing.

        Raises
        ------
        ImportError
            If pandas is not installed, which nothing else needs.
        """
        return table.to_frame(self)

    def regions_to_csv(
        self,
        path: str | os.PathLike[str],
        *,
        min_area: float = 0.0,
        max_regions: int | None = None,
        decimal_comma: bool = False,
    ) -> Path:
        """Write one line per region of every image (see `regions`, and `to_csv`); returns the path."""
        from anomalib_lite.plotting import region_files

        self.require_maps()
        return region_files.regions_to_csv(
            self, path, min_area=min_area, max_regions=max_regions, decimal_comma=decimal_comma
        )

    def to_coco(self, path: str | os.PathLike[str], *, min_area: float = 0.0, max_regions: int | None = None) -> Path:
        """Write the regions as annotations of a COCO file, of the one category "defect"; returns the path.

        Its polygons have no holes, so that of a ring is the line around it; `area` is that of the ring itself.
        """
        from anomalib_lite.plotting import region_files

        self.require_maps()
        return region_files.to_coco(self, path, min_area=min_area, max_regions=max_regions)

    def save_masks(
        self, folder: str | os.PathLike[str], *, min_area: float = 0.0, max_regions: int | None = None
    ) -> list[Path]:
        """Write the regions of every image as a mask, PNG of its size, white where it is defective; see `regions`.

        A folder of its own is needed, as for `save_overlays`.
        """
        from anomalib_lite.plotting import region_files

        self.require_maps()
        return region_files.save_masks(self, folder, min_area=min_area, max_regions=max_regions)

    def save_maps(self, folder: str | os.PathLike[str], format: MapFormat = "npy") -> list[Path]:
        """Write every anomaly map at the size of its image: "npy" and "tiff" hold float32, "png" 16 bits.

        The value of a step of 16 bits is the same for all images, and stands in ``.anomalib_lite-overlays.json`` beside
        them; they reach to four times the pixel threshold. A folder of its own is needed, as for `save_overlays`.
        """
        from anomalib_lite.plotting import region_files

        self.require_maps()
        return region_files.save_maps(self, folder, format)

    def save_overlays(self, folder: str | os.PathLike[str], images: Any, *, only_alarms: bool = False) -> list[Path]:
        """Write every image with its heat map over it as PNG, all on one colour scale.

        Files are called like their image, ``good/a.jpg`` becoming ``good__a.jpg.png``; ``.anomalib_lite-overlays.json``
        beside them names the image of each. Images of more than 33 megapixels are drawn smaller. One that is gone or
        unreadable by now is left out with a warning.

        Parameters
        ----------
        folder : path
            Made if missing. Only overlays are ever overwritten in it.
        images : the images that were scored, as given to `score`.
        only_alarms : leave out images that did not alarm.

        Returns
        -------
        list of Path, in the order of `ids`.

        Raises
        ------
        ValueError
            At the global level, when `images` are others, or `folder` holds pictures that are no overlays.
        """
        from anomalib_lite.plotting.overlays import save_overlays

        return save_overlays(self, folder, images, only_alarms=only_alarms)
