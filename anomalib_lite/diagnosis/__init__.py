"""What good images say before and after a fit: odd ones, duplicates, groups, maps."""
