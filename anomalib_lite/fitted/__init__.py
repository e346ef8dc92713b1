"""The heart: what a detector knows after a fit, how it is learnt, and the file it becomes."""
