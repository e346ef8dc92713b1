"""The notebooks run from a clean checkout, and what is committed is small."""

import ast
import json
from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "examples").glob("*.ipynb"))
FEW = {"n_train": 6, "n_good": 2, "n_defect": 1, "size": 64}
SMALL = {
    "quickstart": {"IMAGES": FEW},
    "own_backbone": {"IMAGES": FEW},
    "thresholds": {"IMAGES": FEW, "NEW_PARTS": 4},
    "unsupervised_story": {"IMAGES": {**FEW, "n_train": 12}, "COMPONENTS": 6},
    "labelled_comparison": {
        "IMAGES": {"n_train": 8, "n_good": 6, "n_defect": 3, "size": 64},
        "MODELS": ["cnn", "linear", "knn"],
        "STUDY_MODELS": ["linear", "knn"],
        "SEEDS": 1,
        "STUDY_SEEDS": 1,
        "FEW_LABELS": [2, 4],
        "EPOCHS_OF_UNET": 2,
    },
}
"""What the cell tagged "sizes" says in the tests, so that all notebooks together take a minute."""
DATA = {"own_backbone": {"FOLDER", "RESNET18"}, "unsupervised_story": {"FOLDER", "VGG16"}}
"""What else it takes: files of one's own, None in the tests as in what is committed."""


def cells_of(path):
    return [cell for cell in json.loads(path.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


def names_in(source):
    return {node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_from_top_to_bottom(path, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    (sizes,) = (cell for cell in notebook.cells if "sizes" in cell.metadata.get("tags", ()))
    said = {**dict.fromkeys(DATA.get(path.stem, {"FOLDER"})), **SMALL[path.stem]}
    sizes.source = "\n".join(f"{name} = {value!r}" for name, value in said.items())
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_is_committed_with_small_outputs_in_order(path):
    assert path.stat().st_size < 700_000
    cells = cells_of(path)
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output["output_type"] == "error" for cell in cells for output in cell["outputs"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_says_its_data_and_its_sizes_in_the_first_cell(path):
    sizes, *others = cells_of(path)
    assert sizes["metadata"]["tags"] == ["sizes"]
    names = names_in("".join(sizes["source"]))
    assert names == set(SMALL[path.stem]) | DATA.get(path.stem, {"FOLDER"})
    assert all(any(name in "".join(cell["source"]) for cell in others) for name in names)


def test_the_classic_way_says_at_once_how_little_it_finds():
    first = json.loads((NOTEBOOKS[0].parent / "unsupervised_story.ipynb").read_text(encoding="utf-8"))["cells"][0]
    assert "0.5 to 0.6" in "".join(first["source"])[:300]
    assert "patches" in "".join(first["source"])[:400]
