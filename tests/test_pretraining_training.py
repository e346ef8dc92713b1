"""Training the built-in network: the optimiser, the loop that survives a kill, both roads, the command."""

import argparse
import shutil
import sys

import pytest
import torch
from torch import nn

from anomalib_lite.embedding.builtin import build_builtin
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.network import CHANNELS, SmallNetwork
from anomalib_lite.embedding.weights import WeightsError
from anomalib_lite.files.checkpoints import CheckpointError
from anomalib_lite.pretraining import __main__ as command
from anomalib_lite.pretraining import classification, distillation
from anomalib_lite.pretraining.growing import begin_with
from anomalib_lite.pretraining.optimizer import Muon, _orthogonal, optimizers
from anomalib_lite.pretraining.placing import Placed, closest_margin, first_places
from anomalib_lite.pretraining.training import train

TINY = {"widths": (8, 16, 16), "depths": (0, 1, 1)}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teachers(tmp_path_factory):
    """Random parameters of ResNet18 up to layer3, and of MobileNetV2, as torchvision names them."""
    from torchvision.models import mobilenet_v2, resnet18

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("teachers")
    paths = {"resnet18": folder / "resnet18.pth", "mobilenet_v2": folder / "mobilenet_v2.pth"}
    parameters = resnet18().state_dict().items()
    torch.save({k: v for k, v in parameters if not k.startswith(("layer4", "fc"))}, paths["resnet18"])
    torch.save(mobilenet_v2().state_dict(), paths["mobilenet_v2"])
    return paths


def crops(seed, n=4, side=64):
    """Smooth random colours, uint8 (n, side, side, 3)."""
    coarse = torch.rand(n, 3, 12, 12, generator=torch.Generator().manual_seed(seed))
    fine = nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (fine * 255).byte().permute(0, 2, 3, 1).contiguous()


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
    @pytest.fixture(scope="class")
    def teacher(self, teachers):
        teacher = distillation.Teacher(teachers, 64, CPU, batch=4)
        teacher.calibrate([crops(i) for i in range(3)])
        return teacher

    def test_answers_are_centred_and_weigh_as_much_as_there_are_of_them(self, teacher):
        maps = [torch.cat(level) for level in zip(*(teacher(crops(i)) for i in range(3)), strict=True)]
        for level, channels in zip(maps, CHANNELS, strict=True):
            assert level.shape[1] == channels
            assert level.mean(dim=(0, 2, 3)).abs().max() < 1e-2
            assert level.var(dim=(0, 2, 3)).sum() == pytest.approx(channels, rel=0.02)
        nothing = [torch.zeros_like(level) for level in maps]
        assert distillation.distillation_loss(nothing, maps) == pytest.approx(1, abs=0.05)

    def test_every_teacher_has_the_same_say_in_distances(self, teacher):
        together = torch.cdist(*2 * [teacher(crops(0))[0].permute(0, 2, 3, 1).flatten(0, 2)])
        alone = []
        for placed in teacher.placed:
            maps = [placed(crops(i).numpy())[0] for i in range(3)]
            rows = torch.cat(maps).permute(0, 2, 3, 1).flatten(0, 2)
            first = maps[0].permute(0, 2, 3, 1).flatten(0, 2)
            alone.append(torch.cdist(first, first) ** 2 / rows.var(dim=0).sum())
        assert torch.corrcoef(torch.stack([together.flatten() ** 2, sum(alone).flatten()]))[0, 1] > 0.99

    def test_images_weigh_by_what_they_vary_inside(self):
        generator = torch.Generator().manual_seed(0)
        strong = [torch.randn(1, 3, side, side, generator=generator) for side in (16, 8)]
        faint = [1e-3 * level for level in strong]
        loss = distillation.relative_loss
        half = [[0.5 * level for level in levels] for levels in (strong, faint)]
        assert loss(half[0], strong) == pytest.approx(0.25 / 1.1, rel=0.1)
        assert loss(half[1], faint) < 1e-4  # fainter than anything: what errors are measured in ends somewhere
        together = loss(
            *([torch.cat(pair) for pair in zip(*levels, strict=True)] for levels in (half, (strong, faint)))
        )
        assert together == pytest.approx((float(loss(half[0], strong)) + float(loss(half[1], faint))) / 2, rel=1e-4)

    def test_edges_weigh_less(self):
        target = [torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1)) for side in (16, 8)]
        at_edge, inside = ([level.clone() for level in target] for _ in range(2))
        for edge, middle in zip(at_edge, inside, strict=True):
            edge[..., 0, 0] += 1
            middle[..., 4, 4] += 1
        assert distillation.relative_loss(at_edge, target) == pytest.approx(
            float(distillation.relative_loss(inside, target)) / 4, rel=1e-4
        )

    @pytest.mark.parametrize(("weights", "text"), [({}, "not none"), ({"vgg16": "x.pth"}, "not vgg16")])
    def test_teachers_that_are_none(self, weights, text):
        with pytest.raises(ValueError, match=f"teachers are any of resnet18, .*{text}"):
            distillation.Teacher(weights, 64, CPU, 4)

    def test_a_network_teaches_twice_with_other_weights(self, teachers):
        twice = {**teachers, "mobilenet_v2+other": teachers["mobilenet_v2"]}
        alone, both = (
            distillation.Teacher(weights, 64, CPU, 4) for weights in ({"resnet18": teachers["resnet18"]}, twice)
        )
        assert [embedder.backbone for embedder in alone.embedders] == ["resnet18"]
        assert [embedder.backbone for embedder in both.embedders] == ["resnet18", "mobilenet_v2", "mobilenet_v2"]
        both.calibrate([crops(0)])
        assert both(crops(1))[0].shape == (4, CHANNELS[0], 8, 8)

    def test_what_ships_is_what_was_trained_with_both_maps_weighing_the_same(self):
        network = SmallNetwork(**TINY, normalize=True)
        for seed in range(3):
            network.train()(images(seed))  # batch norms that are not the identity
        shipped = distillation.exported(network)
        assert not any(isinstance(module, nn.BatchNorm2d) for module in shipped.modules())
        with torch.inference_mode():
            trained, sent = network.eval()(images(9)), shipped(images(9))
        for a, b, channels in zip(trained, sent, CHANNELS, strict=True):
            assert torch.allclose(4 * a / channels**0.5, b, atol=4e-4)


