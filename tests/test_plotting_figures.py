"""Figures of diagnostics, evaluations, maps and retrievals: each says what its numbers say."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from anomalib_lite import Detector
from anomalib_lite.comparison import figures
from anomalib_lite.diagnosis import figures as plots
from anomalib_lite.diagnosis import map_figure as maps
from anomalib_lite.diagnosis import statistics as diagnostics
from anomalib_lite.diagnosis.projection import EmbeddingMap
from anomalib_lite.fitted.core import Nearest
from anomalib_lite.images.local import ListSource
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.plotting import curves, overlays, retrieval
from anomalib_lite.plotting.style import GOOD, new_figure, shortened
from anomalib_lite.results import Scores

RNG = np.random.default_rng(0)
ROWS = np.repeat(20 * np.eye(3, 6), 20, axis=0) + RNG.normal(size=(60, 6))


def texts(figure):
    """Everything a reader can read in a figure."""
    found = []
    for axis in figure.axes:
        found += [axis.get_title(), axis.get_title(loc="left"), axis.get_xlabel(), axis.get_ylabel()]
        found += [text.get_text() for text in axis.texts]
        if axis.get_legend():
            found += [text.get_text() for text in axis.get_legend().get_texts()]
    return " | ".join(found)


def assert_nothing_is_clipped(figure, tmp_path):
    """The drawn picture has a margin of paper on all sides."""
    figure.savefig(tmp_path / "figure.png")
    pixels = np.asarray(Image.open(tmp_path / "figure.png").convert("L"))
    border = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    assert (border > 250).all()


DRAWINGS = {
    "elbow": (lambda: plots.plot_elbow(diagnostics.elbow(ROWS)), "elbow: 3 clusters"),
    "silhouette": (lambda: plots.plot_silhouette(diagnostics.silhouette(ROWS)), "best: 3 clusters"),
    "k-distance": (lambda: plots.plot_k_distance(diagnostics.k_distance(ROWS)), "knee: eps"),
    "dbscan": (lambda: plots.plot_dbscan_sweep(diagnostics.dbscan_sweep(ROWS), 2.0), "eps 2"),
    "variance": (lambda: plots.plot_explained_variance(diagnostics.explained_variance(ROWS)), "90%: 2 components"),
    "suspicious": (
        lambda: plots.plot_suspicious(diagnostics.suspicious(["odd.png", *"abcdefghi"], [9, *np.linspace(1, 1.1, 9)])),
        "1. odd.png",
    ),
    "histogram": (
        lambda: curves.plot_score_histogram([1, 2, 3, 9], ["good", "good", "bent", "bent"], 2.5),
        "alarm above 2.5",
    ),
    "roc": (lambda: curves.plot_roc([0, 0, 1, 1], {"kNN": [1, 3, 2, 4]}), "kNN, AUROC 0.750"),
    "precision": (lambda: curves.plot_precision_recall([0, 1, 1], {"kNN": [1, 2, 3]}), "kNN, AP 1.000"),
    "confusion": (lambda: curves.plot_confusion(["good", "bent", "bent"], ["good", "good", "bent"]), "actual"),
    "calibration": (lambda: curves.plot_calibration(RNG.random(40)), "observed on\n40 good images"),
    "calibration with a note": (
        lambda: curves.plot_calibration(np.ones(40), smallest_rate=1 / 41, note="Fewer than promised at 5 %. " * 6),
        "smallest rate that\n40 images support",
    ),
    "training": (
        lambda: curves.plot_training(
            {"train_loss": [3, 2, 1], "validation_loss": [3, 2, 2], "train_accuracy": [0, 1, 1]}
        ),
        "validation",
    ),
}


@pytest.mark.parametrize("name", DRAWINGS)
class TestEveryFigure:
    def test_says_what_was_found(self, name):
        draw, told = DRAWINGS[name]
        figure = draw()
        assert isinstance(figure, Figure)
        assert told in texts(figure)

    def test_is_drawn_whole(self, name, tmp_path):
        assert_nothing_is_clipped(DRAWINGS[name][0](), tmp_path)


NAMES = {
    "dollars": "part$_$x.png",
    "formula": r"$\frac{1}{$ 5\$ a\b^c.png",
    "controls": "a\nb\r\tc\0d\u202egnp\udcff.png",
    "scripts": "😀🏭جزء部品.png",
    "long": "_" + "x" * 300,
    "empty": "",
}


def drawings_of(name):
    """Every figure that a user's text reaches, with `name` as that text."""
    pixels, mask = np.zeros((8, 8, 3), np.uint8), np.arange(64).reshape(8, 8) > 40
    one = np.array([2.0])
    scores = Scores(
        [name], one, one / 2, one > 1, 1.0, 0.1, True, [(8, 8)], np.arange(4, dtype=np.float32).reshape(1, 2, 2),
        nearest=[Nearest((0, 0, 4, 4), name, (4, 4, 8, 8), 0.5)],
    )  # fmt: skip
    images = ListSource([pixels], [name])
    placed = EmbeddingMap(np.arange(8.0).reshape(4, 2), np.arange(4), False, "umap")
    yield curves.plot_score_histogram([1, 2, 3], ["good", name, name], 1.5)
    yield curves.plot_roc([0, 1, 1], {name: [1, 2, 3]})
    yield curves.plot_precision_recall([0, 1, 1], {name: [1, 2, 3]})
    yield curves.plot_confusion(["good", name], [name, "good"])
    yield curves.plot_training({f"{name}_loss": [2, 1]})
    yield plots.plot_suspicious(diagnostics.suspicious([name, *"abc"], [4, 1, 1, 1]))
    yield maps.plot_embedding_map(placed, ["training", "good", name, name])
    yield overlays.plot_anomaly_map(scores, 0, images)
    yield overlays.plot_masks([pixels], [mask], [mask], [name])
    yield overlays.contact_sheet(scores, images)
    yield retrieval.plot_retrieval(scores, 0, images, images)
    yield figures.plot_misclassified([SimpleNamespace(id=name, predicted=name, probability=0.5, actual=name)], images)


