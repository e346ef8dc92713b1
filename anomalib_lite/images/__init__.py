"""From anything a user has to uint8 RGB arrays (H, W, 3).

- `decoding`: one file to its stored values, within limits; `UnreadableImageError`
- `reading`: stored values, or one array, to RGB or to a mask
- `sources`: a folder, paths, arrays, PIL images or tensors as one `ImageSource`, of
  `listing`, `local`, `stored` and `objects`
- `loading`: decode and resize in threads, in order
- `variations`: what a camera may change, and varied copies of images
- `spread`: how much images differ already
- `mvtec`: the MVTec AD folder layout, images paired with masks
- `download`: fetch a category of MVTec AD
- `synthetic`: draw a set of metal nuts with defects and masks
"""

from anomalib_lite.images.framing import resize
from anomalib_lite.images.loading import LoadedImage, UnreadableImage, guess_value_range, load
from anomalib_lite.images.mvtec import MVTecDataset, open_mvtec
from anomalib_lite.images.reading import Reading, UnreadableImageError, read_image, read_mask, to_rgb
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.images.spread import Spread, measured_spread
from anomalib_lite.images.variations import Variations, VariedSource
from anomalib_lite.images.varying import Draw, varied

__all__ = [
    "Draw",
    "ImageSource",
    "LoadedImage",
    "MVTecDataset",
    "Reading",
    "Spread",
    "UnreadableImage",
    "UnreadableImageError",
    "Variations",
    "VariedSource",
    "guess_value_range",
    "load",
    "measured_spread",
    "open_mvtec",
    "open_source",
    "read_image",
    "read_mask",
    "resize",
    "to_rgb",
    "varied",
]
