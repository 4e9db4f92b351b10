# The targets are listed by `make help`. All but `gpu` install what they need into $(VENV) first.

VENV ?= .venv
PYTEST_ARGS ?=
# What the overhead benchmark of `make gpu` has; kernel tests and benchmarks come before it.
GPU_MINUTES ?= 5
ARGS ?=
# Processes that tests run in, each on one thread.
WORKERS ?= 2
# Another index for PyTorch alone, for example
# make demo TORCH_INDEX_URL=https://download.pytorch.org/whl/cpu
TORCH_INDEX_URL ?=

# The first interpreter that is new enough; python3 when none is, so that the check below names it.
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; \
	done; echo $$p)
endif

PIP := $(VENV)/bin/python -m pip --disable-pip-version-check --no-input
TORCH_STAMP := $(VENV)/.streamadapt-torch
DEMO_STAMP := $(VENV)/.streamadapt-demo
DEV_STAMP := $(VENV)/.streamadapt-dev
# Built when the package is installed, so that happens anew when they change.
KERNELS := setup.py streamadapt/ops/compiled/build.py $(wildcard streamadapt/ops/compiled/src/*)

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check lint bench lab gpu clean interpreter

help:
	@echo 'make demo    the demo: a camera in fog and at night, frozen beside adapted (under 60 s)'
	@echo 'make test    every test'
	@echo 'make check   format, lint, types and the fast tests'
	@echo 'make bench   the benchmarks; tables on stdout, JSON in benchmarks/results/'
	@echo 'make lab     every method on every stream, and the paper: hours (WORLDS=digits: less)'
	@echo 'make gpu     kernel tests and benchmarks on a GPU, with the PyTorch that PYTHON has'
	@echo 'make clean   removes caches and build outputs; $(VENV) stays'
	@echo
	@echo 'Variables: PYTHON (now $(PYTHON))   the interpreter, 3.11 or newer'
	@echo '           VENV=$(VENV)   where the virtual environment is made'
	@echo '           TORCH_INDEX_URL=URL   where PyTorch comes from, for example a CPU-only index'
	@echo '           ARGS, PYTEST_ARGS   passed to the demo and to the overhead benchmark, to pytest'
	@echo '           WORKERS=$(WORKERS)   processes that the tests run in'
	@echo '           GPU_MINUTES=$(GPU_MINUTES)   what the overhead benchmark of make gpu may take'

demo: $(DEMO_STAMP)
	$(VENV)/bin/streamadapt demo $(ARGS)

test: $(DEV_STAMP)
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) $(PYTEST_ARGS)

check: lint
	$(VENV)/bin/python -m pytest -q -n $(WORKERS) -m 'not slow and not realdata' $(PYTEST_ARGS)

lint: $(DEV_STAMP)
	$(VENV)/bin/python -m ruff format --check
	$(VENV)/bin/python -m ruff check
	$(VENV)/bin/python -m mypy

bench: $(DEV_STAMP)
	$(VENV)/bin/python -m benchmarks.demo
	$(VENV)/bin/python -m benchmarks.continual
	$(VENV)/bin/python -m benchmarks.journal
	$(VENV)/bin/python -m benchmarks.overhead
	$(VENV)/bin/python -m benchmarks.overhead --malloc default --memory no --variants 'adapted;adapted, without kernels'
	$(VENV)/bin/python -m benchmarks.duty
	$(VENV)/bin/python -m benchmarks.kernels.cpu
	$(VENV)/bin/python -m benchmarks.soak
	$(VENV)/bin/python -m benchmarks.adaptation.depth
	$(VENV)/bin/python -m benchmarks.adaptation.severities
	$(VENV)/bin/python -m benchmarks.adaptation.continual cifar10-resnet20 digits
	$(VENV)/bin/python -m benchmarks.adaptation.backends
	$(VENV)/bin/python -m benchmarks.adaptation.rates
	$(VENV)/bin/python -m benchmarks.adaptation.profiles
	$(VENV)/bin/python -m benchmarks.adaptation.ablation
	$(VENV)/bin/python -m benchmarks.adaptation.answers
	$(VENV)/bin/python -m benchmarks.adaptation.imagenet
	$(VENV)/bin/python -m benchmarks.adaptation.cost
	$(VENV)/bin/python -m benchmarks.robustness.influence
	$(VENV)/bin/python -m benchmarks.detection.run_times
	$(VENV)/bin/python -m benchmarks.detection.video
	$(VENV)/bin/python -m benchmarks.guard.gain
	$(VENV)/bin/python -m benchmarks.guard.streams
	$(VENV)/bin/python -m benchmarks.guard.domains
	$(VENV)/bin/python -m benchmarks.guard.injected
	$(VENV)/bin/python -m benchmarks.guard.camera_days
	$(VENV)/bin/python -m benchmarks.guard.cost
	$(VENV)/bin/python -m benchmarks.publish

# Hours: every method on every stream, and the experiments of the AdaBN paper. Only the digits come
# with the project: make lab WORLDS=digits where STREAMADAPT_DATA has no more.
WORLDS = digits cifar10-resnet20 cifar10-resnet56 imagenet-mobilenetv2
lab: $(DEV_STAMP)
	$(VENV)/bin/python -m benchmarks.lab.tune $(WORLDS)
	$(VENV)/bin/python -m benchmarks.lab.run $(WORLDS)
	$(VENV)/bin/python -m benchmarks.lab.costs $(WORLDS)
	$(VENV)/bin/python -m benchmarks.lab.collapse $(filter digits cifar10-resnet20,$(WORLDS))
	for name in systems several how_many_images which_layers hypothesis whitening natural_pair; do \
		$(VENV)/bin/python -m benchmarks.paper.$$name || exit 1; \
	done
	$(VENV)/bin/python -m benchmarks.publish

# Every part runs, whatever became of those before it; the exit status is 1 if any failed.
gpu:
	@$(PYTHON) -c 'import torch' 2>/dev/null || { \
		echo 'make gpu: $(PYTHON) has no PyTorch. Choose an interpreter that has: make gpu PYTHON=...' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' || { \
		echo 'make gpu: the PyTorch of $(PYTHON) sees no CUDA device (torch.cuda.is_available() is False).' >&2; \
		exit 1; }
	@export PYTHONPATH=. PYTHONUNBUFFERED=1; failed=; \
	part() { echo "== $$*"; "$$@" || failed="$$failed\nmake gpu: failed: $$*"; }; \
	if $(PYTHON) -c 'import pytest' 2>/dev/null; then \
		part $(PYTHON) -m pytest tests/kernels -q $(PYTEST_ARGS); \
	else \
		failed="\nmake gpu: $(PYTHON) has no pytest, so that the kernel tests did not run. Install it (pip install pytest), or take another PYTHON."; \
	fi; \
	for name in $(basename $(notdir $(wildcard benchmarks/kernels/*gpu.py))); do \
		part $(PYTHON) -m benchmarks.kernels.$$name; \
	done; \
	part $(PYTHON) -m benchmarks.overhead --device cuda --minutes $(GPU_MINUTES) $(ARGS); \
	[ -z "$$failed" ] || { printf "%b\n" "$$failed" >&2; exit 1; }

# For scripts: the interpreter that the other targets would use.
interpreter:
	@echo '$(PYTHON)'

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	rm -f streamadapt-demo.html streamadapt-demo.json
	find benchmarks examples streamadapt tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# PyTorch comes in a step of its own, since it may come from an index of its own. Such an index has
# few versions of other packages: PyTorch's dependencies then come with the package, in the next step.
$(TORCH_STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo 'streamadapt needs Python 3.11 or newer; $(PYTHON) is older or missing. Install one (Debian: apt-get install python3.11-venv) or choose one: make PYTHON=...' >&2; \
		exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		v=$$($(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])'); \
		echo "$(PYTHON) cannot make virtual environments: ensurepip or venv is missing. Install it (Debian: apt-get install python$$v-venv) or choose another: make PYTHON=..." >&2; \
		exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q -c constraints.txt $(if $(TORCH_INDEX_URL),--no-deps --index-url $(TORCH_INDEX_URL)) torch
	@touch $@

$(DEMO_STAMP): $(TORCH_STAMP) $(KERNELS)
	$(PIP) install -q -c constraints.txt -e '.[replay]'
	@touch $@

$(DEV_STAMP): $(TORCH_STAMP) $(KERNELS)
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@
