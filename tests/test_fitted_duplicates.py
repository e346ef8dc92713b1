"""Images that are there twice."""

import numpy as np

from anomalib_lite.fitted import duplicates


class TestNearDuplicates:
    def test_finds_the_pair_and_nothing_else(self):
        rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
        rows = np.vstack([rows, rows[7] + 1e-3])
        (pair,) = duplicates.near_duplicates(rows, [f"i{i}" for i in range(41)])
        assert (pair.first, pair.second) == ("i7", "i40")
        assert pair.distance < 0.05

    def test_finds_exact_copies_however_many(self):
        rows = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
        rows = np.vstack([rows, rows[[3, 3, 5]]])
        named = {name for pair in duplicates.near_duplicates(rows, [str(i) for i in range(23)]) for name in
                 (pair.first, pair.second)}  # fmt: skip
        assert named == {"3", "20", "21", "5", "22"}

    def test_finds_test_images_that_were_trained_on(self):
        rows = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
        new = np.vstack([np.random.default_rng(1).normal(size=(5, 8)), rows[9:10]])
        (pair,) = duplicates.near_duplicates(rows, [f"t{i}" for i in range(40)], new, [f"n{i}" for i in range(6)])
        assert (pair.first, pair.second) == ("t9", "n5")
