"""Which pictures belong together: every way to say it, and every way to say it wrong."""

import re

import numpy as np
import pytest

from anomalib_lite.fitted.groups import group_names, group_numbers, numbered

IDS = ["monday/part07_a.png", "monday/part07_b.png", "tuesday/part08_a.png"]


class TestGroupNames:
    @pytest.mark.parametrize(
        ("groups", "expected"),
        [
            ("parent", ["monday", "monday", "tuesday"]),
            ("each", IDS),
            (r"part(\d+)", ["07", "07", "08"]),
            (r"part\d+", ["part07", "part07", "part08"]),
            (dict(zip(IDS, "xxy", strict=True)), ["x", "x", "y"]),
            (lambda name: name[-5], ["a", "b", "a"]),
            ([1, 1, 2], ["1", "1", "2"]),
            (np.array([3, 4, 3]), ["3", "4", "3"]),
        ],
        ids=repr,
    )
    def test_by_every_way(self, groups, expected):
        assert group_names(groups, IDS) == expected

    @pytest.mark.parametrize(
        ("groups", "message"),
        [
            ("wednesday", "groups='wednesday' finds nothing in 'monday/part07_a.png'; every picture needs a group"),
            (r"part08_(.)", "finds nothing in 'monday/part07_a.png'"),
            ("(", "neither 'parent' nor 'each' nor a regular expression"),
            ({IDS[0]: 1}, f"no entry for '{IDS[1]}', nor for 1 others of 3 pictures; its keys are ids, such as"),
            ([1, 2], "2 groups for 3 pictures; give one for each, in their order"),
            ([1, None, 2], "1 of 3 pictures have no group, such as 'monday/part07_b.png'"),
            ([1.0, 2.0, float("nan")], "1 of 3 pictures have no group, such as 'tuesday/part08_a.png'"),
            (lambda name: None, "3 of 3 pictures have no group"),
        ],
        ids=repr,
    )
    def test_what_does_not_match_is_named_with_the_way_out(self, groups, message):
        with pytest.raises(ValueError, match=re.escape(message)):
            group_names(groups, IDS)

    def test_an_empty_match_is_no_group(self):
        with pytest.raises(ValueError, match="finds nothing"):
            group_names("x*", IDS)


class TestGroupNumbers:
    def test_count_from_nought_in_order(self):
        assert group_numbers("parent", IDS).tolist() == [0, 0, 1]
        assert numbered(["b", "a", "b"]).tolist() == [0, 1, 0]

    def test_one_group_is_none(self):
        with pytest.raises(ValueError, match="all 3 pictures are of one group, and leaving it out leaves nothing"):
            group_numbers([5, 5, 5], IDS)
