"""Whether this process may compute: a child forked from one that has computed may not.

A fork copies the memory of OpenMP's pool but not its threads, and the first product in the child waits for them for
ever. A child of a parent that has computed nothing yet is as good as any other process.
"""

from __future__ import annotations

import os

from anomalib_lite.machine.threads import limit_threads

_computed = False
_orphaned = False


def check_process() -> None:
    """Note that this process computes, or say why it cannot.

    Raises
    ------
    RuntimeError
        In a process that was forked after its parent had computed; the text names the way out.
    """
    global _computed
    if _orphaned:
        raise RuntimeError(
            "this process was forked from one that had computed already, and would wait for ever for threads that a "
            "fork does not copy; start workers with multiprocessing.get_context('spawn') (or 'forkserver'), or fork "
            "before anything is fitted or scored"
        )
    if not _computed:
        limit_threads()
    _computed = True


def _after_fork() -> None:
    global _orphaned
    _orphaned = _orphaned or _computed


if hasattr(os, "register_at_fork"):  # not on Windows, which cannot fork
    os.register_at_fork(after_in_child=_after_fork)
