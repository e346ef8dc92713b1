"""Figures and tables of a comparison: names from folders are written as they are."""

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.text import Text

from anomalib_lite.comparison import figures
from anomalib_lite.comparison.tables import Comparison, ComparisonRow, FewLabelsRow, LeftOutRow
from anomalib_lite.images.sources import open_source
from anomalib_lite.supervised.outcome import Misclassified

NAMES = ["$x_{$", r"a$\frac{1}$", "bent$", r"\alpha $^$"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def row(name):
    return ComparisonRow(name, "supervised", 0.9, 0.1, 0.8, 0.8, None, None, None, None, 1.0, 1.0, 2)


def drawn(figure):
    """Every text of the figure, once it has been drawn."""
    figure.savefig(io.BytesIO())
    return {text.get_text() for text in figure.findobj(Text)}


def test_names_of_methods(name, row):
    assert name in drawn(figures.plot_comparison([row, replace(row, name="other", kind="unsupervised")]))


def test_kinds_of_defects(name):
    rows = [LeftOutRow(kind, name, "supervised", 0.9, 0.8, 0.1, 0.5, 0.4) for kind in (name, "scratch", "dent")]
    texts = drawn(figures.plot_left_out(rows))
    assert {name, "scratch", "dent"} <= texts


def test_a_legend(name):
    rows = [FewLabelsRow(name, "supervised", labels, 0.9, 0.1) for labels in (2, 5)]
    rows += [FewLabelsRow(name + "2", "unsupervised", labels, 0.9, 0.1) for labels in (2, 5)]
    assert {name, f"{name}2, no labels"} <= drawn(figures.plot_few_labels(rows))


def test_a_gallery(name):
    source = open_source(np.zeros((1, 8, 8, 3), np.uint8))
    source.ids[0] = "folder/" * 9 + name
    wrong = [Misclassified(source.ids[0], name, name, 0.9)]
    (title,) = (text for text in drawn(figures.plot_misclassified(wrong, source)) if "predicted" in text)
    assert title.endswith(f"is {name}")
    assert max(map(len, title.splitlines())) <= 50


def test_recall_and_false_alarms_come_first(row):
    shown = replace(
        row, name="knn", promised_rate=0.05, recall_mean=0.75, recall_std=0.1, false_alarms=3, n_test_good=40
    )
    result = Comparison([shown, replace(row, name="cnn")], [], [], {}, {}, {}, {}, [], [], {})
    _, _, detector, supervised = result.to_markdown().splitlines()
    assert detector.startswith("| knn | supervised | 5 % | 0.750 ± 0.100 | 0.075 (3 of 40) | 0.900 ± 0.100 | 0.800 |")
    assert supervised.startswith("| cnn | supervised | none | n/a | n/a | 0.900 ± 0.100 | 0.800 |")


def test_a_table_keeps_its_cells(row):
    unseen = LeftOutRow("a|b\nc", "x|y", "supervised", 0.9, 0.8, 0.1, 0.5, 0.4, "first line\nsecond | line")
    result = Comparison([replace(row, name="x|y")], [unseen], [], {}, {}, {}, {}, [], [], {})
    lines = [line.replace(r"\|", "") for line in result.to_markdown().splitlines()]
    assert {line.count("|") for line in lines[:3]} == {13}
    assert {line.count("|") for line in lines[4:7]} == {7}
    assert lines[0].startswith("| name | kind | rate promised | recall | false alarms | image AUROC | ")
    assert lines[4].startswith("| defect | name | recall, labelled | never labelled | AUROC, labelled | ")
    assert lines[6] == "| ab c | xy | 0.500 | 0.400 | 0.900 | 0.800 ± 0.100 |"
    assert lines[-1] == "- xy failed: first line second  line"
