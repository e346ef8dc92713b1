import re
import shutil
from typing import ClassVar

import numpy as np
import pytest
from PIL import Image, ImageFilter
from told import but_for_the_time

from anomalib_lite import Detector, NoGoodImagesError, Variations
from anomalib_lite.fitted import fitting
from anomalib_lite.fitted.calibration import Calibration
from anomalib_lite.fitted.folds import assign_folds
from anomalib_lite.images.framing import resize
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.synthetic import render_part
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


@pytest.fixture(scope="module")
def many():
    return [render_part(np.random.default_rng(i), 128)[0] for i in range(24)]


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
        assert source.reads == [2] + [1] * (len(train) - 1)  # the first tells the proportions
        assert detector.fitted_.calibration.n == len(train)

    def test_tiny_budgets_read_again_and_still_calibrate_on_every_image(self, data, train, scorer, monkeypatch):
        detector = Detector(scorer=scorer, **SMALL)
        monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 4 * 256 * 384 * 4)  # four images
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        monkeypatch.setattr(type(detector.scorer), "max_rows", 600)
        if scorer == "knn":
            detector.scorer.bank_size = 200
        shown = rows_shown(type(detector.scorer), monkeypatch)
        source = Counted(train)
        detector.fit(source)
        source.reads[0] -= 1  # the first tells the proportions
        assert sorted(source.reads) == [1] + [2] * (len(train) - 1)  # one was held
        assert detector.fitted_.calibration.n == len(train)
        assert max(shown) <= 600
        assert_finds_stains(detector, data)

    def test_at_most_so_many_images_calibrate(self, train, scorer, monkeypatch):
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        source = Counted(train)
        detector = Detector(scorer=scorer, calibration_images=5, **SMALL).fit(source)
        assert detector.fitted_.calibration.n == len(detector.fitted_.train_scores) == 5
        assert sum(source.reads) == 1 + len(train) + 4  # the first tells the proportions
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

    def test_of_knn_equals_exact_refits_where_all_rows_fit(self, train):
        detector = Detector(bank_size=4096, k=1, top_share=0.2, **SMALL).fit(train)
        folds = assign_folds(np.arange(len(train)))
        rows = [rows_of(detector, pixels) for pixels in train]
        expected = {}
        for index, own in enumerate(rows):
            others = np.concatenate([rows[i] for i in range(len(train)) if folds[i] != folds[index]])
            refitted = KNNScorer(k=1).fit(others.astype(np.float32))
            expected[index] = image_score(refitted.score(own.astype(np.float32)), 0.2)
        found = detector.fitted_.train_scores
        assert [found[i] for i in range(len(train))] == pytest.approx(
            [expected[i] for i in range(len(train))], rel=1e-2
        )

    @pytest.mark.parametrize("seed", [0, 1])
    def test_of_knn_is_close_to_exact_refits_where_the_bank_is_small(self, many, seed):
        """Coresets of the folds, merged, stand for banks chosen from all rows of the other folds."""
        detector = Detector(bank_size=300, random_state=seed, **SMALL).fit(many)
        folds = assign_folds(np.arange(len(many)), random_state=seed)
        rows = [rows_of(detector, pixels).astype(np.float32) for pixels in many]
        expected, masked = [], []
        bank, origins = detector.fitted_.scorer.bank_, detector.fitted_.origins[:, 0]
        for index, own in enumerate(rows):
            others = np.concatenate([rows[i] for i in range(len(many)) if folds[i] != folds[index]])
            expected.append(image_score(KNNScorer(bank_size=300, random_state=seed).fit(others).score(own)))
            masked.append(image_score(KNNScorer(bank_size=300).fit(bank[origins != index]).score(own)))
        found = detector.fitted_.calibration.scores
        for share in (0.25, 0.5, 0.75):
            assert np.quantile(found, share) == pytest.approx(np.quantile(expected, share), rel=0.05)
        # The bank with holes makes an image look odder than a new one.
        assert np.median(masked) > 1.05 * np.median(found)

    def test_is_far_above_scoring_training_images_again(self, train):
        for level in ("patch", "global"):
            detector = Detector(level=level, k=1, **SMALL).fit(train)
            assert detector.fitted_.calibration.scores.min() > 10 * max(detector.score(train).scores.max(), 1e-3), level

    def test_a_second_copy_of_an_image_is_left_out_with_it_unless_said_otherwise(self, train):
        images = [*train, train[4]]
        with pytest.warns(UserWarning, match="1 part seems to have been photographed 2 times; such pictures are left"):
            together = Detector(selection="full", k=1, **SMALL).fit(images)
        apart = Detector(selection="full", k=1, **SMALL).fit(images, groups="each")
        assert (together.fitted_.calibration.n, together.fitted_.calibration.n_images) == (12, 13)
        assert together.fitted_.calibration.scores.min() > 0.3
        assert (apart.fitted_.calibration.n, apart.fitted_.calibration.n_images) == (13, 13)
        folds = assign_folds(np.arange(13))
        if folds[4] != folds[12]:
            assert (apart.fitted_.calibration.scores < 0.05).sum() == 2

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
        assert sorted(learnt_from) == [11] * 12 + [12]  # 12 images, fewer than folds: each left out, and all of them


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
    def test_name_an_image_and_patch_that_every_bank_row_is_the_nearest_to(self, train):
        detector = Detector(bank_size=80, **SMALL).fit(train)
        assert detector.fitted_.origins.shape == (80, 2)
        for number, (image, patch) in enumerate(detector.fitted_.origins.tolist()):
            row = rows_of(detector, train[image])[patch]
            assert np.linalg.norm(detector.fitted_.scorer.bank_ - row, axis=1).argmin() == number

    def test_survive_thinning(self, train, monkeypatch):
        monkeypatch.setattr(KNNScorer, "max_rows", 150)
        detector = Detector(bank_size=80, **SMALL).fit(train)
        assert len(np.unique(detector.fitted_.origins[:, 0])) > 6
        for number, (image, patch) in enumerate(detector.fitted_.origins.tolist()):
            row = rows_of(detector, train[image])[patch]
            assert np.linalg.norm(detector.fitted_.scorer.bank_ - row, axis=1).argmin() == number


