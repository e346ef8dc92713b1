"""Pictures for tests of where pictures come from."""

import numpy as np
from PIL import Image

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)  # (N, H, W, C)


def nested_folder(root):
    """A folder with pictures at several depths, a hidden one, and what is none."""
    for name in ("b.png", "a.JPG", "deep/er/c.Tiff", ".hidden.png", ".cache/d.png", "notes.txt"):
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(PIXELS[0]).save(path, "PNG")
    return root / "images"
