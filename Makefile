# vlnotes: `make lab` opens the course, `make test` proves that all of it holds. Nothing is installed outside .venv.

VENV  ?= .venv
PY    := $(VENV)/bin/python
READY := $(VENV)/.ready
BENCH := $(VENV)/.ready-bench
SITE  := $(VENV)/.ready-site
SLIDES := $(VENV)/.ready-slides
NB    ?= notebooks/00_start_here.ipynb
WORKERS ?= 2

# Jupyter refuses to run as root (containers, some lab machines) unless told; and it should not look for updates.
ROOT  := $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)
QUIET := --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate

export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1

.PHONY: lab test run bench records tables picture handout site slides format clean help

help:
	@echo "make lab      make the environment, open JupyterLab on the first notebook"
	@echo "make test     run everything that must hold: ruff, unit tests, every notebook"
	@echo "make run      execute the whole course; the executed copies are left in executed/"
	@echo "make bench    speed and memory beside other libraries"
	@echo "make records  execute the course and write the recorded numbers and stored outputs anew"
	@echo "make tables   write the generated tables and the numbers in prose anew"
	@echo "make picture  take the README's picture of notebook 00's explorer anew"
	@echo "make handout  write the student edition without solutions and the answer key into handout/"
	@echo "make site     build the course as a static site into site/, from the stored outputs; nothing is executed"
	@echo "make slides   run a notebook as slides: make slides NB=notebooks/08_optimal_transport.ipynb"
	@echo "make format   let ruff format code and notebooks"
	@echo "make clean    remove the environment, caches and executed copies; runs/ stays"

lab: $(READY)
	$(VENV)/bin/jupyter lab $(ROOT) $(QUIET) --LabApp.default_url="/lab/tree/$(NB)"

test: $(READY)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pytest tests --numprocesses $(WORKERS) --dist loadfile
	OMP_NUM_THREADS=1 VLNOTES_RECORDS=strict $(PY) -m pytest notebooks --numprocesses $(WORKERS) --dist loadfile

run: $(READY)
	$(PY) tests/run_notebooks.py --jobs $(WORKERS)

records: $(READY)
	$(PY) tests/run_notebooks.py --write --records
	$(MAKE) tables

tables: $(READY)
	$(PY) -m vlnotes.checks

picture: $(READY)
	$(PY) tests/readme_picture.py

bench: $(BENCH)
	$(PY) tests/benchmarks

handout: $(READY)
	$(PY) tests/handout.py

site: $(SITE)
	$(PY) tests/build_site.py

slides: $(SLIDES)
	$(VENV)/bin/jupyter lab $(ROOT) $(QUIET) --LabApp.default_url="/rise/$(NB)"

format: $(READY)
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:
	rm -rf "$(VENV)" executed handout site build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . \( -name __pycache__ -o -name .ipynb_checkpoints -o -name .ruff_cache \) -prune -exec rm -rf {} +

# One environment for both commands. The stamp is newer than pyproject.toml, so a second run installs nothing.
$(READY): pyproject.toml
	@sh .ci/make_venv.sh "$(VENV)" "lab,test"
	@touch $@

$(SITE): $(READY)
	@echo "adding the tools that build the site (about 25 MB)"
	@$(PY) -m pip install --quiet --editable ".[site]"
	@touch $@

$(SLIDES): $(READY)
	@echo "adding the tool that shows notebooks as slides (about 16 MB)"
	@$(PY) -m pip install --quiet --editable ".[slides]"
	@touch $@

$(BENCH): $(READY)
	@echo "adding the libraries that we measure ourselves against (about 80 MB)"
	@$(PY) -m pip install --quiet --editable ".[bench]"
	@touch $@