class Watchful:
    """A user's own scorer that must never score what it has learnt; rows carry their image in the first column."""

    name = "watchful"
    max_rows = None
    fits: ClassVar[list] = []

    def fit(self, X, groups=None):
        self.seen = set(np.unique(groups).tolist())
        self.fits.append(self.seen)
        self.mean = X.mean(axis=0)
        return self

    def score(self, X):
        return np.linalg.norm(X - self.mean, axis=1).astype(np.float64)

    def parameters(self):
        return {}


class TestGroups:
    """Pictures of one group are left out together, and n counts groups."""

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_no_fold_divides_one(self, train, level, monkeypatch):
        monkeypatch.setattr(Watchful, "fits", [])
        groups = [0, 0, 0, 1, 1, 2, 3, 4, 4, 5, 5, 5]
        detector = Detector(scorer=Watchful(), level=level, **SMALL).fit(train, groups=groups)
        calibration = detector.fitted_.calibration
        assert (calibration.n, calibration.n_images) == (6, 12)
        whole, *folds = sorted(Watchful.fits, key=len, reverse=True)
        assert whole == {0, 1, 2, 3, 4, 5}
        assert sorted(map(len, folds)) == [5] * 6

    def test_all_ways_to_say_them_are_one(self, synthetic_set, tmp_path):
        for day, part in (("monday", 0), ("monday", 1), ("tuesday", 2), ("friday", 3), ("friday", 4)):
            (tmp_path / day).mkdir(exist_ok=True)
            shutil.copy(synthetic_set / "train" / "good" / f"{part:03d}.png", tmp_path / day)
        names = ["friday", "friday", "monday", "monday", "tuesday"]
        ids = ["friday/003.png", "friday/004.png", "monday/000.png", "monday/001.png", "tuesday/002.png"]
        ways = ["parent", "^([a-z]+)", names, dict(zip(ids, names, strict=True)), lambda name: name.split("/")[0]]
        thresholds = set()
        for groups in ways:
            fitted = Detector(**SMALL).fit(tmp_path, groups=groups).fitted_
            assert (fitted.calibration.n, fitted.train.groups.tolist()) == (3, [0, 0, 1, 1, 2])
            thresholds.add(fitted.calibration.threshold)
        assert len(thresholds) == 1

    def test_of_many_shots_nothing_is_promised_unless_they_are_named(self, train):
        rng = np.random.default_rng(0)
        shots = [np.clip(part + rng.normal(0, 2, part.shape), 0, 255).astype(np.uint8) for part in train for _ in "123"]
        with pytest.warns(UserWarning, match=r"12 parts seem .* 3 times each, so no false-alarm rate can be promised"):
            silent = Detector(false_alarm_rate=0.1, **SMALL).fit(shots)
        named = Detector(false_alarm_rate=0.1, **SMALL).fit(shots, groups=np.repeat(np.arange(12), 3))
        assert not silent.fitted_.calibration.guarantee_met
        assert named.fitted_.calibration.guarantee_met
        assert named.fitted_.calibration.n == silent.fitted_.calibration.n == 12

    def test_that_do_not_match_are_an_error_before_the_work(self, train):
        source = Counted(train)
        for groups, message in (
            ([0, 1], "2 groups for 12 pictures; give one for each"),
            ([7] * 12, "all 12 pictures are of one group"),
            ({"000": 1}, "groups has no entry for '001'"),
            ("part(", "neither 'parent' nor 'each' nor a regular expression"),
        ):
            with pytest.raises(ValueError, match=re.escape(message)):
                Detector(**SMALL).fit(source, groups=groups)
        assert sum(source.reads) == 0

    def test_two_are_enough_and_one_that_can_be_read_is_not(self, train):
        detector = Detector(**SMALL).fit(train[:4], groups=[0, 0, 1, 1])
        assert detector.fitted_.calibration.n == 2
        broken = np.full((8, 8, 3), np.nan)
        with pytest.raises(NoGoodImagesError, match=r"2 images of 1 group\(s\) can be read"):
            Detector(**SMALL).fit([train[0], train[1], broken], groups=[0, 0, 1])

    def test_an_image_of_which_nothing_is_learnt_calibrates_too(self, train, monkeypatch):
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        coarse = np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)
        noise = coarse.repeat(train[0].shape[0] // 32, axis=0).repeat(train[0].shape[1] // 32, axis=1)
        fitted = Detector(trim=1 / 7, **SMALL).fit([*train[:6], noise], groups="each").fitted_
        assert not (fitted.origins[:, 0] == 6).any()
        assert fitted.calibration.n == 7
        assert max(fitted.train_scores, key=fitted.train_scores.get) == 6


class TestSplit:
    """Images that calibrate are never learnt: then the promise is exact."""

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_nothing_learns_from_what_is_held_out(self, many, level, monkeypatch):
        learnt_from = []
        fit = Standardizer.fit
        monkeypatch.setattr(Standardizer, "fit", lambda self, X: learnt_from.append(len(X)) or fit(self, X))
        monkeypatch.setattr(Watchful, "fits", [])
        parameters = {"scorer": Watchful(), "n_components": None, "level": level, "calibration": "split"}
        source = Counted(many)
        detector = Detector(false_alarm_rate=0.1, **parameters, **SMALL).fit(source, groups="each")
        calibration, train = detector.fitted_.calibration, detector.fitted_.train
        assert source.reads == [2] + [1] * 23  # the first tells the proportions
        assert (calibration.n, calibration.exact) == (9, True)  # 1 / (9 + 1) is the rate
        (seen,) = Watchful.fits
        assert seen == set(range(24)) - set(train.calibrating.tolist())
        assert learnt_from == [15 * (256 if level == "patch" else 1)]
        assert "on average at most 10 %" in calibration.explain()

    @pytest.mark.parametrize(("rate", "held_out"), [(0.5, 6), (0.1, 9), (0.01, 12)])
    def test_holds_out_a_quarter_to_a_half(self, many, rate, held_out):
        detector = Detector(calibration="split", false_alarm_rate=rate, **SMALL).fit(many, groups="each")
        assert detector.fitted_.calibration.n == held_out

    def test_holds_out_whole_groups(self, many):
        groups = np.repeat(np.arange(8), 3)
        detector = Detector(calibration="split", false_alarm_rate=0.2, **SMALL).fit(many, groups=groups)
        held_out = groups[detector.fitted_.train.calibrating]
        assert sorted(np.bincount(held_out)[np.unique(held_out)].tolist()) == [3] * 4

    def test_none_that_can_be_read(self, train):
        class Breaking(Counted):
            def read(self, i):
                self.reads[i] += 1
                if sum(self.reads) > 3:  # one for the proportions, two that are learnt
                    raise UnreadableImageError("gone")
                return self.images[i]

        with pytest.raises(NoGoodImagesError, match="none of the images held out to calibrate can be read"):
            Detector(calibration="split", **SMALL).fit(Breaking(train[:4]), groups="each")


class TestVariations:
    """Every image is learnt in several copies, and counts as one image all the same."""

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_count_as_one_image(self, train, level):
        broken = np.full((8, 8, 3), np.nan)
        detector = Detector(variations=Variations(shift=0.05, draws=2), level=level, **SMALL).fit([*train[:6], broken])
        assert (detector.n_train_, detector.fitted_.calibration.n) == (6, 6)
        assert [(entry.index, entry.id) for entry in detector.unreadable_] == [(6, "image_0006")]

    @pytest.mark.parametrize("calibration", ["cross", "split"])
    def test_copies_are_left_out_with_their_image(self, train, calibration, monkeypatch):
        monkeypatch.setattr(Watchful, "fits", [])
        varied = Variations(brightness=0.2, draws=3)
        detector = Detector(scorer=Watchful(), variations=varied, calibration=calibration, **SMALL)
        detector.fit(train, groups="each")
        whole, *folds = sorted(Watchful.fits, key=len, reverse=True)
        if calibration == "split":
            assert len(whole) == 6
            assert not folds
        else:
            assert sorted(map(len, folds)) == [10] * 2 + [11] * 8

    def test_an_image_is_calibrated_by_the_worse_of_two_copies(self, train, monkeypatch):
        scored = []
        keep = fitting.keep_worst
        monkeypatch.setattr(fitting, "keep_worst", lambda kept, *one: scored.append(one) or keep(kept, *one))
        detector = Detector(variations=Variations(brightness=0.3, draws=3), **SMALL).fit(train, groups="each")
        scored = scored[::2]  # the others are the peaks of their maps
        assert sorted(number for number, _ in scored) == sorted(2 * list(range(12)))
        worst = {number: max(score for n, score in scored if n == number) for number in range(12)}
        assert detector.fitted_.train_scores == worst

    def test_all_copies_are_learnt(self, train):
        detector = Detector(variations=Variations(turn=180, draws=3), selection="full", **SMALL).fit(train)
        assert np.unique(detector.fitted_.origins[:, 0]).tolist() == list(range(48))

    def test_make_turned_parts_ordinary(self, train):
        turned = [np.rot90(pixels) for pixels in train]
        plain, varied = (
            Detector(variations=variations, selection="full", **SMALL).fit(train)
            for variations in (None, Variations(turn=180, draws=7))
        )
        assert varied.score(turned).scores.mean() < 0.8 * plain.score(turned).scores.mean()
        assert any("@" in entry.train_id for entry in varied.score(turned).nearest)

    @pytest.mark.parametrize("change", ["noise", "blur"])
    def test_make_another_camera_ordinary(self, many, change):
        """Under noise, or out of focus, the plain detector alarms at good parts; the one that was told does not."""
        rng = np.random.default_rng(0)
        changed = [
            np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)
            if change == "noise"
            else np.array(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(1)))
            for pixels in many[12:]
        ]
        told = Variations(noise=0.05) if change == "noise" else Variations(blur=1.0)
        plain, varied = (
            Detector(variations=variations, false_alarm_rate=0.1, **SMALL).fit(many[:12], groups="each").score(changed)
            for variations in (None, told)
        )
        assert plain.alarms.mean() > 0.3
        assert varied.alarms.mean() <= 0.1
        assert np.median(varied.p_values) > np.median(plain.p_values) + 0.2

    def test_come_back_from_a_file(self, train, tmp_path):
        detector = Detector(variations=Variations(noise=0.02, draws=1), **SMALL).fit(train)
        loaded = Detector.load(detector.save(tmp_path / "model.safetensors"))
        assert loaded.variations == Variations(noise=0.02, draws=1)
        assert but_for_the_time(loaded.score(train)) == but_for_the_time(detector.score(train))

    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_do_not_make_one_image_many(self, train, level, monkeypatch):
        monkeypatch.setattr(fitting, "_SAMPLE_BYTES", 1)
        parameters = {"variations": Variations(turn=180, draws=3), "level": level, **SMALL}
        with pytest.raises(NoGoodImagesError, match=r"1 readable image\(s\) among 1 to learn from"):
            Detector(**parameters).fit(train[:1])
        assert Detector(**parameters).fit(train[:3]).n_train_ == 3

    def test_do_not_make_equal_images_differ(self, train):
        with pytest.raises(ValueError, match=r"the training images are all the same \(3 were compared\)"):
            Detector(variations=Variations(turn=180, draws=3), **SMALL).fit([train[0]] * 3)

    def test_that_were_not_kept_are_read_again(self, train, monkeypatch):
        monkeypatch.setattr(fitting, "_HELD_BYTES", 1)
        source = Counted(train)
        detector = Detector(variations=Variations(brightness=0.2, draws=2), **SMALL).fit(source)
        source.reads[0] -= 1  # the first tells the proportions
        assert sum(source.reads) == 3 * 12 + 2 * 12 - 1  # two copies calibrate, and one was held
        assert detector.fitted_.calibration.n == 12


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
