# make demo    set up and run the main job on built-in speech
# make check   set up and pass everything that CI runs
# make fix     format, mend what can be mended, regenerate the reference pages
# make docs    check the generated pages, and build the site of the docs in build/site
# make links   ask whether addresses on the web that the docs name still answer
# make gpu     the tests that need a GPU
# make browser reports in Chromium: needs Chromium and Node.js, fetches playwright-core and axe-core
# make faults  every campaign of faults, for hours: kills, full disks (as root), commands at once, hostile input, fuzzing,
#              large data;
#              RECORD=--record writes down what came of it
# make golden  rewrite the golden values, and print what moved
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin

.PHONY: demo check fix lint types test docs links gpu browser faults golden

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@ $(VENV)/installed

demo: $(VENV)/installed
	$(BIN)/distilkit demo

check: lint types docs test

lint: $(VENV)/ready
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/codespell distilkit recipes docs *.md

types: $(VENV)/ready
	$(BIN)/mypy

docs: $(VENV)/ready
	$(BIN)/python docs/reference/generate.py --check
	$(BIN)/sphinx-build -E -W --keep-going -n -q -c docs . build/site

links: $(VENV)/ready
	$(BIN)/sphinx-build -E -q -b linkcheck -c docs . build/links

test: $(VENV)/ready
	$(BIN)/pytest -n 2

gpu: $(VENV)/ready
	$(BIN)/pytest -m gpu tests/gpu

browser: $(VENV)/ready
	npm install --prefix build/browser --no-save --no-audit --no-fund playwright-core@1.65.1 axe-core@4.14.1
	DISTILKIT_BROWSER=required $(BIN)/pytest -m browser tests/browser

CAMPAIGNS := kills full together hostile fuzz_parsers large
kills_options := --kills 50
hostile_options := --tries 1000
fuzz_parsers_options := --minutes 3

faults: $(CAMPAIGNS:%=faults-%)

faults-%: $(VENV)/ready
	$(if $(filter fuzz_parsers,$*),$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[fuzz]')
	$(BIN)/python tests/faults/$*.py $($*_options) $(RECORD)

fix: $(VENV)/ready
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/python docs/reference/generate.py

golden: $(VENV)/ready
	$(BIN)/python tests/golden/make.py
