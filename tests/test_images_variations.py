"""What a camera may change: declared within bounds, drawn evenly and repeatably, and each change does what it says."""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import anomalib_lite
from anomalib_lite import images as images_room
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.images.variations import Variations, VariedSource
from anomalib_lite.images.varying import Draw, varied

EVERYTHING = Variations(
    brightness=0.2,
    contrast=0.2,
    gamma=0.3,
    white_balance=0.1,
    blur=1,
    noise=0.02,
    jpeg=70,
    shift=0.05,
    turn=10,
    scale=0.1,
    mirror=True,
    draws=8,
)
SHAPES = [(37, 120), (120, 37), (1, 50), (50, 1), (1, 1), (2, 3), (64, 64)]


@pytest.fixture(scope="module")
def part():
    return render_part(np.random.default_rng(0), 96)[0]


def flat(value, shape=(20, 30)):
    return np.full((*shape, 3), value, np.uint8)


class TestDeclaring:
    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({"brightness": -0.2}, "brightness=-0.2 is negative, a strength is not; say brightness=0.2"),
            ({"brightness": 20}, "brightness=20 is too much; it is a share of the light: 0.2 is a factor"),
            ({"brightness": 1}, "and below 1"),
            ({"contrast": 1.0}, "contrast=1 is too much"),
            ({"white_balance": 5500}, "white_balance=5500 is too much; it is a share of red and blue"),
            ({"scale": 0.6}, "scale=0.6 is too much; it is a share of the part's size"),
            ({"gamma": 3.1}, "gamma=3.1 is too much; it widens an exponent"),
            ({"blur": 21}, "blur=21 is too much; it is a standard deviation in pixels"),
            ({"noise": 5}, "noise=5 is too much; it is a standard deviation as a share of full scale"),
            ({"shift": 0.5}, "shift=0.5 is too much; it is a share of the picture's side"),
            ({"turn": 181}, "turn=181 is too much; it is an angle in degrees, either way: 180 is any angle"),
            ({"turn": float("nan")}, "turn=nan is no number"),
            ({"turn": float("inf")}, "turn=inf is no number"),
            ({"turn": "5"}, "turn='5' is no number"),
            ({"turn": True}, "turn=True is no number"),
            ({"jpeg": 0}, "jpeg=0 is a quality; give a whole number from 1 to 100"),
            ({"jpeg": 80.0}, r"jpeg=80.0 is a quality"),
            ({"mirror": "no"}, "mirror='no'; say True or False"),
            ({"turn": 5, "draws": 0}, "draws=0 is the number of varied copies of every image, from 1 to 64"),
            ({"turn": 5, "draws": 65}, "draws=65"),
            ({"turn": 5, "draws": 2.0}, r"draws=2.0"),
            ({}, r"varies nothing; name at least one, such as Variations\(brightness=0.2\), or leave it out"),
            ({"draws": 8}, "varies nothing"),
        ],
    )
    def test_what_cannot_be_is_refused(self, values, told):
        with pytest.raises(ValueError, match=told):
            Variations(**values)

    @pytest.mark.parametrize(
        "values",
        [{"mirror": True}, {"jpeg": 99}, {"turn": 180}, {"blur": 20}, {"gamma": 3}, {"noise": 0.5}, {"shift": 0.49}],
    )
    def test_the_far_ends_and_single_ones_are_taken(self, values):
        assert Variations(**values).draws == 4

    def test_they_go_into_json_and_back(self):
        from_numpy = Variations(brightness=np.float32(0.5), jpeg=np.int64(80), draws=np.int64(3))
        for variations in (EVERYTHING, from_numpy):
            assert Variations(**json.loads(json.dumps(variations.to_dict()))) == variations

    def test_a_line_says_all_of_them(self):
        assert EVERYTHING.describe() == (
            "brightness ±20 %, contrast ±20 %, gamma 0.77 to 1.3, white balance ±10 %, blur up to 1 px, noise up to "
            "2 %, JPEG down to quality 70, shift ±5 %, turn ±10°, scale ±10 %, half of them mirrored, 8 draws"
        )
        assert Variations(turn=180, draws=1).describe() == "turned to any angle, 1 draw"

    def test_a_line_is_read(self):
        line = ", ".join(f"{name}={value}" for name, value in EVERYTHING.to_dict().items())
        assert Variations.parse(line) == EVERYTHING
        assert Variations.parse(" Brightness = 0.2 ,white-balance=0.1,mirror,draws=5,") == Variations(
            brightness=0.2, white_balance=0.1, mirror=True, draws=5
        )
        assert Variations.parse("turn=5,mirror=0") == Variations(turn=5)

    @pytest.mark.parametrize(
        ("line", "told"),
        [
            (
                "brigtness=0.2",
                "'brigtness' is no variation; did you mean brightness\\? There are brightness, contrast,",
            ),
            ("hue=1", "'hue' is no variation; There are brightness"),
            ("blur", "blur has no value; give one, such as blur=1"),
            ("turn=five", "turn=five is no number; give one, such as turn=5"),
            ("turn=5,draws=2.5", "draws=2.5 is no whole number; give one, such as draws=4"),
            ("turn=5,turn=6", "turn is there twice"),
            ("mirror=perhaps", "mirror=perhaps; say mirror alone, or mirror=0"),
            ("shift=2", "shift=2 is too much"),
            ("", "varies nothing"),
        ],
    )
    def test_a_line_that_cannot_be_read_is_explained(self, line, told):
        with pytest.raises(ValueError, match=told):
            Variations.parse(line)

    def test_it_is_found_where_one_looks(self):
        assert anomalib_lite.Variations is Variations
        assert {"Draw", "Spread", "Variations", "VariedSource", "measured_spread", "varied"} <= set(images_room.__all__)
        assert all(hasattr(images_room, name) for name in images_room.__all__)


