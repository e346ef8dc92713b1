"""How well detectors do on labelled images: metrics of images and pixels."""
