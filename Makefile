# `make demo` and `make test` set up what they need (a .venv with the package) and can be repeated at no cost.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

LOWEST := .venv-lowest

.PHONY: demo serve-demo test test-lowest lint docs clean

demo: $(READY)
	$(BIN)/anomalib-lite demo -o demo-output

# Drawn parts before a simulated camera: open http://127.0.0.1:8000
serve-demo: $(READY)
	$(BIN)/anomalib-lite serve-demo serve-demo

test: lint
	$(BIN)/python -m pytest

# The lowest versions that pyproject.toml allows: they are installed, and all but the slow tests pass on them. A few
# gigabytes, since torch's older wheels bring CUDA; so it stands beside `test`.
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet --resolution lowest-direct -e .
	VIRTUAL_ENV=$(LOWEST) $(LOWEST)/bin/uv pip install --quiet pytest pytest-timeout
	$(LOWEST)/bin/python -m pytest -m "not slow"

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)
	$(BIN)/python -m pip install --quiet -e '.[docs]'
	$(BIN)/mkdocs build --quiet --strict

# Of what pip says: downloads of 10 MB and more, and that it is installing. Errors come on stderr, and its exit status counts.
BRIEF := awk '/(Downloading|Using cached) .*\([0-9][0-9]+\.[0-9] MB|\([0-9.]+ GB|^Installing|^Successfully built/ { print substr($$0, 1, 110); fflush() }'

$(READY): SHELL := /bin/bash
$(READY): .SHELLFLAGS := -o pipefail -c
# torch and torchvision must come as a matching pair; torchvision's operators do not load otherwise.
$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	@echo "Installing: about 3 GB to download and 7 GB on disk with torch's CUDA libraries; without a GPU stop here, run"
	@echo "  $(BIN)/pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu"
	@echo "and make again (docs/how-to/install.md)."
	$(BIN)/python -m pip install --progress-bar off -e '.[test]' | $(BRIEF)
	$(BIN)/python -c "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
	touch $(READY)

clean:
	rm -rf $(VENV) $(LOWEST) demo-output serve-demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache
