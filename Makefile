# make run   the environment from the lock, then the main job
# make test  the environment if missing, then all tests: files on two workers, then what is timed
# make lint  ruff and mypy
# make up    MLflow, Prefect and the weekly run on this machine; make down stops them
PYTHON ?= python3.11
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test lint up down

help:
	@sed -n 's/^# //p' Makefile

run: .venv/ready
	$(BIN)/stillroom compress --promote

test: .venv/ready
	rm -rf var/test-home
	STILLROOM_TEST_HOME=var/test-home $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not alone"
	STILLROOM_TEST_HOME=var/test-home $(BIN)/pytest -m alone

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch first, on its own: the index offers a CPU build on one machine and a CUDA build on the next
.venv/ready: infra/requirements.lock pyproject.toml
	@echo "environment: installing the locked packages into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes -r infra/requirements.lock
	$(BIN)/pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

up: .venv/ready
	$(BIN)/python -m flows.stack up

down: .venv/ready
	$(BIN)/python -m flows.stack down
