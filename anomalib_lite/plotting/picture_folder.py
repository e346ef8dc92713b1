"""A folder of pictures that are made of scored images: overlays, masks, maps.

It holds a manifest, which leads from every file back to its image, tells our files from others, so that none of those
is overwritten, and keeps the folder from being scored as if it held parts.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from anomalib_lite.files.atomic import write_atomically
from anomalib_lite.images.listing import OVERLAYS_MARK, SUFFIXES
from anomalib_lite.images.reading import UnreadableImageError
from anomalib_lite.machine.progress import DRAWING, over

_OURS = (*SUFFIXES, ".npy")


def save_pictures(
    folder: str | os.PathLike[str],
    wanted: Mapping[int, str],
    write: Callable[[int, Path], None],
    *,
    suffix: str = ".png",
    about: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write one picture for each of some images.

    Parameters
    ----------
    folder : made if missing
    wanted : from position to image id
    write : writes the picture of a position to a path; one that raises UnreadableImageError is left out, with a warning
    suffix : of the files
    about : what else the manifest tells, JSON-able

    Returns
    -------
    list of Path, in the order of `wanted`

    Raises
    ------
    ValueError
        If the folder holds pictures that are none of ours.
    """
    folder, known = Path(folder), picture_folder(folder)
    taken = {name.casefold(): image_id for name, image_id in known.items()}
    names = {i: _file_name(image_id, taken, suffix) for i, image_id in wanted.items()}
    written: list[Path] = []
    lost: dict[str, str] = {}
    folder.mkdir(parents=True, exist_ok=True)
    _write_manifest(folder, known | {name: wanted[i] for i, name in names.items()}, lost, about)
    for i, name in over(DRAWING, names.items(), len(names), "pictures"):
        try:
            write(i, folder / name)
        except UnreadableImageError as error:
            lost[wanted[i]] = str(error)
            continue
        known[name] = wanted[i]
        written.append(folder / name)
    _write_manifest(folder, known, lost, about)
    if lost:
        reasons = "; ".join(list(lost.values())[:3])
        warnings.warn(f"{len(lost)} of {len(wanted)} pictures could not be drawn: {reasons}", stacklevel=4)
    return written


def picture_folder(folder: str | os.PathLike[str]) -> dict[str, str]:
    """The pictures of ours that a folder holds, from file name to image id; none if it is still to be made.

    Raises
    ------
    ValueError
        If the folder, or one below it, holds pictures that are none of ours: they would be overwritten, or no longer be
        found when their folder is scored.
    """
    folder, known = Path(folder), {}
    if (folder / OVERLAYS_MARK).is_file():
        try:
            listed = json.loads((folder / OVERLAYS_MARK).read_bytes())["pictures"]
            known = {str(name): str(image_id) for name, image_id in listed.items() if (folder / name).is_file()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / OVERLAYS_MARK} is damaged ({error}); choose another folder") from error
    for parent, folders, files in os.walk(folder):
        for name in (*files, *folders):
            if name.lower().endswith(_OURS) and not (name in known and Path(parent) == folder):
                raise ValueError(
                    f"{folder} holds {os.path.relpath(os.path.join(parent, name), folder)}, which was not written by "
                    f"us; give what is written a folder of its own, such as {folder / 'results'}"
                )
    return known


def _write_manifest(
    folder: Path, pictures: Mapping[str, str], lost: Mapping[str, str], about: Mapping[str, Any] | None
) -> None:
    text = json.dumps({**(about or {}), "pictures": pictures, "not_drawn": lost}, indent=1)
    write_atomically(folder / OVERLAYS_MARK, text.encode())


def _file_name(image_id: str, taken: dict[str, str], suffix: str) -> str:
    """A name that keeps the whole id, stays inside its folder and is no other image's; notes it in `taken`.

    An id that cannot be a name as it is, or whose name is taken, is told apart by a checksum.
    """
    base = "__".join(part for part in image_id.split("/") if part not in ("", ".", ".."))
    clean = "".join(letter if letter.isalnum() or letter in "-_. " else "_" for letter in base).lstrip(". ")
    name = f"{clean}{suffix}"
    whole = clean == image_id.strip("/").replace("/", "__")
    # File systems allow 255 bytes, and some do not tell A from a.
    if not whole or not 0 < len(clean.encode()) < 200 or taken.get(name.casefold(), image_id) != image_id:
        checksum = hashlib.sha256(image_id.encode("utf-8", "surrogatepass")).hexdigest()[:12]
        name = f"{clean[-40:].lstrip('. ') or 'image'}~{checksum}{suffix}"
    taken[name.casefold()] = image_id
    return name
