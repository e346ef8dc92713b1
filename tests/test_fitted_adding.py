"""More good images into a fitted detector, and out again: as a fit on all of them would, and nothing else moves."""

import warnings

import numpy as np
import pytest
from told import but_for_the_time

from anomalib_lite import Detector, Variations
from anomalib_lite.images.synthetic import render_part

SMALL = {"image_size": 64, "workers": 0, "false_alarm_rate": 0.1}


def parts(first, count, defect=None):
    return [render_part(np.random.default_rng(i), 64, defect)[0] for i in range(first, first + count)]


def named(folder, first, count):
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for i, pixels in enumerate(parts(first, count)):
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def detector():
    return Detector(**SMALL).fit(parts(0, 24), groups="each")


@pytest.fixture(scope="module")
def grown(detector):
    return detector.add(parts(24, 24), groups="each")


class TestAdd:
    def test_ranks_as_a_fit_on_all_does(self, detector, grown):
        everything = Detector(**SMALL).fit(parts(0, 48), groups="each")
        test = parts(100, 30) + parts(200, 30, "color")
        found = [one.score(test).scores for one in (grown, everything)]
        gap = [scores[30:].mean() - scores[:30].mean() for scores in found]
        assert gap[0] == pytest.approx(gap[1], rel=0.25)
        assert grown.n_train_ == everything.n_train_ == 48

    def test_what_was_added_is_known(self, detector, grown):
        new = parts(24, 24)
        assert (grown.score(new).scores < detector.score(new).scores).mean() > 0.9

    def test_calibration_grows_by_scores_as_if_unseen(self, detector, grown):
        before, after = detector.fitted_.calibration, grown.fitted_.calibration
        unseen = detector.score(parts(24, 24)).scores
        assert np.array_equal(after.scores, np.sort(np.append(before.scores, unseen)))
        assert after.n == 48
        assert not after.exact
        assert grown.fitted_.peaks.n == 48
        assert [record.how for record in grown.fitted_.history] == ["fit", "add"]

    def test_the_old_one_stays_as_it_was(self, detector, grown):
        assert detector.n_train_ == 24
        assert len(detector.fitted_.calibration.scores) == 24

    def test_false_alarms_are_learnt_and_the_threshold_stays(self, detector):
        odd = [255 - pixels for pixels in parts(300, 3)]
        assert detector.score(odd).alarms.all()
        taught = detector.add(odd, groups="each", calibrating=False)
        assert not taught.score(odd).alarms.any()
        assert taught.fitted_.calibration.threshold == detector.fitted_.calibration.threshold
        assert (
            taught.score(parts(200, 10, "color")).alarms.mean()
            >= detector.score(parts(200, 10, "color")).alarms.mean() - 0.1
        )

    def test_ten_times_a_few(self, detector):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            grown = detector
            for i in range(5):
                grown = grown.add(parts(24 + 4 * i, 4), groups="each")
        assert grown.n_train_ == 44
        assert len(grown.fitted_.history) == 6
        assert grown.fitted_.train.ids[24:26] == ("image_0000 (2)", "image_0001 (2)")
        assert len(set(grown.fitted_.train.ids)) == 44

    def test_saved_and_loaded(self, grown, tmp_path):
        loaded = Detector.load(grown.save(tmp_path / "model.safetensors"))
        new = parts(100, 5)
        assert but_for_the_time(loaded.score(new)) == but_for_the_time(grown.score(new))
        assert loaded.add(parts(60, 3), groups="each").n_train_ == 51

    def test_the_nearest_good_patch_may_be_a_new_one(self, detector, tmp_path):
        grown = detector.add(named(tmp_path / "new", 500, 6), groups="each")
        nearest = grown.score(tmp_path / "new").nearest
        assert {one.train_id for one in nearest} & {f"{i:02d}.png" for i in range(6)}
        assert all(max(one.train_box) <= 64 for one in nearest)

    def test_groups_count_once(self, detector):
        grown = detector.add(parts(24, 12), groups=[f"part {i // 3}" for i in range(12)])
        assert grown.fitted_.calibration.n == 24 + 4
        with pytest.warns(UserWarning, match="such pictures count as one"):
            grown = detector.add([pixels for pixels in parts(24, 6) for _ in range(2)])
        assert grown.fitted_.calibration.n == 24 + 6

    def test_varied_copies(self):
        detector = Detector(**SMALL, variations=Variations(brightness=0.2, draws=2)).fit(parts(0, 10), groups="each")
        grown = detector.add(parts(10, 5), groups="each")
        assert grown.n_train_ == 15
        assert grown.fitted_.calibration.n_images == 15
        assert len(grown.fitted_.train.ids) == 45

    @pytest.mark.parametrize("selection", ["full", "random"])
    def test_other_banks(self, selection):
        detector = Detector(**SMALL, selection=selection, bank_size=500).fit(parts(0, 10), groups="each")
        grown = detector.add(parts(10, 5), groups="each")
        assert grown.n_train_ == 15
        if selection == "full":
            assert len(grown.fitted_.scorer.bank_) == 15 * 64

    def test_global_level(self):
        detector = Detector(**SMALL, level="global").fit(parts(0, 10), groups="each")
        grown = detector.add(parts(10, 5), groups="each")
        assert len(grown.fitted_.scorer.bank_) == 15
        assert (grown.score(parts(10, 5)).scores < 0.6 * detector.score(parts(10, 5)).scores).all()

    def test_what_cannot_be_read_is_listed(self, detector, tmp_path):
        folder = named(tmp_path / "new", 500, 3)
        (folder / "broken.png").write_bytes(b"no picture")
        with pytest.warns(UserWarning, match=r"1 images cannot be read: broken\.png"):
            grown = detector.add(folder, groups="each")
        assert grown.n_train_ == 27
        assert [entry.id for entry in grown.unreadable_] == ["broken.png"]
        assert grown.fitted_.train.ids[grown.unreadable_[0].index] == "broken.png"

    def test_nothing_that_can_be_read(self, detector, tmp_path):
        (tmp_path / "broken.png").write_bytes(b"no picture")
        with pytest.raises(ValueError, match=r"none of the images can be read.*broken\.png"):
            detector.add(tmp_path)

    def test_a_defect_among_them_is_doubted(self, detector):
        with pytest.warns(UserWarning, match="unlike the others"):
            detector.add([*parts(24, 20), 255 - parts(400, 1)[0]], groups="each")

    def test_what_varies_otherwise_is_said(self, detector):
        rng = np.random.default_rng(0)
        noise = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(3)]
        with pytest.warns(UserWarning, match="the PCA leaves out"):
            detector.add(noise, groups="each", calibrating=False)

    @pytest.mark.parametrize("parameters", [{"scorer": "kmeans", "n_clusters": 4}, {"level": "both"}])
    def test_who_keeps_no_bank(self, parameters):
        detector = Detector(**SMALL, **parameters).fit(parts(0, 8), groups="each")
        for change in (lambda: detector.add(parts(8, 2)), lambda: detector.remove(["image_0001"])):
            with pytest.raises(ValueError, match=r"[Ff]it again"):
                change()

    def test_before_a_fit(self):
        with pytest.raises(RuntimeError, match="not fitted yet"):
            Detector(**SMALL).add(parts(0, 3))


