# make demo   train on 5,000 real digits and look at the result (under two minutes)
# make test   everything CI checks
# make check  the same without installing anything
# make docs   the documentation as a site in docs/_build/html; any warning is an error, nothing is fetched
# make notebooks    the notebooks of examples/ from top to bottom, on the digits of the demo
# make bench  what docs/performance.md claims, in a short form: a table for each concern
# make torture      two or three hours of what tries to break it, and a table of what fell; PARTS="images kills" for some
#                   of it, PARTS="--times 10" for a weekend
# make test-scale   the tests of several processes and servers that take minutes
# make test-lowest  the tests with the lowest versions that pyproject.toml allows
#
# On Linux, PyPI's torch is a CUDA build of several GB. Where no NVIDIA GPU is found, the small CPU build is looked
# for first, and PyPI's taken where that index cannot be reached. TORCH_FLAGS= leaves it at PyPI's; PIP_FLAGS is
# passed to every pip.

PYTHON ?= python3
PIP_FLAGS ?=
HAS_GPU := $(shell command -v nvidia-smi 2>/dev/null)
ifeq ($(shell uname)$(HAS_GPU),Linux)
TORCH_FLAGS ?= --extra-index-url https://download.pytorch.org/whl/cpu --retries 1 --timeout 10
endif
BIN := .venv/bin
# pip compiles nothing of the base below: modules are compiled when they are first imported, which Python has to keep.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check docs notebooks bench torture test-scale test-lowest format clean

demo: .venv/base-installed
	$(BIN)/autoencode demo

test: .venv/installed check

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -n auto --dist loadfile --no-loadscope-reorder

docs: .venv/docs-installed
	$(BIN)/sphinx-build --quiet --fail-on-warning --keep-going -b html docs docs/_build/html

notebooks: .venv/docs-installed
	$(BIN)/pytest -m notebooks

torture: .venv/installed
	$(BIN)/python -m torture $(PARTS)

test-scale: .venv/installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints-cpu.txt -e ".[lance,ray,storage,scale]"
	$(BIN)/pytest -m scale -rs

# Of torch the constraint's version is taken: the lowest has no small build on PyPI.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet $(PIP_FLAGS) uv
	.venv-lowest/bin/uv pip compile --quiet --no-deps --resolution lowest-direct --all-extras \
	  --constraint constraints-cpu.txt --output-file .venv-lowest/lowest.txt pyproject.toml
	.venv-lowest/bin/pip install --quiet $(PIP_FLAGS) --no-deps $(TORCH_FLAGS) -c constraints-cpu.txt torch
	.venv-lowest/bin/pip install --quiet $(PIP_FLAGS) -r .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet $(PIP_FLAGS) --no-deps -e .
	.venv-lowest/bin/pytest

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: .venv/installed
	@echo "\n## Training\n" && $(BIN)/python benchmarks/train_speed.py --rounds 3 --steps 1
	@echo "\n## Input\n" && $(BIN)/python benchmarks/packing.py --images 1000 --rounds 3
	@echo "\n## Encoding\n" && $(BIN)/python benchmarks/encode_speed.py --images 256 --rounds 3
	@echo "\n## Search\n" && $(BIN)/python benchmarks/search_speed.py --codes 200000 --queries 100
	@echo "\n## Memory\n" && $(BIN)/python benchmarks/memory.py --images 2000 10000

# Compiling every module of every package takes longer than installing them, and most are never imported.
.venv/base-installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --no-compile $(PIP_FLAGS) --no-deps $(TORCH_FLAGS) -c constraints-cpu.txt torch
	$(BIN)/pip install --quiet --no-compile $(PIP_FLAGS) -c constraints-cpu.txt -e ".[demo]"
	touch $@

.venv/installed: .venv/base-installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints-cpu.txt -e ".[demo,eval,map,onnx,tensorboard,web,dev]"
# Checks the types of the page's scripts; without npm, or offline, its test is skipped.
	command -v npm >/dev/null && npm install --silent --no-audit --no-fund --prefix .venv typescript@5.9.3 || true
	touch $@

.venv/docs-installed: .venv/installed
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints-cpu.txt -e ".[docs]"
	touch $@

clean:
	rm -rf .venv .venv-lowest build dist docs/_build docs/generated .pytest_cache .mypy_cache .ruff_cache .hypothesis
