"""Folds: groups stay together, and no scorer has seen what it scores."""

import numpy as np
import pytest

from anomalib_lite.fitted.folds import assign_folds, left_out


class Recorder:
    """A scorer that remembers which groups it learnt from."""

    def fit(self, X, groups):
        self.seen = set(groups.tolist())
        return self

    def score(self, X):
        return X[:, 0]


class TestAssignFolds:
    def test_keeps_groups_together_and_folds_alike(self):
        groups = np.random.default_rng(0).permutation(np.repeat(np.arange(60), 3))
        folds = assign_folds(groups)
        assert all(len(set(folds[groups == g])) == 1 for g in range(60))
        assert np.bincount(folds).tolist() == [36] * 5

    def test_balances_groups_of_different_sizes(self):
        folds = assign_folds(np.repeat(np.arange(5), [12, 3, 3, 3, 3]), 2)
        assert np.bincount(folds).tolist() == [12, 12]

    @pytest.mark.parametrize(("n", "folds"), [(2, 2), (7, 7), (10, 10), (40, 10), (41, 5), (300, 5)])
    def test_few_groups_are_left_out_in_more_folds(self, n, folds):
        assert len(set(assign_folds(np.arange(n)).tolist())) == folds

    def test_follow_the_seed(self):
        first, again, other = (assign_folds(np.arange(50), random_state=seed) for seed in (0, 0, 1))
        assert first.tolist() == again.tolist()
        assert first.tolist() != other.tolist()

    def test_one_fold_is_none(self):
        with pytest.raises(ValueError, match="n_folds is 1: at least 2"):
            assign_folds(np.arange(5), 1)


class TestLeftOut:
    def test_no_scorer_has_seen_its_fold(self):
        groups = np.repeat(np.arange(12), 4)
        fold = assign_folds(groups, 4)
        seen = {}
        for number, scorer in left_out(Recorder, np.ones((48, 2)), fold, groups):
            assert scorer.seen == set(groups[fold != number].tolist())
            seen[number] = scorer.seen
        assert sorted(seen) == [0, 1, 2, 3]

    def test_one_scorer_at_a_time(self):
        """Banks of all rows would fill the memory if all folds were made at once."""
        made = []
        found = left_out(lambda: made.append(1) or Recorder(), np.ones((6, 1)), np.arange(6), np.arange(6))
        next(found)
        assert len(made) == 1

    def test_a_fold_of_which_nothing_was_learnt_is_new_to_all(self):
        """All of its rows were trimmed away; its images calibrate all the same."""
        fold = np.array([0, 0, 2, 2])
        found = dict(left_out(Recorder, np.ones((4, 1)), fold, np.arange(4), wanted=np.array([2, 1, 0])))
        assert {number: scorer.seen for number, scorer in found.items()} == {0: {2, 3}, 1: {0, 1, 2, 3}, 2: {0, 1}}

    def test_one_fold_leaves_nothing(self):
        with pytest.raises(ValueError, match="two images are needed to score one without having learnt from it"):
            next(left_out(Recorder, np.ones((4, 1)), np.zeros(4, dtype=int), np.arange(4)))
