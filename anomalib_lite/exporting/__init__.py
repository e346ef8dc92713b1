"""A fitted detector as one graph, from uint8 pixels to verdict and anomaly map, for programs that have no Python."""