class TestNamesOfStrangers:
    @pytest.mark.filterwarnings("error")
    @pytest.mark.parametrize("name", NAMES.values(), ids=NAMES.keys())
    def test_are_drawn_without_a_stumble(self, name):
        for figure in drawings_of(name):
            figure.canvas.draw()

    @pytest.mark.parametrize("name", ["part$_$x", r"a\$_$", "a_{2}"])
    def test_are_drawn_as_they_stand(self, name):
        """Letter by letter: no formula, no escape left over."""

        def drawn(text, **options):
            figure = new_figure(2, 1)
            figure.text(0.1, 0.5, text, **options)
            figure.canvas.draw()
            return np.asarray(figure.canvas.buffer_rgba())

        assert np.array_equal(drawn(name), drawn(name, parse_math=False))

    def test_a_name_is_one_line_and_keeps_its_end(self):
        assert shortened("a\nb.png") == r"a\nb.png"
        assert shortened("\udcff.png") == r"\udcff.png"
        assert shortened("x" * 300 + ".png") == "…" + "x" * 19 + ".png"

    def test_a_kind_that_begins_with_an_underscore_is_in_the_legend(self):
        placed = EmbeddingMap(np.arange(8.0).reshape(4, 2), np.arange(4), False, "umap")
        assert "_bad (2)" in texts(maps.plot_embedding_map(placed, ["training", "good", "_bad", "_bad"]))


class TestCurves:
    def test_agree_with_scikit_learn_on_infinite_scores_too(self):
        labels, scores = [0, 1, 0, 1, 1], [-np.inf, 2.0, 2.0, 3.0, np.inf]
        assert "AUROC 0.917" in texts(curves.plot_roc(labels, {"kNN": scores}))
        assert "AP 0.917" in texts(curves.plot_precision_recall(labels, {"kNN": scores}))
        steps = curves.plot_precision_recall(labels, {"kNN": scores}).axes[0].lines[0].get_xydata()
        assert steps == pytest.approx(np.array([[1 / 3, 1], [2 / 3, 1], [1, 3 / 4], [1, 3 / 5]]))

    def test_need_good_and_defective_images(self):
        for draw in (curves.plot_roc, curves.plot_precision_recall):
            with pytest.raises(ValueError, match="2 of 2 images are defective; a curve needs good and defective"):
                draw([1, 1], {"kNN": [1, 2]})

    def test_roc_treats_ties_as_one_step(self):
        """All scores equal: the curve is the diagonal, not a staircase that depends on the order."""
        line = curves.plot_roc([1, 0, 1, 0], {"same": [5, 5, 5, 5]}).axes[0].lines[0]
        assert line.get_xydata().tolist() == [[0, 0], [1, 1]]

    def test_confusion_counts(self):
        figure = curves.plot_confusion(["good", "bent", "bent", "good"], ["good", "good", "bent", "good"])
        assert [text.get_text() for text in figure.axes[0].texts] == ["2", "0", "1", "1"]

    def test_calibration_uses_good_images_only(self):
        figure = curves.plot_calibration([0.001, 0.5, 0.9], [True, False, False])
        observed = figure.axes[0].lines[-1].get_ydata()
        assert max(observed) == 0
        assert "2 good images" in texts(figure)

    def test_calibration_draws_nothing_below_the_smallest_rate(self):
        figure = curves.plot_calibration([0.1, 0.2, 0.9], smallest_rate=0.1)
        targets, observed = figure.axes[0].lines[-1].get_data()
        assert np.isnan(observed[targets < 0.1]).all()
        assert observed[targets >= 0.1][0] == pytest.approx(1 / 3)
        assert "smallest rate that\n9 images support" in texts(figure)

    @pytest.mark.parametrize("smallest_rate", [1 / 3, 1 / 2, 1.0])
    def test_calibration_shows_a_smallest_rate_that_is_large(self, smallest_rate):
        axis = curves.plot_calibration([0.1, 0.9], smallest_rate=smallest_rate).axes[0]
        assert axis.get_xlim()[1] >= smallest_rate

    def test_a_calibration_of_no_alarms_is_seen_above_the_axis(self):
        axis = curves.plot_calibration(np.ones(60)).axes[0]
        assert axis.get_ylim()[0] < 0

    def test_the_note_of_a_calibration_stands_below_the_axes(self):
        note = "Fewer alarms than promised: recall is given away (of 60 good images 0 at 10 %, 0 at 20 %)."
        figure = curves.plot_calibration(np.ones(60), note=note)
        figure.canvas.draw()
        written = figure.get_supxlabel().replace("\n", " ").replace("\N{NO-BREAK SPACE}", " ")
        assert written == note
        renderer = figure.canvas.get_renderer()
        top = figure._supxlabel.get_window_extent(renderer).y1
        assert top < figure.axes[0].get_tightbbox(renderer).y0

    @pytest.mark.parametrize("name", ["good", "OK", "Normal", "test/ok"])
    def test_good_ones_come_first_and_grey_whatever_they_are_called(self, name):
        figure = curves.plot_score_histogram([1, 2, 3], ["bent", name, "Bent"], 2.5)
        assert figure.axes[0].get_ylabel() == f"{name} (1)"
        assert to_hex(figure.axes[0].patches[0].get_facecolor()) == GOOD
        ticks = curves.plot_confusion(["Bent", name], [name, "Bent"]).axes[0].get_yticklabels()
        assert [tick.get_text() for tick in ticks] == [name, "Bent"]


