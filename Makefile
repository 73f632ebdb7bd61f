# make demo   train on 5,000 real digits and look at the result (under two minutes)
# make test   everything CI checks
# make check  the same without installing anything
#
# PIP_FLAGS is passed to pip. On Linux the default torch from PyPI is a CUDA build of several GB;
# for the small CPU build:  make demo PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu"

PYTHON ?= python3
PIP_FLAGS ?=
BIN := .venv/bin

.PHONY: demo test check format clean

demo: .venv/installed
	$(BIN)/autoencode demo

test: .venv/installed check

check:
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest

format:
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints-cpu.txt torch
	$(BIN)/pip install --quiet $(PIP_FLAGS) -c constraints-cpu.txt -e ".[demo,eval,onnx,tensorboard,dev]"
	touch $@

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
