SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.SUFFIXES:
.DEFAULT_GOAL := help

# What to run. PYTHON=python uses an environment that is already there instead of building .venv.
PROFILE   ?= demo
BS        ?= 1 4
ifndef BACKEND
BACKEND := $(if $(filter ascend-dry-run,$(MAKECMDGOALS)),ascend,openvino)
endif
# An Ascend card computes in float16 unless told otherwise, as in the guide.
ifndef PRECISION
PRECISION := $(if $(filter ascend,$(BACKEND)),float16,float32)
endif
PYTHON    ?= .venv/bin/python
BASE_PYTHON ?= python3
# Where PyTorch comes from. Without an NVIDIA GPU its CPU wheels are tried first: the plain ones bring several GB of CUDA on Linux.
TORCH_INDEX ?= $(if $(shell command -v nvidia-smi),,https://download.pytorch.org/whl/cpu)
PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check
# For BACKEND=ascend: the chip where none can be asked (SOC=310P3), what stays float32 (KEEP=coordinates), the card's logic ID (DEVICE),
# the interpreter that has ais_bench (AIS_PYTHON).

ENV := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/.ready)

define newline


endef
ifneq ($(findstring :,$(CURDIR))$(findstring $(newline),$(CURDIR)),)
$(error rename this folder: search paths break at a colon or a newline in its name)
endif

# What was given, in quotes: $ and quotes of a folder's name are its own. A newline would end the command.
quote = '$(if $(findstring $(newline),$(1)),$(error a value holds a newline))$(subst ','\'',$(1))'
# $(call option,NAME,VARIABLE): the option with the variable's value as it was typed, if it has one
option = $(if $(value $(2)),$(1)$(call quote,$(value $(2))))
RUN_OPTIONS = $(call option,--backend=,BACKEND) $(call option,--precision=,PRECISION) $(call option,--run=,RUN) \
              $(call option,--sintel=,SINTEL) $(call option,--checkpoint=,CHECKPOINT) $(call option,--updates=,UPDATES) \
              $(call option,--set=soc=,SOC) $(call option,--set=keep=,KEEP) $(call option,--set=device=,DEVICE) \
              $(call option,--set=ais_python=,AIS_PYTHON) $(foreach setting,$(value PARAMS),--set=$(call quote,$(setting)))
SIZES = $(foreach size,$(or $(value BS),none),--batch-size=$(call quote,$(size)))
GMA = $(PYTHON) -m gma_lib.cli reproduce $(call option,--profile=,PROFILE) $(SIZES) $(RUN_OPTIONS) $(if $(FORCE),--force)
STAGES := 01_data 02_export 03_convert 04_infer 05_evaluate 06_perf 07_inside

.PHONY: help reproduce report share $(STAGES) verify train bench bench-gpu test ascend-dry-run torture lint docs lab doctor lock clean distclean

help: ## show this help
	@awk -F':.*## ' '/^[a-z0-9_%-]+:.*## /{printf "  make %-12s %s\n",$$1,$$2}' $(MAKEFILE_LIST)
	@echo "  variables: PROFILE=$(PROFILE) BS=\"$(BS)\" BACKEND=$(BACKEND) PRECISION=$(PRECISION) RUN=$(RUN) SINTEL= CHECKPOINT= UPDATES= PARAMS=\"name=value ...\" FORCE=1 PYTHON=$(PYTHON) TORCH_INDEX="

reproduce: $(ENV) ## run every notebook for every batch size in BS and write the report
	@$(GMA)

report: $(ENV) ## write the index page from what is there
	@$(PYTHON) -m gma_lib.report.index $(call option,--profile=,PROFILE)

share: $(ENV) ## write the report as one zip file to send
	@$(PYTHON) -m gma_lib.report.index $(call option,--profile=,PROFILE) --archive

01_data: ## list and check the frames; render the demo set
02_export: ## weights to ONNX
03_convert: ## ONNX to what the backend loads
04_infer: ## flow of every pair
05_evaluate: ## accuracy
06_perf: ## time and memory
07_inside: ## attention, updates and aggregation of one pair
$(STAGES): $(ENV)
	@$(GMA) --until $@

verify: $(ENV) ## compute the demo anew and compare every number with the expected ones (docs/reproducibility.md)
	$(PYTHON) -m gma_lib.cli verify

train: $(ENV) ## train weights on scenes that the package draws (hours); goes on where it stopped
	$(PYTHON) -m gma_lib.cli train --config params/train.yaml --out outputs/training $(if $(wildcard outputs/training/checkpoint.pt),--resume)

