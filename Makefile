# Two commands for a fresh machine. Both set themselves up in .venv; README.md shows the plain commands behind them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.installed
OUTPUT := output/quickstart

.PHONY: quickstart test clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install -c constraints.txt -e ".[test]"
	touch $@

# --resume: another call continues the training, or evaluates it again if it is finished.
quickstart: $(STAMP)
	$(RUN) datasets/prepare_shapes.py --output datasets/shapes
	$(RUN) train_net.py --resume --config-file configs/quickstart.yaml OUTPUT_DIR $(OUTPUT)

test: $(STAMP)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	PYTHONPATH=d2_maskrcnn/_embedded $(VENV)/bin/lint-imports
	$(RUN) -m pytest -n auto

clean:
	rm -rf $(VENV)
