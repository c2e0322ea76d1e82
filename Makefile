PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO := out/demo

.PHONY: demo test lint virtual-board clean

# Everything below stands on this: an environment with the pinned versions of constraints.txt.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "edgekit needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable . --group dev
	touch $@

demo: $(VENV)/.installed ## deploy the PP-OCRv4 text recogniser to this machine's CPU
	$(BIN)/python examples/ocr/prepare.py --out $(DEMO)/ocr
	$(BIN)/edgekit deploy $(DEMO)/ocr/ch_PP-OCRv4_rec_infer.onnx --target host --shape x=1x3x48x480 \
	    --data $(DEMO)/ocr/calib --eval $(DEMO)/ocr/eval --recipe text-line --max-drop 1% --out $(DEMO)/bundle

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint ## lint, types and all tests
	$(BIN)/python -m pytest -m 'not device' -n 2 --dist loadfile

# 130 MB of downloads, kept in the user's cache folder; its tests are skipped where it was not built.
virtual-board: $(VENV)/.installed ## an emulated arm64 board to deploy to
	$(BIN)/python -m tests.virtual_board build

clean:
	rm -rf $(VENV) out