class TestMap:
    def draw(self, **options):
        placed = EmbeddingMap(RNG.normal(size=(30, 2)), np.arange(10, 40), True, "umap")
        kinds = [*["training"] * 30, *["good"] * 10, *["bent"] * 10]
        return maps.plot_embedding_map(placed, kinds, **options)

    def test_names_kinds_counts_and_that_it_is_a_sample(self):
        assert "UMAP of image embeddings, 30 of 50 images (coreset)" in texts(self.draw())
        assert "training (20) | good (10)" in texts(self.draw())

    @pytest.mark.parametrize("name", ["good", "OK", "Normal"])
    def test_puts_good_ones_after_training_whatever_they_are_called(self, name):
        placed = EmbeddingMap(RNG.normal(size=(6, 2)), np.arange(6), False, "umap")
        figure = maps.plot_embedding_map(placed, ["Bent", "Bent", name, name, "training", "training"])
        assert "training (2) | " + name + " (2) | Bent (2)" in texts(figure)

    def test_rings_alarms(self):
        assert "alarm (2)" in texts(self.draw(alarms=[i in (5, 12, 39) for i in range(50)]))

    def test_draws_thumbnails_of_the_right_rows(self):
        asked = []

        def thumbnail(row):
            asked.append(row)
            return np.zeros((8, 8, 3), np.uint8)

        self.draw(thumbnail=thumbnail, alarms=[i == 17 for i in range(50)])
        assert asked[0] == 17
        assert set(asked) <= set(range(10, 40))


@pytest.fixture(scope="module")
def data(synthetic_set):
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="module")
def scores(data):
    return Detector(image_size=128, false_alarm_rate=0.1).fit(data.train).score(data.test)


class TestAnomalyMap:
    def test_draws_the_line_of_the_threshold(self, data, scores, tmp_path):
        worst = int(scores.scores.argmax())
        figure = overlays.plot_anomaly_map(scores, worst, data.test)
        assert "alarm: score" in texts(figure)
        drawn = [collection for collection in figure.axes[1].collections if len(collection.get_paths())]
        assert drawn
        assert_nothing_is_clipped(figure, tmp_path)

    def test_a_good_image_has_no_line(self, data, scores):
        best = int(scores.patch_scores.max(axis=(1, 2)).argmin())
        if scores.patch_scores[best].max() < scores.threshold:
            assert not overlays.plot_anomaly_map(scores, best, data.test).axes[1].collections

    def test_needs_the_images_that_were_scored(self, data, scores):
        with pytest.raises(ValueError, match="give the same images"):
            overlays.plot_anomaly_map(scores, 0, data.train)


class TestRetrieval:
    def test_shows_the_image_and_its_nearest_good_patch(self, data, tmp_path):
        scores = Detector(image_size=64).fit(data.train).score(data.test)
        figure = retrieval.plot_retrieval(scores, 0, data.test, data.train)
        assert "unlike anything seen" in texts(figure)
        assert scores.nearest[0].train_id in texts(figure)
        assert np.array_equal(figure.axes[0].images[0].get_array(), data.test.read(0))
        trained = data.train.ids.index(scores.nearest[0].train_id)
        assert np.array_equal(figure.axes[3].images[0].get_array(), data.train.read(trained))
        assert_nothing_is_clipped(figure, tmp_path)
        with pytest.raises(ValueError, match="is not among the images given"):
            retrieval.plot_retrieval(scores, 0, data.train, data.train)

    def test_needs_neighbours(self, data):
        scores = Detector(image_size=64, scorer="kmeans", n_clusters=8).fit(data.train).score(data.test)
        with pytest.raises(ValueError, match="only scorer='knn'"):
            retrieval.plot_retrieval(scores, 0, data.test, data.train)