class TestPlacing:
    """Teachers' maps lie where the cells of the student's do, wherever they look of their own accord."""

    @pytest.mark.parametrize(("fine", "coarse"), [(0, 0), (3, 7), (11, 2)])
    def test_finds_where_places_lie(self, fine, coarse):
        def maps(shown):
            pixels = torch.as_tensor(shown).permute(0, 3, 1, 2).float()
            return [nn.functional.avg_pool2d(pixels[..., o:, o:], s) for o, s in ((fine, 8), (coarse, 16))]

        found = first_places(maps, crops(0, n=64, side=128).numpy())
        assert found == pytest.approx([fine + 3.5, coarse + 7.5], abs=0.7)

    def test_a_dot_that_changes_nothing_tells_nothing(self):
        def maps(shown):
            pixels = torch.as_tensor(shown).permute(0, 3, 1, 2).float()
            return [nn.functional.avg_pool2d(pixels, s) for s in (8, 16)]

        mixed = crops(0, n=64, side=128).numpy()
        mixed[::4] = 255  # lighter dots are not seen on white
        assert first_places(maps, mixed) == pytest.approx([3.5, 7.5], abs=0.7)

    def test_a_network_that_does_not_pad_is_shown_a_margin(self, tmp_path):
        from torchvision.models import inception_v3

        torch.manual_seed(0)
        torch.save(inception_v3(init_weights=False, aux_logits=False).state_dict(), tmp_path / "inception_v3.pth")
        embedder = Embedder("inception_v3", weights=tmp_path / "inception_v3.pth", image_size=128, dtype="float32")
        measured_on = crops(0, n=16, side=128).numpy()
        placed = Placed(embedder, measured_on)
        assert placed.margin > 0
        assert [tuple(level.shape[2:]) for level in placed(measured_on[:2])] == [(16, 16), (8, 8)]
        assert first_places(placed, crops(1, n=16, side=128).numpy()) == pytest.approx([3.5, 7.5], abs=3.5)

    @pytest.mark.parametrize("firsts", [(3.2, 7.0), (-1.6, -5.5), (12.9, 21.5), (0.0, 0.0), (6.4, 6.0), (3.5, -0.5)])
    def test_the_margin_brings_both_maps_as_close_as_any(self, firsts):
        def miss(margin):
            return sum(
                min((first - margin + stride * k - (stride - 1) / 2) ** 2 for k in range(-3, 6))
                for first, stride in zip(firsts, (8, 16), strict=True)
            )

        margin, skipped = closest_margin(firsts)
        assert min(skipped) >= 0
        assert miss(margin) <= min(miss(other) for other in range(16)) + 1
        for first, count, stride in zip(firsts, skipped, (8, 16), strict=True):
            assert abs(first - margin + stride * count - (stride - 1) / 2) <= stride / 2


