# Needs make, git and a Python from 3.11 to 3.13; everything else goes into .venv, without root.
#
#   make setup               what all the others need; quick when nothing has changed
#   make demo                a livestream flash sale on real order data; Ctrl-C ends it
#   make demo ARGS=--exit    the same, ending by itself
#   make test                format, lint, types, tests
#   make test ARGS='-k name' only some of the tests
#   make lint                format, lint, types
#   make clean               removes what was built and .venv; leaves your data in ./var

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint clean

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
	$(BIN)/pytest $(ARGS)

clean:
	rm -rf $(VENV) dist build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
