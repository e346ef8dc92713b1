"""Networks in integers: near what they give in float32, the same by any engine, and only where they can be."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from anomalib_lite.embedding import quantization
from anomalib_lite.embedding.arithmetic import arithmetic_times
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.quantization import Blueprint, IntegerNetwork, NotQuantizableError
from anomalib_lite.images.synthetic import render_part
from anomalib_lite.machine.integers import onednn_fault

CPU = torch.device("cpu")
ENGINES = ["reference", pytest.param("onednn", marks=pytest.mark.skipif(bool(onednn_fault()), reason=onednn_fault()))]
SCALE, SHIFT = torch.full((3,), 1 / 64), torch.full((3,), 2.0)
NETWORKS = {
    "builtin": {},
    "resnet18": {},
    "vgg16": {"layers": "relu3_3"},
    "mobilenet_v2": {},
    "squeezenet1_1": {},
    "inception_v3": {"image_size": 96},
    "efficientnet_b0": {"layers": "features.3,features.4"},  # much of it is no convolution and no ReLU
    "resnet50": {"layers": "layer2"},
}


def parts(n, size):
    return np.stack([render_part(np.random.default_rng(i), size)[0] for i in range(n)])


def an_embedder(name, **options):
    options = {"image_size": 64, "dtype": "int8", "weights": None if name == "builtin" else "random", **options}
    return Embedder(name, device="cpu", **options)


class TestNetworks:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_are_near_float32_and_the_same_by_any_engine(self, name):
        made = an_embedder(name, **NETWORKS[name], engine="reference")
        images = parts(6, made.image_size[0])
        made.calibrate(images[:4])
        assert made.dtype == "int8"
        floats = an_embedder(name, **NETWORKS[name] | {"dtype": "float32"}).embed(images)
        found = made.embed(images)
        assert np.linalg.norm(found - floats) < 0.1 * np.linalg.norm(floats)
        assert not np.array_equal(found, floats)
        if not onednn_fault():
            other = an_embedder(name, **NETWORKS[name], engine="onednn").calibrated(made.ranges)
            assert np.linalg.norm(other.embed(images) - found) < 0.05 * np.linalg.norm(found)
            assert np.linalg.norm(other.embed(images[:1]) - found[:1]) < 0.05 * np.linalg.norm(found)

    def test_the_built_in_one_to_the_bit(self):
        """Rounding happens at the same places in the same order."""
        if onednn_fault():
            pytest.skip(onednn_fault())
        images = parts(4, 64)
        reference, onednn = (an_embedder("builtin", engine=engine) for engine in ("reference", "onednn"))
        reference.calibrate(images)
        found = onednn.calibrated(reference.ranges).embed(images)
        assert np.abs(found - reference.embed(images)).max() < 1e-2 * np.abs(found).max()

    @pytest.mark.parametrize("engine", ENGINES)
    @pytest.mark.parametrize("level", ["patch", "global"])
    def test_do_not_depend_on_the_batch(self, engine, level):
        made = an_embedder("builtin", engine=engine, level=level, batch_size=4)
        images = parts(7, 64)
        made.calibrate(images)
        whole = made.embed(images)
        assert np.allclose(np.concatenate([made.embed(images[i : i + 1]) for i in range(7)]), whole, atol=1e-5)

    def test_of_another_kind_are_refused_with_the_way_out(self, monkeypatch):
        def refuse(*_):
            raise NotQuantizableError("it folds its pictures")

        monkeypatch.setattr("anomalib_lite.embedding.embedder.Blueprint", refuse)
        with pytest.raises(ValueError, match=r"builtin cannot be computed in int8 \(it folds.*choose dtype='float32'"):
            an_embedder("builtin").calibrate(parts(2, 64))

    def test_await_images(self):
        made = an_embedder("builtin")
        assert made.awaits_calibration
        with pytest.raises(RuntimeError, match="shown images by calibrate first"):
            made.embed(parts(1, 64))

    def test_that_integers_change_too_much_go_on_in_float32(self, monkeypatch):
        monkeypatch.setattr("anomalib_lite.embedding.embedder._LARGEST_ERROR", 1e-6)
        made = an_embedder("builtin")
        with pytest.warns(UserWarning, match="8-bit integers change what builtin gives by .*float32 instead"):
            made.calibrate(parts(4, 64))
        assert (made.dtype, made.ranges) == ("float32", None)
        expected = an_embedder("builtin", dtype="float32").embed(parts(2, 64))
        assert np.array_equal(made.embed(parts(2, 64)), expected)

    def test_an_engine_that_breaks_while_it_runs_is_replaced(self):
        if onednn_fault():
            pytest.skip(onednn_fault())
        made, images = an_embedder("builtin", engine="onednn"), parts(2, 64)
        made.calibrate(images)
        expected = made.embed(images)

        def broken(*_):
            raise RuntimeError("could not execute a primitive\nsecond line")

        object.__setattr__(made._integers._program[3], "compute", broken)
        with pytest.warns(UserWarning, match=r"'onednn' failed \(could not execute a primitive\); 'reference' goes on"):
            again = made.embed(images)
        assert np.allclose(again, expected, atol=1e-2)
        assert np.array_equal(made.embed(images), again)  # and is not asked again

    def test_without_an_engine_it_is_said(self, monkeypatch):
        monkeypatch.setattr("anomalib_lite.machine.integers.onednn_fault", lambda: "no VNNI")
        monkeypatch.setattr("anomalib_lite.embedding.embedder.onednn_fault", lambda: "no VNNI")
        made = an_embedder("builtin")
        with pytest.warns(UserWarning, match="computed in float32 here, with the same scores but no quicker: no VNNI"):
            made.calibrate(parts(2, 64))
        assert "int8" not in arithmetic_times(made)


class _Listed(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return [self.network(images)]


class Branches(nn.Module):
    """Sums, concatenation, maxima, a value that is used again after it was added to, and one that is returned."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.left, self.right, self.last = (nn.Conv2d(32, 32, 3, padding=1) for _ in range(3))
        self.joined = nn.Conv2d(64, 32, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)

    def forward(self, images):
        first = F.relu(self.stem(images))
        second = F.relu(self.left(first) + first)
        third = self.right(second) + first  # `first` was written over, had it not been kept
        both = torch.cat([self.pool(F.relu(self.last(second))), self.pool(second)], dim=1)
        return [first, third, self.joined(both), torch.sigmoid(third)]


