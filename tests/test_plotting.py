import subprocess
import sys

import numpy as np
import pytest
from matplotlib import colormaps
from matplotlib.figure import Figure
from PIL import Image

from anomalib_lite.images.local import ListSource
from anomalib_lite.plotting.overlays import contact_sheet, heat_layer, overlay
from anomalib_lite.results import Scores


def scored(n, **changes):
    """Scores of n grey images, the last one the worst, and the images."""
    ids = [f"folder/of/images/part_{i:03d}.png" for i in range(n)]
    values = np.arange(1.0, n + 1)
    patches = np.ones((n, 4, 4), np.float32) * values[:, None, None].astype(np.float32)
    fields = {
        "ids": ids,
        "scores": values,
        "p_values": 1 / values,
        "alarms": values > 10,
        "threshold": 10.0,
        "false_alarm_rate": 0.05,
        "guarantee_met": True,
        "image_sizes": [(24, 32)] * n,
        "patch_scores": patches,
        "map_scale": (5.0, 20.0),
    }
    images = [np.full((24, 32, 3), 10 + i, np.uint8) for i in range(n)]
    return Scores(**{**fields, **changes}), ListSource(images, ids)


class TestOverlay:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)

    def test_leaves_good_pixels_as_they_are(self):
        heat = np.zeros((20, 30))
        heat[5:10, 5:10] = 9
        heat[0, 0] = 2  # the low end of the scale
        painted = overlay(self.pixels, heat, (2, 10))
        hot = heat > 2
        assert np.array_equal(painted[~hot], self.pixels[~hot])
        assert (painted[hot] != self.pixels[hot]).any(axis=1).all()
        assert painted.dtype == np.uint8
        assert painted.shape == self.pixels.shape

    def test_does_not_depend_on_the_other_pixels(self):
        """One scale: a lone warm patch is as warm beside a hot one as it is alone."""
        alone, beside = np.zeros((20, 30)), np.zeros((20, 30))
        alone[3, 3] = beside[3, 3] = 4
        beside[10:, 10:] = 50
        painted = [overlay(self.pixels, heat, (2, 10)) for heat in (alone, beside)]
        assert np.array_equal(painted[0][3, 3], painted[1][3, 3])

    def test_grows_with_the_score_and_ends_at_the_high_end(self):
        grey = np.full((1, 5, 3), 60, np.uint8)
        painted = overlay(grey, np.array([[2.0, 4, 7, 10, 1e6]]), (2, 10)).astype(int)
        change = np.abs(painted - 60).sum(axis=2)[0]
        assert change[0] == 0
        assert change[1] < change[2] < change[3] == change[4]
        assert np.array_equal(painted[0, 3], painted[0, 4])

    def test_is_what_the_formula_says_on_every_pixel(self):
        heat = np.random.default_rng(1).normal(6, 4, (600, 30)).astype(np.float32)  # more rows than are painted at once
        pixels = np.random.default_rng(2).integers(0, 256, (600, 30, 3), dtype=np.uint8)
        share = np.clip((heat - 2) / 8, 0, 1)[..., None]
        rise = np.clip((share - 0.2) / 0.25, 0, 1)
        opacity = 0.65 * (3 * rise**2 - 2 * rise**3)
        expected = pixels * (1 - opacity) + 255 * colormaps["inferno"](share[..., 0])[..., :3] * opacity
        assert overlay(pixels, heat, (2, 10)) == pytest.approx(expected, abs=3)

    def test_white_ground_stays_white(self):
        """A good part on white paper: up to 0.8 of the threshold, a third of the scale, nothing is painted."""
        white, threshold = np.full((9, 9, 3), 255, np.uint8), 3.0
        heat = np.linspace(0, 0.8 * threshold, 81).reshape(9, 9)
        assert np.array_equal(overlay(white, heat, (0.5 * threshold, 2 * threshold)), white)
        assert (overlay(white, np.full((9, 9), threshold), (0.5 * threshold, 2 * threshold)) < 250).any(axis=2).all()

    def test_a_layer_over_a_picture_is_the_overlay(self, tmp_path):
        heat = np.random.default_rng(1).normal(6, 4, (20, 30))
        looked_at = np.ones((20, 30), dtype=bool)
        looked_at[:, :5] = False
        heat_layer(heat, (2, 10), looked_at).save(tmp_path / "layer.png")
        layer = np.array(Image.open(tmp_path / "layer.png").convert("RGBA"), dtype=float)
        opacity = layer[..., 3:] / 255
        laid = self.pixels * (1 - opacity) + layer[..., :3] * opacity
        assert laid == pytest.approx(overlay(self.pixels, heat, (2, 10), looked_at).astype(float), abs=5)

    def test_takes_a_scale_without_width(self):
        assert np.array_equal(overlay(self.pixels, np.zeros((20, 30)), (0, 0)), self.pixels)


