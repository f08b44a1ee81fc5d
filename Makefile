# Builds the environment and calls `gma`, pytest and the linters. PYTHON=python uses an environment that is already there.
SHELL := /bin/bash
.SHELLFLAGS := -euf -o pipefail -c
PROFILE ?= demo
BS ?= 1 4
BACKEND ?= $(if $(filter ascend-dry-run,$(MAKECMDGOALS)),ascend)# empty: as params/ say
PRECISION ?= $(if $(filter ascend,$(BACKEND)),float16)# a card computes in float16, as in the guide
BASE_PYTHON ?= python3
PYTHON ?= .venv/bin/python
TORCH ?= torch==2.13.0
AUDIT ?= uvx pip-audit==2.10.1
# Without an NVIDIA GPU PyTorch's CPU wheels are tried first: the plain ones bring several GB of CUDA on Linux.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
# Recipes get these from the environment as they were typed: neither make nor the shell reads anything into them.
GIVEN := PROFILE BS BACKEND PRECISION RUN SINTEL CHECKPOINT UPDATES CLUSTER SOC KEEP DEVICE AIS_PYTHON PARAMS
$(foreach v,$(GIVEN),$(if $(filter command environment,$(firstword $(origin $v))),$(eval override $v := $$(value $v))))
export $(GIVEN)
option = $${$2:+--$1="$$$2"}
SIZES = $$(printf -- '--batch-size=%s ' $${BS:-none})
OPTIONS = $(foreach name,backend precision run sintel checkpoint updates cluster,$(call option,$(name),$(shell echo $(name) | tr a-z A-Z)))
SETTINGS = $(foreach name,soc keep device ais_python,$(call option,set=$(name),$(shell echo $(name) | tr a-z A-Z))) $${PARAMS:+$$(printf -- '--set=%s ' $$PARAMS)}
GMA = $(PYTHON) -m gma_lib.cli
ENV := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/.ready)
PIP := .venv/bin/python -m pip install $(if $(MAKE_TERMOUT),,--quiet) --disable-pip-version-check# a progress bar, on a terminal
# A checkout that has moved gets a new environment: the old one's scripts name the folder they were installed in.
MOVED := $(subst <$(CURDIR)>,,<$(file <.venv/.ready)>)
.PHONY: help reproduce 01_data 02_export 03_convert 04_infer 05_evaluate 06_perf 07_inside report share verify train bench numbers test-fast test test-all ascend-dry-run torture audit lint docs lab doctor lock clean distclean $(if $(MOVED),.venv/.ready)

help: ## show this help
	@awk -F':.*## ' '/^[a-z0-9_ -]+:.*## /{printf "  make %-14s %s\n",$$1,$$2}' $(MAKEFILE_LIST)
	@echo "  variables: $(foreach v,$(GIVEN) FORCE PYTHON BASE_PYTHON TORCH TORCH_INDEX,$v=$($v))"
reproduce: $(ENV) ## run every notebook for every batch size in BS and write the report
	@$(GMA) reproduce --profile="$$PROFILE" $(SIZES) $(OPTIONS) $(SETTINGS) $(if $(FORCE),--force)
01_data 02_export 03_convert 04_infer 05_evaluate 06_perf 07_inside: $(ENV) ## run one stage and the stages it depends on
	@$(GMA) reproduce --profile="$$PROFILE" $(SIZES) $(OPTIONS) $(SETTINGS) $(if $(FORCE),--force) --until $@
report share: $(ENV) ## write the index page from existing results; share: pack the report into one zip file
	@$(GMA) report --profile="$$PROFILE" $(if $(filter share,$@),--archive)
verify: $(ENV) ## recompute the demo and compare every number with the expected one (docs/reproducibility.md)
	@$(GMA) verify
train: $(ENV) ## train weights on procedural scenes (hours, resumed)
	$(GMA) train --config params/train.yaml --out outputs/training $(if $(wildcard outputs/training/checkpoint.pt),--resume)
bench numbers: $(ENV) ## bench: compare variants of the network (an hour or two); numbers: measure every table of README and docs again (hours, resumed)
	$(PYTHON) benchmarks/pages.py $(if $(filter bench,$@),cpu updates-12 updates-32 precision) $(call option,sintel,SINTEL) $(if $(BUSY),--busy)
test-fast test test-all: $(ENV) ## run the tests: only the fast ones; all but the exhaustive ones; all
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m "$(if $(filter test-fast,$@),not slow and not exhaustive)$(if $(filter test,$@),not exhaustive)"
ascend-dry-run: 02_export ## write everything that a machine with CANN needs (SOC=310P3) to a folder; gma ascend collect scores its results
	@$(GMA) ascend dry-run --profile="$$PROFILE" $(SIZES) --precision="$$PRECISION" $(call option,run,RUN) $(call option,soc,SOC) $(call option,keep,KEEP)
