"""Supervised and unsupervised on one held-out half: a labelled folder in, a table of all of them out.

Every seed divides the images once; every contestant learns from the same half and is asked about the other. Detectors
learn from its good images alone. Two studies follow: what happens to a defect nobody has labelled (each kind left out
of training in turn), and how many labelled defects it takes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anomalib_lite.comparison.methods import (
    SUPERVISED,
    UNET,
    UNSUPERVISED,
    Contestant,
    Settings,
    read_contestant,
)
from anomalib_lite.comparison.runs import Verdict, verdict_of
from anomalib_lite.comparison.store import Ledger
from anomalib_lite.comparison.summaries import (
    comparison_row,
    counts_of,
    few_labels_row,
    image_auroc,
    left_out_row,
    mistakes,
)
from anomalib_lite.comparison.tables import Comparison, FewLabelsRow, LeftOutRow, file_name, number
from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.weights import Weights
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.labelled import LabelledDataError, LabelledImages, open_labelled
from anomalib_lite.supervised.segmenter import check_masks
from anomalib_lite.supervised.splitting import Split, split, survey, with_defects, without_kind
from anomalib_lite.supervised.training import TrainingError

STUDIED = ("cnn", "bottleneck", "linear", "knn", "subspace")
"""Models that take part in the two studies unless others are named: they are quick to train again and again."""


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
    models : names as `read_contestant` takes them, optional
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
        Who takes part in these two studies; by default those that are quick to train, or all where none is.
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

    Raises
    ------
    LabelledDataError
        If the labels do not allow a comparison: one class, no good one, an empty one, one with a single image; or the
        U-Net takes part and a mask does not fit its image or has none.
    ValueError, WeightsError
        If a model does not exist or cannot be had; before anything is trained.
    TrainingError
        If every model failed. One that fails alone becomes a row with the text of its error.
    """
    if seeds < 1 or study_seeds < 0 or any(count < 1 for count in few_labels):
        raise ValueError(f"seeds={seeds}, study_seeds={study_seeds}, few_labels={few_labels}: need 1 or more")
    images = dataset if isinstance(dataset, LabelledImages) else open_labelled(dataset, good=good)
    images.defective  # noqa: B018 - says at once if no class is good
    contestants = _contestants(models, images, backbone)
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
    if any(contestant.model == UNET for contestant in contestants):
        check_masks(images)
    studied = _studied(contestants, study_models)
    digests = {contestant.name: contestant.digest(settings) for contestant in contestants}
    surveyed = survey(images)
    cache = CachedImages(images, surveyed.readable)
    asked = {
        "models": [contestant.name for contestant in contestants],
        "backbone": backbone,
        "seeds": seeds,
        "epochs": epochs,
        "test": test,
        "image_size": image_size,
        "batch_size": batch_size,
        "grey": grey,
        "horizontal_flip": horizontal_flip,
        "false_alarm_rate": false_alarm_rate,
    }
    ledger = Ledger(checkpoints, {"test": test, "grey": grey, "ids": images.ids})
    bench = _Bench(images, cache, settings, ledger, digests, progress)
    divided = [split(images, surveyed, test=test, random_state=seed) for seed in range(max(seeds, study_seeds))]
    verdicts = {
        contestant: [bench.run(contestant, divided[seed], seed, "all") for seed in range(seeds)]
        for contestant in contestants
    }
    failed = [found[0] for found in verdicts.values() if all(isinstance(verdict, str) for verdict in found)]
    if len(failed) == len(contestants):
        raise TrainingError(f"every model failed, the first with: {failed[0]}")
    study = _Study(bench, divided[:study_seeds], studied)
    first = {c.name: found[0] for c, found in verdicts.items() if isinstance(found[0], Verdict)}
    return Comparison(
        rows=[comparison_row(contestant, found, images) for contestant, found in verdicts.items()],
        left_out=study.without_each_kind() if leave_one_out else [],
        few_labels=study.with_few_labels(few_labels),
        misclassified={name: mistakes(verdict, images) for name, verdict in first.items()},
        curves={name: verdict.curves for name, verdict in first.items() if verdict.curves},
        maps={name: verdict.maps for name, verdict in first.items() if verdict.maps},
        counts=counts_of(images, divided[0]),
        unreadable=surveyed.unreadable,
        problems=images.problems,
        settings=asked,
    )


