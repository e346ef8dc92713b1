"""`diagnose`: finds what was put among good images, and says what to do about it."""

import json

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.diagnosis.advice import diagnose
from anomalib_lite.fitted.plan import NoGoodImagesError
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.images.variations import Variations


def parts(count, start=0):
    return [render_part(np.random.default_rng(start + i), 64)[0] for i in range(count)]


@pytest.fixture(scope="module")
def found():
    good = parts(20)
    defective = 255 - good[0]
    return diagnose([*good, good[3], defective], image_size=64)


def test_the_defective_image_is_the_most_suspicious(found):
    assert found.suspicious.ids[0] == "image_0021"
    assert found.suspicious.p_values[0] == pytest.approx(1 / 22)
    assert "Look at image_0021" in found.advice()


def test_the_copy_is_found(found):
    assert [(pair.first, pair.second) for pair in found.near_duplicates] == [("image_0003", "image_0020")]
    assert "image_0003 and image_0020" in found.advice()


def test_one_copy_is_tolerated(found):
    assert "1 part seems to have been photographed 2 times" in found.advice()
    assert "promises a little too much" in found.advice()


def test_several_shots_of_every_part_are_found_and_promise_nothing():
    rng = np.random.default_rng(0)
    shots = [
        np.clip(image + rng.normal(0, 2, size=image.shape), 0, 255).astype(np.uint8)
        for image in parts(8)
        for _ in range(5)
    ]
    found = diagnose(shots, image_size=64)
    named = [[f"image_{5 * i + j:04d}" for j in range(5)] for i in range(8)]
    assert found.shots() == found.to_dict()["shots_of_one_part"] == named
    assert "8 parts seem to have been photographed 5 times each: image_0000, image_0001" in found.advice()
    assert "too many of them to promise any false-alarm rate" in found.advice()


def test_the_dictionary_is_json_and_complete(found):
    as_read = json.loads(json.dumps(found.to_dict()))
    assert {"suspicious", "near_duplicates", "elbow_k", "silhouette_k", "eps"} <= set(as_read)
    assert [entry["id"] for entry in as_read["suspicious"]] == found.suspicious.ids
    assert as_read["suspicious"][0]["outlying"]


def test_every_figure_is_written(found, tmp_path):
    written = found.save_figures(tmp_path / "figures", [*parts(20), parts(20)[3], 255 - parts(1)[0]])
    assert {path.stem for path in written} == {
        "suspicious", "elbow", "silhouette", "k_distance", "dbscan", "variance", "map",
    }  # fmt: skip
    for path in written:
        assert Image.open(path).size[0] > 300


def test_clean_images_raise_no_suspicion():
    found = diagnose(parts(24), image_size=64)
    assert not found.near_duplicates
    assert found.suspicious.outlying.sum() <= 1


def test_images_of_another_size_are_told(tmp_path):
    for i, image in enumerate(parts(8)):
        Image.fromarray(image).resize((64, 48) if i == 5 else (64, 64)).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.png").write_bytes(b"no image")
    found = diagnose(tmp_path, image_size=64)
    assert "1 of 8 images are not 64 × 64 pixels" in found.advice()
    assert "8 images examined, 1 could not be read" in found.advice()
    assert [entry.id for entry in found.unreadable] == ["broken.png"]


def test_varied_copies_do_not_mix_up_the_sizes(tmp_path):
    for i, image in enumerate(parts(6)):
        Image.fromarray(image).resize((64, 48) if i == 5 else (64, 64)).save(tmp_path / f"{i}.png")
    found = diagnose(tmp_path, image_size=64, variations=Variations(turn=180, draws=1))
    assert found.sizes == [((64, 64), 5), ((48, 64), 1)]


def test_three_images_leave_most_parts_out_and_say_so():
    found = diagnose(parts(3), image_size=64)
    assert found.elbow is found.silhouette is found.map is None
    assert any("too few to look for clusters" in note for note in found.notes)
    assert "too few for a map" in found.advice()
    json.dumps(found.to_dict())


def test_one_image_is_refused():
    with pytest.raises(NoGoodImagesError, match="1 readable image"):
        diagnose(parts(1), image_size=64)


@pytest.mark.slow
def test_three_real_defects_are_among_the_five_most_suspicious(real_data, real_weights, tmp_path):
    bottle = real_data / "bottle"
    for path in (bottle / "train" / "good").iterdir():
        (tmp_path / path.name).symlink_to(path)
    for kind in ("broken_large", "broken_small", "contamination"):
        (tmp_path / f"defect_{kind}.png").symlink_to(sorted((bottle / "test" / kind).iterdir())[0])
    found = diagnose(tmp_path, backbone="resnet18", weights=real_weights / "resnet18-to-layer3.pth")
    assert {f"defect_{kind}.png" for kind in ("broken_large", "broken_small", "contamination")} <= set(
        found.suspicious.ids[:5]
    )


class TestBatches:
    """False alarms of every day at a threshold learnt from the others."""

    @pytest.fixture
    def days(self, tmp_path):
        for number, image in enumerate(parts(30)):
            day = ("monday", "tuesday", "wednesday")[number % 3]
            if day == "wednesday":
                image = (0.5 * image).astype(np.uint8)
            (tmp_path / day).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / day / f"{number:02d}.png")
        return tmp_path

    def test_find_the_day_that_is_unlike_the_others(self, days):
        found = diagnose(days, image_size=64, false_alarm_rate=0.1)
        observed = {batch.name: (batch.n_images, batch.direction) for batch in found.batches}
        assert observed["wednesday"] == (10, "above")
        assert {observed[day][1] for day in ("monday", "tuesday")} <= {"within", "below"}
        assert "False alarms by batch" in found.advice()
        assert "another day is not like these" in found.advice()
        assert [entry["name"] for entry in found.to_dict()["batches"]] == ["monday", "tuesday", "wednesday"]
        # What the fit itself promises is not changed by the table.
        assert "30" in found.calibration

    def test_are_those_that_are_said(self, days):
        found = diagnose(days, image_size=64, groups=lambda name: int(name[-5]) % 2)
        assert [batch.name for batch in found.batches] == ["0", "1"]
        assert diagnose(days, image_size=64, groups="each").batches == []

    def test_one_folder_is_no_table(self):
        found = diagnose(parts(8), image_size=64)
        assert found.batches == []
        assert "by batch" not in found.advice()


def test_says_what_the_images_do_not_differ_in():
    images = [np.clip(part * light, 0, 255).astype(np.uint8) for part, light in zip(parts(8), [1.0] * 8, strict=True)]
    advice = diagnose(images, image_size=64).advice()
    assert "Contrast" in advice or "contrast" in advice
    assert "variations=Variations(" in advice


def test_says_what_it_is_in_a_line(found):
    told = repr(found)
    assert told.startswith(f"Diagnosis({found.n_images} images: 1 unlike all others, 1 near-duplicate pair")
    assert "\n" not in told
