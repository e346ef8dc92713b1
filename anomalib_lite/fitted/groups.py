"""Which pictures belong together: shots of one part, pictures of one day. Ids in, one number per picture out.

Pictures of one group know each other, so they are left out together when they are scored as if unseen, and what is
promised counts groups, not pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

import numpy as np

Groups = str | Mapping[str, Any] | Callable[[str], Any] | Sequence[Any] | np.ndarray

EACH = "each"
PARENT = "parent"


def group_names(groups: Groups, ids: Sequence[str]) -> list[str]:
    """The name of the group of every picture.

    Parameters
    ----------
    groups : str, mapping, callable, or one label per picture
        "parent" is the folder a picture lies in; "each" says that none belong together; any other text is a regular
        expression looked for in the id, whose first bracket (or whole match) is the name. A mapping and a callable go
        from the id to a label.
    ids : n names

    Raises
    ------
    ValueError
        If a picture has no group, there are more or fewer labels than pictures, or the expression is none.

    Examples
    --------
    >>> group_names("parent", ["monday/1.png", "monday/2.png", "3.png"])
    ['monday', 'monday', '.']
    >>> group_names(r"part(\\d+)_", ["part07_a.png", "part07_b.png", "part08_a.png"])
    ['07', '07', '08']
    """
    if isinstance(groups, str):
        return _by_rule(groups, ids)
    if isinstance(groups, Mapping):
        missing = [name for name in ids if name not in groups]
        if missing:
            raise ValueError(
                f"groups has no entry for {missing[0]!r}, nor for {len(missing) - 1} others of {len(ids)} pictures; "
                f"its keys are ids, such as {next(iter(groups), 'none')!r}"
            )
        labels = [groups[name] for name in ids]
    elif callable(groups):
        labels = [groups(name) for name in ids]
    else:
        labels = list(groups)
        if len(labels) != len(ids):
            raise ValueError(f"{len(labels)} groups for {len(ids)} pictures; give one for each, in their order")
    empty = [name for name, label in zip(ids, labels, strict=True) if label is None or label != label]  # NaN too
    if empty:
        raise ValueError(f"{len(empty)} of {len(ids)} pictures have no group, such as {empty[0]!r}; name one for each")
    return [str(label) for label in labels]


def group_numbers(groups: Groups, ids: Sequence[str]) -> np.ndarray:
    """The number (n,) of the group of every picture, counted from 0 in the order of their first pictures.

    Raises
    ------
    ValueError
        As `group_names`; and if all pictures are of one group, since none could be left out.
    """
    numbers = numbered(group_names(groups, ids))
    if len(numbers) and numbers.max() == 0:
        raise ValueError(
            f"all {len(ids)} pictures are of one group, and leaving it out leaves nothing to learn from; at least two "
            "groups are needed"
        )
    return numbers


def numbered(labels: Sequence[Any]) -> np.ndarray:
    """Equal labels as equal numbers (n,), counted from 0 in the order they are met."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], dtype=np.int64)


def _by_rule(rule: str, ids: Sequence[str]) -> list[str]:
    if rule == EACH:
        return list(ids)
    if rule == PARENT:
        return [str(PurePosixPath(name).parent) for name in ids]
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise ValueError(
            f"groups={rule!r} is neither 'parent' nor 'each' nor a regular expression ({error}), such as "
            r"'part(\d+)_' for part07_a.png"
        ) from None
    names = []
    for name in ids:
        found = pattern.search(name)
        text = None if found is None else (found.group(1) if pattern.groups else found.group(0))
        if not text:
            raise ValueError(f"groups={rule!r} finds nothing in {name!r}; every picture needs a group")
        names.append(text)
    return names
