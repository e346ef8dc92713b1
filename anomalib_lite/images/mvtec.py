"""The folder layout of MVTec AD: a category's folder in; its images, labels and masks out, paired.

Layout of Bergmann et al., "MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly Detection",
CVPR 2019. Copies of the set rename files until image and mask no longer pair, and nothing complains; so every
image or mask left over is listed.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from anomalib_lite.images.decoding import image_size
from anomalib_lite.images.listing import list_pictures
from anomalib_lite.images.local import FolderSource, ListSource
from anomalib_lite.images.objects import StoredObject, is_url
from anomalib_lite.images.reading import DEFAULT_READING, read_mask
from anomalib_lite.images.sources import ImageSource
from anomalib_lite.images.stored import ObjectSource

LAYOUT = """\
    train/good/000.png                     good images, to fit on
    test/good/000.png                      good images, to test on       (may be missing)
    test/scratch/000.png                   defective images, by kind     (may be missing)
    ground_truth/scratch/000_mask.png      their masks, not 0 = defect   (may be missing)
A folder of good images may be called ok or normal as well, in any case."""


GOOD_NAMES = ("good", "ok", "normal")
"""What a folder of good images is called, in any case; `is_good_name` asks."""

# Folders of masks, and of defective parts where nobody has named the defect.
_TELLING = re.compile(r"ground_?truth|bad|defect(s|ive)?|ng|nok|anomal(y|ies|ous)|abnormal|reject(s|ed)?|faulty", re.I)
_MASK_FOLDER = re.compile(r"masks?|gt|annotations?|segmentations?", re.I)
_MASK_NAME = re.compile(r"(.+)[_-](mask|labels?|gt|seg|annotation|ground_?truth)", re.I)


@dataclass(frozen=True)
class MVTecDataset:
    """One category in the layout of MVTec AD.

    Attributes
    ----------
    root : Path or str
        The category's folder, or its URL.
    name : str
        The folder's name.
    train : ImageSource
        The good images to fit on.
    test : ImageSource
        The test images, ids like ``scratch/000.png``; may be empty.
    kinds : list of str
        Per test image ``good``, whatever its folder of good ones is called, or the kind of its defect.
    labels : ndarray of shape (n_test,), bool
        True where a test image is defective.
    mask_paths : list of Path, StoredObject or None
        Per test image its mask; None for good images and where there is none.
    pairing_problems : list of str
        Defective images without a mask, masks without an image, images outside a kind's folder.
    """

    root: Path | str
    name: str
    train: FolderSource
    test: FolderSource
    kinds: list[str]
    labels: np.ndarray
    mask_paths: list[Path | StoredObject | None]
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
            If the image is defective and has no mask, or the mask has another aspect ratio than the image, or marks
            nothing or more than 95 % of it, which is as good as certainly the mask's fault.
        UnreadableImageError
            If the mask, or the header of the image, cannot be read.
        """
        path = self.mask_paths[i]
        if path is None and self.labels[i]:
            raise ValueError(f"{self.test.ids[i]}: defective, but without a mask; ask has_mask first")
        content = path.content(str(path), DEFAULT_READING.max_bytes) if isinstance(path, StoredObject) else path
        mask = read_mask_of(self.test.item(i), content, size, names=(str(self.test.root / self.test.ids[i]), str(path)))
        if content is not None and not 0 < mask.mean() <= 0.95:
            share = read_mask(content).mean()  # a small defect may be lost in a small size, and that is no fault
            if not 0 < share <= 0.95:
                fault = f"{share:.0%} of it is marked; inverted?" if share else "nothing is marked"
                raise ValueError(f"{path}: the mask of the defective {self.test.ids[i]}, but {fault} Draw it again")
        return mask

    def __repr__(self) -> str:
        return (
            f"MVTecDataset({str(self.root)!r}: {len(self.train)} to fit, {len(self.test)} to test, "
            f"{int(self.labels.sum())} of them defective, {len(self.pairing_problems)} pairing problems)"
        )


