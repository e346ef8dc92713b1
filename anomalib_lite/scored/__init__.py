"""Scores as one looks at them: one image out of many, and all of them as a table."""
