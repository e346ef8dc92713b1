"""Supervised models and detectors on one held-out half of a labelled folder."""
