"""Convolutions of integers: both engines give the same numbers, and one that does not work here is not used."""

import pytest
import torch
import torch.nn.functional as F

from anomalib_lite.machine import integers
from anomalib_lite.machine.integers import Convolution, Steps, make_kernel, onednn_fault, pick_engine

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(bool(onednn_fault()), reason=onednn_fault())


FINE, COARSE = Steps(0.02), Steps(0.05)


def a_convolution(source=FINE, result=COARSE, added=None, relu=True, groups=1, side=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-127, 128, (32, 32 // groups, side, side), generator=generator, dtype=torch.int8)
    scale = torch.rand(32, generator=generator) * 1e-3 + 1e-4
    bias = torch.randn(32, generator=generator)
    pad = (side // 2, side // 2)
    return Convolution(weight, scale, bias, source, result, added, relu, (1, 1), pad, (1, 1), groups)


def some_images(n=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (n, 32, 13, 11), generator=generator, dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


CASES = [
    a_convolution(),
    a_convolution(result=None, relu=False),
    a_convolution(source=Steps(0.02, 17), result=Steps(0.1, 120), relu=False),
    a_convolution(added=Steps(0.031)),
    a_convolution(added=Steps(0.031, 100), result=Steps(0.07, 128), relu=False),
    a_convolution(groups=32),
    a_convolution(side=1, result=None),
]


@pytest.mark.parametrize("case", CASES, ids=range(len(CASES)))
class TestEngines:
    def test_reference_is_a_convolution_of_the_real_numbers(self, case):
        images, other = some_images(), some_images(seed=1)
        weight = case.weight.double() * case.scale.double().view(-1, 1, 1, 1)
        values = (images.double() - case.source.zero) * case.source.size
        real = F.conv2d(values, weight, case.bias.double(), padding=case.padding, groups=case.groups)
        if case.added is not None:
            real += (other.double() - case.added.zero) * case.added.size
        if case.relu:
            real.relu_()
        found = make_kernel(case, "reference", CPU)(images, None if case.added is None else other.clone())
        if case.result is None:
            assert torch.allclose(found.double(), real, rtol=1e-5, atol=1e-5)
            return
        assert found.dtype == torch.uint8
        inside = real.clamp((0 - case.result.zero) * case.result.size, (255 - case.result.zero) * case.result.size)
        assert (case.result.real(found).double() - inside).abs().max() <= 0.501 * case.result.size
        assert len(found.unique()) > 50

    @needs_onednn
    def test_onednn_gives_the_same(self, case):
        for n in (2, 1, 5):  # weights are laid out for each anew
            images, other = some_images(n), some_images(n, seed=1)
            expected = make_kernel(case, "reference", CPU)(images, None if case.added is None else other.clone())
            kernel = make_kernel(case, "onednn", CPU)
            for _ in range(2):
                with torch.inference_mode():
                    found = kernel(images.clone(), None if case.added is None else other.clone())
                assert found.dtype == expected.dtype
                if case.result is None:
                    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6)
                else:
                    difference = (found.int() - expected.int()).abs()
                    assert difference.max() <= 1
                    assert (difference > 0).float().mean() < 1e-3


class TestSteps:
    @pytest.mark.parametrize(("low", "high"), [(0.0, 3.7), (-2.0, 5.0), (-4.0, -1.0), (1.0, 2.0), (0.0, 0.0)])
    def test_zero_is_one_of_them(self, low, high):
        steps = Steps.spanning(low, high)
        assert steps.real(steps.quantized(torch.zeros(1))) == 0
        assert 0 <= steps.zero <= 255

    def test_what_is_within_is_kept_to_half_a_step(self):
        steps = Steps.spanning(-1.0, 3.0)
        values = torch.linspace(-1, 3, 1001)
        assert (steps.real(steps.quantized(values)) - values).abs().max() <= 0.51 * steps.size
        assert steps.quantized(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


class TestPickEngine:
    def test_takes_what_works(self, monkeypatch):
        monkeypatch.setattr(integers, "onednn_fault", lambda: "")
        assert pick_engine("auto", CPU) == "onednn"
        assert pick_engine("reference", CPU) == "reference"
        monkeypatch.setattr(integers, "onednn_fault", lambda: "it is broken")
        assert pick_engine("auto", CPU) == "reference"
        with pytest.raises(ValueError, match="does not work here: it is broken; choose 'auto' or 'reference'"):
            pick_engine("onednn", CPU)

    def test_elsewhere_than_on_the_processor(self, monkeypatch):
        monkeypatch.setattr(integers, "onednn_fault", lambda: "")
        assert pick_engine("auto", torch.device("cuda")) == "reference"
        with pytest.raises(ValueError, match="computes on the CPU, not on cuda"):
            pick_engine("onednn", torch.device("cuda"))

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ValueError, match="engine='openvino'; choose 'auto', 'onednn', 'reference'"):
            pick_engine("openvino", CPU)


class TestFault:
    @pytest.mark.parametrize("error", [RuntimeError("could not create a primitive"), AttributeError("no such op")])
    def test_of_a_build_without_them(self, monkeypatch, error):
        def broken(convolution):
            raise error

        monkeypatch.setattr(integers, "_onednn", broken)
        assert str(error) in onednn_fault.__wrapped__()

    def test_of_a_processor_whose_sums_overflow(self, monkeypatch):
        def saturating(convolution):
            exact = integers._reference(convolution, CPU)
            return lambda images, added: exact(images, added) - 2

        monkeypatch.setattr(integers, "_onednn", saturating)
        assert "not exact on this processor" in onednn_fault.__wrapped__()
