"""Turned copies of an image: nothing black is added, at any aspect ratio."""

import numpy as np
import pytest

from anomalib_lite.images.rotation import RotatedSource, rotated
from anomalib_lite.images.sources import open_source


@pytest.mark.parametrize("shape", [(100, 400), (400, 100), (1, 300), (64, 64), (20, 41), (7, 3)])
@pytest.mark.parametrize("degrees", [5, 45, 72, 90, 135, 200])
def test_a_bright_image_has_no_dark_corner_when_turned(shape, degrees):
    turned = rotated(np.full((*shape, 3), 200, np.uint8), degrees)
    assert turned.shape == (*shape, 3)
    assert turned.min() == 200


def test_copies_keep_the_size_and_are_named_by_their_angle():
    source = RotatedSource(open_source(np.zeros((2, 8, 30, 3), np.uint8)), 4)
    assert source.ids[:4] == ["image_0000", "image_0000@90°", "image_0000@180°", "image_0000@270°"]
    assert [source.read(i).shape for i in range(4)] == [(8, 30, 3)] * 4