def _contestants(models: Sequence[str] | None, images: LabelledImages, backbone: str) -> list[Contestant]:
    if models is not None:
        named = dict.fromkeys(name.strip() for name in models if name.strip())
        chosen = [read_contestant(name, backbone) for name in named]
        if not chosen:
            raise ValueError("no model named to compare; leave models out for all")
        return chosen
    has_masks = any(path is not None for path in images.mask_paths)
    names = [name for name in SUPERVISED if name != UNET or has_masks]
    return [read_contestant(name, backbone) for name in (*names, *UNSUPERVISED)]


def _studied(contestants: Sequence[Contestant], named: Sequence[str] | None) -> list[Contestant]:
    names = [contestant.name for contestant in contestants]
    strangers = [name for name in named or [] if name not in names]
    if strangers:
        raise ValueError(f"study_models: {', '.join(strangers)} is not among the models compared, {', '.join(names)}")
    if named is not None:
        return [contestant for contestant in contestants if contestant.name in named]
    cheap = [contestant for contestant in contestants if contestant.model in STUDIED]
    return cheap if any(contestant.kind == "supervised" for contestant in cheap) else list(contestants)


@dataclass(frozen=True)
class _Bench:
    """Runs contestants, each at most once per key; a training that fails becomes the text of its error."""

    images: LabelledImages
    cache: CachedImages
    settings: Settings
    ledger: Ledger
    digests: dict[str, str]
    progress: bool

    def run(self, contestant: Contestant, parts: Split, seed: int, study: str) -> Verdict | str:
        key = file_name(f"{contestant.name}_{self.digests[contestant.name]}_{study}_{seed}")
        verdict = self.ledger.get(key)
        if verdict is not None:
            return verdict
        if self.progress:
            print(f"{contestant.name}, seed {seed}, {study} …", end="", file=sys.stderr, flush=True)
        try:
            verdict = verdict_of(
                contestant,
                self.images,
                parts,
                self.cache,
                self.settings,
                random_state=seed,
                checkpoint=self.ledger.training(key),
            )
        except (TrainingError, LabelledDataError) as error:
            if self.progress:
                print(f" failed: {error}", file=sys.stderr)
            return str(error)
        self.ledger.put(key, verdict)
        if self.progress:
            area = image_auroc(verdict, self.images)
            print(f" image AUROC {number(area)} after {verdict.train_seconds:.1f} s", file=sys.stderr)
        return verdict


@dataclass(frozen=True)
class _Study:
    """The two studies: without each kind of defect, and with few labels."""

    bench: _Bench
    divided: Sequence[Split]
    contestants: Sequence[Contestant]

    @property
    def supervised(self) -> list[Contestant]:
        """Those whom labels matter to."""
        return [contestant for contestant in self.contestants if contestant.kind == "supervised"]

    @property
    def unsupervised(self) -> list[Contestant]:
        """Those who stand beside them as they are."""
        return [contestant for contestant in self.contestants if contestant.kind == "unsupervised"]

    def without_each_kind(self) -> list[LeftOutRow]:
        images = self.bench.images
        defects = [kind for kind in images.classes if kind != images.good]
        if len(defects) < 2 or not self.divided:
            return []
        rows = []
        for defect in defects:
            for contestant in self.supervised:
                seen = self._with_all(contestant)
                unseen = [
                    self.bench.run(contestant, without_kind(images, parts, defect), seed, f"without {defect}")
                    for seed, parts in enumerate(self.divided)
                ]
                rows.append(left_out_row(defect, contestant, seen, unseen, images))
            for contestant in self.unsupervised:
                found = self._with_all(contestant)
                rows.append(left_out_row(defect, contestant, found, found, images))
        return rows

    def with_few_labels(self, counts: Sequence[int]) -> list[FewLabelsRow]:
        images = self.bench.images
        if not self.divided:
            return []
        labelled = min(int(images.defective[parts.learning].sum()) for parts in self.divided)
        rows = []
        usable = [count for count in sorted(set(counts)) if 2 <= count <= labelled]
        for contestant in self.supervised:
            for count in usable:
                found = []
                for seed, parts in enumerate(self.divided):
                    few = with_defects(images, parts, count, random_state=seed)
                    found.append(self.bench.run(contestant, few, seed, f"{count} labels"))
                rows.append(few_labels_row(contestant, count, found, images))
        for contestant in self.unsupervised if rows else []:
            found = self._with_all(contestant)
            rows += [few_labels_row(contestant, count, found, images) for count in usable]
        return rows

    def _with_all(self, contestant: Contestant) -> list[Verdict | str]:
        """Verdicts of what learnt from every label."""
        return [self.bench.run(contestant, parts, seed, "all") for seed, parts in enumerate(self.divided)]
