"""Labelled images: a folder in; the kind of every image, and its mask where there is one, out.

Two layouts. In that of MVTec AD, what lies in ``train`` is for training and ``test/<kind>`` is to be divided. Otherwise
every folder is a class. Nothing is decoded here.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from anomalib_lite.images.listing import SUFFIXES, list_images
from anomalib_lite.images.local import FolderSource
from anomalib_lite.images.mvtec import GOOD_NAMES, good_folders, is_good_name, pair_masks, pictures_in, read_mask_of


class LabelledDataError(ValueError):
    """Labels that nothing can be learnt from: one class only, an empty class, a mask that does not fit.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> (folder / "good").mkdir()
    >>> open_labelled(folder)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    anomalib_lite.supervised.labelled.LabelledDataError: ...
    """


@dataclass(frozen=True)
class LabelledImages:
    """Images with a kind each.

    Attributes
    ----------
    root : Path
    ids : list of str
        Paths relative to `root`.
    kinds : list of str
        Per image the name of its class.
    good : str or None
        The class of good images; None if no folder is called so.
    for_training : bool (n,)
        Lies in the layout's ``train``, so it may not be tested on.
    mask_paths : list of Path or None
        Per image its mask; None for good images and where there is none.
    problems : list of str
        Files left out, and why; masks that do not pair.
    """

    root: Path
    ids: list[str]
    kinds: list[str]
    good: str | None
    for_training: np.ndarray
    mask_paths: list[Path | None]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def source(self) -> FolderSource:
        """The images, to be read."""
        return FolderSource(self.root, self.ids)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Of images by id."""
        return {image_id: i for i, image_id in enumerate(self.ids)}

    def some(self, positions: np.ndarray) -> FolderSource:
        """Those at the positions (m,), to be read."""
        return FolderSource(self.root, [self.ids[i] for i in positions.tolist()])

    @property
    def classes(self) -> list[str]:
        """Names of the kinds, the good one first."""
        return sorted(set(self.kinds), key=lambda kind: (kind != self.good, kind))

    @cached_property
    def defective(self) -> np.ndarray:
        """(n,) bool: every kind but the good one.

        Raises
        ------
        LabelledDataError
            If no class is known to be the good one.
        """
        if self.good is None:
            raise LabelledDataError(
                f"{self.root}: which of the classes {', '.join(self.classes)} is good? Name it with good=..., or call "
                f"its folder {' or '.join(GOOD_NAMES)}"
            )
        return np.array([kind != self.good for kind in self.kinds], bool)

    @cached_property
    def has_mask(self) -> np.ndarray:
        """(n,) bool: where the defective pixels are known; of good images they are (none)."""
        return np.array([path is not None for path in self.mask_paths], bool) | ~self.defective

    def read_mask(self, i: int, size: tuple[int, int] | None = None) -> np.ndarray:
        """Mask of image `i` as bool (H, W), at the size of the image or the one given (h, w).

        Raises
        ------
        LabelledDataError
            If the image is defective and has no mask, or the mask does not fit it.
        UnreadableImageError
            If the mask cannot be read.
        """
        if not self.has_mask[i]:
            raise LabelledDataError(f"{self.ids[i]}: defective, but without a mask; add one, or leave the image out")
        try:
            return read_mask_of(self.root / self.ids[i], self.mask_paths[i], size)
        except ValueError as error:
            if type(error) is not ValueError:
                raise  # UnreadableImageError says enough
            raise LabelledDataError(str(error)) from error


def open_labelled(folder: str | os.PathLike[str], *, good: str | None = None) -> LabelledImages:
    """Open a folder of labelled images.

    Parameters
    ----------
    folder : path
        In the layout of MVTec AD (``train/good``, ``test/<kind>``, ``ground_truth/<kind>``; ``train`` may hold other
        kinds as well), or one folder per class.
    good : str, optional
        The class of good images; by default the folder called good, ok or normal, in any case, if there is one. Several
        of these (``train/OK`` and ``test/good``) are one class, called as the first of them.

    Returns
    -------
    LabelledImages
        Files that are no images, or lie in no class's folder, are listed in its `problems`.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    LabelledDataError
        If there is only one class, a class is empty, or `good` names none.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> images = open_labelled(make_metal_nut(tempfile.mkdtemp(), n_train=2, n_good=1, n_defect=1, size=32))
    >>> sorted(set(images.kinds)), int(images.defective.sum())
    (['bent', 'color', 'flip', 'good', 'scratch'], 4)
    """
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder; give one with a folder per class, or in MVTec AD layout")
    parts = ("train", "test") if good_folders(root / "train") else ("",)
    ids: list[str] = []
    kinds: list[str] = []
    for_training: list[bool] = []
    mask_paths: list[Path | None] = []
    problems: list[str] = []
    drawn = root / "ground_truth"
    for part in parts:
        inside, left_out = _classes_in(root / part, part)
        ids += [f"{part}/{id_}".lstrip("/") for id_ in inside]
        kinds += [id_.split("/")[0] for id_ in inside]
        for_training += [part == "train"] * len(inside)
        masks, unpaired = pair_masks(pictures_in(drawn), inside) if part == "test" else ([None] * len(inside), [])
        mask_paths += [None if mask is None else drawn / mask for mask in masks]
        problems += left_out + unpaired
    if good is None and (named_good := sorted(filter(is_good_name, set(kinds)))):
        good = named_good[0]
        kinds = [good if is_good_name(kind) else kind for kind in kinds]
    classes = sorted(set(kinds))
    if len(classes) < 2:
        raise LabelledDataError(
            f"{root}: only the class {classes[0]} is there, and two are needed to tell apart"
            if classes
            else f"{root}: no images in folders of classes; put those of each class into a folder of its name"
        )
    if good is not None and good not in classes:
        raise LabelledDataError(f"good={good!r} is none of the classes {', '.join(classes)} in {root}")
    return LabelledImages(root, ids, kinds, good, np.array(for_training, bool), mask_paths, problems)


def _classes_in(folder: Path, part: str) -> tuple[list[str], list[str]]:
    """Images in the folders of classes, as kind/name, and what else lies there, as problems."""
    if not folder.is_dir():
        return [], []
    prefix = f"{part}/" if part else ""
    images = list_images(folder)
    filled = {id_.split("/")[0] for id_ in images if "/" in id_}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in filled:
            raise LabelledDataError(
                f"{path}: a class without images; put images into it ({' '.join(s[1:] for s in SUFFIXES)}) or delete "
                "the folder"
            )
    problems = [f"{prefix}{id_}: in no class's folder, left out" for id_ in images if "/" not in id_]
    strangers = sorted(
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in SUFFIXES
    )
    problems += [f"{prefix}{name}: not an image by its name, left out" for name in strangers]
    return [id_ for id_ in images if "/" in id_], problems
