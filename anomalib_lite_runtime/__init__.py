"""Score pictures by an exported detector, without torch: onnxruntime, numpy and Pillow are all that is needed.

>>> from anomalib_lite_runtime import load              # doctest: +SKIP
>>> load("model.onnx").score("part.png").verdict        # doctest: +SKIP
'good'

`decoding.py`, `reading.py` and `regions.py` are those of the library, to the letter but for the imports, so that a
picture is read, and defects are outlined, as there.
"""

from anomalib_lite_runtime.model import Model, ModelError, Result, load
from anomalib_lite_runtime.reading import UnreadableImageError

__all__ = ["Model", "ModelError", "Result", "UnreadableImageError", "load"]
