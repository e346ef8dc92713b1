import dataclasses
import inspect

import pytest

from anomalib_lite import Detector, fit
from anomalib_lite.detecting.parameters import Parameters


class TestParameters:
    def test_are_the_arguments_of_the_detector(self):
        """The constructor has their defaults, and both have their types: this holds them together."""
        given = inspect.signature(Detector).parameters
        assert [(field.name, field.type) for field in dataclasses.fields(Parameters)] == [
            (name, one.annotation) for name, one in given.items()
        ]

    def test_cannot_be_set(self):
        detector = Detector(image_size=64)
        with pytest.raises(dataclasses.FrozenInstanceError):
            detector._parameters.workers = 3
        for name in ("workers", "scorer", "of_no_such_name"):
            with pytest.raises(AttributeError, match=f"a detector's {name} cannot be set"):
                setattr(detector, name, 3)

    def test_what_was_chosen_can_be_read(self):
        detector = Detector(image_size=64, tiles=[2, 3], bits=12, scorer="kmeans", workers=1)
        assert (detector.tiles, detector.value_range, detector.whiten, detector.workers) == ((2, 3), (0, 4095), True, 1)
        assert detector.scorer.name == "kmeans"
        assert detector.parameters()["tiles"] == [2, 3]


class TestFit:
    def test_help_shows_the_parameters_of_the_detector(self):
        shown = inspect.signature(fit).parameters
        assert list(shown) == ["images", "groups", "everything_is_good", *inspect.signature(Detector).parameters]
        assert shown["false_alarm_rate"].default == 0.01
