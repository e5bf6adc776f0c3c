# One command each. Nothing is needed before but Python 3.11 or newer with its headers, and a C
# compiler: each command makes the virtual environment it needs, and makes it once.

PYTHON ?= python3
VENV ?= .venv
DEMO_VENV ?= .venv-demo

PIP := -m pip --disable-pip-version-check install --quiet
CORE := pyproject.toml setup.py $(wildcard shmbatch/protocol/*.[ch])
SOURCES := $(CORE) $(shell find shmbatch -name '*.py')

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-slow lint format docs bench bench-quick bench-gpu soak test-soak clean

help:
	@echo 'make demo         classify handwritten digits from several processes, in batches'
	@echo 'make test         run the tests'
	@echo 'make test-slow    run the tests that take longest, one claim each'
	@echo 'make lint         check style and types'
	@echo 'make format       mend style'
	@echo 'make docs         build the documentation into build/docs'
	@echo 'make bench        measure, write benchmarks/results, and what documents say of them'
	@echo 'make bench-quick  run every benchmark for a moment; the figures mean nothing'
	@echo 'make bench-gpu    measure on a GPU and write benchmarks/results/gpu.json'
	@echo 'make soak         kill, stop and replace everything for half an hour, and check the books'
	@echo 'make test-soak    run the tests that take hours in all'
	@echo 'make clean        remove what the others made'

demo: $(DEMO_VENV)/installed
	$(DEMO_VENV)/bin/shmbatch run docs/examples/digits.py

test: $(VENV)/installed
	$(VENV)/bin/python -m pytest --numprocesses 2 --dist loadfile $(ARGUMENTS)

test-slow: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m 'slow and not soak' --numprocesses 2 --dist loadfile $(ARGUMENTS)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(VENV)/installed
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

docs: $(VENV)/installed
	$(VENV)/bin/python -m sphinx -q -W --keep-going -b html docs build/docs
	@echo 'build/docs/index.html'

bench: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.bench_roundtrip
	$(VENV)/bin/python -m benchmarks.bench_throughput
	$(VENV)/bin/python -m benchmarks.bench_lockstep
	-$(VENV)/bin/python -m benchmarks.rivals.environments
	$(VENV)/bin/python -m benchmarks.bench_rivals
	$(VENV)/bin/python -m benchmarks.bench_death
	$(VENV)/bin/python -m benchmarks.bench_restart
	$(VENV)/bin/python -m benchmarks.bench_overload
	$(VENV)/bin/python -m benchmarks.bench_import
	$(VENV)/bin/python -m benchmarks.bench_instructions
	$(VENV)/bin/python -m benchmarks.bench_waiting
	$(VENV)/bin/python -m benchmarks.bench_pipeline
	$(VENV)/bin/python -m benchmarks.bench_scale
	$(VENV)/bin/python -m benchmarks.plots
	$(VENV)/bin/python -m benchmarks.documents

bench-quick: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.bench_roundtrip --quick
	$(VENV)/bin/python -m benchmarks.bench_throughput --quick
	$(VENV)/bin/python -m benchmarks.bench_lockstep --quick
	$(VENV)/bin/python -m benchmarks.bench_rivals --quick
	$(VENV)/bin/python -m benchmarks.bench_death --quick
	$(VENV)/bin/python -m benchmarks.bench_restart --quick
	$(VENV)/bin/python -m benchmarks.bench_overload --quick
	$(VENV)/bin/python -m benchmarks.bench_import --quick
	$(VENV)/bin/python -m benchmarks.bench_instructions --quick
	$(VENV)/bin/python -m benchmarks.bench_waiting --quick
	$(VENV)/bin/python -m benchmarks.bench_pipeline --quick
	$(VENV)/bin/python -m benchmarks.bench_scale --quick
	$(VENV)/bin/python -m benchmarks.gpu.run_all --rehearse

bench-gpu: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.gpu.run_all

soak: $(VENV)/installed
	$(VENV)/bin/python -m benchmarks.soak $(ARGUMENTS)

test-soak: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m soak -o timeout=3600 $(ARGUMENTS)

clean:
	rm -rf $(VENV) $(DEMO_VENV) build dist *.egg-info shmbatch/protocol/*.so
	rm -rf .hypothesis .mypy_cache .pytest_cache .ruff_cache .benchmarks
	rm -rf benchmarks/rivals/.environments
	find shmbatch tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +

# Editable, so that Python files need no new installation; the core does.
$(VENV)/installed: $(CORE) | $(VENV)/bin/python
	@echo 'installing what tests and benchmarks need into $(VENV)'
	@$(VENV)/bin/python $(PIP) --editable '.[dev]'
	@touch $@

# As a user installs it. torch is the one that the tests use.
$(DEMO_VENV)/installed: $(SOURCES) | $(DEMO_VENV)/bin/python
	@echo 'installing shmbatch and what the demonstration needs into $(DEMO_VENV)'
	@$(DEMO_VENV)/bin/python $(PIP) '.[torch]' \
	    "$$(sed -n 's/.*"\(torch==[^"]*\)".*/\1/p' pyproject.toml)" scikit-learn
	@touch $@

%/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	    "shmbatch needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	    "; choose another with make PYTHON=...")'
	@$(PYTHON) -m venv $*
