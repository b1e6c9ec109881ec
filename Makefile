# make demo       build what is needed and watch a Transformer learn through Neural Engine programs
# make test       the same build, then the tests (minutes)
# make test-elsewhere  kernels, bridge and a recorded step built for other machines: run for arm64 under qemu, compiled for macOS; and with sanitizers
# make test-long  the whole evidence (about an hour); results land in evidence/
#
# Everything lives in .venv. Point pip elsewhere with PIP_ARGS, e.g. make demo PIP_ARGS="--index-url ...".

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check install --quiet $(PIP_ARGS)
SOURCES := pyproject.toml CMakeLists.txt $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: build demo test test-elsewhere test-long preflight clean

build: $(VENV)/.built

demo: build
	$(VENV)/bin/torchane train $(ARGS)

test: $(VENV)/.built-for-tests
	$(VENV)/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

test-elsewhere: $(VENV)/.built-for-tests
	TORCHANE_CHECK_OPTIMIZE=-O0 $(VENV)/bin/python -m pytest -m long -k "arm64 or macos or sanitizers" tests/native/test_other_machines.py --durations=5

test-long: $(VENV)/.built-for-tests
	$(VENV)/bin/python scripts/evidence.py

preflight:
	@sh scripts/preflight.sh "$(PYTHON)"

$(VENV)/bin/python:
	@sh scripts/preflight.sh "$(PYTHON)"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.built: $(VENV)/bin/python $(SOURCES)
	@echo "Installing torch, the other dependencies and the compiled extension into $(VENV) ..."
	@$(PIP) torch==2.13.0 numpy
	@$(VENV)/bin/python scripts/torch_build.py
	@$(PIP) scikit-build-core nanobind cmake ninja
	@$(PIP) --no-build-isolation -e .
	@touch $@

$(VENV)/.built-for-tests: $(VENV)/.built
	@$(PIP) --no-build-isolation -e '.[test]'
	@touch $@

clean:
	rm -rf build $(VENV)
