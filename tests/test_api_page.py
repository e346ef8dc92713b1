"""The page of the API is whole, and what it says of parameters is so.

The page takes a parameter's default from the signature, by the name in the docstring: an entry for several at once, or
for one that is called otherwise, would be shown as one that has to be given.
"""

import ast
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import anomalib_lite

PAGE = Path(__file__).parent.parent / "docs" / "api.md"
ON_PAGE = re.findall(r"^::: (\S+)", PAGE.read_text(encoding="utf-8"), re.M)
PUBLIC = [name for name in anomalib_lite.__all__ if name[0] != "_"]
ENTRY = re.compile(r"^(\*{0,2}\w[\w, *]*?)(?: ?: ?(.*))?$")
DEFAULT = re.compile(
    r"\bdefault:? (\"[^\"]*\"|'[^']*'|[-+]?\d[\d_]*(?:\.\d+)?(?:e-?\d+)?\b|True\b|False\b|None\b)", re.I
)


def documented():
    """(name, object with a signature) of everything on the page: functions, classes, and their public methods."""
    for path in ON_PAGE:
        found = pkgutil.resolve_name(path)
        if inspect.ismodule(found):
            own = [value for name, value in vars(found).items() if name[0] != "_" and inspect.isfunction(value)]
            yield from ((f"{path}.{one.__name__}", one) for one in own if one.__module__ == found.__name__)
            continue
        yield path, found
        if inspect.isclass(found):
            members = [(name, getattr(found, name)) for name in vars(found) if name[0] != "_"]
            yield from ((f"{path}.{name}", one) for name, one in members if inspect.isroutine(one))


def entries(docstring):
    """{name as written: (type, text)} of the section "Parameters" of a numpydoc docstring."""
    match = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", docstring, re.M | re.S)
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for line in (match.group(1) if match else "").splitlines():
        if line and not line.startswith(" "):
            named = ENTRY.match(line)
            assert named, line
            last = named.group(1)
            found[last] = named.group(2) or "", ""
        elif last:
            found[last] = found[last][0], f"{found[last][1]} {line.strip()}"
    return found


WITH_PARAMETERS = [(name, one) for name, one in documented() if entries(inspect.getdoc(one) or "")]


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_on_the_page(name):
    assert any(pkgutil.resolve_name(path) is getattr(anomalib_lite, name) for path in ON_PAGE)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_the_doctests_run(name):
    assert ">>> " in inspect.getdoc(getattr(anomalib_lite, name))


@pytest.mark.parametrize(("name", "one"), WITH_PARAMETERS, ids=[name for name, _ in WITH_PARAMETERS])
def test_every_parameter_has_an_entry_of_its_own(name, one):
    own = one.__init__ if inspect.isclass(one) and "__init__" in vars(one) else one
    real = [parameter for parameter in inspect.signature(own, follow_wrapped=False).parameters if parameter != "self"]
    if hasattr(one, "__signature__"):  # fit: shows a detector's in place of its own
        real = list(inspect.signature(one).parameters)
    assert sorted(entry.lstrip("*") for entry in entries(inspect.getdoc(one))) == sorted(real)


@pytest.mark.parametrize(("name", "one"), WITH_PARAMETERS, ids=[name for name, _ in WITH_PARAMETERS])
def test_documented_defaults_are_the_real_ones(name, one):
    real = inspect.signature(one).parameters
    for entry, (kind, text) in entries(inspect.getdoc(one)).items():
        for told in DEFAULT.findall(f"{kind}. {text}"):
            default = real[entry.lstrip("*")].default
            # None, and what goes on to others, is decided later, and the text says what becomes of it.
            assert default in (None, inspect.Parameter.empty) or ast.literal_eval(told) == default, f"{entry}: {told}"


def test_the_checks_see_what_they_look_for():
    text = (
        "Do.\n\nParameters\n----------\na, b : int, default 3\n    Text; default: 0.5.\nc : str\n\nReturns\n-------\nd"
    )
    assert entries(text) == {"a, b": ("int, default 3", " Text; default: 0.5."), "c": ("str", " ")}
    assert DEFAULT.findall("int, default 3. Text; default: 0.5.") == ["3", "0.5"]
    assert len(WITH_PARAMETERS) > 40
