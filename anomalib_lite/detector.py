"""The detector: parameters, an embedder, and after a fit the fitted core. Images in, `Scores` out.

`fit`, `score`, the command line and the benchmarks all go through `Detector`. What its methods do lies in `detecting/`;
here stand what they are called and what they promise.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from anomalib_lite.detecting.estimating import EstimatorHabits, require_one_kind
from anomalib_lite.detecting.laying import seen_as
from anomalib_lite.detecting.learning import learn
from anomalib_lite.detecting.making import made_of
from anomalib_lite.detecting.opening import open_model
from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.detecting.quality import Quality
from anomalib_lite.detecting.renewing import grown, recalibrated
from anomalib_lite.detecting.scoring import open_like_fitted, score_images
from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.embedder import Embedder, Level
from anomalib_lite.embedding.streaming import OnUnreadable
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.files import model_file
from anomalib_lite.fitted import recalibration
from anomalib_lite.fitted.adding import removed
from anomalib_lite.fitted.core import Fitted
from anomalib_lite.fitted.groups import Groups
from anomalib_lite.fitted.plan import CalibrationKind
from anomalib_lite.fitted.storing import to_arrays
from anomalib_lite.images.decoding import DEFAULT_READING
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.region import Region
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.variations import Variations
from anomalib_lite.judging import Channels, Judge, Verdict
from anomalib_lite.machine.integers import EngineName
from anomalib_lite.machine.progress import work
from anomalib_lite.results import Scores
from anomalib_lite.scoring import Scorer, ScorerName
from anomalib_lite.scoring.knn import Selection
from anomalib_lite.scoring.named import can_be_stored

F = TypeVar("F", bound=Callable[..., Any])
# Parameters that can be told in a line; of weights or a scorer of one's own it is their class.
_SHORT = (str, int, float, tuple, list, Variations)


class Detector(EstimatorHabits):
    """Finds what is unlike the good images it was fitted on.

    Parameters
    ----------
    backbone : str, default "builtin"
        "builtin" (no download), a torchvision classification network, or several side by side: "builtin+resnet18".
    layers : sequence of str or comma-separated str, optional
        Layers of the backbone; default: its own choice.
    weights : "imagenet", path, or state dict, optional
        Weights of a torchvision backbone; default: torchvision's, downloaded once. Of several, a folder with a file
        of each (``resnet18.pth``), or weights by name.
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
    roi : optional
        The region of interest: an image file or bool array (H, W) that is white there; boxes (left, top, right, bottom)
        or polygons [(x, y), ...], in pixels or, all below 1, in shares of width and height; or a JSON file of
        ``{"boxes": [...], "polygons": [...]}``. "auto" estimates the part from the training images (`diagnose` shows
        it). Nothing outside is learnt, scored or painted, and images of other proportions are unreadable.
    ignore : optional
        Areas in it that do not matter, such as a printed number, told in the same ways.
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
    bank_size : int
        For knn: vectors in the bank at most; memory and search time are proportional to it.
    selection : "k-center", "random" or "full"
        For knn: how the bank is filled when there are more rows than that; see `scoring.KNNScorer`.
    k : int
        For knn: neighbours averaged.
    trim : float in [0, 1)
        Share of patches that are not learnt from, for being farthest from those of other images: set it to the share of
        bad ones you fear among the good.
    n_clusters : int, "silhouette", or "auto"
        For kmeans. "auto" is 1024 centroids for patches, 32 for global vectors.
    eps : float or "knee"
        For dbscan: radius of a neighbourhood; "knee" takes it from the rows' distances, see `scoring.DBSCANScorer`.
    min_samples : int
        For dbscan: rows within eps, itself included, that make a core sample.
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
    max_pixels : int, default 100_000_000
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
    progress : bool, optional
        Show stages and how far they are on stderr. Default: in a terminal and in a notebook.

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
        progress: bool | None = None,
    ):
        chosen = {name: value for name, value in locals().items() if name != "self"}
        self._parameters = Parameters(**chosen)
        self._templates = made_of(self._parameters)
        # The core and what embeds for it, bound together: a thread that scores during a refit sees the old or the new.
        self._learnt: tuple[Fitted, Embedder] | None = None
        self._digest: tuple[Fitted, str] | None = None
        self._with_backbone = False
        self._region: Region | None = None  # of the model file it came from

    # What was chosen and made; `__setattr__` says why it cannot be set.
    quality = property(attrgetter("_parameters.quality"))
    tiles = property(attrgetter("_parameters.cut"))
    tile_overlap = property(attrgetter("_parameters.tile_overlap"))
    roi = property(attrgetter("_parameters.roi"))
    ignore = property(attrgetter("_parameters.ignore"))
    fixture = property(attrgetter("_parameters.turn"))
    pixel_size = property(attrgetter("_parameters.pixel_size"))
    scorer = property(attrgetter("_templates.scorer"))
    selection = property(attrgetter("_templates.selection"))
    n_components = property(attrgetter("_parameters.n_components"))
    whiten = property(attrgetter("_templates.whiten"))
    variations = property(attrgetter("_parameters.variations"))
    false_alarm_rate = property(attrgetter("_parameters.false_alarm_rate"))
    calibration = property(attrgetter("_parameters.calibration"))
    calibration_images = property(attrgetter("_parameters.calibration_images"))
    value_range = property(attrgetter("_parameters.stored_range"))
    reading = property(attrgetter("_parameters.reading"))
    workers = property(attrgetter("_parameters.workers"))
    random_state = property(attrgetter("_parameters.random_state"))
    progress = property(attrgetter("_parameters.progress"))

    def __repr__(self) -> str:
        usual = inspect.signature(Detector).parameters
        chosen = {
            name: value if isinstance(value, _SHORT) else type(value).__name__
            for name, value in self.parameters().items()
            if value is not usual[name].default and (not isinstance(value, _SHORT) or value != usual[name].default)
        }
        text = f"Detector({', '.join(f'{name}={value!r}' for name, value in chosen.items())})"
        if self._learnt is None:
            return f"<{text}, not fitted>"
        calibration = self._learnt[0].calibration
        return (
            f"<{text}, fitted on {self.n_train_} images: threshold {calibration.threshold:.4g}, false-alarm rate "
            f"{calibration.false_alarm_rate:.4g}{'' if calibration.guarantee_met else ', which is not promised'}>"
        )

    def parameters(self) -> dict[str, Any]:
        """The constructor's arguments, as they were given or left."""
        return self._parameters.given()

    # ---------------------------------------------------------------- fitting

    def fit(
        self,
        images: Any,
        y: Any = None,
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
        y : ignored if it has one value
            For scikit-learn's tools, which hand labels on.
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
            If images are all the same, parameters or groups do not fit them, a folder holds more than good images, or
            `y` says that images are of several kinds.
        """
        require_one_kind(y)
        self._learnt = learn(
            images,
            self._parameters,
            self._templates,
            region=self._region,
            groups=groups,
            on_unreadable=on_unreadable,
            everything_is_good=everything_is_good,
        )
        self._with_backbone = False
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
        return self._templates.embedder if self._learnt is None else self._learnt[1]

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
        core, embedder = self._fitted_and_embedder()
        return score_images(
            images,
            self._parameters,
            core,
            embedder,
            on_unreadable=on_unreadable,
            vectors=vectors,
            model=self._digest_of(core) if can_be_stored(core.scorer) else "",
        )

    def seen_as(self) -> str:
        """How images are looked at, in words: what was chosen at the fit.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        """
        return seen_as(*self._fitted_and_embedder())

    def explain(self) -> str:
        """When an image alarms, and what is promised of the false-alarm rate, in words; see `Calibration.explain`.

        Raises
        ------
        RuntimeError
            If the detector is not fitted.
        """
        return self.fitted_.calibration.explain()

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
        with work(False):
            for count in (self.embedder.batch_size, 1, 1):
                self.score([grey] * count)
        return self

    def open(self, images: Any) -> ImageSource:
        """New images as an `ImageSource` that reads them as those of the fit were read."""
        return open_like_fitted(images, self._parameters, self.fitted_)

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
        threshold : float
            In the unit of the scores; an image alarms above it.
        look_again : float, optional
            A lower one, above which an image is to be looked at again.

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
        groups : see `fit`
        on_unreadable : see `fit`
        everything_is_good : see `fit`

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
        core = recalibrated(
            good,
            self._parameters,
            *self._fitted_and_embedder(),
            mode=mode,
            groups=groups,
            on_unreadable=on_unreadable,
            everything_is_good=everything_is_good,
        )
        return self._with(core)

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
        groups : see `fit`
        on_unreadable : see `fit`
        everything_is_good : see `fit`

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
        core = grown(
            good,
            self._parameters,
            *self._fitted_and_embedder(),
            groups=groups,
            calibrating=calibrating,
            on_unreadable=on_unreadable,
            everything_is_good=everything_is_good,
        )
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
        return self._digest_of(self.fitted_)

    def _digest_of(self, fitted: Fitted) -> str:
        known = self._digest
        if known is None or known[0] is not fitted:
            known = fitted, model_file.digest(*to_arrays(fitted))
            self._digest = known
        return known[1]

    def unfitted(self) -> Detector:
        """A detector of the same parameters that has learnt nothing, and shares the network."""
        other = copy.copy(self)
        other._learnt = None
        return other

    def _with(self, fitted: Fitted) -> Detector:
        other = copy.copy(self)
        rate = fitted.parameters.get("false_alarm_rate", self.false_alarm_rate)
        other._parameters = replace(self._parameters, false_alarm_rate=rate)
        other._learnt = fitted, self.embedder
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_"):
            raise AttributeError(
                f"a detector's {name} cannot be set: what it has learnt would not follow. Use at_rate, at_threshold or "
                "recalibrate for the threshold, and a new Detector for anything else"
            )
        super().__setattr__(name, value)

    # ---------------------------------------------------------------- storing

    def config(self) -> dict[str, Any]:
        """Everything that was chosen and what became of it, JSON-able."""
        return {
            **self._parameters.stored(),
            **self.embedder.describe(),
            "level": self._parameters.level,
            "device": str(self.embedder.device),
            "scorer": self.scorer.name,
            "scorer_parameters": self.scorer.parameters(),
            "whiten": self.whiten,
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
        progress: bool | None = None,
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
        device : as for `Detector`, optional
            This and the next five are by default as they were chosen for the fit; a device that this machine lacks
            becomes "auto".
        dtype : as for `Detector`, optional
            "auto" becomes the one it was fitted in, so that scores stay the same; only bf16 becomes float32 where that
            is quicker. What was fitted in "int8" can only be computed so, and nothing else can.
        engine : as for `Detector`, optional
            One that this machine lacks becomes "auto".
        batch_size : as for `Detector`, optional
        workers : as for `Detector`, optional
        max_pixels : as for `Detector`, optional
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
        make = functools.partial(cls, progress=progress)
        detector, fitted, embedder, with_backbone = open_model(
            path, make, weights=weights, download=download, given=given
        )
        detector._learnt, detector._with_backbone = (fitted, embedder), with_backbone
        detector._region = None if fitted.frame is None else fitted.frame.region
        return detector


def _showing_parameters(function: F) -> F:
    """Let `help` and completion show the detector's parameters in place of a function's `**parameters`."""
    own = inspect.signature(function)
    named = [one for one in own.parameters.values() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    shown = own.replace(parameters=[*named, *inspect.signature(Detector).parameters.values()])
    function.__signature__ = shown  # type: ignore[attr-defined]
    return function


@_showing_parameters
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
    """Score new images with a fitted detector; the same as `detector.score(images)`.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> parts = [render_part(np.random.default_rng(i), 64)[0] for i in range(12)]
    >>> len(score(fit(parts[:8], image_size=64), parts[8:]))
    4
    """
    return detector.score(images)
