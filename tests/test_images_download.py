"""The download: resumed, compared, unpacked only if safe. Everything is served from 127.0.0.1."""

import bz2
import contextlib
import gzip
import hashlib
import io
import itertools
import lzma
import re
import socket
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from anomalib_lite.images import download as download_module
from anomalib_lite.images.download import CATEGORIES, DownloadError, download


class Server:
    """Serves one archive, with or without Range, whole or cut off, and records the ranges asked for."""

    def __init__(self):
        self.body = b""
        self.knows_ranges = True
        self.cut_after = None
        self.status = 200
        self.ranges = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                wanted = self.headers.get("Range")
                server.ranges.append(wanted)
                if server.status != 200:
                    self.send_error(server.status)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and server.knows_ranges else 0
                size = len(server.body)
                if start >= size:
                    self.send_response(416)
                    self.send_header("Content-Range", f"bytes */{size}")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                self.send_response(206 if wanted and server.knows_ranges else 200)
                if wanted and server.knows_ranges:
                    self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
                self.send_header("Content-Length", str(size - start))
                self.end_headers()
                self.wfile.write(server.body[start : server.cut_after])

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/nut.tar.xz"
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = Server()
    server.body = packed(nut_files())
    yield server
    server.http.shutdown()
    server.http.server_close()


def png():
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


def nut_files():
    names = [
        "train/good/000.png",
        "test/good/000.png",
        "test/scratch/000.png",
        "ground_truth/scratch/000_mask.png",
    ]
    return {f"nut/{name}": png() for name in names}


