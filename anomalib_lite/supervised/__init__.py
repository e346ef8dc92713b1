"""Supervised models: what the classics learn from labelled images. `comparison` tests them beside detectors.

- `labelled`: a folder of classes or in MVTec layout; ids, kinds, masks
- `splitting`: training, validation and test, near-duplicates kept together
- `cached`: every image decoded, and embedded, once; `batches`: as tensors
- `augmentation`: turned, shifted, brighter copies, made while training
- `networks`, `unet`: what is trained
- `training`: the one loop that trains them all
- `classifier`, `segmenter`: fit, predict, save, load
- `outcome`: accuracy, confusion, per-class figures, misclassified samples
"""