class TestGrowing:
    @pytest.mark.parametrize("widths", [(8, 16, 16), (12, 16, 24)])
    def test_channels_of_old_answer_as_they_did(self, widths):
        before = SmallNetwork(**TINY, normalize=True)
        for seed in range(3):
            before.train()(images(seed))
        before = distillation.exported(before)
        after = SmallNetwork(widths=widths, depths=TINY["depths"], normalize=True)
        begin_with(after, before.state_dict(), images(0))
        with torch.inference_mode():
            for a, b in zip(before.features(images(9)), after.eval().features(images(9)), strict=True):
                assert torch.allclose(a, b[:, : a.shape[1]], atol=1e-4)
                assert (b[:, a.shape[1] :].std(dim=(0, 2, 3)) > 0).all()

    @pytest.mark.parametrize(
        ("other", "text"),
        [({"widths": (8, 8, 16)}, "of a wider network: middle"), ({"depths": (0, 2, 1)}, "with other blocks")],
    )
    def test_what_does_not_fit(self, other, text):
        before = distillation.exported(SmallNetwork(**TINY, normalize=True))
        with pytest.raises(ValueError, match=text):
            begin_with(SmallNetwork(**{**TINY, **other}, normalize=True), before.state_dict(), images(0))


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
    def test_makes_weights_that_the_backbone_takes(self, road, tmp_path, monkeypatch, capsys, teachers):
        self.arguments(tmp_path, monkeypatch, "--road", road, "--teachers", str(teachers["resnet18"].parent))
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

    @pytest.mark.parametrize("road", ["teacher", "classes"])
    def test_the_network_alone_sees_another_day(self, road, tmp_path, any_pool):
        given = {"road": road, "work": tmp_path, "images": 600, "pool_side": 32, "seed": 0, "side": 32, "batch": 16}
        batches = command.Batches(argparse.Namespace(**given), CPU)
        seen, crops, indices = batches.train(3)
        assert seen.shape == crops.shape == (16, 32, 32, 3)
        assert len(indices) == 16
        light = seen.float().mean(dim=(1, 2, 3)) - crops.float().mean(dim=(1, 2, 3))
        assert 2 < light.std() < 30  # grey levels of 255: some brighter, some darker
        assert all(map(torch.equal, batches.train(3), (seen, crops, indices)))
        unseen, same, _ = batches.held_out(3)
        assert torch.equal(unseen, same)

    def test_goes_on_only_with_its_teachers(self, teachers, tmp_path, monkeypatch, any_pool):
        chosen = ("--teachers", str(tmp_path / "teachers"), "--teacher", "resnet18")
        (tmp_path / "teachers").mkdir()
        shutil.copy(teachers["resnet18"], tmp_path / "teachers")
        self.arguments(tmp_path, monkeypatch, *chosen)
        command.main()
        other = {key: value * 1.01 for key, value in torch.load(teachers["resnet18"]).items()}
        torch.save(other, tmp_path / "teachers" / "resnet18.pth")
        self.arguments(tmp_path, monkeypatch, *chosen)
        with pytest.raises(CheckpointError, match=r"teachers was \['[0-9a-f]+.*'\], is \['[0-9a-f]+.*'\]; delete it"):
            command.main()

    def test_begins_with_what_was_trained(self, teachers, tmp_path, monkeypatch, capsys, any_pool):
        self.arguments(tmp_path, monkeypatch, "--road", "classes")
        command.main()
        begin = (tmp_path / "weights.safetensors").rename(tmp_path / "first.safetensors")
        (tmp_path / "work" / "weights.checkpoint").unlink()
        more = ("--teachers", str(teachers["resnet18"].parent), "--begin", str(begin), "--widths", "64", "112", "240")
        self.arguments(tmp_path, monkeypatch, *more)
        command.main()
        network = build_builtin(tmp_path / "weights.safetensors")
        assert network.widths == (64, 112, 240)

    def test_the_teachers_road_needs_a_teacher(self, tmp_path, monkeypatch, capsys):
        self.arguments(tmp_path, monkeypatch)
        with pytest.raises(SystemExit):
            command.main()
        assert "--road teacher needs --teachers" in capsys.readouterr().err

    def test_a_teacher_that_is_missing(self, teachers, tmp_path, monkeypatch, any_pool):
        more = ("--teachers", str(teachers["resnet18"].parent), "--teacher", "resnet18", "inception_v3")
        self.arguments(tmp_path, monkeypatch, *more)
        with pytest.raises(FileNotFoundError, match="has no weights of inception_v3"):
            command.main()

    def test_a_teacher_of_another_shape_is_refused(self, tmp_path, monkeypatch, any_pool):
        torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "resnet18.pth")
        self.arguments(tmp_path, monkeypatch, "--teachers", str(tmp_path))
        with pytest.raises(WeightsError, match="lacks"):
            command.main()
