"""Fetch one category of MVTec AD: a name in, a checked folder in the layout of `mvtec` out.

The archive is fetched with resume, its SHA-256 is compared, and it is unpacked member by member with checks
of our own, because tarfile's "data" filter is not in every Python this package runs on.
"""

from __future__ import annotations

import hashlib
import http.client
import lzma
import os
import re
import shutil
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from anomalib_lite.images.mvtec import open_mvtec
from anomalib_lite.machine.progress import is_wanted

PAGE = "https://www.mvtec.com/research-teaching/datasets/mvtec-ad/downloads"
LICENSE = f"""\
MVTec AD (c) MVTec Software GmbH, licensed CC BY-NC-SA 4.0: not for commercial use, share alike,
name the source:
  Bergmann, Fauser, Sattlegger, Steger: MVTec AD - A Comprehensive Real-World Dataset for Unsupervised Anomaly
  Detection, CVPR 2019.
  https://creativecommons.org/licenses/by-nc-sa/4.0/   {PAGE}"""

# The largest category (carpet) packs 0.7 GB in some 500 files; the limits leave room but stop a bomb.
MAX_DOWNLOADED_BYTES = 4 * 10**9
MAX_UNPACKED_BYTES = 8 * 10**9
MAX_MEMBERS = 20_000
MAX_DEPTH = 8  # folders in one another
MAX_HEADER_BYTES = 1 << 17  # of one member: a name takes 512 bytes or a few times that

_CHUNK = 1 << 20
_TIMEOUT = 60  # seconds without a single byte, and those after which a server has to send _SLOWEST on average
_SLOWEST = 1000  # bytes per second


@dataclass(frozen=True)
class Archive:
    """Where a category's archive is and what its bytes hash to."""

    url: str
    sha256: str


_HOST = "https://www.mydrive.ch/shares"

# The links of the official download page (PAGE), each with its SHA-256. MVTec publishes no checksums; these were
# recorded by others who downloaded from MVTec (from its former FTP server already), and for bottle, grid, metal_nut,
# screw, toothbrush and zipper at least two unrelated projects agree. Nobody here has downloaded them anew.
_TABLE = """\
bottle 150452/132a93367fb17cdf968dfb5c4013f6e7/download/420937370-1629958698
    726512129cb3b1f47d4f6cd7c7fc9170db7fc209132249c788fec06029cb5dc3
cable 150453/10f960e07fec2838b2cd512586633a32/download/420937413-1629958794
    1e3d59b80a6a8da5adf32fb0cf311c7b964cde146d6920aef9ca66380999a9cd
capsule 150454/e0ce6dd74eb150f46c0d98131b3703f2/download/420937454-1629958872
    f6a41cb11f1589d552888fe9c43a1adcbcae15b70073e19093322f836d00a2b6
carpet 150455/eac7fbce84d93a5094e13f391170eca4/download/420937484-1629959013
    d9dd5064515a20bd75cf24d223c570579141abd72388beef892780b74dbaa85d
grid 150456/bb0b2e3dc804ccb8b4485e01f8e4493b/download/420937487-1629959044
    d94a9a651cbfaee22c94d06cf8fa8204a590c872362de0489eb34f1645328de8
hazelnut 150457/51d49f65e84bdc100ff8035d7dd783ea/download/420937545-1629959162
    a7f4e7d65a60a235def7236a46fcb854d62e6c6917c16b1ec9cb4ff089d3b0da
leather 150458/923030ce14e10a7d147e95d0f8885f6b/download/420937607-1629959262
    704ffa48b1dc2fc44824aa50442d9febc399dd92a5d6fd8156f8aa0373d15f24
metal_nut 150459/c68856a21dca589b0f8ff6d4ee0f18f4/download/420937637-1629959294
    86e3c8e163ceb19146ad3ddc408e85cc34ae02e0da430e07a73bac6bbb48532a
pill 150460/d4f1c04da67034ccc8d8b5fa3e73f244/download/420938129-1629960351
    ac6ce9ec4ec2a5d67c906d82147bd7431980cf00b78f25d63201a5f17e3a2038
screw 150461/242f454cc6385e5693c4fd4b94567d1e/download/420938130-1629960389
    0a27a365a21e472d19b9fb48cb8e4002b49fabe083bff7f4c16fa57d78154f10
tile 150462/5479f0fdc97bc6fa16eab0cb0cf0109f/download/420938133-1629960456
    392228153b96d0db9f179d3f7c2d63e131e907154883b57309fcbf798643173c
toothbrush 150463/895a1a5fb84b958f07417784b060434b/download/420938134-1629960477
    fe72a34b4b0d074f84e844be7ef8c4f64f7f02f20e25f19c9e3b4a231c8bea77
transistor 150464/99b8ea0332438d64fcc2475ee73f9c29/download/420938166-1629960554
    146b2166c35a1d0cf37ded091366ac01a50338b4ac704632f1239890eaca4449
wood 150465/d5b4115b720cdb54d217e75636e6e374/download/420938383-1629960649
    3757297ac2a266072eb4f25a97f805f5b37fd583492b20bd709f310736c1ea47
zipper 150466/bd155b557520edaf692d9bfdb915c24a/download/420938385-1629960680
    7ab46e0e195da145db30052baea3d3a5d14c5f0e710137c968e0423f02cb942d
"""
CATEGORIES = {
    name: Archive(f"{_HOST}/{share}/{name}.tar.xz", sha256)
    for name, share, sha256 in (entry.split() for entry in re.split(r"\n(?=\w)", _TABLE))
}


