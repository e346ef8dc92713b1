"""Is this a training set to rely on? Every diagnostic of a folder of good images, with advice in words.

Two passes: a patch detector scores every image as if it had not been in training (suspicious images), and one
vector per image, standardised and reduced by PCA, shows groups, density, dimensions and shots of one part.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from anomalib_lite.detector import Detector
from anomalib_lite.diagnosis import statistics
from anomalib_lite.diagnosis.projection import EmbeddingMap, Projector
from anomalib_lite.embedding.streaming import WHOLE, embed_whole
from anomalib_lite.fitted.duplicates import (
    NearDuplicate,
    describe_groups,
    duplicate_groups,
    near_duplicates,
    too_many_twins,
)
from anomalib_lite.fitted.groups import EACH, PARENT, Groups, group_names
from anomalib_lite.fitted.plan import stages
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.region import Region
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.spread import Spread, measured_spread
from anomalib_lite.images.variations import Variations
from anomalib_lite.machine.progress import DRAWING, over, stage, work
from anomalib_lite.scoring.reduction import PCA

# "PCA to 10-30 dimensions before K-means and DBSCAN": distances concentrate above.
_COMPONENTS = 30
_NAMED = 5  # images named in the text
_LISTED = 20  # batches
_SHOWN = 240  # pixels of the side of an image that shows the region
# Kaufman and Rousseeuw (1990): below, no substantial structure; above, a reasonable one.
_NO_GROUPS, _CLEAR_GROUPS = 0.25, 0.5

# A cluster of so large a share is all there is; the others are outliers.
_ONE_CLOUD = 0.95

# Vectors of a bank: of 40 images and a defective one of each kind, the order by score is that of the 10 000 of a fit
# (rank correlation 0.98 on metal_nut, 0.99 on bottle, the same ones far out), in half the time (`benchmarks/odd.py`).
_BANK = 4096
COMPARING = "comparing"  # a stage, see `machine.progress`
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class Diagnosis:
    """What was found among the images; a part that cannot be computed is None, and `notes` says why.

    Attributes
    ----------
    n_images : readable images
    ids : their names, in the order of the rows of `silhouette` and `map`
    parts : int (n,), the same number for images that seem to show one part, see `duplicate_groups`
    calibration : what threshold these images support, in words
    sizes : (height, width) with the number of images that have it, the commonest first
    spread : how much light, contrast, colour and sharpness differ between the images
    declared : the variations that the detector is told of
    region : what is looked at of every image; None for all of it
    batches : false alarms of every day or batch at a threshold learnt from the others; empty if there is one alone
    """

    n_images: int
    ids: list[str]
    suspicious: statistics.Suspicious
    near_duplicates: list[NearDuplicate]
    parts: np.ndarray
    calibration: str
    sizes: list[tuple[tuple[int, int], int]]
    elbow: statistics.Elbow | None
    silhouette: statistics.Silhouette | None
    k_distance: statistics.KDistance | None
    dbscan: statistics.DBSCANSweep | None
    variance: statistics.ExplainedVariance
    map: EmbeddingMap | None
    spread: Spread | None
    declared: Variations | None = None
    region: Region | None = None
    batches: list[statistics.Batch] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    unreadable: list[UnreadableImage] = field(default_factory=list)

    def __repr__(self) -> str:
        return (
            f"Diagnosis({self.n_images} images: {int(self.suspicious.outlying.sum())} unlike all others, "
            f"{len(self.near_duplicates)} near-duplicate pairs, {len(self.unreadable)} unreadable; advice() has it in "
            "words)"
        )

    def advice(self) -> str:
        """The findings as short advice, one thing per paragraph."""
        return "\n".join(self._sentences())

    def shots(self) -> list[list[str]]:
        """The images that seem to show one part, for every part with more than one."""
        named: dict[int, list[str]] = {}
        for name, part in zip(self.ids, self.parts.tolist(), strict=True):
            named.setdefault(part, []).append(name)
        return [names for names in named.values() if len(names) > 1]

    def to_dict(self) -> dict[str, Any]:
        """The findings, JSON-able; images are named, the most suspicious first."""
        suspects = zip(self.suspicious.ids, self.suspicious.scores, self.suspicious.p_values, strict=True)
        return {
            "n_images": self.n_images,
            "suspicious": [
                {
                    "id": name,
                    "p_value": float(p),
                    "score": float(score),
                    "outlying": bool(score > self.suspicious.limit),
                }
                for name, score, p in suspects
            ],
            "near_duplicates": [
                {"first": pair.first, "second": pair.second, "distance": pair.distance} for pair in self.near_duplicates
            ],
            "shots_of_one_part": self.shots(),
            "elbow_k": self.elbow.k if self.elbow else None,
            "silhouette_k": self.silhouette.k if self.silhouette else None,
            "silhouette": float(self.silhouette.means.max()) if self.silhouette else None,
            "eps": self.k_distance.eps if self.k_distance else None,
            "batches": [
                {
                    "name": batch.name,
                    "n_images": batch.n_images,
                    "false_alarm_rate_observed": batch.observed,
                    "false_alarm_rate": batch.rate,
                    "coverage": batch.direction,
                }
                for batch in self.batches
            ],
            "region_share": None if self.region is None else self.region.share,
            "components_95": self.variance.components_for(0.95),
            "calibration": self.calibration,
            "advice": self.advice(),
            "notes": self.notes,
            "unreadable": [{"id": entry.id, "reason": entry.reason} for entry in self.unreadable],
        }

    def save_figures(self, folder: str | os.PathLike[str], images: Any | None = None) -> list[Path]:
        """Write every figure that could be computed as PNG; thumbnails on the map, and the region, take `images`."""
        from anomalib_lite.diagnosis import figures as plots
        from anomalib_lite.diagnosis.map_figure import TRAINING, plot_embedding_map

        drawings: list[tuple[str, Callable[[], Any]]] = [("suspicious", lambda: plots.plot_suspicious(self.suspicious))]
        if self.elbow is not None:
            drawings.append(("elbow", lambda: plots.plot_elbow(self.elbow)))  # type: ignore[arg-type]
        if self.silhouette is not None:
            drawings.append(("silhouette", lambda: plots.plot_silhouette(self.silhouette)))  # type: ignore[arg-type]
        if self.k_distance is not None:
            drawings.append(("k_distance", lambda: plots.plot_k_distance(self.k_distance)))  # type: ignore[arg-type]
        if self.dbscan is not None:
            eps = self.k_distance.eps if self.k_distance else None
            drawings.append(("dbscan", lambda: plots.plot_dbscan_sweep(self.dbscan, eps)))  # type: ignore[arg-type]
        drawings.append(("variance", lambda: plots.plot_explained_variance(self.variance)))
        if self.map is not None:
            suspects = {name for name, far in zip(self.suspicious.ids, self.suspicious.outlying, strict=True) if far}
            ringed = [name in suspects for name in self.ids]
            thumbnail = None if images is None else _thumbnails(open_source(images), self.ids)
            shown = self.map
            drawings.append(
                (
                    "map",
                    lambda: plot_embedding_map(
                        shown, [TRAINING] * len(ringed), alarms=ringed, thumbnail=thumbnail, ring="far out"
                    ),
                )
            )
        if self.region is not None and images is not None:
            region, read = self.region, _thumbnails(open_source(images), self.ids, _SHOWN)
            rows = np.unique(np.linspace(0, len(self.ids) - 1, 4).round().astype(int)).tolist()
            drawings.append(("region", lambda: plots.plot_region(region, [read(row) for row in rows])))
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        written = []
        for name, draw in over(DRAWING, drawings, len(drawings), "figures"):
            path = folder / f"{name}.png"
            draw().savefig(path)
            written.append(path)
        return written

    def _sentences(self) -> Iterator[str]:
        unread = f", {len(self.unreadable)} could not be read" if self.unreadable else ""
        yield f"{self.n_images} images examined{unread}."
        far = [name for name, out in zip(self.suspicious.ids, self.suspicious.outlying, strict=True) if out]
        if far:
            yield (
                f"Look at {_listed(far)}: {'it is' if len(far) == 1 else 'they are'} unlike all other training images. "
                "A defective part among the good ones teaches the detector to pass it; take it out and fit again."
            )
        else:
            yield f"No image stands out; the oddest are {_listed(self.suspicious.ids[:3])}."
        if shots := self.shots():
            parts = [" and ".join(names) if len(names) == 2 else _listed(names) for names in shots]
            effect = "so the threshold promises a little too much"
            if too_many_twins(self.parts):
                effect = "and there are too many of them to promise any false-alarm rate"
            yield (
                f"{describe_groups(self.parts)}: {_listed(parts, '; ')}. A picture is recognised by its twins when it "
                f"is scored as if new, {effect}. Keep one picture of each part."
            )
        if len(self.sizes) > 1:
            (height, width), count = self.sizes[0]
            others = sum(number for _, number in self.sizes[1:])
            yield (
                f"{others} of {others + count} images are not {width} × {height} pixels; all are brought to one frame, "
                "so parts photographed at another size or crop look unlike each other."
            )
        if self.region is not None:
            yield (
                f"{100 * self.region.share:.0f} % of every image is looked at; see in the figure of the region whether "
                "that is the part, before you rely on it."
            )
        yield from self._about_batches()
        yield from self.spread.sentences(self.declared) if self.spread is not None else ()
        yield self._about_groups()
        count = self.variance.components_for(0.95)
        yield f"{count} principal components hold 95 % of the variance of the image vectors."
        yield self.calibration
        yield from self.notes

    def _about_batches(self) -> Iterator[str]:
        if not self.batches:
            return
        worst = sorted(self.batches, key=lambda batch: -batch.observed)[:_LISTED]
        table = "; ".join(
            f"{batch.name} {batch.alarms} of {batch.n_images}" + (" (!)" if batch.direction == "above" else "")
            for batch in worst
        )
        more = f"; {len(self.batches) - _LISTED} more with no more" if len(self.batches) > _LISTED else ""
        rate = max(batch.rate for batch in self.batches)
        yield f"False alarms by batch, each at a threshold learnt from the others ({rate:.1%} expected): {table}{more}."
        if any(batch.direction == "above" for batch in self.batches):
            yield (
                "Marked (!) are batches that alarm more often than chance explains: another day is not like these, and "
                "the promise will not hold there. Give pictures of more days, say groups= for what is photographed "
                "together, declare what varies (variations=), or recalibrate when the day changes."
            )

    def _about_groups(self) -> str:
        if self.silhouette is None or self.elbow is None:
            return "Too few images to look for groups."
        best, k = float(self.silhouette.means.max()), self.silhouette.k
        if best < _NO_GROUPS:
            tried = f"best silhouette {best:.2f} at {k} clusters, elbow at {self.elbow.k}"
            return f"The images form one cloud ({tried})."
        sizes = np.unique(self.silhouette.labels, return_counts=True)[1]
        if sizes.max() > _ONE_CLOUD * sizes.sum():
            few = int(sizes.sum() - sizes.max())
            return f"But for {few} image{'s' * (few > 1)} far from all others, the images form one cloud."
        apart = "clearly" if best >= _CLEAR_GROUPS else "weakly"
        return (
            f"The images fall into {k} groups, {apart} apart (silhouette {best:.2f}); the elbow is at {self.elbow.k}. "
            "If these are different products or set-ups, consider a detector for each."
        )


def diagnose(
    images: Any, *, groups: Groups | None = None, everything_is_good: bool = False, **parameters: Any
) -> Diagnosis:
    """Examine a set of good images.

    Parameters
    ----------
    images : folder, paths, arrays, PIL images, tensor or ImageSource
    groups : see `Detector.fit`
        The table by batch is by these groups, or by folder if there are several.
    everything_is_good : see `Detector.fit`
    **parameters : of `Detector`; unless said otherwise level and scorer are patch and knn, and a bank is of 4 096
        vectors, so that the threshold told is some 3 % above that of a fit

    Raises
    ------
    NoGoodImagesError
        If too few images can be read to fit a detector.

    Examples
    --------
    >>> from anomalib_lite.images.synthetic import render_part
    >>> good = [render_part(np.random.default_rng(i), 64)[0] for i in range(12)]
    >>> found = diagnose([*good, good[3]], image_size=64)
    >>> [(pair.first, pair.second) for pair in found.near_duplicates]
    [('image_0003', 'image_0012')]
    """
    source = open_source(images)
    # Every image may be the defective one, so every image is scored.
    usual = {"calibration_images": max(1, len(source)), "bank_size": _BANK}
    detector = Detector(**{**usual, **parameters, "calibration": "cross"})
    fitting = stages(detector.scorer, detector.embedder.level)
    again = fitting if groups is None and len(set(map(os.path.dirname, source.ids))) > 1 else []  # see `_batches`
    with work(detector.progress, *fitting, *again, WHOLE, COMPARING):
        detector.fit(source, groups=groups, everything_is_good=everything_is_good)
        source = detector.open(source)
        indices = np.array(sorted(detector.fitted_.train_scores))
        notes: list[str] = []
        batches = _attempt(notes, "table by batch", lambda: _batches(detector, source, groups))
        X, _ = embed_whole(detector.embedder, source, indices, workers=detector.workers)
        with stage(COMPARING, 6, "parts") as step:
            return _compared(detector, source, X, indices.tolist(), batches or [], notes, step)


def _attempt(notes: list[str], what: str, compute: Callable[[], T]) -> T | None:
    try:
        return compute()
    except ValueError as error:
        notes.append(f"No {what}: {error}.")
        return None


def _compared(
    detector: Detector,
    source: ImageSource,
    X: np.ndarray,
    indices: list[int],
    batches: list[statistics.Batch],
    notes: list[str],
    step: Callable[[], Any],
) -> Diagnosis:
    """What the images, and their vectors (n, d), say of one another; `step` is called when a part of it is done."""
    scores = detector.fitted_.train_scores
    ids = [source.ids[i] for i in indices]
    rows = PCA(min(_COMPONENTS, *X.shape), standardize=True).fit(X).transform(X)
    seed = detector.random_state

    def attempt(what: str, compute: Callable[[], T]) -> T | None:
        found = _attempt(notes, what, compute)
        step()
        return found

    distances = attempt("k-distance", lambda: statistics.k_distance(rows))
    return Diagnosis(
        n_images=len(indices),
        ids=ids,
        suspicious=statistics.suspicious(ids, [scores[i] for i in indices]),
        near_duplicates=near_duplicates(X, ids),
        parts=duplicate_groups(X),
        calibration=detector.fitted_.calibration.explain(),
        # Of rotated copies, which follow each other, the first is the image as it is.
        sizes=Counter(
            (int(h), int(w)) for h, w in detector.fitted_.train.sizes[np.array(indices) * detector.fitted_.train.copies]
        ).most_common(),
        elbow=attempt("elbow", lambda: statistics.elbow(rows, random_state=seed)),
        spread=attempt("spread", lambda: measured_spread(source, workers=detector.workers)),
        declared=detector.variations,
        region=detector.fitted_.frame.region if detector.fitted_.frame else None,
        batches=batches,
        silhouette=attempt("silhouette", lambda: statistics.silhouette(rows, random_state=seed)),
        k_distance=distances,
        dbscan=attempt("DBSCAN", lambda: statistics.dbscan_sweep(rows)) if distances else None,
        variance=statistics.explained_variance((X - X.mean(axis=0)) / np.maximum(X.std(axis=0), 1e-12)),
        map=attempt("map", lambda: Projector("tsne", random_state=seed).fit(X)),
        notes=notes,
        unreadable=detector.unreadable_,
    )


def _batches(detector: Detector, source: ImageSource, groups: Groups | None) -> list[statistics.Batch]:
    """False alarms by group, or by folder if none are given; each image scored without all of its batch."""
    if groups == EACH:
        return []
    names = group_names(PARENT if groups is None else groups, source.ids)
    fitted = detector.fitted_
    if groups is None:
        readable = {names[i] for i in fitted.train_scores}
        if len(readable) < 2:
            return []
        again = detector.unfitted()
        with warnings.catch_warnings():  # the first fit has said it
            warnings.simplefilter("ignore")
            fitted = again.fit(source, groups=names, everything_is_good=True).fitted_
    scores = fitted.train_scores
    return statistics.batches([names[i] for i in scores], list(scores.values()), detector.false_alarm_rate)


def _thumbnails(source: ImageSource, ids: list[str], side: int = 48) -> Callable[[int], np.ndarray]:
    from anomalib_lite.images.framing import resize

    position = {name: i for i, name in enumerate(source.ids)}
    return lambda row: resize(source.read(position[ids[row]]), side)


def _listed(names: list[str], between: str = ", ") -> str:
    shown = between.join(names[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"
