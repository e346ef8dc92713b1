"""Work for other processes, some of which dies of it: a module of its own, so that they need not import torch."""

import os
from pathlib import Path


def doubled(content, chunk):
    return [content + 2 * i for i in chunk.indices]


def named_process(content, chunk):
    return [os.getpid() for _ in chunk.indices]


def dies_once(content, chunk):
    """Dies at image 5, but leaves a file behind, and does not where there is one."""
    if 5 in chunk.indices and not Path(content).exists():
        Path(content).touch()
        os._exit(1)
    return list(chunk.indices)


def dies_always(content, chunk):
    if 5 in chunk.indices:
        os._exit(1)
    return list(chunk.indices)


def raises(content, chunk):
    raise KeyError("what the work raises")
