import pytest
import torch

from anomalib_lite.embedding.builtin import FilterBank

PLANES = 3  # luminance, red–green, blue–yellow; each map begins with their local means, scale by scale


@pytest.fixture(scope="module")
def bank():
    return FilterBank().eval()


def photo(size=64):
    generator = torch.Generator().manual_seed(0)
    small = torch.rand(1, 3, size // 8, size // 8, generator=generator)
    smooth = torch.nn.functional.interpolate(small, size=(size, size), mode="bicubic").clamp(0, 1)
    return (smooth + 0.1 * torch.rand(1, 3, size, size, generator=generator)).clamp(0, 1)


def split(level):
    """The finest map as (tones, derivative energies), each (n, scales × channels, h, w)."""
    scales = level.reshape(level.shape[0], -1, 6 * PLANES, *level.shape[2:])  # 1 tone and 5 derivatives a plane
    return scales[:, :, :PLANES].flatten(1, 2), scales[:, :, PLANES:].flatten(1, 2)


def energies(bank, image):
    return split(bank(image)[0])[1]


def edge(left, right):
    """Two colours that meet in the middle of the picture."""
    image = torch.empty(1, 3, 64, 64)
    image[..., :32], image[..., 32:] = (torch.tensor(c).view(3, 1, 1) for c in (left, right))
    return image


def test_maps_are_at_strides_8_and_16(bank):
    fine, coarse = bank(photo(128))
    assert fine.shape == (1, 54, 16, 16)
    assert coarse.shape == (1, 54, 8, 8)
    assert torch.isfinite(fine).all()
    assert fine.std(dim=(2, 3)).min() > 0  # no dead channel


@pytest.mark.parametrize("colour", [(0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (0.9, 0.2, 0.4)])
def test_a_constant_image_has_no_derivatives(bank, colour):
    image = edge(colour, colour)
    black = energies(bank, torch.zeros(1, 3, 64, 64))
    assert torch.allclose(energies(bank, image), black, atol=1e-4)
    assert black.std() < 1e-5
    assert energies(bank, edge((0.45, 0.45, 0.45), (0.5, 0.5, 0.5))).max() > black.max() + 0.2


def test_tone_is_the_local_mean_of_each_colour_plane(bank):
    tones = split(bank(edge((0.8, 0.2, 0.5), (0.8, 0.2, 0.5)))[0])[0].reshape(1, -1, PLANES, 8, 8)
    for plane, expected in enumerate((0.5, 0.3, 0.0)):  # (r + g + b) / 3, (r - g) / 2, (2b - r - g) / 4
        assert torch.allclose(tones[:, :, plane], torch.tensor(expected), atol=1e-5)


def test_an_edge_of_colour_alone_is_seen(bank):
    # Equal in luminance: a camera in grey would see nothing.
    seen = energies(bank, edge((0.7, 0.3, 0.5), (0.3, 0.7, 0.5)))
    nothing = energies(bank, torch.full((1, 3, 64, 64), 0.5))
    planes = (seen - nothing).abs().reshape(1, 3, 5, PLANES, 8, 8).amax(dim=(0, 1, 2, 4))  # (planes, columns)
    assert planes[0].max() < 1e-2
    assert planes[1].max() > 0.1
    assert planes[1, 3:5].min() > planes[1, [0, 7]].max()  # where the edge is


def test_a_quarter_turn_permutes_the_energies(bank):
    image = photo()
    upright, turned = (energies(bank, i).reshape(3, 5, PLANES, 8, 8) for i in (image, torch.rot90(image, dims=(2, 3))))
    across_and_down = [1, 0, 4, 3, 2]  # x ↔ y, xx ↔ yy; xy only changes its sign
    assert torch.allclose(turned[:, across_and_down], torch.rot90(upright, dims=(3, 4)), atol=1e-3)
    assert upright.sum() == pytest.approx(float(turned.sum()), rel=1e-4)


def test_computes_in_float32_whatever_it_is_given(bank):
    (fine, _), (short, _) = bank(photo()), FilterBank().to(torch.bfloat16)(photo().to(torch.bfloat16))
    assert fine.dtype == short.dtype == torch.float32
