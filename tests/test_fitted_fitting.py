import numpy as np
import pytest

from anomalib_lite import Detector, NoGoodImagesError
from anomalib_lite.fitted import fitting
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.images.loading import resize
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.scoring import DBSCANScorer, KMeansScorer, KNNScorer, SubspaceScorer, image_score
from anomalib_lite.scoring.reduction import Standardizer

SCORERS = ("knn", "kmeans", "dbscan", "subspace")
SMALL = {"image_size": 128, "n_clusters": 24, "workers": 0}


@pytest.fixture(scope="module")
def data(synthetic_set):
    return open_mvtec(synthetic_set)


@pytest.fixture(scope="module")
def train(data):
    return [data.train.read(i) for i in range(12)]


class Counted:
    """An image source that counts how often each image is read."""

    def __init__(self, images):
        self.images = images
        self.ids = [f"{i:03d}" for i in range(len(images))]
        self.reads = [0] * len(images)

    def __len__(self):
        return len(self.images)

    def read(self, i):
        self.reads[i] += 1
        return self.images[i]


@pytest.mark.parametrize("scorer", SCORERS)
class TestBudgets:
    def test_when_everything_fits_each_image_is_read_once(self, train, scorer):
        source = Counted(train)
        detector = Detector(scorer=scorer, **SMALL).fit(source)
        assert source.reads == [1] * len(train)
        assert detector.fitted_.calibration.n == len(train)

    def test_tiny_budgets_read_again_and_still_calibrate_on_every_image(self, data, train, scorer, monkeypatch):
        detector = Detector(scorer=scorer, **SMALL)
        monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 4 * 256 * 384 * 4)  # four images
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        monkeypatch.setattr(type(detector.scorer), "max_rows", 300)
        if scorer == "knn":
            detector.scorer.bank_size = 200
        shown = rows_shown(type(detector.scorer), monkeypatch)
        source = Counted(train)
        detector.fit(source)
        assert sorted(source.reads) == [1] + [2] * (len(train) - 1)  # one was held
        assert detector.fitted_.calibration.n == len(train)
        assert max(shown) <= 300
        assert_finds_stains(detector, data)

    def test_at_most_so_many_images_calibrate(self, train, scorer, monkeypatch):
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        source = Counted(train)
        detector = Detector(scorer=scorer, calibration_images=5, **SMALL).fit(source)
        assert detector.fitted_.calibration.n == len(detector.fitted_.train_scores) == 5
        assert sum(source.reads) == len(train) + 4
        assert detector.n_train_ == len(train)


def rows_shown(scorer, monkeypatch):
    """Numbers of rows that `fit` of a scorer gets from now on."""
    shown = []
    fit = scorer.fit

    def counting(self, X, groups=None):
        shown.append(len(X))
        return fit(self, X, groups)

    monkeypatch.setattr(scorer, "fit", counting)
    return shown


def assert_finds_stains(detector, data):
    scores = detector.score(data.test).scores
    kinds = np.array(data.kinds)
    assert scores[kinds == "color"].mean() > scores[kinds == "good"].mean()
    assert len(set(scores)) == len(scores)