class TestBlueprint:
    def test_rounding_the_weights_moves_no_average(self):
        """Pixels are not centred: what rounding leaves of a weight would be multiplied by the same grey everywhere."""
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 64, 7), nn.ReLU(), nn.Conv2d(64, 64, 3)).eval()
        blueprint = Blueprint(_Listed(network), SCALE, SHIFT)
        images = torch.from_numpy(parts(4, 64)) // 8 + 180  # flat and bright
        standardised = (images * SCALE - SHIFT).permute(0, 3, 1, 2)
        ranges = blueprint.observe([standardised])
        plain = {name: (*values[:2], *[0.0] * (len(values) - 2)) for name, values in ranges.items()}
        with torch.inference_mode():
            expected = network(standardised)
            errors = [
                (IntegerNetwork(blueprint, given, "reference", CPU)(images)[0] - expected).mean(dim=(0, 2, 3)).norm()
                for given in (ranges, plain)
            ]
        assert errors[0] < 0.2 * errors[1]

    @pytest.mark.parametrize("engine", ENGINES)
    def test_every_kind_of_step(self, engine):
        torch.manual_seed(0)
        network = Branches().eval()
        blueprint = Blueprint(network, SCALE, SHIFT)
        images = torch.from_numpy(parts(4, 64))
        standardised = (images * SCALE - SHIFT).permute(0, 3, 1, 2)
        integers = IntegerNetwork(blueprint, blueprint.observe([standardised]), engine, CPU)
        with torch.inference_mode():
            for found, expected in zip(integers(images), network(standardised), strict=True):
                assert found.shape == expected.shape
                assert (found - expected).norm() < 0.03 * expected.norm()

    def test_ranges_come_in_the_same_order_in_every_process(self):
        # The file of a model has them in their order, and its digest with them.
        ranges = list(Blueprint(Branches().eval(), SCALE, SHIFT).observe([torch.zeros(1, 3, 32, 32)]))
        assert ranges == [quantization.PIXELS, *sorted(set(ranges) - {quantization.PIXELS})]

    def test_ranges_of_another_network_are_refused(self):
        blueprint = Blueprint(Branches().eval(), SCALE, SHIFT)
        ranges = blueprint.observe([torch.zeros(1, 3, 32, 32)])
        name = next(name for name in ranges if name != quantization.PIXELS)
        for wrong in ({}, ranges | {"other": (0.0, 1.0)}, {k: v for k, v in ranges.items() if k != name}):
            with pytest.raises(ValueError, match="are not those of this network"):
                IntegerNetwork(blueprint, wrong, "reference", CPU)
        for ends in ((2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf")), (0.0, 1e30)):
            with pytest.raises(ValueError, match=f"the range of {name} is"):
                IntegerNetwork(blueprint, ranges | {name: (*ends, *ranges[name][2:])}, "reference", CPU)

    def test_networks_of_another_kind_are_refused(self):
        class Squares(Branches):
            def forward(self, images):
                return [self.stem(images**2)]

        class Twice(Branches):
            def forward(self, images):
                return [self.stem(images) + images.mean()]

        class Depends(Branches):
            def forward(self, images):
                return [self.stem(images) if images.sum() > 0 else self.stem(-images)]

        for network, reason in (
            (Twice(), "uses its pixels elsewhere"),
            (Depends(), "cannot be traced"),
            (Squares(), "does more to its pixels before"),
            (nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), "uses its pixels elsewhere"),
        ):
            with pytest.raises(NotQuantizableError, match=reason):
                Blueprint(network.eval(), SCALE, SHIFT)


@pytest.mark.parametrize("side", [(2, 2), (3, 3), (3, 2)])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2), (3, 2)])
@pytest.mark.parametrize("padding", [(0, 0), (1, 1)])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("shape", [(11, 12), (16, 16), (33, 35)])
def test_maxima_are_those_of_torch(side, stride, padding, ceil, shape):
    images = torch.randint(0, 256, (2, 3, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    expected = F.max_pool2d(images.float(), side, stride, padding, ceil_mode=ceil)
    assert torch.equal(quantization._maxima(images, side, stride, padding, ceil).float(), expected)
