# `make` explains the targets. Each that needs Python packages sets up .venv first, or finds it up to date (.ci/setup).
# All paths are relative, so that the folder may have spaces in its name.
.PHONY: help setup lock notebooks book test lint colab pdf dist links demo serve reproduce bench clean distclean

# Variables of the command line are words: they reach a program through its environment, as they were typed. Make never
# expands them, and no recipe writes one into the shell's text: "$$JOBS" is the shell's variable, and a word to it too.
override FROM_MAKE := $(strip $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
$(if $(findstring $$,$(FROM_MAKE)),$(error The name of a variable must not have a dollar sign: $(FROM_MAKE)))
$(foreach name,$(FROM_MAKE),$(eval override $(name) := $$(value $(name)))$(eval export $(name)))

override SHELL := /bin/sh
override BIN := .venv/bin
# The networks of pages and tests are so small that a second thread only gets in the way of the first.
override ONE_THREAD := OMP_NUM_THREADS=1 TQDM_DISABLE=1
PORT ?= 8000
# How many tests or notebooks run at a time. loadfile: all cells of a notebook in one process, in their order.
JOBS ?= 2
export FROM_MAKE PORT JOBS
override PYTEST := $(ONE_THREAD) $(BIN)/python -m pytest -n "$$JOBS" --dist loadfile

help: ## explain the targets (this list)
	@echo "make TARGET, where TARGET is one of"
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  %-10s %s\n", $$1, $$2 }' Makefile
	@echo "Variables: PYTHON=/path/to/python3 NEED_GB=12 (free disk space) and LOCK=no for the set-up, PORT=8000 for serve"

setup: ## make .venv, or bring it up to date (first time: 2 to 15 minutes, 6 GB)
	@sh .ci/setup

lock: ## pin what pyproject.toml asks for anew in .ci/requirements.txt; UPGRADE=yes: the newest of everything
	sh .ci/lock

notebooks: setup ## execute the pages that have changed, or whose library has; PAGES="book/x.md": these in any case
	$(ONE_THREAD) $(BIN)/python book/scripts/pair.py --jobs "$$JOBS" $$PAGES

# --all: a page left alone is not checked again, and its warning would be forgotten.
book: setup ## build the book into _build/html, with the outputs that the notebooks store
	$(ONE_THREAD) $(BIN)/jupyter-book build . --all -W -n --keep-going
	@echo "The book: $$PWD/_build/html/index.html (or: make serve)"

test: setup ## run every test, with coverage, then every notebook; JOBS=2 at a time
	@failed=0; \
	echo "== tests"; $(PYTEST) --cov --cov-report=term:skip-covered || failed=1; \
	echo "== notebooks"; $(PYTEST) book --nbval-lax --nbval-current-env -p no:cacheprovider || failed=1; \
	exit $$failed

lint: setup ## ruff, mypy, and import-linter (imports run downwards only)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

colab: setup ## run every notebook as Colab would: alone, in a fresh environment, by its first cell
	$(ONE_THREAD) $(BIN)/python book/scripts/try_colab.py --jobs "$$JOBS"

pdf: setup ## print the whole book into _build/csq-bit-by-bit.pdf
	$(ONE_THREAD) $(BIN)/python book/scripts/pdf.py

links: setup ## ask every link of the book that leads elsewhere whether it is alive
	$(ONE_THREAD) $(BIN)/jupyter-book build . --builder linkcheck

dist: pdf ## make what a release consists of, in dist: wheel, sdist, PDF, packed networks, SBOM, checksums
	sh .ci/dist

demo: setup ## train on digits to 2 bits and print the report (under a minute)
	$(BIN)/csq-mini train digits --target 2 --threads 1

serve: $(if $(wildcard _build/html/index.html),setup,book) ## serve the built book on localhost, port PORT; build it first if there is none
	@echo "The book: http://127.0.0.1:$$PORT/ (Ctrl-C ends)"
	@$(BIN)/python -m http.server "$$PORT" --bind 127.0.0.1 --directory _build/html || \
	{ echo "The server stopped. If port $$PORT is taken: make serve PORT=8001"; exit 1; }

# It takes all variables of the command line (FROM_MAKE names them), so that a misspelt one is refused.
reproduce: setup ## run the reproduction pages: PROFILE=smoke|cpu|held|full TARGETS="2 3" SEEDS="0 1" METHODS=csq PAGES=... START=...; WHAT=claims: the workflow of the claims
	if [ "$$WHAT" = claims ]; then $(BIN)/snakemake -s book/workflow/Snakefile --cores "$$JOBS" --keep-going; \
	else $(BIN)/python book/scripts/reproduce.py; fi

bench: setup ## measure step times, memory and digits accuracy; JSON goes to book/results
	$(BIN)/python book/scripts/bench.py

clean: ## remove the built book and all caches; keep .venv
	rm -rf _build build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -path ./.venv -prune -o '(' -name __pycache__ -o -name .ipynb_checkpoints ')' -prune -exec rm -rf {} +

distclean: clean ## clean, and remove .venv too
	rm -rf .venv *.egg-info
