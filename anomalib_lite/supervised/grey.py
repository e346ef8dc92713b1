"""Images without their colour, for lines whose lighting or camera changes it: any source in, a grey one out."""

from __future__ import annotations

import numpy as np
from PIL import Image

from anomalib_lite.images.sources import ImageSource


class GreySource:
    """Another source's images as three equal channels of their luminance (ITU-R BT.601)."""

    grey = True

    def __init__(self, source: ImageSource) -> None:
        self.source = source
        self.ids = source.ids

    def __len__(self) -> int:
        return len(self.source)

    def read(self, i: int) -> np.ndarray:
        """Image `i`: uint8 (H, W, 3)."""
        return np.array(Image.fromarray(self.source.read(i)).convert("L").convert("RGB"))


def seen_by(source: ImageSource, *, grey: bool) -> ImageSource:
    """The source, as a model that may be colour-blind sees it."""
    return GreySource(source) if grey and not getattr(source, "grey", False) else source
