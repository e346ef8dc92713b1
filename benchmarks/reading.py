"""What reading one large picture costs, by format: memory at the peak and processor time.

    python benchmarks/reading.py [--megapixels 50]

Each picture is written and read in a process of its own (Linux: /proc tells the peak).
"""

from __future__ import annotations

import argparse
import os
import struct
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from anomalib_lite.images.reading import read_image

TURNED = Image.Exif()
TURNED[0x0112] = 6
# Name, mode, format and options of Pillow; 16-bit colour is written by hand, for Pillow cannot.
CASES = [
    ("grey PNG", "L", "PNG", {"compress_level": 1}),
    ("palette PNG", "P", "PNG", {"compress_level": 1}),
    ("RGB PNG", "RGB", "PNG", {"compress_level": 1}),
    ("RGBA PNG", "RGBA", "PNG", {"compress_level": 1}),
    ("16-bit grey PNG", "I;16", "PNG", {"compress_level": 1}),
    ("16-bit RGB PNG", "RGB", None, {}),
    ("16-bit RGBA PNG", "RGBA", None, {}),
    ("RGB JPEG", "RGB", "JPEG", {}),
    ("RGB JPEG, turned", "RGB", "JPEG", {"exif": TURNED}),
    ("progressive JPEG", "RGB", "JPEG", {"progressive": True}),
    ("RGB WebP", "RGB", "WEBP", {"method": 0}),
    ("RGB TIFF", "RGB", "TIFF", {}),
    ("RGB TIFF, LZW", "RGB", "TIFF", {"compression": "tiff_lzw"}),
    ("float TIFF", "F", "TIFF", {}),
    ("16-bit PGM", "I;16", "PPM", {}),
]


def write(path: Path, mode: str, format_: str | None, options: dict[str, object], width: int, height: int) -> None:
    row = np.random.default_rng(0).integers(0, 256, (1, width, 4), dtype=np.uint8)
    if format_ is None:
        write_deep_png(path, np.repeat(row[..., : len(mode)], 2, axis=0), height)
        return
    pixels = np.repeat(row, height, axis=0)
    if mode == "I;16":
        image = Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    elif mode == "F":
        image = Image.fromarray(pixels[..., 0].astype(np.float32) / 255)
    else:
        image = Image.fromarray(pixels).convert(mode)
    image.save(path, format_, **options)


def write_deep_png(path: Path, two_rows: np.ndarray, height: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    _, width, channels = two_rows.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(b"\0" + two_rows.tobytes()) for _ in range(height)) + packer.flush()
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def kilobytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))


def measure(path: Path, name: str, pixels: int) -> None:
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, start = kilobytes("VmRSS"), time.thread_time()
    read_image(path)
    seconds = time.thread_time() - start
    peak = (kilobytes("VmHWM") - before) * 1024 / pixels
    print(f"{name:20s} {peak:5.1f} bytes per pixel, {seconds / pixels * 1e9:5.1f} ms per megapixel", flush=True)


def in_a_process(function, *arguments) -> None:
    process = os.fork()
    if process == 0:
        function(*arguments)
        os._exit(0)
    os.waitpid(process, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megapixels", type=int, default=50)
    height = parser.parse_args().megapixels * 125
    with tempfile.TemporaryDirectory() as folder:
        for name, mode, format_, options in CASES:
            path = Path(folder) / "picture"
            in_a_process(write, path, mode, format_, options, 8000, height)
            in_a_process(measure, path, name, 8000 * height)


if __name__ == "__main__":
    main()
