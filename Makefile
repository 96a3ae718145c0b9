# The book's commands. `make lab` and `make test` are all that most people need.
#
#   PYTHON=python3.12     build .venv with this Python (default: the first fitting one)
#   LABKIT_LANG=zh        language of `make lab`
#   PROFILE=laptop        profile of `make book`: tiny, laptop or gpu
#   WORKERS=4             test files that `make test` runs at a time, each over 1 GB of memory (default: 2, a core each in CI)

LABKIT_LANG ?= en
PROFILE ?= tiny
WORKERS ?= 2

# Any Python will do to start the setup script, which then looks for one that fits.
ANY_PYTHON = $(shell command -v python3 || command -v python3.11 || command -v python3.12 || command -v python3.13 || command -v python)
BIN := .venv/bin
NBVAL := -p scripts.offline.plugin --nbval-lax --nbval-current-env --nbval-cell-timeout=300

.PHONY: help setup lab book test oldest bench

help:
	@echo "make setup   install everything into .venv, once"
	@echo "make lab     setup, then JupyterLab on lesson 00"
	@echo "make book    setup, then execute the whole book and export it to build/book"
	@echo "make test    setup, then all checks"
	@echo "make oldest  setup, then Colab's packages, lessons 00-03 and the libraries' signatures with the oldest versions"
	@echo "make bench   setup, then the benchmarks that take minutes (benchmarks/README.md has them all)"

setup:
	@test -n "$(ANY_PYTHON)" || { echo "setup: error: no Python found. Fix: install Python 3.11, 3.12 or 3.13."; exit 1; }
	@"$(ANY_PYTHON)" scripts/setup_env.py

lab: setup
	$(BIN)/labkit lab --lang $(LABKIT_LANG)

book: setup
	$(BIN)/labkit run --profile $(PROFILE) --lang en --html build/book
	$(BIN)/labkit run --profile $(PROFILE) --lang zh --html build/book

# Cheap checks first. Nothing may reach for a model hub; scripts/offline closes the network to the lessons. The code cells
# of both languages are the same (a test says so), so only the English solutions are executed. One thread: these matrices
# are tiny, and waiting threads cost more. A file stays with one worker: its tests share what they have set up.
CHECKED := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 LABKIT_PROFILE=tiny LABKIT_LANG=en LABKIT_RUNS=$(CURDIR)/build/runs

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/labkit build --check
	$(CHECKED) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	rm -rf build/solutions build/runs
	$(BIN)/labkit build --solutions
	$(CHECKED) $(BIN)/python -m pytest $(NBVAL) build/solutions/en

# The early lessons on Colab's notebook stack and the floors of pyproject.toml, put before the packages of .venv; the
# setup cell on a simulated Colab; the one private switch of trl that the recipe turns; every explorer, those of the later
# lessons too, at every position of its controls.
OLDEST := build/oldest
EARLY = $(patsubst lessons/%.py,build/solutions/en/%.ipynb,$(wildcard lessons/0[0-3]_*.py))
EXPLORERS := $(patsubst %,tests/page/test_%.py,widgets sliders results dora_figures spectrum_figures)
OLD_PYTEST = $(CHECKED) PYTHONPATH=$(CURDIR) $(OLDEST)/bin/python -m pytest

oldest: setup
	$(BIN)/python scripts/colab_resolve.py
	$(BIN)/python scripts/oldest_env.py $(OLDEST)
	rm -rf build/solutions build/runs
	$(BIN)/labkit build --solutions --lang en
	$(OLD_PYTEST) tests/test_api_calls.py tests/test_colab_setup.py
	$(OLD_PYTEST) tests/training/test_recipe.py -k only_answers_enter_the_head
	$(OLD_PYTEST) $(EXPLORERS) -k "widget or plane or displays_one_output or browser_shows"
	$(OLD_PYTEST) $(NBVAL) $(EARLY)

# One that fails is named at the end and stops no other. One thread, as the stored figures: two programs that take turns
# and wait for each other's threads measure the waiting.
BENCHMARKS := imports nf4_speed snr_scan sliders dryrun sft_speed lessons

bench: setup
	@failed=; for name in $(BENCHMARKS); do \
		echo "== $$name"; OMP_NUM_THREADS=1 $(BIN)/python benchmarks/$$name.py || failed="$$failed $$name"; \
	done; test -z "$$failed" || { echo "bench: failed:$$failed"; exit 1; }
