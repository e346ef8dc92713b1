"""Images in object stores and archives; the S3 store is a real server (moto's) on loopback, where it is installed."""

import io
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.evaluation.measuring import evaluate
from anomalib_lite.images import objects
from anomalib_lite.images.loading import UnreadableImage, guess_value_range, load
from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.images.reading import Reading, UnreadableImageError
from anomalib_lite.images.sources import open_source

fsspec = pytest.importorskip("fsspec")


def png(value=100, size=(8, 6), mode="RGB"):
    file = io.BytesIO()
    colour = (value,) * 3 if mode == "RGB" else value
    Image.new(mode, size, colour).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def memory():
    files = fsspec.filesystem("memory")
    for number in range(3):
        files.pipe(f"/bucket/good/{number}.png", png(10 * number))
    files.pipe("/bucket/good/deeper/9.PNG", png(90))
    files.pipe("/bucket/good/.hidden/9.png", png(90))
    files.pipe("/bucket/good/notes.txt", b"text")
    yield files
    files.rm("/bucket", recursive=True)


@pytest.fixture(scope="module")
def s3_server():
    """The address of an S3 server that this test run started, with the credentials for it in the environment."""
    # Beside this Python, or wherever commands are.
    command = shutil.which("moto_server", path=os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]))
    pytest.importorskip("s3fs")
    if command is None:
        pytest.skip("moto's server is not installed: pip install 'moto[server]'")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [command, "-H", "127.0.0.1", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    for _ in range(300):
        try:
            urllib.request.urlopen(f"{address}/moto-api/", timeout=1).close()
            break
        except OSError:
            time.sleep(0.1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_ENDPOINT_URL", address)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        patch.setenv("AWS_CONFIG_FILE", "/nowhere")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
        yield address, server
    server.kill()
    server.wait()


@pytest.fixture
def bucket(s3_server):
    files = fsspec.filesystem("s3", skip_instance_cache=True)
    files.mkdir("parts")
    for number in range(4):
        files.pipe(f"parts/good/{number}.png", png(10 * number))
    yield files
    files.rm("parts", recursive=True)


class TestMemory:
    def test_a_pattern(self, memory):
        source = open_source("memory://bucket/good/*.png")
        assert source.ids == ["0.png", "1.png", "2.png"]
        assert [int(source.read(i).max()) for i in range(3)] == [0, 10, 20]
        assert source.read(0).shape == (6, 8, 3)

    def test_a_folder_is_listed_as_on_a_disk(self, memory):
        assert open_source("memory://bucket/good").ids == ["0.png", "1.png", "2.png", "deeper/9.PNG"]

    def test_one_object_and_a_list(self, memory):
        assert open_source("memory://bucket/good/1.png").ids == ["1.png"]
        source = open_source(
            ["memory://bucket/good/1.png", "memory://bucket/good/[02].png", np.zeros((2, 2), np.uint8)]
        )
        assert source.ids == [*(f"memory://bucket/good/{i}.png" for i in (1, 0, 2)), "image_0002"]
        assert [int(source.read(i).max()) for i in range(4)] == [10, 0, 20, 0]

    def test_a_vanished_object_is_unreadable_and_the_others_are_not(self, memory):
        source = open_source("memory://bucket/good/*.png")
        memory.rm("/bucket/good/1.png")
        found = list(load(source, size=8))
        assert [isinstance(one, UnreadableImage) for one in found] == [False, True, False]
        assert found[1].reason == "1.png: cannot be fetched: it is not there; check the address"

    def test_nothing_there(self, memory):
        with pytest.raises(FileNotFoundError, match="no images there; check the address"):
            open_source("memory://bucket/bad/*.png")

    def test_reduced_and_noted_as_files_are(self, memory):
        memory.pipe("/bucket/deep/a.png", png(5000, mode="I;16"))
        source = open_source("memory://bucket/deep/*", Reading(value_range=(0, 4095)))
        source.read(0)
        assert "leave the range" in source.notes["a.png"]

    def test_the_range_of_deep_pictures_is_found(self, memory):
        memory.pipe("/bucket/deep/a.png", png(1000, mode="I;16"))
        memory.pipe("/bucket/deep/b.png", png(10))
        assert guess_value_range(open_source("memory://bucket/deep/*")) == (0, 1023)

    def test_of_shallow_pictures_only_the_beginning_is_fetched(self, memory, monkeypatch):
        fetched = []
        original = type(memory).cat_file

        def cat_file(self, path, start=None, end=None, **kwargs):
            fetched.append(end)
            return original(self, path, start, end, **kwargs)

        monkeypatch.setattr(type(memory), "cat_file", cat_file)
        assert guess_value_range(open_source("memory://bucket/good/*.png")) is None
        assert fetched == [26] * 3

    def test_too_large_is_refused_before_it_is_fetched(self, memory, monkeypatch):
        source = open_source("memory://bucket/good/*.png", Reading(max_pixels=1))
        monkeypatch.setattr(Reading, "max_bytes", 20)
        monkeypatch.setattr(type(memory), "cat_file", lambda *_, **__: pytest.fail("was fetched"))
        with pytest.raises(UnreadableImageError, match=r"0\.png: too large"):
            source.read(0)

    def test_a_source_can_be_sent(self, memory):
        source = pickle.loads(pickle.dumps(open_source("memory://bucket/good/*.png")))
        assert int(source.read(2).max()) == 20

    def test_fit_and_score(self, memory):
        from anomalib_lite import Detector
        from anomalib_lite.images.synthetic import render_part

        for number in range(8):
            file = io.BytesIO()
            Image.fromarray(render_part(np.random.default_rng(number), 64)[0]).save(file, "PNG")
            memory.pipe(f"/bucket/parts/{number}.png", file.getvalue())
        detector = Detector(image_size=64).fit("memory://bucket/parts/*.png")
        assert detector.n_train_ == 8
        assert detector.score("memory://bucket/parts/0.png").ids == ["0.png"]


class TestTries:
    @pytest.fixture(autouse=True)
    def _no_pauses(self, monkeypatch):
        self.pauses = []
        monkeypatch.setattr(objects.time, "sleep", self.pauses.append)

    def flaky(self, monkeypatch, memory, failures, error):
        original, left = type(memory).cat_file, [failures]

        def cat_file(self, *arguments, **kwargs):
            if left[0]:
                left[0] -= 1
                raise error
            return original(self, *arguments, **kwargs)

        monkeypatch.setattr(type(memory), "cat_file", cat_file)

    def test_what_may_pass_is_tried_again_after_longer_and_longer(self, memory, monkeypatch):
        source = open_source("memory://bucket/good/*.png")
        self.flaky(monkeypatch, memory, 3, ConnectionError("reset"))
        assert int(source.read(1).max()) == 10
        assert self.pauses == [0.25, 0.5, 1.0]

    def test_in_the_end_it_is_unreadable(self, memory, monkeypatch):
        source = open_source("memory://bucket/good/*.png")
        self.flaky(monkeypatch, memory, 99, TimeoutError("too slow"))
        with pytest.raises(UnreadableImageError, match=r"^1\.png: cannot be fetched: too slow"):
            source.read(1)
        assert len(self.pauses) == 3

    def test_a_store_that_is_gone_is_not_waited_for_each_time(self, memory, monkeypatch):
        source = open_source("memory://bucket/good/*.png")
        self.flaky(monkeypatch, memory, 999, ConnectionError("refused"))
        for _ in range(20):
            with pytest.raises(UnreadableImageError):
                source.read(0)
        assert len(self.pauses) == 8 * 3

    def test_what_will_not_pass_is_asked_for_once(self, memory, monkeypatch):
        source = open_source("memory://bucket/good/*.png")
        self.flaky(monkeypatch, memory, 1, PermissionError("forbidden"))
        with pytest.raises(UnreadableImageError, match="forbidden"):
            source.read(1)
        assert self.pauses == []


def put_set(files, folder, path):
    """Copy a data set into a store."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            files.pipe(f"{path}/{file.relative_to(folder).as_posix()}", file.read_bytes())


class TestMVTecLayout:
    @pytest.fixture
    def stored(self, synthetic_set):
        files = fsspec.filesystem("memory")
        put_set(files, synthetic_set, "/sets/nut")
        yield files
        files.rm("/sets", recursive=True)

    def test_a_set_is_what_it_is_on_a_disk(self, synthetic_set, stored):
        local, there = open_mvtec(synthetic_set), open_mvtec("memory://sets/nut")
        assert there.name == "nut"
        assert (there.train.ids, there.test.ids, there.kinds) == (local.train.ids, local.test.ids, local.kinds)
        assert there.labels.tolist() == local.labels.tolist()
        assert there.has_mask.all()
        assert there.pairing_problems == []
        for i in range(0, len(local.test), 5):
            np.testing.assert_array_equal(there.test.read(i), local.test.read(i))
            np.testing.assert_array_equal(there.read_mask(i), local.read_mask(i))
            np.testing.assert_array_equal(there.read_mask(i, (9, 7)), local.read_mask(i, (9, 7)))

    def test_an_archive(self, synthetic_set, tmp_path):
        shutil.make_archive(tmp_path / "sets", "zip", synthetic_set.parent, synthetic_set.name)
        there = open_mvtec(f"zip://{synthetic_set.name}::{tmp_path / 'sets.zip'}")
        assert there.name == synthetic_set.name
        assert there.test.ids == open_mvtec(synthetic_set).test.ids
        shutil.make_archive(tmp_path / "nut", "zip", synthetic_set)
        assert len(open_mvtec(f"zip://::{tmp_path / 'nut.zip'}").train) == len(there.train)

    def test_evaluated_as_on_a_disk(self, synthetic_set, stored):
        small = {"image_size": 64, "bank_size": 100, "dtype": "float32", "false_alarm_rate": 0.1}
        local, there = (evaluate(one, **small).to_dict() for one in (synthetic_set, "memory://sets/nut"))
        for key in ("image_auroc", "pixel_auroc", "aupro", "n_masks", "threshold", "per_defect"):
            assert there[key] == local[key] is not None

    def test_what_is_left_over_and_broken_masks(self, stored):
        kind, name = open_mvtec("memory://sets/nut").test.ids[-1].split("/")
        stem = name.removesuffix(".png")
        stored.pipe(f"/sets/nut/ground_truth/{kind}/{stem}_mask.png", b"no image")
        stored.pipe("/sets/nut/test/stray.png", png())
        stored.pipe("/sets/nut/ground_truth/scratch/999_mask.png", png())
        there = open_mvtec("memory://sets/nut")
        assert there.pairing_problems == [
            "test/stray.png: not in the folder of a kind, left out",
            "ground_truth/scratch/999_mask.png: no image test/scratch/999.*",
        ]
        with pytest.raises(UnreadableImageError, match=rf"^memory://sets/nut/ground_truth/{kind}/{stem}_mask\.png: "):
            there.read_mask(len(there.test) - 1)

    def test_several_folders_of_good_ones(self, stored):
        stored.pipe("/sets/nut/train/OK/9.png", png())
        there = open_mvtec("memory://sets/nut")
        assert there.train.ids[:2] == ["OK/9.png", "good/000.png"]
        assert there.train.read(0).shape == (6, 8, 3)

    def test_another_layout(self, stored):
        with pytest.raises(
            FileNotFoundError, match=r"(?s)memory://sets: no train/good.*found nut/.*instance memory://sets/nut$"
        ):
            open_mvtec("memory://sets")
        with pytest.raises(FileNotFoundError, match="memory://gone: no such object or folder; check the address"):
            open_mvtec("memory://gone")

    def test_s3(self, synthetic_set, bucket):
        put_set(bucket, synthetic_set, "parts/nut")
        there = open_mvtec("s3://parts/nut")
        local = open_mvtec(synthetic_set)
        assert there.test.ids == local.test.ids
        np.testing.assert_array_equal(there.train.read(3), local.train.read(3))
        np.testing.assert_array_equal(there.read_mask(len(there.test) - 1), local.read_mask(len(there.test) - 1))


class TestProtocols:
    def test_unknown(self):
        with pytest.raises(ValueError, match=r"^floppy://a: .*floppy"):
            open_source("floppy://a")

    @pytest.mark.parametrize(("url", "package"), [("gs://a/*.png", "gcsfs"), ("az://a/*.png", "adlfs")])
    def test_a_package_that_is_not_there(self, url, package, monkeypatch):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, url[:2], raising=False)
        with pytest.raises(ImportError, match=rf"needs {package}.*anomalib_lite\[cloud\]"):
            open_source(url)

    def test_file_urls_are_files(self, tmp_path):
        (tmp_path / "a.png").write_bytes(png())
        assert open_source(f"file://{tmp_path}").ids == ["a.png"]

    def test_http_has_no_patterns(self):
        pytest.importorskip("aiohttp")
        with pytest.raises((ValueError, OSError), match="name every object"):
            open_source("http://127.0.0.1:9/*.png")


class TestZip:
    def archive(self, path, **members):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in members.items():
                file.writestr(name, content)
        return path

    def test_members(self, tmp_path):
        path = self.archive(tmp_path / "a.zip", **{"good/1.png": png(30), "good/0.png": png(20), "bad/0.png": png()})
        source = open_source(f"zip://good/*.png::{path}")
        assert source.ids == ["0.png", "1.png"]
        assert [int(one.pixels.max()) for one in load(source, size=8)] == [20, 30]
        assert open_source(f"zip://::{path}").ids == ["bad/0.png", "good/0.png", "good/1.png"]

    def test_members_cannot_leave(self, tmp_path):
        path = self.archive(tmp_path / "a.zip", **{"../../out.png": png(), "in.png": png()})
        (tmp_path.parent / "out.png").write_bytes(png())
        found = {one.id: one for one in load(open_source(f"zip://::{path}"), size=8)}
        out = next(one for name, one in found.items() if name.endswith("out.png"))
        assert isinstance(out, UnreadableImage)
        assert "leads out" in out.reason
        assert not isinstance(found["in.png"], UnreadableImage)

    def test_a_bomb_is_refused_by_its_size(self, tmp_path, little_memory):
        path = self.archive(tmp_path / "a.zip", **{"a.png": bytes(1 << 28)})
        with little_memory, pytest.raises(UnreadableImageError, match=r"a\.png: too large, 268 MB"):
            open_source(f"zip://*.png::{path}", Reading(max_pixels=1_000_000)).read(0)

    def test_a_size_that_is_a_lie_does_not_help_it(self, tmp_path, little_memory):
        path = self.archive(tmp_path / "a.zip", **{"a.png": bytes(1 << 28)})
        raw = path.read_bytes()
        path.write_bytes(raw.replace((1 << 28).to_bytes(4, "little"), (1000).to_bytes(4, "little")))
        with little_memory, pytest.raises(UnreadableImageError, match=r"a\.png: "):
            open_source(f"zip://*.png::{path}").read(0)

    def test_no_archive(self, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"no archive")
        with pytest.raises(OSError, match="cannot be opened"):
            open_source(f"zip://*.png::{tmp_path / 'a.zip'}")
        with pytest.raises(FileNotFoundError, match="check the address"):
            open_source(f"zip://*.png::{tmp_path / 'b.zip'}")


class TestS3:
    def test_objects(self, bucket):
        source = open_source("s3://parts/good/*.png")
        assert source.ids == [f"{i}.png" for i in range(4)]
        assert [int(one.pixels.max()) for one in load(source, size=8, workers=4)] == [0, 10, 20, 30]
        assert open_source("s3://parts/good").ids == source.ids
        assert open_source(["s3://parts/good/2.png", "s3://parts/good/0.png"]).read(0).max() == 20

    def test_a_vanished_one(self, bucket):
        source = open_source("s3://parts/good/*.png")
        bucket.rm("parts/good/2.png")
        found = list(load(source, size=8))
        assert [one.id for one in found if isinstance(one, UnreadableImage)] == ["2.png"]

    def test_no_bucket(self, s3_server):
        with pytest.raises(FileNotFoundError, match="s3://nowhere"):
            open_source("s3://nowhere/*.png")

    def test_without_credentials(self, bucket, monkeypatch):
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(PermissionError, match=r"s3://parts.*give credentials by the usual means"):
            open_source("s3://parts/good/*.png")
        fsspec.get_filesystem_class("s3").clear_instance_cache()

    def test_a_server_that_is_gone(self, bucket, monkeypatch):
        source = open_source("s3://parts/good/*.png")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        monkeypatch.setattr(objects, "_FIRST_PAUSE", 0)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
        again = pickle.loads(pickle.dumps(source))
        again._store._lost = objects._GIVES_UP_AFTER
        with pytest.raises(UnreadableImageError, match=r"^0\.png: cannot be fetched: Could not connect"):
            again.read(0)
        fsspec.get_filesystem_class("s3").clear_instance_cache()
