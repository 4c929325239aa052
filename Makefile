# `make setup` once; `make demo` runs the pipeline, `make test` the tests. Needs Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: setup demo test test-slow test-rest lint check clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

# `dvc repro` is the job itself; what is up to date is not run again.
demo: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@cat summary.md
	@echo
	@echo 'Try next, after `. $(BIN)/activate`:'
	@echo '  psclap search embeddings "a creaky voice, slow and loud" --top 5'
	@echo '  psclap classify data/corpus/audio/demo-test-0000[0-3].flac --tags pitch-level'
	@echo '  psclap score data/corpus/audio/demo-test-0000[0-3].flac --text "a soft, slow female voice"'
	@echo '  mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db      runs, curves, registered models'

# The end-to-end runs wait more than they compute: the rest goes on beside them. Each is shown when it has ended.
test: setup
	@echo 'The tests run for about a quarter of an hour, in two processes; what they say comes when they end.'
	@$(MAKE) --no-print-directory --jobs=2 --output-sync=target test-slow test-rest

test-slow: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m slow

test-rest: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m "not slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check: lint test

# Removes what the pipeline made, the tracking store too; the environment stays.
clean:
	rm -rf data/corpus data/shards models/* training/* reports/* registered/* embeddings runs mlflow .dvc/cache .dvc/tmp