def is_good_name(name: str) -> bool:
    """Whether a folder of that name holds good images: good, ok or normal, in any case; of a path the last folder says.

    Examples
    --------
    >>> [is_good_name(name) for name in ("good", "OK", "test/Normal", "not_ok", "good_2")]
    [True, True, True, False, False]
    """
    return name.rsplit("/", 1)[-1].casefold() in GOOD_NAMES


def good_folders(folder: Path) -> list[Path]:
    """The folders of good images in a folder, by their names, sorted; none where there is no such folder."""
    return (
        sorted(path for path in folder.iterdir() if is_good_name(path.name) and path.is_dir())
        if folder.is_dir()
        else []
    )


def open_mvtec(folder: str | os.PathLike[str]) -> MVTecDataset:
    """Open one category in the layout of MVTec AD.

    Only ``train/good`` has to be there. Folders of good images may be called good, ok or normal, in any case, and in
    ``train`` otherwise than in ``test``. Several beside each other (``train/good`` and ``train/OK``) are all good: what
    lies in them is learnt, or tested on, together. A mask belongs to the image of the same kind whose name it has,
    with or without ``_mask``, whatever the suffixes.

    Parameters
    ----------
    folder : path or URL
        The category's folder, which holds ``train`` and, as a rule, ``test`` and ``ground_truth``; on the disk, in an
        object store (``s3://bucket/metal_nut``) or an archive (``zip://metal_nut::sets.zip``), see `open_source`.

    Returns
    -------
    MVTecDataset
        What does not pair is listed in its `pairing_problems`.

    Raises
    ------
    FileNotFoundError
        If there is no ``train/good``, or no image in it; the text shows the layout and what was found.
    ImportError, PermissionError, OSError
        If a store cannot be opened or listed.
    """
    if is_url(folder):
        return _open_stored(str(folder))
    root = Path(folder)
    good = good_folders(root / "train")
    if not good:
        raise FileNotFoundError(_wrong_layout(root))
    images, masks = pictures_in(root / "test"), pictures_in(root / "ground_truth")
    ids = [id_ for id_ in images if "/" in id_]
    paired, problems = pair_masks(masks, images)
    return MVTecDataset(
        root=root,
        name=root.resolve().name,
        train=_together(good),
        test=FolderSource(root / "test", ids),
        kinds=_kinds(ids),
        labels=_labels(ids),
        mask_paths=[None if mask is None else root / "ground_truth" / mask for mask in paired],
        pairing_problems=problems,
    )


def _open_stored(url: str) -> MVTecDataset:
    """Open a category that lies in an object store or an archive; it is listed once."""
    everything = ObjectSource(url)
    inside = [PurePosixPath(id_).parts for id_ in everything.ids]
    good = sorted({parts[1] for parts in inside if parts[0] == "train" and len(parts) > 2 and is_good_name(parts[1])})
    if not good:
        categories = {parts[0] for parts in inside if len(parts) > 3 and parts[1] == "train" and is_good_name(parts[2])}
        raise FileNotFoundError(
            _not_the_layout(url, {parts[0] + "/" * (len(parts) > 1) for parts in inside}, sorted(categories))
        )
    if len(good) == 1:
        train = everything.below(f"train/{good[0]}")
    else:
        learnt = everything.below("train")
        train = everything.below("train", [id_ for id_ in learnt.ids if id_.partition("/")[0] in good])
    images, masks = everything.below("test").ids, everything.below("ground_truth")
    ids = [id_ for id_ in images if "/" in id_]
    paired, problems = pair_masks(masks.ids, images)
    return MVTecDataset(
        root=url,
        name=PurePosixPath(url.partition("::")[0].partition("://")[2]).name or PurePosixPath(url).stem,
        train=train,
        test=everything.below("test", ids),
        kinds=_kinds(ids),
        labels=_labels(ids),
        mask_paths=[None if mask is None else masks.stored(masks.ids.index(mask)) for mask in paired],
        pairing_problems=problems,
    )


