"""The training loop: what it stops at, what it keeps, and that a kill at any moment costs nothing."""

import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from anomalib_lite.files.checkpoints import CheckpointError
from anomalib_lite.supervised.training import TrainingError, TrainingOptions, train

RNG = np.random.default_rng(0)
X = torch.from_numpy(RNG.normal(size=(60, 4)).astype(np.float32))
Y = (X @ torch.tensor([1.0, -2.0, 0.5, 0.0]) > 0).float()
TRAIN, WATCH = np.arange(40), np.arange(40, 60)
OPTIONS = TrainingOptions(epochs=8, batch_size=8, learning_rate=0.05, schedule="plateau")


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))


def step_of(net, poison=None, calls=None):
    """A step of logistic regression; `poison(chosen, training)` may spoil the loss."""

    def step(chosen, generator):
        logits = net(X[chosen])[:, 0]
        loss = nn.functional.binary_cross_entropy_with_logits(logits, Y[chosen])
        if calls is not None:
            calls.append(generator is not None)
        if poison is not None and poison(generator is not None):
            loss = loss * float("nan")
        return loss, ((logits > 0) == (Y[chosen] > 0)).float().mean()

    return step


def run(options=OPTIONS, seed=0, watch=WATCH, **more):
    net = network(seed)
    history = train(net, step_of(net, **more), TRAIN, watch, options)
    return net, history


def parameters(net):
    return torch.cat([p.detach().ravel() for p in net.parameters()])


class Killed(BaseException):
    pass


class TestLearning:
    @pytest.mark.parametrize("optimizer", ["adam", "sgd", "rmsprop"])
    @pytest.mark.parametrize("schedule", ["plateau", "one-cycle", "constant"])
    def test_every_optimizer_and_schedule_learns(self, optimizer, schedule):
        rate = 0.01 if optimizer == "rmsprop" else 0.05
        options = replace(OPTIONS, epochs=15, learning_rate=rate, optimizer=optimizer, schedule=schedule)
        _, history = run(options)
        assert min(history.validation_loss) < 0.7 * history.validation_loss[0]
        assert max(history.validation_accuracy) > 0.8

    def test_a_seed_decides(self):
        assert torch.equal(parameters(run()[0]), parameters(run()[0]))
        other = run(replace(OPTIONS, random_state=1))[0]
        assert not torch.equal(parameters(run()[0]), parameters(other))

    def test_torch_s_own_generator_is_left_as_it_was(self):
        net = network()
        before = torch.get_rng_state()
        train(net, step_of(net), TRAIN, WATCH, OPTIONS)
        assert torch.equal(before, torch.get_rng_state())

    def test_the_best_epoch_is_kept_not_the_last(self):
        net = network()
        step = step_of(net)
        history = train(net, step, TRAIN, WATCH, replace(OPTIONS, epochs=30, learning_rate=0.5, patience=30))
        assert history.best_epoch == int(np.argmin(history.validation_loss)) + 1
        net.eval()
        with torch.no_grad():
            losses = [step(WATCH[i : i + 8], None)[0].item() * len(WATCH[i : i + 8]) for i in range(0, len(WATCH), 8)]
        assert sum(losses) / len(WATCH) == pytest.approx(min(history.validation_loss), rel=1e-5)

    def test_stops_when_nothing_improves(self):
        options = replace(OPTIONS, epochs=60, learning_rate=1.0, patience=3)
        _, history = run(options)
        assert len(history.train_loss) < 60
        assert len(history.train_loss) == history.best_epoch + 3

    def test_a_plateau_lowers_the_rate(self):
        rates = []
        net = network()
        step = step_of(net)

        def never_better(chosen, generator):
            loss, right = step(chosen, generator)
            return (loss, right) if generator is not None else (loss * 0 + 1.0, right)

        original = torch.optim.AdamW.step

        def watched(self, *arguments, **keywords):
            rates.append(self.param_groups[0]["lr"])
            return original(self, *arguments, **keywords)

        torch.optim.AdamW.step = watched
        try:
            train(net, never_better, TRAIN, WATCH, replace(OPTIONS, epochs=20, patience=8))
        finally:
            torch.optim.AdamW.step = original
        assert rates[0] == 0.05
        assert min(rates) == pytest.approx(0.05 / 3)

    def test_without_validation_the_last_epoch_is_kept(self):
        _, history = run(watch=WATCH[:0])
        assert history.validation_loss == []
        assert history.best_epoch == len(history.train_loss) == 8
        assert set(history.curves) == {"train_loss", "train_accuracy"}

    def test_sampling_draws_rare_samples_more_often(self):
        seen = np.zeros(60)
        net = network()
        step = step_of(net)

        def counted(chosen, generator):
            if generator is not None:
                np.add.at(seen, chosen, 1)
            return step(chosen, generator)

        weights = np.where(np.arange(40) < 4, 9.0, 1.0)  # four samples as heavy as the other 36
        train(net, counted, TRAIN, WATCH, replace(OPTIONS, epochs=30, patience=30), sampling=weights)
        assert 0.4 < seen[:4].sum() / seen.sum() < 0.6

    def test_groups_learn_at_their_own_rates(self):
        net = network()
        before = [p.detach().clone() for p in net.parameters()]
        groups = [(list(net[0].parameters()), 1e-9), (list(net[3].parameters()), 0.05)]
        train(net, step_of(net), TRAIN, WATCH, replace(OPTIONS, weight_decay=0), groups=groups)
        moved = [(p.detach() - b).abs().max().item() for p, b in zip(net.parameters(), before, strict=True)]
        assert max(moved[:2]) < 1e-6
        assert min(moved[2:]) > 1e-3