bench: $(ENV) ## compare variants of the network on this machine, against the guide's graph, and what reduced precision costs (an hour)
	$(PYTHON) -m gma_lib.cli compare --config benchmarks/cpu.yaml --out benchmarks/results/cpu.json
	$(PYTHON) -m gma_lib.cli compare --config benchmarks/updates-12.yaml --out benchmarks/results/updates-12.json
	$(PYTHON) -m gma_lib.cli compare --config benchmarks/updates-32.yaml --out benchmarks/results/updates-32.json
	$(PYTHON) -m gma_lib.cli precision

bench-gpu: $(ENV) ## the same for an NVIDIA GPU, against PyTorch operation by operation (docs/gpu.md)
	$(PYTHON) -m gma_lib.cli compare --config benchmarks/gpu.yaml --out benchmarks/results/gpu.json

test: $(ENV) ## run the tests
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n 2 --dist loadgroup

ascend-dry-run: 02_export ## write a folder with all that a machine with CANN needs (SOC=310P3); nothing of it is needed here
	@$(PYTHON) -m gma_lib.ascend.dry_run $(call option,--profile=,PROFILE) --run=$(call quote,$(or $(value RUN),$(BACKEND)-$(PRECISION))) \
	  --precision=$(call quote,$(PRECISION)) $(call option,--soc=,SOC) $(call option,--keep=,KEEP) $(SIZES)

torture: $(ENV) ## try to break it: PART=readers reads damaged files of each kind, PART=kills kills stages, PART=faults changes bytes between them (hours); goes on where it stopped
	$(PYTHON) tests/torture/$(PART).py

lint: $(ENV) ## check style, types and the order of packages, and that notebooks carry no outputs
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache --no-logo
	$(PYTHON) -m nbstripout --verify notebooks/*.ipynb

docs: $(ENV) ## write the documentation site to docs/_build/html
	$(PYTHON) -m sphinx -W --keep-going -q docs docs/_build/html

lab: $(ENV) ## open copies of the notebooks (outputs/lab/notebooks) in JupyterLab
	@mkdir -p outputs/lab/notebooks
	@for one in notebooks/*.ipynb; do copy="outputs/lab/$$one"; if [ ! -e "$$copy" ] || [ "$$one" -nt "$$copy" ]; then \
	  [ ! -e "$$copy" ] || mv "$$copy" "$${copy%.ipynb} of $$(date +%F-%H%M%S).ipynb"; cp "$$one" "$$copy"; fi; done
	JUPYTER_CONFIG_PATH=$(call quote,$(CURDIR)/notebooks) $(PYTHON) -m jupyterlab --notebook-dir=outputs/lab/notebooks \
	  --LabApp.default_url=/lab/tree/00_quickstart.ipynb $(if $(filter 0,$(shell id -u)),--allow-root)

doctor: $(ENV) ## check this machine
	@$(PYTHON) -m gma_lib.doctor $(call option,--ais-python=,AIS_PYTHON)

lock: ## write requirements.lock anew from pyproject.toml (with the oldest Python 3.11 at hand: BASE_PYTHON=)
	rm -rf .lock-venv && $(BASE_PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0
	.lock-venv/bin/python -m pip install --quiet --editable .[dev]
	.lock-venv/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v -i -E '^(nvidia|cuda|triton)' > requirements.lock
	rm -rf .lock-venv

.venv/.ready: requirements.lock pyproject.toml
	@$(BASE_PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make BASE_PYTHON=python3.11 ...")'
	@echo "Building .venv, once: about two minutes and 3 GB on the disk"
	@$(BASE_PYTHON) -m venv .venv
	@echo "1 of 3: PyTorch $(if $(TORCH_INDEX),from $(TORCH_INDEX) (CPU build: 200 MB),with CUDA (on Linux: 3 GB))"
	@$(if $(TORCH_INDEX),$(PIP) --timeout 10 --retries 0 torch==2.13.0 --index-url $(TORCH_INDEX) 2>/dev/null || \
	  { echo "        not reachable; the plain wheels from the default index instead (on Linux with CUDA: 3 GB)"; $(PIP) torch==2.13.0; },$(PIP) torch==2.13.0)
	@echo "2 of 3: the $(words $(shell cut -d= -f1 requirements.lock)) packages of requirements.lock (400 MB)"
	@$(PIP) --requirement requirements.lock
	@echo "3 of 3: this package"
	@$(PIP) --no-deps --editable .
	@touch $@

clean: ## delete what runs wrote for this profile
	rm -rf outputs/$(call quote,$(or $(value PROFILE),$(error name a profile))){,.zip}

distclean: ## delete all results and the environment
	rm -rf outputs .venv
