"""Images that lie in an object store or an archive, through fsspec: a URL in, the bytes of one object out.

``s3://``, ``gs://``, ``az://``, ``zip://``, ``memory://`` and whatever else fsspec knows; credentials and endpoints are
found as the protocol's own package finds them (environment, profile, role of the machine). What cannot be had is an
`UnreadableImageError`, as a file on a disk that cannot be read is; nothing is unpacked onto the disk.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any, TypeVar

from anomalib_lite.images.decoding import UnreadableImageError

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WILD = re.compile(r"[*?\[]")
_PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
_WITHOUT_FOLDERS = ("http", "https")  # what a page links to is anywhere
_TRIES = 4
_FIRST_PAUSE = 0.25  # seconds; doubled from try to try
# Objects lost one after the other until each is asked for once only: a store that is gone must not cost a pause for
# every one of a million objects.
_GIVES_UP_AFTER = 8
_CREDENTIALS = ("NoCredentials", "PartialCredentials", "TokenRetrieval", "DefaultCredentials", "ClientAuthentication")
_CLIENTS = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs", "azure")  # whose errors are of the network
T = TypeVar("T")


def is_url(text: Any) -> bool:
    """Whether this names an object, or several, in a store; paths do not."""
    return isinstance(text, str) and _URL.match(text) is not None


class ObjectStore:
    """A store as fsspec opens it; can be sent to other processes, which open it anew.

    Parameters
    ----------
    url : str
        Of anything in it; chained ones, ``zip://good/a.png::s3://bucket/parts.zip``, too.

    Raises
    ------
    ImportError
        If the package for the protocol is not installed.
    ValueError
        For a protocol that there is not.
    PermissionError
        Without credentials.
    OSError
        If it cannot be opened.
    """

    def __init__(self, url: str):
        self.url = url
        self._lost = 0  # objects one after the other that could not be had, whatever was tried
        self._opened = _told(url, lambda: _open(url))

    def __getstate__(self) -> dict[str, Any]:  # a connection stays where it is
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lost=0, _opened=None)

    @property
    def _files(self) -> Any:
        if self._opened is None:
            self._opened = _open(self.url)
        return self._opened[0]

    @property
    def path(self) -> str:
        """Where in the store the URL leads."""
        if self._opened is None:
            self._opened = _open(self.url)
        return str(self._opened[1])

    def path_of(self, url: str) -> str:
        """Where in the store another URL of the same place leads."""
        return str(self._files._strip_protocol(url.partition("::")[0]))

    def listed(self, suffixes: tuple[str, ...]) -> tuple[str, dict[str, int | None]]:
        """What the URL names: a folder, and in it by relative path all objects, with their sizes in bytes if known.

        Of a pattern (``*.png``) all that fits, else of a folder everything below with such a suffix that is not hidden;
        of an object itself, by its name.

        Raises
        ------
        FileNotFoundError
            If there is nothing.
        PermissionError, OSError
            If it cannot be listed.
        """
        files, path = self._files, self.path
        protocol = self.url.partition("://")[0].lower()

        def found() -> tuple[str, dict[str, Any]]:
            files.invalidate_cache()
            if _WILD.search(path):
                parts = path.split("/")
                fixed = next(i for i, part in enumerate(parts) if _WILD.search(part))
                return "/".join(parts[:fixed]), files.glob(path, detail=True)
            if path.strip("/") and not files.isdir(path):
                return path.rpartition("/")[0], {path: files.info(path)}
            inside = files.find(path, detail=True)
            return path, {name: info for name, info in inside.items() if _visible(_relative(name, path), suffixes)}

        if protocol in _WITHOUT_FOLDERS:
            if _WILD.search(path):
                raise ValueError(f"{self.url}: {protocol} has no folders; name every object")
            folder, inside = path.rpartition("/")[0], {path: _told(self.url, lambda: files.info(path))}
        else:
            folder, inside = _told(self.url, lambda: self._again(found))
        sizes = {
            _relative(name, folder): info.get("size")
            for name, info in sorted(inside.items())
            if info.get("type", "file") == "file"
        }
        if not sizes:
            raise FileNotFoundError(f"{self.url}: no images there; check the address")
        return folder, sizes

    def fetch(self, path: str, name: str, *, size: int | None, most: int, first: int | None = None) -> bytes:
        """The bytes of one object.

        Parameters
        ----------
        path : in the store
        name : to call it by in an error
        size : in bytes, if known; else it is asked for
        most : bytes that it may have; a larger one is refused before it is downloaded
        first : so many bytes of it alone

        Raises
        ------
        UnreadableImageError
            If it is gone, cannot be reached after some tries, or is too large.
        """
        if ".." in PurePosixPath(path).parts:
            raise UnreadableImageError(f"{name}: its name leads out of where it lies; nothing of it is read")

        def read() -> bytes:
            if first is not None:
                return self._files.cat_file(path, start=0, end=first)
            known = self._files.size(path) if size is None else size
            if known is not None and known > most:
                raise UnreadableImageError(
                    f"{name}: too large, {known / 1e6:.0f} MB, but only {most / 1e6:.0f} MB are read"
                )
            # One byte more than may be: what is told of a size need not be true.
            return self._files.cat_file(path, start=0, end=min(most, known or most) + 1)

        try:
            content = self._again(read)
        except UnreadableImageError:
            raise
        # Every protocol raises errors of its own; whichever, this one image cannot be had, and others can.
        except Exception as error:
            raise UnreadableImageError(f"{name}: cannot be fetched: {_reason(error)}") from error
        if len(content) > most:
            raise UnreadableImageError(f"{name}: too large, more than {most / 1e6:.0f} MB")
        return content

    def _again(self, work: Callable[[], T]) -> T:
        """Do it, and try again after a pause where a later try may do better."""
        tries = 1 if self._lost >= _GIVES_UP_AFTER else _TRIES
        for left in reversed(range(tries)):
            try:
                done = work()
            except Exception as error:
                if not _may_pass(error):
                    raise
                if not left:
                    self._lost += 1
                    raise
                time.sleep(_FIRST_PAUSE * 2 ** (tries - 1 - left))
            else:
                self._lost = 0
                return done
        raise AssertionError  # the last try returns or raises


class StoredObject:
    """One object of a store.

    Parameters
    ----------
    store : ObjectStore
    path : in it
    size : in bytes, if known
    """

    def __init__(self, store: ObjectStore, path: str, size: int | None = None):
        self.store, self.path, self.size = store, path, size

    def content(self, name: str, most: int) -> bytes:
        """Its bytes, see `ObjectStore.fetch`."""
        return self.store.fetch(self.path, name, size=self.size, most=most)

    def __str__(self) -> str:
        return f"{self.store.url.partition('://')[0]}://{self.path.lstrip('/')}"

    def may_be_deep(self, name: str) -> bool:
        """Whether it may hold more than 8 bits per value, by the first bytes; the rest is not downloaded."""
        head = self.store.fetch(self.path, name, size=None, most=26, first=26)
        if head.startswith(b"\x89PNG"):
            return len(head) > 24 and head[24] == 16
        return not head.startswith((b"\xff\xd8\xff", b"RIFF", b"BM"))


def _open(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _told(url: str, work: Callable[[], T]) -> T:
    """Do it; what is wrong with a store as a whole is said with the way out."""
    try:
        return work()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{url}: no such object or folder; check the address") from error
    except ImportError as error:
        protocol = next((one for one in re.findall(r"([A-Za-z0-9+.-]+)://", url) if one in _PACKAGES), "")
        package = _PACKAGES.get(protocol, "a package of its own")
        way_out = "pip install 'anomalib_lite[cloud]'" if protocol else str(error)
        raise ImportError(
            f"{url}: {protocol or 'this protocol'} needs {package}, which is not there: {way_out}"
        ) from error
    except Exception as error:
        if isinstance(error, PermissionError) or type(error).__name__.startswith(_CREDENTIALS):
            raise PermissionError(
                f"{url}: no access ({_reason(error)}); give credentials by the usual means, such as AWS_ACCESS_KEY_ID "
                "and AWS_SECRET_ACCESS_KEY, a profile, or the role of the machine"
            ) from error
        if isinstance(error, ValueError) and "rotocol" in str(error):
            raise ValueError(f"{url}: {error}") from error
        raise OSError(f"{url}: cannot be opened: {_reason(error)}") from error


def _may_pass(error: Exception) -> bool:
    """Whether another try may do better: the network's errors, not those of the object or of who asks."""
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError):
        return False
    if type(error).__name__.startswith(_CREDENTIALS):
        return False
    if isinstance(error, OSError | TimeoutError):
        return True
    return type(error).__module__.partition(".")[0] in _CLIENTS


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there; check the address"
    return " ".join(str(error).split())[:300] or type(error).__name__


def _relative(name: str, folder: str) -> str:
    folder = folder.strip("/")
    inside = name.lstrip("/")
    return inside[len(folder) + 1 :] if folder and inside.startswith(f"{folder}/") else inside


def _visible(path: str, suffixes: tuple[str, ...]) -> bool:
    parts = path.split("/")
    hidden = any((part.startswith(".") and part != "..") or part.lower() == "__macosx" for part in parts)
    return path.lower().endswith(suffixes) and not hidden