class TestCalibration:
    """Every training image is scored as if it had not been among them."""

    @pytest.mark.parametrize("bank_size", [4096, 100])
    def test_of_knn_uses_the_rows_of_other_images_only(self, train, bank_size):
        detector = Detector(bank_size=bank_size, k=1, top_share=0.2, **SMALL).fit(train)
        bank, origins = detector.fitted_.scorer.bank_, detector.fitted_.origins
        expected = []
        for index, pixels in enumerate(train):
            rows = rows_of(detector, pixels)
            others = bank[origins[:, 0] != index].astype(np.float64)
            distances = np.sqrt(((rows[:, None] - others) ** 2).sum(axis=2)).min(axis=1)
            expected.append(np.sort(distances)[-51:].mean())  # 20 % of 256 patches
        assert detector.fitted_.calibration.scores == pytest.approx(np.sort(expected), rel=1e-3)

    def test_is_far_above_scoring_training_images_again(self, train):
        for level in ("patch", "global"):
            detector = Detector(level=level, k=1, **SMALL).fit(train)
            assert detector.fitted_.calibration.scores.min() > 10 * max(detector.score(train).scores.max(), 1e-3), level

    def test_excludes_by_image_not_by_likeness(self, train):
        """A second copy of an image is another image, and its rows may be used."""
        detector = Detector(selection="full", k=1, **SMALL).fit([*train, train[4]])
        assert (detector.fitted_.calibration.scores < 0.05).sum() == 2
        assert detector.fitted_.calibration.scores[2] > 0.3

    @pytest.mark.parametrize("make", [KMeansScorer, SubspaceScorer, DBSCANScorer])
    def test_of_other_scorers_leaves_images_out_too(self, train, make):
        rng = np.random.default_rng(0)
        blocks = rng.normal(size=(10, 30, 4)).astype(np.float32)
        blocks[3] += 50  # unlike any other: far away if, and only if, it was left out
        scores = calibrated(blocks, make).scores
        assert scores[-1] > 5 * scores[-2]

    def test_at_the_global_level_leaves_images_out_of_the_reduction_too(self, train, monkeypatch):
        """With fewer images than dimensions a PCA knows the images it was learnt from."""
        learnt_from = []
        fit = Standardizer.fit

        def counting(self, X):
            learnt_from.append(len(X))
            return fit(self, X)

        monkeypatch.setattr(Standardizer, "fit", counting)
        Detector(level="global", **SMALL).fit(train)
        assert sorted(learnt_from) == [10] * 2 + [11] * 8 + [12]  # ten folds of 12 images, and all of them


def calibrated(blocks, make):
    """Fit on blocks (n, patches, d) as if they were embedded images; returns the calibration."""
    images = [
        fitting.EmbeddedImage(i, str(i), block.reshape(5, 6, -1), block[0], (50, 60)) for i, block in enumerate(blocks)
    ]
    plan = fitting.Plan(
        make_reduction=lambda most: Standardizer(), make_scorer=make, top_share=0.5, false_alarm_rate=0.1
    )
    fitted = fitting.fit_patches(lambda indices: (images[i] for i in indices), [image.id for image in images], plan)
    assert isinstance(fitted.calibration, Calibration)
    assert fitted.grid == (5, 6)
    return fitted.calibration


def rows_of(detector, pixels):
    grid = detector.embedder.embed(resize(pixels, detector.embedder.image_size)[None])[0]
    patches = grid.reshape(-1, grid.shape[-1])
    return detector.fitted_.reduction.transform(patches).astype(np.float64)


class TestOrigins:
    def test_name_the_image_and_patch_of_every_bank_row(self, train):
        detector = Detector(bank_size=80, **SMALL).fit(train)
        assert detector.fitted_.origins.shape == (80, 2)
        for row, (image, patch) in zip(detector.fitted_.scorer.bank_, detector.fitted_.origins, strict=True):
            assert row == pytest.approx(rows_of(detector, train[image])[patch], rel=1e-3, abs=1e-3)

    def test_survive_thinning(self, train, monkeypatch):
        monkeypatch.setattr(KNNScorer, "max_rows", 150)
        detector = Detector(bank_size=80, **SMALL).fit(train)
        assert len(np.unique(detector.fitted_.origins[:, 0])) > 6
        for row, (image, patch) in zip(detector.fitted_.scorer.bank_, detector.fitted_.origins, strict=True):
            assert row == pytest.approx(rows_of(detector, train[image])[patch], rel=1e-3, abs=1e-3)


