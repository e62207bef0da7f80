# make demo: set up and run the whole experiment at laptop scale.  make test: set up and run the tests.

PYTHON ?= python3
VENV := .venv
CORES ?= 2
BIN := $(VENV)/bin
# Programs are run as modules: the first line of a script in $(BIN) is this checkout's path, whatever stands in it.
SNAKEMAKE := $(BIN)/python -m snakemake --cores $(CORES)
# What lies in $(VENV): its kind, and a hash of the locks it was made from. Renewed when these change, whatever the clock says.
STAMP := $(VENV)/.made_of
KIND := $(or $(word 1,$(shell cat $(STAMP) 2>/dev/null)),laptop)
LOCKS_laptop := envs/torch.lock envs/laptop.lock envs/gpu.lock
LOCKS_gpu := envs/gpu.lock
HASH = $(shell cat $(LOCKS_$(1)) | $(PYTHON) -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')
PIP := $(BIN)/python -m pip install --quiet --require-hashes --no-deps

.PHONY: show help setup setup-laptop setup-gpu demo test coverage test-slow test-slurm check preflight fetch resolve verify repair \
  status clean-unused card push extend schema retire lock clean

help:
	@echo "make demo         the whole experiment at laptop scale, on $(CORES) cores; ends by naming the report"
	@echo "make test         formatting, types, unit tests, dry-runs of every scale, one small complete run"
	@echo "make coverage     the same tests, and how much of the library they run through; under 90% it fails"
	@echo "make test-slow    what takes longer: campaigns of kills and damage, throw-away environments"
	@echo "make test-slurm   the SLURM path on a throw-away cluster on this machine (Debian, as root)"
	@echo "make setup-gpu    the environment of envs/gpu.lock (CUDA, vLLM) in place of the laptop's"
	@echo "make preflight    whether the plan can run here and what it costs; SCALE=cluster for another scale"
	@echo "make show         RUN=grpo SCALE=cluster: what TRL, accelerate, DeepSpeed and vLLM are told"
	@echo "make fetch        on a node with network: everything SCALE (default cluster) takes from the hub"
	@echo "make resolve      on a node with network: hub branches of given runs to commits (revisions.yaml)"
	@echo "make status       where every result, figure and report stands, and what is of no current config; SCALE=cluster"
	@echo "make verify       hash every result and exhibit; name what is damaged, and what was derived from it"
	@echo "make repair       list that; YES=1 moves it aside, and snakemake makes exactly that again"
	@echo "make clean-unused list results of no current config with their sizes; YES=1 removes them"
	@echo "make card         RUN=grpo: the model card of a finished run; make push RUN=grpo REPO=me/grpo uploads a checkpoint"
	@echo "make extend       every place where something of your own goes: the file to look at, and what there is"
	@echo "make setup        the environment alone; make check: formatting and types; make clean: remove the environment"
	@echo "make schema       write the JSON schema of config.yaml, by which editors complete it"
	@echo "make retire       intermediate weights that all that is planned has read; YES=1 removes them"
	@echo "make lock         resolve envs/*.in into envs/*.lock again (needs uv)"

setup:
	@[ "$$(cat $(STAMP) 2>/dev/null)" = "$(KIND) $(call HASH,$(KIND))" ] || $(MAKE) --no-print-directory setup-$(KIND)

# setuptools first: it builds the few packages without wheels, so that nothing comes unhashed.
setup-laptop:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	@rm -f $(STAMP)
	$(PYTHON) -m venv $(VENV)
	@# pip decides which build of torch it gets (its settings may name an index of CPU builds); its hash must be listed.
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/torch torch==2.13.0
	$(PIP) --no-index --find-links $(VENV)/torch -r envs/torch.lock
	@rm -r $(VENV)/torch
	$(BIN)/python -m scripts.locked envs/laptop.lock setuptools > $(VENV)/first.lock
	$(PIP) -r $(VENV)/first.lock
	$(PIP) --no-build-isolation -r envs/laptop.lock
	@# What a CUDA build of torch brings; nothing for a CPU build.
	$(BIN)/python -m scripts.locked envs/gpu.lock --cuda-of-torch > $(VENV)/cuda.lock
	@[ ! -s $(VENV)/cuda.lock ] || $(PIP) -r $(VENV)/cuda.lock
	@$(BIN)/python -m scripts.quoted
	@echo "laptop $(call HASH,laptop)" > $(STAMP)

setup-gpu:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "error: envs/gpu.lock is for Python 3.11, $(PYTHON) is another: make setup-gpu PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m scripts.locked envs/gpu.lock setuptools > $(VENV)/first.lock
	$(PIP) -r $(VENV)/first.lock
	$(PIP) --no-build-isolation -r envs/gpu.lock
	@$(BIN)/python -m scripts.quoted
	@echo "gpu $(call HASH,gpu)" > $(STAMP)

demo: setup
	$(SNAKEMAKE)
	@echo "Open results/report/scalpel_vs_hammer/index.html"

test: setup check
	$(BIN)/python -m pytest -q -n $(CORES) --dist worksteal

SIDE_BY_SIDE := tests/test_fuzz.py tests/test_methods.py tests/test_mixed_methods.py
test-slow: setup
	$(BIN)/python -m pytest -q -m campaign -n $(CORES) --dist worksteal --durations=0 --durations-min=5 $(SIDE_BY_SIDE)
	@# One at a time: these start ranks, servers and whole workflows that share the cores themselves.
	$(BIN)/python -m pytest -q -m campaign --durations=0 --durations-min=5 $(SIDE_BY_SIDE:%=--ignore=%)

coverage: setup
	@rm -f .coverage .coverage.*
	@# But for a test that limits the size of files, to which coverage writes its own.
	$(BIN)/python -m coverage run -m pytest -q -n $(CORES) --dist worksteal -k 'not test_a_limit_on_file_sizes'
	$(BIN)/python -m coverage combine -q
	$(BIN)/python -m coverage report

test-slurm: setup
	$(BIN)/python -m pytest -q -m slurm tests/slurm --durations=0 --durations-min=5

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m snakefmt --check Snakefile workflow/rules
	$(BIN)/python -m mypy

show: setup
	@[ "$(RUN)" ] || { echo "error: name a run: make show RUN=grpo SCALE=cluster" >&2; exit 2; }
	@$(BIN)/python -m scripts.show "$(RUN)" $(if $(SCALE),--scale $(SCALE))

preflight: setup
	@$(BIN)/python -m scripts.preflight $(if $(SCALE),--scale $(SCALE))

fetch: setup
	$(SNAKEMAKE) --until fetch --config scale=$(or $(SCALE),cluster)

resolve: setup
	@$(BIN)/python -m scripts.resolve $(if $(SCALE),--scale "$(SCALE)")

# These never install anything.
verify status repair retire clean-unused card push extend schema:
	@[ -x $(BIN)/python ] || { echo "error: there is no environment yet; run make setup" >&2; exit 2; }
	@$(if $(filter card push,$@),[ "$(RUN)" ] || { echo "error: name a run: make $@ RUN=grpo" >&2; exit 2; })
	@$(if $(filter push,$@),[ "$(REPO)" ] || { echo "error: name a repository of the hub: make push RUN=grpo REPO=me/grpo" >&2; exit 2; })
	@$(BIN)/python -m scripts.$(subst -,_,$@) $(WORDS_$@)

WORDS_repair = $(if $(YES),--yes)
WORDS_clean-unused = $(if $(YES),--yes)
WORDS_retire = $(if $(YES),--yes) $(if $(SCALE),--scale "$(SCALE)")
WORDS_status = $(if $(SCALE),--scale "$(SCALE)")
WORDS_card = "$(RUN)" $(WORDS_of_checkpoint)
WORDS_push = "$(RUN)" "$(REPO)" $(WORDS_of_checkpoint)
WORDS_of_checkpoint = $(if $(SCALE),--scale "$(SCALE)") $(if $(SEED),--seed "$(SEED)") $(if $(STEP),--step "$(STEP)")

lock:
	uv pip compile envs/torch.in --no-header --no-annotate --generate-hashes --no-deps --python-version 3.11 -o envs/torch.lock
	uv pip compile envs/laptop.in --override envs/overrides.txt --no-header --no-annotate --generate-hashes --universal \
	  --python-version 3.11 --no-emit-package torch $(foreach name,$(CUDA_PACKAGES),--no-emit-package $(name)) -o envs/laptop.lock
	uv pip compile envs/gpu.in --override envs/overrides.txt --override envs/gpu-overrides.txt --no-header --no-annotate \
	  --generate-hashes --python-version 3.11 --python-platform x86_64-manylinux_2_31 -o envs/gpu.lock

# What CUDA builds of torch depend on: left to the build that pip chose.
CUDA_PACKAGES := triton cuda-bindings cuda-pathfinder cuda-toolkit nvidia-cublas nvidia-cuda-cccl nvidia-cuda-cupti nvidia-cuda-nvrtc \
  nvidia-cuda-runtime nvidia-cudnn-cu13 nvidia-cufft nvidia-cufile nvidia-curand nvidia-cusolver nvidia-cusparse \
  nvidia-cusparselt-cu13 nvidia-nccl-cu13 nvidia-nvjitlink nvidia-nvshmem-cu13 nvidia-nvtx

clean:
	rm -rf $(VENV) .snakemake
