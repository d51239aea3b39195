# `make demo` or `make test` is the only command a fresh clone needs: Python >= 3.10, gcc and make are enough.
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
TOOLS := $(VENV)/.tools

.DEFAULT_GOAL := help
.PHONY: help setup demo test check check-processors check-slow check-system soak test-integrations mutants bench gpu gpu-carry gpu-pieces aot evaluate-digits train-digits notebook api figures clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 18

setup: $(TOOLS) ## make $(VENV) and install everything into it, at the versions of constraints.txt

# PIP_CONSTRAINT holds the isolated build to the same pins; the editable install builds the extensions in place.
SOURCES := pyproject.toml constraints.txt setup.py $(wildcard csrc/* csrc/cuda/*)
INSTALL_INTO = PIP_CONSTRAINT="$(CURDIR)/constraints.txt" PIP_DISABLE_PIP_VERSION_CHECK=1 "$(1)" -m pip install --quiet -c constraints.txt
INSTALL = $(call INSTALL_INTO,$(PY))
SAY = @echo "installing into $(VENV): a few minutes, most of it PyTorch"

$(STAMP): $(SOURCES) # what using it takes
	$(PYTHON) -m venv "$(VENV)"
	$(SAY)
	$(INSTALL) -e '.[digits]'
	touch "$@"

$(TOOLS): $(SOURCES) # and what testing it takes
	$(PYTHON) -m venv "$(VENV)"
	$(SAY)
	$(INSTALL) -e '.[digits,dev,kernels]'
	touch "$(STAMP)" "$@"

demo: $(STAMP) ## attack, purify and compare on held-out digits; writes report.html
	"$(PY)" -m purify_engine demo

test: $(TOOLS) check ## set up, then check: what CI runs

check: $(TOOLS) ## architecture, lint, types, and every test that needs nothing but Python, gcc and make
	"$(PY)" -m pytest tests/test_architecture.py
	"$(PY)" -m ruff check .
	"$(PY)" -m mypy
	"$(PY)" -m pytest -m "not system and not slow and not soak and not integration" -n 2 --dist loadfile --no-loadscope-reorder --durations=10 \
	  --ignore=tests/test_architecture.py
	"$(PY)" -m tests.processors

check-processors: $(TOOLS) ## what compares bits and roundings, as other processors would run it
	"$(PY)" -m tests.processors

check-slow: $(TOOLS) ## the tests that take minutes
	"$(PY)" -m pytest -m "slow and not system and not soak and not integration" --durations=10

check-system: $(TOOLS) ## the tests that need other tools; a missing tool is a failure
	"$(PY)" -m pytest -m "system and not soak" --durations=10

soak: $(TOOLS) ## the full counts of the reliability table; about an hour. Needs Linux, root and strace; appends to bench/results
	"$(PY)" -m pytest tests/soak -m soak --durations=10

# An environment of its own: what libraries of others ask for stays out of $(VENV). AUTOATTACK and ROBUSTBENCH are folders with the
# sources of those two, which are on no package index. torchattacks is installed without the torchvision that it never imports.
INTEGRATIONS := $(VENV)-integrations
FOREIGN_PY := $(INTEGRATIONS)/bin/python

test-integrations: $(INTEGRATIONS)/.installed ## run the examples of docs/integrations.md against other libraries; AUTOATTACK=, ROBUSTBENCH= folders
	AUTOATTACK="$(abspath $(AUTOATTACK))" ROBUSTBENCH="$(abspath $(ROBUSTBENCH))" "$(FOREIGN_PY)" -m pytest tests/integrations -m integration -rs

$(INTEGRATIONS)/.installed: $(SOURCES) constraints-integrations.txt
	$(PYTHON) -m venv "$(INTEGRATIONS)"
	@echo "installing into $(INTEGRATIONS): a few minutes, most of it PyTorch"
	$(call INSTALL_INTO,$(FOREIGN_PY)) -c constraints-integrations.txt -e '.[digits,integrations]'
	$(call INSTALL_INTO,$(FOREIGN_PY)) -c constraints-integrations.txt --no-deps torchattacks
	touch "$@"

# FLOOR is reference, engine, evaluation, training or data; SAMPLE=0 takes all of its mutants, SEED draws others. FAULTS names some of
# the list's; JOBS are worked on at once.
MUTMUT := $(VENV)/.mutmut
ifeq ($(PART),tool)
MUTANTS = tool $(or $(FLOOR),reference) --sample $(or $(SAMPLE),60) --seed $(or $(SEED),0)
mutants: $(MUTMUT)
else
MUTANTS = list $(FAULTS)
endif

mutants: $(TOOLS) ## plant the faults of mutation/faults: do the tests notice? PART=tool FLOOR=reference SAMPLE=60: those of mutmut
	"$(PY)" -m mutation $(MUTANTS) --jobs $(or $(JOBS),1)

$(MUTMUT): $(TOOLS)
	$(INSTALL) mutmut
	touch "$@"

bench: $(TOOLS) ## time every op and guided steps beside plain PyTorch; appends to bench/results
	"$(PY)" -m bench ops
	"$(PY)" -m bench loop

# On a machine with a GPU: the virtual environment where there is one, else a Python that has PyTorch and Triton, with what was carried there.
GPU_PYTHON ?= $(if $(wildcard $(TOOLS)),$(PY),python3)
CARRY := build/carry
CARRIED := jaxtyping wadler_lindig safetensors diffusers importlib_metadata nvidia-cudnn-frontend cyclopts docstring_parser rich_rst
CARRY_FOR := --python-version 3.12 --implementation cp $(addprefix --platform ,manylinux_2_28_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64)

# COMMIT names the commit where there is no repository; RESUME=1 leaves out the steps that went well before.
ON_GPU = PYTHONPATH="$(if $(wildcard $(TOOLS)),,$(CURDIR)/$(CARRY))" PURIFY_ENGINE_COMMIT="$(COMMIT)" "$(GPU_PYTHON)" -m bench
OF_TRAIN_AND_EVALUATE := SECONDS RECIPE NETWORKS TOTAL PURIFIER DATA OUTPUT REST
lower = $(shell echo $(1) | tr A-Z a-z)
gpu: ## check and time everything on a GPU, a dry run where there is none; PART=1 (right and faster), 2 (opponents), train, evaluate, or a step
	@$(ON_GPU) gpu $(PART) $(if $(RESULTS),--results "$(RESULTS)") $(if $(RESUME),--resume) \
	  $(foreach name,$(OF_TRAIN_AND_EVALUATE),$(if $($(name)),--$(call lower,$(name))="$($(name))"))

gpu-pieces: ## cut FOLDER into pieces INTO, to travel (TRIP=N: one trip's; LIGHT=1: trainings in bfloat16), or join FROM into FOLDER
	@$(ON_GPU) pieces $(if $(FROM),join "$(FROM)" "$(FOLDER)",cut "$(FOLDER)" "$(INTO)" $(if $(TRIP),--trip $(TRIP)) $(if $(LIGHT),--light))

gpu-carry: ## fetch into build/carry what `make gpu` needs beside Python 3.12, PyTorch and Triton, for a machine without a network
	rm -rf "$(CARRY)"
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --target "$(CARRY)" --no-deps --no-compile --only-binary=:all: $(CARRY_FOR) \
	  -c constraints.txt $(CARRIED)
	rm -rf "$(CARRY)"/include
	if [ -x "$(PY)" ]; then "$(PY)" -c "from bench.subjects.photographs import carry; carry()"; fi

aot: $(TOOLS) ## compile every kernel ahead of time and look at what came out; needs no GPU
	"$(PY)" -m tests.kernels.aot

evaluate-digits: $(STAMP) ## the full evaluation on all held-out digits; writes bench/results/digits.jsonl
	"$(PY)" -m purify_engine evaluate digits --workers 2 --output bench/results/digits.jsonl

train-digits: $(STAMP) ## train the embedded U-Net, guide and classifier again
	"$(PY)" -m purify_engine train digits

# Jupyter stands in an environment of its own, which borrows everything else from the first.
TOUR := build/notebook
notebook: $(TOUR)/.installed ## run docs/tour.ipynb from top to bottom, and keep what its cells put out
	"$(TOUR)/bin/python" -m bench tour

$(TOUR)/.installed: $(STAMP)
	$(PYTHON) -m venv --clear "$(TOUR)"
	"$(PY)" -c "import site, sys; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" \
	  > "$$("$(TOUR)/bin/python" -c 'import site; print(site.getsitepackages()[0])')/borrowed.pth"
	PIP_DISABLE_PIP_VERSION_CHECK=1 "$(TOUR)/bin/python" -m pip install --quiet -c constraints.txt ipykernel nbclient
	touch "$@"

api: $(TOOLS) ## write docs/api.md from the signatures and docstrings of the source
	"$(PY)" -m bench api

figures: $(TOOLS) api ## write the tables of README.md and docs/ from bench/results, README's picture, and docs/api.md
	"$(PY)" -m bench figures
	"$(PY)" -m bench digits-picture

clean: ## remove the virtual environment and what the build left
	rm -rf "$(VENV)" "$(INTEGRATIONS)" build dist *.egg-info purify_engine/_C*.so purify_engine/_cuda*.so
