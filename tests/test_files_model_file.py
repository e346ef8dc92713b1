import errno
import json
import os
import pickle
import stat
import struct
from contextlib import suppress

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file as stored_arrays
from safetensors.numpy import save

from anomalib_lite.files import atomic, model_file
from anomalib_lite.files.model_file import FORMAT, VERSION, ModelFileError, load_file, save_file

ARRAYS = {
    "bank": np.arange(12, dtype=np.float32).reshape(3, 4),
    "turned": np.arange(6, dtype=np.float64).reshape(2, 3).T,  # not contiguous
    "groups": np.array([3, 1, 2]),
    "flags": np.array([True, False]),
    "scalar": np.array(2.5),
    "none": np.zeros((0, 7), dtype=np.float32),
}
MANIFEST = {"config": {"backbone": "builtin", "k": 2, "layers": []}, "ids": ["gut/ä 1.png", "b"], "share": 0.1}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.safetensors"


class TestRoundTrip:
    def test_arrays_and_manifest_come_back_as_they_were(self, path):
        assert save_file(path, ARRAYS, MANIFEST) == path
        arrays, manifest = load_file(str(path))
        assert set(arrays) == set(ARRAYS)
        for key, value in ARRAYS.items():
            assert (arrays[key].dtype, arrays[key].shape) == (value.dtype, value.shape), key
            assert np.array_equal(arrays[key], value)
        assert {key: manifest[key] for key in MANIFEST} == MANIFEST
        assert (manifest["format"], manifest["version"]) == (FORMAT, VERSION)

    def test_a_manifest_cannot_pass_for_another_version(self, path):
        save_file(path, ARRAYS, {"version": 99, "format": "other"})
        assert load_file(path)[1]["version"] == VERSION

    def test_saving_again_replaces_the_file(self, path):
        save_file(path, ARRAYS, {"n": 1})
        save_file(path, {"bank": np.ones(2)}, {"n": 2})
        arrays, manifest = load_file(path)
        assert (list(arrays), manifest["n"]) == (["bank"], 2)
        assert os.listdir(path.parent) == [path.name]

    def test_others_may_read_what_the_umask_allows(self, path):
        before = os.umask(0o027)
        try:
            save_file(path, ARRAYS, MANIFEST)
        finally:
            assert os.umask(before) == 0o027  # left as it was
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


