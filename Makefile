# The short verbs of the project. `make demo` and `make test` need Python >= 3.10 with venv, and
# nothing else: they set up .venv first. A second call finds it done.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := build,onnxruntime,openvino,dev
DEMO_OUT ?= demo-run

.DEFAULT_GOAL := help
.PHONY: help setup demo test check clean

help: ## show this list
	@echo "make VERB, where VERB is one of:"
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  \1	\2/p' Makefile | expand -t 10

setup: $(READY) ## create .venv with the tested versions (the first time: gigabytes, minutes)
	@echo "$(VENV) is ready; activate it with: . $(BIN)/activate"

demo: $(READY) ## run the whole main job on scikit-learn's digits, into demo-run/
	$(BIN)/hydistill demo --out $(DEMO_OUT)

test: $(READY) ## run the tests: CPU only, offline
	tools/test

check: $(READY) ## run the linters, the type checker and the checks of the tree
	tools/check

clean: ## remove everything that the verbs above have made, .venv included
	rm -rf $(VENV) demo-run build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find calibration hydistill_edge targets tests tools -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so an interrupted set-up is taken up again by the next call.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) tools/python_ready
	@echo "Setting up $(VENV): torch and its libraries are gigabytes, this can take some minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(READY)
