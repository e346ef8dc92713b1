"""The detector: embedding, reduction, scorer and calibration, fitted on good images and kept together.

`fit`, `score`, the command line and the benchmarks all go through `Detector`. There is one preprocessing, in the
embedder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from anomalib_lite.embedding.embedder import BUILTIN, Embedder, Level
from anomalib_lite.embedding.streaming import EmbeddedImage, OnUnreadable, embed_source
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.fitted.fitting import Fitted, Intake, fit_global, fit_patches
from anomalib_lite.fitted.storing import load_detector, save_detector
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.rotation import RotatedSource
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.results import Nearest, Scores
from anomalib_lite.scoring import KNNScorer, Scorer, ScorerName, image_score, make_scorer
from anomalib_lite.scoring.knn import Selection
from anomalib_lite.scoring.reduction import PCA, Reduction, Standardizer

# Dimensions of patch vectors after PCA: 95 % of the variance of ResNet18's on metal_nut, 99 % on bottle.
_PATCH_COMPONENTS = 128


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
    level : "patch" or "global"
        A grid of vectors per image (gives heat maps), or one vector per image.
    image_size : int, optional
        Side in pixels that images are resized to; default: the backbone's own. Time grows with its square.
    scorer : "knn", "kmeans", "dbscan", "subspace", or a Scorer
        How rows are compared with good ones. A name takes the parameters below; an instance brings its own
        (one of another class than those four cannot be saved).
    bank_size, selection, k, trim : see `scoring.KNNScorer`
    n_clusters : int, "silhouette", or "auto"
        For kmeans. "auto" is 1024 centroids for patches, 32 for global vectors.
    eps, min_samples : see `scoring.DBSCANScorer`
    n_components : int, float in (0, 1), None, or "auto"
        PCA before the scorer: components, share of variance, or none. "auto" is 128 for patches, none for global
        vectors (standardised instead) and for subspace, which has a PCA of its own.
    whiten : bool or "auto"
        Scale components to unit variance; "auto" does for kmeans and dbscan on patches.
    rotations : int
        Learn every training image at this many angles; for parts that may lie at any angle, and few images.
    top_share : float in (0, 1]
        Patch level: the image score is the mean of this share of the largest patch scores.
    false_alarm_rate : float in (0, 1)
        Share of good images that may alarm; sets the threshold.
    calibration_images : int
        Patch level: images that set it at most. 1000 are enough for a rate of 0.1 %; each costs its scoring.
    device, dtype : "auto", or "cpu" / "cuda", "float32" / "bfloat16"
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
        level: Level = "patch",
        image_size: int | None = None,
        scorer: ScorerName | Scorer = "knn",
        bank_size: int = 4096,
        selection: Selection = "k-center",
        k: int = 2,
        trim: float = 0.0,
        n_clusters: int | Literal["silhouette", "auto"] = "auto",
        eps: float | Literal["knee"] = "knee",
        min_samples: int = 5,
        n_components: int | float | Literal["auto"] | None = "auto",
        whiten: bool | Literal["auto"] = "auto",
        rotations: int = 1,
        top_share: float = 0.01,
        false_alarm_rate: float = 0.01,
        calibration_images: int = 1000,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        workers: int | None = None,
        random_state: int = 0,
        progress: bool = False,
    ):
        if not 0 < top_share <= 1:
            raise ValueError(f"top_share={top_share} is a share of patches, in (0, 1]")
        if not 0 < false_alarm_rate < 1:
            raise ValueError(f"false_alarm_rate={false_alarm_rate} is a share of good images, in (0, 1)")
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size} is the number of images per forward pass, at least 1")
        if random_state < 0:
            raise ValueError(f"random_state={random_state} is a seed, not negative")
        if calibration_images < 1:
            raise ValueError(f"calibration_images={calibration_images}; at least 1")
        if rotations < 1:
            raise ValueError(f"rotations={rotations}; at least 1, the image as it is")
        self.rotations = rotations
        self.top_share = top_share
        self.false_alarm_rate = false_alarm_rate
        self.calibration_images = calibration_images
        self.workers = workers
        self.random_state = random_state
        self.progress = progress
        self.scorer = (
            make_scorer(
                scorer,
                level,
                bank_size=bank_size,
                selection=selection,
                k=k,
                trim=trim,
                n_clusters=n_clusters,
                eps=eps,
                min_samples=min_samples,
                random_state=random_state,
            )
            if isinstance(scorer, str)
            else scorer
        )
        self.n_components = n_components
        self.whiten = self.scorer.name in ("kmeans", "dbscan") and level == "patch" if whiten == "auto" else whiten
        self.embedder = Embedder(
            backbone,
            layers=layers,
            level=level,
            weights=weights,
            image_size=image_size,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
        )

    # ---------------------------------------------------------------- fitting

    def fit(self, images: Any, *, on_unreadable: OnUnreadable = "skip") -> Detector:
        """Learn from good images.

        Memory is bounded whatever their number (but for the ids); time is one forward pass per image,
        and a second one for up to `calibration_images` when there are too many to keep for calibration.

        Parameters
        ----------
        images : folder, paths, arrays, PIL images, tensor or ImageSource
            Good images; see `images.open_source`.
        on_unreadable : "skip" or "raise"
            "skip" lists unreadable images in `unreadable_` and goes on.

        Raises
        ------
        NoGoodImagesError
            If fewer than two images can be read (three for dbscan and at the global level); the message lists
            the first reasons.
        UnreadableImageError
            With on_unreadable="raise".
        ValueError
            If images are all the same, or parameters do not fit their number.
        """
        source: ImageSource = open_source(images)
        if self.rotations > 1:
            source = RotatedSource(source, self.rotations)
        order = np.random.default_rng(self.random_state).permutation(len(source))
        intake = Intake()
        passes = iter(("fit", "calibrate"))

        def embed(indices: np.ndarray) -> Iterator[EmbeddedImage | UnreadableImage]:
            return self._embedded(source, indices, on_unreadable, next(passes))

        if self.embedder.level == "patch":
            fitted = fit_patches(
                embed,
                order,
                intake,
                make_reduction=self._new_reduction,
                make_scorer=self._new_scorer,
                top_share=self.top_share,
                false_alarm_rate=self.false_alarm_rate,
                random_state=self.random_state,
                calibration_images=self.calibration_images,
                copies=self.rotations,
            )
        else:
            fitted = fit_global(
                embed,
                order,
                intake,
                make_reduction=self._new_reduction,
                make_scorer=self._new_scorer,
                false_alarm_rate=self.false_alarm_rate,
                copies=self.rotations,
            )
        # A file that cannot be read is one file, at however many angles it was asked for.
        self.unreadable_ = [
            UnreadableImage(entry.index // self.rotations, entry.id, entry.reason)
            for entry in sorted(intake.unreadable, key=lambda entry: entry.index)
            if entry.index % self.rotations == 0
        ]
        self.train_ids_ = list(source.ids)
        self.train_sizes_ = np.array([intake.sizes.get(i, (0, 0)) for i in range(len(source))], dtype=np.int64)
        self.n_train_ = len({index // self.rotations for index in intake.sizes})
        self.scorer = fitted.scorer
        self.fitted_ = fitted
        return self

    def _new_scorer(self) -> Scorer:
        """An unfitted scorer with the parameters asked for."""
        return type(self.scorer)(**self.scorer.parameters())

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

    def _embedded(
        self, source: ImageSource, indices: np.ndarray, on_unreadable: OnUnreadable, what: str
    ) -> Iterator[EmbeddedImage | UnreadableImage]:
        return embed_source(
            self.embedder,
            source,
            indices,
            on_unreadable=on_unreadable,
            workers=self.workers,
            progress=what if self.progress else None,
        )

    # ---------------------------------------------------------------- scoring

    def score(self, images: Any, *, on_unreadable: OnUnreadable = "skip") -> Scores:
        """Score new images.

        Parameters
        ----------
        images : folder, path or paths, arrays, PIL images, tensor or ImageSource
        on_unreadable : "skip" or "raise"
            "skip" lists unreadable images in the result and goes on.

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
        fitted = self._require_fitted()
        source = open_source(images)
        intake = Intake()
        ids: list[str] = []
        image_scores: list[float] = []
        maps: list[np.ndarray] = []
        nearest: list[Nearest] = []
        stream = self._embedded(source, np.arange(len(source)), on_unreadable, "score")
        for image in intake.readable(stream):
            rows = fitted.reduction.transform(image.rows)
            if isinstance(fitted.scorer, KNNScorer):
                distances, bank_rows = fitted.scorer.neighbors(rows)
                patch_scores = distances.mean(axis=1, dtype=np.float64)
                worst = int(patch_scores.argmax())
                nearest.append(self._nearest(worst, image, int(bank_rows[worst, 0]), float(distances[worst, 0])))
            else:
                patch_scores = fitted.scorer.score(rows)
            ids.append(image.id)
            image_scores.append(image_score(patch_scores, self.top_share))
            maps.append(patch_scores.reshape(fitted.grid).astype(np.float32))
        scores = np.array(image_scores, dtype=np.float64)
        calibration = fitted.calibration
        return Scores(
            ids=ids,
            scores=scores,
            p_values=calibration.p_values(scores),
            alarms=calibration.alarms(scores),
            threshold=calibration.threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            guarantee_met=calibration.guarantee_met,
            image_sizes=list(intake.sizes.values()),
            patch_scores=None
            if self.embedder.level == "global"
            else np.array(maps, dtype=np.float32).reshape(-1, *fitted.grid),
            # Half the threshold is where good parts live; twice is beyond doubt.
            map_scale=(0.5 * calibration.threshold, 2.0 * calibration.threshold),
            nearest=nearest if isinstance(fitted.scorer, KNNScorer) else None,
            unreadable=intake.unreadable,
        )

    def _nearest(self, patch: int, image: EmbeddedImage, bank_row: int, distance: float) -> Nearest:
        grid = self.fitted_.grid
        train_image, train_patch = (int(value) for value in self.fitted_.origins[bank_row])
        height, width = (int(value) for value in self.train_sizes_[train_image])
        return Nearest(
            box=_box(patch, grid, image.original_size),
            train_id=self.train_ids_[train_image],
            train_box=_box(train_patch, grid, (height, width)),
            distance=distance,
        )

    def _require_fitted(self) -> Fitted:
        if not hasattr(self, "fitted_"):
            raise RuntimeError("this detector is not fitted yet; call fit(images) or Detector.load(path)")
        return self.fitted_

    # ---------------------------------------------------------------- storing

    def config(self) -> dict[str, Any]:
        """Everything that was chosen, JSON-able."""
        return {
            **self.embedder.describe(),
            "dtype": str(self.embedder.dtype).removeprefix("torch."),
            "device": str(self.embedder.device),
            "scorer": self.scorer.name,
            "scorer_parameters": self.scorer.parameters(),
            "n_components": self.n_components,
            "whiten": self.whiten,
            "rotations": self.rotations,
            "top_share": self.top_share,
            "false_alarm_rate": self.false_alarm_rate,
            "random_state": self.random_state,
        }

    def save(self, path: str | os.PathLike[str], *, include_backbone: bool = False) -> Path:
        """Write the fitted detector to one .safetensors file, atomically.

        Parameters
        ----------
        path : path
        include_backbone : bool
            Store the backbone's weights too, so that the file loads on a machine that does not have them.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        OSError
            If the file cannot be written; an older file is left as it was.
        ValueError
            If the scorer is of a class of your own, which the file could not bring back.
        """
        return save_detector(self, path, include_backbone=include_backbone)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: Weights | None = None,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int = 8,
        workers: int | None = None,
        progress: bool = False,
    ) -> Detector:
        """Read a detector written by `save`. Nothing in the file is executed.

        Parameters
        ----------
        path : path
        weights : optional
            The weights of the backbone it was fitted with, unless it is built in, stored in the file, or torchvision's.
        device, batch_size, workers, progress : as for `Detector`
        dtype : as for `Detector`, but that "auto" keeps to float32 if it was fitted in it, so that scores stay the same

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If it is no detector, is damaged, is of a newer version, or the backbone's weights are not those
            it was fitted with.
        WeightsError
            If the backbone's weights cannot be had.
        """
        return load_detector(
            cls,
            path,
            weights=weights,
            device=device,
            dtype=dtype,
            batch_size=batch_size,
            workers=workers,
            progress=progress,
        )


def fit(images: Any, **parameters: Any) -> Detector:
    """Fit a detector on good images; parameters are those of `Detector`.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> good = [render_part(np.random.default_rng(i), 64)[0] for i in range(8)]
    >>> fit(good, image_size=64).n_train_
    8
    """
    return Detector(**parameters).fit(images)


def score(detector: Detector, images: Any) -> Scores:
    """Score new images with a fitted detector; the same as `detector.score(images)`."""
    return detector.score(images)


def _box(patch: int, grid: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Pixels (left, top, right, bottom) of a patch of a grid in an image of `size` (height, width)."""
    row, column = divmod(patch, grid[1])
    height, width = size
    return (
        round(column * width / grid[1]),
        round(row * height / grid[0]),
        round((column + 1) * width / grid[1]),
        round((row + 1) * height / grid[0]),
    )
