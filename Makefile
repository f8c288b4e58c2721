# The two commands a newcomer needs:
#   make demo    install into .venv, fetch the default model, score it on HumanEval
#   make test    install the test requirements and run the test suite
# Everything is pinned in constraints.txt, so both are repeatable.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

# torch's CPU build where a Linux machine has no NVIDIA driver: the default build there brings
# gigabytes of CUDA libraries. macOS wheels are CPU/MPS builds already.
ifeq ($(shell uname -s),Linux)
ifeq ($(shell command -v nvidia-smi 2>/dev/null),)
TORCH_INDEX := --extra-index-url https://download.pytorch.org/whl/cpu --retries 1
endif
endif
TORCH := $(shell grep '^torch==' constraints.txt)

.PHONY: demo test test-slow lint bench clean

demo: $(BIN)/.apr
	$(BIN)/apr eval smollm2-135m --benchmark humaneval --out runs/demo

test: $(BIN)/.test
	$(BIN)/python -m pytest -q -n auto --dist loadfile

test-slow: $(BIN)/.test
	$(BIN)/python -m pytest -q -m slow

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(BIN)/.apr
	$(BIN)/python benchmarks/inference.py
	$(BIN)/python benchmarks/sandbox.py
	$(BIN)/python benchmarks/merge.py

clean:
	rm -rf $(VENV) runs

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "apr needs Python 3.11 or newer; set PYTHON=python3.x" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(BIN)/.torch: $(BIN)/python constraints.txt
	@echo "installing $(TORCH)"
	$(PIP) $(TORCH_INDEX) "$(TORCH)"
	@touch $@

$(BIN)/.apr: $(BIN)/.torch pyproject.toml
	@echo "installing apr"
	$(PIP) -e .
	@touch $@

$(BIN)/.test: $(BIN)/.apr
	@echo "installing the test requirements"
	$(PIP) -e '.[test]'
	@touch $@

$(BIN)/.dev: $(BIN)/.test
	$(PIP) -e '.[test,dev]'
	@touch $@
