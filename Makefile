# graftline: the one entry for people and for CI. `make help` lists what there is.
#
# Every KEY=VALUE after a stage's name goes to its configuration, as typed:
#     make train backbone=efficientnet_b0 freeze=all_but_head trainer.max_epochs=3
#
# Variables in capitals are for make itself:
#     PYTHON        the interpreter that makes the environment (default python3, 3.11 or later)
#     VENV          where the environment lies (default .venv)
#     SYSTEM_TORCH  1: use the torch and torchvision that PYTHON already has, download neither

PYTHON ?= python3
VENV ?= .venv
SYSTEM_TORCH ?=

python := $(VENV)/bin/python
ready := $(VENV)/.ready
peers-ready := .venv-peers/.ready
dagster-ready := .venv-dagster/.ready
extras-ready := .venv-extras/.ready
site-packages := 'import sysconfig; print(sysconfig.get_path("purelib"))'
STAGES := ingest shard train search evaluate compare ensemble explain audit learning-curve promote history rollback retrain prune schedule verify predict export serve drift augment-preview fetch-weights cost cache sync doctor

.DEFAULT_GOAL := help
.PHONY: help setup again $(STAGES) config ui dagster bench bench-accuracy test test-long test-extras test-fast lint format lock clean

help: ## list the commands
	@printf 'make COMMAND [key=value ...]\n\n'
	@awk 'FNR == 1 { split($$0, word, " "); printf "  %-18s%s\n", word[3], substr($$0, index($$0, "        ") + 8) }' \
		$(STAGES:%=conf/%.yaml)
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@printf '\n%s/bin/graftline train --help tells the groups, keys and examples of a stage.\n' $(VENV)

# A pip that may download nothing says whether what pyproject.toml asks for is there.
define check-system-torch
@wanted=$$(sed -nE 's/^ *"(torch(vision)?>=[^"]*)".*/\1/p' pyproject.toml); \
	$(python) -m pip install --quiet --disable-pip-version-check --dry-run --no-index --no-deps $$wanted 2> /dev/null || \
	{ echo "SYSTEM_TORCH=1 needs a PYTHON that has" $$wanted": rm -r $(VENV), then make setup with such a one, or without SYSTEM_TORCH."; exit 1; }
endef

setup: $(ready) ## make the environment, or install the lock's packages again (the other commands do it when it is missing)

$(ready): requirements.lock pyproject.toml $(if $(filter setup,$(MAKECMDGOALS)),again)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'graftline needs Python 3.11 or later: make $(MAKECMDGOALS) PYTHON=python3.12'; exit 1; }
	@echo "Setting up $(VENV)$(if $(SYSTEM_TORCH),,: about 3 GB are downloaded the first time, most of it torch)."
	@test -x $(python) || $(PYTHON) -m venv $(if $(SYSTEM_TORCH),--system-site-packages) $(VENV)
	$(if $(SYSTEM_TORCH),$(check-system-torch))
	@awk '$(if $(SYSTEM_TORCH),/^[a-z]/ { left = /^(torch|torchvision|triton|nvidia-[a-z0-9-]*|cuda-[a-z]*)==/ } !left,1)' \
		requirements.lock > $(VENV)/requirements.lock
	@$(python) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $(VENV)/requirements.lock
	@$(python) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@$(python) -c 'from graftline.backbones import catalog; catalog.keep()'
	@touch $(ready)

config: ## print the composed configuration of a run

# The stages read KEY=VALUE from MAKEFLAGS themselves: no shell stands between, so that brackets and commas survive.
$(STAGES) config: $(ready)
	@$(python) -m pipeline $@ --from-make

ui: $(ready) ## compare runs in the MLflow UI on 127.0.0.1: port=5000 tracking.uri=sqlite:///mlflow.db
	@$(python) -m pipeline.ui --from-make

dagster: $(dagster-ready) ## run and show the schedules of engine=dagster on 127.0.0.1: port=3000
	@test -f .dagster/dagster.yaml || \
		{ echo 'No schedule is there yet: make schedule every="Mon 03:00" engine=dagster install=true'; exit 1; }
	@DAGSTER_HOME='$(CURDIR)/.dagster' PYTHONWARNINGS=ignore .venv-dagster/bin/dagster dev --host 127.0.0.1 \
		--port $(or $(port),3000) --python-file pipeline/dagster/definitions.py --working-directory pipeline/dagster

