"""Supervised and unsupervised on one held-out half: a labelled folder in, a table of all of them out.

Every seed divides the images once; every method learns from the same half and is tested on the other. Detectors
learn from its good images alone. Two studies follow: what happens to a defect nobody has labelled (each kind left out
of training in turn), and how many labelled defects it takes.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from anomalib_lite.comparison.methods import (
    SUPERVISED,
    UNET,
    UNSUPERVISED,
    Method,
    Settings,
    read_method,
)
from anomalib_lite.comparison.runs import Run, run
from anomalib_lite.comparison.store import RunStore
from anomalib_lite.comparison.summaries import (
    comparison_row,
    counts_of,
    few_labels_row,
    image_auroc,
    left_out_row,
    misclassified,
)
from anomalib_lite.comparison.tables import Comparison, FewLabelsRow, LeftOutRow, file_name, number
from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.labelled import LabelledImages, open_labelled
from anomalib_lite.supervised.segmenter import check_masks
from anomalib_lite.supervised.splitting import Split, split, survey, with_defects, without_kind
from anomalib_lite.supervised.training import TrainingError

STUDIED = ("cnn", "bottleneck", "linear", "knn", "subspace")
"""Models of the two studies unless others are named: they are quick to train again and again."""


def compare(
    dataset: str | os.PathLike[str] | LabelledImages,
    *,
    models: Sequence[str] | None = None,
    seeds: int = 3,
    epochs: int | None = None,
    backbone: str = BUILTIN,
    weights: Mapping[str, Weights] | None = None,
    test: float = 0.5,
    leave_one_out: bool = True,
    few_labels: Sequence[int] = (2, 5, 10, 20, 40),
    study_models: Sequence[str] | None = None,
    study_seeds: int = 1,
    image_size: int | None = None,
    batch_size: int | None = None,
    grey: bool = False,
    horizontal_flip: bool = False,
    false_alarm_rate: float = 0.01,
    good: str | None = None,
    checkpoints: str | os.PathLike[str] | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = False,
) -> Comparison:
    """Put supervised models and detectors on the same held-out half of a labelled folder.

    Parameters
    ----------
    dataset : folder of classes or in MVTec AD layout, or LabelledImages
    models : names as `read_method` takes them, optional
        By default every supervised model, the U-Net where there are masks, and seven detectors.
    seeds : int
        Divisions into halves, and trainings on each.
    epochs : int, optional
        At most; by default that of `TrainingOptions`.
    backbone : str
        Of models that name none.
    weights : dict from a backbone's name to its weights, optional
    test : float
        Share of each kind outside ``train`` that is held out.
    leave_one_out : bool
        Train again without each kind of defect, where there are two or more.
    few_labels : numbers of labelled defects to train again with; more than there are is left aside, empty for none.
    study_models : names among `models`, optional
        Models of these two studies; by default those that are quick to train, or all where none is.
    study_seeds : int
        Seeds of the two studies.
    image_size : int, optional
        Of models without a backbone.
    batch_size : int, optional
        Of trainings.
    grey : bool
        Take the colour away first, for supervised models and detectors alike.
    horizontal_flip : see `Augmentation`
    false_alarm_rate : float, of the detectors
    good : str, optional
        The class of good images, if it is not called good, ok or normal.
    checkpoints : folder, optional
        Keeps every finished result and the state of the training under way; the same call goes on from there.
    device : as for `Detector`
    dtype : as for `Detector`
    progress : bool
        Show what is being done on stderr.

    Raises
    ------
    LabelledDataError
        If the labels do not allow a comparison: one class, no good one, an empty one, one with a single image; or the
        U-Net is among the models and a mask does not fit its image or has none.
    ValueError, WeightsError
        If a model does not exist or cannot be had; before anything is trained.
    TrainingError
        If every model failed. One that fails alone, for whatever reason, becomes a row with the text of its error.
    OSError
        If `checkpoints` cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=8, n_good=6, n_defect=2, size=64)
    >>> found = compare(folder, models=["knn"], seeds=1, leave_one_out=False, few_labels=[])
    >>> [(row.name, row.kind, row.seeds) for row in found.rows]
    [('knn', 'unsupervised', 1)]
    """
    if seeds < 1 or study_seeds < 0 or any(count < 1 for count in few_labels):
        raise ValueError(f"seeds={seeds}, study_seeds={study_seeds}, few_labels={few_labels}: need 1 or more")
    images = dataset if isinstance(dataset, LabelledImages) else open_labelled(dataset, good=good)
    images.defective  # noqa: B018 - says at once if no class is good
    methods = _methods(models, images, backbone)
    settings = Settings(
        weights=weights or {},
        epochs=epochs,
        image_size=image_size,
        batch_size=batch_size,
        grey=grey,
        horizontal_flip=horizontal_flip,
        false_alarm_rate=false_alarm_rate,
        device=device,
        dtype=dtype,
    )
    if any(method.model == UNET for method in methods):
        check_masks(images)
    studied = _studied(methods, study_models)
    digests = {method: method.digest(settings) for method in methods}
    cache = CachedImages(images)
    surveyed = survey(images, cache)
    store = RunStore(checkpoints, {"test": test, "grey": grey, "good": images.good, "ids": images.ids})
    runner = _Runner(images, cache, settings, store, digests, progress)
    splits = [split(images, surveyed, test=test, random_state=seed) for seed in range(max(seeds, study_seeds))]
    runs = {method: [runner.run(method, splits[seed], seed, "all") for seed in range(seeds)] for method in methods}
    if not any(isinstance(result, Run) for results in runs.values() for result in results):
        raise TrainingError(f"every model failed, the first with: {runs[methods[0]][0]}")
    study = _Study(runner, splits[:study_seeds], studied)
    first = {method.name: results[0] for method, results in runs.items() if isinstance(results[0], Run)}
    return Comparison(
        rows=[comparison_row(method, results, images) for method, results in runs.items()],
        left_out=study.without_each_kind() if leave_one_out else [],
        few_labels=study.with_few_labels(few_labels),
        misclassified={name: misclassified(result, images) for name, result in first.items()},
        curves={name: result.curves for name, result in first.items() if result.curves},
        maps={name: result.maps for name, result in first.items() if result.maps},
        counts=counts_of(images, splits[0]),
        unreadable=surveyed.unreadable,
        problems=images.problems,
        settings={
            "models": [method.name for method in methods],
            "backbone": backbone,
            "seeds": seeds,
            "epochs": epochs,
            "test": test,
            "image_size": image_size,
            "batch_size": batch_size,
            "grey": grey,
            "horizontal_flip": horizontal_flip,
            "false_alarm_rate": false_alarm_rate,
        },
    )


def _methods(models: Sequence[str] | None, images: LabelledImages, backbone: str) -> list[Method]:
    if models is not None:
        named = dict.fromkeys(name.strip() for name in models if name.strip())
        chosen = [read_method(name, backbone) for name in named]
        if not chosen:
            raise ValueError("no model named to compare; leave models out for all")
        return chosen
    has_masks = any(path is not None for path in images.mask_paths)
    names = [name for name in SUPERVISED if name != UNET or has_masks]
    return [read_method(name, backbone) for name in (*names, *UNSUPERVISED)]


def _studied(methods: Sequence[Method], named: Sequence[str] | None) -> list[Method]:
    names = [method.name for method in methods]
    unknown = [name for name in named or [] if name not in names]
    if unknown:
        raise ValueError(f"study_models: {', '.join(unknown)} is not among the models compared, {', '.join(names)}")
    if named is not None:
        return [method for method in methods if method.name in named]
    cheap = [method for method in methods if method.model in STUDIED]
    return cheap if any(method.kind == "supervised" for method in cheap) else list(methods)


@dataclass(frozen=True)
class _Runner:
    """Runs methods, each at most once per split; a run that fails becomes the text of its error."""

    images: LabelledImages
    cache: CachedImages
    settings: Settings
    store: RunStore
    digests: dict[Method, str]
    progress: bool
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, method: Method, parts: Split, seed: int, study: str) -> Run | str:
        # Settings and split are in the digest, so names need only be legible: long ones are cut.
        divided = [self.digests[method], *(part.tolist() for part in (parts.train, parts.validation, parts.test))]
        digest = hashlib.sha256(json.dumps(divided).encode()).hexdigest()[:16]
        key = f"{file_name(method.name)[:40]}_{file_name(study)[:40]}_{seed}_{digest}"
        result = self.store.get(key, [self.images.ids[i] for i in parts.test.tolist()])
        if result is not None or key in self.failed:
            return result or self.failed[key]
        if self.progress:
            print(f"{method.name}, seed {seed}, {study} …", end="", file=sys.stderr, flush=True)
        try:
            result = run(
                method,
                self.images,
                parts,
                self.cache,
                self.settings,
                random_state=seed,
                checkpoint=self.store.training(key),
            )
        except Exception as error:  # whatever ails one method, the others' results stand
            named = isinstance(error, ValueError) and str(error)
            self.failed[key] = str(error) if named else f"{type(error).__name__}: {error}"
            if self.progress:
                print(f" failed: {self.failed[key]}", file=sys.stderr)
            return self.failed[key]
        self.store.put(key, result)
        if self.progress:
            area = image_auroc(result, self.images)
            print(f" image AUROC {number(area)} after {result.train_seconds:.1f} s", file=sys.stderr)
        return result


@dataclass(frozen=True)
class _Study:
    """The two studies: without each kind of defect, and with few labels."""

    runner: _Runner
    splits: Sequence[Split]
    methods: Sequence[Method]

    def without_each_kind(self) -> list[LeftOutRow]:
        images = self.runner.images
        defects = [kind for kind in images.classes if kind != images.good]
        if len(defects) < 2 or not self.splits:
            return []
        rows = []
        for defect in defects:
            for method in self._in_order():
                seen = unseen = self._runs(method, self.splits, "all")
                if method.kind == "supervised":
                    without = [without_kind(images, parts, defect) for parts in self.splits]
                    unseen = self._runs(method, without, f"without {defect}")
                rows.append(left_out_row(defect, method, seen, unseen, images))
        return rows

    def with_few_labels(self, counts: Sequence[int]) -> list[FewLabelsRow]:
        images = self.runner.images
        labelled = min((int(images.defective[parts.learning].sum()) for parts in self.splits), default=0)
        usable = [count for count in sorted(set(counts)) if 2 <= count <= labelled]
        rows: list[FewLabelsRow] = []
        for method in self._in_order() if any(method.kind == "supervised" for method in self.methods) else []:
            for count in usable:
                if method.kind == "supervised":
                    few = [with_defects(images, parts, count, random_state=i) for i, parts in enumerate(self.splits)]
                    results = self._runs(method, few, f"{count} labels")
                else:
                    results = self._runs(method, self.splits, "all")
                rows.append(few_labels_row(method, count, results, images))
        return rows

    def _in_order(self) -> list[Method]:
        """Those that labels matter to, then those that stand beside them as they are."""
        return sorted(self.methods, key=lambda method: method.kind != "supervised")

    def _runs(self, method: Method, splits: Sequence[Split], study: str) -> list[Run | str]:
        return [self.runner.run(method, parts, seed, study) for seed, parts in enumerate(splits)]