class TestRotations:
    """Every image is learnt at several angles, and counts as one image all the same."""

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_count_as_one_image(self, train, level):
        broken = np.full((8, 8, 3), np.nan)
        detector = Detector(rotations=3, level=level, **SMALL).fit([*train[:6], broken])
        assert (detector.n_train_, detector.fitted_.calibration.n) == (6, 6)
        assert [(entry.index, entry.id) for entry in detector.unreadable_] == [(6, "image_0006")]

    @pytest.mark.parametrize("bank_size", [4096, 200])
    def test_calibration_leaves_all_copies_of_an_image_out(self, train, bank_size):
        detector = Detector(rotations=4, bank_size=bank_size, k=1, **SMALL).fit(train)
        bank, image = detector.fitted_.scorer.bank_, detector.fitted_.origins[:, 0] // 4
        expected = []
        for index, pixels in enumerate(train):
            others = bank[image != index].astype(np.float64)
            distances = ((rows_of(detector, pixels)[:, None] - others) ** 2).sum(axis=2)
            expected.append(np.sort(np.sqrt(distances.min(axis=1)))[-2:].mean())  # 1 % of 256 patches
        assert detector.fitted_.calibration.scores == pytest.approx(np.sort(expected), rel=1e-3)

    def test_make_turned_parts_ordinary(self, train):
        turned = [np.rot90(pixels) for pixels in train]
        plain, rotated = (Detector(rotations=n, selection="full", **SMALL).fit(train) for n in (1, 4))
        assert rotated.score(turned).scores.mean() < 0.5 * plain.score(turned).scores.mean()
        assert {entry.train_id[-4:] for entry in rotated.score(turned).nearest} == {"@90°"}

    def test_come_back_from_a_file(self, train, tmp_path):
        detector = Detector(rotations=2, **SMALL).fit(train)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.rotations == 2
        assert loaded.score(train).to_dict() == detector.score(train).to_dict()

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_do_not_make_one_image_many(self, train, level, monkeypatch):
        monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 1)
        with pytest.raises(NoGoodImagesError, match=r"1 readable image\(s\) among 1 to learn from"):
            Detector(rotations=4, level=level, **SMALL).fit(train[:1])
        assert Detector(rotations=4, level=level, **SMALL).fit(train[:3]).n_train_ == 3

    def test_do_not_make_equal_images_differ(self, train):
        with pytest.raises(ValueError, match=r"the training images are all the same \(3 were compared\)"):
            Detector(rotations=4, **SMALL).fit([train[0]] * 3)


def test_the_order_of_training_images_is_shuffled_by_the_seed(train, monkeypatch):
    """The first of the stream teach the PCA; in a folder they are often of one kind."""
    monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 1)
    thresholds = {Detector(random_state=seed, **SMALL).fit(train).fitted_.calibration.threshold for seed in (0, 1, 2)}
    assert len(thresholds) == 3


class TestTooFewImages:
    @pytest.mark.parametrize(
        ("parameters", "n", "least"),
        [({}, 1, 2), ({"scorer": "dbscan"}, 2, 3), ({"level": "global"}, 2, 3), ({"scorer": "subspace"}, 1, 2)],
    )
    def test_are_counted(self, train, parameters, n, least):
        message = rf"{n} readable image\(s\) among {n} to learn from; {least} good images are the least"
        with pytest.raises(NoGoodImagesError, match=message):
            Detector(**SMALL, **parameters).fit(train[:n])
        if parameters.get("scorer") == "dbscan":
            parameters = {**parameters, "min_samples": 2}
        assert Detector(**SMALL, **parameters).fit(train[:least]).n_train_ == least

    def test_the_same_image_over_and_over(self, train):
        for level in ("patch", "global"):
            with pytest.raises(ValueError, match=r"the training images are all the same \(4 were compared\)"):
                Detector(level=level, **SMALL).fit([train[0]] * 4)

    def test_copies_that_are_met_first_are_no_reason_to_stop(self, train, monkeypatch):
        monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 1)
        order = np.random.default_rng(0).permutation(4)
        images = [train[1], train[2], train[1], train[2]]
        images[order[0]] = images[order[1]] = train[0]
        assert Detector(**SMALL).fit(images).n_train_ == 4


def test_image_score():
    rng = np.random.default_rng(0)
    patches = rng.normal(size=1000)
    assert image_score(patches, 0.05) == pytest.approx(np.sort(patches)[-50:].mean())
    assert image_score(patches[:5], 0.01) == patches[:5].max()
    assert image_score(patches, 1.0) == pytest.approx(patches.mean())