def packed(files, *members):
    """Pack files, read-only like MVTec's, and further members of any kind."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o444
            tar.addfile(member, io.BytesIO(data))
        for member in members:
            tar.addfile(member, io.BytesIO(b"\0" * member.size))
    return buffer.getvalue()


def fetch(server, folder, **options):
    options = {"accept_license": True, "progress": False, **options}
    return download("nut", folder, url=server.url, **options)


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_category_is_downloaded_unpacked_and_opened(server, tmp_path, capsys):
    target = fetch(server, tmp_path / "new", sha256=hashlib.sha256(server.body).hexdigest().upper())
    assert target == tmp_path / "new" / "nut"
    assert (target / "test/scratch/000.png").read_bytes() == png()
    assert left_in(tmp_path / "new") == ["nut"]
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "CC BY-NC-SA 4.0" in captured.err
    (target / "test/scratch/000.png").write_bytes(b"")  # not read-only, though packed so


def test_nothing_is_downloaded_before_the_licence_is_accepted(server, tmp_path, capsys):
    with pytest.raises(PermissionError, match="accept_license=True"):
        fetch(server, tmp_path, accept_license=False)
    assert server.ranges == []
    assert "not for commercial use" in capsys.readouterr().err


def test_without_a_known_sha256_the_one_found_is_printed(server, tmp_path, capsys):
    fetch(server, tmp_path)
    assert hashlib.sha256(server.body).hexdigest() in capsys.readouterr().err


def test_what_is_there_is_not_downloaded_again(server, tmp_path, capsys):
    fetch(server, tmp_path)
    (tmp_path / "nut/ground_truth/scratch/000_mask.png").unlink()
    fetch(server, tmp_path)
    assert len(server.ranges) == 1
    assert "test/scratch/000.png: defective, but no mask" in capsys.readouterr().err


def test_a_folder_of_another_layout_is_not_taken_for_the_category(server, tmp_path):
    (tmp_path / "nut").mkdir()
    with pytest.raises(DownloadError, match="Remove or rename"):
        fetch(server, tmp_path)


def test_a_broken_download_is_resumed_where_it_ended(server, tmp_path):
    server.cut_after = 100
    with pytest.raises(DownloadError, match=rf"ended after 100 of {len(server.body)} bytes; call again to resume"):
        fetch(server, tmp_path)
    server.cut_after = None
    target = fetch(server, tmp_path, sha256=hashlib.sha256(server.body).hexdigest())
    assert server.ranges == [None, "bytes=100-"]
    assert target.is_dir()


def test_a_server_without_ranges_starts_again(server, tmp_path):
    server.knows_ranges, server.cut_after = False, 100
    with pytest.raises(DownloadError, match="ended after 100"):
        fetch(server, tmp_path)
    server.cut_after = None
    fetch(server, tmp_path, sha256=hashlib.sha256(server.body).hexdigest())
    assert left_in(tmp_path) == ["nut"]


@pytest.mark.parametrize("excess", [b"", b"more than the archive"])
def test_a_part_that_is_complete_or_too_long_does_not_stop_it(server, tmp_path, excess):
    (tmp_path / "nut.tar.xz.part").write_bytes(server.body + excess)
    fetch(server, tmp_path, sha256=hashlib.sha256(server.body).hexdigest())
    assert left_in(tmp_path) == ["nut"]


def test_another_sha256_is_an_error_and_leaves_nothing(server, tmp_path):
    with pytest.raises(DownloadError, match=r"has SHA-256 [0-9a-f]{64}, not 0{64}, and was deleted"):
        fetch(server, tmp_path, sha256="0" * 64)
    assert left_in(tmp_path) == []


def test_an_answer_of_failure_names_the_page_to_look_at(server, tmp_path):
    server.status = 404
    with pytest.raises(DownloadError, match=r"the server answered 404.*mvtec\.com"):
        fetch(server, tmp_path)


def test_no_server_says_how_to_go_on(server, tmp_path):
    server.http.shutdown()
    server.http.server_close()
    with pytest.raises(DownloadError, match="call again to resume"):
        fetch(server, tmp_path)


def test_other_protocols_and_names_are_refused(tmp_path):
    with pytest.raises(DownloadError, match="begins with https, http or file"):
        download("nut", tmp_path, url="ftp://x/y", accept_license=True)
    with pytest.raises(ValueError, match="no category of MVTec AD; give one of bottle"):
        download("nuts", tmp_path)
    with pytest.raises(ValueError, match="no name for a folder"):
        download("../nut", tmp_path, url="http://127.0.0.1/")


def member(name, kind=tarfile.REGTYPE, link="", size=0):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, size
    return info


@pytest.mark.parametrize(
    ("hostile", "reason"),
    [
        (member("../escaped.png"), "would be written outside"),
        (member("nut/../../escaped.png"), "would be written outside"),
        (member("/tmp/escaped.png"), "would be written outside"),
        (member("nut\\..\\..\\escaped.png"), "would be written outside"),
        (member("C:escaped.png"), "would be written outside"),
        (member("nut/link", tarfile.SYMTYPE, "/etc/passwd"), "is a link or a device"),
        (member("nut/link", tarfile.LNKTYPE, "nut/train/good/000.png"), "is a link or a device"),
        (member("nut/pipe", tarfile.FIFOTYPE), "is a link or a device"),
        (member("nut/device", tarfile.CHRTYPE), "is a link or a device"),
        (member("nut/train/good/000.png"), "cannot be unpacked"),  # a second file of one name
        (member("nut/large.bin", size=200_000), "more than"),
    ],
)
def test_hostile_archives_leave_nothing_behind(server, tmp_path, monkeypatch, hostile, reason):
    monkeypatch.setattr(download_module, "MAX_UNPACKED_BYTES", 100_000)
    server.body = packed(nut_files(), hostile)
    folder = tmp_path / "in" / "here"
    with pytest.raises(DownloadError, match=reason):
        fetch(server, folder)
    assert left_in(folder) == ["nut.tar.xz.part"]
    assert left_in(tmp_path / "in") == ["here"]


def test_too_many_files_are_not_unpacked(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download_module, "MAX_MEMBERS", 3)
    with pytest.raises(DownloadError, match="more than 3 files"):
        fetch(server, tmp_path)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"no archive at all", "cannot be unpacked"),
        (packed(nut_files())[:-200], "cannot be unpacked"),
        (packed({"bolt/train/good/000.png": png()}), "holds bolt, but no folder nut"),
        (packed({"nut/readme.txt": b"x"}), "is not a category of MVTec AD"),
    ],
)
def test_other_archives_are_named_with_their_fault(server, tmp_path, body, reason):
    server.body = body
    with pytest.raises(DownloadError, match=reason):
        fetch(server, tmp_path)
    assert not (tmp_path / "nut").exists()


def test_progress_goes_to_stderr_and_can_be_switched_off(server, tmp_path, capsys):
    fetch(server, tmp_path / "a", progress=True)
    assert "nut.tar.xz: 100%" in capsys.readouterr().err
    fetch(server, tmp_path / "b", progress=False)
    assert "100%" not in capsys.readouterr().err


def test_the_table_holds_the_fifteen_categories():
    assert len(CATEGORIES) == 15
    for name, archive in CATEGORIES.items():
        assert archive.url.startswith("https://www.mydrive.ch/shares/")
        assert archive.url.endswith(f"/{name}.tar.xz")
        assert re.fullmatch("[0-9a-f]{64}", archive.sha256)


class Answers:
    """Serves one answer, byte by byte as told: a server that lies."""

    def __init__(self, answer):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/nut.tar.xz"
        self.answer = answer
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                with connection, contextlib.suppress(OSError):
                    connection.recv(65536)
                    for part in self.answer:
                        connection.sendall(part)


@pytest.fixture
def answers(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    servers = []

    def start(*answer):
        servers.append(Answers(answer[0] if len(answer) == 1 and not isinstance(answer[0], bytes) else answer))
        return servers[-1]

    yield start
    for server in servers:
        server.socket.close()


class TestServersThatLie:
    @pytest.mark.parametrize(
        ("place", "reason"),
        [
            ("ftp://127.0.0.1/nut", r"redirects to ftp:.* give another url"),
            ("file:///etc/passwd", "the server answered 302"),
            ("data:,x", "the server answered 302"),
            ("http://[", "call again to resume"),
        ],
    )
    def test_a_redirection_off_the_web_is_refused(self, answers, tmp_path, place, reason):
        server = answers(b"HTTP/1.1 302 Found\r\nLocation: " + place.encode() + b"\r\nContent-Length: 0\r\n\r\n")
        with pytest.raises(DownloadError, match=reason):
            fetch(server, tmp_path)
        assert left_in(tmp_path) == []

    def test_a_redirection_on_the_web_is_followed(self, server, answers, tmp_path):
        first = answers(f"HTTP/1.1 302 Found\r\nLocation: {server.url}\r\nContent-Length: 0\r\n\r\n".encode())
        assert fetch(first, tmp_path).is_dir()

    @pytest.mark.parametrize("length", ["many", "-5", "1e9", "²", "9" * 40])
    def test_a_length_that_is_none_is_refused(self, answers, tmp_path, length):
        server = answers(f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nabc".encode("latin-1"))
        with pytest.raises(DownloadError, match=r"the server says Content-Length: .*try another url"):
            fetch(server, tmp_path)

    @pytest.mark.parametrize("header", [b"", b"Content-Length: 99999999\r\n"])
    def test_a_body_without_end_is_ended(self, answers, tmp_path, monkeypatch, header):
        monkeypatch.setattr(download_module, "MAX_DOWNLOADED_BYTES", 100_000)
        body = itertools.chain([b"HTTP/1.1 200 OK\r\n" + header + b"\r\n"], itertools.repeat(bytes(50_000)))
        with pytest.raises(DownloadError, match=r"more than 0\.0001 GB; check the url"):
            fetch(answers(body), tmp_path)
        assert left_in(tmp_path) == []

    def test_a_body_that_drips_is_ended(self, answers, tmp_path, monkeypatch):
        monkeypatch.setattr(download_module, "_TIMEOUT", 0.2)

        def drip():
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            while True:
                threading.Event().wait(0.05)
                yield b"x"

        with pytest.raises(DownloadError, match=r"bytes in 0 s; call again to resume later"):
            fetch(answers(drip()), tmp_path)

    def test_a_range_that_is_never_there(self, answers, tmp_path):
        server = answers(b"HTTP/1.1 416 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        (tmp_path / "nut.tar.xz.part").write_bytes(b"begun")
        with pytest.raises(DownloadError, match="the server answered 416"):
            fetch(server, tmp_path)


class TestBombsInHeaders:
    def unpack(self, server, tmp_path, body, reason):
        server.body = body
        with pytest.raises(DownloadError, match=reason):
            fetch(server, tmp_path)
        assert left_in(tmp_path) == ["nut.tar.xz.part"]

    def test_folders_in_folders(self, server, tmp_path):
        body = packed(nut_files(), member("nut/" + "a/" * 100 + "x"))
        self.unpack(server, tmp_path, body, "is too deep or long; not unpacked")

    def test_a_name_without_end(self, server, tmp_path):
        self.unpack(server, tmp_path, packed(nut_files(), member("nut/" + "a" * 1000)), "is too deep or long")
        (tmp_path / "nut.tar.xz.part").unlink()
        self.unpack(server, tmp_path, packed(nut_files(), member("nut/" + "a" * 300_000)), "a header of more than")

    @pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
    @pytest.mark.parametrize("first", [True, False])
    def test_a_header_that_claims_gigabytes(self, server, tmp_path, kind, first):
        claim = member("x", kind, size=5 * 10**9).tobuf(tarfile.GNU_FORMAT)
        whole = lzma.decompress(packed(nut_files()))
        at = 0 if first else whole.index(b"nut/test/good")
        body = lzma.compress(whole[:at] + claim + whole[at:] + bytes(10**6))
        self.unpack(server, tmp_path, body, "a header of more than")

    def test_headers_in_headers(self, server, tmp_path):
        claim = member("x", tarfile.GNUTYPE_LONGNAME, size=10).tobuf(tarfile.GNU_FORMAT) + b"a".ljust(512, b"\0")
        self.unpack(server, tmp_path, lzma.compress(claim * 3000), "a header of more than|cannot be unpacked")

    @pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, bytes])
    def test_other_compressions_are_read_and_bounded_alike(self, server, tmp_path, compress):
        whole = lzma.decompress(packed(nut_files()))
        claim = member("x", tarfile.XHDTYPE, size=5 * 10**9).tobuf(tarfile.GNU_FORMAT)
        self.unpack(server, tmp_path, compress(claim + whole), "a header of more than")
        (tmp_path / "nut.tar.xz.part").unlink()
        server.body = compress(whole)
        assert fetch(server, tmp_path).is_dir()


def test_an_archive_on_the_disk_is_unpacked(tmp_path):
    (tmp_path / "nut.tar.xz").write_bytes(packed(nut_files()))
    url = (tmp_path / "nut.tar.xz").as_uri()
    assert download("nut", tmp_path / "in", url=url, accept_license=True, progress=False).is_dir()
