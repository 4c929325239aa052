# `make setup` once; `make demo` runs the pipeline, `make test` the tests. Needs Python 3.11, git and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Modules are compiled once, whatever the environment says: torch, transformers and MLflow take 12 s of each process else.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: setup demo test test-pipeline test-slow test-rest test-soak style lint check clean

setup: $(INSTALLED)

$(INSTALLED): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# The lock is complete, as `pip check` says. pip would compile on one core. Packages have templates that are no Python.
	$(BIN)/pip install --quiet --no-deps --no-compile --requirement requirements.lock
	$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	$(BIN)/pip check
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
	@echo '  reports/combined/report.html, in a browser                   scores, a map of the clips, retrievals to listen to'
	@echo '  mlflow ui --backend-store-uri sqlite:///mlflow/mlflow.db      runs, curves, registered models'

# The end-to-end runs wait as much as they compute: three processes side by side. Each is shown when it has ended.
test: setup
	@echo 'The tests run for 20 to 25 minutes, in three processes; what they say comes when they end.'
	@$(MAKE) --no-print-directory --jobs=3 --output-sync=target test-pipeline test-slow test-rest

# Ray's workers would give way to all the rest (nice 15), and be waited for.
PYTEST := OMP_NUM_THREADS=1 RAY_worker_niceness=0 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest
PIPELINE := $(addprefix tests/test_,pipeline.py unkillable.py secrets.py storms.py tracking_load.py gate.py)

test-pipeline: setup
	$(PYTEST) -m "not soak" $(PIPELINE)

test-slow: setup
	$(PYTEST) -m "slow and not soak" $(PIPELINE:%=--ignore=%)

test-rest: setup
	$(PYTEST) -m "not slow and not soak" $(PIPELINE:%=--ignore=%)

# What `make test` leaves out, so that it ends within half an hour on 2 cores.
test-soak: setup
	$(PYTEST) -m soak

style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/mypy

check: lint test

# Removes what the pipeline made, the tracking store too; the environment stays.
clean:
	rm -rf data/corpus data/shards models/* training/* reports/* registered/* embeddings reward runs mlflow .dvc/cache .dvc/tmp
