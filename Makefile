# STACK=stock (default) is OpenMMLab's own releases, STACK=onedl the maintained fork.
STACK ?= stock
VENV := $(if $(filter onedl,$(STACK)),.venv-onedl,.venv)
BIN := $(VENV)/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test lint format docs bench zoo clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup:  ## make the virtual environment (nothing to do when it is up to date)
	@VENV=$(VENV) tools/setup_env.sh $(STACK)

demo: setup  ## distil a small detector end to end: table and picture in work_dirs/demo
	python tools/demo.py

test: setup  ## run the test suite
	python -m pytest -q -n 2 --dist worksteal --durations=15

lint: setup  ## ruff, codespell, and mypy on ops and engine
	ruff check . && ruff format --check . && codespell && mypy

format: setup  ## let ruff rewrite what it can
	ruff check --fix . && ruff format .

bench: setup  ## time every paper's module beside its yardstick
	python tools/benchmark/run.py

zoo:  ## write the model zoo page and the table of papers in the README
	python tools/model_zoo.py

docs: setup zoo  ## build the documentation in docs/_build/html
	sphinx-build -W --keep-going -q docs docs/_build/html

clean:  ## remove what was built, not the environment
	rm -rf build dist docs/_build *.egg-info mmextra/.mim