class TestFailedSave:
    """The old file stays, nothing is left over, and the error names the path."""

    @pytest.mark.parametrize("step", ["fsync", "replace", "chmod"])
    def test_disk_full(self, path, step, monkeypatch):
        save_file(path, ARRAYS, {"n": 1})
        before = path.read_bytes()

        def fail(*_args):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(atomic.os, step, fail)
        with pytest.raises(OSError, match=f"cannot save {path}: No space left.*nothing was changed") as error:
            save_file(path, {"bank": np.ones(9)}, {"n": 2})
        assert error.value.errno == errno.ENOSPC
        assert path.read_bytes() == before
        assert os.listdir(path.parent) == [path.name]

    def test_interrupted(self, path, monkeypatch):
        def interrupt(*_args):
            raise KeyboardInterrupt

        monkeypatch.setattr(atomic.os, "replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            save_file(path, ARRAYS, MANIFEST)
        assert os.listdir(path.parent) == []

    def test_no_such_folder(self, tmp_path):
        path = tmp_path / "absent" / "model.safetensors"
        with pytest.raises(FileNotFoundError, match=f"cannot save {path}: No such file or directory"):
            save_file(path, ARRAYS, MANIFEST)

    def test_a_folder_in_its_place(self, path):
        path.mkdir()
        with pytest.raises(OSError, match=f"cannot save {path}: "):
            save_file(path, ARRAYS, MANIFEST)
        assert os.listdir(path.parent) == [path.name]

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
    def test_read_only_folder(self, tmp_path):
        tmp_path.chmod(0o500)
        with pytest.raises(PermissionError, match=r"cannot save .*Permission denied"):
            save_file(tmp_path / "model.safetensors", ARRAYS, MANIFEST)

    def test_what_json_cannot_hold_changes_nothing(self, path):
        with pytest.raises(TypeError):
            save_file(path, ARRAYS, {"model": object()})
        assert os.listdir(path.parent) == []


class Malicious:
    """Creates a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


class TestForeignFiles:
    def test_absent(self, path):
        for missing in (path, path.parent):
            with pytest.raises(FileNotFoundError, match=f"no model file {missing}"):
                load_file(missing)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"garbage that is longer than eight bytes",
            struct.pack("<Q", 2**62) + b"{}",  # a header that would fill all memory
            struct.pack("<Q", 50) + b"{}",
            struct.pack("<Q", 2) + b"[]",
            b"\x89PNG\r\n\x1a\n" + bytes(100),
        ],
        ids=["empty", "garbage", "huge header", "short header", "odd header", "image"],
    )
    def test_no_model(self, path, content):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=r"model\.safetensors is not a model file or is damaged"):
            load_file(path)

    @pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
    def test_truncated(self, path, share):
        save_file(path, ARRAYS, MANIFEST)
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ModelFileError, match="damaged"):
            load_file(path)

    def test_pickles_are_refused_and_do_not_run(self, path, tmp_path):
        path.write_bytes(pickle.dumps(Malicious(tmp_path / "trap")))
        with pytest.raises(ModelFileError, match="not a model file"):
            load_file(path)
        assert not (tmp_path / "trap").exists()

    @pytest.mark.parametrize(
        "metadata",
        [None, {"format": "pt"}, {"manifest": "{"}, {"manifest": "[1]"}, {"manifest": "3"}, {"manifest": "{}"}],
    )
    def test_other_safetensors(self, path, metadata):
        path.write_bytes(save({"weight": np.ones(3)}, metadata))
        with pytest.raises(ModelFileError, match="is a safetensors file but not a model of anomalib_lite"):
            load_file(path)

    def test_other_format(self, path):
        path.write_bytes(save({"none": np.zeros(1)}, {"manifest": json.dumps({"format": "someone's", "version": 1})}))
        with pytest.raises(ModelFileError, match='is of format "someone\'s", not'):
            load_file(path)

    def test_newer_version(self, path):
        path.write_bytes(
            save({"none": np.zeros(1)}, {"manifest": json.dumps({"format": FORMAT, "version": VERSION + 1})})
        )
        with pytest.raises(
            ModelFileError,
            match=rf"version {VERSION + 1}, and {VERSION} is read here; update the package with pip install -U",
        ):
            load_file(path)

    def test_older_version(self, path):
        path.write_bytes(save({"none": np.zeros(1)}, {"manifest": json.dumps({"format": FORMAT, "version": 1})}))
        with pytest.raises(ModelFileError, match=rf"version 1, and {VERSION} is read here; fit again"):
            load_file(path)

    @pytest.mark.parametrize("version", ["2", None, 1.5, 2.0, True, -5, 0, 10**30, [[[]]], {"a": 1}, float("nan")])
    def test_no_version(self, path, version):
        path.write_bytes(save({"none": np.zeros(1)}, {"manifest": json.dumps({"format": FORMAT, "version": version})}))
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged: .* is no format version"):
            load_file(path)

    @pytest.mark.parametrize("where", ["manifest", "format", "version", "kind", "more"])
    @pytest.mark.parametrize("depth", [400, 900, 5000, 100_000])
    def test_depths_that_nobody_needs(self, path, where, depth):
        header = json.dumps({"format": FORMAT, "version": VERSION, "kind": "detector", "more": 0})
        nested = "[" * depth + "]" * depth
        if where != "manifest":
            entry = json.dumps({where: json.loads(header)[where]})[1:-1]
            nested = header.replace(entry, f'"{where}": {nested}')
        path.write_bytes(
            save(
                {"none": np.zeros(1)},
                {"manifest": nested, "sha256": model_file._checksum(nested, {"none": np.zeros(1)})},
            )
        )
        with (
            suppress(ModelFileError) if where == "more" else pytest.raises(ModelFileError, match=r"model\.safetensors ")
        ):
            load_file(path)


class TestDamage:
    """What was written is what is read, or an error names the file."""

    def test_any_bit(self, path):
        save_file(path, ARRAYS, MANIFEST)
        content = bytearray(path.read_bytes())
        for position in range(len(content)):
            content[position] ^= 1 << position % 8
            path.write_bytes(content)
            content[position] ^= 1 << position % 8
            with pytest.raises(ModelFileError, match=r"model\.safetensors "):
                load_file(path)

    @pytest.mark.parametrize(
        "change",
        [
            lambda arrays, header: arrays["bank"].__setitem__((0, 0), 3),
            lambda arrays, header: arrays.update(bank=arrays["bank"].reshape(4, 3)),
            lambda arrays, header: arrays.update(bank=arrays["bank"].view(np.int32)),
            lambda arrays, header: arrays.update(tank=arrays.pop("bank")),
            lambda arrays, header: arrays.pop("none"),
            lambda arrays, header: arrays.update(more=np.zeros(0)),
            lambda arrays, header: header.update(share=0.2),
            lambda arrays, header: header["ids"].reverse(),
        ],
    )
    def test_edited(self, path, change):
        save_file(path, ARRAYS, MANIFEST)
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        arrays, header = stored_arrays(path), json.loads(metadata["manifest"])
        change(arrays, header)
        path.write_bytes(save(arrays, {**metadata, "manifest": json.dumps(header)}))
        with pytest.raises(ModelFileError, match=r"model\.safetensors is damaged: .*SHA-256 differs.*fit again"):
            load_file(path)

    def test_an_order_that_means_nothing_may_differ(self, path):
        save_file(path, dict(reversed(ARRAYS.items())), MANIFEST)
        assert set(load_file(path)[0]) == set(ARRAYS)


def of_header(header, body=b""):
    header = json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + body


class TestClaims:
    """A small file does not fill the memory."""

    @pytest.mark.parametrize(
        "tensors",
        [
            {"a": {"dtype": "F32", "shape": [10**9], "data_offsets": [0, 4 * 10**9]}},
            {"a": {"dtype": "F32", "shape": [2**40, 0], "data_offsets": [0, 0]}},
            {"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}},
            {name: {"dtype": "U8", "shape": [16], "data_offsets": [0, 16]} for name in "abcdefgh"},
            {"a": {"dtype": "U8", "shape": [1] * 100 + [16], "data_offsets": [0, 16]}},
            {"a": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}},
            {"a": {"dtype": "F8_E4M3", "shape": [16], "data_offsets": [0, 16]}},
            {"a": {"dtype": "C64", "shape": [2], "data_offsets": [0, 16]}},
        ],
        ids=["more than there is", "rows of nothing", "overflow", "one for all", "axes", "bf16", "f8", "complex"],
    )
    def test_arrays(self, path, tensors, little_memory):
        path.write_bytes(of_header(tensors, bytes(16)))
        with (
            little_memory,
            pytest.raises(ModelFileError, match=r"model\.safetensors is not a model file or is damaged"),
        ):
            load_file(path)

    def test_a_header(self, path, little_memory):
        path.write_bytes(struct.pack("<Q", 90_000_000) + b'{"__metadata__":{"manifest":"')
        os.truncate(path, 90_000_100)
        with little_memory, pytest.raises(ModelFileError, match=r"damaged \(90000000 bytes of names; models have at"):
            load_file(path)

    def test_a_file(self, path, little_memory):
        header = json.dumps({"a": {"dtype": "U8", "shape": [5 * 10**9], "data_offsets": [0, 5 * 10**9]}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        os.truncate(path, 8 + len(header) + 5 * 10**9)  # on the disk it takes a block
        with little_memory, pytest.raises(ModelFileError, match=r"damaged \(5\.0 GB; models have at most 4\)"):
            load_file(path)

    def test_what_could_not_be_opened_is_not_saved(self, path, monkeypatch):
        monkeypatch.setattr(model_file, "_LARGEST_HEADER", 1000)
        with pytest.raises(ValueError, match=rf"cannot save {path}: \d+ bytes of names; models have at most 1000"):
            save_file(path, ARRAYS, {"ids": ["long"] * 1000})
        assert not path.exists()

    def test_where_nothing_can_be_saved_no_work_is_done(self, path):
        path.mkdir()
        with pytest.raises(IsADirectoryError, match=f"cannot save {path}: a folder is there"):
            save_file(path, {"a": object()}, MANIFEST)
