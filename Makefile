# `make demo` and `make test` are all that a fresh machine needs; both set up first.
# PIP_ARGS is handed to pip, for a mirror or another build of torch.
PYTHON ?= python3
PIP_ARGS ?=
# Tests run in so many processes, each on one core.
WORKERS ?= 2
RECIPE ?= recipes/home-commands
ID ?= T1
ARGS ?=
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: setup demo test lint bench clean

setup: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --constraint constraints.txt $(PIP_ARGS) --editable '.[torch,mlx,dev]'
	touch $@

demo: $(INSTALLED)
	$(BIN)/edgedistill run $(RECIPE)

test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist worksteal

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# one figure of the benchmarks, against its peer in the same run: make bench ID=T1 [ARGS="..."]
bench: $(INSTALLED)
	@PYTHONPATH=scripts/benchmarks $(BIN)/python scripts/benchmarks/$(ID).py $(ARGS)

clean:
	rm -rf .venv dist .pytest_cache .mypy_cache .ruff_cache
