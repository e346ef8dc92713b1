import ast
import subprocess
import sys
from pathlib import Path

import pytest

import anomalib_lite

PACKAGE = Path(anomalib_lite.__file__).parent

# What stands higher may import what stands lower or beside it, and never the other way round.
FLOORS = [
    ["cli"],
    ["demo", "pretraining"],
    ["report", "diagnosis"],
    ["evaluation", "supervised"],
    ["detector", "plotting"],
    ["storing"],
    ["fitting"],
    ["collecting", "diagnostics", "projection"],
    ["calibration", "scoring", "reduction", "embedding", "metrics", "pixel_metrics"],
    ["images", "results", "checkpoints", "persistence", "hardware", "memory"],
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


def imported_rooms(path, *, lazy):
    """Rooms of the package that a module imports; with `lazy` also those inside functions."""
    tree = ast.parse((PACKAGE / path).read_text(encoding="utf-8"))
    nodes = list(ast.walk(tree)) if lazy else tree.body
    rooms = set()
    for node in nodes:
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} imports relatively"
            if node.module == "anomalib_lite":
                names = [f"anomalib_lite.{alias.name}" for alias in node.names]
            else:
                names = [node.module]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        rooms |= {name.split(".")[1] for name in names if name.startswith("anomalib_lite.")}
    return rooms


class TestRooms:
    @pytest.mark.parametrize(("path", "room"), list(modules()))
    def test_imports_run_downward(self, path, room):
        assert room in HEIGHT, f"{room} has no floor yet; give it one in FLOORS"
        # Imports inside functions are left out: Scores.save_overlays fetches the drawing when it is asked to draw.
        for other in imported_rooms(path, lazy=False) - {room}:
            assert HEIGHT[other] <= HEIGHT[room], f"{path} imports {other}, which stands above it"

    @pytest.mark.parametrize("path", [path for path, room in modules() if room == "scoring"])
    def test_scoring_knows_nothing_of_images(self, path):
        assert imported_rooms(path, lazy=True) <= {"scoring", "reduction", "hardware"}

    @pytest.mark.parametrize("path", [path for path, room in modules() if room in ("images", "metrics", "calibration")])
    def test_images_and_measures_stand_alone(self, path):
        room = path.split("/")[0].removesuffix(".py")
        assert imported_rooms(path, lazy=True) <= {room}

    def test_the_check_sees_imports(self):
        assert {"embedding", "fitting", "scoring", "storing"} <= imported_rooms("detector.py", lazy=False)
        assert imported_rooms("results.py", lazy=True) - imported_rooms("results.py", lazy=False) == {"plotting"}

    @pytest.mark.parametrize("path", [path for path, _ in modules()])
    def test_every_module_says_what_it_is(self, path):
        source = (PACKAGE / path).read_text(encoding="utf-8")
        assert not source or ast.get_docstring(ast.parse(source)), path
