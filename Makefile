# make demo | test | detectron2 | test-detectron2 | faults | lint
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
DEMO   ?= output/demo
FAULTS_KILLS ?= 100

.PHONY: demo test test-detectron2 detectron2 faults lint clean

demo: $(VENV)/.installed
	$(BIN)/python tools/demo.py $(DEMO)

test: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	$(BIN)/python -m pytest -n auto -m "not detectron2"

# Detectron2 must be importable: make detectron2, or an uncompiled source tree on PYTHONPATH.
# OFFICIAL_MOCO names a checkout of the official MoCo code, which pretraining is compared with.
test-detectron2: $(VENV)/.installed
	$(BIN)/python -c "import detectron2" || (echo "Detectron2 does not import: make detectron2"; exit 2)
	PARITY_PAGE=docs/parity.md $(BIN)/python -m pytest -m "detectron2 or official"

# The kill matrix of pretraining in full, and untrusted files: 168 crafted ones, 20,000 mutants of
# pickles and 10,000 of torch files.
faults: $(VENV)/.installed
	FAULTS_KILLS=$(FAULTS_KILLS) $(BIN)/python -m pytest -v -n auto tests/runtime/test_checkpoints.py tests/pretrain/test_faults*.py
	HOSTILE_MUTANTS=20000 $(BIN)/python -m pytest -s tests/convert/test_hostile.py

# From its public repository, or from a checkout: make detectron2 DETECTRON2_SRC=DIR
detectron2: $(VENV)/.installed
	$(BIN)/pip install --quiet "setuptools<81" wheel ninja
	$(BIN)/pip install --no-build-isolation $(if $(DETECTRON2_SRC),$(DETECTRON2_SRC),-r requirements-detectron2.txt)

lint: $(VENV)/.installed
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[logging,test]"
	touch $@

clean:
	rm -rf $(VENV) output
