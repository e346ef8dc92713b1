"""How much images differ already is measured, each quantity on its own, and put into words."""

import numpy as np
import pytest

from anomalib_lite.images.local import ListSource
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.images.sources import open_source
from anomalib_lite.images.spread import Range, Spread, measured_spread
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.images.variations import Variations
from anomalib_lite.images.varying import Draw, varied

QUANTITIES = ("brightness", "contrast", "white_balance", "sharpness")
# From -1 to 1, so that the 5 % and 95 % quantiles are at 9/10 of the way.
STEPS = np.linspace(-1, 1, 21)


@pytest.fixture(scope="module")
def part():
    """A drawn part with a ground that is neither black nor white, so that light is not clipped."""
    pixels = render_part(np.random.default_rng(0), 256)[0].astype(float)
    return (60 + 0.45 * pixels).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "draws", "low", "high"),
    [
        ("brightness", [Draw(brightness=1 + 0.2 * s) for s in STEPS], -0.18, 0.18),
        ("contrast", [Draw(contrast=1 + 0.2 * s) for s in STEPS], -0.18, 0.18),
        ("white_balance", [Draw(white_balance=0.1 * s) for s in STEPS], -0.09, 0.09),
    ],
)
def test_what_varied_is_found_and_nothing_else(part, name, draws, low, high):
    spread = measured_spread(open_source([varied(part, draw) for draw in draws]))
    assert spread.n_images == 21
    found = getattr(spread, name)
    assert found.low == pytest.approx(low, abs=0.01)
    assert found.high == pytest.approx(high, abs=0.01)
    for other in set(QUANTITIES) - {name}:
        assert getattr(spread, other).reach < 0.03, other


def test_blur_is_less_sharp_and_noise_more(part):
    blurred = [varied(part, Draw(blur=s)) for s in np.linspace(0, 1, 21)]
    spread = measured_spread(open_source(blurred))
    assert spread.sharpness.low < -0.4
    assert spread.brightness.reach < 0.01
    noisy = measured_spread(open_source([*[part] * 15, *[varied(part, Draw(noise=0.05, seed=i)) for i in range(6)]]))
    assert noisy.sharpness.high > 0.5
    assert noisy.sharpness.low == pytest.approx(0)


def test_grey_images_have_no_white_balance(part):
    grey = [np.repeat(varied(part, Draw(brightness=b))[..., :1], 3, axis=2) for b in (0.8, 1, 1.2)]
    spread = measured_spread(open_source(grey))
    assert spread.white_balance is None
    assert not any("White balance" in sentence for sentence in spread.sentences())
    assert len(spread.sentences()) == 3


def test_black_images_have_nothing_to_compare():
    spread = measured_spread(open_source(np.zeros((3, 32, 32, 3), np.uint8)))
    assert spread == Spread(3, 32, None, None, None, None)
    assert spread.sentences() == []


def test_a_few_odd_images_do_not_count(part):
    assert measured_spread(open_source([*[part] * 39, varied(part, Draw(brightness=0.3))])).brightness.reach == 0


def test_images_are_picked_evenly_and_unreadable_ones_left_out(part):
    class Counted(ListSource):
        def __init__(self, n):
            super().__init__([part] * n, [str(i) for i in range(n)])
            self.asked = []

        def read(self, i):
            self.asked.append(i)
            if i == 0:
                raise UnreadableImageError("0: broken")
            return part[:8, :8]

    source = Counted(1000)
    assert measured_spread(source, workers=0).n_images == 199
    assert len(source.asked) == 200
    assert source.asked[-1] == 999
    assert set(np.diff(source.asked)) == {5, 6}
    with pytest.raises(UnreadableImageError, match="1 of 2 images can be read; two are needed to compare them"):
        measured_spread(Counted(2), workers=0)


def test_sentences_tell_what_to_declare_and_what_has_been_seen():
    spread = Spread(50, 320, Range(-0.03, 0.04), Range(-0.3, 0.1), Range(0.0, 0.0), None)
    light, contrast, colour = spread.sentences()
    assert light == (
        "Brightness differs by −3 % to +4 % between the training images; a change of more than that has not been seen: "
        "declare it (variations=Variations(brightness=0.2)) if the light may change."
    )
    assert contrast == "Contrast differs by −30 % to +10 % between the training images: such changes have been seen."
    assert colour.startswith("White balance differs by less than 1 % between the training images; a change of more")
    assert "variations=Variations(white_balance=0.1)" in colour
    assert spread.sentences(Variations(brightness=0.1, white_balance=0.1)) == [contrast]


@pytest.mark.parametrize(("side", "blur"), [(64, 1), (320, 1), (2048, 8), (20000, 20)])
def test_blur_is_advised_in_pixels_of_the_picture(side, blur):
    (sentence,) = Spread(50, side, None, None, None, Range(-0.1, 0.1)).sentences()
    assert f"variations=Variations(blur={blur})" in sentence
