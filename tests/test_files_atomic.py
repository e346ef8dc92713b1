"""The old file or the new one, with the place, the link and the permissions it had; nothing left behind."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from anomalib_lite.files import atomic
from anomalib_lite.files.atomic import saved_to, write_atomically

# A save that stops, its file half way, until it is killed.
STOPPED = """
import os, sys, time
from pathlib import Path
from anomalib_lite.files import atomic

def stop(_handle):
    print("stopped", flush=True)
    time.sleep(60)

atomic.os.fsync = stop
atomic.write_atomically(Path(sys.argv[1]), b"half")
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.bin"


@pytest.fixture
def folder_of_another():
    """A folder that this process may not write, whoever runs the tests."""
    folder = Path(tempfile.mkdtemp())
    (folder / "model.bin").write_bytes(b"old")
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield folder
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.fixture
def umask():
    """Set the umask; it is put back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def litter(path):
    return sorted(name for name in os.listdir(path.parent) if name != path.name)


def stopped_save(path):
    process = subprocess.Popen([sys.executable, "-c", STOPPED, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "stopped\n"
    return process


class TestWhatIsThere:
    def put_pipe(self, path):
        os.mkfifo(path)

    def put_link_to_a_pipe(self, path):
        os.mkfifo(path.with_name("pipe"))
        path.symlink_to("pipe")

    def put_socket(self, path):
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))

    def put_device(self, path):
        try:
            os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            pytest.skip("only root makes devices")

    @pytest.mark.parametrize("put", ["put_pipe", "put_link_to_a_pipe", "put_socket", "put_device"])
    def test_what_is_no_file_is_not_replaced(self, put, path):
        getattr(self, put)(path)
        before = path.lstat()
        for use in (lambda: write_atomically(path, b"new"), lambda: saved_to(path)):
            with pytest.raises(OSError, match=rf"cannot save {path}: a device, pipe or socket is there.*another place"):
                use()
        assert os.path.samestat(before, path.lstat())

    def test_a_stream_is_not_replaced_by_its_name(self):
        reading, writing = os.pipe()
        try:
            with pytest.raises(OSError, match=r"cannot save .*: a device, pipe or socket is there"):
                write_atomically(Path(f"/proc/self/fd/{writing}"), b"new")
        finally:
            os.close(reading)
            os.close(writing)

    def test_a_folder(self, path):
        path.mkdir()
        for place in (path, path / ".", Path(path.anchor)):
            with pytest.raises(IsADirectoryError, match=rf"cannot save {place}: a folder is there"):
                saved_to(place)

    @pytest.mark.parametrize("link", ["relative", "absolute", "of a link"])
    def test_a_link_stays_and_leads_to_the_new_file(self, link, tmp_path):
        (tmp_path / "versions").mkdir()
        target, path = tmp_path / "versions" / "2.bin", tmp_path / "model.bin"
        target.write_bytes(b"old")
        path.symlink_to({"relative": "versions/2.bin", "absolute": target, "of a link": "current"}[link])
        (tmp_path / "current").symlink_to("versions/2.bin")
        assert write_atomically(path, b"new") == path
        assert path.is_symlink()
        assert (target.read_bytes(), target.is_symlink()) == (b"new", False)
        assert os.listdir(target.parent) == ["2.bin"]

    def test_a_link_that_leads_nowhere_yet(self, path):
        path.symlink_to("made-by-the-save.bin")
        write_atomically(path, b"new")
        assert path.with_name("made-by-the-save.bin").read_bytes() == b"new"
        assert path.is_symlink()

    def test_a_circle_of_links(self, path):
        path.symlink_to(path.name)
        with pytest.raises(OSError, match=rf"cannot save {path}: ") as caught:
            saved_to(path)
        assert caught.value.errno == errno.ELOOP

    def test_a_missing_folder_is_known_before(self, path):
        with pytest.raises(FileNotFoundError, match=r"cannot save .*: No such file"):
            saved_to(path.parent / "absent" / "model.bin")
        path.write_bytes(b"in the way")
        with pytest.raises(NotADirectoryError, match=r"cannot save .*: Not a directory"):
            saved_to(path / "model.bin")

    def test_a_read_only_folder_is_known_before(self, folder_of_another):
        for use in (saved_to, lambda place: write_atomically(place, b"new")):
            with pytest.raises(PermissionError, match=r"cannot save .*Permission denied; nothing was changed"):
                use(folder_of_another / "model.bin")
        assert os.listdir(folder_of_another) == ["model.bin"]
        assert (folder_of_another / "model.bin").read_bytes() == b"old"


class TestPermissions:
    @pytest.mark.parametrize("mode", [0o600, 0o664, 0o444])
    def test_those_of_the_old_file_stay(self, path, mode, umask):
        path.write_bytes(b"old")
        path.chmod(mode)
        umask(0o027)
        write_atomically(path, b"new")
        assert (path.read_bytes(), oct(mode_of(path))) == (b"new", oct(mode))

    @pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
    def test_a_new_file_has_what_the_umask_allows(self, path, mask, mode, umask):
        umask(mask)
        write_atomically(path, b"new")
        assert oct(mode_of(path)) == oct(mode)

    def test_a_secret_is_never_open_to_others(self, path, monkeypatch):
        path.write_bytes(b"old")
        path.chmod(0o600)
        seen = []
        sync = os.fsync
        monkeypatch.setattr(
            atomic.os, "fsync", lambda handle: (seen.append(stat.S_IMODE(os.fstat(handle).st_mode)), sync(handle))
        )
        monkeypatch.setattr(atomic.os, "chmod", lambda *_: None)
        write_atomically(path, b"new")
        assert seen[0] == 0o600  # created so, not made so

    def test_the_owner_stays(self, path):
        if os.geteuid() != 0:
            pytest.skip("only root gives files away")
        path.write_bytes(b"old")
        os.chown(path, 1234, 1234)
        write_atomically(path, b"new")
        assert (path.stat().st_uid, path.stat().st_gid) == (1234, 1234)

    def test_the_umask_is_not_touched(self, path, monkeypatch):
        """It is the whole process's: another thread's file would be open to the world."""

        def never(_mask):
            raise AssertionError("the umask was changed")

        monkeypatch.setattr(os, "umask", never)
        write_atomically(path, b"new")


class TestKills:
    def test_litter_goes_with_the_next_save(self, path):
        path.write_bytes(b"old")
        process = stopped_save(path)
        try:
            assert len(litter(path)) == 1
            assert path.read_bytes() == b"old"
            write_atomically(path, b"of another")
            assert len(litter(path)) == 1  # a save that is under way is left alone
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert len(litter(path)) == 1
        assert path.read_bytes() == b"of another"
        write_atomically(path.with_name("model"), b"elsewhere")
        assert len(litter(path)) == 2  # that of another target stays
        write_atomically(path, b"new")
        assert litter(path) == ["model"]
        assert path.read_bytes() == b"new"

    def test_only_our_own_files_are_swept(self, path):
        number = "0123456789abcdef"
        others = [f".{path.name}.part", f".{path.name}.bak.{number}.part", f".modelxbin.{number}.part"]
        others += [f"{path.name}.{number}.part", f".{path.name}.{number[:8]}.part", f".{path.name}.{number}.parts"]
        for name in others:
            path.with_name(name).write_bytes(b"not ours")
        path.with_name(f".{path.name}.{number}.part").write_bytes(b"ours")
        write_atomically(path, b"new")
        assert litter(path) == sorted(others)

    def test_a_pipe_by_such_a_name_hangs_nobody(self, path):
        os.mkfifo(path.with_name(f".{path.name}.0123456789abcdef.part"))
        write_atomically(path, b"new")
        assert len(litter(path)) == 1

    def test_names_with_special_characters(self, path):
        path = path.with_name("[a-c]*?.bin")
        part = path.with_name(f".{path.name}.0123456789abcdef.part")
        part.write_bytes(b"half")
        write_atomically(path, b"new")
        assert litter(path) == []

    def test_an_empty_one_is_swept_when_it_is_old(self, path):
        part = path.with_name(f".{path.name}.0123456789abcdef.part")
        part.touch()
        write_atomically(path, b"new")
        assert part.exists()  # perhaps created this instant by another process, which has no lock on it yet
        os.utime(part, (0, 0))
        write_atomically(path, b"new")
        assert not part.exists()

    def test_without_locks_nothing_is_swept(self, path, monkeypatch):
        part = path.with_name(f".{path.name}.0123456789abcdef.part")
        part.write_bytes(b"half")

        def refuse(*_):
            raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

        monkeypatch.setattr(atomic.fcntl, "flock", refuse)
        write_atomically(path, b"new")
        monkeypatch.setattr(atomic, "fcntl", None)
        write_atomically(path, b"newer")
        assert (litter(path), path.read_bytes()) == ([part.name], b"newer")

    def test_the_name_reaches_the_disk_too(self, path, monkeypatch):
        synced, sync, replace = [], os.fsync, os.replace
        monkeypatch.setattr(
            atomic.os, "fsync", lambda handle: (synced.append(os.readlink(f"/proc/self/fd/{handle}")), sync(handle))
        )
        monkeypatch.setattr(atomic.os, "replace", lambda *names: (synced.append("moved"), replace(*names)))
        write_atomically(path, b"new")
        assert synced[0].endswith(".part")
        assert synced[1:] == ["moved", str(path.parent)]


def test_threads_that_save_to_one_place(path):
    """Whoever reads sees one of the contents, whole."""
    contents = [bytes([i]) * 300_000 for i in range(8)]
    write_atomically(path, contents[0])
    done, torn, errors = threading.Event(), [], []

    def save(content):
        try:
            for _ in range(10):
                write_atomically(path, content)
        except OSError as error:
            errors.append(error)

    def read():
        while not done.is_set():
            if path.read_bytes() not in contents:
                torn.append(True)

    reader = threading.Thread(target=read)
    writers = [threading.Thread(target=save, args=(content,)) for content in contents]
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert (torn, errors, litter(path)) == ([], [], [])
    assert path.read_bytes() in contents
