# Needs python3 (3.11 to 3.13) and make. All packages go into .venv, pinned and hashed by requirements.lock.
PYTHON ?= python3
PORT ?= 5000
RUNS ?= runs
SERVICES ?= runs/services
# Each test process takes whole files, since slow fixtures start once per file. tests/conftest.py puts the slow ones first.
PARALLEL ?= --numprocesses 2 --dist loadfile --no-loadscope-reorder

BIN := .venv/bin
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
READY := .venv/.installed
# Every Ray process imports torch, so the set-up compiles bytecode even if the environment forbids it.
INSTALL := env -u PYTHONDONTWRITEBYTECODE -u VIRTUAL_ENV
# Tests start some hundred commands; each would compile the whole project.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help demo test test-faults test-cluster test-gpu check audit lock services services-stop ui bench

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

demo: $(READY) ## train the embedded demo on real images and register the model
	$(BIN)/python pipelines/train.py

test: $(READY) ## run the tests, except those of faults and clusters
	$(PYTEST) -m "not faults and not cluster" $(PARALLEL)

test-faults: $(READY) ## run the tests of faults and other slow tests: kills, studies, services, a simulated cloud
	$(PYTEST) -m faults $(PARALLEL)

test-cluster: $(READY) ## run the tests of ray up and all services on hosts simulated by Linux namespaces: 20 minutes; needs root on Linux, openssh-server, rsync, iproute2, prometheus, postgresql
	$(PYTEST) -m cluster

test-gpu: ## run the GPU tests and measure the GPU's speed, without Ray: 8 minutes at most (GPU_PYTHON=… for a Python with torch, torchvision, Pillow and pytest)
	timeout 240 $(GPU_PYTHON) -m pytest -o addopts= -p no:cacheprovider -m gpu -ra tests/gpu
	timeout 240 $(GPU_PYTHON) -m benchmarks.gpu --profile

check: $(READY) ## check lint, formatting, types and import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit --quiet --recursive --configfile pyproject.toml pipelines infra resnet_core

audit: $(READY) ## check every locked dependency for known vulnerabilities: needs the network
	$(BIN)/pip-audit --strict --require-hashes --disable-pip --requirement requirements.lock

# One resolution: the runtime lock, for nodes and container images, takes its versions from the lock of all tools.
lock: $(READY) ## update both locks from the dependencies of pyproject.toml: needs the network
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--group dev pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--constraint requirements.lock pyproject.toml -o requirements-runtime.lock

services: $(READY) ## start S3, MLflow and Prometheus for development, on loopback (SERVICES=… for another folder)
	$(BIN)/python -m infra.services start --folder "$(SERVICES)"

services-stop: $(READY) ## stop the services; their state stays in the folder
	$(BIN)/python -m infra.services stop --folder "$(SERVICES)"

ui: $(READY) ## show the runs in runs/ (RUNS=… for another folder) at http://127.0.0.1:5000 (PORT=… for another port)
	@test -f "$(RUNS)/mlflow.db" || { echo "error: no $(RUNS)/mlflow.db yet: run make demo first" >&2; exit 2; }
	@echo "open http://127.0.0.1:$(PORT)/#/experiments?workflowType=machine_learning"
	env MLFLOW_DISABLE_TELEMETRY=true MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
		$(BIN)/mlflow server --host 127.0.0.1 --port $(PORT) --workers 1 --backend-store-uri "sqlite:///$$(cd "$(RUNS)" && pwd)/mlflow.db"

bench: $(READY) ## compare the whole pipeline with a plain PyTorch loop
	$(BIN)/python benchmarks/overhead.py

$(READY): requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { \
		echo "error: $(PYTHON) is not Python 3.11 to 3.13: name one that is, as in make PYTHON=python3.12" >&2; exit 2; }
	@echo "setting up .venv from requirements.lock: a few gigabytes, once"
	@test -x $(BIN)/pip || $(PYTHON) -m venv .venv || { \
		echo "error: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 2; }
	@sed -n '/^uv==/,/[^\\]$$/p' requirements.lock > .venv/uv.txt
	$(INSTALL) $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r .venv/uv.txt
	$(INSTALL) $(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes requirements.lock
	@touch $@
