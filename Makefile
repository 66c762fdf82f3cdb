# Everything a developer does. Set-up happens by itself, once, and again when the pins change.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
RUNS := runs
DEVICE := $(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu)

# One CPU thread for networks this small: a fifth slower on an idle machine, many times faster on a busy one.
demo test test-slow: export OMP_NUM_THREADS := 1

.PHONY: help setup demo test test-slow lint format type bench tables docs clean
help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 11

setup: $(READY)  ## make .venv with everything pinned in requirements.lock
# Bytecode is compiled once: with PYTHONDONTWRITEBYTECODE, as in many containers, every process would parse torch's sources.
$(READY): pyproject.toml requirements.lock
	$(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/python -m uv pip install --quiet --python $(BIN)/python --no-deps -e .
	$(BIN)/python -m compileall -q pgt
	@touch $(READY)

demo: $(READY)  ## train 24 small networks (under 4 minutes on 2 cores), print the table, draw the curves
	$(BIN)/pgt train -m paths.runs=$(RUNS) experiment=demo/nobn method=baseline,gc,agc,pgt,gc_pgt,agc_pgt seed=0,1,2
	$(BIN)/pgt train -m paths.runs=$(RUNS) experiment=demo/bn method=baseline,pgt seed=0,1,2
	$(BIN)/pgt table demo --runs $(RUNS) --output $(RUNS)/demo/table.md
	$(BIN)/pgt figure 4 demo --runs $(RUNS) --output $(RUNS)/demo/curves.png

test: $(READY)  ## run the tests of a few minutes: on the CPU, and on a GPU, if there is one, what only that can show
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m "not slow" -n 3
	@if command -v nvidia-smi >/dev/null; then $(BIN)/python -m pytest tests/test_cuda.py; fi

test-slow: $(READY)  ## run the others: every kind of death and stop, Slurm, compiled networks, wheels
	CUDA_VISIBLE_DEVICES= $(BIN)/python -m pytest -m slow -n 3 --dist loadfile

lint: $(READY)  ## ruff: style, imports, likely bugs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)  ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(READY)  ## mypy, strict where pyproject.toml says so
	$(BIN)/mypy

bench: $(READY)  ## our loss, loaders and step beside what one would pick instead
	$(BIN)/python -m scripts.bench.loss --compiled --json results/bench/loss-$(DEVICE).json
	$(BIN)/python -m scripts.bench.loader --json results/bench/loader-$(DEVICE).json
	$(BIN)/python -m scripts.bench.step --json results/bench/step-$(DEVICE).json
	$(BIN)/python -m scripts.bench.methods --json results/bench/methods-$(DEVICE).json

tables: $(READY)  ## write results/tables/ from the measured runs in results/runs/
	for n in 1 2 3; do $(BIN)/pgt table $$n --runs results/runs --output results/tables/table$$n.md >/dev/null || exit; done
	for name in demo tiny; do $(BIN)/pgt table $$name --runs results/runs --output results/tables/$$name.md >/dev/null || exit; done
	$(BIN)/pgt table tiny --runs results/runs --output results/tables/tiny.csv >/dev/null
	$(BIN)/python -m scripts.evidence --output results/tables/evidence.csv >/dev/null

docs: $(READY)  ## build the site of the documentation into build/site, strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:  ## remove the environment and caches; runs stay
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis build dist