def _kinds(ids: list[str]) -> list[str]:
    folders = [id_.split("/")[0] for id_ in ids]
    return [GOOD_NAMES[0] if is_good_name(name) else name for name in folders]


def _labels(ids: list[str]) -> np.ndarray:
    return np.array([not is_good_name(id_.split("/")[0]) for id_ in ids], bool)


def read_mask_of(
    image: Path | bytes,
    mask: Path | bytes | None,
    size: tuple[int, int] | None = None,
    *,
    names: tuple[str, str] | None = None,
) -> np.ndarray:
    """Read the mask of an image, bool (H, W), all False where `mask` is None; at the image's size or the one given.

    Parameters
    ----------
    names : what to call image and mask in an error, if not by their paths

    Raises
    ------
    ValueError
        If the mask has another aspect ratio than the image.
    UnreadableImageError
        If the mask, or the header of the image, cannot be read.
    """
    if mask is None:
        return np.zeros(size or image_size(image), bool)
    image_name, mask_name = names or (str(image), str(mask))
    (height, width), (mask_height, mask_width) = image_size(image, image_name), image_size(mask, mask_name)
    # Equal aspect ratio up to the pixel that rounding takes when a picture is scaled.
    if abs(mask_height * width / mask_width - height) > max(1, height / mask_height):
        raise ValueError(
            f"{mask_name}: {mask_height} x {mask_width} pixels do not fit the image {image_name} of "
            f"{height} x {width}; the two have to show the same field (height x width, upright)"
        )
    return read_mask(mask, size or (height, width), mask_name)


def refuse_labelled_root(images: Any, source: ImageSource) -> None:
    """Refuse to learn a data set's test images, masks and defective parts as good ones.

    Parameters
    ----------
    images : what the user gave
    source : ImageSource
        What `open_source` made of it. Only folders and files are looked at, by their names: arrays, and a source of
        the user's own, say nothing.

    Raises
    ------
    ValueError
        If there is a folder called ``ground_truth``, ``defective`` or the like; both ``train`` and ``test``; another
        folder with pictures beside one called good, ok or normal (but for those called so as well, ``good_2``); or a
        mask, by its name (``007_mask.png``) or its folder (``masks/007.png``), together with the picture that it is
        the mask of. A lone ``007_mask.png`` is taken for a picture of a part.
    """
    if isinstance(source, FolderSource):
        root, paths = source.root, [PurePosixPath(id_) for id_ in source.ids]
    elif isinstance(source, ListSource):
        files = [os.path.abspath(item) for item in source.items if isinstance(item, str | os.PathLike)]
        if len(files) < 2:
            return
        root = Path(os.path.commonpath(files))
        paths = [PurePosixPath(Path(file).relative_to(root).as_posix()) for file in files]
    else:
        return
    stray = _not_of_good_parts(paths)
    if stray is not None:
        instead = [*good_folders(root / "train"), *good_folders(root), *_categories(root)]
        way_out = f"give {instead[0] if instead else 'a folder of good images alone'}, or say that everything is good"
        raise ValueError(f"{root}: holds more than good images, {stray[0]} for one ({stray[1]}); {way_out}")


