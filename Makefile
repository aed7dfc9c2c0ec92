# Set up and run. Each target makes what it needs in .venv, pinned by constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH := $(VENV)/.bench
IMAGE ?= waveflow:local

.PHONY: help install demo test test-unit test-slow check lint audit format bench bench-scale bench-mix bench-jobs fuzz chaos soak lab lab-slow image lock clean

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

install: $(STAMP) ## set up .venv

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev]'
	touch $(STAMP)

$(BENCH): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[local,dev,bench]'
	touch $(BENCH)

demo: $(STAMP) ## a song through the whole service, on this machine
	$(BIN)/waveflow demo

test: $(STAMP) ## all tests
	$(BIN)/python -m pytest -n 2 tests/unit tests/functional
	$(BIN)/python -m pytest tests/acceptance

test-unit: $(STAMP) ## the tests that need no Ray and no sockets, in seconds
	$(BIN)/python -m pytest -n 2 tests/unit

test-slow: $(STAMP) ## tests that `make test` leaves out; one needs redis-server
	$(BIN)/python -m pytest -m 'slow and not lab'

check: lint audit test ## what CI runs: format, lint, types, known vulnerabilities, tests

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

audit: $(STAMP) ## known vulnerabilities of what is pinned, where their database can be reached
	$(BIN)/python -m tests.audit

format: $(STAMP) ## format and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(BENCH) ## everything beside its peers: tables, bench.json, bench.png
	$(BIN)/python -m benchmarks --json bench.json

bench-scale: $(STAMP) ## throughput of 2 to 64 simulated nodes
	$(BIN)/python -m benchmarks.scale

bench-mix: $(STAMP) ## mixes beside ffmpeg and sox, which have to be installed
	$(BIN)/python -m benchmarks.mix

bench-jobs: $(STAMP) ## CPU and latency of jobs beside a plain consumer
	$(BIN)/python -m benchmarks.jobs

soak: $(BENCH) ## 20 minutes of full load: what every process holds, as a table and soak.png
	$(BIN)/python -m benchmarks.soak

fuzz: $(STAMP) ## 500 damaged files of every format, and a table of what comes of them
	$(BIN)/python -m tests.fuzz

chaos: $(STAMP) ## thousands of jobs while everything is killed and every answer may fail; a table
	$(BIN)/python -m tests.chaos

lab: $(STAMP) ## `ray up` of the cluster file on hosts in namespaces of this machine; needs root
	$(BIN)/python -m pytest -m 'lab and not slow' tests/lab

lab-slow: $(STAMP) ## two of the heaviest jobs at once on a node of 4 GB, for 10 minutes; needs root
	$(BIN)/python -m pytest -m 'lab and slow' tests/lab

image: ## the container image, by docker, podman or buildah; ENGINE=, IMAGE=, BASE=, CPU=, EXTRAS= and SOURCE= change how
	@engine="$(ENGINE)"; test -n "$$engine" || for engine in docker podman buildah none; do \
		$$engine info > /dev/null 2>&1 && break; done; \
	if test "$$engine" = none; then echo "docker, podman or buildah is needed" >&2; exit 1; fi; \
	test "$$engine" = docker || format="--format docker"; \
	set -x; $$engine build $$format -t $(IMAGE) $(foreach name,BASE CPU EXTRAS SOURCE,\
		$(if $($(name)),--build-arg $(name)=$($(name)))) \
		--build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' waveflow_ray/__init__.py) .

lock: ## pin the newest versions anew
	$(PYTHON) -m venv $(VENV)-lock
	$(VENV)-lock/bin/python -m pip install --quiet -e '.[local,dev,bench]'
	$(VENV)-lock/bin/python -m pip freeze --exclude-editable > constraints.txt
	rm -rf $(VENV)-lock

clean: ## remove what was built, .venv too
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis demo-output