class TestDraws:
    def test_they_depend_on_the_seed_and_the_numbers_alone(self):
        first = EVERYTHING.draws_of(3, random_state=1)
        EVERYTHING.draws_of(7)
        assert EVERYTHING.draws_of(3, random_state=1) == first
        assert EVERYTHING.draws_of(4, random_state=1) != first
        assert EVERYTHING.draws_of(3, random_state=2) != first
        assert len({draw.seed for draw in first}) == 8

    def test_one_strength_does_not_move_another(self):
        alone = [draw.brightness for draw in Variations(brightness=0.2, draws=8).draws_of(5)]
        assert [draw.brightness for draw in EVERYTHING.draws_of(5)] == alone

    @pytest.mark.parametrize("draws", [1, 4, 7, 64])
    @pytest.mark.parametrize(
        ("name", "value_of"),
        [
            ("brightness", lambda draw: (draw.brightness - 0.8) / 0.4),
            ("contrast", lambda draw: (draw.contrast - 0.8) / 0.4),
            ("gamma", lambda draw: (np.log(draw.gamma) / np.log(1.3) + 1) / 2),
            ("white_balance", lambda draw: (draw.white_balance + 0.1) / 0.2),
            ("blur", lambda draw: draw.blur),
            ("noise", lambda draw: draw.noise / 0.02),
            ("shift to the right", lambda draw: (draw.shift[0] + 0.05) / 0.1),
            ("shift down", lambda draw: (draw.shift[1] + 0.05) / 0.1),
            ("turn", lambda draw: (draw.turn + 10) / 20),
            ("scale", lambda draw: (draw.scale - 0.9) / 0.2),
        ],
    )
    def test_every_stratum_is_met_once(self, draws, name, value_of):
        for image in range(5):
            shares = np.array([value_of(draw) for draw in replace(EVERYTHING, draws=draws).draws_of(image)])
            assert sorted((shares * draws).astype(int)) == list(range(draws)), name

    def test_strengths_are_not_paired(self):
        drawn = [draw for image in range(100) for draw in EVERYTHING.draws_of(image)]
        values = np.array([(d.brightness, d.contrast, d.blur, *d.shift, d.turn, d.scale) for d in drawn])
        off_diagonal = np.corrcoef(values.T) - np.eye(7)
        assert np.abs(off_diagonal).max() < 0.15  # four standard errors of 800 pairs

    def test_any_angle_is_the_whole_circle(self):
        for image in range(5):
            angles = np.array([draw.turn % 360 for draw in Variations(turn=180, draws=8).draws_of(image)])
            assert sorted((angles // 45).astype(int)) == list(range(8))

    def test_jpeg_stays_above_the_lowest_quality(self):
        qualities = {draw.jpeg for image in range(200) for draw in Variations(jpeg=95).draws_of(image)}
        assert qualities == {95, 96, 97, 98, 99, 100}

    def test_mirrored_only_if_asked_and_then_half_of_them(self):
        without = replace(EVERYTHING, mirror=False)
        assert not any(draw.mirror for image in range(200) for draw in without.draws_of(image))
        for image in range(20):
            assert sum(draw.mirror for draw in EVERYTHING.draws_of(image)) == 4

    def test_what_is_not_declared_is_not_drawn(self):
        for draw in Variations(blur=1).draws_of(0):
            assert replace(draw, blur=0, seed=0) == Draw()

    @pytest.mark.parametrize(
        "values",
        [
            {"brightness": -1},
            {"contrast": float("nan")},
            {"gamma": 0},
            {"scale": 0},
            {"white_balance": 1.1},
            {"blur": -1},
            {"noise": float("inf")},
            {"jpeg": 101},
            {"shift": (0, float("nan"))},
            {"turn": float("inf")},
            {"seed": -1},
        ],
    )
    def test_a_draw_that_makes_no_picture_is_refused(self, values):
        with pytest.raises(ValueError, match=next(iter(values))):
            Draw(**values)


class TestVaried:
    def test_the_defaults_change_nothing(self, part):
        assert np.array_equal(varied(part, Draw()), part)

    @pytest.mark.parametrize("shape", SHAPES)
    def test_the_size_is_kept_and_the_picture_left_alone(self, shape):
        pixels = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
        before = pixels.copy()
        pixels.flags.writeable = False
        for image in range(3):
            for draw in EVERYTHING.draws_of(image):
                changed = varied(pixels, draw)
                assert changed.shape == pixels.shape
                assert changed.dtype == np.uint8
        assert np.array_equal(pixels, before)

    def test_the_same_draw_makes_the_same_picture(self, part):
        draw = EVERYTHING.draws_of(0)[0]
        assert np.array_equal(varied(part, draw), varied(part.copy(), draw))

    # ------------------------------------------------------------ light and colour

    def test_brightness_is_a_factor_of_every_channel(self):
        values = flat(0)
        values[:] = (50, 100, 240)
        assert varied(values, Draw(brightness=1.2))[0, 0].tolist() == [60, 120, 255]
        assert varied(values, Draw(brightness=0.8))[0, 0].tolist() == [40, 80, 192]

    def test_declared_brightness_spans_its_range_on_mid_grey(self):
        means = [
            varied(flat(128), draw).mean() / 128
            for image in range(50)
            for draw in Variations(brightness=0.2).draws_of(image)
        ]
        assert 0.795 < min(means) < 0.82
        assert 1.18 < max(means) < 1.205
        assert np.mean(means) == pytest.approx(1, abs=0.01)

    def test_contrast_leaves_the_mean(self):
        pixels = np.vstack([flat(100), flat(140)])
        assert np.unique(varied(pixels, Draw(contrast=0.5))).tolist() == [110, 130]
        assert np.unique(varied(pixels, Draw(contrast=1.5))).tolist() == [90, 150]

    def test_contrast_is_about_the_mean_of_the_lit_picture(self):
        pixels = np.vstack([flat(100), flat(140)])
        assert np.unique(varied(pixels, Draw(brightness=0.5, contrast=0.5))).tolist() == [55, 65]

    def test_gamma_leaves_black_and_white(self):
        pixels = np.vstack([flat(0), flat(128), flat(255)])
        assert np.unique(varied(pixels, Draw(gamma=2))).tolist() == [0, 64, 255]
        assert np.unique(varied(pixels, Draw(gamma=0.5))).tolist() == [0, 181, 255]

    def test_white_balance_goes_from_blue_to_red(self):
        colour = flat(0)
        colour[:] = (100, 120, 200)
        assert varied(colour, Draw(white_balance=0.1))[0, 0].tolist() == [110, 120, 180]
        assert varied(colour, Draw(white_balance=-0.1))[0, 0].tolist() == [90, 120, 220]

    def test_grey_pictures_stay_grey(self):
        grey = np.repeat(np.arange(200, dtype=np.uint8).reshape(10, 20, 1), 3, axis=2)
        for draw in Variations(white_balance=0.1, noise=0.05, blur=1, jpeg=50, turn=5).draws_of(0):
            changed = varied(grey, draw)
            assert np.array_equal(changed[..., 0], changed[..., 1])
            assert np.array_equal(changed[..., 0], changed[..., 2])

    # ------------------------------------------------------------ optics, sensor, file

    @pytest.mark.parametrize("sigma", [0.5, 0.7, 1, 2])
    def test_blur_has_the_standard_deviation_it_says(self, sigma):
        edge = flat(0, (21, 41))
        edge[:, 20:] = 200
        spread = np.diff(varied(edge, Draw(blur=sigma))[10, :, 0].astype(float)) / 200
        place = np.arange(40)
        mean = spread @ place
        assert np.sqrt(spread @ (place - mean) ** 2) == pytest.approx(sigma, rel=0.05)
        assert np.array_equal(varied(flat(77), Draw(blur=sigma)), flat(77))

    def test_noise_has_the_standard_deviation_it_says_and_no_bias(self):
        colour = flat(128, (100, 100))
        colour[..., 0] = 127
        noise = varied(colour, Draw(noise=0.02, seed=3)).astype(float) - colour
        assert noise.std() == pytest.approx(0.02 * 255, rel=0.03)
        assert abs(noise.mean()) < 0.1
        assert abs(np.corrcoef(noise[..., 0].ravel(), noise[..., 1].ravel())[0, 1]) < 0.05
        assert not np.array_equal(noise, varied(colour, Draw(noise=0.02, seed=4)) - colour)

    def test_noise_is_clipped_and_does_not_wrap(self):
        assert varied(flat(255, (50, 50)), Draw(noise=0.05)).min() > 150
        assert varied(flat(0, (50, 50)), Draw(noise=0.05)).max() < 105

    def test_jpeg_loses_more_at_lower_quality(self, part):
        losses = [np.abs(varied(part, Draw(jpeg=q)).astype(float) - part).mean() for q in (100, 90, 50, 10)]
        assert losses[0] == 0
        assert np.all(np.diff(losses) > 0)

    def test_a_picture_too_long_for_jpeg_says_so(self):
        with pytest.raises(ValueError, match="at most 65500 pixels a side, this picture has 70000 × 1; leave jpeg out"):
            varied(flat(0, (1, 70000)), Draw(jpeg=80))

    # ------------------------------------------------------------ place

    def test_shift_goes_right_and_down_by_whole_pixels(self, part):
        moved = varied(part, Draw(shift=(4 / 96, 2 / 96)))
        assert np.array_equal(moved[2:, 4:], part[:-2, :-4])
        assert np.array_equal(moved[2:, 3], part[:-2, 1])  # reflected: the border itself is not repeated

    def test_shift_is_a_share_of_each_side(self):
        pixels = np.random.default_rng(0).integers(0, 256, (40, 100, 3), dtype=np.uint8)
        assert np.array_equal(varied(pixels, Draw(shift=(0.1, 0.1)))[4:, 10:], pixels[:-4, :-10])

    def test_turn_is_counter_clockwise(self, part):
        turned = varied(part, Draw(turn=25))
        expected = np.asarray(Image.fromarray(part).rotate(25, resample=Image.Resampling.BILINEAR))
        inside = (slice(24, 72), slice(24, 72))
        assert np.abs(turned[inside].astype(int) - expected[inside]).max() <= 1

    @pytest.mark.parametrize("degrees", [90, 180, 270, -90, 360, 450])
    def test_right_angles_are_exact(self, part, degrees):
        assert np.array_equal(varied(part, Draw(turn=degrees)), np.rot90(part, degrees // 90))

    def test_half_a_turn_of_an_oblong_picture_is_exact(self):
        pixels = np.random.default_rng(0).integers(0, 256, (37, 120, 3), dtype=np.uint8)
        assert np.array_equal(varied(pixels, Draw(turn=180)), pixels[::-1, ::-1])

    def test_mirror_exchanges_left_and_right_before_the_turn(self, part):
        assert np.array_equal(varied(part, Draw(mirror=True)), part[:, ::-1])
        assert np.array_equal(varied(part, Draw(mirror=True, turn=90)), np.rot90(part[:, ::-1]))
        sideways = varied(part, Draw(mirror=True, shift=(4 / 96, 0)))
        assert np.array_equal(sideways[:, 4:], part[:, ::-1][:, :-4])

    @pytest.mark.parametrize("factor", [0.5, 1.5])
    def test_scale_is_about_the_middle(self, factor):
        pixels = flat(0, (80, 80))
        pixels[30:50, 30:50] = 200
        scaled = varied(pixels, Draw(scale=factor))[..., 0]
        assert (scaled[20:60, 20:60] > 100).sum() == (20 * factor) ** 2
        assert np.array_equal(scaled, scaled[::-1, ::-1])

    @pytest.mark.parametrize("shape", SHAPES)
    @pytest.mark.parametrize("degrees", [5, 45, 72, 90, 135, 200])
    def test_a_bright_picture_has_no_dark_corner(self, shape, degrees):
        for draw in (Draw(turn=degrees), Draw(turn=degrees, scale=0.5, shift=(0.4, -0.4))):
            turned = varied(flat(200, shape), draw)
            assert turned.shape == (*shape, 3)
            assert turned.min() == 200

    def test_place_is_resampled_once(self):
        """Turning back and forth in one step each blurs more than a turn and a shift in one."""
        checks = np.indices((64, 64)).sum(axis=0) % 8 < 4
        pixels = np.repeat(200 * checks[..., None].astype(np.uint8), 3, axis=2)
        at_once = varied(pixels, Draw(turn=10, shift=(0.03, 0.03), scale=1.05))
        in_steps = varied(varied(varied(pixels, Draw(turn=10)), Draw(scale=1.05)), Draw(shift=(0.03, 0.03)))
        assert at_once.std() > in_steps.std() + 1

    # ------------------------------------------------------------ order

    def test_noise_comes_after_light_and_blur(self):
        noise = varied(flat(128, (64, 64)), Draw(brightness=0.5, blur=2, noise=0.02)).astype(float)
        assert noise.mean() == pytest.approx(64, abs=0.3)
        assert noise.std() == pytest.approx(5.1, rel=0.05)


class TestVariedSource:
    def test_copies_follow_their_image(self, part):
        source = open_source([part, part[:, ::-1], part[::-1]])
        copies = VariedSource(source, EVERYTHING, random_state=2)
        assert isinstance(copies, ImageSource)
        assert len(copies) == 27
        assert copies.copies == 9
        assert copies.ids[:3] == ["image_0000", "image_0000@1", "image_0000@2"]
        assert copies.ids[17:19] == ["image_0001@8", "image_0002"]
        assert np.array_equal(copies.read(9), source.read(1))
        for copy in (1, 8):
            expected = varied(source.read(1), EVERYTHING.draws_of(1, random_state=2)[copy - 1])
            assert np.array_equal(copies.read(9 + copy), expected)

    def test_a_copy_depends_neither_on_order_nor_threads_nor_how_many_there_are(self, part):
        several = VariedSource(open_source([part] * 4), EVERYTHING)
        forwards = [several.read(i) for i in range(len(several))]
        backwards = [several.read(i) for i in reversed(range(len(several)))][::-1]
        with ThreadPoolExecutor(4) as pool:
            at_once = list(pool.map(several.read, range(len(several))))
        fewer = VariedSource(open_source([part] * 2), EVERYTHING)
        for i, pixels in enumerate(forwards):
            assert np.array_equal(pixels, backwards[i])
            assert np.array_equal(pixels, at_once[i])
            if i < len(fewer):
                assert np.array_equal(pixels, fewer.read(i))
        assert not np.array_equal(forwards[1], forwards[10])  # the same part, but another number

    def test_an_unreadable_image_is_so_at_each_of_its_copies(self, tmp_path, part):
        Image.fromarray(part).save(tmp_path / "a.png")
        (tmp_path / "b.png").write_bytes(b"no picture")
        copies = VariedSource(open_source(tmp_path), Variations(brightness=0.2, draws=2))
        assert copies.ids == ["a.png", "a.png@1", "a.png@2", "b.png", "b.png@1", "b.png@2"]
        for i in (3, 4, 5):
            with pytest.raises(UnreadableImageError, match=r"b\.png"):
                copies.read(i)
        assert copies.read(2).shape == part.shape

    def test_notes_are_those_of_the_source(self):
        source = open_source(np.full((1, 8, 8), 2.0, np.float32))
        source.notes["image_0000"] = "clipped"
        assert VariedSource(source, EVERYTHING).notes == {"image_0000": "clipped"}

    def test_a_source_without_notes_will_do(self):
        class Bare:
            ids = ("x",)

            def __len__(self):
                return 1

            def read(self, i):
                return flat(100)

        assert VariedSource(Bare(), EVERYTHING).notes == {}

    def test_a_negative_seed_is_refused(self):
        with pytest.raises(ValueError, match="random_state=-1 is a seed, not negative"):
            VariedSource(open_source(flat(0)), EVERYTHING, random_state=-1)


def test_a_picture_that_no_jpeg_holds_is_unreadable_and_stops_no_run():
    source = VariedSource(open_source([np.zeros((1, 65_501, 3), np.uint8)]), Variations(jpeg=80, draws=1))
    assert source.read(0).shape == (1, 65_501, 3)
    with pytest.raises(UnreadableImageError, match=r"image_0000@1: a JPEG holds at most 65500 pixels a side"):
        source.read(1)