class DownloadError(RuntimeError):
    """A download that failed, is not what was asked for, or is not safe to unpack."""


def download(
    category: str = "metal_nut",
    folder: str | os.PathLike[str] = ".",
    *,
    accept_license: bool = False,
    url: str | None = None,
    sha256: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Download and unpack one category of MVTec AD.

    A download that broke off is resumed by calling again. A category that is there already is only checked.

    Parameters
    ----------
    category : str, default "metal_nut"
        One of the keys of `CATEGORIES`; with `url`, any name.
    folder : path, default "."
        Where the category's folder goes. Needs room for about twice the archive (metal_nut: 165 MB).
    accept_license : bool, default False
        MVTec AD is licensed CC BY-NC-SA 4.0, non-commercial. The licence is printed to stderr in any case;
        nothing is downloaded until it is accepted.
    url : str, optional
        Another place to fetch the archive from: http, https or file.
    sha256 : str, optional
        What the archive's SHA-256 has to be; by default the recorded one. With `url` alone for a category
        that is not known, nothing is compared and the SHA-256 found is printed.
    progress : bool, optional
        Show a progress bar on stderr. Default: in a terminal and in a notebook.

    Returns
    -------
    Path
        The category's folder, which `open_mvtec` opens.

    Raises
    ------
    ValueError
        For an unknown category without a `url`.
    PermissionError
        If the licence is not accepted.
    DownloadError
        If the server fails, the archive is incomplete, has another SHA-256, is not safe to unpack, or does
        not hold the layout of MVTec AD.

    Examples
    --------
    >>> download("metal_nut")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    PermissionError: the licence of MVTec AD is not accepted; ...
    """
    known = CATEGORIES.get(category)
    if url is None and known is None:
        raise ValueError(f"{category!r} is no category of MVTec AD; give one of {', '.join(CATEGORIES)}")
    if PurePosixPath(category).name != category or category in ("", ".", "..") or "\\" in category:
        raise ValueError(f"{category!r} is no name for a folder; give a plain name")
    target = Path(folder) / category
    if target.exists():
        try:
            _report_pairing(target)
        except FileNotFoundError as error:
            raise DownloadError(f"{error}\nRemove or rename {target} to download it again") from error
        return target
    print(LICENSE, file=sys.stderr)
    if not accept_license:
        raise PermissionError(
            "the licence of MVTec AD is not accepted; if your use is not commercial, repeat with accept_license=True"
        )
    expected = sha256 or (known.sha256 if known else None)
    target.parent.mkdir(parents=True, exist_ok=True)
    archive = target.with_name(f"{category}.tar.xz.part")
    _fetch(url or known.url, archive, is_wanted(progress))  # type: ignore[union-attr]
    found = _sha256(archive)
    if expected is None:
        print(f"{category}: no SHA-256 known to compare; this archive has {found}", file=sys.stderr)
    elif found != expected.lower():
        archive.unlink()  # resuming it would never end well
        raise DownloadError(
            f"{category}: the archive has SHA-256 {found}, not {expected}, and was deleted; try again, "
            f"or compare with {PAGE}"
        )
    _unpack_checked(archive, target)
    archive.unlink()
    return target


def _report_pairing(target: Path) -> None:
    problems = open_mvtec(target).pairing_problems
    for problem in problems[:5]:
        print(f"{target.name}: {problem}", file=sys.stderr)
    if len(problems) > 5:
        print(f"{target.name}: {len(problems) - 5} more pairing problems", file=sys.stderr)


def _fetch(url: str, part: Path, progress: bool) -> None:
    """Fetch `url` into `part`, going on from what is there already."""
    if url.partition(":")[0].lower() not in ("http", "https", "file"):
        raise DownloadError(f"{url}: give a URL that begins with https, http or file")
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"User-Agent": "anomalib_lite"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        with urllib.request.build_opener(_OnTheWeb).open(request, timeout=_TIMEOUT) as response:
            _save(response, part, have, progress)
    except urllib.error.HTTPError as error:
        # Nothing is left to send: the part is complete, or not of this archive; the SHA-256 tells.
        if error.code == 416 and have and error.headers.get("Content-Range") == f"bytes */{have}":
            return None
        if error.code == 416 and have:
            part.unlink()
            return _fetch(url, part, progress)
        raise DownloadError(
            f"{url}: the server answered {error.code} {error.reason}; the link may have moved: see {PAGE}, "
            "and give the new one as url"
        ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{url}: {error}; call again to resume, or download it by hand from {PAGE}") from error


class _OnTheWeb(urllib.request.HTTPRedirectHandler):
    """Follows a redirection to http and https only, not to ftp as urllib does."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if urllib.parse.urlsplit(newurl).scheme not in ("http", "https"):
            raise DownloadError(f"{req.full_url}: redirects to {newurl}, which is not of the web; give another url")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _save(response: http.client.HTTPResponse, part: Path, have: int, progress: bool) -> None:
    from tqdm import tqdm

    # A server that knows no Range sends everything from the start, with status 200.
    resumed = have > 0 and response.status == 206
    if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
        part.unlink()
        raise DownloadError(f"{part.name}: the server resumed at another place than asked; call again")
    start = have if resumed else 0
    length = response.headers.get("Content-Length")
    if length is not None and not re.fullmatch(r"[0-9]{1,15}", length):
        raise DownloadError(f"{part.name}: the server says Content-Length: {length[:40]!r}; try another url")
    total = start + int(length) if length else None
    size, begun = start, time.monotonic()
    with (
        part.open("ab" if resumed else "wb") as file,
        tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=not progress) as bar,
    ):
        # read1 returns what has come; read would wait for a whole chunk, and a server may take for ever over it.
        while chunk := response.read1(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
            size += len(chunk)
            seconds = time.monotonic() - begun
            if max(size, total or 0) > MAX_DOWNLOADED_BYTES:
                part.unlink()
                raise DownloadError(f"{part.name}: more than {MAX_DOWNLOADED_BYTES / 1e9:g} GB; check the url")
            if seconds > _TIMEOUT and size - start < seconds * _SLOWEST:
                raise DownloadError(f"{part.name}: {size - start} bytes in {seconds:.0f} s; call again to resume later")
    if total is not None and size != total:
        raise DownloadError(f"{part.name}: ended after {size} of {total} bytes; call again to resume")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _unpack_checked(archive: Path, target: Path) -> None:
    """Unpack beside the target, check the layout, then move it into place in one step."""
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        try:
            _unpack(archive, Path(temporary))
        # Headers in one another end in a RecursionError, a dictionary of 4 GB in a MemoryError.
        except (tarfile.TarError, lzma.LZMAError, EOFError, OSError, ValueError, RecursionError, MemoryError) as error:
            raise DownloadError(
                f"{archive.name}: cannot be unpacked ({error}); delete it and download it again"
            ) from error
        unpacked = Path(temporary) / target.name
        if not unpacked.is_dir():
            found = ", ".join(sorted(path.name for path in Path(temporary).iterdir())[:8]) or "nothing"
            raise DownloadError(f"{archive.name}: holds {found}, but no folder {target.name}; check the url")
        try:
            _report_pairing(unpacked)
        except FileNotFoundError as error:
            raise DownloadError(f"{archive.name}: is not a category of MVTec AD: {error}") from error
        os.replace(unpacked, target)


class _Bounded:
    """The unpacked stream, of which no more is read than is allowed next: a header may claim to be of any length."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.left = MAX_HEADER_BYTES

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= self.left:
            raise DownloadError(f"a header of more than {MAX_HEADER_BYTES} bytes; not unpacked, check the url")
        self.left -= size
        data: bytes = self._file.read(size)
        return data

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._file, attribute)


class _BoundedTar(tarfile.TarFile):
    def __init__(self, name: Any = None, mode: Any = "r", fileobj: Any = None, **options: Any) -> None:
        super().__init__(name, mode, _Bounded(fileobj or open(name, "rb")), **options)  # noqa: SIM115


def _unpack(archive: Path, folder: Path) -> None:
    """Unpack plain files and folders only, each inside `folder`, within the limits."""
    total = 0
    with _BoundedTar.open(archive, "r:*") as tar:
        stream: Any = tar.fileobj
        for count, member in enumerate(tar, 1):
            path = PurePosixPath(member.name)
            # Backslashes and drive letters are separators elsewhere, "a:b" a hidden stream on Windows.
            if path.is_absolute() or ".." in path.parts or "\\" in member.name or ":" in member.name:
                raise DownloadError(f"{archive.name}: {member.name!r} would be written outside; not unpacked")
            if len(path.parts) > MAX_DEPTH or len(member.name) > 500:
                raise DownloadError(f"{archive.name}: {member.name[:60]!r}... is too deep or long; not unpacked")
            if not (member.isreg() or member.isdir()):
                raise DownloadError(f"{archive.name}: {member.name!r} is a link or a device; not unpacked")
            total += member.size
            if count > MAX_MEMBERS or total > MAX_UNPACKED_BYTES:
                raise DownloadError(
                    f"{archive.name}: more than {MAX_MEMBERS} files or {MAX_UNPACKED_BYTES / 1e9:g} GB; not unpacked"
                )
            destination = folder / path
            stream.left = MAX_HEADER_BYTES  # for the next one
            if member.isdir():
                destination.mkdir(parents=True, exist_ok=True)
                continue
            stream.left += member.size
            destination.parent.mkdir(parents=True, exist_ok=True)
            # Written by hand and not by tar.extract: nothing of the archive's owners and modes is taken over
            # (MVTec's are read-only, which makes the folder hard to delete), on every Python alike.
            source = tar.extractfile(member)
            assert source is not None  # it is a regular file
            with source, destination.open("xb") as file:
                shutil.copyfileobj(source, file, _CHUNK)
            stream.left = MAX_HEADER_BYTES
