# Two commands for a fresh machine. Both set themselves up in .venv; README.md shows the plain commands behind them.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TEST_TOOLS := $(VENV)/.test_tools
OUTPUT := output/quickstart

.PHONY: quickstart test clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install -c constraints.txt -e .
	touch $@

$(TEST_TOOLS): $(INSTALLED)
	$(RUN) -m pip install -c constraints.txt -e ".[test]"
	touch $@

# --resume: another call continues the training, or evaluates it again if it is finished.
quickstart: $(INSTALLED)
	$(RUN) datasets/prepare_shapes.py --output datasets/shapes
	$(RUN) -m d2_maskrcnn train --resume --config-file quickstart OUTPUT_DIR $(OUTPUT)

test: $(TEST_TOOLS)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	PYTHONPATH=d2_maskrcnn/_embedded $(VENV)/bin/lint-imports
	$(RUN) -m mkdocs build --strict --quiet --site-dir $(VENV)/site
	$(RUN) -m pytest -n auto --dist worksteal

clean:
	rm -rf $(VENV)