class TestKill:
    @pytest.mark.parametrize("schedule", ["plateau", "one-cycle"])
    @pytest.mark.parametrize("when", [1, 7, 23, 31])
    def test_a_kill_at_any_step_costs_nothing(self, tmp_path, schedule, when):
        options = replace(OPTIONS, schedule=schedule)
        whole, expected = run(options)
        kept = replace(options, checkpoint=tmp_path / "run.checkpoint")
        net = network()
        step, count = step_of(net), 0

        def dying(chosen, generator):
            nonlocal count
            count += 1
            if count == when:
                raise Killed
            return step(chosen, generator)

        with pytest.raises(Killed):
            train(net, dying, TRAIN, WATCH, kept)
        assert (tmp_path / "run.checkpoint").exists() == (when > 8)  # an epoch has 5 steps and 3 of validation
        again, history = run(kept)
        assert history.validation_loss == expected.validation_loss
        assert torch.equal(parameters(again), parameters(whole))

    def test_a_finished_training_is_not_repeated(self, tmp_path):
        kept = replace(OPTIONS, checkpoint=tmp_path / "run.checkpoint")
        whole, first = run(kept)
        calls: list[bool] = []
        again, second = run(kept, seed=5, calls=calls)
        assert calls == []
        assert torch.equal(parameters(again), parameters(whole))
        assert first.curves == second.curves

    def test_a_real_kill(self, tmp_path):
        """SIGKILL, which nothing can catch, in the middle of a training in another process."""
        code = textwrap.dedent(
            f"""
            import sys, time
            sys.path.insert(0, {str(os.path.dirname(__file__))!r})
            from dataclasses import replace
            from test_supervised_training import *
            net = network()
            step = step_of(net)
            def slow(chosen, generator):
                time.sleep(0.02)
                return step(chosen, generator)
            options = replace(OPTIONS, epochs=50, patience=50, checkpoint={str(tmp_path / "c")!r})
            train(net, slow, TRAIN, WATCH, options)
            """
        )
        process = subprocess.Popen([sys.executable, "-c", code])
        try:
            for _ in range(3000):
                if (tmp_path / "c").exists() or process.poll() is not None:
                    break
                signal.sigtimedwait([], 0.02)
            assert process.poll() is None
        finally:
            process.kill()
            process.wait()
        options = replace(OPTIONS, epochs=50, patience=50)
        state = torch.load(tmp_path / "c", weights_only=True)["state"]
        done = len(state["history"]["train_loss"])
        assert 1 <= done < 50
        _, resumed = run(replace(options, checkpoint=tmp_path / "c"))
        _, expected = run(options)
        assert resumed.validation_loss == expected.validation_loss

    def test_a_checkpoint_of_another_training_is_refused(self, tmp_path):
        run(replace(OPTIONS, checkpoint=tmp_path / "run.checkpoint"))
        with pytest.raises(CheckpointError, match=r"another training: learning_rate was 0\.05, is 0\.01; delete it"):
            run(replace(OPTIONS, learning_rate=0.01, checkpoint=tmp_path / "run.checkpoint"))

    def test_a_damaged_checkpoint_is_named(self, tmp_path):
        (tmp_path / "run.checkpoint").write_bytes(b"nonsense")
        with pytest.raises(CheckpointError, match=r"run\.checkpoint cannot be read .* delete it to begin anew"):
            run(replace(OPTIONS, checkpoint=tmp_path / "run.checkpoint"))

    @pytest.mark.parametrize(
        "change",
        [{"network": {}}, {"optimizer": None}, {"history": {"epochs": 1}}, {"best": ...}],
        ids=lambda c: next(iter(c)),
    )
    def test_so_is_one_whose_state_is_damaged(self, tmp_path, change):
        path = tmp_path / "run.checkpoint"
        run(replace(OPTIONS, checkpoint=path))
        content = torch.load(path, weights_only=True)
        content["state"] = {key: value for key, value in {**content["state"], **change}.items() if value is not ...}
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=r"run\.checkpoint .*is damaged.*; delete it to begin anew"):
            run(replace(OPTIONS, checkpoint=path))

    def test_a_checkpoint_that_holds_code_is_not_run(self, tmp_path):
        class Evil:
            def __reduce__(self):
                return (open, (str(tmp_path / "pwned"), "w"))

        torch.save({"run": {}, "state": Evil()}, tmp_path / "run.checkpoint")
        with pytest.raises(CheckpointError, match="cannot be read"):
            run(replace(OPTIONS, checkpoint=tmp_path / "run.checkpoint"))
        assert not (tmp_path / "pwned").exists()


