"""On the line: pictures are judged as they arrive, every verdict is written down, and told to whoever is to know."""
