"""The results of a comparison: its rows, and the tables and figures made of them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anomalib_lite.comparison.methods import Kind
from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.outcome import Misclassified


@dataclass(frozen=True)
class ComparisonRow:
    """One method over all seeds: means and standard deviations. None where undefined, or where it failed.

    Recall, false alarms and accuracy count a supervised model's probability above one half, and a detector's alarm, as
    predicted defective. A detector with enough images promises its false-alarm rate (`promised_rate`); a supervised
    model promises none, so its recall is at whatever false alarms one half happens to give. `false_alarms` of
    `n_test_good` good images are counted over all seeds. `error` is the first that a seed failed with.
    """

    name: str
    kind: Kind
    image_auroc_mean: float | None
    image_auroc_std: float | None
    accuracy_mean: float | None
    balanced_accuracy_mean: float | None
    pixel_auroc_mean: float | None
    pixel_auroc_std: float | None
    aupro_mean: float | None
    iou_mean: float | None
    train_seconds: float | None
    ms_per_image: float | None
    seeds: int
    error: str | None = None
    promised_rate: float | None = None
    recall_mean: float | None = None
    recall_std: float | None = None
    false_alarms: int | None = None
    n_test_good: int | None = None


@dataclass(frozen=True)
class LeftOutRow:
    """A kind of defect, told from good images by a method that learnt it, and by one that never saw it labelled.

    Recall is at the method's own threshold. Detectors never see labels: both columns are the same.
    """

    defect: str
    name: str
    kind: Kind
    seen_auroc: float | None
    unseen_auroc: float | None
    unseen_auroc_std: float | None
    seen_recall: float | None
    unseen_recall: float | None
    error: str | None = None


@dataclass(frozen=True)
class FewLabelsRow:
    """A method that learnt from all good images and so many labelled defects."""

    name: str
    kind: Kind
    labels: int
    image_auroc_mean: float | None
    image_auroc_std: float | None
    error: str | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes
    ----------
    rows, left_out, few_labels : lists of `ComparisonRow`, `LeftOutRow`, `FewLabelsRow`
    misclassified : by method, of the first seed
    curves : training curves by supervised method, of the first seed
    maps : of methods that outline defects, a few predicted maps by image id, of the first seed; see `runs.Run`
    counts : images to learn from and to test on, good and defective, of the first seed
    unreadable, problems : what was left out, and why
    settings : what was asked for

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> from anomalib_lite import compare
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=8, n_good=6, n_defect=2, size=64)
    >>> found = compare(folder, models=["knn"], seeds=1, leave_one_out=False, few_labels=[])
    >>> found.rows[0].image_auroc_mean > 0.5, found.left_out, found.few_labels
    (True, [], [])
    """

    rows: list[ComparisonRow]
    left_out: list[LeftOutRow]
    few_labels: list[FewLabelsRow]
    misclassified: dict[str, list[Misclassified]]
    curves: dict[str, dict[str, list[float]]]
    maps: dict[str, dict[str, np.ndarray]]
    counts: dict[str, int]
    unreadable: list[UnreadableImage]
    problems: list[str]
    settings: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """All fields but the maps, JSON-able."""
        return {name: value for name, value in asdict(self).items() if name != "maps"}

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict())

    def to_markdown(self) -> str:
        """The tables."""
        rows = sorted(self.rows, key=lambda row: -(row.image_auroc_mean or 0.0))
        lines = [
            "| name | kind | rate promised | recall | false alarms | image AUROC | accuracy | balanced | pixel AUROC | "
            "AUPRO | train s | ms per image |",
            "|" + " --- |" * 12,
            *(
                f"| {_cell(row.name)} | {row.kind} | {_promised(row)} | {_spread(row.recall_mean, row.recall_std)} | "
                f"{_false_alarms(row)} | {_spread(row.image_auroc_mean, row.image_auroc_std)} | "
                f"{number(row.accuracy_mean)} | {number(row.balanced_accuracy_mean)} | "
                f"{_spread(row.pixel_auroc_mean, row.pixel_auroc_std)} | {number(row.aupro_mean)} | "
                f"{number(row.train_seconds, 1)} | {number(row.ms_per_image, 1)} |"
                for row in rows
            ),
        ]
        if self.left_out:
            lines += [
                "",
                "| defect | name | recall, labelled | never labelled | AUROC, labelled | AUROC, never labelled |",
                "| --- | --- | --- | --- | --- | --- |",
                *(
                    f"| {_cell(row.defect)} | {_cell(row.name)} | {number(row.seen_recall)} | "
                    f"{number(row.unseen_recall)} | {number(row.seen_auroc)} | "
                    f"{_spread(row.unseen_auroc, row.unseen_auroc_std)} |"
                    for row in self.left_out
                ),
            ]
        if self.few_labels:
            counts = sorted({row.labels for row in self.few_labels})
            names = list(dict.fromkeys(row.name for row in self.few_labels))
            by_place = {(row.name, row.labels): row for row in self.few_labels}
            lines += [
                "",
                "| labelled defects | " + " | ".join(str(count) for count in counts) + " |",
                "| --- |" + " --- |" * len(counts),
            ]
            for name in names:
                cells = [by_place.get((name, count)) for count in counts]
                texts = [_spread(cell.image_auroc_mean, cell.image_auroc_std) if cell else "" for cell in cells]
                lines.append(f"| {_cell(name)} | " + " | ".join(texts) + " |")
        every: list[ComparisonRow | LeftOutRow | FewLabelsRow] = [*self.rows, *self.left_out, *self.few_labels]
        failed = dict.fromkeys((row.name, row.error) for row in every if row.error)
        errors = [f"- {_cell(name)} failed: {_cell(error)}" for name, error in failed if error]
        return "\n".join([*lines, *([""] if errors else []), *errors])

    def save(self, folder: str | os.PathLike[str], images: LabelledImages | None = None) -> list[Path]:
        """Write comparison.md, comparison.json and the figures; with the images also galleries of those
        misclassified and of predicted masks.

        Raises
        ------
        OSError
            If the folder cannot be written.
        """
        from anomalib_lite.comparison import figures as drawing
        from anomalib_lite.plotting.curves import plot_training

        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = [
            write_atomically(target / "comparison.md", (self.to_markdown() + "\n").encode()),
            write_atomically(target / "comparison.json", self.to_json().encode()),
        ]
        figures = {"comparison": drawing.plot_comparison(self.rows)}
        if self.left_out:
            figures["left_out"] = drawing.plot_left_out(self.left_out)
        if self.few_labels:
            figures["few_labels"] = drawing.plot_few_labels(self.few_labels)
        for name, curves in self.curves.items():
            figures[f"training_{file_name(name)}"] = plot_training(curves)
        for name, wrong in self.misclassified.items():
            if wrong and images is not None:
                figures[f"misclassified_{file_name(name)}"] = drawing.plot_misclassified(wrong, images.source)
        for name, maps in self.maps.items():
            if images is not None:
                figures[f"masks_{file_name(name)}"] = drawing.plot_predicted_masks(maps, images)
        for name, figure in figures.items():
            written.append(target / f"{name}.png")
            figure.savefig(written[-1])
        return written


def file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in name)


def number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}f}"


def _cell(name: str) -> str:
    """A name that does not end its cell."""
    return " ".join(name.replace("|", "\\|").split())


def _promised(row: ComparisonRow) -> str:
    return "none" if row.promised_rate is None else f"{100 * row.promised_rate:.3g} %"


def _false_alarms(row: ComparisonRow) -> str:
    """Share of the good images, and the counts behind it."""
    if row.false_alarms is None or not row.n_test_good:
        return "n/a"
    return f"{row.false_alarms / row.n_test_good:.3f} ({row.false_alarms} of {row.n_test_good})"


def _spread(mean: float | None, deviation: float | None) -> str:
    return number(mean) if mean is None else f"{mean:.3f} ± {deviation:.3f}"
