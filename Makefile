# make demo: set up and run the whole experiment at laptop scale.  make test: set up and run the tests.

PYTHON ?= python3
VENV := .venv
CORES ?= 2
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SNAKEMAKE := $(BIN)/snakemake --cores $(CORES)
# Which environment lies in $(VENV): what is renewed when its lock changes.
KIND := $(or $(shell cat $(READY) 2>/dev/null),laptop)
LOCKS_laptop := envs/torch.lock envs/laptop.lock
LOCKS_gpu := envs/gpu.lock

.PHONY: help setup setup-laptop setup-gpu demo test test-slurm check preflight fetch verify status lock clean

help:
	@echo "make demo         the whole experiment at laptop scale, on $(CORES) cores; ends by naming the report"
	@echo "make test         formatting, unit tests, dry-runs of every scale, one small complete run"
	@echo "make test-slurm   the SLURM path on a throw-away cluster on this machine (Debian, as root)"
	@echo "make setup-gpu    the environment of envs/gpu.lock (CUDA, vLLM) in place of the laptop's"
	@echo "make preflight    whether the plan can run here and what it costs; SCALE=cluster for another scale"
	@echo "make fetch        on a node with network: everything SCALE (default cluster) takes from the hub"
	@echo "make status       which results are finished, missing, or made by other code"
	@echo "make verify       re-hash every result and name what is missing, altered or truncated"
	@echo "make lock         resolve envs/*.in into envs/*.lock again (needs uv)"

setup: $(READY)

$(READY): $(LOCKS_$(KIND))
	@$(MAKE) --no-print-directory setup-$(KIND)

setup-laptop:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than Python 3.11; name a newer one: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@# pip decides which build of torch it gets (its settings may name an index of CPU builds); its hash must be listed.
	$(BIN)/python -m pip download --quiet --no-deps --dest $(VENV)/torch torch==2.13.0
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-index --find-links $(VENV)/torch -r envs/torch.lock
	@rm -r $(VENV)/torch
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r envs/laptop.lock
	@# Nothing to do for a CPU build; a CUDA build brings its own libraries.
	$(BIN)/python -m pip install --quiet torch==2.13.0
	@echo laptop > $(READY)

# For nodes with GPUs. setuptools first: it builds the few packages without wheels, so that nothing comes unhashed.
setup-gpu:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "error: envs/gpu.lock is for Python 3.11, $(PYTHON) is another: make setup-gpu PYTHON=python3.11" >&2; exit 2; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^setuptools==/,/[^\\]$$/p' envs/gpu.lock > $(VENV)/setuptools.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r $(VENV)/setuptools.lock
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps --no-build-isolation -r envs/gpu.lock
	@echo gpu > $(READY)

demo: $(READY)
	$(SNAKEMAKE)
	@echo "Open results/report/scalpel_vs_hammer/index.html"

test: $(READY) check
	$(BIN)/python -m pytest -q

test-slurm: $(READY)
	$(BIN)/python -m pytest -q -m slurm tests/slurm --durations=0 --durations-min=5

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow/rules

preflight: $(READY)
	@$(BIN)/python -m scripts.preflight $(if $(SCALE),--scale $(SCALE))

fetch: $(READY)
	$(SNAKEMAKE) --until fetch --config scale=$(or $(SCALE),cluster)

verify: $(READY)
	@$(BIN)/python -m scripts.verify

status: $(READY)
	@$(BIN)/python -m scripts.status

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