schedule: $(if $(filter dagster,$(engine)),$(dagster-ready))

$(dagster-ready): pipeline/dagster/requirements.txt
	@echo "Setting up .venv-dagster: Dagster, about 150 MB."
	@$(PYTHON) -m venv .venv-dagster
	@.venv-dagster/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $<
	@touch $@

.PHONY: docs
docs: $(ready) ## build the documentation into site/
	@$(VENV)/bin/zensical build --strict --config-file mkdocs.yml

bench: $(ready) ## measure what docs/caching.md says about speed (30 minutes on an idle machine)
	@$(python) benchmarks/speed.py

bench-accuracy: $(peers-ready) ## accuracy against seconds, beside other libraries: sets="elpv digits" peers=plain minutes="1 5" seeds=0
	@PYTHONPATH=. $(python) -m benchmarks.accuracy $(if $(sets),--sets $(sets)) $(if $(peers),--peers $(peers)) \
		$(if $(minutes),--minutes $(minutes)) $(if $(seeds),--seeds $(seeds)) $(if $(page),--page)

# $(call make-beside,DIRECTORY,REQUIREMENTS): an environment whose own packages come before those of $(VENV), graftline among them.
define make-beside
@$(python) -m venv $(1) $$(grep -qs '^include-system-site-packages = true' $(VENV)/pyvenv.cfg && echo --system-site-packages)
@echo "import site; site.addsitedir('$$($(python) -c $(site-packages))')" \
	> "$$($(1)/bin/python -c $(site-packages))/graftline-environment.pth"
@$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $(2)
endef

$(peers-ready): benchmarks/accuracy/peers/requirements.txt $(ready)
	@echo "Setting up .venv-peers beside $(VENV), whose packages it sees: AutoGluon, fastai and what they need."
	$(call make-beside,.venv-peers,$<)
	@touch $@

pytest = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(1)/bin/python -m pytest --numprocesses 2 --dist worksteal --timeout 600

test: $(ready) ## run the tests, but for the long ones
	@$(call pytest,$(VENV)) -m "not long"

test-long: $(ready) ## run the others: stories of several runs, processes and servers, and all networks
	@$(call pytest,$(VENV)) -m long

test-extras: $(extras-ready) $(dagster-ready) ## run those that need Ray, datasets, OpenVINO, an S3 server or Dagster; installs these
	@$(call pytest,.venv-extras) -m extras tests

$(extras-ready): tests/extras-requirements.txt $(ready)
	@echo "Setting up .venv-extras beside $(VENV), whose packages it sees: Ray, datasets, OpenVINO and moto, about 550 MB."
	$(call make-beside,.venv-extras,$<)
	@.venv-extras/bin/python -c 'import datasets, moto.server, openvino, ray.train'
	@touch $@

test-fast: $(ready) ## run the tests that start no processes and train nothing large
	@$(call pytest,$(VENV)) -m "not slow"

lint: $(ready) ## ruff, mypy strict, import-linter, hadolint
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/hadolint docker/Dockerfile

format: $(ready) ## rewrite the code in the house's format
	@$(VENV)/bin/ruff format .
	@$(VENV)/bin/ruff check --fix .

compile = uv pip compile $(1) --universal --python-version 3.11 --generate-hashes --no-annotate --no-header --output-file $(2)

# Without hf, openvino and ray, which are large: make test-extras installs them. The last two take the pins that they are given.
lock: ## pin the dependencies anew (needs uv)
	$(call compile,pyproject.toml --group dev --group docs $(addprefix --extra ,audit dicom heif remote tiff),requirements.lock)
	$(call compile,pipeline/dagster/requirements.in,pipeline/dagster/requirements.txt)
	$(call compile,tests/extras-requirements.in --no-deps,tests/extras-requirements.txt)
	$(call compile,benchmarks/accuracy/peers/requirements.in --no-deps,benchmarks/accuracy/peers/requirements.txt)

clean: ## remove caches and leftovers of tools; keeps runs (outputs, data, mlflow.db, mlartifacts) and the environment
	@rm -rf cache site .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
