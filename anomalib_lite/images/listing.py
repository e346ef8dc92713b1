"""Which files of a folder are images: those that are read, and pictures that are not, listed all the same."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm", ".pnm")
# Pictures and films that are not read: listed all the same, so that nobody takes them for looked at.
FOREIGN_SUFFIXES = (
    ".gif", ".apng", ".jp2", ".j2k", ".jpx", ".jxl", ".jxr", ".avif", ".heic", ".heif", ".dng", ".raw", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raf", ".dib", ".tga", ".pcx", ".ico", ".svg", ".psd", ".exr", ".hdr", ".pfm",
    ".pam", ".dcm", ".fits", ".webm", ".mp4", ".avi", ".mov", ".mkv", ".mpg",
)  # fmt: skip
# Folders that systems put beside one's own: thumbnails, what was deleted, copies.
SYSTEM_FOLDERS = {
    "@eadir",
    "#recycle",
    "@recycle",
    "$recycle.bin",
    "system volume information",
    "lost+found",
    "__macosx",
}
# A file that stands in every folder of overlays, so that they are not taken for pictures of parts.
OVERLAYS_MARK = ".anomalib_lite-overlays.json"


def list_images(folder: Path) -> list[str]:
    """List the images below a folder as sorted paths relative to it, with ``/``; hidden ones are left out."""
    return sorted(path for path in _walk(folder) if path.lower().endswith(SUFFIXES))


def list_pictures(folder: Path) -> list[str]:
    """List the images, pictures of formats that are not read, and folders (``name/``) that cannot be entered."""
    return sorted(path for path in _walk(folder) if path.lower().endswith((*SUFFIXES, *FOREIGN_SUFFIXES, "/")))


def _walk(folder: Path) -> Iterable[str]:
    """Yield every visible file below `folder`, relative to it, with ``/``, and folders that cannot be entered."""
    seen = set()
    closed: list[str] = []

    def refused(error: OSError) -> None:
        if Path(error.filename) == folder:
            raise error
        closed.append(Path(error.filename).relative_to(folder).as_posix() + "/")

    for parent, folders, files in os.walk(folder, followlinks=True, onerror=refused):
        # A linked folder may lead back to one above it; visiting each folder once ends the loop.
        info = os.stat(parent)
        if (info.st_dev, info.st_ino) in seen or (OVERLAYS_MARK in files and Path(parent) != folder):
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        # Sorted, so that of two links to one folder the same one is followed on every machine.
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name.lower() not in SYSTEM_FOLDERS)
        relative = Path(parent).relative_to(folder)
        yield from ((relative / name).as_posix() for name in files if not name.startswith("."))
    yield from closed


def no_images(folder: Path) -> str:
    """What to say of a folder without images: what was looked for, and what was found."""
    others = Counter(
        "folder that cannot be entered" * path.endswith("/") or Path(path).suffix.lower() for path in _walk(folder)
    )
    found = ", ".join(f"{n} x {suffix or 'no suffix'}" for suffix, n in others.most_common(3))
    text = f"{folder}: no images; looked in all its folders for {' '.join(suffix[1:] for suffix in SUFFIXES)}"
    return f"{text}, found only {found}; convert them, or check the path" if found else f"{text}; check the path"