torture: $(ENV) ## try to break it (hours, resumed): damaged files (PART=readers), killed stages (kills), changed bytes (faults), other settings (settings), random graphs (graphs), wrong computations (computations)
	$(PYTHON) tests/torture/$(or $(PART),readers).py
audit: ## look up known vulnerabilities of PyTorch and the packages in requirements.lock (needs uv and a network)
	@command -v $(firstword $(AUDIT)) >/dev/null || { echo "audit: there is no $(firstword $(AUDIT)): install uv, or give AUDIT=pip-audit" >&2; exit 1; }
	@errors="$$(mktemp)"; trap 'rm -f "$$errors"' EXIT; \
	if found="$$($(AUDIT) --strict --progress-spinner off --disable-pip --no-deps --requirement requirements.lock --requirement <(echo "$(TORCH)") 2>"$$errors")"; then \
	  echo "audit: no known vulnerabilities in $(TORCH) and the $(shell grep -c == requirements.lock) packages of requirements.lock"; \
	elif [ -n "$$found" ]; then echo "$$found"; exit 1; \
	else echo "audit: nothing is known, as the look-up failed ($$(grep . "$$errors" | tail -n 1)): try again with another network" >&2; exit 1; fi
lint: $(ENV) ## check style, types, the order of packages, and that notebooks hold no outputs
	$(PYTHON) -m ruff check . && $(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache --no-logo
	$(PYTHON) -m nbstripout --verify $(wildcard notebooks/*.ipynb)
docs: $(ENV) ## write the documentation site to docs/_build/html
	$(PYTHON) -m sphinx -W --keep-going -q docs docs/_build/html
lab: $(ENV) ## open copies of the notebooks (outputs/lab/notebooks) in JupyterLab
	@mkdir -p outputs/lab/notebooks outputs/lab/.notebooks
	@for one in $(wildcard notebooks/*.ipynb); do copy="outputs/lab/$$one"; kept="outputs/lab/.$$one"; if [ ! -e "$$copy" ] || ! { cmp -s "$$one" "$$kept" || cmp -s "$$one" "$$copy"; }; then \
	  [ ! -e "$$copy" ] || mv "$$copy" "$${copy%.ipynb} of $$(date +%F-%H%M%S).ipynb"; cp "$$one" "$$copy"; fi; cp "$$one" "$$kept"; done
	JUPYTER_CONFIG_PATH="$$PWD/notebooks" $(PYTHON) -m jupyterlab --notebook-dir=outputs/lab/notebooks --LabApp.default_url=/lab/tree/00_quickstart.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)
doctor: $(ENV) ## install, and check this machine
	@$(GMA) doctor $(call option,ais-python,AIS_PYTHON)
lock: ## regenerate requirements.lock from pyproject.toml (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url --no-emit-package torch --extra dev pyproject.toml -o requirements.lock
clean: ## delete this profile's results
	rm -rf "outputs/$${PROFILE:?name a profile}" "outputs/$$PROFILE.zip"
distclean: ## delete all results and the environment
	rm -rf outputs .venv
.venv/.ready: requirements.lock pyproject.toml
	@$(BASE_PYTHON) gma_lib/doctor/installation.py '$(TORCH_INDEX)'
	@$(if $(MOVED),rm -rf .venv;) $(BASE_PYTHON) -m venv .venv && echo "Building .venv, once. 1 of 3: PyTorch $(if $(TORCH_INDEX),from $(TORCH_INDEX) (CPU build: 200 MB),with CUDA (on Linux: 3 GB))"
	@$(if $(TORCH_INDEX),$(PIP) --timeout 10 --retries 0 $(TORCH) --index-url $(TORCH_INDEX) 2>.venv/errors || \
	  { echo "        not from there ($$(grep . .venv/errors | tail -n 1)); from the default index instead (on Linux with CUDA: 3 GB)"; \
	    $(BASE_PYTHON) gma_lib/doctor/installation.py '' && $(PIP) $(TORCH); },$(PIP) $(TORCH))
	@echo "2 of 3: the $(shell grep -c == requirements.lock) packages of requirements.lock (400 MB)"
	@$(PIP) --no-deps --require-hashes --requirement requirements.lock
	@echo "3 of 3: this package" && $(PIP) --no-deps --editable . && printf %s "$$PWD" > $@
