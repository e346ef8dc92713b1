"""The detector: embedding, reduction, scorer and calibration, fitted on good images and kept together.

`fit` streams the images once in random order: the first of them teach the PCA, all of them fill the scorer's rows, and
each is scored as if it had not been among them to calibrate the threshold. `score` takes new images the same way
through. There is one preprocessing, in the embedder; images are decoded while the network runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tqdm import tqdm

from anomalib_lite import persistence
from anomalib_lite.calibration import Calibration, CrossFit
from anomalib_lite.collecting import RowCollector
from anomalib_lite.embedding.embedder import BUILTIN, Embedder, Level
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, load
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.persistence import ModelFileError
from anomalib_lite.reduction import PCA, Reduction, Standardizer, restore_reduction
from anomalib_lite.results import Nearest, Scores
from anomalib_lite.scoring import SCORERS, KNNScorer, Scorer

ScorerName = Literal["knn", "kmeans", "dbscan", "subspace"]

# Dimensions of patch vectors after PCA: 95 % of the variance of ResNet18's on the development sets.
_PATCH_COMPONENTS = 128
# Embeddings held back to learn the PCA from, and reduced ones held back for calibration.
_SAMPLE_BYTES = 128 * 2**20
_HELD_BYTES = 128 * 2**20
# Images that calibrate the threshold at most: enough for a false-alarm rate of 0.1 %.
_CALIBRATION_IMAGES = 1000


class NoGoodImagesError(ValueError):
    """Too few readable images to learn from."""


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
        How rows are compared with good ones. A name takes the parameters below; an instance brings its own.
    bank_size, selection, k, trim : see `scoring.KNNScorer`
    n_clusters : int, "silhouette", or "auto"
        For kmeans. "auto" is 1024 centroids for patches, the silhouette's count for global vectors.
    eps, min_samples : see `scoring.DBSCANScorer`
    n_components : int, float in (0, 1), None, or "auto"
        PCA before the scorer: components, share of variance, or none. "auto" is 128 for patches, none for global
        vectors (standardised instead) and for subspace, which has a PCA of its own.
    whiten : bool or "auto"
        Scale components to unit variance; "auto" does for kmeans and dbscan on patches.
    top_share : float in (0, 1]
        Patch level: the image score is the mean of this share of the largest patch scores.
    false_alarm_rate : float in (0, 1)
        Share of good images that may alarm; sets the threshold.
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
        selection: Literal["k-center", "random", "full"] = "k-center",
        k: int = 2,
        trim: float = 0.0,
        n_clusters: int | Literal["silhouette", "auto"] = "auto",
        eps: float | Literal["knee"] = "knee",
        min_samples: int = 5,
        n_components: int | float | Literal["auto"] | None = "auto",
        whiten: bool | Literal["auto"] = "auto",
        top_share: float = 0.01,
        false_alarm_rate: float = 0.01,
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
        self.top_share = top_share
        self.false_alarm_rate = false_alarm_rate
        self.workers = workers
        self.random_state = random_state
        self.progress = progress
        self.scorer = (
            _make_scorer(
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

    def fit(self, images: Any, *, on_unreadable: Literal["skip", "raise"] = "skip") -> Detector:
        """Learn from good images.

        Memory is bounded whatever their number (but for the ids); time is one forward pass per image,
        and a second one for up to 1000 images when there are too many to keep for calibration.

        Parameters
        ----------
        images : folder, paths, arrays, PIL images, tensor or ImageSource
            Good images; see `images.open_source`.
        on_unreadable : "skip" or "raise"
            "skip" lists unreadable images in `unreadable_` and goes on.

        Raises
        ------
        NoGoodImagesError
            If fewer than two images can be read; the message lists the first reasons.
        UnreadableImageError
            With on_unreadable="raise".
        ValueError
            If images are all the same, or parameters do not fit their number.
        """
        source = open_source(images)
        order = np.random.default_rng(self.random_state).permutation(len(source))
        unreadable: list[UnreadableImage] = []
        sizes: dict[int, tuple[int, int]] = {}
        stream = self._stream(source, order, unreadable, sizes, on_unreadable, "fit")
        fitted = self._fit_patches(stream, source, sizes) if self.embedder.level == "patch" else self._fit_global(stream)
        reduction, scorer, origins, calibration = fitted
        self.unreadable_ = unreadable
        self.train_ids_ = list(source.ids)
        self.train_sizes_ = np.array([sizes.get(i, (0, 0)) for i in range(len(source))], dtype=np.int64)
        self.n_train_ = len(sizes)
        self.origins_ = origins
        self.reduction_ = reduction
        self.calibration_ = calibration
        self.scorer = scorer
        return self

    def _fit_patches(
        self, stream: Iterator[tuple[int, np.ndarray]], source: ImageSource, sizes: dict[int, tuple[int, int]]
    ) -> tuple[Reduction, Scorer, np.ndarray, Calibration]:
        sample: list[tuple[int, np.ndarray]] = []
        sampled_bytes = 0
        for i, grid in stream:
            sample.append((i, grid))
            sampled_bytes += grid.nbytes
            if sampled_bytes >= _SAMPLE_BYTES:
                break
        _require_two(sample, sizes, self)
        self._grid = sample[0][1].shape[:2]
        reduction = self._new_reduction(sample[0][1].shape[-1])
        reduction.fit(_concatenated([_rows(grid) for _, grid in sample]))

        scorer = self.scorer
        collector = RowCollector(
            scorer.max_rows,
            coreset_size=scorer.bank_size if isinstance(scorer, KNNScorer) and scorer.selection == "k-center" else None,
            random_state=self.random_state,
        )
        held: dict[int, np.ndarray] = {}
        held_bytes = 0

        def take(i: int, grid: np.ndarray) -> None:
            nonlocal held_bytes
            rows = reduction.transform(_rows(grid))
            collector.add(rows, i)
            if held_bytes < _HELD_BYTES and len(held) < _CALIBRATION_IMAGES:
                held[i] = rows
                held_bytes += rows.nbytes

        while sample:
            take(*sample.pop(0))
        for i, grid in stream:
            take(i, grid)

        X, origins = collector.rows()
        groups = origins[:, 0]
        scorer = _refreshed(scorer).fit(X, groups)
        leave_out = (
            scorer if isinstance(scorer, KNNScorer) else CrossFit(lambda: _refreshed(scorer)).fit(X, groups)
        )
        origins = origins[scorer.bank_rows_] if isinstance(scorer, KNNScorer) else origins[:0]
        del X
        scores = [
            self._image_score(leave_out.score_excluding(rows, np.full(len(rows), i)))
            for i, rows in self._calibration_rows(held, reduction, source, sizes)
        ]
        return reduction, scorer, origins, Calibration(np.array(scores), self.false_alarm_rate)

    def _calibration_rows(
        self, held: dict[int, np.ndarray], reduction: Reduction, source: ImageSource, sizes: dict[int, tuple[int, int]]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Reduced rows of the calibration images: those held back, then, if there are more, others read again."""
        yield from held.items()
        rest = [i for i in sizes if i not in held][: _CALIBRATION_IMAGES - len(held)]
        held.clear()
        if rest:
            for i, grid in self._stream(source, np.array(rest), [], {}, "skip", "calibrate"):
                yield i, reduction.transform(_rows(grid))

    def _fit_global(
        self, stream: Iterator[tuple[int, np.ndarray]]
    ) -> tuple[Reduction, Scorer, np.ndarray, Calibration]:
        vectors = list(stream)
        _require_two(vectors, dict.fromkeys((i for i, _ in vectors), (0, 0)), self)
        X = np.stack([vector for _, vector in vectors])
        images = np.array([i for i, _ in vectors])
        # With few more images than dimensions a PCA knows the images it was learnt from, so every fold
        # learns its own.
        pipeline = _Pipeline(self._new_reduction(X.shape[1]), _refreshed(self.scorer)).fit(X, images)
        folds = CrossFit(
            lambda: _Pipeline(self._new_reduction(X.shape[1]), _refreshed(self.scorer)), n_folds=10
        ).fit(X, images)
        calibration = Calibration(folds.score_excluding(X, images), self.false_alarm_rate)
        scorer = pipeline.scorer
        rows = scorer.bank_rows_ if isinstance(scorer, KNNScorer) else np.arange(0)
        origins = np.stack([images[rows], np.zeros(len(rows), dtype=np.int64)], axis=1)
        return pipeline.reduction, scorer, origins, calibration

    def _new_reduction(self, dimension: int) -> Reduction:
        if self.n_components == "auto":
            if self.embedder.level == "global":
                return Standardizer()
            if self.scorer.name == "subspace":
                return PCA(None)
            return PCA(min(_PATCH_COMPONENTS, dimension), whiten=self.whiten)
        if self.n_components is None:
            return Standardizer()
        return PCA(self.n_components, whiten=self.whiten, standardize=self.embedder.level == "global")

    # ---------------------------------------------------------------- scoring

    def score(self, images: Any, *, on_unreadable: Literal["skip", "raise"] = "skip") -> Scores:
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
        if not hasattr(self, "calibration_"):
            raise RuntimeError("this detector is not fitted yet; call fit(images) or Detector.load(path)")
        source = open_source(images)
        unreadable: list[UnreadableImage] = []
        sizes: dict[int, tuple[int, int]] = {}
        ids: list[str] = []
        image_scores: list[float] = []
        maps: list[np.ndarray] = []
        nearest: list[Nearest] = []
        stream = self._stream(source, np.arange(len(source)), unreadable, sizes, on_unreadable, "score")
        for i, embedding in stream:
            rows = self.reduction_.transform(_rows(embedding))
            if isinstance(self.scorer, KNNScorer):
                distances, bank_rows = self.scorer.neighbors(rows)
                patch_scores = distances.mean(axis=1, dtype=np.float64)
                worst = int(patch_scores.argmax())
                nearest.append(
                    self._nearest(worst, sizes[i], int(bank_rows[worst, 0]), float(distances[worst, 0]))
                )
            else:
                patch_scores = self.scorer.score(rows)
            ids.append(source.ids[i])
            image_scores.append(self._image_score(patch_scores))
            if embedding.ndim == 3:
                maps.append(patch_scores.reshape(embedding.shape[:2]).astype(np.float32))
        scores = np.array(image_scores, dtype=np.float64)
        calibration = self.calibration_
        return Scores(
            ids=ids,
            scores=scores,
            p_values=calibration.p_values(scores),
            alarms=calibration.alarms(scores),
            threshold=calibration.threshold,
            false_alarm_rate=calibration.false_alarm_rate,
            guarantee_met=calibration.guarantee_met,
            image_sizes=list(sizes.values()),
            patch_scores=None if self.embedder.level == "global" else _stacked(maps),
            # Half the threshold is where good parts live; twice is beyond doubt.
            map_scale=(0.5 * calibration.threshold, 2.0 * calibration.threshold),
            nearest=nearest if isinstance(self.scorer, KNNScorer) else None,
            unreadable=unreadable,
        )

    def _nearest(self, patch: int, size: tuple[int, int], bank_row: int, distance: float) -> Nearest:
        image, train_patch = (int(value) for value in self.origins_[bank_row])
        height, width = (int(value) for value in self.train_sizes_[image])
        grid = self._grid if self.embedder.level == "patch" else (1, 1)
        return Nearest(
            box=_box(patch, grid, size),
            train_id=self.train_ids_[image],
            train_box=_box(train_patch, grid, (height, width)),
            distance=distance,
        )

    def _image_score(self, patch_scores: np.ndarray) -> float:
        """Mean of the largest `top_share` of patch scores, of one at least."""
        count = max(1, int(len(patch_scores) * self.top_share))
        return float(np.partition(patch_scores, -count)[-count:].mean())

    def _stream(
        self,
        source: ImageSource,
        order: np.ndarray,
        unreadable: list[UnreadableImage],
        sizes: dict[int, tuple[int, int]],
        on_unreadable: Literal["skip", "raise"],
        what: str,
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Embed images in `order`: yields (index, embedding), and notes sizes and unreadable ones on the way."""
        batch_size = self.embedder.batch_size
        loaded = load(
            source,
            order.tolist(),
            size=self.embedder.image_size,
            # One image gains nothing from threads, and starting them takes longer than decoding it.
            workers=0 if len(order) == 1 else self.workers,
            prefetch=2 * batch_size,
            on_unreadable=on_unreadable,
        )
        bar = tqdm(loaded, desc=what, total=len(order), unit="image", file=sys.stderr, disable=not self.progress)
        batch: list[LoadedImage] = []

        def embedded() -> Iterator[tuple[int, np.ndarray]]:
            grids = self.embedder.embed(np.stack([image.pixels for image in batch]))
            for image, grid in zip(batch, grids, strict=True):
                yield image.index, grid
            batch.clear()

        for image in bar:
            if isinstance(image, UnreadableImage):
                unreadable.append(image)
                continue
            sizes[image.index] = image.original_size
            batch.append(image)
            if len(batch) == batch_size:
                yield from embedded()
        if batch:
            yield from embedded()

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
        """
        if not hasattr(self, "calibration_"):
            raise RuntimeError("this detector is not fitted yet; there is nothing to save")
        parts = {
            "reduction": self.reduction_.state(),
            "scorer": self.scorer.state(),
            "calibration": self.calibration_.state(),
        }
        arrays = {f"{part}.{key}": np.asarray(value) for part, state in parts.items() for key, value in state.items()}
        arrays["train.origins"] = self.origins_
        arrays["train.sizes"] = self.train_sizes_
        if include_backbone:
            arrays.update({f"backbone.{key}": value for key, value in self.embedder.stored_weights().items()})
        manifest = {
            "config": self.config(),
            "grid": list(getattr(self, "_grid", (1, 1))),
            "train_ids": self.train_ids_,
            "n_train": self.n_train_,
        }
        return persistence.save_file(path, arrays, manifest)

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
        device, dtype, batch_size, workers, progress : as for `Detector`

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
        arrays, manifest = persistence.load_file(path)
        name = Path(path).name
        try:
            config = manifest["config"]
            stored = _part(arrays, "backbone")
            builtin = config["backbone"] == BUILTIN
            scorer = SCORERS[config["scorer"]].from_state(config["scorer_parameters"], _part(arrays, "scorer"))
            detector = cls(
                backbone=config["backbone"],
                layers=None if builtin else config["layers"],
                weights=None if builtin else (weights if weights is not None or not stored else stored),
                level=config["level"],
                image_size=config["image_size"],
                scorer=scorer,
                n_components=config["n_components"],
                whiten=config["whiten"],
                top_share=config["top_share"],
                false_alarm_rate=config["false_alarm_rate"],
                device=device,
                dtype=dtype,
                batch_size=batch_size,
                workers=workers,
                random_state=config["random_state"],
                progress=progress,
            )
            detector._grid = tuple(manifest["grid"])
            detector.train_ids_ = manifest["train_ids"]
            detector.n_train_ = manifest["n_train"]
            detector.train_sizes_ = arrays["train.sizes"]
            detector.origins_ = arrays["train.origins"]
            detector.unreadable_ = []
            detector.reduction_ = restore_reduction(_part(arrays, "reduction"))
            fingerprint = config["fingerprint"]
            calibration = Calibration.from_state(_part(arrays, "calibration"))
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ModelFileError(f"{name} is damaged: {error!r} is missing or malformed") from error
        if detector.embedder.fingerprint != fingerprint:
            raise ModelFileError(
                f"{name} was fitted with other weights of {config['backbone']} than those given: scores would be "
                f"meaningless (fingerprint {fingerprint[:12]}…, given {detector.embedder.fingerprint[:12]}…). Give the "
                "same weights file, or fit again"
            )
        detector.calibration_ = calibration
        return detector


class _Pipeline:
    """Reduction and scorer as one, so that cross-fitting leaves an image out of both."""

    def __init__(self, reduction: Reduction, scorer: Scorer):
        self.reduction = reduction
        self.scorer = scorer

    def fit(self, X: np.ndarray, groups: np.ndarray) -> _Pipeline:
        self.reduction.fit(X)
        self.scorer.fit(self.reduction.transform(X), groups)
        return self

    def score(self, X: np.ndarray) -> np.ndarray:
        return self.scorer.score(self.reduction.transform(X))


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


def _make_scorer(
    name: str,
    level: Level,
    *,
    bank_size: int,
    selection: Literal["k-center", "random", "full"],
    k: int,
    trim: float,
    n_clusters: int | Literal["silhouette", "auto"],
    eps: float | Literal["knee"],
    min_samples: int,
    random_state: int,
) -> Scorer:
    if name == "knn":
        return KNNScorer(bank_size=bank_size, selection=selection, k=k, trim=trim, random_state=random_state)
    if name == "kmeans":
        # Patches of parts are a continuum: many centroids tile it. Whole images fall into few groups.
        if n_clusters == "auto":
            n_clusters = 1024 if level == "patch" else "silhouette"
        from anomalib_lite.scoring import KMeansScorer

        return KMeansScorer(n_clusters=n_clusters, random_state=random_state)
    if name == "dbscan":
        from anomalib_lite.scoring import DBSCANScorer

        return DBSCANScorer(eps=eps, min_samples=min_samples, random_state=random_state)
    if name == "subspace":
        from anomalib_lite.scoring import SubspaceScorer

        return SubspaceScorer()
    raise ValueError(f"scorer={name!r}; choose one of {', '.join(SCORERS)}, or pass a Scorer")


def _refreshed(scorer: Scorer) -> Scorer:
    """An unfitted scorer with the same parameters."""
    return type(scorer)(**scorer.parameters())


def _require_two(sample: list[Any], sizes: dict[int, tuple[int, int]], detector: Detector) -> None:
    if len(sample) < 2:
        raise NoGoodImagesError(
            f"{len(sample)} readable image(s) to learn from; at least two good images are needed, some dozens are "
            "recommended"
        )


def _rows(embedding: np.ndarray) -> np.ndarray:
    """Patch grid (gh, gw, d) or vector (d,) as rows (n, d)."""
    return embedding.reshape(-1, embedding.shape[-1])


def _concatenated(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _stacked(maps: list[np.ndarray]) -> np.ndarray:
    return np.stack(maps) if maps else np.zeros((0, 1, 1), dtype=np.float32)


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


def _part(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = f"{name}."
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}
