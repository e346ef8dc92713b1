"""Training the built-in network: the optimiser, the loop that survives a kill, both roads, the command."""

import shutil
import sys

import pytest
import torch
from torch import nn

from anomalib_lite.embedding.builtin import build_builtin
from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.embedding.weights import WeightsError
from anomalib_lite.files.checkpoints import CheckpointError
from anomalib_lite.pretraining import __main__ as command
from anomalib_lite.pretraining import classification, distillation
from anomalib_lite.pretraining.optimizer import Muon, _orthogonal, optimizers
from anomalib_lite.pretraining.training import train

TINY = {"widths": (8, 16, 16), "depths": (0, 1, 1)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher_file(tmp_path_factory):
    """Random parameters of ResNet18 up to layer3, as torchvision names them."""
    from torchvision.models import resnet18

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "resnet18.pth"
    torch.save({k: v for k, v in resnet18().state_dict().items() if not k.startswith(("layer4", "fc"))}, path)
    return path


def images(seed, n=4, side=64):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


class TestOptimizer:
    @pytest.mark.parametrize("shape", [(8, 30), (30, 8)])
    def test_the_update_is_nearly_orthogonal(self, shape):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        singular = torch.linalg.svdvals(_orthogonal(matrix))
        assert singular.min() > 0.5
        assert singular.max() < 1.4
        assert torch.linalg.svdvals(matrix).max() / torch.linalg.svdvals(matrix).min() > 2

    def test_an_update_has_the_size_that_the_rate_promises(self):
        parameter = nn.Parameter(torch.zeros(32, 64))
        parameter.grad = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
        Muon([parameter], lr=0.1).step()
        assert parameter.detach().square().mean().sqrt() == pytest.approx(0.1 * 0.2, rel=0.3)

    @pytest.mark.parametrize("name", ["muon", "adamw"])
    def test_every_parameter_is_in_one_group(self, name):
        network = SmallNetwork(**TINY, normalize=True)
        grouped = [
            p for part in optimizers(network, 1e-3, name) for group in part.param_groups for p in group["params"]
        ]
        assert len(grouped) == len({id(p) for p in grouped}) == len(list(network.parameters()))


class Killed(Exception):
    pass


class TestLoop:
    def run(self, steps=12, checkpoint=None, kill_at=None, lr=0.02, dtype=torch.float32, width=16, **options):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 1))

        def loss_of(network, step):
            if step == kill_at:
                raise Killed
            x = torch.randn(32, 6, generator=torch.Generator().manual_seed(step))
            return (network(x)[:, 0] - x.sum(1)).square().mean()

        losses = []

        def report(step, loss, averaged, seconds):
            losses.append(loss)

        averaged = train(
            network, loss_of, steps=steps, lr=lr, dtype=dtype, checkpoint=checkpoint, report=report,
            report_every=4, **options,
        )  # fmt: skip
        return averaged.state_dict(), losses

    def test_learns(self):
        _, losses = self.run(steps=200)
        assert losses[-1] < 0.3 * losses[0]

    def test_a_killed_run_ends_where_an_unbroken_one_does(self, tmp_path):
        whole, _ = self.run()
        with pytest.raises(Killed):
            self.run(checkpoint=tmp_path / "run.checkpoint", kill_at=10)
        resumed, losses = self.run(checkpoint=tmp_path / "run.checkpoint")
        assert len(losses) == 1  # only the last four steps were left
        for key in whole:
            assert torch.allclose(whole[key].float(), resumed[key].float(), atol=1e-6), key

    @pytest.mark.parametrize(
        ("other", "text"),
        [
            ({"steps": 20}, "steps was 12, is 20"),
            ({"lr": 0.03}, "lr was 0.02, is 0.03"),
            ({"optimizer": "adamw"}, "optimizer was 'muon', is 'adamw'"),
            ({"dtype": torch.bfloat16}, "dtype was 'torch.float32', is 'torch.bfloat16'"),
            ({"width": 8}, r"network was \{.*'0.weight': \[16, 6\].*\}, is \{.*'0.weight': \[8, 6\].*\}"),
            ({"identity": {"seed": 1}}, "seed was 0, is 1"),
        ],
    )
    def test_a_checkpoint_of_another_run_is_refused(self, tmp_path, other, text):
        self.run(checkpoint=tmp_path / "run.checkpoint", identity={"seed": 0})
        with pytest.raises(CheckpointError, match=rf"run\.checkpoint belongs to another training: {text}; delete it"):
            self.run(**{"identity": {"seed": 0}, **other}, checkpoint=tmp_path / "run.checkpoint")

    def test_a_checkpoint_that_does_not_fit_is_refused(self, tmp_path):
        path = tmp_path / "run.checkpoint"
        self.run(checkpoint=path)
        content = torch.load(path, weights_only=True)
        for key, value in [("network", {}), ("averaged", 3), ("optimizers", []), ("step", "four"), ("seconds", None)]:
            torch.save({"run": content["run"], "state": {**content["state"], key: value}}, path)
            with pytest.raises(CheckpointError, match=r"run\.checkpoint cannot be read as a checkpoint"):
                self.run(checkpoint=path)


