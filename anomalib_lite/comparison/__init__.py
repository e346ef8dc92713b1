"""Supervised models and detectors on one held-out half of a labelled folder.

- `methods`: from a name to a model; `runs`: one of them, trained and tested once
- `comparing`: all methods, all seeds, both studies; `store`: finished runs, kept on disk
- `summaries`, `tables`, `figures`: runs counted, written and drawn
"""