def _not_of_good_parts(paths: list[PurePosixPath]) -> tuple[PurePosixPath, str] | None:
    """The first path that is not of a good part, by its name and those beside it; and why."""
    leaves = {path.parent for path in paths}
    folders = [folder for folder in leaves | {above for leaf in leaves for above in leaf.parents} if folder.name]
    inside: dict[PurePosixPath, set[str]] = {}
    for folder in folders:
        inside.setdefault(folder.parent, set()).add(folder.name.lower())
    reasons = {}
    for folder in folders:
        name, beside = folder.name.lower(), inside[folder.parent]
        if _TELLING.fullmatch(name):
            reasons[folder] = f"in a folder called {folder.name}"
        elif name == "test" and "train" in beside:
            reasons[folder] = "in test, beside train"
        elif any(map(is_good_name, beside)) and not name.startswith(GOOD_NAMES):
            reasons[folder] = f"in {folder.name}, beside a folder of good ones"
    pictures = {path.stem for path in paths if not _MASK_FOLDER.fullmatch(path.parent.name)}
    for path in paths:
        name = found[1] if (found := _MASK_NAME.fullmatch(path.stem)) else path.stem
        if name in pictures and (found or _MASK_FOLDER.fullmatch(path.parent.name)):
            return path, "a mask"
        # Whoever names good test images one by one means them.
        named_good = is_good_name(path.parent.name)
        if because := [reasons[folder] for folder in path.parents if folder in reasons and not named_good]:
            return path, because[0]
    return None


def _wrong_layout(root: Path) -> str:
    if not root.is_dir():
        return f"{root}: no such folder; the layout of MVTec AD is\n{LAYOUT}"
    inside = {path.name + "/" * path.is_dir() for path in root.iterdir()}
    return _not_the_layout(root, inside, [good.parent.parent.name for good in _categories(root)])


def _not_the_layout(root: Path | str, inside: set[str], categories: list[str]) -> str:
    found = ", ".join(sorted(inside)[:8]) + (", ..." if len(inside) > 8 else "")
    text = f"{root}: no train/good in it, found {found or 'nothing'}; the layout of MVTec AD is\n{LAYOUT}"
    return f"{text}\nOpen one category instead, for instance {root}/{categories[0]}" if categories else text


def _categories(root: Path) -> list[Path]:
    """The folders of good images to fit on, of all categories in a folder."""
    return [good for train in sorted(root.glob("*/train")) for good in good_folders(train)]


def _together(folders: list[Path]) -> FolderSource:
    """The images of folders beside each other; of several, ids begin with the folder's name."""
    if len(folders) == 1:
        return FolderSource(folders[0])
    root = folders[0].parent
    ids = [f"{folder.name}/{id_}" for folder in folders for id_ in list_pictures(folder)]
    return FolderSource(root, ids) if ids else FolderSource(folders[0])  # which says what it looked for


def pictures_in(folder: Path) -> list[str]:
    """Paths of the pictures in a folder; none where there is no such folder."""
    return list_pictures(folder) if folder.is_dir() else []


def pair_masks(masks: list[str], images: list[str]) -> tuple[list[str | None], list[str]]:
    """Find the mask of each test image (``kind/name.png``), and list what is left over.

    Parameters
    ----------
    masks : paths in ``ground_truth``
    images : paths in ``test``; those in no folder of a kind are left out, and listed
    """
    problems = [f"test/{id_}: not in the folder of a kind, left out" for id_ in images if "/" not in id_]
    by_stem: dict[str, list[str]] = {}
    for mask in masks:
        by_stem.setdefault(_stem(mask), []).append(mask)
    paths: list[str | None] = []
    for id_ in (id_ for id_ in images if "/" in id_):
        # Taken out of the dict: a mask pairs with one image, and what stays behind pairs with none.
        found = by_stem.pop(f"{_stem(id_)}_mask", []) + by_stem.pop(_stem(id_), [])
        if is_good_name(id_.split("/")[0]):
            paths.append(None)  # some copies hold black masks for these
        elif not found:
            paths.append(None)
            problems.append(f"test/{id_}: defective, but no mask ground_truth/{_stem(id_)}_mask.png")
        else:
            paths.append(found[0])
            problems += [f"ground_truth/{mask}: second mask of test/{id_}, left out" for mask in found[1:]]
    for stray in by_stem.values():
        problems += [f"ground_truth/{mask}: no image test/{_stem(mask).removesuffix('_mask')}.*" for mask in stray]
    return paths, problems


def _stem(id_: str) -> str:
    return PurePosixPath(id_).with_suffix("").as_posix()
