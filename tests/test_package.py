import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anomalib_lite

PACKAGE = Path(anomalib_lite.__file__).parent

# What stands higher may import what stands lower, and never the other way round: lazy and type-only imports counted.
FLOORS = [
    ["cli"],
    ["demo", "pretraining", "doctor", "serving", "exporting"],
    ["report", "comparison"],
    ["diagnosis", "supervised"],
    ["evaluation", "flags"],
    ["detector"],
    ["judging", "detecting"],
    ["scaling"],
    ["results"],
    ["plotting"],
    ["scored"],
    ["fitted"],
    ["scoring", "embedding", "locating"],
    ["images"],
    ["machine"],
    ["files", "version"],
]
HEIGHT = {room: -floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


class TestImport:
    def test_loads_nothing_slow(self):
        slow = ["torch", "torchvision", "sklearn", "scipy", "faiss", "matplotlib", "umap", "numpy", "PIL", "typer"]
        loaded = python(f"import sys, anomalib_lite; print(*[name for name in {slow} if name in sys.modules])")
        assert loaded == []

    def test_opening_images_loads_no_torch(self):
        code = (
            "import sys; from anomalib_lite import make_metal_nut, UnreadableImageError; print('torch' in sys.modules)"
        )
        assert python(code) == ["False"]

    def test_the_command_line_answers_without_torch(self):
        code = (
            "import sys; sys.argv = ['anomalib-lite', 'fit', '--help']\n"
            "from anomalib_lite.cli import main\n"
            "try: main()\n"
            "except SystemExit: print('torch-loaded' if 'torch' in sys.modules else 'torch-not-loaded')"
        )
        assert python(code)[-1] == "torch-not-loaded"

    @pytest.mark.parametrize("name", anomalib_lite.__all__)
    def test_every_public_name_is_there(self, name):
        assert getattr(anomalib_lite, name) is not None
        assert name in dir(anomalib_lite)
        if name[0] != "_":
            assert getattr(anomalib_lite, name).__name__ == name

    def test_every_name_with_a_home_is_public(self):
        assert sorted(anomalib_lite.__all__) == sorted([*anomalib_lite._HOME, "__version__"])

    def test_type_checkers_see_the_same_names(self):
        tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
        block = next(node for node in tree.body if isinstance(node, ast.If))
        told = {
            alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names
        }
        assert told == {name: f"anomalib_lite.{home}" for name, home in anomalib_lite._HOME.items()}

    def test_other_names_are_an_error(self):
        with pytest.raises(AttributeError, match="module 'anomalib_lite' has no attribute 'train'"):
            anomalib_lite.train  # noqa: B018

    def test_star(self):
        assert python("from anomalib_lite import *; print(Detector.__name__, callable(fit))") == ["Detector", "True"]

    def test_the_version_is_that_of_the_distribution(self):
        import importlib.metadata

        assert importlib.metadata.version("anomalib_lite") == anomalib_lite.__version__


def modules():
    """(path relative to the package, room) of every module but the package itself."""
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        if relative.name != "__init__.py" or len(relative.parts) > 1:
            yield relative.as_posix(), Path(relative.parts[0]).stem


def imported_modules(path):
    """Modules of the package that a module imports, as paths, wherever in it: also in functions and for types only."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {file_of(name) for name in names if name.split(".")[0] == "anomalib_lite"}
    return found


def file_of(name):
    """The file of `anomalib_lite.room.module.name` or of any shorter form of it."""
    parts = name.split(".")[1:]
    while parts:
        for file in ("/".join(parts) + ".py", "/".join(parts) + "/__init__.py"):
            if (PACKAGE / file).is_file():
                return file
        parts.pop()
    return "__init__.py"


def imported_rooms(path):
    return {Path(other.split("/")[0]).stem for other in imported_modules(path)}


def a_circle(arrows):
    """Names along a circle of a graph {name: names}, or None."""
    done, on_the_way = set(), []

    def visit(name):
        if name in on_the_way:
            return [*on_the_way[on_the_way.index(name) :], name]
        if name in done:
            return None
        on_the_way.append(name)
        for other in sorted(arrows.get(name, ())):
            if found := visit(other):
                return found
        done.add(on_the_way.pop())
        return None

    return next((found for name in sorted(arrows) if (found := visit(name))), None)


class TestRooms:
    @pytest.mark.parametrize(("path", "room"), list(modules()))
    def test_imports_run_downward(self, path, room):
        assert room in HEIGHT, f"{room} has no floor yet; give it one in FLOORS"
        for other in imported_rooms(path) - {room}:
            assert HEIGHT[other] < HEIGHT[room], f"{path} imports {other}, which does not stand below it"

    def test_no_module_leads_back_to_itself(self):
        assert a_circle({path: imported_modules(path) for path, _ in modules()}) is None

    def test_no_room_leads_back_to_itself(self):
        arrows = {}
        for path, room in modules():
            arrows.setdefault(room, set()).update(imported_rooms(path) - {room})
        assert a_circle(arrows) is None

    def test_a_circle_is_seen(self):
        assert a_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]
        assert a_circle({"a": {"b", "c"}, "b": {"c"}, "c": set()}) is None

    @pytest.mark.parametrize("path", [path for path, room in modules() if room == "scoring"])
    def test_scoring_knows_nothing_of_images(self, path):
        assert imported_rooms(path) <= {"scoring", "machine"}

    @pytest.mark.parametrize("path", [path for path, room in modules() if room == "images"])
    def test_images_stand_alone(self, path):
        assert imported_rooms(path) <= {"images", "files", "machine"}

    def test_the_check_sees_imports(self):
        assert {"detecting", "fitted", "scoring"} <= imported_rooms("detector.py")
        assert "plotting/overlays.py" in imported_modules("results.py")  # inside a method

    @pytest.mark.parametrize("path", [path for path, _ in modules()])
    def test_every_module_says_what_it_is(self, path):
        source = (PACKAGE / path).read_text(encoding="utf-8")
        assert not source or ast.get_docstring(ast.parse(source)), path
