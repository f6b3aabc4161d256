# make demo: the main job on the text that ships with the package.  make test: all tests.  make check: before a commit.
# Both set up .venv with the versions of constraints.txt first. PYTHON may name another interpreter (3.11 to 3.13).
# make test-gpu: the kernels in full, on a GPU. With PYTHON given it runs that interpreter's own pytest and makes no .venv;
# OPTIONS go to pytest, such as OPTIONS='-k channel' or, where pytest-xdist is installed, OPTIONS='-n 8'.

PYTHON ?= python3
BIN := .venv/bin
TORCH := $(shell grep '^torch==' constraints.txt)

# What runs on a GPU: the kernels' own tests, and every file with a test marked `gpu`.
GPU_TESTS = tests/ops/interpreted $(shell grep -rlE 'mark\.gpu\b' tests --include='test_*.py')
GPU_PYTHON = $(if $(filter file,$(origin PYTHON)),$(BIN)/python,$(PYTHON))

# Images set it for builds; here every process that a test starts would compile the package anew, and pytest all tests.
unexport PYTHONDONTWRITEBYTECODE

# Neighbours stay on one worker, and so share what they are made from; the worker that is done first takes over the rest.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

.PHONY: demo test test-gpu check format clean

demo: .venv/installed
	$(BIN)/linscale study run configs/study/demo.toml

test: .venv/installed-dev
	$(PYTEST) -m "not gpu"

test-gpu: $(if $(filter file,$(origin PYTHON)),.venv/installed-dev)
	@$(GPU_PYTHON) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "make test-gpu: torch " + torch.__version__ + " finds no GPU on this machine, nothing was tested (linscale doctor says why)")'
	$(GPU_PYTHON) -m pytest -p no:benchmark -m gpu $(OPTIONS) $(GPU_TESTS)

check: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not gpu"

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv runs

# torch first and pinned, so that nothing else pulls another build of it.
.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else f"linscale needs Python 3.11 to 3.13, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable .
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[dev]'
	@touch $@
