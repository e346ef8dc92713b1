"""The detector: parameters, an embedder, and after a fit the fitted core. Images in, `Scores` out.

`fit`, `score`, the command line and the benchmarks all go through `Detector`. There is one preprocessing, in the
embedder.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from anomalib_lite.embedding.embedder import BUILTIN, Embedder, Level
from anomalib_lite.embedding.streaming import EmbeddedImage, EmbeddedSource, Intake, OnUnreadable, embed_source
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.files import model_file
from anomalib_lite.fitted import recalibration
from anomalib_lite.fitted.adding import Addition, added, removed, require_bank
from anomalib_lite.fitted.core import Fitted, ScoredRows
from anomalib_lite.fitted.duplicates import describe_groups, duplicate_groups
from anomalib_lite.fitted.fitting import CalibrationKind, Plan, fit_global, fit_patches
from anomalib_lite.fitted.groups import Groups, group_names, group_numbers, numbered
from anomalib_lite.fitted.rows import RowSelection
from anomalib_lite.fitted.storing import to_arrays
from anomalib_lite.fitted.whole import BOTH
from anomalib_lite.images.fixture import Fixture, RegisteredSource, check_turn, make_fixture
from anomalib_lite.images.foreground import estimate_foreground
from anomalib_lite.images.framing import Frame, check_tiles, choose_frame, picture_sizes, typical_size
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.mvtec import refuse_labelled_root
from anomalib_lite.images.reading import DEFAULT_READING, Reading
from anomalib_lite.images.region import AUTO, Region, make_region, readable
from anomalib_lite.images.sight import SightingSource
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.texture import is_surface
from anomalib_lite.images.training import open_training
from anomalib_lite.images.variations import Variations, VariedSource
from anomalib_lite.judging import Channels, Judge, Verdict
from anomalib_lite.locating.maps import peak
from anomalib_lite.machine.integers import EngineName
from anomalib_lite.opening import open_model
from anomalib_lite.results import Scores
from anomalib_lite.scoring import Scorer, ScorerName, make_scorer
from anomalib_lite.scoring.knn import Selection
from anomalib_lite.scoring.reduction import PCA, Reduction, Standardizer

# Dimensions of patch vectors after PCA: 95 % of the variance of ResNet18's on metal_nut, 99 % on bottle.
_PATCH_COMPONENTS = 128
Quality = Literal["fast", "balanced", "best"]


_MOST_PIXELS: dict[Quality, int] = {"fast": 256, "balanced": 384, "best": 384}  # of the shorter side


class _Usual(NamedTuple):
    """What stands where nothing is chosen."""

    context: float
    top_share: float


# Chosen once for all, looking at the labels of the sets in docs/benchmarks.md.
_PARTS, _SURFACES = _Usual(0.0, 0.01), _Usual(1.5, 0.02)


class Detector:
    """Finds what is unlike the good images it was fitted on.

    Parameters
    ----------
    backbone : str
        "builtin" (no download) or a torchvision classification network.
    layers : sequence of str or comma-separated str, optional
        Layers of the backbone; default: its own choice.
    weights : "imagenet", path, or state dict, optional
        Weights of a torchvision backbone; default: torchvision's, downloaded once.
    level : "patch", "global" or "both"
        A grid of vectors per image (gives heat maps), or one vector per image. "both" compares whole images beside
        their patches, for what no patch shows, such as a piece too few among loose ones; see `fitted.whole`.
    quality : "fast", "balanced" or "best"
        What is not chosen otherwise. "fast" sees 256 pixels of the shorter side at most. "best" looks at the training
        images, and where they show a surface without places of its own, rather than parts that lie alike, takes
        context=1.5 and top_share=0.02 (see `images.texture`; docs/benchmarks.md has what each gave).
    image_size : int or (height, width), optional
        Pixels that images are resized to. One number is the shorter side, and the proportions are those of the training
        images, chosen once at the fit (by their median). Images of other proportions, by more than 3 %, are laid into
        the frame and what they leave over is not looked at. Default: for the built-in backbone as many as the camera
        gave, 384 at most; for others their own. Time grows with the area.
    context : float or "auto"
        Patch level: weight, in a patch's vector, of what the network says of the image at half its size: what the patch
        is part of. More finds what is odd on a larger scale, as in textures, and blurs the small and sharp. "auto" is
        that of the quality.
    tiles : int or (rows, columns), optional
        Look closer: at the detail at which tiles of so many pixels, or so many tiles of each image, would be seen at
        `image_size` each. An image stays one image, with one score, one p-value and one map without seams; where it is
        too large for a network to be shown at once, it is shown through windows, in flat memory.
    tile_overlap : float in [0, 1)
        Share that neighbours of (rows, columns) have in common.
    roi, ignore : optional
        The region of interest, and areas in it that do not matter, such as a printed number: an image file or bool
        array (H, W) that is white there; boxes (left, top, right, bottom) or polygons [(x, y), ...], in pixels or, all
        below 1, in shares of width and height; or a JSON file of ``{"boxes": [...], "polygons": [...]}``. roi="auto"
        estimates the part from the training images (`diagnose` shows it). Nothing outside is learnt, scored or painted,
        and images of other proportions are unreadable.
    fixture : float, optional
        Lay every picture as in the first of the training images, by a shift and a turn of at most so many degrees
        (0: by a shift alone), so that a region of interest, which is drawn on that first one, stays on the part. One
        that cannot be registered alarms, and `Scores.notes` has it. See `images.fixture`; needs the extra
        ``[fixture]``.
    pixel_size : float, optional
        Side of an image's pixel in millimetres: then regions have their area in square millimetres too.
    scorer : "knn", "kmeans", "dbscan", "subspace", or a Scorer
        How rows are compared with good ones. A name takes the parameters below; an instance brings its own
        (one of another class than those four cannot be saved).
    bank_size, selection, k : see `scoring.KNNScorer`
    trim : float in [0, 1)
        Share of patches that are not learnt from, for being farthest from those of other images: set it to the share of
        bad ones you fear among the good.
    n_clusters : int, "silhouette", or "auto"
        For kmeans. "auto" is 1024 centroids for patches, 32 for global vectors.
    eps, min_samples : see `scoring.DBSCANScorer`
    n_components : int, float in (0, 1), None, or "auto"
        PCA before the scorer: components, share of variance, or none. "auto" is 128 for patches, none for global
        vectors (standardised instead) and for subspace, which has a PCA of its own.
    whiten : bool or "auto"
        Scale components to unit variance; "auto" does for kmeans and dbscan on patches.
    variations : Variations, optional
        How the camera may vary: every training image is learnt and calibrated under draws of it, and the fit takes as
        many times longer. Variations(turn=180, draws=7) is for parts that may lie at any angle.
    top_share : float in (0, 1], optional
        Patch level: the image score is the mean of this share of the largest patch scores. Default: 0.01, or as the
        quality has it.
    false_alarm_rate : float in (0, 1)
        Share of good images that may alarm; sets the threshold.
    calibration : "cross" or "split"
        How the threshold is learnt. "cross" scores every image by a scorer made without its fold, and learns from all
        of them; the promise holds closely, but is not proven exactly. "split" learns from a part of the images and
        calibrates on the rest, a quarter to a half of them, as many as the rate takes; then it is exact. See
        `fitted.calibration`.
    calibration_images : int
        Patch level: images that set it at most. 1000 are enough for a rate of 0.1 %; each costs its scoring.
    value_range : (low, high), "auto", or None
        Stored values that become black and white in pictures of more than 8 bits, such as (0, 4095) for a camera's 12
        bits in a 16-bit file. "auto" looks at all training images, and warns if it finds fewer bits in use than there
        are; None takes the whole range of each file.
    bits : int, optional
        Short for value_range=(0, 2**bits - 1).
    max_pixels : int
        Larger pictures are unreadable.
    device : "auto", "cpu" or "cuda"
    dtype : "auto", "float32", "bfloat16" or "int8"
        What the network is computed in; "auto" is what is quickest here, measured once (`anomalib-lite doctor`). "int8"
        is calibrated on the first training images, is kept with the model, and gives the same scores by any `engine`.
    engine : "auto", "onednn" or "reference"
        What computes integers: the processor's own instructions, or float32, which gives the same but takes longer.
    batch_size : int
        Images per forward pass; does not change scores beyond float rounding.
    workers : int, optional
        Decoding threads; default: one per core.
    random_state : int
    progress : bool
        Show a progress bar on stderr.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> good = [render_part(np.random.default_rng(i), 64)[0] for i in range(12)]
    >>> detector = Detector(image_size=64).fit(good)
    >>> scores = detector.score([render_part(np.random.default_rng(99), 64, "scratch")[0]])
    >>> scores.anomaly_map(0).shape
    (64, 64)
    """

    def __init__(
        self,
        *,
        backbone: str = BUILTIN,
        layers: str | Sequence[str] | None = None,
        weights: Weights | None = None,
        level: Level | Literal["both"] = "patch",
        quality: Quality = "balanced",
        image_size: int | tuple[int, int] | None = None,
        context: float | Literal["auto"] = "auto",
        tiles: int | tuple[int, int] | None = None,
        tile_overlap: float = 0.0,
        roi: Any = None,
        ignore: Any = None,
        fixture: float | None = None,
        pixel_size: float | None = None,
        scorer: ScorerName | Scorer = "knn",
        bank_size: int = 10_000,
        selection: Selection = "k-center",
        k: int = 2,
        trim: float = 0.0,
        n_clusters: int | Literal["silhouette", "auto"] = "auto",
        eps: float | Literal["knee"] = "knee",
        min_samples: int = 5,
        n_components: int | float | Literal["auto"] | None = "auto",
        whiten: bool | Literal["auto"] = "auto",
        top_share: float | None = None,
        variations: Variations | None = None,
        false_alarm_rate: float = 0.01,
        calibration: CalibrationKind = "cross",
        calibration_images: int = 1000,
        value_range: tuple[int, int] | Literal["auto"] | None = "auto",
        bits: int | None = None,
        max_pixels: int = DEFAULT_READING.max_pixels,
        device: str = "auto",
        dtype: str = "auto",
        engine: EngineName = "auto",
        batch_size: int = 8,
        workers: int | None = None,
        random_state: int = 0,
        progress: bool = False,
    ):
        chosen = {name: value for name, value in locals().items() if name != "self"}
        if quality not in _MOST_PIXELS:
            raise ValueError(f"quality={quality!r}; choose 'fast', 'balanced' or 'best'")
        self.quality = quality
        if top_share is not None and not 0 < top_share <= 1:
            raise ValueError(f"top_share={top_share} is a share of patches, in (0, 1]")
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={false_alarm_rate} is a share of good images, in (0, 1)")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is the number of images per forward pass, at least 1")
        if random_state < 0:
            raise ValueError(f"random_state={random_state} is a seed, not negative")
        if calibration_images < 1:
            raise ValueError(f"calibration_images={calibration_images}; at least 1")
        if calibration not in ("cross", "split"):
            raise ValueError(f"calibration={calibration!r}; choose 'cross' or 'split'")
        if variations is not None and not isinstance(variations, Variations):
            raise ValueError(f"variations={variations!r}; give Variations(brightness=0.2, ...), or None")
        if isinstance(context, str) and context != "auto":
            raise ValueError(f"context={context!r}: give a weight, such as 0.5, or 'auto'")
        if not 0 <= tile_overlap < 1:
            raise ValueError(f"tile_overlap={tile_overlap} is the share of a tile that the next one has too, in [0, 1)")
        embedded_at: Level = "patch" if level == BOTH else level  # type: ignore[assignment]
        self.tiles = None if tiles is None else check_tiles(tiles)
        self.tile_overlap = tile_overlap
        self.roi, self.ignore = roi, ignore
        self.fixture = None if fixture is None else check_turn(fixture)
        if pixel_size is not None and not 0 < pixel_size < np.inf:
            raise ValueError(f"pixel_size={pixel_size} is the side of an image's pixel in millimetres, above 0")
        self.pixel_size = pixel_size
        chosen |= {"roi": readable(roi), "ignore": readable(ignore)}
        if bits is not None and (value_range not in ("auto", None) or not 1 <= bits <= 32):
            raise ValueError(f"bits={bits}, value_range={value_range}: give one of them, bits from 1 to 32")
        self.value_range = value_range if bits is None else (0, 2**bits - 1)
        known = None if self.value_range in ("auto", None) else tuple(self.value_range)
        self.reading = Reading(value_range=known, max_pixels=max_pixels)
        self._made = False
        self._chosen: dict[str, Any] = chosen
        # The core and what embeds for it, bound together: a thread that scores during a refit sees the old or the new.
        self._learnt: tuple[Fitted, Embedder] | None = None
        self._digest: tuple[Fitted, str] | None = None
        self._with_backbone = False
        self._region: Region | None = None  # of the model file it came from
        self.variations = variations
        self.false_alarm_rate = false_alarm_rate
        self.calibration = calibration
        self.calibration_images = calibration_images
        self.workers = workers
        self.random_state = random_state
        self.progress = progress
        self.scorer = (
            make_scorer(
                scorer,
                embedded_at,
                bank_size=bank_size,
                selection=selection,
                k=k,
                n_clusters=n_clusters,
                eps=eps,
                min_samples=min_samples,
                random_state=random_state,
                device=device,
            )
            if isinstance(scorer, str)
            else scorer
        )
        self.selection = RowSelection(trim, random_state=random_state, device=device)
        self.n_components = n_components
        usually = self.scorer.name in ("kmeans", "dbscan") and embedded_at == "patch"
        self.whiten = usually if whiten == "auto" else whiten
        self._embedder = Embedder(
            backbone,
            layers=layers,
            level=embedded_at,
            weights=weights,
            image_size=image_size,
            device=device,
            dtype=dtype,
            engine=engine,
            batch_size=batch_size,
            context=_PARTS.context if isinstance(context, str) else context,
            to_be_calibrated=True,
        )
        self._made = True

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, as they were given or left."""
        return dict(self._chosen)

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        images: Any,
        *,
        groups: Groups | None = None,
        on_unreadable: OnUnreadable = "skip",
        everything_is_good: bool = False,
    ) -> Detector:
        """Learn from good images.

        Memory is bounded whatever their number (but for the ids); time is one forward pass per image,
        and a second one for up to `calibration_images` when there are too many to keep for calibration.

        Parameters
        ----------
        images : folder, paths, arrays, PIL images, tensor or ImageSource
            Good images; see `images.open_source`.
        groups : str, mapping, callable, or one label per image, optional
            Pictures that belong together, such as several of one part, or those of one day: "parent" (their folder),
            "each" (none do), a regular expression, or labels; see `fitted.groups.group_names`. They are left out
            together, and count as one in what is promised. Default: shots of one part are looked for.
        on_unreadable : "skip" or "raise"
            "skip" lists unreadable images in `unreadable_` and goes on.
        everything_is_good : bool
            Learn also what looks like a data set's test images or masks by its folders and names.

        Warns
        -----
        UserWarning
            If pictures of 16 bits use fewer, or something of a picture is not shown (`Scores.notes` has the same of
            new ones), or images are nearly the same: they are taken for one group, and where they are many nothing
            is promised, or have other proportions than the rest.

        Raises
        ------
        NoGoodImagesError
            If fewer than two images can be read (three for dbscan and at the global level); the message lists
            the first reasons.
        UnreadableImageError
            With on_unreadable="raise".
        ValueError
            If images are all the same, parameters or groups do not fit them, or a folder holds more than good images.
        """
        source, reading = open_training(
            images,
            self.reading,
            guess_range=self.value_range == "auto",
            everything_is_good=everything_is_good,
            variations=self.variations,
            random_state=self.random_state,
            workers=self.workers,
        )
        copies = source.copies if isinstance(source, VariedSource) else 1
        numbers = None if groups is None else group_numbers(groups, source.ids[::copies])
        passes = iter(("fit", "calibrate"))
        usual = _PARTS
        if self.quality == "best" and self._embedder.level == "patch" and not isinstance(source, EmbeddedSource):
            usual = _SURFACES if is_surface(source, workers=self.workers) else _PARTS
        fixture = self._fixture_for(source)
        given = source
        sighting = None if isinstance(source, EmbeddedSource) else SightingSource(source)
        if sighting is not None:
            source = sighting if fixture is None else RegisteredSource(sighting, fixture)
        embedder = self._embedder.uncalibrated().framed(self._frame_for(given, source))
        if self._chosen["context"] == "auto":
            embedder = embedder.with_context(usual.context)
        if isinstance(source, EmbeddedSource):  # it keeps embeddings for others too, who were calibrated otherwise
            if self._chosen["dtype"] == "int8":
                raise ValueError("a source that keeps embeddings is not for dtype='int8'; choose 'float32' or 'auto'")
            embedder = embedder.in_floats()

        def embed(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
            return embed_source(
                embedder,
                source,
                indices,
                on_unreadable=on_unreadable,
                workers=self.workers,
                progress=next(passes) if self.progress else None,
            )

        plan = Plan(
            make_reduction=self._new_reduction,
            make_scorer=lambda: copy.copy(self.scorer),  # fit binds new attributes, so the template stays as it is
            selection=copy.copy(self.selection),
            false_alarm_rate=self.false_alarm_rate,
            top_share=usual.top_share if self._chosen["top_share"] is None else self._chosen["top_share"],
            calibration=self.calibration,
            calibration_images=self.calibration_images,
            groups=numbers,
            random_state=self.random_state,
            copies=copies,
            whole=self._chosen["level"] == BOTH,
            value_range=reading.value_range,
            frame=embedder.frame,
            fixture=fixture,
            poses=None if fixture is None else lambda: source.turns_and_shifts(),  # type: ignore[attr-defined]
            parameters=self._storable_parameters(),
            embedder=lambda: {**embedder.describe(), "ranges": embedder.ranges},
        )
        learn = fit_patches if embedder.level == "patch" else fit_global
        core = learn(embed, source.ids, plan)
        self._learnt = replace(core, sight=None if sighting is None else sighting.sight), embedder
        self._with_backbone = False
        found = describe_groups(self.fitted_.train.groups)
        if groups is None and (withheld := self.fitted_.calibration.withheld):
            warnings.warn(
                f"{withheld}, so no false-alarm rate can be promised; say which pictures belong together (groups=), or "
                "fit each alone if these are products that differ",
                stacklevel=2,
            )
        elif groups is None and found:
            warnings.warn(
                f"{found}; such pictures are left out together and count as one. Say groups='each' if they are of "
                "different parts",
                stacklevel=2,
            )
        if notes := getattr(given, "notes", {}):
            named = "; ".join(f"{name}: {text}" for name, text in sorted(notes.items())[:3])
            warnings.warn(f"{len(notes)} training images are not wholly shown: {named}", stacklevel=2)
        return self

    @property
    def fitted_(self) -> Fitted:
        """What was learnt.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        return self._fitted_and_embedder()[0]

    @property
    def embedder(self) -> Embedder:
        """What makes embeddings of images: the network, calibrated to the images of the fit where it has to be."""
        return self._embedder if self._learnt is None else self._learnt[1]

    def _fitted_and_embedder(self) -> tuple[Fitted, Embedder]:
        if self._learnt is None:
            raise RuntimeError("this detector is not fitted yet; call fit(images) or Detector.load(path)")
        return self._learnt

    @property
    def n_train_(self) -> int:
        """Number of images it was fitted on."""
        return self.fitted_.train.n_readable

    @property
    def unreadable_(self) -> list[UnreadableImage]:
        """Images that were given to `fit` and could not be read."""
        return list(self.fitted_.train.unreadable)

    def _fixture_for(self, source: ImageSource) -> Fixture | None:
        """By what images of a source to learn from are laid."""
        if self.fixture is None:
            return None
        if isinstance(source, EmbeddedSource):
            raise ValueError("a source that keeps embeddings cannot be registered; leave the fixture out")
        sizes = picture_sizes(source) or [(1, 1)]
        return make_fixture(source, self.fixture, typical_size(sizes, choose_frame(sizes, None)))

    def _frame_for(self, source: ImageSource, laid: ImageSource) -> Frame:
        """How images of a source to learn from are seen; `laid` is that source, laid by a fixture if there is one."""
        if isinstance(source, EmbeddedSource):  # of a comparison, whose models all see one square
            return self._embedder.frame
        wanted, (side, _) = self._chosen["image_size"], self._embedder.image_size
        wanted = tuple(wanted) if isinstance(wanted, Sequence) else wanted
        # The built-in network takes any size; others do best at the one they were trained for.
        if wanted is None and self._embedder.backbone != BUILTIN:
            wanted = side
        sizes = picture_sizes(source) or [(side, side)]  # none can be read: that is said when they are
        most = _MOST_PIXELS[self.quality]
        frame = choose_frame(sizes, wanted, most=most, tiles=self.tiles, tile_overlap=self.tile_overlap)
        frame = replace(frame, region=self._region_for(laid, typical_size(sizes, frame)))
        if frame.region is not None and self._embedder.level == "patch":
            grid = frame.grid(self._embedder.framed(frame).own_grid)
            if not len(frame.region.cells(grid)):
                raise ValueError(
                    f"the region of interest covers half of none of the {grid[0]} × {grid[1]} patches; enlarge it, or "
                    "give a larger image_size"
                )
        if others := sum(frame.content(known) != frame.size for known in sizes):
            warnings.warn(
                f"{others} of {len(sizes)} pictures looked at have other proportions than {frame.size[0]} × "
                f"{frame.size[1]} (height × width), to which they are brought: they are "
                + ("unreadable, since the region" if frame.region else "laid into it, not stretched. Sets")
                + (" of interest is not drawn for them" if frame.region else " of one shape tell more"),
                stacklevel=3,
            )
        return frame

    def _region_for(self, source: ImageSource, size: tuple[int, int]) -> Region | None:
        """What is looked at of images of a source to learn from."""
        if self._region is not None:  # as it was, where a model from a file is fitted again
            return self._region
        roi = self.roi
        if isinstance(roi, str) and roi == AUTO:
            roi = estimate_foreground(source, size, workers=self.workers)
        return make_region(roi, self.ignore, size)

    def _new_reduction(self, most: int) -> Reduction:
        """An unfitted reduction for rows that can give `most` components."""
        if self.n_components is None or (self.n_components == "auto" and self.embedder.level == "global"):
            return Standardizer()
        # The channels of one layer of a network have a common unit; means and deviations of several layers do not.
        standardize = self.embedder.level == "global"
        if self.n_components == "auto":
            if self.scorer.name == "subspace":  # has a PCA of its own
                return Standardizer()
            return PCA(min(_PATCH_COMPONENTS, most), whiten=self.whiten, standardize=standardize)
        return PCA(self.n_components, whiten=self.whiten, standardize=standardize)

    # ---------------------------------------------------------------- scoring

    def score(self, images: Any, *, on_unreadable: OnUnreadable = "skip", vectors: bool = False) -> Scores:
        """Score new images.

        Parameters
        ----------
        images : folder, path or paths, arrays, PIL images, tensor or ImageSource
        on_unreadable : "skip" or "raise"
            "skip" lists unreadable images in the result and goes on.
        vectors : bool
            Keep one vector per image too (`Scores.vectors`), as maps of many images need them.

        Returns
        -------
        Scores
            Of the readable images, in the order given.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        UnreadableImageError
            With on_unreadable="raise".
        """
        fitted, embedder = self._fitted_and_embedder()
        reading = replace(self.reading, value_range=fitted.value_range)
        source = open_source(images, reading)
        registered = None if fitted.fixture is None else RegisteredSource(source, fitted.fixture)
        intake = Intake()
        ids: list[str] = []
        found: list[ScoredRows] = []
        whole: list[np.ndarray] = []
        stream = embed_source(
            embedder,
            registered or source,
            np.arange(len(source)),
            on_unreadable=on_unreadable,
            workers=self.workers,
            progress="score" if self.progress else None,
        )
        for image in intake.readable(stream):
            ids.append(image.id)
            found.append(fitted.score(image))
            if vectors:
                whole.append(image.whole)
        scores = np.array([scored.score for scored in found], dtype=np.float64)
        maps = np.array([scored.patch_scores for scored in found], dtype=np.float32).reshape(-1, *fitted.grid)
        calibration = fitted.calibration
        alarms, notes = calibration.alarms(scores), dict(getattr(source, "notes", {}))
        nearest = [scored.nearest for scored in found if scored.nearest] if fitted.explains else None
        poses = None
        if registered is not None:
            poses = [registered.poses[index] for index in intake.sizes]
            lost = [i for i, pose in enumerate(poses) if not pose.found]
            alarms[lost] = True
            notes |= {ids[i]: f"cannot be registered by the fixture, and alarms: {poses[i].reason}" for i in lost}
            if nearest is not None:
                sizes = intake.sizes.values()
                nearest = [
                    replace(one, box=pose.box_undone(one.box, size))
                    for one, pose, size in zip(nearest, poses, sizes, strict=True)
                ]
        return Scores(
            ids=ids,
            scores=scores,
            p_values=calibration.p_values(scores),
            alarms=alarms,
            threshold=calibration.threshold,
            look_again=calibration.look_again,
            false_alarm_rate=calibration.false_alarm_rate,
            guarantee_met=calibration.guarantee_met,
            calibration_groups=calibration.n,
            image_sizes=list(intake.sizes.values()),
            patch_scores=None if embedder.level == "global" else maps,
            # Half the threshold is where good parts live; twice is beyond doubt.
            map_scale=(0.5 * calibration.threshold, 2.0 * calibration.threshold),
            nearest=nearest,
            unreadable=intake.unreadable,
            whole_scores=np.array([one.whole_score for one in found], dtype=np.float64) if fitted.whole else None,
            vectors=np.array(whole, dtype=np.float32) if vectors else None,
            notes=notes,
            poses=poses,
            reading=reading,
            frame=fitted.frame,
            pixel_threshold=None if fitted.peaks is None else fitted.peaks.threshold,
            usual_score=fitted.usual_score,
            pixel_size=self.pixel_size,
        )

    def seen_as(self) -> str:
        """How images are looked at, in words: what was chosen at the fit.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        """
        fitted, embedder = self._fitted_and_embedder()
        height, width = embedder.frame.size
        words = [f"seen at {height} × {width} pixels (height × width)"]
        if embedder.frame.tiled:
            words.append("through {} × {} windows".format(*embedder.frame.count))
        if embedder.frame.region is not None:
            words.append(f"{100 * embedder.frame.region.share:.0f} % of them looked at")
        if fitted.fixture is not None:
            words.append(f"laid by a fixture (turned by at most {fitted.fixture.turn:g}°)")
        if embedder.level == "patch":
            words.append(f"{fitted.grid[0]} × {fitted.grid[1]} patches")
            words.append(f"an image's score is the mean of the highest {100 * fitted.top_share:g} % of them")
        if embedder.looks_twice:
            words.append(f"with a context of {embedder.context:g}")
        return ", ".join(words)

    def warm_up(self) -> Detector:
        """Compute once what the first picture, and the first full batch, would otherwise wait for.

        Weights are laid out for a number of pictures, and kernels made, when they are first needed. Returns the
        detector.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        """
        grey = np.full((*self.embedder.frame.size, 3), 128, dtype=np.uint8)
        for count in (self.embedder.batch_size, 1, 1):
            self.score([grey] * count)
        return self

    def open(self, images: Any) -> ImageSource:
        """New images as an `ImageSource` that reads them as those of the fit were read."""
        return open_source(images, replace(self.reading, value_range=self.fitted_.value_range))

    # ---------------------------------------------------------------- the threshold

    def at_rate(self, false_alarm_rate: float, *, look_again: float | None = None) -> Detector:
        """The same detector with the threshold for another false-alarm rate, in no time.

        Parameters
        ----------
        false_alarm_rate : float in (0, 1)
        look_again : float, optional
            A second, larger rate: images between the two thresholds get the verdict "look again".

        Raises
        ------
        ValueError
            If a rate is no share, or `look_again` is the smaller one.
        """
        return self._with(recalibration.at_rate(self.fitted_, false_alarm_rate, look_again))

    def at_threshold(self, threshold: float, *, look_again: float | None = None) -> Detector:
        """The same detector with an alarm threshold set by hand, such as one of `operating_points`.

        Parameters
        ----------
        threshold, look_again : float
            In the unit of the scores; an image alarms above the first, and is to be looked at again above the second.

        Raises
        ------
        ValueError
            If a threshold is no number, or `look_again` is the higher one.
        """
        return self._with(recalibration.at_threshold(self.fitted_, threshold, look_again))

    def recalibrate(
        self,
        good: Any,
        *,
        mode: Literal["replace", "extend"] = "replace",
        groups: Groups | None = None,
        on_unreadable: OnUnreadable = "skip",
        everything_is_good: bool = False,
    ) -> Detector:
        """The same detector with its threshold set from fresh good images, without a refit.

        With "replace" its promise is exact (split conformal): these images were not learnt from. It holds for the
        process that they come from, such as one under a changed light.

        Parameters
        ----------
        good : folder, paths, arrays, PIL images, tensor or ImageSource
            Good images that were not learnt from.
        mode : "replace" or "extend"
            Forget the scores that the threshold was set from, or add to them.
        groups, on_unreadable, everything_is_good : see `fit`

        Warns
        -----
        UserWarning
            If an image is far out among the others (a defect?), many seem to have been learnt from, or shots of one
            part are found.

        Raises
        ------
        ValueError
            If no image can be read, or groups do not match.
        UnreadableImageError
            With on_unreadable="raise".
        """
        source = self.open(good)
        if not everything_is_good:
            refuse_labelled_root(good, source)
        names = None if groups is None else group_names(groups, source.ids)
        scores = self.score(source, on_unreadable=on_unreadable, vectors=names is None)
        if scores.unreadable:
            warnings.warn(
                f"{len(scores.unreadable)} images cannot be read: {scores.unreadable[0].reason}", stacklevel=2
            )
        numbers = np.arange(len(scores))
        if names is not None:
            of_image = dict(zip(source.ids, names, strict=True))
            numbers = numbered([of_image[name] for name in scores.ids])
        elif len(scores) and scores.vectors is not None:
            numbers = duplicate_groups(scores.vectors.copy())  # torch warns of read-only arrays
            if found := describe_groups(numbers):
                warnings.warn(f"{found}; such pictures count as one", stacklevel=2)
        peaks = None
        if scores.patch_scores is not None:
            sizes = zip(scores.patch_scores, scores.image_sizes, strict=True)
            peaks = np.array([peak(grid, scores.frame, size) for grid, size in sizes])  # as laid, as those of the fit
        fitted = recalibration.recalibrated(self.fitted_, scores.scores, scores.ids, numbers, mode, peaks)
        for doubt in recalibration.doubts(self.fitted_, scores.scores, scores.ids):
            warnings.warn(doubt, stacklevel=2)
        return self._with(fitted)

    def add(
        self,
        good: Any,
        *,
        groups: Groups | None = None,
        calibrating: bool = True,
        on_unreadable: OnUnreadable = "skip",
        everything_is_good: bool = False,
    ) -> Detector:
        """The same detector that has learnt more good images, in the time that scoring them takes and a little more.

        The bank grows within its budget, the PCA stays, and the images calibrate as they score by this detector, which
        has not seen them; see `fitted.adding`.

        Parameters
        ----------
        good : as for `fit`
            Good images that were not learnt from.
        calibrating : bool
            Whether they are a fair sample of good images. False for those picked for their scores, such as false
            alarms: those are learnt, and the threshold stays as it is.
        groups, on_unreadable, everything_is_good : see `fit`

        Warns
        -----
        UserWarning
            As `recalibrate`, and if images vary otherwise than those that the PCA was learnt from.

        Raises
        ------
        ValueError
            If the scorer is not kNN or level="both", no image can be read, or groups do not match.
        UnreadableImageError
            With on_unreadable="raise".
        """
        fitted, embedder = self._fitted_and_embedder()
        require_bank(fitted)
        source, _ = open_training(
            good,
            replace(self.reading, value_range=fitted.value_range),
            everything_is_good=everything_is_good,
            variations=self.variations,
            random_state=self.random_state,
            workers=self.workers,
        )
        copies = source.copies if isinstance(source, VariedSource) else 1
        numbers = None if groups is None else numbered(group_names(groups, source.ids[::copies]))
        shown = source if fitted.fixture is None else RegisteredSource(source, fitted.fixture)
        stream = embed_source(
            embedder,
            shown,
            np.arange(len(source)),
            on_unreadable=on_unreadable,
            workers=self.workers,
            progress="add" if self.progress else None,
        )
        addition = Addition(source.ids, numbers, copies, calibrating, self.random_state)
        core = added(fitted, stream, addition)
        if isinstance(shown, RegisteredSource) and fitted.train.poses is not None:
            poses = np.concatenate([fitted.train.poses, shown.turns_and_shifts()])
            core = replace(core, train=replace(core.train, poses=poses))
        return self._with(core)

    def remove(self, ids: Iterable[str]) -> Detector:
        """The same detector without images that were bad after all, by their ids in `fitted_.train.ids`.

        Where many are removed, or many are like them, fit again; see `fitted.adding.removed`.

        Raises
        ------
        ValueError
            If the scorer is not kNN or level="both", an id is unknown, or too little would be left.
        """
        return self._with(removed(self.fitted_, [ids] if isinstance(ids, str) else ids))

    def stream(self, frames: Iterable[Any], *, channels: Channels = "rgb") -> Iterator[Verdict]:
        """Judge pictures as they come, one verdict each: for a camera in a loop of your own.

        Parameters
        ----------
        frames : arrays (H, W) or (H, W, 3), paths or bytes, in the order they were taken
            None, as OpenCV gives where grabbing failed, gets "no verdict".
        channels : "rgb" or "bgr"
            Order of the channels in arrays; OpenCV's is "bgr".

        Yields
        ------
        Verdict
            "no verdict" for what cannot be judged: unreadable, of another shape, black, saturated, blurred beyond what
            the good ones were, or the same as the one before.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        ValueError
            For an order of channels that there is not.

        Examples
        --------
        >>> from anomalib_lite.images.synthetic import render_part
        >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(21)]
        >>> detector = Detector(image_size=64, false_alarm_rate=0.1).fit(parts[:20])
        >>> [verdict.verdict for verdict in detector.stream([parts[20], None, np.zeros((64, 64, 3), np.uint8)])]
        ['good', 'no verdict', 'no verdict']
        """
        judge = Judge(self, channels=channels)
        return (judge.judge(frame, f"frame_{number:06d}") for number, frame in enumerate(frames))

    @property
    def digest(self) -> str:
        """SHA-256 of everything that a file of it would hold but a backbone's weights: the same, the same scores."""
        fitted = self.fitted_
        if self._digest is None or self._digest[0] is not fitted:
            self._digest = fitted, model_file.digest(*to_arrays(fitted))
        return self._digest[1]

    def unfitted(self) -> Detector:
        """A detector of the same parameters that has learnt nothing, and shares the network."""
        other = copy.copy(self)
        other._learnt = None
        return other

    def _with(self, fitted: Fitted) -> Detector:
        other = copy.copy(self)
        rate = fitted.parameters.get("false_alarm_rate", self._chosen["false_alarm_rate"])
        object.__setattr__(other, "false_alarm_rate", rate)
        other._chosen = {**self._chosen, "false_alarm_rate": rate}
        other._learnt = fitted, self.embedder
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and self.__dict__.get("_made"):
            raise AttributeError(
                f"a detector's {name} cannot be set: what it has learnt would not follow. Use at_rate, at_threshold or "
                "recalibrate for the threshold, and a new Detector for anything else"
            )
        super().__setattr__(name, value)

    # ---------------------------------------------------------------- storing

    def config(self) -> dict[str, Any]:
        """Everything that was chosen and what became of it, JSON-able."""
        return {
            **self._storable_parameters(),
            **self.embedder.describe(),
            "level": self._chosen["level"],
            "device": str(self.embedder.device),
            "scorer": self.scorer.name,
            "scorer_parameters": self.scorer.parameters(),
            "whiten": self.whiten,
        }

    def _storable_parameters(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-able; without weights, which a file names by their fingerprint."""
        scorer, layers = self._chosen["scorer"], self._chosen["layers"]
        return {
            **{name: value for name, value in self._chosen.items() if name not in ("weights", "progress")},
            "layers": layers if layers is None or isinstance(layers, str) else list(layers),
            "variations": None if self.variations is None else self.variations.to_dict(),
            "scorer": scorer if isinstance(scorer, str) else {"name": scorer.name, "parameters": scorer.parameters()},
        }

    def save(self, path: str | os.PathLike[str], *, include_backbone: bool | None = None) -> Path:
        """Write the fitted detector to one .safetensors file, atomically.

        Parameters
        ----------
        path : path
        include_backbone : bool, optional
            Store the backbone's weights too, so that the file loads on a machine that does not have them. By default
            as in the file it was loaded from, and not after a fit.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        OSError
            If the file cannot be written; an older file is left as it was.
        ValueError
            If the scorer is of a class of your own, which the file could not bring back.
        """
        arrays, values = to_arrays(self.fitted_)
        if self._with_backbone if include_backbone is None else include_backbone:
            arrays.update({f"backbone.{key}": value for key, value in self.embedder.parameters().items()})
        return model_file.save_file(path, arrays, values)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: Weights | None = None,
        download: bool = False,
        device: str | None = None,
        dtype: str | None = None,
        engine: str | None = None,
        batch_size: int | None = None,
        workers: int | None = None,
        max_pixels: int | None = None,
        progress: bool = False,
    ) -> Detector:
        """Read a detector written by `save`. Nothing in the file is executed.

        Parameters
        ----------
        path : path
        weights : optional
            The weights of the backbone it was fitted with, unless it is built in, stored in the file, or torchvision's.
        download : bool
            Fetch torchvision's weights if they are not on this machine; a file from a stranger reaches no network by
            itself.
        device, dtype, engine, batch_size, workers, max_pixels : as for `Detector`
            By default as they were chosen for the fit, but that a device or an engine that this machine lacks becomes
            "auto", and a dtype "auto" the one it was fitted in, so that scores stay the same; only bf16 becomes float32
            where that is quicker. What was fitted in "int8" can only be computed so, and nothing else can.
        progress : as for `Detector`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If it is no detector, is damaged, is of another version, or the backbone's weights are not those
            it was fitted with.
        WeightsError
            If the backbone's weights cannot be had.
        """
        given = {
            "device": device,
            "dtype": dtype,
            "engine": engine,
            "batch_size": batch_size,
            "workers": workers,
            "max_pixels": max_pixels,
        }
        names = inspect.signature(cls).parameters.keys() - {"weights", "progress"}
        make = functools.partial(cls, progress=progress)
        detector, fitted, embedder, with_backbone = open_model(
            path, make, names, weights=weights, download=download, given=given
        )
        detector._learnt, detector._with_backbone = (fitted, embedder), with_backbone
        detector._region = None if fitted.frame is None else fitted.frame.region
        return detector


def fit(images: Any, *, groups: Groups | None = None, everything_is_good: bool = False, **parameters: Any) -> Detector:
    """Fit a detector on good images; see `Detector.fit`, and `Detector` for the parameters.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> good = [render_part(np.random.default_rng(i), 64)[0] for i in range(8)]
    >>> fit(good, image_size=64).n_train_
    8
    """
    return Detector(**parameters).fit(images, groups=groups, everything_is_good=everything_is_good)


def score(detector: Detector, images: Any) -> Scores:
    """Score new images with a fitted detector; the same as `detector.score(images)`."""
    return detector.score(images)
