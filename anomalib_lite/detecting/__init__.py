"""A detector at work: what was chosen for it, how it learns, scores, is set anew, and is opened from its file."""
