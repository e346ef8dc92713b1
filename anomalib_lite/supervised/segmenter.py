"""A U-Net on images with masks: where in a new image the defect is, learnt from drawn outlines of others."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.joined import only_one
from anomalib_lite.embedding.pixels import check_image_size, standardised
from anomalib_lite.embedding.weights import StoredWeights, Weights
from anomalib_lite.evaluation.pixel_metrics import PixelCurves, PixelMetrics
from anomalib_lite.images.loading import UnreadableImage, load
from anomalib_lite.images.sources import open_source
from anomalib_lite.machine.hardware import autocast, pick_device, pick_dtype
from anomalib_lite.scoring.aggregation import image_score
from anomalib_lite.supervised.augmentation import Augmentation
from anomalib_lite.supervised.batches import as_images
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledDataError, LabelledImages, open_labelled
from anomalib_lite.supervised.network_files import (
    State,
    checked,
    described_backbone,
    load_network,
    save_network,
    without_memory,
)
from anomalib_lite.supervised.splitting import Split, opened
from anomalib_lite.supervised.training import History, TrainingOptions, Validation, train
from anomalib_lite.supervised.unet import UNet, segmentation_loss, smoothed

_KIND = "segmenter"
_SIZE = 128
_SETTINGS: dict[str, Any] = {"depth": int, "width": int, "image_size": int, "grey": bool, "validation": str}
_LARGEST_MAP = 1 << 27  # values of one feature map at full resolution, 0.5 GB; several are alive at a time


@dataclass(frozen=True)
class Segmentation:
    """Where new images are thought defective.

    Attributes
    ----------
    ids : list of str, length n
    maps : float32 (n, s, s)
        Probability that a pixel is defective, at the size the network works at.
    image_sizes : list of (height, width)
    unreadable : list of UnreadableImage
    """

    ids: list[str]
    maps: np.ndarray
    image_sizes: list[tuple[int, int]]
    unreadable: list[UnreadableImage]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scores(self) -> np.ndarray:
        """Image scores (n,): the mean of the largest hundredth of the pixels; higher = more anomalous."""
        return np.array([image_score(pixels.ravel()) for pixels in self.maps], np.float64)

    def probability_map(self, i: int) -> np.ndarray:
        """Map `i` at the size of its image, float32 (H, W)."""
        height, width = self.image_sizes[i]
        return np.asarray(Image.fromarray(self.maps[i]).resize((width, height), Image.Resampling.BILINEAR))

    def mask(self, i: int) -> np.ndarray:
        """Pixels of image `i` that are likelier defective than not, bool (H, W)."""
        return self.probability_map(i) > 0.5


@dataclass(frozen=True)
class SegmentationOutcome:
    """Predicted against true masks: intersection over union and Dice of all pixels together, and the ranked metrics.

    `iou` and `dice` are None where no pixel is, or is thought, defective.
    """

    iou: float | None
    dice: float | None
    pixels: PixelMetrics


class Segmenter:
    """Outline defects, learnt from images with masks and from good ones.

    Parameters
    ----------
    depth : int
        Halvings of the resolution in the `UNet`.
    width : int
        Its channels before the first of them.
    encoder : str, optional
        A backbone whose frozen maps take the place of a learnt encoder, such as "builtin".
    layers : of that backbone, as for `Embedder`
    weights : of that backbone, as for `Embedder`
    image_size : int, optional
        Side in pixels; by default 128, or the backbone's own.
    grey : bool
        Take the colour away first.
    augmentation : Augmentation or None
        Of training images and their masks.
    validation : "learn" or "watch", as for `Classifier`
    device : as for `Embedder`
    dtype : as for `Embedder`
    **training : of `TrainingOptions`; by default 20 epochs, batches of 8 at 2e-3

    Attributes
    ----------
    history_ : History; split_ : Split; left_out_ : ids of defective images without a mask, which were not learnt from

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=4, n_good=2, n_defect=2, size=64)
    >>> segmenter = Segmenter(depth=2, width=4, image_size=64, epochs=1).fit(folder)
    >>> segmenter.history_.best_epoch
    1
    """

    def __init__(
        self,
        *,
        depth: int = 4,
        width: int = 16,
        encoder: str | None = None,
        layers: str | Sequence[str] | None = None,
        weights: Weights | None = None,
        image_size: int | None = None,
        grey: bool = False,
        augmentation: Augmentation | None = Augmentation(),  # noqa: B008 - frozen
        validation: Validation = "learn",
        device: str = "auto",
        dtype: str = "auto",
        **training: Any,
    ) -> None:
        if not 1 <= depth <= 12 or width < 1:
            raise ValueError(f"depth={depth}, width={width}: each is at least 1, and depth at most 12")
        if validation not in ("learn", "watch"):
            raise ValueError(f"validation={validation!r}; choose 'learn' or 'watch'")
        self.depth, self.width = depth, width
        self.validation = validation
        self.grey = grey
        self.augmentation = augmentation
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.embedder: Embedder | None = None
        if encoder is not None:
            only_one(encoder, "a segmenter")
            self.embedder = Embedder(
                encoder, layers=layers, weights=weights, image_size=image_size, device=device, dtype="float32"
            )
        self.image_size = self.embedder.image_size[0] if self.embedder else _SIZE if image_size is None else image_size
        check_image_size(self.image_size, smallest=2)
        multiple = 1 << (depth if encoder is None else 5)
        if self.image_size % multiple:
            raise ValueError(
                f"image_size={self.image_size}: the network halves it; give a multiple of {multiple}, or less depth"
            )
        if width * self.image_size**2 > _LARGEST_MAP:
            raise ValueError(
                f"image_size={self.image_size}, width={width}: one map of an image would take "
                f"{4e-9 * width * self.image_size**2:.1f} GB; give less of either, at most {4e-9 * _LARGEST_MAP:.1f} GB"
            )
        defaults = {"learning_rate": 2e-3, "batch_size": 8, "epochs": 20}
        self.options = TrainingOptions(**{**defaults, **training})

    def fit(
        self,
        images: str | os.PathLike[str] | LabelledImages,
        parts: Split | None = None,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        cache: CachedImages | None = None,
    ) -> Segmenter:
        """Learn from labelled images with masks; parameters as for `Classifier.fit`.

        Defective images without a mask are left out and listed in `left_out_`.

        Raises
        ------
        LabelledDataError
            If a mask has no image, a mask does not fit its image, or there is no mask to learn from.
        TrainingError
            If the loss stops being a number.
        """
        images = images if isinstance(images, LabelledImages) else open_labelled(images)
        check_masks(images)
        images, parts, cache = opened(images, parts, cache, random_state=self.options.random_state)
        usable = (parts.without_validation if self.validation == "learn" else parts).keeping(images.has_mask)
        if not images.defective[usable.train].any():
            raise LabelledDataError(
                f"{images.root}: no training image has a mask; put them into ground_truth/<kind>/<name>_mask.png"
            )
        pixels, masks = cache.pixels(self.image_size, grey=self.grey).values, cache.masks(self.image_size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.random_state)
            network = self._network().to(self.device).to(memory_format=torch.channels_last)

        def step(chosen: np.ndarray, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
            inputs = as_images(pixels[chosen], self.device)
            truth: Tensor | None = torch.from_numpy(masks[chosen][:, None]).to(self.device).float()
            if generator is not None and self.augmentation is not None:
                inputs, truth = self.augmentation(inputs, generator, truth)
            assert truth is not None
            with autocast(self.device, self.dtype):
                logits = network(standardised(inputs))
            right = ((logits.detach() > 0) == (truth > 0.5)).float().mean()
            return segmentation_loss(logits, truth), right

        # Defects are few and small: they are seen as often as good images.
        defective = images.defective[usable.train]
        sampling = np.where(defective, 0.5 / max(1, defective.sum()), 0.5 / max(1, (~defective).sum()))
        history = train(
            network,
            step,
            usable.train,
            usable.validation,
            replace(self.options, checkpoint=checkpoint),
            sampling=sampling,
            label="unet",
            identity={**self.config(), "ids": [images.ids[i] for i in usable.learning.tolist()]},
        )
        left_out = parts.learning[~images.has_mask[parts.learning]]
        self.left_out_ = [images.ids[i] for i in left_out.tolist()]
        self.network_, self.history_, self.split_ = network, history, parts
        return self

    def prepare(self, cache: CachedImages) -> float:
        """Decode every image of the cache, unless that is done; seconds per image that it took."""
        return cache.pixels(self.image_size, grey=self.grey).seconds_per_image

    def predict(self, images: Any, *, workers: int | None = None) -> Segmentation:
        """Probability maps of new images: whatever `open_source` takes.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        self._require_fitted()
        source = seen_by(open_source(images), grey=self.grey)
        ids: list[str] = []
        sizes: list[tuple[int, int]] = []
        maps: list[np.ndarray] = []
        unreadable: list[UnreadableImage] = []
        for image in load(source, size=self.image_size, workers=0 if len(source) == 1 else workers):
            if isinstance(image, UnreadableImage):
                unreadable.append(image)
                continue
            with torch.inference_mode(), autocast(self.device, self.dtype):
                logits = self.network_(standardised(as_images(image.pixels[None], self.device)))
            maps.append(torch.sigmoid(smoothed(logits))[0, 0].cpu().numpy())
            ids.append(image.id)
            sizes.append(image.original_size)
        side = self.image_size
        return Segmentation(ids, np.stack(maps) if maps else np.zeros((0, side, side), np.float32), sizes, unreadable)

    def config(self) -> dict[str, Any]:
        """Every setting that matters to what is learnt, JSON-able."""
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "augmentation": None if self.augmentation is None else dict(vars(self.augmentation)),
            "encoder": None if self.embedder is None else self.embedder.describe(),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the segmenter to one safetensors file, a frozen encoder included.

        Raises
        ------
        OSError
            If it cannot be written; the old file, if any, is untouched.
        """
        self._require_fitted()
        return save_network(path, self.network_, {"config": self.config()}, kind=_KIND)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Segmenter:
        """Read a segmenter written by `save`, which is all it takes. Nothing in the file is executed.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If it is no segmenter or is damaged.
        """
        pick_dtype(dtype, pick_device(device))  # what is wrong with these is not the fault of the file

        def rebuild(manifest: dict[str, Any], state: State, own: StoredWeights | None) -> tuple[Segmenter, UNet]:
            config = manifest["config"]
            described, changes = config["encoder"], config["augmentation"]
            encoder, layers = (None, None) if described is None else described_backbone(described)
            if (encoder is None) != (own is None):
                raise ValueError("there is an encoder in it or in its description, and not in both")
            segmenter = cls(
                **checked(config, _SETTINGS),
                encoder=encoder,
                layers=layers,
                weights=own,
                augmentation=None if changes is None else Augmentation(**changes),
                device=device,
                dtype=dtype,
            )
            with without_memory():
                return segmenter, segmenter._network()

        segmenter, network = load_network(path, kind=_KIND, backbone="encoder", rebuild=rebuild)
        segmenter.network_ = network.to(segmenter.device).to(memory_format=torch.channels_last)
        segmenter.history_, segmenter.left_out_ = History(), []
        return segmenter

    def _network(self) -> UNet:
        if self.embedder is None:
            return UNet(depth=self.depth, width=self.width)
        encoder = self.embedder.fresh_network()
        with torch.device("meta"), torch.inference_mode():  # shapes only, whatever the size of the image
            maps = copy.deepcopy(encoder).to("meta")(torch.zeros(1, 3, self.image_size, self.image_size))
        channels = tuple(found.shape[1] for found in sorted(maps, key=lambda features: -features.shape[-1]))
        return UNet(width=self.width, encoder=encoder, encoder_channels=channels)

    def _require_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise RuntimeError("this segmenter is not fitted yet; call fit() or load() first")


def check_masks(images: LabelledImages) -> None:
    """Say what is wrong with the masks before an hour is spent on training.

    Raises
    ------
    LabelledDataError
        If a mask has no image, or does not fit its image; the text names the first.
    UnreadableImageError
        If a mask cannot be read.
    """
    stray = [problem for problem in images.problems if problem.startswith("ground_truth/")]
    if stray:
        more = f" (and {len(stray) - 1} more)" if len(stray) > 1 else ""
        raise LabelledDataError(f"{images.root}: {stray[0]}{more}; add the image, or take the mask away")
    for i, path in enumerate(images.mask_paths):
        if path is not None and images.has_mask[i]:
            images.read_mask(i, (8, 8))


def measure_segmentation(segmentation: Segmentation, images: LabelledImages) -> SegmentationOutcome:
    """Compare predicted masks with those of the images (matched by id) that have one, good ones included."""
    position = images.positions
    both = either = positive = true = 0
    for i, image_id in enumerate(segmentation.ids):
        at = position[image_id]
        if not images.has_mask[at]:
            continue
        truth, predicted = images.read_mask(at, segmentation.image_sizes[i]), segmentation.mask(i)
        both += int((truth & predicted).sum())
        either += int((truth | predicted).sum())
        positive, true = positive + int(predicted.sum()), true + int(truth.sum())
    return SegmentationOutcome(
        iou=both / either if either else None,
        dice=2 * both / (positive + true) if positive + true else None,
        pixels=pixel_metrics_of(segmentation.ids, segmentation.probability_map, segmentation.image_sizes, images),
    )


def pixel_metrics_of(
    ids: Sequence[str], map_of: Callable[[int], np.ndarray], sizes: Sequence[tuple[int, int]], images: LabelledImages
) -> PixelMetrics:
    """Ranked pixel metrics of maps against the masks of the images of those ids that have one."""
    position = images.positions
    curves = PixelCurves()
    for i, image_id in enumerate(ids):
        if images.has_mask[position[image_id]]:
            curves.update(map_of(i), images.read_mask(position[image_id], sizes[i]))
    return curves.result()
