"""The folder layout of MVTec AD: a category's folder in; its images, labels and masks out, paired.

Layout of Bergmann et al., "MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection",
CVPR 2019. Copies of the set rename files until image and mask no longer pair, and nothing complains; so every
image or mask left over is listed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from anomalib_lite.images.reading import image_size, read_mask
from anomalib_lite.images.sources import FolderSource, list_images

LAYOUT = """\
    train/good/000.png                     good images, to fit on
    test/good/000.png                      good images, to test on       (may be missing)
    test/scratch/000.png                   defective images, by kind     (may be missing)
    ground_truth/scratch/000_mask.png      their masks, not 0 = defect   (may be missing)"""


@dataclass(frozen=True)
class MVTecDataset:
    """One category in the layout of MVTec AD.

    Attributes
    ----------
    root : Path
        The category's folder.
    name : str
        The folder's name.
    train : ImageSource
        The good images to fit on.
    test : ImageSource
        The test images, ids like ``scratch/000.png``; may be empty.
    kinds : list of str
        Per test image ``good`` or the kind of its defect.
    labels : ndarray of shape (n_test,), bool
        True where a test image is defective.
    mask_paths : list of Path or None
        Per test image its mask; None for good images and where there is none.
    pairing_problems : list of str
        Defective images without a mask, masks without an image, images outside a kind's folder.
    """

    root: Path
    name: str
    train: FolderSource
    test: FolderSource
    kinds: list[str]
    labels: np.ndarray
    mask_paths: list[Path | None]
    pairing_problems: list[str]

    @property
    def has_mask(self) -> np.ndarray:
        """(n_test,) bool: where the defect's pixels are known, good images (which have none) included."""
        return np.array([path is not None for path in self.mask_paths], bool) | ~self.labels

    def read_mask(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Read the mask of test image `i`: True where it is defective, all False for a good image.

        Parameters
        ----------
        i : int
            Index into `test`.
        size : (h, w), optional
            Resize to this many pixels, nearest neighbour; by default the size of the image, also where the
            mask is stored larger or smaller.

        Returns
        -------
        ndarray of shape (H, W), bool

        Raises
        ------
        ValueError
            If the image is defective and has no mask, or the mask has another aspect ratio than the image.
        UnreadableImageError
            If the mask, or the header of the image, cannot be read.
        """
        if self.mask_paths[i] is None and self.labels[i]:
            raise ValueError(f"{self.test.ids[i]}: defective, but without a mask; ask has_mask first")
        return read_mask_of(self.test.root / self.test.ids[i], self.mask_paths[i], size)

    def __repr__(self) -> str:
        return (
            f"MVTecDataset({str(self.root)!r}: {len(self.train)} to fit, {len(self.test)} to test, "
            f"{int(self.labels.sum())} of them defective, {len(self.pairing_problems)} pairing problems)"
        )


def open_mvtec(folder: str | os.PathLike[str]) -> MVTecDataset:
    """Open one category in the layout of MVTec AD.

    Only ``train/good`` has to be there. A mask belongs to the image of the same kind whose name it has,
    with or without ``_mask``, whatever the suffixes.

    Parameters
    ----------
    folder : path
        The category's folder, which holds ``train`` and, as a rule, ``test`` and ``ground_truth``.

    Returns
    -------
    MVTecDataset
        What does not pair is listed in its `pairing_problems`.

    Raises
    ------
    FileNotFoundError
        If there is no ``train/good``, or no image in it; the text shows the layout and what was found.
    """
    root = Path(folder)
    good = root / "train" / "good"
    if not good.is_dir():
        raise FileNotFoundError(_wrong_layout(root))
    images = list_images(root / "test") if (root / "test").is_dir() else []
    problems = [f"test/{id_}: not in the folder of a kind, left out" for id_ in images if "/" not in id_]
    ids = [id_ for id_ in images if "/" in id_]
    kinds = [id_.split("/")[0] for id_ in ids]
    mask_paths, unpaired = pair_masks(root / "ground_truth", ids)
    return MVTecDataset(
        root=root,
        name=root.resolve().name,
        train=FolderSource(good),
        test=FolderSource(root / "test", ids),
        kinds=kinds,
        labels=np.array([kind != "good" for kind in kinds], bool),
        mask_paths=mask_paths,
        pairing_problems=problems + unpaired,
    )


def read_mask_of(image: Path, mask: Path | None, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read the mask of an image, bool (H, W), all False where `mask` is None; at the image's size or the one given.

    Raises
    ------
    ValueError
        If the mask has another aspect ratio than the image.
    UnreadableImageError
        If the mask, or the header of the image, cannot be read.
    """
    if mask is None:
        return np.zeros(size or image_size(image), bool)
    (height, width), (mask_height, mask_width) = image_size(image), image_size(mask)
    # Equal aspect ratio up to the pixel that rounding takes when a picture is scaled.
    if abs(mask_height * width / mask_width - height) > max(1, height / mask_height):
        raise ValueError(
            f"{mask}: {mask_height} x {mask_width} pixels do not fit the image {image} of "
            f"{height} x {width}; the two have to show the same field (height x width, upright)"
        )
    return read_mask(mask, size or (height, width))


def _wrong_layout(root: Path) -> str:
    expected = f"the layout of MVTec AD is\n{LAYOUT}"
    if not root.is_dir():
        return f"{root}: no such folder; {expected}"
    inside = sorted(path.name + "/" * path.is_dir() for path in root.iterdir())
    found = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    text = f"{root}: no train/good in it, found {found or 'nothing'}; {expected}"
    categories = [path.parent.parent for path in sorted(root.glob("*/train/good"))]
    if categories:
        text += f"\nOpen one category instead, for instance {categories[0]}"
    return text


def pair_masks(ground_truth: Path, ids: list[str]) -> tuple[list[Path | None], list[str]]:
    """Find the mask of each test image (``kind/name.png``), and list what is left over on both sides."""
    masks = list_images(ground_truth) if ground_truth.is_dir() else []
    by_stem: dict[str, list[str]] = {}
    for mask in masks:
        by_stem.setdefault(_stem(mask), []).append(mask)
    paths: list[Path | None] = []
    problems = []
    for id_ in ids:
        # Taken out of the dict: a mask pairs with one image, and what stays behind pairs with none.
        found = by_stem.pop(f"{_stem(id_)}_mask", []) + by_stem.pop(_stem(id_), [])
        if id_.startswith("good/"):
            paths.append(None)  # some copies hold black masks for these
        elif not found:
            paths.append(None)
            problems.append(f"test/{id_}: defective, but no mask ground_truth/{_stem(id_)}_mask.png")
        else:
            paths.append(ground_truth / found[0])
            problems += [f"ground_truth/{mask}: second mask of test/{id_}, left out" for mask in found[1:]]
    for stray in by_stem.values():
        problems += [f"ground_truth/{mask}: no image test/{_stem(mask).removesuffix('_mask')}.*" for mask in stray]
    return paths, problems


def _stem(id_: str) -> str:
    return PurePosixPath(id_).with_suffix("").as_posix()
