"""One self-contained HTML page about a set of scored images."""
