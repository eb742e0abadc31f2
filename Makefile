# Needs make, git and a Python from 3.11 to 3.13; everything else goes into .venv, without root.
#
#   make setup               what all the others need; quick when nothing has changed
#   make demo                a livestream flash sale on real order data; Ctrl-C ends it
#   make demo ARGS=--exit    the same, ending by itself
#   make test                format, lint, types, tests
#   make test ARGS='-k name' only some of the tests; ARGS='-n 0 -k name' in one process
#   make lint                format, lint, types
#   make loadtest            people in a live (Locust): burst, report, audit; ARGS='--shape live --minutes 5'
#   make bench               the benchmark with its baselines, half an hour; ARGS=--quick for two minutes
#   make clean               removes what was built and .venv; leaves your data in ./var

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint loadtest bench clean

help:
	@sed -n 's/^#   //p' Makefile

setup: $(STAMP)

# The stamp is made last, so that an interrupted set-up is taken up again.
$(STAMP): pyproject.toml scripts/set_up.sh scripts/provide_redis.sh
	@bash scripts/set_up.sh $(VENV)
	@touch $@

demo: $(STAMP)
	@$(BIN)/miaocang demo $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --durations 10 $(ARGS)

loadtest: $(STAMP)
	@$(BIN)/python -m loadtest.live $(ARGS)

bench: $(STAMP)
	@bash scripts/set_up_bench.sh $(BIN)/python
	@$(BIN)/python -m loadtest.bench $(ARGS)

clean:
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