class TestRemove:
    def test_is_forgotten(self, detector, tmp_path):
        odd = [255 - pixels for pixels in parts(300, 2)]
        taught = detector.add(odd, groups="each", calibrating=False)
        assert not taught.score(odd).alarms.any()
        again = taught.remove(taught.fitted_.train.ids[24:])
        assert again.score(odd).alarms.all()
        assert again.n_train_ == 24
        assert np.array_equal(again.fitted_.calibration.scores, detector.fitted_.calibration.scores)
        loaded = Detector.load(again.save(tmp_path / "model.safetensors"))
        assert np.array_equal(loaded.score(odd).scores, again.score(odd).scores)

    def test_its_scores_go_with_it(self, detector):
        less = detector.remove("image_0005")
        gone = detector.fitted_.train_scores[5]
        left = detector.fitted_.calibration.scores
        assert np.array_equal(less.fitted_.calibration.scores, left[left != gone])
        assert less.fitted_.peaks.n == 23
        assert not (less.fitted_.origins[:, 0] >= 23).any()
        assert "image_0005" not in {one.train_id for one in less.score(parts(0, 10)).nearest}
        assert less.fitted_.train_scores[5] == detector.fitted_.train_scores[6]
        assert less.fitted_.history[-1].how == "remove"

    def test_every_copy_of_it(self):
        detector = Detector(**SMALL, variations=Variations(brightness=0.2, draws=2)).fit(parts(0, 6), groups="each")
        less = detector.remove([detector.fitted_.train.ids[4]])  # a copy of the second
        assert less.n_train_ == 5
        assert len(less.fitted_.train.ids) == 15

    def test_after_the_threshold_was_set_from_fresh_ones(self, detector):
        fresh = detector.recalibrate(parts(600, 20), groups="each")
        assert fresh.remove("image_0005").fitted_.calibration.n == 20

    @pytest.mark.parametrize(
        ("ids", "message"), [(["nobody.png"], "of no image that was learnt from"), (None, "fewer than two images")]
    )
    def test_what_cannot_go(self, detector, ids, message):
        with pytest.raises(ValueError, match=message):
            detector.remove(detector.fitted_.train.ids[1:] if ids is None else ids)

    def test_nothing_to_remove(self, detector):
        assert detector.remove([]).fitted_ is detector.fitted_
