# `make course` runs the whole course, `make test` its tests. Every target sets itself up in .venv first; a second call installs nothing.
.PHONY: help course lab site notebooks test check bench race interop rehearse pocketbench pocket clean
.DEFAULT_GOAL := help

VENV := .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --no-input
READY := $(VENV)/.ready
# The tested Python first; `make course PYTHON=/path/to/python3` names another.
PYTHONS := $(or $(PYTHON),python3.11 python3.12 python3.13 python3)
CPU_TORCH := https://download.pytorch.org/whl/cpu

# Settings reach the course through the shell's environment, so that spaces and quotes in a folder's name survive.
export SUBJECT CLASS_NOUN IDENTIFIER BASE STEPS SEED OUTPUT
COURSE_OPTIONS = $${SUBJECT:+--subject "$$SUBJECT"} $${CLASS_NOUN:+--class-noun "$$CLASS_NOUN"} \
  $${IDENTIFIER:+--identifier "$$IDENTIFIER"} $${BASE:+--base "$$BASE"} $${STEPS:+--steps "$$STEPS"} \
  $${SEED:+--seed "$$SEED"} $${OUTPUT:+--output "$$OUTPUT"}

help:     ## this list
	@grep -E '^[a-z]+:.*## ' Makefile | sed -E 's/^([a-z]+):.*## /make \1	/'
	@echo "make course SUBJECT=path/to/photos CLASS_NOUN=toy [IDENTIFIER=zwx] [BASE=pocket] [STEPS=n] [SEED=n] [OUTPUT=runs/course]"

course: $(READY) ## run notebooks 01 to 06 and write runs/course/report.html
	@$(RUN) -m lib course $(COURSE_OPTIONS)

# From the project's folder data/ and runs/ can be seen; an upload of photos is one message, of which
# Jupyter's server takes 10 MiB by default, and drops the connection at more.
LAB_OPTIONS := --ServerApp.root_dir=. --LabApp.default_url=/lab/tree/notebooks \
	--ServerApp.tornado_settings="{'websocket_max_message_size': 500000000}"

lab: $(READY) ## open the notebooks in JupyterLab
	@$(RUN) -m jupyterlab $(LAB_OPTIONS) $(ARGS)

site: $(READY) ## build the course's pages into build/site, from the last course run; OUTPUT=runs/toy names another
	@$(RUN) -c "import furo, myst_nb, sphinx" 2>/dev/null || \
	  $(PIP) install --quiet --editable ".[site]" --no-build-isolation --constraint constraints.txt
	@$(RUN) -m benchmarks.course_site $${OUTPUT:+"$$OUTPUT"}

notebooks: $(READY) ## write the set-up cell, which all notebooks share, into each of them
	@$(RUN) -c "from lib.course.set_up_cell import write_set_up_cell; write_set_up_cell()"

test: $(READY) ## run the tests, two at a time; ARGS='-k name' picks some, one at a time
	@OMP_NUM_THREADS=1 $(RUN) -m pytest $(or $(ARGS),--numprocesses 2)

check: $(READY) ## format, lint, order of imports, types, links, quick tests: before each commit
	@$(RUN) -m ruff format --check --quiet .
	@$(RUN) -m ruff check --quiet .
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/pyright --pythonpath $(RUN)
	@OMP_NUM_THREADS=1 $(RUN) -m pytest --quiet -m "not slow" tests/test_docs.py tests/test_house.py tests/test_project.py tests/config tests/files tests/plots

bench: $(READY) ## measure speed and memory, and write them into docs/results.md
	@$(RUN) -m benchmarks $(ARGS)

race: $(READY) ## race diffusers' own scripts and write the table into docs/results.md: make race SCRIPTS=path/to/examples/dreambooth
	@$(RUN) -m benchmarks.race --scripts "$(SCRIPTS)" $(ARGS)

interop: $(READY) ## run the tools themselves on our files: make interop ARGS='--sd-scripts path/to/sd-scripts'
	@$(RUN) -m benchmarks.interop $(ARGS)
	@$(RUN) -m benchmarks.pages

rehearse: $(READY) ## run the Colab notebook alone in an empty folder, on a Python with torch, numpy and ipykernel
	@$(RUN) -m benchmarks.colab_rehearsal $(ARGS)

pocketbench: $(READY) ## run PocketBench, hours on a CPU, and write data/results and docs/results.md; goes on where it stopped
	@$(RUN) -m benchmarks.pocketbench $(ARGS)
	@$(RUN) -m benchmarks.analysis

pocket: $(READY) ## train the pocket base again from nothing (hours on a CPU; resumes where it stopped)
	@$(RUN) -m pocket $(ARGS)

clean:    ## remove what the set-up and the tools made; runs/ stays
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Without an NVIDIA card PyTorch's own CPU build saves a download of some gigabytes; where it can't be had, PyPI's build does the same work.
$(READY): requirements.txt constraints.txt pyproject.toml
	@rm -f $(READY)
	@found=; for python in $(PYTHONS); do \
	  if $$python -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "No Python 3.11, 3.12 or 3.13 with the venv module was found: install one (on Debian and Ubuntu: apt install python3 python3-venv) or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$found --version): once, a few minutes"; $$found -m venv $(VENV)
	@torch="$$(grep '^torch==' constraints.txt)"; \
	if [ "$$(uname)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
	  $(PIP) install --quiet --no-deps "$$torch+cpu" 2>/dev/null || \
	  $(PIP) install --no-deps --retries 1 --extra-index-url $(CPU_TORCH) "$$torch+cpu" || \
	  echo "PyTorch's CPU build can't be had from here: taking the default build instead"; \
	fi
	@$(PIP) install --requirement requirements.txt setuptools --constraint constraints.txt
	@$(PIP) install --quiet --editable . --no-deps --no-build-isolation
	@$(RUN) -m ipykernel install --sys-prefix >/dev/null
	@touch $(READY)
