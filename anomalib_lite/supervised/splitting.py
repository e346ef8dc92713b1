"""Training, validation and test: stratified by kind, drawn by seed, no picture in two of them.

Pictures that nearly coincide (one part taken twice, frames of one film) would let a network recognise a test image
instead of judging it, so near-duplicates are found first and go to the same side.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.fitted.duplicates import near_duplicates
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.labelled import LabelledDataError, LabelledImages, open_labelled

_COPIES = 0.01  # of the distance to the nearest other picture


@dataclass(frozen=True)
class Survey:
    """What a look at every image says before they are divided.

    Attributes
    ----------
    readable : int (m,), ascending
    duplicates : list of (i, j), near-duplicates
    unreadable : list of UnreadableImage
    """

    readable: np.ndarray
    duplicates: list[tuple[int, int]]
    unreadable: list[UnreadableImage]


@dataclass(frozen=True)
class Split:
    """Positions of the images to learn from, to watch the learning by, and to test on; each int64, ascending.

    Raises ValueError if an image is in two of them.
    """

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    def __post_init__(self) -> None:
        everything = np.concatenate([self.train, self.validation, self.test])
        if len(np.unique(everything)) != len(everything):
            raise ValueError("an image is in two parts of the split")

    @property
    def learning(self) -> np.ndarray:
        """Training and validation together, ascending."""
        return np.sort(np.concatenate([self.train, self.validation]))

    @property
    def without_validation(self) -> Split:
        """The same split with the validation images among those to learn from."""
        return Split(self.learning, self.validation[:0], self.test)

    def keeping(self, keep: np.ndarray) -> Split:
        """The same split with only those images of training and validation where `keep` (n,) is True."""
        return Split(self.train[keep[self.train]], self.validation[keep[self.validation]], self.test)


def survey(images: LabelledImages, cache: CachedImages | None = None) -> Survey:
    """Embed every image once, by the built-in network: which can be read, and which nearly coincide.

    Parameters
    ----------
    cache : CachedImages, optional
        Where the embeddings are kept for what is trained on them later.
    """
    cache = cache or CachedImages(images)
    vectors = cache.embeddings(Embedder(level="global"), on_unreadable="skip").values[cache.readable]
    names = np.array([str(i) for i in cache.readable.tolist()])
    kinds = np.array([images.kinds[i] for i in cache.readable.tolist()])
    # Within each kind: kinds stand apart from one another as the shots of one part do. Copies are copies anywhere.
    everywhere = near_duplicates(vectors, names.tolist()) if len(names) else []
    found = [pair for pair in everywhere if pair.distance < _COPIES]
    for kind in np.unique(kinds):
        found += near_duplicates(vectors[kinds == kind], names[kinds == kind].tolist())
    return Survey(cache.readable, [(int(pair.first), int(pair.second)) for pair in found], cache.unreadable)


def opened(
    images: str | os.PathLike[str] | LabelledImages,
    parts: Split | None,
    cache: CachedImages | None,
    *,
    random_state: int,
) -> tuple[LabelledImages, Split, CachedImages]:
    """What a `fit` works on: images from a folder, a split by seed and a cache of its own, where none is given."""
    images = images if isinstance(images, LabelledImages) else open_labelled(images)
    if parts is None:
        cache = cache or CachedImages(images)
        parts = split(images, survey(images, cache), random_state=random_state)
    return images, parts, cache or CachedImages(images, np.concatenate([parts.learning, parts.test]))


def split(
    images: LabelledImages,
    surveyed: Survey | None = None,
    *,
    test: float = 0.5,
    validation: float = 0.2,
    random_state: int = 0,
) -> Split:
    """Divide labelled images.

    Parameters
    ----------
    images : LabelledImages
        Those in the layout's ``train`` are never tested on.
    surveyed : Survey, optional
        From `survey`, to look at the images only once for several splits.
    test : float
        Share of each kind to test on, in (0, 1).
    validation : float
        Share of what remains of each kind to watch the learning by, in [0, 1).
    random_state : int

    Raises
    ------
    LabelledDataError
        If a class has one readable image only, or all of its images are near-duplicates of one another: it cannot be
        both learnt and tested.
    ValueError
        If a share is out of range.
    """
    if not 0 < test < 1 or not 0 <= validation < 1:
        raise ValueError(
            f"test={test}, validation={validation}: shares of each kind, test in (0, 1), validation [0, 1)"
        )
    surveyed = surveyed or survey(images)
    _check_classes(images, surveyed)
    rng = np.random.default_rng(random_state)
    parts: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    groups = _groups(surveyed)
    for kind in images.classes:
        # A group counts for the kind of its first image.
        own = _shuffled([group for group in groups if images.kinds[group[0]] == kind], rng)
        fixed = [group for group in own if images.for_training[group].any()]
        free = [group for group in own if not images.for_training[group].any()]
        if len(free) < (1 if fixed else 2):
            raise LabelledDataError(_cannot_divide(images, kind, fixed))
        tested, rest = _take(free, test, at_most=len(free) - (0 if fixed else 1))
        rest = _shuffled(rest + fixed, rng)
        watched, learnt = _take(rest, validation, at_most=len(rest) - 1) if validation else ([], rest)
        for name, chosen in (("train", learnt), ("validation", watched), ("test", tested)):
            parts[name] += [i for group in chosen for i in group]
    return Split(**{name: np.array(sorted(indices), dtype=np.int64) for name, indices in parts.items()})


def with_defects(images: LabelledImages, whole: Split, count: int, *, random_state: int = 0) -> Split:
    """The same split with `count` defective images to learn from, the first of a seeded order, and all good ones.

    A smaller count is a part of a larger one. Every fifth goes to validation, the second first.
    """
    defective = images.defective
    pool = whole.learning[defective[whole.learning]]
    chosen = np.random.default_rng(random_state).permutation(pool)[:count]
    watched = np.arange(len(chosen)) % 5 == 1
    good_train, good_validation = whole.train[~defective[whole.train]], whole.validation[~defective[whole.validation]]
    return Split(
        np.sort(np.concatenate([good_train, chosen[~watched]])),
        np.sort(np.concatenate([good_validation, chosen[watched]])),
        whole.test,
    )


def without_kind(images: LabelledImages, whole: Split, kind: str) -> Split:
    """The same split with no image of `kind` to learn from: a defect that nobody has labelled."""
    return whole.keeping(np.array([other != kind for other in images.kinds], bool))


def _check_classes(images: LabelledImages, surveyed: Survey) -> None:
    kinds = [images.kinds[i] for i in surveyed.readable.tolist()]
    for kind in images.classes:
        count = kinds.count(kind)
        if count < 2:
            lost = (
                f"; {images.kinds.count(kind) - count} more cannot be read" if images.kinds.count(kind) > count else ""
            )
            raise LabelledDataError(
                f"{images.root}: class {kind} has {count} image{'' if count == 1 else 's'}{lost}, and two are needed, "
                "one to learn and one to test; add images, or take the folder away"
            )


def _cannot_divide(images: LabelledImages, kind: str, fixed: Sequence[list[int]]) -> str:
    if fixed:
        return (
            f"{images.root}: class {kind} has no image of its own to test on outside train; put some into test/{kind} "
            "that are not copies of those"
        )
    return (
        f"{images.root}: all images of class {kind} are near-duplicates of one another, so none can be tested on "
        "without having been learnt; add others"
    )


def _groups(surveyed: Survey) -> list[list[int]]:
    """Readable images in groups of near-duplicates, most groups of one; each ascending, ordered by their first."""
    readable = surveyed.readable
    first, second = np.searchsorted(readable, np.array(surveyed.duplicates, np.int64).reshape(-1, 2)).T
    graph = coo_array((np.ones(len(first)), (first, second)), shape=(len(readable), len(readable)))
    group_of = connected_components(graph, directed=False)[1]
    ends = np.cumsum(np.bincount(group_of))[:-1]
    return [group.tolist() for group in np.split(readable[np.argsort(group_of, kind="stable")], ends)]


def _shuffled(groups: list[list[int]], rng: np.random.Generator) -> list[list[int]]:
    return [groups[i] for i in rng.permutation(len(groups))]


def _take(groups: list[list[int]], share: float, at_most: int) -> tuple[list[list[int]], list[list[int]]]:
    """Groups from the front that hold about `share` of the images, one at least and `at_most`; and the others."""
    wanted = share * sum(len(group) for group in groups)
    taken, count = 0, 0
    while taken < at_most and (taken == 0 or count + len(groups[taken]) / 2 <= wanted):
        count += len(groups[taken])
        taken += 1
    return groups[:taken], groups[taken:]
