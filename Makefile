SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.SUFFIXES:
.DEFAULT_GOAL := help

# What to run. PYTHON=python uses an environment that is already there instead of building .venv.
PROFILE   ?= demo
BS        ?= 1 4
BACKEND   ?= openvino
# An Ascend card computes in float16 unless told otherwise, as in the guide.
PRECISION ?= $(if $(filter ascend,$(BACKEND)),float16,float32)
RUN       ?= $(BACKEND)-$(PRECISION)
PYTHON    ?= .venv/bin/python
BASE_PYTHON ?= python3
# For the smaller CPU build of PyTorch where the plain wheel brings CUDA: TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# For BACKEND=ascend: the chip where none can be asked (SOC=310P3), what stays float32 (KEEP=coordinates), the card's logic ID (DEVICE),
# the interpreter that has ais_bench (AIS_PYTHON). Quoted, because 910_9391 is a number to YAML.
CARD   := $(if $(filter ascend,$(BACKEND)),$(if $(SOC),--set "soc='$(SOC)'") $(if $(KEEP),--set "keep='$(KEEP)'") \
          $(if $(DEVICE),--set "device=$(DEVICE)") $(if $(AIS_PYTHON),--set "ais_python='$(AIS_PYTHON)'"))

ENV    := $(if $(filter .venv/bin/python,$(PYTHON)),.venv/.ready)
OUT    := outputs/$(PROFILE)
SET    := --set backend=$(BACKEND) --set precision=$(PRECISION) --set run=$(RUN) \
          $(if $(SINTEL),--set "sintel_root=$(SINTEL)") \
          $(if $(CHECKPOINT),--set "checkpoint=$(CHECKPOINT)") \
          $(if $(UPDATES),--set num_updates=$(UPDATES)) $(CARD) \
          $(foreach setting,$(PARAMS),--set $(setting))
STAGE   = $(PYTHON) -m gma_lib.cli stage $(1) --profile $(PROFILE) --batch-size $(2) $(SET) $(if $(FORCE),--force)
stamps  = $(foreach b,$(BS),$(OUT)/$(RUN)/bs$(b)/.$(1).json)
PER_BATCH_SIZE := 02_export 03_convert 04_infer 05_evaluate 06_perf

.PHONY: help reproduce stages report share 01_data $(PER_BATCH_SIZE) train bench bench-gpu test ascend-dry-run lint docs lab doctor lock clean distclean always

help: ## show this help
	@awk -F':.*## ' '/^[a-z0-9_%-]+:.*## /{printf "  make %-12s %s\n",$$1,$$2}' $(MAKEFILE_LIST)
	@echo "  variables: PROFILE=$(PROFILE) BS=\"$(BS)\" BACKEND=$(BACKEND) PRECISION=$(PRECISION) RUN=$(RUN) SINTEL= CHECKPOINT= UPDATES= PARAMS=\"name=value ...\" FORCE=1 PYTHON=$(PYTHON) TORCH_INDEX="

reproduce: $(ENV) ## run every notebook for every batch size in BS and write the report
	@status=0; $(MAKE) --no-print-directory -k stages || status=$$?; \
	$(PYTHON) -m gma_lib.report.index --profile $(PROFILE); exit $$status

stages: $(call stamps,05_evaluate) $(call stamps,06_perf)

report: $(ENV) ## write the index page from what is there
	@$(PYTHON) -m gma_lib.report.index --profile $(PROFILE)

share: $(ENV) ## write the report as one zip file to send
	@$(PYTHON) -m gma_lib.report.index --profile $(PROFILE) --archive

01_data: $(OUT)/data/.01_data.json ## list and check the frames; render the demo set
02_export: $(call stamps,02_export) ## weights to ONNX
03_convert: $(call stamps,03_convert) ## ONNX to what the backend loads
04_infer: $(call stamps,04_infer) ## flow of every pair
05_evaluate: $(call stamps,05_evaluate) ## accuracy
06_perf: $(call stamps,06_perf) ## time and memory

# The targets are the stamps that a stage writes last. Whether one is up to date is decided by content, in the runner, because times say little:
# JupyterLab saves what was not changed, and parameters given here leave no file behind.
$(OUT)/data/.01_data.json: always $(ENV)
	@$(call STAGE,01_data,$(firstword $(BS)))
$(call stamps,02_export): $(OUT)/$(RUN)/bs%/.02_export.json: always $(OUT)/data/.01_data.json
	@$(call STAGE,02_export,$*)
$(call stamps,03_convert): $(OUT)/$(RUN)/bs%/.03_convert.json: always $(OUT)/$(RUN)/bs%/.02_export.json
	@$(call STAGE,03_convert,$*)
$(call stamps,04_infer): $(OUT)/$(RUN)/bs%/.04_infer.json: always $(OUT)/$(RUN)/bs%/.03_convert.json
	@$(call STAGE,04_infer,$*)
$(call stamps,05_evaluate): $(OUT)/$(RUN)/bs%/.05_evaluate.json: always $(OUT)/$(RUN)/bs%/.04_infer.json
	@$(call STAGE,05_evaluate,$*)
$(call stamps,06_perf): $(OUT)/$(RUN)/bs%/.06_perf.json: always $(OUT)/$(RUN)/bs%/.03_convert.json
	@$(call STAGE,06_perf,$*)

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
	$(PYTHON) -m pytest

ascend-dry-run: $(call stamps,02_export) ## write the exact commands for a machine with CANN (SOC=310P3); nothing of it is needed here
	@$(PYTHON) -m gma_lib.ascend.dry_run --profile $(PROFILE) --run $(RUN) --precision $(PRECISION) $(if $(SOC),--soc $(SOC)) $(if $(KEEP),--keep $(KEEP)) $(foreach b,$(BS),--batch-size $(b))

lint: $(ENV) ## check style, types and the order of packages, and that notebooks carry no outputs
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-cache --no-logo
	$(PYTHON) -m nbstripout --verify notebooks/*.ipynb

docs: $(ENV) ## write the documentation site to docs/_build/html
	$(PYTHON) -m sphinx -W --keep-going -q docs docs/_build/html

lab: $(ENV) ## open the notebooks in JupyterLab
	$(PYTHON) -m jupyterlab --notebook-dir=. $(if $(filter 0,$(shell id -u)),--allow-root)

doctor: $(ENV) ## check this machine
	@$(PYTHON) -m gma_lib.doctor $(if $(AIS_PYTHON),--ais-python "$(AIS_PYTHON)")

lock: ## write requirements.lock anew from pyproject.toml (with the oldest Python 3.11 at hand: BASE_PYTHON=)
	rm -rf .lock-venv && $(BASE_PYTHON) -m venv .lock-venv
	.lock-venv/bin/python -m pip install --quiet torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	.lock-venv/bin/python -m pip install --quiet --editable .[dev]
	.lock-venv/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//' | grep -v -i -E '^(nvidia|cuda|triton)' > requirements.lock
	rm -rf .lock-venv

.venv/.ready: requirements.lock pyproject.toml
	@echo "Building .venv (once, about two minutes and 3 GB)"
	$(BASE_PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make BASE_PYTHON=python3.11 ...")'
	$(BASE_PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check torch==2.13.0 $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

clean: ## delete what runs wrote for this profile
	rm -rf $(OUT) $(OUT).zip

distclean: ## delete all results and the environment
	rm -rf outputs .venv