class TestNotANumber:
    def test_a_loss_in_training(self):
        count = 0

        def poison(training):
            nonlocal count
            count += training
            return training and count > 12  # epoch 3

        net = network()
        with pytest.raises(TrainingError, match=r"became nan in epoch 3; lower learning_rate \(it is 0\.05\)"):
            train(net, step_of(net, poison=poison), TRAIN, WATCH, OPTIONS)
        best, _ = run(replace(OPTIONS, epochs=2))
        assert torch.equal(parameters(net), parameters(best))  # what was learnt before is not lost

    def test_a_loss_in_validation(self):
        net = network()
        with pytest.raises(TrainingError, match="became nan in epoch 1"):
            train(net, step_of(net, poison=lambda training: not training), TRAIN, WATCH, OPTIONS)

    def test_a_rate_far_too_high(self):
        net = nn.Linear(4, 1)

        def step(chosen, generator):
            loss = (net(X[chosen] * 1e18) ** 2).mean()
            return loss, torch.tensor(0.0)

        with pytest.raises(TrainingError, match="lower learning_rate"):
            train(net, step, TRAIN, WATCH, replace(OPTIONS, optimizer="sgd", learning_rate=1e6))


class TestOptions:
    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            ({"epochs": 0}, "epochs=0"),
            ({"batch_size": 0}, "batch_size=0"),
            ({"learning_rate": 0}, "learning_rate=0"),
            ({"optimizer": "adagrad"}, "'adagrad' is not known here; choose one of adam, sgd, rmsprop"),
            ({"schedule": "cosine"}, "'cosine' is not known here; choose one of plateau, one-cycle, constant"),
        ],
    )
    def test_out_of_range(self, wrong, message):
        with pytest.raises(ValueError, match=message):
            TrainingOptions(**wrong)

    def test_a_progress_bar_only_when_asked_for(self, capfd):
        run()
        assert capfd.readouterr().err == ""
        run(replace(OPTIONS, progress=True))
        assert "training" in capfd.readouterr().err