class TestContactSheet:
    @pytest.mark.parametrize(("n", "shown"), [(0, 0), (1, 1), (5, 5), (7, 7), (13, 12)])
    def test_shows_the_worst_first(self, n, shown, tmp_path):
        scores, images = scored(n)
        figure = contact_sheet(scores, images)
        assert isinstance(figure, Figure)
        titles = [axis.get_title() for axis in figure.axes if "score" in axis.get_title()]
        assert [title.splitlines()[0][-7:] for title in titles] == [f"{n - 1 - i:03d}.png" for i in range(shown)]
        verdicts = [axis.get_title() for axis in figure.axes if "p =" in axis.get_title()]
        assert sum(verdict.startswith("alarm") for verdict in verdicts) == max(0, n - 10)
        figure.savefig(tmp_path / "sheet.png")
        assert Image.open(tmp_path / "sheet.png").width > 100

    def test_draws_the_image_above_its_overlay(self):
        scores, images = scored(13)
        figure = contact_sheet(scores, images, order=[12, 0], columns=2)
        drawn = [axis.images[0].get_array() for axis in figure.axes[:4]]
        assert np.array_equal(drawn[0], images.read(12))
        assert np.array_equal(drawn[1], images.read(0))
        assert not np.array_equal(drawn[2], drawn[0])  # 13 lies on the scale from 5 to 20
        assert np.array_equal(drawn[3], drawn[1])  # 1 lies below it

    def test_says_what_could_not_be_drawn_and_draws_the_rest(self, tmp_path):
        scores, images = scored(4)
        images.items[3] = tmp_path / "part_003.png"
        figure = contact_sheet(scores, images)
        figure.savefig(tmp_path / "sheet.png")
        assert "such file" in figure.axes[0].texts[0].get_text()
        assert [len(axis.images) for axis in figure.axes[:8]] == [0, 1, 1, 1] * 2

    def test_the_global_level_has_no_maps(self):
        scores, images = scored(3, patch_scores=None)
        with pytest.raises(ValueError, match="level='global'"):
            contact_sheet(scores, images)


def test_keeps_out_of_pyplot(tmp_path):
    """pyplot keeps figures alive and picks a display; a server has none."""
    code = (
        "import sys, numpy as np\n"
        "from anomalib_lite.plotting.overlays import contact_sheet\n"
        "from anomalib_lite.results import Scores\n"
        "one = np.ones(1)\n"
        "scores = Scores(['image_0000'], one, one, one > 0, 1.0, 0.1, True, [(8, 8)], np.ones((1, 2, 2), np.float32))\n"
        "contact_sheet(scores, np.zeros((8, 8, 3), np.uint8)).savefig(sys.argv[1])\n"
        "print('matplotlib.figure' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    run = subprocess.run([sys.executable, "-c", code, tmp_path / "sheet.png"], capture_output=True, text=True)
    assert run.stdout.split() == ["True", "False"], run.stderr
    assert (tmp_path / "sheet.png").is_file()
