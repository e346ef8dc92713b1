import errno
import json
import os
import pickle
import stat
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from anomalib_lite.files import atomic
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
        path.write_bytes(save({}, {"manifest": json.dumps({"format": "someone's", "version": 1})}))
        with pytest.raises(ModelFileError, match='is of format "someone\'s", not'):
            load_file(path)

    @pytest.mark.parametrize("version", [VERSION + 1, "2", None, 1.5])
    def test_newer_version(self, path, version):
        path.write_bytes(save({}, {"manifest": json.dumps({"format": FORMAT, "version": version})}))
        with pytest.raises(ModelFileError, match=rf"reads up to {VERSION}; update the package with pip install -U"):
            load_file(path)