class TestDistillation:
    @pytest.fixture
    def teacher(self, teacher_file):
        teacher = distillation.Teacher(teacher_file, CPU, torch.float32)
        teacher.calibrate([images(i) for i in range(3)])
        return teacher

    def test_the_teacher_is_standardised_over_the_images_it_was_shown(self, teacher):
        maps = [torch.cat(level) for level in zip(*(teacher(images(i)) for i in range(3)), strict=True)]
        for level, channels in zip(maps, CHANNELS, strict=True):
            assert level.shape[1] == channels
            assert level.mean(dim=(0, 2, 3)).abs().max() < 1e-3
            live = level.std(dim=(0, 2, 3)) > 0.5
            assert live.float().mean() > 0.9
        nothing = [torch.zeros_like(level) for level in maps]
        assert distillation.distillation_loss(nothing, maps) == pytest.approx(1, abs=0.1)

    def test_what_ships_is_what_was_trained_in_the_teachers_units(self, teacher):
        network = SmallNetwork(**TINY, normalize=True)
        for seed in range(3):
            network.train()(images(seed))  # batch norms that are not the identity
        shipped = distillation.exported(network, teacher)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in shipped.modules())
        with torch.inference_mode():
            trained, sent = network.eval()(images(9)), shipped(images(9))
        for a, b, mean, deviation in zip(trained, sent, teacher.means, teacher.deviations, strict=True):
            assert torch.allclose(a * deviation.view(-1, 1, 1) + mean.view(-1, 1, 1), b, atol=1e-4)


class TestClassification:
    def test_what_ships_are_the_maps_that_were_classified(self):
        classifier = classification.FormulaClassifier(SmallNetwork(**TINY, normalize=True), 5)
        classifier.train()(images(0))
        assert classifier.eval()(images(1)).shape == (4, 5)
        shipped = classification.exported(classifier)
        with torch.inference_mode():
            maps, sent = classifier.network.features(images(1)), shipped(images(1))
        for a, b in zip(maps, sent, strict=True):
            assert torch.allclose(a, b[:, : a.shape[1]], atol=1e-5)
            assert not b[:, a.shape[1] :].any()


class TestCommand:
    def arguments(self, tmp_path, monkeypatch, *more):
        shared = ["--work", str(tmp_path / "work"), "-o", str(tmp_path / "weights.safetensors")]
        small = ["--images", "16", "--pool-side", "16", "--side", "32", "--batch", "2", "--steps", "2"]
        monkeypatch.setattr(command, "_HELD_OUT", 8)
        monkeypatch.setattr(sys, "argv", ["pretraining", *shared, *small, *more])

    @pytest.mark.parametrize("road", ["teacher", "classes"])
    def test_makes_weights_that_the_backbone_takes(self, road, tmp_path, monkeypatch, capsys, teacher_file):
        self.arguments(tmp_path, monkeypatch, "--road", road, "--teacher", str(teacher_file))
        command.main()
        assert "step 2: loss" in capsys.readouterr().out
        path = tmp_path / "weights.safetensors"
        assert path.stat().st_size < 8_000_000
        network = build_builtin(path)
        with torch.inference_mode():
            assert [tuple(level.shape) for level in network(images(0))] == [(4, 128, 8, 8), (4, 256, 4, 4)]

    @pytest.mark.parametrize(
        ("more", "text"),
        [
            (["--seed", "1"], "seed was 0, is 1"),
            (["--batch", "3"], "batch was 2, is 3"),
            (["--side", "64"], "side was 32, is 64"),
            (["--images", "17"], "images was 16, is 17"),
            (["--pool-side", "24"], "pool_side was 16, is 24"),
            (["--lr", "0.5"], "lr was 0.01, is 0.5"),
            (["--optimizer", "adamw"], "optimizer was 'muon', is 'adamw'"),
        ],
    )
    def test_goes_on_only_with_what_it_began_with(self, more, text, tmp_path, monkeypatch, finished, any_pool):
        shutil.copytree(finished, tmp_path / "work")
        self.arguments(tmp_path, monkeypatch, "--road", "classes", *more)
        with pytest.raises(CheckpointError, match=rf"weights\.checkpoint belongs to another training: {text}; delete"):
            command.main()

    @pytest.fixture
    def any_pool(self, monkeypatch):
        """Noise instead of drawn images, which take their time."""

        def noise(path, draw, count, side, *, first):
            return torch.randint(256, (count, side, side, 3), dtype=torch.uint8)

        monkeypatch.setattr(command, "draw_pool", noise)

    @pytest.fixture
    def finished(self, any_pool, tmp_path, monkeypatch):
        """The work folder of a run without a teacher."""
        self.arguments(tmp_path / "finished", monkeypatch, "--road", "classes")
        command.main()
        return tmp_path / "finished" / "work"

    def test_goes_on_only_with_its_teacher(self, teacher_file, tmp_path, monkeypatch, any_pool):
        self.arguments(tmp_path, monkeypatch, "--teacher", str(teacher_file))
        command.main()
        other = {key: value + 0.01 for key, value in torch.load(teacher_file).items()}
        torch.save(other, tmp_path / "other.pth")
        self.arguments(tmp_path, monkeypatch, "--teacher", str(tmp_path / "other.pth"))
        with pytest.raises(CheckpointError, match=r"teacher was '[0-9a-f]+.*', is '[0-9a-f]+.*'; delete it"):
            command.main()

    def test_the_teachers_road_needs_a_teacher(self, tmp_path, monkeypatch, capsys):
        self.arguments(tmp_path, monkeypatch)
        with pytest.raises(SystemExit):
            command.main()
        assert "--road teacher needs --teacher" in capsys.readouterr().err

    def test_a_teacher_of_another_shape_is_refused(self, tmp_path, monkeypatch, any_pool):
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "other.pth")
        self.arguments(tmp_path, monkeypatch, "--teacher", str(tmp_path / "other.pth"))
        with pytest.raises(WeightsError, match="lacks"):
            command.main()
