PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0

.PHONY: setup demo demo-train test test-all check bench docs

setup: $(VENV)/.ready  ## virtual environment in .venv with all but Ray, a CPU build of torch where there is no NVIDIA GPU

$(VENV)/.ready: pyproject.toml constraints.txt
	@echo "setting up $(VENV): about three minutes and 4 GB"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade setuptools --constraint constraints.txt
	if nvidia-smi >/dev/null 2>&1; then $(BIN)/pip install --quiet torch==$(TORCH); \
	else $(BIN)/pip install --quiet torch==$(TORCH)+cpu 2>/dev/null \
	  || $(BIN)/pip install --quiet torch==$(TORCH) --index-url https://download.pytorch.org/whl/cpu; fi
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

demo: setup  ## index long documents, search them, score the results beside BM25: a minute or two, demo-output/search/
	$(BIN)/python examples/demo.py

demo-train: setup  ## train a small model from scratch, export, load, evaluate: six minutes, demo-output/
	$(BIN)/python examples/demo_train.py

test: setup  ## the tests, on two cores; about ten minutes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

test-all: setup  ## the slow tests too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m ""

check: setup  ## lint and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

docs: setup  ## docs/cli.md, from the commands themselves
	$(BIN)/python -m typer m2bert.cli utils docs --name m2bert --title Commands --output docs/cli.md

bench: setup  ## speed and memory, two hours on a CPU, nine minutes on a GPU: experiments/speed/results/, docs/performance.md
	PYTHON=$(CURDIR)/$(BIN)/python experiments/speed/run.sh experiments/speed/results/$$(nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu)
	$(BIN)/python experiments/pages.py performance
